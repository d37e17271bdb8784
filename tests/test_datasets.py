"""The offline digits: what the set is, that its script draws it, how hard it is, and that the measuring measures."""

import hashlib
import importlib.util
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest

from minidl import Activation, BatchNorm, Dense, Sequential, data, optim

DATASETS = Path(__file__).parent.parent / "datasets"
DATASHEET = (DATASETS / "README.md").read_text(encoding="utf-8")
KEYS = ["x_train", "y_train", "x_test", "y_test"]


def load_script(name):
    spec = importlib.util.spec_from_file_location(name, DATASETS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


make_digits, measure_digits = load_script("make_digits"), load_script("measure_digits")


@pytest.fixture(autouse=True)
def no_data_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def digits():
    with np.load(DATASETS / "digits.npz") as file:
        return {key: file[key] for key in KEYS}


# --- The set ------------------------------------------------------------------------------------------

def test_digits_are_float_images_and_balanced_labels():
    (x_train, y_train), (x_test, y_test) = data.load("digits")
    for x, y, n in ((x_train, y_train, 10_000), (x_test, y_test, 2_000)):
        assert x.shape == (n, 784) and x.dtype == np.float32 and x.min() == 0 and x.max() == 1
        assert y.dtype == np.int64 and np.bincount(y).tolist() == [n // 10] * 10
    assert len(np.unique(np.concatenate([x_train, x_test]), axis=0)) == 12_000


def test_the_datasheet_has_both_checksums_and_the_number_of_styles(digits):
    content = (DATASETS / "digits.npz").read_bytes()
    assert len(content) <= 5_000_000
    for checked in (content, b"".join(digits[key].tobytes() for key in KEYS)):
        assert hashlib.sha256(checked).hexdigest() in DATASHEET
    assert f"{sum(map(len, make_digits.STYLES.values()))} styles" in " ".join(DATASHEET.split())


def test_digits_are_centred_and_sized_as_mnist_is(digits):
    images = digits["x_train"] / 255
    place = np.arange(28) + 0.5
    for axis in (1, 2):
        centre = images.sum(axis=axis) @ place / images.sum(axis=(1, 2))
        assert np.abs(centre - 14).mean() < 0.5
        extent = (images.max(axis=axis) > 0).sum(axis=1)
        assert extent.max() <= 20
    assert abs(images.mean() - 0.1307) < 0.02 and abs(images.std() - 0.3081) < 0.03


def test_digits_need_more_than_their_mean_images_and_more_than_a_linear_model():
    train, test = data.load("digits")
    assert 0.7 < measure_digits.nearest_mean(train, test) <= 0.85
    linear = Sequential([Dense(10)]).compile(optim.Adam(), metrics=["accuracy"])
    deep = Sequential([Dense(100), BatchNorm(), Activation("relu"), Dense(10)]).compile(optim.Adam(), metrics=["accuracy"])
    for model in (linear, deep):
        model.fit(*train, epochs=3, batch_size=64, verbose=0)
    assert 0.86 < linear.evaluate(*test)[1] < 0.94 < deep.evaluate(*test)[1]


# --- make_digits.py -----------------------------------------------------------------------------------

def make(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_digits.py", *map(str, arguments)])
    make_digits.main()


@pytest.mark.parametrize("split, x, y", [(0, "x_train", "y_train"), (1, "x_test", "y_test")])
def test_the_script_draws_the_file_again(digits, split, x, y):
    last = len(digits[x]) // make_digits.CHUNK - 1
    images, labels = make_digits.make_chunk(seed=0, split=split, chunk=last)
    assert np.array_equal(images, digits[x][-500:]) and np.array_equal(labels, digits[y][-500:])


def test_a_smaller_set_is_the_beginning_and_another_seed_gives_other_images(digits, monkeypatch, tmp_path, capsys):
    path = tmp_path / "set.npz"
    make(monkeypatch, "--n", 605, "--out", path)
    with np.load(path) as file:
        for key, n in zip(KEYS, (505, 505, 100, 100)):
            assert len(file[key]) == n and np.array_equal(file[key], digits[key][:n]) and file[key].dtype == digits[key].dtype
    first = path.read_bytes()
    make(monkeypatch, "--n", 605, "--out", path)
    assert path.read_bytes() == first
    make(monkeypatch, "--n", 605, "--seed", 1, "--out", path)
    known = {image.tobytes() for key in ("x_train", "x_test") for image in digits[key]}
    with np.load(path) as file:
        assert not any(image.tobytes() in known for key in ("x_train", "x_test") for image in file[key])
    assert [p.name for p in tmp_path.iterdir()] == ["set.npz"]
    assert capsys.readouterr() == ("", "")  # no bar where there is no terminal


def test_there_is_a_bar_on_a_terminal(monkeypatch, tmp_path):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    make(monkeypatch, "--n", 6, "--out", tmp_path / "set.npz")
    assert "6/6" in terminal.getvalue()


def test_the_sheet_shows_the_first_images_of_each_digit(digits, monkeypatch, tmp_path):
    make(monkeypatch, "--sheet", tmp_path / "sheet.png")
    shown = [matplotlib.image.imread(path) for path in (tmp_path / "sheet.png", DATASETS / "digits_sample.png")]
    expected = np.vstack([np.hstack(digits["x_train"][digits["y_train"] == digit][:20]) for digit in range(10)])
    assert all(np.array_equal(np.rint(255 * image), 255 - expected) for image in shown)


@pytest.mark.parametrize("arguments, fault", [
    (["--n", "5"], "--n"), (["--n", "1e3"], "--n"), (["--seed", "-1"], "--seed"), (["--out", "nowhere/set.npz"], "nowhere"),
    (["--out", "."], "must be a file"), (["--sheet", "nowhere/sheet.png"], "nowhere")])
def test_bad_values_are_refused_before_any_work(arguments, fault, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_digits, "make_chunk", None)
    with pytest.raises(SystemExit) as caught:
        make(monkeypatch, *arguments)
    assert caught.value.code == 2 and fault in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_is_replaced_whole_or_not_at_all(monkeypatch, tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"old")

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez_compressed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(monkeypatch, "--n", 6, "--out", path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# --- measure_digits.py --------------------------------------------------------------------------------

def few(n_train=120, n_test=100):
    (x, y), (x_test, y_test) = data.load("digits")
    return (x[:n_train], y[:n_train]), (x_test[:n_test], y_test[:n_test])


def test_pixel_statistics_of_known_pixels():
    x = np.array([[0, 0, 0, 0, 0, 1, 128, 249, 250, 255]], np.float32) / 255
    assert list(measure_digits.pixel_statistics(x).values()) == ["0.346", "0.444", "50.0 %", "20.0 %", "10.0 %"]


def test_nearest_mean_is_the_nearest_by_definition():
    (x, y), (x_test, y_test) = few()
    means = [x[y == digit].mean(axis=0) for digit in range(10)]
    guesses = [np.argmin([np.linalg.norm(image - mean) for mean in means]) for image in x_test]
    assert measure_digits.nearest_mean((x, y), (x_test, y_test)) == np.mean(guesses == y_test)


def test_training_learns_and_normalises_every_test_as_the_training_images():
    """A network learns a few images by heart; a brighter copy of the whole run must then give the same labels."""
    train, test = few()
    seen, unseen = measure_digits.train_and_test(0, (32,), train, [train, test], epochs=20).values()
    assert seen.mean() > 0.95 and 0.3 < unseen.mean() < 0.9 and seen.shape == (120,) and unseen.shape == (100,)
    brighter = [(4 * x + 1, y) for x, y in (train, test)]
    again = list(measure_digits.train_and_test(0, (32,), brighter[0], brighter, epochs=20).values())
    assert np.mean(np.concatenate(again) == np.concatenate([seen, unseen])) > 0.95


@pytest.mark.parametrize("with_real", [True, False])
def test_measure_trains_and_tests_on_the_sets_it_says(with_real, monkeypatch, capsys):
    """Seven figures of the digits alone, eight of both sets; the transfer is to all real images, and back to the test set."""
    sets = {"digits": few(120, 110), "real": few(60, 70)} if with_real else {"digits": few(120, 110)}
    runs = []

    def read_every_second(seed, hidden, train, tests, epochs):
        runs.append((len(hidden), len(train[0]), [len(x) for x, _ in tests]))
        return {f"test {i}": np.arange(len(y)) % 2 == 0 for i, (_, y) in enumerate(tests)}

    monkeypatch.setattr(measure_digits, "train_and_test", read_every_second)
    figures = measure_digits.measure(sets, seeds=range(1), epochs=1, steps=10, rate_steps=1)
    if with_real:
        others = [(2, 120, [110, 130]), (2, 60, [70, 110])]
        assert runs == [(0, 120, [110]), (0, 60, [70]), *others, (2, 120, [110]), (2, 60, [70])]
    else:
        assert runs == [(hidden, 120, [110]) for hidden in (0, 2, 2)]
    names = {name for name, _ in figures}
    assert len(names) == 7 + with_real and set(figures) == {(name, column) for name in names for column in sets}
    assert all(figures[name, "digits"] == [0.5] for name in (measure_digits.SOFTMAX, measure_digits.NETWORK))
    for name in (measure_digits.STEPS, measure_digits.RATE_3, measure_digits.RATE_6):
        assert all(figures[name, column] == [1] for column in sets)  # after so few steps nothing works, with or without
    output = capsys.readouterr().out
    assert all(name in output for name in names) and ("misread there, of all 9s" in output) == with_real


def test_effects_are_ratios_in_favour_of_batch_norm_and_finite(monkeypatch):
    """Where the network without BatchNorm never gets there, all the steps or the smallest rate count."""
    steps, rates = {"with": [20, 40], "without": [200, np.inf]}, {"with": [10, 1], "without": [1, 0]}
    result = SimpleNamespace(steps_to=lambda name, target: np.array(steps[name]),
                             largest=lambda name, below: np.array(rates[name]))
    monkeypatch.setattr(measure_digits.experiments, "compare", lambda *_, **__: result)
    monkeypatch.setattr(measure_digits.experiments, "lr_range", lambda *_, **__: result)
    assert measure_digits.steps_ratio(None, range(2), steps=1000).tolist() == [10, 25]
    assert np.allclose(measure_digits.rate_ratio(3, None, range(2)), [10, 10 ** 1.5])


def good_figures():
    figures = {key: [(low + high) / 2] * 2 for key, (low, high) in measure_digits.BOUNDS.items()}
    names = (measure_digits.STEPS, measure_digits.RATE_3, measure_digits.RATE_6)
    return figures | {(name, column): [10, 12] for name in names for column in ("digits", "real")}


def test_check_passes_good_figures_and_those_of_the_digits_alone(capsys):
    assert measure_digits.check(good_figures())
    assert capsys.readouterr().out.count("PASS") == 8
    assert measure_digits.check({key: values for key, values in good_figures().items() if "digits" in key})
    assert capsys.readouterr().out.count("PASS") == 4


@pytest.mark.parametrize("key", good_figures())
def test_check_fails_each_figure_out_of_bounds(key, capsys):
    figures = good_figures()
    figures[key] = [measure_digits.BOUNDS[key][0] - 0.01] * 2 if key in measure_digits.BOUNDS else [4, 6]
    assert not measure_digits.check(figures)
    assert capsys.readouterr().out.count("FAIL") == 1


def test_a_missing_folder_ends_in_one_line_and_a_failed_check_in_exit_code_1(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["measure_digits.py", "--real", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as caught:
        measure_digits.main()
    assert "nowhere" in caught.value.code and "\n" not in caught.value.code
    monkeypatch.setattr(sys, "argv", ["measure_digits.py"])
    monkeypatch.setattr(measure_digits, "measure", lambda sets: {(measure_digits.NEAREST, "digits"): [0.9]})
    with pytest.raises(SystemExit) as caught:
        measure_digits.main()
    assert caught.value.code == 1
