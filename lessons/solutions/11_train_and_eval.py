# %% [markdown]
# # Solutions to lesson 11: train and eval
#
# For teachers. Each cell answers one item of "Try"; the sentence before it says what it
# prints on the digits with seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import data, estimate_population_statistics, experiments, optim

digits = data.load("digits")
(x_train, y_train), (x_test, y_test) = digits


def trained(momentum, steps, batch_size=64):
    layers = []
    for _ in range(2):
        layers += [Dense(64, kernel_initializer="he_normal"), BatchNorm(momentum=momentum),
                   Activation("relu")]
    model = Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=0)
    experiments.run(model, digits, optimizer=optim.SGD(lr=0.3), steps=steps,
                    batch_size=batch_size)
    return model


def accuracy(model, x=x_test):
    return np.mean(model.predict(x).argmax(axis=1) == y_test)


def precise(model, images=x_train[:2048]):
    twin = copy.deepcopy(model)
    estimate_population_statistics(twin, images, batch_size=64)
    return twin


# %% [markdown]
# 1. @1

# %%
for steps in (20, 100, 300):
    model = trained(1.0, steps)
    print(f"1. momentum 1, step {steps}: {accuracy(model):.3f}; population statistics "
          f"{accuracy(precise(model)):.3f}")

# %% [markdown]
# 2. @2

# %%
model = trained(0.1, 300)
shifted = x_test + np.float32(0.3)
print(f"2. test images + 0.3: {accuracy(model, shifted):.3f} with training statistics, "
      f"{accuracy(precise(model, shifted), shifted):.3f} with their own; unshifted "
      f"{accuracy(model):.3f}")

# %% [markdown]
# 3. @3

# %%
a = 0.001
for steps in (50, 300):
    model = trained(a, steps)
    before = accuracy(model)
    for layer in model.layers:
        if isinstance(layer, BatchNorm):
            start = (1 - a) ** steps  # the weight of the starting values 0 and 1
            layer.running_mean = layer.running_mean / (1 - start)
            layer.running_var = (layer.running_var - start) / (1 - start)
    print(f"3. momentum 0.001, step {steps}: {before:.3f}, corrected {accuracy(model):.3f}, "
          f"population statistics {accuracy(precise(model)):.3f}")

# %% [markdown]
# 4. @4

# %%
model = trained(0.1, 300)
outputs, layers = model.predict(x_test), model.layers
folded = Sequential([layers[1].fold(layers[0]), layers[2], layers[4].fold(layers[3]),
                     layers[5], layers[6]])
difference = np.abs(folded.predict(x_test) - outputs).max()
print(f"4. largest difference of the logits {difference:.1e}, of {np.abs(outputs).max():.0f}")

# %% [markdown]
# 5. @5

# %%
epoch = len(x_train) // 512
for momentum in (0.9, 0.5, 0.3, 0.1, 0.01):
    model = trained(momentum, epoch, batch_size=512)
    print(f"5. one epoch of batches of 512 ({epoch} steps), momentum {momentum}: "
          f"{accuracy(model):.3f}; population statistics {accuracy(precise(model)):.3f}")
