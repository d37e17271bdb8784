# %% [markdown]
# # Exercise 2. Unbroadcast: how does a gradient get back to a smaller shape?
#
# Lesson 1. Time: 15 minutes.
#
# In `x + bias`, NumPy stretches a bias of shape (3,) to (4, 3): it writes the same number into
# every row. Each copy gets a gradient, and what the number itself has changed is the sum over
# its copies. Write the function that takes the gradient `g` of the stretched array back to the
# shape of the small one, for any shapes that NumPy broadcasts.

# %%
import numpy as np


def unbroadcast(g, shape):
    """The gradient of an array of this shape, from the gradient g of what it was broadcast to."""
    # --- solution
    g = g.sum(axis=tuple(range(g.ndim - len(shape))))
    stretched = tuple(i for i, n in enumerate(shape) if n == 1 and g.shape[i] > 1)
    return g.sum(axis=stretched, keepdims=True)
    # --- end


# %% The checks
from itertools import combinations

HINTS = [
    "Broadcasting does two things: it adds axes in front, and it stretches axes of length 1.",
    "An axis that was added must go; an axis that was stretched must stay, with length 1.",
    "First sum over as many leading axes as g has more than the shape; then over each axis where "
    "the shape says 1, and there NumPy's keepdims helps.",
]
PAIRS = [((4, 3), (3,)), ((4, 3), (1, 3)), ((4, 3), (4, 1)), ((2, 4, 3), (4, 1)), ((5, 2), ()),
         ((3, 3), (3,)), ((2, 3), (2, 3))]


def cases(rng):
    return [{"g": rng.standard_normal(big), "shape": small} for big, small in PAIRS]


def play(mine, case):
    return {"result": mine.unbroadcast(case["g"], case["shape"])}


def label(case):
    return f"{case['g'].shape} to {case['shape']}"


def factors(case):
    return {"the number of copies": case["g"].size // int(np.prod(case["shape"], dtype=int))}


def evidence(name, case, got, right):
    """Is it a sum or a mean over other axes?"""
    g = case["g"]
    for word, op in (("sum", np.sum), ("mean", np.mean), ("largest", np.max)):
        for n in range(g.ndim + 1):
            for axes in combinations(range(g.ndim), n):
                made = op(g, axis=axes)
                mine = got[name].ravel()
                if made.size in (1, mine.size) and np.allclose(mine, made.ravel()):
                    return [f"in this case its numbers are the {word} over the axes {axes} of g"
                            if n else "in this case it is g itself"]
    return []


def _over(op):
    def unbroadcast(g, shape):
        g = op(g, axis=tuple(range(g.ndim - len(shape))))
        axes = tuple(i for i, n in enumerate(shape) if n == 1)
        return op(g, axis=axes, keepdims=True)
    return {"unbroadcast": unbroadcast}


def _leading(g, shape):
    return g.sum(axis=tuple(range(g.ndim - len(shape))))


def _no_keepdims(g, shape):
    g = _leading(g, shape)
    return g.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1))


def _trailing(g, shape):
    while g.ndim > len(shape):
        g = g.sum(axis=-1)
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return g.sum(axis=axes, keepdims=True)


def _stretched_only(g, shape):
    axes = tuple(i for i, n in enumerate(shape) if n == 1 and i < g.ndim)
    return g.sum(axis=axes, keepdims=True)


def _first(g, shape):
    while g.ndim > len(shape):
        g = g[0]
    return g[tuple(slice(1) if n == 1 else slice(None) for n in shape)]


MUTATIONS = {
    "only the leading axes are summed, not those of length 1": {"unbroadcast": _leading},
    "keepdims is lost, so that axes of length 1 vanish": {"unbroadcast": _no_keepdims},
    "the mean over the copies stands where their sum belongs": _over(np.mean),
    "the axes are taken from the wrong end: the last ones are summed, the leading ones were added":
        {"unbroadcast": _trailing},
    "only the axes of length 1 are summed, not the leading ones": {"unbroadcast": _stretched_only},
    "the first of the copies is taken instead of the sum over all": {"unbroadcast": _first},
}
