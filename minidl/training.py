"""The one training loop, for any Module: fit, evaluate, predict, and what they record.

In short, and a lesson writes it by hand:

    for epoch in range(epochs):
        for xb, yb in batches(x, y, batch_size, rng):
            batch_loss = loss(model(xb), yb)
            optimizer.zero_grad()
            batch_loss.backward()
            optimizer.step()
"""

import math
from contextlib import closing
from time import perf_counter

import numpy as np

from . import functional as F
from .data import batches
from .module import evaluation, lookup
from .progress import Progress
from .tensor import Tensor, no_grad

LOSSES = {"cross_entropy": F.cross_entropy, "categorical_crossentropy": F.categorical_crossentropy,
          "sparse_categorical_crossentropy": F.categorical_crossentropy, "binary_crossentropy": F.binary_cross_entropy,
          "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits, "mse": F.mse_loss}


def accuracy(outputs, y):
    """Share of rows whose largest output is the label; y holds class numbers (n,) or one-hot rows.

    With one output column, which must be a probability: share of rows on the right side of 0.5, y being 0 or 1.
    """
    if outputs.shape[1] == 1:
        if not np.isin(y, (0, 1)).all():
            raise ValueError("the accuracy of a model with one output needs labels 0 and 1; for other targets use 'mse'")
        return float(((outputs[:, 0] > 0.5) == (y.reshape(-1) == 1)).mean())
    labels = y if y.ndim == 1 else y.argmax(axis=1)
    return float((outputs.argmax(axis=1) == labels).mean())


def mse(outputs, y):
    """Mean squared error."""
    return float(((outputs - y) ** 2).mean())


METRICS = {"accuracy": accuracy, "mse": mse}


class DivergenceError(ArithmeticError):
    """The loss became inf or NaN. `.history` holds the run up to there, `.step` and `.layer` say where."""

    def __init__(self, message, history, step, layer):
        super().__init__(message)
        self.history, self.step, self.layer = history, step, layer

    def __reduce__(self):  # so that a process pool can hand it over
        return type(self), (*self.args, self.history, self.step, self.layer)


class History:
    """What a run recorded.

    history: one number per epoch for `loss` and each metric, measured in *training* mode while the
    weights moved, averaged over samples; with validation data also `val_loss` and `val_...`, measured in
    *evaluation* mode after the epoch. epoch: the epoch numbers. steps: one number per step for `loss`, each
    metric, and `seconds`, the training time so far (callbacks, validation and progress not counted).
    """

    def __init__(self):
        self.history, self.epoch, self.steps = {}, [], {"loss": [], "seconds": []}

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


class Callback:
    """Something to do during training: override any of these. `self.model` is the model being trained.

    Setting `self.model.stop_training = True` ends the run after the current step.
    """

    model = None

    def on_train_begin(self, logs=None):
        """Before the first epoch."""

    def on_train_end(self, logs=None):
        """After the last epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        """Before an epoch."""

    def on_epoch_end(self, epoch, logs=None):
        """After an epoch; logs has its loss and metrics."""

    def on_train_batch_begin(self, batch, logs=None):
        """Before a step; batch counts from 0 in each epoch."""

    def on_train_batch_end(self, batch, logs=None):
        """After a step; logs has the loss and metrics of this batch."""


def fit(model, x, y, *, loss, optimizer, epochs=1, batch_size=32, metrics=(), callbacks=(), validation_data=None,
        rng=None, verbose=1):
    """Train model on x, y; returns a History.

    loss: function of (outputs, labels) or a name. metrics: names or functions. rng: shuffles the samples
    anew each epoch; None keeps their order. A last batch of one sample joins the batch before it (see
    `data.batches`). verbose: 0 silent, 1 a progress bar (lines where there is no terminal), 2 a line per epoch.
    Raises ValueError or TypeError before any work for data that do not fit, DivergenceError when the loss is
    no longer finite.
    """
    loss = lookup(loss, LOSSES, "loss")
    metrics = {_name(m): lookup(m, METRICS, "metric") for m in metrics}
    x, y = checked(model, x, y, loss, batch_size)
    if validation_data is not None:
        validation_data = checked(model, *validation_data, loss, batch_size, what="validation data: ")
    _bind(optimizer, model)
    history = History()
    model.stop_training = False
    model.train()

    def tell(event, *arguments):
        for callback in callbacks:
            getattr(callback, event)(*arguments)

    for callback in callbacks:
        callback.model = model
    tell("on_train_begin")
    with closing(Progress(epochs, len(x), batch_size, verbose)) as progress:
        for epoch in range(epochs):
            tell("on_epoch_begin", epoch)
            progress.start(epoch)
            means = _Means()
            for number, (xb, yb) in enumerate(batches(x, y, batch_size, rng)):
                tell("on_train_batch_begin", number)
                start = perf_counter()
                outputs, logs = _step(model, xb, yb, loss, optimizer, history)
                logs |= {name: metric(outputs.data, yb) for name, metric in metrics.items()}
                history.add_step(logs, perf_counter() - start)
                means.add(logs, len(xb))
                tell("on_train_batch_end", number, logs)
                progress.advance(logs)
                if model.stop_training:
                    break
            logs = means.result()
            if validation_data is not None:
                scores = _scores(model, *validation_data, loss, metrics, batch_size=256)
                logs |= {f"val_{key}": value for key, value in scores.items()}
            history.add_epoch(epoch, logs)
            progress.finish(logs)
            tell("on_epoch_end", epoch, logs)
            if model.stop_training:
                break
    tell("on_train_end")
    return history


def _step(model, xb, yb, loss, optimizer, history):
    """One update of the weights from one batch; gives the outputs and {"loss": number}, or raises DivergenceError."""
    with np.errstate(over="ignore", invalid="ignore"):  # a divergence is reported once, in words
        outputs = model(xb)
        batch_loss = loss(outputs, yb)
        value = batch_loss.item()
        if not math.isfinite(value):
            _raise_divergence(model, xb, optimizer, history)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
    return outputs, {"loss": value}


class _Means:
    """Means of several numbers over batches, each weighted by its length."""

    def __init__(self):
        self.totals, self.samples = {}, 0

    def add(self, logs, n):
        self.samples += n
        for key, value in logs.items():
            self.totals[key] = self.totals.get(key, 0.0) + value * n

    def result(self):
        return {key: total / self.samples for key, total in self.totals.items()}


def evaluate(model, x, y, *, loss, metrics=(), batch_size=256):
    """Mean loss and metrics over x, y in evaluation mode, as a dict; the model is left as it was."""
    loss = lookup(loss, LOSSES, "loss")
    metrics = {_name(m): lookup(m, METRICS, "metric") for m in metrics}
    return _scores(model, *checked(model, x, y, loss, batch_size), loss, metrics, batch_size)


def _scores(model, x, y, loss, metrics, batch_size):
    """What evaluate gives, for data already checked."""
    means = _Means()
    with evaluation(model), np.errstate(over="ignore", invalid="ignore"):  # inf in the result says it all
        for xb, yb in batches(x, y, batch_size):
            # Recorded, although nothing is differentiated: a loss on softmax looks up the logits it came from.
            outputs = model(xb)
            scores = {"loss": loss(outputs, yb).item()}
            means.add(scores | {name: metric(outputs.data, yb) for name, metric in metrics.items()}, len(xb))
    return means.result()


def predict(model, x, batch_size=256):
    """The model's outputs for x in evaluation mode, as one array; the model is left as it was."""
    x = _checked_inputs(x)
    _check_batch_size(batch_size)
    with evaluation(model), no_grad(), np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([model(x[i:i + batch_size]).data for i in range(0, len(x), batch_size)])


def checked(model, x, y, loss, batch_size, what=""):
    """x in the model's dtype and y as an array, once everything about them is known to fit. Builds the model."""
    try:
        x, y = _checked_inputs(x), np.asarray(y)
        if len(x) != len(y):
            raise ValueError(f"x has {len(x)} samples, y has {len(y)}: there must be one label for each")
        _check_batch_size(batch_size)
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            raise ValueError("y contains NaN or infinite values")
        one_output = predict(model, x[:1])
        # Trying the loss on all labels, with equal scores for every class, finds labels that do not fit before any step.
        loss(Tensor(np.full((len(y), *one_output.shape[1:]), 1 / (1 + one_output[0].size), one_output.dtype)), y)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}{error}") from error
    return x.astype(one_output.dtype, copy=False), y


def _check_batch_size(batch_size):
    if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size must be a whole number, at least 1, got {batch_size!r}")


def _bind(optimizer, model):
    """Give the model's parameters to an optimizer that has none; one that trains another model is an error."""
    parameters = model.parameters()
    if optimizer.parameters is None:
        optimizer.attach(parameters)
    elif not {id(p) for p in optimizer.parameters} & {id(p) for p in parameters}:
        raise ValueError("this optimizer already trains another model's parameters: each model needs an optimizer of its own")


def _checked_inputs(x):
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x must have shape (samples, features) with at least one sample, got {x.shape}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"x contains NaN or infinite values, first in sample {int(np.argwhere(~np.isfinite(x))[0][0])}")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def _raise_divergence(model, x, optimizer, history):
    """Say where and why the loss stopped being finite."""
    losses = history.steps["loss"]
    layer = first_nonfinite(model, x)
    last = f"the last good loss was {losses[-1]:.4g}" if losses else "there was no good loss before"
    raise DivergenceError(f"training diverged at step {len(losses)}: the loss is no longer finite. It first appears in "
                          f"{layer}; the learning rate is {optimizer.current_lr:.4g}, {last}. A smaller learning rate usually "
                          "helps, and so does BatchNorm", history, len(losses), layer)


def first_nonfinite(model, x):
    """The label of the first layer whose weights or output for x hold inf or NaN; buffers are left as they are."""
    found, parts = [], [part for part in model.modules() if not any(part.children())]

    def look(module, inputs, y):
        arrays = [value.data for value in vars(module).values() if isinstance(value, Tensor)] + [y.data]
        if not all(np.isfinite(a).all() for a in arrays):
            found.append(module.label)

    saved = [dict(vars(part)) for part in parts]  # a training-mode forward moves running statistics
    for part in parts:
        part.forward_hooks = [*part.forward_hooks, look]
    try:
        with no_grad():
            model(x)
    finally:
        for part, attributes in zip(parts, saved):
            vars(part).clear()
            vars(part).update(attributes)
    return found[0] if found else "the loss itself"


def _name(metric):
    return metric if isinstance(metric, str) else metric.__name__
