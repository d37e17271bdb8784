"""What can be done between the steps of a run: stop early, save, change the learning rate."""

import inspect
import math
import re
from pathlib import Path
from string import Formatter

import numpy as np

from .files import checked_suffix, shapes
from .schedules import Schedule
from .settings import as_flag, check_whole, is_number, is_whole
from .training import HOOKS, Callback, History  # noqa: F401  one imports it with them

# Parts of a number's name that tell which way is better, whatever else is in it:
# val_top5_accuracy, cross_entropy_loss.
SMALLER = {"loss", "error", "errors", "mse", "mae", "rmse", "msle", "mape", "mad", "crossentropy",
           "entropy", "perplexity", "divergence", "seconds"}
LARGER = {"accuracy", "acc", "auc", "precision", "recall", "sensitivity", "specificity", "f1",
          "iou", "dice", "r2", "map"}


class LambdaCallback(Callback):
    """Functions instead of methods: LambdaCallback(on_epoch_end=lambda epoch, logs: ...)."""

    def __init__(self, **functions):
        for event, function in functions.items():
            if event not in HOOKS or not callable(function):
                raise TypeError(f"LambdaCallback takes functions named {', '.join(HOOKS)}, got "
                                f"{event}={function!r}")
            setattr(self, event, function)


class _Familiar(Callback):
    """A callback that Keras has too: arguments that do not exist here say what to write."""

    def __new__(cls, *arguments, **options):
        words = {"verbose": "leave it out, print(history) shows all epochs",
                 "save_weights_only": "leave it out, weights are all that is saved",
                 "save_freq": "leave it out, it looks after every epoch"}
        for name in options:
            if name in words:
                raise TypeError(f"{cls.__name__} has no argument {name!r}: {words[name]}")
        return super().__new__(cls)


def _check_number(callback):
    """TypeError for an optimizer that follows a schedule of its own."""
    if callable(callback.optimizer.lr):
        raise TypeError(f"{type(callback).__name__} would replace the optimizer's schedule, "
                        f"lr={callback.optimizer.lr!r}: give the optimizer a number, or leave this "
                        "callback out")


def _note_rate(callback, logs):
    """Put the epoch's learning rate into its logs and the History, as Keras does."""
    run, rate = callback.model.history, callback.optimizer.current_lr
    logs["learning_rate"] = rate
    rates = run.history.setdefault("learning_rate", [])
    if len(rates) < len(run.epoch):  # unless another callback has noted it
        rates.append(rate)


class LearningRateScheduler(_Familiar):
    """Sets the learning rate of each epoch to schedule(epoch, lr), or schedule(epoch).

    lr: the rate until then. The new one is in the logs and the History as "learning_rate". Raises
    TypeError at the start of a run whose optimizer already has a schedule, which this would
    replace.
    """

    def __init__(self, schedule):
        self.schedule = schedule
        self.arguments = 2
        try:
            try:
                inspect.signature(schedule).bind(0, 0.1)
            except TypeError:
                inspect.signature(schedule).bind(0)
                self.arguments = 1
        except (TypeError, ValueError):
            raise TypeError("LearningRateScheduler takes a function of (epoch, lr) or of the epoch "
                            f"that returns the new rate, got {schedule!r}") from None
        if isinstance(schedule, Schedule):
            raise TypeError("LearningRateScheduler takes a function of the epoch, but "
                            f"{schedule!r} is one of the step: give it to the optimizer, "
                            "SGD(lr=schedule)")

    def on_train_begin(self, logs=None):
        """Refuse an optimizer that follows a schedule of its own."""
        _check_number(self)

    def on_epoch_begin(self, epoch, logs=None):
        """Ask the schedule. Raises ValueError for what is no learning rate."""
        lr = self.schedule(*(epoch, self.optimizer.current_lr)[:self.arguments])
        if not is_number(lr) or not 0 <= lr < math.inf:
            raise ValueError("the schedule must return a learning rate, a number from 0 up, but "
                             f"returned {lr!r} for epoch {epoch}")
        self.optimizer.lr = float(lr)

    def on_epoch_end(self, epoch, logs=None):
        """Note the rate."""
        _note_rate(self, logs)


def _direction(monitor):
    """-1 where larger is better, 1 where smaller is, by the parts of the name, or None."""
    words = set(re.split(r"[^a-z0-9]+", monitor.lower()))
    smaller, larger = words & SMALLER, words & LARGER
    return None if bool(smaller) == bool(larger) else 1 if smaller else -1


class _Monitor(_Familiar):
    """Watches one number of the logs for a new best one."""

    watches = True  # whether the run must measure `monitor`

    def __init__(self, monitor, mode, min_delta=0.0):
        if not isinstance(monitor, str):
            raise TypeError("monitor is the name of a number in the logs, 'val_loss' for example, "
                            f"got {monitor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is 'min', 'max' or 'auto', got {mode!r}")
        if not is_number(min_delta) or not 0 <= min_delta < math.inf:
            raise ValueError("min_delta is a number from 0 up, the least change that counts, got "
                             f"{min_delta!r}")
        self.monitor = monitor
        self.min_delta = min_delta
        self.sign = {"min": 1, "max": -1}.get(mode) or _direction(monitor)
        if self.watches and self.sign is None:
            raise ValueError(f"{type(self).__name__} cannot tell whether a larger {monitor!r} is "
                             "better: give mode='max' or mode='min'")

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
            raise ValueError(f"{type(self).__name__} watches {self.monitor!r}, but this run "
                             f"measures only {', '.join(measured)}"
                             + ": " * bool(hints) + ", and ".join(hints))

    def state_dict(self):
        """The best number so far."""
        return {"best": float(self.best)}

    def load_state_dict(self, state):
        """Compare with the best number of the run before it was interrupted."""
        best = float(state["best"])
        if math.isnan(best):
            raise ValueError("the best number is NaN")
        self.best = best

    def improved(self, logs):
        """Whether this epoch beats all before by more than min_delta; NaN never does."""
        self.check_measured(logs)
        better = self.better(logs, self.best)
        self.best = logs[self.monitor] if better else self.best
        return better

    def better(self, logs, than):
        """Whether the number in the logs is better by more than min_delta."""
        return self.sign * (than - logs[self.monitor]) > self.min_delta


class EarlyStopping(_Monitor):
    """Ends the run when `monitor` has not improved for `patience` epochs; keeps the best weights.

    min_delta: an improvement must be larger than this. mode: "min", "max", or "auto": by the name,
    min for losses and errors, max for accuracy, auc and the like; ValueError for a name that does
    not tell. restore_best_weights: restore them at the end of any run, stopped or not (Keras'
    default is False); after an exception they are in `best_weights`. `best` and `best_epoch` hold
    the best number and its epoch. A score of NaN is never an improvement; if no epoch had another,
    best_epoch is None and the last weights stay. baseline: improvements that do not pass this
    number do not reset the patience. start_from_epoch: earlier epochs do not count, nor can they be
    the best.
    """

    def __init__(self, monitor="val_loss", min_delta=0.0, patience=0, mode="auto",
                 restore_best_weights=True, baseline=None, start_from_epoch=0):
        super().__init__(monitor, mode, min_delta)
        if baseline is not None and not is_number(baseline):
            raise ValueError(f"baseline is a number that {monitor} has to pass, got {baseline!r}")
        self.baseline = baseline
        self.start_from_epoch = check_whole("start_from_epoch", start_from_epoch, 0)
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
        would continue from those.
        """
        state = super().state_dict() | {"wait": self.wait}
        if self.best_epoch is not None:
            state["best_epoch"] = self.best_epoch
        for kind, weights in (("best", self.best_weights), ("last", self.last_weights)):
            state |= {f"{kind}_weights.{name}": array for name, array in (weights or {}).items()}
        return state

    def load_state_dict(self, state):
        """Continue to wait where the run was interrupted.

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
                raise ValueError(f"its {kind} weights are another model's")
        if ("best_epoch" in state) != bool(given["best"]) or wait < 0:
            raise ValueError("best_epoch and best_weights belong together, and wait is a number "
                             "of epochs")
        self.wait, self.best_weights = wait, given["best"] or None
        self.best_epoch = int(state["best_epoch"]) if given["best"] else None
        restored = all(np.array_equal(own[name], array) for name, array in given["best"].items())
        if given["last"] and restored:  # else other weights have been chosen since
            self.model.load_state_dict(given["last"])

    def on_epoch_end(self, epoch, logs=None):
        """Keep the weights of the best epoch, count the others."""
        if epoch < self.start_from_epoch:
            return
        self.wait += 1
        if self.improved(logs):
            self.best_epoch, self.best_weights = epoch, self.model.state_dict()
            if self.baseline is None or self.better(logs, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Go back to the best epoch."""
        if self.restore_best_weights and self.best_weights is not None:
            self.last_weights = self.model.state_dict() if self.wait else None
            self.model.load_state_dict(self.best_weights)


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by factor when `monitor` has not improved for `patience` epochs.

    min_delta: an improvement must be larger than this. min_lr: the lowest rate. cooldown: epochs
    after a reduction that are not counted. As in Keras; PyTorch's waits one epoch longer, and its
    threshold is a share of the best number. mode: as in EarlyStopping. The rate is in the logs and
    the History as "learning_rate". Raises TypeError at the start of a run whose optimizer has a
    schedule.
    """

    def __init__(self, monitor="val_loss", factor=0.1, patience=10, mode="auto", min_delta=1e-4,
                 cooldown=0, min_lr=0.0):
        super().__init__(monitor, mode, min_delta)
        for name, value in (("factor", factor), ("min_lr", min_lr)):
            if not is_number(value) or not 0 <= value < (1 if name == "factor" else math.inf):
                raise ValueError(f"{name} must be a number from 0 up"
                                 f"{' but below 1' * (name == 'factor')}, got {value!r}")
        self.factor = float(factor)
        self.min_lr = float(min_lr)
        self.patience = check_whole("patience", patience, 0)
        self.cooldown = check_whole("cooldown", cooldown, 0)

    def on_train_begin(self, logs=None):
        """Forget an earlier run. Refuse an optimizer that follows a schedule of its own."""
        super().on_train_begin()
        _check_number(self)
        self.wait = self.resting = 0

    def state_dict(self):
        """The best number, how many epochs ago it was, and how many epochs of cooldown are left."""
        return super().state_dict() | {"wait": self.wait, "resting": self.resting}

    def load_state_dict(self, state):
        """Continue to wait where the run was interrupted."""
        super().load_state_dict(state)
        self.wait, self.resting = int(state["wait"]), int(state["resting"])

    def on_epoch_end(self, epoch, logs=None):
        """Note the rate, count the epochs without improvement, reduce the rate."""
        _note_rate(self, logs)
        if self.resting:
            self.resting, self.wait = self.resting - 1, 0
        if self.improved(logs):
            self.wait = 0
        elif not self.resting:
            self.wait += 1
            lr = self.optimizer.current_lr
            if self.wait >= self.patience and lr > self.min_lr:
                self.optimizer.lr = max(lr * self.factor, self.min_lr)
                self.wait, self.resting = 0, self.cooldown


class ModelCheckpoint(_Monitor):
    """Writes the model's weights to path after every epoch, or every best one (save_best_only).

    Read them with model.load_weights(path). monitor, mode: what save_best_only goes by, as in
    EarlyStopping. As in Keras, the file's name may hold fields, such as
    "epoch{epoch:02d}-{val_loss:.2f}.npz", with epochs counted from 1; without them each file
    replaces the one before. Braces in the names of folders are just braces.
    """

    def __init__(self, path, monitor="val_loss", save_best_only=False, mode="auto"):
        self.save_best_only = as_flag("save_best_only")(save_best_only)
        self.watches = self.save_best_only
        super().__init__(monitor, mode)
        self.path = Path(path)

    def on_train_begin(self, logs=None):
        """Forget an earlier run.

        FileNotFoundError where there is no such folder, ValueError for fields or a suffix amiss.
        """
        super().on_train_begin()
        names = self.measured or [
            field for _, field, _, _ in self._pieces() if (field or "").isidentifier()
        ]
        checked_suffix(
            self.formatted({"epoch": 1, **{name: 0.5 for name in names if name != "epoch"}})
        )
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"ModelCheckpoint cannot write {self.path}: there is no folder "
                                    f"{self.path.parent}")

    def _pieces(self):
        try:
            return list(Formatter().parse(self.path.name))
        except ValueError as error:
            raise ValueError(f"ModelCheckpoint cannot read the name {self.path.name!r}: {error}; a "
                             "brace itself is written {{ or }}") from None

    def formatted(self, values):
        """The path with its fields filled in; ValueError for a field that is not in values."""
        for _, field, _, _ in self._pieces():
            if field is not None and field not in values:
                hint = (
                    ": fit needs validation_data or validation_split"
                    if field.startswith("val_")
                    and not any(name.startswith("val_") for name in values)
                    else ""
                )
                raise ValueError(f"ModelCheckpoint's name {self.path.name!r} has the field "
                                 f"{{{field}}}, but this run knows only {', '.join(values)}{hint}")
        try:
            return self.path.with_name(self.path.name.format(**values))
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"ModelCheckpoint cannot fill in the name {self.path.name!r}: "
                             f"{error}") from None

    def on_epoch_end(self, epoch, logs=None):
        """Write the file whole or not at all."""
        if not self.save_best_only or self.improved(logs):
            self.model.save_weights(self.formatted({"epoch": epoch + 1, **logs}))
