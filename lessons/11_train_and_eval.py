# %% [markdown]
# # 11. Train and eval: which statistics, when?
#
# "Why is my validation accuracy bad although training is fine?" Users of PyTorch and
# Keras have asked this again and again (for example in PyTorch's issues 4741 and 5406).
# The answer: in training BatchNorm takes mean and variance from the batch, in
# evaluation it takes them from somewhere else. Text 003 names two places: moving
# averages on one slide, the expectation over the whole training set on another, as if
# they were the same. Are they?
#
# You need: lesson 4, what BatchNorm computes. Running time: 5 to 10 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import copy

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import data, estimate_population_statistics, optim, plotting
from minidl import functional as F
from minidl.inside import explain_batchnorm
from minidl.lessonkit import Lesson, written

lesson = Lesson("11_train_and_eval")
(x_train, y_train), (x_test, y_test) = lesson.load_data()

# %% [markdown]
# ## Two answers to one question
#
# **Moving average.** After each batch, with a number $a$ called momentum,
#
# $\tilde\mu_{\text{new}} = (1 - a) \tilde\mu + a \mu_B, \quad
# \tilde\sigma^2_{\text{new}} = (1 - a) \tilde\sigma^2 + a \sigma_B^2,$
#
# starting from $\tilde\mu = 0$, $\tilde\sigma^2 = 1$. PyTorch and minidl have $a = 0.1$
# (and put $\frac{m}{m-1}$ before $\sigma_B^2$). Keras writes 0.99 for the weight of the
# old value, so its $a$ is 0.01.
#
# **Population statistics.** After training, the mean over many batches of the training
# set with the weights fixed (algorithm 2 of Ioffe and Szegedy): $\mu = E[\mu_B]$,
# $\sigma^2 = \frac{m}{m-1} E[\sigma_B^2]$. `estimate_population_statistics` does this;
# we let it work on a copy, so that training goes on undisturbed.


# %%
def network(seed, momentum):
    layers = []
    for _ in range(2):
        layers += [Dense(64, kernel_initializer="he_normal"),
                   BatchNorm(momentum=momentum), Activation("relu")]
    output = Dense(10, kernel_initializer="he_normal")
    return Sequential([*layers, output], seed=seed).build(784)


def train(model, steps):
    """Train; after each step yield the steps done and the accuracy on that batch."""
    optimizer, done = optim.SGD(model.parameters(), lr=0.3), 0
    while True:
        for xb, yb in data.batches(x_train, y_train, 64, model.shuffle_rng):
            logits = model.train()(xb)
            loss = F.cross_entropy(logits, yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            yield done, (logits.numpy().argmax(axis=1) == yb).mean()
            if done == steps:
                return


# %%
def test_accuracy(model):
    """In evaluation mode, like all of predict and evaluate."""
    return (model.predict(x_test).argmax(axis=1) == y_test).mean()


def precise(model, images=x_train[:2048]):
    """A copy of the model with population statistics, from batches of 64 images."""
    twin = copy.deepcopy(model)
    estimate_population_statistics(twin, images, batch_size=64)
    return twin


# %% [markdown]
# ## Predict
#
# We train for 50 steps with momentum 0.001. How large is the difference between the
# accuracy on the last training batches, in training mode, and on the test set, in
# evaluation mode?
#
# ## Run

# %%
model = network(lesson.seed, momentum=0.001)
on_batches = [accuracy for _, accuracy in train(model, 50)]
print(f"last 10 training batches, training mode  : {np.mean(on_batches[-10:]):.3f}")
print(f"test set, evaluation mode                : {test_accuracy(model):.3f}")
print("test set, the same with other statistics : "
      f"{test_accuracy(precise(model)):.3f}\n")
explain_batchnorm(model)

# %% [markdown]
# The same weights, three numbers. The network has learned; only its moving averages
# have not arrived. After $k$ updates the starting values 0 and 1 still have the weight
# $(1 - a)^k$: that is the column "start". "mean gap" says how far the running mean is
# from the mean of the latest batch, in standard deviations; "std ratio" compares the
# standard deviations.
#
# ## How long does it take to arrive?
#
# Momentum 0.1, 0.01 and 0.001, five seeds, test accuracy after every few steps, and
# beside it the same weights with population statistics. Predict: after how many steps
# will each catch up?

# %%
MOMENTA = (0.1, 0.01, 0.001)
often = [5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300]


def follow(seed, momentum):
    """Train for 300 steps: the model, and what was measured after the steps `often`."""
    model = network(seed, momentum)
    run = {"model": model, "moving": [], "population": [], "running mean": [],
           "population mean": []}
    for step, _ in train(model, 300):
        if step in often:
            twin = precise(model)
            run["moving"].append(test_accuracy(model))
            run["population"].append(test_accuracy(twin))
            # of the first BatchNorm, one number per unit
            run["running mean"].append(model.layers[1].running_mean)
            run["population mean"].append(twin.layers[1].running_mean)
    return run


# %%
runs = {a: [follow(seed, a) for seed in lesson.seeds(5)] for a in MOMENTA}
different = max(np.abs(p.data - q.data).max() for other in MOMENTA[1:]
                for run, run2 in zip(runs[0.1], runs[other])
                for p, q in zip(run["model"].parameters(), run2["model"].parameters()))
print("largest difference between the weights trained with the three momenta: "
      f"{different}")

# %% [markdown]
# The momentum changes nothing in training, not by one bit, because training does not
# use the moving averages. Therefore the three networks share one curve with population
# statistics. In the figure the line is the median over five seeds, the band their
# range.

# %%
# (seeds, steps)
moving = {a: np.array([run["moving"] for run in runs[a]]) for a in MOMENTA}
population = np.array([run["population"] for run in runs[0.1]])
at = {step: place for place, step in enumerate(often)}
curves = {"population statistics": population,
          **{f"momentum {a}": moving[a] for a in MOMENTA}}

fig, ax = plotting.figure(size=(12, 6.5), title="After 50 steps: "
                          f"{np.median(population[:, at[50]]):.0%} with population "
                          f"statistics, {np.median(moving[0.001][:, at[50]]):.0%} "
                          "with momentum 0.001")
print("test accuracy after step" + "".join(f"{step:7}" for step in (20, 50, 100, 300)))
for i, (name, values) in enumerate(curves.items()):
    print(f"{name:24}" + "".join(f"{np.median(values[:, at[step]]):7.3f}"
                                 for step in (20, 50, 100, 300)))
    plotting.band(often, values, name, i, ax)
ax.set(xlabel="training step (logarithmic)", ylabel="test accuracy, evaluation mode",
       xscale="log", ylim=(0.3, 1))
plotting.plain_ticks(ax.xaxis)
plotting.legend(ax)
lesson.show(fig, "momentum")

# %% [markdown]
# The two answers of text 003 agree when the momentum is large enough for the number of
# steps, as with 0.1 after 100 steps. They differ early, and for a long time if the
# momentum is small. One running mean shows why: we take the unit of the first BatchNorm
# whose population mean is farthest from 0.

# %%
unit = np.abs(runs[0.1][0]["population mean"][-1]).argmax()
path = {a: np.array(runs[a][0]["running mean"])[:, unit] for a in MOMENTA}
goal = np.array(runs[0.1][0]["population mean"])[:, unit]
fig, ax = plotting.figure(size=(12, 6.5), title="After 300 steps this mean is "
                                                f"{written(goal[-1])}; momentum 0.001 "
                                                "has come to "
                                                f"{written(path[0.001][-1])}")
means = {"population mean": goal, **{f"momentum {a}": path[a] for a in MOMENTA}}
for i, (name, values) in enumerate(means.items()):
    color, line = plotting.LOOKS[i]
    ax.plot([0, *often] if i else often, [0, *values] if i else values, color=color,
            linestyle=line, linewidth=3, label=name)
ax.set(xlabel="training step", ylabel="mean of one unit's input")
plotting.legend(ax)
lesson.show(fig, "running_mean")
print("weight of the starting value after 300 steps: "
      + ", ".join(f"{(1 - a) ** 300:.0%} (momentum {a})" for a in MOMENTA))

# %% [markdown]
# A small momentum arrives late. A large one is noisy, because it remembers only about
# the last $1/a$ batches. And all of them average over weights that were still changing.
# Population statistics have none of these faults, but cost a pass over data.
#
# ## How many images does the population need?
#
# "The whole training set", says text 003. Predict: how many images would do? We take
# the networks after 300 steps and random parts of the training set.

# %%
sizes = [n for n in 2 ** np.arange(1, 14) if n < len(x_train)] + [len(x_train)]
rng = np.random.default_rng(lesson.seed)


def accuracy_with(model, n):
    """With population statistics from n random training images."""
    return test_accuracy(precise(model, x_train[rng.permutation(len(x_train))[:n]]))


by_size = np.array([[accuracy_with(run["model"], n) for n in sizes]
                    for run in runs[0.1]])
for n, values in zip(sizes, by_size.T):
    print(f"{n:5} images: test accuracy {np.median(values):.3f}, from "
          f"{values.min():.3f} to {values.max():.3f}")
reached, lost = ({n: np.median(a[:, sizes.index(n)]) for n in (2, 256)}
                 for a in (by_size, by_size[:, -1:] - by_size))
fig, ax = plotting.figure(size=(12, 6.5), title="With statistics from 256 images "
                                                f"{reached[256]:.0%} are right, from "
                                                f"2 images {reached[2]:.0%}")
plotting.band(sizes, by_size, "population statistics", 0, ax)
ax.set(xlabel="number of training images", ylabel="test accuracy", xscale="log",
       ylim=(0, 1))
lesson.show(fig, "samples")

# %% [markdown]
# For this network a few hundred images are enough: the mean of 256 numbers is known to
# a sixteenth of their standard deviation.
#
# ## What the two modes do
#
# `model.train()` and `model.eval()` switch; `fit` trains in training mode, `evaluate`
# and `predict` use evaluation mode. Predict for each mode: does a forward pass change
# the running averages? Does an image's output depend on the other images in its batch?
# Can one image come alone?

# %%
moved, companions = {}, {}
for mode in ("evaluation", "training"):
    model = copy.deepcopy(runs[0.1][0]["model"]).train(mode == "training")
    before = model.layers[1].running_mean
    one, other = (model(np.concatenate([x_test[:1], rest])).numpy()[0]
                  for rest in (x_test[1:64], x_test[64:127]))
    moved[mode] = np.abs(model.layers[1].running_mean - before).max()
    companions[mode] = np.abs(one - other).max()
    print(f"{mode} mode: a running mean moves by up to {moved[mode]:.3g}; with 63 "
          "other images in its batch an image's logits change by up to "
          f"{companions[mode]:.3g}")
    try:
        model(x_test[:1])
        print("    one image alone: works")
    except ValueError as error:
        print(f"    one image alone: {error}")

# %% [markdown]
# So whoever forgets `model.eval()` before a test makes two mistakes: each prediction
# depends on which images share its batch, and the test images leak into the running
# averages. With large shuffled batches this is hard to notice. Predict the accuracy in
# training mode on (a) shuffled batches of 64 test images, (b) the test set sorted by
# class, (c) batches of two.


# %%
def in_training_mode(model, order, size):
    """The accuracy when the test images come in batches of a size, in training mode."""
    twin = copy.deepcopy(model).train()
    right = [twin(xb).numpy().argmax(axis=1) == yb
             for xb, yb in data.batches(x_test[order], y_test[order], size)]
    return np.concatenate(right).mean()


by_class, mixed = np.argsort(y_test, kind="stable"), rng.permutation(len(y_test))
ways = {"evaluation mode": lambda model: test_accuracy(model),
        "training mode, shuffled": lambda model: in_training_mode(model, mixed, 64),
        "training mode, sorted": lambda model: in_training_mode(model, by_class, 64),
        "training mode, pairs": lambda model: in_training_mode(model, mixed, 2)}
found = {name: np.array([way(run["model"]) for run in runs[0.1]])
         for name, way in ways.items()}
evaluation, shuffled, in_order, pairs = found.values()

# %%
fig, ax = plotting.figure(size=(12, 6.5), title=f"{np.median(evaluation):.0%} right in "
                                                "evaluation mode, "
                                                f"{np.median(in_order):.0%} in "
                                                "training mode on sorted batches")
for i, (name, values) in enumerate(found.items()):
    ax.bar(i, np.median(values), color=plotting.LOOKS[min(i, 1)][0], alpha=0.35,
           width=0.6)
    ax.plot([i] * len(values), values, "o", color=plotting.LOOKS[min(i, 1)][0],
            markersize=9)
    ax.annotate(f"{np.median(values):.3f}", (i, values.max() + 0.03), ha="center",
                fontsize=15)
    print(f"{name:23}: {np.median(values):.3f}, from {values.min():.3f} to "
          f"{values.max():.3f}")
ax.set(ylabel="test accuracy, a dot for each seed", ylim=(0, 1.08), xticks=range(4),
       xticklabels=[name.replace(", ", ",\n") for name in found])
lesson.show(fig, "modes")

# %% [markdown]
# ## Explain
#
# In a batch of one class, what is typical of the class is in the batch mean $\mu_B$,
# and BatchNorm subtracts it. In a batch of two, $\hat x_i$ is almost $+1$ for one image
# and $-1$ for the other in every unit, therefore all that is left is which of the two
# is larger.
#
# So, when validation is bad and training is fine, ask in this order:
#
# 1. Was the model in evaluation mode? In PyTorch `model.eval()` sets it and
#    `model.train()` ends it; `torch.no_grad()` does *not* set it. In Keras `fit` calls
#    its layers with `training=True`, `evaluate` and `predict` with `training=False`; in
#    a loop of your own you pass it yourself.
# 2. Have the averages arrived? After $k$ steps the starting value has the weight
#    $(1-a)^k$: with Keras' 0.99 that is 37 % after 100 steps. Take Keras'
#    `momentum=0.9`, PyTorch's `momentum=0.1`, or train longer. In Keras' issue 10666
#    the validation loss jumped by 50 % from epoch to epoch; 0.9 for 0.99 cured it.
# 3. If in doubt, compute population statistics: `estimate_population_statistics` here,
#    `torch.optim.swa_utils.update_bn` in PyTorch. If this helps, the averages were to
#    blame. If not, it is ordinary overfitting, or the test images come from elsewhere
#    than the training images.

# %%
print()
gap = {(step, a): np.median(population[:, at[step]] - moving[a][:, at[step]])
       for step in (20, 50, 300) for a in MOMENTA}
lesson.check("weights trained with three momenta, largest difference", different,
             at_most=0, claim=False)
lesson.check("step 50: population statistics - momentum 0.001, accuracy",
             gap[50, 0.001], at_least=0.04)
lesson.check("step 20: population statistics - momentum 0.01 (Keras' 0.99), accuracy",
             gap[20, 0.01], at_least=0.05)
lesson.check("step 300: size of population statistics - momentum 0.1",
             abs(gap[300, 0.1]), at_most=0.02, claim=False)
lesson.check("statistics of all training images - of 2 images, accuracy", lost[2],
             at_least=0.3)

# %%
lesson.check("size of statistics of all training images - of 256 images",
             abs(lost[256]), at_most=0.02, claim=False)
lesson.check("running mean moved by a forward in evaluation mode", moved["evaluation"],
             at_most=0, claim=False)
lesson.check("running mean moved by a forward in training mode", moved["training"],
             at_least=0.01)
lesson.check("logits changed by other images in the batch, evaluation mode",
             companions["evaluation"], at_most=1e-5, claim=False)
lesson.check("logits changed by other images in the batch, training mode",
             companions["training"], at_least=0.1)
lesson.check("accuracy in evaluation mode - in training mode on sorted batches",
             np.median(evaluation - in_order), at_least=0.4)
lesson.check("accuracy in evaluation mode - in training mode on pairs",
             np.median(evaluation - pairs), at_least=0.25)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. After a short training the training accuracy is 0.9 and `evaluate` returns 0.3.
# What do you check first?**
#
# - A: Whether the learning rate was too large.
# - B: Whether the moving averages have arrived, given the momentum and the number of
#   steps.
# - C: Whether $\gamma$ and $\beta$ were recorded in the forward pass.
# - D: Whether the test images were normalised with their own mean.
#
# **2. Text 003 takes the statistics for prediction from moving averages on one slide
# and from the whole training set on another. When do the two agree?**
#
# - A: Always: they are two names for one thing.
# - B: Never, because the moving averages are biased.
# - C: When the momentum is large enough for the number of steps, and the weights hardly
#   change any more.
# - D: When the batch is the whole training set.
#
# <details><summary>Answers</summary>
#
# 1 B. The averages start at 0 and 1, and after k steps these still have the weight (1 -
# a)^k. A would show in the training accuracy as well. C repeats text 003's words; gamma
# and beta act in every forward pass. D would not explain a sudden gap, and evaluate
# does not do it.
#
# 2 C. The moving averages must have forgotten their start, and the weights must have
# settled. A is how text 003 uses them. B: after enough steps there is no bias left. D
# would make the batch statistics exact, but the averages would still be late.
#
# </details>
#
# ## Try
#
# 1. Easy: momentum 1 keeps the statistics of the last batch alone. Add 1.0 to
#    `MOMENTA`. What does it cost, early and late?
# 2. Easy: add 0.3 to every test image. What does the accuracy become in evaluation
#    mode? And with statistics estimated from the shifted test images themselves? When
#    would that be allowed?
# 3. Medium: like Adam, divide the running mean by $1 - (1 - a)^k$, and treat the
#    variance likewise, minus its starting value. Does momentum 0.001 work now?
# 4. Medium: a trained BatchNorm is an affine map. Fold it into the Dense layer before
#    it with `layer.fold(dense)` and compare the outputs. For which statistics does this
#    work?
# 5. Research: Wu and Johnson compare the two kinds of statistics for a large network
#    and batches of 8,192. Repeat the first figure with batches of 512 and the same
#    number of images. Which momentum suits someone who trains for one epoch?
#
# While `python -m minidl race` runs:
# [momentum 0.001, live](http://127.0.0.1:8107/#preset=11).
#
# Now write it yourself: exercises 7, 8 and 9
# (`python -m minidl exercise 7 --copy DIR`).
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.1 and algorithm 2. Y. Wu and J.
# Johnson, Rethinking "Batch" in BatchNorm, 2021. Issue 10666 of
# github.com/keras-team/keras; issues 4741 and 5406 of github.com/pytorch/pytorch.
# Text 003, the slides on `training` and on prediction.
