# %% [markdown]
# # 15. The loss landscape: does BatchNorm make the surface smoother?
#
# A popular picture, also in one of the five texts: without BatchNorm the loss is a long
# valley, with it a bowl, and in a bowl gradient descent goes straight to the bottom.
# Lesson 3 drew both for two weights. A real network has tens of thousands, and nobody
# has seen its surface. But we can walk a little along the gradient and note what the
# loss and the gradient do. Santurkar et al. (2018) did that, and offer it as the reason
# why BatchNorm helps, in place of covariate shift (lesson 14).
#
# You need: lessons 3 and 7; lesson 14 is the first half of the story. Running time:
# 10 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, grad
from minidl import functional as F
from minidl import initializers, optim, plotting
from minidl.lessonkit import Lesson, written

lesson = Lesson("15_loss_landscape")
data = lesson.load_data()
BN, PLAIN = "with BatchNorm", "without BatchNorm"

# %% [markdown]
# ## The walk
#
# Five hidden layers of 64 ReLU units with He's initial weights, a network that learns
# without BatchNorm too. We train 100 steps. Every ten steps we stop, take a batch and
# its gradient $g$, and try steps of seven sizes along $-g$, from 0.0125 to 0.8,
# without keeping any. At each place we measure two things.
#
# - The loss. Its *range* up to a step size is its largest minus its smallest value on
#   the way. On a smooth surface it is small.
# - The cosine of the angle between $g$ and the gradient there: 1 if it still points the
#   same way, 0 if the old one no longer says anything, negative if the step went too
#   far.


# %%
def network(seed, batch_norm, depth, units, activation, initializer, fused=True):
    layers = []
    for _ in range(depth):
        layers.append(Dense(units, kernel_initializer=initializer))
        if batch_norm:
            layers.append(BatchNorm(fused=fused))
        layers.append(Activation(activation))
    layers.append(Dense(10, kernel_initializer=initializer))
    return Sequential(layers, seed=seed)


SIZES = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)


def flat(arrays):
    """All numbers of several arrays in one vector."""
    return np.concatenate([a.ravel() for a in arrays])


# %%
def walk(model, xb, yb):
    """At SIZES along the gradient: the range of the loss so far, and the cosine."""
    model = copy.deepcopy(model).train()  # looking changes nothing
    parameters = model.parameters()
    start = [p.data for p in parameters]
    loss = F.cross_entropy(model(xb), yb)
    direction = grad(loss, parameters)
    g, losses, cosines = flat(direction), [loss.item()], []
    for size in SIZES:
        for p, origin, d in zip(parameters, start, direction):
            p.data = origin - size * d
        loss = F.cross_entropy(model(xb), yb)
        losses.append(loss.item())
        there = flat(grad(loss, parameters))
        lengths = np.linalg.norm(there) * np.linalg.norm(g)
        cosines.append(there @ g / lengths if lengths else 0.0)
    highest, lowest = np.maximum.accumulate(losses), np.minimum.accumulate(losses)
    return (highest - lowest)[1:], cosines


# %%
def train_and_walk(build, lr, batch_size, steps=100, every=10, seeds=3):
    """Walk before each `every` steps of training: ranges, cosines, and the accuracy."""
    results = []
    x_test, y_test = data[1]
    for seed in lesson.seeds(seeds):
        model, rng, walks = build(seed).build(784), np.random.default_rng(seed), []
        for _ in range(0, steps, every):
            chosen = rng.choice(len(data[0][0]), batch_size, replace=False)
            walks.append(walk(model, *(part[chosen] for part in data[0])))
            experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=every,
                            batch_size=batch_size)
        right = model.predict(x_test).argmax(axis=1) == y_test
        results.append((*zip(*walks), right.mean()))
    return tuple(np.array(part) for part in zip(*results))  # (seeds, walks, sizes)


# %% [markdown]
# ## Predict
#
# We train at the learning rates 0.01, 0.03 and 0.1. On which of the two surfaces does
# the loss vary more: for short steps, for steps as long as the learning rate, and for
# long ones? Is the answer the same at all three rates?
#
# ## Run

# %%
RATES = (0.01, 0.03, 0.1)
walks, ratio = {}, {}
for lr in RATES:
    for name in (BN, PLAIN):
        walks[lr, name] = train_and_walk(
            lambda seed: network(seed, name == BN, 5, 64, "relu", "he_normal"), lr, 64)
    with_bn, without = (np.median(walks[lr, name][0], axis=(0, 1))
                        for name in (BN, PLAIN))
    ratio[lr] = dict(zip(SIZES, with_bn / without))
    print(f"\ntrained at {lr}: accuracy {np.median(walks[lr, BN][2]):.2f} with, "
          f"{np.median(walks[lr, PLAIN][2]):.2f} without BatchNorm\n"
          "range of the loss, with / without, by step size: "
          + ", ".join(f"{size:g}: {value:.2f}" for size, value in ratio[lr].items()))

# %%
def listed(size):
    return ", ".join(written(ratio[lr][size], 1) for lr in RATES)


fig, axes = plotting.figure(1, 3, size=(16, 6.5), sharex=True, sharey=True,
                            title="Range of the loss, with over without BatchNorm: up "
                            f"to a step of 0.05 it is\n{listed(0.05)}; up to a step of "
                            f"0.4 it is {listed(0.4)}")
for ax, lr in zip(axes, RATES):
    for number, name in enumerate((BN, PLAIN)):
        ranges = np.median(walks[lr, name][0], axis=1)  # (seeds, sizes)
        plotting.band(SIZES, np.maximum(ranges, 1e-4), name, number, ax)
    ax.axvline(lr, color="0.4", linestyle=":", linewidth=2)
    ax.set(title=f"trained at {lr}", xlabel="step size along the gradient",
           xscale="log", yscale="log", xticks=(0.02, 0.1, 0.5),
           xticklabels=("0.02", "0.1", "0.5"))
    ax.minorticks_off()
    ax.text(lr, 0.03, " one step of\n training", transform=ax.get_xaxis_transform(),
            color="0.3", fontsize=13)
axes[0].set_ylabel("range of the loss\n(median of 10 walks; band: seeds)")
axes[0].set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "10"])
plotting.legend(axes[0])
lesson.show(fig, "range")

# %% [markdown]
# So there is no answer without a step size and a learning rate. Trained at 0.01 the
# surface *with* BatchNorm is the rougher one for every step that we tried. Trained at
# 0.03 it is rougher for steps up to 0.2, and smoother beyond. Trained at 0.1, a large
# rate for the plain network, both are much alike up to 0.2, which is twice the step
# that training takes; beyond it the plain network's loss explodes and that of BatchNorm
# does not. Anyone who looks only at long steps, or only at a large rate, finds the
# claim confirmed.

# %%
cosine = {name: np.median(walks[0.1, name][1], axis=1) for name in (BN, PLAIN)}
at_rate = {name: np.median(at[:, SIZES.index(0.1)]) for name, at in cosine.items()}
fig, ax = plotting.figure(size=(11, 6), title="After one step of 0.1 the cosine of old "
                          f"and new gradient is\n{written(at_rate[BN], 1, True)} with "
                          f"BatchNorm, {written(at_rate[PLAIN], 1, True)} without")
for number, name in enumerate((BN, PLAIN)):
    plotting.band(SIZES, cosine[name], name, number, ax)
ax.axhline(0, color="0.4", linewidth=1.5)
ax.axvline(0.1, color="0.4", linestyle=":", linewidth=2)
ax.text(0.1, -0.95, " one step of training", color="0.3", fontsize=14)
ax.set(xlabel="step size along the gradient (trained at 0.1)", xscale="log",
       ylim=(-1, 1), ylabel="cosine of the old gradient\nand the new", xticks=SIZES,
       xticklabels=[f"{size:g}" for size in SIZES])
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "cosine")

# %% [markdown]
# The cosine says more about training, because it does not depend on the length of the
# gradients. At the rate 0.1 the gradient still points forward at the end of a step with
# BatchNorm, and without it the old gradient no longer says anything. That explains
# lesson 8: a large step is safe only where the gradient is still right at its end.
#
# ## Curvature, exactly
#
# Can we do without a step size? The *curvature* at a point is in the Hessian $H$, the
# matrix of second derivatives. For 60,000 weights it has 60,000 rows, too many to write
# down. But its product with a vector $v$ is only one more gradient, that of the number
# $g \cdot v$ with respect to the weights $w$:
# $H v = \frac{\partial (g \cdot v)}{\partial w}$. minidl can differentiate a gradient
# again (`create_graph=True`) if the network is made of primitive ops:
# `BatchNorm(fused=False)` and `F.cross_entropy_composed`. Fifteen such products are
# enough for the largest eigenvalue $\lambda_{max}$, the curvature in the most curved
# direction (Lanczos' method).
#
# ReLU has kinks, and a second derivative knows nothing of a kink. So here the network
# is 4 x 64 with tanh. Predict: will $\lambda_{max}$ of the plain network stay below
# $2 / 0.1$, above which steps at the rate 0.1 overshoot and grow (lesson 3)?


# %%
def largest_eigenvalue(model, x, y, directions=15):
    """Of the Hessian of the loss on x, y, in training mode, by Lanczos' method."""
    model = copy.deepcopy(model).train()
    parameters = model.parameters()
    loss = F.cross_entropy_composed(model(x), y)
    g = grad(loss, parameters, create_graph=True)
    ends = np.cumsum([p.size for p in parameters])
    v = np.random.default_rng(0).normal(size=ends[-1])
    basis, products = np.zeros((0, len(v)), np.float32), []
    for _ in range(directions):
        v = v - basis.T @ (basis @ v)  # perpendicular to all before
        v = (v / np.linalg.norm(v)).astype(np.float32)
        basis = np.vstack([basis, v])
        pieces = [piece.reshape(p.shape)
                  for piece, p in zip(np.split(v, ends[:-1]), parameters)]
        along = sum((a * piece).sum() for a, piece in zip(g, pieces))
        v = flat(grad(along, parameters))  # H times the direction
        products.append(v)
    small = basis @ np.array(products).T  # H within these directions only
    return np.linalg.eigvalsh((small + small.T) / 2)[-1]


# %%
LR, looks = 0.1, range(0, 101, 25)
x, y = data[0][0][:256], data[0][1][:256]
curvature = {BN: [], PLAIN: []}  # (seeds, looks)
for name, rows in curvature.items():
    for seed in lesson.seeds(3):
        model = network(seed, name == BN, 4, 64, "tanh", "glorot_uniform", fused=False)
        row = []
        for _ in looks:
            row.append(largest_eigenvalue(model.build(784), x, y))
            experiments.run(model, data, optimizer=optim.SGD(lr=LR), steps=25,
                            batch_size=64)
        rows.append(row)
sharpest = {name: np.median(np.array(rows)[:, 1:]) for name, rows in curvature.items()}

# %%
fig, ax = plotting.figure(size=(11, 6), title="The largest curvature from step 25 on: "
                          f"{sharpest[BN]:.0f} with BatchNorm, "
                          f"{sharpest[PLAIN]:.0f} without")
for number, (name, rows) in enumerate(curvature.items()):
    plotting.band(looks, rows, name, number, ax)
ax.axhline(2 / LR, color="0.4", linewidth=1.5, linestyle=":")
ax.annotate(f"2 / learning rate = {2 / LR:.0f}: steps overshoot and grow",
            (0.5, 2 / LR), (0, 4), textcoords="offset points",
            xycoords=ax.get_yaxis_transform(), va="bottom", color="0.3", fontsize=14)
ax.set(xlabel="training step", ylabel="largest eigenvalue of the Hessian",
       ylim=(0, 1.1 * ax.get_ylim()[1]))
plotting.legend(ax)
lesson.show(fig, "curvature")

# %% [markdown]
# *Before* the first step BatchNorm's surface is not the flatter one. It becomes so in
# the first steps. The comparison is made at *equal* learning rate, as it must be,
# because a larger rate by itself drives training to flatter places (Cohen et al.
# 2021).
#
# ## When flat is bad
#
# Now the sigmoid network of lesson 7 (3 x 100, learning rate 0.5, weights N(0, 0.1²))
# and the same walk. Predict: on which surface does the loss vary less? And which
# network learns?

# %%
small = initializers.normal(0.1)
sigmoid = {name: train_and_walk(
    lambda seed: network(seed, name == BN, 3, 100, "sigmoid", small), 0.5, 60)
           for name in (BN, PLAIN)}
far = SIZES.index(0.4)
plateau = {name: np.median(result[0][..., far]) for name, result in sigmoid.items()}
reached = {name: np.median(result[2]) for name, result in sigmoid.items()}
fig, ax = plotting.figure(size=(11, 6.5), title="The flatter surface is that of the "
                          f"network that learns less:\nrange {plateau[PLAIN]:.2f}, "
                          f"{reached[PLAIN]:.0%} right; with BatchNorm "
                          f"{plateau[BN]:.2f}, {reached[BN]:.0%}")
for number, (name, result) in enumerate(sigmoid.items()):
    plotting.band(range(0, 100, 10), result[0][..., far], name, number, ax)
ax.set(xlabel="training step", ylabel="range of the loss\nup to a step of 0.4",
       ylim=(0, None))
plotting.legend(ax)
lesson.show(fig, "plateau")

# %% [markdown]
# ## Explain
#
# The plain sigmoid network stands on a plateau: wherever it goes, the loss is near
# ln 10. Nothing is smoother than a plateau. BatchNorm takes the network *off* it, to
# where there is something to descend.
#
# "BatchNorm makes the surface smoother" is therefore true under conditions: for ReLU,
# at a rate at which the plain network is nearly unstable, and for steps longer than
# those of training. For small rates, and for the sigmoid, the surface with BatchNorm
# varies more, because it falls more steeply. The cosine shows what counts: whether
# the gradient is still right at the end of a step. The valley and the bowl of the
# text are exact for two features and a straight line (lesson 3). They are no picture
# of this surface.

# %%
print()
lesson.check("ReLU at 0.1: range of the loss up to a step of 0.4, without / with",
             1 / ratio[0.1][0.4], at_least=2)
lesson.check("ReLU at 0.01: range up to a step of 0.05, with / without",
             ratio[0.01][0.05], at_least=2)
lesson.check("ReLU at 0.1: range up to a step of 0.1, with / without",
             ratio[0.1][0.1], at_least=0.5, claim=False)
lesson.check("ReLU at 0.1: cosine after a step of 0.1, with - without",
             at_rate[BN] - at_rate[PLAIN], at_least=0.3)
lesson.check("tanh: largest eigenvalue without / with BatchNorm from step 25 on",
             sharpest[PLAIN] / sharpest[BN], at_least=1.3)
lesson.check("sigmoid, reversed: range of the loss with / without BatchNorm",
             plateau[BN] / plateau[PLAIN], at_least=1.2)
lesson.check("sigmoid: accuracy with - without BatchNorm at step 100",
             reached[BN] - reached[PLAIN], at_least=0.4)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. If the nodes' data have very different distributions, the loss is "less like the
# bottom of a well and more like a valley", writes text 004. For which network is that
# exact?**
#
# - A: for the linear regression of lesson 3, with features of different scales
# - B: for any network, and the more so the more layers it has
# - C: for sigmoid networks whose inputs are large
# - D: for networks that are trained at a large learning rate
#
# **2. Along the gradient the loss of one network varies by 0.02, that of another by 2.
# Which one trains better?**
#
# - A: the first, because its surface is smoother
# - B: the second, because its gradient is longer
# - C: that cannot be said: the first may stand on a plateau
# - D: both alike, because the loss is the same function
#
# <details><summary>Answers</summary>
#
# 1 A. There the loss is a quadratic function of the weights, and its level lines are
# ellipses. B is how text 004 uses the picture ("the more layers, the slower"), but
# nobody has seen that surface. C is text 003's small slope: that makes a plateau, not a
# valley. D: the rate changes where training goes, not the surface.
#
# 2 C. Of the two sigmoid networks the one whose loss varies less learns less. A is the
# popular reading; text 000 too infers speed from gradients that are "more stable". B: a
# long gradient may be wrong at the end of the step, as the cosine shows. D: the loss is
# the same function of the logits, but not of the weights.
#
# </details>
#
# ## Try
#
# 1. Easy: train the ReLU networks at the rate 0.3. Where do the curves cross now?
# 2. Easy: measure the sigmoid network from step 300 to 400, when the plain one has left
#    its plateau. Which surface is smoother now?
# 3. Medium: in `largest_eigenvalue` write `.eval()` for `.train()`: population
#    instead of batch statistics. Ghorbani et al. found that the large eigenvalues
#    then come back. Do you?
# 4. Medium: multiply the kernels before each BatchNorm by 10. The network computes the
#    same. What happens to $\lambda_{max}$, and what follows for "flatter is better"?
#    (Lesson 16 is about this.)
# 5. Research: use all training images in each step (full-batch gradient descent) and
#    follow $\lambda_{max}$ for 1,000 steps. Does it settle near 2 / learning rate, as
#    Cohen et al. found, and does it with BatchNorm?
#
# Sources: S. Santurkar, D. Tsipras, A. Ilyas and A. Madry, How Does Batch
# Normalization Help Optimization?, 2018, section 3. B. Ghorbani, S. Krishnan and
# Y. Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue
# Density, 2019. J. Cohen et al., Gradient Descent on Neural Networks Typically Occurs
# at the Edge of Stability, 2021.
