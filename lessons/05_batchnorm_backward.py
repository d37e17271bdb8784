# %% [markdown]
# # 5. BatchNorm backward: is my gradient right, and how would I know?
#
# The forward pass of BatchNorm is four lines. The backward pass is where people go
# wrong, and because a network with a wrong gradient often learns *something*, nobody
# notices. We derive it step by step, check it, then break it on purpose in four ways
# and see which checks notice. One popular check finds only half of them.
#
# You need: lesson 4 and the chain rule. No images are used. Running time: about 5
# seconds.

# %%
import os

# set before NumPy loads: small products are fastest on one thread
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from minidl import Tensor, functional as F, grad, gradcheck, plotting
from minidl.lessonkit import Lesson

lesson = Lesson("05_batchnorm_backward")
EPS = 1e-5

# %% [markdown]
# ## Three ways
#
# Forward, for one feature over a batch of $m$ samples, in five small steps:
#
# $\mu = \frac{1}{m} \sum_j x_j, \quad v = \frac{1}{m} \sum_j (x_j - \mu)^2, \quad s =
# \sqrt{v + \epsilon}, \quad \hat x_i = \frac{x_i - \mu}{s}, \quad y_i = \gamma \hat
# x_i + \beta.$
#
# The figure shows who needs whom. Each arrow is a way by which $x$ acts on $y$, and
# backward sends a gradient back along it.

# %%
rng = np.random.default_rng(lesson.seed)
M = 8  # samples in the batch
x = 3 + 2 * rng.standard_normal((M, 3))
gamma, beta = rng.uniform(0.5, 2, 3), rng.standard_normal(3)

PLACES = {"x": (0, 0), r"$\mu$": (1, 1), "v": (2, 1), "s": (3, 1), r"$\hat x$": (4, 0),
          "y": (5, 0)}
WAYS = {"direct": [("x", r"$\hat x$")],
        "through the mean": [("x", r"$\mu$"), (r"$\mu$", r"$\hat x$")],
        "through the variance": [("x", "v"), ("v", "s"), ("s", r"$\hat x$")]}

# %%
def arrow(start, end, **look):
    ax.annotate("", PLACES[end], PLACES[start], arrowprops={
        "arrowstyle": "-|>", "mutation_scale": 30, "shrinkA": 32, "shrinkB": 32,
        **look})


fig, ax = plotting.figure(size=(12, 5.5), title="Three ways lead from x to the output, "
                          "so its gradient has three parts")
for (way, arrows), (color, line) in zip(WAYS.items(), plotting.LOOKS):
    for start, end in arrows:
        arrow(start, end, color=color, linestyle=line, linewidth=4)
    ax.plot([], [], color=color, linestyle=line, linewidth=4, label=way)
for start, end in ((r"$\mu$", "v"), (r"$\hat x$", "y")):
    arrow(start, end, color="0.5", linewidth=3)
for name, (column, row) in PLACES.items():
    ax.text(column, row, name, fontsize=28, ha="center", va="center",
            bbox={"boxstyle": "circle,pad=0.35", "facecolor": "white",
                  "edgecolor": "0.3", "linewidth": 2})
ax.set(xlim=(-0.4, 5.4), ylim=(-0.5, 1.5))
ax.axis("off")
plotting.legend(ax)
lesson.show(fig, "graph")

# %% [markdown]
# ## The derivation, step by step
#
# Let $dy_i$ be the gradient of the loss at $y_i$, which comes from the layers above,
# and write $d\hat x_i$, $ds$ and so on for the gradients at the others. We go back
# through the figure from right to left. Only one rule is needed: *a quantity receives,
# from each quantity it acts on, that one's gradient times the slope.*
#
# **1. From $y$.** $y_i = \gamma \hat x_i + \beta$, and all samples share $\gamma$ and
# $\beta$, therefore
#
# $d\hat x_i = \gamma \, dy_i, \quad d\gamma = \sum_j dy_j \hat x_j, \quad d\beta =
# \sum_j dy_j.$
#
# **2. From $\hat x$ to $s$.** $\hat x_j = (x_j - \mu) / s$ has the slope $-(x_j - \mu)
# / s^2 = -\hat x_j / s$ with respect to $s$. All samples have the same $s$, so their
# parts add up:
#
# $ds = -\frac{1}{s} \sum_j d\hat x_j \hat x_j.$
#
# **3. From $s$ to $v$.** The slope of $\sqrt{v + \epsilon}$ is $\frac{1}{2 s}$:
#
# $dv = \frac{ds}{2 s}.$
#
# **4. To $\mu$.** Two arrows leave $\mu$. Through $\hat x$ the slope is $-\frac{1}{s}$.
# Through $v$ it is $-\frac{2}{m} \sum_j (x_j - \mu)$, and that is 0, because deviations
# from the mean add up to 0. What is left is
#
# $d\mu = -\frac{1}{s} \sum_j d\hat x_j.$
#
# **5. To $x$.** Three arrows leave $x_i$, with the slopes $\frac{1}{s}$ (direct),
# $\frac{1}{m}$ (to $\mu$) and $\frac{2}{m} (x_i - \mu) = \frac{2 s}{m} \hat x_i$ (to
# $v$):
#
# $dx_i = \frac{1}{s} d\hat x_i + \frac{1}{m} d\mu + \frac{2 s}{m} \hat x_i \, dv,$
#
# and with $d\mu$ and $dv$ from above this is
#
# $dx_i = \frac{1}{s} d\hat x_i - \frac{1}{m s} \sum_j d\hat x_j - \frac{1}{m s}
# \hat x_i \sum_j d\hat x_j \hat x_j.$
#
# **6. Together.** With $d\hat x_i = \gamma \, dy_i$ from step 1,
#
# $dx_i = \frac{\gamma}{m s} \left( m \cdot dy_i - \sum_j dy_j - \hat x_i \sum_j dy_j
# \hat x_j \right).$
#
# The bracket holds the direct way, the way through the mean and the way through the
# variance, in this order. The last two are sums over *all* samples: through them the
# gradient of one sample depends on all the others.


# %%
def forward(x):
    """y, and what backward needs; computed in the dtype of x."""
    s = np.sqrt(x.var(axis=0) + EPS)
    x_hat = (x - x.mean(axis=0)) / s
    return gamma.astype(x.dtype) * x_hat + beta.astype(x.dtype), x_hat, s


def backward(dy, x_hat, s):
    return gamma / (M * s) * (M * dy - dy.sum(axis=0)
                              - x_hat * (dy * x_hat).sum(axis=0))


# %% [markdown]
# ## Four ways to be wrong
#
# Two leave out a part of the bracket. The third treats mean and variance as constants,
# which is what happens when they are computed where no gradient is recorded; the
# hand-written BatchNorm of a well-known course does so (see the sources). The last is
# right except for a factor.

# %%
versions = {"right": backward, "no mean term": lambda dy, x_hat,
            s: gamma / (M * s) * (M * dy - x_hat * (dy * x_hat).sum(axis=0)),
            "no variance term": lambda dy, x_hat,
            s: gamma / (M * s) * (M * dy - dy.sum(axis=0)),
            "statistics as constants": lambda dy, x_hat, s: gamma / s * dy,
            "divided by s twice": lambda dy, x_hat, s: backward(dy, x_hat, s) / s, }

# %% [markdown]
# ## Predict
#
# We compare with central differences: move one $x_i$ by $h$ up and down, and see how
# the loss changes. The loss must be a number, so we take $\sum_i y_i \cdot dy_i$; its
# gradient at $y$ is $dy$. Two choices of $dy$: random numbers, or all ones, so that the
# loss is simply the sum of the outputs.
#
# Which of the four wrong versions does each choice find? Write down a table of yes and
# no, four by two.
#
# ## Run


# %%
def numeric(x, dy, h=1e-5):
    """The gradient of sum(y * dy) at x, entry by entry, from central differences."""
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = h
        dx[i] = ((forward(x + step)[0] - forward(x - step)[0]) * dy).sum() / (2 * h)
    return dx


def error(dx, true):
    """The largest difference, relative to the largest entry (or to 0.01)."""
    return np.abs(dx - true).max() / max(np.abs(true).max(), 0.01)


upstream = {"random upstream gradient": rng.standard_normal((M, 3)),
            "all ones": np.ones((M, 3))}
_, x_hat, s = forward(x)
errors = {(version, name): error(dx(dy, x_hat, s), numeric(x, dy))
          for version, dx in versions.items() for name, dy in upstream.items()}
for name, dy in upstream.items():
    print(f"{name}: largest entry of the true dx {np.abs(numeric(x, dy)).max():.2g}")
    for version in versions:
        print(f"  {version:24} relative error {errors[version, name]:.1e}")

# %%
PASSES = 1e-6  # the tolerance of minidl's gradcheck
found = {name: sum(errors[version, name] > PASSES for version in versions
                   if version != "right") for name in upstream}
RANDOM, ONES = upstream
fig, ax = plotting.figure(size=(12, 6.8), title="A random upstream gradient finds "
                                                f"{found[RANDOM]} of 4 wrong "
                                                "versions, all ones only "
                                                f"{found[ONES]}")
for i, (name, (color, _)) in enumerate(zip(upstream, plotting.LOOKS)):
    ax.bar(np.arange(5) + 0.4 * i - 0.2,
           [errors[version, name] for version in versions], width=0.38, color=color,
           hatch="//" if i else None, edgecolor="white", label=name)
ax.axhline(PASSES, color="0.2", linewidth=2, linestyle=":")
ax.annotate("passes below this line", (0.0, PASSES), xycoords=ax.get_yaxis_transform(),
            xytext=(6, 5), textcoords="offset points", fontsize=14)
ax.set(yscale="log", ylim=(1e-12, 1e3), ylabel="relative error of dx")
ax.set_xticks(range(5), [version.replace(" ", "\n", 1) for version in versions])
ax.grid(False, axis="x")
plotting.legend(ax)
lesson.show(fig, "versions")

# %% [markdown]
# ## Explain: the blind test
#
# With all ones the loss is the sum of the outputs. However, the $\hat x_i$ always sum
# to 0, whatever $x$ is, so this loss is $m \beta$: it does not depend on $x$. The true
# $dx$ is exactly 0. A wrong factor times 0 is 0. And the variance term contains $\sum_j
# \hat x_j = 0$, so it may as well be missing. "The sum of the outputs" is the first
# loss that comes to mind; for BatchNorm there is no worse choice. The sum of squares
# hides a wrong factor too, because $\sum_i \hat x_i^2$ is always close to $m$.
#
# A batch of one sample is as blind, even to a random $dy$: $\hat x = 0$ whatever $x$
# is, the true $dx$ is 0 again, and the same two versions pass. (minidl refuses such a
# batch in training mode.) So: *a random upstream gradient, and more than two samples.*
#
# ## How small a step?
#
# A large $h$ is wrong because the function is not straight: the error shrinks with
# $h^2$. A small $h$ is wrong because two nearly equal numbers are subtracted: the
# rounding error grows with $1/h$. Predict: where is the best $h$ in float64, where in
# float32, and how good does it get?

# %%
steps = 10.0 ** np.arange(-11, 0.1, 0.5)
dy = upstream[RANDOM]
right = backward(dy, x_hat, s)
by_step = {dtype: [error(numeric(x.astype(dtype), dy.astype(dtype), h), right)
                   for h in steps] for dtype in ("float64", "float32")}
best = {name: int(np.argmin(line)) for name, line in by_step.items()}
for name, line in by_step.items():
    print(f"{name}: smallest error {line[best[name]]:.1e}, at h = "
          f"{steps[best[name]]:.0e}")

# %%
fig, ax = plotting.figure(size=(11, 6.3), title="Check gradients in float64: error "
                                                "down to "
                                                f"{min(by_step['float64']):.0e}, in "
                                                "float32 "
                                                f"{min(by_step['float32']):.0e}")
for (name, line), (color, look) in zip(by_step.items(), plotting.LOOKS):
    ax.plot(steps, line, linestyle=look, color=color, linewidth=3, label=name)
ax.set(xscale="log", yscale="log", ylim=(1e-12, 1e2),
       xlabel="step h of the central differences",
       ylabel="relative error of\nthe differences")
ax.annotate("rounding,\ngrows with 1/h", (1e-10, 3e-9), fontsize=15)
ax.annotate("curvature,\nshrinks with $h^2$", (1e-2, 3e-9), fontsize=15)
plotting.legend(ax)
lesson.show(fig, "step")

# %% [markdown]
# ## And minidl's own?
#
# minidl has BatchNorm twice: from primitives, where the gradient follows from the rules
# of 12 simple ops, and as one fast function whose backward is the line above. So there
# are three ways to the same numbers. For any other function `gradcheck` does what we
# did by hand, in random directions.

# %%
inputs = {"x": Tensor(x, requires_grad=True),
          "gamma": Tensor(gamma, requires_grad=True),
          "beta": Tensor(beta, requires_grad=True)}
composed, _, _ = F.batch_norm_composed(*inputs.values(), EPS)
fused, _, _ = F.batch_norm(*inputs.values(), EPS)
ours = [right, (dy * x_hat).sum(axis=0), dy.sum(axis=0)]
differences = {}
for name, y in (("composed", composed), ("fused", fused)):
    theirs = grad(y, list(inputs.values()), gradient=dy)
    differences[name] = max(np.abs(a - b).max() for a, b in zip(ours, theirs))
for name, difference in differences.items():
    print(f"{name}: largest difference of dx, dgamma, dbeta from ours {difference:.1e}")
checked = gradcheck(lambda x, gamma, beta: F.batch_norm(x, gamma, beta, EPS)[0],
                    [x, gamma, beta])
print(f"gradcheck of the fused function: {checked}")

# %%
print()
lesson.check("right version, random upstream: relative error", errors["right", RANDOM],
             at_most=1e-7, claim=False)
lesson.check("right version, all ones: relative error", errors["right", ONES],
             at_most=PASSES, claim=False)
for version in list(versions)[1:]:
    lesson.check(f"{version}, random upstream: relative error", errors[version, RANDOM],
                 at_least=0.01, claim=False)
for version in ("no variance term", "divided by s twice"):
    lesson.check(f"blind test: {version}, all ones: relative error",
                 errors[version, ONES], at_most=PASSES, claim=False)
for name, difference in differences.items():
    lesson.check(f"largest difference from minidl, {name}", difference, at_most=1e-12,
                 claim=False)
lesson.finish()

# %% [markdown]
# ## Two questions
#
# **1. On which ways does one $x_i$ act on the loss, in training mode?**
#
# - A: through its own $\hat x_i$ only
# - B: through its own $\hat x_i$, the mean and the variance of the batch
# - C: through $\gamma$ and $\beta$
# - D: through the mean only
#
# **2. What does the backward pass of BatchNorm yield?**
#
# - A: the learning rate
# - B: the $\gamma$ and $\beta$ that undo the normalisation
# - C: the gradients with respect to $x$, $\gamma$ and $\beta$
# - D: the running mean and variance
#
# <details><summary>Answers</summary>
#
# 1 B. A is what you get if the statistics are taken for constants; none of the five
# texts says that the gradient goes through them. C: $\gamma$ and $\beta$ do not depend
# on $x$. D forgets the variance, one of the four wrong versions above.
#
# 2 C. A is text 003 ("by the chain rule find the learning rate"). B is what texts 001,
# 003 and 004 say $\gamma$ and $\beta$ are for: they may get there, but only by many
# steps, and nothing pulls them there. D belongs to the forward pass.
#
# </details>
#
# ## Try
#
# 1. Easy: set `M = 1` and look at the table of errors. Which versions pass now, even
#    with a random $dy$?
# 2. Easy: write `backward` for evaluation mode, where mean and variance are constants.
#    Which of the four is it?
# 3. Medium: derive the backward pass of LayerNorm, where $\mu$ and $v$ are taken over
#    the features of one sample. Which of the six steps change? Check it with `numeric`.
# 4. Medium: check $d\gamma$ and $d\beta$ with central differences too. For which of
#    them is all ones a blind test?
# 5. Research: how wrong may a gradient be and still train? Train a network on each
#    wrong version, `minidl.tensor.Op` shows how to make one. The paper says in section
#    2 what happens to a bias if the statistics are taken for constants.
#
# Now write it yourself: exercise 6 (`python -m minidl exercise 6 --copy DIR`).
#
# Sources: S. Ioffe and C. Szegedy 2015, sections 2 and 3 (the six lines of the backward
# pass). J. Howard and others, Practical Deep Learning for Coders, part 2, 2022,
# notebook `11_initializing` of github.com/fastai/course22p2: its own `BatchNorm`
# computes mean and variance under `torch.no_grad()`. Text 001 gives the forward
# formulas; none of the five texts says that the gradient must flow through the
# statistics.
