"""What a run records, and what can be done between its steps: the History, and callbacks to stop, save and change the rate."""

import dis
import inspect
import math
import re
from contextlib import contextmanager
from pathlib import Path
from string import Formatter

import numpy as np

from .files import checked_suffix, clean, shapes, write_csv
from .habits import unknown
from .plotting import LOOKS, figure, legend
from .progress import format_number, table
from .settings import as_flag, is_number, is_whole

# Parts of a number's name that tell which way is better, whatever else stands in it: val_top5_accuracy, cross_entropy_loss.
SMALLER = {"loss", "error", "errors", "mse", "mae", "rmse", "msle", "mape", "mad", "crossentropy", "entropy", "perplexity",
           "divergence", "seconds"}
LARGER = {"accuracy", "acc", "auc", "precision", "recall", "sensitivity", "specificity", "f1", "iou", "dice", "r2", "map"}


class History:
    """What a run recorded, also one that was interrupted: `fit` returns it, and `model.history` is that of the latest fit.

    history: one number per epoch for `loss` and each metric, measured in *training* mode while the
    weights moved, averaged over samples; with validation data also `val_loss` and `val_...`, measured in
    *evaluation* mode after the epoch. epoch: the epoch numbers. steps: one number per step for `loss`, each
    metric, and `seconds`, the training time so far (callbacks, validation and progress not counted).
    history["loss"] is short for history.history["loss"]; print(history) shows a table, a row per epoch.
    """

    callbacks = ()  # those at work, while the run lasts
    states = {}  # and afterwards what they asked to keep: see callback_states
    resumed = False  # whether this stands for the run of a checkpoint, until a fit goes on with it

    def __init__(self, earlier=None):
        """earlier: the History that load_checkpoint left, if this run goes on with it."""
        self.history, self.epoch, self.steps = {}, [], {"loss": [], "seconds": []}
        if isinstance(earlier, History) and earlier.resumed:
            self.states, self.resumed = earlier.states, True

    def callback_states(self):
        """{"EarlyStopping.best": 0.5, ...}: what the callbacks ask a checkpoint to keep."""
        if not self.callbacks:
            return self.states
        return {f"{name}.{key}": value for name, callback in _by_name(self.callbacks).items()
                for key, value in callback.state_dict().items()}

    @contextmanager
    def keeping(self, callbacks):
        """Inside the block callback_states() asks these callbacks, afterwards it has their answer.

        If this run goes on with that of a checkpoint, the callbacks first take over the states that
        they had there.
        """
        for name, callback in _by_name(callbacks).items() if self.resumed else ():
            state = {key.removeprefix(f"{name}."): value for key, value in self.states.items()
                     if key.startswith(f"{name}.")}
            try:
                if state:
                    callback.load_state_dict(state)
            except (ValueError, TypeError, KeyError, OverflowError) as error:
                raise ValueError(f"the checkpoint's state of {name} does not fit this callback: "
                                 f"{type(error).__name__}: {clean(error)}") from error
        self.resumed = False
        self.callbacks = callbacks
        try:
            yield
        finally:
            # Not the callbacks: they know the model, which knows this; circles keep memory.
            self.states, self.callbacks = self.callback_states(), ()

    def __getstate__(self):
        """Copies go without the states of callbacks, which may hold all weights."""
        without = ("callbacks",) if self.resumed else ("callbacks", "states")
        return {key: value for key, value in vars(self).items() if key not in without}

    def __getitem__(self, name):
        if name not in self.history:
            steps = f"; steps[{name!r}] has a number for each step" if name in self.steps else ""
            raise KeyError(f"this run has no {name!r} by epoch; it has {', '.join(self.history) or 'no finished epoch'}{steps}")
        return self.history[name]

    def __iter__(self):
        """The names, as those of a dict: `"val_loss" in history`."""
        return iter(self.history)

    def __getattr__(self, name):
        word = f'the names are in history.history, a dict: write history.history.{name}()'
        number = f'write history["{name}"], one number per epoch, or history.steps["{name}"], one per step'
        words = dict.fromkeys(("keys", "values", "items", "get"), word)
        raise unknown("a History", name, words | dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), number))

    def __repr__(self):
        steps = len(self.steps["loss"])
        if not self.epoch:
            return f"History: no epoch finished, {steps} steps"
        rows = [[str(epoch + 1), *map(format_number, numbers)] for epoch, *numbers in zip(self.epoch, *self.history.values())]
        return "\n".join(table([["epoch", *self.history], *rows], left=0))

    def add_step(self, logs, seconds):
        """Append the numbers of one step and the training time it took."""
        so_far = self.steps["seconds"][-1] if self.steps["seconds"] else 0.0
        for key, value in {**logs, "seconds": so_far + seconds}.items():
            self.steps.setdefault(key, []).append(value)

    def add_epoch(self, epoch, logs):
        """Append the numbers of one epoch."""
        self.epoch.append(epoch)
        for key, value in logs.items():
            self.history.setdefault(key, []).append(value)

    def to_csv(self, path, steps=False):
        """Write a table with a header: a row per epoch, or with steps=True a row per step; both count from 0."""
        table = {"step": range(len(self.steps["loss"])), **self.steps} if steps else {"epoch": self.epoch, **self.history}
        write_csv(path, table, zip(*table.values()))

    def plot(self):
        """Draw loss and metrics of each epoch, training solid, validation dashed; gives the figure, for `plotting.show`."""
        if not self.epoch:
            raise ValueError("no epoch was finished, so there is nothing to plot; steps['loss'] holds the loss of every step")
        names = [name for name in self.history if not name.startswith("val_")]
        epochs = [epoch + 1 for epoch in self.epoch]
        fig, axes = figure(columns=len(names), squeeze=False)
        for name, ax in zip(names, axes[0]):
            curves = (name, "training (training mode)"), ("val_" + name, "validation (evaluation mode)")
            for (key, label), (color, line) in zip(curves, LOOKS):
                if key in self.history:
                    ax.plot(epochs, self.history[key], color=color, linestyle=line, linewidth=3, marker="o", label=label)
            ax.set(xlabel="epoch", ylabel=name, xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
            ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        legend(axes[0, 0])
        return fig


class Callback:
    """Something to do during training: override any of these methods.

    Before it begins, fit sets `self.model`, `self.optimizer`, and `self.measured`: the names of the numbers in the logs of
    an epoch, or None when a callback before this one may add more. Setting `self.model.stop_training = True` ends the
    run after the current step, or at once before an epoch. An exception ends it at once.
    """

    model = optimizer = measured = None

    def _misplaced(self, *value):
        raise AttributeError("stop_training belongs to the model: self.model.stop_training = True ends the run")

    stop_training = property(_misplaced, _misplaced)

    def on_train_begin(self, logs=None):
        """Before the first epoch. A callback that counts starts anew here, so that it can be used again."""

    def on_train_end(self, logs=None):
        """After the last epoch, but not after an exception; logs are those of that epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        """Before an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """After an epoch; logs has its loss and metrics."""

    def on_train_batch_begin(self, batch, logs=None):
        """Before a step; batch counts from 0 in each epoch."""

    def on_train_batch_end(self, batch, logs=None):
        """After a step; logs has the loss and metrics of this batch."""

    def state_dict(self):
        """{name: number or array} for a checkpoint, so that a run can go on as if never stopped."""
        return {}

    def load_state_dict(self, state):
        """Take over such a dict, of arrays, after on_train_begin of a run that goes on.

        Raise ValueError for what does not fit.
        """


def _by_name(callbacks):
    """{name: callback}, named after their classes, the second EarlyStopping EarlyStopping_1."""
    names = [type(callback).__name__ for callback in callbacks]
    numbers = [names[:i].count(name) for i, name in enumerate(names)]
    names = [f"{name}_{n}" if n else name for name, n in zip(names, numbers)]
    return dict(zip(names, callbacks))


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


def check_callbacks(callbacks):
    """The callbacks as a list; TypeError for what is none, and for methods that fit would never call, or could not."""
    callbacks = [] if callbacks is None else callbacks
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"callbacks is a list of Callback objects, [EarlyStopping(patience=3)] for example, got {callbacks!r}")
    for callback in callbacks:
        kind = type(callback).__name__
        for name in dir(callback):
            if name not in HOOKS and _looks_like_a_hook(name):
                raise TypeError(f"{kind}.{name} would never be called; fit calls {', '.join(HOOKS)}")
        for name in HOOKS:
            hook, arguments = getattr(callback, name), ({},) if name.startswith("on_train_") and "batch" not in name else (0, {})
            usual = "logs" if len(arguments) == 1 else "batch, logs" if "batch" in name else "epoch, logs"
            if not callable(hook) or inspect.iscoroutinefunction(hook) or inspect.isgeneratorfunction(hook):
                raise TypeError(f"{kind}.{name} must be a plain function or method of ({usual}), got {hook!r}")
            try:
                inspect.signature(hook).bind(*arguments)
            except ValueError:  # some built-in functions do not tell what they take
                pass
            except TypeError:
                raise TypeError(f"{kind}.{name} is called with ({usual}), but takes {inspect.signature(hook)}") from None
    return list(callbacks)


def _looks_like_a_hook(name):
    """on_batch_end, on_epochs_end, on_test_begin, onEpochEnd, epoch_end; but on_improvement may be a method of one's own."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
    if words.startswith("on_"):
        return not name.startswith("_") and re.search("begin|start|end|epoch|batch|step|train|test|predict|valid", words)
    return not name.startswith("_") and "on_" + words in HOOKS


def may_add_numbers(callback):
    """Whether on_epoch_end might write into the logs; not if it never uses the argument that holds them."""
    if type(callback).__module__ == __name__ and not isinstance(callback, LambdaCallback):
        return False
    hook = callback.on_epoch_end
    function, place = (hook.__func__, 2) if inspect.ismethod(hook) else (hook, 1)
    code = getattr(function, "__code__", None)
    if code is None or code.co_argcount <= place:
        return True
    logs = code.co_varnames[place]
    return any(logs == step.argval or isinstance(step.argval, tuple) and logs in step.argval for step in dis.get_instructions(code))


class LambdaCallback(Callback):
    """Functions instead of methods: LambdaCallback(on_epoch_end=lambda epoch, logs: print(logs["loss"]))."""

    def __init__(self, **functions):
        for event, function in functions.items():
            if event not in HOOKS or not callable(function):
                raise TypeError(f"LambdaCallback takes functions named {', '.join(HOOKS)}, got {event}={function!r}")
            setattr(self, event, function)


class LearningRateScheduler(Callback):
    """Sets the learning rate of each epoch: schedule(epoch, lr) returns the new one, from the number of the epoch and the old.

    Raises TypeError at the start of a run whose optimizer has a schedule already, which this would replace.
    """

    def __init__(self, schedule):
        try:
            inspect.signature(schedule).bind(0, 0.1)
        except (TypeError, ValueError):
            raise TypeError(f"LearningRateScheduler takes a function of (epoch, lr) that returns the new rate, got {schedule!r}; "
                            "a schedule of the step goes into the optimizer, SGD(lr=schedule)") from None
        self.schedule = schedule

    def on_train_begin(self, logs=None):
        """Refuse an optimizer that follows a schedule of its own."""
        if callable(self.optimizer.lr):
            raise TypeError(f"LearningRateScheduler would replace the optimizer's schedule, lr={self.optimizer.lr!r}: "
                            "give the optimizer a number, or leave this callback out")

    def on_epoch_begin(self, epoch, logs=None):
        """Ask the schedule. Raises ValueError for what is no learning rate."""
        lr = self.schedule(epoch, self.optimizer.current_lr)
        if not is_number(lr) or not 0 <= lr < math.inf:
            raise ValueError(f"the schedule must return a learning rate, a number from 0 up, but gave {lr!r} for epoch {epoch}")
        self.optimizer.lr = float(lr)


def _direction(monitor):
    """-1 where larger is better, 1 where smaller is, by the parts of the name; None if they do not tell."""
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    smaller, larger = words & SMALLER, words & LARGER
    return None if bool(smaller) == bool(larger) else 1 if smaller else -1


class _Monitor(Callback):
    """Watches one number of the logs for a new best one."""

    watches = True  # whether the run must measure `monitor`

    def __init__(self, monitor, mode, min_delta=0.0):
        if not isinstance(monitor, str):
            raise TypeError(f"monitor is the name of a number in the logs, 'val_loss' for example, got {monitor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is 'min', 'max' or 'auto', got {mode!r}")
        if not is_number(min_delta) or not 0 <= min_delta < math.inf:
            raise ValueError(f"min_delta is a number from 0 up, the least change that counts, got {min_delta!r}")
        self.monitor, self.min_delta = monitor, min_delta
        self.sign = {"min": 1, "max": -1}.get(mode) or _direction(monitor)
        if self.watches and self.sign is None:
            raise ValueError(f"{type(self).__name__} cannot tell whether a larger {monitor!r} is better: give mode='max' or "
                             "mode='min'")

    def on_train_begin(self, logs=None):
        """Forget an earlier run. ValueError if this one does not measure `monitor`."""
        self.best = (self.sign or 1) * math.inf
        if self.watches and self.measured is not None:
            self.check_measured(self.measured)

    def check_measured(self, measured):
        """ValueError, saying what to do, if the number is not among those that the run measures."""
        if self.monitor not in measured:
            name = self.monitor.removeprefix("val_")
            hints = []
            if name not in ("loss", *measured):
                hints.append(f"a metric of this name is given to compile, metrics=[{name!r}]")
            if name != self.monitor and not any(other.startswith("val_") for other in measured):
                hints.append("fit needs validation_data or validation_split")
            raise ValueError(f"{type(self).__name__} watches {self.monitor!r}, but this run measures only "
                             f"{', '.join(measured)}" + ": " * bool(hints) + ", and ".join(hints))

    def state_dict(self):
        """The best number until now."""
        return {"best": float(self.best)}

    def load_state_dict(self, state):
        """Compare with the best number of the run before it was interrupted."""
        best = float(state["best"])
        if math.isnan(best):
            raise ValueError("the best number is NaN")
        self.best = best

    def improved(self, logs):
        """Whether this epoch's number is better than all before by more than min_delta; NaN never is."""
        self.check_measured(logs)
        better = self.sign * (self.best - logs[self.monitor]) > self.min_delta
        self.best = logs[self.monitor] if better else self.best
        return better


class EarlyStopping(_Monitor):
    """Ends the run when `monitor` has not improved by more than min_delta for `patience` epochs; restores the best weights.

    mode: "min", "max", or "auto": by the name, min for losses and errors, max for accuracy, auc and the like; ValueError for
    a name that does not tell. restore_best_weights: at the end of any run, stopped or not (Keras' default is False);
    after an exception they are in `best_weights`. `best` and `best_epoch` say what was best. A score that is NaN is never an
    improvement; if no epoch had another, best_epoch is None and the last weights stay.
    """

    def __init__(self, monitor="val_loss", min_delta=0.0, patience=0, mode="auto", restore_best_weights=True):
        super().__init__(monitor, mode, min_delta)
        if not is_whole(patience) or patience < 0:
            raise ValueError(f"patience is a whole number of epochs, at least 0, got {patience!r}")
        self.patience = patience
        self.restore_best_weights = as_flag("restore_best_weights")(restore_best_weights)

    def on_train_begin(self, logs=None):
        """Forget an earlier run."""
        super().on_train_begin()
        self.best_epoch = self.best_weights = self.last_weights = None
        self.wait = 0

    def state_dict(self):
        """The best number with its epoch and weights, and how many epochs ago that was.

        After the run also the weights of its last epoch, if the best were restored: a longer run
        would go on with those.
        """
        state = super().state_dict() | {"wait": self.wait}
        if self.best_epoch is not None:
            state["best_epoch"] = self.best_epoch
        for kind, weights in (("best", self.best_weights), ("last", self.last_weights)):
            state |= {f"{kind}_weights.{name}": array for name, array in (weights or {}).items()}
        return state

    def load_state_dict(self, state):
        """Go on waiting where the run was interrupted.

        ValueError if its best weights are another model's.
        """
        super().load_state_dict(state)
        wait, own, given = int(state["wait"]), self.model.state_dict(), {}
        for kind in ("best", "last"):
            prefix = f"{kind}_weights."
            weights = {name.removeprefix(prefix): array for name, array in state.items()
                       if name.startswith(prefix)}
            given[kind] = weights
            if weights and shapes(weights) != shapes(own):
                raise ValueError(f"its {kind} weights are those of another model")
        if ("best_epoch" in state) != bool(given["best"]) or wait < 0:
            raise ValueError("best_epoch and best_weights belong together, and wait is a number "
                             "of epochs")
        self.wait, self.best_weights = wait, given["best"] or None
        self.best_epoch = int(state["best_epoch"]) if given["best"] else None
        restored = all(np.array_equal(own[name], array) for name, array in given["best"].items())
        if given["last"] and restored:  # else somebody has chosen other weights since
            self.model.load_state_dict(given["last"])

    def on_epoch_end(self, epoch, logs=None):
        """Keep the weights of the best epoch, count the others."""
        self.wait += 1
        if self.improved(logs):
            self.best_epoch, self.best_weights, self.wait = epoch, self.model.state_dict(), 0
        elif self.wait >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Go back to the best epoch."""
        if self.restore_best_weights and self.best_weights is not None:
            self.last_weights = self.model.state_dict() if self.wait else None
            self.model.load_state_dict(self.best_weights)


class ModelCheckpoint(_Monitor):
    """Writes the model's weights to path after every epoch, or with save_best_only after those where `monitor` improved.

    Read them with model.load_weights(path). mode: as in EarlyStopping. As in Keras, the file's name may hold fields, such as
    "epoch{epoch:02d}-{val_loss:.2f}.npz", epochs counted from 1; without them the file is the latest. Braces in the
    names of folders are braces.
    """

    def __init__(self, path, monitor="val_loss", save_best_only=False, mode="auto"):
        self.watches = self.save_best_only = as_flag("save_best_only")(save_best_only)
        super().__init__(monitor, mode)
        self.path = Path(path)

    def on_train_begin(self, logs=None):
        """Forget an earlier run. FileNotFoundError where there is no such folder, ValueError for fields or a suffix amiss."""
        super().on_train_begin()
        names = self.measured or [field for _, field, _, _ in self._pieces() if (field or "").isidentifier()]
        checked_suffix(self.formatted({"epoch": 1, **{name: 0.5 for name in names if name != "epoch"}}))
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"ModelCheckpoint cannot write {self.path}: there is no folder {self.path.parent}")

    def _pieces(self):
        try:
            return list(Formatter().parse(self.path.name))
        except ValueError as error:
            raise ValueError(f"ModelCheckpoint cannot read the name {self.path.name!r}: {error}; a brace itself is written "
                             "{{ or }}") from None

    def formatted(self, values):
        """The path with its fields filled in; ValueError, saying what is known, for one that is not in values."""
        for _, field, _, _ in self._pieces():
            if field is not None and field not in values:
                hint = ": fit needs validation_data or validation_split" if field.startswith("val_") and not any(
                    name.startswith("val_") for name in values) else ""
                raise ValueError(f"ModelCheckpoint's name {self.path.name!r} has the field {{{field}}}, but this run knows only "
                                 f"{', '.join(values)}{hint}")
        try:
            return self.path.with_name(self.path.name.format(**values))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"ModelCheckpoint cannot fill in the name {self.path.name!r}: {error}") from None

    def on_epoch_end(self, epoch, logs=None):
        """Write the file whole or not at all."""
        if not self.save_best_only or self.improved(logs):
            self.model.save_weights(self.formatted({"epoch": epoch + 1, **logs}))
