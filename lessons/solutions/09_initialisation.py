# %% [markdown]
# # Solutions to lesson 9: initialisation
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import experiments, initializers, optim, record
from minidl.lessonkit import Lesson

lesson = Lesson("09_solutions")
(x, y), _ = lesson.load_data()
images = x[:1000], y[:1000]


def network(weights, batch_norm, last=None):
    layers = []
    for _ in range(5):
        layers.append(Dense(100, kernel_initializer=weights))
        layers += [BatchNorm()] if batch_norm else []
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer=last or weights)],
                      seed=lesson.seed)


def accuracy(model, optimizer, steps=200):
    """On the 1,000 training images; a network that diverged is left guessing."""
    run = experiments.run(model, (images, images), optimizer=optimizer, steps=steps,
                          batch_size=100, eval_steps=[steps])
    return np.nan_to_num(run.accuracy[-1], nan=0.1)


# %% [markdown]
# ## 1. Easy: He's weights
#
# Both learn: 0.971 with BatchNorm, 0.866 without. He's scales are 0.05 in the first
# layer and 0.14 in the others. For BatchNorm that is the middle of its range; the plain
# network lies within a factor of three of both edges.

# %%
print(f"1. He's scales: {np.sqrt(2 / 784):.2f} in the first layer, then "
      f"{np.sqrt(2 / 100):.2f}")
both = [accuracy(network("he_normal", bn), optim.SGD(lr=0.01)) for bn in (True, False)]
for batch_norm, reached in zip((True, False), both):
    print(f"1. BatchNorm {batch_norm}: "
          f"{reached:.3f}")
lesson.check("1: the lower of both accuracies", min(both), at_least=0.6, claim=False)

# %% [markdown]
# ## 2. Easy: Equal weights
#
# With zeros neither learns (0.10). With all weights 0.01 BatchNorm reaches 0.15 and the
# plain network 0.22: all units of a layer are equal and get equal gradients, so a layer
# stays one unit. BatchNorm cannot tell them apart, either.

# %%
for value in (0.0, 0.01):
    for batch_norm in (True, False):
        model = network(initializers.constant(value), batch_norm)
        print(f"2. all weights {value}, BatchNorm {batch_norm}: "
              f"{accuracy(model, optim.SGD(lr=0.1)):.3f}")
        lesson.check("2: accuracy", accuracy(model, optim.SGD(lr=0.1), 1), at_most=0.4,
                     claim=False)

# %% [markdown]
# ## 3. Medium: The last layer at 0.1
#
# The first step relative to the weights is 1.2e-5, 0.0012 and 0.12 at the scales 1, 0.1
# and 0.01: now a factor of 100 for each 10, the full $a^2$. The missing factor of $a$
# came from the last layer.

# %%
first = []
for scale in (1.0, 0.1, 0.01):
    model = network(initializers.normal(scale), True, initializers.normal(0.1))
    with record(model) as log:
        accuracy(model, optim.SGD(lr=0.01), steps=1)
    first.append(log["dense_2.kernel", "update_ratio"][0])
    print(f"3. scale {scale}, last layer 0.1: first step / weights {first[-1]:.2g}")
lesson.check("3: scale 0.1 / scale 1", first[1] / first[0], at_least=50, claim=False)

# %% [markdown]
# ## 4. Medium: Larger rates for small weights
#
# None of the rates 1 to 100 works at scale 0.01: all leave the accuracy at 0.10. The
# gradient of the first layer contains the product of the four kernels behind it, so one
# rate cannot be right for all layers.

# %%
reached = []
for lr in (1.0, 3.0, 10.0, 30.0, 100.0):
    model = network(initializers.normal(0.01), False)
    reached.append(accuracy(model, optim.SGD(lr=lr)))
    print(f"4. without BatchNorm, scale 0.01, rate {lr:g}: {reached[-1]:.3f}")
lesson.check("4: the best of five rates", max(reached), at_most=0.3, claim=False)

# %% [markdown]
# ## 5. Research: Adam
#
# The edge at large weights is gone for both, because Adam's step does not depend on the
# size of the gradient. The one at small weights is gone with BatchNorm only: at the
# scales 1, 0.1, 0.01, 0.001 and 0.0001 the accuracies are 1.00, 1.00, 1.00, 0.99 and
# 1.00 with it, 0.98, 1.00, 0.79, 0.10 and 0.10 without.

# %%
for batch_norm in (True, False):
    found = [accuracy(network(initializers.normal(scale), batch_norm),
                      optim.Adam(lr=0.003)) for scale in (1.0, 0.1, 0.01, 0.001, 1e-4)]
    print(f"5. Adam, BatchNorm {batch_norm}, scales 1 to 0.0001: "
          + ", ".join(f"{value:.2f}" for value in found))
lesson.check("5: Adam without BatchNorm, scale 0.0001", found[-1], at_most=0.9,
             claim=False)
lesson.finish()
