# %% [markdown]
# # 14. Covariate shift on trial: is it the reason why BatchNorm works?
#
# Ask why BatchNorm helps, and most texts answer: it reduces *internal covariate shift*. The title of the paper that
# introduced it says so too. The story: while a layer learns, the layers before it change, so its inputs keep
# moving and it has to chase them. BatchNorm holds them still. In 2018 Santurkar, Tsipras, Ilyas and Madry disputed
# this. Here both sides bring their evidence, and you are the jury.
#
# You need: lesson 7. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, initializers, no_grad, optim, plotting
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("14_covariate_shift_on_trial")
data = lesson.load_data()

# %% [markdown]
# ## The networks, and a BatchNorm that does not hold still
#
# The network of the paper and of lesson 7: three hidden layers of 100 sigmoid units, batches of 60.
#
# If BatchNorm helps *because* it steadies the inputs, then spoiling the steadiness must spoil the help. So, after
# Santurkar et al., we add noise behind the normalisation:
#
# $\tilde y_i = (1 + s n_1) y_i + s n_2.$
#
# $n_1$ and $n_2$ are drawn anew from N(0, 1) for every unit at every step. The unit's inputs then have another mean and another
# variance each time, on purpose. $s$ is the strength: at $s = 1$ the shift is as large as the spread that
# BatchNorm has just made. (The paper draws noise for each image as well; that is an exercise.) When we test the network there
# is no noise.


# %%
class NoisyBatchNorm(BatchNorm):
    """BatchNorm whose output is scaled and shifted at random, by other amounts at each training step."""

    def __init__(self, strength, rng):
        super().__init__()
        self.strength, self.rng = strength, rng

    def forward(self, x):
        y = super().forward(x)
        if not self.training:
            return y
        scale, shift = self.strength * self.rng.normal(size=(2, y.shape[1])).astype(y.dtype)
        return y * (1 + scale) + shift


def network(seed, norm=None, activation="sigmoid", initializer=initializers.normal(0.1)):
    """norm: a function of the layer's number that makes what goes between Dense and its activation, if anything does."""
    layers = []
    for i in range(3):
        layers.append(Dense(100, kernel_initializer=initializer))
        if norm is not None:
            layers.append(norm(i))
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=initializer)], seed=seed)


def noisy(strength):
    return lambda seed: network(seed, lambda i: NoisyBatchNorm(strength, np.random.default_rng([seed, i])))


BN, PLAIN, FULL, HALF = "with BatchNorm", "without BatchNorm", "noisy BatchNorm, s = 1", "noisy BatchNorm, s = 0.5"
builders = {BN: lambda seed: network(seed, lambda i: BatchNorm()), PLAIN: network, FULL: noisy(1.0), HALF: noisy(0.5)}

# %% [markdown]
# ## What we look at
#
# As in figure 1b and 1c of the first paper: we keep 300 images aside, the *probe*. During training we send them
# through and note the 15th, 50th and 85th percentile of what enters each sigmoid of the last hidden layer. We use a copy
# of the network, so that looking changes nothing.


# %%
probe = data[1][0][:300]


def percentiles(model):
    """(3, 100): for each unit of the last hidden layer, the percentiles of its activation's input over the probe."""
    x, before = probe, None
    with no_grad():
        for layer in copy.deepcopy(model).train().layers:
            if isinstance(layer, Activation):
                before = x.numpy()
            x = layer(x)
    return np.percentile(before, [15, 50, 85], axis=0)


def train_and_look(build, lr, steps, every, look):
    """Train from three seeds: what look(model, rng) gave before each `every` steps, and the test accuracy after them.

    Arrays (seeds, looks, ...). rng: for looks that draw a batch, the same ones for every network.
    """
    results = []
    for seed in lesson.seeds(3):
        model, rng, seen, accuracy = build(seed).build(784), np.random.default_rng(seed), [], []
        for _ in range(0, steps, every):
            seen.append(look(model, rng))
            run = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=every, batch_size=60, eval_steps=[every])
            accuracy.append(run.accuracy[0])
        results.append((seen, accuracy))
    return tuple(np.array(part) for part in zip(*results))


# %% [markdown]
# ## Predict
#
# Learning rate 0.5, 400 steps. By which factor will the width of a unit's inputs, from the 15th to the 85th percentile, change
# without BatchNorm? With it? And will noisy BatchNorm at $s = 1$ learn faster than the plain network, or slower?
# Write it down.
#
# ## Run

# %%
STEPS, EVERY = 400, 25
seen, accuracy = {}, {}  # of shape (seeds, looks, 3, units), and (seeds, looks)
for name, build in builders.items():
    seen[name], accuracy[name] = train_and_look(build, 0.5, STEPS, EVERY, lambda model, rng: percentiles(model))


def accuracy_at(name, step):
    """The test accuracy after a step, one per seed."""
    return accuracy[name][:, step // EVERY - 1]


drift = {name: np.median(s[:, :, 1].std(axis=1)) for name, s in seen.items()}
width = {name: s[:, :, 2] - s[:, :, 0] for name, s in seen.items()}
stretch = {name: np.median(w.max(axis=1) / w.min(axis=1)) for name, w in width.items()}
print("\ninputs of the last hidden layer's sigmoids, median over 100 units and 3 seeds")
for name in builders:
    print(f"{name:24}: the median drifts by {drift[name]:.2f}, largest width / smallest width {stretch[name]:6.1f}; "
          "accuracy at step 100, 200, 400: " + ", ".join(f"{np.median(accuracy_at(name, n)):.3f}" for n in (100, 200, 400)))

# %% [markdown]
# *Drift* is the standard deviation, over the looks, of a unit's 50th percentile. First the picture of the paper, for
# one unit, and beside it the same unit with the noise.

# %%
looks = np.arange(0, STEPS, EVERY)
fig, axes = plotting.figure(1, 3, sharey=True, size=(16, 6), title="For: the width of a unit's inputs changes "
                            f"{stretch[PLAIN]:.0f}-fold without BatchNorm, {stretch[BN]:.1f}-fold with it")
for ax, name, number in zip(axes, (PLAIN, BN, FULL), (1, 0, 2)):
    plotting.band(looks, seen[name][0, :, :, 0].T, name, number, ax)
    ax.set(xlabel="training step", title=name)
axes[0].set_ylabel("input of one sigmoid:\n15th, 50th, 85th percentile")
lesson.show(fig, "percentiles")

# %% [markdown]
# ## Explain: the case for
#
# The claim about the *inputs* is true. With BatchNorm the mean of a unit's input over the batch is $\beta$ and its standard
# deviation is (nearly) $|\gamma|$, whatever the layers below do; and $\beta$ and $\gamma$ move slowly. Without it the inputs
# begin as a thin band, wander, and widen.
#
# But look at the third panel. If steadiness were the reason, this network ought to be the worst of the three.

# %%
fig, ax = plotting.figure(size=(13, 6.5), title="Against: with noise the inputs drift "
                          f"{drift[FULL] / drift[PLAIN]:.1f} times as much as in the plain net,\nyet accuracy at step 200 is "
                          f"{np.median(accuracy_at(FULL, 200)):.2f} against {np.median(accuracy_at(PLAIN, 200)):.2f}")
for number, name in enumerate(builders):
    plotting.band(looks + EVERY, accuracy[name], name, number, ax)
ax.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1))
plotting.legend(ax)
lesson.show(fig, "accuracy")

# %% [markdown]
# Be fair to the other side: the noise is not free. At $s = 1$ the noisy network is behind the one with BatchNorm. Steady
# inputs may well help. They are just not where most of the gain comes from.
#
# ## A second hearing: what does shift mean to a gradient?
#
# Perhaps percentiles measure the wrong thing. A layer chases its inputs only if its *gradient* goes stale: it is
# computed for the layers below as they were, and used when they have moved. So Santurkar et al. define internal covariate
# shift by the gradient. Let $G$ be the gradient of the third layer's kernel. Update only the layers before it, take the
# same batch again, and call the new gradient $G'$. The shift is $\|G' - G\|$.
#
# We measure it on the sigmoid network, and on one with ReLU, He's weights and learning rate 0.1. Predict: in which
# of the two will BatchNorm make it smaller?


# %%
def gradient_shift(model, rng, lr):
    """||G' - G|| of the third layer's kernel on a batch of training images, and the cosine of the angle between G' and G."""
    chosen = rng.choice(len(data[0][0]), 60, replace=False)
    xb, yb = (part[chosen] for part in data[0])
    model = copy.deepcopy(model).train()
    third = [layer for layer in model.layers if isinstance(layer, Dense)][2]
    below = [p for layer in model.layers[:model.layers.index(third)] for p in layer.parameters()]
    F.cross_entropy(model(xb), yb).backward()
    before = third.kernel.grad
    optim.SGD(below, lr=lr).step()
    model.zero_grad()
    F.cross_entropy(model(xb), yb).backward()
    after = third.kernel.grad
    return np.linalg.norm(after - before), (before * after).sum() / (np.linalg.norm(before) * np.linalg.norm(after))


SIGMOID, RELU = "sigmoid, learning rate 0.5", "ReLU, learning rate 0.1"
nets = {SIGMOID: (0.5, {BN: builders[BN], PLAIN: builders[PLAIN]}),
        RELU: (0.1, {BN: lambda seed: network(seed, lambda i: BatchNorm(), "relu", "he_normal"),
                     PLAIN: lambda seed: network(seed, None, "relu", "he_normal")})}
shift, reached = {}, {}
for net, (lr, pair) in nets.items():
    for name, build in pair.items():
        looked, final = train_and_look(build, lr, 200, 20, lambda model, rng: gradient_shift(model, rng, lr))
        shift[net, name], reached[net, name] = looked[:, :, 0], np.median(final[:, -1])
        print(f"{net}, {name:17}: median shift {np.median(shift[net, name]):.3f}, cosine {np.median(looked[:, :, 1]):5.2f}; "
              f"accuracy at step 200 {reached[net, name]:.3f}")
shift_ratio = {net: np.median(shift[net, BN]) / np.median(shift[net, PLAIN]) for net in nets}

# %%
fig, axes = plotting.figure(1, 2, size=(14, 6.5), title="Against, and for: BatchNorm multiplies the shift of the gradient\n"
                            f"by {shift_ratio[SIGMOID]:.1f} in the sigmoid net, by {shift_ratio[RELU]:.1f} in the ReLU net")
for ax, net in zip(axes, nets):
    for number, name in enumerate((BN, PLAIN)):
        plotting.band(np.arange(0, 200, 20), shift[net, name], name, number, ax)
    ax.set(xlabel="training step", ylabel="$\\|G' - G\\|$ of layer 3", ylim=(0, None),
           title=f"{net}:\naccuracy {reached[net, BN]:.2f} with, {reached[net, PLAIN]:.2f} without")
plotting.legend(axes[0])
lesson.show(fig, "gradient_shift")

# %% [markdown]
# ## The verdict
#
# In the sigmoid network, where BatchNorm helps most, the gradient's shift is *larger* with it. In the ReLU network, where
# it helps less, the shift is much smaller. So the shift, defined like this, does not tell how much BatchNorm will help.
# (Is that because BatchNorm's gradients are longer? The cosine does not depend on lengths, and 1 means "no shift".
# It is printed above. Does it acquit the accused?)
#
# *BatchNorm steadies the inputs of a layer*: confirmed. *That this is why it helps*: not supported. One may still
# object that our networks are small and our noise is only one kind. But who says "because of internal covariate
# shift" now owes us an experiment. The next lesson looks at another suspect, the surface of the loss.

# %%
print()
lesson.check("(for) drift of the median without / with BatchNorm", drift[PLAIN] / drift[BN], at_least=2)
lesson.check("(for) change of the width without / with BatchNorm", stretch[PLAIN] / stretch[BN], at_least=4)
lesson.check("(against) drift with noisy BatchNorm, s = 1, / without BatchNorm", drift[FULL] / drift[PLAIN], at_least=1.5,
             claim=False)
gap = np.median(accuracy_at(FULL, 200) - accuracy_at(PLAIN, 200))
lesson.check("(against) accuracy with noisy BatchNorm, s = 1, - without BatchNorm at step 200", gap, at_least=0.25)
lesson.check("(against) sigmoid: shift of the gradient with / without BatchNorm", shift_ratio[SIGMOID], at_least=1.2)
lesson.check("(against) sigmoid: accuracy with - without BatchNorm at step 200",
             reached[SIGMOID, BN] - reached[SIGMOID, PLAIN], at_least=0.3)
lesson.check("(for) ReLU: shift of the gradient without / with BatchNorm", 1 / shift_ratio[RELU], at_least=1.4)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: give the *plain* network the same noise: run with `MINIDL_BN=identity`, which takes the normalisation away
#    and leaves the noise. What is left of the green curve's lead?
# 2. Easy: set the learning rate to 2, nearly the plain network's best (lesson 7). Which pieces of evidence survive?
# 3. Medium: the drift of the noisy network is large because its inputs are wide. Divide each drift by the unit's own
#    mean width. Does the noisy network still drift more than the plain one? Does that change your verdict?
# 4. Medium: draw the noise for each image and unit, with a mean and a variance that change at each step (Santurkar et al.,
#    section 2.1).
# 5. Research: find a network in which BatchNorm makes the inputs steadier and does not help, or helps and does not
#    make them steadier. Which of the two is harder to find?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 4.1 and figure 1b, c. S. Santurkar, D. Tsipras, A. Ilyas and A. Madry,
# How Does Batch Normalization Help Optimization?, 2018, sections 2.1 and 2.2.
