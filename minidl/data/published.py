"""The published image sets, MNIST and Fashion-MNIST: what they are, and how to get them here."""

import gzip
import hashlib
import os
import queue
import sys
import threading
import zipfile
from dataclasses import dataclass
from time import monotonic

import numpy as np

from ..console import bar, shows_bars
from ..files import (
    blaming,
    clean,
    idx_bytes,
    idx_parts,
    packed,
    parse_idx,
    read_idx,
    replacing,
    unzipped,
)

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SIZES = (47_040_016, 60_008, 7_840_016, 10_008)  # bytes of each unpacked, in all published sets
TIMEOUT = 20  # seconds that a mirror has to answer, and then may be behind SLOWEST
SLOWEST = 10_000  # bytes per second
LARGEST = packed(SIZES[0])  # bytes of a file as received; some proxies unpack it on the way


@dataclass(frozen=True)
class Published:
    """One set: mirrors, md5 of each of FILES unpacked, licence, packed size, others' folders."""

    mirrors: tuple
    md5: tuple
    licence: str
    megabytes: int
    folders: tuple


SETS = {
    "mnist": Published(
        mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/",
                 "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        md5=("6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
             "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637"),
        licence="CC BY-SA 3.0", megabytes=12, folders=("MNIST/raw",)),
    "fashion_mnist": Published(
        mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        md5=("f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
             "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965"),
        licence="MIT", megabytes=31, folders=("FashionMNIST/raw", "fashion-mnist"))}


def check(name, arrays, source):
    """ValueError that names the source unless the arrays are the published FILES, byte for byte."""
    for file, array in zip(FILES, arrays):
        _check_file(name, file, array, source)


def _check_file(name, file, array, source):
    """As `check`, for one file. The md5 is that of the IDX file, however it was packed."""
    expected = SETS[name].md5[FILES.index(file)]
    digest = hashlib.md5(usedforsecurity=False)
    for part in idx_parts(array.astype(np.uint8, copy=False)):
        digest.update(part)
    found = digest.hexdigest()
    if found != expected:
        owner = "".join(
            f" (that is {other}'s)" for other, published in SETS.items() if found in published.md5
        )
        raise ValueError(f"{source} is not the published {name}: {file} has md5 {found}{owner}, "
                         f"not {expected}")


def read(file, folder):
    """The array in one of the published FILES in a folder; a file too large is not unpacked."""
    return read_idx(folder / f"{file}.gz", SIZES[FILES.index(file)])


def fetch(name, folder):
    """Download the set's files into folder, each from the first mirror that has it.

    Each file is written whole or not at all; one that is there and right is kept. With
    $MINIDL_OFFLINE=1 nothing is downloaded. Raises FileNotFoundError that says what went wrong and
    how to fetch the files by hand.
    """
    for file in FILES:
        if _is_there(name, file, folder):
            continue
        if os.environ.get("MINIDL_OFFLINE", "0") not in ("", "0"):
            raise FileNotFoundError(
                f"{name} is not on this machine, and MINIDL_OFFLINE forbids downloading it.\n"
                + by_hand(name, folder))
        problems = []
        for url in urls(name, file):
            try:
                _install(name, file, folder, _download(url, most(file)))
                break
            # RuntimeError: a browser has no threads
            except (OSError, ValueError, RuntimeError) as error:
                # it may contain a server's text
                problems.append(f"{url}: {clean(error) or type(error).__name__}")
        # where open files cannot be replaced (Windows), another process may have been first
        if not _is_there(name, file, folder):
            raise FileNotFoundError(
                f"{name} is not on this machine and could not be downloaded:\n  "
                + "\n  ".join(problems) + "\n" + by_hand(name, folder))


def urls(name, file):
    """Where a file can be downloaded, one address per mirror."""
    return [f"{mirror}{file}.gz" for mirror in SETS[name].mirrors]


def by_hand(name, folder):
    """How to get a set without a download by this program, in words."""
    return (f"Fetch these files with a browser and put them into {folder} or a folder that "
            "MINIDL_DATA names\n  "
            + "\n  ".join(urls(name, file)[0] for file in FILES)
            + "\nor pack them on a machine that has them: python -m minidl data --pack sets.zip"
            + "\nand unpack them on this one: python -m minidl data --unpack sets.zip")


def pack(path, sets):
    """Write sets (name -> the four arrays) to one zip file that `unpack` takes on any machine."""
    with replacing(path) as target, zipfile.ZipFile(target, "w") as archive:
        for name, arrays in sets.items():
            for file, array in zip(FILES, arrays):
                archive.writestr(
                    f"{name}/{file}.gz", gzip.compress(idx_bytes(array.astype(np.uint8)), mtime=0)
                )


def unpack(path, cache):
    """Put the files of a zip by `pack` into cache; returns the sets' names, or ValueError."""
    refused = blaming(f"{path} cannot be unpacked")
    with open(path, "rb") as zipped, refused, zipfile.ZipFile(zipped) as archive:
        present = [name for name in SETS if f"{name}/{FILES[0]}.gz" in archive.namelist()]
        for name in present:
            for file in FILES:
                member = f"{name}/{file}.gz"
                with blaming(member):
                    content = unzipped(archive, archive.getinfo(member), most(file))
                    _install(name, file, cache / name, [content])
    if not present:
        raise ValueError(f"{path} holds no data set; `python -m minidl data --pack` writes such a "
                         "file")
    return present


def most(file):
    """The most bytes in which one of the published FILES can come, packed or not."""
    return min(LARGEST, packed(SIZES[FILES.index(file)]))


def _is_there(name, file, folder):
    try:
        _check_file(name, file, read(file, folder), folder)
        return True
    except (OSError, ValueError):
        return False


def _install(name, file, folder, pieces):
    """Write pieces of bytes as folder/file.gz; ValueError unless they are that published file."""
    content = b"".join(pieces)
    if content[:100].lstrip().startswith(b"<"):
        raise ValueError("the answer is a web page, perhaps of a network that wants a login first: "
                         "open the address in a browser")
    array = parse_idx(content, "the answer", SIZES[FILES.index(file)])
    _check_file(name, file, array, "the answer")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / f"{file}.gz") as target:
        target.write(content)


def _download(url, most):
    """Yield what a server answers, piece by piece.

    TimeoutError if it is too slow, ValueError if it is more than most, OSError for what else
    happens. A thread asks the server, and this one waits for it no longer than the clock allows:
    looking up the name, connecting, redirections, headers, lengths of chunks and what follows the
    data can all be made to last forever.
    """
    if not shows_bars():
        print(f"downloading {url}", file=sys.stderr, flush=True)
    # Takes as long as importing half of minidl, and no thread should do it.
    from urllib.request import Request, urlopen
    request = Request(url, headers={"User-Agent": "minidl"})
    pieces = queue.SimpleQueue()
    enough = threading.Event()

    def ask():
        try:
            with urlopen(request, timeout=TIMEOUT) as answer:
                size = answer.headers.get("Content-Length", "")
                pieces.put(int(size) if size.isdecimal() and len(size) < 20 else None)
                left = most
                while left >= 0 and not enough.is_set() and (piece := answer.read1(2 ** 16)):
                    left -= len(piece)
                    pieces.put(piece)
            pieces.put(b"")
        except Exception as error:  # its text only: the error itself keeps the connection open
            pieces.put(str(error) or type(error).__name__)

    threading.Thread(target=ask, daemon=True).start()
    patience, received = monotonic() + TIMEOUT, 0
    try:
        total = _next(pieces, patience, "no answer")
        if total is not None and total > most:
            raise ValueError(f"the answer would be {total:,} bytes long, at most {most:,} can be "
                             "right")
        with bar(total=total, desc=url.rsplit("/")[-1], unit="B", unit_scale=True) as progress:
            while piece := _next(pieces, patience, f"slower than {SLOWEST:,} bytes per second"):
                received += len(piece)
                if received > most:
                    raise ValueError(f"the answer is longer than {most:,} bytes")
                # Every byte earns time, but never more than TIMEOUT in advance.
                patience = min(patience + len(piece) / SLOWEST, monotonic() + TIMEOUT)
                progress.update(len(piece))
                yield piece
    finally:
        enough.set()


def _next(pieces, patience, complaint):
    """What the thread of `_download` put next: the answer's length, then bytes, none at the end.

    OSError for a text, the thread's error; TimeoutError with complaint when patience has ended.
    """
    try:
        piece = pieces.get(timeout=max(0, patience - monotonic()))
    except queue.Empty:
        raise TimeoutError(f"given up: {complaint} within the time allowed") from None
    if isinstance(piece, str):
        raise OSError(piece)
    return piece
