# %% [markdown]
# # 18. Noise and memory: does BatchNorm regularise?
#
# Nearly every text says so. "Batch normalisation adds a little noise to the data in
# training, which regularises and can reduce overfitting" is the usual sentence. It
# contains three claims: that there is noise, that noise keeps a network from memorising
# its training set, and that a network with BatchNorm therefore generalises better.
# Lesson 12 confirms the first, since each prediction depends on which images share its
# batch. This lesson tests the other two.
#
# You need: lesson 12, and what overfitting is. Running time: 10 to 20 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments
from minidl import estimate_population_statistics, optim, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("18_noise_and_memory")
(x_train, y_train), (x_test, y_test) = lesson.load_data()
BN, PLAIN = "with BatchNorm", "without BatchNorm"

# %% [markdown]
# ## A test of memory
#
# We take 512 images and replace a fifth of their labels by wrong ones. Nothing in
# such an image says that it is, for example, a 3. A network can agree with its wrong
# label only by memorising that image. So the share of *wrong* labels that it
# reproduces measures memory, and the share of *right* labels measures how far it has
# learned the training set. Both are taken on the training images, in evaluation mode.
#
# To change the noise and nothing else, we use *ghost batches* (Hoffer et al. 2017).
# Each step has 64 images, but BatchNorm takes its statistics over groups of 4, of 16 or
# over all 64. The smaller the group, the larger the noise. A network without BatchNorm
# has no such noise at all. All share their initial weights and their batches. The
# learning rate is 0.3, and 0.1 without BatchNorm, because at 0.3 the loss of the plain
# network jumps.


# %%
def network(seed, batch_norm=True, group=None):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm(ghost_batch_size=group))
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)


def partly_wrong(seed, n=512):
    """n training images, their labels, of which a fifth are wrong, and which are."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x_train))[:n]
    x, y, wrong = x_train[chosen], y_train[chosen], np.arange(n) < n // 5
    y[wrong] = (y[wrong] + rng.integers(1, 10, wrong.sum())) % 10
    return x, y, wrong


# %% [markdown]
# ## Predict
#
# After 240 steps, which is 30 epochs, what share of the wrong labels has each network
# memorised: with groups of 4, with groups of 16, with whole batches of 64, and without
# BatchNorm? Then a harder question: at the moment when each of them has learned 95 % of
# the *right* labels, whose memory of the wrong ones is the largest?
#
# ## Run

# %%
LOOKS = (10, 20, 40, 60, 80, 120, 180, 240, 300)


def look(model, x, y, wrong, group):
    """Shares of right and of wrong labels, test accuracy; with exact statistics."""
    norms = [layer for layer in model.layers if isinstance(layer, BatchNorm)]
    for layer in norms:
        layer.ghost_batch_size = None  # exact statistics need no groups
    estimate_population_statistics(model, x)
    for layer in norms:
        layer.ghost_batch_size = group or None
    agrees = model.predict(x).argmax(axis=1) == y
    test = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
    return agrees[~wrong].mean(), agrees[wrong].mean(), test


# %%
def path(group, seed, looks=LOOKS):
    """What look returns at each of looks, in the course of training. Group 0: plain."""
    x, y, wrong = partly_wrong(seed)
    model, done, rows = network(seed, group > 0, group or None), 0, []
    optimizer = optim.SGD(lr=0.3 if group else 0.1)
    for step in looks:
        experiments.run(model, ((x, y), (x_test, y_test)), optimizer=optimizer,
                        steps=step - done, batch_size=64)
        rows.append(look(model, x, y, wrong, group))
        done = step
    return {"path": np.array(rows)}


# %%
NAMES = {4: "groups of 4", 16: "groups of 16", 64: "whole batches", 0: PLAIN}
swept = experiments.sweep({"group": list(NAMES), "seed": lesson.seeds(3)}, path)
paths = dict(zip(NAMES.values(), swept.array("path")))  # (seeds, looks, 3)
RIGHT, WRONG, TEST = range(3)
for step in (60, 240, 300):
    print(f"after {step} steps")
    for name, rows in paths.items():
        right, wrong, test = rows[:, LOOKS.index(step)].mean(axis=0)
        print(f"    {name:17}: {right:.3f} of the right labels, {wrong:.3f} of the "
              f"wrong ones; test accuracy {test:.3f}")

# %% [markdown]
# Read the three blocks one after the other. The groups stand in the same order in
# each, but the differences do not stay. What looks like a limit of memory after 60
# steps is a *delay*, because the noise slows down all learning. So a single number,
# taken where training happened to stop, says little. We look at the whole path instead.

# %%
late = paths["groups of 4"][:, -1, WRONG].mean()
fig, axes = plotting.figure(1, 2, size=(15, 6.5), sharey=True,
                            title="Noise delays memorising: in the end groups of 4 "
                                  f"reach {late:.0%} of the wrong labels")
for number, (name, rows) in enumerate(paths.items()):
    plotting.band(LOOKS, rows[:, :, WRONG], name, number, axes[0])
    color, line = plotting.LOOKS[number]
    right, wrong, _ = rows.mean(axis=0).T
    axes[1].plot(right, wrong, linestyle=line, color=color, marker="os^D"[number],
                 markersize=7, linewidth=3)
axes[0].set(xlabel="training step", ylabel="share of wrong labels memorised",
            xscale="log", xticks=(10, 30, 100, 300), xticklabels=(10, 30, 100, 300))
axes[0].minorticks_off()
axes[1].set(xlabel="share of right labels learned", xlim=(0.84, 1.005),
            ylim=(0, 1.02), title="the same paths, at equal fit")
axes[0].set_title("by step")
axes[1].axvline(0.95, color="0.4", linestyle=":", linewidth=2)
plotting.legend(axes[0])
lesson.show(fig, "wrong_labels")

# %% [markdown]
# The right panel has no steps in it. It compares networks at the moment when they fit
# the right labels equally well. We read off what each has memorised where it first
# agrees with 95 % of them (the dotted line).

# %%
FIT = 0.95


def at_equal_fit(group):
    """(seeds, 2): wrong labels and test accuracy where right labels first reach FIT.

    Six seeds: the paths above and three more, which end when they have come so far.
    """
    more = [path(group, seed, LOOKS[:7])["path"] for seed in lesson.seeds(6)[3:]]
    rows, found = np.concatenate([paths[NAMES[group]][:, :7], more]), []
    for right, wrong, test in rows.transpose(0, 2, 1):
        best = np.maximum.accumulate(right)  # so that the first time counts
        found.append([np.interp(FIT, best, wrong), np.interp(FIT, best, test)])
    return np.array(found)


fit = {name: at_equal_fit(group) for group, name in NAMES.items() if group in (4, 0)}
for name, values in fit.items():
    wrong, test = values.mean(axis=0)
    print(f"95 % of the right labels, {name:17}: {wrong:.3f} of the wrong ones, "
          f"test accuracy {test:.3f}")
wrong, test = (experiments.paired_difference(*column) for column in
               zip(fit["groups of 4"].T, fit[PLAIN].T))
print(f"groups of 4 - plain, at equal fit: wrong labels {wrong}, test accuracy {test}")


# %%
def steps_to_half(name):
    """The first look at which half of the wrong labels are memorised; mean of seeds."""
    reached = paths[name].mean(axis=0)[:, WRONG] >= 0.5
    return LOOKS[reached.argmax()] if reached.any() else np.inf


delay = min(steps_to_half("groups of 4"), LOOKS[-1]) / steps_to_half("whole batches")
peak = {name: rows[:, :, TEST].mean(axis=0).max() for name, rows in paths.items()}
print("best test accuracy on the way: "
      + ", ".join(f"{name} {value:.3f}" for name, value in peak.items()))

# %% [markdown]
# At equal fit groups of 4 have no advantage over the plain network that six seeds would
# show, in memory or on the test set. Stopping early does for every network what the
# noise seems to do for one.
#
# ## A test of generalisation
#
# Less memory was only a means. The end is accuracy on images that the network has not
# seen. So now 500 images with their true labels, few enough to overfit, in batches
# of 50. Each network chooses its learning rate from a wide grid, from 0.1 to 4. It
# chooses on 1,000 *validation* images, after 150 steps, because a rate chosen on the
# test images would flatter the network that had more luck with them. Then eight fresh
# seeds of the best of each are compared on the test set.
#
# Predict: which one is ahead after 150 steps, and which after 300?

# %%
RATES = (0.1, 0.3, 1.0, 2.0, 4.0)


def few_images(batch_norm, lr, seed, steps, test=False):
    """Accuracy after each of steps: on validation images, or on the test set."""
    chosen = np.random.default_rng(seed).permutation(len(x_train))
    train, held_out = np.split(chosen[:1500], [500])
    validation = x_train[held_out], y_train[held_out]
    data = (x_train[train], y_train[train]), (x_test, y_test) if test else validation
    run = experiments.run(network(seed, batch_norm), data, optimizer=optim.SGD(lr=lr),
                          steps=max(steps), batch_size=50, eval_steps=steps)
    return {"accuracy": np.nan_to_num(run.accuracy, nan=0.1)}  # diverged: it guesses


grid = {"batch_norm": [True, False], "lr": list(RATES), "seed": lesson.seeds(2),
        "steps": [[150]]}
chosen = experiments.sweep(grid, few_images).array("accuracy")[..., 0, 0]
rates = {}
for name, table in zip((BN, PLAIN), chosen):  # (rates, seeds)
    rates[name] = experiments.best(RATES, table.T)
    print(f"{name:17}: validation accuracy by rate "
          + ", ".join(f"{lr}: {row.mean():.3f}" for lr, row in zip(RATES, table))
          + f"; chosen {rates[name]}")

# %%
fresh = [seed + 500 for seed in lesson.seeds(8)]
final = {name: np.array([few_images(name == BN, lr, seed, [150, 300], True)["accuracy"]
                         for seed in fresh]) for name, lr in rates.items()}
gain = {}
for column, step in enumerate((150, 300)):
    pair = [final[name][:, column] for name in (BN, PLAIN)]
    gain[step] = experiments.paired_difference(*pair)
    print(f"step {step}: test accuracy {pair[0].mean():.3f} with BatchNorm, "
          f"{pair[1].mean():.3f} without; difference {gain[step]}")

# %%
apart = 100 * max(abs(difference.mean) for difference in gain.values())
fig, ax = plotting.figure(size=(11.5, 6), title="500 images, each network at its "
                          f"best rate: at most {apart:.1f} points apart")
for column, step in enumerate((150, 300)):
    differences = 100 * (final[BN][:, column] - final[PLAIN][:, column])
    ax.plot(differences, np.full(8, column), "o", color="#0072B2", markersize=13,
            alpha=0.6)
    ax.errorbar(100 * gain[step].mean, column + 0.25, xerr=200 * gain[step].error,
                fmt="D", color="black", markersize=10, capsize=8, linewidth=3)
ax.axvline(0, color="0.4", linewidth=2)
ax.set(yticks=(0, 1), yticklabels=("step 150", "step 300"), ylim=(1.6, -0.5),
       xlabel="test accuracy with minus without BatchNorm, in points\n"
              "(dots: eight seeds; diamond: mean ± 2 standard errors)", xlim=(-5, 5))
lesson.show(fig, "few_images")

# %% [markdown]
# ## Explain
#
# 1. *There is noise*, and it falls as $1/\sqrt m$ (lesson 12). True.
# 2. *Noise prevents memorising.* It delays memorising, together with all other
#    learning. With groups of 4 a network needs several times as many steps to
#    memorise half of the wrong labels, but it gets there. At equal fit the difference
#    is small, and a plain network that stops early memorises no more.
# 3. *Therefore BatchNorm generalises better.* We find a gain, and a small one: half
#    a percentage point to one. At usual batch sizes the noise is small, and BatchNorm
#    speeds up all learning, memorising included.
#
# Ioffe and Szegedy report for ImageNet that Dropout could be removed or reduced
# (section 3.4). Their networks are larger and train for longer, and our small one
# cannot refute them. It does show what the sentence of the texts leaves out: the
# noise depends on the batch size, and "regularises" is a claim about the test set
# that has to be measured there.

# %%
print()
w = {name: rows[:, :, WRONG].mean(axis=0) for name, rows in paths.items()}
at = LOOKS.index(60)
lesson.check("60 steps: wrong labels memorised, groups of 4 - whole batches",
             w["groups of 4"][at] - w["whole batches"][at], at_most=-0.2)
lesson.check("steps to half of the wrong labels: groups of 4 / whole batches", delay,
             at_least=3)
lesson.check("300 steps: wrong labels memorised with groups of 4",
             w["groups of 4"][-1], at_least=0.5, claim=False)
lesson.check("95 % of the right labels: wrong ones, groups of 4 - plain, size",
             abs(wrong.mean), at_most=0.1, claim=False)
lesson.check("95 % of the right labels: test accuracy, groups of 4 - plain, size",
             abs(test.mean), at_most=0.025, claim=False)
lesson.check("500 images, step 300: test accuracy without BatchNorm",
             final[PLAIN][:, 1].mean(), at_least=0.75, claim=False)
lesson.check("500 images, step 300: size of the difference in test accuracy",
             abs(gain[300].mean), at_most=0.015, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. After 60 steps a network with groups of 4 has memorised 10 % of the wrong labels,
# one with whole batches 60 %. What follows?**
#
# - A: Small groups prevent overfitting.
# - B: Small groups learn more slowly; compare again at equal fit before you conclude.
# - C: BatchNorm regularises, whatever the batch size.
# - D: The network with whole batches has the larger learning rate.
#
# **2. Where does the noise of BatchNorm come from?**
#
# - A: A small random number is added to each input in training.
# - B: $\gamma$ and $\beta$ are drawn at random for each batch.
# - C: The running averages lag behind the weights.
# - D: Mean and variance are those of the batch, and the other images in it are drawn at
#   random.
#
# <details><summary>Answers</summary>
#
# 1 B. After 480 steps groups of 4 have memorised more than half of the wrong labels,
# too. A is the conclusion of texts 000 and 001, drawn where training happened to stop.
# C is the sentence of texts 002 and 003, which mention no batch size; here nothing but
# the size of the groups has changed. D: all networks with BatchNorm have the rate 0.3.
#
# 2 D. A is text 000 taken at its word ("adds a little noise to the data"); nothing is
# added. B: they are learned, and the next batch finds them as the last step left them.
# Text 001 is closer: "another normalisation for each batch", but of the statistics. C
# concerns evaluation, where there is no noise.
#
# </details>
#
# ## Try
#
# 1. Easy: at which group size is half of the wrong labels memorised after 240 steps?
#    Try 6, 8 and 12.
# 2. Easy: plot the test accuracy of all four networks against the step. At which step
#    would you stop each of them?
# 3. Medium: never shuffle (`model.shuffle_rng = None` before the training). Every image
#    then always has the same companions. With groups of 4, are more wrong labels
#    memorised?
# 4. Medium: give the network without BatchNorm `Dropout(0.5)` after each activation.
#    Compare it with groups of 4, by step and at equal fit.
# 5. Research: Luo et al. say that BatchNorm acts like normalising with population
#    statistics plus a decay of $\gamma$. After 40 steps set `frozen_statistics`, and
#    shrink $\gamma$ a little at each further step. Do you find the effect of groups
#    of 16?
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 3.4 and 4.2.1. E. Hoffer, I. Hubara
# and D. Soudry, Train longer, generalize better, 2017 (ghost batches). P. Luo, X.
# Wang, W. Shao and Z. Peng, Towards Understanding Regularization in Batch
# Normalization, 2018.
