# %% [markdown]
# # Solutions to lesson 1, for teachers
#
# The numbers are those of seed 0. The first cell repeats what the solutions need of the
# lesson.

# %%
import numpy as np

from minidl import Tensor
from minidl import functional as F
from minidl.lessonkit import Lesson
from minidl.tensor import Op

lesson = Lesson("01_solutions")
x, b, t, here = np.float64(2.0), np.float64(-1.5), np.float64(1.0), np.float64(0.5)


def loss_of(w):
    return (F.sigmoid(w * x + b) - t) ** 2


def true_slope(w):
    y = F.sigmoid(w * x + b)
    return 2 * (y - t) * y * (1 - y) * x


# %% [markdown]
# ## 1. Easy: one nudge only
#
# The best $h$ is $10^{-7}$ to $10^{-8}$, and the slope is then wrong by $8 \cdot
# 10^{-9}$. A nudge to either side, at $10^{-5}$, is wrong by $3 \cdot 10^{-11}$, 200
# times less. One-sided, the error of the bend shrinks only with $h$, not with $h^2$, so
# it meets the rounding error, which grows with $1/h$, earlier and higher: near the
# square root of $10^{-16}$.

# %%
one_sided = {}
for h in 10.0 ** -np.arange(2, 13):
    one_sided[h] = abs((loss_of(here + h) - loss_of(here)) / h - true_slope(here))
    print(f"h {h:.0e}: wrong by {one_sided[h]:.1e}")
best = min(one_sided, key=one_sided.get)
two_sided = abs((loss_of(here + 1e-5) - loss_of(here - 1e-5)) / 2e-5 - true_slope(here))
print(f"best h {best:.0e}; both sides at 1e-05: wrong by {two_sided:.1e}")
lesson.check(
    "one nudge: the best error / that of two nudges",
    one_sided[best] / two_sided,
    at_least=10,
    claim=False,
)

# %% [markdown]
# ## 2. Easy: where is the slope steep, where flat?
#
# At 3 the neuron is nearly right ($y = 0.99$) and the slope is flat, -0.0005, because
# little is left to learn. At -2 it is far from right ($y = 0.004$), and the slope is as
# flat: -0.016, although the loss is almost 1. The factor $y (1 - y)$, the slope of the
# sigmoid, is to blame: 0.004 there. A neuron far from its target learns slowly because
# its sigmoid is saturated. (With cross-entropy as the loss that factor cancels.)

# %%
for w in (-2.0, 0.5, 3.0):
    y = F.sigmoid(w * x + b)
    print(
        f"w {w:4}: y {y:.4f}, loss {loss_of(w):.4f}, slope {true_slope(w):+.5f}, "
        f"of it y (1 - y) {y * (1 - y):.5f}"
    )
lesson.check(
    "slope at -2 / slope at 0.5",
    true_slope(-2.0) / true_slope(here),
    at_most=0.1,
    claim=False,
)

# %% [markdown]
# ## 3. Medium: doubling 14 times
#
# Recursion visits every path: 2 calls for each doubling, $1 + 2 + 4 + ... + 2^{14} =
# 32767$ calls. The walk visits each of the 14 additions once. Both find $2^{14} =
# 16384$. (Written as `w = w + w`, the name `w` would be that of the newest Tensor. The
# recursion would look for it among the inputs, pass by the first one without knowing
# it, and end in an AttributeError.)

# %%
calls = 0


def by_recursion(place, g, w):
    global calls
    calls += 1
    if place is w:
        return g
    return sum(by_recursion(x, gx, w) for x, gx in place.gradients(g))


w = Tensor(here, requires_grad=True)
y = w
for _ in range(14):
    y = y + y
share = by_recursion(y.node, 1.0, w)
visited, waiting = 0, {y.node}
while waiting:
    node = max(waiting, key=lambda node: node.number)
    waiting.remove(node)
    visited += 1
    waiting |= {place for place, _ in node.gradients(1.0) if place is not w}
print(
    f"recursion: {calls:,} calls, gradient {share:,.0f}; the walk visits {visited} ops"
)
lesson.check(
    "calls of the recursion - 32,767", abs(calls - 32_767), at_most=0, claim=False
)
lesson.check("ops that the walk visits - 14", abs(visited - 14), at_most=0, claim=False)

# %% [markdown]
# ## 4. Medium: weights that make "spread forgotten" pass
#
# The forgotten term is $y$ times the mean of $g y$. It is missing unseen if that mean
# is 0: if $u$ is at right angles to the output $y$. Take any random $u$ and subtract
# its part along $y$. The relative error falls from 0.6 to $5 \cdot 10^{-11}$. So even
# random-looking weights can be blind, if they are chosen with knowledge of the output.


# %%
def standardise(x):
    return (x - x.mean()) / x.var() ** 0.5


forgotten = Op(
    "no_spread", standardise, lambda g, y, x: (g - g.mean()) / x.var() ** 0.5
)
rng = np.random.default_rng(lesson.seed)
five, u = rng.standard_normal(5), rng.standard_normal(5)
out = standardise(five)
blind = u - (u @ out) / (out @ out) * out


def error(u, h=1e-5):
    leaf = Tensor(five, requires_grad=True)
    forgotten(leaf).backward(u)
    numeric = [
        ((u * standardise(five + d)).sum() - (u * standardise(five - d)).sum())
        / (2 * h)
        for d in h * np.eye(5)
    ]
    return np.abs(leaf.grad - numeric).max() / np.abs(numeric).max()


print(
    f"random u: error {error(u):.1e}; u at right angles to y, {np.round(blind, 2)}: "
    f"{error(blind):.1e}"
)
lesson.check(
    "error with u at right angles to the output",
    error(blind),
    at_most=1e-6,
    claim=False,
)
lesson.check("error with a random u", error(u), at_least=0.01, claim=False)

# %% [markdown]
# ## 5. Research: would any order do?
#
# Any order does in which an op comes after everything that was made from it (a reverse
# topological order): only then have all of its gradients arrived. The made-last order
# is one, because nothing can be made from what does not exist yet. What the order may
# change is the sequence in which arriving gradients are added, and float addition is
# not associative: below, three gradients in two orders differ in the last digits. So
# runs are the same bit for bit only with a fixed order.

# %%
parts = np.float32([1e8, 1.0, -1e8])
forwards, backwards = (parts[0] + parts[1]) + parts[2], (parts[2] + parts[0]) + parts[1]
print(f"added in two orders: {forwards} and {backwards}")
many = rng.standard_normal(1000).astype(np.float32)
sums = [sum(rng.permutation(many)) for _ in range(20)]
print(
    f"1,000 gradients added in 20 orders: {len(set(map(float, sums)))} different sums, "
    f"from {min(sums):.7g} to {max(sums):.7g}"
)
lesson.check(
    "different sums in 20 orders", len(set(map(float, sums))), at_least=2, claim=False
)
lesson.finish()
