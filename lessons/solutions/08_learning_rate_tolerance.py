# %% [markdown]
# # Solutions to lesson 8: learning-rate tolerance
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, data, experiments, optim

digits = data.load("digits")
x_test = digits[1][0]


def network(seed, batch_norm, on_logits=False):
    layers = []
    for _ in range(6):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        layers += [BatchNorm()] if batch_norm else []
        layers.append(Activation("relu"))
    layers.append(Dense(10, kernel_initializer="he_normal"))
    return Sequential([*layers, *([BatchNorm()] if on_logits else [])], seed=seed)


def train(model, optimizer, steps=120):
    return experiments.run(model, digits, optimizer=optimizer, steps=steps, batch_size=64)


# %% [markdown]
# ## 1. BatchNorm on the logits
#
# Yes: after 3 steps at rate 3.2 the logits' scale is 0.71 instead of 1.8, as small as that
# of all the other layers. (It cannot exceed $\gamma$, which has moved a little.)

# %%
for on_logits in (False, True):
    model = network(0, True, on_logits)
    train(model, optim.SGD(lr=10 ** 0.5), steps=3)
    logits = model.train()(x_test).numpy()
    print(f"1. BatchNorm on the logits {on_logits}: their scale after 3 steps "
          f"{logits.std():.2f}")

# %% [markdown]
# ## 2. Momentum
#
# Both limits shrink by about the same factor: with momentum 0.9 a gradient acts
# $1 / (1 - 0.9) = 10$ times in all. With BatchNorm the largest rate falls from 3.2 to 0.32,
# without it from 0.1 to 0.03.

# %%
RATES = 10 ** np.arange(-2.5, 1.1, 0.5)
for momentum in (0.0, 0.9):
    for batch_norm in (True, False):
        works = [lr for lr in RATES
                 if train(network(0, batch_norm), optim.SGD(lr=lr, momentum=momentum)
                          ).final_loss() < 0.7]
        print(f"2. momentum {momentum}, BatchNorm {batch_norm}: works from "
              f"{min(works):.2g} to {max(works):.2g}")

# %% [markdown]
# 3. @3

# %%
for batch_norm in (True, False):
    for lr in RATES[-5:]:
        run = train(network(0, batch_norm), optim.SGD(lr=lr))
        ended = run.final_loss()
        print(f"3. BatchNorm {batch_norm}, rate {lr:5.2f}: infinite "
              f"{run.diverged_at is not None}, above ln 10 {ended > np.log(10)}, never "
              f"below 0.7 {not np.nanmin(run.losses) < 0.7}")

# %% [markdown]
# 4. @4

# %%
for batch_norm in (True, False):
    for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3):
        run = train(network(0, batch_norm), optim.Adam(lr=lr))
        print(f"4. Adam, BatchNorm {batch_norm}, rate {lr}: final loss "
              f"{run.final_loss():.3f}")

# %% [markdown]
# 5. @5

# %%
for lr in (10 ** 0.5, 10.0):
    model = network(0, True)
    train(model, optim.SGD(lr=lr), steps=20)
    h, dead = x_test[:500], []
    for layer in model.train().layers:
        h = layer(h)
        if isinstance(layer, Activation):
            dead.append(np.mean((h.numpy() == 0).all(axis=0)))
    print(f"5. rate {lr:.2f}, 20 steps: share of dead units in layers 1 to 6 "
          + ", ".join(f"{share:.2f}" for share in dead))
