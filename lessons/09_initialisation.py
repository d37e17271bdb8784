# %% [markdown]
# # 9. Initialisation: how bad may the initial weights be?
#
# A plain network learns only if its initial weights are neither too small nor too
# large. Two of the texts on Batch Normalization (000 and 002) say that it reduces the
# dependence on the initialisation. By how much, and where does it end?
#
# You need: lessons 7 and 8. Running time: 10 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import experiments, initializers, optim, plotting, record
from minidl.lessonkit import Lesson

lesson = Lesson("09_initialisation")
(x, y), _ = lesson.load_data()
images = x[:1000], y[:1000]
held_out = x[1000:2000], y[1000:2000]  # not learned: to choose learning rates by

# %% [markdown]
# ## The network
#
# Five hidden layers of 100 ReLU units, 1,000 images, batches of 100, learning rate
# 0.01, 200 steps: an experiment from the book Deep Learning from Scratch. There the two
# networks have different random weights; here they have the same.
#
# All weights are drawn from $N(0, s^2)$. We vary the *scale* $s$ from 1 to 0.0001. The
# question is whether a network can learn at all. Therefore we measure its accuracy on
# the 1,000 images that it is trained on.

# %%
SCALES = 10 ** np.arange(0, -4.1, -0.5)  # nine, two to a decade
MEASURED_AT = range(0, 201, 50)
# learned: this share of the training images is right; guessing would be 0.1
LEARNS = 0.8
BN, PLAIN = "with BatchNorm", "without BatchNorm"


def network(seed, scale, batch_norm, eps=1e-5, activation="relu"):
    layers = []
    for _ in range(5):
        layers.append(Dense(100, kernel_initializer=initializers.normal(scale)))
        if batch_norm:
            layers.append(BatchNorm(eps=eps))
        layers.append(Activation(activation))
    output = Dense(10, kernel_initializer=initializers.normal(scale))
    return Sequential([*layers, output], seed=seed)


# %%
def train(scale, batch_norm, seed, lr=0.01, eps=1e-5, measured_at=MEASURED_AT):
    """The job of our sweeps: train one network. Diverged means guessing, one in ten."""
    model = network(seed, scale, batch_norm, eps)
    run = experiments.run(model, (images, images), optimizer=optim.SGD(lr=lr),
                          steps=200, batch_size=100, eval_steps=measured_at)
    score = 0.1
    if run.diverged_at is None:
        score = np.mean(model.predict(held_out[0]).argmax(axis=1) == held_out[1])
    return {"curve": run.accuracy, "accuracy": np.nan_to_num(run.accuracy[-1], nan=0.1),
            "held_out": score,
            "diverged_at": np.nan if run.diverged_at is None else run.diverged_at}


def row(name, numbers, spec=".2f"):
    print(f"{name:32}" + "".join(f"{number:{spec}}".rjust(9) for number in numbers))


# %% [markdown]
# ## Predict
#
# Nine scales: 1, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001. From how many of
# them will the plain network learn? From how many will the one with BatchNorm? Will
# *any* scale be too much for BatchNorm?
#
# ## Run

# %%
result = experiments.sweep({"batch_norm": [True, False], "scale": SCALES.tolist(),
                            "seed": lesson.seeds(2)}, train)
accuracy = dict(zip((BN, PLAIN), result.array("accuracy")))  # each (scales, seeds)
diverged_at = dict(zip((BN, PLAIN), result.array("diverged_at")))
# each (scales, seeds, measurements)
curves = dict(zip((BN, PLAIN), result.array("curve")))
count = {name: int((accuracy[name].mean(axis=1) >= LEARNS).sum())
         for name in (BN, PLAIN)}
print("training accuracy after 200 steps, mean of 2 seeds")
row("scale of the initial weights", SCALES, ".2g")
for name in (BN, PLAIN):
    row(name, accuracy[name].mean(axis=1))

# %% [markdown]
# In the figures a line is the median over the seeds, the band their range. First how
# each network learns; a cross marks a loss that became infinite.

# %%
fig, axes = plotting.figure(3, 3, sharex=True, sharey=True, size=(13, 10.5),
                            title=f"At rate 0.01, {count[BN]} of 9 scales learn with "
                                  f"BatchNorm, {count[PLAIN]} without")
for k, ax in enumerate(axes.flat):
    for i, name in enumerate((BN, PLAIN)):
        plotting.band(np.array(MEASURED_AT), curves[name][k], name, i, ax)
        if np.isfinite(diverged_at[name][k]).any():
            ax.plot(diverged_at[name][k], [0.1, 0.1], "x", color=plotting.LOOKS[i][0],
                    markersize=13, markeredgewidth=4, label=f"{name}: diverged",
                    zorder=5)
    ax.set(title=f"scale {SCALES[k]:.2g}", ylim=(0, 1.03), xlabel="training step"
           if k > 5 else "", ylabel="training accuracy" if k == 3 else "")
    plotting.legend(ax)
lesson.show(fig, "curves")

# %%
fig, ax = plotting.figure(size=(11, 6), title=f"{LEARNS:.0%} right: from {count[BN]} "
                                              "of 9 scales with BatchNorm, from "
                                              f"{count[PLAIN]} without")
for i, name in enumerate((BN, PLAIN)):
    plotting.band(SCALES, accuracy[name].T, name, i, ax)
    died = np.isfinite(diverged_at[name]).any(axis=1)
    if died.any():
        ax.plot(SCALES[died], np.full(died.sum(), 0.1), "x", color=plotting.LOOKS[i][0],
                markersize=12, markeredgewidth=3, label=f"{name}: diverged", zorder=5)
ax.axhline(LEARNS, color="0.4", linewidth=1.2, linestyle=":")
ax.set(xscale="log", ylim=(0, 1.03),
       xlabel="scale (standard deviation) of the initial weights",
       ylabel="training accuracy\nafter 200 steps")
plotting.legend(ax)
lesson.show(fig, "accuracy")

# %% [markdown]
# The texts are right: with BatchNorm the range of scales that work is much wider. They
# do not say that it ends, on both sides. And at a scale that suits the plain network
# BatchNorm need not be ahead: look at 0.32. We explain the middle first, then the two
# edges.
#
# ## Explain: why the middle is wide
#
# Multiply the kernel of a Dense layer by a number $a$: mean and standard deviation over
# the batch are multiplied by $a$ too, and but for $\epsilon$
#
# $\hat x_i = \frac{a x_i - a \mu_B}{\sqrt{a^2 \sigma_B^2 + \epsilon}} \approx
# \frac{x_i - \mu_B}{\sigma_B}.$
#
# The next layer does not notice $a$. Without BatchNorm five layers multiply by $a^5$.
#
# Sigmoid units show it best. For a large input a sigmoid's output is almost 0 or 1.
# There its slope, output times (1 - output), is almost 0, therefore hardly any gradient
# comes through: the unit is *saturated*. Text 003 says that this makes learning slow,
# and that BatchNorm cures it. So we put sigmoids in place of the ReLUs and look at all
# of them before training.


# %%
def outputs(model):
    """The outputs of the units of all five layers for a batch, in training mode."""
    found, h = [], x[:500]
    for layer in model.build(784).train().layers:
        h = layer(h)
        if isinstance(layer, Activation):
            found.append(h.numpy())
    return np.array(found)


z = np.linspace(-8, 8, 10001)
density, sigmoid = np.exp(-z ** 2 / 2), 1 / (1 + np.exp(-z))
# for inputs from N(0, 1)
EXPECTED = np.sum(density * sigmoid * (1 - sigmoid)) / np.sum(density)

slope, at_one = {}, {}
print(f"\nmean slope of the sigmoids before training; {EXPECTED:.4f} for inputs from "
      "N(0, 1), at most 0.25")
row("scale of the initial weights", SCALES, ".2g")
for name in (BN, PLAIN):
    found = [outputs(network(lesson.seed, scale, name == BN, activation="sigmoid"))
             for scale in SCALES]
    slope[name] = np.array([np.mean(a * (1 - a), dtype=float) for a in found])
    at_one[name] = found[0]
    row(name, slope[name], ".4f")

# %%
flat = {name: np.mean((a < 0.05) | (a > 0.95)) for name, a in at_one.items()}
fig, axes = plotting.figure(1, 2, sharey=True, title=f"Scale 1: {flat[BN]:.0%} of the "
                            "sigmoids are saturated with BatchNorm, "
                            f"{flat[PLAIN]:.0%} without")
for i, (name, ax) in enumerate(zip((BN, PLAIN), axes)):
    share, edges = np.histogram(at_one[name], bins=20, range=(0, 1))
    ax.bar(edges[:-1], share / share.sum(), width=0.05, align="edge",
           color=plotting.LOOKS[i][0], edgecolor="white")
    ax.set(title=name, xlabel="output of a sigmoid unit", ylabel="share of the outputs"
           if i == 0 else "")
lesson.show(fig, "sigmoids")

# %% [markdown]
# A slope of 0.25 does not help the plain network at small scales, because there every
# unit's output is 0.5 for every image, so there is nothing to learn from. At the
# smallest scales that happens with BatchNorm, too; the edge below says why.
#
# ## And during training?
#
# Before training BatchNorm keeps its sigmoids out of saturation, because their inputs
# come from $N(0, 1)$. But $\gamma$ and $\beta$ are trained. Nothing forbids them to
# grow, and then BatchNorm itself pushes the units into saturation. We train the sigmoid
# network with BatchNorm (scale 0.1) at three learning rates and count again. Predict:
# does saturation stay away?

# %%
SIGMOID_RATES = (0.1, 1.0, 4.0)


def saturated(seed, lr, steps=200):
    """Share of saturated outputs by layer, before and after training; the accuracy."""
    model = network(seed, 0.1, True, activation="sigmoid")
    share = []
    for done in (0, steps):
        if done:
            run = experiments.run(model, (images, images), optimizer=optim.SGD(lr=lr),
                                  steps=done, batch_size=100, eval_steps=[done])
        a = outputs(model)
        share.append(np.mean((a < 0.05) | (a > 0.95), axis=(1, 2)))
    return share, np.nan_to_num(run.accuracy[-1], nan=0.1)


during = {}
for lr in SIGMOID_RATES:
    found = [saturated(seed, lr) for seed in lesson.seeds(2)]
    before, during[lr] = np.mean([share for share, _ in found], axis=0)
    print(f"rate {lr:3g}: saturated in layers 1 to 5 before "
          + ", ".join(f"{s:.0%}" for s in before) + ", after "
          + ", ".join(f"{s:.0%}" for s in during[lr])
          + f"; training accuracy {np.mean([accuracy for _, accuracy in found]):.3f}")

# %% [markdown]
# So "BatchNorm keeps sigmoids out of saturation" is true at the start and not a law.
# How far it goes depends on the learning rate. And a saturated unit need not be a bad
# one: look at the accuracies beside the shares.
#
# ## The edge at small weights: $\epsilon$
#
# BatchNorm divides by $\sqrt{\sigma_B^2 + \epsilon}$. Where $\sigma_B^2$ is far below
# $\epsilon$ that is a constant, and dividing by a constant normalises nothing. What a
# ReLU makes of inputs from $N(0, 1)$ has the variance $\frac{1}{2} - \frac{1}{2 \pi}
# \approx 0.34$. A unit adds 100 of these, each times a weight, so its $\sigma_B^2$ is
# about $34 s^2$. That equals $\epsilon$ at $s = \sqrt{\epsilon / 34}$.
#
# Predict: at which scale does the signal vanish for $\epsilon = 10^{-3}$ (Keras),
# $10^{-5}$ (PyTorch) and $10^{-12}$?

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
            experiments.run(model, (images, images), optimizer=optim.SGD(lr=0.01),
                            steps=1, batch_size=100)
        logs.append(log)
    spread[eps] = np.array([log["batchnorm_4", "std"][0] for log in logs])
    first_step[eps] = np.array([log["dense_2.kernel", "update_ratio"][0]
                                for log in logs])
    row(f"eps {eps:g}: std after the last BN", spread[eps], ".2g")
row("first step / weights, eps 1e-12", first_step[1e-12], ".1g")

# %% [markdown]
# ## The edge at large weights: the effective learning rate
#
# The last row is the size of the first update of the third kernel, divided by the size
# of the kernel. BatchNorm makes the *output* indifferent to the scale of the weights,
# but not the *step*. The gradient with respect to $a W$ is $\frac{1}{a}$ times that
# with respect to $W$, and it changes weights that are $a$ times as large: relative to
# the weights a step is $a^2$ times smaller. (In our network the last layer, which has
# no BatchNorm, sends back a gradient that is $a$ times larger; that leaves a factor of
# $a$.) With large weights nothing is wrong, but little moves. This is why BatchNorm was
# behind at 0.32: there 0.01 is a good learning rate for the plain network and a small
# one for BatchNorm.

# %%
fig, ax = plotting.figure(size=(11, 6), title="Small weights: where the variance falls "
                                              "below eps, the signal vanishes")
for i, eps in zip((2, 0, 3), EPSILONS):
    color, line = plotting.LOOKS[i]
    ax.plot(SCALES, spread[eps], color=color, linestyle=line, linewidth=3,
            label=f"eps {eps:g}")
    if eps >= 1e-5:
        ax.axvline(np.sqrt(eps / 34), color=color, linestyle=line, linewidth=1)
ax.set(xscale="log", yscale="log", xlabel="scale of the initial weights",
       ylabel="std after the last BatchNorm")
ax.set_title(r"thin lines: $s = \sqrt{\epsilon / 34}$")
plotting.legend(ax)
lesson.show(fig, "small_edge")

# %%
fig, ax = plotting.figure(size=(11, 6), title="Large weights: the first step hardly "
                                              "changes them")
for i, eps in zip((2, 0, 3), EPSILONS):
    color, line = plotting.LOOKS[i]
    ax.plot(SCALES, first_step[eps], color=color, linestyle=line, linewidth=3,
            label=f"eps {eps:g}")
ax.set(xscale="log", yscale="log", xlabel="scale of the initial weights",
       ylabel="size of the first step /\nsize of the weights")
ax.set_title("third hidden layer, with BatchNorm, learning rate 0.01")
plotting.legend(ax)
lesson.show(fig, "large_edge")

# %% [markdown]
# If this explanation is right, we can move both edges: a smaller $\epsilon$ must rescue
# small weights, a larger learning rate must rescue large ones. Predict both, and what
# the large rate will do to *small* weights.

# %%
small = SCALES[6::2]
runs = experiments.sweep({"eps": [1e-3, 1e-12], "scale": small.tolist(),
                          "batch_norm": [True], "seed": lesson.seeds(1),
                          "measured_at": [[200]]}, train)
by_eps = {1e-5: accuracy[BN][6::2].mean(axis=1),
          **dict(zip((1e-3, 1e-12), runs.array("accuracy")[:, :, 0, 0, 0]))}
print("\ntraining accuracy after 200 steps at rate 0.01, with BatchNorm")
row("scale of the initial weights", small, ".2g")
for eps in EPSILONS:
    row(f"eps {eps:g}", by_eps[eps])

# %% [markdown]
# With hardly any $\epsilon$ the first step is as large as the smallest weights
# themselves. It overwrites them, and yet the network learns.
#
# Now the learning rate. BatchNorm must take 1 for all scales. The plain network may
# choose a rate for each scale: the one that is best on 1,000 images which it has not
# learned. Was it lost at scale 1, or did it only need another rate?

# %%
decades = SCALES[::2]
# by scale
PLAIN_RATES = [[3e-6, 1e-5, 3e-5, 1e-4], [0.01, 0.1, 1.0], *3 * [[0.1, 1.0, 10.0]]]
seeds = lesson.seeds(2)
options = {"seed": seeds, "measured_at": [[200]]}
at_rate_1 = experiments.sweep({"scale": decades.tolist(), "batch_norm": [True],
                               "lr": [1.0], **options}, train)
at_rate_1 = at_rate_1.array("accuracy")[:, 0, 0, :, 0].T  # (seeds, scales)
best_plain = []
for scale, rates in zip(decades.tolist(), PLAIN_RATES):
    # the first seed chooses, and its run counts; the second repeats it
    tried = [train(scale, False, seeds[0], lr, measured_at=[200]) for lr in rates]
    scores = [run["held_out"] for run in tried]
    place = 1  # where no rate teaches anything there is no best one
    if max(scores) > 0.2:
        place = rates.index(experiments.best(rates, scores))
    again = train(scale, False, seeds[1], rates[place], measured_at=[200])
    best_plain.append([tried[place]["accuracy"], again["accuracy"]])
    print(f"without BatchNorm, scale {scale:g}: rate {rates[place]:g}, "
          f"{scores[place]:.0%} of the images held out are right")
best_plain = np.array(best_plain).T

# %%
by_rate = {"with BatchNorm, rate 1": at_rate_1,
           "without, its best rate": best_plain,
           "with BatchNorm, rate 0.01": accuracy[BN][::2].T}
print("\ntraining accuracy after 200 steps, mean of 2 seeds")
row("scale of the initial weights", decades, ".2g")
for name, values in by_rate.items():
    row(name, values.mean(axis=0))

# %%
learn = {name: sum(values.mean(axis=0) >= LEARNS) for name, values in by_rate.items()}
fig, ax = plotting.figure(size=(11, 6), title="At rate 1, "
                          f"{learn['with BatchNorm, rate 1']} of 5 scales learn with "
                          "BatchNorm;\nwithout, each at its best rate, "
                          f"{learn['without, its best rate']}")
for i, (name, values) in enumerate(by_rate.items()):
    plotting.band(decades, values, name, i, ax)
ax.set(xscale="log", ylim=(0, 1.03), xlabel="scale of the initial weights",
       ylabel="training accuracy\nafter 200 steps")
plotting.legend(ax)
lesson.show(fig, "rate")

# %% [markdown]
# So at scale 1 the plain network was not lost: its learning rate was hundreds of times
# too large. (It memorises its 1,000 images, though: of those held out about half are
# right.) At small scales none of its rates helps, because its output hardly depends on
# the image. With BatchNorm the large rate mends the *small* edge as well.
#
# What we may say: at one given learning rate BatchNorm needs far less care with the
# initial weights. It is not independent of them, and where its range ends depends on
# $\epsilon$ and on the learning rate.

# %%
print()
lesson.check("scales of nine that learn with BatchNorm at rate 0.01", count[BN],
             at_least=3)
lesson.check("how many more that is than without BatchNorm", count[BN] - count[PLAIN],
             at_least=2)
lesson.check("slope of the sigmoids with BatchNorm: largest distance from that for "
             "N(0, 1), scales 1 to 0.01", abs(slope[BN][:5] - EXPECTED).max(),
             at_most=0.005)
lesson.check("slope of the sigmoids without BatchNorm, scale 1", slope[PLAIN][0],
             at_most=0.08, claim=False)
lesson.check("saturated sigmoids in layer 5 with BatchNorm, after training at rate 4 - "
             "at rate 0.1", during[4.0][4] - during[0.1][4], at_least=0.05, claim=False)
lesson.check("small edge: accuracy with BatchNorm, eps 0.001, scale 0.0001",
             by_eps[1e-3][1], at_most=0.3, claim=False)

# %%
lesson.check("small edge moves: accuracy at scale 0.001, eps 1e-12 - eps 0.001",
             by_eps[1e-12][0] - by_eps[1e-3][0], at_least=0.4)
lesson.check("large edge: accuracy with BatchNorm, rate 0.01, scale 1",
             accuracy[BN][0].mean(), at_most=0.6, on_default_data=True, claim=False)
lesson.check("large edge moves: accuracy with BatchNorm at scale 1, rate 1 - rate 0.01",
             at_rate_1.mean(axis=0)[0] - accuracy[BN][0].mean(), at_least=0.3)
lesson.check("rate 1: lowest accuracy with BatchNorm over five scales",
             at_rate_1.mean(axis=0).min(), at_least=0.6)
lesson.check("fair: accuracy without BatchNorm at scale 1, its best rate",
             best_plain.mean(axis=0)[0], at_least=0.5, on_default_data=True,
             claim=False)
lesson.check("fair: accuracy without BatchNorm at scale 0.01, its best rate",
             best_plain.mean(axis=0)[2], at_most=0.3, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. All kernels in front of a BatchNorm are multiplied by 10. What changes?**
#
# - A: The layer's output becomes 10 times as large.
# - B: Nothing at all, not even in training.
# - C: The output stays (except for $\epsilon$), and a step changes the weights less,
#   relative to their size.
# - D: The units saturate.
#
# **2. Why does BatchNorm fail at very small initial weights?**
#
# - A: The variance of a unit's input is far below $\epsilon$, so dividing by
#   $\sqrt{\sigma_B^2 + \epsilon}$ normalises nothing.
# - B: float32 cannot represent such small numbers.
# - C: The learning rate becomes too large.
# - D: The batch is too small to estimate a mean.
#
# <details><summary>Answers</summary>
#
# 1 C. BatchNorm divides the factor of 10 out of the output, but the gradient becomes 10
# times smaller and the weights are 10 times larger. A forgets the normalisation, B the
# training. D is what would happen without BatchNorm, the case that text 003 describes.
#
# 2 A. Below epsilon the division is by a constant. B is wrong: float32 goes down to
# 1e-38. C is wrong: the steps of the others would have to be tiny, not large. D
# concerns noise, which does not depend on the scale of the weights.
#
# </details>
#
# ## Try
#
# 1. Easy: He's weights (`"he_normal"`) have a scale for each layer. Which network
#    learns from them, and how far are they from an edge?
# 2. Easy: start with all weights 0, then with all weights equal
#    (`initializers.constant(0.01)`). Does BatchNorm help?
# 3. Medium: let only the *last* layer have scale 0.1 always. What does the row "first
#    step / weights" look like now?
# 4. Medium: give the plain network more rates at scale 0.01, up to 100. Is there one
#    that works?
# 5. Research: replace SGD by Adam, whose step does not depend on the size of the
#    gradient. Which edge is left?
#
# While `python -m minidl race` runs:
# [scale 0.01, live](http://127.0.0.1:8107/#preset=9).
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.3 (the scale of a layer's weights).
# K. Saitoh, Deep Learning from Scratch, program ch06/batch_norm_test.py. Texts 000 and
# 002 (less dependence on the initialisation), text 003 (saturated sigmoids).
