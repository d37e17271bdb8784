# %% [markdown]
# # 12. Batch size and noise: how small may a batch be?
#
# In training, BatchNorm takes its mean and variance from the batch, so the prediction
# for one image depends on which other images share its batch. Four of the five texts
# speak of mini-batches, and none says how large they must be. This lesson measures how
# large that dependence is, and at which batch size BatchNorm stops helping. Whether the
# noise is good for something, as most texts say, is the question of lesson 18.
#
# You need: lesson 4. Running time: 10 to 15 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments
from minidl import estimate_population_statistics, no_grad, optim, plotting
from minidl import data as datasets
from minidl.lessonkit import Lesson, written

lesson = Lesson("12_batch_size_and_noise")
data = lesson.load_data()
(x_train, y_train), (x_test, y_test) = data
BN, PLAIN = "with BatchNorm", "without BatchNorm"

# %% [markdown]
# ## Where the companions come from
#
# An epoch is a random split of the training set into batches, *without replacement*:
# each image is used exactly once, each time with other companions. Some programs draw
# every batch *with* replacement. An epoch of $n$ draws then misses a share of
# $(1 - 1/n)^n \approx 1/e = 0.368$ of the images.

# %%
rng = np.random.default_rng(lesson.seed)
numbers = np.arange(1000)
epoch = [batch for batch, _ in datasets.batches(numbers, numbers, 64, rng)]
times_used = np.bincount(np.concatenate(epoch), minlength=1000)
missed = 1 - len(np.unique(rng.integers(0, 1000, 1000))) / 1000
print(f"1000 images in batches of 64: {len(epoch) - 1} full batches and one of "
      f"{len(epoch[-1])}; each image is used {times_used.min()} to {times_used.max()} "
      f"times\ndrawn with replacement, an epoch misses {missed:.1%} of the images")
few = numbers[:129]
print("129 images in batches of 64 give batches of",
      [len(batch) for batch, _ in datasets.batches(few, few, 64)])

# %% [markdown]
# Why 65 in the last line? The last image would have been alone, and a batch of one
# has no variance. minidl therefore adds it to the batch before it.
#
# ## Predict
#
# We train a network for 200 steps, take one test image, and send it through in
# *training* mode many times, each time with other random companions. Its ten logits
# change a little each time. By which factor does that noise shrink when the batch
# grows from 16 to 64? And is there noise in evaluation mode?
#
# ## Run


# %%
def network(seed, batch_norm=True):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm())
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)


def noise(model, image, size, draws=60):
    """Standard deviation of an image's logits over companions, mean over the logits."""
    logits = []
    for _ in range(draws):
        companions = x_train[rng.integers(0, len(x_train), size - 1)]
        with no_grad():
            logits.append(model(np.concatenate([image[None], companions])).numpy()[0])
    return np.std(logits, axis=0).mean()


# %%
sizes = np.array([4, 8, 16, 32, 64, 128, 256])
noises = []
for i, seed in enumerate(lesson.seeds(3)):
    model = network(seed)
    experiments.run(model, data, optimizer=optim.SGD(lr=0.1), steps=200, batch_size=64)
    noises.append([noise(model.train(), x_test[i], size) for size in sizes])
    print(f"seed {seed}: noise {noise(model.eval(), x_test[i], 4):.3f} in evaluation "
          "mode; in training mode, batches of 4 to 256: "
          + ", ".join(f"{value:.2f}" for value in noises[-1]))

# %%
# below 1e-4 there is nothing but rounding
typical = np.maximum(np.mean(noises, axis=0), 1e-4)
large = sizes >= 16
slope = np.polyfit(np.log(sizes[large]), np.log(typical[large]), 1)[0]
fig, ax = plotting.figure(size=(11, 6), title="The noise of an image's logits falls "
                          f"with the batch size, with slope {written(slope)}")
plotting.band(sizes, np.maximum(noises, 1e-4), "measured, 3 networks", 0, ax)
ax.plot(sizes, typical[4] * np.sqrt(sizes[4] / sizes), ":", color="0.3", linewidth=2.5,
        label="slope $-1/2$")
ax.set(xlabel="batch size", ylabel="standard deviation of the logits\nover companions",
       xscale="log", yscale="log", xticks=sizes, xticklabels=sizes)
ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "noise")

# %% [markdown]
# $\mu_B$ is a mean of $m$ numbers, and the mean of $m$ independent numbers has the
# standard deviation $\sigma / \sqrt{m}$. About the same holds for $\sigma_B^2$. So
# four times the batch means half the noise. In very small batches the law bends,
# because the rest of the network is not linear and does not pass on so large a noise
# in proportion. We therefore fit the slope from 16 on.
#
# ## What a batch of two knows
#
# Of two numbers one lies above their mean and one below, at the same distance. So
# $\hat x$ is 1 or $-1$, whatever the numbers were: BatchNorm reports which of the two
# is larger, but no longer by how much. In general $|\hat x_i| \le \sqrt{m - 1}$. We
# look at what the first BatchNorm makes of the outputs of its Dense layer.

# %%
first = model.layers[0](x_train[:2048]).numpy()
layer = BatchNorm(eps=1e-12).build(64).train()  # gamma = 1, beta = 0
outputs = {size: np.concatenate([layer(batch).numpy() for batch, _
                                 in datasets.batches(first, first, size)])
           for size in (2, 4, 64)}
at_one = np.mean(np.abs(np.abs(outputs[2]) - 1) < 1e-5)

# %%
fig, axes = plotting.figure(1, 3, sharex=True, sharey=True, size=(14, 5.5),
                            title=f"In a batch of 2, {at_one:.1%} of BatchNorm's "
                                  "outputs are 1 or −1: only which is larger is left")
for ax, (size, values) in zip(axes, outputs.items()):
    ax.hist(values.ravel(), bins=np.arange(-4.05, 4.1, 0.1), color="#0072B2", log=True,
            weights=np.full(values.size, 100 / values.size))
    ax.set(title=f"batches of {size}", xlabel="output of BatchNorm", ylim=(0.01, 100))
axes[0].set_ylabel("outputs per bin of width 0.1 (%)")
axes[0].set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
lesson.show(fig, "outputs")

# %% [markdown]
# A batch of one has variance 0, so $\hat x = 0$ whatever the image is. minidl refuses
# it, and says what to do:

# %%
try:
    model.train()(x_test[:1])
    refused = False
except ValueError as error:
    print(f"ValueError: {error}")
    refused = True
print("in evaluation mode a single image is fine: its class is "
      f"{model.eval()(x_test[:1]).numpy().argmax()}")

# %% [markdown]
# ## How small may a batch be?
#
# We train for one epoch, at most 400 steps, with batches of 2, 4, 16, 64 and 256. Small
# batches need small learning rates, and a network with BatchNorm may need another one
# than a network without. So for each size each network chooses its rate, on images that
# are held out of the training set.
#
# Predict: at which sizes is the network with BatchNorm the better one?


# %%
def one_epoch(batch_norm, size, lr, seed, data, exact=False):
    """Accuracy after an epoch on the second pair of data; exact: precise statistics."""
    (x, y), (x_other, y_other) = data
    model, steps = network(seed, batch_norm), min(400, len(x) // size)
    result = experiments.run(model, data, optimizer=optim.SGD(lr=lr), steps=steps,
                             batch_size=size, eval_steps=[steps])
    if not exact:
        return np.nan_to_num(result.accuracy[-1], nan=0.1)  # diverged: it guesses
    estimate_population_statistics(model, x[:2000])
    return np.mean(model.predict(x_other).argmax(axis=1) == y_other)


SIZES = (2, 4, 16, 64, 256)
SMALL, LARGE = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0), (0.03, 0.1, 0.3, 1.0, 3.0)
held_out = datasets.split(x_train, y_train, 0.2, lesson.seed)
best = {}
for name in (BN, PLAIN):
    for size in SIZES:
        grid = SMALL if size <= 16 else LARGE
        scores = [one_epoch(name == BN, size, lr, lesson.seed + 900, held_out)
                  for lr in grid]
        best[name, size] = experiments.best(grid, scores, f"{name}, batches of {size}")

# %%
by_size = {name: np.array([[one_epoch(name == BN, size, best[name, size], seed, data)
                            for seed in lesson.seeds(3)] for size in SIZES])
           for name in (BN, PLAIN)}  # (sizes, seeds)
exact = one_epoch(True, 2, best[BN, 2], lesson.seed, data, exact=True)
gap = {size: experiments.paired_difference(with_bn, without)
       for size, with_bn, without in zip(SIZES, by_size[BN], by_size[PLAIN])}
for i, size in enumerate(SIZES):
    print(f"batches of {size:3}: test accuracy "
          + ", ".join(f"{by_size[name][i].mean():.3f} {name} (rate {best[name, size]})"
                      for name in (BN, PLAIN)) + f"; difference {gap[size]}")
print(f"batches of 2, one seed: {by_size[BN][0, 0]:.3f} with running averages, "
      f"{exact:.3f} with exact statistics in their place")

# %%
points = {size: f"{100 * gap[size].mean:+.0f}".replace("-", "−") for size in (2, 256)}
fig, ax = plotting.figure(size=(11, 6), title="With minus without BatchNorm, each at "
                          f"its best rate:\n{points[2]} points in batches of 2, "
                          f"{points[256]} in batches of 256")
for i, (name, accuracy) in enumerate(by_size.items()):
    plotting.band(SIZES, accuracy.T, name, i, ax)
ax.set(xlabel="batch size", ylabel="test accuracy after one epoch\n(at most 400 steps)",
       ylim=(0, 1), xscale="log", xticks=SIZES, xticklabels=SIZES)
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "batch_size")

# %% [markdown]
# ## Explain
#
# With batches of two it is *training* that fails. Exact statistics in place of the
# running averages do not repair it. In a batch of two the images get exactly opposite
# numbers from the first BatchNorm, and these depend only on the sign of a difference. A
# logit therefore says as much about the companion as about the image itself. A smaller
# learning rate cannot help, because the information is lost in the forward pass.
#
# With large batches the noise is small and BatchNorm gains. Part of that gain comes
# from the small number of steps: an epoch in batches of 256 has only 39, and early in
# training BatchNorm's lead is largest (lesson 7). So this is no proof that batches
# should be large. The safe reading is about the small end: below some 16 images per
# batch BatchNorm does not help here, and in batches of two it ruins training.

# %%
print()
lesson.check("slope of the noise against batch size, log-log: distance from -1/2",
             abs(slope + 0.5), at_most=0.1)
lesson.check("batches of 2: share of outputs within 1e-5 of 1 or -1", at_one,
             at_least=0.98)
lesson.check("a batch of 1 is refused", float(refused), at_least=1)
lesson.check("batches of 2: accuracy with - without BatchNorm, each at its best rate",
             gap[2].mean, at_most=-0.15)
lesson.check("batches of 256: accuracy with - without BatchNorm, each at its best rate",
             gap[256].mean, at_least=0.03)
lesson.check("how often an image is used in an epoch, at most", times_used.max(),
             at_most=1, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. The noise of an image's logits is 0.4 in batches of 32. About how large is it in
# batches of 128?**
#
# - A: 0.4, because $\gamma$ and $\beta$ do not depend on the batch
# - B: 0.1, because the batch is four times as large
# - C: 0, because the batch has mean 0 and variance 1 exactly
# - D: 0.2, because the noise falls with the square root of the batch size
#
# **2. "For each sample in the mini-batch compute its mean and its variance", writes
# text 001. Suppose BatchNorm did that. What would change?**
#
# - A: The prediction for an image would no longer depend on its companions.
# - B: A batch of two would yield only the outputs 1 and $-1$.
# - C: Nothing: the sentence describes BatchNorm's formulas.
# - D: Training would need larger batches.
#
# <details><summary>Answers</summary>
#
# 1 D. Four times the batch means half the noise. A is right about $\gamma$ and $\beta$,
# but they are applied to $\hat x$, which does depend on the batch. B forgets the square
# root. C is text 001's proof; it holds for the batch itself, whose mean and variance
# are only estimates of those of all images.
#
# 2 A. A statistic of one image knows nothing of the others; such a layer exists, and is
# called LayerNorm (lesson 17). B is what BatchNorm's own statistics make of a batch of
# two. C is how text 001 goes on: its formulas take the mean over the samples. D is the
# reverse: a batch of one would do.
#
# </details>
#
# ## Try
#
# 1. Easy: show that $|\hat x_i| \le \sqrt{m - 1}$, and construct a batch of 4 in
#    which it is an equality.
# 2. Easy: give every size the same 150 steps. How much of BatchNorm's gain at 256 is
#    left?
# 3. Medium: put $m = 2$ into the backward formula of lesson 5. For which units is the
#    gradient not nearly 0?
# 4. Medium: sort the images of each batch of 64 into ghost batches of 2
#    (`BatchNorm(ghost_batch_size=2)`). Is that as bad as batches of 2?
# 5. Research: replace BatchNorm by `LayerNorm`, which has no companions. Where is it
#    better, and where worse, in the figure of this section?
#
# While `python -m minidl race` runs:
# [batches of 2, live](http://127.0.0.1:8107/#preset=12).
#
# Now write it yourself: exercise 14 (`python -m minidl exercise 14 --copy DIR`).
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 3 and 4.2.1. Y. Wu and K. He, Group
# Normalization, 2018, figure 1 (the same fall at small batches, for ImageNet).
