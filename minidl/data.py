"""Data sets: find them on this machine or fetch them, scale them, cut them into batches."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import published
from .files import blaming, expanded, read_idx, read_npz
from .settings import is_number, is_whole
from .tensor import Tensor

PACKAGE = Path(__file__).resolve().parent
KEYS = ("x_train", "y_train", "x_test", "y_test")
LONE_PAIR = ("images-idx3-ubyte", "labels-idx1-ubyte")
NAMES = ("digits", *published.SETS)
# bytes of a whole set unpacked; some write labels as 8 bytes each
LARGEST = 2 * sum(published.SIZES)
# numbers that are scaled at a time: 2 MB of temporary arrays, however large the data
PIECE = 2 ** 18


def load(name="digits", root=None):
    """((x_train, y_train), (x_test, y_test)): images float32 (n, 784) in [0, 1], labels int64.

    name: "digits" (drawn by this project, always there), "mnist" or "fashion_mnist". Looked for in root and in
    $MINIDL_DATA, two folders that may hold any set of 28 x 28 images in IDX or npz files (a lone pair of images
    and labels is split 80/20, always alike); then in the project, in the user's cache and where Keras and torchvision
    keep their copies. There, and after a download, only the published files count, checked by md5.
    Raises FileNotFoundError that says what to put where, ValueError for a damaged file.
    """
    found, unusable = find(name, root)
    if found is None:
        try:
            folder = cache() / name
            published.fetch(name, folder)
        except FileNotFoundError as error:
            raise FileNotFoundError("\n".join([str(error), *unusable])) from None
        # These very files: `find` would stop at a damaged copy that lies beside them under another name.
        found = Found(tuple(published.read(file, folder) for file in published.FILES), folder)
    x_train, y_train, x_test, y_test = found.arrays
    return (_pixels(x_train), y_train.astype(np.int64)), (_pixels(x_test), y_test.astype(np.int64))


@dataclass
class Found:
    """A data set on this machine: x_train, y_train, x_test, y_test as they are stored, and where."""

    arrays: tuple
    path: Path
    own: bool = False  # some other images of the user's, put in the place of a published set


def find(name, root=None):
    """(Found or None, unusable): the data set where `load` would find it, without a download.

    unusable: a line for each folder of the user's without it, and for each copy elsewhere that is not the published set.
    Raises the errors of `load` but for a published set that is missing.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; known are {', '.join(sorted(NAMES))}")
    unusable = []
    for place, source in ((root, "root"), (os.environ.get("MINIDL_DATA"), "MINIDL_DATA")):
        place = place and expanded(place)
        if place and not place.is_dir():
            raise FileNotFoundError(f"{source} names {place}, which is not a folder")
        if place and (found := _find_in(place, name, only_published=False)):
            return found, []
        if place:
            unusable.append(f"{source} names {place}, which has no files of {name}")
    keras = os.environ.get("KERAS_HOME") or "~/.keras"
    for place in (PACKAGE.parent / "datasets", PACKAGE / "datasets", cache,
                  f"{keras}/datasets", "", "data", "~", "~/data"):
        try:
            place = cache() if place is cache else expanded(place)
        except FileNotFoundError:  # there is no home folder
            continue
        try:
            if found := _find_in(place, name, only_published=True):
                return found, unusable
        except (OSError, ValueError) as error:
            unusable.append(f"not usable: {error}")
    if name == "digits":
        raise FileNotFoundError("\n".join([f"minidl is incomplete without digits.npz, install it anew: {PACKAGE}", *unusable]))
    return None, unusable


def cache():
    """The user's folder for downloaded data sets.

    FileNotFoundError where the system names no home folder.
    """
    try:
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "minidl"
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no folder to keep data sets in: {error}. XDG_CACHE_HOME can "
                                "name one") from None


def batches(x, y, size, rng=None):
    """Yield (x, y) in batches, each sample once; rng (a NumPy Generator) shuffles the samples, not the batches.

    A last batch of one sample joins the batch before it: one sample has no variance to normalise by.
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
    """TypeError for what cannot shuffle: a seed would give the same order in every epoch."""
    if rng is not None and not hasattr(rng, "permutation"):
        raise TypeError("rng is a NumPy Generator, np.random.default_rng(0) for example, or "
                        f"None, got {rng!r}")


def _indexable(values):
    """An array or a Tensor as it is, anything else as an array: a list takes no list of places, a
    table takes columns.
    """
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
        chosen = slice(start, end) if order is None else order[start:end]
        yield x[chosen], y[chosen]


def split(x, y, share=0.2, seed=0):
    """((x, y), (x_held_out, y_held_out)): a random share of the samples is held out, the same for the same seed.

    For training and validation, or training and test. Raises ValueError if either part would be empty.
    """
    if not is_number(share) or not 0 < share < 1:
        raise ValueError("the share to hold out is a number between 0 and 1, 0.2 for example, "
                         f"got {share!r}")
    x, y = _indexable(x), _indexable(y)
    held = round(share * len(x))
    if len(x) != len(y) or not 0 < held < len(x):
        raise ValueError(f"cannot hold out a share of {share} of {len(x)} samples with {len(y)} labels")
    order = np.random.default_rng(seed).permutation(len(x))
    kept, held_out = order[:len(x) - held], order[len(x) - held:]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def one_hot(y, classes=None):
    """Class numbers (n,) as rows (n, classes) of zeros with a single one, float32. classes: largest label + 1 if left out."""
    y = np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) == 0:
        raise ValueError(f"one_hot takes whole class numbers of shape (n,), got {y.dtype} of "
                         f"shape {y.shape}; "
                         "y.reshape(-1).astype(int) makes them of a column or of floats")
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
    """x -> (x - shift) / scale, with numbers fitted on training data: call it on training and test data alike."""

    shift: np.ndarray
    scale: np.ndarray

    def __post_init__(self):
        finite = np.isfinite(self.shift).all() and np.isfinite(self.scale).all()
        if not finite or not np.all(self.scale):
            raise ValueError("a Scaling needs finite numbers, and no scale of 0: is there NaN or "
                             "inf in the training data? "
                             "np.argwhere(~np.isfinite(x)) finds them")

    def __call__(self, x):
        """Any x whose shape ends like that of the training data's features; keeps the dtype of
        floats.

        Raises ValueError for other shapes, although NumPy could broadcast some of them.
        """
        x, features = _numbers(x), np.broadcast_shapes(np.shape(self.shift), np.shape(self.scale))
        if x.shape[max(0, x.ndim - len(features)):] != features:
            raise ValueError(f"this Scaling was fitted on samples of shape {features}, but x of "
                             f"shape {x.shape} does not end "
                             "like that")
        result = np.empty(x.shape, x.dtype if x.dtype.kind == "f" else np.float32)
        samples, out = (a if a.ndim > len(features) else a[None] for a in (x, result))
        for source, target in zip(pieces(samples), pieces(out)):
            target[...] = (source - self.shift) / self.scale
        return result


def standardization(x_train, axis=0):
    """The Scaling that gives x_train mean 0 and standard deviation 1.

    axis: 0 for each feature by itself, None for all pixels of images alike. A constant feature becomes 0.
    """
    x_train = _training_data(x_train, axis)
    with np.errstate(invalid="ignore", over="ignore"):  # of inf and NaN; Scaling says so
        mean = x_train.mean(axis, np.float64)
        squares = sum(((piece - mean) ** 2).sum(axis) for piece in pieces(x_train))
    deviation = np.sqrt(squares / (len(x_train) if axis == 0 else x_train.size))
    return Scaling(mean, _nonzero(deviation, x_train, axis))


def min_max(x_train, axis=0):
    """The Scaling that maps the smallest value of x_train to 0 and the largest to 1; axis as in `standardization`."""
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
    """x as an array of at least one sample; ValueError for an axis that would not scale all samples
    alike.
    """
    x = _numbers(x)
    if x.ndim == 0 or x.size == 0:
        raise ValueError("x_train must have shape (samples, ...) with at least one sample, got "
                         f"{x.shape}")
    if axis is not None and axis != 0:
        raise ValueError("axis is 0, for each feature by itself, or None, for all alike, got "
                         f"{axis!r}: every sample, in "
                         "training and test, gets the same shift and scale")
    return x


def pieces(x):
    """The samples of x in pieces, views, of about PIECE numbers: who checks or converts one after
    the other needs little memory.
    """
    step = max(1, PIECE // max(1, math.prod(x.shape[1:])))
    return (x[start:start + step] for start in range(0, len(x), step))


def _nonzero(scale, x_train, axis):
    """The scale, with 1 for constant features."""
    return np.where(x_train.max(axis) > x_train.min(axis), scale, 1)


def _find_in(place, name, only_published):
    """The Found in a folder or in one of its usual subfolders, or None."""
    usual = published.SETS[name].folders if name in published.SETS else ()
    for folder in (Path(place, name), *(Path(place, sub) for sub in usual), Path(place)):
        most = LARGEST if only_published else math.inf
        found = _read_npz(folder / f"{name}.npz", most)
        if not found and name in published.SETS:
            found = _read_idx_files(folder, most)
        if found:
            # A set of the published size claims to be the published one; other sizes are the user's own.
            claims = only_published or [len(a) for a in found.arrays] == [60_000, 60_000, 10_000, 10_000]
            found.own = name in published.SETS and not claims
            if name in published.SETS and claims:
                published.check(name, found.arrays, found.path)
            return found
    return None


def _read_npz(path, most):
    """The Found in an npz file with these KEYS, or None if there is no such file."""
    if not os.path.isfile(path):
        return None
    arrays = read_npz(path, most)
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; an npz file of images needs {', '.join(KEYS)}")
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    return Found((*_pair(x_train, y_train, path), *_pair(x_test, y_test, path)), path)


def _read_idx_files(folder, most):
    """The Found in four published files, or in one pair that is split 80/20; None if there is no such file."""
    pairs = [_pair(*(read_idx(path, most) for path in paths), " and ".join(map(str, paths)))
             for names in (published.FILES[:2], published.FILES[2:], LONE_PAIR) if (paths := _paths(folder, names))]
    if len(pairs) == 1:
        with blaming(folder):
            pairs = split(*pairs[0])
    return Found((*pairs[0], *pairs[1]), folder) if pairs else None


def _paths(folder, names):
    """The paths of these files, each plain or .gz; None if there is none, FileNotFoundError if only some are there.

    Some programs unpack `train-images-idx3-ubyte.gz` as `train-images.idx3-ubyte`.
    """
    spellings = [(name, f"{name}.gz", name.replace("-idx", ".idx")) for name in names]
    paths = [next((folder / s for s in written if os.path.isfile(folder / s)), None) for written in spellings]
    if any(paths) and not all(paths):
        missing = ", ".join(name for name, path in zip(names, paths) if path is None)
        raise FileNotFoundError(f"{folder} has only some of the files that belong together: {missing} (or .gz) is missing")
    return paths if all(paths) else None


def _pair(images, labels, source):
    """The two arrays, if they are images of digits and their labels; else ValueError that names the source."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{source}: expected images of 28 x 28 bytes, found {images.dtype} of shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or len(images) == 0:
        raise ValueError(f"{source}: {len(images)} images need as many labels, found shape {labels.shape}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source}: labels must be 0 to 9, found {labels.min()} to {labels.max()}")
    return images, labels


def _pixels(images):
    pixels = images.reshape(len(images), -1).astype(np.float32)
    pixels /= 255  # in place: of MNIST, a further array would take 188 MB
    return pixels
