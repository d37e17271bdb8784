"""Fair comparisons: the same seeds, initial weights and batches for every network, one table.

    result = compare({"BatchNorm": with_bn, "no BatchNorm": without}, data.load("digits"),
                     lr=0.5, steps=1000)
    plotting.compare(result)

A builder is a function of a seed that returns a Sequential; networks that differ only in BatchNorm
then have the same Dense weights and see the same batches in the same order.

To choose a learning rate, or anything else, pass `data.split(x_train, y_train)` as the data: the
accuracies are then those of images held out of the training set, and the test set stays unseen.
`best` picks the rate from the scores, `paired_difference` tells a gain from chance.
"""

import inspect
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from time import perf_counter

import numpy as np

from .. import checks, training
from ..batching import stream
from ..checks import binding
from ..console import table
from ..data import find, load
from ..files import write_csv
from ..habits import unknown
from ..module import Module
from ..optim import SGD, Optimizer
from ..settings import check_whole, is_number, is_whole
from . import identity
from .choosing import PairedDifference, best, paired_difference
from .sweeps import processes, sweep

__all__ = ["Comparison", "DataByName", "LearningRateRange", "PairedDifference", "Run", "best",
           "compare", "lr_range", "or_more", "paired_difference", "processes", "run", "sweep",
           "train_one"]


@dataclass
class Run:
    """One network's training.

    Arrays over steps: `losses` (training mode, before each step; NaN once diverged). Arrays over
    `eval_steps`: `accuracy` (test set, evaluation mode) and `seconds` (training time so far).
    """

    losses: np.ndarray
    eval_steps: np.ndarray
    accuracy: np.ndarray
    seconds: np.ndarray
    diverged_at: int | None = None  # the step whose loss was no longer finite

    def steps_to(self, target):
        """The first measured step with at least the target accuracy, in (0, 1]; inf if none."""
        return self._first(self.eval_steps, target)

    def seconds_to(self, target):
        """The training time until `steps_to(target)`, in seconds; inf if it was not reached."""
        return self._first(self.seconds, target)

    def _first(self, values, target):
        if not is_number(target) or not 0 < target <= 1:
            raise ValueError("a target is a share of right answers, above 0 and at most 1 (0.85 "
                             f"for 85 %), got {target!r}")
        if not len(self.eval_steps):
            raise ValueError("no accuracy was measured in this run: give eval_steps, the steps "
                             "after which to measure it")
        reached = self.accuracy >= target
        return float(values[reached.argmax()]) if reached.any() else np.inf

    def final_loss(self, last=20):
        """Mean loss of the last steps, or of all if there are fewer; inf if the run diverged."""
        check_whole("last", last, 1)
        return np.inf if self.diverged_at is not None else float(self.losses[-last:].mean())


def run(model, data, *, optimizer, steps, batch_size=32, eval_steps=()):
    """Train a Module for a number of steps; returns a Run. A divergence ends only the run.

    A model that has been trained continues from where it is. data: ((x_train, y_train), (x_test,
    y_test)), as `data.load` returns it. eval_steps: after which steps to measure the test accuracy,
    0 for before the first; those beyond the last step cannot be measured, and a line on stderr says
    so. Raises ValueError and TypeError before any work.
    """
    check_whole("steps", steps, 1)
    check_whole("batch_size", batch_size, 1)
    _check_model(model, "run")
    if not isinstance(optimizer, Optimizer):
        raise TypeError("run needs an optimizer, such as optimizer=optim.SGD(lr=0.1), got "
                        f"{optimizer!r}")
    (x, y), test_data = _checked_data(data)
    eval_steps = np.array(_within(eval_steps, steps), int)
    loss = training.LOSSES["cross_entropy"]
    x, y, example = checks.checked(model, x, y, loss, differentiable=True)
    binding.check(model)
    binding.bind(optimizer, model, loss)
    losses, seconds, diverged_at = np.full(steps, np.nan), np.full(steps + 1, np.nan), None
    accuracy = {}

    def measure(done):
        if done in eval_steps:
            outputs = training.predict(model, test_data[0], batch_size=1000)
            accuracy[done] = training.accuracy(outputs, test_data[1])

    model.train()
    seconds[0] = 0.0
    measure(0)
    # a Module without one keeps the order of the samples
    shuffle = getattr(model, "shuffle_rng", None)
    for i, (xb, yb) in zip(range(steps), stream(x, y, batch_size, shuffle)):
        began = perf_counter()
        try:
            xb = xb.astype(example.dtype, copy=False)
            losses[i] = training.step(model, loss, optimizer, xb, yb)
        except training.DivergenceError:
            diverged_at = i
            break
        seconds[i + 1] = seconds[i] + perf_counter() - began
        measure(i + 1)
    accuracy = np.array([accuracy.get(done, np.nan) for done in eval_steps], float)
    return Run(losses, eval_steps, accuracy, seconds[eval_steps], diverged_at)


class Comparison:
    """The runs of several networks over the same seeds: `runs[name]` is a list, a Run per seed."""

    def __init__(self, runs, seeds):
        self.runs = runs
        self.seeds = list(seeds)

    def __repr__(self):
        names = ", ".join(map(repr, self.runs))
        return (f"<Comparison of {names} with seeds {self.seeds}; .table(0.85), "
                ".array(name, 'accuracy'), plotting.compare(it)>")

    def __getattr__(self, name):
        array = f"array(name, {name!r}) has it of one network, as an array (seeds, steps)"
        raise unknown("a Comparison", name, {
            "losses": array, "accuracy": array, "seconds": array, "eval_steps": array,
            "history": "runs[name] is a list of Run, one per seed",
            "plot": "plotting.compare(result) draws it",
            "summary": "table(target=0.85) is a text", "best": "table(target=0.85) has medians"})

    def array(self, name, what):
        """`losses`, `accuracy`, `seconds` or `eval_steps` of one network: (seeds, steps)."""
        if what not in ("losses", "accuracy", "seconds", "eval_steps"):
            raise ValueError("a comparison has arrays of losses, accuracy, seconds and eval_steps, "
                             f"not of {what!r}")
        return np.array([getattr(r, what) for r in self._of(name)])

    def _of(self, name):
        if name not in self.runs:
            raise ValueError(f"no network {name!r} was compared, only "
                             f"{', '.join(map(repr, self.runs))}")
        return self.runs[name]

    def steps_to(self, name, target):
        """Steps until the target accuracy, one per seed; inf where it was not reached."""
        return np.array([r.steps_to(target) for r in self._of(name)])

    def seconds_to(self, name, target):
        """Seconds of training until the target accuracy, one per seed; inf if not reached."""
        return np.array([r.seconds_to(target) for r in self._of(name)])

    def accuracy_at(self, name, step):
        """Test accuracy after a step that was measured, one per seed."""
        place = np.flatnonzero(self._of(name)[0].eval_steps == step)
        if not len(place):
            raise ValueError(f"accuracy was not measured at step {step}; measured were "
                             f"{self.runs[name][0].eval_steps}")
        return self.array(name, "accuracy")[:, place[0]]

    def to_csv(self, path):
        """Write accuracy and seconds so far, one line for each network, seed and step."""
        write_csv(
            path,
            ["network", "seed", "step", "accuracy", "seconds"],
            [
                (name, seed, *row)
                for name, runs in self.runs.items()
                for seed, r in zip(self.seeds, runs)
                for row in zip(r.eval_steps, r.accuracy, r.seconds)
            ],
        )

    def table(self, target, at=()):
        """A text table of medians over seeds: accuracy at some steps, then the target.

        The last columns are steps and seconds to the target, and milliseconds per step.
        """
        if not hasattr(at, "__iter__"):
            raise TypeError(f"at is a list of steps, at=[{at}], got {at!r}")
        # a heading of two lines, so that five steps fit a terminal of 80 columns
        rows = [["", *("step" for _ in at), "steps to", "seconds", "ms per"],
                ["", *map(str, at), f"{target:.0%}", "to it", "step"]]
        for name, runs in self.runs.items():
            seconds, steps = self.array(name, "seconds"), runs[0].eval_steps
            alive = np.isfinite(seconds[:, 1:])
            per_step = 1000 * (seconds[:, 1:] / steps[1:])[alive]
            # NaN: half of the runs had diverged by then
            accuracies = [np.median(self.accuracy_at(name, s)) for s in at]
            rows.append([name, *("diverged" if np.isnan(a) else f"{a:.3f}" for a in accuracies),
                         or_more(np.median(self.steps_to(name, target)), steps[-1], ".0f"),
                         or_more(np.median(self.seconds_to(name, target)),
                                 np.nanmax(seconds, initial=0), ".2f"),
                         f"{np.median(per_step):.2f}" if per_step.size else "-"])
        return "\n".join(table(rows))


def or_more(value, limit, spec):
    """value as text, or "> limit" where it is inf: not reached within the limit."""
    return f"{value:{spec}}" if np.isfinite(value) else f"> {limit:{spec}}"


def compare(builders, data, *, lr, steps, batch_size=32, seeds=(0, 1, 2), eval_steps=None,
            executor=None, cache=None):
    """Train every network with SGD, once per seed; returns a Comparison.

    >>> from minidl import Dense, Sequential, data
    >>> def network(seed):
    ...     return Sequential([Dense(3)], seed=seed)
    >>> result = compare({"linear": network}, data.load("spiral"), lr=0.1, steps=20, seeds=[0, 1])
    >>> result.array("linear", "losses").shape
    (2, 20)

    builders: name -> function of a seed that returns a network. data: ((x_train, y_train), (x_test,
    y_test)), or the name of a data set: then each worker of an executor loads it once, instead of
    receiving 30 megabytes with every job. executor, cache: as in `sweep`. eval_steps: after which
    steps to measure the test accuracy; about 50, evenly spaced, if left out. Raises ValueError and
    TypeError before any work; also for a builder that ignores its seed.
    """
    seeds, settings = _settings(builders, data, steps, batch_size, seeds)
    _check_rate(lr)
    if eval_steps is None:
        eval_steps = [*range(0, steps, max(1, steps // 50)), steps]
    eval_steps = _within(eval_steps, steps)
    jobs = [dict(builder=builder, seed=seed, lr=lr, eval_steps=eval_steps, **settings)
            for builder in builders.values() for seed in seeds]
    runs = [Run(**result) for result in sweep(jobs, train_one, executor, cache).results]
    return Comparison(
        {name: runs[i * len(seeds) : (i + 1) * len(seeds)] for i, name in enumerate(builders)},
        seeds,
    )


def train_one(builder, seed, data, lr, steps, batch_size, eval_steps=()):
    """The job of a comparison: build a network and train it; returns a Run's fields as a dict.

    data: as in `compare`, or a DataByName.
    """
    if isinstance(data, str | DataByName):
        data = load(data) if isinstance(data, str) else _load_once(data)
    result = run(builder(seed), data, optimizer=SGD(lr=lr), steps=steps, batch_size=batch_size,
                 eval_steps=eval_steps)
    return {name: value for name, value in vars(result).items() if value is not None}


@dataclass(frozen=True)
class DataByName:
    """A data set that a worker loads by itself, with the checksum of what was found here."""

    name: str
    checksum: str


@lru_cache(maxsize=1)
def _load_once(data):
    loaded = load(data.name)
    if identity.of_data(data.name) != data.checksum:
        raise ValueError(f"this worker finds other images under the name {data.name!r} than the "
                         "process that started the sweep: give both the same MINIDL_DATA, and "
                         "start the workers after it was set")
    return loaded


def _settings(builders, data, steps, batch_size, seeds):
    """The seeds as a list, and the settings that all jobs of a comparison have, checked."""
    check_whole("steps", steps, 1)
    check_whole("batch_size", batch_size, 1)
    seeds = _distinct("seeds", seeds, "range(3)")
    if negative := [seed for seed in seeds if is_whole(seed) and seed < 0]:
        raise ValueError(f"a seed is a whole number, 0 or more, got {negative[0]!r}")
    if isinstance(data, str):
        if find(data)[0] is None:
            load(data)  # downloads it
        data = DataByName(data, identity.of_data(data))
    else:
        data = _checked_data(data)
    _check_builders(builders, seeds)
    return seeds, dict(data=data, steps=steps, batch_size=batch_size)


def _check_builders(builders, seeds):
    """Build some of the networks: is each a new one, from its seed and from nothing else?"""
    if not isinstance(builders, dict) or not builders:
        raise TypeError("builders is a dict of functions of a seed, "
                        '{"BatchNorm": with_bn, "none": without}, and not empty, got '
                        f"{builders!r}")
    for name, builder in builders.items():
        try:
            inspect.signature(builder).bind(seeds[0])
        except (TypeError, ValueError) as error:
            raise TypeError(f"builder {name!r} must be a function of a seed that returns a new "
                            f"network, got {builder!r}: {error}") from None
        models = [builder(seed) for seed in (seeds[0], *seeds[:2])]
        for model in models:
            _check_model(model, f"builder {name!r}")
        if len({id(model) for model in models}) < len(models):
            raise ValueError(f"builder {name!r} returns the same network each time, which would "
                             "then be trained on and on: make a new one in the builder")
        if any(getattr(model, "shuffle_rng", None) is None for model in models):
            continue  # a Module of the user's that keeps the order of the samples
        first, again, *other = (model.shuffle_rng.bit_generator.state for model in models)
        if first != again:
            raise ValueError(f"builder {name!r} returns different networks for the seed "
                             f"{seeds[0]!r}: let all randomness come from the seed, "
                             "Sequential([...], seed=seed)")
        if other and first == other[0]:
            raise ValueError(f"builder {name!r} ignores its seed: the networks of all seeds would "
                             "be the same, write Sequential([...], seed=seed)")


def _check_model(model, what):
    if not isinstance(model, Module):
        raise TypeError(f"{what} needs a network, a Sequential or another Module, got {model!r}")


def _checked_data(data):
    """The data, if they are two pairs of equally many images and labels."""
    try:
        (x, y), (x_test, y_test) = data
        fits = len(x) == len(y) > 0 and len(x_test) == len(y_test) > 0
        found = (f"{len(x)} images and {len(y)} labels to train, "
                 f"{len(x_test)} and {len(y_test)} to test")
    except (TypeError, ValueError):
        fits, found = False, type(data).__name__
    if not fits:
        raise ValueError("data must be ((x_train, y_train), (x_test, y_test)), as data.load "
                         "returns them, with as many labels as images and at least one of each, "
                         f"got {found}")
    return data


def _check_rate(lr):
    if not callable(lr) and not (is_number(lr) and 0 < lr < math.inf):
        raise ValueError("a learning rate must be a finite number above 0, or a schedule, got "
                         f"{lr!r}")


def _distinct(name, values, example):
    """The values as a list of at least one, none of them twice."""
    if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a list, such as {example}, got {values!r}")
    values = list(values)
    if not values or len(set(values)) < len(values):
        raise ValueError(f"{name} must be a list of at least one value, none of them twice, such "
                         f"as {example}, got {values}")
    return values


def _within(eval_steps, steps):
    """The steps to measure at, in order; says which of them the run does not reach."""
    if isinstance(eval_steps, str | bytes) or not hasattr(eval_steps, "__iter__"):
        raise TypeError(f"eval_steps must be a list of steps, such as range(0, {steps + 1}, 10), "
                        f"got {eval_steps!r}")
    eval_steps = list(eval_steps)
    for step in eval_steps:
        check_whole("each of eval_steps", step, 0)
    if beyond := sorted({int(step) for step in eval_steps if step > steps}):
        print(f"eval_steps {', '.join(map(str, beyond))}: not measured, the run ends after step "
              f"{steps}", file=sys.stderr)
    return sorted({int(step) for step in eval_steps if step <= steps})


@dataclass(repr=False)
class LearningRateRange:
    """Final losses by rate: `losses[name]` has shape (seeds, rates), inf where a run diverged."""

    rates: np.ndarray
    losses: dict

    def __repr__(self):
        names = ", ".join(map(repr, self.losses))
        return (f"<LearningRateRange of {names} at {len(self.rates)} rates from {self.rates[0]:g} "
                f"to {self.rates[-1]:g}; .losses[name], .largest(name, below=1.0), "
                "plotting.lr_range(it)>")

    def largest(self, name, below):
        """The largest rate whose final loss is below a bound, one per seed; 0 if there is none."""
        if name not in self.losses:
            raise ValueError(f"no network {name!r} was trained, only "
                             f"{', '.join(map(repr, self.losses))}")
        if not is_number(below) or math.isnan(below):
            raise ValueError("below must be a number, the loss under which a rate counts as "
                             f"working, got {below!r}")
        return np.array([self.rates[row < below].max(initial=0) for row in self.losses[name]])

    def to_csv(self, path):
        """Write one line for each network, seed (by its number) and rate."""
        write_csv(
            path,
            ["network", "seed", "learning rate", "final loss"],
            [
                (name, seed, rate, loss)
                for name, table in self.losses.items()
                for seed, row in enumerate(table)
                for rate, loss in zip(self.rates, row)
            ],
        )


def lr_range(
    builders, data, rates, *, steps, batch_size=32, seeds=(0, 1), last=20, executor=None, cache=None
):
    """Train every network at every rate; returns the mean loss of the last steps.

    Returns a LearningRateRange. rates: in rising order. last: how many steps, all if the run is
    shorter. builders, data, executor, cache: as in `compare`, and so are the errors.
    """
    rates = _distinct("rates", rates, "[0.01, 0.1, 1.0]")
    for lr in rates:
        _check_rate(lr)
    if any(map(callable, rates)) or rates != sorted(rates):
        raise ValueError("rates must be numbers in rising order, since result.losses has one "
                         f"column for each: sorted(rates); got {rates}")
    check_whole("last", last, 1)
    seeds, settings = _settings(builders, data, steps, batch_size, seeds)
    jobs = [dict(builder=builder, seed=seed, lr=float(lr), **settings)
            for builder, seed, lr in product(builders.values(), seeds, rates)]
    losses = [
        Run(**result).final_loss(last) for result in sweep(jobs, train_one, executor, cache).results
    ]
    table = np.array(losses).reshape(len(builders), len(seeds), len(rates))
    return LearningRateRange(np.array(rates, float), dict(zip(builders, table)))
