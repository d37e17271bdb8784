"""Data sets: find them on this machine or fetch them, scale them, cut them into batches."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import published
from .files import blaming, read_idx, read_npz

PACKAGE = Path(__file__).resolve().parent
KEYS = ("x_train", "y_train", "x_test", "y_test")
LONE_PAIR = ("images-idx3-ubyte", "labels-idx1-ubyte")
NAMES = ("digits", *published.SETS)


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
            published.fetch(name, cache() / name)
        except FileNotFoundError as error:
            raise FileNotFoundError("\n".join([str(error), *unusable])) from None
        # These very files: `find` would stop at a damaged copy that lies beside them under another name.
        found = Found(tuple(published.read(file, cache() / name) for file in published.FILES), cache() / name)
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
        place = place and os.path.expanduser(place)
        if place and not Path(place).is_dir():
            raise FileNotFoundError(f"{source} names {place}, which is not a folder")
        if place and (found := _find_in(place, name, only_published=False)):
            return found, []
        if place:
            unusable.append(f"{source} names {place}, which has no files of {name}")
    home = Path(os.path.expanduser("~"))
    keras = Path(os.environ.get("KERAS_HOME") or home / ".keras") / "datasets"
    for place in (PACKAGE.parent / "datasets", PACKAGE / "datasets", cache(), keras, "", "data", home, home / "data"):
        try:
            if found := _find_in(place, name, only_published=True):
                return found, unusable
        except (OSError, ValueError) as error:
            unusable.append(f"not usable: {error}")
    if name == "digits":
        raise FileNotFoundError("\n".join([f"minidl is incomplete without digits.npz, install it anew: {PACKAGE}", *unusable]))
    return None, unusable


def cache():
    """The user's folder for downloaded data sets."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path(os.path.expanduser("~"), ".cache")) / "minidl"


def batches(x, y, size, rng=None):
    """Yield (x, y) in batches, each sample once; rng (a NumPy Generator) shuffles the samples, not the batches.

    A last batch of one sample joins the batch before it: one sample has no variance to normalise by.
    """
    if len(x) != len(y) or size < 1:
        raise ValueError(f"batches need as many labels as samples and a size of at least 1; "
                         f"got {len(x)} samples, {len(y)} labels, size {size}")
    return _batches(x, y, size, rng)


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
        raise ValueError(f"one_hot takes whole class numbers of shape (n,), got {y.dtype} of shape {y.shape}")
    classes = int(y.max()) + 1 if classes is None else classes
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels must be 0 to {classes - 1}, found {y.min()} to {y.max()}")
    return (y[:, None] == np.arange(classes)).astype(np.float32)


@dataclass
class Scaling:
    """x -> (x - shift) / scale, with numbers fitted on training data: call it on training and test data alike."""

    shift: np.ndarray
    scale: np.ndarray

    def __call__(self, x):
        """Any x whose shape ends like that of the training data's features; keeps the dtype of floats."""
        return ((x - self.shift) / self.scale).astype(x.dtype if x.dtype.kind == "f" else np.float32)


def standardization(x_train, axis=0):
    """The Scaling that gives x_train mean 0 and standard deviation 1.

    axis: 0 for each feature by itself, None for all pixels of images alike. A constant feature becomes 0.
    """
    return Scaling(x_train.mean(axis, np.float64), _nonzero(x_train.std(axis, np.float64), x_train, axis))


def min_max(x_train, axis=0):
    """The Scaling that maps the smallest value of x_train to 0 and the largest to 1; axis as in `standardization`."""
    low, high = x_train.min(axis).astype(np.float64), x_train.max(axis).astype(np.float64)
    return Scaling(low, _nonzero(high - low, x_train, axis))


def _nonzero(scale, x_train, axis):
    """The scale, with 1 for constant features."""
    return np.where(x_train.max(axis) > x_train.min(axis), scale, 1)


def _find_in(place, name, only_published):
    """The Found in a folder or in one of its usual subfolders, or None."""
    usual = published.SETS[name].folders if name in published.SETS else ()
    for folder in (Path(place, name), *(Path(place, sub) for sub in usual), Path(place)):
        found = _read_npz(folder / f"{name}.npz") or (_read_idx_files(folder) if name in published.SETS else None)
        if found:
            # A set of the published size claims to be the published one; other sizes are the user's own.
            claims = only_published or [len(a) for a in found.arrays] == [60_000, 60_000, 10_000, 10_000]
            found.own = name in published.SETS and not claims
            if name in published.SETS and claims:
                published.check(name, found.arrays, found.path)
            return found
    return None


def _read_npz(path):
    """The Found in an npz file with these KEYS, or None if there is no such file."""
    if not os.path.isfile(path):
        return None
    arrays = read_npz(path)
    if missing := [key for key in KEYS if key not in arrays]:
        raise ValueError(f"{path} has no {', '.join(missing)}; an npz file of images needs {', '.join(KEYS)}")
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    return Found((*_pair(x_train, y_train, path), *_pair(x_test, y_test, path)), path)


def _read_idx_files(folder):
    """The Found in four published files, or in one pair that is split 80/20; None if there is no such file."""
    pairs = [_pair(*map(read_idx, paths), " and ".join(map(str, paths)))
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
    return images.reshape(len(images), -1).astype(np.float32) / 255
