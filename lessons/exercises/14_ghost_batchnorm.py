# %% [markdown]
# # Exercise 14. Ghost BatchNorm: what if a batch were many small ones?
#
# Lesson 12. Time: 15 minutes.
#
# Ghost BatchNorm (Hoffer et al. 2017) takes every `size` samples of a batch, one after the
# other, as a batch of their own with a mean and a variance of their own. The last group may be
# smaller; but one sample alone has no variance, so a last group of one joins the group before
# it.

# %%
import numpy as np


def ghost(x, gamma, beta, size, eps):
    """y (m, features), as in training mode. x: (m, features), gamma and beta: (features,)."""
    # --- solution
    starts = list(range(0, len(x), size))
    if len(starts) > 1 and len(x) - starts[-1] == 1:
        starts.pop()
    groups = [x[start:end] for start, end in zip(starts, [*starts[1:], len(x)])]
    return np.concatenate([gamma * (group - group.mean(axis=0)) / np.sqrt(group.var(axis=0) + eps)
                           + beta for group in groups])
    # --- end


# %% The checks
HINTS = [
    "First find where each group starts and ends, then normalise each by itself.",
    "Slices of x that follow one another, as long as size; what is left over is the last group.",
    "Make a list of starts; if only one sample is left after the last start, drop that start. Then "
    "normalise each slice along axis 0 and put them together with np.concatenate.",
]


def cases(rng):
    def case(m, n, size):
        return {"x": rng.normal(0, 2, (m, n)) + np.arange(m)[:, None],
                "gamma": rng.uniform(0.5, 2, n), "beta": rng.uniform(0.5, 2, n), "size": size,
                "eps": float(rng.uniform(0.1, 0.3))}
    return [case(12, 3, 4), case(11, 2, 4), case(13, 5, 4), case(10, 4, 3)]


def play(mine, case):
    """y, and for each pair of samples whether the one changes the other's output."""
    y = mine.ghost(*case.values())
    with_whom = []
    for i in range(len(case["x"])):
        x = case["x"].copy()
        x[i] += np.arange(1, x.shape[1] + 1)
        moved = mine.ghost(x, *list(case.values())[1:])
        with_whom.append(np.abs(moved - y).max(axis=1) > 1e-9 if np.shape(moved) == case["x"].shape
                         else np.zeros(len(x), bool))
    return {"who is normalised with whom": np.array(with_whom), "y": y}


FOLLOWS = {"y": ("who is normalised with whom",)}


def label(case):
    return f"{len(case['x'])} samples, groups of {case['size']}"


def _groups(table):
    """The groups in words: 0 to 3, 4 to 7."""
    groups = list(dict.fromkeys(tuple(map(int, np.flatnonzero(row))) for row in table))
    return ", ".join("none" if not g else f"{g[0]}" if len(g) == 1 else f"{g[0]} to {g[-1]}"
                     if g == tuple(range(g[0], g[-1] + 1)) else " ".join(map(str, g))
                     for g in groups[:8])


def judge(name, case, got, right):
    if name == "y":
        return None
    if not got.any():
        return right.sum(), ["y has another shape than x, so this cannot be seen"]
    return np.sum(got != right), [f"samples that change each other's output: {_groups(got)}; "
                                  f"should be {_groups(right)} ({label(case)})"]


def factors(case):
    return {"the size of a group": case["size"], "m": len(case["x"])}


def terms(case):
    parts = {"gamma x_hat": [], "beta": case["beta"] + 0 * case["x"]}
    parts["gamma x_hat"] = ghost(**case) - parts["beta"]
    return {"y": parts}


def _normal(group, gamma, beta, eps, ddof=0, root=lambda var, eps: np.sqrt(var + eps)):
    return gamma * (group - group.mean(axis=0)) / root(group.var(axis=0, ddof=ddof), eps) + beta


def _with(starts_of, **options):
    def ghost(x, gamma, beta, size, eps):
        starts = starts_of(len(x), size)
        return np.concatenate([_normal(x[a:b], gamma, beta, eps, **options)
                               for a, b in zip(starts, [*starts[1:], len(x)])])
    return {"ghost": ghost}


def _starts(m, size):
    starts = list(range(0, m, size))
    return starts[:-1] if m - starts[-1] == 1 else starts


def _equal(m, groups):
    """The starts of so many groups of equal size, as far as possible."""
    return [int(part[0]) for part in np.array_split(np.arange(m), groups)]


def _interleaved(x, gamma, beta, size, eps):
    y, k = np.empty_like(x), len(_starts(len(x), size))
    for i in range(k):
        y[i::k] = _normal(x[i::k], gamma, beta, eps)
    return y


MUTATIONS = {
    "one mean and variance are taken for the whole batch": _with(lambda m, size: [0]),
    "the groups are interleaved: every so many-th sample instead of neighbours": {
        "ghost": _interleaved},
    "a last group of one is left alone": _with(lambda m, size: list(range(0, m, size))),
    "the last, smaller group always joins the one before it": _with(
        lambda m, size: [size * i for i in range(m // size)]),
    "size is taken for the number of groups": _with(lambda m, size: _equal(m, size)),
    "the variance is the unbiased one, ddof=1": _with(_starts, ddof=1),
    "eps is outside the root": _with(_starts, root=lambda var, eps: np.sqrt(var) + eps),
    "the samples are cut into groups of equal size, as np.array_split does": _with(
        lambda m, size: _equal(m, -(-m // size))),
}
