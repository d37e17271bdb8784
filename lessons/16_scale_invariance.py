# %% [markdown]
# # 16. Scale invariance: why is BatchNorm so forgiving?
#
# A network with BatchNorm puts up with large learning rates, with initial weights of many sizes and with
# inputs that nobody scaled. Three kinds of patience, and one line of algebra behind all of them. Here we
# derive it, and then test what follows from it to ten digits.
#
# You need: what BatchNorm computes, and what a gradient step is. Running time: 10 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, estimate_population_statistics, experiments, optim, plotting
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("16_scale_invariance")
data = lesson.load_data()
(train_x, train_y), (test_x, test_y) = data
SEED = lesson.seeds(1)[0]

# %% [markdown]
# ## One line of algebra
#
# Let $z = Wu$ be what a Dense layer without bias gives to BatchNorm. Take $aW$ instead of $W$, with some $a > 0$.
# Then $z$, its mean $\mu_B$ and its standard deviation $\sigma_B$ are all multiplied by $a$, and in
#
# $\hat x = \frac{a z - a \mu_B}{\sqrt{a^2 \sigma_B^2 + \epsilon}}$
#
# $a$ cancels, but for $\epsilon$: the output does not know how long the weights are. So the gradient at
# $aW$ must be $\frac{1}{a}$ times that at $W$: the same change of the output
# takes a change of the weights that is $a$ times as large (Ioffe and Szegedy 2015, section 3.3).
#
# We take two hidden layers of 64 ReLU units and compute in float64 with $\epsilon = 10^{-12}$, so that little
# is left of $\epsilon$ and of rounding. The last layer has no BatchNorm after it and is not scaled.


# %%
def network(seed, batch_norm=True, eps=1e-12):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, use_bias=False, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm(eps=eps))
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed).build(784)


def hidden_layers(model):
    return [layer for layer in model.layers if isinstance(layer, Dense)][:-1]


def scaled_network(a=1, batch_norm=True):
    """The network in float64, with the kernels of the hidden layers multiplied by a."""
    model = network(SEED, batch_norm).astype(np.float64)
    for layer in hidden_layers(model):
        layer.kernel.data *= a
    return model


logits = {a: scaled_network(a).train()(train_x[:64].astype(np.float64)).numpy() for a in (1, 10)}
change_of_output = np.abs(logits[10] - logits[1]).max() / np.abs(logits[1]).max()
print(f"kernels times 10: the logits change by {change_of_output:.1e} of the largest")

# %% [markdown]
# ## Predict
#
# A step moves $W$ by $\eta g$, where $\eta$ is the learning rate and $g$ the gradient. At $aW$ the gradient is
# $a$ times smaller, while the step would have to be $a$ times larger to mean the same.
# By what must we multiply $\eta$ so that the *whole training run* is the same? And what
# will $10W$ do at the old $\eta$? Write both down.
#
# ## Run
#
# The hidden kernels get an optimizer of their own; all else ($\gamma$, $\beta$, the last layer) keeps the rate 0.3.

# %%
RATE = 0.3


def endless_batches(rng):
    while True:
        yield from batches(train_x, train_y, 64, rng)


def train(model, kernel_rate=RATE, weight_decay=0.0, steps=200, change=lambda x: x):
    """The loss before each step, and the squared norms of the first kernel and of its gradient; NaN once diverged."""
    hidden = hidden_layers(model.train())
    rest = [p for layer in model.layers if layer not in hidden for p in layer.parameters()]
    optimizers = [optim.SGD([layer.kernel for layer in hidden], lr=kernel_rate, weight_decay=weight_decay),
                  optim.SGD(rest, lr=RATE)]
    kernel, log = hidden[0].kernel, np.full((3, steps), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        for step, (x, y) in zip(range(steps), endless_batches(model.shuffle_rng)):
            loss = F.cross_entropy(model(change(x.astype(np.float64))), y)
            if not np.isfinite(loss.item()):
                break
            model.zero_grad()
            loss.backward()
            log[:, step] = loss.item(), (kernel.data ** 2).sum(), (kernel.grad ** 2).sum()
            for optimizer in optimizers:
                optimizer.step()
    return log


def difference(log, other):
    return np.abs(log[0] - other[0]).max()


adjusted = {a: train(scaled_network(a), kernel_rate=RATE * a ** 2) for a in (1, 10, 0.1)}
unchanged = {a: train(scaled_network(a)) for a in (1, 10, 0.1)}
for a in (10, 0.1):
    print(f"kernels times {a:4}: largest difference of the losses {difference(adjusted[a], adjusted[1]):.1e} "
          f"with the rate times {a ** 2:g}, {difference(unchanged[a], unchanged[1]):.1e} with the same rate")

# %% [markdown]
# The rate must be multiplied by $a^2$. So it is not $\eta$ that counts but $\frac{\eta}{\|W\|^2}$, the *effective
# learning rate*. At the same $\eta$, longer weights turn more slowly.


# %%
def draw_losses(runs, title, ax):
    for i, (label, log) in enumerate(runs.items()):
        plotting.band(np.arange(10, len(log[0]) + 1), [np.convolve(log[0], np.full(10, 0.1), "valid")], label, i, ax)
        ax.lines[-1].set_linewidth((10, 6, 3)[i])  # curves that coincide shall all be seen
    ax.set(xlabel="training step", yscale="log", title=title)


apart = np.max([difference(adjusted[a], adjusted[1]) for a in (10, 0.1)])
fig, axes = plotting.figure(1, 2, sharey=True, title=f"Weights times a, rate times a²: the same run, to within {apart:.0e}")
for ax, runs, title in zip(axes, (adjusted, unchanged), ("learning rate times a²", "the same learning rate")):
    draw_losses({f"a = {a}": log for a, log in runs.items()}, title, ax)
axes[0].set_ylabel("training loss (mean of 10)")
plotting.legend(axes[0])
lesson.show(fig, "three_scales")

# %% [markdown]
# ## The weights grow, and what weight decay does
#
# If the loss is the same for all $aW$, then it does not change along $W$: the gradient stands at a right angle to $W$.
# A step is one side of a right-angled triangle, and Pythagoras gives the new length:
#
# $\|W_{t+1}\|^2 = \|W_t\|^2 + \eta^2 \|g_t\|^2.$
#
# The weights grow with every step, and the effective rate falls by itself. Weight decay, which pulls weights towards 0
# to keep a network simple, cannot make these hidden layers simpler, as only the directions of their kernels count.
# What does it do to them? Let $\lambda$ be the decay, $q = 1 - \eta\lambda$, $W_t$ the weights of a run with decay, and
# $V_t = W_t / q^t$. Put this into the step $W_{t+1} = q W_t - \eta g$, and $V$ turns out to take steps *without* decay
# at the rate $\eta \cdot q^{-(2t+1)}$. Here weight decay is an exponentially growing learning rate. Exactly?

# %%
DECAY = 0.01
free, decayed = (train(scaled_network(), weight_decay=decay, steps=300) for decay in (0.0, DECAY))
growing = train(scaled_network(), kernel_rate=lambda t: RATE * (1 - RATE * DECAY) ** -(2 * t + 1), steps=300)
by_pythagoras = free[1, 0] + RATE ** 2 * (np.cumsum(free[2]) - free[2])  # before step t, steps 0 to t - 1 have been taken
off = np.abs(free[1] - by_pythagoras).max() / (by_pythagoras[-1] - free[1, 0])
print(f"no decay: the squared norm goes from {free[1, 0]:.6f} to {free[1, -1]:.6f}, by Pythagoras to {by_pythagoras[-1]:.6f}")
print(f"decay {DECAY}: it goes to {decayed[1, -1]:.6f}; the losses differ from those of the growing rate by at most "
      f"{difference(decayed, growing):.1e}")

times = free[1, -1] / decayed[1, -1]
fig, axes = plotting.figure(1, 2, title=f"Weight decay {DECAY} makes the effective learning rate {times:.1f} times "
                                          "as large in 300 steps")
for i, (label, log) in enumerate({"no decay": free, f"decay {DECAY}": decayed}.items()):
    plotting.band(np.arange(300), [log[1]], label, i, axes[0])
    plotting.band(np.arange(300), [RATE / log[1]], label, i, axes[1])
axes[0].plot(np.arange(0, 300, 30), by_pythagoras[::30], "o", color="0.2", markersize=9, label="no decay, by Pythagoras")
axes[0].set(xlabel="training step", ylabel="squared norm of the kernel", ylim=(0, None))
axes[1].set(xlabel="training step", ylabel="rate / squared norm", ylim=(0, None))
plotting.legend(axes[0])
lesson.show(fig, "norm_and_effective_rate")

# %% [markdown]
# ## A rate that is too large corrects itself
#
# Now rates from 1 to 30 for the hidden kernels. The first step at the rate 30 throws the weights far out, but far
# out the effective rate is small. Predict: which of the four effective rates will be the largest after 200 steps?

# %%
effective = {rate: rate / train(scaled_network(), kernel_rate=rate)[1] for rate in (1, 3, 10, 30)}
before, after = (np.max(values) / np.min(values) for values in zip(*(values[[0, -1]] for values in effective.values())))
fig, ax = plotting.figure(size=(11, 6), title=f"Effective rates {before:.0f} times apart at the start, "
                                              f"{after:.1f} times after 200 steps")
for i, (rate, values) in enumerate(effective.items()):
    print(f"rate {rate:2}: effective {values[0]:.4f} at first, {values[1]:.4f} after one step, {values[-1]:.4f} at the end")
    plotting.band(np.arange(1, 201), [values], f"rate {rate}", i, ax)
ax.set(xlabel="training step", ylabel="rate / squared norm of the kernel", xscale="log", yscale="log")
plotting.legend(ax)
lesson.show(fig, "self_correction")

# %% [markdown]
# ## The same for the inputs
#
# Scale not only the inputs but every layer, says one of the texts. Then need we scale the inputs at all? What cancels
# $a$ in $aW$ cancels it in $W(au)$, and subtracting $\mu_B$ cancels a shift. So pixels from 0 to 255, or with 7 added
# to each, should leave the whole run as it was. Predict what the plain network does.

# %%
inputs = {"x": lambda x: x, "x + 7": lambda x: x + 7, "255 x": lambda x: 255 * x}
models = {name: scaled_network() for name in inputs}
with_bn = {name: train(models[name], steps=100, change=change) for name, change in inputs.items()}
without = {name: train(scaled_network(batch_norm=False), steps=100, change=change) for name, change in inputs.items()}
differences = {name: difference(with_bn[name], with_bn["x"]) for name in ("x + 7", "255 x")}
fig, axes = plotting.figure(1, 2, sharey=True, title="Inputs x, x + 7 and 255 x: with BatchNorm the same run, to within "
                                                     f"{max(differences.values()):.0e}")
for ax, runs, title in zip(axes, (with_bn, without), ("with BatchNorm", "without BatchNorm")):
    draw_losses(runs, title, ax)
axes[0].set(ylabel="training loss (mean of 10)", ylim=(0.1, 10))
worst = np.nanmax([log[0] for log in without.values()])
axes[1].text(0.98, 0.95, f"cut off: losses up to {worst:.0e}", ha="right", va="top", transform=axes[1].transAxes, fontsize=14)
plotting.legend(axes[0])
lesson.show(fig, "inputs")

# %% [markdown]
# Is that fair? The plain network fails on $255x$ at the rate 0.3, which suits $x$. Perhaps it only needs another
# rate. It may try nine, and we keep its best; BatchNorm stays at 0.3. Float32 and $\epsilon = 10^{-5}$ again.


# %%
def accuracy_on_large(batch_norm, lr):
    """The median test accuracy after 100 steps on 255 x; a run that diverged (NaN) is left guessing, one in ten."""
    result = experiments.compare({"": lambda seed: network(seed, batch_norm, eps=1e-5)}, [(255 * x, y) for x, y in data],
                                 lr=lr, steps=100, batch_size=64, seeds=lesson.seeds(3), eval_steps=[100])
    return np.median(np.nan_to_num(result.accuracy_at("", 100), nan=0.1))


bn_on_large = accuracy_on_large(True, RATE)
plain_on_large = {lr: accuracy_on_large(False, lr) for lr in (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, RATE, 1.0)}
print(f"255 x: test accuracy {bn_on_large:.3f} with BatchNorm at the rate {RATE}; without, by rate: "
      + ", ".join(f"{lr:g}: {accuracy:.3f}" for lr, accuracy in plain_on_large.items()))

# %% [markdown]
# ## A trap on the way
#
# The run on $x + 7$ has the same losses and the same weights as the run on $x$. So the same test accuracy?


# %%
def test_accuracy(name):
    return np.mean(models[name].predict(inputs[name](test_x.astype(np.float64))).argmax(axis=1) == test_y)


averaged = {name: test_accuracy(name) for name in inputs}
with np.errstate(over="ignore", invalid="ignore"):
    for name, change in inputs.items():
        estimate_population_statistics(models[name], change(train_x[:4000].astype(np.float64)))
precise = {name: test_accuracy(name) for name in inputs}
for name in inputs:
    print(f"{name:5}: test accuracy {averaged[name]:.3f} with running averages, {precise[name]:.3f} with averages taken anew")

# %% [markdown]
# In evaluation BatchNorm uses *running averages*, and these come late. A shift of 7 adds 7 times the sum of a unit's
# weights to its mean, and that sum moves with every step. Training does not notice, since each batch brings its own
# mean. Averages taken anew with the final weights mend it; so does centring the inputs in the first place.
#
# ## Explain
#
# With BatchNorm behind it a kernel is a *direction*. Its length only sets how fast the direction turns.
#
# - *Large learning rates*: a step that is too large makes the weights long, and the next steps small.
# - *Initial weights of any size*: their size sets the first effective rate. Too small a size corrects itself in a step
#   or so, too large a size slowly if at all, as the weights can only grow.
# - *Inputs of any scale*: the scale cancels in the first layer. A shift does too, in training.
#
# The limits: $\epsilon$ must be small beside $\sigma_B^2$, and the last layer has no BatchNorm after it. And weight
# decay on these kernels is a learning rate in disguise, as van Laarhoven (2017) argued. Arora, Li and Lyu (2019) have
# a name for the whole effect: auto rate-tuning.

# %%
print()
lesson.check("largest relative change of the logits under 10 W", change_of_output, at_most=1e-8)
lesson.check("weights times 10 or 0.1, rate times 100 or 0.01: largest difference of the losses", apart, at_most=1e-6)
lesson.check("growth of the squared norm: difference from Pythagoras, relative", off, at_most=1e-6)
lesson.check("weight decay or a growing rate: largest difference of the losses", difference(decayed, growing), at_most=1e-6)
lesson.check("rates 1 to 30: largest / smallest effective rate after 200 steps", after, at_most=10)
for name, value in differences.items():
    lesson.check(f"inputs {name}: largest difference of the losses from those on x", value, at_most=1e-10)
lesson.check("inputs x + 7: accuracy with averages taken anew, difference from x", abs(precise["x + 7"] - precise["x"]),
             at_most=0.01)
lead, lead_over_best = bn_on_large - plain_on_large[RATE], bn_on_large - max(plain_on_large.values())
lesson.check(f"inputs 255 x: accuracy with - without BatchNorm at the rate {RATE}", lead, at_least=0.4)
print(f"reported, inputs 255 x: accuracy with BatchNorm - that of the plain network at its best rate {lead_over_best:+.3f}")
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: take $a = -3$. What happens to $\hat x$, and why is the training run no longer the same?
# 2. Easy: repeat the first figure with $\epsilon = 10^{-5}$ and $10^{-3}$. For which $a$ do the curves part, and why?
# 3. Medium: replace SGD by Adam for the hidden kernels. By what must the rate be multiplied now?
# 4. Medium: does Pythagoras still hold with the momentum 0.9? Look at $g_t$ and at the velocity.
# 5. Research: find a decay at which the effective rate neither falls nor grows. What sets its level?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.3. T. van Laarhoven, L2 Regularization versus Batch and Weight
# Normalization, 2017. S. Arora, Z. Li and K. Lyu, Theoretical Analysis of Auto Rate-Tuning by Batch Normalization, 2019.
