"""What can be known before the first step: do data, labels and settings fit?

Each check looks at all samples, but copies no more than a batch of them.
"""

from collections.abc import Iterable

import numpy as np

from .. import functional as F
from ..batching import pieces
from ..culprit import instead_of_one
from ..metrics import settled
from ..parts import evaluation
from ..settings import check_whole, is_number
from ..tensor import Tensor, no_grad

OVER_CLASSES = (F.cross_entropy, F.categorical_crossentropy)


def outputs_of(model, batch, x):
    """The model's outputs for a batch of x as an array; errors speak of the shape of x."""
    with instead_of_one(len(x), len(batch)):
        y = model(batch)
    if not isinstance(y, Tensor) or y.shape[:1] != (len(batch),):
        raise TypeError("a model returns a Tensor with one row of outputs for each sample, but for "
                        f"inputs of shape {batch.shape} this one returned a {type(y).__name__} of "
                        f"shape {getattr(y, 'shape', '?')}")
    return y.data


def checked(model, x, y, loss, differentiable=False):
    """(x, y, example): x and y as checked arrays, and the outputs for one sample.

    Builds the model. x keeps its dtype: each batch is converted to that of the example.
    differentiable: whether the loss must have a gradient.
    """
    if y is None or isinstance(x, Iterable) and not (
            isinstance(x, (list, tuple, dict, Tensor)) or hasattr(x, "__array__")):
        raise TypeError(_loop_for(model, type(x).__name__ + " and no y" * (y is None)))
    x, y = checked_inputs(x), as_array(y)
    if y.shape[:1] != (len(x),):
        raise ValueError(f"x has {len(x)} samples, y has shape {y.shape}: there must be one label "
                         "for each sample")
    if y.dtype.kind not in "biuf":
        raise TypeError(f"y must hold numbers, got dtype {y.dtype}; names become class numbers "
                        "with names, y = np.unique(y, return_inverse=True)")
    if _first_nonfinite(y) is not None:
        raise ValueError("y contains NaN or infinite values")
    with evaluation(model), no_grad(), np.errstate(over="ignore", invalid="ignore"):
        example = outputs_of(
            model,
            x[:1].astype(
                x.dtype if x.dtype in (np.float32, np.float64) else np.float32, copy=False
            ),
            x,
        )
    if loss in OVER_CLASSES and example.shape[1:] == (1,):
        raise ValueError("a cross-entropy over classes needs an output for each class, but the "
                         "model has one output, whose probability is always 1: end it with "
                         "Dense(1, 'sigmoid') and use loss='binary_crossentropy' for two classes, "
                         "Dense(classes) for more, or loss='mse' for numbers")
    _try_loss(loss, example, y, differentiable)
    return x, y, example


def _loop_for(model, kind):
    """What to write instead of fit(loader)."""
    return (f"fit needs arrays x and y, got a {kind}" + """. For batches that come one
after the other, from a generator or a DataLoader, write the loop:

    model.build(%s).train()
    model.optimizer.attach(model.parameters())
    for epoch in range(5):
        for xb, yb in loader:
            training.step(model, model.loss, model.optimizer, np.asarray(xb), np.asarray(yb))
""" % (getattr(model, "input_shape", None) or 784,))


def _try_loss(loss, example, y, differentiable):
    """Try the loss on a few rows, those of extreme labels included, before any step.

    This finds labels that do not fit, and functions that are no loss.
    """
    rows = {*range(0, len(y), -(-len(y) // 16))}
    if y.size:
        rows |= {int(place(y)) // (y.size // len(y)) for place in (np.argmin, np.argmax)}
    rows = sorted(rows)
    # equal scores, or probabilities, for all classes
    equal = np.asarray(1 / (1 + example[0].size), example.dtype)
    with np.errstate(all="ignore"):
        try:
            outputs = Tensor(np.full((len(rows), *example.shape[1:]), equal), requires_grad=True)
            trial = loss(outputs, y[rows])
        except (TypeError, ValueError):
            # complains about the shapes of all the data
            loss(Tensor(np.broadcast_to(equal, (len(y), *example.shape[1:]))), y)
            raise
    if not isinstance(trial, Tensor) or trial.shape != ():
        shape = tuple(len(y) if n == len(rows) else n for n in getattr(trial, "shape", ()))
        raise TypeError("a loss returns one number as a Tensor, made with minidl.functional, but "
                        f"this one returned a {type(trial).__name__} of shape {shape}"
                        + "; end it with .mean()" * isinstance(trial, Tensor))
    if differentiable and not trial.requires_grad:
        raise ValueError("no gradient flows from this loss to the outputs, so nothing would be "
                         "trained: it does not use them, or takes their .data, detach(), argmax or "
                         "a comparison. Compute with the outputs and minidl.functional")
    if loss in (F.categorical_crossentropy, F.binary_cross_entropy):
        with np.errstate(all="ignore"):
            loss(Tensor(example), y[:1])  # complains about outputs that are not probabilities
    if loss is F.categorical_crossentropy and abs(float(example.sum()) - 1) > 0.01:
        raise ValueError("this loss takes probabilities that sum to 1, but the outputs of the "
                         f"first sample sum to {float(example.sum()):.4g}: end the model with "
                         "Activation('softmax'), or use loss='binary_crossentropy' for several "
                         "labels per sample")


def as_array(x):
    """The array of a Tensor, list, data frame or array; a memory map is not read."""
    if isinstance(x, Tensor):
        return x.data
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError("the data are no array, their rows have different lengths or kinds: "
                         f"{error}") from None


def checked_inputs(x):
    """x as an array of numbers (samples, ...), all finite; else TypeError or ValueError."""
    x = as_array(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim < 2 or len(x) == 0:
        one = (
            f"; one sample needs a batch axis, x[None] of shape {(1, *x.shape)}"
            if x.ndim == 1 and x.size
            else ""
        )
        raise ValueError("x must have shape (samples, features) with at least one sample, got "
                         f"{x.shape}{one}")
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
    """(x, y) of validation data, checked as in `checked`; errors say which data they are about."""
    try:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            three = isinstance(pair, (tuple, list)) and len(pair) == 3
            raise TypeError("give a pair (x, y)" + "; its samples all count alike" * three)
        x, y, _ = checked(model, *pair, loss)
        settled(metrics, loss, example, y)
        return x, y
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation data: {error}") from error


def hold_out(x, y, share):
    """((x, y), (x_held_out, y_held_out)): the last samples are held out, as views.

    The number is rounded as in `data.split`. Raises ValueError if either part would be empty.
    """
    if not is_number(share) or not 0 <= share < 1:
        raise ValueError("validation_split is a share of the samples, from 0 up to but not 1, got "
                         f"{share!r}")
    x, y = as_array(x), as_array(y)
    if x.ndim == 0 or y.shape[:1] != x.shape[:1]:
        raise ValueError(f"x has shape {x.shape}, y has shape {y.shape}: there must be one label "
                         "for each sample")
    held = round(share * len(x))
    if not 0 < held < len(x):
        raise ValueError(f"validation_split={share!r} of {len(x)} samples would hold out {held}: "
                         "both parts need at least one")
    return (x[:-held], y[:-held]), (x[-held:], y[-held:])


def checked_batch_size(value, usual):
    """The batch size, checked; None is the usual one, as in Keras."""
    return check_whole("batch_size", usual if value is None else value, 1)


def checked_verbosity(verbose):
    """0, 1 or 2; Keras' "auto" is 1."""
    if verbose == "auto":
        return 1
    if verbose not in (0, 1, 2):
        raise ValueError("verbose is 0 for silence, 1 or 'auto' for a bar, 2 for a line per epoch, "
                         f"got {verbose!r}")
    return int(verbose)
