# %% [markdown]
# # Exercise 12. The training loop: what does fit do, bit for bit?
#
# Lesson 2. Time: 20 minutes.
#
# Write the loop with minidl's parts. In each epoch draw a new order of all samples with
# `rng.permutation`, and take batches of `batch_size` in this order; the last one may be
# smaller. In each step: outputs from `model(xb)`, a Tensor from `loss(outputs, yb)`, clear the
# gradients, `backward()`, and a step of the optimizer. The model has BatchNorm, and whoever
# used it before you has left it in evaluation mode.

# %%
import numpy as np


def train(model, loss, optimizer, x, y, batch_size, epochs, rng):
    """The loss of each step as an array (steps,). loss: a function of (outputs, labels)."""
    # --- solution
    losses = []
    model.train()
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), batch_size):
            rows = order[start:start + batch_size]
            batch_loss = loss(model(x[rows]), y[rows])
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
            losses.append(batch_loss.item())
    return np.array(losses)
    # --- end


# %% The checks
from minidl import BatchNorm, Dense, Sequential, grad, optim
from minidl import functional as F
from minidl.course.student import Refused

HINTS = [
    "Two loops, one in the other. What has to happen once, what in each epoch, what in each step?",
    "Gradients add up until they are cleared, and BatchNorm asks for a mode. Take samples and "
    "labels with the same row numbers.",
    "Before the loops the mode for training; in each epoch a permutation; in each step the rows of "
    "one slice of it, forward and loss, zero_grad, backward, step, and the loss as a number.",
]
HALVED, EXACT = False, ("losses", "weights afterwards")
FOLLOWS = {"losses": ("batch sizes", "samples in their order", "labels of these samples",
                      "training mode", "gradient at each step"),
           "samples in their order": ("batch sizes",)}
FOLLOWS["weights afterwards"] = (*FOLLOWS["losses"], "losses")
VARIED = ()


def cases(rng):
    def case(n, classes, batch_size, epochs):
        x = rng.standard_normal((n, 4)).astype(np.float32)
        return {"x": x, "y": np.abs(x).argmax(axis=1) % classes, "batch_size": batch_size,
                "epochs": epochs, "seed": int(rng.integers(1000))}
    return [case(22, 3, 8, 3), case(15, 2, 4, 2)]


def label(case):
    return "{} samples, batches of {}, {} epochs".format(len(case["x"]), case["batch_size"],
                                                         case["epochs"])


def setting(case):
    """Model, loss and optimizer, and a list to which each step writes what it saw."""
    model = Sequential([Dense(5), BatchNorm(), Dense(3)], seed=case["seed"]).build(4)
    steps, latest = [], {}

    def watched(outputs, labels):
        value = F.cross_entropy(outputs, labels)
        latest.update(gradients=grad(F.cross_entropy(model(latest["x"]), labels),
                                     model.parameters()), labels=np.asarray(labels))
        return value

    class Watched(optim.SGD):
        def step(self):
            mine = [p.grad for p in model.parameters()]
            none = any(g is None for g in mine)
            same = not none and all(np.allclose(a, b, 1e-4, 1e-6)
                                    for a, b in zip(mine, latest["gradients"]))
            steps.append((none or 2 * (not same), *map(latest.get, ("training", "x", "labels"))))
            super().step()

    def look(module, inputs, y):
        latest.update(x=np.asarray(getattr(inputs[0], "data", inputs[0])), training=model.training)
    model.register_forward_hook(look)
    return model, watched, Watched(model.parameters(), lr=0.3), steps


def _state(model):
    """Parameters, then running statistics, and last how often these were updated."""
    return np.concatenate([np.ravel(array) for array in model.state_dict().values()])


def _number(x, row):
    found = np.flatnonzero((x == row).all(axis=1))
    if not len(found):
        raise Refused("the model was given samples that are no rows of x")
    return found[0]


def play(mine, case):
    model, loss, optimizer, steps = setting(case)
    model.eval()
    losses = mine.train(model, loss, optimizer, case["x"], case["y"], case["batch_size"],
                        case["epochs"], np.random.default_rng(case["seed"]))
    rows = [np.array([_number(case["x"], row) for row in xb]) for _, _, xb, _ in steps]
    return {"batch sizes": np.array([len(r) for r in rows]),
            "samples in their order": np.concatenate([*rows, np.zeros(0, int)]),
            "labels of these samples": np.array([np.array_equal(case["y"][r], yb)
                                                 for r, (_, _, _, yb) in zip(rows, steps)]),
            "training mode": np.array([training for _, training, _, _ in steps]),
            "gradient at each step": np.array([int(g) for g, _, _, _ in steps]),
            "losses": losses,
            "weights afterwards": _state(model)[:-1]}


def judge(name, case, got, right):
    """What can be said of the parts of a step in words."""
    wrong = np.flatnonzero(got[:len(right)] != right[:len(got)]) if got.ndim else []
    n, size = case["epochs"], len(case["x"])
    more = 0
    words = []
    if name == "batch sizes":
        words = [f"the batches have {got.tolist()[:12]} samples, expected are "
                 f"{right.tolist()[:12]}"]
        more = abs(len(got) - len(right))
        if more:
            words.append(f"there are {len(got)} steps of the optimizer, expected are {len(right)}")
        if len(got) == 2 * len(right) and np.array_equal(got[::2], got[1::2]):
            words.append("the optimizer makes two steps for each batch")
    elif name == "samples in their order":
        counts = np.bincount(got, minlength=size)
        more, at = abs(len(got) - len(right)), wrong[0] if len(wrong) else min(len(got), len(right))
        words = [f"from number {at} on they are {got.tolist()[at:at + 6]}, expected are "
                 f"{right.tolist()[at:at + 6]}"]
        if not len(wrong) and len(got) % size == 0:
            words = [f"the samples of {len(got) // size} epochs are there, expected are {n}"]
        elif got.tolist()[:size] == list(range(size)):
            words.append("they come in the order of the file: nothing is shuffled")
        elif len(got) == len(right) and not (counts == n).all():
            words.append(f"in {n} epochs some samples are seen {counts.max()} times, others "
                         f"{counts.min()} times")
        elif len(got) > size and got.tolist()[:size] == right.tolist()[:size]:
            words.append("the first epoch is as it should be, the others are not")
        elif len(got) == len(right):
            words.append("each epoch has all samples, but in another order than that of "
                         "rng.permutation(len(x)), once per epoch")
    elif name == "labels of these samples":
        words = [f"in step {i} the labels are not those of its samples" for i in wrong[:1]]
    elif name == "training mode":
        words = [f"in step {i} the model is in evaluation mode ({len(wrong)} of {len(got)} steps)"
                 for i in wrong[:1]]
    elif name == "gradient at each step":
        words = [f"in step {i} " + ("there is no gradient" if got[i] == 1 else
                                    "the gradient is not that of this batch") for i in wrong[:1]]
    else:
        return None
    return len(wrong) + more, words


def evidence(name, case, got, right):
    """Are the steps made at all? How does the first loss differ?"""
    model, mine, ideal = setting(case)[0], got[name], right[name]
    count = sum(p.data.size for p in model.parameters())
    if name == "weights afterwards" and np.array_equal(mine[:count], _state(model)[:count]):
        return ["no weight has moved"]
    if name == "weights afterwards" and np.array_equal(mine[:count], ideal[:count]):
        return ["the weights are right, BatchNorm's running statistics are not: was the model given "
                "more batches than it was trained with?"]
    if name == "losses" and mine.shape == ideal.shape:
        if np.allclose(mine, ideal * right["batch sizes"]):
            return ["each loss is multiplied by the number of samples in its batch"]
        if np.allclose(mine, np.cumsum(ideal)):
            return ["each number is the sum of all losses so far"]
        return [f"the first loss is {mine[0] / ideal[0]:.6g} times the right one"] * bool(
            mine[0] != ideal[0])
    if name == "losses" and mine.shape == ():
        return ["one number is returned; one per step is asked for"]
    if name == "losses" and mine.shape == (case["epochs"],):
        means = np.allclose(mine, ideal.reshape(len(mine), -1).mean(axis=1))
        return ["there is one number per epoch" + ", the mean of its losses" * means
                + "; one per step is asked for"]
    return []


def _wrong(clear="before", last=True, mode="train", shuffle=True, labels=True, step=True,
           after=False):
    def train(model, loss, optimizer, x, y, batch_size, epochs, rng):
        losses, order = [], rng.permutation(len(x))
        model.train(mode == "train")
        for epoch in range(epochs):
            if shuffle and epoch:
                order = rng.permutation(len(x))
            rows_of = order if shuffle is not None else np.arange(len(x))
            for start in range(0, len(x) if last else len(x) - batch_size + 1, batch_size):
                rows = rows_of[start:start + batch_size]
                batch_loss = loss(model(x[rows]), y[rows if labels else slice(
                    start, start + batch_size)])
                if clear == "before" or clear == "once" and not losses:
                    optimizer.zero_grad()
                batch_loss.backward()
                if clear == "after":
                    optimizer.zero_grad()
                if step:
                    optimizer.step()
                losses.append((loss(model(x[rows]), y[rows]) if after else batch_loss).item())
        return np.array(losses)
    return {"train": train}


MUTATIONS = {
    "the gradients are never cleared": _wrong(clear="never"),
    "the gradients are cleared between backward and step": _wrong(clear="after"),
    "evaluation mode is left on": _wrong(mode="eval"),
    "the last, smaller batch is dropped": _wrong(last=False),
    "the samples are shuffled once and not anew in each epoch": _wrong(shuffle=False),
    "the samples are never shuffled": _wrong(shuffle=None),
    "the labels are not shuffled with the samples": _wrong(labels=False),
    "a loss is that after its step, not the one before": _wrong(after=True),
    "the optimizer never makes a step": _wrong(step=False),
}
