"""The data: that no file, however damaged, gives anything but images or a clear error."""

import gzip
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minidl import data, files

DATASETS = Path(__file__).parent.parent / "datasets"
NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def images_and_labels(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)


def write_mnist(folder, names=NAMES, packed=False):
    folder.mkdir(exist_ok=True)
    arrays = [array for n, seed in ((20, 0), (10, 1)) for array in images_and_labels(n, seed)]
    for name, array in zip(names, arrays):
        content = idx_bytes(array)
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return folder, arrays


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- MNIST's files ------------------------------------------------------------------------------------

@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
def test_the_four_published_files_are_read_packed_or_not(tmp_path, packed, subfolder):
    _, arrays = write_mnist(tmp_path / subfolder, packed=packed)
    (x_train, y_train), (x_test, y_test) = data.load("mnist", tmp_path)
    assert np.array_equal(np.rint(x_train * 255).astype(np.uint8), arrays[0].reshape(20, 784))
    assert np.array_equal(y_train, arrays[1]) and np.array_equal(y_test, arrays[3]) and len(x_test) == 10
    assert x_train.dtype == np.float32 and y_train.dtype == np.int64


@pytest.mark.parametrize("names", [["images-idx3-ubyte", "labels-idx1-ubyte"], NAMES[2:], NAMES[:2]])
def test_a_lone_pair_is_split_80_20_always_alike(tmp_path, names):
    _, arrays = write_mnist(tmp_path, names)
    (x_train, y_train), (x_test, y_test) = first = data.load("mnist", tmp_path)
    assert (len(x_train), len(y_train), len(x_test), len(y_test)) == (16, 16, 4, 4)
    again = data.load("mnist", tmp_path)
    assert all(np.array_equal(a, b) for one, two in zip(first, again) for a, b in zip(one, two))
    originals = {row.tobytes(): label for row, label in zip(arrays[0], arrays[1])}
    together = np.rint(np.concatenate([x_train, x_test]) * 255).astype(np.uint8).reshape(-1, 28, 28)
    assert {row.tobytes(): label for row, label in zip(together, np.concatenate([y_train, y_test]))} == originals


def test_the_environment_names_a_folder_and_the_argument_comes_first(tmp_path, monkeypatch):
    write_mnist(tmp_path / "a", NAMES[:2])
    write_mnist(tmp_path / "b")
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "b"))
    assert len(data.load("mnist")[0][0]) == 20
    assert len(data.load("mnist", tmp_path / "a")[0][0]) == 16
    assert len(data.load("digits")[0][0]) == 10_000  # found in the project, whatever the folder holds


def test_missing_data_say_which_files_to_put_where(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist", tmp_path)
    assert all(part in str(caught.value) for part in (*NAMES, "MINIDL_DATA", str(tmp_path)))
    with pytest.raises(FileNotFoundError, match="not a folder"):
        data.load("mnist", tmp_path / "nowhere")


def test_a_wrong_folder_in_the_environment_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match="MINIDL_DATA"):
        data.load("digits")


def test_half_a_pair_is_an_error_and_not_another_experiment(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(FileNotFoundError, match=NAMES[1]):
        data.load("mnist", tmp_path)


def test_a_folder_of_the_data_sets_own_name_comes_first(tmp_path):
    write_mnist(tmp_path, NAMES[:2])
    write_mnist(tmp_path / "fashion_mnist")
    assert len(data.load("fashion_mnist", tmp_path)[0][0]) == 20 and len(data.load("mnist", tmp_path)[0][0]) == 16


IMAGES = idx_bytes(images_and_labels(20)[0])


@pytest.mark.parametrize("content, fault", [
    (b"", "not an IDX file"),
    (b"\x01" + IMAGES[1:], "not an IDX file"),
    (IMAGES[:10], "ends early"),
    (IMAGES[:2] + b"\x0d" + IMAGES[3:], "0x0d"),
    (IMAGES[:3] + b"\xff" + bytes(range(1, 5)) * 255, "announces the shape"),
    (IMAGES[:4] + bytes(12) + IMAGES[16:], "announces the shape"),
    (IMAGES[:-1], "only"),
    (IMAGES + b"\0", "more"),
    (IMAGES[:4] + b"\xff" * 12 + IMAGES[16:], "announces"),
    (gzip.compress(IMAGES)[:-20], "gzip"),
    (gzip.compress(IMAGES)[:40] + b"\0" * 40, "gzip"),
    (gzip.compress(IMAGES + bytes(10 ** 6)), "more"),
    (idx_bytes(np.zeros((20, 27, 28), np.uint8)), "28 x 28"),
    (idx_bytes(np.zeros((19, 28, 28), np.uint8)), "as many labels"),
])
def test_a_damaged_file_is_named_with_its_fault(tmp_path, content, fault):
    write_mnist(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(content)
    with pytest.raises(ValueError, match=fault) as caught:
        data.load("mnist", tmp_path)
    assert NAMES[0] in str(caught.value)


def test_labels_beyond_nine_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / NAMES[1]).write_bytes(idx_bytes(np.full(20, 10, np.uint8)))
    with pytest.raises(ValueError, match="0 to 9"):
        data.load("mnist", tmp_path)


def test_a_lying_header_costs_no_memory(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(IMAGES[:4] + (900_000).to_bytes(4, "big") + IMAGES[8:])  # announces 700 MB
    tracemalloc.start()
    with pytest.raises(ValueError, match="only"):
        files.read_idx(path)
    assert tracemalloc.get_traced_memory()[1] < 10 ** 7
    tracemalloc.stop()


def test_a_thousand_mutated_files_end_in_data_or_in_a_named_fault(tmp_path):
    rng = np.random.default_rng(0)
    originals = [IMAGES, gzip.compress(IMAGES, mtime=0)]
    path, errors = tmp_path / "mutated", 0
    for i in range(1000):
        content = bytearray(originals[i % 2])
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(0, 24 if rng.random() < 0.7 else len(content))] = rng.integers(0, 256)
        path.write_bytes(content[:rng.integers(0, len(content))] if rng.random() < 0.2 else content)
        try:
            assert isinstance(files.read_idx(path), np.ndarray)
        except ValueError as error:
            errors += 1
            assert str(path) in str(error)
    assert errors > 300


@pytest.mark.parametrize("arrays", [
    dict(x_train=np.zeros((3, 28, 28), np.uint8)),
    dict(x_train=np.zeros((3, 5), np.uint8), y_train=np.zeros(3, int), x_test=np.zeros((3, 5), np.uint8), y_test=np.zeros(3, int)),
    dict(x_train=np.array([None]), y_train=np.zeros(3, int), x_test=np.array([None]), y_test=np.zeros(3, int)),
])
def test_an_npz_with_other_content_is_refused(tmp_path, arrays):
    np.savez(tmp_path / "digits.npz", **arrays)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "digits.npz"))):
        data.load("digits", tmp_path)


class Malicious:
    """Unpickling this would create a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_loading_an_npz_runs_no_code_from_it(tmp_path):
    marker = tmp_path / "unpickled"
    objects = np.array([Malicious(marker)], object)
    np.savez(tmp_path / "digits.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    with pytest.raises(ValueError, match="damaged"):
        data.load("digits", tmp_path)
    assert not marker.exists()


def test_a_truncated_npz_is_refused(tmp_path):
    (tmp_path / "digits.npz").write_bytes((DATASETS / "digits.npz").read_bytes()[:100_000])
    with pytest.raises(ValueError, match="damaged"):
        data.load("digits", tmp_path)


# --- Batches ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("n, size", [(1000, 64), (1025, 64), (7, 10), (3, 1), (1, 1), (5, 1)])
def test_an_epoch_holds_each_sample_once_with_its_label(n, size):
    x, y = np.arange(n)[:, None] * 10, np.arange(n)
    for rng in (None, np.random.default_rng(0)):
        parts = list(data.batches(x, y, size, rng))
        xs, ys = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        assert sorted(ys) == list(range(n)) and np.array_equal(xs[:, 0], 10 * ys)
        assert all(len(p[1]) > 1 for p in parts) or n == 1 if size > 1 else all(len(p[1]) == 1 for p in parts)


def test_shuffling_is_of_samples_and_new_each_epoch():
    x = np.arange(100)
    rng = np.random.default_rng(0)
    first, second = ([yb.tolist() for _, yb in data.batches(x, x, 10, rng)] for _ in range(2))
    assert first != second
    assert any(np.diff(batch).max() > 1 for batch in first)
