"""The data: that no file, however damaged, gives anything but images or a clear error."""

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from minidl import data

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


# --- MNIST's files ------------------------------------------------------------------------------------

@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("subfolder", ["", "mnist"])
@pytest.mark.parametrize("names", [NAMES, [name.replace("-idx", ".idx") for name in NAMES]])
def test_the_four_published_files_are_read_packed_or_not(tmp_path, packed, subfolder, names):
    """Under the names that unpacking gives them, too; some programs write a dot."""
    _, arrays = write_mnist(tmp_path / subfolder, NAMES if packed else names, packed)
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
    assert all(part in str(caught.value) for part in (*NAMES, "MINIDL_DATA", str(data.cache()), f"root names {tmp_path}"))
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
    (IMAGES[:-1], "only"),
    (idx_bytes(np.zeros((20, 27, 28), np.uint8)), "28 x 28"),
    (idx_bytes(np.zeros((19, 28, 28), np.uint8)), "as many labels"),
])
def test_a_damaged_file_is_named_with_its_fault(tmp_path, content, fault):
    write_mnist(tmp_path)
    (tmp_path / NAMES[0]).write_bytes(content)
    with pytest.raises(ValueError, match=fault) as caught:
        data.load("mnist", tmp_path)
    assert NAMES[0] in str(caught.value)


def test_too_few_images_to_split_are_an_error_that_names_the_folder(tmp_path):
    folder, arrays = write_mnist(tmp_path, NAMES[:2])
    for name, array in zip(NAMES[:2], arrays):
        (folder / name).write_bytes(idx_bytes(array[:2]))
    with pytest.raises(ValueError, match=f"{re.escape(str(folder))}: cannot hold out a share of 0.2 of 2 samples"):
        data.load("mnist", folder)


def test_labels_beyond_nine_are_refused(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / NAMES[1]).write_bytes(idx_bytes(np.full(20, 10, np.uint8)))
    with pytest.raises(ValueError, match="0 to 9"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize("arrays", [
    dict(x_train=np.zeros((3, 28, 28), np.uint8)),
    dict(x_train=np.zeros((3, 5), np.uint8), y_train=np.zeros(3, int), x_test=np.zeros((3, 5), np.uint8),
         y_test=np.zeros(3, int)),
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


# --- Splitting, scaling, one-hot ----------------------------------------------------------------------

def test_a_split_loses_and_doubles_nothing_and_is_the_same_for_the_same_seed():
    x, y = np.arange(100)[:, None], np.arange(100)
    (x_a, y_a), (x_b, y_b) = data.split(x, y, share=0.3, seed=1)
    assert len(y_b) == 30 and sorted([*y_a, *y_b]) == list(range(100))
    assert np.array_equal(x_a[:, 0], y_a) and np.array_equal(x_b[:, 0], y_b)
    assert np.array_equal(y_b, data.split(x, y, share=0.3, seed=1)[1][1])
    assert not np.array_equal(y_b, data.split(x, y, share=0.3, seed=2)[1][1])


@pytest.mark.parametrize("x, y, share", [(np.zeros(10), np.zeros(10), 0.0), (np.zeros(10), np.zeros(10), 1.0),
                                         (np.zeros(10), np.zeros(9), 0.5), (np.zeros(1), np.zeros(1), 0.5)])
def test_a_split_that_leaves_one_side_empty_is_refused(x, y, share):
    with pytest.raises(ValueError, match="hold out"):
        data.split(x, y, share)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("axis", [0, None])
def test_scalings_give_the_training_data_their_range_and_use_nothing_of_the_test_data(dtype, axis):
    rng = np.random.default_rng(0)
    train, test = (rng.normal(100, 20, (500, 3)).astype(dtype) for _ in range(2))
    z, scaled = (fit(train, axis=axis) for fit in (data.standardization, data.min_max))
    assert np.allclose(z(train).mean(axis), 0, atol=1e-5) and np.allclose(z(train).std(axis), 1, atol=1e-5)
    assert np.allclose(scaled(train).min(axis), 0, atol=1e-6) and np.allclose(scaled(train).max(axis), 1, atol=1e-6)
    expected = (test.astype(float) - train.mean(axis, np.float64)) / train.std(axis, np.float64)
    assert np.allclose(z(test), expected, atol=1e-5)
    assert z(test).dtype == scaled(test).dtype == (np.float32 if dtype is np.uint8 else dtype)


def test_a_constant_feature_becomes_zero_and_not_nan():
    """MNIST's corner pixels: 0.1 is not exact in binary, so their computed standard deviation is not exactly 0."""
    x = np.full((1000, 2), 0.1, np.float32)
    x[:, 1] = np.arange(1000)
    for fit in (data.standardization, data.min_max):
        assert np.abs(fit(x)(x)[:, 0]).max() < 1e-6


def test_one_hot_rows():
    rows = data.one_hot([2, 0, 1])
    assert rows.dtype == np.float32 and rows.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert data.one_hot(np.array([1, 1]), classes=4).shape == (2, 4)
    assert data.one_hot([10 ** 6]).shape == (1, 10 ** 6 + 1), "memory for the rows, and no square table of classes"


@pytest.mark.parametrize("y, classes", [([0, 3], 3), ([-1, 0], None), ([0.0, 1.0], None), ([[0, 1]], None), ([], None)])
def test_one_hot_refuses_what_is_no_class_number(y, classes):
    with pytest.raises(ValueError):
        data.one_hot(np.array(y), classes)
