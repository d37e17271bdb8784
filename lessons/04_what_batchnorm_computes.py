# %% [markdown]
# # 4. What BatchNorm computes: which axis, which variance, and what does epsilon do?
#
# BatchNorm is four lines of arithmetic, and each is easy to get slightly wrong. So we
# compute them by hand on numbers small enough to follow, then on a layer of a network.
# At the end we read some popular sentences again, and say which texts they come from.
#
# You need: mean, variance, and lesson 3. Running time: 5 to 10 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, LayerNorm, Sequential
from minidl import experiments, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("04_what_batchnorm_computes")
data = lesson.load_data()
rng = np.random.default_rng(lesson.seed)

# %% [markdown]
# ## Four numbers
#
# A batch of $m = 4$ samples with one feature each: 1, 2, 3, 4. The definition (Ioffe
# and Szegedy 2015, algorithm 1):
#
# $\mu_B = \frac{1}{m}\sum_i x_i, \quad \sigma_B^2 = \frac{1}{m}\sum_i (x_i - \mu_B)^2,
# \quad \hat x_i = \frac{x_i - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}}, \quad y_i = \gamma
# \hat x_i + \beta.$
#
# At first $\gamma = 1$ and $\beta = 0$. We work in float64 here, so that what is small
# is not mere rounding.


# %%
def batch_norm(x, eps=1e-5):
    """What a new BatchNorm layer makes of x (n, features) in training mode."""
    return BatchNorm(eps=eps, input_shape=x.shape[1]).astype(np.float64)(x).numpy()


four = np.array([[1.0], [2.0], [3.0], [4.0]])
by_hand = (four - four.mean()) / np.sqrt(four.var() + 1e-5)
print("by hand:  ", by_hand.ravel(), "\nBatchNorm:", batch_norm(four).ravel())

# %% [markdown]
# *Which variance?* The biased one, with $1/m$: 1.25 here. With $1/(m-1)$, 1.667, the
# result would not have variance 1. But what the layer *keeps* for evaluation is the
# unbiased one, because there it estimates the variance of all data, of which a batch is
# a small sample. (Keras keeps the biased one.) With `momentum=1` the layer keeps only
# the latest batch, so that we can see it.

# %%
layer = BatchNorm(momentum=1.0, input_shape=1).astype(np.float64)
layer(four)
kept = layer.running_var[0]
print(f"variance of 1, 2, 3, 4: with 1/m {four.var():.4f}, with 1/(m-1) "
      f"{four.var(ddof=1):.4f}; kept by the layer {kept:.4f}")

# %% [markdown]
# ## Predict
#
# Now a table of many features: one row for each sample, one column for each feature.
# BatchNorm takes means. Over each row, over each column, or over the whole table? How
# many means are there?
#
# Second: one feature is the same in all samples of the batch. Its variance is 0. What
# comes out?
#
# ## Run
#
# We make a table in which each row has a level of its own, and each column too. Beside
# BatchNorm stands LayerNorm, which is the same formula along the other axis.


# %%
def layer_norm(x):
    return LayerNorm(input_shape=x.shape[1]).astype(np.float64)(x).numpy()


levels = rng.standard_normal((32, 1)) + rng.standard_normal(40)
levels = levels + 0.4 * rng.standard_normal((32, 40))
normalised = {"before": levels, "BatchNorm": batch_norm(levels),
              "LayerNorm": layer_norm(levels)}
for name, x in normalised.items():
    print(f"{name:9}: largest |mean| of a column (feature) "
          f"{np.abs(x.mean(axis=0)).max():7.1e}, of a row (sample) "
          f"{np.abs(x.mean(axis=1)).max():7.1e}")

# %%
fig, axes = plotting.figure(1, 3, size=(15, 5.5), sharey=True,
                            title="BatchNorm evens out the columns, LayerNorm the rows")
for ax, (name, x) in zip(axes, normalised.items()):
    picture = ax.imshow(x, cmap="cividis", vmin=-2.5, vmax=2.5, aspect="auto",
                        interpolation="nearest")
    ax.set_title(name, fontsize=16)
    ax.set_xlabel("feature")
    ax.grid(False)
axes[0].set_ylabel("sample")
bar = fig.colorbar(picture, ax=axes)
bar.set_label("value", fontsize=15)
bar.ax.tick_params(labelsize=14)
lesson.show(fig, "axis")

# %% [markdown]
# BatchNorm removes the vertical stripes and keeps the horizontal ones: a sample that
# was high stays high. LayerNorm does the opposite. BatchNorm takes as many means as
# there are features, LayerNorm as many as there are samples.
#
# The same can be tested without a picture, on a real layer: we send 64 images through
# 100 random units, then put another image in the place of the last one. Which *other*
# rows change?

# %%
(x_train, _), _ = data
images = x_train[rng.choice(len(x_train), 65, replace=False)]
rows = Dense(100, rng=rng)(images).numpy().astype(np.float64)
# the 65th row moves into the place of the 64th
table, replaced = rows[:64], np.delete(rows, 63, axis=0)
neighbours = {}
for name, normalise in (("BatchNorm", batch_norm), ("LayerNorm", layer_norm)):
    difference = normalise(replaced) - normalise(table)
    neighbours[name] = np.abs(difference)[:63].max()
for name, change in neighbours.items():
    print(f"{name}: largest change in the rows of the 63 other images {change:.3g}")

# %% [markdown]
# ## Explain: mean 0, variance nearly 1
#
# Text 001 proves that the mean becomes 0 and the variance 1, in two steps: subtract
# $\mu$, divide by $\sigma$. The proof is right for its formula. But this formula has no
# $\epsilon$, and neither has the one of text 004, `(Xi - Xmean) / Xstd`. Where all
# values are equal, both return 0 / 0. This is not rare: at the border of an image most
# pixels are always black.

# %%
pixels = images[:64].reshape(64, -1).astype(np.float64)
with np.errstate(invalid="ignore"):
    without_eps = (pixels - pixels.mean(axis=0)) / pixels.std(axis=0)
print(f"without epsilon {np.isnan(without_eps).all(axis=0).sum()} of {pixels.shape[1]} "
      "pixels become NaN; BatchNorm on the same pixels: "
      f"{np.isnan(batch_norm(pixels)).sum()} NaN")

# %% [markdown]
# With $\epsilon$ the variance of $\hat x$ is $\frac{\sigma_B^2}{\sigma_B^2 +
# \epsilon}$: almost 1 where $\sigma_B^2$ is much larger than $\epsilon$, almost 0 where
# it is much smaller. So $\epsilon$ does more than avoid a division by zero. It decides
# which variation counts as information and which as noise. We add two columns to the
# table: a constant, and one that varies a little.

# %%
noise = rng.standard_normal(64)
tiny = 0.25 + 1e-4 * (noise - noise.mean()) / noise.std()  # variance 1e-8
columns = np.column_stack([table, np.full(64, 0.25), tiny])
variance = columns.var(axis=0)
after = batch_norm(columns)
print(f"constant column: largest |output| {np.abs(after[:, 100]).max():.3g}; variance "
      f"{variance[101]:.2g} became {after[:, 101].var():.3g}; the others "
      f"{after[:, :100].var(axis=0).min():.6f} or more")

# %%
fig, ax = plotting.figure(size=(11.5, 6.3), title=r"Below $\epsilon$ BatchNorm no "
                                                  r"longer lifts the variance to 1")
curve = np.geomspace(1e-10, 10, 300)
users = {1e-5: "PyTorch, minidl", 1e-3: "Keras", 1e-12: "almost none"}
for (eps, user), (color, line) in zip(users.items(), plotting.LOOKS):
    ax.plot(curve, curve / (curve + eps), color=color, linestyle=line, linewidth=3,
            label=rf"$\epsilon$ = {eps:g} ({user})")
ax.plot(variance[:100], after[:, :100].var(axis=0), "o", color="0.35", markersize=8,
        zorder=4)
ax.annotate("units of\nour layer", (variance[:100].max(), 0.93), ha="center", va="top",
            fontsize=14)
ax.plot(variance[101], after[:, 101].var(), "s", color="black", markersize=11, zorder=4)
ax.annotate("tiny column", (variance[101], 0.05), ha="center", fontsize=14)
ax.set(xscale="log", xlabel=r"variance before, $\sigma_B^2$",
       ylabel=r"variance of $\hat x$")
plotting.legend(ax)
lesson.show(fig, "epsilon")

# %% [markdown]
# ## Not a normal distribution
#
# "Adjusted to the standard normal distribution (mean 0, variance 1)", says text 001.
# The mean and the variance are right, the name of the distribution is not: BatchNorm
# shifts and stretches, and neither changes a shape. A skewed distribution stays as
# skewed as it was.


# %%
def skewness(x):
    return np.mean((x - x.mean()) ** 3) / x.std() ** 3


skewed = rng.exponential(5.0, (4000, 1))
stretched = batch_norm(skewed)
fig, axes = plotting.figure(1, 2, title="BatchNorm keeps the shape: skewness "
                                        f"{skewness(skewed):.3f} before, "
                                        f"{skewness(stretched):.3f} after")
for ax, x, name in zip(axes, (skewed, stretched), ("before", "after BatchNorm")):
    grid = np.linspace(x.mean() - 3 * x.std(), x.max(), 200)
    normal = np.exp(-(grid - x.mean()) ** 2 / (2 * x.var()))
    normal /= np.sqrt(2 * np.pi * x.var())
    ax.hist(x.ravel(), 60, density=True, color=plotting.LOOKS[0][0], alpha=0.6,
            label="exponential data")
    ax.plot(grid, normal, color="black", linestyle="--", linewidth=2.5,
            label="normal distribution, same mean and variance")
    ax.set_title(f"{name}: mean {abs(x.mean()):.2f}, variance {x.var():.2f}",
                 fontsize=16)
    ax.set(xlabel="value", ylabel="density")
plotting.legend(axes[0])
lesson.show(fig, "shape")

# %% [markdown]
# ## What gamma and beta are for
#
# They let the network undo the normalisation, say texts 001 and 004. That is true,
# because with $\gamma = \sqrt{\sigma_B^2 + \epsilon}$ and $\beta = \mu_B$ we get the
# input back. But the layer does not start there, and nothing says that training goes
# there.

# %%
undo = BatchNorm(input_shape=columns.shape[1]).astype(np.float64)
undo.gamma.data, undo.beta.data = np.sqrt(variance + 1e-5), columns.mean(axis=0)
undone = np.abs(undo(columns).numpy() - columns).max()
changed = np.abs(batch_norm(table) - table).mean()
print(f"gamma = sqrt(var + eps), beta = mean: largest |y - x| {undone:.1e}; gamma = 1, "
      f"beta = 0: mean |y - x| {changed:.3f}")

# %% [markdown]
# How much can they learn? We freeze all random kernels of a deep sigmoid network and
# train only the output layer, then also $\gamma$ and $\beta$: 600 numbers that can
# shift and stretch each unit, nothing else. Predict: three accuracies, for the output
# layer alone, with $\gamma$ and $\beta$, and for all weights.

# %%
ALONE, WITH, ALL = "output layer alone", "with gamma and beta", "all weights"


def network(seed, trained):
    layers = []
    for _ in range(3):
        layers += [Dense(100), BatchNorm(), Activation("sigmoid")]
    model = Sequential([*layers, Dense(10)], seed=seed).build(784)
    for layer in layers:
        if trained != ALL and not isinstance(layer, Activation):
            layer.requires_grad_(trained == WITH and isinstance(layer, BatchNorm))
    return model


STEPS = 400
frozen = experiments.compare({name: lambda seed, name=name: network(seed, name)
                              for name in (WITH, ALONE, ALL)}, data, lr=1.0,
                             steps=STEPS, batch_size=64, seeds=lesson.seeds(3),
                             eval_steps=range(0, STEPS + 1, 25))
reached = {name: frozen.accuracy_at(name, STEPS) for name in (ALONE, WITH, ALL)}
for name, accuracy in reached.items():
    print(f"{name:20}: test accuracy after {STEPS} steps, by seed: "
          + ", ".join(f"{a:.3f}" for a in accuracy))

# %%
medians = {name: np.median(accuracy) for name, accuracy in reached.items()}
fig, ax = plotting.figure(size=(11, 6), title="Frozen random kernels: "
                                              f"{medians[ALONE]:.0%} right, "
                                              f"{medians[WITH]:.0%} if gamma and beta "
                                              "learn")
# blue and orange mean with and without BatchNorm elsewhere
for i, name in enumerate((ALONE, WITH, ALL)):
    plotting.band(range(0, STEPS + 1, 25), frozen.array(name, "accuracy"), name, i + 2,
                  ax)
ax.set(xlabel="training step", ylabel="test accuracy", ylim=(0, 1))
plotting.legend(ax)
lesson.show(fig, "gamma_and_beta")

# %% [markdown]
# Shift and scale alone are worth something, on top of features that nobody trained.
# (Frankle et al. 2021 went much further and trained nothing but BatchNorm in a deep
# ResNet.)
#
# ## The five texts
#
# The course takes its claims from five texts, and calls them by their numbers.
#
# - **000**: "What is batch normalization used for?", a page of questions and answers in
#   Russian; no author, no date.
# - **001**: "Batch Normalization", a blog post in Chinese, copied at
#   kler.cn/news/365147.html; no author, no date.
# - **002**: "Batch normalization", a glossary entry in Czech by the company FlowHunt;
#   no author, no date.
# - **003**: "Tensorflow 2.0 in brief: batch normalization", slides in Chinese by the
#   lecturer 日月光华; no date.
# - **004**: Peng Qian, "Visualizing What Batch Normalization Is and Its Advantages",
#   February 2024, in an Italian copy.
#
# Text 000 credits Sergey Ioffe and a "Christian Schille". The second author of the
# paper is Christian *Szegedy*.
#
# ## Sentences to read again
#
# The texts explain BatchNorm to beginners, and most of what they say of its arithmetic
# is right. But:
#
# - Text 001: "for each *sample* of the mini-batch compute its mean and variance". Read
#   to the letter, this is LayerNorm. Its formula says something else, $\mu =
#   \frac{1}{n} \sum_{i=1}^{n} x_i$ over "the samples $x_1, ..., x_n$ of the batch": a
#   mean over samples, as in BatchNorm. So the formula is right (for one feature) and
#   the sentence is careless. Neither says that each *feature* has a mean of its own.
#   Believe the formula.
# - Text 001: "to the standard normal distribution". Mean and variance, yes; the shape
#   stays.
# - Text 001, "the variance becomes 1", and text 004, "(Xi - Xmean) / Xstd": without
#   $\epsilon$. With it, $\sigma_B^2 / (\sigma_B^2 + \epsilon)$, and no NaN.
# - Text 003, step 5: $\gamma$ and $\beta$ "give back the original value"; the forward
#   pass "does not change the current output, it only records $\gamma$ and $\beta$";
#   backpropagation then "finds the learning rate". The output changes at once, as
#   measured above; only special values undo it. And backpropagation finds gradients. We
#   choose the learning rate.
# - Text 003: standardisation, "also called normalisation", maps data to a given range.
#   That is min-max; lesson 3 has both.

# %%
print()
known = np.array([-1.34163542, -0.44721181, 0.44721181, 1.34163542])
lesson.check("1, 2, 3, 4: largest difference from the known result",
             np.abs(batch_norm(four).ravel() - known).max(), at_most=1e-8)
lesson.check("1, 2, 3, 4: kept variance, difference from 5/3", abs(kept - 5 / 3),
             at_most=1e-12)
lesson.check("largest |mean| of a column", np.abs(after.mean(axis=0)).max(),
             at_most=1e-12)
lesson.check("largest difference of a variance from var / (var + eps)",
             np.abs(after.var(axis=0) - variance / (variance + 1e-5)).max(),
             at_most=1e-10)
lesson.check("constant column: largest |output|", np.abs(after[:, 100]).max(),
             at_most=1e-12)

# %%
lesson.check("another last image: change in the rows of the others, BatchNorm",
             neighbours["BatchNorm"], at_least=0.02)
lesson.check("the same, LayerNorm", neighbours["LayerNorm"], at_most=0, claim=False)
lesson.check("skewness: change by BatchNorm",
             abs(skewness(stretched) - skewness(skewed)), at_most=1e-10, claim=False)
lesson.check("gamma = 1, beta = 0: mean |y - x|", changed, at_least=0.2)
lesson.check("gamma = sqrt(var + eps), beta = mean: largest |y - x|", undone,
             at_most=1e-12)
lesson.check(f"frozen kernels: accuracy after {STEPS} steps, gamma and beta trained",
             medians[WITH], at_least=0.6)
lesson.check("frozen kernels: accuracy gained by training gamma and beta, mean",
             np.mean(reached[WITH] - reached[ALONE]), at_least=0.03)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. Over which numbers does BatchNorm take a mean?**
#
# - A: all features of one sample
# - B: one feature of all samples in the batch
# - C: the whole batch, samples and features
# - D: one feature of all batches so far
#
# **2. Exponentially distributed values go through a new BatchNorm in training mode.
# What comes out?**
#
# - A: standard normal values
# - B: values between 0 and 1
# - C: the same shape, with mean 0 and variance almost 1
# - D: the values that went in: only $\gamma$ and $\beta$ are recorded
#
# <details><summary>Answers</summary>
#
# 1 B. A is text 001's step 1 ("of each sample"); it describes LayerNorm. C would be one
# mean for the whole layer. D is what the running averages approach; they serve in
# evaluation, not in training.
#
# 2 C. A is text 001's phrase; but BatchNorm shifts and scales, it cannot bend. B is
# text 003's "given range", D its step 5: the output changes at once, and only one
# special $\gamma$ and $\beta$ would undo that.
#
# </details>
#
# ## Try
#
# 1. Easy: compute LayerNorm of `table` with `batch_norm` alone, by transposing twice.
#    Check it against `layer_norm`.
# 2. Easy: what does BatchNorm make of a batch of two samples? Try several pairs, then
#    prove it.
# 3. Medium: in the last experiment set `eps=1` in every BatchNorm. Which of the three
#    networks notices most, and why?
# 4. Medium: freeze $\gamma$ and $\beta$ instead and train all kernels. What is lost?
# 5. Research: replace the sigmoid by ReLU and run with `MINIDL_BN=identity`. There
#    $\gamma$ and $\beta$ gain something although nothing is normalised. So what does
#    the last CHECK show, and what not?
#
# Now write it yourself: exercise 5 (`python -m minidl exercise 5 --copy DIR`).
#
# Sources: S. Ioffe and C. Szegedy 2015, section 3 and algorithm 1. J. Ba, J. Kiros and
# G. Hinton, Layer Normalization, 2016. J. Frankle, D. Schwab and A. Morcos, Training
# BatchNorm and Only BatchNorm, 2021. Texts 001, 003 and 004.
