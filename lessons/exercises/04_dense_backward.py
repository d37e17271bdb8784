# %% [markdown]
# # Exercise 4. Dense's backward: which of the two is transposed?
#
# Lesson 2. Time: 15 minutes.
#
# A Dense layer computes $y = x W + b$ for a batch: x has the shape (n, inputs), the kernel W
# (inputs, units), the bias b (units,). The gradient g of the loss at y has come in. Return the
# gradients at x, W and b. If the loss is a mean over the batch, its 1/n is in g already.

# %%
def backward(g, x, kernel):
    """dx (n, inputs), dkernel (inputs, units), dbias (units,). g: (n, units)."""
    # --- solution
    return g @ kernel.T, x.T @ g, g.sum(axis=0)
    # --- end


# %% The checks
HINTS = [
    "The shapes alone leave hardly a choice: write them down for each of the three products.",
    "An entry of the kernel is used once for each sample, and so is the bias: sum over the batch.",
    "For the gradient at x, the sum runs over the units; for that at the kernel, over the samples. "
    "A matrix product sums over the axis that its two factors share.",
]


def cases(rng):
    def case(n, inputs, units):
        return {"g": rng.standard_normal((n, units)), "x": rng.standard_normal((n, inputs)) + 1,
                "kernel": rng.standard_normal((inputs, units))}
    return [case(7, 3, 5), case(6, 4, 2), case(5, 5, 5)]


def play(mine, case):
    return {"dx, dkernel, dbias": mine.backward(*case.values())}


def label(case):
    return "n {}, inputs {}, units {}".format(*case["x"].shape, case["kernel"].shape[1])


def factors(case):
    return {"n": len(case["x"]), "the number of units": case["kernel"].shape[1],
            "the number of inputs": case["x"].shape[1]}


GRADIENTS = ("dx", "dkernel", "dbias")


def _wrong(**parts):
    """A backward in which some of the three gradients are computed in another way."""
    def backward(g, x, kernel):
        ways = {"dx": lambda g, x, w: g @ w.T, "dkernel": lambda g, x, w: x.T @ g,
                "dbias": lambda g, x, w: g.sum(axis=0), **parts}
        return tuple(way(g, x, kernel) for way in ways.values())
    return {"backward": backward}


MUTATIONS = {
    "the kernel is not transposed in dx (which only a square kernel allows)": _wrong(
        dx=lambda g, x, w: g @ w),
    "the bias gets the mean over the batch instead of the sum": _wrong(
        dbias=lambda g, x, w: g.mean(axis=0)),
    "the bias gets the whole g, not summed over the batch": _wrong(dbias=lambda g, x, w: g),
    "the bias gets the sum over the units, axis 1, instead of that over the batch": _wrong(
        dbias=lambda g, x, w: g.sum(axis=1)),
    "dkernel is transposed": _wrong(dkernel=lambda g, x, w: g.T @ x),
    "all is divided by n once more": _wrong(
        dx=lambda g, x, w: g @ w.T / len(x), dkernel=lambda g, x, w: x.T @ g / len(x),
        dbias=lambda g, x, w: g.mean(axis=0) + 0),
    "the gradient of the kernel is divided by n once more": _wrong(
        dkernel=lambda g, x, w: x.T @ g / len(x)),
}
