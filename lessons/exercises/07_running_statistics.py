# %% [markdown]
# # Exercise 7. Running statistics: what does BatchNorm remember?
#
# Lesson 11. Time: 15 minutes.
#
# With each batch in training mode, BatchNorm moves its running mean and variance towards those
# of the batch. `momentum` is the weight of the newest batch, as in PyTorch: 0.1 keeps 90 % of
# the old value. The mean starts at 0, the variance at 1. The variance of the batch enters
# unbiased (divided by m - 1), since it estimates that of all data.

# %%
import numpy as np


def start(features):
    """running_mean, running_var before the first batch, (features,) each."""
    # --- solution
    return np.zeros(features), np.ones(features)
    # --- end


def update(running_mean, running_var, x, momentum):
    """The new running_mean and running_var after a batch x (m, features)."""
    # --- solution
    return ((1 - momentum) * running_mean + momentum * x.mean(axis=0),
            (1 - momentum) * running_var + momentum * x.var(axis=0, ddof=1))
    # --- end


# %% The checks
HINTS = [
    "A running average is a mixture of the old value and the new one, whose weights sum to 1.",
    "Which weight is the small one? momentum belongs to the newest batch here; Keras has it the "
    "other way round.",
    "Mix old and new for both statistics with the same two weights; for the variance ask NumPy for "
    "ddof=1.",
]


def cases(rng):
    def case(m, n):
        return {"running_mean": rng.uniform(-2, 2, n), "running_var": rng.uniform(0.5, 2, n),
                "x": rng.normal(1, 2, (3, m, n)), "momentum": float(rng.uniform(0.1, 0.3))}
    return [case(8, 6), case(5, 7)]


def play(mine, case):
    mean, var, x, momentum = case.values()
    made = {"mean after one update, var after one update": mine.update(mean, var, x[0], momentum),
            "mean at the start, var at the start": mine.start(x.shape[2])}
    state, states = take("running_mean, running_var", mine.start(x.shape[2])), []
    for batch in x:
        state = take("running_mean, running_var", mine.update(*state, batch, momentum))
        states.append(state)
    return made | {"mean after 1 to 3 updates": np.stack([mean for mean, _ in states]),
                   "var after 1 to 3 updates": np.stack([var for _, var in states])}


def terms(case):
    mean, var, x, _ = case.values()
    return {"mean after one update": {"the old mean": mean,
                                      "the mean of the batch": x[0].mean(axis=0)},
            "var after one update": {"the old variance": var, "the unbiased variance of the batch":
                                     x[0].var(axis=0, ddof=1),
                                     "the square of its mean": x[0].mean(axis=0) ** 2}}


FOLLOWS = {f"{name} after 1 to 3 updates": (f"{name} after one update", f"{name} at the start")
           for name in ("mean", "var")}


def factors(case):
    return {"m": case["x"].shape[1]}


from minidl.course.student import take


def _wrong(old=lambda a: 1 - a, new=lambda a: a, var=lambda x: x.var(axis=0, ddof=1), var_old=None):
    def update(running_mean, running_var, x, a):
        return (old(a) * running_mean + new(a) * x.mean(axis=0),
                (var_old or old)(a) * running_var + new(a) * var(x))
    return {"update": update}


MUTATIONS = {
    "momentum is taken the wrong way round, as the weight of the old value": _wrong(
        lambda a: a, lambda a: 1 - a),
    "the biased variance is kept": _wrong(var=lambda x: x.var(axis=0)),
    "the statistics of the batch overwrite the old ones": _wrong(lambda a: 0, lambda a: 1),
    "the old values keep their full weight, so that the weights do not sum to 1": _wrong(
        lambda a: 1),
    "the new values have their full weight": _wrong(new=lambda a: 1),
    "the standard deviation is kept instead of the variance": _wrong(
        var=lambda x: x.std(axis=0, ddof=1)),
    "the factor of the unbiased variance is upside down": _wrong(
        var=lambda x: x.var(axis=0) * (len(x) - 1) / len(x)),
    "the running variance starts at 0": {"start": lambda n: (np.zeros(n), np.zeros(n))},
    "the running mean starts at 1": {"start": lambda n: (np.ones(n), np.ones(n))},
}
