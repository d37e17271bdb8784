"""Where data sets are: in the user's folders, in the project, in other libraries' caches."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..batching import split
from ..files import blaming, expanded, read_idx, read_npz
from . import published, toy

PACKAGE = Path(__file__).resolve().parent.parent
KEYS = ("x_train", "y_train", "x_test", "y_test")
LONE_PAIR = ("images-idx3-ubyte", "labels-idx1-ubyte")
NAMES = ("digits", *published.SETS)
# bytes of a whole set unpacked; some write labels as 8 bytes each
LARGEST = 2 * sum(published.SIZES)


@dataclass
class Found:
    """A data set on this machine: x_train, y_train, x_test, y_test as stored, and where."""

    arrays: tuple
    path: Path
    own: bool = False  # images of the user's own, in place of a published set


def find(name, root=None):
    """(Found or None, unusable): the data set where `load` would find it, without a download.

    unusable: a line for each folder of the user's without it, and for each copy elsewhere that is
    not the published set. Raises the errors of `load` but for a published set that is missing.
    """
    if name not in NAMES:
        known = ", ".join(sorted([*NAMES, *toy.SETS]))
        raise ValueError(f"unknown data set {name!r}; known are {known}")
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
        raise FileNotFoundError("\n".join(["minidl is incomplete without digits.npz, reinstall "
                                           f"it: {PACKAGE}", *unusable]))
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


def _find_in(place, name, only_published):
    """The Found in a folder or in one of its usual subfolders, or None."""
    usual = published.SETS[name].folders if name in published.SETS else ()
    for folder in (Path(place, name), *(Path(place, sub) for sub in usual), Path(place)):
        most = LARGEST if only_published else math.inf
        found = _read_npz(folder / f"{name}.npz", most)
        if not found and name in published.SETS:
            found = _read_idx_files(folder, most)
        if found:
            # A set of the published size counts as the published one; other sizes are the user's.
            claims = only_published or [len(a) for a in found.arrays] == [
                60_000,
                60_000,
                10_000,
                10_000,
            ]
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
        raise ValueError(f"{path} has no {', '.join(missing)}; an npz file of images needs "
                         f"{', '.join(KEYS)}")
    x_train, y_train, x_test, y_test = (arrays[key] for key in KEYS)
    return Found((*_pair(x_train, y_train, path), *_pair(x_test, y_test, path)), path)


def _read_idx_files(folder, most):
    """The Found in four published files, or in one pair (split 80/20); None if there are none."""
    pairs = [
        _pair(*(read_idx(path, most) for path in paths), " and ".join(map(str, paths)))
        for names in (published.FILES[:2], published.FILES[2:], LONE_PAIR)
        if (paths := _paths(folder, names))
    ]
    if len(pairs) == 1:
        with blaming(folder):
            pairs = split(*pairs[0])
    return Found((*pairs[0], *pairs[1]), folder) if pairs else None


def _paths(folder, names):
    """The paths of these files, each plain or .gz; None if there are none.

    FileNotFoundError if only some are there. Some programs unpack `train-images-idx3-ubyte.gz` as
    `train-images.idx3-ubyte`.
    """
    spellings = [(name, f"{name}.gz", name.replace("-idx", ".idx")) for name in names]
    paths = [
        next((folder / s for s in written if os.path.isfile(folder / s)), None)
        for written in spellings
    ]
    if any(paths) and not all(paths):
        missing = ", ".join(name for name, path in zip(names, paths) if path is None)
        raise FileNotFoundError(f"{folder} has only some of the files that belong together: "
                                f"{missing} (or .gz) is missing")
    return paths if all(paths) else None


def _pair(images, labels, source):
    """The two arrays, if they are images of digits and their labels; else ValueError."""
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{source}: expected images of 28 x 28 bytes, found {images.dtype} of "
                         f"shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or len(images) == 0:
        raise ValueError(f"{source}: {len(images)} images need as many labels, found shape "
                         f"{labels.shape}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source}: labels must be 0 to 9, found {labels.min()} to {labels.max()}")
    return images, labels
