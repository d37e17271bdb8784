# %% [markdown]
# # Solutions to lesson 3, for teachers
#
# The data have a seed of their own, so the numbers are always these. The first cell
# repeats what the solutions need of the lesson.

# %%
from time import perf_counter

import numpy as np

from minidl import data, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("03_solutions")
rng = np.random.default_rng(42)
A, B = rng.uniform(1, 10, 100), rng.uniform(1, 200, 100)
y = 2 * A + 3 * B + rng.normal(size=100) * 0.1
raw = np.stack([A, B], axis=1)
inputs = {
    "raw": raw,
    "centred": raw - raw.mean(axis=0),
    "scaled": raw / raw.std(axis=0),
    "z-score": data.standardization(raw)(raw),
    "min-max": data.min_max(raw)(raw),
}


def hessian(x):
    return 2 / len(x) * x.T @ x


def slopes(x):
    return np.linalg.eigvalsh(hessian(x))[[0, -1]]


def condition(x):
    smallest, largest = slopes(x)
    return largest / smallest


def descend(x, y, lr, steps, momentum=0.0):
    """The loss above its minimum before every step and after the last, and the path."""
    best = np.linalg.solve(x.T @ x, x.T @ y)
    w, v, path = np.zeros(2), np.zeros(2), []
    for _ in range(steps + 1):
        path.append(w)
        v = momentum * v - lr * 2 / len(x) * x.T @ (x @ w - y)
        w = w + v
    d = np.array(path) - best
    return 0.5 * ((d @ hessian(x)) * d).sum(axis=1), np.array(path)


def steps_needed(losses):
    return (
        int(np.argmax(losses <= 1e-6 * losses[0]))
        if losses[-1] <= 1e-6 * losses[0]
        else None
    )


# %% [markdown]
# ## 1. Easy: centring and scaling
#
# The sentence is that one steep direction limits the rate for all. The steep direction
# is that of B, because its values are large: the Hessian's entries are twice the mean
# squares, 13,480 for B and 35 for A. Centring takes the means away. B keeps a quarter
# of its mean square, A a sixth, so B stays far steeper: $\kappa$ falls from 920 only
# to 567. Scaling makes the mean squares almost equal, 5.8 and 4.0, and then
# $\kappa$ is 7.7.

# %%
for name in ("raw", "centred", "scaled", "z-score"):
    h = hessian(inputs[name])
    print(
        f"{name:8}: mean squares of A {h[0, 0] / 2:10.4g} and B {h[1, 1] / 2:10.4g}, "
        f"condition number {condition(inputs[name]):7.4g}"
    )
lesson.check(
    "condition number centred / scaled",
    condition(inputs["centred"]) / condition(inputs["scaled"]),
    at_least=10,
    claim=False,
)

# %% [markdown]
# ## 2. Easy: other rates
#
# At $1 / \lambda_{\max}$ the steep direction is at its minimum after one step, without
# any zigzag, and the flat one crawls. At $1.95 / \lambda_{\max}$ the steep direction
# jumps from side to side, each time by a factor of -0.95: after 30 steps the loss is
# still $0.95^{60}$, 5 % of what it was. In the valley the flat direction is ahead for
# it, in the long run. In the bowl, where all directions are almost as steep, the rate 1
# is at the minimum, to $10^{-31}$, and 1.95 has gained nothing.

# %%
fig, axes = plotting.figure(
    1, 2, size=(13, 6), title="Loss above the minimum at two rates"
)
for ax, name in zip(axes, ("raw", "z-score")):
    for share, (color, line) in zip((1.0, 1.95), plotting.LOOKS):
        losses, _ = descend(inputs[name], y, share / slopes(inputs[name])[1], 30)
        ax.plot(
            losses / losses[0], color=color, linestyle=line, label=f"{share} / λ_max"
        )
        print(
            f"{name:8} rate {share:4} / largest eigenvalue: after 30 steps "
            f"{losses[-1] / losses[0]:.2g} of the first loss"
        )
    ax.set(yscale="log", title=name, xlabel="step", ylabel="share of the first loss")
plotting.legend(axes[0])
lesson.show(fig, "rates")
bowl = [
    descend(inputs["z-score"], y, s / slopes(inputs["z-score"])[1], 30)[0][-1]
    for s in (1, 1.95)
]
lesson.check(
    "bowl: loss after 30 steps at 1.95 / at 1",
    bowl[1] / bowl[0],
    at_least=1e3,
    claim=False,
)

# %% [markdown]
# ## 3. Medium: B follows A
#
# The correlation is 0.994, so $\kappa = (1 + \rho) / (1 - \rho)$ of the z-scores is
# 313, as predicted: a valley again. The z-score makes the features equally large; it
# cannot make them independent.

# %%
rng = np.random.default_rng(42)
A2 = rng.uniform(1, 10, 100)
follows = np.stack([A2, 20 * A2 + rng.uniform(1, 20, 100)], axis=1)
rho = np.corrcoef(follows.T)[0, 1]
measured = condition(data.standardization(follows)(follows))
print(
    f"correlation {rho:.4f}: predicted {(1 + rho) / (1 - rho):.1f}, measured {measured:.1f}"
)
lesson.check(
    "condition number / the predicted one - 1",
    abs(measured * (1 - rho) / (1 + rho) - 1),
    at_most=1e-6,
    claim=False,
)

# %% [markdown]
# ## 4. Medium: momentum 0.9
#
# The valleys gain most, 11 times fewer steps, because there one waits for the flat
# direction. Its gradient keeps its sign, so momentum adds up ten steps in one. The bowl
# loses: from 5 steps to 103, because what momentum has gathered swings past the
# minimum, and dies away only by the root of 0.9 in each step. (The rate is $1 /
# \lambda_{\max}$.)

# %%
gains = {}
for name, x in inputs.items():
    lr = 1 / slopes(x)[1]
    without, with_momentum = (
        steps_needed(descend(x, y, lr, 20000, m)[0]) for m in (0.0, 0.9)
    )
    gains[name] = without / with_momentum
    print(f"{name:8}: {without:5} steps without, {with_momentum:4} with momentum 0.9")
lesson.check("gain by momentum, raw", gains["raw"], at_least=3, claim=False)
lesson.check("gain by momentum, z-score", gains["z-score"], at_most=1, claim=False)

# %% [markdown]
# ## 5. Research: a condition number of exactly 1
#
# Whitening: rotate to the eigenvectors of the covariance and divide each coordinate by
# the root of its eigenvalue. For 784 pixels that is a 784 x 784 matrix, whose
# eigenvectors take 0.3 to 0.7 seconds here; a training step takes a millisecond. And
# for each layer, in each step, the gradient would have to go through the decomposition.
# So Ioffe and Szegedy (section 3) keep only the diagonal: that is BatchNorm.

# %%
centred = raw - raw.mean(axis=0)
values, vectors = np.linalg.eigh(centred.T @ centred / len(raw))
white = centred @ vectors / np.sqrt(values)
pixels = data.load("digits")[0][0][:2000]
began = perf_counter()
np.linalg.eigh(np.cov(pixels.T))
print(
    f"condition number after whitening {condition(white):.6f}; eigenvectors for 784 pixels: "
    f"{perf_counter() - began:.2f} s"
)
lesson.check(
    "condition number after whitening - 1",
    abs(condition(white) - 1),
    at_most=1e-9,
    claim=False,
)
lesson.finish()
