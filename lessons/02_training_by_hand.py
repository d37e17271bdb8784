# %% [markdown]
# # 2. Training by hand: what does `fit` do?
#
# `model.fit(x, y)` trains a network. What does it do? At its core are ten lines. We
# write them ourselves and get the same numbers as `fit`, to the last bit. On the way we
# meet the words of all later lessons: batch, epoch, learning rate, training and test
# accuracy. At the end we add Batch Normalization, with one more word in the program.
#
# You need: lesson 1. Running time: 5 to 10 seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import experiments, grad, optim, plotting
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("02_training_by_hand")
data = lesson.load_data()
(x, y), (x_test, y_test) = data

# %% [markdown]
# ## The data
#
# An image has 28 × 28 pixels. It comes as one row of 784 numbers, from 0 (black) to 1
# (white); its label is the digit, 0 to 9. The network learns from the *training*
# images. The *test* images are kept apart, because only images that it has never seen
# can tell whether it has learnt what a digit looks like, or just these images.


# %%
def show_images(images, titles, name, message, columns=8):
    fig, axes = plotting.figure(2, columns, size=(14, 5.5), title=message)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, title in zip(axes.flat, images, titles):
        ax.imshow(image.reshape(28, 28), cmap="gray")
        ax.set_title(title, fontsize=15)
    lesson.show(fig, name)


print(f"training images {x.shape}, pixels {x.min():.0f} to {x.max():.0f}; of each "
      f"digit: {np.bincount(y.astype(np.intp))}")
show_images(x, y[:16], "digits",
            f"The first 16 of {len(x):,} training images, with their labels")

# %% [markdown]
# ## The network
#
# 784 pixels, 64 hidden units with ReLU, which replaces negative numbers by 0, and 10
# outputs, one for each digit. The outputs are called *logits*: the larger a logit, the
# more likely that digit is in the network's view. A softmax turns them into
# probabilities, positive numbers that add up to 1. The loss of an image is the
# *cross-entropy* $-\ln p$, where $p$ is the probability of the right digit: it is 0 if
# $p = 1$ and grows without limit as $p$ goes to 0. The seed chooses the initial
# weights.


# %%
def network(*extra):
    return Sequential([Dense(64), *extra, Activation("relu"), Dense(10)],
                      seed=lesson.seed)


model = network()
p = F.softmax(model.predict(x[:1]))[0]
print(f"the first image is a {y[0]}; the untrained network says: "
      + ", ".join(f"{digit}: {p[digit]:.2f}" for digit in range(10)))
print(f"its loss: {-np.log(p[y[0]]):.2f}; for ten equal probabilities it would be ln "
      f"10 = {np.log(10):.2f}")
print(f"numbers to learn: {sum(p.size for p in model.parameters()):,}")

# %% [markdown]
# ## Predict
#
# We could take the mean loss of all training images, find its gradient with respect to
# all weights, and make one small step against it. But then each step would cost a pass
# over all images. Instead we take 64 of them, a *batch*, because their gradient points
# roughly the same way. The next step takes the next 64, and so on. When all images have
# been used once, an *epoch* is over; they are shuffled, and the next one begins. The
# *learning rate* says how large a step is: weight = weight - learning rate × gradient.
#
# How many steps are five epochs? Where does the loss start? How many of the test images
# will be right after one epoch, and after five?
#
# ## Run: ten lines

# %%
BATCH, RATE, EPOCHS = 64, 0.1, 5


def train_by_hand(model):
    losses = []
    for _ in range(EPOCHS):
        for xb, yb in batches(x, y, BATCH, model.shuffle_rng):
            # forward: the mean loss of this batch
            loss = F.cross_entropy(model(xb), yb)
            for p in model.parameters():
                p.grad = None  # gradients add up, so forget those of the step before
            loss.backward()
            for p in model.parameters():
                p.data -= RATE * p.grad
            losses.append(loss.item())
        print(f"after {len(losses):3} steps: loss of the last batch {losses[-1]:.3f}, "
              f"test accuracy {test_accuracy(model):.3f}")
    return np.array(losses)


# %%
def test_accuracy(model):
    # the largest logit is the answer
    return np.mean(model.predict(x_test).argmax(axis=1) == y_test)


by_hand = train_by_hand(model)

# %% [markdown]
# That is all. (`batches` shuffles the images and cuts them into batches.) Now the same
# with `fit`, from the same seed. `compile` says which loss and which update rule to
# use; SGD, *stochastic gradient descent*, is the one above.

# %%
model_by_fit = network().compile(optim.SGD(lr=RATE), loss="cross_entropy",
                                 metrics=["accuracy"])
history = model_by_fit.fit(x, y, batch_size=BATCH, epochs=EPOCHS, verbose=0)
by_fit = np.array(history.steps["loss"])
difference = np.abs(by_hand - by_fit).max()
weights_differ = max(np.abs(p.data - q.data).max()
                     for p, q in zip(model.parameters(), model_by_fit.parameters()))

# %%
fig, ax = plotting.figure(size=(12, 6), title=f"{len(by_hand)} losses, by hand and by "
                                              "fit: the largest difference is "
                                              f"{difference:g}")
for label, losses, (color, line), width in zip(("by hand", "by fit"), (by_hand, by_fit),
                                               plotting.LOOKS, (4, 1.5)):
    ax.plot(np.arange(1, len(losses) + 1), losses, color=color, linestyle=line,
            linewidth=width, label=label)
for epoch in range(1, EPOCHS):
    ax.axvline(epoch * len(by_hand) / EPOCHS, color="0.5", linestyle=":", linewidth=1.5,
               label="an epoch is over")
ax.set(xlabel="training step", ylabel="loss of the batch", ylim=(0, None))
plotting.legend(ax)
lesson.show(fig, "loss")

# %% [markdown]
# The curve is jagged, because each step sees other images. How well does a batch
# represent all images? We compare its gradient with that of all images: the cosine of
# the angle between them is 1 if they point the same way, and 0 if they are at right
# angles.

# %%
fresh = network().build(784)
kernel = fresh.layers[0].kernel
whole = grad(F.cross_entropy(fresh(x), y), kernel)
for size in (1, 8, 64, 512):
    cosines = []
    for start in range(0, 20 * size, size):
        part = np.arange(start, start + size) % len(x)
        g = grad(F.cross_entropy(fresh(x[part]), y[part]), kernel)
        cosines.append(np.sum(g * whole) / np.linalg.norm(g) / np.linalg.norm(whole))
    print(f"batches of {size:3}: cosine with the gradient of all {len(x):,} images "
          f"{np.median(cosines):.2f} (median of 20)")

# %% [markdown]
# ## How large a step?
#
# Predict: what will the loss do at a rate of 0.003, and at 3? The same network, three
# rates, three seeds: the line is the median, the band the range, averaged over 20
# steps. (`experiments.run` is `fit` for a number of steps; it survives a loss that
# becomes infinite.)


# %%
def run_at(rate, seed):
    model = Sequential([Dense(64), Activation("relu"), Dense(10)], seed=seed)
    return experiments.run(model, data, optimizer=optim.SGD(lr=rate), steps=300,
                           batch_size=BATCH)


rates = {f"rate {rate:g}": [run_at(rate, seed) for seed in lesson.seeds(3)]
         for rate in (0.003, 0.3, 3.0)}
final = [f"{np.median([run.final_loss() for run in runs]):.2f} at {name}"
         for name, runs in rates.items()]
fig, ax = plotting.figure(size=(12, 6),
                          title=f"Loss after 300 steps: {', '.join(final)}")
plotting.compare(experiments.Comparison(rates, lesson.seeds(3)), what="losses", ax=ax)
lesson.show(fig, "learning_rate")

# %% [markdown]
# Too small a step wastes time. Too large a step lands on the other side of the valley,
# and higher up, because the slope holds only nearby (lesson 1). What has happened then?
# We look at the hidden units after 300 steps at the rate of 3.

# %%
stuck = network()
experiments.run(stuck, data, optimizer=optim.SGD(lr=3.0), steps=300, batch_size=BATCH)
hidden = stuck.layers[1](stuck.layers[0](x_test)).numpy()
print(f"rate 3: {np.mean((hidden == 0).all(axis=0)):.0%} of the hidden units are 0 for "
      "every test image")

# %% [markdown]
# A ReLU that is 0 for every image lets no gradient through, therefore it stays 0: it
# has *died*. With hardly a unit left, the network can only guess, and the loss of
# guessing among ten digits is ln 10.
#
# ## Training accuracy, test accuracy
#
# Now only 500 training images, and 30 epochs. Predict: how many of the 500 will be
# right at the end? How many of the test images? `fit` calls images that it only
# measures on *validation data*, and does so after each epoch; here they are the test
# images. (Its training numbers are means over the epoch, while the weights move: in the
# first epoch they lag.)

# %%
few = network().compile(optim.SGD(lr=0.5), loss="cross_entropy", metrics=["accuracy"])
few_history = few.fit(x[:500], y[:500], batch_size=BATCH, epochs=30,
                      validation_data=(x_test, y_test), verbose=0)
seen, unseen = few.evaluate(x[:500], y[:500])[1], few.evaluate(x_test, y_test)[1]
fig = few_history.plot()
fig.suptitle(f"500 training images: {seen:.0%} of them right, but {unseen:.0%} of the "
             "test images", fontsize=18, fontweight="bold")
lesson.show(fig, "few_images")

# %% [markdown]
# The network has memorised its 500 images. What it knows of digits in general, only
# images that it has never seen can tell. Therefore "accuracy" means test accuracy in
# this course, unless it says otherwise. More training images narrow the gap:

# %%
train_accuracy, accuracy = (np.mean(model.predict(a).argmax(axis=1) == b)
                            for a, b in ((x, y), (x_test, y_test)))
print(f"{len(x):,} images, {EPOCHS} epochs: training accuracy {train_accuracy:.3f}, "
      f"test accuracy {accuracy:.3f}")

# %% [markdown]
# ## What does it get wrong?
#
# We look at the mistakes of which the network was surest. Could you have read these
# digits?

# %%
p = F.softmax(model.predict(x_test))
answer = p.argmax(axis=1)
wrong = np.flatnonzero(answer != y_test)
surest = wrong[np.argsort(-p[wrong].max(axis=1))][:16]
show_images(x_test[surest], [f"{answer[i]} ({p[i].max():.0%})\nis a {y_test[i]}"
                             for i in surest], "mistakes",
            f"{len(wrong)} of {len(x_test):,} test images are wrong. The surest "
            "mistakes: prediction and truth")

# %% [markdown]
# ## One more word
#
# `BatchNorm()` between the Dense layer and its activation. Nothing else changes: the
# ten lines are the same, and so are the weights of the Dense layers at the start and
# the order of the batches. Predict: will the curve change?

# %%
with_bn = network(BatchNorm())
with_bn_by_fit = network(BatchNorm()).compile(optim.SGD(lr=RATE), loss="cross_entropy")
bn_by_hand = train_by_hand(with_bn)
bn_by_fit = np.array(with_bn_by_fit.fit(x, y, batch_size=BATCH, epochs=EPOCHS,
                                        verbose=0).steps["loss"])
bn_difference = np.abs(bn_by_hand - bn_by_fit).max()

# %%
last = len(by_hand) // EPOCHS
fig, ax = plotting.figure(size=(12, 6), title="Mean loss of the last epoch: "
                                              f"{bn_by_hand[-last:].mean():.2f} with "
                                              "BatchNorm, "
                                              f"{by_hand[-last:].mean():.2f} without")
for label, losses, (color, line) in zip(("with BatchNorm", "without BatchNorm"),
                                        (bn_by_hand, by_hand), plotting.LOOKS):
    ax.plot(np.arange(20, len(losses) + 1),
            np.convolve(losses, np.ones(20) / 20, "valid"), color=color, linestyle=line,
            linewidth=3, label=label)
ax.set(xlabel="training step", ylabel="loss, mean of 20 batches", yscale="log")
plotting.legend(ax)
lesson.show(fig, "batchnorm")

# %% [markdown]
# ## Explain
#
# `fit` is the loop above. Around it are checks that the data fit, a record of the
# losses, a progress bar, callbacks, and an error message for a loss that becomes
# infinite. None of this changes a number, as the CHECKs show.
#
# What may we conclude about BatchNorm? Nothing yet, because this was one network, one
# learning rate and one seed: perhaps another rate would suit the plain network better.
# Lesson 4 looks at what BatchNorm computes, lesson 7 measures with several seeds and a
# tuned rival whether it is faster.

# %%
print()
lesson.check("losses by hand - by fit, the largest difference", difference, at_most=0,
             claim=False)
lesson.check("weights after training, by hand - by fit", weights_differ, at_most=0,
             claim=False)
lesson.check("losses by hand - by fit, with BatchNorm", bn_difference, at_most=0,
             claim=False)
lesson.check("the first loss - ln 10", abs(by_hand[0] - np.log(10)), at_most=0.6,
             claim=False)
lesson.check(f"test accuracy after {EPOCHS} epochs", accuracy, at_least=0.85,
             on_default_data=True, claim=False)
lesson.check("500 images: training accuracy - test accuracy", seen - unseen,
             at_least=0.05, on_default_data=True, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. The network of this lesson starts with a loss of about 2.3. Why?**
#
# - A: ten digits, and an untrained network that prefers none of them: ln 10 is 2.3
# - B: the learning rate is too small
# - C: the pixels are not normalised
# - D: a batch of 64 is too small for a better one
#
# **2. One run with BatchNorm has a lower loss than one run without. What follows?**
#
# - A: BatchNorm makes training faster
# - B: BatchNorm prevents overfitting
# - C: nothing yet: one rate, one seed, no second try
# - D: the gradients have become steadier
#
# <details><summary>Answers</summary>
#
# 1 A. Before the first step no learning rate has been used (B), and a larger batch has
# the same mean loss, only less noise (D). C blames the data, as texts 003 and 004 do
# for slow training; here a softmax of nearly equal logits explains the number.
#
# 2 C. A is what all five texts say, B what texts 000, 001, 002 and 003 say, D what text
# 000 says. Each may be true, but one pair of runs shows none of them: another rate may
# suit the plain network better, the training loss says nothing of new images, and
# nobody has looked at a gradient.
#
# </details>
#
# ## Try
#
# 1. Easy: set `BATCH` to 8 and to 1000, with the same number of epochs. Which is
#    further after five? Which takes more seconds?
# 2. Easy: train with no hidden layer, `Sequential([Dense(10)])`. What accuracy is left?
# 3. Medium: leave out the line `p.grad = None`. What happens to the loss, and why?
# 4. Medium: write momentum by hand, $v = 0.9 v + g$ and then weight = weight - rate ×
#    $v$, and compare with `optim.SGD(lr=RATE, momentum=0.9)`, bit for bit.
# 5. Research: what share of the mistakes stays if you train five networks with other
#    seeds and let them vote?
#
# Now write it yourself: exercises 4 and 12 (`python -m minidl exercise 4 --copy DIR`).
#
# Sources: `minidl/training.py` (the loop) and `minidl/data.py` (the batches). H.
# Robbins and S. Monro, A stochastic approximation method, 1951, is where steps along a
# noisy gradient come from.
