# %% [markdown]
# # 19. Images: which axes does BatchNorm average, and does depth need it?
#
# So far an image was a row of 784 numbers. Networks for images are built of
# *convolutions*, and that is where BatchNorm became famous: a text names ResNet50,
# Inception V3 and Xception, networks with dozens of BatchNorms. It says three things
# that we can test. BatchNorm belongs behind the convolution. The paper puts it before
# the activation, "but in practice after the activation may work better". And "some very
# deep networks can only be trained with several BatchNorms".
#
# You need: lessons 7, 10 and 13. Running time: 15 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products are fastest on one

import numpy as np

from minidl import (Activation, BatchNorm, Conv2D, Dense, Flatten, MaxPool2D, Module,
                    Sequential, experiments, initializers, no_grad, optim, plotting)
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("19_images")
(x_train, y_train), (x_test, y_test) = lesson.load_data()


# %%
def images(x):
    """Half the size, one channel, standardised by two numbers of the training set."""
    x = x.reshape(-1, 1, 14, 2, 14, 2).mean(axis=(3, 5))
    return (x - MEAN) / STD


MEAN, STD = 0, 1
MEAN, STD = images(x_train).mean(), images(x_train).std()
learn = images(x_train[:3000]), y_train[:3000]
choose = images(x_train[-500:]), y_train[-500:]  # to choose learning rates by
test = images(x_test[:1000]), y_test[:1000]

# %% [markdown]
# ## What a convolution is
#
# A Dense layer has a weight for each pixel. A convolution has a small kernel, 3 × 3
# pixels here, and lays it on *every* place of the image: the output at a place is the
# sum of the nine pixels there, each times its weight, plus a bias. One such kernel is a
# *filter*, and what it makes of an image is a *channel*. `Conv2D(8, 3)` has eight
# filters: from images (n, 1, 14, 14) it makes (n, 8, 14, 14). Move the image, and the
# output moves with it.
#
# ## Which axes are averaged, and how many means are there?
#
# Of (n, features) BatchNorm takes one mean per feature, over the n samples. Of (n,
# channels, height, width) one could take a mean for each of the 8 · 14 · 14 = 1,568
# numbers, too. The paper (section 3.2) takes one for each *channel*, over all images
# and all places: "different elements of the same feature map, at different locations,
# are normalized in the same way".
#
# ## Predict
#
# A batch of 64 images goes through eight filters. How many means are there, and of how
# many numbers each? If we move every second image by two pixels, does its output behind
# BatchNorm move by two pixels as well, with a mean for each channel, and with a mean
# for each number?
#
# ## Run

# %%
filters = Conv2D(8, 3, padding="same", rng=lesson.seed).build((1, 14, 14))


def per_channel(x):
    return BatchNorm().train()(filters(x)).numpy()


def per_number(x):
    y = filters(x)
    return BatchNorm().train()(y.reshape(len(x), -1)).reshape(*y.shape).numpy()


def moved(x):
    return np.roll(x, 2, axis=3)  # what leaves on the right comes in on the left


# %%
batch, inner = learn[0][:64], np.s_[:, :, 3:-3, 3:-3]  # away from the edge
half_moved = batch.copy()
half_moved[::2] = moved(batch[::2])
means, change = {}, {}
for name, normalized in (("channel", per_channel), ("number", per_number)):
    y = normalized(batch)
    axes = (0, 2, 3) if name == "channel" else 0
    means[name] = y.mean(axis=axes)
    of = y.size // means[name].size
    change[name] = np.abs(normalized(half_moved)[::2] - moved(y[::2]))[inner].mean()
    print(f"one mean per {name:7}: {means[name].size:5} means of {of:6,} numbers each; "
          f"outputs of moved images differ from moved outputs by {change[name]:.3f}")

# %% [markdown]
# With a mean per channel the output moves with the image: the layer stays a
# convolution. With a mean per number each place is treated in its own way, and what was
# learned at one place is worth less at another. There is a second reason: a mean over
# more numbers is known better. Here is how far each mean moves from batch to batch, in
# units of the standard deviation of the numbers it is taken over.

# %%
with no_grad():
    outputs = [filters(learn[0][i:i + 64]).numpy() for i in range(0, 2560, 64)]
everything = np.concatenate(outputs)
spread = {}
for name, axes in (("channel", (0, 2, 3)), ("number", (0,))):
    by_batch = np.array([y.mean(axis=axes) for y in outputs])
    deviation = everything.std(axis=axes)
    usable = deviation > 0.05 * deviation.max()  # at the edge some numbers hardly vary
    spread[name] = (by_batch.std(axis=0)[usable] / deviation[usable]).ravel()
    counts_as = 1 / np.median(spread[name]) ** 2
    print(f"mean per {name:7}: moves by {np.median(spread[name]):.3f} standard "
          f"deviations, like a mean of {counts_as:,.0f} independent numbers")

# %%
typical = {name: np.median(values) for name, values in spread.items()}
times = typical["number"] / typical["channel"]
fig, ax = plotting.figure(size=(12, 6), title="From batch to batch the mean of a "
                          f"channel moves {times:.0f} times less")
bins = np.geomspace(0.003, 0.5, 40)
for i, (name, values) in enumerate(spread.items()):
    share = np.full(values.size, 100 / values.size)
    ax.hist(values, bins, weights=share, color=plotting.LOOKS[i][0], alpha=0.6,
            label=f"one mean per {name}")
    ax.axvline(typical[name], color=plotting.LOOKS[i][0], linestyle="--", linewidth=2)
ax.set(xscale="log", ylabel="means (%)",
       xlabel="how far a mean moves from batch to batch\n(standard deviations)")
ax.set_xticks([0.01, 0.1], ["0.01", "0.1"])
plotting.legend(ax)
lesson.show(fig, "means")

# %% [markdown]
# (Neighbouring places see nearly the same, so a mean of 12,544 numbers is not as good
# as one of 12,544 independent numbers. Yet even with small batches there is more to
# average than in a Dense layer: perhaps one more reason why BatchNorm does so well on
# images.)
#
# ## With and without, before and after
#
# A small network: three times convolution, ReLU, and twice a MaxPool2D, which keeps the
# largest of each 2 × 2 numbers. All get standardised images and the same seeds. As
# lesson 7 asks, the plain network may choose among three *initial scales* and three
# learning rates; the two with BatchNorm, before or behind the activation, choose a rate
# only. What is chosen is what does best on 500 images that are neither learned nor
# tested.
#
# Predict: which of the three is ahead after 50 steps, which after 80?

# %%
NONE, BEFORE, AFTER = "no BatchNorm", "BatchNorm before ReLU", "BatchNorm after ReLU"


def scaled(scale):
    """He's initial weights, times a number."""
    return lambda shape, rng: scale * initializers.he_normal(shape, rng)


def network(seed, place, scale=1.0):
    layers = []
    for i in range(3):
        layers.append(Conv2D(8, 3, padding="same", kernel_initializer=scaled(scale)))
        layers += [BatchNorm()] if place == BEFORE else []
        layers.append(Activation("relu"))
        layers += [BatchNorm()] if place == AFTER else []
        layers += [MaxPool2D(2)] if i < 2 else []
    return Sequential([*layers, Flatten(), Dense(10)], seed=seed)


# %%
def train(model, lr, measured_on, eval_steps, batch_size=64):
    return experiments.run(model, (learn, measured_on), optimizer=optim.SGD(lr=lr),
                           steps=max(eval_steps), batch_size=batch_size,
                           eval_steps=eval_steps)


def best(build, rates, options, steps, **settings):
    """(accuracy halfway and at the end, rate, option) of the best; 0 if diverged."""
    tried = []
    for option in options:
        for lr in rates:
            model = build(lesson.seed, option)
            run = train(model, lr, choose, [steps // 2, steps], **settings)
            tried.append((np.nan_to_num(run.accuracy).mean(), lr, option))
    return max(tried)


# %%
chosen = {}
for place in (BEFORE, NONE, AFTER):
    scales, rates = (1.0,), (0.1, 0.3, 1.0, 3.0)
    if place == NONE:
        scales, rates = (0.35, 0.7, 1.4), (0.03, 0.1, 0.3)
    chosen[place] = best(lambda seed, scale: network(seed, place, scale), rates, scales,
                         steps=40)
    print(f"{place:22} chooses rate {chosen[place][1]} and scale {chosen[place][2]}")

seeds = lesson.seeds(3)
result = experiments.Comparison(
    {place: [train(network(seed, place, scale), lr, test, [0, 10, 25, 50, 80])
             for seed in seeds]
     for place, (_, lr, scale) in chosen.items()}, seeds)
print(f"\nmedian of 3 seeds\n{result.table(0.8, at=(25, 50, 80))}")

# %%
at = {step: {place: result.accuracy_at(place, step) for place in result.runs}
      for step in (50, 80)}
early = {place: np.mean(at[50][place] - at[50][NONE]) for place in (BEFORE, AFTER)}
late = {place: np.mean(at[80][place] - at[80][NONE]) for place in (BEFORE, AFTER)}
fig, ax = plotting.figure(
    size=(12, 6.5), title="BatchNorm before ReLU adds "
    f"{early[BEFORE]:.2f} after 50 steps, {late[BEFORE]:.2f} after 80")
plotting.compare(result, ax=ax)
ax.set(ylabel="test accuracy")
lesson.show(fig, "accuracy")

# %% [markdown]
# ## How deep?
#
# Now 17 convolutions, one after the other, on 7 × 7 places. The networks that the text
# names do not stack layers only. A ResNet is made of *residual blocks*: two
# convolutions make a *branch*, and the output is what came in plus the branch, $x +
# f(x)$, so that there is a way through the network that no layer can block. We build
# five networks:
#
# | | without BatchNorm | with BatchNorm |
# |---|---|---|
# | layers only | plain | plain + BN |
# | with residual blocks | residual; residual, zero | residual + BN |
#
# "Residual, zero" has no BatchNorm either. But the second convolution of each branch
# starts with weights 0, so that each block starts as $x + 0$, and the network as a
# shallow one. It is the simplest form of an idea of Zhang, Dauphin and Ma (2019). The
# plain network gets He's weights times 1.1, which serve it as well as any (exercise 4).

# %%
PLAIN, PLAIN_BN, RESIDUAL = "plain", "plain + BN", "residual"
RESIDUAL_BN, ZERO = "residual + BN", "residual, zero"


class Block(Module):
    """Two convolutions, with BatchNorm behind each or not; skip: add what came in."""

    def __init__(self, batch_norm, skip, scales):
        self.layers, self.skip = [], skip
        for scale in scales:
            self.layers.append(Conv2D(8, 3, padding="same", use_bias=not batch_norm,
                                      kernel_initializer=scaled(scale)))
            self.layers += [BatchNorm()] if batch_norm else []
            self.layers.append(Activation("relu"))
        self.layers.pop()  # the second ReLU comes after the sum

    def forward(self, x):
        y = x
        for layer in self.layers:
            y = layer(y)
        return F.relu(x + y if self.skip else y)


# %%
def deep(seed, kind):
    scales = {PLAIN: (1.1, 1.1), ZERO: (1.0, 0.0)}.get(kind, (1.0, 1.0))
    options = {"batch_norm": "BN" in kind, "skip": "residual" in kind, "scales": scales}
    first = [Conv2D(8, 3, stride=2, padding="same", kernel_initializer="he_normal"),
             *([BatchNorm()] if "BN" in kind else []), Activation("relu")]
    blocks = [Block(**options) for _ in range(8)]
    return Sequential([*first, *blocks, Flatten(), Dense(10)], seed=seed)


# %% [markdown]
# Before anything is trained: what becomes of the signal? Predict for each network
# whether the numbers grow or shrink from block to block, and by how much over eight
# blocks.

# %%
def sizes(model, x):
    """The standard deviation behind each block, in training mode, over the first's."""
    model.train()
    found = []
    with no_grad():
        for layer in model.layers:
            x = layer(x)
            if isinstance(layer, (Activation, Block)):
                found.append(x.numpy().std())
    return np.array(found) / found[0]


KINDS = (PLAIN_BN, PLAIN, RESIDUAL_BN, RESIDUAL, ZERO)
signals = {kind: np.array([sizes(deep(seed, kind).build((1, 14, 14)), batch)
                           for seed in seeds]) for kind in KINDS}
for kind, values in signals.items():
    print(f"{kind:15}: after eight blocks the signal is {np.median(values[:, -1]):.3g} "
          "times as large as before")

# %% [markdown]
# Predict: which of the five learn? Each has a grid of rates of its own, around where it
# does best. 40 steps with batches of 32, then 500 images of the test set.

# %%
RATES = {PLAIN: (0.003, 0.01, 0.03), PLAIN_BN: (0.1, 0.3, 1.0),
         RESIDUAL: (0.0001, 0.0003, 0.001), RESIDUAL_BN: (0.01, 0.03, 0.1),
         ZERO: (0.01, 0.03, 0.1)}
reached, few = {}, (test[0][:500], test[1][:500])
for kind in KINDS:
    lr = best(deep, RATES[kind], (kind,), steps=40, batch_size=32)[1]
    runs = [train(deep(seed, kind), lr, few, [40], batch_size=32) for seed in seeds]
    reached[kind] = np.array([np.nan_to_num(run.accuracy[-1]) for run in runs])
    print(f"{kind:15}: rate {lr:6}, test accuracy by seed "
          + ", ".join(f"{value:.3f}" for value in reached[kind]))

# %%
middle = {kind: np.median(values) for kind, values in reached.items()}
fig, (left, right) = plotting.figure(
    1, 2, size=(15, 6.5), title=f"17 convolutions: {middle[PLAIN]:.1f} plain, "
    f"{middle[PLAIN_BN]:.1f} with BatchNorm; by a shortcut instead {middle[ZERO]:.1f}")
for i, (kind, values) in enumerate(signals.items()):
    plotting.band(np.arange(9), values, kind, i, left)
    color = plotting.LOOKS[i][0]
    right.plot(reached[kind], np.full(3, i), "o", color=color, markersize=13, alpha=0.7)
    right.plot([middle[kind]] * 2, [i - 0.3, i + 0.3], color=color, linewidth=3)
left.set(xlabel="block", ylabel="size of the signal before training", yscale="log")
left.set_yticks([0.3, 1, 3, 10], ["0.3", "1", "3", "10"])
left.minorticks_off()
right.set(xlabel="test accuracy after 40 steps (3 seeds)", xlim=(0, 1),
          yticks=range(5), yticklabels=KINDS, ylim=(4.6, -0.6))
plotting.legend(left)
lesson.show(fig, "deep")

# %% [markdown]
# ## Explain
#
# *Axes.* Behind a convolution a feature is a channel. BatchNorm averages over the
# samples *and* over all places, because the same filter has made all these numbers. The
# rule is the old one, a mean for each set of weights; only the shape of the array has
# changed. PyTorch calls that layer BatchNorm2d.
#
# *Before or after.* Both have a head start over a plain network that was given a better
# initial scale and a rate of its own, and part of it is left in the end. The text's
# "after may work better" fits what we see here: after is ahead in most runs. In lesson
# 13, with Dense layers, and in the table printed there, the sign changes from case to
# case. So it is a choice to try out, and no rule. (ResNet50 and its kin in Keras have
# it before.)
#
# *Depth.* BatchNorm helps the network that only stacks layers, though not with every
# seed, and at 17 convolutions it is slow in either case: lesson 10 has shown that with
# BatchNorm gradients grow from layer to layer. Residual blocks with He's weights learn
# next to nothing without BatchNorm, and well with it. So far the text is right: *this*
# network needs it. But the last network has none, and does at least as well. What it
# shares with "residual + BN" is the left picture: the signal does not explode. Without
# BatchNorm each branch adds nearly as much as there was, so that the variance of the
# signal nearly doubles, and doubles again. With BatchNorm each branch adds a constant
# amount, so that late blocks change little (De and Smith 2020). Branches that start at
# zero change nothing at first. Very deep networks need a way through and branches that
# start small; BatchNorm is one means to that, and not the only one. Brock et al. (2021)
# reached the best accuracy of their time on ImageNet without it, with more care
# elsewhere.
#
# *Limits.* Eight filters, small images, 40 to 80 steps: these networks show what
# *begins* to learn. What wins after days on a million photographs they cannot show.

# %%
print()
flat = np.abs(means["channel"]).max()
lesson.check("largest |mean| of a channel behind BatchNorm, 64 images", flat,
             at_most=1e-4)
lesson.check("images moved: change of the output, per number / per channel",
             change["number"] / max(change["channel"], 1e-3), at_least=10)
for place in (BEFORE, AFTER):
    lesson.check(f"accuracy at step 50, {place} - none", early[place], at_least=0.05)
growth = {kind: np.median(signals[kind][:, -1]) for kind in (RESIDUAL, RESIDUAL_BN)}
lesson.check("growth of the signal over residual blocks, without / with BatchNorm",
             growth[RESIDUAL] / growth[RESIDUAL_BN], at_least=1.5)
lesson.check("residual blocks, He's weights: accuracy with - without BatchNorm",
             middle[RESIDUAL_BN] - middle[RESIDUAL], at_least=0.2)
lesson.check("residual blocks that start at zero, no BatchNorm: accuracy", middle[ZERO],
             at_least=0.5, claim=False)
print(f"reported: accuracy at step 80, before - none {late[BEFORE]:+.3f}, after - none "
      f"{late[AFTER]:+.3f}")
print(f"reported: layers only, with - without BatchNorm "
      f"{middle[PLAIN_BN] - middle[PLAIN]:+.3f}")
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. BatchNorm stands behind a convolution whose output has the shape
# (32, 16, 10, 10). How many means does it take?**
#
# - A: 32, one for each image, of 1,600 numbers each
# - B: 1,600, one for each number of an image, of 32 numbers each
# - C: 16, one for each channel, of 3,200 numbers each
# - D: one, of all 51,200 numbers
#
# **2. "Some very deep networks can only be trained with several BatchNorm layers",
# writes text 003. What do the 17 convolutions of this lesson say?**
#
# - A: It holds for residual blocks with He's weights, but not for blocks that start at
#   zero.
# - B: It is right: no network without BatchNorm learned.
# - C: It is wrong: with and without BatchNorm all networks learned alike.
# - D: It is right, because BatchNorm solves vanishing and exploding gradients.
#
# <details><summary>Answers</summary>
#
# 1 C. All 32 · 10 · 10 numbers of a channel come from one filter. A is text 001's step
# 1 ("of each sample"), a kind of LayerNorm. B is the rule for a Dense layer; with it
# the output no longer moves with the image. D is one way to read text 004's formula,
# (Xi − Xmean) / Xstd, which does not say over what the mean is taken.
#
# 2 A. Without BatchNorm residual blocks with He's weights learn next to nothing, and
# those whose branches start at zero learn well. B is the text's "only", which one
# counterexample refutes. C overlooks the networks that fail. D is the reason that text
# 003 offers; but lesson 10 has shown gradients that explode *with* BatchNorm, and the
# last network does without it.
#
# </details>
#
# ## Try
#
# 1. Easy: how many parameters and how many running statistics has the BatchNorm behind
#    `Conv2D(8, 3)` on these images, and how many if a Flatten comes before it?
# 2. Easy: after training, `norm.fold(convolution)` makes one convolution of two layers.
#    Fold the whole network "before". How many layers are left, and what happens to its
#    outputs?
# 3. Medium: a batch of two images still has 2 · 14 · 14 numbers for each channel. Train
#    with batches of two, with and without BatchNorm. Is the loss as large as in lesson
#    12?
# 4. Medium: give the plain deep network He's weights times 1.0, 1.1 and 1.2. How narrow
#    is the range in which it learns at all?
# 5. Medium: residual blocks without BatchNorm whose weights are He's times 0.7, or
#    whose second convolutions are He's times 0.3. Is zero needed?
# 6. Research: 33 convolutions. Which still learn in 50 steps?
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3.2. K. He, X. Zhang, S. Ren and J.
# Sun, Deep Residual Learning for Image Recognition, 2015. H. Zhang, Y. Dauphin and T.
# Ma, Fixup Initialization: Residual Learning Without Normalization, 2019. S. De and S.
# Smith, Batch Normalization Biases Residual Blocks Towards the Identity Function in
# Deep Networks, 2020. A. Brock, S. De, S. Smith and K. Simonyan, High-Performance
# Large-Scale Image Recognition Without Normalization, 2021.
