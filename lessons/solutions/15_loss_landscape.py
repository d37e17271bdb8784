# %% [markdown]
# # Solutions to lesson 15: the loss landscape
#
# For teachers. Numbers: digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, grad
from minidl import functional as F
from minidl import initializers, optim
from minidl.lessonkit import Lesson

lesson = Lesson("15_solutions")
data = lesson.load_data()
x_train, y_train = data[0]
SIZES = (0.05, 0.1, 0.2, 0.4, 0.8)


# %%
def network(batch_norm, depth=5, units=64, activation="relu",
            initializer="he_normal", fused=True):
    layers = []
    for _ in range(depth):
        layers.append(Dense(units, kernel_initializer=initializer))
        layers += [BatchNorm(fused=fused)] if batch_norm else []
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=initializer)],
                      seed=lesson.seed)


def ranges(model, rng):
    """The range of the loss up to each of SIZES along the gradient."""
    model = copy.deepcopy(model).train()
    rows = rng.choice(len(x_train), 64, replace=False)
    parameters, losses = model.parameters(), []
    start = [p.data for p in parameters]
    loss = F.cross_entropy(model(x_train[rows]), y_train[rows])
    direction = grad(loss, parameters)
    for size in (0, *SIZES):
        for p, origin, d in zip(parameters, start, direction):
            p.data = origin - size * d
        losses.append(F.cross_entropy(model(x_train[rows]), y_train[rows]).item())
    return (np.maximum.accumulate(losses) - np.minimum.accumulate(losses))[1:]


# %%
def walks(model, lr, steps=100, skip=0):
    rng, seen = np.random.default_rng(lesson.seed), []
    if skip:
        experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=skip,
                        batch_size=64)
    for _ in range(0, steps, 10):
        seen.append(ranges(model.build(784), rng))
        experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=10,
                        batch_size=64)
    return np.median(seen, axis=0)


# %% [markdown]
# ## 1. Easy: trained at 0.3
#
# Trained at 0.3 BatchNorm's surface is the smoother one at every step tried: 0.62,
# 0.68, 0.75, 0.34 and 0.09 times the range, for steps of 0.05 to 0.8. The larger the
# training rate, the earlier the curves cross, and here they have crossed already.

# %%
ratio = walks(network(True), 0.3) / walks(network(False), 0.3)
print("1: range with / without by step size: "
      + ", ".join(f"{size}: {value:.2f}" for size, value in zip(SIZES, ratio)))
lesson.check("1: trained at 0.3: range up to a step of 0.8, with / without", ratio[-1],
             at_most=0.5)

# %% [markdown]
# ## 2. Easy: the sigmoid network off its plateau
#
# Neither: the range up to a step of 0.4 is 0.10 with and 0.11 without BatchNorm. The
# reversed sign of the lesson was a fact about the plateau.

# %%
small = initializers.normal(0.1)
both = [walks(network(bn, 3, 100, "sigmoid", small), 0.5, skip=300)
        for bn in (True, False)]
print("2: steps 300 to 400, range up to 0.4: with {:.2f}, without {:.2f}".format(
    *(values[3] for values in both)))
lesson.check("2: steps 300 to 400, range up to 0.4: with / without",
             both[0][3] / both[1][3], at_most=1.3, claim=False)

# %% [markdown]
# ## 3. Medium: population statistics
#
# Yes. 29.4 in evaluation mode, 6.9 in training mode, and 14.3 without BatchNorm.
# Whoever measures the surface of a network with BatchNorm has to say in which mode.


# %%
def largest_eigenvalue(model, training=True, directions=20, n=256):
    model = copy.deepcopy(model).train() if training else copy.deepcopy(model).eval()
    parameters = model.parameters()
    loss = F.cross_entropy_composed(model(x_train[:n]), y_train[:n])
    g = grad(loss, parameters, create_graph=True)
    ends = np.cumsum([p.size for p in parameters])
    v = np.random.default_rng(0).normal(size=ends[-1])
    basis, products = np.zeros((0, len(v)), np.float32), []
    for _ in range(directions):
        v = v - basis.T @ (basis @ v)
        v = (v / np.linalg.norm(v)).astype(np.float32)
        basis = np.vstack([basis, v])
        pieces = [piece.reshape(p.shape)
                  for piece, p in zip(np.split(v, ends[:-1]), parameters)]
        along = sum((a * piece).sum() for a, piece in zip(g, pieces))
        v = np.concatenate([a.ravel() for a in grad(along, parameters)])
        products.append(v)
    small = basis @ np.array(products).T
    return np.linalg.eigvalsh((small + small.T) / 2)[-1]


# %%
def tanh(batch_norm, steps=50, batch_size=64, lr=0.1, model=None):
    model = model or network(batch_norm, 4, 64, "tanh", "glorot_uniform", fused=False)
    experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=steps,
                    batch_size=batch_size)
    return model


trained = tanh(True)
batch, population = (largest_eigenvalue(trained, mode) for mode in (True, False))
print(f"3: largest eigenvalue after 50 steps: {batch:.1f} in training mode, "
      f"{population:.1f} in evaluation, {largest_eigenvalue(tanh(False)):.1f} without "
      "BatchNorm")
lesson.check("3: largest eigenvalue, in evaluation / in training mode",
             population / batch, at_least=1.5)

# %% [markdown]
# ## 4. Medium: scaled kernels
#
# The gradient at $a W$ is $a$ times smaller, and the curvature $a^2$ times. With the
# hidden kernels times 10 $\lambda_{max}$ falls from 6.9 to 1.0 (what is left belongs
# to the last layer, $\gamma$ and $\beta$), with them times 0.1 it rises to 623. The
# network computes the same all the time. So flatness as such is no merit: one has to
# say how long the weights are.

# %%
for layer in trained.layers[:-1]:
    if isinstance(layer, Dense):
        layer.kernel.data = layer.kernel.data * np.float32(0.1)
short = largest_eigenvalue(trained)
print(f"4: hidden kernels times 0.1: {short:.1f}")
for layer in trained.layers[:-1]:
    if isinstance(layer, Dense):
        layer.kernel.data = layer.kernel.data * np.float32(100)
long = largest_eigenvalue(trained)
print(f"4: hidden kernels times 10: {long:.1f}")
lesson.check("4: largest eigenvalue, kernels times 0.1 / times 10", short / long,
             at_least=50)

# %% [markdown]
# ## 5. Research: full-batch gradient descent
#
# A shorter version: 1,000 images, all of them in each step, rate 0.1. Without
# BatchNorm $\lambda_{max}$ is 19.3, 22.4, 20.9, 18.4 and 15.8 after 80 to 400 steps,
# so it hovers around 2 / 0.1 = 20, as Cohen et al. found, and leaves it when the loss
# gets small. With BatchNorm it falls from 9.0 to 2.5 and never comes near.

# %%
few, sharpest = ([part[:1000] for part in data[0]], data[1]), {}
for bn in (True, False):
    model, row = network(bn, 4, 64, "tanh", "glorot_uniform", fused=False), []
    for _ in range(5):
        experiments.run(model, few, optimizer=optim.SGD(lr=0.1), steps=80,
                        batch_size=1000)
        row.append(largest_eigenvalue(model))
    sharpest[bn] = max(row)
    print(f"5: {'with' if bn else 'without'}, steps 80 to 400: "
          + ", ".join(f"{value:.1f}" for value in row))
lesson.check("5: largest eigenvalue without BatchNorm / (2 / learning rate)",
             sharpest[False] / 20, at_least=0.8, claim=False)
lesson.check("5: largest eigenvalue with BatchNorm / (2 / learning rate)",
             sharpest[True] / 20, at_most=0.7)
lesson.finish()
