# %% [markdown]
# # 1. Tensors and gradients: what is a gradient, and how does the engine find it?
#
# A network learns by small corrections of its weights. For each weight it must know: if
# I make it a little larger, does the error grow or shrink, and how fast? The answer,
# for all weights at once, is the *gradient*. In this lesson we find gradients in three
# ways, slowly, by hand and with the engine, and check one against the other. At the end
# we meet a check that looks sound and sees nothing.
#
# You need: Python, and the derivative as you know it from school. Running time: about 5
# seconds.

# %%
import inspect
import math
import os
import sys

# Set before NumPy loads: small products are fastest on one thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Tensor, explain, gradcheck, plotting
from minidl import functional as F
from minidl.lessonkit import Lesson
from minidl.tensor import Op

lesson = Lesson("01_tensors_and_gradients")

# %% [markdown]
# ## The derivative of school
#
# Take $f(w) = w^2$. In school its derivative is $2 w$: at $w = 3$ the slope is 6. What
# does that number promise? If $w$ grows by a little, $f$ grows by 6 times as much.
#
# So a slope can be measured: nudge $w$ by a very small $h$, best once to either side,
# and divide the change by the width: $\frac{f(w + h) - f(w - h)}{2 h}$. This is called
# a *finite difference*. (`np.float64` means 16 digits. The other lessons use float32, 7
# digits, which is faster and quite enough to learn with.)


# %%
def slope(f, at, h=1e-5):
    return (f(at + h) - f(at - h)) / (2 * h)


def square(w):
    return w**2


three = np.float64(3.0)
print(
    f"w squared at 3: slope by the rule of school {2 * three}, "
    f"by nudging {slope(square, three):.6f}"
)
promised = square(three) + 0.01 * 6
print(
    f"w grows by 0.01: {square(three):.4f} should become {promised:.4f}, "
    f"and becomes {square(three + 0.01):.4f}"
)

# %% [markdown]
# ## Two steps: the chain rule
#
# Now $f(w) = (5 w - 13)^2$, computed in two steps: $z = 5 w - 13$, then $f = z^2$.
# Nudge
# $w$ by $h$, and $z$ moves by $5 h$, because the first step has the slope 5. The second
# step has the slope $2 z$, so $f$ moves by $2 z$ times that. *The slopes along the way
# are multiplied*: $\frac{df}{dw} = \frac{df}{dz} \cdot \frac{dz}{dw} = 2 z \cdot 5$.
# This is the *chain rule*, and it works for any number of steps.

# %%
z = 5 * three - 13
print(
    f"z is {z}; slopes {2 * z} and 5, multiplied {2 * z * 5}; by nudging "
    f"{slope(lambda w: (5 * w - 13) ** 2, three):.6f}"
)

# %% [markdown]
# ## One neuron, one weight
#
# The smallest network there is: one input $x$, one weight $w$, one bias $b$. The neuron
# computes $z = w x + b$ and sends it through the sigmoid, $y = \frac{1}{1 + \exp(-z)}$,
# which lies between 0 and 1. We want the answer $t$. The *loss* says how wrong the
# neuron is: $L = (y - t)^2$.
#
# We take $w$ as the only thing that can change. Then the loss is a function of one
# number, as in school, only with more steps.

# %%
x, b, t = np.float64(2.0), np.float64(-1.5), np.float64(1.0)
here = np.float64(0.5)  # the weight's present value


def loss_of(w):
    return (F.sigmoid(w * x + b) - t) ** 2


print(f"w = {here}: the neuron answers {F.sigmoid(here * x + b):.2f}, we want {t:.0f}")

# %% [markdown]
# ## Predict
#
# Above stand the neuron's answer and the one we want. Does the loss rise or fall if $w$
# grows? If $w$ grows by 0.1, by about how much will it change? Write down a sign and a
# guess.
#
# ## Run

# %%
promised = loss_of(here) + 0.1 * slope(loss_of, here)
print(
    f"loss {loss_of(here):.4f}, slope {slope(loss_of, here):+.4f}: for w + 0.1 it "
    f"promises {promised:.4f}, and we get {loss_of(here + 0.1):.4f}"
)

# %%
w_axis = np.linspace(-2, 4, 200)
tangent = loss_of(here) + slope(loss_of, here) * (w_axis - here)
fig, ax = plotting.figure(
    title=f"At w = {here} the loss falls: its slope is {slope(loss_of, here):.2f}",
    size=(10, 6),
)
for label, curve, (color, line) in zip(
    ("the loss", "its tangent"), (loss_of(w_axis), tangent), plotting.LOOKS
):
    ax.plot(w_axis, curve, color=color, linestyle=line, linewidth=3, label=label)
ax.plot(here, loss_of(here), "o", color="black", markersize=11, label="where we are")
ax.set(xlabel="weight w", ylabel="loss L", ylim=(-0.05, 1.1))
plotting.legend(ax)
lesson.show(fig, "slope")

# %% [markdown]
# By the chain rule the slope is a product of three: of the square, of the sigmoid,
# which is $y (1 - y)$, and of $w x + b$.
#
# $\frac{dL}{dw} = \frac{dL}{dy} \cdot \frac{dy}{dz} \cdot \frac{dz}{dw}, \quad
# \frac{dL}{dy} = 2 (y - t), \quad \frac{dy}{dz} = y (1 - y), \quad \frac{dz}{dw} = x.$

# %%
y = F.sigmoid(here * x + b)
by_hand = 2 * (y - t) * y * (1 - y) * x
print(f"chain rule: {2 * (y - t):.4f} * {y * (1 - y):.4f} * {x} = {by_hand:.6f}")
for h in (1e-1, 1e-3, 1e-5, 1e-8, 1e-11, 1e-14):
    wrong = abs(slope(loss_of, here, h) - by_hand)
    print(f"nudge {h:.0e}: the finite difference is wrong by {wrong:.0e}")

# %% [markdown]
# A large nudge is wrong because the curve bends on the way. A very small one is wrong
# too: the two losses then agree in nearly all of their 16 digits, and their difference
# is made of rounding errors. $10^{-5}$ is a good choice.
#
# Finite differences need no mathematics, and they are hard to get wrong: good for
# *checking*. But a network with 50,000 weights would need 100,000 losses for a single
# correction. The chain rule needs one walk.
#
# ## The engine
#
# A `Tensor` is an array that remembers how it was made. We compute the loss as before.
# Then `backward()` walks back from the loss, multiplies slopes, and leaves the result
# in `w.grad`.

# %%
w, bias = Tensor(here, requires_grad=True), Tensor(b, requires_grad=True)
z = w * x + bias
y = F.sigmoid(z)
error = y - t
loss = error * error
ax = plotting.graph(
    loss,
    names={
        "w": w,
        "b": bias,
        "x": x,
        "t": t,
        "z": z,
        "y": y,
        "error": error,
        "loss": loss,
    },
)
ax.figure.suptitle(
    "What the loss remembers: every op, and what went into it",
    fontsize=18,
    fontweight="bold",
)
lesson.show(ax.figure, "graph_neuron")

# %% [markdown]
# `explain` prints the same path in the order of the walk, with the size of the gradient
# after each op: the products of the chain rule as they build up (without the sign).
# Compare the last line with the slope above.

# %%
explain(loss, w)
loss.backward()
print(
    f"w.grad {w.grad:.6f}, by hand {by_hand:.6f}, finite difference "
    f"{slope(loss_of, here):.6f}; b.grad {bias.grad:.6f}"
)
error_by_hand, error_by_nudging = (
    abs(w.grad - by_hand),
    abs(w.grad - slope(loss_of, here)),
)

# %% [markdown]
# Each op knows only its own slope. But `error` is used twice, in `error * error`. What
# happens then?
#
# ## Used twice: slopes add up
#
# Back to $w^2$, now written as $w \cdot w$. Nudge only the first $w$: the product moves
# by 3 times as much, because the other factor is 3. Nudge only the second: 3 again. In
# truth both move, so the slope is $3 + 3 = 6$. *Gradients that arrive at the same place
# are added.*

# %%
w = Tensor(three, requires_grad=True)
(w * w).backward()
print(f"w * w at 3: the engine says {w.grad}")

# %% [markdown]
# ## The order of the walk
#
# The whole engine is: a list of small slopes, and a walk in the right order. Here `a`
# goes into `c` directly, and also by way of `s`. Predict: starting at the loss, in
# which order must the four ops be visited?

# %%
w = Tensor(here, requires_grad=True)
a = w * 3.0
s = F.sigmoid(a)
c = a * s
loss = c * c
ax = plotting.graph(
    loss, names={"w": w, "a": a, "s": s, "c": c, "loss": loss}, numbers=True
)
ax.figure.suptitle(
    "a comes last, when both of its gradients have arrived",
    fontsize=18,
    fontweight="bold",
)
lesson.show(ax.figure, "graph_order")

# %% [markdown]
# If `a` came right after `c`, it would pass on only a part of its gradient. There are
# two ways out. The simple one follows every *path* back to `w` by itself and adds up at
# the end: a function that calls itself. The engine's way: of all results that wait,
# take the one that was *made last*. Nothing made from it can still be waiting.
#
# The place of a result in the graph is its `node`. Nodes are numbered in the order of
# their making, and `node.gradients(g)` lists, for each input of the op, the input's own
# place and the gradient that reaches it.


# %%
def by_recursion(place, g, w):
    """The share of w's gradient that comes through a place, whose own gradient is g."""
    if place is w:
        return g
    return sum(by_recursion(x, gx, w) for x, gx in place.gradients(g))


def by_walking(loss, w):
    """What the engine does, in short."""
    waiting, total = {loss.node: 1.0}, 0.0
    while waiting:
        node = max(waiting, key=lambda node: node.number)  # the one that was made last
        g = waiting.pop(node)
        for x, gx in node.gradients(g):
            if x is w:
                total = total + gx
            else:
                waiting[x] = waiting.get(x, 0.0) + gx
    return total


walked, recursed = by_walking(loss, w), by_recursion(loss.node, 1.0, w)
loss.backward()
print(f"recursion {recursed:.6f}, our walk {walked:.6f}, the engine {w.grad:.6f}")
error_of_walk = abs(walked - w.grad)

# %% [markdown]
# Both work. Now a chain of 10,000 additions, $y = w + w + w$ and so on. The gradient is
# the number of times that $w$ occurs: 10,001. Predict: what does recursion say?

# %%
w = Tensor(here, requires_grad=True)
y = w
for _ in range(10_000):
    y = y + w
calls = sys.getrecursionlimit()
if sys.platform == "emscripten":
    sys.setrecursionlimit(300)  # a browser's stack ends before Python's 1,000 calls
try:
    print(f"recursion: {by_recursion(y.node, 1.0, w):.0f}")
except RecursionError as message:
    print(f"recursion gave up: {message}")
finally:
    sys.setrecursionlimit(calls)
y.backward()
chain_gradient = w.grad
print(
    f"the engine: {chain_gradient:.0f}; Python lets {calls:,} calls wait for each other"
)

# %% [markdown]
# ## What must the forward pass remember?
#
# Each op multiplies by its own slope, and many slopes contain numbers from the way
# forward: the sigmoid's is $y (1 - y)$, so its output $y$ has to be kept until the walk
# comes back. This is why training takes so much more memory than answering: in a batch
# of 2,048 images, one layer of 256 neurons fills 2 MB, and a network has many layers.
#
# Predict, for each of the six ops below: does its gradient need its input or inputs,
# its output, or nothing at all?

# %%
a = Tensor([[1.0, 2], [3, 4]], requires_grad=True)
b = Tensor([[5.0, 6], [7, 8]], requires_grad=True)
for result in (a + b, a * b, a @ b, F.relu(a), F.exp(a), F.log(a)):
    op = result.node.op
    for x, vjp in zip(inspect.signature(op).parameters, op.vjps):
        reads = list(inspect.signature(vjp).parameters)[1:]  # the first is g
        print(
            f"{op.name:6}: for the gradient of {x} it keeps "
            f"{reads[0] if reads else 'nothing'}"
        )

# %% [markdown]
# Nobody had to list them: each op names what it reads in its line of gradient. That of
# `a * b` is, for $a$, `lambda g, b: g * b`, because the slope of $a b$ is $b$. That of
# ReLU is `lambda g, y: g * (y > 0)`: whether the input was positive can still be told
# from the output `y`. The engine goes by these names. It keeps what they say and no
# more.
#
# What does this save? Three layers of 256 neurons, and 2,048 images: we add up the
# numbers in all results of the way forward, and in those that the graph still holds.
# (`node.saved` has what the lines of gradient read.)


# %%
def graph_of(result):
    """The nodes of all results that this one was made from, and its own."""
    found, ahead = set(), [result.node]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead += [x for x in node.inputs if not isinstance(x, Tensor)]
    return found


rng = np.random.default_rng(lesson.seed)
images = rng.standard_normal((2048, 256), np.float32)
kernels = [rng.standard_normal((256, 256), np.float32) / 16 for _ in range(3)]
hidden = Tensor(images)
for kernel in kernels:
    hidden = F.relu(hidden @ Tensor(kernel, requires_grad=True))

graph, there_anyway = graph_of(hidden), [id(array) for array in (images, *kernels)]
kept = {
    id(array): array.size
    for node in graph
    for array in node.saved
    if id(array) not in there_anyway
}
computed, remembered = sum(math.prod(node.shape) for node in graph), sum(kept.values())
print(
    f"{len(graph)} results with {computed:,} numbers; "
    f"the graph holds {remembered:,} of them"
)

# %% [markdown]
# The outputs of the products are forgotten, because neither the product nor ReLU reads
# them. The output of each ReLU is kept, and only once, though two read it: the ReLU
# itself, and the next product, for the gradient of its kernel.
#
# What is kept must stay as it was. If a weight changes between the way forward and the
# way back, the slope is taken at a place where the network never was, and the numbers
# look as good as any others. So the engine refuses:

# %%
w = Tensor(here, requires_grad=True)
loss = w * w
w.data -= 0.1
try:
    loss.backward()
except RuntimeError as message:
    print(message)

# %% [markdown]
# ## Many weights: the gradient as a vector
#
# Now the neuron learns from five examples, and both $w$ and $b$ may change. We keep
# them in one Tensor, called $\theta = (w, b)$. The gradient is an array of the same
# shape: in each place the slope for a nudge of that number alone.

# %%
examples = np.array(
    [[-2.0, 1], [-1, 1], [0, 1], [1, 1], [2, 1]]
)  # x, and a 1 for the bias
targets = np.array([0.0, 0, 1, 1, 1])


def mean_loss(theta):
    return F.mean((F.sigmoid(examples @ theta) - targets) ** 2)


def numeric_gradient(f, at, h=1e-5):
    """The slope of f for each number in an array, nudged one after the other."""
    return np.array(
        [(f(at + nudge) - f(at - nudge)) / (2 * h) for nudge in h * np.eye(len(at))]
    )


theta = Tensor(np.array([-0.5, -1.0]), requires_grad=True)
mean_loss(theta).backward()
numeric = numeric_gradient(mean_loss, theta.data)
print(f"engine {theta.grad}, finite differences {numeric}")
error_of_vector = np.abs(theta.grad - numeric).max()

# %% [markdown]
# As an arrow, the gradient points to where the loss rises fastest. Do we believe it? We
# try 360 directions, one degree apart, and see in which the loss rises most. (0
# degrees: only $w$ grows. 90 degrees: only $b$.)

# %%
degrees = np.arange(360)
directions = np.stack(
    [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1
)
rise = np.array(
    [
        slope(lambda step: mean_loss(theta.data + step * direction), 0.0)
        for direction in directions
    ]
)
steepest, pointing = (
    degrees[rise.argmax()],
    np.degrees(np.arctan2(theta.grad[1], theta.grad[0])) % 360,
)
print(
    f"the loss rises fastest towards {steepest} degrees; "
    f"the gradient points to {pointing:.1f} degrees"
)

# %% [markdown]
# So the loss falls fastest the other way: subtract a small multiple of the gradient
# from $\theta$, again and again. This is *gradient descent*. Lesson 2 trains a whole
# network by it, and lesson 3 draws its path.
#
# ## Your own op, and a blind check
#
# An op is declared by its values and one line of gradient for each input. In the line
# `g` is the gradient that arrives, `y` the output, `x` the input; it returns the
# gradient for `x`. (The field calls it a vector-Jacobian product.) Here is one that
# shifts and stretches five numbers to mean 0 and standard deviation 1. It is the heart
# of Batch Normalization; lesson 5 derives its gradient.
#
# Beside it stand three wrong gradients, the last wrong by a factor of $-7$: it would
# train the network backwards.


# %%
def standardise(x):
    return (x - x.mean()) / x.var() ** 0.5


right = Op(
    "right",
    standardise,
    lambda g, y, x: (g - g.mean() - y * (g * y).mean()) / x.var() ** 0.5,
)
candidates = {
    "right": right,
    "mean forgotten": Op(
        "no_mean",
        standardise,
        lambda g, y, x: (g - y * (g * y).mean()) / x.var() ** 0.5,
    ),
    "spread forgotten": Op(
        "no_spread", standardise, lambda g, y, x: (g - g.mean()) / x.var() ** 0.5
    ),
    "times -7": Op(
        "times_minus_7", standardise, lambda g, y, x: -7 * right.vjps[0](g, y, x)
    ),
}
rng = np.random.default_rng(lesson.seed)
five = rng.standard_normal(5)

# %% [markdown]
# To check an op with five outputs we need a single number. The obvious one is their
# sum, that is, every output gets the weight 1. Another is a sum with random weights $u$
# (the field calls them a cotangent). (`backward(u)` takes them.) With either we compare
# engine and finite differences, and allow a relative error of $10^{-6}$.
#
# Predict: which of the three wrong gradients does the plain sum find? Which does the
# random one?


# %%
def relative_error(op, x, u):
    """The largest difference between engine and finite differences for sum(u * op(x)).

    Sizes below 1e-3 count as 1e-3.
    """
    leaf = Tensor(x, requires_grad=True)
    op(leaf).backward(u)
    numeric = numeric_gradient(lambda x: (u * op(x)).sum(), x)
    return np.max(
        np.abs(leaf.grad - numeric) / (np.abs(leaf.grad) + np.abs(numeric) + 1e-3)
    )


weights = {"plain sum": np.ones(5), "random weights": rng.standard_normal(5)}
errors = {
    kind: {name: relative_error(op, five, u) for name, op in candidates.items()}
    for kind, u in weights.items()
}
found = {kind: sum(error > 1e-6 for error in errors[kind].values()) for kind in weights}
fig, ax = plotting.figure(
    size=(12, 6),
    title=f"Of three wrong gradients the plain sum finds {found['plain sum']}, "
    f"random weights find {found['random weights']}",
)
for kind, shift, marker, (color, _) in zip(
    weights, (-0.08, 0.08), "Xo", (plotting.LOOKS[1], plotting.LOOKS[0])
):
    ax.plot(
        np.arange(4) + shift,
        list(errors[kind].values()),
        marker,
        color=color,
        markersize=16,
        label=kind,
    )
ax.axhline(1e-6, color="0.4", linestyle=":", linewidth=2)
ax.annotate(
    "passes below 1e-6", (3.5, 4e-7), ha="right", va="top", color="0.3", fontsize=14
)
ax.set(
    ylabel="relative error",
    yscale="log",
    xticks=range(4),
    xticklabels=list(candidates),
    xlim=(-0.5, 3.5),
    ylim=(1e-12, 30),
)
plotting.legend(ax)
lesson.show(fig, "blind_check")

# %% [markdown]
# ## Explain
#
# A gradient holds one slope for each number that can change. The engine finds all of
# them in one walk back from the loss: each op multiplies by its own slope, gradients
# that meet add up, and the op made last goes first.
#
# Why is the plain sum blind? The five outputs have mean 0, whatever the input. So their
# sum is always 0, its true gradient is 0, and $-7 \cdot 0 = 0$. The plain sum looks in
# a direction in which nothing can be seen. The same holds for a softmax, whose outputs
# add up to 1. A random direction is hardly ever blind.
#
# `gradcheck` does the same with less work: it weighs the outputs at random, and it
# nudges *all* inputs at once in a random direction. So one direction costs two losses,
# however many numbers the input has. Every op of minidl is tested by it.

# %%
print(f"gradcheck of the right one: {gradcheck(right, five, seed=lesson.seed)}")
try:
    gradcheck(candidates["times -7"], five, seed=lesson.seed)
except AssertionError as message:
    print(f"gradcheck of the one times -7: {message}")

# %%
print()
lesson.check(
    "neuron: engine - chain rule by hand", error_by_hand, at_most=1e-12, claim=False
)
lesson.check(
    "neuron: engine - finite difference", error_by_nudging, at_most=1e-9, claim=False
)
lesson.check(
    "two weights: engine - finite differences",
    error_of_vector,
    at_most=1e-9,
    claim=False,
)
lesson.check("our walk - the engine", error_of_walk, at_most=1e-12, claim=False)
lesson.check(
    "numbers remembered / numbers computed",
    remembered / computed,
    at_most=0.5,
    claim=False,
)
lesson.check(
    "10,000 ops: engine - 10,001", abs(chain_gradient - 10_001), at_most=0, claim=False
)
lesson.check(
    "steepest direction - the gradient's, in degrees",
    abs(steepest - pointing),
    at_most=0.6,
    claim=False,
)
lesson.check(
    "right gradient: error with random weights",
    errors["random weights"]["right"],
    at_most=1e-6,
    claim=False,
)
lesson.check(
    "gradient times -7: error with the plain sum (blind)",
    errors["plain sum"]["times -7"],
    at_most=1e-6,
    claim=False,
)
lesson.check(
    "gradient times -7: error with random weights",
    errors["random weights"]["times -7"],
    at_least=0.5,
    claim=False,
)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. What does `backward()` compute?**
#
# - A: the learning rate, and with it the new weights
# - B: the new weights
# - C: for each number that may change, the slope of the loss
# - D: the loss for many nudged weights
#
# **2. Your gradient of an op passes a check in which the loss is the sum of the
# outputs. The outputs always have mean 0. What do you know?**
#
# - A: the gradient is right
# - B: it is right but for a constant factor
# - C: nothing: this loss does not depend on the input at all
# - D: the op cannot be differentiated
#
# <details><summary>Answers</summary>
#
# 1 C. A is what text 003 says ("by the chain rule find the learning rate"), but the
# learning rate is a number that we choose, and a step with it comes after the walk. B
# is the step. D is the finite difference, which needs two losses for each weight;
# `backward()` needs none.
#
# 2 C. The sum is 0 for every input, so its true gradient is 0, and any factor times 0
# passes: A and B do not follow. Nor does D, because the op has a gradient; only this
# loss cannot see it.
#
# </details>
#
# ## Try
#
# 1. Easy: one nudge only, $(L(w + h) - L(w)) / h$: which $h$ is best now, and how good
#    is it?
# 2. Easy: move `here` to 3 and to -2. Where is the slope steep, where flat? Why does a
#    neuron far from its target learn slowly?
# 3. Medium: start with `y = w` and do `y = y + y` 14 times. (Not `w = w + w`: that
#    gives the name `w` to a new Tensor, and the one whose gradient we want has no name
#    any more.) How often is `by_recursion` called, and how many ops does the walk
#    visit?
# 4. Medium: which weights $u$ make `spread forgotten` pass? Find some that are not all
#    equal. (Look at its formula.)
# 5. Research: the walk takes the op made last. Would any order do in which an op comes
#    after all that was made from it? Does the order change the rounding?
#
# Now write it yourself: exercises 1, 2 and 3
# (`python -m minidl exercise 1 --copy DIR`).
#
# Sources: `minidl/tensor.py` (the engine) and `minidl/gradcheck.py`. D. Rumelhart, G.
# Hinton and R. Williams, Learning representations by back-propagating errors, 1986. A
# gradient check of Batch Normalization with the plain sum, whose true gradient is 0, is
# the subject of issue 744 of torch/nn.
