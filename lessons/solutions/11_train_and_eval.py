# %% [markdown]
# # Solutions to lesson 11: train and eval
#
# For teachers. The numbers are those of the digits, seed 0.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import estimate_population_statistics, experiments, optim
from minidl.lessonkit import Lesson

lesson = Lesson("11_solutions")
digits = lesson.load_data()
(x_train, y_train), (x_test, y_test) = digits


def trained(momentum, steps, batch_size=64):
    layers = []
    for _ in range(2):
        layers += [Dense(64, kernel_initializer="he_normal"),
                   BatchNorm(momentum=momentum), Activation("relu")]
    model = Sequential([*layers, Dense(10, kernel_initializer="he_normal")],
                       seed=lesson.seed)
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
# ## 1. Easy: Momentum 1
#
# The statistics of one batch cost about half a point: 0.867, 0.932 and 0.948 after 20,
# 100 and 300 steps, against 0.875, 0.928 and 0.954 with population statistics. There is
# no delay, only noise.

# %%
for steps in (20, 100, 300):
    model = trained(1.0, steps)
    print(f"1. momentum 1, step {steps}: {accuracy(model):.3f}; population statistics "
          f"{accuracy(precise(model)):.3f}")
lesson.check("1: what momentum 1 costs after 300 steps",
             accuracy(precise(model)) - accuracy(model), at_most=0.05, claim=False)

# %% [markdown]
# ## 2. Easy: Shifted test images
#
# Adding 0.3 takes the accuracy from 0.954 to 0.625. With statistics estimated from the
# shifted test images themselves it is 0.955 again, because a shift of all images is
# just what a mean removes. This is allowed where the test images are many, come from
# one source, and may be used together before the first prediction is due.

# %%
model = trained(0.1, 300)
shifted = x_test + np.float32(0.3)
print(f"2. test images + 0.3: {accuracy(model, shifted):.3f} with training statistics, "
      f"{accuracy(precise(model, shifted), shifted):.3f} with their own; unshifted "
      f"{accuracy(model):.3f}")
lesson.check("2: their own statistics - training statistics",
             accuracy(precise(model, shifted), shifted) - accuracy(model, shifted),
             at_least=0.1, claim=False)

# %% [markdown]
# ## 3. Medium: Bias correction
#
# Dividing by $1 - (1 - a)^k$ takes momentum 0.001 from 0.765 to 0.899 after 50 steps
# (population statistics: 0.911). What is left is not bias: the average still contains
# means of weights that have changed since.

# %%
a = 0.001
for steps in (50, 300):
    model = trained(a, steps)
    before, true = accuracy(model), accuracy(precise(model))
    for layer in model.layers:
        if isinstance(layer, BatchNorm):
            start = (1 - a) ** steps  # the weight of the starting values 0 and 1
            layer.running_mean = layer.running_mean / (1 - start)
            layer.running_var = (layer.running_var - start) / (1 - start)
    print(f"3. momentum 0.001, step {steps}: {before:.3f}, corrected "
          f"{accuracy(model):.3f}, population statistics {true:.3f}")
    lesson.check("3: population statistics - corrected", true - accuracy(model),
                 at_most=0.05, claim=False)

# %% [markdown]
# ## 4. Medium: Folding
#
# The logits differ by 6e-6 of 15, which is rounding in float32. It works only for fixed
# statistics: in training mode mean and variance depend on the batch, so no fixed kernel
# can replace them.

# %%
model = trained(0.1, 300)
outputs, layers = model.predict(x_test), model.layers
folded = Sequential([layers[1].fold(layers[0]), layers[2], layers[4].fold(layers[3]),
                     layers[5], layers[6]])
difference = np.abs(folded.predict(x_test) - outputs).max()
print(f"4. largest difference of the logits {difference:.1e}, of "
      f"{np.abs(outputs).max():.0f}")
lesson.check("4: difference", difference, at_most=1e-3, claim=False)

# %% [markdown]
# ## 5. Research: One epoch of large batches
#
# One epoch is only 19 steps. Momentum 0.3 to 0.9 is as good as population statistics
# (0.90); with 0.1 it is nearly there; with 0.01, Keras' 0.99, it is 0.79, because 83 %
# of the starting values are left.

# %%
epoch = len(x_train) // 512
for momentum in (0.9, 0.5, 0.3, 0.1, 0.01):
    model = trained(momentum, epoch, batch_size=512)
    print(f"5. one epoch of batches of 512 ({epoch} steps), momentum {momentum}: "
          f"{accuracy(model):.3f}; population statistics "
          f"{accuracy(precise(model)):.3f}")
lesson.check("5: momentum 0.01, what it costs", accuracy(precise(model))
             - accuracy(model), at_least=0.02, claim=False)
lesson.finish()
