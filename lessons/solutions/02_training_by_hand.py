# %% [markdown]
# # Solutions to lesson 2, for teachers
#
# The numbers are those of seed 0 and the digits. The first cell repeats what the
# solutions need of the lesson.

# %%
from time import perf_counter

import numpy as np

from minidl import Activation, Dense, Sequential, optim
from minidl import functional as F
from minidl.data import batches
from minidl.lessonkit import Lesson

lesson = Lesson("02_solutions")
(x, y), (x_test, y_test) = lesson.load_data()
RATE = 0.1


def network(seed=lesson.seed):
    return Sequential([Dense(64), Activation("relu"), Dense(10)], seed=seed)


def accuracy(model):
    return np.mean(model.predict(x_test).argmax(axis=1) == y_test)


def train(model, batch_size=64, epochs=5, step=None, keep_gradients=False):
    """The losses of every step; step(model) changes the weights."""
    losses = []
    for _ in range(epochs):
        for xb, yb in batches(x, y, batch_size, model.shuffle_rng):
            loss = F.cross_entropy(model(xb), yb)
            if not keep_gradients:
                for p in model.parameters():
                    p.grad = None
            loss.backward()
            if step:
                step(model)
            else:
                for p in model.parameters():
                    p.data -= RATE * p.grad
            losses.append(loss.item())
    return np.array(losses)


# %% [markdown]
# ## 1. Easy: batches of 8 and of 1000
#
# After five epochs batches of 8 are furthest (96 % right; 64: 94 %; 1000: 86 %),
# because they made 6,250 steps instead of 785 and 50. They also take most of the
# seconds: a step has a cost of its own, however small its batch. At one rate for all,
# the comparison is one of the number of steps, not of the batch size (lesson 12).

# %%
reached = {}
for size in (8, 64, 1000):
    model, began = network(), perf_counter()
    steps = len(train(model, size))
    reached[size] = accuracy(model)
    print(
        f"batches of {size:4}: {steps:5,} steps, {perf_counter() - began:4.1f} s, "
        f"test accuracy {reached[size]:.3f}"
    )
lesson.check(
    "accuracy with batches of 8 - of 1000",
    reached[8] - reached[1000],
    at_least=0.05,
    claim=False,
    on_default_data=True,
)

# %% [markdown]
# ## 2. Easy: no hidden layer
#
# 92 % of the test images are right, against 94 % with 64 hidden units: ten linear
# scores, one for each digit, are most of the way. Lessons that compare networks need a
# task on which they can differ.

# %%
linear = Sequential([Dense(10)], seed=lesson.seed)
train(linear)
print(
    f"no hidden layer: test accuracy {accuracy(linear):.3f}; with one {reached[64]:.3f}"
)
lesson.check(
    "accuracy with a hidden layer - without",
    reached[64] - accuracy(linear),
    at_least=0.01,
    claim=False,
    on_default_data=True,
)

# %% [markdown]
# ## 3. Medium: without `p.grad = None`
#
# Each step then goes along the sum of all gradients so far. That is momentum 1, a ball
# without friction: it overshoots and comes back. The loss grows from epoch to epoch, to
# 3.2 instead of 0.17, and 15 % of the test images are right instead of 94 %.

# %%
right, never_cleared = network(), network()
a, b = train(right), train(never_cleared, keep_gradients=True)
for start in (0, 157, 314, 628):
    print(
        f"steps {start:3} to {start + 156}: mean loss {a[start : start + 157].mean():.3f}, "
        f"gradients never cleared {b[start : start + 157].mean():.3f}"
    )
print(f"test accuracy {accuracy(right):.3f} and {accuracy(never_cleared):.3f}")
lesson.check(
    "last epoch: loss with gradients never cleared / cleared",
    b[-157:].mean() / a[-157:].mean(),
    at_least=2,
    claim=False,
)

# %% [markdown]
# ## 4. Medium: momentum by hand
#
# The same 785 losses as `optim.SGD(lr=RATE, momentum=0.9)`, bit for bit. The velocity
# starts at 0, and must be float32 like the weights: $0.9 v + g$ in float64 would round
# otherwise. With momentum the mean loss of the last epoch is 0.04 instead of 0.17.

# %%
velocity = {}


def momentum_step(model):
    for i, p in enumerate(model.parameters()):
        velocity[i] = 0.9 * velocity[i] + p.grad if i in velocity else p.grad.copy()
        p.data -= RATE * velocity[i]


by_hand = train(network(), step=momentum_step)
by_fit = network().compile(optim.SGD(lr=RATE, momentum=0.9), loss="cross_entropy")
by_fit = np.array(by_fit.fit(x, y, batch_size=64, epochs=5, verbose=0).steps["loss"])
print(
    f"{len(by_hand)} losses, largest difference {np.abs(by_hand - by_fit).max():g}; "
    f"last epoch {by_hand[-157:].mean():.3f}, without momentum {a[-157:].mean():.3f}"
)
lesson.check(
    "losses with momentum, by hand - by fit",
    np.abs(by_hand - by_fit).max(),
    at_most=0,
    claim=False,
)

# %% [markdown]
# ## 5. Research: five networks vote
#
# Five networks of other seeds make about as many mistakes each, 5.7 to 7.1 %. Their
# mean probabilities make 5.9 %: 94 % of the mistakes stay, because the networks err on
# the same images, which are hard to read. What a vote removes is the part of the
# mistakes that depends on the initial weights.

# %%
models = [network(seed) for seed in lesson.seeds(5)]
for model in models:
    train(model)
single = [1 - accuracy(model) for model in models]
voted = np.mean([F.softmax(model.predict(x_test)) for model in models], axis=0)
together = np.mean(voted.argmax(axis=1) != y_test)
print(
    "wrong alone: "
    + ", ".join(f"{s:.3f}" for s in single)
    + f"; voting {together:.3f}, "
    f"{together / np.mean(single):.0%} of the mean"
)
lesson.check(
    "mistakes of the vote / of one network",
    together / np.mean(single),
    at_most=1.0,
    claim=False,
)
lesson.finish()
