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
from .callbacks import Callback, History
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
        right = (outputs[:, 0] > 0.5) == (y.reshape(-1) == 1)
    else:
        right = outputs.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))
    return np.count_nonzero(right) / len(right)


def _accuracy_of_logits(outputs, y):
    return accuracy(F.sigmoid(outputs), y)


METRICS = {"accuracy": accuracy, "mse": F.mse_loss}


class DivergenceError(ArithmeticError):
    """The loss became inf or NaN. `.history` holds the run up to there, `.step` and `.layer` say where."""

    def __init__(self, message, history, step, layer):
        super().__init__(message)
        self.history, self.step, self.layer = history, step, layer

    def __reduce__(self):  # so that a process pool can hand it over
        return type(self), (*self.args, self.history, self.step, self.layer)


def fit(model, x, y, *, loss, optimizer, epochs=1, batch_size=32, metrics=(), callbacks=(), validation_data=None,
        rng=None, initial_epoch=0, verbose=1):
    """Train model on x, y; returns a History.

    loss: function of (outputs, labels) or a name. metrics: names, or functions of (outputs, labels) as arrays.
    callbacks: a list of `callbacks.Callback`. rng: shuffles the samples anew each epoch; None keeps their order.
    A last batch of one sample joins the batch before it (see `data.batches`). initial_epoch: where a resumed run
    goes on; with the same weights, buffers, optimizer and random generators it is the same run,
    in which callbacks, too, go on with the states that load_checkpoint has found.
    verbose: 0 silent, 1 a progress bar (lines where there is no terminal), 2 a line per epoch.

    Raises ValueError or TypeError before any work for data that do not fit, DivergenceError when the loss is
    no longer finite. Whatever ends the run, Ctrl-C too: model.history has all steps and epochs done until then, and
    the model can be used and trained on. (Ctrl-C within an update can leave it done for the first parameters only.)
    """
    loss = lookup(loss, LOSSES, "loss")
    metrics = named_metrics(metrics, loss)
    _check_whole("epochs", epochs, 0)
    _check_whole("initial_epoch", initial_epoch, 0)
    _check_whole("batch_size", batch_size, 1)
    _check_callbacks(callbacks)
    x, y = checked(model, x, y, loss)
    if validation_data is not None:
        validation_data = _checked_validation_data(model, validation_data, loss)
    _bind(optimizer, model)
    model.history = history = History(getattr(model, "history", None) if initial_epoch else None)
    model.stop_training = False
    model.train()

    def tell(event, *arguments):
        for callback in callbacks:
            getattr(callback, event)(*arguments)

    for callback in callbacks:
        callback.model, callback.optimizer = model, optimizer
    logs = {}
    tell("on_train_begin", logs)
    with closing(Progress(epochs, len(x), batch_size, verbose)) as progress, \
            history.keeping(callbacks):
        for epoch in range(initial_epoch, epochs):
            tell("on_epoch_begin", epoch, {})
            progress.start(epoch)
            steps, sizes = [], []
            for number, (xb, yb) in enumerate(batches(x, y, batch_size, rng)):
                tell("on_train_batch_begin", number, {})
                start = perf_counter()
                logs = _step(model, xb, yb, loss, metrics, optimizer, history)
                history.add_step(logs, perf_counter() - start)
                steps.append(logs.copy())  # callbacks may write into theirs
                sizes.append(len(xb))
                tell("on_train_batch_end", number, logs)
                progress.advance(logs)
                if model.stop_training:
                    break
            logs = _means(steps, sizes)
            if validation_data is not None:
                scores = _scores(model, *validation_data, loss, metrics, batch_size=256)
                logs |= {f"val_{key}": value for key, value in scores.items()}
            history.add_epoch(epoch, logs)
            progress.finish(logs)
            tell("on_epoch_end", epoch, logs)
            if model.stop_training:
                break
        tell("on_train_end", logs)
    return history


def _step(model, xb, yb, loss, metrics, optimizer, history):
    """One update of the weights from one batch; gives its loss and metrics, as they were before the update."""
    with np.errstate(over="ignore", invalid="ignore"):  # a divergence is reported once, in words
        outputs = model(xb)
        batch_loss = loss(outputs, yb)
        value = batch_loss.item()
        if not math.isfinite(value):
            raise _divergence(model, xb, optimizer, history)
        logs = _numbers(value, outputs, yb, metrics)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
    return logs


def _numbers(loss, outputs, yb, metrics):
    return {"loss": loss} | {name: float(metric(outputs.data, yb)) for name, metric in metrics.items()}


def _means(logs, sizes):
    """The mean of each number over batches, weighted by their sizes."""
    return {key: float(np.average([numbers[key] for numbers in logs], weights=sizes)) for key in logs[0]}


def evaluate(model, x, y, *, loss, metrics=(), batch_size=256):
    """Mean loss and metrics over x, y in evaluation mode, as a dict; the model is left as it was."""
    loss = lookup(loss, LOSSES, "loss")
    metrics = named_metrics(metrics, loss)
    _check_whole("batch_size", batch_size, 1)
    return _scores(model, *checked(model, x, y, loss), loss, metrics, batch_size)


def _scores(model, x, y, loss, metrics, batch_size):
    """What evaluate gives, for data already checked."""
    steps, sizes = [], []
    with evaluation(model), np.errstate(over="ignore", invalid="ignore"):  # inf in the result says it all
        for xb, yb in batches(x, y, batch_size):
            # Recorded, although nothing is differentiated: a loss on softmax looks up the logits it came from.
            outputs = model(xb)
            steps.append(_numbers(loss(outputs, yb).item(), outputs, yb, metrics))
            sizes.append(len(xb))
    return _means(steps, sizes)


def predict(model, x, batch_size=256):
    """The model's outputs for x in evaluation mode, as one array; the model is left as it was."""
    x = _checked_inputs(x)
    _check_whole("batch_size", batch_size, 1)
    with evaluation(model), no_grad(), np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([model(x[i:i + batch_size]).data for i in range(0, len(x), batch_size)])


def checked(model, x, y, loss):
    """x in the model's dtype and y as an array, once everything about them is known to fit. Builds the model."""
    x, y = _checked_inputs(x), np.asarray(y)
    if y.shape[:1] != (len(x),):
        raise ValueError(f"x has {len(x)} samples, y has shape {y.shape}: there must be one label for each sample")
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ValueError("y contains NaN or infinite values")
    one_output = predict(model, x[:1])
    # Trying the loss on all labels, with equal scores for every class, finds labels that do not fit before any step.
    trial = loss(Tensor(np.full((len(y), *one_output.shape[1:]), 1 / (1 + one_output[0].size), one_output.dtype)), y)
    if not isinstance(trial, Tensor) or trial.size != 1:
        raise TypeError("a loss gives one number as a Tensor, made with minidl.functional, but this one gave a "
                        f"{type(trial).__name__} of shape {getattr(trial, 'shape', ())}")
    return x.astype(one_output.dtype, copy=False), y


def _checked_inputs(x):
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"x must have shape (samples, features) with at least one sample, got {x.shape}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ValueError(f"x contains NaN or infinite values, first in sample {int(np.argwhere(~np.isfinite(x))[0][0])}")
    return x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)


def _checked_validation_data(model, pair, loss):
    try:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError("give a pair (x, y)")
        return checked(model, *pair, loss)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation data: {error}") from error


def named_metrics(metrics, loss):
    """{name: function} for a list of names and functions; of equal names, two lambdas say, the later ones are numbered.

    "accuracy" compares probabilities, so for a loss on the logits of two classes it gets their sigmoid.
    """
    table = {}
    for i, metric in enumerate(metrics):
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric").strip("<>")
        taken = name in table or name in ("loss", "seconds")  # a History has these two already
        if metric == "accuracy" and loss is F.binary_cross_entropy_with_logits:
            metric = _accuracy_of_logits
        table[f"{name}_{i}" if taken else name] = lookup(metric, METRICS, "metric")
    return table


def _check_whole(name, value, least):
    if not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


def _check_callbacks(callbacks):
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(callback, Callback) for callback in callbacks):
        raise TypeError(f"callbacks is a list of Callback objects, [EarlyStopping(patience=3)] for example, got {callbacks!r}")


def _bind(optimizer, model):
    """Give the model's parameters to an optimizer that has none; one that trains another model is an error."""
    parameters = model.parameters()
    if optimizer.parameters is None:
        optimizer.attach(parameters)
    elif not {id(p) for p in optimizer.parameters} & {id(p) for p in parameters}:
        raise ValueError("this optimizer already trains another model's parameters: each model needs an optimizer of its own")


def _divergence(model, x, optimizer, history):
    """The error that says where and why the loss stopped being finite."""
    losses = history.steps["loss"]
    layer = first_nonfinite(model, x)
    last = f"the last good loss was {losses[-1]:.4g}" if losses else "there was no good loss before"
    return DivergenceError(f"training diverged at step {len(losses)}: the loss is no longer finite. inf or NaN first appears "
                           f"in {layer}; the learning rate is {optimizer.current_lr:.4g}, {last}. A smaller learning rate "
                           "usually helps, and so does BatchNorm", history, len(losses), layer)


def first_nonfinite(model, x):
    """The label of the first layer whose weights or output for x hold inf or NaN; buffers are left as they are."""
    found, saved = [], model.state_dict()  # a training-mode forward moves running statistics

    def look(module, inputs, y):
        arrays = [value.data for value in vars(module).values() if isinstance(value, Tensor)] + [y.data]
        if not all(np.isfinite(a).all() for a in arrays):
            found.append(module.label)

    handles = [part.register_forward_hook(look) for part in model.modules() if not any(part.children())]
    try:
        with no_grad():
            model(x)
    finally:
        model.load_state_dict(saved)
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss itself"
