# %% [markdown]
# # 16. Scale invariance: why is BatchNorm so forgiving?
#
# A network with BatchNorm puts up with large learning rates, with initial weights of
# many sizes and with inputs that nobody scaled. One line of algebra is behind all
# three. Here we derive it, and then test what follows from it to ten digits.
#
# You need: lesson 4, and what a gradient step is. Running time: 10 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, optim
from minidl import functional as F
from minidl import plotting
from minidl.data import batches, split
from minidl.lessonkit import Lesson, written

lesson = Lesson("16_scale_invariance")
data = lesson.load_data()
(train_x, train_y), (test_x, test_y) = data
SEED = lesson.seeds(1)[0]

# %% [markdown]
# ## One line of algebra
#
# One unit of a Dense layer without bias has a vector of weights $w$, which is one
# column of the kernel. It passes $z = w \cdot u$ on to BatchNorm. Take $a w$ instead
# of $w$, with some $a > 0$. Then $z$, its mean $\mu_B$ and its standard deviation
# $\sigma_B$ are all multiplied by $a$, and in
#
# $\hat x = \frac{a z - a \mu_B}{\sqrt{a^2 \sigma_B^2 + \epsilon}}$
#
# $a$ cancels, except beside $\epsilon$. The output does not depend on how long $w$
# is, only on its direction. Therefore the gradient at $a w$ is $\frac{1}{a}$ times
# that at $w$, because the same change of the output takes a change of the weights
# that is $a$ times as large (Ioffe and Szegedy 2015, section 3.3).
#
# This holds for each unit by itself, since BatchNorm normalises each unit by itself. A
# kernel with 64 columns is 64 directions, each with a length of its own that does not
# matter for the output.
#
# We take two hidden layers of 64 ReLU units and compute in float64 with
# $\epsilon = 10^{-12}$, so that little is left of $\epsilon$ and of rounding. The
# last layer has no BatchNorm after it and is not scaled.


# %%
def network(seed, batch_norm=True, eps=1e-12):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, use_bias=False, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm(eps=eps))
        layers.append(Activation("relu"))
    layers.append(Dense(10, kernel_initializer="he_normal"))
    return Sequential(layers, seed=seed).build(784)


def hidden_layers(model):
    return [layer for layer in model.layers if isinstance(layer, Dense)][:-1]


def scaled_network(a=1.0, batch_norm=True):
    """In float64, the weights of each hidden unit times a, a number or (64,)."""
    model = network(SEED, batch_norm).astype(np.float64)
    for layer in hidden_layers(model):
        layer.kernel.data *= a
    return model


# %%
each = 10.0 ** np.random.default_rng(SEED).uniform(-1, 1, 64)  # another a for each unit
batch = train_x[:64].astype(np.float64)
logits = [scaled_network(a).train()(batch).numpy() for a in (1, each)]
change_of_output = np.abs(logits[1] - logits[0]).max() / np.abs(logits[0]).max()
print(f"64 units scaled by {each.min():.2f} to {each.max():.2f}, each by its own "
      f"number: the logits change by {change_of_output:.0e} of the largest")

# %% [markdown]
# ## Predict
#
# A step moves $w$ by $\eta g$, where $\eta$ is the learning rate and $g$ the gradient.
# At $a w$ the gradient is $a$ times smaller, while the step would have to be $a$ times
# larger to turn $w$ as far. By what factor must we multiply $\eta$ so that the *whole
# training run* is the same? And what will $10 w$ do at the old $\eta$? Write both down.
#
# ## Run
#
# The hidden kernels get an optimizer of their own. Everything else ($\gamma$, $\beta$,
# the last layer) keeps the rate 0.3.

# %%
RATE = 0.3


def gradient_step(model, x, y, optimizers):
    """The loss before the step; infinite or NaN if it is, and then no step is taken."""
    loss = F.cross_entropy(model(x), y)
    if np.isfinite(loss.item()):
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    return loss.item()


# %%
def train(model, kernel_rate=RATE, weight_decay=0.0, steps=200, change=lambda x: x):
    """Per step: the loss before it; of each unit in the first layer |w|² and |g|².

    Arrays (steps,), (steps, 64), (steps, 64); NaN once the loss is not finite.
    """
    hidden = hidden_layers(model.train())
    rest = [p for layer in model.layers if layer not in hidden
            for p in layer.parameters()]
    optimizers = [optim.SGD([layer.kernel for layer in hidden], lr=kernel_rate,
                            weight_decay=weight_decay), optim.SGD(rest, lr=RATE)]
    kernel, log = hidden[0].kernel, np.full((steps, 129), np.nan)
    stream = (pair for _ in range(steps)
              for pair in batches(train_x, train_y, 64, model.shuffle_rng))
    with np.errstate(over="ignore", invalid="ignore"):
        for step, (x, y) in zip(range(steps), stream):
            lengths = (kernel.data ** 2).sum(axis=0)
            loss = gradient_step(model, change(x.astype(np.float64)), y, optimizers)
            if not np.isfinite(loss):
                break
            log[step] = [loss, *lengths, *(kernel.grad ** 2).sum(axis=0)]
    return log[:, 0], log[:, 1:65], log[:, 65:]


# %%
def difference(run, other):
    return np.abs(run[0] - other[0]).max()


adjusted = {a: train(scaled_network(a), RATE * a ** 2) for a in (1.0, 10.0, 0.1)}
unchanged = {a: train(scaled_network(a)) for a in (1.0, 10.0, 0.1)}
for a in (10.0, 0.1):
    print(f"weights times {a:4}: largest difference of the losses "
          f"{difference(adjusted[a], adjusted[1]):.0e} with the rate times {a ** 2:g}, "
          f"{difference(unchanged[a], unchanged[1]):.1f} with the same rate")
apart = max(difference(adjusted[a], adjusted[1]) for a in (10, 0.1))

# %% [markdown]
# The rate must be multiplied by $a^2$. So it is not $\eta$ that counts but
# $\frac{\eta}{\|w\|^2}$, the *effective learning rate* of a unit. At the same $\eta$,
# longer weights turn more slowly.


# %%
def draw_losses(runs, title, ax):
    for i, (label, run) in enumerate(runs.items()):
        smooth = np.convolve(run[0], np.full(10, 0.1), "valid")
        plotting.band(np.arange(10, len(run[0]) + 1), [smooth], label, i, ax)
        ax.lines[-1].set_linewidth((10, 6, 3)[i])  # so that equal curves are all seen
    ax.set(xlabel="training step", yscale="log", title=title)


fig, axes = plotting.figure(1, 2, sharey=True, title="Weights times a, rate times a²: "
                            f"the same run, to within {written(apart, 1)}")
for ax, runs, title in zip(axes, (adjusted, unchanged),
                           ("learning rate times a²", "the same learning rate")):
    draw_losses({f"a = {a:g}": run for a, run in runs.items()}, title, ax)
axes[0].set_ylabel("training loss (mean of 10)")
axes[0].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
axes[0].minorticks_off()
plotting.legend(axes[0])
lesson.show(fig, "three_scales")

# %% [markdown]
# ## The weights grow, each unit by itself
#
# If the loss is the same for all $a w$, then it does not change along $w$, so the
# gradient stands at a right angle to $w$. A step is one side of a right-angled
# triangle, and Pythagoras gives the new length:
#
# $\|w_{t+1}\|^2 = \|w_t\|^2 + \eta^2 \|g_t\|^2.$
#
# The weights grow with every step, and the effective rate falls by itself, in each
# unit at its own pace. Now take rates from 1 to 30 for the hidden kernels. The first
# step at the rate 30 throws the weights far out, but far out the effective rate is
# small. Predict: how far apart are the effective rates of the four runs, and of the
# 64 units within a run, after 200 steps?

# %%
runs = {rate: train(scaled_network(), rate) for rate in (1.0, 3.0, 10.0, 30.0)}
rate, (_, lengths, gradients) = 3.0, runs[3.0]
grown = lengths[0] + rate ** 2 * (np.cumsum(gradients, axis=0) - gradients)
off = np.abs(lengths / grown - 1).max()
print(f"rate 3: the squared lengths of the 64 units grow from {lengths[0].min():.1f} "
      f"to {lengths[0].max():.1f} at first to {lengths[-1].min():.1f} to "
      f"{lengths[-1].max():.1f}; by Pythagoras the same, to within {off:.0e}")
effective = {rate: rate / run[1] for rate, run in runs.items()}  # (steps, 64)
middle = {rate: np.median(values, axis=1) for rate, values in effective.items()}
before, after = (np.ptp(np.log([values[step] for values in middle.values()]))
                 for step in (0, -1))
before, after = np.exp(before), np.exp(after)
for rate, values in middle.items():
    last = effective[rate][-1]
    print(f"rate {rate:2g}: median effective rate {values[0]:.2f}, {values[1]:.3f} "
          f"after one step, {values[-1]:.3f} at the end; largest / smallest of 64: "
          f"{last.max() / last.min():.0f}")

# %%
fig, ax = plotting.figure(size=(11.5, 6.5), title="The medians of four runs' effective "
                          f"rates: {before:.0f} times apart\nat first, {after:.1f} "
                          "times after 200 steps (band: half of 64 units)")
for i, (rate, values) in enumerate(effective.items()):
    quarters = np.percentile(values, [25, 50, 75], axis=1)
    plotting.band(np.arange(1, 201), quarters, f"rate {rate:g}", i, ax)
    ax.annotate(f"rate {rate:g}", (1, quarters[1, 0]), (-8, -5), ha="right",
                textcoords="offset points", color=plotting.LOOKS[i][0], fontsize=15)
ax.set(xlabel="training step", ylabel="effective rate of a unit,\nrate / |w|²",
       xscale="log", yscale="log", xticks=(1, 10, 100), xticklabels=("1", "10", "100"),
       xlim=(0.6, 230))
ax.set_yticks([0.1, 1, 10], ["0.1", "1", "10"])
lesson.show(fig, "self_correction")

# %% [markdown]
# So a rate that is too large corrects itself. Within a run the units stay apart,
# because each has received gradients of its own size. The "learning rate" of a layer
# is 64 different ones.
#
# ## The same for the inputs
#
# Consider scaling after *every* transformation, not only at the input, says one of the
# texts. Do we then need to scale the inputs at all? What cancels $a$ in $(a w) \cdot u$
# cancels it in $w \cdot (a u)$, and subtracting $\mu_B$ cancels a shift. So pixels from
# 0 to 255, or with 7 added to each, should leave the training run as it was.

# %%
inputs = {"x": lambda x: x, "x + 7": lambda x: x + 7, "255 x": lambda x: 255 * x}
with_bn = {name: train(scaled_network(), steps=100, change=change)
           for name, change in inputs.items()}
differences = {name: difference(with_bn[name], with_bn["x"]) for name in inputs}
for name in ("x + 7", "255 x"):
    print(f"inputs {name}: largest difference of the losses from those on x "
          f"{differences[name]:.0e}")

# %% [markdown]
# And the plain network? At the rate 0.3, which suits $x$, it fails on $255 x$. But
# perhaps it only needs another rate. It chooses the best of nine on images held out of
# the training set, while BatchNorm stays at 0.3. (Float32 and $\epsilon = 10^{-5}$
# again.) Predict: does the right rate make up for the scale?

# %%
large = [(255 * x, y) for x, y in data]
GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 0.1, RATE)


def accuracy_on(pairs, batch_norm, lr, seed):
    run = experiments.run(network(seed, batch_norm, eps=1e-5), pairs, steps=100,
                          optimizer=optim.SGD(lr=lr), batch_size=64, eval_steps=[100])
    return np.nan_to_num(run.accuracy[0], nan=0.1)  # a run that diverged guesses


held_out = split(*large[0], 0.2, SEED)
scores = [[accuracy_on(held_out, False, lr, seed) for lr in GRID]
          for seed in lesson.seeds(2)]
best = experiments.best(GRID, scores)
on_large = {name: np.array([accuracy_on(large, norm, lr, seed)
                            for seed in lesson.seeds(5)])
            for name, norm, lr in (("BatchNorm", True, RATE), ("plain", False, RATE),
                                   ("plain, best rate", False, best))}

# %%
right = {name: f"{values.mean():.0%}" for name, values in on_large.items()}
fig, axes = plotting.figure(1, 2, size=(14, 6), title="Pixels from 0 to 255: with "
                            "BatchNorm the same run as from 0 to 1; without,\n"
                            f"{right['plain, best rate']} right instead of "
                            f"{right['BatchNorm']}, at the best of nine rates")
draw_losses(with_bn, "with BatchNorm, learning rate 0.3", axes[0])
axes[0].set(ylabel="training loss (mean of 10)")
axes[0].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
axes[0].minorticks_off()
for i, (name, values) in enumerate(on_large.items()):
    axes[1].plot(np.full(len(values), i), values, "o", markersize=13, alpha=0.7,
                 color=plotting.LOOKS[min(i, 1)][0])
axes[1].set(ylim=(0, 1), ylabel="test accuracy after 100 steps", xlim=(-0.5, 2.5),
            title="on 255 x, five seeds", xticks=range(3), xticklabels=(
                "BatchNorm\nrate 0.3", "plain\nrate 0.3", f"plain\nrate {best:g}"))
plotting.legend(axes[0])
lesson.show(fig, "inputs")

# %% [markdown]
# ## Explain
#
# With BatchNorm behind it each unit's weights are a *direction*. Their length only sets
# how fast that direction turns.
#
# - *Large learning rates*: a step that is too large makes the weights long, and
#   therefore the next steps small.
# - *Initial weights of any size*: their size sets the first effective rate. Weights
#   that are too small correct themselves within a step or so. Weights that are too
#   large do so slowly if at all, because weights can only grow.
# - *Inputs of any scale*: the scale cancels in the first layer. A shift does too, in
#   training; in evaluation the running averages lag behind (exercise 2).
#
# The limits: $\epsilon$ must be small beside $\sigma_B^2$, and the last layer has no
# BatchNorm after it. And the claim is about *training*: it does not say that the
# network at the end is a better one.

# %%
print()
lesson.check("64 units scaled, each by its own number: relative change of the logits",
             change_of_output, at_most=1e-8)
lesson.check("weights times 10, rate times 100: largest difference of the losses",
             apart, at_most=1e-6)
lesson.check("each unit's squared length: difference from Pythagoras, relative",
             off, at_most=1e-6)
lesson.check("rates 1 to 30: largest / smallest median effective rate after 200 steps",
             after, at_most=10)
for name in ("x + 7", "255 x"):
    lesson.check(f"inputs {name}: largest difference of the losses from those on x",
                 differences[name], at_most=1e-10)
lead = {name: on_large["BatchNorm"].mean() - values.mean()
        for name, values in on_large.items()}
lesson.check("inputs 255 x: accuracy with - without BatchNorm, both at the rate 0.3",
             lead["plain"], at_least=0.4)
lesson.check("inputs 255 x: the same, plain at its best rate", lead["plain, best rate"],
             at_least=0.05)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. The weights of one hidden unit are multiplied by 10; BatchNorm follows it. What
# is the same as before?**
#
# - A: nothing, because all later layers get larger inputs
# - B: the output of the network, and its whole training run
# - C: only the gradient of this unit
# - D: the output of the network; but at the same rate this unit turns 100 times more
#   slowly
#
# **2. "We know that standardising the data speeds up convergence; standardising inside
# the network does so, too", writes text 003. Do inputs from 0 to 255 then slow down a
# network whose first layer is followed by BatchNorm?**
#
# - A: Yes, as much as any other network.
# - B: No: in training the scale cancels, as long as $\epsilon$ is small beside the
#   variance.
# - C: Yes, unless the learning rate is divided by 255.
# - D: No, because BatchNorm maps the pixels to the range from 0 to 1.
#
# <details><summary>Answers</summary>
#
# 1 D. The gradient is 10 times smaller and $w$ 10 times longer, so a step turns $w$ by
# a hundredth of the angle. A forgets the normalisation. B is what texts 000 and 002
# lead one to expect when they say that the initial weights matter less: the output does
# not notice them, the training run does. C is one of the things that change.
#
# 2 B. What cancels $a$ in $(a w) \cdot u$ cancels it in $w \cdot (a u)$. A applies text
# 003's first half where its second half has made it superfluous. C is a remedy for the
# plain network, and even there none of nine rates makes up for the scale. D is text
# 003's "given range": BatchNorm sets mean and variance, and no range.
#
# </details>
#
# ## Try
#
# 1. Easy: take $a = -3$. What happens to $\hat x$, and why is the training run no
#    longer the same?
# 2. Easy: train on $x + 7$ and test on $x + 7$ with the running averages. Then call
#    `estimate_population_statistics` and test again. What went wrong, and for whom?
# 3. Medium: weight decay $\lambda$ pulls weights towards 0, but only their direction
#    counts. Show with $V_t = w_t / q^t$ and $q = 1 - \eta\lambda$ that a run with
#    decay is a run *without* decay at the growing rate $\eta \cdot q^{-(2t+1)}$, and
#    test it: `train` takes `weight_decay`, and a function of the step as
#    `kernel_rate`.
# 4. Medium: replace SGD by Adam for the hidden kernels. By what must the rate be
#    multiplied now?
# 5. Medium: does Pythagoras still hold with the momentum 0.9? Look at $g_t$ and at the
#    velocity.
# 6. Research: find a decay at which the effective rate neither falls nor grows. What
#    sets its level?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.3. T. van Laarhoven, L2
# Regularization versus Batch and Weight Normalization, 2017 (weight decay as a
# learning rate). S. Arora, Z. Li and K. Lyu, Theoretical Analysis of Auto Rate-Tuning
# by Batch Normalization, 2019.
