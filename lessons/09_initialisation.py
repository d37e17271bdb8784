# %% [markdown]
# # 9. Initialisation: how bad may the initial weights be?
#
# A plain network learns only if its initial weights are neither too small nor too large. Two of the texts on Batch
# Normalization say that it reduces the dependence on the initialisation. By how much, and where does that end?
#
# You need: lessons 7 and 8. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, initializers, optim, plotting, record
from minidl.lessonkit import Lesson

lesson = Lesson("09_initialisation")
(x, y), _ = lesson.load_data()
images = x[:1000], y[:1000]

# %% [markdown]
# ## The network
#
# Five hidden layers of 100 ReLU units, 1,000 images, batches of 100, learning rate 0.01, 200 steps: an experiment
# of the book Deep Learning from Scratch. There the two networks have different random weights; here they have the same.
#
# All weights are drawn from $N(0, s^2)$. We vary the *scale* $s$ from 1 to 0.0001. The question is whether
# a network can learn at all, so we measure its accuracy on the 1,000 images that it is trained on.

# %%
SCALES = 10 ** np.arange(0, -4.1, -0.5)  # nine, two to a decade
MEASURED_AT = range(0, 201, 50)
LEARNS = 0.8  # a network has learned if it gets this share of its training images right; guessing gives 0.1
BN, PLAIN = "with BatchNorm", "without BatchNorm"


def network(seed, scale, batch_norm, eps=1e-5, activation="relu"):
    layers = []
    for _ in range(5):
        layers.append(Dense(100, kernel_initializer=initializers.normal(scale)))
        if batch_norm:
            layers.append(BatchNorm(eps=eps))
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=initializers.normal(scale))], seed=seed)


def train(scale, batch_norm, seed, lr=0.01, eps=1e-5):
    """The job of our sweeps: train one network. A network that diverged is left guessing, one in ten."""
    run = experiments.run(network(seed, scale, batch_norm, eps), (images, images), optimizer=optim.SGD(lr=lr), steps=200,
                          batch_size=100, eval_steps=MEASURED_AT)
    return {"curve": run.accuracy, "accuracy": np.nan_to_num(run.accuracy[-1], nan=0.1),
            "diverged_at": np.nan if run.diverged_at is None else run.diverged_at}


def row(name, numbers, spec=".2f"):
    print(f"{name:32}" + "".join(f"{number:{spec}}".rjust(9) for number in numbers))


# %% [markdown]
# ## Predict
#
# Nine scales: 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001. From how many of them will the plain network
# learn? From how many will the one with BatchNorm? Will *any* scale be too much for BatchNorm?
#
# ## Run

# %%
result = experiments.sweep({"batch_norm": [True, False], "scale": SCALES.tolist(), "seed": lesson.seeds(2)}, train)
accuracy = dict(zip((BN, PLAIN), result.array("accuracy")))  # each (scales, seeds)
diverged_at = dict(zip((BN, PLAIN), result.array("diverged_at")))
curves = dict(zip((BN, PLAIN), result.array("curve")))  # each (scales, seeds, measurements)
count = {name: int((accuracy[name].mean(axis=1) >= LEARNS).sum()) for name in (BN, PLAIN)}
print("training accuracy after 200 steps, mean of 2 seeds")
row("scale of the initial weights", SCALES, ".2g")
for name in (BN, PLAIN):
    row(name, accuracy[name].mean(axis=1))

# %% [markdown]
# In the figures a line is the median over the seeds, the band their range. First how each network learns; a cross
# marks a loss that became infinite.

# %%
fig, axes = plotting.figure(3, 3, sharex=True, sharey=True, size=(13, 10.5),
                            title=f"At rate 0.01, {count[BN]} of 9 scales learn with BatchNorm, {count[PLAIN]} without")
for k, ax in enumerate(axes.flat):
    for i, name in enumerate((BN, PLAIN)):
        plotting.band(np.array(MEASURED_AT), curves[name][k], name, i, ax)
        if np.isfinite(diverged_at[name][k]).any():
            ax.plot(diverged_at[name][k], [0.1, 0.1], "x", color=plotting.LOOKS[i][0], markersize=13, markeredgewidth=4,
                    label=f"{name}: diverged", zorder=5)
    ax.set(title=f"scale {SCALES[k]:.2g}", ylim=(0, 1.03), xlabel="training step" if k > 5 else "",
           ylabel="training accuracy" if k == 3 else "")
    plotting.legend(ax)
lesson.show(fig, "curves")

# %%
fig, ax = plotting.figure(size=(11, 6), title=f"{LEARNS:.0%} right: from {count[BN]} of 9 scales with BatchNorm, "
                                              f"from {count[PLAIN]} without")
for i, name in enumerate((BN, PLAIN)):
    plotting.band(SCALES, accuracy[name].T, name, i, ax)
    died = np.isfinite(diverged_at[name]).any(axis=1)
    if died.any():
        ax.plot(SCALES[died], np.full(died.sum(), 0.1), "x", color=plotting.LOOKS[i][0], markersize=12, markeredgewidth=3,
                label=f"{name}: diverged", zorder=5)
ax.axhline(LEARNS, color="0.4", linewidth=1.2, linestyle=":")
ax.set(xscale="log", ylim=(0, 1.03), xlabel="scale (standard deviation) of the initial weights",
       ylabel="training accuracy\nafter 200 steps")
plotting.legend(ax)
lesson.show(fig, "accuracy")

# %% [markdown]
# The texts are right: with BatchNorm the range of scales that work is much wider. They do not say that it ends, on both
# sides. And where a scale suits the plain network, BatchNorm need not be ahead: look at 0.32. Why is all this so?
#
# ## Explain: why the middle is wide
#
# Multiply the kernel of a Dense layer by a number $a$: mean and standard deviation over the batch are
# multiplied by $a$ too, and but for $\epsilon$
#
# $\hat x_i = \frac{a x_i - a \mu_B}{\sqrt{a^2 \sigma_B^2 + \epsilon}} \approx \frac{x_i - \mu_B}{\sigma_B}.$
#
# The next layer does not notice $a$. Without BatchNorm five layers multiply by $a^5$.
#
# Sigmoid units show it best. A sigmoid answers almost 0 or 1 to a large input. There its slope, answer times
# (1 - answer), is almost 0 and no gradient comes through: the unit is *saturated*. One text gives this as
# the reason for BatchNorm. So we put sigmoids in place of the ReLUs and look at all of them before training.


# %%
def answers(model):
    """What the units of all five layers answer to a batch of images, in training mode."""
    found, h = [], x[:500]
    for layer in model.build(784).train().layers:
        h = layer(h)
        if isinstance(layer, Activation):
            found.append(h.numpy())
    return np.array(found)


z = np.linspace(-8, 8, 10001)
density, sigmoid = np.exp(-z ** 2 / 2), 1 / (1 + np.exp(-z))
EXPECTED = np.sum(density * sigmoid * (1 - sigmoid)) / np.sum(density)  # for inputs from N(0, 1)

slope, at_one = {}, {}
print(f"\nmean slope of the sigmoids before training; {EXPECTED:.4f} for inputs from N(0, 1), at most 0.25")
row("scale of the initial weights", SCALES, ".2g")
for name in (BN, PLAIN):
    found = [answers(network(lesson.seed, scale, name == BN, activation="sigmoid")) for scale in SCALES]
    slope[name] = np.array([np.mean(a * (1 - a), dtype=float) for a in found])
    at_one[name] = found[0]
    row(name, slope[name], ".4f")

# %%
flat = {name: np.mean((a < 0.05) | (a > 0.95)) for name, a in at_one.items()}
fig, axes = plotting.figure(1, 2, sharey=True, title=f"Scale 1: {flat[BN]:.0%} of the sigmoids' answers are saturated with "
                                                     f"BatchNorm, {flat[PLAIN]:.0%} without")
for i, (name, ax) in enumerate(zip((BN, PLAIN), axes)):
    share, edges = np.histogram(at_one[name], bins=20, range=(0, 1))
    ax.bar(edges[:-1], share / share.sum(), width=0.05, align="edge", color=plotting.LOOKS[i][0], edgecolor="white")
    ax.set(title=name, xlabel="answer of a sigmoid unit", ylabel="share of the answers" if i == 0 else "")
lesson.show(fig, "sigmoids")

# %% [markdown]
# A slope of 0.25 is no good news for the plain network at small scales: every unit answers 0.5 to every
# image, and there is nothing to learn from. At the smallest scales that happens with BatchNorm too. Why?
#
# ## The edge at small weights: $\epsilon$
#
# BatchNorm divides by $\sqrt{\sigma_B^2 + \epsilon}$. Where $\sigma_B^2$ is far below $\epsilon$ that is a constant, and
# dividing by a constant normalises nothing. What a ReLU makes of inputs from $N(0, 1)$ has the variance
# $\frac{1}{2} - \frac{1}{2 \pi} \approx 0.34$. A unit adds 100 of these, each times a weight, so its $\sigma_B^2$ is
# about $34 s^2$. That equals $\epsilon$ at $s = \sqrt{\epsilon / 34}$.
#
# Predict: at which scale does the signal die for $\epsilon = 10^{-3}$ (Keras), $10^{-5}$ (PyTorch) and $10^{-12}$?

# %%
EPSILONS = (1e-3, 1e-5, 1e-12)
spread, first_step = {}, {}
print()
row("scale of the initial weights", SCALES, ".2g")
for eps in EPSILONS:
    logs = []
    for scale in SCALES:
        model = network(lesson.seed, scale, batch_norm=True, eps=eps)
        with record(model) as log:
            experiments.run(model, (images, images), optimizer=optim.SGD(lr=0.01), steps=1, batch_size=100)
        logs.append(log)
    spread[eps] = np.array([log["batchnorm_4", "std"][0] for log in logs])
    first_step[eps] = np.array([log["dense_2.kernel", "update_ratio"][0] for log in logs])
    row(f"eps {eps:g}: std after the last BN", spread[eps], ".2g")
row("first step / weights, eps 1e-12", first_step[1e-12], ".1g")

# %% [markdown]
# ## The edge at large weights: the effective learning rate
#
# The last row is the size of the first update of the third kernel, divided by the size of the kernel. BatchNorm makes
# the *output* indifferent to the scale of the weights, but not the *step*. The gradient with respect to $a W$ is
# $\frac{1}{a}$ times that with respect to $W$, and it changes weights that are $a$ times as large: relative to the weights
# a step is $a^2$ times smaller. (In our network the last layer, which has no BatchNorm, sends back a gradient that
# is $a$ times larger; that leaves a factor of $a$.) With large weights nothing is wrong, but little moves. This is
# why BatchNorm was behind at 0.32: there 0.01 is a good rate for the plain network and a small one for BatchNorm.

# %%
fig, axes = plotting.figure(1, 2, size=(13, 6),
                            title="Before training: eps silences small weights, large weights hardly move")
for i, eps in zip((2, 0, 3), EPSILONS):
    color, line = plotting.LOOKS[i]
    axes[0].plot(SCALES, spread[eps], color=color, linestyle=line, linewidth=3, label=f"eps {eps:g}")
    if eps >= 1e-5:
        axes[0].axvline(np.sqrt(eps / 34), color=color, linestyle=line, linewidth=1)
    axes[1].plot(SCALES, first_step[eps], color=color, linestyle=line, linewidth=3)
axes[0].set(xscale="log", yscale="log", xlabel="scale of the initial weights", ylabel="std after the last BatchNorm",
            title=r"thin lines: $s = \sqrt{\epsilon / 34}$")
axes[1].set(xscale="log", yscale="log", xlabel="scale of the initial weights", ylabel="size of the first step / weights",
            title="third hidden layer, rate 0.01")
plotting.legend(axes[0])
lesson.show(fig, "edges")

# %% [markdown]
# If this explanation is right, we can move both edges: a smaller $\epsilon$ must rescue small weights, a larger learning
# rate must rescue large ones. Predict both, and what the large rate will do to *small* weights.

# %%
small = SCALES[6::2]
runs = experiments.sweep({"eps": [1e-3, 1e-12], "scale": small.tolist(), "batch_norm": [True], "seed": lesson.seeds(1)}, train)
by_eps = {1e-5: accuracy[BN][6::2].mean(axis=1), **dict(zip((1e-3, 1e-12), runs.array("accuracy")[:, :, 0, 0]))}
print("\ntraining accuracy after 200 steps at rate 0.01, with BatchNorm")
row("scale of the initial weights", small, ".2g")
for eps in EPSILONS:
    row(f"eps {eps:g}", by_eps[eps])

# %% [markdown]
# With hardly any $\epsilon$ the first step is as large as the smallest weights themselves. That is rough, but they learn.
#
# Now the rate. BatchNorm must take the rate 1 for all scales. The plain network may choose: for
# each scale we take the best of 0.0001, 0.01 and 0.1. Is it lost at scale 1, or did it only need another rate?

# %%
decades = SCALES[::2]
grid = {"scale": decades.tolist(), "seed": lesson.seeds(1)}
at_rate_1 = experiments.sweep({"lr": [1.0], "batch_norm": [True], **grid}, train).array("accuracy")[0, 0, :, 0]
others = experiments.sweep({"lr": [1e-4, 0.1], "batch_norm": [False], **grid}, train).array("accuracy")[:, 0, :, 0]
best_plain = np.max([accuracy[PLAIN][::2].mean(axis=1), *others], axis=0)
by_rate = {"with BatchNorm, rate 0.01": accuracy[BN][::2].mean(axis=1), "without, best of three rates": best_plain,
           "with BatchNorm, rate 1": at_rate_1}
print("\ntraining accuracy after 200 steps")
row("scale of the initial weights", decades, ".2g")
for name, values in by_rate.items():
    row(name, values)

# %%
fig, ax = plotting.figure(size=(11, 6), title=f"At rate 1, {sum(at_rate_1 >= LEARNS)} of 5 scales learn with BatchNorm;\n"
                                              f"without, each at its best rate, {sum(best_plain >= LEARNS)}")
for (name, values), (color, line) in zip(by_rate.items(), plotting.LOOKS):
    ax.plot(decades, values, color=color, linestyle=line, linewidth=3, marker="o", label=name)
ax.set(xscale="log", ylim=(0, 1.03), xlabel="scale of the initial weights", ylabel="training accuracy\nafter 200 steps")
plotting.legend(ax)
lesson.show(fig, "rate")

# %% [markdown]
# So at scale 1 the plain network was not lost, its rate was wrong by a factor of 100. At small scales none of its
# rates helps: the answer hardly depends on the image. With BatchNorm the large rate mends the *small* edge as well.
#
# What we may say: at one given learning rate BatchNorm needs far less care with the initial weights. It is
# not independent of them, and where it ends depends on $\epsilon$ and on the rate.

# %%
print()
lesson.check("scales of nine that learn with BatchNorm at rate 0.01", count[BN], at_least=3)
lesson.check("how many more that is than without BatchNorm", count[BN] - count[PLAIN], at_least=2)
lesson.check("slope of the sigmoids with BatchNorm: largest distance from that for N(0, 1), scales 1 to 0.01",
             abs(slope[BN][:5] - EXPECTED).max(), at_most=0.005)
lesson.check("slope of the sigmoids without BatchNorm, scale 1", slope[PLAIN][0], at_most=0.08, claim=False)
lesson.check("small edge: accuracy with BatchNorm, eps 0.001, scale 0.0001", by_eps[1e-3][1], at_most=0.3, claim=False)
lesson.check("small edge moves: accuracy at scale 0.001, eps 1e-12 - eps 0.001", by_eps[1e-12][0] - by_eps[1e-3][0],
             at_least=0.4)
lesson.check("large edge: accuracy with BatchNorm, rate 0.01, scale 1", accuracy[BN][0].mean(), at_most=0.6,
             on_default_data=True, claim=False)
lesson.check("large edge moves: accuracy with BatchNorm at scale 1, rate 1 - rate 0.01",
             at_rate_1[0] - accuracy[BN][0].mean(), at_least=0.3)
lesson.check("rate 1: lowest accuracy with BatchNorm over five scales", at_rate_1.min(), at_least=0.6)
lesson.check("fair: accuracy without BatchNorm at scale 1, best of three rates", best_plain[0], at_least=0.5,
             on_default_data=True, claim=False)
lesson.check("fair: accuracy without BatchNorm at scale 0.01, best of three rates", best_plain[2], at_most=0.3, claim=False)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: He's weights (`"he_normal"`) have a scale for each layer. Who learns from them, and how far are they from an edge?
# 2. Easy: start with all weights 0, then with all weights equal (`initializers.constant(0.01)`). Does BatchNorm help?
# 3. Medium: let only the *last* layer have scale 0.1 always. What does the row "first step / weights" look like now?
# 4. Medium: give the plain network more rates at scale 0.01, up to 100. Is there one that works?
# 5. Research: replace SGD by Adam, whose step does not depend on the size of the gradient. Which edge is left?
#
# While `python -m minidl race` runs: [scale 0.01, live](http://127.0.0.1:8107/#preset=9).
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.3 (the scale of a layer's weights). The book Deep Learning from Scratch,
# program ch06/batch_norm_test.py. The texts: a Russian page of questions and answers and a Czech glossary (less
# dependence on the initialisation), Chinese slides on TensorFlow 2 (saturated sigmoids).
