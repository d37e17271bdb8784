"""Data sets: find them on this machine or download them, scale them, cut them into batches."""

from dataclasses import dataclass

import numpy as np

from ..batching import batches, pieces, split
from ..settings import is_whole
from . import published, toy
from .search import NAMES, Found, cache, find

__all__ = ["NAMES", "Found", "Scaling", "batches", "cache", "find", "load", "min_max", "one_hot",
           "pieces", "published", "split", "standardization"]


def load(name="digits", root=None, seed=0):
    """((x_train, y_train), (x_test, y_test)): images float32 (n, 784) in [0, 1], labels int64.

    >>> (x_train, y_train), (x_test, y_test) = load("digits")
    >>> x_train.shape, y_train.shape
    ((10000, 784), (10000,))

    name: "digits" (drawn by this project, always available), "mnist" or "fashion_mnist"; or points
    in the plane, (300, 2), drawn from the seed: "spiral" of three classes, "moons" and "xor" of
    two. Images are looked for in root and in $MINIDL_DATA, two folders that may hold any set of 28
    x 28 images in IDX or npz files (a lone pair of images and labels is split 80/20, always alike);
    then in the project, in the user's cache and where Keras and torchvision keep their copies.
    There, and after a download, only the published files count, checked by md5. Raises
    FileNotFoundError that says what to put where, ValueError for a damaged file.
    """
    if name in toy.SETS:
        return toy.load(name, seed)
    found, unusable = find(name, root)
    if found is None:
        try:
            folder = cache() / name
            published.fetch(name, folder)
        except FileNotFoundError as error:
            raise FileNotFoundError("\n".join([str(error), *unusable])) from None
        # Exactly these files: `find` would stop at a damaged copy with another name beside them.
        found = Found(tuple(published.read(file, folder) for file in published.FILES), folder)
    x_train, y_train, x_test, y_test = found.arrays
    return (_pixels(x_train), y_train.astype(np.int64)), (_pixels(x_test), y_test.astype(np.int64))


def one_hot(y, classes=None):
    """Class numbers (n,) as rows (n, classes) of zeros with a single one, float32.

    classes: largest label + 1 if left out.
    """
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) == 0:
        raise ValueError(f"one_hot takes whole class numbers of shape (n,), got {y.dtype} of "
                         f"shape {y.shape}; y.reshape(-1).astype(int) makes them of a column or of "
                         "floats")
    if classes is not None and not (is_whole(classes) and classes >= 1):
        raise ValueError(f"classes is how many there are, a whole number, got {classes!r}")
    classes = int(y.max()) + 1 if classes is None else classes
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, found {y.min()} to {y.max()}")
    rows = np.zeros((len(y), classes), np.float32)
    rows[np.arange(len(y)), y] = 1
    return rows


@dataclass
class Scaling:
    """x -> (x - shift) / scale, fitted on training data; call it on test data as well."""

    shift: np.ndarray
    scale: np.ndarray

    def __post_init__(self):
        finite = np.isfinite(self.shift).all() and np.isfinite(self.scale).all()
        if not finite or not np.all(self.scale):
            raise ValueError("a Scaling needs finite numbers, and no scale of 0: is there NaN or "
                             "inf in the training data? np.argwhere(~np.isfinite(x)) finds them")

    def __call__(self, x):
        """Scale any x whose shape ends like that of the training samples; floats keep their dtype.

        Raises ValueError for other shapes, although NumPy could broadcast some of them.
        """
        x, features = _numbers(x), np.broadcast_shapes(np.shape(self.shift), np.shape(self.scale))
        if x.shape[max(0, x.ndim - len(features)):] != features:
            raise ValueError(f"this Scaling was fitted on samples of shape {features}, but x of "
                             f"shape {x.shape} does not end like that")
        result = np.empty(x.shape, x.dtype if x.dtype.kind == "f" else np.float32)
        samples, out = (a if a.ndim > len(features) else a[None] for a in (x, result))
        for source, target in zip(pieces(samples), pieces(out)):
            target[...] = (source - self.shift) / self.scale
        return result


def standardization(x_train, axis=0):
    """The Scaling that brings x_train to mean 0 and standard deviation 1.

    axis: 0 scales each feature separately, None all pixels of images alike. A constant feature
    becomes 0.
    """
    x_train = _training_data(x_train, axis)
    with np.errstate(invalid="ignore", over="ignore"):  # Scaling complains about inf and NaN
        mean = x_train.mean(axis, np.float64)
        squares = sum(((piece - mean) ** 2).sum(axis) for piece in pieces(x_train))
    deviation = np.sqrt(squares / (len(x_train) if axis == 0 else x_train.size))
    return Scaling(mean, _nonzero(deviation, x_train, axis))


def min_max(x_train, axis=0):
    """The Scaling that maps the smallest value of x_train to 0, the largest to 1.

    axis: as in `standardization`.
    """
    x_train = _training_data(x_train, axis)
    low, high = x_train.min(axis).astype(np.float64), x_train.max(axis).astype(np.float64)
    return Scaling(low, _nonzero(high - low, x_train, axis))


def _numbers(x):
    """x as an array; TypeError unless it holds numbers."""
    x = np.asarray(x)
    if x.dtype.kind not in "biuf":
        raise TypeError(f"x must hold numbers, got dtype {x.dtype}")
    return x


def _training_data(x, axis):
    """x as an array of at least one sample; ValueError unless axis treats samples alike."""
    x = _numbers(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError("x_train must have shape (samples, ...) with at least one sample, got "
                         f"{x.shape}")
    if axis is not None and axis != 0:
        raise ValueError("axis is 0, for each feature by itself, or None, for all alike, got "
                         f"{axis!r}: every sample, in training and test, gets the same shift and "
                         "scale")
    return x


def _nonzero(scale, x_train, axis):
    """The scale, with 1 for constant features."""
    return np.where(x_train.max(axis) > x_train.min(axis), scale, 1)


def _pixels(images):
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= 255  # in place: for MNIST, another array would take 188 MB
    return pixels
