"""Files: write them whole or not at all, read them as if somebody had broken them."""

import gzip
import math
import os
import secrets
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np

IDX_UINT8 = 0x08  # the type code of unsigned bytes, the only one that image sets use
MOST_BYTES = 2 ** 30  # of one uncompressed file; MNIST's largest has 47 million


@contextmanager
def replacing(path):
    """A binary file to write into; it takes path's place when the block ends well, else it vanishes.

    Whatever happens, path is the old file or the new one, never half of one: the new one is written beside it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before the name points to it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_idx(path):
    """The array in an IDX file (two zero bytes, type, number of dimensions, sizes as big-endian uint32, data).

    gzip is recognised by its first bytes, not by the name. Raises ValueError that names file and fault; no
    more is ever held in memory than the file's header announces, and never over a gigabyte.
    """
    path = Path(path)
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        try:
            return _parse_idx(stream, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is damaged: its gzip data are broken ({error})") from None


def _parse_idx(stream, path):
    magic = _read(stream, 4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise ValueError(f"{path} is not an IDX file: it must begin with two zero bytes, but begins with {magic[:4].hex(' ')}")
    if magic[2] != IDX_UINT8:
        raise ValueError(f"{path}: IDX type 0x{magic[2]:02x} is not supported, only 0x08 (unsigned bytes)")
    sizes = _read(stream, 4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise ValueError(f"{path} is damaged: the header promises {magic[3]} dimensions and ends early")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4"))
    if not 1 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(f"{path} is damaged or empty: its header announces the shape {shape}")
    expected = math.prod(shape)
    if expected > MOST_BYTES:
        raise ValueError(f"{path} is damaged or no image file: its header announces {expected:,} bytes of shape {shape}")
    data = _read(stream, expected + 1)
    if len(data) != expected:
        found = f"only {len(data):,}" if len(data) < expected else "more"
        raise ValueError(f"{path} is damaged: shape {shape} needs {expected:,} bytes of data, the file has {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _read(stream, n):
    """Up to n bytes, piece by piece, so that memory grows with what is there and not with what is promised."""
    pieces, missing = [], n
    while missing:
        piece = stream.read(min(missing, 2 ** 20))
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def save(path, arrays):
    """Stand-in until the branch of files.py is merged."""
    with replacing(path) as file:
        np.savez(file, **arrays)


def load(path):
    """Stand-in until the branch of files.py is merged."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)
