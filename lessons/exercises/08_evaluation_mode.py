# %% [markdown]
# # Exercise 8. Evaluation mode: what may a sample's output depend on?
#
# Lesson 11. Time: 15 minutes.
#
# In evaluation mode BatchNorm normalises by its running statistics. They are constants then: a
# sample's output does not depend on its neighbours, the layer is left as it was, and the
# gradient has no way through mean or variance. `layer` has the arrays gamma, beta, running_mean
# and running_var, (features,) each, and the numbers eps and momentum.

# %%
import numpy as np


def evaluate(layer, x):
    """y (m, features) in evaluation mode. x: (m, features)."""
    # --- solution
    s = np.sqrt(layer.running_var + layer.eps)
    return layer.gamma * (x - layer.running_mean) / s + layer.beta
    # --- end


def evaluate_backward(layer, dy, x):
    """The gradient at x (m, features), from the gradient dy at y."""
    # --- solution
    return dy * layer.gamma / np.sqrt(layer.running_var + layer.eps)
    # --- end


# %% The checks
import types

from minidl.course.evidence import normalised_by

HINTS = [
    "Nothing may be computed from the batch: neither a mean nor a variance over x.",
    "With constants for mean and variance, y is a straight line in x. What is its slope?",
    "evaluate: the formula of training mode with running_mean and running_var. evaluate_backward: "
    "the incoming gradient times the slope; x is not needed.",
]


def cases(rng):
    def case(m, n):
        return {"x": rng.normal(0.5, 2, (m, n)), "dy": rng.standard_normal((m, n)) + 0.5,
                **{name: rng.uniform(0.5, 2, n) for name in ARRAYS},
                "eps": float(rng.uniform(0.1, 0.3)), "momentum": float(rng.uniform(0.1, 0.3))}
    return [case(8, 3), case(6, 5)]


ARRAYS = ("gamma", "beta", "running_mean", "running_var")


def play(mine, case):
    def layer():
        return types.SimpleNamespace(**{k: v.copy() if k in ARRAYS else v for k, v in case.items()
                                        if k not in ("x", "dy")})
    x, dy, used = case["x"], case["dy"], layer()
    return {"y": mine.evaluate(used, x),
            "y of the first sample alone": mine.evaluate(layer(), x[:1]),
            "dx": mine.evaluate_backward(layer(), dy, x),
            "running_mean afterwards": used.running_mean,
            "running_var afterwards": used.running_var}


def label(case):
    return f"x {case['x'].shape}"


def terms(case):
    x, dy, s = case["x"], case["dy"], np.sqrt(case["running_var"] + case["eps"])
    x_hat = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + case["eps"])
    slope = case["gamma"] / s
    normal = slope * (x - case["running_mean"])
    return {"y": {"gamma (x - running_mean) / sqrt(running_var + eps)": normal,
                  "beta": case["beta"] + 0 * x},
            "dx": {"the direct way": slope * dy,
                   "a way through the mean": -slope * dy.mean(axis=0) + 0 * dy,
                   "a way through the variance": -slope * x_hat * (dy * x_hat).mean(axis=0)}}


GRADIENTS = ("dx",)
FOLLOWS = {"y of the first sample alone": ("y",)}


def factors(case):
    return {"m": len(case["x"]), "sqrt(running_var + eps)": np.sqrt(
        case["running_var"] + case["eps"]), "sqrt(running_var)": np.sqrt(case["running_var"]),
        "the batch's sqrt(var + eps)": np.sqrt(case["x"].var(axis=0) + case["eps"])}


def unclear(name, case, got, right):
    """Which mean and variance was y made with?"""
    x, dy, gamma, beta, mean, var, eps, momentum = case.values()
    if name != "y":
        return []
    own, own_var, unbiased = x.mean(axis=0), x.var(axis=0), x.var(axis=0, ddof=1)
    moved = [(1 - momentum) * var + momentum * v for v in (own_var, unbiased)]
    return normalised_by(got["y"], x, gamma, beta, eps, {
        "running_mean": mean, "that of the batch": own, "running_var": var,
        "running_mean after an update": (1 - momentum) * mean + momentum * own}, {
        "running_var": var, "the biased one of the batch": own_var, "running_mean": mean,
        "the unbiased one of the batch": unbiased,
        "running_var with an m/(m - 1) too many": var * len(x) / (len(x) - 1),
        "running_var after an update with the biased variance": moved[0],
        "running_var after an update with the unbiased variance": moved[1]})


def _forward(layer, x, mean, var):
    return layer.gamma * (x - mean) / np.sqrt(var + layer.eps) + layer.beta


def _moved(layer, x):
    for name, new in ("running_mean", x.mean(axis=0)), (
            "running_var", x.var(axis=0) * len(x) / max(len(x) - 1, 1)):
        old = getattr(layer, name)
        setattr(layer, name, (1 - layer.momentum) * old + layer.momentum * new)
    return _forward(layer, x, layer.running_mean, layer.running_var)


def _still_used(layer, x):
    y = evaluate(layer, x)
    _moved(layer, x)
    return y


def _overwritten(layer, x):
    y = evaluate(layer, x)
    layer.running_mean, layer.running_var = x.mean(axis=0), x.var(axis=0)
    return y


def _through(var):
    def evaluate_backward(layer, dy, x):
        s = np.sqrt(var(layer, x) + layer.eps)
        x_hat = (x - x.mean(axis=0)) / s
        return layer.gamma / s * (dy - dy.mean(axis=0) - x_hat * (dy * x_hat).mean(axis=0))
    return {"evaluate_backward": evaluate_backward}


MUTATIONS = {
    "the statistics of the batch are used": {"evaluate": lambda layer, x: _forward(
        layer, x, x.mean(axis=0), x.var(axis=0))},
    "the mean is that of the batch": {"evaluate": lambda layer, x: _forward(
        layer, x, x.mean(axis=0), layer.running_var)},
    "the variance is that of the batch": {"evaluate": lambda layer, x: _forward(
        layer, x, layer.running_mean, x.var(axis=0))},
    "the running statistics are updated first, also in evaluation mode": {"evaluate": _moved},
    "the running statistics are updated afterwards, also in evaluation mode": {
        "evaluate": _still_used},
    "the statistics of the batch overwrite the running ones": {"evaluate": _overwritten},
    "the gradient still goes through mean and variance of the batch, as in training mode":
        _through(lambda layer, x: x.var(axis=0)),
    "eps is forgotten": {"evaluate": lambda layer, x: (
        layer.gamma * (x - layer.running_mean) / np.sqrt(layer.running_var) + layer.beta)},
    "eps is outside the root": {"evaluate": lambda layer, x: layer.beta + layer.gamma * (
        x - layer.running_mean) / (np.sqrt(layer.running_var) + layer.eps)},
    "eps is forgotten in the gradient": {"evaluate_backward": lambda layer, dy, x: (
        dy * layer.gamma / np.sqrt(layer.running_var))},
    "the gradient is divided by the spread of the batch": {
        "evaluate_backward": lambda layer, dy, x: dy * layer.gamma / np.sqrt(
            x.var(axis=0) + layer.eps)},
}
