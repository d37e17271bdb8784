# %% [markdown]
# # Exercise 6. BatchNorm's backward: by which ways does x reach the loss?
#
# Lesson 5. Time: 20 minutes.
#
# Forward, per feature: $\hat x = (x - \mu) / s$ with $s = \sqrt{\sigma^2 + \epsilon}$, and $y =
# \gamma \hat x + \beta$. The gradient $dy$ of the loss at $y$ has come in. Return the gradients
# at $x$, $\gamma$ and $\beta$. An $x_i$ acts on the loss directly, through the mean, and
# through the variance, and the last two reach all samples of the batch.

# %%
import numpy as np


def backward(dy, x_hat, s, gamma):
    """dx (m, features), dgamma (features,), dbeta (features,).

    dy, x_hat: (m, features). s, gamma: (features,).
    """
    # --- solution
    m = len(dy)
    dgamma, dbeta = (dy * x_hat).sum(axis=0), dy.sum(axis=0)
    return gamma / (m * s) * (m * dy - dbeta - x_hat * dgamma), dgamma, dbeta
    # --- end


# %% The checks
HINTS = [
    "Start with the case in which mean and variance are constants. What is missing then?",
    "A sum over the batch undoes a mean over the batch: the mean of x sends each sample an equal "
    "share, the variance one that is proportional to the sample's x_hat.",
    "In the bracket stand three things: dy itself, the mean of dy, and x_hat times the mean of "
    "dy x_hat. Two of them are subtracted, and the bracket is multiplied by what the direct way "
    "has alone.",
]


def cases(rng):
    def case(m, n):
        x = rng.standard_normal((m, n)) * rng.uniform(0.5, 3, n)
        s = np.sqrt(x.var(axis=0) + 0.1)
        return {"dy": rng.standard_normal((m, n)) + 0.5, "x_hat": (x - x.mean(axis=0)) / s,
                "s": s, "gamma": rng.uniform(0.5, 2, n)}
    return [case(8, 3), case(6, 5)]


def play(mine, case):
    return {"dx, dgamma, dbeta": mine.backward(*case.values())}


def terms(case):
    dy, x_hat, s, gamma = case.values()
    return {"dx": {"the direct way": gamma / s * dy,
                   "the way through the mean": -gamma / s * dy.mean(axis=0) + 0 * dy,
                   "the way through the variance": -gamma / s * x_hat * (dy * x_hat).mean(axis=0)}}


def factors(case):
    return {"m": len(case["dy"])}


GRADIENTS = ("dx", "dgamma", "dbeta")


def _wrong(dx):
    def backward(dy, x_hat, s, gamma):
        return (dx(dy, x_hat, gamma / s, (dy * x_hat).mean(axis=0)), (dy * x_hat).sum(axis=0),
                dy.sum(axis=0))
    return {"backward": backward}


MUTATIONS = {
    "the mean and the variance are taken for constants": _wrong(lambda dy, x, k, c: k * dy),
    "the way through the mean is missing": _wrong(lambda dy, x, k, c: k * (dy - x * c)),
    "the way through the variance is missing": _wrong(
        lambda dy, x, k, c: k * (dy - dy.mean(axis=0))),
    "the way through the variance has lost its x_hat": _wrong(
        lambda dy, x, k, c: k * (dy - dy.mean(axis=0) - c)),
    "sums stand where means over the batch belong": _wrong(
        lambda dy, x, k, c: k * (dy - dy.sum(axis=0) - x * c * len(dy))),
}
