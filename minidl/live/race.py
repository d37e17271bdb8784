"""Two networks that differ in BatchNorm only, trained step by step while settings change.

No threads and no input or output in this file: `server.py` has those.
"""

import copy
import math
from collections import deque
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from .. import initializers, training
from ..batching import stream
from ..data import standardization
from ..layers import Activation, BatchNorm, Dense, estimate_population_statistics
from ..optim import SGD
from ..sequential import Sequential
from ..settings import is_number, is_whole

NAMES = "with BatchNorm", "without BatchNorm"
POINTS = 100  # of a curve at most; beyond that, every two become one
FIRST = 5  # steps that both take in any case, until the time of one is known
# test images to measure on, training images for BatchNorm's statistics
TESTED, ESTIMATED = 500, 300
BINS = 16  # of a histogram; ReLU has one more, for answers that are 0
WEIGHTS = {"normal": initializers.normal(1.0), "xavier": initializers.glorot_normal,
           "he": initializers.he_normal}


@dataclass(frozen=True)
class Setting:
    """One setting of the race.

    stops: the places of its slider, in rising order, or the entries of its list. start: its first
    value. live: whether it may change while the networks train; a change of any other setting
    starts both networks anew.
    """

    label: str
    stops: tuple
    start: object
    live: bool = False

    def check(self, name, value):
        """The value to keep. Numbers may lie between stops; ValueError for an invalid value."""
        if isinstance(self.start, float | int) and not isinstance(self.start, bool):
            least, most = self.stops[0], self.stops[-1]
            whole = isinstance(self.start, int)
            if not (is_whole if whole else is_number)(value) or not least <= value <= most:
                raise ValueError(f"{name} is a {'whole ' * whole}number from {least:g} to {most:g},"
                                 f" got {value!r:.60}")
            return int(value) if whole else float(value)
        if type(value) is not type(self.start) or value not in self.stops:
            choices = " or ".join(str(stop).lower() for stop in self.stops)
            raise ValueError(f"{name} is {choices}, got {value!r:.60}")
        return value


SETTINGS = {
    "speed": Setting("steps per second", (1, 2, 5, 10, 20, 30, 60, 120, 250, 500, 1000), 60, True),
    "lr": Setting(
        "learning rate",
        (*(float(f"{m}e{e}") for e in range(-3, 2) for m in (1, 2, 3, 5, 7)), 100.0),
        0.5,
        True,
    ),
    "batch_size": Setting("batch size", (2, 4, 8, 16, 32, 60, 120, 250, 500, 1000), 60, True),
    "depth": Setting("hidden layers", (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32), 3),
    "width": Setting("units per layer", (5, 10, 20, 50, 64, 100, 150, 200), 100),
    "activation": Setting("activation", ("sigmoid", "tanh", "relu"), "sigmoid"),
    "weights": Setting("initial weights", tuple(WEIGHTS), "normal"),
    "scale": Setting(
        "times",
        (*(float(f"{m}e{e}") for e in range(-4, 1) for m in (1, 2, 3, 5, 7)), 10.0),
        0.1,
    ),
    "momentum": Setting("BN momentum", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), 0.1),
    "seed": Setting("seed", tuple(range(20)), 0),
    "standardise": Setting("standardise inputs", (False, True), False),
    "same_time": Setting("same time, not steps", (False, True), False),
}

RELU = {"activation": "relu", "weights": "he", "scale": 1.0, "width": 64, "batch_size": 64}
PRESETS = {
    "7": ("7. The paper's network", {}),
    "7b": ("7. The plain net's best rate", {"lr": 4.0}),
    "8": ("8. A large learning rate", {**RELU, "depth": 6, "lr": 3.0}),
    "9": ("9. Small initial weights", {
        "activation": "relu", "depth": 5, "batch_size": 100, "lr": 0.01, "scale": 0.01}),
    "10": ("10. Vanishing gradients", {
        "weights": "xavier", "scale": 1.0, "depth": 8, "width": 50, "batch_size": 64, "lr": 0.1}),
    "10b": ("10. Exploding gradients", {**RELU, "depth": 32, "width": 50, "lr": 0.03}),
    "11": ("11. Averages that come late", {**RELU, "depth": 2, "lr": 0.3, "momentum": 0.001}),
    "12": ("12. Batches of 2", {**RELU, "depth": 2, "batch_size": 2, "lr": 0.0177}),
}


def checked(changes):
    """The values of {name: value} to keep; ValueError for an unknown name or an invalid value."""
    if not isinstance(changes, dict):
        raise ValueError("settings are an object, {\"lr\": 3} for example, got a "
                         f"{type(changes).__name__}")
    unknown = [name for name in changes if name not in SETTINGS]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]!r:.60}; known are {', '.join(SETTINGS)}")
    return {name: SETTINGS[name].check(name, value) for name, value in changes.items()}


def network(settings, batch_norm):
    """The Sequential of these settings: Dense, perhaps BatchNorm, and activation, `depth` times."""
    kind, scale, layers = settings["weights"], settings["scale"], []

    def initial(shape, rng):
        return scale * WEIGHTS[kind](shape, rng)

    weights = initializers.normal(scale) if kind == "normal" else initial
    for _ in range(settings["depth"]):
        layers.append(Dense(settings["width"], kernel_initializer=weights))
        if batch_norm:
            layers.append(BatchNorm(momentum=settings["momentum"]))
        layers.append(Activation(settings["activation"]))
    return Sequential([*layers, Dense(10, kernel_initializer=weights)], seed=settings["seed"])


class Contestant:
    """One of the two networks: its training, its curves, and what its layers do.

    points: [step, seconds, accuracy, accuracy with running averages, loss] of every `interval`
    steps; accuracies on the test images, the loss a mean over the steps since the last point. dead:
    None, or where the loss stopped being finite; from then on the network stands still.
    """

    def __init__(self, settings, data, batch_norm, every):
        (x, _), _ = self.data = data
        self.batch_norm, self.activation = batch_norm, settings["activation"]
        self.model = network(settings, batch_norm).build(x.shape[1]).train()
        self.optimizer = SGD(self.model.parameters(), lr=settings["lr"])
        self.take_batches_of(settings["batch_size"])
        self.kernels = [part.kernel for part in self.model.layers if isinstance(part, Dense)]
        self.steps, self.seconds, self.dead = 0, 0.0, None
        self.recent = deque(maxlen=50)  # how long the latest steps took
        self.losses, self.points, self.interval = [], [], every
        self.answers, self.inside = {}, {"activations": [], "gradients": [], "ratios": []}
        for i, part in enumerate(p for p in self.model.layers if isinstance(p, Activation)):
            part.register_forward_hook(keeper(self.answers, i))
        self.measure()

    def take_batches_of(self, size):
        """Use batches of this size from the next step on, which begins a new epoch."""
        self.batches = stream(*self.data[0], size, self.model.shuffle_rng)

    def step(self, look):
        """Train on the next batch; returns the loss, or None if the network has died.

        look: also note what the layers do.
        """
        norms = []

        def weigh(outputs, loss):
            norms.extend(norm(kernel.data) for kernel in self.kernels)

        xb, yb = next(self.batches)
        began = perf_counter()
        try:
            loss = training.step(
                self.model, training.LOSSES["cross_entropy"], self.optimizer, xb, yb,
                weigh if look else None,
            )
        except training.DivergenceError as error:
            self.dead = {"step": self.steps, "seconds": self.seconds, "layer": error.layer}
            return None
        self.recent.append(perf_counter() - began)
        self.steps += 1
        # The quickest of them, so that neither the machine's other work nor the first step, which
        # lays out the memory, counts against a network.
        pace = min(self.recent)
        self.seconds = self.steps * pace if self.steps <= FIRST else self.seconds + pace
        self.losses.append(loss)
        if look:
            self.look(norms)
        if self.steps % self.interval == 0:
            self.measure()
        return loss

    def measure(self):
        """Add a point to the curves.

        BatchNorm's accuracy is measured with population statistics, because after ten steps its
        running averages still hold mostly their starting values (lesson 11).
        """
        (x, _), (x_test, y_test) = self.data

        def accuracy(model):
            outputs = training.predict(model, x_test, batch_size=TESTED)
            return float(training.accuracy(outputs, y_test))

        running = exact = accuracy(self.model)
        if self.batch_norm:
            twin = copy.deepcopy(self.model)  # the training goes on undisturbed
            with np.errstate(over="ignore", invalid="ignore"):
                estimate_population_statistics(twin, x[:ESTIMATED], ESTIMATED)
            exact = accuracy(twin)
        loss = float(np.mean(self.losses)) if self.losses else None
        self.losses = []
        self.points.append([self.steps, self.seconds, exact, running, loss])
        if len(self.points) > POINTS:
            start, *rest = self.points
            self.points = [start] + [
                [*b[:4], (a[4] + b[4]) / 2] for a, b in zip(rest[::2], rest[1::2])
            ]
            self.interval *= 2

    def look(self, norms):
        """Note what the latest step did. norms: of the kernels before that step."""
        gradients = [norm(kernel.grad) for kernel in self.kernels]
        self.inside = {
            "activations": [histogram(self.answers[i], self.activation)
                            for i in range(len(self.answers))],
            "gradients": gradients,
            # SGD's update is rate times gradient
            "ratios": [self.optimizer.current_lr * g / w if w else 0.0
                       for g, w in zip(gradients, norms)],
        }


def keeper(answers, i):
    """A forward hook that keeps the outputs of layer i in training mode."""
    def keep(layer, inputs, y):
        if layer.training:
            answers[i] = y.data
    return keep


def norm(x):
    """The Euclidean norm, computed in float64, in which the square of a small gradient is not 0."""
    x = x.reshape(-1).astype(np.float64)
    return float(np.sqrt(x @ x))


def histogram(answers, activation):
    """The share of the answers in each bin over the activation's range, in percent.

    There are BINS equal bins. ReLU has one more: first the share of zeros, then BINS half decades
    from 1e-4 to 1e4, the outer two of which also count what lies beyond.
    """
    y = answers[:64].reshape(-1).astype(np.float64)
    if activation == "relu":
        with np.errstate(divide="ignore"):
            places = np.clip(np.floor(2 * (np.log10(np.minimum(y, 1e9)) + 4)), 0, BINS - 1) + 1
        places = np.where(y > 0, places, 0)
        bins = BINS + 1
    else:
        share = y if activation == "sigmoid" else (y + 1) / 2
        places, bins = np.minimum(share * BINS, BINS - 1), BINS
    counts = np.bincount(places.astype(int), minlength=bins)
    return [round(100 * count / len(y), 1) for count in counts.tolist()]


class Race:
    """Both networks, their settings, and the changes made while they ran.

    data: ((x_train, y_train), (x_test, y_test)), images as rows. every: the number of steps between
    two measurements, at first. Whether watched or not, the losses are bit for bit those of
    `experiments.run` with the same network, optimizer and batch size. Raises ValueError for invalid
    settings.
    """

    def __init__(self, data, settings=None, every=5):
        (x, y), (x_test, y_test) = data
        self.every = every
        self.data = {False: ((x, y), (x_test[:TESTED], y_test[:TESTED]))}
        self.settings = {name: setting.start for name, setting in SETTINGS.items()}
        self.settings |= checked(settings or {})
        self.runs = 0
        self.reset()

    def reset(self):
        """Start both networks anew."""
        standardise = self.settings["standardise"]
        if standardise not in self.data:
            (x, y), (x_test, y_test) = self.data[False]
            scaling = standardization(x)
            self.data[True] = (scaling(x), y), (scaling(x_test), y_test)
        self.nets = [Contestant(self.settings, self.data[standardise], batch_norm, self.every)
                     for batch_norm in (True, False)]
        self.marks, self.runs = [], self.runs + 1

    def set(self, changes):
        """Adopt the settings {name: value}; a value that stays the same changes nothing.

        Live settings change from the next step on, and the place is marked; any other setting
        starts both networks anew.
        """
        new = {name: value for name, value in checked(changes).items()
               if value != self.settings[name]}
        old, self.settings = self.settings, self.settings | new
        if not all(SETTINGS[name].live for name in new):
            return self.reset()
        for net in self.nets:
            if "lr" in new:
                net.optimizer.lr = new["lr"]
            if "batch_size" in new:
                net.take_batches_of(new["batch_size"])
        for name in new:
            if name != "speed" and self.steps:
                self.mark(name, old[name])

    def mark(self, name, old):
        """Note where a setting changed; a slider in motion leaves one mark, not many."""
        if self.marks and self.marks[-1]["name"] == name \
                and self.steps - self.marks[-1]["step"] <= self.settings["speed"]:
            old = self.marks.pop()["old"]
        self.marks = [*self.marks[-9:], {
            "name": name, "old": old, "new": self.settings[name], "step": self.steps,
            "seconds": max(net.seconds for net in self.nets)}]

    @property
    def steps(self):
        """The number of steps made by the network that has made more of them."""
        return max(net.steps for net in self.nets)

    def step(self, look=True):
        """Take one step with both networks; returns their losses, a list for each network.

        With same_time, the network with BatchNorm takes one step, and the other as many as fit into
        the same seconds of training.
        """
        by_time = self.settings["same_time"] and self.steps >= FIRST
        alive = [net for net in self.nets if not net.dead]
        losses = {net: [net.step(look)] for net in alive if net is alive[0] or not by_time}
        if by_time and len(alive) == 2:
            first, second = alive
            losses[second] = []
            while second.seconds < first.seconds and not second.dead:
                losses[second].append(second.step(look))
        return [losses.get(net, []) for net in self.nets]

    def snapshot(self):
        """All that the page shows, ready for JSON; None for what is not finite."""
        return {
            "run": self.runs,
            "settings": self.settings,
            "marks": self.marks,
            "nets": [{"name": name, "step": net.steps, "dead": net.dead, **plain(net.inside),
                      "points": plain(net.points)} for name, net in zip(NAMES, self.nets)],
        }


def plain(values):
    """The same values with four digits to a number, and None for what is not finite."""
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, list):
        return [plain(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.4g}") if math.isfinite(values) else None
    return values
