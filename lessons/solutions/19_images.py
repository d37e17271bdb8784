# %% [markdown]
# # Solutions to lesson 19: images
#
# For teachers. Numbers: digits, 14 x 14, standardised; seeds 0 to 2 unless said.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import (Activation, BatchNorm, Conv2D, Dense, Flatten, MaxPool2D, Module,
                    Sequential, experiments, initializers, optim)
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("19_solutions")
(x, y), (x_test, y_test) = lesson.load_data()
small = [a.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5)) for a in (x, x_test)]
small = [(a - small[0].mean()) / small[0].std() for a in small]
sets = (small[0][:3000], y[:3000]), (small[1][:1000], y_test[:1000])


def scaled(scale):
    return lambda shape, rng: scale * initializers.he_normal(shape, rng)


def network(seed, batch_norm=True):
    """Lesson 19's small network, BatchNorm before the ReLU."""
    layers = []
    for i in range(3):
        layers.append(Conv2D(8, 3, padding="same", kernel_initializer=scaled(1.0)))
        layers += [BatchNorm()] if batch_norm else []
        layers += [Activation("relu"), *([MaxPool2D(2)] if i < 2 else [])]
    return Sequential([*layers, Flatten(), Dense(10)], seed=seed)


class Block(Module):
    def __init__(self, batch_norm, skip, scales):
        self.layers, self.skip = [], skip
        for scale in scales:
            self.layers.append(Conv2D(8, 3, padding="same", use_bias=not batch_norm,
                                      kernel_initializer=scaled(scale)))
            self.layers += [*([BatchNorm()] if batch_norm else []), Activation("relu")]
        self.layers.pop()

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return F.relu(x + y if self.skip else y)


def deep(seed, blocks=8, batch_norm=False, skip=False, scales=(1.0, 1.0)):
    first = [Conv2D(8, 3, stride=2, padding="same", kernel_initializer=scaled(1.0)),
             *([BatchNorm()] if batch_norm else []), Activation("relu")]
    blocks = [Block(batch_norm, skip, scales) for _ in range(blocks)]
    return Sequential([*first, *blocks, Flatten(), Dense(10)], seed=seed)


def accuracy(build, lr, steps, batch_size, seeds=(0, 1, 2)):
    """The test accuracy of each seed; 0 of a run that diverged."""
    runs = [experiments.run(build(seed), sets, optimizer=optim.SGD(lr=lr), steps=steps,
                            batch_size=batch_size, eval_steps=[steps])
            for seed in seeds]
    return np.array([np.nan_to_num(run.accuracy[-1]) for run in runs])


# %% [markdown]
# ## 1. Easy: How many numbers has a BatchNorm?
#
# 16 and 16, for eight channels; 3,136 and 3,136 behind a Flatten, for 1,568 numbers.

# %%
statistics = []
image = Sequential([Conv2D(8, 3, padding="same", input_shape=(1, 14, 14)), BatchNorm()])
flat = Sequential([Conv2D(8, 3, padding="same", input_shape=(1, 14, 14)), Flatten(),
                   BatchNorm()])
for name, model in (("images", image), ("flattened", flat)):
    norm = model[-1]
    statistics.append(norm.running_mean.size + norm.running_var.size)
    print(f"1: {name}: {norm.gamma.size + norm.beta.size} parameters, "
          f"{statistics[-1]} running statistics")
lesson.check("1: running statistics, flattened / images", statistics[1] / statistics[0],
             at_least=196, claim=False)

# %% [markdown]
# ## 2. Easy: Folding
#
# 13 layers become 10, and the outputs stay the same up to rounding (5e-6). In
# evaluation mode BatchNorm is a factor and a constant for each channel, and both find
# room in the kernel and the bias of the filter before it. That is how networks are made
# fast for use. The training mode is lost: a folded network should not be trained on.

# %%
model = network(0)
experiments.run(model, sets, optimizer=optim.SGD(lr=0.3), steps=100, batch_size=64)
layers, folded = list(model.eval()), []
while layers:
    layer = layers.pop(0)
    if isinstance(layer, Conv2D):
        layer = layers.pop(0).fold(layer)  # the BatchNorm behind it
    folded.append(layer)
short = Sequential(folded)
difference = np.abs(short.predict(sets[1][0]) - model.predict(sets[1][0])).max()
print(f"2: {len(model)} layers become {len(short)}; the logits differ by "
      f"{difference:.1e}")
lesson.check("2: change of the logits", difference, at_most=1e-3, claim=False)

# %% [markdown]
# ## 3. Medium: Batches of two
#
# After 400 steps with batches of two: 0.707, 0.768, 0.791 with BatchNorm at the rates
# 0.01, 0.03, 0.1; 0.648, 0.730, 0.349 without. There is no loss at all, where lesson 12
# lost some 40 points: each channel still has 392 numbers from two images (98 behind the
# first pooling, 18 behind the second). (Of 0.1 it is not known whether more were
# better.)

# %%
best = []
for batch_norm in (True, False):
    rates = {lr: accuracy(lambda seed: network(seed, batch_norm), lr, 400, 2)
             for lr in (0.01, 0.03, 0.1)}
    print(f"3: batches of 2, {'with' if batch_norm else 'without'} BatchNorm: "
          + ", ".join(f"{value.mean():.3f} at {lr}" for lr, value in rates.items()))
    best.append(max(value.mean() for value in rates.values()))
lesson.check("3: batches of 2, accuracy without - with BatchNorm", best[1] - best[0],
             at_most=0.1, claim=False)

# %% [markdown]
# ## 4. Medium: The plain deep network's initial weights
#
# Times 1.0: 0.199, 0.361, 0.174 at the rates 0.01, 0.03, 0.1. Times 1.1: 0.279, 0.348,
# 0.127. Times 1.2: 0.270, 0.181, 0.098. Guessing is 0.1. So 1.0 and 1.1 are as good as
# each other, and nothing in the neighbourhood makes this network learn well in 50
# steps.

# %%
best = []
for scale in (1.0, 1.1, 1.2):
    rates = {lr: accuracy(lambda seed: deep(seed, scales=(scale, scale)), lr, 50, 32)
             for lr in (0.01, 0.03, 0.1)}
    print(f"4: He's weights times {scale}: "
          + ", ".join(f"{value.mean():.3f} at {lr}" for lr, value in rates.items()))
    best.append(max(value.mean() for value in rates.values()))
lesson.check("4: best accuracy of the plain network", max(best), at_most=0.6,
             claim=False)

# %% [markdown]
# ## 5. Medium: Residual blocks without BatchNorm
#
# Best of three rates: 0.706 with 0.7 everywhere, 0.725 with 0.3 in the second
# convolution, 0.795 with 0. Zero is not needed; any branch that starts small will do,
# and the smaller, the larger the rate that works. With BatchNorm it is some 0.73 at
# 0.03: no better.

# %%
best = []
for scales in ((0.7, 0.7), (1.0, 0.3), (1.0, 0.0)):
    rates = {lr: accuracy(lambda seed: deep(seed, skip=True, scales=scales), lr, 50, 32)
             for lr in (0.01, 0.03, 0.1)}
    print(f"5: scales {scales}: "
          + ", ".join(f"{value.mean():.3f} at {lr}" for lr, value in rates.items()))
    best.append(max(value.mean() for value in rates.values()))
lesson.check("5: accuracy, the lowest of three small scales", min(best), at_least=0.5,
             claim=False)

# %% [markdown]
# ## 6. Research: Twice as deep
#
# Layers only, with BatchNorm: 0.146, which is next to nothing. Residual with BatchNorm:
# 0.636. Residual from zero, without: 0.817, as good as with 17 convolutions. (One
# seed.)

# %%
KINDS = {"plain + BN": (dict(batch_norm=True), (0.03, 0.1, 0.3)),
         "residual + BN": (dict(batch_norm=True, skip=True), (0.01, 0.03, 0.1)),
         "residual, zero": (dict(skip=True, scales=(1.0, 0.0)), (0.03, 0.1, 0.3))}
for kind, (options, rates) in KINDS.items():
    found = {lr: accuracy(lambda seed: deep(seed, 16, **options), lr, 50, 32, (0,))
             for lr in rates}
    print(f"6: 33 convolutions, {kind}: "
          + ", ".join(f"{value[0]:.3f} at {lr}" for lr, value in found.items()))
best = max(value[0] for value in found.values())
lesson.check("6: residual, zero, 33 convolutions: accuracy", best, at_least=0.6,
             claim=False)
lesson.finish()
