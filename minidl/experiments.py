"""Fair comparisons: the same seeds, initial weights and batches for every network, several seeds, one table.

    result = compare({"BatchNorm": with_bn, "no BatchNorm": without}, data.load("digits"), lr=0.5, steps=1000)
    plotting.compare(result)

A builder is a function of a seed that gives a Sequential; networks that differ in BatchNorm only then have
the same Dense weights and see the same batches in the same order.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np

from . import training
from .callbacks import Callback
from .data import load
from .files import write_csv
from .health import failures_expected
from .optim import SGD
from .progress import table
from .sweeps import processes, sweep  # noqa: F401


@dataclass
class Run:
    """One network's training. Arrays over steps: `losses` (training mode, before each step; NaN once diverged).
    Arrays over `eval_steps`: `accuracy` (test set, evaluation mode) and `seconds` (training time so far)."""

    losses: np.ndarray
    eval_steps: np.ndarray
    accuracy: np.ndarray
    seconds: np.ndarray
    diverged_at: int | None = None  # the step whose loss was no longer finite

    def steps_to(self, target):
        """The first measured step with a test accuracy of at least target; inf if there is none."""
        return self._first(self.eval_steps, target)

    def seconds_to(self, target):
        """The training time until `steps_to(target)`, in seconds; inf if it was not reached."""
        return self._first(self.seconds, target)

    def _first(self, values, target):
        reached = self.accuracy >= target
        return float(values[reached.argmax()]) if reached.any() else np.inf

    def final_loss(self, last=20):
        """Mean loss of the last steps; inf if the run diverged."""
        return np.inf if self.diverged_at is not None else float(self.losses[-last:].mean())


class _Recorder(Callback):
    """Measures test accuracy after given steps (0: before the first) and ends the run after the last step."""

    def __init__(self, test_data, eval_steps, steps):
        self.test_data, self.eval_steps, self.steps = test_data, set(eval_steps), steps
        self.done, self.accuracy = 0, []

    def on_train_begin(self, logs=None):
        self._measure()

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        self._measure()
        self.model.stop_training = self.done == self.steps

    def _measure(self):
        if self.done in self.eval_steps:
            x, y = self.test_data
            self.accuracy.append(training.accuracy(training.predict(self.model, x, batch_size=1000), y))


def run(model, data, *, optimizer, steps, batch_size=32, eval_steps=()):
    """Train a model for a number of steps and record it as a Run; a divergence ends the run, not the program.

    data: ((x_train, y_train), (x_test, y_test)), as `data.load` gives it. eval_steps: after which steps to
    measure the test accuracy.
    """
    (x, y), test_data = data
    eval_steps = np.array(sorted({int(s) for s in eval_steps if 0 <= s <= steps}), int)
    recorder = _Recorder(test_data, eval_steps.tolist(), steps)
    diverged_at = None
    try:
        with failures_expected():  # in a comparison, a network that learns nothing is a result
            history = training.fit(model, x, y, loss="cross_entropy", optimizer=optimizer, batch_size=batch_size, epochs=steps,
                                   callbacks=[recorder], rng=model.shuffle_rng, verbose=0)
    except training.DivergenceError as error:
        history, diverged_at = error.history, error.step
    losses = np.full(steps, np.nan)
    losses[:len(history.steps["loss"])] = history.steps["loss"]
    seconds = np.full(steps + 1, np.nan)
    seconds[:len(history.steps["seconds"]) + 1] = [0.0, *history.steps["seconds"]]
    accuracy = np.full(len(eval_steps), np.nan)
    accuracy[:len(recorder.accuracy)] = recorder.accuracy
    return Run(losses, eval_steps, accuracy, seconds[eval_steps], diverged_at)


class Comparison:
    """The runs of several networks over the same seeds: `runs[name]` is a list of Run, one per seed."""

    def __init__(self, runs, seeds):
        self.runs, self.seeds = runs, list(seeds)

    def array(self, name, what):
        """`losses`, `accuracy`, `seconds` or `eval_steps` of one network as an array (seeds, steps)."""
        return np.array([getattr(r, what) for r in self.runs[name]])

    def steps_to(self, name, target):
        """Steps until the target accuracy, one per seed; inf where it was not reached."""
        return np.array([r.steps_to(target) for r in self.runs[name]])

    def seconds_to(self, name, target):
        """Seconds of training until the target accuracy, one per seed; inf where it was not reached."""
        return np.array([r.seconds_to(target) for r in self.runs[name]])

    def accuracy_at(self, name, step):
        """Test accuracy after a step that was measured, one per seed."""
        place = np.flatnonzero(self.runs[name][0].eval_steps == step)
        if not len(place):
            raise ValueError(f"accuracy was not measured at step {step}; measured were {self.runs[name][0].eval_steps}")
        return self.array(name, "accuracy")[:, place[0]]

    def to_csv(self, path):
        """One line for each network, seed and measured step: the test accuracy and the seconds of training so far."""
        write_csv(path, ["network", "seed", "step", "accuracy", "seconds"],
                  [(name, seed, *row) for name, runs in self.runs.items() for seed, r in zip(self.seeds, runs)
                   for row in zip(r.eval_steps, r.accuracy, r.seconds)])

    def table(self, target, at=()):
        """A text table: median over seeds of the accuracy at some steps, and of steps and seconds to the target."""
        head = ["", *(f"step {s}" for s in at), f"steps to {target:.0%}", "seconds to it", "ms per step"]
        rows = [head]
        for name, runs in self.runs.items():
            seconds, steps = self.array(name, "seconds"), runs[0].eval_steps
            alive = np.isfinite(seconds[:, 1:])
            accuracies = [np.median(self.accuracy_at(name, s)) for s in at]  # NaN: half of the runs had diverged by then
            rows.append([name, *("diverged" if np.isnan(a) else f"{a:.3f}" for a in accuracies),
                         or_more(np.median(self.steps_to(name, target)), steps[-1], ".0f"),
                         or_more(np.median(self.seconds_to(name, target)), np.nanmax(seconds, initial=0), ".2f"),
                         f"{1000 * np.median((seconds[:, 1:] / steps[1:])[alive]):.2f}" if alive.any() else "-"])
        return "\n".join(table(rows))


def or_more(value, limit, spec):
    """value as text, or "> limit" where it is inf: not reached within the limit."""
    return f"{value:{spec}}" if np.isfinite(value) else f"> {limit:{spec}}"


def compare(builders, data, *, lr, steps, batch_size=32, seeds=(0, 1, 2), eval_steps=None, executor=None, cache=None):
    """Train every network of builders (name -> function of a seed) with SGD, once per seed; gives a Comparison.

    data: ((x_train, y_train), (x_test, y_test)), or the name of a data set: then each worker of an executor loads
    it once, instead of getting 30 megabytes with every job. executor, cache: as in `sweep`.
    eval_steps: after which steps to measure the test accuracy; about 50, evenly spaced, if left out.
    """
    seeds = list(seeds)
    eval_steps = [*range(0, steps, max(1, steps // 50)), steps] if eval_steps is None else eval_steps
    settings = dict(data=data, lr=lr, steps=steps, batch_size=batch_size, eval_steps=list(eval_steps))
    jobs = [dict(builder=builder, seed=seed, **settings) for builder in builders.values() for seed in seeds]
    runs = [Run(**result) for result in sweep(jobs, train_one, executor, cache).results]
    return Comparison({name: runs[i * len(seeds):(i + 1) * len(seeds)] for i, name in enumerate(builders)}, seeds)


def train_one(builder, seed, data, lr, steps, batch_size, eval_steps=()):
    """The job of a comparison: build a network from a seed and train it with SGD; gives the fields of a Run as a dict.

    data: as in `compare`.
    """
    result = run(builder(seed), _load_once(data) if isinstance(data, str) else data, optimizer=SGD(lr=lr), steps=steps,
                 batch_size=batch_size, eval_steps=eval_steps)
    return {name: value for name, value in vars(result).items() if value is not None}


_load_once = lru_cache(maxsize=1)(load)


@dataclass
class LearningRateRange:
    """Final losses by learning rate: `losses[name]` has shape (seeds, rates), inf where the run diverged."""

    rates: np.ndarray
    losses: dict

    def largest(self, name, below):
        """The largest rate whose final loss is below a bound, one per seed; 0 if there is none."""
        return np.array([self.rates[row < below].max(initial=0) for row in self.losses[name]])

    def to_csv(self, path):
        """One line for each network, seed (by its number) and rate."""
        write_csv(path, ["network", "seed", "learning rate", "final loss"],
                  [(name, seed, rate, loss) for name, table in self.losses.items() for seed, row in enumerate(table)
                   for rate, loss in zip(self.rates, row)])


def lr_range(builders, data, rates, *, steps, batch_size=32, seeds=(0, 1), last=20, executor=None, cache=None):
    """Train every network at every learning rate; gives the mean loss of the last steps as a LearningRateRange.

    builders, data, executor, cache: as in `compare`.
    """
    rates, seeds = list(rates), list(seeds)
    settings = dict(data=data, steps=steps, batch_size=batch_size)
    jobs = [dict(builder=builder, seed=seed, lr=float(lr), **settings)
            for builder, seed, lr in product(builders.values(), seeds, rates)]
    losses = [Run(**result).final_loss(last) for result in sweep(jobs, train_one, executor, cache).results]
    table = np.array(losses).reshape(len(builders), len(seeds), len(rates))
    return LearningRateRange(np.array(rates, float), dict(zip(builders, table)))
