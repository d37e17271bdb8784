# %% [markdown]
# # Exercise 5. BatchNorm's forward: along which axis, and which variance?
#
# Lesson 4. Time: 15 minutes.
#
# In training mode, each feature is normalised by the mean $\mu$ and the variance $\sigma^2$ of
# the batch: $\hat x = (x - \mu) / \sqrt{\sigma^2 + \epsilon}$, and then $y = \gamma \hat x +
# \beta$. The variance is the biased one: the mean of the squared distances from the mean.

# %%
import numpy as np


def forward(x, gamma, beta, eps):
    """y (m, features), mean and var (features,). x: (m, features), gamma and beta: (features,).
    """
    # --- solution
    mean, var = x.mean(axis=0), x.var(axis=0)
    return gamma * (x - mean) / np.sqrt(var + eps) + beta, mean, var
    # --- end


# %% The checks
from minidl.course.evidence import normalised_by, shares

HINTS = [
    "A table has a row per sample and a column per feature: what has a mean, row or column?",
    "NumPy's var divides by m unless you tell it otherwise. eps is there so that the root is never "
    "that of 0.",
    "Mean and variance along axis 0; subtract, divide by the root of variance and eps together, "
    "then scale by gamma and shift by beta.",
]


def cases(rng):
    def case(m, n):
        return {"x": rng.standard_normal((m, n)) * rng.uniform(0.3, 2, n) + rng.uniform(1, 3, n),
                "gamma": rng.uniform(0.5, 2, n), "beta": rng.uniform(0.5, 2, n),
                "eps": float(rng.uniform(0.1, 0.3))}
    return [case(8, 4), case(6, 4), case(5, 5)]


def play(mine, case):
    return {"y, mean, var": mine.forward(*case.values())}


def _parts(case):
    x, eps = case["x"], case["eps"]
    mean, var = x.mean(axis=0), x.var(axis=0)
    return mean, var, np.sqrt(var + eps)


def terms(case):
    mean, var, s = _parts(case)
    whole = 0 * case["x"]
    return {"var": {"the variance": var, "the square of the mean": mean ** 2},
            "y": {"gamma x_hat": case["gamma"] * (case["x"] - mean) / s,
                  "beta": case["beta"] + whole}}


def factors(case):
    _, var, s = _parts(case)
    return {"m": len(case["x"]), "sqrt(var + eps)": s, "sqrt(var)": np.sqrt(var),
            "(sqrt(var) + eps)": np.sqrt(var) + case["eps"]}


def evidence(name, case, got, right):
    """Does y follow from a wrong mean or variance? By which root is it divided?"""
    x, gamma, beta, eps = case.values()
    if name != "y" or got["mean"].shape != got["var"].shape:
        return []
    if np.array_equal(got["mean"], right["mean"]) and np.array_equal(got["var"], right["var"]):
        found = shares(got["y"], [gamma * (x - got["mean"]), beta + 0 * x], True)
        added = None if found is None or not found[0].all() else 1 / found[0] ** 2 - right["var"]
        if added is not None and np.ptp(added) < 1e-9 and abs(added[0] - eps) > 1e-9:
            return [f"it divides by the root of var + {added[0]:.6g}; eps is {eps:.6g}"]
        return []
    try:
        mine = gamma * (x - got["mean"]) / np.sqrt(got["var"] + eps) + beta
    except ValueError:
        return []
    follows = mine.shape == got["y"].shape and np.allclose(mine, got["y"])
    return ["this y follows from your mean and var: look at those first"] * follows


def unclear(name, case, got, right):
    """Which mean and variance was y made with?"""
    x, gamma, beta, eps = case.values()
    if name != "y":
        return []
    mean, var = right["mean"], right["var"]
    return normalised_by(got["y"], x, gamma, beta, eps, {"that of the batch": mean}, {
        "the biased one of the batch": var, "the unbiased one, ddof=1": x.var(axis=0, ddof=1),
        "the mean of the squares": (x ** 2).mean(axis=0), "the standard deviation": np.sqrt(var)})


def _wrong(y=lambda x, mean, var, eps: (x - mean) / np.sqrt(var + eps), axis=0, ddof=0):
    def forward(x, gamma, beta, eps):
        mean, var = x.mean(axis=axis), x.var(axis=axis, ddof=ddof)
        wide = (mean[:, None], var[:, None]) if axis == 1 else (mean, var)
        return gamma * y(x, *wide, eps) + beta, mean, var
    return {"forward": forward}


MUTATIONS = {
    "mean and variance are taken along axis 1, of each sample instead of each feature": _wrong(
        axis=1),
    "mean and variance are one number for the whole table": _wrong(axis=None),
    "the variance is the unbiased one, ddof=1": _wrong(ddof=1),
    "eps is added outside the root": _wrong(lambda x, mean, var, eps: (x - mean) / (
        np.sqrt(var) + eps)),
    "eps is forgotten": _wrong(lambda x, mean, var, eps: (x - mean) / np.sqrt(var)),
    "the root is forgotten: it is divided by the variance": _wrong(
        lambda x, mean, var, eps: (x - mean) / (var + eps)),
    "the mean is not subtracted": _wrong(lambda x, mean, var, eps: x / np.sqrt(var + eps)),
}
