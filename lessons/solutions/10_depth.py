# %% [markdown]
# # Solutions to lesson 10: depth
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Module, Sequential, Tensor
from minidl import data, experiments, functional as F, grad, initializers, optim, record

digits = data.load("digits")
(x, y), _ = digits


# %% [markdown]
# ## 1. A batch of 4
#
# With a batch of 4 `theory` returns 1.756, so the squared norm grows by 3.08 per layer,
# twice as fast as with large batches. A batch of 3 cannot work for linear layers: the
# factor $\frac{B-2}{B-3}$ divides by zero, because the mean of the squared gradient is infinite.

# %%
def theory(batch_size):
    """Yang et al. 2019, theorem 8, for ReLU: the factor of the squared norm per layer."""
    c = -1 / (batch_size - 1)
    j0 = (np.pi - np.arccos(c)) / np.pi
    j1 = (np.sqrt(1 - c ** 2) + (np.pi - np.arccos(c)) * c) / np.pi
    return ((batch_size - 1 + j0) / (1 - j1) - 1) / (batch_size - 3)


print(f"1. B = 4: {theory(4):.3f} times the squared norm per layer")


# %% [markdown]
# ## 2. tanh
#
# 1.10 times per layer at B = 64, against 1.22 for ReLU. tanh loses less of the variance on
# the way forward, therefore BatchNorm has less to make up for, and the gradient grows less.

# %%
def growth(layers, batch_size=64):
    """First gradient / last, per layer, of 30 layers of 256 units."""
    model = Sequential(layers, seed=0).build(256).train()
    rng = np.random.default_rng(0)
    inputs, end = (rng.standard_normal((batch_size, 256), np.float32) for _ in range(2))
    with record(model) as log:
        (model(inputs) * end).sum().backward()
    norms = log.array("grad_norm", [n for n in log.layers if n.startswith("dense")])[0]
    return (norms[4] / norms[24]) ** (1 / 20)


def hidden(activation, weights):
    return [layer for _ in range(30) for layer in (
        Dense(256, kernel_initializer=weights), BatchNorm(), Activation(activation))]


print(f"2. tanh {growth(hidden('tanh', 'glorot_normal')):.3f} per layer, "
      f"ReLU {growth(hidden('relu', 'he_normal')):.3f}")


# %% [markdown]
# 3. @3

# %%
def sigmoid_network(depth, factor):
    def weights(shape, rng):
        return factor * initializers.glorot_normal(shape, rng)
    layers = [layer for _ in range(depth) for layer in (
        Dense(50, kernel_initializer=weights), Activation("sigmoid"))]
    return Sequential([*layers, Dense(10)], seed=0)


for factor in (3, 4, 5, 6, 8):
    for depth in (8, 32):
        model = sigmoid_network(depth, factor).build(784)
        kernels = [layer.kernel for layer in model.layers if isinstance(layer, Dense)]
        first, last = grad(F.cross_entropy(model(x[:64]), y[:64]),
                           [kernels[0], kernels[-1]])
        ratio = np.linalg.norm(first) / np.linalg.norm(last)
        print(f"3. factor {factor}, {depth} layers: gradient first / last {ratio:.1g}")
    run = experiments.run(sigmoid_network(8, factor), digits, optimizer=optim.SGD(lr=1.0),
                          steps=400, batch_size=64, eval_steps=[400])
    print(f"   8 layers, rate 1, 400 steps: test accuracy {run.accuracy[-1]:.3f}")


# %% [markdown]
# ## 4. Shortcuts
#
# The gradient in front of 16 blocks is 7 times as large as behind them, against 340 times
# for the same blocks without shortcuts: along the shortcut it comes back unchanged. This is
# why very deep networks with BatchNorm are residual networks.

# %%
class Shortcut(Module):
    """x + block(x), the block being two times Dense, BatchNorm, ReLU."""

    def __init__(self, rng):
        self.block = Sequential([layer for _ in range(2) for layer in (
            Dense(256, kernel_initializer="he_normal", rng=rng), BatchNorm(),
            Activation("relu"))])

    def forward(self, x):
        return x + self.block(x)


def first_over_last(blocks):
    """Norm of the gradient at the input of the first block, over that behind the last."""
    rng = np.random.default_rng(0)
    start = Tensor(rng.standard_normal((64, 256), np.float32), requires_grad=True)
    end = rng.standard_normal((64, 256), np.float32)
    h = start
    for block in blocks:
        h = block.build(256).train()(h)
    return np.linalg.norm(grad((h * end).sum(), start)) / np.linalg.norm(end)


rng = np.random.default_rng(0)
with_shortcut = [Shortcut(rng) for _ in range(16)]
print(f"4. 16 blocks with a shortcut: gradient first / last "
      f"{first_over_last(with_shortcut):.2g}, the same blocks without "
      f"{first_over_last([shortcut.block for shortcut in with_shortcut]):.2g}")

# %% [markdown]
# ## 5. Two images at depth 32
#
# At 2 layers images of one class have more similar outputs than others (cosine 0.42
# against 0.31). At 32 layers the difference is gone (0.345 and 0.350): the last layer has
# lost the class before it can learn anything. Without BatchNorm all images become alike
# (0.97). So the slow learning need not come from the gradient.

# %%
for batch_norm in (True, False):
    for depth in (2, 32):
        layers = [layer for _ in range(depth) for layer in (
            Dense(50, kernel_initializer="he_normal"),
            *([BatchNorm()] if batch_norm else []), Activation("relu"))]
        h = Sequential(layers, seed=0).build(784).train()(x[:64]).numpy()
        unit = h / np.linalg.norm(h, axis=1, keepdims=True)
        cosines = (unit @ unit.T)[~np.eye(64, dtype=bool)]
        same = (y[:64, None] == y[:64])[~np.eye(64, dtype=bool)]
        print(f"5. BatchNorm {batch_norm}, {depth:2} layers: cosine of the last outputs, "
              f"same class {cosines[same].mean():.3f}, others {cosines[~same].mean():.3f}")
