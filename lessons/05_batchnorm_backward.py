# %% [markdown]
# # 5. BatchNorm backward: is my gradient right, and how would I know?
#
# The forward pass of BatchNorm is four lines. The backward pass is where people go wrong, and a wrong one often trains
# *somehow*, so that nobody notices. We write it by hand, check it, then break it on purpose in four ways and see
# which checks find out. One popular check finds only half of them.
#
# You need: lesson 4 and the chain rule. No images are used. Running time: about 5 seconds.

# %%
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

from minidl import Tensor, functional as F, grad, gradcheck, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("05_batchnorm_backward")
EPS = 1e-5

# %% [markdown]
# ## The graph
#
# Forward, for one feature over a batch of $m$ samples:
#
# $\hat x_i = \frac{x_i - \mu_B}{s}, \quad s = \sqrt{\sigma_B^2 + \epsilon}, \quad y_i = \gamma \hat x_i + \beta.$
#
# minidl has this definition from primitives, `batch_norm_composed`, and can draw what it recorded. The numbers
# give the order in which backward visits the 12 results.

# %%
rng = np.random.default_rng(lesson.seed)
M = 8  # samples in the batch
x = 3 + 2 * rng.standard_normal((M, 3))
gamma, beta = rng.uniform(0.5, 2, 3), rng.standard_normal(3)

inputs = {"x": Tensor(x, requires_grad=True), "gamma": Tensor(gamma, requires_grad=True),
          "beta": Tensor(beta, requires_grad=True)}
composed, _, _ = F.batch_norm_composed(*inputs.values(), EPS)
ax = plotting.graph(composed, names=inputs, numbers=True)
ax.figure.suptitle("Three ways lead from x to the output, so its gradient has three parts", fontsize=22, fontweight="bold")
lesson.show(ax.figure, "graph")

# %% [markdown]
# An $x_i$ acts on the outputs in three ways: directly, through the mean, and through the variance. The last two reach the
# outputs of *all* samples. Let $dy_i$ be the gradient of the loss at $y_i$, which comes from the layers above. If
# we sum over the paths and simplify (exercise 3), six lines in the paper become three:
#
# $dx_i = \frac{\gamma}{m s} \left( m \cdot dy_i - \sum_j dy_j - \hat x_i \sum_j dy_j \hat x_j \right), \quad
# d\gamma = \sum_j dy_j \hat x_j, \quad d\beta = \sum_j dy_j.$
#
# In the bracket: the direct way, the way through the mean, the way through the variance.


# %%
def forward(x):
    """y, and what backward needs; computed in the dtype of x."""
    s = np.sqrt(x.var(axis=0) + EPS)
    x_hat = (x - x.mean(axis=0)) / s
    return gamma.astype(x.dtype) * x_hat + beta.astype(x.dtype), x_hat, s


def backward(dy, x_hat, s):
    return gamma / (M * s) * (M * dy - dy.sum(axis=0) - x_hat * (dy * x_hat).sum(axis=0))


# %% [markdown]
# ## Four ways to be wrong
#
# Two forget a part of the bracket. The third takes mean and variance for constants, which is what you get if they are
# computed where no gradient is recorded; published course code does that. The last is right but for a factor.

# %%
versions = {
    "right": backward,
    "no mean term": lambda dy, x_hat, s: gamma / (M * s) * (M * dy - x_hat * (dy * x_hat).sum(axis=0)),
    "no variance term": lambda dy, x_hat, s: gamma / (M * s) * (M * dy - dy.sum(axis=0)),
    "statistics as constants": lambda dy, x_hat, s: gamma / s * dy,
    "divided by s twice": lambda dy, x_hat, s: backward(dy, x_hat, s) / s,
}

# %% [markdown]
# ## Predict
#
# We compare with central differences: move one $x_i$ by $h$ up and down, and see how the loss changes. The loss must be a
# number, so we take $\sum_i y_i \cdot dy_i$; its gradient at $y$ is $dy$. Two choices of $dy$: random numbers, or all
# ones, so that the loss is simply the sum of the outputs.
#
# Which of the four wrong versions does each choice find? Write down a table of yes and no, four by two.
#
# ## Run


# %%
def numeric(x, dy, h=1e-5):
    """The gradient of sum(y * dy) with respect to x, entry by entry, from central differences."""
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = ((forward(x + step)[0] - forward(x - step)[0]) * dy).sum() / (2 * h)
    return dx


def error(dx, true):
    """The largest difference, relative to the largest entry of the true gradient (or to 0.01, where that is 0)."""
    return np.abs(dx - true).max() / max(np.abs(true).max(), 0.01)


upstream = {"random upstream gradient": rng.standard_normal((M, 3)), "all ones": np.ones((M, 3))}
_, x_hat, s = forward(x)
errors = {(version, name): error(dx(dy, x_hat, s), numeric(x, dy))
          for version, dx in versions.items() for name, dy in upstream.items()}
for name, dy in upstream.items():
    print(f"{name}: largest entry of the true dx {np.abs(numeric(x, dy)).max():.2g}")
    for version in versions:
        print(f"  {version:24} relative error {errors[version, name]:.1e}")

# %%
PASSES = 1e-6  # the tolerance of minidl's gradcheck
found = {name: sum(errors[version, name] > PASSES for version in versions if version != "right") for name in upstream}
RANDOM, ONES = upstream
fig, ax = plotting.figure(size=(12, 6.8), title=f"A random upstream gradient finds {found[RANDOM]} of 4 wrong versions, "
                                                f"all ones only {found[ONES]}")
for i, (name, (color, _)) in enumerate(zip(upstream, plotting.LOOKS)):
    ax.bar(np.arange(5) + 0.4 * i - 0.2, [errors[version, name] for version in versions], width=0.38, color=color,
           hatch="//" if i else None, edgecolor="white", label=name)
ax.axhline(PASSES, color="0.2", linewidth=2, linestyle=":")
ax.annotate("passes below this line", (0.0, PASSES), xycoords=ax.get_yaxis_transform(), xytext=(6, 5),
            textcoords="offset points", fontsize=14)
ax.set(yscale="log", ylim=(1e-12, 1e3), ylabel="relative error of dx")
ax.set_xticks(range(5), [version.replace(" ", "\n", 1) for version in versions])
ax.grid(False, axis="x")
plotting.legend(ax)
lesson.show(fig, "versions")

# %% [markdown]
# ## Explain: the blind test
#
# With all ones the loss is the sum of the outputs. But the $\hat x_i$ always sum to 0, whatever $x$ is, so this loss is
# $m \beta$: it does not depend on $x$. The true $dx$ is exactly 0. A wrong factor times 0 is 0. And the variance term contains
# $\sum_j \hat x_j = 0$, so it may as well be missing. "The sum of the outputs" is what one takes when a loss is
# needed quickly; for BatchNorm there is no worse choice. The sum of squares hides a wrong factor too, as
# $\sum_i \hat x_i^2$ is always close to $m$.
#
# A batch of one sample is as blind, even to a random $dy$: $\hat x = 0$ whatever $x$ is, the true $dx$ is 0 again, and the
# same two versions pass. (minidl refuses such a batch in training mode.) So: *a random upstream gradient, and more than
# two samples.*
#
# ## How small a step?
#
# A large $h$ is wrong because the function is not straight: the error shrinks with $h^2$. A small $h$ is wrong because two
# nearly equal numbers are subtracted: the rounding error grows with $1/h$. Predict: where is the best $h$ in
# float64, where in float32, and how good does it get?

# %%
steps = 10.0 ** np.arange(-11, 0.1, 0.5)
dy = upstream[RANDOM]
right = backward(dy, x_hat, s)
by_step = {dtype: [error(numeric(x.astype(dtype), dy.astype(dtype), h), right) for h in steps]
           for dtype in ("float64", "float32")}
best = {name: int(np.argmin(line)) for name, line in by_step.items()}
for name, line in by_step.items():
    print(f"{name}: smallest error {line[best[name]]:.1e}, at h = {steps[best[name]]:.0e}")

# %%
fig, ax = plotting.figure(size=(11, 6.3), title=f"Check gradients in float64: error down to {min(by_step['float64']):.0e}, "
                                                f"in float32 {min(by_step['float32']):.0e}")
for (name, line), (color, look) in zip(by_step.items(), plotting.LOOKS):
    ax.plot(steps, line, linestyle=look, color=color, linewidth=3, label=name)
ax.set(xscale="log", yscale="log", ylim=(1e-12, 1e2), xlabel="step h of the central differences",
       ylabel="relative error of\nthe differences")
ax.annotate("rounding,\ngrows with 1/h", (1e-10, 3e-9), fontsize=15)
ax.annotate("curvature,\nshrinks with $h^2$", (1e-2, 3e-9), fontsize=15)
plotting.legend(ax)
lesson.show(fig, "step")

# %% [markdown]
# ## And minidl's own?
#
# minidl has BatchNorm twice: from primitives, where the gradient follows by itself from 12 simple rules, and as one fast
# function whose backward is the line above. Three ways to the same numbers; and `gradcheck` does for any
# function what we did by hand, in random directions.

# %%
fused, _, _ = F.batch_norm(*inputs.values(), EPS)
ours = [right, (dy * x_hat).sum(axis=0), dy.sum(axis=0)]
differences = {name: max(np.abs(a - b).max() for a, b in zip(ours, grad(y, list(inputs.values()), gradient=dy)))
               for name, y in (("composed", composed), ("fused", fused))}
for name, difference in differences.items():
    print(f"{name}: largest difference of dx, dgamma, dbeta from ours {difference:.1e}")
checked = gradcheck(lambda x, gamma, beta: F.batch_norm(x, gamma, beta, EPS)[0], [x, gamma, beta])
print(f"gradcheck of the fused function: {checked}")

# %%
print()
lesson.check("right version, random upstream: relative error", errors["right", RANDOM], at_most=1e-7, claim=False)
lesson.check("right version, all ones: relative error", errors["right", ONES], at_most=PASSES, claim=False)
for version in list(versions)[1:]:
    lesson.check(f"{version}, random upstream: relative error", errors[version, RANDOM], at_least=0.01,
                 claim=False)
for version in ("no variance term", "divided by s twice"):
    lesson.check(f"blind test: {version}, all ones: relative error", errors[version, ONES],
                 at_most=PASSES, claim=False)
for name, difference in differences.items():
    lesson.check(f"largest difference from minidl, {name}", difference, at_most=1e-12, claim=False)
lesson.finish()

# %% [markdown]
# ## Try
#
# 1. Easy: set `M = 1` and look at the table of errors. Which versions pass now, even with a random $dy$?
# 2. Easy: write `backward` for evaluation mode, where mean and variance are constants. Which of the four is it?
# 3. Medium: derive the line from the graph. Start with $dy_i \cdot \gamma / s$, add what arrives through $\mu_B$, then through
#    $\sigma_B^2$. One of the terms is zero: which?
# 4. Medium: check $d\gamma$ and $d\beta$ with central differences too. For which of them is all ones a blind test?
# 5. Research: how wrong may a gradient be and still train? Train a network on each wrong version, `minidl.tensor.Op` shows
#    how to make one. The paper says in section 2 what happens to a bias if the statistics are taken for constants.
#
# Now write it yourself: exercise 6 (`python -m minidl exercise 6 --copy DIR`).
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 2 and 3 (the six lines of the backward pass). Text 001 gives the forward
# formulas; none of the five texts says that the gradient must flow through the statistics.
