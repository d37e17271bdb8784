"""Data sets: find them on this machine, read them safely, cut them into batches."""

import os
from pathlib import Path

import numpy as np

from .files import read_idx

PACKAGE = Path(__file__).resolve().parent


def load(name="digits", root=None):
    """((x_train, y_train), (x_test, y_test)): images float32 (n, 784) in [0, 1], labels int64.

    name: "digits" (drawn by this project, always there), "mnist" or "fashion_mnist". root: a folder to look in
    first; then come $MINIDL_DATA, the project's datasets/ and the user's cache. MNIST is read from
    its IDX files, gzip or not; where there is only one pair of images and labels it is split 80/20, always alike.
    Raises FileNotFoundError that says what to put where, ValueError for a damaged file.
    """
    if name == "digits":
        arrays = _load_digits(_folders(root, name))
    elif name in ("mnist", "fashion_mnist"):
        arrays = _load_idx_folders(_folders(root, name), name)
    else:
        raise ValueError(f"unknown data set {name!r}; known are digits, fashion_mnist, mnist")
    x_train, y_train, x_test, y_test = arrays
    return (_pixels(x_train), y_train.astype(np.int64)), (_pixels(x_test), y_test.astype(np.int64))


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
    """((x, y), (x_held_out, y_held_out)): a random share of the samples is held out, the same for the same seed."""
    order = np.random.default_rng(seed).permutation(len(x))
    kept = order[:len(x) - round(share * len(x))]
    held_out = order[len(kept):]
    return (x[kept], y[kept]), (x[held_out], y[held_out])


def _folders(root, name):
    """Where to look, in this order; each place may also have a subfolder of the data set's name."""
    chosen = os.environ.get("MINIDL_DATA")
    for place, source in ((root, "root"), (chosen, "MINIDL_DATA")):
        if place and not Path(place).is_dir():
            raise FileNotFoundError(f"{source} names {place}, which is not a folder")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minidl"
    places = [root, chosen, PACKAGE.parent / "datasets", PACKAGE / "datasets", cache]
    return [folder for place in places if place for folder in (Path(place) / name, Path(place)) if folder.is_dir()]


def _find(folder, *names):
    """The paths of these files in the folder, each plain or .gz, or None if there is none; FileNotFoundError for a half."""
    paths = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in names]
    if any(paths) and not all(paths):
        missing = ", ".join(name for name, path in zip(names, paths) if path is None)
        raise FileNotFoundError(f"{folder} has only some of the files that belong together: {missing} (or .gz) is missing")
    return paths if all(paths) else None


def _missing(dataset, names, folders):
    return FileNotFoundError(f"data set {dataset!r} is not on this machine. Put {', '.join(names)} (or .gz) into a folder "
                             f"and name it in MINIDL_DATA. Looked in: {', '.join(map(str, folders)) or 'no folder exists'}")


def _load_idx_folders(folders, dataset):
    """x_train, y_train, x_test, y_test from four published files, or from one pair split 80/20."""
    train, test, lone = (f"{part}images-idx3-ubyte {part}labels-idx1-ubyte".split() for part in ("train-", "t10k-", ""))
    for folder in folders:
        pairs = [_load_pair(*paths) for names in (train, test, lone) if (paths := _find(folder, *names))]
        if len(pairs) > 1:
            return *pairs[0], *pairs[1]
        if pairs and len(pairs[0][0]) < 5:
            raise ValueError(f"{folder} has only {len(pairs[0][0])} images, too few to split into training and test images")
        if pairs:
            kept, held_out = split(*pairs[0])
            return *kept, *held_out
    raise _missing(dataset, train + test, folders)


def _load_pair(images_path, labels_path):
    images, labels = read_idx(images_path), read_idx(labels_path)
    _check_pair(images, labels, f"{images_path} and {labels_path}")
    return images, labels


def _load_digits(folders):
    """x_train, y_train, x_test, y_test from the first digits.npz, a file with these keys."""
    path = next((folder / "digits.npz" for folder in folders if (folder / "digits.npz").is_file()), None)
    if path is None:
        raise _missing("digits", ["digits.npz"], folders)
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = [file[key] for key in keys]
    except Exception as error:  # a broken zip file fails in a dozen ways inside zipfile, zlib and struct
        raise ValueError(f"{path} is damaged: it should be an npz file with {', '.join(keys)} ({error})") from None
    _check_pair(*arrays[:2], path)
    _check_pair(*arrays[2:], path)
    return arrays


def _check_pair(images, labels, source):
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{source}: expected images of 28 x 28 bytes, found {images.dtype} of shape {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),) or len(images) == 0:
        raise ValueError(f"{source}: {len(images)} images need as many labels, found shape {labels.shape}")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{source}: labels must be 0 to 9, found {labels.min()} to {labels.max()}")


def _pixels(images):
    return images.reshape(len(images), -1).astype(np.float32) / 255
