# %% [markdown]
# # Solutions to lesson 5, for teachers
#
# The numbers are those of seed 0. The first cell repeats what the solutions need of the
# lesson.

# %%
import numpy as np

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Module,
    Parameter,
    Sequential,
    data,
    experiments,
)
from minidl.lessonkit import Lesson
from minidl.tensor import Op

lesson = Lesson("05_solutions")
rng = np.random.default_rng(lesson.seed)
EPS = 1e-5
gamma, beta = rng.uniform(0.5, 2, 3), rng.standard_normal(3)


def forward(x, gamma=gamma, beta=beta):
    s = np.sqrt(x.var(axis=0) + EPS)
    x_hat = (x - x.mean(axis=0)) / s
    return gamma * x_hat + beta, x_hat, s


def direct(dy, x_hat, s):
    return gamma / s * dy


def mean_term(dy, x_hat, s):
    return -gamma / s * dy.mean(axis=0)


def variance_term(dy, x_hat, s):
    return -gamma / s * x_hat * (dy * x_hat).mean(axis=0)


def numeric(f, at, h=1e-5):
    """The gradient of f, which returns a number, entry by entry."""
    made = np.zeros_like(at)
    for i in np.ndindex(at.shape):
        step = np.zeros_like(at)
        step[i] = h
        made[i] = (f(at + step) - f(at - step)) / (2 * h)
    return made


def error(dx, true):
    return np.abs(dx - true).max() / max(np.abs(true).max(), 0.01)


# %% [markdown]
# ## 1. Easy: a batch of one
#
# The true $dx$ is 0, as $\hat x = 0$ whatever $x$ is. The right version passes, and so
# do those in which the direct term and the mean term cancel: "no variance term" and
# "divided by s twice". Those that lack the mean term are found.

# %%
x, dy = rng.standard_normal((1, 3)), rng.standard_normal((1, 3))
_, x_hat, s = forward(x)
true = numeric(lambda x: (forward(x)[0] * dy).sum(), x)
parts = direct(dy, x_hat, s), mean_term(dy, x_hat, s), variance_term(dy, x_hat, s)
versions = {
    "right": sum(parts),
    "no mean term": parts[0] + parts[2],
    "no variance term": parts[0] + parts[1],
    "statistics as constants": parts[0],
    "divided by s twice": sum(parts) / s,
}
for name, dx in versions.items():
    print(f"one sample, {name:24}: error {error(dx, true):.1e}")
passing = [name for name, dx in versions.items() if error(dx, true) < 1e-6]
lesson.check(
    "versions that pass with one sample", len(passing), at_least=3, claim=False
)

# %% [markdown]
# ## 2. Easy: evaluation mode
#
# $dx = dy \cdot \gamma / s$ with the running statistics: the version "statistics as
# constants", which is right there, because in evaluation mode they are constants.

# %%
layer = BatchNorm(input_shape=3).astype(np.float64).eval()
layer.gamma.data, layer.running_var = gamma.copy(), rng.uniform(0.5, 2, 3)
x, dy = rng.standard_normal((8, 3)), rng.standard_normal((8, 3))
true = numeric(lambda x: (layer(x).numpy() * dy).sum(), x)
constants = gamma / np.sqrt(layer.running_var + layer.eps) * dy
print(f"evaluation mode: error of gamma / s * dy {error(constants, true):.1e}")
lesson.check(
    "evaluation mode: error of statistics as constants",
    error(constants, true),
    at_most=1e-8,
    claim=False,
)

# %% [markdown]
# ## 3. Medium: LayerNorm
#
# $\mu$, $v$ and $s$ are now taken over the $n$ features of one sample. Steps 2 to 5
# stay, with sums over features. Step 1 changes for $\gamma$, which differs from feature
# to feature: $d\hat x_{ik} = \gamma_k \, dy_{ik}$, and $d\gamma_k$ still sums over
# samples. So does step 6: $\gamma$ stands inside the sums and cannot be taken out of
# the bracket,
#
# $dx_{ik} = \frac{1}{n s_i} \left( n \, d\hat x_{ik} - \sum_l d\hat x_{il} -
# \hat x_{ik} \sum_l d\hat x_{il} \hat x_{il} \right).$

# %%
def layer_norm(x):
    s = np.sqrt(x.var(axis=1, keepdims=True) + EPS)
    x_hat = (x - x.mean(axis=1, keepdims=True)) / s
    return gamma * x_hat + beta, x_hat, s


def layer_norm_backward(dy, x_hat, s):
    d_hat, n = gamma * dy, dy.shape[1]
    through_mean = d_hat.sum(axis=1, keepdims=True)
    through_variance = x_hat * (d_hat * x_hat).sum(axis=1, keepdims=True)
    return (n * d_hat - through_mean - through_variance) / (n * s)


_, x_hat, s = layer_norm(x)
true = numeric(lambda x: (layer_norm(x)[0] * dy).sum(), x)
wrong = gamma * layer_norm_backward(dy / gamma, x_hat, s)  # gamma taken out
right = layer_norm_backward(dy, x_hat, s)
for name, dx in (("right", right), ("gamma outside", wrong)):
    print(f"{name}: relative error {error(dx, true):.1e}")
lesson.check("LayerNorm's backward: relative error", error(right, true), at_most=1e-6,
             claim=False)
lesson.check("gamma taken out of the bracket: relative error", error(wrong, true),
             at_least=0.01, claim=False)

# %% [markdown]
# ## 4. Medium: the gradients of gamma and beta
#
# All ones is blind for $d\gamma$: its true gradient is then $\sum_j \hat x_j = 0$, so
# any factor passes. For $d\beta$ it is not: the true gradient is $m$.

# %%
for name, up in (("random", dy), ("all ones", np.ones_like(dy))):
    true_gamma = numeric(lambda g: (forward(x, g, beta)[0] * up).sum(), gamma)
    true_beta = numeric(lambda b: (forward(x, gamma, b)[0] * up).sum(), beta)
    d_gamma, d_beta = (up * x_hat).sum(axis=0), up.sum(axis=0)
    seven = error(-7 * d_gamma, true_gamma), error(-7 * d_beta, true_beta)
    print(
        f"{name:8}: right, errors {error(d_gamma, true_gamma):.1e} and "
        f"{error(d_beta, true_beta):.1e}; times -7, {seven[0]:.1e} and {seven[1]:.1e}"
    )
lesson.check("all ones: error of dgamma times -7", seven[0], at_most=1e-6, claim=False)
lesson.check("all ones: error of dbeta times -7", seven[1], at_least=1, claim=False)

# %% [markdown]
# ## 5. Research: how wrong may a gradient be and still train?
#
# Three hidden layers of 64 ReLU units, rate 0.3, 150 steps, three seeds. The training
# loss ends at 0.20 with the right gradient, 0.21 without the variance term, 0.62 with
# the statistics as constants, 0.82 without the mean term. All four fall from 2.3, so a
# loss that falls proves no gradient. The wrong factor, a third for each of three
# layers, does what a smaller learning rate does: 0.45. With the statistics as
# constants, the bias before the BatchNorm grows, as section 2 of the paper says (lesson
# 17 looks at it).


# %%
def normalise(x):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + np.float32(EPS))


def wrong(name, with_mean, with_variance, scale=1.0):
    def vjp(g, y, x):
        dx = g.copy()
        if with_mean:
            dx -= g.mean(axis=0)
        if with_variance:
            dx -= y * (g * y).mean(axis=0)
        return (scale * dx / np.sqrt(x.var(axis=0) + np.float32(EPS))).astype(x.dtype)

    return Op(name, normalise, vjp)


OPS = {
    "right": wrong("right", True, True),
    "no mean term": wrong("no_mean", False, True),
    "no variance term": wrong("no_variance", True, False),
    "statistics as constants": wrong("constants", False, False),
    "a third of it": wrong("third", True, True, 1 / 3),
}


class Normalised(Module):
    """BatchNorm in training mode, with the op of this name."""

    built = False

    def __init__(self, name):
        self.name = name

    def forward(self, x):
        if not self.built:
            self.gamma = Parameter(np.ones(x.shape[1], np.float32))
            self.beta = Parameter(np.zeros(x.shape[1], np.float32))
            self.built = True
        return self.gamma * OPS[self.name](x) + self.beta


def network(name, seed):
    layers = []
    for _ in range(3):
        layers += [
            Dense(64, kernel_initializer="he_normal"),
            Normalised(name),
            Activation("relu"),
        ]
    return Sequential([*layers, Dense(10)], seed=seed)


sets = data.load("digits")
trained = experiments.compare(
    {name: lambda seed, name=name: network(name, seed) for name in OPS},
    sets,
    lr=0.3,
    steps=150,
    batch_size=64,
    seeds=lesson.seeds(3),
    eval_steps=[150],
)
ends = {
    name: np.median([run.final_loss() for run in trained.runs[name]]) for name in OPS
}
for name, loss in ends.items():
    print(f"{name:24}: training loss at the end {loss:.3f}")
lesson.check(
    "loss with statistics as constants / with the right gradient",
    ends["statistics as constants"] / ends["right"],
    at_least=1.1,
    claim=False,
)
lesson.finish()
