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

from . import binding
from .callbacks import History, check_callbacks, may_add_numbers
from .checks import (LOSSES, METRICS, accuracy, checked, checked_batch_size,  # noqa: F401
                     checked_inputs, checked_validation_data, checked_verbosity, hold_out,
                     named_loss, named_metrics, number_of, outputs_of, settled)
from .data import batches, check_rng
from .health import Watch, check_activations, probing, say
from .layers import BatchNorm
from .parts import evaluation
from .progress import Progress
from .settings import check_whole
from .tensor import Tensor, no_grad


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

    Raises ValueError or TypeError before any work for data that do not fit, and for a part that would not be trained
    (see `binding.py`), DivergenceError when the loss is
    no longer finite. Whatever ends the run, Ctrl-C too: model.history has all steps and epochs done until then, and
    the model can be used and trained on. (Ctrl-C within an update can leave it done for the first parameters only.)
    """
    loss, named = named_loss(loss), named_metrics(metrics)
    check_whole("epochs", epochs, 0)
    check_whole("initial_epoch", initial_epoch, 0)
    if initial_epoch > epochs:
        raise ValueError(f"epochs counts from the start of the first run: after initial_epoch={initial_epoch}, epochs={epochs} "
                         "leaves nothing to train")
    batch_size = checked_batch_size(batch_size, 32)
    verbose = checked_verbosity(verbose)
    callbacks = check_callbacks(callbacks)
    check_rng(rng)
    with probing(model) as seen:
        x, y, example = checked(model, x, y, loss, differentiable=True)
    check_activations(seen)
    metrics = settled(named, loss, example, y)
    if validation_data is not None:
        validation_data = checked_validation_data(model, validation_data, loss, named, example)
    binding.check(model)
    binding.bind(optimizer, model, loss)
    watch = Watch(x, y, loss, batch_size, optimizer, seen, shuffled=rng is not None)
    for text in watch.before(validation_data):
        say(text)
    model.history = history = History(getattr(model, "history", None) if initial_epoch else None)
    model.stop_training = False
    model.train()

    def tell(event, *arguments):
        for callback in callbacks:
            getattr(callback, event)(*arguments)

    def warn(texts):
        for text in texts:
            progress.pause()
            say(text)

    def look(outputs, yb, value):
        warn(watch.after_first_step(outputs, yb, value))

    measured = ["loss", *metrics]
    measured += [f"val_{name}" for name in measured] if validation_data is not None else []
    for callback in callbacks:
        callback.model, callback.optimizer, callback.measured = model, optimizer, measured
        measured = None if measured is None or may_add_numbers(callback) else measured
    logs = {}
    tell("on_train_begin", logs)
    with closing(Progress(epochs, len(x), batch_size, verbose)) as progress, \
            history.keeping(callbacks):
        for epoch in range(initial_epoch, epochs):
            if not model.stop_training:
                tell("on_epoch_begin", epoch, {})
            if model.stop_training:
                break
            if callbacks:
                binding.bind(optimizer, model, loss)  # they may have changed the model
            progress.start(epoch)
            steps, sizes = [], []
            for number, (xb, yb) in enumerate(batches(x, y, batch_size, rng)):
                tell("on_train_batch_begin", number, {})
                start = perf_counter()
                logs = _step(model, xb.astype(example.dtype, copy=False), yb, loss, metrics, optimizer, history,
                             look=None if history.steps["loss"] else look)
                history.add_step(logs, perf_counter() - start)
                steps.append(logs.copy())  # callbacks may write into theirs
                sizes.append(len(xb))
                tell("on_train_batch_end", number, logs)
                progress.advance(logs)
                if model.stop_training:
                    break
            logs = _means(steps, sizes)
            if validation_data is not None:
                scores = _scores(model, *validation_data, example.dtype, loss, metrics, batch_size=256)
                logs |= {f"val_{key}": value for key, value in scores.items()}
            history.add_epoch(epoch, logs)
            progress.finish(logs)
            warn(watch.after_epoch(history))
            tell("on_epoch_end", epoch, logs)
            _check_untouched(callbacks, model, optimizer)
            if model.stop_training:
                break
        tell("on_train_end", logs)
    return history


def _step(model, xb, yb, loss, metrics, optimizer, history, look):
    """One update of the weights from one batch; returns its loss and metrics, as they were before the update."""
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
        if look is not None:  # in the first step
            look(outputs, yb, value)
    return logs


def _numbers(loss, outputs, yb, metrics):
    return {"loss": loss} | {name: number_of(name, metric(outputs.data, yb)) for name, metric in metrics.items()}


def _means(logs, sizes):
    """The mean of each number over batches, weighted by their sizes."""
    return {key: float(np.average([numbers[key] for numbers in logs], weights=sizes)) for key in logs[0]}


def evaluate(model, x, y, *, loss, metrics=(), batch_size=256):
    """Mean loss and metrics over x, y in evaluation mode, as a dict; the model is left as it was."""
    loss, metrics, batch_size = named_loss(loss), named_metrics(metrics), checked_batch_size(batch_size, 256)
    x, y, example = checked(model, x, y, loss)
    return _scores(model, x, y, example.dtype, loss, settled(metrics, loss, example, y), batch_size)


def _scores(model, x, y, dtype, loss, metrics, batch_size):
    """What evaluate returns, for data already checked."""
    steps, sizes = [], []
    with evaluation(model), np.errstate(over="ignore", invalid="ignore"):  # inf in the result says it all
        for xb, yb in batches(x, y, batch_size):
            # Recorded, although nothing is differentiated: a loss on softmax looks up the logits it came from.
            outputs = model(xb.astype(dtype, copy=False))
            steps.append(_numbers(loss(outputs, yb).item(), outputs, yb, metrics))
            sizes.append(len(xb))
    return _means(steps, sizes)


def predict(model, x, batch_size=256):
    """The model's outputs for x in evaluation mode, as one array; the model is left as it was."""
    x, result = checked_inputs(x), None
    batch_size = checked_batch_size(batch_size, 256)
    dtype = x.dtype if x.dtype in (np.float32, np.float64) else np.float32
    with evaluation(model), no_grad(), np.errstate(over="ignore", invalid="ignore"):
        for i in range(0, len(x), batch_size):
            batch = x[i:i + batch_size].astype(dtype, copy=False)
            y = outputs_of(model, batch, x)
            if result is None:
                result = y if len(batch) == len(x) else np.empty((len(x), *y.shape[1:]), y.dtype)
            if len(batch) < len(x):
                result[i:i + batch_size] = y
    return result


def _check_untouched(callbacks, model, optimizer):
    for callback in callbacks:
        if callback.model is not model or callback.optimizer is not optimizer:
            raise RuntimeError(f"{type(callback).__name__} replaced self.model or self.optimizer, but fit goes on with those it was "
                               "given: keep another model under another name, or change its weights with load_state_dict")


def _divergence(model, x, optimizer, history):
    """The error that says where and why the loss stopped being finite."""
    losses = history.steps["loss"]
    layer = first_nonfinite(model, x)
    last = f"the last good loss was {losses[-1]:.4g}" if losses else "there was no good loss before"
    text = f"training diverged at step {len(losses)}: the loss is no longer finite. inf or NaN first appears in {layer}; "
    if optimizer.steps == 0:
        text += ("no weight has moved yet, so it is not the learning rate: look at the scale of x and y (data.standardization), "
                 "at the initial weights, and at the loss itself")
    else:
        norms = any(isinstance(part, BatchNorm) for part in model.modules())
        text += (f"the learning rate is {optimizer.current_lr:.4g}, {last}. A smaller learning rate usually helps"
                 + ", and so does BatchNorm" * (not norms))
    return DivergenceError(text, history, len(losses), layer)


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
