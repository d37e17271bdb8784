# %% [markdown]
# # Exercise 15. Find the bug: which of five programs are wrong?
#
# Lesson 6. Time: 25 minutes.
#
# Each of these five functions does what its first line says, or has one fault. Name the faults
# in `faults`, and repair each function that has one, by changing one line or adding one. All
# five run without an error, as such faults do. The words to choose from: "no fault", "softmax
# twice", "softmax missing", "training mode", "evaluation mode", "gradients not cleared",
# "gradient missing", "useless bias", "wrong axis", "statistics of the test data", "labels out
# of order".

# %%
from minidl import Activation, BatchNorm, Dense, Sequential
from minidl import functional as F


def loss_of(model, x, y):
    """The cross-entropy of a model that ends in Dense(3); F.cross_entropy expects logits."""
    # --- solution
    return F.cross_entropy(model(x), y)
    # --- instead
    # probabilities = F.softmax(model(x))
    # return F.cross_entropy(probabilities, y)
    # --- end


def accuracy_of(model, x, y):
    """The share of test samples that a trained model with BatchNorm gets right."""
    # --- solution
    model.eval()
    return (model(x).numpy().argmax(axis=1) == y).mean()
    # --- instead
    # return (model(x).numpy().argmax(axis=1) == y).mean()
    # --- end


def outputs_of(x, seed):
    """The outputs of a new network with BatchNorm, whose first Dense has a bias."""
    # --- solution
    model = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(3)], seed=seed)
    return model(x).numpy()
    # --- instead
    # model = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(3)], seed=seed)
    # return model(x).numpy()
    # --- end


def two_steps(model, optimizer, x, y):
    """The loss after two steps of the optimizer, on the same batch."""
    # --- solution
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return F.cross_entropy(model(x), y).item()
    # --- instead
    # optimizer.zero_grad()
    # for _ in range(2):
    #     F.cross_entropy(model(x), y).backward()
    #     optimizer.step()
    # return F.cross_entropy(model(x), y).item()
    # --- end


def scaled(x, x_test):
    """The test data, scaled like the training data x when that gets mean 0 and spread 1."""
    # --- solution
    return (x_test - x.mean(axis=0)) / x.std(axis=0)
    # --- instead
    # return (x_test - x_test.mean(axis=0)) / x_test.std(axis=0)
    # --- end


def faults():
    """The fault of each function, in their order: a list of five of the words above."""
    # --- solution
    return ["softmax twice", "training mode", "no fault", "gradients not cleared",
            "statistics of the test data"]
    # --- end


# %% The checks
import numpy as np

from minidl import optim
from minidl.course.student import Refused

HINTS = [
    "For each function ask what it gets: logits or probabilities, which mode, which gradients, "
    "whose mean.",
    "One of the five is right. A bias before BatchNorm does nothing, and does no harm.",
    "Look at what cross_entropy expects; at the mode in which a trained model is measured; at the "
    "place of zero_grad; and at where the numbers for scaling come from.",
]
HALVED = False
WORDS = ["no fault", "softmax twice", "softmax missing", "training mode", "evaluation mode",
         "gradients not cleared", "gradient missing", "useless bias", "wrong axis",
         "statistics of the test data", "labels out of order"]
NAMES = ["loss_of", "accuracy_of", "outputs_of", "two_steps", "scaled"]
VARIED = ("scaled",)


def cases(rng):
    def case(n):
        x = rng.normal(0.5, 1, (n, 4)).astype(np.float32)
        return {"x": x, "y": np.abs(x).argmax(axis=1) % 3, "x_test": rng.normal(
            2, 2, (n + 1, 4)), "seed": int(rng.integers(1000))}
    return [case(40), case(30)]


def label(case):
    return f"{len(case['x'])} samples"


def play(mine, case):
    def model():
        return Sequential([Dense(8), BatchNorm(), Dense(3)], seed=case["seed"]).build(4)
    x, y, trained, stepped = case["x"], case["y"], model(), model()
    for _ in range(5):
        trained(x)
    far = x + 1  # away from the running statistics, where the modes differ
    labels = trained.eval()(far).numpy().argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % 3  # some that it gets wrong
    loss = mine.loss_of(model(), x, y)
    made = {"loss_of": np.float32(loss.item() if hasattr(loss, "item") else loss),
            "accuracy_of": mine.accuracy_of(trained.train(), far, labels),
            "outputs_of": mine.outputs_of(x, case["seed"]),
            "two_steps": np.float32(mine.two_steps(
                stepped, optim.SGD(stepped.parameters(), lr=0.5), x, y)),
            "scaled": mine.scaled(x.astype(np.float64), case["x_test"])}
    said = mine.faults()
    if not isinstance(said, (list, tuple)) or len(said) != 5:
        raise Refused("faults should return a list of five words")
    return made | {"faults": np.array([WORDS.index(word) if word in WORDS else -1
                                       for word in said])}


def judge(name, case, got, right):
    """Which of the words are wrong, without saying what is right."""
    if name != "faults":
        return None
    unknown = [NAMES[i] for i in np.flatnonzero(got == -1)]
    words = [f"{NAMES[i]}: its fault is not {WORDS[got[i]]!r}" if got[i] else
             f"{NAMES[i]}: there is a fault in it" for i in np.flatnonzero(got != right)
             if got[i] != -1]
    return np.sum(got != right), words + [f"{name}: this is none of the words to choose from"
                                          for name in unknown]


def evidence(name, case, got, right):
    """Whose loss is it: after how many steps, in which mode?"""
    def model():
        return Sequential([Dense(8), BatchNorm(), Dense(3)], seed=case["seed"]).build(4)
    x, y, net = case["x"], case["y"], model()
    if name == "loss_of":
        value = F.cross_entropy(net.eval()(x), y).item()
        return ["it is the loss in evaluation mode"] * bool(np.isclose(got[name], value, 1e-6))
    if name == "outputs_of":
        net = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(3)], seed=case["seed"])
        value = net.build(4).eval()(x).numpy()
        return ["these are the outputs in evaluation mode"] * np.allclose(got[name], value, 1e-6)
    if name == "accuracy_of":
        return ["it is the number of right ones, and not their share"] * bool(
            got[name] == right[name] * len(x)) or [
            "it is the share of wrong ones"] * bool(np.isclose(got[name], 1 - right[name]))
    if name != "two_steps":
        return []
    optimizer = optim.SGD(net.parameters(), lr=0.5)
    for steps in range(5):
        for mode in "training", "evaluation":
            seen = model()
            seen.load_state_dict(net.state_dict())
            value = F.cross_entropy(seen.train(mode == "training")(x), y).item()
            if np.isclose(got[name], value, 1e-6):
                return [f"it is the loss after {steps} step{'s' * (steps != 1)}, in {mode} mode"]
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return []


def factors(case):
    return {"the number of samples": len(case["x"]),
            "the spread of x": case["x"].astype(np.float64).std(axis=0)}


def _no_mode(model, x, y):
    return (model(x).numpy().argmax(axis=1) == y).mean()


def _steps(clear):
    def two_steps(model, optimizer, x, y):
        optimizer.zero_grad()
        for _ in range(2):
            F.cross_entropy(model(x), y).backward()
            if clear:
                optimizer.zero_grad()
            optimizer.step()
        return F.cross_entropy(model(x), y).item()
    return {"two_steps": two_steps}


MUTATIONS = {
    "the softmax is taken twice, as it was": {"loss_of": lambda model, x, y: F.cross_entropy(
        F.softmax(model(x)), y)},
    "the model is measured in training mode, as it was": {"accuracy_of": _no_mode},
    "gradients of the first step are still there in the second, as it was": _steps(False),
    "the gradients are cleared between backward and step, so that no weight moves": _steps(True),
    "the test data are scaled by their own mean and spread, as it was": {
        "scaled": lambda x, x_test: (x_test - x_test.mean(axis=0)) / x_test.std(axis=0)},
    "the mean is that of the training data, the spread that of the test data": {
        "scaled": lambda x, x_test: (x_test - x.mean(axis=0)) / x_test.std(axis=0)},
    "the spread is that of the training data, the mean that of the test data": {
        "scaled": lambda x, x_test: (x_test - x_test.mean(axis=0)) / x.std(axis=0)},
    "mean and spread are one number for the whole table": {
        "scaled": lambda x, x_test: (x_test - x.mean()) / x.std()},
    "x is scaled instead of x_test": {"scaled": lambda x, x_test: (x - x.mean(axis=0)) / x.std(
        axis=0)},
}
