"""The data: that no file, however damaged, gives anything but images or a clear error."""

import gzip
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from minidl import Tensor, batching, data, plotting
from minidl.course import cli
from minidl.data import published

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


@pytest.mark.parametrize(
    "variable", ["MINIDL_DATA", "XDG_CACHE_HOME", "KERAS_HOME", "MINIDL_FIGURES"]
)
def test_a_home_folder_in_the_environment_is_the_home_folder(tmp_path, monkeypatch, variable):
    """As a Dockerfile or a file of settings writes it, where no shell replaces ~."""
    monkeypatch.chdir(tmp_path)
    (Path.home() / "own" / "datasets").mkdir(parents=True)
    monkeypatch.setenv(variable, "~/own")
    found, unusable = data.find("mnist")
    assert found is None and len(unusable) == (variable == "MINIDL_DATA")
    assert (plotting.folder() == Path.home() / "own") == (variable == "MINIDL_FIGURES")
    assert (data.cache() == Path.home() / "own" / "minidl") == (variable == "XDG_CACHE_HOME")
    assert "~" not in os.listdir(tmp_path)


def test_without_a_home_folder_the_digits_are_there_and_what_needs_one_says_so(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert len(data.load("digits")[0][0]) == 10_000
    for call in (data.cache, lambda: data.load("mnist")):
        with pytest.raises(
            FileNotFoundError, match=r"names no home folder .*XDG_CACHE_HOME can name one"
        ):
            call()
    monkeypatch.setenv("MINIDL_DATA", "~/sets")
    with pytest.raises(FileNotFoundError, match="names no home folder"):
        data.load("digits")
    monkeypatch.delenv("MINIDL_DATA")
    assert (
        cli.main(["data"]) == 0
        and cli.main(["data", "mnist"]) == 1
        and cli.main(["doctor"]) in (0, 1)
    )
    out, error = capsys.readouterr()
    assert (
        "set XDG_CACHE_HOME to a folder of yours" in out and "XDG_CACHE_HOME can name one" in error
    )
    assert os.listdir(tmp_path) == []


def test_a_copy_at_home_that_announces_more_than_the_published_set_is_not_unpacked(monkeypatch):
    """Deflated zeros and noise: by the file's size alone, 200 times that would be believed."""
    (Path.home() / "datasets").mkdir()
    path = Path.home() / "datasets" / "mnist.npz"
    x = np.zeros((150_000, 28, 28), np.uint8)
    x[:2000] = np.random.default_rng(0).integers(0, 256, (2000, 28, 28))
    y = np.zeros(150_000, np.uint8)
    np.savez_compressed(path, x_train=x, y_train=y, x_test=x[:9], y_test=y[:9])
    del x
    tracemalloc.start()
    try:
        _, unusable = data.find("mnist")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000 + path.stat().st_size
    finally:
        tracemalloc.stop()
    assert len(unusable) == 1 and f"at most {data.search.LARGEST:,} are believed" in unusable[0]
    assert data.search.LARGEST < 3 * sum(published.SIZES)


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


@pytest.mark.parametrize("size", [0, -1, 2.0, "32", True, None, np.nan, [32]])
def test_a_size_of_batches_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size of batches is a whole number"):
        data.batches(np.zeros((4, 2)), np.zeros(4), size)
    assert len(list(data.batches(np.zeros((4, 2)), np.zeros(4), np.int64(2)))) == 2


@pytest.mark.parametrize(
    "x, y, rng, kind, fault",
    [
        (np.zeros((0, 2)), np.zeros(0), None, ValueError, "need samples"),
        (np.zeros((3, 2)), np.zeros(4), None, ValueError, "4 labels"),
        (3.0, 4.0, None, ValueError, "one entry per sample"),
        (np.zeros((3, 2)), np.zeros(3), 0, TypeError, "rng is a NumPy Generator"),
    ],
)
def test_wrong_batches_are_refused_when_they_are_asked_for(x, y, rng, kind, fault):
    """And not at the first of them, which may come much later."""
    with pytest.raises(kind, match=fault):
        data.batches(x, y, 2, rng)


class Table:
    """As pandas has it: an index takes columns, and NumPy can make an array of it."""

    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __array__(self, dtype=None, copy=None):
        return self.values

    def __getitem__(self, chosen):
        return self.values[:, chosen]


@pytest.mark.parametrize("make", [list, tuple, Table, Tensor])
def test_batches_and_splits_of_lists_tables_and_tensors_are_those_of_the_arrays(make):
    x, y, rng = np.arange(18.0).reshape(9, 2), np.arange(9.0), np.random.default_rng
    expected = list(data.batches(x, y, 4, rng(0))) + list(data.split(x, y, 0.3))
    found = list(data.batches(make(x), make(y) if make is not Table else y, 4, rng(0)))
    found += data.split(make(x), make(y) if make is not Table else y, 0.3)
    for one, two in zip(expected, found, strict=True):
        for a, b in zip(one, two):
            assert np.array_equal(a, b.data if make is Tensor else b)


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


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5, 20, True, "0.2", None, np.nan, np.inf])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="hold out is a number between 0 and 1|cannot hold out"):
        data.split(np.zeros((10, 2)), np.zeros(10), share)


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


@pytest.mark.parametrize("fit", [data.standardization, data.min_max])
@pytest.mark.parametrize("shape", [(5, 1), (5, 2), (5, 3, 1), (3, 5), (1,), (), (5, 4, 4), (5, 4)])
def test_a_scaling_refuses_what_numpy_would_only_broadcast(fit, shape):
    """A column against a row of three features became a table of all differences."""
    with pytest.raises(ValueError, match=r"fitted on samples of shape \(3,\), but x of shape"):
        fit(np.random.default_rng(0).random((7, 3)))(np.zeros(shape))


@pytest.mark.parametrize("fit", [data.standardization, data.min_max])
def test_a_scaling_takes_any_number_of_samples_of_the_shape_it_knows(fit):
    x = np.random.default_rng(0).normal(5, 3, (50, 4, 3))
    scaling = fit(x)
    expected = (x - scaling.shift) / scaling.scale
    for part in (np.s_[:], np.s_[:0], np.s_[0], np.s_[::-2], np.s_[:, ::-1]):
        if part != np.s_[:, ::-1]:
            assert np.array_equal(scaling(x[part]), expected[part])
    assert np.array_equal(scaling(x.tolist()), expected.astype(np.float64))
    assert np.array_equal(scaling(np.asfortranarray(x)), expected) and np.array_equal(
        scaling(x[None]), expected[None]
    )
    assert fit(x, axis=None)(np.zeros((2, 9))).shape == (2, 9), "one number for all fits any shape"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("axis", [0, None])
def test_scaling_piece_by_piece_gives_numpys_numbers(dtype, axis, monkeypatch):
    monkeypatch.setattr(batching, "PIECE", 64)
    x = np.random.default_rng(0).normal(100, 20, (333, 5)).astype(dtype)
    wide, kind = x.astype(np.float64), dtype if dtype is not np.uint8 else np.float32
    assert np.allclose(data.standardization(x, axis).scale, wide.std(axis), rtol=1e-13)
    assert np.array_equal(data.standardization(x, axis).shift, x.mean(axis, np.float64))
    for scaling in (data.standardization(x, axis), data.min_max(x, axis)):
        assert np.array_equal(scaling(x), ((wide - scaling.shift) / scaling.scale).astype(kind))


@pytest.mark.parametrize("fit", [data.standardization, data.min_max])
@pytest.mark.parametrize("axis", [0, None])
def test_scaling_takes_no_memory_beside_its_result(fit, axis):
    """Of MNIST, the two arrays of 64 bits that were made on the way took 750 MB."""
    x = np.random.default_rng(0).integers(0, 256, (6000, 784), np.uint8)
    fit(x[:9], axis)(x[:9])
    tracemalloc.start()
    try:
        scaling = fit(x, axis)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.reset_peak()
        result = scaling(x)
        assert tracemalloc.get_traced_memory()[1] < result.nbytes + 8_000_000
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        pixels = data._pixels(x)
        assert tracemalloc.get_traced_memory()[1] - before < 1.1 * pixels.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "x, axis, kind, fault",
    [
        (np.array([[1.0, np.nan], [2, 3]]), 0, ValueError, "NaN or inf"),
        (np.array([[1.0, np.inf], [2, 3]]), None, ValueError, "NaN or inf"),
        (np.zeros((0, 3)), 0, ValueError, "at least one sample"),
        (np.zeros((3, 0)), 0, ValueError, "at least one sample"),
        (np.float64(3), 0, ValueError, "at least one sample"),
        (np.array([["1"]]), 0, TypeError, "must hold numbers"),
        (np.zeros((2, 2), complex), 0, TypeError, "must hold numbers"),
        (np.array([[None]]), 0, TypeError, "must hold numbers"),
        (np.eye(3), 1, ValueError, "axis is 0"),
        (np.eye(3), -1, ValueError, "axis is 0"),
        (np.eye(3), "0", ValueError, "axis is 0"),
        (np.eye(3), (0, 1), ValueError, "axis is 0"),
    ],
)
def test_data_that_cannot_be_scaled_are_refused(x, axis, kind, fault):
    for fit in (data.standardization, data.min_max):
        with pytest.raises(kind, match=fault):
            fit(x, axis)


@pytest.mark.parametrize(
    "shift, scale", [(0, 0), (np.nan, 1), (0, np.inf), (np.zeros(3), np.array([1, 0, 1]))]
)
def test_a_scaling_of_ones_own_is_checked_too(shift, scale):
    with pytest.raises(ValueError, match="finite numbers, and no scale of 0"):
        data.Scaling(shift, scale)


def test_one_hot_takes_no_memory_beside_its_rows():
    y = np.arange(10_000) % 500
    tracemalloc.start()
    try:
        rows = data.one_hot(y)
        assert tracemalloc.get_traced_memory()[1] < rows.nbytes + 500_000
    finally:
        tracemalloc.stop()
    assert np.array_equal(rows, np.eye(500, dtype=np.float32)[y])


@pytest.mark.parametrize("classes", [3.0, "3", 0, -3, True, [3]])
def test_one_hot_refuses_a_number_of_classes_that_is_none(classes):
    with pytest.raises(ValueError, match="classes is how many there are"):
        data.one_hot(np.zeros(2, int), classes)


def test_one_hot_rows():
    rows = data.one_hot([2, 0, 1])
    assert rows.dtype == np.float32 and rows.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    assert data.one_hot(np.array([1, 1]), classes=4).shape == (2, 4)
    assert data.one_hot([10 ** 6]).shape == (1, 10 ** 6 + 1), "memory for the rows, and no square table of classes"


@pytest.mark.parametrize("y, classes", [([0, 3], 3), ([-1, 0], None), ([0.0, 1.0], None), ([[0, 1]], None), ([], None)])
def test_one_hot_refuses_what_is_no_class_number(y, classes):
    with pytest.raises(ValueError):
        data.one_hot(np.array(y), classes)
