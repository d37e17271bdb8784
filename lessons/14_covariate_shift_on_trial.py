# %% [markdown]
# # 14. Covariate shift on trial: is it the reason why BatchNorm works?
#
# Ask why BatchNorm helps, and most texts answer: because it reduces *internal covariate
# shift*. The title of the paper that introduced it says so too. While a layer learns,
# the layers before it change, so its inputs keep moving and it has to chase them.
# BatchNorm holds them still. In 2018 Santurkar, Tsipras, Ilyas and Madry disputed this.
# Here both sides present their evidence, and you are the jury.
#
# You need: lesson 7. Running time: 15 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy
from functools import partial

import numpy as np

from minidl import Activation, BatchNorm, Dense, Module, Sequential, experiments
from minidl import functional as F
from minidl import initializers, no_grad, optim, plotting
from minidl.data import split
from minidl.lessonkit import Lesson, written

lesson = Lesson("14_covariate_shift_on_trial")
data = lesson.load_data()

# %% [markdown]
# ## The networks, and a BatchNorm that does not hold still
#
# The network is that of the paper and of lesson 7: three hidden layers of 100 sigmoid
# units, weights from N(0, 0.1²), batches of 60, learning rate 0.5.
#
# If BatchNorm helps *because* it steadies the inputs, then spoiling the steadiness must
# spoil the help. So, following Santurkar et al., we add noise behind the normalisation:
#
# $\tilde y_i = (1 + s n_1) y_i + s n_2.$
#
# $n_1$ and $n_2$ are drawn anew from N(0, 1) for every unit at every step. The unit's
# inputs then have another mean and another variance each time, on purpose. The
# strength $s$ is the dose: at $s = 1$ the shift is as large as the spread that
# BatchNorm has just made. (Santurkar et al. draw noise for each image as well; that
# is an exercise.) In evaluation there is no noise.


# %%
class Noise(Module):
    """Scales and shifts each unit at random, by other amounts at each training step."""

    def __init__(self, strength, rng):
        self.strength, self.rng = strength, rng

    def forward(self, x):
        if not self.training or not self.strength:
            return x
        scale, shift = self.strength * self.rng.normal(size=(2, x.shape[1]))
        return x * (1 + scale).astype(x.dtype) + shift.astype(x.dtype)


def network(seed, norm_at=(), noise=0.0, std=0.1, activation="sigmoid", he=False):
    """BatchNorm behind the Dense layers numbered in norm_at; weights N(0, std²)."""
    initializer = "he_normal" if he else initializers.normal(std)
    layers = []
    for i in range(3):
        layers.append(Dense(100, kernel_initializer=initializer))
        if i in norm_at:
            layers.append(BatchNorm())
        layers.append(Noise(noise, np.random.default_rng([seed, i])))
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=initializer)], seed=seed)


# %% [markdown]
# The defendants: BatchNorm with four doses of noise, 0 among them, the plain network,
# and two controls that a fair trial needs. One is the plain network *with the same
# noise*. The other is a plain network whose weights come from N(0, 0.4²) instead of
# N(0, 0.1²). Lesson 7 found that this care alone makes it several times faster, and
# nothing in it steadies anything. Its learning rate is chosen on images held out of
# the training set.

# %%
ALL, LOW, STEPS, EVERY = (0, 1, 2), 0.5, 400, 25
GRID, scores = (0.25, 0.5, 1.0, 2.0, 4.0), []
held_out = split(*data[0], 0.2, lesson.seed)
for lr in GRID:
    run = experiments.run(network(lesson.seed, std=0.4), held_out, steps=200,
                          batch_size=60, optimizer=optim.SGD(lr=lr), eval_steps=[200])
    scores.append(run.accuracy[-1])
careful_rate = experiments.best(GRID, scores)

BN, PLAIN, NOISY = "BatchNorm", "plain", "BatchNorm, s = 1"
PLAIN_NOISY, CAREFUL = "plain, s = 1", "plain, good weights"
DOSES = {0.0: BN, 0.5: "BatchNorm, s = 0.5", 1.0: NOISY,
         3.0: "BatchNorm, s = 3"}
NETS = {name: (dict(norm_at=ALL, noise=dose), LOW) for dose, name in DOSES.items()}
NETS |= {PLAIN: ({}, LOW), PLAIN_NOISY: (dict(noise=1.0), LOW),
         CAREFUL: (dict(std=0.4), careful_rate)}

# %% [markdown]
# ## What we look at
#
# As in figure 1b and 1c of the first paper we keep 300 images aside, the *probe*.
# During training we send them through and note the 15th, 50th and 85th percentile of
# what enters each sigmoid of the last hidden layer. A copy of the network does this,
# so that looking changes nothing.


# %%
probe = data[1][0][:300]


def percentiles(model, rng):
    """(3, 100): for each unit of the last hidden layer, what enters its sigmoid."""
    x = probe
    with no_grad():
        for layer in copy.deepcopy(model).train().layers[:-2]:
            x = layer(x)
    return np.percentile(x.numpy(), [15, 50, 85], axis=0)


# %%
def train_and_look(settings, lr, look, steps=STEPS, every=EVERY, seeds=3):
    """What look(model, rng) saw before each `every` steps; accuracy after every second.

    Arrays (seeds, looks, ...). rng: for looks that draw a batch, alike for all nets.
    """
    results = []
    for seed in lesson.seeds(seeds):
        model, rng = network(seed, **settings).build(784), np.random.default_rng(seed)
        seen, accuracy = [], []
        for number in range(steps // every):
            seen.append(look(model, rng))
            second = number % 2 == 1
            run = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=every,
                                  batch_size=60, eval_steps=[every] if second else [])
            accuracy.extend(run.accuracy)
        results.append((seen, accuracy))
    return tuple(np.array(part) for part in zip(*results))


# %% [markdown]
# ## Predict
#
# By which factor will the width of a unit's inputs, from the 15th to the 85th
# percentile, change in 400 steps without BatchNorm? With it? And will BatchNorm with
# noise at $s = 1$ learn faster than the plain network, or slower? Write it down.
#
# ## Run
#
# *Drift* is the standard deviation, over the looks, of a unit's 50th percentile. It is
# measured in the unit of the inputs themselves. A shift of 1 is a great deal for inputs
# that spread over 0.1, and nothing for inputs that spread over 100. So we also divide
# the drift by the unit's own spread, which is its width averaged over the looks. A
# third measure is the *jump*: how far the 50th percentile moves from one look to the
# next, over the spread.

# %%
seen, accuracy = {}, {}  # of shape (seeds, looks, 3, units), and (seeds, looks / 2)
for name, (settings, lr) in NETS.items():
    seeds = 3 if name in (BN, PLAIN, NOISY, CAREFUL) else 2  # two will do for the rest
    seen[name], accuracy[name] = train_and_look(settings, lr, percentiles, seeds=seeds)
AT = {step: step // EVERY // 2 - 1 for step in (100, 200, 400)}  # places in accuracy
DRIFT, RELATIVE, JUMP = "drift", "drift / spread", "jump / spread"
measure, stretch, at200 = {}, {}, {}
for name, s in seen.items():
    middle, width = s[:, :, 1], s[:, :, 2] - s[:, :, 0]
    drift, spread = middle.std(axis=1), width.mean(axis=1)
    jump = np.abs(np.diff(middle, axis=1)).mean(axis=1)
    measure[name] = {DRIFT: np.median(drift), RELATIVE: np.median(drift / spread),
                     JUMP: np.median(jump / spread)}
    stretch[name] = np.median(width.max(axis=1) / width.min(axis=1))
    at200[name] = np.median(accuracy[name][:, AT[200]])

# %%
print(f"\n{'median over units and seeds':30} {DRIFT}  {RELATIVE}  {JUMP}  "
      "accuracy at step 100, 200, 400")
for name, values in measure.items():
    late = [np.median(accuracy[name][:, place]) for place in AT.values()]
    print(f"{name:30} {values[DRIFT]:5.2f}  {values[RELATIVE]:14.2f}  "
          f"{values[JUMP]:13.2f}  {late[0]:22.3f}, {late[1]:.3f}, {late[2]:.3f}")
print(f"{CAREFUL} took the rate {careful_rate:g}, all others {LOW}")

# %%
looks = np.arange(0, STEPS, EVERY)
fig, axes = plotting.figure(1, 3, sharey=True, size=(16, 6),
                            title="For: the width of a unit's inputs changes "
                            f"{stretch[PLAIN]:.0f}-fold in the plain network, "
                            f"{stretch[BN]:.1f}-fold with BatchNorm")
for ax, name, number in zip(axes, (PLAIN, BN, NOISY), (1, 0, 2)):
    plotting.band(looks, seen[name][0, :, :, 0].T, name, number, ax)
    ax.set(xlabel="training step", title=name)
axes[0].set_ylabel("input of one sigmoid:\n15th, 50th, 85th percentile")
lesson.show(fig, "percentiles")

# %% [markdown]
# ## The case for
#
# The claim about the *inputs* is true. With BatchNorm the mean of a unit's input over
# the batch is $\beta$ and its standard deviation is (nearly) $|\gamma|$, whatever the
# layers below do, and $\beta$ and $\gamma$ move slowly. Without it the inputs begin
# as a thin band, wander, and widen.
#
# The dose matters, too. The more noise, the lower the accuracy: the figure below shows
# it as a falling line.
#
# ## The case against depends on the measure
#
# The figure draws accuracy at step 200 against each of the three measures. If
# steadiness decided, all points would lie on one falling curve, whatever the network.

# %%
fig, axes = plotting.figure(1, 3, sharey=True, size=(16, 6.5),
                            title="Is the noisy network less steady than the plain? "
                            f"Drift: {written(measure[NOISY][DRIFT])} and "
                            f"{written(measure[PLAIN][DRIFT])};\nover the spread: "
                            f"{written(measure[NOISY][RELATIVE])} and "
                            f"{written(measure[PLAIN][RELATIVE])}")
MARKS = {PLAIN: ("D", "#D55E00"), PLAIN_NOISY: ("X", "0.3"), CAREFUL: ("s", "#E69F00")}
for ax, what in zip(axes, (DRIFT, RELATIVE, JUMP)):
    line = [(measure[name][what], at200[name]) for name in DOSES.values()]
    ax.plot(*zip(*line), "o-", color="#0072B2", markersize=11, linewidth=2.5,
            label="BatchNorm, doses 0 to 3")
    for dose, (x, y) in zip(DOSES, line):
        ax.annotate(f"{dose:g}", (x, y), (8, 2), textcoords="offset points",
                    fontsize=14)
    for name, (mark, color) in MARKS.items():
        ax.plot(measure[name][what], at200[name], mark, color=color, markersize=15,
                label=name, linestyle="none")
    ax.set(xlabel=what, ylim=(0, 1), xlim=(0, 3.2 if what == DRIFT else 0.8))
    if (outside := measure[PLAIN_NOISY][what]) > ax.get_xlim()[1]:
        ax.text(0.98, at200[PLAIN_NOISY], f"{PLAIN_NOISY}: {outside:.0f} →",
                ha="right", transform=ax.get_yaxis_transform(), fontsize=13)
axes[0].set_ylabel("test accuracy at step 200")
plotting.legend(axes[0])
lesson.show(fig, "dose")

# %% [markdown]
# - *Measured in absolute units* the inputs of the noisy network drift about three
#   times as much as those of the plain one, and yet it learns far faster. Case
#   against.
# - *Measured in units of their own spread* they drift *less* than those of the plain
#   one. At the dose at which both drift alike, the plain network is ahead. Case for.
# - *Jumps over spread* are larger in the noisy network again. Case against.
#
# So the experiment that made the dispute famous does not settle it. Two more things
# keep it from doing so. Noise not only unsettles the inputs, it also destroys what
# they carry: the plain network with the same noise learns nothing. And the advantage
# of the noisy network over the plain one is an advantage over *that* plain one. With
# good weights, and no normalisation at all, the plain network does as well or better.
#
# ## Better evidence: BatchNorm in one place
#
# Now BatchNorm stands behind the first hidden layer only, behind the last only,
# behind all three, or behind none. With BatchNorm behind the last layer alone, the
# inputs of the second and third layer keep moving as they did. Predict the accuracy
# of each at step 100.

# %%
by_place = {"behind all": accuracy[BN], "behind none": accuracy[PLAIN]}
for name, at in (("last only", (2,)), ("first only", (0,))):
    _, by_place[name] = train_and_look(dict(norm_at=at), LOW, lambda *_: 0, steps=200)
place = {name: np.median(at[:, AT[100]]) for name, at in by_place.items()}
print("\nBatchNorm, accuracy at step 100: "
      + ", ".join(f"{name} {value:.3f}" for name, value in place.items()))

# %%
fig, ax = plotting.figure(size=(11.5, 6.5), title="Right at step 100 with BatchNorm "
                          f"behind the last layer alone: {place['last only']:.0%};\n"
                          f"behind all three {place['behind all']:.0%}, behind the "
                          f"first alone {place['first only']:.0%}")
for number, (name, values) in enumerate(by_place.items()):
    values = values[:, :AT[200] + 1]
    plotting.band(np.arange(2 * EVERY, 201, 2 * EVERY), values, name, number, ax)
    ax.annotate(name, (200, np.median(values[:, -1])), (8, (5, -5, -14, -5)[number]),
                textcoords="offset points", color=plotting.LOOKS[number][0],
                fontsize=15)
ax.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1), xlim=(45, 235))
lesson.show(fig, "places")

# %% [markdown]
# One BatchNorm is nearly as good as three, if it stands at the right place. It does not
# steady the inputs of the layers in the middle. What it does is give the output layer
# inputs that differ from image to image, which is also what good weights do. Behind the
# first layer it does not, because the two plain layers after it shrink the differences
# again.
#
# ## A second hearing: what does shift mean to a gradient?
#
# A layer chases its inputs only if its *gradient* goes stale, that is, if it is
# computed for the layers below as they were and used when they have moved. So
# Santurkar et al. define internal covariate shift by the gradient. Let $G$ be the
# gradient of the third layer's kernel. Update only the layers before it, take the
# same batch again, and call the new gradient $G'$. The shift is $\|G' - G\|$.
#
# We measure it on the sigmoid network, and on one with ReLU, He's weights and learning
# rate 0.1. Predict: in which of the two will BatchNorm make it smaller?


# %%
def gradient_shift(model, rng, lr):
    """||G' - G|| of the third kernel on a training batch; the cosine of G' and G."""
    chosen = rng.choice(len(data[0][0]), 60, replace=False)
    xb, yb = (part[chosen] for part in data[0])
    model = copy.deepcopy(model).train()
    third = [layer for layer in model.layers if isinstance(layer, Dense)][2]
    below = [p for layer in model.layers[:model.layers.index(third)]
             for p in layer.parameters()]
    gradients = []
    for _ in range(2):
        model.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        gradients.append(third.kernel.grad.ravel())
        optim.SGD(below, lr=lr).step()
    before, after = gradients
    lengths = np.linalg.norm(before) * np.linalg.norm(after)
    return np.linalg.norm(after - before), before @ after / lengths


# %%
SIGMOID, RELU = "sigmoid, learning rate 0.5", "ReLU, learning rate 0.1"
KINDS = {SIGMOID: (LOW, {}), RELU: (0.1, dict(activation="relu", he=True))}
shift, reached = {}, {}
for kind, (lr, settings) in KINDS.items():
    look = partial(gradient_shift, lr=lr)
    for name, at in ((BN, ALL), (PLAIN, ())):
        looked, final = train_and_look(settings | dict(norm_at=at), lr, look, steps=120,
                                       every=20, seeds=2)
        shift[kind, name] = looked[:, :, 0]
        reached[kind, name] = np.median(final[:, -1])
        print(f"{kind}, {name:9}: median shift {np.median(looked[:, :, 0]):.3f}, "
              f"cosine {np.median(looked[:, :, 1]):.2f}; accuracy at step 120 "
              f"{reached[kind, name]:.3f}")
shift_ratio = {k: np.median(shift[k, BN]) / np.median(shift[k, PLAIN]) for k in KINDS}

# %%
fig, axes = plotting.figure(1, 2, size=(14, 6.5), sharey=True,
                            title="Against, and for: BatchNorm multiplies the shift of "
                            f"the gradient\nby {written(shift_ratio[SIGMOID])} in the "
                            f"sigmoid network, by {written(shift_ratio[RELU])} in the "
                            "ReLU network")
for ax, kind in zip(axes, KINDS):
    for number, name in enumerate((BN, PLAIN)):
        plotting.band(np.arange(0, 120, 20), shift[kind, name], name, number, ax)
    ax.set(xlabel="training step", yscale="log", title=f"{kind}:\naccuracy "
           f"{reached[kind, BN]:.2f} with, {reached[kind, PLAIN]:.2f} without")
axes[0].set_ylabel("$\\|G' - G\\|$ of layer 3")
plotting.plain_ticks(axes[0].yaxis)
plotting.legend(axes[0])
lesson.show(fig, "gradient_shift")

# %% [markdown]
# In the sigmoid network, where BatchNorm helps most, the gradient's shift is much
# *larger* with it, because the plain network has hardly any gradient that could shift.
# (The cosine does not depend on lengths, and 1 means no shift. It is printed above and
# says the same.) In the ReLU network, where BatchNorm helps less, the shift is smaller
# with it. So this measure does not tell us how much BatchNorm will help.
#
# ## Explain: the verdict
#
# *BatchNorm steadies the inputs of a layer*: confirmed. *That this is why it helps*:
# not proven, and not refuted either. The noise experiment speaks for it or against it,
# depending on the unit in which drift is measured. The placement experiment and the
# network with good weights speak against it, because both are fast without steadying
# the inputs of the hidden layers. Neither paper's headline survives all of this, and
# that is the honest state of the dispute. Anyone who says "because of internal
# covariate shift" must first say how it is measured. The next lesson looks at another
# suspect, the surface of the loss.

# %%
print()
drift = {name: values[DRIFT] for name, values in measure.items()}
relative = {name: values[RELATIVE] for name, values in measure.items()}
lesson.check("(for) drift, plain / BatchNorm", drift[PLAIN] / drift[BN], at_least=2)
lesson.check("(for) change of the width, plain / BatchNorm",
             stretch[PLAIN] / stretch[BN], at_least=4)
lesson.check("(for) accuracy at step 200, BatchNorm with dose 0 - dose 3",
             at200[BN] - at200[DOSES[3.0]], at_least=0.4)
lesson.check("(for) drift / spread, BatchNorm with dose 1 / plain",
             relative[NOISY] / relative[PLAIN], at_most=0.9, claim=False)
lesson.check("(against) drift, BatchNorm with dose 1 / plain",
             drift[NOISY] / drift[PLAIN], at_least=1.5, claim=False)
lesson.check("(against) accuracy at step 200, BatchNorm with dose 1 - plain",
             at200[NOISY] - at200[PLAIN], at_least=0.25)
lesson.check("(control) the same, BatchNorm with dose 1 - plain with dose 1",
             at200[NOISY] - at200[PLAIN_NOISY], at_least=0.5)
lesson.check("(control) the same, BatchNorm with dose 1 - plain with good weights",
             at200[NOISY] - at200[CAREFUL], at_most=0.03, claim=False)

# %%
lesson.check("(against) accuracy at step 100, last only - none",
             place["last only"] - place["behind none"], at_least=0.4)
lesson.check("(against) accuracy at step 100, last only - first only",
             place["last only"] - place["first only"], at_least=0.4)
lesson.check("(against) sigmoid: shift of the gradient, BatchNorm / plain",
             shift_ratio[SIGMOID], at_least=5)
lesson.check("(for) ReLU: shift of the gradient, plain / BatchNorm",
             1 / shift_ratio[RELU], at_least=1.5)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. "Normalising each layer's inputs reduces internal covariate shift, which
# stabilises and speeds up training", writes text 000. Which part do our figures
# confirm?**
#
# - A: all of it
# - B: that the inputs become steadier; that this is the cause of the speed is not shown
# - C: only that training becomes faster; the inputs do not become steadier
# - D: none of it
#
# **2. In one network the inputs of a layer drift by 0.9, in another by 0.3. Which has
# the steadier inputs?**
#
# - A: the second, because 0.3 is less than 0.9
# - B: whichever has BatchNorm, because it ensures a stable distribution
# - C: neither, because drift is a property of the data
# - D: that depends on how wide the drifting inputs are
#
# <details><summary>Answers</summary>
#
# 1 B. A is what texts 000, 001 and 002 say, but BatchNorm behind the last layer alone,
# and good weights without any BatchNorm, are fast without steadying the inputs of the
# hidden layers. C and D contradict the first figure, in which the inputs do become
# steadier, and D contradicts the accuracies as well.
#
# 2 D. Measured in absolute units the noisy BatchNorm drifts more than the plain
# network, divided by its spread it drifts less. A compares numbers that may be in
# different units. B is text 002's promise, not a measurement, and the noisy BatchNorm
# breaks it. C: all networks see the same data, and their inputs drift differently.
#
# </details>
#
# ## Try
#
# 1. Easy: set the learning rate `LOW` to 2, nearly the plain network's best (lesson 7).
#    Which pieces of evidence survive?
# 2. Easy: put BatchNorm behind the second layer only. Where between "first only" and
#    "last only" does it lie?
# 3. Medium: measure the drift of the *second* hidden layer with BatchNorm behind the
#    last layer only. Are its inputs steadier than those of the plain network?
# 4. Medium: draw the noise for each image and unit, with a mean and a variance that
#    change at each step (Santurkar et al., section 2.1).
# 5. Research: find a network in which BatchNorm makes the inputs steadier and does not
#    help, or helps and does not make them steadier. Which of the two is harder to find?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 4.1 and figure 1b, c. S. Santurkar,
# D. Tsipras, A. Ilyas and A. Madry, How Does Batch Normalization Help Optimization?,
# 2018, sections 2.1 and 2.2.
