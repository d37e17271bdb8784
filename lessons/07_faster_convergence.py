# %% [markdown]
# # 7. Faster convergence: how many fewer steps, how many fewer seconds?
#
# Every text on Batch Normalization says that it makes training faster. The paper that introduced it
# (Ioffe and Szegedy 2015) shows this first on MNIST, in its figure 1a. Here we repeat that figure, and
# then we try to talk ourselves out of it.
#
# You need: what a training step is, and what a learning rate is. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, initializers, plotting
from minidl.lessonkit import Lesson, ratio

lesson = Lesson("07_faster_convergence")
data = lesson.load_data()

# %% [markdown]
# ## The network
#
# The paper's: three hidden layers of 100 sigmoid units, batches of 60 images, small Gaussian weights.
# The paper does not say *how* small, nor which learning rate it used, so we will try several of both.
#
# BatchNorm goes between the Dense layer and its sigmoid. For each unit, over the batch $B$ of $m$ images,
#
# $\mu_B = \frac{1}{m}\sum_i x_i, \quad \sigma_B^2 = \frac{1}{m}\sum_i (x_i - \mu_B)^2, \quad
# \hat x_i = \frac{x_i - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}}, \quad y_i = \gamma \hat x_i + \beta.$
#
# Both networks of a pair get the same seed. So they start from the same weights and see the same
# batches in the same order: BatchNorm is the only difference.


# %%
def network(seed, std, batch_norm):
    layers = []
    for _ in range(3):
        layers.append(Dense(100, kernel_initializer=initializers.normal(std)))
        if batch_norm:
            layers.append(BatchNorm())
        layers.append(Activation("sigmoid"))
    layers.append(Dense(10, kernel_initializer=initializers.normal(std)))
    return Sequential(layers, seed=seed)


def pair(std):
    return {"with BatchNorm": lambda seed: network(seed, std, batch_norm=True),
            "without BatchNorm": lambda seed: network(seed, std, batch_norm=False)}


BN, PLAIN = "with BatchNorm", "without BatchNorm"
TARGET = 0.85  # the test accuracy to reach
often = [*range(0, 100, 10), *range(100, 1001, 50)]  # the steps after which we measure it

# %% [markdown]
# ## Predict
#
# Weights with standard deviation 0.1, learning rate 0.5. After how many steps will each network
# classify 85 % of the test images correctly? Write down two numbers before you run the next cell.
#
# ## Run

# %%
default = experiments.compare(pair(0.1), data, lr=0.5, steps=1000, batch_size=60, seeds=lesson.seeds(3), eval_steps=often)
print("\nweights N(0, 0.1^2), learning rate 0.5, median of 3 seeds")
print(default.table(TARGET, at=(50, 100, 200, 400, 1000)))

# %% [markdown]
# In the figures the line is the median over three seeds, the band their range.

# %%
slow, fast = (np.median(default.steps_to(name, TARGET)) for name in (PLAIN, BN))
fig, ax = plotting.figure(title=f"{TARGET:.0%} right after {experiments.or_more(fast, 1000, '.0f')} steps with BatchNorm, "
                                f"{experiments.or_more(slow, 1000, '.0f')} without", size=(11, 6))
plotting.compare(default, target=TARGET, ax=ax)
lesson.show(fig, "accuracy")

# %%
early = {name: np.median(default.array(name, "losses")[:, 80:100]) for name in (BN, PLAIN)}
fig, ax = plotting.figure(size=(11, 6), title=f"After 100 steps the training loss is {early[BN]:.2f} with BatchNorm, "
                                              f"{early[PLAIN]:.2f} without")
plotting.compare(default, what="losses", ax=ax)
lesson.show(fig, "loss")

# %% [markdown]
# The plain network stays at chance for a while. Why? From layer to layer a unit's answer differs less
# between one image and another (the next cell measures it), so the output hardly depends on the image, and
# the gradient that reaches the first layer is small. BatchNorm stretches each unit's input to standard
# deviation 1 over the batch, and every layer has something to work with from the first step.

# %%
images = data[1][0][:500]
for name, build in pair(0.1).items():
    model, x, spread = build(lesson.seed).build(784).train(), images, []
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, Activation):
            spread.append(x.numpy().std(axis=0).mean())
    print(f"{name:17}: spread of a unit's answer over images before training, layers 1 to 3: "
          + ", ".join(f"{s:.3f}" for s in spread))

# %% [markdown]
# ## Is that fair?
#
# We chose the learning rate. Perhaps 0.5 suits BatchNorm and not the plain network. So let the plain
# network choose: we try five rates and keep the one with which it reaches the target first (or, if it never
# does, the one that gets furthest). BatchNorm gets no search of its own; it must take the plain network's rate.
#
# Predict: how much of the lead will be left?


# %%
def best_rate_without(std):
    rates = [0.5, 1.0, 2.0, 4.0, 8.0]
    plain = {PLAIN: pair(std)[PLAIN]}
    print(f"\nweights N(0, {std}^2), the plain network alone")
    tried = []
    for lr in rates:
        result = experiments.compare(plain, data, lr=lr, steps=500, batch_size=60, seeds=lesson.seeds(1),
                                     eval_steps=range(0, 501, 50))
        steps, best = result.steps_to(PLAIN, TARGET)[0], np.nanmax(result.array(PLAIN, "accuracy"))
        print(f"learning rate {lr:3.1f}: steps to {TARGET:.0%} {experiments.or_more(steps, 500, '.0f'):>6}, best {best:.3f}")
        tried.append((steps, -best, lr))
    return min(tried)[2]


best_rate = best_rate_without(0.1)
tuned = experiments.compare(pair(0.1), data, lr=best_rate, steps=700, batch_size=60,
                            seeds=lesson.seeds(3), eval_steps=[s for s in often if s <= 700])
print(f"\nweights N(0, 0.1^2), the plain network's best learning rate {best_rate}, median of 3 seeds")
print(tuned.table(TARGET, at=(50, 100, 200, 400, 700)))

# %% [markdown]
# ## Steps are not seconds
#
# BatchNorm costs time in every step: the column "ms per step" says how much. So we look at the
# same runs with seconds on the axis, on the left at the rate we chose, on the right at the plain network's best.

# %%
total = {name: default.array(name, "seconds")[:, -1].max() for name in (PLAIN, BN)}
slow, fast = (experiments.or_more(np.median(default.seconds_to(name, TARGET)), total[name], ".2f") for name in (PLAIN, BN))
fig, axes = plotting.figure(1, 2, sharey=True, title=f"{TARGET:.0%} right after {fast} s of training with BatchNorm, "
                                                     f"{slow} s without")
for ax, result, lr in zip(axes, (default, tuned), (0.5, best_rate)):
    plotting.compare(result, against="seconds", target=TARGET, ax=ax)
    ax.set_title(f"learning rate {lr:g}" + (", the plain net's best" if result is tuned else ", as in the title"))
axes[1].set_ylabel("")
lesson.show(fig, "seconds")

# %% [markdown]
# ## Smaller weights
#
# Now weights ten times smaller, N(0, 0.01^2), again at the default rate and at the plain network's best one.
# Predict: which of the two networks will notice?

# %%
best_rate_small = best_rate_without(0.01)
small = {lr: experiments.compare(pair(0.01), data, lr=lr, steps=300, batch_size=60, seeds=lesson.seeds(2),
                                 eval_steps=range(0, 301, 25)) for lr in sorted({0.5, best_rate_small})}
for lr, result in small.items():
    print(f"\nweights N(0, 0.01^2), learning rate {lr}, median of 2 seeds")
    print(result.table(TARGET, at=(50, 100, 200, 300)))

# %%
reached = {name: np.median(small[best_rate_small].accuracy_at(name, 300)) for name in (BN, PLAIN)}
fig, axes = plotting.figure(1, len(small), sharey=True, squeeze=False, size=(13, 5.5), title="Weights ten times smaller: after "
                            f"300 steps {reached[BN]:.0%} with BatchNorm, {reached[PLAIN]:.0%} without")
for ax, (lr, result) in zip(axes[0], small.items()):
    plotting.compare(result, target=TARGET, ax=ax)
    ax.set_title(f"learning rate {lr:g}" + (" (the plain net's best)" if lr == best_rate_small else ""))
    ax.set_ylabel("test accuracy" if ax is axes[0][0] else "")
lesson.show(fig, "small_weights")

# %% [markdown]
# ## Explain
#
# BatchNorm makes each layer's input independent of how small the weights before it are: multiply a
# Dense kernel by any number, and (but for $\epsilon$) the normalised output is the same. The plain network has to grow its
# weights first, and while it does, the curves are flat.
#
# What we may *not* conclude is that the network with BatchNorm ends up better. The lines marked "reported" give
# the lead early and late. They are no CHECKs, because given enough steps the plain network catches up:
# the lead is in the speed.

# %%
print()
steps_ratio, text = ratio(default.steps_to(PLAIN, TARGET), default.steps_to(BN, TARGET), limit=1000)
lesson.check("steps without / with BatchNorm at learning rate 0.5", steps_ratio, text=text, at_least=3)

gap = np.median(default.accuracy_at(BN, 100) - default.accuracy_at(PLAIN, 100))
lesson.check("accuracy with - without BatchNorm at step 100", gap, at_least=0.4)

steps_ratio, text = ratio(tuned.steps_to(PLAIN, TARGET), tuned.steps_to(BN, TARGET), limit=700)
lesson.check(f"steps without / with BatchNorm at the plain network's best rate {best_rate}", steps_ratio, text=text, at_least=2)

result = small[best_rate_small]
gap = np.median(result.accuracy_at(BN, 200) - result.accuracy_at(PLAIN, 200))
lesson.check(f"weights 0.01: accuracy with - without BatchNorm at step 200, rate {best_rate_small}", gap, at_least=0.2)

for label, result in (("0.5", default), (f"{best_rate}, the plain network's best", tuned)):
    last = result.runs[BN][0].eval_steps[-1]
    early, final = (np.median(result.accuracy_at(BN, step) - result.accuracy_at(PLAIN, step)) for step in (100, last))
    print(f"reported, learning rate {label}: BatchNorm's lead in accuracy is {early:+.3f} at step 100, "
          f"{final:+.3f} at step {last}")
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: move the target to 0.5 and to 0.9. How does the ratio of steps change, and why?
# 2. Easy: the paper used binary images. Replace each pixel by `pixel > 0.5` and run again.
# 3. Medium: search the best rate for BatchNorm too. Is the comparison above still too kind to the plain network?
# 4. Medium: replace the sigmoid by ReLU and the weights by `"he_normal"`. How much of the effect is left?
# 5. Research: run 50,000 steps overnight, as the paper did. Who is ahead at the end, and by more than the band?
#
# While `python -m minidl race` runs: [the paper's network](http://127.0.0.1:8107/#preset=7),
# [the plain network's best rate](http://127.0.0.1:8107/#preset=7b).
#
# Sources: S. Ioffe and C. Szegedy, Batch Normalization: Accelerating Deep Network Training by Reducing
# Internal Covariate Shift, 2015, section 4.1 and figure 1a.
