"""Losses and metrics by name, and the accuracy that labels of each kind need."""

import inspect
from functools import partial

import numpy as np

from . import functional as F
from .batching import pieces
from .settings import check_whole, lookup

LOSSES = {
    "cross_entropy": F.cross_entropy,
    "categorical_crossentropy": F.categorical_crossentropy,
    "sparse_categorical_crossentropy": F.categorical_crossentropy,
    "binary_crossentropy": F.binary_cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "mean_squared_error": F.mse_loss,
    "mae": F.l1_loss,
    "mean_absolute_error": F.l1_loss,
    "huber": F.huber_loss,
}
# What people call the two arguments of a loss: Keras has (y_true, y_pred), PyTorch and minidl the
# other way round.
LABELS = {"y_true", "true", "truth", "ground_truth", "target", "targets", "label", "labels",
          "actual"}
OUTPUTS = {"y_pred", "pred", "preds", "predicted", "prediction", "predictions", "output", "outputs",
           "out", "logits", "yhat", "y_hat", "p", "probs", "probabilities", "scores"}


def accuracy(outputs, y):
    """Share of rows whose largest output is the label; y: class numbers (n,) or rows (n, classes).

    With one output column, which must be a probability: share of rows on the right side of 0.5, y
    being 0 or 1. Where rows of y hold several ones, or none, each entry is a label of its own: the
    share of entries on the right side of 0.5. Raises ValueError for labels of another shape.
    """
    if _labels_are_entries(outputs.shape, y):
        return _share_of_entries(outputs, y, 0.5)
    return _share_of_rows(outputs, y)


def _share_of_rows(outputs, y):
    right = outputs.argmax(axis=1) == (y if y.ndim == 1 else y.argmax(axis=1))
    return np.count_nonzero(right) / len(right)


def _share_of_entries(outputs, y, threshold):
    return np.count_nonzero((outputs > threshold) == (y.reshape(outputs.shape) == 1)) / outputs.size


def _labels_are_entries(shape, y):
    """Whether each entry of y is a label of its own, not each row one class; else ValueError."""
    if len(shape) != 2:
        raise ValueError(f"accuracy takes outputs of shape (n, classes), got {shape}: for others "
                         "write a metric of your own, a function of (outputs, labels)")
    n, columns = shape
    if columns == 1:
        if y.shape not in ((n,), (n, 1)) or not all(
            np.isin(part, (0, 1)).all() for part in pieces(y)
        ):
            raise ValueError("the accuracy of a model with one output needs labels 0 and 1; for "
                             "other targets use 'mse'")
        return True
    if y.shape == (n,) and y.dtype.kind in "iuf":
        return False
    if y.shape != shape or y.dtype.kind not in "biuf":
        raise ValueError(f"accuracy takes class numbers of shape ({n},) or rows of shape {shape}, "
                         f"got {y.dtype} of shape {y.shape}"
                         + "; use y.reshape(-1)" * (y.shape == (n, 1)))
    if all((abs(part.sum(axis=1) - 1) < 0.01).all() and part.min() >= 0 for part in pieces(y)):
        return False  # one-hot rows, or probabilities: smoothed labels, a teacher's outputs
    if not all(((part == 0) | (part == 1)).all() for part in pieces(y)):
        raise ValueError("accuracy takes class numbers, one-hot rows, or rows of zeros and ones, "
                         f"got rows with numbers from {y.min()} to {y.max()}; for other targets "
                         "use 'mse'")
    return True


def _accuracy_for(loss, shape, y):
    """The accuracy of a run, chosen once from all its labels: a batch may look one-hot by chance.

    It compares probabilities with 0.5, and with a loss on the logits of two classes, logits with 0.
    """
    if not _labels_are_entries(shape, y):
        return _share_of_rows
    threshold = 0.0 if loss is F.binary_cross_entropy_with_logits else 0.5
    return lambda outputs, y: _share_of_entries(outputs, y, threshold)


def binary_accuracy(outputs, y, threshold=0.5):
    """Share of entries on the right side of the threshold, each of y being 0 or 1, as in Keras.

    In a run whose loss takes logits, the threshold is 0 (Keras' stays 0.5). ValueError for labels
    of another shape or with other numbers.
    """
    if y.size != outputs.size or not np.isin(y, (0, 1)).all():
        raise ValueError(f"binary_accuracy takes a 0 or 1 for each of the outputs {outputs.shape}, "
                         f"got labels of shape {y.shape} from {y.min()} to {y.max()}")
    return _share_of_entries(outputs, y, threshold)


def top_k_accuracy(k):
    """A metric: the share of rows whose label is among the k largest outputs.

    y holds class numbers (n,) or one-hot rows (n, classes). Called top_k_categorical_accuracy in
    Keras, where k is 5.
    """
    check_whole("k", k, 1)

    def share(outputs, y):
        n, classes = outputs.shape
        if k >= classes:
            raise ValueError(f"the top-{k} accuracy of {classes} classes is always 1: take a "
                             "smaller k, metrics.top_k_accuracy(2) for example")
        labels = y.reshape(-1) if y.size == n else y.argmax(axis=1)
        larger = outputs > outputs[np.arange(n), labels.astype(int), None]
        return np.count_nonzero(larger.sum(axis=1) < k) / n

    share.__name__ = f"top_{k}_accuracy"
    return share


METRICS = {
    **dict.fromkeys(("accuracy", "acc", "categorical_accuracy", "sparse_categorical_accuracy"),
                    accuracy),
    "binary_accuracy": binary_accuracy,
    **dict.fromkeys(("top_k_categorical_accuracy", "sparse_top_k_categorical_accuracy"),
                    top_k_accuracy(5)),
    "mse": F.mse_loss,
    "mean_squared_error": F.mse_loss,
    "mae": F.l1_loss,
    "mean_absolute_error": F.l1_loss,
}


def number_of(name, value):
    """What a metric returned, as a float; TypeError, before any update, if it is not one number."""
    if getattr(value, "ndim", 0) or isinstance(value, str):
        value = (
            f"{type(value).__name__} of shape {value.shape}"
            if hasattr(value, "shape")
            else repr(value)
        )
    else:
        try:
            return float(value)
        except (TypeError, ValueError):
            value = repr(value)
    raise TypeError(f"the metric {name} must return one number for a batch, the mean over its "
                    f"samples for example, got {value}")


def named_loss(loss):
    """The function of a name; TypeError for one written in Keras' order of arguments."""
    if not isinstance(loss, str) and not callable(loss):
        raise TypeError(f"loss is a name or a function of (outputs, labels), got {loss!r}")
    loss = lookup(loss, LOSSES, "loss")
    _check_order("loss", loss)
    return loss


def named_metrics(metrics):
    """{name: function} for a list of names and functions; a repeated name gets a number."""
    metrics = (
        ()
        if metrics is None
        else [metrics]
        if isinstance(metrics, str) or callable(metrics)
        else metrics
    )
    table = {}
    for i, metric in enumerate(metrics):
        name = (
            metric if isinstance(metric, str) else getattr(metric, "__name__", "metric").strip("<>")
        )
        taken = name in table or name in ("loss", "seconds")  # a History has these two already
        function = lookup(metric, METRICS, "metric")
        if not callable(function):
            raise TypeError("a metric is a name or a function of (outputs, labels), got "
                            f"{metric!r}")
        _check_order("metric", function)
        table[f"{name}_{i}" if taken else name] = function
    return table


def _check_order(what, function):
    """TypeError for a function of (y_true, y_pred): exchanged, they compute nonsense."""
    try:
        names = [name.lower() for name in inspect.signature(function).parameters][:2]
    except (TypeError, ValueError):  # some built-in functions do not tell what they take
        return
    if len(names) == 2 and (names[0] in LABELS and names[1] not in LABELS
                            or names[0] in LABELS | {"y", "t"} and names[1] in OUTPUTS):
        raise TypeError(f"minidl calls a {what} with (outputs, labels), but this one takes "
                        f"({', '.join(names)}), as Keras does: exchange the two, or give lambda "
                        f"outputs, labels: {getattr(function, '__name__', 'f')}(labels, outputs)")


def settled(metrics, loss, example, y):
    """The metrics with the accuracy that these labels need; ValueError if there is none."""
    shape = (len(y), *example.shape[1:])
    if loss is F.binary_cross_entropy_with_logits:
        metrics = {name: partial(binary_accuracy, threshold=0.0) if metric is binary_accuracy
                   else metric for name, metric in metrics.items()}
    return {
        name: _accuracy_for(loss, shape, y) if metric is accuracy else metric
        for name, metric in metrics.items()
    }
