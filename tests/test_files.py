"""Files: what is written comes back, a kill leaves old or new, and whatever is read ends in data or in a named fault."""

import gzip
import io
import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from minidl import files

READ = {"idx": files.read_idx, "npz": files.read_npz, "safetensors": files.read_safetensors}
SUFFIXES = [".npz", ".safetensors"]
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
IDX = files.idx_bytes(IMAGES)
ARRAYS = {f"{i}.{dtype}": (100 * RNG.random((2, i))).astype(dtype) for i, dtype in enumerate(files.DTYPES)} | {
    "optimizer.step": np.array(7), "empty": np.zeros((0, 3), "f4"), "strided": np.arange(24.).reshape(4, 6)[::2, ::3],
    "transposed": np.arange(6, dtype="f4").reshape(2, 3).T, "big-endian": np.arange(3, dtype=">i4"), "größe/3": np.array(0.5)}


def assert_same(left, right):
    """Names, dtypes (in any byte order), shapes and values agree."""
    assert left.keys() == right.keys()
    for name in left:
        a, b = np.asarray(left[name]), np.asarray(right[name])
        assert (a.dtype.name, a.shape) == (b.dtype.name, b.shape) and np.array_equal(a, b), name


def npy(array, **header):
    """The .npy file of an array, with some entries of its header (descr, fortran_order, shape) replaced."""
    stream = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | header
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def zipped(*contents, name="{}.npy", compression=zipfile.ZIP_STORED, **lies):
    """A zip file of members 0.npy, 1.npy ...; its directory may lie about them: file_size, CRC, flag_bits, compress_type."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=9) as archive:
        for i, content in enumerate(contents):
            archive.NameToInfo.clear()  # else it warns of a name that occurs twice
            archive.writestr(name.format(i), content)
            for key, value in lies.items():
                setattr(archive.filelist[-1], key, value)
    return stream.getvalue()


def tensors(header, data=b"", length=None):
    """A safetensors file of a header (a dict or JSON text) and data, with its length or another one in front."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# --- Writing ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("suffix", SUFFIXES)
def test_arrays_come_back_with_their_names_dtypes_and_shapes(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    for arrays in ({}, ARRAYS):
        files.save(path, arrays)
        loaded = files.load(path)
        assert_same(arrays, loaded)
        assert all(a.flags.writeable and a.flags.c_contiguous and a.dtype.isnative for a in loaded.values())
    assert os.listdir(tmp_path) == [path.name]


def test_numpy_reads_what_is_written_as_npz_and_the_reverse(tmp_path):
    files.save(tmp_path / "ours.npz", ARRAYS)
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as file:
        assert_same(ARRAYS, {name: file[name] for name in file.files})
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "theirs.npz", **ARRAYS)  # keeps the column order of "transposed" and the bytes of "big-endian"
        loaded = files.load(tmp_path / "theirs.npz")
        assert_same(ARRAYS, loaded)
        assert all(array.dtype.isnative and array.flags.c_contiguous for array in loaded.values())


def test_a_safetensors_file_is_laid_out_as_the_format_says(tmp_path):
    arrays = {"b": np.int8([1, 2]), "é": np.float16(1), "a": np.int8([[3]])}
    files.write_safetensors(tmp_path / "x.safetensors", arrays, {"k": "v"})
    content = (tmp_path / "x.safetensors").read_bytes()
    header = ('{"__metadata__":{"k":"v"},"é":{"dtype":"F16","shape":[],"data_offsets":[0,2]},'
              '"a":{"dtype":"I8","shape":[1,1],"data_offsets":[2,3]},"b":{"dtype":"I8","shape":[2],"data_offsets":[3,5]}}').encode()
    assert content[8:].startswith(header) and content[8 + len(header):].lstrip(b" ") == b"\x00\x3c\x03\x01\x02"
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0 and len(content) == 8 + length + 5


def test_the_reference_implementation_writes_the_same_bytes_and_reads_them(tmp_path):
    reference = pytest.importorskip("safetensors.numpy")
    native = {name: np.array(a, a.dtype.newbyteorder("="), order="C") for name, a in ARRAYS.items()}
    for metadata in (None, {"format": "np"}):
        reference.save_file(native, tmp_path / "theirs.safetensors", metadata)
        files.write_safetensors(tmp_path / "ours.safetensors", ARRAYS, metadata)
        assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
        assert_same(ARRAYS, reference.load_file(tmp_path / "ours.safetensors"))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_arrays_give_equal_files(tmp_path, suffix):
    """However they lie in memory, and whenever: the date in a zip file has a resolution of two seconds, so it is looked at."""
    a = np.arange(6, dtype="<f4").reshape(2, 3)
    for name, array in (("1", a), ("2", np.asfortranarray(a)), ("3", a.astype(">f4"))):
        files.save(tmp_path / (name + suffix), {"a": array})
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    if suffix == ".npz":
        assert zipfile.ZipFile(tmp_path / "1.npz").infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name, array",
    [
        ("a", np.array([None])),
        ("a", np.array(["text"])),
        ("a", np.zeros(1, complex)),
        ("a", np.zeros(1, "f4,i4")),
        ("a", np.zeros(1, "M8[s]")),
        ("x" * 10_001, np.zeros(1)),
        ("", np.zeros(1)),
        ("a\0b", np.zeros(1)),
        ("a\\b", np.zeros(1)),
        ("a.npy", np.zeros(1)),
        ("__metadata__", np.zeros(1)),
        ("\ud800", np.zeros(1)),
        (3, np.zeros(1)),
    ],
)
def test_what_cannot_be_loaded_again_is_not_saved(tmp_path, suffix, name, array):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(ValueError) as caught:
        files.save(path, {"fine": np.zeros(1), name: array})
    assert str(path) in str(caught.value) and repr(name)[:50] in str(caught.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]


def test_another_suffix_or_wrong_metadata_is_an_error(tmp_path):
    for call in (lambda path: files.save(path, {}), files.load):
        with pytest.raises(ValueError, match=r"weights\.pkl.*\.npz or \.safetensors"):
            call(tmp_path / "weights.pkl")
    with pytest.raises(ValueError, match="metadata"):
        files.write_safetensors(tmp_path / "weights.safetensors", {}, {"epoch": 3})
    assert os.listdir(tmp_path) == []


def test_a_failing_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), files.replacing(path) as file:
        file.write(b"ne")
        raise OSError("disk full")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(IsADirectoryError, match="folder"), files.replacing(tmp_path):
        pytest.fail("the block must not run")
    with pytest.raises(FileNotFoundError, match="nowhere"), files.replacing(tmp_path / "nowhere" / "file"):
        pytest.fail("the block must not run")


def write(path, content=b"new"):
    with files.replacing(path) as file:
        file.write(content)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    """Through two links; a link to nothing makes the file, one to itself is an error."""
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder" / "real"
    real.write_bytes(b"old")
    (tmp_path / "one").symlink_to(Path("folder") / "real")
    (tmp_path / "two").symlink_to("one")
    write(tmp_path / "two")
    assert (
        (tmp_path / "two").is_symlink()
        and (tmp_path / "one").is_symlink()
        and real.read_bytes() == b"new"
    )
    (tmp_path / "early").symlink_to(tmp_path / "folder" / "late")
    write(tmp_path / "early")
    assert (tmp_path / "early").is_symlink() and (
        tmp_path / "folder" / "late"
    ).read_bytes() == b"new"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        write(tmp_path / "loop")
    assert sorted(os.listdir(tmp_path)) == ["early", "folder", "loop", "one", "two"]
    assert sorted(os.listdir(tmp_path / "folder")) == ["late", "real"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444 | 0o200, 0o777])
def test_permissions_stay_and_new_files_have_those_of_the_umask(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    before = os.umask(0o027)
    try:
        with files.replacing(path) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == mode, (
                "before the first byte: it may be a secret"
            )
            file.write(b"new")
        write(tmp_path / "another")
    finally:
        os.umask(before)
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == mode
    assert (tmp_path / "another").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)
def test_the_owner_of_a_file_that_root_writes_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 12345, 54321)
    path.chmod(0o600)
    write(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777, path.read_bytes()) == (
        12345,
        54321,
        0o600,
        b"new",
    )


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    """To rename over it takes only the right to write into its folder; root may all: the patch."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda name, mode: False)
    with pytest.raises(PermissionError, match="write-protected.*file"):
        write(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_and_a_device_are_written_into(tmp_path):
    pipe = tmp_path / "pipe.npz"
    os.mkfifo(pipe)
    received = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    files.save(pipe, {"a": np.arange(100_000)})  # more than a pipe holds at a time
    reader.join(30)
    assert pipe.is_fifo() and np.array_equal(
        np.load(io.BytesIO(received[0]))["a"], np.arange(100_000)
    )
    with pytest.warns(
        RuntimeWarning, match="nobody reads from the pipe .*pipe.npz: nothing was written"
    ):
        files.save(pipe, {"a": np.zeros(3)})
    assert pipe.is_fifo()
    (tmp_path / "null.npz").symlink_to(os.devnull)
    files.save(tmp_path / "null.npz", {"a": np.zeros(3)})
    assert not Path(os.devnull).is_file()
    if os.path.exists("/dev/full"):
        with pytest.raises(OSError, match="No space left"):
            files.write_csv("/dev/full", ["a"], [[1]])
    assert sorted(os.listdir(tmp_path)) == ["null.npz", "pipe.npz"]


@pytest.mark.parametrize(
    "name, fault",
    [
        ("nowhere/file", "there is no folder .*nowhere$"),
        ("file/inside", "Not a directory|no folder"),
        (300 * "x", "too long|Invalid"),
        ("~/file", "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_named_without_the_temporary_name(tmp_path, name, fault):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=fault) as caught:
        write(tmp_path / name)
    assert (
        ".tmp" not in str(caught.value)
        and str(tmp_path) in str(caught.value)
        and os.listdir(tmp_path) == ["file"]
    )


def test_a_folder_that_may_not_be_written_is_named_without_the_temporary_name(
    tmp_path, monkeypatch
):
    real = os.open

    def refused(path, *arguments, **options):
        if str(path).endswith(".tmp"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)
    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match="Permission denied: .*file'$") as caught:
        write(tmp_path / "file")
    assert ".tmp" not in str(caught.value)


def test_a_file_that_windows_keeps_for_its_reader_is_named_without_the_temporary_name(
    tmp_path, monkeypatch
):
    def refused(temporary, path):
        raise PermissionError(13, "Access is denied", str(temporary), None, str(path))
    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError, match="Access is denied: '.*file'$") as caught:
        write(tmp_path / "file")
    assert ".tmp" not in str(caught.value) and os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", [255 * "x", 120 * "é"])
def test_the_longest_names_that_a_folder_takes_can_be_written(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")
    write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"new" and len(os.listdir(tmp_path)) == 1


def test_file_and_folder_are_put_on_the_disk_in_this_order(tmp_path, monkeypatch):
    """Else the name could be there without the data after a power cut, or neither."""
    done, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    write(tmp_path / "file")
    assert done == ["file", "replace", "folder"]


def test_a_system_like_windows_writes_too(tmp_path, monkeypatch):
    """Folders cannot be opened there, and files have no owner."""
    real = os.open

    def refused(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments, **options)
    monkeypatch.setattr(os, "open", refused)
    for name in ("chown", "fchmod", "O_NONBLOCK", "O_DIRECTORY"):
        monkeypatch.delattr(os, name, raising=False)
    for _ in range(2):
        files.save(tmp_path / "a.npz", {"a": np.ones(3)})
    assert os.listdir(tmp_path) == ["a.npz"] and np.array_equal(
        files.load(tmp_path / "a.npz")["a"], np.ones(3)
    )


DISK_FULL = """
import resource, signal, sys
import numpy as np
from minidl import files, plotting
from minidl.callbacks import History
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
numbers = np.random.default_rng(0).random((300, 300))
fig, ax = plotting.figure()
ax.imshow(numbers)
for write in (lambda: files.save("a.npz", {"a": numbers}),
              lambda: files.save("a.safetensors", {"a": numbers}),
              lambda: files.write_csv("a.csv", ["a"], numbers), lambda: plotting.show(fig, "a")):
    try:
        write()
        sys.exit("it should not fit")
    except OSError as error:
        assert "too large" in str(error), error
"""


def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(tmp_path):
    """Weights, tables and figures; the limit of a file's size stands for the disk's."""
    pytest.importorskip("resource", reason="no such limits here")
    names = ["a.csv", "a.npz", "a.png", "a.safetensors"]
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    environment = os.environ | {
        "PYTHONPATH": str(Path(files.__file__).parents[1]),
        "MPLBACKEND": "agg",
        "MINIDL_FIGURES": ".",
    }
    result = subprocess.run(
        [sys.executable, "-c", DISK_FULL],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == dict.fromkeys(
        names, b"old"
    )


def test_two_writers_at_once_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with files.replacing(path) as first:
        first.write(b"fir")
        with files.replacing(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
        first.write(b"st")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


SAVE_FOR_EVER = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("files", sys.argv[1])  # without the rest of minidl: twenty of them start
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
print("ready", flush=True)
sys.stdin.readline() or sys.exit()
while True:
    for i in (1, 2):
        files.save(sys.argv[2], {str(n): np.full(i * 20_000, i) for n in range(6)})
"""


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path):
    rng = random.Random(0)
    paths = [tmp_path / f"{i}{suffix}" for i in range(10) for suffix in SUFFIXES]
    command, environment = [sys.executable, "-c", SAVE_FOR_EVER, files.__file__], os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    savers = [subprocess.Popen([*command, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
              for path in paths]
    for path, saver in zip(paths, savers):
        with saver:
            saver.stdout.readline()
            saver.stdin.write(b"go\n")
            saver.stdin.flush()
            while not path.exists() and saver.poll() is None:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            assert saver.poll() is None, "it must be the kill that ends it"
            saver.kill()
        arrays = files.load(path)
        i = arrays["0"][0]
        assert i in (1, 2)
        assert_same(arrays, {str(n): np.full(i * 20_000, i) for n in range(6)})


# --- Reading hostile files ----------------------------------------------------------------------------

def test_idx_files_are_encoded_and_decoded_as_published(tmp_path):
    assert files.idx_bytes(np.uint8([[1, 2, 3]])) == bytes.fromhex("00000802 00000001 00000003 010203")
    assert files.idx_bytes(IMAGES.transpose(2, 1, 0))[16:] == np.ascontiguousarray(IMAGES.transpose(2, 1, 0)).tobytes()
    for content in (IDX, gzip.compress(IDX), gzip.compress(IDX[:99]) + gzip.compress(IDX[99:])):
        (tmp_path / "images").write_bytes(content)
        assert np.array_equal(files.read_idx(tmp_path / "images"), IMAGES)
    for array in (np.zeros(3), np.uint8(1), np.zeros((1,) * 5, np.uint8)):
        with pytest.raises(ValueError, match="IDX"):
            files.idx_bytes(array)


@pytest.mark.parametrize("kind", READ)
def test_an_error_of_the_disk_stays_what_it_is(tmp_path, kind):
    with pytest.raises(FileNotFoundError):
        READ[kind](tmp_path / "missing")
    with pytest.raises(OSError):
        READ[kind](tmp_path)


PAIR, NPY, DATA = np.float32([1, 2]), npy(np.float32([1, 2])), bytes(8)

DAMAGED = [
    ("idx", b"", "begin with"),
    ("idx", b"\x01" + IDX[1:], "begin with"),
    ("idx", IDX[:2] + b"\x0d" + IDX[3:], "not with 00 00 0d 03"),
    ("idx", IDX[:3] + b"\xff" + bytes(range(1, 5)) * 255, "begin with"),
    ("idx", IDX[:10], "ends early"),
    ("idx", IDX[:4] + bytes(12) + IDX[16:], "has more"),
    ("idx", IDX[:-1], "only 15,679"),
    ("idx", IDX + b"\0", "has more"),
    ("idx", IDX[:4] + b"\xff" * 12 + IDX[16:], "believed"),
    ("idx", gzip.compress(IDX)[:-20], "ended before"),
    ("idx", gzip.compress(IDX)[:10] + b"\xff" * 40, "decompressing"),
    ("idx", gzip.compress(IDX)[:-8] + bytes(8), "CRC"),
    ("idx", gzip.compress(IDX) + b"garbage", "gzip"),
    ("idx", gzip.compress(IDX) + gzip.compress(b"\0"), "has more"),
    ("npz", b"", "not a zip file"),
    ("npz", zipped(NPY)[:-30], "not a zip file"),
    ("npz", zipped(NPY, name="0.txt"), "'0.txt': its name does not end"),
    ("npz", zipped(NPY, NPY, name="a.npy"), "occurs twice"),
    ("npz", zipped(NPY, flag_bits=1), "encrypted"),
    ("npz", zipped(NPY, compress_type=zipfile.ZIP_LZMA), "compression 14"),
    ("npz", zipped(NPY, CRC=0), "'0.npy': .*CRC"),
    ("npz", zipped(NPY, file_size=len(NPY) - 1), "CRC"),
    ("npz", zipped(b""), "magic"),
    ("npz", zipped(NPY[:6] + b"\x03" + NPY[7:]), "version"),
    ("npz", zipped(NPY[:30]), "header"),
    ("npz", zipped(NPY + b"\0"), "needs 8 bytes, there are 9"),
    ("npz", zipped(npy(PAIR, shape=(3,))), "needs 12 bytes, there are 8"),
    ("npz", zipped(npy(PAIR, shape=(-1, -2))), "not the shape"),
    ("npz", zipped(npy(PAIR, shape=(2, True))), "not the shape"),
    ("npz", zipped(npy(PAIR, shape=(2**63,))), "not the shape"),
    ("npz", zipped(npy(PAIR, shape=(1,) * 65)), "not the shape"),
    ("npz", zipped(npy(np.zeros(0), shape=(0, 2**62))), "0.npy"),
    ("npz", zipped(npy(PAIR, descr="|O")), "object"),
    ("npz", zipped(npy(PAIR, descr="<U1")), "dtype <U1"),
    ("npz", zipped(npy(PAIR, descr="<c8")), "dtype <c8"),
    ("npz", zipped(npy(PAIR, descr=[("x", "<f4")])), "not supported"),
    ("npz", zipped(NPY[:8] + (9000).to_bytes(2, "little") + b"-" * 9000), "0.npy"),
    ("npz", zipped(NPY[:8] + (9000).to_bytes(2, "little") + b"[" * 9000), "0.npy"),
    ("npz", zipped(NPY[:8] + (65_000).to_bytes(2, "little") + b" " * 65_000), "large"),
    ("safetensors", b"", "begin with"),
    ("safetensors", tensors({}, length=3), "header"),
    (
        "safetensors",
        tensors({}, length=2**64 - 1),
        "the length would be 18,446,744,073,709,551,615",
    ),
    ("safetensors", tensors(b"[]"), "begin with"),
    ("safetensors", tensors(b"{]"), 'should have " at character 1'),
    ("safetensors", tensors("{}".encode("utf-16-le")), 'should have "'),
    ("safetensors", tensors(b'{"\xff": 1}'), "utf-8"),
    ("safetensors", tensors(b'{"a":' * 100_000), "damaged"),
    (
        "safetensors",
        tensors(json.dumps({"a": entry()}).encode()[:-1] + b', "a": {}}', DATA),
        "twice",
    ),
    ("safetensors", tensors(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "twice"),
    ("safetensors", tensors({"__metadata__": {"epoch": 3}}), "metadata"),
    ("safetensors", tensors({"__metadata__": ["a"]}), "metadata"),
    ("safetensors", tensors({"a": 3}), "array 'a'"),
    ("safetensors", tensors({"a": entry() | {"more": 1}}, DATA), "array 'a': expected dtype"),
    ("safetensors", tensors({"a": entry("BF16", [4])}, DATA), "NumPy has no dtype 'BF16'"),
    ("safetensors", tensors({"a": entry(["F32"])}, DATA), "array 'a'"),
    ("safetensors", tensors({"a": entry(shape="")}, DATA), "expected dtype, shape"),
    ("safetensors", tensors({"a": entry(shape=[-1, -2])}, DATA), "not the shape"),
    ("safetensors", tensors({"a": entry(shape=[True, 2])}, DATA), "not the shape"),
    ("safetensors", tensors({"a": entry(shape=[2.0])}, DATA), "not the shape"),
    ("safetensors", tensors({"a": entry(shape=[0, 2**63], end=0)}), "not the shape"),
    ("safetensors", tensors({"a": entry(shape=[10**99] * 30_000)}, DATA), "expected dtype"),
    ("safetensors", tensors({"a": entry(shape=[3])}, DATA), "needs 12 bytes, there are 8"),
    ("safetensors", tensors({"a": entry(end=8.0)}, DATA), "expected dtype"),
    ("safetensors", tensors({"a": entry(begin=False)}, DATA), "expected dtype"),
    ("safetensors", tensors({"a": entry(begin=-8, end=0)}, DATA), "do not follow"),
    ("safetensors", tensors({"a": entry(begin=8, end=0)}, DATA), "do not follow"),
    ("safetensors", tensors({"a": entry(begin=4, end=12)}, bytes(12)), "do not follow"),
    (
        "safetensors",
        tensors({"a": entry(), "b": entry(begin=4, end=12)}, bytes(12)),
        "array 'b': .*do not follow",
    ),
    (
        "safetensors",
        tensors({"a": entry(), "b": entry(begin=0, end=8)}, DATA),
        "array 'b': .*do not follow",
    ),
    ("safetensors", tensors({"a": entry(shape=[0], begin=0, end=-4)}, DATA), "do not follow"),
    ("safetensors", tensors({"a": entry()}, bytes(4)), "needs 8 bytes, there are 4"),
    ("safetensors", tensors({"a": entry()}, bytes(12)), "end after 8 bytes"),
]


@pytest.mark.parametrize("kind, content, fault", DAMAGED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_file_is_named_with_its_fault(tmp_path, kind, content, fault):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=fault) as caught:
        READ[kind](path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < len(str(path)) + 400


def test_a_safetensors_header_has_a_largest_length(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_HEADER", 10)
    (tmp_path / "long").write_bytes(tensors(b"{}".ljust(11)))
    with pytest.raises(ValueError, match="length"):
        files.read_safetensors(tmp_path / "long")


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_a_safetensors_header_that_could_not_be_read_back_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(files, "MOST_HEADER", 100)
    files.write_safetensors(tmp_path / "fits.safetensors", {}, {"k": "x" * 60})
    assert files.load(tmp_path / "fits.safetensors") == {}
    with pytest.raises(ValueError, match=r"x\.safetensors: names and metadata take .* at most 100"):
        files.write_safetensors(path, {"a": np.zeros(1)}, {"k": "x" * 100})
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "header",
    [
        b"\t\n{}\r ",
        b" {}",
        b" " * 4096 + b"{}",
        b'{ "a" : { "data_offsets" : [ 0 , 8 ] ,\n"shape": [2], "dtype"'
        b': "F32" } , "__metadata__": {"a": "}{", "\\u00e9": ""} }',
    ],
)
def test_a_safetensors_header_may_have_white_space_wherever_json_has_it(tmp_path, header):
    """In front, too: writers align the data so, and the reference implementation reads it."""
    (tmp_path / "x.safetensors").write_bytes(tensors(header, DATA if b"F32" in header else b""))
    loaded = files.load(tmp_path / "x.safetensors")
    assert_same(loaded, {"a": np.zeros(2, "f4")} if b"F32" in header else {})


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }",
        "{'descr':'<f4','fortran_order':False,'shape':(2,)}",
        "{'shape': (2L,), 'fortran_order': False, 'descr': '<f4'}  \n",
        '{"descr": "<f4", "fortran_order": False, "shape": ( 2, )}',
        "{'descr': '=f4', 'fortran_order': True, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n",
    ],
)
def test_headers_of_other_writers_of_npy_are_read(tmp_path, header):
    """As C++, Rust and Python 2 write them, and older versions of NumPy."""
    text = header.encode()
    member = (
        b"\x93NUMPY\1\0"
        + len(text).to_bytes(2, "little")
        + text
        + np.array(PAIR, "=f4" if "=" in header else "<f4").tobytes()
    )
    (tmp_path / "x.npz").write_bytes(zipped(member))
    assert_same(files.load(tmp_path / "x.npz"), {"0": PAIR})


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1 + 1,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': [2]}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} ()",
        "{'descr': __import__('os').getpid(), 'fortran_order': False, 'shape': (2,)}",
        "",
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 9000 + ")" * 900 + "}",
    ],
)
def test_a_header_of_npy_that_says_anything_else_is_refused_unevaluated(tmp_path, header):
    text = header.encode()
    (tmp_path / "x.npz").write_bytes(
        zipped(b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text + PAIR.tobytes())
    )
    with pytest.raises(
        ValueError, match=r"member '0\.npy': (its header should be|not the shape)"
    ) as caught:
        files.load(tmp_path / "x.npz")
    assert len(str(caught.value)) < len(str(tmp_path)) + 300


def test_pythons_parser_sees_no_header_of_a_file(tmp_path, monkeypatch):
    """It took a minute for a megabyte of headers that were made for it."""
    files.save(tmp_path / "x.npz", ARRAYS)
    monkeypatch.setattr(
        "builtins.compile", lambda *arguments, **options: pytest.fail("parsed as Python")
    )
    monkeypatch.setattr("ast.literal_eval", lambda text: pytest.fail("parsed as Python"))
    assert_same(files.load(tmp_path / "x.npz"), ARRAYS)


HALF_A_MILLION = 500_000


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":[' + b"{}," * (HALF_A_MILLION // 3) + b"{}]}",
        b'{"a":' + b"[" * HALF_A_MILLION,
        b'{"a":' * (HALF_A_MILLION // 5),
        b'{"a":{"dtype":"F32","data_offsets":[0,8],"shape":['
        + b"1," * (HALF_A_MILLION // 2)
        + b"1]}}",
        b'{"__metadata__":{'
        + b",".join(b'"%x":""' % i for i in range(HALF_A_MILLION // 9))
        + b"},3}",
        b'{"__metadata__":[' + b'"",' * (HALF_A_MILLION // 3) + b'""]}',
        b"{" + b'"a":{},' * (HALF_A_MILLION // 7) + b"}",
        b'{"' + b"x" * HALF_A_MILLION + b'":{}}',
        b"[" + b"1e5," * (HALF_A_MILLION // 4) + b"1]",
    ],
    ids=lambda header: header[:20].decode(),
)
def test_json_that_describes_no_arrays_takes_no_more_than_a_few_times_its_size(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensors(header))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as caught:
            files.load(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(header) + 100_000
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < len(str(path)) + 400


NASTY = "\x1b]0;owned\x07\x9b2J\u202egnp.\nall is well\u2028"


@pytest.mark.parametrize("name", [NASTY, "x" * 60_000, NASTY * 1000, "", "a\\b"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_in_a_file_reach_no_message_raw_or_whole(tmp_path, suffix, name):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(
        tensors({name: entry()}, DATA)
        if suffix == ".safetensors"
        else zipped(NPY, name=name + ".npy")
    )
    with pytest.raises(ValueError, match="cannot be an array's name") as caught:
        files.load(path)
    message = str(caught.value).removeprefix(str(path))
    assert message.isprintable() and len(message) < 400


def test_texts_of_others_are_cleaned_and_cut():
    assert files.clean("größe 3 日本") == "größe 3 日本"
    assert files.clean("a\x1b[2J\n\x9b\u202e\u2066\ud800\x00b") == "a?[2J??????b"
    assert files.clean("x" * 1000, 10) == "xxxxxxx..." and files.clean(12) == "12"
    assert files.listed([]) == "" and files.listed(["a", "b\n"]) == "a, b?"
    assert files.listed(map(str, range(1012)), 3) == "0, 1, 2 and 1,009 more"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("kind", READ)
def test_nobody_waits_for_a_pipe_or_reads_a_device_without_end(tmp_path, kind):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        if os.path.exists(path):
            with pytest.raises(ValueError, match="is no regular file"):
                READ[kind](path)


def test_where_there_is_no_home_no_folder_of_that_name_appears(monkeypatch):
    assert files.expanded("~/x") == Path.home() / "x" and files.expanded("x/~/y") == Path("x/~/y")
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as where HOME is not set and the user has no entry
    for path in ("~", "~/x", "~\\x", Path("~/x")):
        with pytest.raises(FileNotFoundError, match="names no home folder"):
            files.expanded(path)
    assert files.expanded("~somebody/x") == Path("~somebody/x")


def test_no_code_in_an_npz_is_run(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([Malicious(tmp_path / "unpickled")], object))
    with pytest.raises(ValueError, match="object"):
        files.read_npz(tmp_path / "objects.npz")
    assert not (tmp_path / "unpickled").exists()


MILLIONS = 10_000_000
ZEROS = npy(np.zeros(MILLIONS, np.uint8))


@pytest.mark.parametrize("kind, content", [
    ("idx", IDX[:4] + (900_000).to_bytes(4, "big") + IDX[8:]),  # announces 700 MB
    ("idx", gzip.compress(IDX[:3] + b"\1" + MILLIONS.to_bytes(4, "big") + bytes(MILLIONS))),  # and has them
    ("idx", gzip.compress(IDX[:3] + b"\1" + b"\0\0\0\1" + bytes(MILLIONS))),  # announces one byte
    ("idx", gzip.compress(IDX[:3] + b"\1" + b"\0\x10\0\0")),  # announces what may be believed, and has nothing
    ("npz", zipped(ZEROS, compression=zipfile.ZIP_DEFLATED)),
    ("npz", zipped(ZEROS, compression=zipfile.ZIP_DEFLATED, file_size=100_000)),
    ("npz", zipped(*[npy(np.zeros(1_000_000, np.uint8))] * 20, compression=zipfile.ZIP_DEFLATED)),  # each would be believed
    ("npz", zipped(npy(PAIR, shape=(2 ** 40,)))),
    ("npz", zipped(NPY, file_size=2 ** 40)),
    ("safetensors", tensors({}, length=2 ** 40)),
    ("safetensors", tensors({"a": entry(shape=[2 ** 40], end=2 ** 42)}, DATA)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_bomb_costs_no_memory(tmp_path, kind, content):
    path = tmp_path / "bomb"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            READ[kind](path)
        assert tracemalloc.get_traced_memory()[1] < 2_500_000 + 3 * len(content)
    finally:
        tracemalloc.stop()


def mutated(rng, content, other, tokens=((b"", b""),)):
    """One or two random changes: bytes (mostly where headers are), cut, inserted, repeated, spliced, tokens replaced."""
    for _ in range(rng.randint(1, 2)):
        i, j = sorted(rng.choices(range(len(content) + 1), k=2))
        match rng.randrange(8):
            case 0:
                content = content[:i]
            case 1:
                content = content[:i] + rng.randbytes(rng.randint(1, 9)) + content[i:]
            case 2:
                content = content[:j] + content[i:]
            case 3:
                content = content[:i] + other[rng.randrange(len(other)):]
            case 4 | 5:
                content = content.replace(*rng.choice(tokens), 1)
            case _:
                k = rng.choice([i, rng.randrange(40), max(len(content) - rng.randint(1, 60), 0)])
                content = content[:k] + rng.choice([b"\0", b"\xff", rng.randbytes(1)]) + content[k + 1:]
    return content


def check_outcomes(path, read, contents):
    """Each content is read or ends in a ValueError that names the file; both happen, else the changes test little."""
    outcomes = []
    with open(path, "wb", buffering=0) as file:  # one file for all: to make or to empty one takes longer than to read it
        for content in contents:
            file.seek(0)
            file.write(content)
            file.truncate()
            try:
                result = read(path)
                arrays = result.values() if isinstance(result, dict) else [result]
                assert sum(array.nbytes for array in arrays) <= 2 ** 20 + 200 * len(content)
                outcomes.append(True)
            except ValueError as error:
                assert str(path) in str(error)
                outcomes.append(False)
    assert 0.01 < np.mean(outcomes) < 0.5


SMALL = {"layer.weight": np.arange(6, dtype="f4").reshape(2, 3), "layer.mask": np.array([True, False]), "step": np.array(7)}
DIGITS = [b"1", b"3", b"8", b"-1", b"True", b"99", b"1e3", b"9" * 30, b'"a"', b"[", b"", b"(", b"2, 0"]
NPY_TOKENS = [(b"2, 3", d) for d in DIGITS] + [(b"<f4", d) for d in (b">f4", b"<i4", b"|O", b"<U4", b"<f8", b"<c8", b"f4,f4")]
NPY_TOKENS += [(b"False", b"True"), (b"shape", b"shade"), (b"\x01\0", b"\x02\0")]
JSON_TOKENS = [(old, new) for old in (b"2", b"24", b"[0", b"3") for new in DIGITS] + [(b"F32", b"F16"), (b"F32", b"BF16")]
JSON_TOKENS += [(b"layer.mask", b"layer.weight"), (b"dtype", b"shape"), (b"[2,3]", b"{}"), (b"I64", b"U64")]
JSON_TOKENS += [(b"[2,3]", b"[3,2]")]


@pytest.mark.filterwarnings("ignore")  # Python warns of odd escapes in the header of an .npy, which is a literal of Python
def test_10000_mutated_data_files_end_in_data_or_in_a_named_fault(tmp_path):
    rng = random.Random(0)
    image = files.idx_bytes(IMAGES[:2, :9, :9])
    seeds = [image, gzip.compress(image, mtime=0)]
    check_outcomes(tmp_path / "idx", files.read_idx, (mutated(rng, seeds[i % 2], seeds[1 - i % 2]) for i in range(4000)))
    weight = npy(SMALL["layer.weight"])
    seeds = [zipped(weight, NPY, compression=method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    check_outcomes(tmp_path / "npz", files.read_npz, (mutated(rng, seeds[i % 2], seeds[1 - i % 2]) for i in range(4000)))
    members = (mutated(rng, weight, NPY, NPY_TOKENS) for _ in range(2000))
    check_outcomes(tmp_path / "npy", files.read_npz, (zipped(member) for member in members))  # with the right checksum


def test_5000_mutated_weight_files_end_in_data_or_in_a_named_fault(tmp_path):
    rng = random.Random(1)
    for suffix, n in ((".npz", 1000), (".safetensors", 2000)):
        path = tmp_path / f"weights{suffix}"
        files.save(path, SMALL)
        whole = path.read_bytes()
        check_outcomes(path, files.load, (mutated(rng, whole, whole, JSON_TOKENS) for _ in range(n)))
    length = 8 + int.from_bytes(whole[:8], "little")
    headers = (mutated(rng, whole[8:length], b"}", JSON_TOKENS) for _ in range(2000))
    check_outcomes(path, files.load, (tensors(header, whole[length:]) for header in headers))  # with the right length
