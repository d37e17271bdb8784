"""Samples that count more or less than others: Keras' sample_weight and class_weight.

fit then trains on places instead of labels: the loss looks up both the labels and the weight of
each sample there.
"""

import inspect

import numpy as np

from .functional import mean
from .settings import is_number, is_whole


def weighted(loss, metrics, y, sample_weight, class_weight):
    """(loss, metrics, places) that take the places of labels y (n,) instead of the labels.

    The loss is the mean over the batch of weight times loss, as in Keras; metrics count all samples
    alike. Raises ValueError or TypeError for weights that do not fit, or for a loss that has no
    reduction="none".
    """
    weights = _weights(y, sample_weight, class_weight)
    try:
        parameters = inspect.signature(loss).parameters
    except (TypeError, ValueError):  # some built-in functions do not tell what they take
        parameters = {}
    if "reduction" not in parameters:
        raise TypeError("with weights a loss must tell the loss of each sample: write it as a "
                        'function of (outputs, labels, reduction="mean"), which returns them all '
                        'for reduction="none"')

    def of_batch(outputs, rows):
        losses = loss(outputs, y[rows], reduction="none")
        factors = weights[rows].astype(outputs.dtype)
        return mean(losses * factors.reshape(-1, *(1,) * (losses.ndim - 1)))

    def looked_up(metric):
        return lambda outputs, rows: metric(outputs, y[rows])

    places = np.arange(len(y))
    return of_batch, {name: looked_up(metric) for name, metric in metrics.items()}, places


def _weights(y, sample_weight, class_weight):
    """How much each sample counts, an array (n,)."""
    if class_weight is None:
        weights = np.asarray(sample_weight)
        if weights.shape != y.shape[:1] or weights.dtype.kind not in "biuf":
            raise ValueError(f"sample_weight is a number for each of {len(y)} samples, got "
                             f"{weights.dtype} of shape {weights.shape}")
    elif sample_weight is not None:
        raise ValueError("give class_weight or sample_weight, not both: multiply them, "
                         "sample_weight * np.where(y == 1, 5.0, 1.0) for example")
    else:
        weights = _of_classes(y, class_weight)
    weights = weights.astype(np.float64)
    if not np.isfinite(weights).all() or weights.min() < 0 or not weights.any():
        raise ValueError("weights are finite numbers from 0 up, not all of them 0; got some from "
                         f"{weights.min()} to {weights.max()}")
    return weights


def _of_classes(y, table):
    """The weight of each sample's class; 1 for a class that the table lacks."""
    if not isinstance(table, dict) or not all(
            is_whole(k) and k >= 0 and is_number(w) for k, w in table.items()):
        raise TypeError("class_weight is a dict {class number: weight}, {0: 1.0, 1: 5.0} for "
                        f"example, got {table!r}; for classes that count alike in all: {{c: len(y) "
                        "/ (classes * (y == c).sum()) for c in range(classes)}")
    rows = y.reshape(len(y), -1)
    classes = rows[:, 0] if rows.shape[1] == 1 else rows.argmax(axis=1)
    weights = np.ones(len(y))
    for number, weight in table.items():
        weights[classes == number] = weight
    return weights
