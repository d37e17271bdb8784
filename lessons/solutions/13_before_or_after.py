# %% [markdown]
# # Solutions to lesson 13: before or after the activation
#
# For teachers. Numbers: digits, seeds 0 to 2.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, data, experiments, optim
from minidl import no_grad, record

digits = data.load("digits")
BEFORE, AFTER, BOTH = "before", "after", "both"


def network(seed, place, activation="relu", use_bias=True, first=False):
    initializer = "he_normal" if "relu" in activation else "glorot_uniform"
    layers = [BatchNorm()] if first else []
    for _ in range(3):
        layers.append(Dense(64, kernel_initializer=initializer, use_bias=use_bias))
        layers += [BatchNorm()] if place in (BEFORE, BOTH) else []
        layers.append(Activation(activation))
        layers += [BatchNorm()] if place in (AFTER, BOTH) else []
    return Sequential([*layers, Dense(10)], seed=seed)

# %%
def accuracy(place, steps=400, seeds=(0, 1, 2), lr=0.3, **settings):
    return np.mean([experiments.run(network(seed, place, **settings), digits,
                                    optimizer=optim.SGD(lr=lr), steps=steps,
                                    batch_size=64, eval_steps=[steps]).accuracy[0]
                    for seed in seeds])


# %% [markdown]
# ## 1. Both places

# %%
for activation in ("relu", "sigmoid"):
    print(f"1: {activation}, step 400: "
          + ", ".join(f"{place} {accuracy(place, activation=activation):.3f}"
                      for place in (BEFORE, AFTER, BOTH)))

# %% [markdown]
# ANSWER1
#
# ## 2. BatchNorm on the pixels

# %%
always_zero = np.sum(np.ptp(digits[0][0], axis=0) == 0)
plain, first = (accuracy(BEFORE, 100, first=first) for first in (False, True))
print(f"2: {always_zero} pixels are always 0; step 100: {first:.3f} with BatchNorm on "
      f"the pixels, {plain:.3f} without")

# %% [markdown]
# ANSWER2
#
# ## 3. Without biases

# %%
for place in (BEFORE, AFTER):
    values = [accuracy(place, 200, activation="sigmoid", use_bias=bias)
              for bias in (True, False)]
    print(f"3: sigmoid, {place}, step 200: {values[0]:.4f} with biases, "
          f"{values[1]:.4f} without")

# %% [markdown]
# ANSWER3
#
# ## 4. Leaky ReLU and tanh

# %%
for activation in ("leaky_relu", "tanh"):
    before, after = (accuracy(place, activation=activation)
                     for place in (BEFORE, AFTER))
    print(f"4: {activation}, step 400: {before:.3f} before, {after:.3f} after")

# %% [markdown]
# ANSWER4
#
# ## 5. Which layer fails first?

# %%
model = network(0, AFTER, "sigmoid")
with record(model, every=1) as log:
    run = experiments.run(model, digits, optimizer=optim.SGD(lr=3.0), steps=60,
                          batch_size=64)
print(f"5: the loss is no longer finite at step {run.diverged_at}; norm of the kernels")
for name in ("dense.kernel", "dense_1.kernel", "dense_2.kernel", "dense_3.kernel"):
    print(f"   {name:14}: "
          + ", ".join(f"{log[name, 'norm'][step]:.1e}" for step in (0, 5, 10, 20, -1)))

# %% [markdown]
# ANSWER5
#
# ## 6. Skewness in the course of training

# %%
def skewness(x):
    x = x - x.mean(axis=0)
    variance = (x ** 2).mean(axis=0) + 1e-12
    return np.median(np.abs((x ** 3).mean(axis=0)) / variance ** 1.5)


model, done = network(0, None), 0
for step in (0, 100, 400):
    if step:
        experiments.run(model, digits, optimizer=optim.SGD(lr=0.1), steps=step - done,
                        batch_size=64)
    done, x, rows = step, digits[1][0], []
    with no_grad():
        for layer in model.build(784).layers[:-1]:
            x = layer(x)
            rows.append(f"{skewness(x.numpy()):.2f}")
    print(f"6: step {step}: median |skewness| of Dense and ReLU in turn: "
          + ", ".join(rows))

# %% [markdown]
# ANSWER6
