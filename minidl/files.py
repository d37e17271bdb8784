"""Files: write them whole or not at all, read them as if somebody had broken them.

Named arrays go to .npz or .safetensors and never through pickle, so that no file can run code. A reader first takes the
file's bytes, which gives the usual OSErrors, then parses them: whatever is wrong with the content is a ValueError that
names file and fault, and no more memory is taken than the file's size justifies (`_check_announced`).
"""

import csv
import gzip
import io
import json
import math
import os
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

IDX_MAGIC = b"\0\0\x08"  # two zeros and the type code of unsigned bytes, the only one that image sets use
MOST_HEADER = 100_000_000  # bytes of a safetensors header, the bound of the reference implementation
# What can be stored: NumPy's and safetensors' names, in the order in which the latter lays arrays out, large items first.
DTYPES = {"uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32", "int32": "I32",
          "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL"}


@contextmanager
def replacing(path):
    """A binary file to write into; it takes path's place when the block ends well, else it vanishes.

    Whatever happens, path is the old file or the new one, never half of one: the new one is written beside it. A
    process that is killed leaves that hidden file (.name.*.tmp) behind; nobody removes it, it could be another's at work.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before the name points to it
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def blaming(what):
    """Turn any error of the block into a ValueError that begins with what, the file or the part of it at fault."""
    try:
        yield
    except Exception as error:  # broken content fails in a dozen ways inside gzip, zipfile, zlib, struct, ast and json
        raise ValueError(f"{what}: {str(error)[:300] or type(error).__name__}") from None


def _check_announced(announced, size):
    """Refuse a file that announces more than 1 MiB + 200 times its size: real images deflate to a fifth, bombs to 1/1000."""
    most = 2 ** 20 + 200 * size
    if announced > most:
        raise ValueError(f"it announces {announced:,} bytes, from a file of {size:,} bytes at most {most:,} are believed")


def _array(data, dtype, shape, order="C"):
    """A writable array in this machine's byte order, copied from data, which must be as long as dtype and shape say."""
    if dtype.name not in DTYPES:
        raise ValueError(f"dtype {dtype} is not supported, only {', '.join(DTYPES)}")
    if len(shape) > 64 or not all(type(n) is int and 0 <= n < 2 ** 63 for n in shape):
        raise ValueError(f"not the shape of an array: {shape}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"shape {shape} of {dtype} needs {expected:,} bytes, there are {len(data):,}")
    return np.ndarray(shape, dtype, data, order=order).astype(dtype.newbyteorder("="), order="C")


def read_idx(path):
    """The uint8 array, read-only, in an IDX file: 0, 0, type, number of dimensions, sizes as big-endian uint32, data.

    gzip is recognised by its first bytes, not by the name. Raises ValueError for all but 1 to 4 dimensions of unsigned
    bytes, for more or less data than announced, and where more is announced than 1 MiB + 200 times the file's size.
    """
    content = Path(path).read_bytes()
    with blaming(f"{path} is damaged or not an IDX file"):
        stream = io.BytesIO(content)
        if content[:2] == b"\x1f\x8b":
            stream = gzip.GzipFile(fileobj=stream)
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != IDX_MAGIC or not 1 <= magic[3] <= 4:
            raise ValueError(f"it should begin with the bytes 00 00 08 (unsigned bytes) and 01 to 04 (dimensions), "
                             f"not with {magic.hex(' ') or 'nothing'}")
        sizes = stream.read(4 * magic[3])
        if len(sizes) < 4 * magic[3]:
            raise ValueError(f"its header of {magic[3]} dimensions ends early")
        shape = tuple(np.frombuffer(sizes, ">u4").tolist())
        expected = math.prod(shape)
        _check_announced(expected, len(content))
        data = stream.read(expected + 1)  # one more: to see that nothing follows
        if len(data) != expected:
            found = f"only {len(data):,}" if len(data) < expected else "more"
            raise ValueError(f"shape {shape} needs {expected:,} bytes of data, the file has {found}")
        return np.frombuffer(data, np.uint8).reshape(shape)


def idx_bytes(array):
    """The IDX file of a uint8 array as bytes, not gzipped: of these the published checksums of MNIST's files are made."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= 4:
        raise ValueError(f"an IDX file holds 1 to 4 dimensions of uint8, not {array.ndim} of {array.dtype}")
    return IDX_MAGIC + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def save(path, arrays):
    """Write a dict of name -> array into a .npz or .safetensors file, whole or not at all; `load` gives it back.

    Arrays are of bool, integers or floats up to 64 bits, of any shape. Raises ValueError for others, for names that some
    format cannot hold and for another suffix; an old file is then untouched.
    """
    (write_npz if checked_suffix(path) == ".npz" else write_safetensors)(path, arrays)


def load(path):
    """The dict of name -> array in a .npz or .safetensors file; ValueError if it is damaged or has another suffix."""
    return (read_npz if checked_suffix(path) == ".npz" else read_safetensors)(path)


def checked_suffix(path):
    """The suffix of path, .npz or .safetensors; ValueError for any other."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: the suffix says how arrays are stored and must be .npz or .safetensors, not {suffix!r}")
    return suffix


def _storable(path, arrays):
    """The arrays in C order and little-endian; ValueError for names or dtypes that a format here cannot hold."""
    result = {}
    for name, value in arrays.items():
        # npz strips .npy and turns \ into / on some systems, safetensors reserves one name: no two names may become one.
        text = isinstance(name, str) and name.isprintable() and "\\" not in name
        if not text or name.endswith(".npy") or name in ("", "__metadata__"):
            raise ValueError(f"cannot save to {path}: {name!r} cannot be an array's name; it must be printable text without "
                             r"\, must not end in .npy and not be __metadata__")
        array = np.asarray(value)
        if array.dtype.name not in DTYPES:
            raise ValueError(f"cannot save to {path}: {name!r} has dtype {array.dtype}, which is none of {', '.join(DTYPES)}")
        result[name] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return result


def read_npz(path):
    """The dict of name -> array in an npz file, a zip file of .npy members, stored or deflated.

    Raises ValueError that names file, member and fault: other members, two of one name, encryption, wrong checksums, objects,
    data that do not fill their shape, members that announce more than 1 MiB + 200 times the file's size in all. `np.load`
    would allocate whatever a header announces before it looks for the data.
    """
    content, arrays = Path(path).read_bytes(), {}
    with blaming(f"{path} is damaged or not an npz file"), zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        _check_announced(sum(member.file_size for member in members), len(content))
        for member in members:
            with blaming(f"member {member.filename!r}"):
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in arrays:
                    raise ValueError("its name does not end in .npy or occurs twice")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # lzma takes memory as it likes
                    raise ValueError(f"compression {member.compress_type} is not supported, only 0 (stored) and 8 (deflated)")
                with archive.open(member) as stream:
                    arrays[name] = _parse_npy(stream.read(member.file_size))  # read() without a size is unbounded
    return arrays


def _parse_npy(data):
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("only version 1.0 of the npy format is supported; the others are for structured arrays")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    return _array(memoryview(data)[stream.tell():], dtype, shape, "F" if fortran_order else "C")


def write_npz(path, arrays):
    """Write a dict of name -> array as npz, whole or not at all: stored, not deflated, since weights do not shrink.

    `np.load` reads it, too. Equal arrays in equal order give equal bytes: the date in the file is always 1980.
    """
    arrays = _storable(path, arrays)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_safetensors(path):
    """The dict of name -> array in a safetensors file, in the order of their data.

    That is the header's length (8 bytes, little-endian), the header (JSON), the arrays' bytes, all little-endian; see
    https://huggingface.co/docs/safetensors. Raises ValueError that names file, array and fault: a header that is longer
    than the file, no JSON or ambiguous, unknown dtypes, impossible shapes, data that overlap or leave holes.
    """
    content = memoryview(Path(path).read_bytes())
    arrays, position = {}, 0
    with blaming(f"{path} is damaged or not a safetensors file"):
        length = int.from_bytes(content[:8], "little")
        if length > min(len(content) - 8, MOST_HEADER) or content[8:9] != b"{":
            raise ValueError(f"it should begin with its header's length and {{, but the length would be {length:,} bytes")
        header, data = bytes(content[8:8 + length]), content[8 + length:]
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unambiguous)
        _check_metadata(entries.pop("__metadata__", {}))
        names = {code: name for name, code in DTYPES.items()}
        for name, entry in entries.items():
            with blaming(f"array {name!r}"):
                _check_entry(entry)
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            with blaming(f"array {name!r}"):
                begin, end = entry["data_offsets"]
                if begin != position or end < begin:  # data that leave the file are too short for their shape
                    raise ValueError(f"data from {begin} to {end} do not follow the data before, which end at {position}")
                dtype = np.dtype(names[entry["dtype"]]).newbyteorder("<")
                arrays[name] = _array(data[begin:end], dtype, tuple(entry["shape"]))
                position = end
        if position != len(data):
            raise ValueError(f"the arrays end after {position:,} bytes of data, but there are {len(data):,}")
    return arrays


def _unambiguous(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("its header has a key twice")
    return dict(pairs)


def _check_metadata(metadata):
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError("metadata must be a dict from str to str")


def _check_entry(entry):
    if (set(entry) != {"dtype", "shape", "data_offsets"} or not isinstance(entry["shape"], list)
            or [type(n) for n in entry["data_offsets"]] != [int, int]):
        raise ValueError(f"expected dtype, shape [...] and data_offsets [begin, end], found {entry}")
    if entry["dtype"] not in DTYPES.values():
        raise ValueError(f"NumPy has no dtype {entry['dtype']!r}, only {', '.join(DTYPES.values())}")


def write_safetensors(path, arrays, metadata=None):
    """Write a dict of name -> array as safetensors, whole or not at all; metadata: a dict of str -> str for other readers.

    Arrays with the largest items come first, then in order of their names, and the header is padded with spaces: every
    array begins at a multiple of its item size, as the format asks.
    """
    _check_metadata(metadata or {})
    arrays = sorted(_storable(path, arrays).items(), key=lambda item: (list(DTYPES).index(item[1].dtype.name), item[0]))
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in arrays:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in arrays:
            file.write(array.tobytes())


def write_csv(path, names, rows):
    """A CSV file with a line of names and one line per row, whole or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([names, *rows])
    with replacing(path) as file:
        file.write(text.getvalue().encode())
