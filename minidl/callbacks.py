"""What a run records, and what can be done between its steps: the History, and callbacks to stop, save and change the rate."""

import math
from contextlib import contextmanager
from numbers import Real
from pathlib import Path

import numpy as np

from .files import checked_suffix, clean, write_csv
from .plotting import LOOKS, figure, legend


class History:
    """What a run recorded, also one that was interrupted: `fit` returns it, and `model.history` is that of the latest fit.

    history: one number per epoch for `loss` and each metric, measured in *training* mode while the
    weights moved, averaged over samples; with validation data also `val_loss` and `val_...`, measured in
    *evaluation* mode after the epoch. epoch: the epoch numbers. steps: one number per step for `loss`, each
    metric, and `seconds`, the training time so far (callbacks, validation and progress not counted).
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
    """Something to do during training: override any of these. fit sets `self.model` and `self.optimizer` before it begins.

    Setting `self.model.stop_training = True` ends the run after the current step. An exception ends it at once.
    """

    model = optimizer = None

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


class LambdaCallback(Callback):
    """Functions instead of methods: LambdaCallback(on_epoch_end=lambda epoch, logs: print(logs["loss"]))."""

    def __init__(self, **functions):
        events = [name for name in vars(Callback) if name.startswith("on_")]
        for event, function in functions.items():
            if event not in events or not callable(function):
                raise TypeError(f"LambdaCallback takes functions named {', '.join(events)}, got {event}={function!r}")
            setattr(self, event, function)


class LearningRateScheduler(Callback):
    """Sets the learning rate of each epoch: schedule(epoch, lr) gives the new one, from the number of the epoch and the old."""

    def __init__(self, schedule):
        self.schedule = schedule

    def on_epoch_begin(self, epoch, logs=None):
        """Ask the schedule. Raises ValueError for what is no learning rate."""
        lr = self.schedule(epoch, self.optimizer.current_lr)
        if not isinstance(lr, Real) or not 0 <= lr < math.inf:
            raise ValueError(f"the schedule must return a learning rate, a number from 0 up, but gave {lr!r} for epoch {epoch}")
        self.optimizer.lr = float(lr)


class _Monitor(Callback):
    """Watches one number of the logs for a new best one."""

    def __init__(self, monitor, mode, min_delta=0.0):
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode is 'min', 'max' or 'auto', got {mode!r}")
        self.monitor, self.min_delta = monitor, min_delta
        self.sign = -1 if mode == "max" or mode == "auto" and "accuracy" in monitor else 1

    def on_train_begin(self, logs=None):
        self.best = self.sign * math.inf

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
        """Whether this epoch's number is better than all before by more than min_delta."""
        if self.monitor not in logs:
            hint = ": fit needs validation_data or validation_split" if self.monitor.startswith("val_") else ""
            raise ValueError(f"{type(self).__name__} watches {self.monitor!r}, but this run measures only "
                             f"{', '.join(logs)}{hint}")
        better = self.sign * (self.best - logs[self.monitor]) > self.min_delta
        self.best = logs[self.monitor] if better else self.best
        return better


class EarlyStopping(_Monitor):
    """Ends the run when `monitor` has not improved by more than min_delta for `patience` epochs; restores the best weights.

    mode: "min", "max", or "auto": max for names with "accuracy". restore_best_weights: at the end of any run, stopped
    or not (Keras' default is False); after an exception they are in `best_weights`. `best` and `best_epoch` say what
    was best.
    """

    def __init__(self, monitor="val_loss", min_delta=0.0, patience=0, mode="auto", restore_best_weights=True):
        super().__init__(monitor, mode, min_delta)
        self.patience, self.restore_best_weights = patience, restore_best_weights

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
            if weights and _shapes(weights) != _shapes(own):
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


def _shapes(arrays):
    return {name: array.shape for name, array in arrays.items()}


class ModelCheckpoint(_Monitor):
    """Writes the model's weights to path after every epoch, or with save_best_only after those where `monitor` improved.

    Read them with model.load_weights(path). mode: as in EarlyStopping. As in Keras, path may hold fields, such as
    "epoch{epoch:02d}-{val_loss:.2f}.npz", counted from 1; without them the file is the latest.
    """

    def __init__(self, path, monitor="val_loss", save_best_only=False, mode="auto"):
        super().__init__(monitor, mode)
        self.path, self.save_best_only = Path(path), save_best_only

    def on_train_begin(self, logs=None):
        """Forget an earlier run. FileNotFoundError where there is no such folder, ValueError for an unknown suffix."""
        super().on_train_begin()
        checked_suffix(self.path)
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"ModelCheckpoint cannot write {self.path}: there is no folder {self.path.parent}")

    def on_epoch_end(self, epoch, logs=None):
        """Write the file whole or not at all."""
        if not self.save_best_only or self.improved(logs):
            self.model.save_weights(str(self.path).format(epoch=epoch + 1, **logs))
