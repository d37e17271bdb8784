# %% [markdown]
# # Solutions to lesson 7: faster convergence
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import data, experiments, initializers, optim
from minidl.lessonkit import Lesson

lesson = Lesson("07_solutions")
train, test = lesson.load_data()
scale = data.standardization(train[0])
scaled = (scale(train[0]), train[1]), (scale(test[0]), test[1])
OFTEN = [*range(10, 121, 10), *range(150, 501, 25)]


def network(seed, std, batch_norm, activation="sigmoid"):
    weights = "he_normal" if std is None else initializers.normal(std)
    layers = []
    for _ in range(3):
        layers.append(Dense(100, kernel_initializer=weights))
        layers += [BatchNorm()] if batch_norm else []
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=weights)], seed=seed)


# %%
def runs(sets, std, batch_norm, lr, activation="sigmoid", steps=300, often=OFTEN):
    """Three seeds of one network."""
    return [experiments.run(network(seed, std, batch_norm, activation), sets,
                            optimizer=optim.SGD(lr=lr), steps=steps, batch_size=60,
                            eval_steps=[step for step in often if step <= steps])
            for seed in lesson.seeds(3)]


def steps_to(runs, target):
    return np.median([run.steps_to(target) for run in runs])


# %% [markdown]
# ## 1. Easy: Other targets
#
# At a target of 0.5 the fair pair's ratio is 2.5, at 0.85 it is 2.2, at 0.9 it is 1.5.
# The higher the target, the more of the time goes into learning itself, which BatchNorm
# speeds up less than the start.

# %%
ratios = {}
fair = {"with": runs(scaled, 0.3, True, 4.0), "without": runs(scaled, 0.3, False, 2.0)}
for target in (0.5, 0.85, 0.9):
    slow, fast = (steps_to(fair[name], target) for name in ("without", "with"))
    ratios[target] = slow / fast
    print(f"1. target {target}: {fast:.0f} steps with BatchNorm, {slow:.0f} without, "
          f"ratio {slow / fast:.1f}")
lesson.check("1: ratio at 0.5 / ratio at 0.9", ratios[0.5] / ratios[0.9], at_least=1,
             claim=False)

# %% [markdown]
# ## 2. Easy: Binary images
#
# Little changes: at rate 2 both kinds of pixels need 50 steps with BatchNorm; without
# it grey pixels need 375 and binary ones 425. What counts is not the grey but the scale
# of the inputs, and that is about the same.

# %%
binary = tuple(((x > 0.5).astype(np.float32), y) for x, y in (train, test))
for name, sets in (("grey", (train, test)), ("binary", binary)):
    slow, fast = (steps_to(runs(sets, 0.1, batch_norm, 2.0, steps=500), 0.85)
                  for batch_norm in (False, True))
    print(f"2. {name} pixels, rate 2: {fast:.0f} steps with, {slow:.0f} without")
lesson.check("2: binary pixels, steps with BatchNorm", fast, at_most=100, claim=False)

# %% [markdown]
# ## 3. Medium: Weights N(0, 0.4²)
#
# 120 steps, against BatchNorm's 50: a ratio of 2.4, from one number that nobody had to
# search for. So most of the "ten times" of the first figure is the initial scale.

# %%
slow = steps_to(runs((train, test), 0.4, False, 1.0), 0.85)
print(f"3. plain, raw pixels, N(0, 0.4^2), rate 1: {slow:.0f} steps")
lesson.check("3: steps of the plain network", slow, at_most=250, claim=False)

# %% [markdown]
# ## 4. Medium: ReLU
#
# With He's weights the plain ReLU network needs 120 steps at rate 0.03 where BatchNorm
# needs 80; at 0.1 and 0.3 both need about as many as the print-out says. Little of the
# effect is left, because these weights were made for this activation.

# %%
for lr in (0.03, 0.1, 0.3):
    slow, fast = (steps_to(runs((train, test), None, batch_norm, lr, "relu"), 0.85)
                  for batch_norm in (False, True))
    print(f"4. ReLU, He's weights, rate {lr}: {fast:.0f} steps with, {slow:.0f} "
          "without")
lesson.check("4: ReLU, rate 0.3: steps with BatchNorm", fast, at_most=100, claim=False)

# %% [markdown]
# ## 5. Research: A long run
#
# 3,000 steps stand in for 50,000 here. The difference is in the print-out, with its
# standard error: by then it is a point or less. The lead is in the speed.

# %%
late = {batch_norm: runs(scaled, 0.3, batch_norm, lr, steps=3000, often=[1000, 3000])
        for batch_norm, lr in ((True, 4.0), (False, 2.0))}
for place, step in enumerate((1000, 3000)):
    with_bn, without = ([run.accuracy[place] for run in late[b]] for b in (True, False))
    print(f"5. after {step} steps {np.mean(with_bn):.3f} with, {np.mean(without):.3f} "
          f"without: {experiments.paired_difference(with_bn, without)}")
lesson.check("5: accuracy with - without BatchNorm after 3,000 steps",
             np.mean(with_bn) - np.mean(without), at_most=0.03, claim=False)
lesson.finish()
