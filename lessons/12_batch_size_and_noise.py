# %% [markdown]
# # 12. Batch size and noise: what does a sample learn from its neighbours?
#
# In training, BatchNorm computes a sample's output from the whole batch. So the answer for one image depends on
# which other images happen to be there. Nearly every text adds: this noise *regularises*, it prevents overfitting.
# Three questions. How large is the noise? How small may a batch be? And does BatchNorm regularise?
#
# You need: lesson 4, and what overfitting is. Running time: 10 to 20 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import (Activation, BatchNorm, Dense, Sequential, estimate_population_statistics, experiments, no_grad, optim,
                    plotting)
from minidl import data as datasets
from minidl.lessonkit import Lesson

lesson = Lesson("12_batch_size_and_noise")
data = lesson.load_data()
(x_train, y_train), (x_test, y_test) = data

# %% [markdown]
# ## Where the neighbours come from
#
# An epoch is a random split of the training set into batches, *without replacement*: each image is used exactly once,
# each time with other companions. Some programs draw every batch *with* replacement. Then the share of images that an
# epoch of $n$ draws misses is $(1 - 1/n)^n \approx 1/e = 0.368$.

# %%
rng = np.random.default_rng(lesson.seed)
numbers = np.arange(1000)
epoch = [batch for batch, _ in datasets.batches(numbers, numbers, 64, rng)]
times_used = np.bincount(np.concatenate(epoch), minlength=1000)
missed = 1 - len(np.unique(rng.integers(0, 1000, 1000))) / 1000
print(f"1000 images in batches of 64: {len(epoch) - 1} full batches and one of {len(epoch[-1])}; "
      f"each image is used {times_used.min()} to {times_used.max()} times")
print(f"drawn with replacement, an epoch misses {missed:.1%} of the images")
few = numbers[:129]
print("129 images in batches of 64 give batches of", [len(batch) for batch, _ in datasets.batches(few, few, 64)])

# %% [markdown]
# Why 65 in the last line? The last image would have been alone, and a batch of one is a special case: see below.
#
# ## Predict
#
# We train a network for 200 steps, take one test image, and send it through in *training* mode, many times, each time
# with other random companions. Its ten logits change a little each time. By which factor does that noise
# shrink when the batch grows from 16 to 64? And is there noise in evaluation mode?
#
# ## Run


# %%
def network(seed, batch_norm=True, group=None):
    layers = []
    for _ in range(2):
        layers.append(Dense(64, kernel_initializer="he_normal"))
        if batch_norm:
            layers.append(BatchNorm(ghost_batch_size=group))
        layers.append(Activation("relu"))
    return Sequential([*layers, Dense(10, kernel_initializer="he_normal")], seed=seed)


def noise(model, image, size, draws=60):
    """The standard deviation of an image's logits over random companions in a batch of this size, mean over the logits."""
    logits = []
    for _ in range(draws):
        companions = x_train[rng.integers(0, len(x_train), size - 1)]
        with no_grad():
            logits.append(model(np.concatenate([image[None], companions])).numpy()[0])
    return np.std(logits, axis=0).mean()


sizes = np.array([4, 8, 16, 32, 64, 128, 256])
noises = []
for i, seed in enumerate(lesson.seeds(3)):
    model = network(seed)
    experiments.run(model, data, optimizer=optim.SGD(lr=0.1), steps=200, batch_size=64)
    noises.append([noise(model.train(), x_test[i], size) for size in sizes])
    print(f"seed {seed}, evaluation mode: noise {noise(model.eval(), x_test[i], 4):.3f}; training mode, batches of 4 to 256: "
          + ", ".join(f"{value:.3f}" for value in noises[-1]))

# %%
typical = np.maximum(np.mean(noises, axis=0), 1e-4)  # below 1e-4 there is nothing but rounding
large = sizes >= 16
slope = np.polyfit(np.log(sizes[large]), np.log(typical[large]), 1)[0]
fig, ax = plotting.figure(title=f"The noise of a sample's logits falls with the batch size, with slope {slope:.2f}",
                          size=(11, 6))
plotting.band(sizes, np.maximum(noises, 1e-4), "measured, 3 networks", 0, ax)
ax.plot(sizes, typical[4] * np.sqrt(sizes[4] / sizes), ":", color="0.3", linewidth=2.5, label="slope $-1/2$")
ax.set(xlabel="batch size", ylabel="standard deviation of the logits\nover random companions", xscale="log", yscale="log",
       xticks=sizes, xticklabels=sizes)
ax.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "noise")

# %% [markdown]
# $\mu_B$ is a mean of $m$ numbers, and the mean of $m$ random numbers has the standard deviation $\sigma / \sqrt{m}$. The same
# holds, roughly, for $\sigma_B^2$. So four times the batch, half the noise. In very small batches the law bends, presumably
# because the rest of the network does not pass on so large a noise in proportion; we fit the slope from 16 on.
#
# ## How small may a batch be?
#
# Of two numbers one lies above the mean and one below, at the same distance. So $\hat x$ is 1 or $-1$, whatever the
# numbers were: in a batch of two BatchNorm says which of the two is larger and forgets by how much. In general
# $|\hat x_i| \le \sqrt{m - 1}$. We look at what the first BatchNorm makes of the numbers that its Dense layer gives.

# %%
first_layer = model.layers[0](x_train[:2048]).numpy()
layer = BatchNorm(eps=1e-12).build(64).train()  # gamma = 1, beta = 0
outputs = {size: np.concatenate([layer(batch).numpy() for batch, _ in datasets.batches(first_layer, first_layer, size)])
           for size in (2, 4, 64)}
at_one = np.mean(np.abs(np.abs(outputs[2]) - 1) < 1e-5)

fig, axes = plotting.figure(1, 3, sharex=True, size=(14, 5.5), title="In a batch of 2, BatchNorm only says which is larger: "
                                                                     f"{at_one:.1%} of its outputs are 1 or $-$1")
for ax, (size, values) in zip(axes, outputs.items()):
    ax.hist(values.ravel(), bins=np.arange(-4.05, 4.1, 0.1), weights=np.full(values.size, 100 / values.size), color="#0072B2")
    ax.set(title=f"batches of {size}", xlabel="output of BatchNorm")
axes[0].set_ylabel("outputs per bin of width 0.1 (%)")
lesson.show(fig, "outputs")

# %% [markdown]
# A batch of one has variance 0, so $\hat x = 0$ whatever the image is. minidl refuses it, and says what to do:

# %%
try:
    model.train()(x_test[:1])
    refused = False
except ValueError as error:
    print(f"ValueError: {error}")
    refused = True
print(f"in evaluation mode a single image is fine: its class is {model.eval()(x_test[:1]).numpy().argmax()}")

# %% [markdown]
# Predict: train with batches of 2, 4, 8, 64 and 256. At which sizes is the network with BatchNorm the better one?
#
# Each run is one epoch, at most 800 steps. The learning rate is 0.1 from 64 images on, and falls with the
# square root of the size below; both networks get the same. The figure shows medians and ranges over three seeds, the
# printed numbers and the title are means.


# %%
def one_epoch(batch_norm, size, seed):
    model, steps = network(seed, batch_norm), min(800, len(x_train) // size)
    result = experiments.run(model, data, optimizer=optim.SGD(lr=0.1 * min(1, size / 64) ** 0.5), steps=steps, batch_size=size,
                             eval_steps=[steps])
    estimate_population_statistics(model, x_train[:2000])  # exact statistics in the place of the running averages
    exact = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
    return {"accuracy": result.accuracy[-1], "exact": exact}


small = experiments.sweep({"batch_norm": [True, False], "size": [2, 4, 8, 64, 256], "seed": lesson.seeds(3)}, one_epoch)
BN, PLAIN = "with BatchNorm", "without BatchNorm"
sizes, by_size = small.axes["size"], dict(zip([BN, PLAIN], small.array("accuracy")))  # arrays (sizes, seeds)
mean = {name: table.mean(axis=1) for name, table in by_size.items()}
gap = dict(zip(sizes, mean[BN] - mean[PLAIN]))
for size, with_bn, exact, without in zip(sizes, mean[BN], small.array("exact")[0].mean(axis=1), mean[PLAIN]):
    print(f"batches of {size:3}: test accuracy {with_bn:.3f} with BatchNorm ({exact:.3f} with exact statistics), "
          f"{without:.3f} without")

# %%
fig, ax = plotting.figure(size=(11.5, 6), title=f"BatchNorm's effect on accuracy: {gap[256]:+.2f} in batches of 256, "
                                                f"{gap[2]:+.2f} in batches of 2")
for i, (name, accuracy) in enumerate(by_size.items()):
    plotting.band(sizes, accuracy.T, name, i, ax)
ax.set(xlabel="batch size", ylabel="test accuracy after one epoch\n(at most 800 steps)", ylim=(0, 1), xscale="log",
       xticks=sizes, xticklabels=sizes)
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "batch_size")

# %% [markdown]
# The failure at 2 is a failure of *training*: exact statistics do not repair it. In a batch of two the images get exactly
# opposite numbers from the first BatchNorm, and these depend only on the difference of the two. So a logit says as much
# about the companion as about the image itself. (From 64 to 256 both curves fall because an epoch has fewer steps.)
#
# ## Does the noise regularise?
#
# To change the noise and nothing else we use *ghost batches* (Hoffer et al. 2017): every step has 128 images, but BatchNorm
# takes its statistics over groups of 4, 8, 32 or all 128. We take 1,024 images and give 20 % of them a *wrong* label. A network
# that overfits learns the wrong labels by heart. Predict: what share of them, with groups of 4 and of 128?


# %%
def memorise(group, seed):
    """Train on 1,024 images of which 20 % have a wrong label; group 0: without BatchNorm."""
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x_train))[:1024]
    x, y = x_train[chosen], y_train[chosen]
    wrong = np.arange(1024) < 205
    y[wrong] = (y[wrong] + rng.integers(1, 10, 205)) % 10
    model = network(seed, batch_norm=group > 0, group=group or None)
    experiments.run(model, ((x, y), data[1]), optimizer=optim.SGD(lr=0.3), steps=240, batch_size=128)
    estimate_population_statistics(model, x)  # so that we compare what was learnt, not running averages
    learnt = model.predict(x).argmax(axis=1) == y
    return {"wrong": learnt[wrong].mean(), "right": learnt[~wrong].mean(),
            "test": np.mean(model.predict(x_test).argmax(axis=1) == y_test)}


ghosts = experiments.sweep({"group": [4, 8, 32, 128, 0], "seed": lesson.seeds(2)}, memorise)
groups, wrong, test = ghosts.axes["group"][:-1], ghosts.array("wrong"), ghosts.array("test")
for group, *row in zip(ghosts.axes["group"], wrong.mean(axis=1), ghosts.array("right").mean(axis=1), test.mean(axis=1)):
    print(f"{f'groups of {group:3}' if group else 'no BatchNorm ':13}: learnt {row[0]:.3f} of the wrong labels, "
          f"{row[1]:.3f} of the right ones; test accuracy {row[2]:.3f}")

# %%
fig, ax = plotting.figure(title=f"Groups of 4 learn {wrong[0].mean():.0%} of the wrong labels by heart, "
                                f"whole batches {wrong[3].mean():.0%}", size=(11, 6))
plotting.band(groups, wrong[:-1].T, "wrong labels learnt", 0, ax)
plotting.band(groups, test[:-1].T, "accuracy on the test set", 2, ax)
ax.set(xlabel="group size within batches of 128", ylabel="share", ylim=(0, 1.02), xscale="log", xticks=groups,
       xticklabels=groups)
ax.minorticks_off()
plotting.legend(ax)
lesson.show(fig, "wrong_labels")

# %% [markdown]
# So noise does hinder learning by heart, if there is enough of it, and the test accuracy gains. But look at the last printed
# line: the network *without* BatchNorm, without any noise, learns fewer wrong labels than the one with whole batches,
# because it is slower at learning anything. "Less learnt by heart" alone does not yet mean "better".
#
# ## Does BatchNorm regularise?
#
# That is another question. We take 500 images with their true labels, few enough to overfit, batches of 50, 200 steps, and
# compare the test accuracy with and without BatchNorm. Each network may choose the better of two learning rates.


# %%
def few_images(batch_norm, lr, seed):
    chosen = np.random.default_rng(seed).permutation(len(x_train))[:500]
    few = (x_train[chosen], y_train[chosen]), data[1]
    result = experiments.run(network(seed, batch_norm), few, optimizer=optim.SGD(lr=lr), steps=200, batch_size=50,
                             eval_steps=[200])
    return {"test": result.accuracy[-1], "loss": result.final_loss()}


regularised = experiments.sweep({"batch_norm": [True, False], "lr": [0.1, 0.3], "seed": lesson.seeds(3)}, few_images)
accuracy = regularised.array("test")
for name, losses, table in zip([BN, PLAIN], regularised.array("loss"), accuracy):
    for lr, loss, row in zip(regularised.axes["lr"], losses, table):
        print(f"{name:17}, rate {lr}: training loss {loss.mean():.3f}, test accuracy by seed "
              + ", ".join(f"{value:.3f}" for value in row))
best = [table[table.mean(axis=1).argmax()] for table in accuracy]
difference = best[0].mean() - best[1].mean()

# %%
fig, ax = plotting.figure(title=f"500 images: BatchNorm changes the test accuracy by {difference:+.3f}", size=(11, 5))
for i, (name, values) in enumerate(zip([BN, PLAIN], best)):
    ax.plot(values, np.full(len(values), i), "os"[i], color=plotting.LOOKS[i][0], markersize=14, alpha=0.7)
    ax.plot([values.mean()] * 2, [i - 0.25, i + 0.25], color=plotting.LOOKS[i][0], linewidth=3)
ax.set(xlabel="test accuracy (a mark for each of 3 seeds, a line at their mean)", yticks=[0, 1], yticklabels=[BN, PLAIN],
       xlim=np.mean(best) + np.array([-0.05, 0.05]), ylim=(1.6, -0.6))
lesson.show(fig, "few_images")

# %% [markdown]
# ## Explain
#
# Three things go by the name of "BatchNorm regularises".
#
# 1. *There is noise*, and it falls as $1 / \sqrt{m}$. True.
# 2. *Much noise hinders learning by heart.* True: with groups of 4 the wrong labels are hardly learnt, the right ones are.
# 3. *So a network with BatchNorm generalises better.* Here we do not find it. At usual batch sizes the noise is small,
#    and BatchNorm also makes training faster, learning by heart included. The difference in test accuracy is reported
#    below and is no CHECK. Ioffe and Szegedy found on ImageNet that Dropout could be removed or reduced (section 3.4), and
#    that better shuffling gave about 1 % (section 4.2.1): larger networks, longer training. Our small one cannot refute that.

# %%
print()
lesson.check("slope of the noise against batch size, log-log: distance from -1/2", abs(slope + 0.5), at_most=0.1)
lesson.check("batches of 2: share of outputs within 1e-5 of gamma or -gamma, beta = 0", at_one, at_least=0.98)
lesson.check("a batch of 1 is refused", float(refused), at_least=1)
lesson.check("batches of 2: accuracy with - without BatchNorm", gap[2], at_most=-0.2)
lesson.check("batches of 256: accuracy with - without BatchNorm", gap[256], at_least=0.03)
lesson.check("wrong labels learnt: groups of 4 - whole batches of 128", wrong[0].mean() - wrong[3].mean(), at_most=-0.3)
lesson.check("how often an image is used in an epoch, at most", times_used.max(), at_most=1, claim=False)
print(f"reported, wrong labels: test accuracy with groups of 4 - of 128 is {test[0].mean() - test[3].mean():+.3f}, "
      f"with whole batches - without BatchNorm {test[3].mean() - test[4].mean():+.3f}")
print(f"reported, 500 images with true labels: test accuracy with - without BatchNorm is {difference:+.3f}")
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: which group size learns half of the wrong labels? Try 5, 6 and 7. The last group of a batch can be smaller.
# 2. Easy: show that $|\hat x_i| \le \sqrt{m - 1}$, and construct a batch of 4 in which it is an equality.
# 3. Medium: never shuffle (`model.shuffle_rng = None` before the training): every image then has the same companions for
#    ever. With groups of 4, are more wrong labels learnt by heart?
# 4. Medium: take the network without BatchNorm and put `Dropout(0.5)` after each activation. Compare with groups of 4.
# 5. Medium: put $m = 2$ into the backward formula of lesson 5. For which units is the gradient not nearly 0?
# 6. Research: Luo et al. say that BatchNorm acts like normalising with population statistics plus a decay of $\gamma$. Set
#    `frozen_statistics` after some steps, and add a decay of $\gamma$ to the loss. Do you get the effect of groups of 8?
#
# While `python -m minidl race` runs: [batches of 2, live](http://127.0.0.1:8107/#preset=12).
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 3.4 and 4.2.1. E. Hoffer, I. Hubara and D. Soudry, Train longer, generalize
# better, 2017 (ghost batches). P. Luo, X. Wang, W. Shao and Z. Peng, Towards Understanding Regularization in Batch
# Normalization, 2018.
