"""Samples in batches and in parts, and the rule for a last batch of one."""

import math

import numpy as np

from .settings import is_number, is_whole
from .tensor import Tensor

# numbers processed at a time: 2 MB of temporary arrays, however large the data
PIECE = 2 ** 18


def batches(x, y, size, rng=None):
    """Yield (x, y) in batches, each sample once; rng (a NumPy Generator) shuffles the samples.

    A last batch of one sample joins the batch before it: one sample has no variance to normalise
    by.
    """
    x, y = _indexable(x), _indexable(y)
    if not is_whole(size) or size < 1:
        raise ValueError("the size of batches is a whole number of samples, at least 1, got "
                         f"{size!r}")
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"batches need samples and as many labels, got {len(x)} samples and "
                         f"{len(y)} labels")
    check_rng(rng)
    return _batches(x, y, size, rng)


def check_rng(rng):
    """TypeError for what cannot shuffle: a seed would produce the same order in every epoch."""
    if rng is not None and not hasattr(rng, "permutation"):
        raise TypeError("rng is a NumPy Generator, np.random.default_rng(0) for example, or "
                        f"None, got {rng!r}")


def _indexable(values):
    """An array or a Tensor as it is, anything else as an array, which takes lists of rows."""
    values = values if isinstance(values, (np.ndarray, Tensor)) else np.asarray(values)
    if values.ndim == 0:
        raise ValueError(f"samples and labels are arrays with one entry per sample, got {values!r}")
    return values


def _batches(x, y, size, rng):
    n = len(x)
    starts = list(range(0, n, size))
    if size > 1 and len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    order = None if rng is None else rng.permutation(n)
    for start, end in zip(starts, [*starts[1:], n]):
        if order is None:
            yield x[start:end], y[start:end]
        else:
            yield _taken(x, order[start:end]), _taken(y, order[start:end])


def _taken(values, rows):
    return values.take(rows, axis=0) if isinstance(values, np.ndarray) else values[rows]  # faster


def stream(x, y, size, rng=None):
    """Endless batches: those of one epoch after another, see `batches`."""
    while True:
        yield from batches(x, y, size, rng)


def split(x, y, share=0.2, seed=0):
    """((x, y), (x_held_out, y_held_out)): a random share is held out, the same for the same seed.

    For training and validation, or training and test. Raises ValueError if either part would be
    empty.
    """
    if not is_number(share) or not 0 < share < 1:
        raise ValueError("the share to hold out is a number between 0 and 1, 0.2 for example, "
                         f"got {share!r}")
    x, y = _indexable(x), _indexable(y)
    held = round(share * len(x))
    if len(x) != len(y) or not 0 < held < len(x):
        raise ValueError(f"cannot hold out a share of {share} of {len(x)} samples with {len(y)} "
                         "labels")
    order = np.random.default_rng(seed).permutation(len(x))
    kept, held_out = order[:len(x) - held], order[len(x) - held:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def pieces(x):
    """Views of x, about PIECE numbers each: one at a time needs little memory."""
    step = max(1, PIECE // max(1, math.prod(x.shape[1:])))
    return (x[start:start + step] for start in range(0, len(x), step))
