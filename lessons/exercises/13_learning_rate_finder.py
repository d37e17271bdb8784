# %% [markdown]
# # Exercise 13. Learning-rate finder: which rate does a network like?
#
# Lesson 8. Time: 25 minutes.
#
# One short run with a rate that grows from step to step shows where the loss starts to fall,
# where it falls most steeply, and where it rises (Smith 2015). Rates are a matter of factors,
# so they grow geometrically. The rate at which the loss leaves is the one that a separate run
# per rate shows (`experiments.lr_range`), within a factor of 3. And the run is only a trial:
# afterwards the network must be as it was.

# %%
import numpy as np


def rates(low, high, n):
    """n rates from low to high, both included, each the same multiple of the one before."""
    # --- solution
    return low * (high / low) ** (np.arange(n) / (n - 1))
    # --- end


def sweep(model, loss, optimizer, batches, rates):
    """The losses (n,) of one step per rate, and the model as it was, running statistics too.

    batches: a list of (xb, yb), one per rate. The rate is the optimizer's attribute lr. The loss of
    a step is the one before its update. model.state_dict() and model.load_state_dict() help.
    """
    # --- solution
    before = {name: value.copy() for name, value in model.state_dict().items()}
    losses = []
    for (xb, yb), rate in zip(batches, rates):
        optimizer.lr = rate
        batch_loss = loss(model(xb), yb)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        losses.append(batch_loss.item())
    model.load_state_dict(before)
    return np.array(losses)
    # --- end


def suggest(rates, losses):
    """Where the loss falls most: the geometric mean of the two neighbouring rates between which it
    drops by the largest amount.
    """
    # --- solution
    i = np.argmin(np.diff(losses))
    return np.sqrt(rates[i] * rates[i + 1])
    # --- end


# %% The checks
from minidl import BatchNorm, Dense, Sequential, optim
from minidl import functional as F
from minidl.course.student import take

HINTS = [
    "Rates from 0.001 to 10 in five steps: 0.001, 0.01, 0.1, 1, 10. What is constant?",
    "A dict that shares its arrays with the model is no copy. BatchNorm's running statistics are "
    "in the state_dict, too. For the suggestion look at the drops, not at the losses.",
    "The factor from rate to rate is high / low to the power of 1 / (n - 1). NumPy's diff has the "
    "drops, argmin finds the largest; the geometric mean is the root of a product.",
]
HALVED = False
FOLLOWS = {"losses of the sweep": ("rates tried", "batches in their order", "training mode")}
VARIED = ("rates", "suggest")


def cases(rng):
    def case(n, low, high):
        t = np.linspace(-4, 5, n)
        falls, rises = rng.uniform(-1, 1, (6, 1)), np.array([[3.4], [3.7], [4], [4.3], [4.6], [9]])
        curves = 2.3 - 1.8 / (1 + np.exp(-2 * (t - falls))) + np.exp(2 * (t - rises))
        curves[:, 0] += 0.15  # a small drop at the lowest rates, steep on a linear scale
        curves += 0.05 * rng.standard_normal(curves.shape)
        return {"n": n, "low": low, "high": high, "curves": curves,
                "x": rng.standard_normal((n, 16, 4)).astype(np.float32),
                "seed": int(rng.integers(1000))}
    return [case(12, 1e-3, 10.0), case(9, 0.01, 2.0)]


def label(case):
    return "{} rates from {:g} to {:g}".format(case["n"], case["low"], case["high"])


def play(mine, case):
    n = case["n"]
    model = Sequential([Dense(8), BatchNorm(), Dense(4)], seed=case["seed"]).build(4)
    tried, seen, given = [], {}, _given(case)

    class Watched(optim.SGD):
        def step(self):
            tried.append((float(self.lr), *seen.values()))
            super().step()

    def look(module, inputs, y):
        x = np.asarray(getattr(inputs[0], "data", inputs[0]))
        seen.update(batch=next((i for i in range(n) if np.array_equal(x, case["x"][i])), -1),
                    training=module.training)
    model.register_forward_hook(look)

    batches = [(x, np.abs(x).argmax(axis=1)) for x in case["x"]]
    before = model.state_dict()
    before = {name: np.array(value, copy=True) for name, value in before.items()}
    losses = mine.sweep(model, F.cross_entropy, Watched(model.parameters(), lr=0.5), batches,
                        given.copy())
    after = model.state_dict()
    moved = [not np.array_equal(before[name], after[name]) for name in before]
    rates, used, modes = (np.array(list(a)) for a in zip(*tried)) if tried else [np.zeros(0)] * 3
    return {"rates": mine.rates(case["low"], case["high"], n), "rates tried": rates,
            "batches in their order": used, "training mode": modes,
            "losses of the sweep": losses, "what has changed afterwards": np.array(moved),
            "suggestions": np.array([take("suggestion", mine.suggest(given.copy(), curve))
                                     for curve in case["curves"].copy()])}


def _given(case):
    n = case["n"]
    return case["low"] * (case["high"] / case["low"]) ** (np.arange(n) / (n - 1))


def judge(name, case, got, right):
    if name == "training mode":
        wrong = np.flatnonzero(got != 1)
        return len(wrong), [f"in step {i} the model is in evaluation mode ({len(wrong)} of "
                            f"{len(got)} steps)" for i in wrong[:1]]
    if name == "batches in their order":
        return np.sum(got[:len(right)] != right[:len(got)]) + abs(len(got) - len(right)), [
            f"they are {got.tolist()}, expected are {right.tolist()} (-1 is none of them)"]
    if name != "what has changed afterwards":
        return None
    names = list(Sequential([Dense(8), BatchNorm(), Dense(4)], seed=0).build(4).state_dict())
    return got.sum(), ["not restored: " + ", ".join(n for n, m in zip(names, got) if m)]


def evidence(name, case, got, right):
    """How do the rates grow? Where on its curve is a suggestion?"""
    given = _given(case)
    if name == "rates" and len(got[name]) > 2:
        steps, ratios = np.diff(got[name]), got[name][1:] / got[name][:-1]
        if np.ptp(steps) < 1e-9 * np.abs(steps).max():
            return ["your rates grow by the same amount each time, not by the same factor"]
        if np.ptp(ratios) < 1e-9 * np.abs(ratios).max():
            return [f"your rates grow by the factor {ratios[0]:.4g} each time, should be "
                    f"{given[1] / given[0]:.4g}; the first is {got[name][0]:.4g}, the last "
                    f"{got[name][-1]:.4g}"]
    if name == "rates tried" and got[name].size > 1 and np.ptp(got[name]) == 0:
        return [f"all steps are made with the rate {got[name][0]:g}"]
    return []


def unclear(name, case, got, right):
    """Where on its curve is the first wrong suggestion?"""
    if name != "suggestions" or got[name].shape != right[name].shape:
        return []
    k = np.flatnonzero(~np.isclose(got[name], right[name], 1e-9))[0]
    mine, given, curve = got[name][k], _given(case), case["curves"][k]
    if not given[0] <= mine <= given[-1]:
        return [f"{mine:.4g} lies outside of the rates, {given[0]:g} to {given[-1]:g}"]
    i, place = np.argmin(np.diff(curve)), np.interp(np.log(mine), np.log(given), np.arange(len(given)))
    return [f"on curve {k} the largest drop is from rate number {i} to {i + 1}; your suggestion is "
            f"at number {place:.3g}; the loss is lowest at number {np.argmin(curve)}"]


def _sweep(restore, clear=True, after=False, each=False):
    def sweep(model, loss, optimizer, batches, rates):
        parameters = [p.data.copy() for p in model.parameters()]
        losses, before = [], model.state_dict()
        for (xb, yb), rate in zip(batches, rates):
            if each:
                model.load_state_dict(before)
            optimizer.lr = rate
            batch_loss = loss(model(xb), yb)
            if clear:
                optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            losses.append((loss(model(xb), yb) if after else batch_loss).item())
        for p, data in zip(model.parameters(), parameters) if restore else ():
            p.data = data
        if each:
            model.load_state_dict(before)
        return np.array(losses)
    return {"sweep": sweep}


def _linear(rates, losses):
    i = np.argmin(np.diff(losses) / np.diff(rates))
    return np.sqrt(rates[i] * rates[i + 1])


MUTATIONS = {
    "the rates are linear, equal steps instead of equal factors": {"rates": np.linspace},
    "the last rate, high, is left out": {"rates": lambda low, high, n: low * (high / low) ** (
        np.arange(n) / n)},
    "the weights are not restored": _sweep(False),
    "the weights are restored, the running statistics are not": _sweep(True),
    "the gradients are never cleared": _sweep(True, clear=False),
    "a loss is that after its step, not the one before": _sweep(True, after=True),
    "the model is restored before each step, and not only at the end": _sweep(False, each=True),
    "the minimum of the loss is taken instead of its steepest fall": {
        "suggest": lambda rates, losses: rates[np.argmin(losses)]},
    "the steepest rise is taken instead of the steepest fall": {"suggest": lambda rates, losses: (
        np.sqrt(rates[np.argmax(np.diff(losses))] * rates[np.argmax(np.diff(losses)) + 1]))},
    "the largest change is taken, be it a fall or a rise": {"suggest": lambda rates, losses: np.sqrt(
        rates[np.argmax(np.abs(np.diff(losses)))] * rates[1 + np.argmax(np.abs(np.diff(losses)))])},
    "a tenth of the rate with the lowest loss is taken": {
        "suggest": lambda rates, losses: rates[np.argmin(losses)] / 10},
    "the number of the rate is returned, and not the rate": {
        "suggest": lambda rates, losses: np.argmin(np.diff(losses))},
    "the largest relative drop is taken, that of the logarithm": {
        "suggest": lambda rates, losses: suggest(rates, np.log(losses))},
    "the drop is divided by the step of the rate, which is small at low rates": {
        "suggest": _linear},
    "the arithmetic mean of the two rates is taken": {"suggest": lambda rates, losses: (
        rates[np.argmin(np.diff(losses))] + rates[np.argmin(np.diff(losses)) + 1]) / 2},
    "the lower of the two rates is taken": {
        "suggest": lambda rates, losses: rates[np.argmin(np.diff(losses))]},
    "the higher of the two rates is taken": {
        "suggest": lambda rates, losses: rates[np.argmin(np.diff(losses)) + 1]},
}
