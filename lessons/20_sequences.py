# %% [markdown]
# # 20. Sequences: is BatchNorm for them, and why do language models take LayerNorm?
#
# "Batch normalisation is widely used in convolutional and in recurrent neural
# networks", says one text, and another lists natural language among its uses. Of
# convolutions that is true (lesson 19). But the networks behind today's language
# models, transformers, use LayerNorm or a relative of it, and hardly a recurrent
# network has BatchNorm. What is different about sequences? We take the smallest network
# that reads one, and measure.
#
# You need: lessons 4 and 11. Running time: 10 to 15 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products are fastest on one

import numpy as np

from minidl import (BatchNorm, Dense, LayerNorm, Module, experiments, initializers,
                    no_grad, optim, plotting)
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("20_sequences")
(x_train, y_train), (x_test, y_test) = lesson.load_data()
mean, std = x_train.mean(), x_train.std()


def rows(x):
    """An image as a sequence: 28 rows of 28 pixels, standardised."""
    return ((x - mean) / std).reshape(-1, 28, 28)


learn = rows(x_train[:3000]), y_train[:3000]
choose = rows(x_train[-1000:]), y_train[-1000:]  # to choose learning rates by
test = rows(x_test[:1000]), y_test[:1000]

# %% [markdown]
# ## A network with a memory
#
# A *recurrent* network reads a digit row by row. It keeps a memory $h$, 32 numbers, and
# at each step $t$ makes a new one of the row $x_t$ and the old one, always with the
# same weights:
#
# $$h_t = \tanh(\text{norm}(x_t W + h_{t-1} U + b))$$
#
# After row 28 a Dense layer reads the answer from $h_{28}$. Where $\text{norm}$ stands,
# there may be nothing, or BatchNorm, or LayerNorm. And BatchNorm can be meant in two
# ways:
#
# - *shared*: one BatchNorm for all steps, as there is one $W$ for all. In training each
#   step is normalised by its own batch; but there is one pair of running statistics,
#   and all 28 steps write into it.
# - *per step*: 28 BatchNorms, so that each step has statistics of its own (Cooijmans et
#   al. 2016).
#
# LayerNorm (Ba, Kiros and Hinton 2016) takes mean and variance over the 32 numbers of
# *one* sample at *one* step: the formula of BatchNorm along the other axis. It has no
# running statistics.

# %%
NONE, SHARED, STEP, LAYER = "no norm", "BN, shared", "BN, per step", "LayerNorm"
UNITS, STEPS = 32, 28
NORMS = {NONE: lambda: [], SHARED: lambda: [BatchNorm()], LAYER: lambda: [LayerNorm()],
         STEP: lambda: [BatchNorm() for _ in range(STEPS)]}
SCALES = {NONE: 0.2, LAYER: 0.2, SHARED: 1.0, STEP: 1.0}


def rotation(shape, rng):
    """An orthogonal matrix: the memory neither grows nor fades at first."""
    return np.linalg.qr(rng.standard_normal(shape))[0]


# %%
class Reader(Module):
    """Reads sequences (n, steps, pixels) and returns logits (n, 10)."""

    def __init__(self, kind, seed):
        rng = np.random.default_rng(seed)
        self.shuffle_rng = np.random.default_rng(seed + 1)
        self.pixels = Dense(UNITS, rng=rng, kernel_initializer=lambda shape, rng: (
            SCALES[kind] * initializers.glorot_normal(shape, rng)))
        self.memory = Dense(UNITS, rng=rng, use_bias=False, kernel_initializer=rotation)
        self.norms, self.answer = NORMS[kind](), Dense(10, rng=rng)

    def forward(self, x):
        return self.answer(self.read(x))

    def read(self, x, lengths=None):
        """The memory after the last row; lengths: after how many rows each one ends."""
        h = np.zeros((len(x), UNITS), np.float32)
        for t in range(x.shape[1]):
            z = self.pixels(x[:, t]) + self.memory(h)
            if self.norms:
                z = self.norms[min(t, len(self.norms) - 1)](z)
            new = F.tanh(z)
            h = new if lengths is None else F.where((t < lengths)[:, None], new, h)
        return h


# %% [markdown]
# ## Predict
#
# Two of the four have BatchNorm. After training, each is measured on the test images
# twice: in training mode, normalised by the test batch itself, and in evaluation mode,
# by running statistics. For which of the four will the two accuracies differ, and by
# how much?
#
# ## Run
#
# All are trained with Adam, 150 batches of 64. Each chooses the best of three or four
# learning rates on images that are neither learned nor tested. (The networks without
# BatchNorm start with smaller weights for the pixels, which serves them best: exercise
# 2.)

# %%
RATES = {NONE: (0.001, 0.003, 0.01, 0.03), LAYER: (0.001, 0.003, 0.01),
         SHARED: (0.003, 0.01, 0.03), STEP: (0.01, 0.03, 0.1)}


# %%
def train(kind, lr, seed):
    model = Reader(kind, seed).build((STEPS, 28))
    experiments.run(model, (learn, choose), optimizer=optim.Adam(lr=lr), steps=150,
                    batch_size=64)
    return model


def accuracy(model, data, training=False):
    """The share of right answers, in batches of 500; no statistic is changed."""
    kept = model.state_dict()
    model.train(training)
    with no_grad():
        right = [model(data[0][i:i + 500]).numpy().argmax(axis=1) == data[1][i:i + 500]
                 for i in range(0, len(data[0]), 500)]
    model.load_state_dict(kept)
    return np.mean(right)


# %%
models = {}
for kind, rates in RATES.items():
    tried = []
    for lr in rates:
        model = train(kind, lr, lesson.seed)
        # in training mode: else the fault of the shared BatchNorm would choose
        tried.append((accuracy(model, choose, training=True), lr, model))
    _, lr, model = max(tried, key=lambda each: each[:2])
    models[kind] = [model, *(train(kind, lr, seed) for seed in lesson.seeds(3)[1:])]
    print(f"{kind:12} chooses learning rate {lr}")

# %%
batch_mode = {kind: np.array([accuracy(model, test, True) for model in each])
              for kind, each in models.items()}
eval_mode = {kind: np.array([accuracy(model, test) for model in each])
             for kind, each in models.items()}
print("test accuracy by seed\n              in training mode      in evaluation mode")
for kind in models:
    texts = ["  ".join(f"{value:.3f}" for value in values[kind])
             for values in (batch_mode, eval_mode)]
    print(f"{kind:12}  {texts[0]}   {texts[1]}")
gap = {kind: np.mean(batch_mode[kind] - eval_mode[kind]) for kind in models}

# %%
fig, ax = plotting.figure(
    size=(12, 6), title="Shared statistics: "
    f"{np.median(batch_mode[SHARED]):.1f} in training mode, "
    f"{np.median(eval_mode[SHARED]):.1f} in evaluation mode")
for i, (name, values) in enumerate((("training mode", batch_mode),
                                    ("evaluation mode", eval_mode))):
    for place, kind in enumerate(values):
        y = place + 0.12 * (2 * i - 1)
        look = {"color": plotting.LOOKS[i][0]}
        ax.plot(values[kind], np.full(3, y), "os"[i], markersize=12, alpha=0.7, **look,
                label=name if place == 0 else None)
        middle = np.median(values[kind])
        ax.plot([middle] * 2, [y - 0.1, y + 0.1], linewidth=3, **look)
ax.set(xlabel="test accuracy (3 seeds)", xlim=(0, 1), yticks=range(len(models)),
       yticklabels=list(models), ylim=(len(models) - 0.5, -0.5))
plotting.legend(ax)
lesson.show(fig, "modes")

# %% [markdown]
# ## What a statistic over time mixes
#
# The same unit does not see the same at each step: the first rows of a digit are empty,
# and the memory fills. We ask the network with a BatchNorm for each step what it found,
# and compare with the one pair that the shared BatchNorm has for all.

# %%
per_step, shared = models[STEP][0].norms, models[SHARED][0].norms[0]
found = np.array([[norm.running_mean, np.sqrt(norm.running_var)] for norm in per_step])
typical = np.median(found[:, 1], axis=1)
print("standard deviation of a unit (median) at steps 1, 4, 8, 14 and 28: "
      + ", ".join(f"{typical[t - 1]:.2f}" for t in (1, 4, 8, 14, 28)))
print(f"the shared BatchNorm has {np.median(np.sqrt(shared.running_var)):.2f} for all")

# %%
fig, (left, right) = plotting.figure(
    1, 2, size=(14, 6), title=f"At step 1 a unit's spread is {typical[0]:.2f}, at step "
    f"14 it is {typical[13]:.1f}: no single number fits both")
for panel, what, name in ((left, 0, "mean"), (right, 1, "standard deviation")):
    values = found[:, what].T
    panel.plot(np.arange(1, STEPS + 1), values.T, color="0.6", linewidth=1)
    plotting.band(np.arange(1, STEPS + 1), values[np.argsort(values.std(axis=1))[-1:]],
                  "the unit that changes most", 0, panel)
    panel.set(xlabel="step (row of the image)", ylabel=f"running {name} of a unit")
plotting.legend(left)
lesson.show(fig, "by_step")

# %% [markdown]
# ## Sequences of different lengths
#
# Sentences are not all of 28 words. To compute with a batch of them one fills the
# shorter ones up with zeros, *padding*, and keeps each one's memory as it is once it
# has ended. The padding then changes no answer, or so one would think.
#
# Predict: 16 digits are read, once together with 48 digits of the same length, and once
# with 48 that have only their first 10 rows and end there. Whose answer for the 16
# changes, in training mode and in evaluation mode?

# %%
images = test[0][:64].copy()
shorter = images.copy()
shorter[16:, 10:] = 0  # padding
full, ended = np.full(64, STEPS), np.array([STEPS] * 16 + [10] * 48)


def changed_by_companions(model, training):
    kept = model.state_dict()
    model.train(training)
    with no_grad():
        one, two = (model.read(x, lengths).numpy()[:16]
                    for x, lengths in ((images, full), (shorter, ended)))
    model.load_state_dict(kept)
    return np.abs(one - two).mean()


print("16 digits whose companions end early: change of their memory, from -1 to 1")
by_length = {}
for kind, each in models.items():
    by_length[kind], evaluation = (
        np.mean([changed_by_companions(model, mode) for model in each])
        for mode in (True, False))
    print(f"{kind:12}  {by_length[kind]:.4f} in training mode, {evaluation:.4f} in "
          "evaluation mode")

# %% [markdown]
# And what is a step for which there is no statistic? With BatchNorm per step a sequence
# of 30 rows has two steps that were never seen in training. We let blank rows come
# before each digit, and use the statistics of the last step from then on.

# %%
blank = (0, 1, 4)
background = test[0].min()
longer = {kind: [] for kind in models}
for kind, each in models.items():
    for count in blank:
        top = np.full((len(test[0]), count, 28), background, np.float32)
        data = np.concatenate([top, test[0]], axis=1), test[1]
        longer[kind].append([accuracy(model, data) for model in each])
    print(f"{kind:12}: accuracy with {blank} blank rows first: "
          + ", ".join(f"{np.median(values):.3f}" for values in longer[kind]))

# %% [markdown]
# ## One sample at a time
#
# A language model writes one word after the other: a batch of one. In evaluation mode
# BatchNorm can do that. It cannot *learn* from one sequence, and LayerNorm can.

# %%
refused = False
try:
    models[STEP][0].train()(test[0][:1])
except ValueError as error:
    refused = True
    print(f"ValueError: {error}")
with no_grad():
    model = models[LAYER][0].train()
    alone = np.concatenate([model(test[0][i:i + 1]).numpy() for i in range(16)])
    together = model(test[0][:16]).numpy()
print(f"LayerNorm: 16 digits one at a time or together differ by "
      f"{np.abs(alone - together).max():.1e}")

# %% [markdown]
# ## Who sees the future?
#
# A language model has to guess the next word from those before it. A transformer
# computes all positions of a sentence at once, as an array (n, positions, features),
# and a norm after it might well take its statistics over n *and* positions. Predict:
# the last row of each image is replaced by noise. Does what comes out at the *first*
# position change?

# %%
dense = Dense(UNITS, rng=lesson.seed).build(28)
spoiled = test[0][:64].copy()
spoiled[:, -1] = np.random.default_rng(lesson.seed).standard_normal((64, 28))
future = {}
for kind, norm in ((SHARED, BatchNorm()), (LAYER, LayerNorm())):
    first = []
    for x in (test[0][:64], spoiled):
        flat = norm(dense(x.reshape(-1, 28)))  # (n * positions, features)
        first.append(flat.numpy().reshape(64, STEPS, UNITS)[:, 0])
    future[kind] = np.abs(first[0] - first[1]).max()
    print(f"{kind:12}: with another last row the first position changes by "
          f"{future[kind]:.2e}")

# %% [markdown]
# ## Explain
#
# *Shared statistics fail in evaluation.* In training each step is normalised by its own
# batch, and all is well. The running statistics are an average over 28 different
# situations: empty rows, at which a unit hardly varies, and rows full of ink. In
# evaluation every step gets that average, which fits none of them. Statistics per step
# repair it, at a price: 28 times as many numbers, and no statistic for a step that
# training never reached.
#
# *"In recurrent networks, too."* It can be done: the network with statistics per step
# learns. But look at the rows without BatchNorm: with first weights of a good size, no
# norm at all is about as good, and LayerNorm at least as good. (After four times as
# many steps both norms are ahead: exercise 6.) Laurent et al. (2016), who tried it on
# speech and text, found that BatchNorm in the path of the memory does not help;
# Cooijmans et al. (2016) found a gain, with statistics per step and a small first
# $\gamma$.
#
# *Why language models take LayerNorm.* Three of the reasons we have measured. Sentences
# have different lengths, and with BatchNorm the padding of the others enters what is
# learned from one. A model that writes sees one sequence at a time, and may have to
# learn from one. And statistics over positions let each position see the future, which
# a model that is to guess it must not. LayerNorm looks at one sample at one position,
# so none of these can happen. Shen et al. (2020) name a fourth: in text the statistics
# of batches vary far more from one to the next than in images.
#
# *Limits.* LayerNorm is no free gift. See how it falls with the first blank row, where
# the plain network hardly changes: it gives the memory its full size at every step, so
# that on blank rows it never comes to rest (exercise 4), and the answer depends on how
# many there are. No network was trained for that. And 32 units, digits and 150 steps
# are not language: we have shown what *can go wrong* with BatchNorm in sequences, not
# that it must.

# %%
print()
lesson.check("shared statistics: accuracy in training - in evaluation mode",
             gap[SHARED], at_least=0.1)
lesson.check("the same gap, shared - per step", gap[SHARED] - gap[STEP], at_least=0.08)
lesson.check("companions that end early: change with BatchNorm", by_length[STEP],
             at_least=0.01)
lesson.check("the same with LayerNorm", by_length[LAYER], at_most=1e-5, claim=False)
lesson.check("BatchNorm refuses to learn from one sequence", float(refused), at_least=1)
lesson.check("LayerNorm: one at a time or together, largest difference",
             np.abs(alone - together).max(), at_most=1e-4, claim=False)
lesson.check("another last row: change of the first position, BatchNorm",
             future[SHARED], at_least=1e-3)
lesson.check("the same with LayerNorm", future[LAYER], at_most=0, claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. One BatchNorm serves all steps of a recurrent network. On the test images it is
# right far more often in training mode than in evaluation mode. Why?**
#
# - A: Its averages were not replaced by the mean and variance of the whole training
#   set.
# - B: It has one mean for steps that differ, and in evaluation mode each step gets it.
# - C: The network has overfitted the training images.
# - D: A recurrent network cannot learn with BatchNorm.
#
# **2. A transformer computes all positions of a sentence at once and learns to guess
# the next word. Why may BatchNorm not take its statistics over samples and positions?**
#
# - A: because words are not normally distributed
# - B: because BatchNorm is for convolutional and recurrent networks
# - C: because a sentence is too short to estimate a mean from
# - D: because in training each position would see something of the words after it
#
# <details><summary>Answers</summary>
#
# 1 B. In training mode each step is normalised by its own batch. A is text 003's recipe
# for prediction; but a mean of the whole training set over all steps is still one mean
# for 28 different situations. C: both accuracies are those of the test images. D: it
# does learn, as its training mode shows, and with statistics for each step the two
# modes nearly agree.
#
# 2 D. The later words are part of the mean: with another last row the first position
# changes. A follows text 001, for which BatchNorm makes a standard normal distribution;
# it needs none and makes none (lesson 4). B is text 001's list of uses, which explains
# nothing. C: the mean is over all sentences of the batch.
#
# </details>
#
# ## Try
#
# 1. Easy: `estimate_population_statistics` gives the network with shared statistics
#    exact ones. Predict whether that repairs its evaluation mode. Does it?
# 2. Easy: start the pixels' weights of the networks without BatchNorm at 0.1, 0.2, 0.4
#    and 1 times Glorot's. How much does the plain one depend on it, and how much
#    LayerNorm?
# 3. Medium: Cooijmans et al. start $\gamma$ at 0.1, so that tanh is not saturated. Does
#    it help the BatchNorm per step here?
# 4. Medium: feed each trained network with blank rows only. By how much does its memory
#    still move at the second, fifth and eighth? Does that explain who falls with the
#    first blank row?
# 5. Medium: keep statistics per step, but one $\gamma$ and $\beta$ for all, as
#    Cooijmans et al. did. How many parameters are saved, and is anything lost?
# 6. Research: train four times as long. Does the order stay?
#
# Sources: J. Ba, J. Kiros and G. Hinton, Layer Normalization, 2016. C. Laurent, G.
# Pereyra, P. Brakel, Y. Zhang and Y. Bengio, Batch Normalized Recurrent Neural
# Networks, 2016. T. Cooijmans, N. Ballas, C. Laurent, C. Gulcehre and A. Courville,
# Recurrent Batch Normalization, 2016. S. Shen, Z. Yao, A. Gholami, M. Mahoney and K.
# Keutzer, PowerNorm: Rethinking Batch Normalization in Transformers, 2020.
