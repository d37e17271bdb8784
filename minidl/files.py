"""Files: write them whole or not at all, read them as if somebody had broken them.

Named arrays go to .npz or .safetensors and never through pickle, so that no file can run code. A
reader first takes the file's bytes, which raises the usual OSErrors, then parses them: whatever is
wrong with the content is a ValueError that names file and fault. Announced sizes are bounded before
anything is allocated (`_check_announced`), by the file's own size or by what is known of it; the
time and memory of every parser grow no faster than the file.
"""

import csv
import errno
import gzip
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
import warnings
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep

import numpy as np

# two zeros and the type code of unsigned bytes, the only one that image sets use
IDX_MAGIC = b"\0\0\x08"
# bytes of a safetensors header, the bound of the reference implementation
MOST_HEADER = 100_000_000
MOST_ENTRY = 4_000  # characters of an array's entry in it; 64 sizes of 20 digits take 1,400
MOST_NPY_HEADER = 10_000  # bytes of an .npy's header, NumPy's own bound
MOST_NAME = 10_000  # characters of an array's name; zip files hold 65,535 bytes
# What can be stored: NumPy's and safetensors' names, in the latter's order of arrays: large items
# first.
DTYPES = {"uint64": "U64", "int64": "I64", "float64": "F64", "float32": "F32", "uint32": "U32",
          "int32": "I32", "float16": "F16", "uint16": "U16", "int16": "I16", "int8": "I8",
          "uint8": "U8", "bool": "BOOL"}
NPY_CODES = {np.dtype(name).str[1:]: name for name in DTYPES}  # {"f4": "float32", ...}
QUOTES = "'\""
NPY_FIELD = re.compile(r"""\s*(?P<q>['"])(?P<key>descr|fortran_order|shape)(?P=q)\s*:"""
                       r"""\s*(?P<value>'[^'"]*'|"[^'"]*"|\[[^\[\]]*\]|\([^()]*\)|True|False)"""
                       r"""\s*(,|(?=}))""")
# Python 2 wrote an L behind long integers.
NPY_SHAPE = re.compile(r"\((\s*\d{1,19}L?\s*,)*(\s*\d{1,19}L?)?\s*\)")
JSON_SPACE = re.compile(r"[ \t\n\r]*")


@contextmanager
def replacing(path):
    """A binary file to write into; it takes path's place when the block ends well, or vanishes.

    Whatever happens, path is the old file or the new one, never half of one: the new one is written
    beside it. A process that is killed leaves that hidden file (.name.*.tmp) behind; nobody removes
    it, it could be another's at work. A link stays and the file that it points to is replaced;
    owner and permissions stay as they were. What is no regular file, such as a pipe or /dev/null,
    is not replaced but written into, when the block has ended well.
    """
    path = Path(path)
    try:
        old = os.stat(path)  # of the file behind a link
    except FileNotFoundError:
        old = None
    if old and stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(f"{path} is a folder, not a file to write")
    if old and not stat.S_ISREG(old.st_mode):
        # Writing a zip file seeks back, and half of one is of no use.
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with _pipe(path) if stat.S_ISFIFO(old.st_mode) else open(path, "wb") as target:
                shutil.copyfileobj(file, target)
        return
    # Replacing it would need only the right to write to its folder.
    if old and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected", str(path))
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    short = target.name[:40]  # names have at most 255 bytes
    temporary = target.with_name(f".{short}.{os.urandom(4).hex()}.tmp")
    try:
        with _created(temporary, target, old) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # on the disk before the name points to it
        with _naming(target):
            os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _naming(target):
    """Errors of the block name the target, not the temporary file, which the user never sees."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"cannot write {target}: there is no folder "
                                f"{target.parent}") from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _created(temporary, target, old):
    """A new file, open for writing, with owner and permissions of the old one, if there is one."""
    # The old file's from the start, so that a secret stays one at every moment.
    permissions = 0o666 if old is None else old.st_mode & 0o777
    with _naming(target):
        file = open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, permissions))
    if old is not None:
        with suppress(OSError, AttributeError):  # only root gives files away; Windows has no chown
            os.chown(temporary, old.st_uid, old.st_gid)
        with suppress(OSError):  # some file systems have no permissions
            os.chmod(temporary, permissions)
    return file


def _pipe(path):
    """A named pipe to write to; a warning and the null device if nobody reads from it.

    Starting both ends may take a moment, so it is tried for a second.
    """
    for _ in range(20):
        try:
            file = open(path, "wb", opener=_open_at_once)
            os.set_blocking(file.fileno(), True)
            return file
        except OSError as error:
            if error.errno != errno.ENXIO:  # "no such device or address": the other end is not open
                raise
            sleep(0.05)
    warnings.warn(f"nobody reads from the pipe {path}: nothing was written",
                  RuntimeWarning, stacklevel=5)
    return open(os.devnull, "wb")


def _sync(folder):
    """Put a folder's names on the disk, where the system can: Windows does not open folders."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def clean(text, most=300):
    """Text from a file or a server, for a message: no control characters, cut to `most` characters.

    Escape codes would reach the terminal; line breaks and marks of writing direction would fake a
    message.
    """
    text = str(text)
    cut = text if len(text) <= most else text[:most - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in cut)


def listed(names, most=10):
    """Names from a file, for a message: cleaned, at most `most`, and the number of others."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(clean(name, 80) for name in names[:most]) + more


def shapes(arrays):
    """{name: shape} of named arrays."""
    return {name: array.shape for name, array in arrays.items()}


def expanded(path):
    """A Path whose ~ is the home folder.

    FileNotFoundError where there is none: else a folder named ~ would appear.
    """
    path = os.path.expanduser(os.fspath(path))
    if re.match(r"~(?![^/\\])", path):
        raise FileNotFoundError(f"this system names no home folder (HOME is not set), so {path} is "
                                "nowhere: name a folder without ~, or set HOME")
    return Path(path)


@contextmanager
def blaming(what):
    """Turn any error of the block into a ValueError that begins with what is at fault."""
    try:
        yield
    except Exception as error:  # broken content fails in a dozen ways in gzip, zipfile and zlib
        raise ValueError(f"{what}: {clean(error) or type(error).__name__}") from None


def _content(path, most=math.inf):
    """The bytes of a regular file.

    ValueError for one larger than most, and for pipes and devices, which may never end.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is no regular file")
        if status.st_size > most:
            raise ValueError(f"{path} has {status.st_size:,} bytes, more than the {most:,} that "
                             "it can need")
        return file.read(status.st_size)


def _open_at_once(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer


def _check_announced(announced, size, most=math.inf):
    """Refuse a file that announces more than 1 MiB + 200 times its size.

    Real images deflate to a fifth, bombs to 1/1000. most: how much can be right, if that is known.
    """
    believed = min(most, 2 ** 20 + 200 * size)
    if announced > believed:
        raise ValueError(f"it announces {announced:,} bytes, from a file of {size:,} bytes at most "
                         f"{believed:,} are believed")


def _check_name(name):
    """ValueError for an array's name that could not be saved, or that has no place in a message."""
    # npz strips .npy and turns \ into / on some systems, safetensors reserves one name: no two
    # names may become the same.
    text = isinstance(name, str) and name.isprintable() and len(name) <= MOST_NAME
    if not text or "\\" in name or name.endswith(".npy") or name in ("", "__metadata__"):
        raise ValueError(f"{quoted(name)} cannot be an array's name; it must be printable text "
                         f"without \\, at most {MOST_NAME:,} characters, must not end in .npy and "
                         "not be __metadata__")


def quoted(name):
    """A name from a file in quotation marks, cut, with its control characters written out."""
    return clean(repr(name), 80)


def _array(data, dtype, shape, order="C"):
    """A writable array in this machine's byte order, from data as long as dtype and shape say."""
    if len(shape) > 64 or not all(type(n) is int and 0 <= n < 2 ** 63 for n in shape):
        raise ValueError(f"not the shape of an array: {clean(shape)}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise ValueError(f"shape {shape} of {dtype} needs {expected:,} bytes, there are "
                         f"{len(data):,}")
    return np.ndarray(shape, dtype, data, order=order).astype(dtype.newbyteorder("="), order="C")


def read_idx(path, most=math.inf):
    """The uint8 array in an IDX file, read-only.

    The file: 0, 0, type, number of dimensions, sizes as big-endian uint32, data. gzip is recognised
    by its first bytes, not by the name. most: bytes of the unpacked file, if its largest possible
    size is known. Raises ValueError for all but 1 to 4 dimensions of unsigned bytes, for more or
    less data than announced, and where more is announced than most, or than 1 MiB + 200 times the
    file's size.
    """
    return parse_idx(_content(path, packed(most)), path, most)


def packed(most):
    """The bytes of the largest gzip file that most bytes need: some grow a little."""
    return most + most // 1000 + 1000 if most < math.inf else most


def parse_idx(content, source, most=math.inf):
    """The array in the bytes of an IDX file, as `read_idx`; source: how errors call them."""
    with blaming(f"{source} is damaged or not an IDX file"):
        stream = io.BytesIO(content)
        if content[:2] == b"\x1f\x8b":
            stream = gzip.GzipFile(fileobj=stream)
        magic = stream.read(4)
        if len(magic) < 4 or magic[:3] != IDX_MAGIC or not 1 <= magic[3] <= 4:
            raise ValueError("it should begin with the bytes 00 00 08 (unsigned bytes) and 01 to "
                             f"04 (dimensions), not with {magic.hex(' ') or 'nothing'}")
        sizes = stream.read(4 * magic[3])
        if len(sizes) < 4 * magic[3]:
            raise ValueError(f"its header of {magic[3]} dimensions ends early")
        shape = tuple(np.frombuffer(sizes, ">u4").tolist())
        expected = math.prod(shape)
        _check_announced(expected, len(content), most)
        data = stream.read(expected + 1)  # one more: to see that nothing follows
        if len(data) != expected:
            found = f"only {len(data):,}" if len(data) < expected else "more"
            raise ValueError(f"shape {shape} needs {expected:,} bytes of data, the file has "
                             f"{found}")
        return np.frombuffer(data, np.uint8).reshape(shape)


def idx_bytes(array):
    """The IDX file of a uint8 array as bytes, not gzipped: MNIST's checksums are of these."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= 4:
        raise ValueError(f"an IDX file holds 1 to 4 dimensions of uint8, not {array.ndim} of "
                         f"{array.dtype}")
    return b"".join(idx_parts(array))


def idx_parts(array):
    """The same in two parts, header and data, without copying an array in C order."""
    header = IDX_MAGIC + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header, memoryview(np.ascontiguousarray(array))


def save(path, arrays):
    """Write a dict of name -> array to a .npz or .safetensors file, whole or not at all.

    `load` reads it back. Arrays are of bool, integers or floats up to 64 bits, of any shape. Raises
    ValueError for others, for names that some format cannot hold and for another suffix; an old
    file is then untouched.
    """
    (write_npz if checked_suffix(path) == ".npz" else write_safetensors)(path, arrays)


def load(path):
    """The dict of name -> array in a .npz or .safetensors file; else ValueError."""
    return (read_npz if checked_suffix(path) == ".npz" else read_safetensors)(path)


def checked_suffix(path):
    """The suffix of path, .npz or .safetensors; ValueError for any other."""
    suffix = Path(path).suffix
    if suffix not in (".npz", ".safetensors"):
        raise ValueError(f"{path}: the suffix says how arrays are stored and must be .npz or "
                         f".safetensors, not {suffix!r}")
    return suffix


def _storable(path, arrays):
    """The arrays in C order, little-endian; ValueError for other names or dtypes."""
    result = {}
    for name, value in arrays.items():
        with blaming(f"cannot save to {path}"):
            _check_name(name)
        array = np.asarray(value)
        if array.dtype.name not in DTYPES:
            raise ValueError(f"cannot save to {path}: {name!r} has dtype {array.dtype}, which is "
                             f"none of {', '.join(DTYPES)}")
        result[name] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return result


def read_npz(path, most=math.inf):
    """The dict of name -> array in an npz file, a zip file of .npy members, stored or deflated.

    Raises ValueError that names file, member and fault: other members, two of one name, encryption,
    wrong checksums, objects, data that do not fill their shape, members that announce more than 1
    MiB + 200 times the file's size in all, or more than most bytes. `np.load` would allocate
    whatever a header announces before it looks for the data.
    """
    content, arrays = _content(path, packed(most)), {}
    damaged = blaming(f"{path} is damaged or not an npz file")
    with damaged, zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        _check_announced(sum(member.file_size for member in members), len(content), most)
        for member in members:
            with blaming(f"member {quoted(member.filename)}"):
                name = member.filename.removesuffix(".npy")
                if name == member.filename or name in arrays:
                    raise ValueError("its name does not end in .npy or occurs twice")
                _check_name(name)
                arrays[name] = _parse_npy(unzipped(archive, member, member.file_size))
    return arrays


def unzipped(archive, member, most):
    """The bytes of a member of an open zip file, stored or deflated; ValueError beyond most."""
    if member.file_size > most:
        raise ValueError(f"it announces {member.file_size:,} bytes, at most {most:,} can be right")
    # bzip2 and lzma may take any amount of memory.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"compression {member.compress_type} is not supported, only 0 (stored) "
                         "and 8 (deflated)")
    with archive.open(member) as stream:
        # Without a size, read() is unbounded, whatever the directory says.
        return stream.read(member.file_size)


def _parse_npy(data):
    """The array in the bytes of an .npy file of version 1.0.

    The header is a dict of Python's, {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), },
    padded with spaces. It is matched, not evaluated: Python's parser takes a hundred times as long,
    a minute for a megabyte made for it.
    """
    if data[:8] != b"\x93NUMPY\x01\x00":
        raise ValueError("it should begin with the magic bytes of NumPy's format, version 1.0 (the "
                         "others are for structured arrays), not with "
                         f"{data[:8].hex(' ') or 'nothing'}")
    end = 10 + int.from_bytes(data[8:10], "little")
    if end > min(len(data), 10 + MOST_NPY_HEADER):
        raise ValueError(f"its header of {end - 10:,} bytes is too large, or ends early")
    fields = _npy_fields(data[10:end].decode("latin-1"))
    descr, shape = fields["descr"].strip(QUOTES), fields["shape"]
    kind = re.fullmatch(r"([<>|=]?)([a-z]\d+)", descr)
    if not kind or kind[2] not in NPY_CODES:
        raise ValueError(f"dtype {clean(descr, 40)} is not supported (no objects: they could run "
                         f"code), only {', '.join(DTYPES)}")
    if not NPY_SHAPE.fullmatch(shape):
        raise ValueError(f"not the shape of an array: {clean(shape)}")
    dtype = np.dtype(NPY_CODES[kind[2]]).newbyteorder(kind[1] if kind[1] in ("<", ">") else "=")
    sizes = tuple(map(int, re.findall(r"\d+", shape)))
    order = "F" if fields["fortran_order"] == "True" else "C"
    return _array(memoryview(data)[end:], dtype, sizes, order)


def _npy_fields(text):
    """{key: text of its value} of the three fields in an .npy's header."""
    fields, position = {}, 1
    while (field := NPY_FIELD.match(text, position)) and field["key"] not in fields:
        fields[field["key"]] = field["value"]
        position = field.end()
    whole = text.startswith("{") and text[position:].strip() == "}"
    if not whole or set(fields) != {"descr", "fortran_order", "shape"}:
        raise ValueError(f"its header should be {{'descr': ..., 'fortran_order': ..., 'shape': "
                         f"...}}, not {clean(text, 80)}")
    return fields


def write_npz(path, arrays):
    """Write a dict of name -> array as npz, whole or not at all.

    Stored, not deflated, because weights do not shrink. `np.load` reads it too. Equal arrays in
    equal order make equal bytes: the date in the file is always 1980.
    """
    arrays = _storable(path, arrays)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def read_safetensors(path):
    """The dict of name -> array in a safetensors file, in the order of their data.

    The format: the header's length (8 bytes, little-endian), the header (JSON), the arrays' bytes,
    all little-endian; see https://huggingface.co/docs/safetensors. Raises ValueError that names
    file, array and fault: a header that is longer than the file, not JSON or ambiguous, unknown
    dtypes, impossible shapes, data that overlap or leave holes.
    """
    content = memoryview(_content(path))
    arrays, position = {}, 0
    with blaming(f"{path} is damaged or not a safetensors file"):
        length = int.from_bytes(content[:8], "little")
        fits = length <= min(len(content) - 8, MOST_HEADER)
        header = str(content[8:8 + length], "utf-8") if fits else ""
        if not header.startswith("{", JSON_SPACE.match(header).end()):
            raise ValueError(f"it should begin with its header's length and {{, but the length "
                             f"would be {length:,} bytes")
        entries, data = _parse_header(header), content[8 + length:]
        in_order = sorted(entries.items(), key=lambda item: item[1][:2])
        for name, (begin, end, dtype, shape) in in_order:
            with blaming(f"array {quoted(name)}"):
                # data beyond the end of the file are too short for their shape
                if begin != position or end < begin:
                    raise ValueError(f"data from {begin} to {end} do not follow the data before, "
                                     f"which end at {position}")
                arrays[name] = _array(data[begin:end], dtype, shape)
                position = end
        if position != len(data):
            raise ValueError(f"the arrays end after {position:,} bytes of data, but there are "
                             f"{len(data):,}")
    return arrays


def _parse_header(text):
    """{name: (begin, end, dtype, shape)} of a safetensors header; its metadata are only checked.

    One entry after the other: malicious JSON would take thirty times its size before one could look
    at it.
    """
    header, entries = _Header(text), {}
    dtypes = {code: np.dtype(name).newbyteorder("<") for name, code in DTYPES.items()}
    for name in header.keys():
        if name == "__metadata__":
            with blaming("metadata must be a dict from str to str"):
                for _ in header.keys():
                    header.string()
        else:
            with blaming(f"array {quoted(name)}"):
                _check_name(name)
                if name in entries:
                    raise ValueError("its header has a key twice")
                entry = header.entry()
                _check_entry(entry, dtypes)
                dtype, shape = dtypes[entry["dtype"]], tuple(entry["shape"])
                entries[name] = (*entry["data_offsets"], dtype, shape)
    header.skip()
    if header.at < len(text):
        raise ValueError("its header continues after its end, with "
                         f"{clean(text[header.at:header.at + 80], 40)}")
    return entries


class _Header:
    """A place in the text of a JSON header; each method reads what must follow."""

    def __init__(self, text):
        self.text = text
        self.at = 0

    def skip(self):
        self.at = JSON_SPACE.match(self.text, self.at).end()

    def take(self, character):
        """Whether this character comes next; only then it is read."""
        self.skip()
        found = self.text.startswith(character, self.at)
        self.at += found
        return found

    def expect(self, character):
        if not self.take(character):
            raise ValueError(f"its header should have {character} at character {self.at}, not "
                             f"{clean(self.text[self.at:self.at + 40], 20) or 'end'}")

    def string(self):
        self.expect('"')
        text, self.at = JSON.raw_decode(self.text, self.at - 1)
        return text

    def keys(self):
        """Yield the keys of an object one by one; the caller reads the values in between."""
        self.expect("{")
        if self.take("}"):
            return
        while True:
            key = self.string()
            self.expect(":")
            yield key
            if self.take("}"):
                return
            self.expect(",")

    def entry(self):
        """The dict of one array: it holds no dict, so it ends at the next brace, nearby."""
        self.skip()
        begin, end = self.at, self.text.find("}", self.at, self.at + MOST_ENTRY) + 1
        if not self.text.startswith("{", begin) or not end:
            raise ValueError(f"{EXPECTED}, found {clean(self.text[begin:begin + 200], 150)}")
        self.at = end
        return JSON.decode(self.text[begin:end])


def _unambiguous(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("its header has a key twice")
    return dict(pairs)


JSON = json.JSONDecoder(object_pairs_hook=_unambiguous)
EXPECTED = "expected dtype, shape [...] and data_offsets [begin, end]"


def _check_entry(entry, dtypes):
    if (set(entry) != {"dtype", "shape", "data_offsets"} or not isinstance(entry["shape"], list)
            or not isinstance(entry["data_offsets"], list)
            or [type(n) for n in entry["data_offsets"]] != [int, int]):
        raise ValueError(f"{EXPECTED}, found {clean(entry, 150)}")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in dtypes:
        raise ValueError(f"NumPy has no dtype {quoted(entry['dtype'])}, only {', '.join(dtypes)}")


def _check_metadata(metadata):
    if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for pair in metadata.items() for text in pair):
        raise ValueError("metadata must be a dict from str to str")


def write_safetensors(path, arrays, metadata=None):
    """Write a dict of name -> array as safetensors, whole or not at all.

    metadata: a dict of str -> str for other readers. Arrays with the largest items come first, then
    in order of their names, and the header is padded with spaces: every array begins at a multiple
    of its item size, as the format asks.
    """
    _check_metadata(metadata or {})
    arrays = sorted(
        _storable(path, arrays).items(),
        key=lambda item: (list(DTYPES).index(item[1].dtype.name), item[0]),
    )
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in arrays:
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise ValueError(f"cannot save to {path}: names and metadata take {len(text):,} bytes, and "
                         f"a header has at most {MOST_HEADER:,}, else it could not be read back")
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
