"""What the lessons' verdicts rest on: CHECK lines that can fail, controls that are what they say, numbers as shown."""

import json

import numpy as np
import pytest

from minidl import BatchNorm, Tensor, data, plotting
from minidl.lessonkit import Lesson, ratio, written


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_FIGURES", str(tmp_path))
    for variable in ("MINIDL_SEED", "MINIDL_DATASET", "MINIDL_BN", "MINIDL_LABELS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def test_checks_decide_the_exit_code_and_are_written_down(capsys, folder):
    lesson = Lesson("01_x")
    lesson.check("large enough", 2.0, at_least=2)
    lesson.check("small enough", np.float32(2.0), at_most=2)
    lesson.finish()
    lesson.check("never reached", np.inf, text="> 9", at_most=5)
    lesson.check("no number", np.nan, at_least=0)
    with pytest.raises(SystemExit) as caught:
        lesson.finish()
    out = capsys.readouterr().out
    assert caught.value.code == 1 and "2 checks passed, 2 failed" in out
    assert "CHECK large enough: measured 2, required >= 2, PASS" in out
    assert "CHECK never reached: measured > 9, required <= 5, FAIL" in out
    record = json.loads((folder / "01_x.json").read_text())
    assert [check["passed"] for check in record["checks"]] == [True, True, False, False]
    assert [check["measured"] for check in record["checks"]] == [2, 2, None, None]


@pytest.mark.parametrize("name, measured, bounds, kind, message", [
    ("x", 1.0, {}, ValueError, "CHECK x: needs one bound, at_least or at_most, that is a finite "
                               "number, got at_least=None, at_most=None"),
    ("x", 1.0, {"at_least": 0, "at_most": 2}, ValueError, "a range is two CHECKs"),
    ("x", 1.0, {"at_least": np.nan}, ValueError, "finite number, got at_least=nan"),
    ("x", 1.0, {"at_most": np.inf}, ValueError, "finite number"),
    ("x", 1.0, {"at_most": "2"}, ValueError, "finite number"),
    ("x", np.ones(2), {"at_most": 2}, TypeError, "measured must be one number, got array"),
    ("x", np.ones(1), {"at_most": 2}, TypeError, "take the mean or the median"),
    ("x", "1", {"at_most": 2}, TypeError, "measured must be one number, got '1'"),
                                                                   ("x", None, {"at_most": 2},
                                                                    TypeError, "got None"),
    ("", 1.0, {"at_most": 2}, ValueError, "a name on one line"),
    ("a\nb", 1.0, {"at_most": 2}, ValueError, "a name on one line"),
    (3, 1.0, {"at_most": 2}, ValueError, "a name on one line"),
    ("x", 1.0, {"at_most": 2, "text": 3}, ValueError, "perhaps a text")])
def test_a_check_that_could_not_fail_or_not_be_read_is_refused(name, measured, bounds, kind,
                                                               message):
    lesson = Lesson("01_x")
    with pytest.raises(kind, match=message):
        lesson.check(name, measured, **bounds)
    assert lesson.checks == []


@pytest.mark.parametrize("measured",
                         [2, True + 1, np.int64(2), np.float32(2), np.array(2.0),
                          Tensor(np.float32(2))], ids=type)
def test_whatever_is_one_number_can_be_checked_and_written_down(measured, capsys, folder):
    lesson = Lesson("01_x")
    lesson.check("x", measured, at_least=np.float32(1.5))
    lesson.check("y", measured, at_most=1)
    with pytest.raises(SystemExit):
        lesson.finish()
    assert "CHECK x: measured 2, required >= 1.5, PASS" in capsys.readouterr().out
    assert [check["passed"] for check in json.loads((folder / "01_x.json").read_text())["checks"]] == [True, False]


def test_not_a_number_fails_either_bound():
    lesson = Lesson("01_x")
    for bound in ("at_least", "at_most"):
        lesson.check("x", np.float64("nan"), **{bound: 0})
    assert [check["passed"] for check in lesson.checks] == [False, False]


@pytest.mark.parametrize("n", [0, -1, 2.0, True, 1001])
def test_seeds_are_a_number_of_them(n):
    assert Lesson("01_x").seeds(3) == [0, 1, 2]
    with pytest.raises(ValueError, match="from 1 to 1000"):
        Lesson("01_x").seeds(n)


@pytest.mark.parametrize("name", ["", "a/b", "..\\x", None, 3])
def test_a_lessons_name_is_no_path(name):
    with pytest.raises(ValueError, match="a lesson's name is that of its file"):
        Lesson(name)


def test_a_lesson_that_cannot_save_its_figures_says_so_before_any_work(folder, monkeypatch):
    """As in a read-only folder; the first figure comes after minutes of training."""
    (folder / "file").touch()
    monkeypatch.setenv("MINIDL_FIGURES", str(folder / "file"))
    with pytest.raises(SystemExit, match="set MINIDL_FIGURES"):
        Lesson("01_x")


def test_a_bound_for_the_digits_only_reports_on_other_data(monkeypatch, capsys):
    monkeypatch.setenv("MINIDL_DATASET", "mnist")
    lesson = Lesson("01_x")
    lesson.check("accuracy", 0.1, at_least=0.9, on_default_data=True)
    lesson.finish()
    assert "REPORTED" in capsys.readouterr().out


def test_the_controls_do_what_they_say(monkeypatch, capsys):
    monkeypatch.setattr(BatchNorm, "forward", BatchNorm.forward)  # put back after the test
    monkeypatch.setenv("MINIDL_BN", "identity")
    monkeypatch.setenv("MINIDL_LABELS", "permuted")
    (x, y), (x_test, y_test) = Lesson("01_x").load_data()
    (x_true, y_true), (_, y_test_true) = data.load("digits")
    assert np.array_equal(x, x_true)
    for shuffled, true in ((y, y_true), (y_test, y_test_true)):
        assert np.array_equal(np.sort(shuffled), np.sort(true)) and abs((shuffled == true).mean() - 0.1) < 0.03
    layer = BatchNorm()
    assert np.array_equal(layer(x[:8]).numpy(), x[:8]), "gamma is 1 and beta 0 at first"
    assert np.array_equal(layer.running_mean, np.zeros(784))


@pytest.mark.parametrize("slow, fast, expected", [
    ([100, 200, 300], [10, 20, 30], (10, "10")), ([np.inf] * 3, [10] * 3, (100, "> 100")),
    ([10] * 3, [np.inf] * 3, (0, "0 (the first was not reached)"))])
def test_ratios_of_what_was_not_reached_are_bounds(slow, fast, expected):
    assert ratio(slow, fast, limit=1000) == expected


def test_there_is_no_ratio_to_nothing():
    for slow in (0, 10, np.inf):
        with pytest.raises(ValueError, match="reached before the first step"):
            ratio([slow], [0], limit=1000)


def test_the_numbers_behind_a_figure_are_those_drawn(folder):
    fig, ax = plotting.figure(title="message")
    plotting.band(np.arange(3), [[1.0, 2, np.nan], [3, 4, 5]], "with BN", ax=ax)
    ax.scatter([1], [2], label="dot")
    ax.bar([0], [7], width=0.5)
    ax.imshow([[1.0, 2.0]])
    lesson = Lesson("01_x")
    lesson.show(fig, "all")
    lesson.finish()
    figure = json.loads((folder / "01_x.json").read_text())["figures"]["all"]
    assert figure["title"] == "message" and (folder / "01_x-all.png").exists()
    series = figure["panels"][0]["series"]
    assert {"kind": "line", "label": "with BN", "x": [0, 1, 2], "y": [2, 3, 5]} in series
    assert {"kind": "points", "label": "dot", "xy": [[1, 2]]} in series
    assert {"kind": "bar", "x_y_width_height": [-0.25, 0, 0.5, 7]} in series
    assert {"kind": "image", "values": [[1, 2]]} in series
    assert [2, 5] in next(s["xy"] for s in series if s["kind"] == "area")


@pytest.mark.parametrize("number, digits, expected", [
    (4.1e19, 1, "4 × 10¹⁹"), (5.4e-20, 2, "5.4 × 10⁻²⁰"), (1653.2, 3, "1,650"), (-0.0132, 2, "−0.013"),
    (0.0, 2, "0.0"), (-0.0, 2, "0.0"), (9.96, 2, "10"), (999_999, 2, "1.0 × 10⁶"), (22.4, 2, "22"),
    (np.float32(0.5), 1, "0.5"), (np.inf, 2, "inf")])
def test_numbers_in_titles_are_written_as_people_write_them(number, digits, expected):
    assert written(number, digits) == expected


def test_a_gain_has_its_sign():
    assert [written(x, 2, sign=True) for x in (0.0132, -0.0132)] == ["+0.013", "−0.013"]


def test_predictions_stand_below_the_checks_and_in_the_json(capsys, folder):
    """An empty one is none; a cell that is run again says nothing twice; nobody is asked, so no keyboard is needed."""
    lesson = Lesson("01_x")
    for text in ("", "  ", "50 and 500 ", "50 and 500", "later"):
        lesson.predict(text)
    with pytest.raises(TypeError, match="a prediction is a text in quotes, got 50"):
        lesson.predict(50)
    lesson.check("measured", 2.0, at_least=2)
    lesson.finish()
    assert capsys.readouterr().out.endswith("PASS\nyou predicted: 50 and 500\nyou predicted: later\n1 checks passed, 0 failed\n")
    assert json.loads((folder / "01_x.json").read_text())["predictions"] == ["50 and 500", "later"]
