# %% [markdown]
# # Solutions to lesson 14: covariate shift on trial
#
# For teachers. Numbers: digits, seeds 0 and 1.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Module, Sequential, experiments
from minidl import initializers, no_grad, optim
from minidl.lessonkit import Lesson

lesson = Lesson("14_solutions")
data = lesson.load_data()
probe = data[1][0][:300]


# %%
class Noise(Module):
    """One shift and scale for each unit, or for each image and unit if each is True."""

    def __init__(self, strength, rng, each=False):
        self.strength, self.rng, self.each = strength, rng, each

    def forward(self, x):
        if not self.training or not self.strength:
            return x
        m, v = self.strength * self.rng.normal(size=(2, x.shape[1]))
        if self.each:
            shape = x.shape
            m, v = (a + abs(b) * self.rng.normal(size=shape)
                    for a, b in ((m, v), (v, m)))
        return x * (1 + v).astype(x.dtype) + m.astype(x.dtype)


# %%
def network(seed, norm_at=(), noise=0.0, std=0.1, each=False):
    layers, initializer = [], initializers.normal(std)
    for i in range(3):
        layers.append(Dense(100, kernel_initializer=initializer))
        layers += [BatchNorm()] if i in norm_at else []
        layers += [Noise(noise, np.random.default_rng([seed, i]), each),
                   Activation("sigmoid")]
    return Sequential([*layers, Dense(10, kernel_initializer=initializer)], seed=seed)


def entering(model, number):
    """The 15th, 50th, 85th percentile of what enters a sigmoid, (3, units)."""
    x, seen = probe, []
    with no_grad():
        for layer in copy.deepcopy(model).train().layers:
            if isinstance(layer, Activation):
                seen.append(x.numpy())
            x = layer(x)
    return np.percentile(seen[number], [15, 50, 85], axis=0)


# %%
def trial(name, lr=0.5, steps=200, layer=2, **settings):
    """Print and return drift, drift / spread (medians) and accuracy at the end."""
    rows = []
    for seed in lesson.seeds(2):
        model, seen = network(seed, **settings).build(784), []
        for _ in range(0, steps, 25):
            seen.append(entering(model, layer))
            run = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=25,
                                  batch_size=60, eval_steps=[25])
        low, middle, high = np.moveaxis(seen, 1, 0)
        drift = middle.std(axis=0)
        rows.append((np.median(drift), np.median(drift / (high - low).mean(axis=0)),
                     run.accuracy[0]))
    drift, relative, accuracy = np.mean(rows, axis=0)
    print(f"{name}: drift {drift:.2f}, over the spread {relative:.2f}, accuracy "
          f"{accuracy:.3f}")
    return drift, relative, accuracy


ALL = (0, 1, 2)

# %% [markdown]
# ## 1. Easy: learning rate 2
#
# At step 100 all of it survives. Plain is at 0.183, BatchNorm at 0.882, and with
# noise still at 0.812, although its drift is 1.2. Over the spread the plain network
# drifts by 8.65, the noisy one by 0.42. BatchNorm behind the last layer only has
# 0.853.

# %%
found = {}
for name, settings in {"BatchNorm": dict(norm_at=ALL), "plain": {},
                       "BatchNorm, s = 1": dict(norm_at=ALL, noise=1.0),
                       "last only": dict(norm_at=(2,))}.items():
    found[name] = trial(f"1: rate 2, step 100, {name}", 2.0, 100, **settings)
lesson.check("1: rate 2, accuracy with BatchNorm and noise - plain",
             found["BatchNorm, s = 1"][2] - found["plain"][2], at_least=0.4)
lesson.check("1: rate 2, drift over the spread, plain / BatchNorm with noise",
             found["plain"][1] / found["BatchNorm, s = 1"][1], at_least=3)

# %% [markdown]
# ## 2. Easy: behind the second layer only
#
# 0.798 at step 100, between 0.18 for "first only" and 0.88 for "last only", nearer to
# the latter. The further back it stands, the fewer plain layers can shrink the
# differences between images again.

# %%
second = trial("2: step 100, second only", steps=100, norm_at=(1,))[2]
lesson.check("2: BatchNorm behind the second layer only: accuracy at step 100", second,
             at_least=0.6)

# %% [markdown]
# ## 3. Medium: the layer in the middle
#
# No. The inputs of the second sigmoid drift by 0.17 of their spread with BatchNorm
# behind the last layer only, and by 0.18 with none. Yet the accuracy is 0.915 and
# 0.327. With BatchNorm everywhere the drift is 0.02 and the accuracy no better,
# 0.909.

# %%
found = {}
for name, at in (("none", ()), ("last only", (2,)), ("all", ALL)):
    found[name] = trial(f"3: inputs of the second sigmoid, BatchNorm behind {name}",
                        layer=1, norm_at=at)
lesson.check("3: drift over the spread, last only / none",
             found["last only"][1] / found["none"][1], at_least=0.5, claim=False)
lesson.check("3: accuracy, last only - none", found["last only"][2] - found["none"][2],
             at_least=0.3)

# %% [markdown]
# ## 4. Medium: noise for each image
#
# Much the same: 0.892 at $s = 0.5$ and 0.772 at $s = 1$ (one draw for each unit and
# step: 0.902 and 0.860), at about the same drift. Noise for each image destroys more
# of the signal, so at equal drift it costs more.

# %%
for strength in (0.5, 1.0):
    accuracy = trial(f"4: noise for each image and unit, s = {strength}", norm_at=ALL,
                     noise=strength, each=True)[2]
lesson.check("4: noise for each image, s = 1: accuracy", accuracy, at_least=0.5)

# %% [markdown]
# ## 5. Research: one without the other
#
# Steadier and hardly better is easy to find: with good weights at rate 1 BatchNorm
# takes the relative drift from 0.46 to 0.03, and the accuracy from 0.879 to 0.904.
# Helping without steadying is found too: item 3, for the second layer. A network in
# which *nothing* becomes steadier and BatchNorm still helps is harder to find,
# because BatchNorm steadies by its definition what comes right behind it.

# %%
plain = trial("5: good weights, rate 1, plain", 1.0, std=0.4)
steady = trial("5: good weights, rate 1, BatchNorm", 1.0, std=0.4, norm_at=ALL)
lesson.check("5: drift over the spread, plain / BatchNorm", plain[1] / steady[1],
             at_least=5)
lesson.check("5: accuracy gained by BatchNorm", steady[2] - plain[2], at_most=0.05,
             claim=False)
lesson.finish()
