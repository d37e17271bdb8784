# %% [markdown]
# # Solutions to lesson 13: before or after the activation
#
# For teachers. Numbers: digits, seeds 0 to 2.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, no_grad
from minidl import optim, record
from minidl.lessonkit import Lesson

lesson = Lesson("13_solutions")
data = lesson.load_data()
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
def accuracy(place, steps=400, lr=0.3, **settings):
    return np.mean([experiments.run(network(seed, place, **settings), data,
                                    optimizer=optim.SGD(lr=lr), steps=steps,
                                    batch_size=64, eval_steps=[steps]).accuracy[0]
                    for seed in lesson.seeds(3)])


# %% [markdown]
# ## 1. Easy: both places
#
# No. Both places have 0.956 with ReLU, between before and after (0.959, 0.955), and
# 0.924 with the sigmoid, as before alone (0.925). The second one still has to remove
# the mean that the activation makes, and to undo the scale of the first one's
# $\gamma$ and $\beta$.

# %%
for activation in ("relu", "sigmoid"):
    reached = {place: accuracy(place, activation=activation)
               for place in (BEFORE, AFTER, BOTH)}
    print(f"1: {activation}, step 400: "
          + ", ".join(f"{place} {value:.3f}" for place, value in reached.items()))
    lesson.check(f"1: {activation}: accuracy in both places - in the better one",
                 reached[BOTH] - max(reached[BEFORE], reached[AFTER]), at_most=0.01,
                 claim=False)

# %% [markdown]
# ## 2. Easy: BatchNorm on the pixels
#
# A pixel that is always 0 has mean 0 and variance 0, so its $\hat x$ is
# $0 / \sqrt\epsilon = 0$ and nothing happens. Pixels that are *nearly* always 0 are
# the trouble, because a rare small value becomes a large one. The accuracy at step
# 100 is 0.927, against 0.935 without.

# %%
always_zero = np.sum(np.ptp(data[0][0], axis=0) == 0)
plain, first = (accuracy(BEFORE, 100, first=first) for first in (False, True))
print(f"2: {always_zero} pixels are always 0; step 100: {first:.3f} with BatchNorm on "
      f"the pixels, {plain:.3f} without")
lesson.check("2: step 100: accuracy gained by BatchNorm on the pixels", first - plain,
             at_most=0.01, claim=False)

# %% [markdown]
# ## 3. Medium: without biases
#
# "Before" does not notice: the losses are equal to 2e-7, which is rounding, because
# BatchNorm subtracts the bias again. "After" notices, if only a little: 2e-3.

# %%
apart = {}
for place in (BEFORE, AFTER):
    losses = [experiments.run(network(lesson.seed, place, "sigmoid", use_bias), data,
                              steps=100, optimizer=optim.SGD(lr=0.3),
                              batch_size=64).losses for use_bias in (True, False)]
    apart[place] = np.abs(losses[0] - losses[1]).max()
    print(f"3: sigmoid, {place}: with and without biases the losses differ by at most "
          f"{apart[place]:.0e}")
lesson.check("3: before: losses with and without biases", apart[BEFORE], at_most=1e-5)
lesson.check("3: after: losses with and without biases", apart[AFTER], at_least=1e-4,
             claim=False)

# %% [markdown]
# ## 4. Medium: Leaky ReLU and tanh
#
# With leaky ReLU there is nothing between them (0.957 and 0.956). With tanh after is
# ahead by half a point (0.951 and 0.946), a third of the sigmoid's lead. A tanh's
# output already has a mean near 0, so less is left to mend, as one would expect.

# %%
for activation in ("leaky_relu", "tanh"):
    before, after = (accuracy(place, activation=activation)
                     for place in (BEFORE, AFTER))
    print(f"4: {activation}, step 400: {before:.3f} before, {after:.3f} after")

# %% [markdown]
# ## 5. Medium: which layer fails first?
#
# The output layer runs away: its kernel has the norm 4 at first and 1e14 after 60
# steps, the third kernel 8e7. The first two keep their size once they have grown to
# 5e4, because BatchNorm makes their gradients small (lesson 16). Nothing normalises
# the output layer. A likely reason why it fails here and not with "before": after
# BatchNorm its inputs have the standard deviation 1, five times that of a sigmoid's
# outputs (0.2).

# %%
model = network(lesson.seed, AFTER, "sigmoid")
with record(model, every=1) as log:
    run = experiments.run(model, data, optimizer=optim.SGD(lr=3.0), steps=60,
                          batch_size=64)
print(f"5: the loss is no longer finite at step {run.diverged_at}; norm of the kernels")
for name in ("dense.kernel", "dense_1.kernel", "dense_2.kernel", "dense_3.kernel"):
    print(f"   {name:14}: "
          + ", ".join(f"{log[name, 'norm'][step]:.1e}" for step in (0, 5, 10, 20, -1)))
lesson.check("5: norm of the output kernel / of the first, at the end",
             log["dense_3.kernel", "norm"][-1] / log["dense.kernel", "norm"][-1],
             at_least=1e3)

# %% [markdown]
# ## 6. Research: skewness in the course of training
#
# The sums $Wu + b$ are far more symmetric than the activations: a median skewness of
# 0.16 to 0.25 at first and 0.27 to 0.37 later, against 1.1 to 2.1 behind the ReLU. So
# the argument's premise is right. Whether it matters is another question: after and
# before hardly differ for ReLU.

# %%
def skewness(x):
    x = x - x.mean(axis=0)
    variance = (x ** 2).mean(axis=0) + 1e-12
    return np.median(np.abs((x ** 3).mean(axis=0)) / variance ** 1.5)


model, done = network(lesson.seed, None), 0
for step in (0, 100, 400):
    if step:
        experiments.run(model, data, optimizer=optim.SGD(lr=0.1), steps=step - done,
                        batch_size=64)
    done, x, rows = step, data[1][0], []
    with no_grad():
        for layer in model.build(784).layers[:-1]:
            x = layer(x)
            rows.append(skewness(x.numpy()))
    print(f"6: step {step}: median |skewness| of Dense and ReLU in turn: "
          + ", ".join(f"{value:.2f}" for value in rows))
lesson.check("6: step 400: median |skewness|, most of a Dense layer / least of a ReLU",
             max(rows[::2]) / min(rows[1::2]), at_most=0.7, claim=False)
lesson.finish()
