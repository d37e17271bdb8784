# %% [markdown]
# # Solutions to lesson 8: learning-rate tolerance
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, optim
from minidl.lessonkit import Lesson

lesson = Lesson("08_solutions")
digits = lesson.load_data()
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
    return experiments.run(model, digits, optimizer=optimizer, steps=steps,
                           batch_size=64)


# %% [markdown]
# ## 1. Easy: BatchNorm on the logits
#
# Yes: after 3 steps at rate 3.2 the logits' scale is 0.71 instead of 1.8, as small as
# that of all the other layers. (It cannot exceed $\gamma$, which has moved a little.)

# %%
for on_logits in (False, True):
    model = network(lesson.seed, True, on_logits)
    train(model, optim.SGD(lr=10 ** 0.5), steps=3)
    logits = model.train()(x_test).numpy()
    scale = logits.std()
    print(f"1. BatchNorm on the logits {on_logits}: their scale after 3 steps "
          f"{scale:.2f}")
lesson.check("1: scale of the logits behind BatchNorm", scale, at_most=1.5, claim=False)

# %% [markdown]
# ## 2. Easy: Momentum
#
# Both limits shrink by about the same factor, because with momentum 0.9 a gradient acts
# 10 times in all. With BatchNorm the largest rate falls from 3.2 to 0.32, without it
# from 0.1 to 0.03 on this coarse grid.

# %%
RATES = 10 ** np.arange(-2.5, 1.1, 0.5)
largest = {}
for momentum in (0.0, 0.9):
    for batch_norm in (True, False):
        works = []
        for lr in RATES:
            optimizer = optim.SGD(lr=lr, momentum=momentum)
            if train(network(lesson.seed, batch_norm), optimizer).final_loss() < 0.7:
                works.append(lr)
        largest[momentum, batch_norm] = max(works)
        print(f"2. momentum {momentum}, BatchNorm {batch_norm}: works from "
              f"{min(works):.2g} to {max(works):.2g}")
lesson.check("2: largest rate with BatchNorm, without momentum / with it",
             largest[0.0, True] / largest[0.9, True], at_least=3, claim=False)

# %% [markdown]
# ## 3. Medium: Three definitions
#
# They do not agree. Without BatchNorm rates 0.32 and 1 are never below 0.7, yet their
# losses are neither infinite nor above ln 10; from 3.2 on all three hold. So "diverges"
# needs a definition before it can be counted.

# %%
for batch_norm in (True, False):
    for lr in RATES[-5:]:
        run = train(network(lesson.seed, batch_norm), optim.SGD(lr=lr))
        ended = run.final_loss()
        print(f"3. BatchNorm {batch_norm}, rate {lr:5.2f}: infinite "
              f"{run.diverged_at is not None}, above ln 10 {ended > np.log(10)}, never "
              f"below 0.7 {not np.nanmin(run.losses) < 0.7}")
lesson.check("3: without BatchNorm, rate 10: steps until the loss is infinite",
             np.inf if run.diverged_at is None else run.diverged_at, at_most=119,
             claim=False)

# %% [markdown]
# ## 4. Medium: Adam
#
# Without BatchNorm Adam works from 0.001 to 0.01 and is best at 0.003 (0.30); with it
# the best is also 0.003 (0.34). The best losses are equal within the noise. What is
# left is the tolerance: at 0.1 the network with BatchNorm reaches 0.61, without it 2.3.

# %%
best = {True: np.inf, False: np.inf}
for batch_norm in (True, False):
    for lr in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3):
        run = train(network(lesson.seed, batch_norm), optim.Adam(lr=lr))
        best[batch_norm] = min(best[batch_norm], run.final_loss())
        print(f"4. Adam, BatchNorm {batch_norm}, rate {lr}: final loss "
              f"{run.final_loss():.3f}")
lesson.check("4: Adam, smallest final loss without - with BatchNorm",
             best[False] - best[True], at_most=0.3, claim=False)

# %% [markdown]
# ## 5. Research: Which layer fails first?
#
# The last hidden layer, behind which there is no BatchNorm: at rate 10 98 % of its
# units are dead after 20 steps, 33 to 42 % in the others. At rate 3.2, which still
# works, it is 2 % and 0.

# %%
for lr in (10 ** 0.5, 10.0):
    model = network(lesson.seed, True)
    train(model, optim.SGD(lr=lr), steps=20)
    h, dead = x_test[:500], []
    for layer in model.train().layers:
        h = layer(h)
        if isinstance(layer, Activation):
            dead.append(np.mean((h.numpy() == 0).all(axis=0)))
    print(f"5. rate {lr:.2f}, 20 steps: share of dead units in layers 1 to 6 "
          + ", ".join(f"{share:.2f}" for share in dead))
lesson.check("5: rate 10, share of dead units in the worst layer", max(dead),
             at_least=0.1, claim=False)
lesson.finish()
