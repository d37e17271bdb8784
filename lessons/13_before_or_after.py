# %% [markdown]
# # 13. Before or after the activation: where does BatchNorm go?
#
# The texts disagree. The paper puts BatchNorm *before* the activation, and so do the
# programs in two of the texts. One text adds that after the activation "may work
# better". Another defines BatchNorm as something that is done after the activation, as
# if there were no question. So who is right?
#
# You need: lesson 7. Running time: 10 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from functools import partial

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, optim
from minidl import initializers, plotting
from minidl.data import split
from minidl.lessonkit import Lesson

lesson = Lesson("13_before_or_after")
data = lesson.load_data()
(x_train, y_train), (x_test, y_test) = data

# %% [markdown]
# ## Two arguments
#
# *Before*, $\text{act}(\text{BN}(Wu))$: the sum $Wu + b$ of many terms "is more
# likely to have a symmetric, non-sparse distribution, that is 'more Gaussian'", so
# its mean and variance describe it well (Ioffe and Szegedy 2015, section 3.2).
#
# *After*, $\text{BN}(\text{act}(Wu + b))$: what counts is what the *next layer
# receives*, and a layer learns best from inputs of mean 0 and equal variance (LeCun
# et al. 1998). An activation after BatchNorm spoils that, because a ReLU's output is
# never negative.
#
# Both sound right. So we measure: three hidden layers of 64 units, batches of 64,
# learning rate 0.3, with ReLU and with sigmoid. All networks of a comparison get the
# same seed, so the same weights and batches.

# %%
BEFORE, NONE, AFTER = "BatchNorm before", "no BatchNorm", "BatchNorm after"
INITIALIZERS = {"relu": "he_normal", "sigmoid": "glorot_uniform"}


def network(seed, activation, place, initializer=None):
    initializer = initializer or INITIALIZERS[activation]
    layers = []
    for _ in range(3):
        layers.append(Dense(64, kernel_initializer=initializer))
        if place == BEFORE:
            layers.append(BatchNorm())
        layers.append(Activation(activation))
        if place == AFTER:
            layers.append(BatchNorm())
    return Sequential([*layers, Dense(10)], seed=seed)


def builders(activation, places=(BEFORE, NONE, AFTER)):
    return {place: partial(network, activation=activation, place=place)
            for place in places}


# %% [markdown]
# ## Predict
#
# For ReLU and for sigmoid: which of the three is ahead after 50 steps, which after 300,
# and by how much?
#
# ## Run

# %%
LOOKS, LATE = [0, 10, 25, 50, 75, 100, 150], [200, 225, 250, 275, 300]
results = {activation: experiments.compare(
    builders(activation), data, lr=0.3, steps=300, batch_size=64, seeds=lesson.seeds(4),
    eval_steps=LOOKS + LATE) for activation in INITIALIZERS}
for activation, result in results.items():
    print(f"\n{activation}, learning rate 0.3, median of 4 seeds")
    print(result.table(0.85, at=(50, 100, 200, 300)))


def after_minus_before(result):
    """The difference in test accuracy, seed by seed; a run that diverged guesses.

    The mean of five looks, since at this rate the accuracy jumps from look to look.
    """
    return experiments.paired_difference(*(np.mean(
        [np.nan_to_num(result.accuracy_at(place, step), nan=0.1) for step in LATE],
        axis=0) for place in (AFTER, BEFORE)))


lead = {name: after_minus_before(result) for name, result in results.items()}
for activation, difference in lead.items():
    print(f"{activation}, steps 200 to 300: after - before {difference}")

# %%
def in_points(difference):
    """0.0157 as +1.6: no more digits than the error allows, and no minus before 0."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}".replace("-", "−")


points = {name: in_points(value.mean) for name, value in lead.items()}
fig, axes = plotting.figure(1, 2, sharey=True, size=(13, 6),
                            title="After minus before, "
                            f"steps 200 to 300: {points['relu']} points (ReLU), "
                            f"{points['sigmoid']} (sigmoid)")
for ax, (activation, result) in zip(axes, results.items()):
    plotting.compare(result, ax=ax)
    ax.set_title(activation)
axes[1].set_ylabel("")
lesson.show(fig, "accuracy")

# %% [markdown]
# So far the plain networks have had little care. Lesson 10 found that a sigmoid needs
# larger weights than Glorot's, since its slope is at most 1/4, and each network has a
# learning rate of its own. Here the plain networks choose their rate and the scale of
# their weights on images held out of the training set. What is left of the lead?

# %%
def wide(shape, rng):
    return 4 * initializers.glorot_normal(shape, rng)


GRID, CARE = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0), {"relu": "he_normal", "sigmoid": wide}
held_out, careful = split(x_train, y_train, 0.2, lesson.seed), {}
for activation, initializer in CARE.items():
    build = partial(network, activation=activation, place=NONE, initializer=initializer)
    scores = [[experiments.run(build(seed), held_out, optimizer=optim.SGD(lr=lr),
                               steps=100, batch_size=64, eval_steps=[100]).accuracy[-1]
               for lr in GRID] for seed in lesson.seeds(2)]
    lr = experiments.best(GRID, np.nan_to_num(scores, nan=0.1), f"plain, {activation}")
    careful[activation] = experiments.compare(
        {NONE: build}, data, lr=lr, steps=100, batch_size=64, seeds=lesson.seeds(4),
        eval_steps=[50, 100])
    means = [careful[activation].accuracy_at(NONE, step).mean() for step in (50, 100)]
    print(f"{activation}, plain with care (rate {lr:g}): mean accuracy at step 50, "
          "100: " + ", ".join(f"{value:.3f}" for value in means))

# %% [markdown]
# For the sigmoid care recovers most of the distance. For ReLU the rate was the plain
# network's best already. At step 50 BatchNorm is still ahead in either place, without
# having chosen anything.
#
# ## What the next layer receives
#
# We look at the input of the third Dense layer, for 500 test images before training, in
# training mode. Predict the shape of its distribution for the three networks.


# %%
def received(model, images):
    """What the third Dense layer gets."""
    dense = [layer for layer in model.layers if isinstance(layer, Dense)]
    x = images
    for layer in model.layers[:model.layers.index(dense[2])]:
        x = layer(x)
    return x.numpy()


images, arrived = x_test[:500], {}
for activation in INITIALIZERS:
    print(f"\n{activation}: input of the third Dense layer, before training")
    for place, build in builders(activation).items():
        x = received(build(lesson.seed).build(784).train(), images)
        x = arrived[activation, place] = x + 0.0  # no -0.0
        mean, std = np.abs(x.mean(axis=0)), x.std(axis=0)
        print(f"{place:16}: a unit's |mean| {mean.min():.2f} to {mean.max():.2f}, "
              f"standard deviation {std.min():.2f} to {std.max():.2f}; "
              f"{np.mean(x == 0):.0%} of all inputs are 0")

# %%
means = {key: abs(x.mean()) for key, x in arrived.items()}
fig, axes = plotting.figure(3, 2, size=(13, 9), sharex=True, sharey=True,
                            title="What the next layer receives: mean "
                            f"{means['relu', BEFORE]:.2f} with BatchNorm before ReLU, "
                            f"{means['relu', AFTER]:.2f} after")
bins = np.arange(-3.05, 4.1, 0.1)
for column, activation in zip(axes.T, INITIALIZERS):
    for i, (ax, place) in enumerate(zip(column, (BEFORE, NONE, AFTER))):
        x = arrived[activation, place].ravel()
        ax.hist(x, bins, weights=np.full(x.size, 100 / x.size), log=True,
                color=plotting.LOOKS[i][0])
        ax.axvline(x.mean(), color="black", linestyle="--", linewidth=2)
        ax.set(title=f"{activation}, {place}", ylim=(0.05, 150))
    ax.set_xlabel("input of the third Dense layer (dashed: the mean)")
axes[0, 0].set_yticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
axes[1, 0].set_ylabel("inputs per bin of width 0.1 (%)")
lesson.show(fig, "received")

# %% [markdown]
# ## Another learning rate
#
# A comparison at one learning rate is one comparison. Here are a rate ten times smaller
# and one ten times larger. Predict: does the order stay the same?

# %%
RATES = (0.03, 0.3, 3.0)
ahead = {}  # per activation: (rates, seeds)
for activation in INITIALIZERS:
    rows = []
    for lr in RATES:
        result = results[activation] if lr == 0.3 else experiments.compare(
            builders(activation, (BEFORE, AFTER)), data, lr=lr, steps=100,
            batch_size=64, seeds=lesson.seeds(3), eval_steps=[100])
        before, after = (result.accuracy_at(place, 100)[:3]
                         for place in (BEFORE, AFTER))
        rows.append(after - before)
        print(f"{activation:7}, rate {lr:4}, step 100: {before.mean():.3f} before, "
              f"{after.mean():.3f} after (nan: a run diverged)")
    ahead[activation] = 100 * np.array(rows)

# %%
def listed(rows):
    return ", ".join("diverged" if np.isnan(row).any() else in_points(row.mean() / 100)
                     for row in rows)


fig, axes = plotting.figure(1, 2, size=(13, 6), sharey=True,
                            title="After minus before, in points: "
                            f"{listed(ahead['relu'])} (ReLU);\n"
                            f"{listed(ahead['sigmoid'])} (sigmoid)")
for ax, (activation, rows) in zip(axes, ahead.items()):
    for column in rows.T:
        ax.plot(range(3), column, "o", color="#0072B2", markersize=12, alpha=0.6)
    for place, count in enumerate(np.isnan(rows).sum(axis=1)):
        if count:
            ax.text(place, 0.02, f"{count} of 3\ndiverged", ha="center", va="bottom",
                    transform=ax.get_xaxis_transform(), color="#D55E00", fontsize=15)
    ax.axhline(0, color="0.3", linewidth=1.5)
    ax.set(xlabel="learning rate", xticks=range(3), xlim=(-0.5, 2.5), title=activation,
           xticklabels=RATES)
axes[0].set_ylabel("test accuracy at step 100, after\n"
                   "minus before, in points (three seeds)")
lesson.show(fig, "by_rate")

# %% [markdown]
# ## What others have measured
#
# A careful public comparison on ImageNet (images of 128 pixels, ReLU, one number for
# each network) is Mishkin's caffenet-benchmark. It has results of both signs:

# %%
PUBLISHED = [("CaffeNet, with gamma and beta", 0.471, 0.478, 0.493),
             ("CaffeNet, without them", 0.471, 0.474, 0.499),
             ("GoogLeNet, LSUV initialisation", 0.619, 0.603, 0.596),
             ("GoogLeNet, orthogonal initialisation", 0.619, 0.607, 0.584)]
print(f"\n{'published accuracy on ImageNet':36}  no BN  before  after  after - before")
for name, none, before, after in PUBLISHED:
    print(f"{name:36}  {none:.3f}   {before:.3f}  {after:.3f}          "
          f"{after - before:+.3f}")

# %% [markdown]
# In the two GoogLeNet rows "before" has $\gamma$ and $\beta$, and "after" does not.
# There the network without BatchNorm is the best of the three.
#
# ## Both places can be folded
#
# In evaluation BatchNorm multiplies by constants and adds constants. Before the
# activation it can be folded into the Dense layer before it (`BatchNorm.fold`). It is
# often said that this speaks for *before*. But after the activation it can be folded
# as well, into the *next* Dense layer: with $\text{BN}(u) = s u + t$,
#
# $W (s u + t) + b = (W s)\, u + (W t + b).$

# %%
model = network(lesson.seed, "relu", AFTER)
experiments.run(model, data, optimizer=optim.SGD(lr=0.3), steps=100, batch_size=64)
slow = model.predict(x_test[:500])
for norm, dense in zip(model.eval().layers, model.layers[1:]):
    if isinstance(norm, BatchNorm):
        s = norm.gamma.data / np.sqrt(norm.running_var + norm.eps)
        t = norm.beta.data - norm.running_mean * s
        dense.bias.data = dense.bias.data + t @ dense.kernel.data
        dense.kernel.data = s[:, None] * dense.kernel.data
layers = [layer for layer in model.layers if not isinstance(layer, BatchNorm)]
fast = Sequential(layers).predict(x_test[:500])
folded = np.abs(fast - slow).max() / np.abs(slow).max()
print(f"folded into the next Dense: {len(model.layers)} layers become {len(layers)}, "
      f"the outputs differ by {folded:.0e} of the largest")

# %% [markdown]
# ## Explain
#
# Neither place wins for every activation, learning rate and network: our differences
# have both signs, and so has the published table. With the sigmoid at the rate 0.3,
# after is ahead by one to two points from step 200 on, which is small and real. With
# ReLU the two are closer than that. Either place brings most of what BatchNorm brings.
#
# The distributions show what is traded. With BatchNorm before, each *activation* gets
# inputs on its scale: about half of the ReLUs are active for each image, and a
# sigmoid's outputs spread over its range. With BatchNorm after, each *Dense layer*
# gets inputs of mean 0 and variance 1. Where its inputs would otherwise all be
# positive, with a mean well above their spread, as with the sigmoid, that is worth
# something at small rates.
#
# One practical difference remains: before the activation the Dense layer's bias is
# useless, because BatchNorm subtracts it again. After the activation it is not.

# %%
print()
for activation, required in (("relu", 0.02), ("sigmoid", 0.1)):
    for place in (BEFORE, AFTER):
        gain = np.mean(results[activation].accuracy_at(place, 50)) - np.mean(
            np.nan_to_num(careful[activation].accuracy_at(NONE, 50), nan=0.1))
        lesson.check(f"{activation}: accuracy at step 50, {place} - plain with care",
                     gain, at_least=required)
for activation in INITIALIZERS:
    largest = np.abs(arrived[activation, AFTER].mean(axis=0)).max()
    lesson.check(f"{activation}, after: largest |mean| of the next layer's inputs",
                 largest, at_most=0.001)
lesson.check("sigmoid: accuracy at steps 200 to 300, after - before",
             lead["sigmoid"].mean, at_least=0.005)
lesson.check("relu: accuracy at steps 200 to 300, size of after - before",
             abs(lead["relu"].mean), at_most=0.012, claim=False)
lesson.check("after, folded into the next Dense: relative difference of the outputs",
             folded, at_most=1e-4, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. "The data of a batch are standardised after the activation of the current layer
# and before the next layer", defines text 004. What is right?**
#
# - A: That is the paper's definition.
# - B: After the activation it would not be BatchNorm.
# - C: It is one of two places; the paper's is before the activation.
# - D: It is the place that works better.
#
# **2. A network has BatchNorm after each activation and is to be made faster for
# evaluation. What can be done?**
#
# - A: Fold each of them into the Dense layer that follows.
# - B: Nothing: only BatchNorm before the activation can be folded.
# - C: Drop the BatchNorms, because they matter only in training.
# - D: Fold each of them into the Dense layer before the activation.
#
# <details><summary>Answers</summary>
#
# 1 C. A is how text 004 defines it, and text 001 too normalises "the activation
# outputs"; the paper normalises $Wu + b$. B: the formula is the same in either place,
# and both networks learn. D makes a rule of text 003's "may work better"; the
# differences in this lesson have both signs.
#
# 2 A. In evaluation $s$ and $t$ are constants, and the next layer's kernel and bias can
# absorb them. B forgets that next layer. C: BatchNorm scales and shifts in evaluation,
# too, by its running statistics; of the five texts only text 003 says so. D would scale
# what goes into the activation, and BatchNorm scales what comes out of it.
#
# </details>
#
# ## Try
#
# 1. Easy: put BatchNorm in *both* places. Does it help? What does the second one still
#    have to do?
# 2. Easy: add a BatchNorm in front of the first Dense layer, on the pixels. What
#    happens at the pixels that are always 0?
# 3. Medium: give the Dense layers `use_bias=False` in the networks "before" and
#    "after". Which one notices?
# 4. Medium: try `"leaky_relu"` and `"tanh"`. Tanh outputs have mean near 0: do you
#    expect after or before to gain?
# 5. Medium: at learning rate 3, which layer fails first with BatchNorm after the
#    sigmoid? (`minidl.record` shows it.)
# 6. Research: the argument for *before* is that $Wu + b$ is close to Gaussian.
#    Measure the skewness of each unit's $Wu + b$ and $\text{act}(Wu + b)$ in the
#    course of training. Does it change, and does it matter?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.2. Y. LeCun, L. Bottou, G. Orr and
# K.-R. Mueller, Efficient BackProp, 1998. The published table: D. Mishkin,
# github.com/ducha-aiki/caffenet-benchmark, file batchnorm.md; the project's report is
# D. Mishkin, N. Sergievskiy and J. Matas, Systematic evaluation of convolution neural
# network advances on the ImageNet, 2017.
