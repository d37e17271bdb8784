# %% [markdown]
# # Solutions to lesson 6, for teachers
#
# The numbers are those of seed 0 and the digits. The first cell repeats what the
# solutions need of the lesson.

# %%
from functools import partial

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, data, experiments, optim
from minidl import functional as F
from minidl.lessonkit import Lesson

lesson = Lesson("06_solutions")
sets = lesson.load_data()
(x_train, y_train), (x_test, y_test) = sets
BatchNormalization = partial(BatchNorm, momentum=0.01, eps=0.001)

# %% [markdown]
# ## 1. Easy: the program of text 000 on 32 mixtures of the pixels
#
# 32 random mixtures carry enough: 79 % right after one epoch, 89 % after five.

# %%
rng = np.random.default_rng(lesson.seed)
mixtures = rng.standard_normal((784, 32)).astype(np.float32) / 28
model = Sequential(
    [
        Dense(64, input_shape=(32,)),
        BatchNormalization(),
        Activation("relu"),
        Dense(64),
        BatchNormalization(),
        Activation("relu"),
        Dense(10, activation="softmax"),
    ],
    seed=lesson.seed,
)
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x_train @ mixtures,
    data.one_hot(y_train),
    epochs=5,
    batch_size=32,
    verbose=0,
    validation_data=(x_test @ mixtures, data.one_hot(y_test)),
)
accuracy = history.history["val_accuracy"]
print("test accuracy by epoch", *(f"{a:.3f}" for a in accuracy))
lesson.check(
    "text 000 on 32 mixtures: test accuracy",
    accuracy[-1],
    at_least=0.8,
    claim=False,
    on_default_data=True,
)

# %% [markdown]
# ## 2. Easy: the floor with more classes
#
# $\ln(1 + \frac{n - 1}{e})$: 3.6222 for 100 classes, 5.9095 for 1,000, where guessing
# costs 4.6052 and 6.9078. The floor is always about 1 below the loss of guessing, since
# $\ln n - \ln(n / e) = 1$. With many classes the loss of a good program hardly differs
# from that of a bad start, so one notices late; with two classes it is 0.3133 against
# 0.6931.

# %%
for n in (2, 10, 100, 1000):
    floor = F.cross_entropy(np.eye(n), np.arange(n)).item()
    print(
        f"{n:5} classes: floor {floor:.4f}, ln(1 + (n - 1) / e) = {np.log(1 + (n - 1) / np.e):.4f}, "
        f"guessing {np.log(n):.4f}"
    )
hundred = F.cross_entropy(np.eye(100), np.arange(100)).item()
lesson.check(
    "floor with 100 classes - 3.6222", abs(hundred - 3.6222), at_most=1e-4, claim=False
)

# %% [markdown]
# ## 3. Easy: a bias before a BatchNorm
#
# The trained numbers become fewer by 64, from 51,018 to 50,954. The loss of the first
# step is the same, as the bias starts at 0; and it would be the same whatever it is,
# because BatchNorm subtracts the mean, and the bias is part of it. So its gradient is 0
# and it never learns.

# %%
losses = {}
for use_bias in (True, False):
    model = Sequential(
        [
            Dense(64, input_shape=(784,), use_bias=use_bias),
            BatchNormalization(),
            Activation("relu"),
            Dense(10),
        ],
        seed=lesson.seed,
    )
    loss = F.cross_entropy(model(x_train[:32]), y_train[:32])
    loss.backward()
    losses[use_bias] = loss.item()
    print(
        f"use_bias={use_bias}: {sum(p.size for p in model.parameters()):,} trained numbers, first "
        f"loss {loss.item():.6f}"
    )
    if use_bias:
        moved = np.abs(model[0].bias.grad).max()
        print(f"largest gradient of its bias {moved:.1e}")
lesson.check(
    "first loss with the bias - without",
    abs(losses[True] - losses[False]),
    at_most=1e-6,
    claim=False,
)
lesson.check("largest gradient of the bias", moved, at_most=1e-6, claim=False)

# %% [markdown]
# ## 4. Medium: a third of the labels wrong
#
# The corrected program suffers more: it falls from 95.9 % to 91.8 %, the printed one
# from 95.7 % to 94.5 %. The gradient of the printed one on images of which it is sure
# and wrong is almost 0 (the last table of the lesson), and a wrong label looks like
# such an image. A bug that acts as a loss robust to wrong labels is still a bug: on
# right labels the corrected program learns faster.

# %%
wrong = rng.random(len(y_train)) < 1 / 3
noisy = np.where(wrong, (y_train + rng.integers(1, 10, len(y_train))) % 10, y_train)
after = {}
for labels, name in ((y_train, "right labels"), (noisy, "a third wrong")):
    for twice in (False, True):
        layers = [Dense(64), BatchNorm(), Activation("relu"), Dense(10)]
        model = Sequential(
            [*layers, *[Activation("softmax")] * twice], seed=lesson.seed
        ).build(784)
        optimizer = optim.Adam(model.parameters(), lr=0.001)
        shuffled = np.random.default_rng([lesson.seed, 1])
        for _ in range(5):
            for xb, yb in data.batches(x_train, labels, 32, shuffled):
                optimizer.zero_grad()
                F.cross_entropy(model(xb), yb).backward()
                optimizer.step()
        after[name, twice] = np.mean(model.predict(x_test).argmax(axis=1) == y_test)
        print(
            f"{name:13}, {'softmax twice' if twice else 'corrected':13}: test accuracy "
            f"{after[name, twice]:.3f}"
        )
lost = {
    twice: after["right labels", twice] - after["a third wrong", twice]
    for twice in (False, True)
}
lesson.check(
    "accuracy lost by wrong labels, corrected - softmax twice",
    lost[False] - lost[True],
    at_least=0,
    claim=False,
    on_default_data=True,
)

# %% [markdown]
# ## 5. Research: the gain with many seeds
#
# Fifty seeds at six rates are an hour of work; here are six seeds at two rates, 600
# steps. With $n$ seeds the standard error of a paired difference is its standard
# deviation over $\sqrt{n}$. At 0.001 the gain is 1.1 points with an error of 0.3, at
# 0.01 it is 1.7 with 0.4: both are real after 600 steps. After the lesson's 1,500 steps
# less is left, so say at which step you looked. Two rates do not tell which suits each
# network best. Choose each network's best rate on images that are not the test images,
# then repeat with seeds that you did not choose it with.

# %%
gain = {}
for lr in (0.001, 0.01):
    pair = []
    for batch_norm in (True, False):
        reached = []
        for seed in lesson.seeds(6):
            layers = [
                Dense(64),
                *[BatchNorm()] * batch_norm,
                Activation("relu"),
                Dense(10),
            ]
            run = experiments.run(
                Sequential(layers, seed=seed),
                sets,
                optimizer=optim.Adam(lr=lr),
                steps=600,
                batch_size=32,
                eval_steps=[600],
            )
            reached.append(run.accuracy[-1])
        pair.append(reached)
    difference = np.subtract(*pair)
    gain[lr] = difference.mean()
    print(
        f"rate {lr}: with {np.mean(pair[0]):.4f}, without {np.mean(pair[1]):.4f}, gain "
        f"{gain[lr]:+.4f}, standard error {difference.std(ddof=1) / np.sqrt(6):.4f}"
    )
lesson.check(
    "gain at rate 0.001 after 600 steps",
    gain[0.001],
    at_least=0.002,
    claim=False,
    on_default_data=True,
)
lesson.finish()
