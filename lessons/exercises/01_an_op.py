# %% [markdown]
# # Exercise 1. An op: what is the gradient of x sigmoid(x)?
#
# Lesson 1. Time: 15 minutes.
#
# The op is $y = x \sigma(x)$ with $\sigma(x) = 1 / (1 + e^{-x})$, entry by entry (SiLU). An op
# of an engine is two functions: its forward, and its vector-Jacobian product (VJP), which takes
# the gradient $g$ of the loss at $y$ and returns the gradient at $x$. Both keep the dtype:
# float32 in, float32 out. And an $x$ of $\pm 800$ must not become NaN.

# %%
import numpy as np


def silu(x):
    """y, of the shape and dtype of x."""
    # --- solution
    return x / (1 + np.exp(-x))
    # --- end


def silu_vjp(g, x):
    """The gradient at x, from the gradient g at y; both of the shape of x."""
    # --- solution
    s = 1 / (1 + np.exp(-x))
    return g * (s + x * s * (1 - s))
    # --- end


# %% The checks
HINTS = [
    "y is a product, so its derivative has two parts.",
    "The derivative of the sigmoid is s (1 - s), where s is the sigmoid at x, not at y.",
    "Product rule: one part is the sigmoid itself, the other is x times the sigmoid's derivative. "
    "The chain rule multiplies both by what comes in.",
]


def cases(rng):
    def case(shape, dtype=np.float64):
        return {"x": rng.normal(0, 2, shape).astype(dtype),
                "g": rng.standard_normal(shape).astype(dtype)}
    far = {"x": np.array([-800.0, 3.0, 800.0]), "g": rng.standard_normal(3)}
    return [case((4, 3)), case((8,)), case((3, 5), np.float32), far]


def play(mine, case):
    x, g = case["x"], case["g"]
    return {"y": mine.silu(x), "dx": mine.silu_vjp(g, x)}


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def terms(case):
    x, g = case["x"], case["g"]
    s = _sigmoid(x)
    return {} if np.abs(x).max() > 99 or x.dtype == np.float32 else {
        "y": {"x s, where s = sigmoid(x),": x * s, "s": s, "x": x, "x s²": x * s * s},
        "dx": {"g s, where s = sigmoid(x),": g * s, "g x s": g * x * s,
               "g x s²": g * x * s * s, "g s²": g * s * s, "g": g}}


def factors(case):
    s = _sigmoid(case["x"])
    return {"sigmoid(x)": s, "(1 - sigmoid(x))": 1 - s}


GRADIENTS = ("dx",)


def _wrong(vjp):
    return {"silu_vjp": lambda g, x: vjp(g, x, _sigmoid(x))}


MUTATIONS = {
    "the derivative is taken at y instead of x": _wrong(
        lambda g, x, s: g * (_sigmoid(x * s) + x * s * _sigmoid(x * s) * (1 - _sigmoid(x * s)))),
    "the incoming gradient g is forgotten": _wrong(lambda g, x, s: s + x * s * (1 - s)),
    "the first term of the product rule is lost": _wrong(lambda g, x, s: g * x * s * (1 - s)),
    "the second term of the product rule is lost": _wrong(lambda g, x, s: g * s),
    "only the sigmoid's derivative is there, not that of the product": _wrong(
        lambda g, x, s: g * s * (1 - s)),
    "the derivative of tanh, 1 - s², stands where that of the sigmoid, s (1 - s), belongs": _wrong(
        lambda g, x, s: g * (s + x * (1 - s * s))),
    "y is the sigmoid alone, without the x before it": {"silu": _sigmoid},
}
