"""The published image sets, MNIST and Fashion-MNIST: what they are, and how to get them here."""

import gzip
import hashlib
import os
import sys
import zipfile
from dataclasses import dataclass
from time import monotonic

import numpy as np

from .files import blaming, idx_bytes, read_idx, replacing
from .progress import bar, shows_bars

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TIMEOUT = 20  # seconds to wait for an answer, or for a piece of one
SLOWEST = 10_000  # bytes per second; a mirror slower than that is given up after TIMEOUT
LARGEST = 2 ** 25  # bytes of a packed file; the largest published one has 26 million


@dataclass(frozen=True)
class Published:
    """One set: mirrors, md5 of each of FILES unpacked, licence, size packed, and the folders other packages keep it in."""

    mirrors: tuple
    md5: tuple
    licence: str
    megabytes: int
    folders: tuple


SETS = {
    "mnist": Published(
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        md5=("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
             "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
        licence="CC BY-SA 3.0", megabytes=12, folders=("MNIST/raw",)),
    "fashion_mnist": Published(
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        md5=("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
             "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
        licence="MIT", megabytes=31, folders=("FashionMNIST/raw", "fashion-mnist"))}


def check(name, arrays, source):
    """ValueError that names the source unless these arrays are, byte for byte, the published set's FILES."""
    for file, array in zip(FILES, arrays):
        _check_file(name, file, array, source)


def _check_file(name, file, array, source):
    """The same for one file. The md5 is that of the IDX file, however it was packed."""
    expected = SETS[name].md5[FILES.index(file)]
    found = hashlib.md5(idx_bytes(array.astype(np.uint8)), usedforsecurity=False).hexdigest()
    if found != expected:
        owner = "".join(f" (that is {other}'s)" for other, published in SETS.items() if found in published.md5)
        raise ValueError(f"{source} is not the published {name}: {file} has md5 {found}{owner}, not {expected}")


def fetch(name, folder):
    """Download the set's files into folder, each from the first mirror that gives it, whole or not at all.

    A file that is there and right is kept. With $MINIDL_OFFLINE=1 nothing is downloaded. Raises
    FileNotFoundError that says what went wrong and how to fetch the files by hand.
    """
    from http.client import HTTPException  # here and not above: it takes as long to import as half of minidl
    for file in FILES:
        if _is_there(name, file, folder):
            continue
        if os.environ.get("MINIDL_OFFLINE", "0") not in ("", "0"):
            raise FileNotFoundError(f"{name} is not on this machine, and MINIDL_OFFLINE forbids to download it.\n"
                                    + by_hand(name, folder))
        problems = []
        for url in urls(name, file):
            try:
                _install(name, file, folder, _download(url))
                break
            except (OSError, ValueError, HTTPException) as error:
                text = "".join(c if c.isprintable() else "?" for c in str(error))[:300]  # a server's words may be in it
                problems.append(f"{url}: {text or type(error).__name__}")
        if not _is_there(name, file, folder):  # where open files cannot be replaced (Windows), another process may be ahead
            raise FileNotFoundError(f"{name} is not on this machine and could not be downloaded:\n  "
                                    + "\n  ".join(problems) + "\n" + by_hand(name, folder))


def urls(name, file):
    """Where a file can be downloaded, one address per mirror."""
    return [f"{mirror}{file}.gz" for mirror in SETS[name].mirrors]


def by_hand(name, folder):
    """How to get a set without a download by this program, in words."""
    return (f"Fetch these files with a browser and put them into {folder} or a folder that MINIDL_DATA names\n  "
            + "\n  ".join(urls(name, file)[0] for file in FILES)
            + "\nor pack them on a machine that has them: python -m minidl data --pack sets.zip"
            + "\nand unpack them on this one: python -m minidl data --unpack sets.zip")


def pack(path, sets):
    """Write sets (name -> the four arrays) into one zip file that `unpack` takes, on any machine."""
    with replacing(path) as target, zipfile.ZipFile(target, "w") as archive:
        for name, arrays in sets.items():
            for file, array in zip(FILES, arrays):
                archive.writestr(f"{name}/{file}.gz", gzip.compress(idx_bytes(array.astype(np.uint8)), mtime=0))


def unpack(path, cache):
    """Put the files of a zip written by `pack` into cache; gives the names of the sets. ValueError if it is not one."""
    with blaming(f"{path} cannot be unpacked"), zipfile.ZipFile(path) as archive:
        present = [name for name in SETS if f"{name}/{FILES[0]}.gz" in archive.namelist()]
        for name in present:
            for file in FILES:
                _install(name, file, cache / name, [_member(archive, f"{name}/{file}.gz")])
    if not present:
        raise ValueError(f"{path} holds no data set; `python -m minidl data --pack` writes such a file")
    return present


def _member(archive, name):
    if archive.getinfo(name).file_size > LARGEST:
        raise ValueError(f"{name} is larger than any published file")
    return archive.read(name)


def _is_there(name, file, folder):
    try:
        _check_file(name, file, read_idx(folder / f"{file}.gz"), folder)
        return True
    except (OSError, ValueError):
        return False


def _install(name, file, folder, pieces):
    """Write pieces of bytes as folder/file.gz, if together they are that published file; else ValueError."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{file}.gz") as target:
        for piece in pieces:
            target.write(piece)
        target.flush()
        try:
            array = read_idx(target.name)
        except ValueError as error:
            raise ValueError(str(error).replace(target.name, "what came")) from None
        _check_file(name, file, array, "what came")


def _download(url):
    """Yield what a server answers, piece by piece; TimeoutError if it is too slow, ValueError if it is too much."""
    if not shows_bars():
        print(f"downloading {url}", file=sys.stderr, flush=True)
    from urllib.request import Request, urlopen
    request = Request(url, headers={"User-Agent": "minidl"})
    start, received = monotonic(), 0
    with urlopen(request, timeout=TIMEOUT) as answer:
        size = answer.headers.get("Content-Length", "")
        total, file = int(size) if size.isdecimal() else None, url.rsplit("/")[-1]
        with bar(total=total, desc=file, unit="B", unit_scale=True) as progress:
            while piece := answer.read1(2 ** 16):
                received += len(piece)
                if received > LARGEST:
                    raise ValueError(f"the answer is longer than {LARGEST:,} bytes")
                if monotonic() - start > TIMEOUT + received / SLOWEST:
                    raise TimeoutError(f"slower than {SLOWEST:,} bytes per second")
                progress.update(len(piece))
                yield piece
