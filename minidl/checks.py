"""What can be known before the first step: losses and metrics by name, and whether data, labels and settings fit.

Each check looks at all samples, but copies no more than a batch of them.
"""

import inspect

import numpy as np

from . import functional as F
from .data import pieces
from .parts import evaluation, instead_of_one
from .settings import check_whole, is_number, lookup
from .tensor import Tensor, no_grad

LOSSES = {"cross_entropy": F.cross_entropy, "categorical_crossentropy": F.categorical_crossentropy,
          "sparse_categorical_crossentropy": F.categorical_crossentropy, "binary_crossentropy": F.binary_cross_entropy,
          "binary_cross_entropy": F.binary_cross_entropy,
          "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits,
          "mse": F.mse_loss, "mean_squared_error": F.mse_loss}
OVER_CLASSES = (F.cross_entropy, F.categorical_crossentropy)
# How people call the two arguments of a loss: Keras has (y_true, y_pred), PyTorch and minidl have them the other way round.
LABELS = {"y_true", "true", "truth", "ground_truth", "target", "targets", "label", "labels", "actual"}
OUTPUTS = {"y_pred", "pred", "preds", "predicted", "prediction", "predictions", "output", "outputs", "out", "logits", "yhat",
           "y_hat", "p", "probs", "probabilities", "scores"}


def accuracy(outputs, y):
    """Share of rows whose largest output is the label; y holds class numbers (n,) or one-hot rows (n, classes).

    With one output column, which must be a probability: share of rows on the right side of 0.5, y being 0 or 1.
    Where rows of y hold several ones, or none, each entry is a label of its own: the share of entries on the right side
    of 0.5. Raises ValueError for labels of another shape.
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
    """Whether each entry of y is a label 0 or 1 of its own, rather than each row one class; ValueError if it is neither."""
    if len(shape) != 2:
        raise ValueError(f"accuracy takes outputs of shape (n, classes), got {shape}: for others write a metric of your own, "
                         "a function of (outputs, labels)")
    n, columns = shape
    if columns == 1:
        if y.shape not in ((n,), (n, 1)) or not all(np.isin(part, (0, 1)).all() for part in pieces(y)):
            raise ValueError("the accuracy of a model with one output needs labels 0 and 1; for other targets use 'mse'")
        return True
    if y.shape == (n,) and y.dtype.kind in "iuf":
        return False
    if y.shape != shape or y.dtype.kind not in "biuf":
        raise ValueError(f"accuracy takes class numbers of shape ({n},) or rows of shape {shape}, got {y.dtype} of shape {y.shape}"
                         + "; use y.reshape(-1)" * (y.shape == (n, 1)))
    if all((abs(part.sum(axis=1) - 1) < 0.01).all() and part.min() >= 0 for part in pieces(y)):
        return False  # one-hot rows, or probabilities: smoothed labels, a teacher's answers
    if not all(((part == 0) | (part == 1)).all() for part in pieces(y)):
        raise ValueError(f"accuracy takes class numbers, one-hot rows, or rows of zeros and ones, got rows with numbers from "
                         f"{y.min()} to {y.max()}; for other targets use 'mse'")
    return True


def _accuracy_for(loss, shape, y):
    """The accuracy of a run, decided once, on all its labels: a batch of several-label rows may look one-hot by chance.

    It compares probabilities with 0.5; a loss on the logits of two classes has logits, for which 0 is the threshold.
    """
    if not _labels_are_entries(shape, y):
        return _share_of_rows
    threshold = 0.0 if loss is F.binary_cross_entropy_with_logits else 0.5
    return lambda outputs, y: _share_of_entries(outputs, y, threshold)


METRICS = {"accuracy": accuracy, "mse": F.mse_loss, "mean_squared_error": F.mse_loss}


def number_of(name, value):
    """What a metric returned, as a float; TypeError, before any update, if it is not one number."""
    if getattr(value, "ndim", 0) or isinstance(value, str):
        value = f"{type(value).__name__} of shape {value.shape}" if hasattr(value, "shape") else repr(value)
    else:
        try:
            return float(value)
        except (TypeError, ValueError):
            value = repr(value)
    raise TypeError(f"the metric {name} must return one number for a batch, the mean over its samples for example, got {value}")


def outputs_of(model, batch, x):
    """The model's outputs for a batch of x as an array; errors speak of the shape of x."""
    with instead_of_one(len(x), len(batch)):
        y = model(batch)
    if not isinstance(y, Tensor) or y.shape[:1] != (len(batch),):
        raise TypeError(f"a model returns a Tensor with one row of outputs for each sample, but for inputs of shape {batch.shape} "
                        f"this one returned a {type(y).__name__} of shape {getattr(y, 'shape', '?')}")
    return y.data


def checked(model, x, y, loss, differentiable=False):
    """(x, y, example): x and y as arrays, once everything about them is known to fit, and the outputs for one sample.

    Builds the model. x keeps its dtype: each batch is converted to that of the example. differentiable: whether the
    loss must have a gradient.
    """
    x, y = checked_inputs(x), as_array(y)
    if y.shape[:1] != (len(x),):
        raise ValueError(f"x has {len(x)} samples, y has shape {y.shape}: there must be one label for each sample")
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y must hold numbers, got dtype {y.dtype}; names become class numbers with "
                        "names, y = np.unique(y, return_inverse=True)")
    if _first_nonfinite(y) is not None:
        raise ValueError("y contains NaN or infinite values")
    with evaluation(model), no_grad(), np.errstate(over="ignore", invalid="ignore"):
        example = outputs_of(model, x[:1].astype(x.dtype if x.dtype in (np.float32, np.float64) else np.float32, copy=False), x)
    if loss in OVER_CLASSES and example.shape[1:] == (1,):
        raise ValueError("a cross-entropy over classes needs an output for each class, but the model has one output, whose "
                         "probability is always 1: end it with Dense(1, 'sigmoid') and use loss='binary_crossentropy' for two "
                         "classes, Dense(classes) for more, or loss='mse' for numbers")
    _try_loss(loss, example, y, differentiable)
    return x, y, example


def _try_loss(loss, example, y, differentiable):
    """Find labels that do not fit, and losses that are none, before any step: on a few rows, the extreme labels among them."""
    rows = {*range(0, len(y), -(-len(y) // 16))}
    if y.size:
        rows |= {int(place(y)) // (y.size // len(y)) for place in (np.argmin, np.argmax)}
    rows = sorted(rows)
    equal = np.asarray(1 / (1 + example[0].size), example.dtype)  # scores, or probabilities, for every class alike
    with np.errstate(all="ignore"):
        try:
            outputs = Tensor(np.full((len(rows), *example.shape[1:]), equal), requires_grad=True)
            trial = loss(outputs, y[rows])
        except (TypeError, ValueError):
            loss(Tensor(np.broadcast_to(equal, (len(y), *example.shape[1:]))), y)  # complains about the shapes of all
            raise
    if not isinstance(trial, Tensor) or trial.shape != ():
        shape = tuple(len(y) if n == len(rows) else n for n in getattr(trial, "shape", ()))
        raise TypeError("a loss gives one number as a Tensor, made with minidl.functional, but this one gave a "
                        f"{type(trial).__name__} of shape {shape}" + "; end it with .mean()" * isinstance(trial, Tensor))
    if differentiable and not trial.requires_grad:
        raise ValueError("no gradient flows from this loss to the outputs, so nothing would be trained: it does not use them, or "
                         "takes their .data, detach(), argmax or a comparison. Compute with the outputs and minidl.functional")
    if loss in (F.categorical_crossentropy, F.binary_cross_entropy):
        with np.errstate(all="ignore"):
            loss(Tensor(example), y[:1])  # complains about outputs that are no probabilities
    if loss is F.categorical_crossentropy and abs(float(example.sum()) - 1) > 0.01:
        raise ValueError(f"this loss takes probabilities that sum to 1, but the outputs of the first sample sum to "
                         f"{float(example.sum()):.4g}: end the model with Activation('softmax'), or use "
                         "loss='binary_crossentropy' for several labels per sample")


def as_array(x):
    """The array of a Tensor, a list, a data frame or an array; of a memory map without reading it."""
    if isinstance(x, Tensor):
        return x.data
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"the data are no array, their rows have different lengths or kinds: {error}") from None


def checked_inputs(x):
    """x as an array of numbers (samples, ...), all finite; else TypeError or ValueError."""
    x = as_array(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim < 2 or len(x) == 0:
        one = f"; one sample needs a batch axis, x[None] of shape {(1, *x.shape)}" if x.ndim == 1 and x.size else ""
        raise ValueError(f"x must have shape (samples, features) with at least one sample, got {x.shape}{one}")
    first = _first_nonfinite(x)
    if first is not None:
        raise ValueError(f"x contains NaN or infinite values, first in sample {first}")
    return x


def _first_nonfinite(x):
    """The number of the first sample with NaN or inf, or None."""
    before = 0
    for part in pieces(x) if x.dtype.kind == "f" else ():
        finite = np.isfinite(part)
        if not finite.all():
            return before + int(np.argwhere(~finite)[0][0])
        before += len(part)
    return None


def checked_validation_data(model, pair, loss, metrics, example):
    """(x, y) of validation data, checked as `checked` does; errors say that it is they."""
    try:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            three = isinstance(pair, (tuple, list)) and len(pair) == 3
            raise TypeError("give a pair (x, y)" + "; minidl has no weights of samples" * three)
        x, y, _ = checked(model, *pair, loss)
        settled(metrics, loss, example, y)
        return x, y
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation data: {error}") from error


def hold_out(x, y, share):
    """((x, y), (x_held_out, y_held_out)): the last samples are held out, as views; the number is rounded as in `data.split`.

    Raises ValueError if either part would be empty.
    """
    if not is_number(share) or not 0 <= share < 1:
        raise ValueError(f"validation_split is a share of the samples, from 0 up to but not 1, got {share!r}")
    x, y = as_array(x), as_array(y)
    if x.ndim == 0 or y.shape[:1] != x.shape[:1]:
        raise ValueError(f"x has shape {x.shape}, y has shape {y.shape}: there must be one label for each sample")
    held = round(share * len(x))
    if not 0 < held < len(x):
        raise ValueError(f"validation_split={share!r} of {len(x)} samples would hold out {held}: both parts need at least one")
    return (x[:-held], y[:-held]), (x[-held:], y[-held:])


def named_loss(loss):
    """The function of a name; TypeError for one written in Keras' order of arguments."""
    if not isinstance(loss, str) and not callable(loss):
        raise TypeError(f"loss is a name or a function of (outputs, labels), got {loss!r}")
    loss = lookup(loss, LOSSES, "loss")
    _check_order("loss", loss)
    return loss


def named_metrics(metrics):
    """{name: function} for a list of names and functions; of equal names, two lambdas say, the later ones are numbered."""
    metrics = () if metrics is None else [metrics] if isinstance(metrics, str) or callable(metrics) else metrics
    table = {}
    for i, metric in enumerate(metrics):
        name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric").strip("<>")
        taken = name in table or name in ("loss", "seconds")  # a History has these two already
        function = lookup(metric, METRICS, "metric")
        if not callable(function):
            raise TypeError(f"a metric is a name or a function of (outputs, labels), got {metric!r}")
        _check_order("metric", function)
        table[f"{name}_{i}" if taken else name] = function
    return table


def _check_order(what, function):
    """TypeError for a function whose arguments are called (y_true, y_pred): with the two exchanged it computes nonsense."""
    try:
        names = [name.lower() for name in inspect.signature(function).parameters][:2]
    except (TypeError, ValueError):  # some built-in functions do not tell what they take
        return
    if len(names) == 2 and (names[0] in LABELS and names[1] not in LABELS
                            or names[0] in LABELS | {"y", "t"} and names[1] in OUTPUTS):
        raise TypeError(f"minidl calls a {what} with (outputs, labels), but this one takes ({', '.join(names)}), as Keras does: "
                        f"exchange the two, or give lambda outputs, labels: {getattr(function, '__name__', 'f')}(labels, outputs)")


def settled(metrics, loss, example, y):
    """The metrics with the accuracy that these labels need; ValueError for labels of which there is none."""
    shape = (len(y), *example.shape[1:])
    return {name: _accuracy_for(loss, shape, y) if metric is accuracy else metric for name, metric in metrics.items()}


def checked_batch_size(value, usual):
    """The batch size, checked; None is the usual one, as in Keras."""
    return check_whole("batch_size", usual if value is None else value, 1)


def checked_verbosity(verbose):
    """0, 1 or 2; Keras' "auto" is 1."""
    if verbose == "auto":
        return 1
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose is 0 for silence, 1 or 'auto' for a bar, 2 for a line per epoch, got {verbose!r}")
    return int(verbose)
