# %% [markdown]
# # 15. The loss landscape: does BatchNorm make the surface smoother?
#
# A popular picture: without BatchNorm the loss is a long valley, with it a bowl, and in a bowl gradient
# descent goes straight to the bottom. Lesson 3 drew both for two weights. A real network has tens of thousands, and
# nobody has seen its surface. But one can walk a little along the gradient and note what the loss and the
# gradient do. Santurkar et al. (2018) did that, and offer it as the reason why BatchNorm helps, in
# place of covariate shift (lesson 14).
#
# You need: lessons 3 and 7; lesson 14 is the first half of the story. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, grad, initializers, optim, plotting
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("15_loss_landscape")
data = lesson.load_data()

# %% [markdown]
# ## The walk
#
# Five hidden layers of 64 ReLU units with He's initial weights, learning rate 0.1: a network that learns without
# BatchNorm too. We train 100 steps. Every ten steps we stop, take a batch and its gradient $g$, and try steps of size
# $\eta$ = 0.05, 0.1, 0.2 and 0.4 along it, without keeping any. At each place we measure the loss and the gradient $g'$ there.
#
# - How much does the loss vary along the way? On a smooth surface, little.
# - How far is $g'$ from $g$? The gradient is a promise about the direction to go; if $\|g' - g\|$ is large, it was a bad one.
# - The cosine of the angle between $g$ and $g'$ after the step of 0.1, the learning rate: 1 if the gradient still points
#   the same way, 0 if it says nothing any more, negative if the step went too far.
# - The *effective* $\beta$ of the surface, $\frac{\|g' - g\|}{\eta \|g\|}$: how fast the gradient changes on the way. (This
#   $\beta$ is the mathematicians' letter for smoothness, not BatchNorm's shift.)


# %%
def network(seed, batch_norm, depth, units, activation, initializer, fused=True):
    layers = []
    for _ in range(depth):
        layers.append(Dense(units, kernel_initializer=initializer))
        if batch_norm:
            layers.append(BatchNorm(fused=fused))
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=initializer)], seed=seed)


SIZES = (0.05, 0.1, 0.2, 0.4)


def flat(arrays):
    """All numbers of several arrays in one vector."""
    return np.concatenate([a.ravel() for a in arrays])


def walk(model, xb, yb):
    """The losses at SIZES along the gradient g; ||g' - g|| there; the cosine at 0.1, and ||g||."""
    model = copy.deepcopy(model).train()  # looking changes nothing
    parameters = model.parameters()
    start = [p.data for p in parameters]
    direction = grad(F.cross_entropy(model(xb), yb), parameters)
    g, losses, others = flat(direction), [], []
    for size in SIZES:
        for p, origin, d in zip(parameters, start, direction):
            p.data = origin - size * d
        loss = F.cross_entropy(model(xb), yb)
        losses.append(loss.item())
        others.append(flat(grad(loss, parameters)))
    at_rate, length = others[SIZES.index(0.1)], np.linalg.norm(g)
    return losses, np.linalg.norm(others - g, axis=1), at_rate @ g / (np.linalg.norm(at_rate) * length), length


def train_and_walk(build, lr, batch_size, steps=100, every=10):
    """Walk before each `every` steps of training, from five seeds: {what was measured: (seeds, walks, ...)}, and accuracy."""
    results = []
    for seed in lesson.seeds(5):
        model, rng, (x, y), walks = build(seed).build(784), np.random.default_rng(seed), data[0], []
        for _ in range(0, steps, every):
            chosen = rng.choice(len(x), batch_size, replace=False)
            walks.append(walk(model, x[chosen], y[chosen]))
            run = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=every, batch_size=batch_size,
                                  eval_steps=[every])
        results.append((*zip(*walks), run.accuracy[0]))
    losses, change, cosine, length, accuracy = (np.array(part) for part in zip(*results))
    return {"losses": losses, "range": losses.max(axis=2) - losses.min(axis=2), "change": change,
            "largest change": change.max(axis=2), "cosine": cosine, "length": length, "accuracy": accuracy}


# %% [markdown]
# ## Predict
#
# On which of the two surfaces does the loss vary more, and by which factor? And after a step of 0.1: what is the cosine, with
# and without BatchNorm? Write down three numbers. (In the first figure the band is the range over the four step sizes,
# the line its middle; from the second on, the range and median over seeds.)
#
# ## Run

# %%
BN, PLAIN = "with BatchNorm", "without BatchNorm"
relu = {name: train_and_walk(lambda seed: network(seed, name == BN, 5, 64, "relu", "he_normal"), lr=0.1, batch_size=64)
        for name in (BN, PLAIN)}
print("\n5 x 64 ReLU, learning rate 0.1, 100 steps; medians over 10 walks and 5 seeds\n"
      "range: of the loss; largest change: of the gradient, |g' - g|; length: |g|")
for name, r in relu.items():
    print(f"{name:17}: " + ", ".join(f"{what} {np.median(r[what]):.2f}" for what in ("range", "largest change", "cosine",
                                                                                     "length", "accuracy")))
    print(" " * 19 + "effective beta at step size " + ", ".join(
        f"{size}: {np.median(r['change'][:, :, i] / (size * r['length'])):.1f}" for i, size in enumerate(SIZES)))

# %%
def draw_losses(results, ax):
    """For each walk the range of the loss (median over seeds), as a band around its middle."""
    for number, (name, r) in enumerate(results.items()):
        plotting.band(range(0, 100, 10), np.median(r["losses"], axis=0).T, name, number, ax)
    ax.set(xlabel="training step", ylabel="loss at the four places\nalong the gradient")


ranges = {name: np.median(r["range"]) for name, r in relu.items()}
fig, ax = plotting.figure(size=(11, 6), title="Along the gradient the loss varies by "
                                              f"{ranges[BN]:.2f} with BatchNorm, {ranges[PLAIN]:.2f} without")
draw_losses(relu, ax)
plotting.legend(ax)
lesson.show(fig, "loss")

# %%
cosine = {name: np.median(r["cosine"]) for name, r in relu.items()}
fig, axes = plotting.figure(1, 2, size=(14, 6.5), title="After a step of 0.1 the cosine between the old gradient and the new\n"
                            f"is {cosine[BN]:+.2f} with BatchNorm, {cosine[PLAIN]:+.2f} without")
for number, (name, r) in enumerate(relu.items()):
    plotting.band(range(0, 100, 10), r["largest change"], name, number, axes[0])
    plotting.band(range(0, 100, 10), r["cosine"], name, number, axes[1])
axes[0].set(xlabel="training step", ylabel="largest $\\|g' - g\\|$", ylim=(0, None))
axes[1].set(xlabel="training step", ylabel="cosine of the angle\nbetween $g$ and $g'$ at 0.1", ylim=(-1, 1))
plotting.legend(axes[0])
lesson.show(fig, "gradient")

# %% [markdown]
# ## Explain
#
# So for this network the claim holds: a promise that the gradient makes is kept for longer with BatchNorm. That also explains
# lesson 8: a large step along the gradient is only safe where the gradient is still right at its end.
#
# The effective $\beta$ is printed above for each step size. For the smallest step the two networks are not far apart: it is
# the long steps that go wrong without BatchNorm. And before the first step BatchNorm is not even ahead.
#
# ## Curvature, exactly
#
# Steps of finite size see kinks and bends alike. The *curvature* at one point is in the Hessian $H$, the matrix of second
# derivatives: for 60,000 weights it has 60,000 rows, too many to write down. But its product with a vector $v$
# is only one more gradient, that of the number $g \cdot v$ by the weights $w$:
#
# $H v = \frac{\partial (g \cdot v)}{\partial w}.$
#
# minidl can differentiate a gradient again (`create_graph=True`), if the network is made of primitive ops:
# `BatchNorm(fused=False)` and `F.cross_entropy_composed`. From twenty such products one gets the largest
# eigenvalue $\lambda_{max}$, the curvature in the most curved direction (Lanczos' method): start at random, let each direction
# be $H$ times the one before, made perpendicular to all of them, and look at $H$ within these directions only.
#
# ReLU has kinks, and a second derivative knows nothing of a kink. So here the network is 4 x 64 with tanh. Predict: at
# learning rate 0.1, which curvature is too much for gradient descent? (Lesson 3: a step overshoots and grows where
# $\lambda > 2 / \text{lr}$.) Will the plain network stay below?


# %%
def extreme_eigenvalues(model, x, y, directions=20):
    """(smallest, largest) eigenvalue of the Hessian of the loss on x, y, in training mode, by Lanczos' method."""
    model = copy.deepcopy(model).train()
    parameters = model.parameters()
    g = grad(F.cross_entropy_composed(model(x), y), parameters, create_graph=True)
    ends = np.cumsum([p.size for p in parameters])

    def hessian_times(v):
        pieces = [piece.reshape(p.shape) for piece, p in zip(np.split(v, ends[:-1]), parameters)]
        return flat(grad(sum((a * piece).sum() for a, piece in zip(g, pieces)), parameters))

    v = np.random.default_rng(0).normal(size=ends[-1])
    basis, products = np.zeros((0, len(v)), np.float32), []
    for _ in range(directions):
        v = v - basis.T @ (basis @ v)  # perpendicular to all before
        v = (v / np.linalg.norm(v)).astype(np.float32)
        basis = np.vstack([basis, v])
        v = hessian_times(v)
        products.append(v)
    small = basis @ np.array(products).T
    eigenvalues = np.linalg.eigvalsh((small + small.T) / 2)
    return eigenvalues[0], eigenvalues[-1]


# %%
LR, looks = 0.1, range(0, 101, 25)
x, y = data[0][0][:256], data[0][1][:256]
curvature = {}
for name in (BN, PLAIN):
    rows = []
    for seed in lesson.seeds(3):
        model, row = network(seed, name == BN, 4, 64, "tanh", "glorot_uniform", fused=False).build(784), []
        for _ in looks:
            row.append(extreme_eigenvalues(model, x, y))
            experiments.run(model, data, optimizer=optim.SGD(lr=LR), steps=25, batch_size=64)
        rows.append(row)
    curvature[name] = np.array(rows)  # (seeds, looks, 2)
    print(f"{name:17}: largest / smallest eigenvalue at step " + ", ".join(
        f"{step}: {high:.1f} / {low:.1f}" for step, (low, high) in zip(looks, np.median(curvature[name], axis=0))))

# %%
sharpest = {name: np.median(curvature[name][:, 1:, 1]) for name in (BN, PLAIN)}
fig, ax = plotting.figure(size=(11, 6), title="The largest curvature from step 25 on: "
                                              f"{sharpest[BN]:.1f} with BatchNorm, {sharpest[PLAIN]:.1f} without")
for number, name in enumerate((BN, PLAIN)):
    plotting.band(looks, curvature[name][:, :, 1], name, number, ax)
ax.axhline(2 / LR, color="0.4", linewidth=1.5, linestyle=":")
ax.annotate(f"2 / lr = {2 / LR:.0f}: steps overshoot and grow", (0.5, 2 / LR), (0, 4), textcoords="offset points",
            xycoords=ax.get_yaxis_transform(), va="bottom", color="0.3", fontsize=14)
ax.set(xlabel="training step", ylabel="largest eigenvalue of the Hessian", ylim=(0, 1.1 * ax.get_ylim()[1]))
plotting.legend(ax)
lesson.show(fig, "curvature")

# %% [markdown]
# Three things to notice. *Before the first step* BatchNorm's surface is not the flatter one: it becomes so in the first
# steps. The smallest eigenvalue is negative for both: there are directions in which the surface bends down,
# so it is no bowl, with or without BatchNorm. And the comparison is made at *equal* learning rate, as it must be:
# a larger rate by itself drives training to flatter places (Cohen et al. 2021).
#
# ## When flat is bad
#
# The paper's sigmoid network of lesson 7 (3 x 100, learning rate 0.5, weights N(0, 0.1^2)). Same walk, same measures.
# Predict: on which surface does the loss vary less? And which network learns?

# %%
sigmoid = {name: train_and_walk(lambda seed: network(seed, name == BN, 3, 100, "sigmoid", initializers.normal(0.1)), lr=0.5,
                                batch_size=60) for name in (BN, PLAIN)}
plateau = {name: np.median(r["range"]) for name, r in sigmoid.items()}
reached = {name: np.median(r["accuracy"]) for name, r in sigmoid.items()}
fig, ax = plotting.figure(size=(11, 6.5), title="The flatter surface is that of the network that does not learn:\n"
                          f"range {plateau[PLAIN]:.2f} and accuracy {reached[PLAIN]:.2f}; "
                          f"with BatchNorm {plateau[BN]:.2f} and {reached[BN]:.2f}")
draw_losses(sigmoid, ax)
ax.set(ylim=(0, None))
plotting.legend(ax)
lesson.show(fig, "plateau")

# %% [markdown]
# The plain sigmoid network stands on a plateau: wherever it goes, the loss is near ln 10. Nothing is smoother than a plateau.
# BatchNorm takes the network *off* it, to where there is something to descend. "BatchNorm makes the surface
# smoother" is thus half of the truth: it makes a rough surface smoother and a flat one steeper. What the two have
# in common is that the gradient becomes useful.

# %%
print()
lesson.check("ReLU: range of the loss without / with BatchNorm", ranges[PLAIN] / ranges[BN], at_least=4)
lesson.check("ReLU: largest |g' - g| without / with BatchNorm", np.median(relu[PLAIN]["largest change"])
             / np.median(relu[BN]["largest change"]), at_least=2)
lesson.check("ReLU: cosine after a step of 0.1 with BatchNorm", cosine[BN], at_least=0.2)
lesson.check("ReLU: cosine after a step of 0.1 without BatchNorm", cosine[PLAIN], at_most=0, claim=False)
lesson.check("tanh: largest eigenvalue without / with BatchNorm from step 25 on", sharpest[PLAIN] / sharpest[BN], at_least=1.3)
lesson.check("tanh: smallest eigenvalue from step 25 on, the larger of the two networks'",
             max(np.median(curvature[name][:, 1:, 0]) for name in (BN, PLAIN)), at_most=0, claim=False)
lesson.check("sigmoid, reversed: range of the loss with / without BatchNorm", plateau[BN] / plateau[PLAIN], at_least=1.2)
lesson.check("sigmoid: accuracy with - without BatchNorm at step 100", reached[BN] - reached[PLAIN], at_least=0.4)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: train the ReLU networks at learning rate 0.01. How much of the difference is left?
# 2. Easy: measure the sigmoid network from step 300 to 400, when the plain one has left its plateau. Who is smoother now?
# 3. Medium: in `extreme_eigenvalues` write `.eval()` for `.train()`: population instead of batch statistics. Ghorbani
#    et al. found that the large eigenvalues then come back. Do you?
# 4. Medium: multiply the kernels before each BatchNorm by 10. The network computes the same. What happens to
#    $\lambda_{max}$, and what follows for "flatter is better"? (Lesson 16 is about this.)
# 5. Research: use all training images in each step (full-batch gradient descent) and follow $\lambda_{max}$ for 1,000 steps.
#    Does it settle near 2 / lr, as Cohen et al. found, and does it with BatchNorm?
#
# Sources: S. Santurkar, D. Tsipras, A. Ilyas and A. Madry, How Does Batch Normalization Help Optimization?, 2018, section 3.
# B. Ghorbani, S. Krishnan and Y. Xiao, An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019.
# J. Cohen et al., Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability, 2021.
