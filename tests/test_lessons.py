"""The lessons run headless from any folder, their CHECKs pass, and they fail when BatchNorm does nothing."""

import json
import re
from pathlib import Path

import pytest
from lesson_runs import LESSONS, run

NAMES = sorted(path.stem for path in LESSONS.glob("[0-9]*.py"))
# These explain; the others claim that BatchNorm has an effect, which the negative controls must take away.
NO_CLAIM = {"01_tensors_and_gradients", "02_training_by_hand", "03_valley_and_bowl", "05_batchnorm_backward",
            "06_keras_and_pytorch_programs", "21_what_a_compiler_does"}
SOLUTIONS = sorted(f"solutions/{path.stem}" for path in (LESSONS / "solutions").glob("*.py"))
CLAIMS = [name for name in NAMES if name not in NO_CLAIM]
# These stand for all in the three other kinds of run; the others run with `pytest -m thorough`.
ALWAYS = {"07_faster_convergence", "11_train_and_eval"}


def mostly_thorough(names):
    return [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.thorough) for name in names]


def record(lesson, folder):
    """What the lesson wrote down in its JSON file."""
    return json.loads((folder / f"{lesson}.json").read_text())


def checks(result):
    return re.findall(r"^CHECK (.+): measured (.+), required .+, (PASS|FAIL|REPORTED.*)$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("lesson", NAMES)
def test_a_lesson_passes_its_checks_and_saves_its_figures(lesson, runs):
    result, folder = runs(lesson, "plain")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert checks(result) and all(verdict == "PASS" for _, _, verdict in checks(result))
    written = record(lesson, folder / "figures")
    assert [(c["name"], c["text"]) for c in written["checks"]] == [(name, value) for name, value, _ in checks(result)]
    assert written["figures"] and all(any(panel["series"] for panel in figure["panels"]) or name.startswith("graph")
                                      for name, figure in written["figures"].items())
    saved = sorted(path.name for path in (folder / "figures").iterdir())
    assert {f"{lesson}.json", *(f"{lesson}-{name}.png" for name in written["figures"])} <= set(saved)
    assert all(path.stat().st_size > 10_000 for path in (folder / "figures").glob("*.png"))


@pytest.mark.parametrize("lesson", mostly_thorough(CLAIMS))
def test_a_lesson_fails_when_batch_norm_is_the_identity(lesson, runs):
    """The negative control: what a lesson claims of BatchNorm must not be found without it."""
    result, folder = runs(lesson, "identity")
    assert result.returncode == 1, result.stdout + result.stderr
    claims = [(check["name"], check["text"]) for check in record(lesson, folder / "figures")["checks"] if check["claim"]]
    held = [(check["name"], check["text"]) for check in record(lesson, folder / "figures")["checks"]
            if check["claim"] and check["passed"]]
    assert claims and not held, held


@pytest.mark.parametrize("lesson", mostly_thorough(CLAIMS))
def test_a_lesson_fails_when_the_labels_are_permuted(lesson, runs):
    """The other control: where there is nothing to learn, nothing may be found."""
    result, _ = runs(lesson, "permuted")
    assert result.returncode == 1 and "MINIDL_LABELS=permuted" in result.stdout, result.stdout + result.stderr
    assert "Traceback" not in result.stderr, result.stderr


@pytest.mark.parametrize("lesson", mostly_thorough(NAMES))
def test_a_lesson_runs_on_a_folder_of_idx_files(lesson, runs):
    result, folder = runs(lesson, "mnist")
    assert result.returncode == 0, result.stdout + result.stderr
    written = record(lesson, folder / "elsewhere")
    assert written["dataset"] == "mnist"
    assert len(list((folder / "elsewhere").glob(f"{lesson}-*.png"))) >= len(written["figures"])


@pytest.mark.thorough
@pytest.mark.parametrize("solutions", SOLUTIONS)
def test_solutions_run_and_their_checks_pass(solutions, tmp_path):
    result = run(solutions, tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stdout + result.stderr
    assert checks(result) and all(verdict == "PASS" for _, _, verdict in checks(result))


@pytest.mark.parametrize("solutions", SOLUTIONS)
def test_each_exercise_has_one_solution(solutions):
    """In the lesson's order; each says something and runs something."""
    lesson, = LESSONS.glob(f"{Path(solutions).name}.py")
    tasks = re.findall(r"^# (\d+)\. (?:Easy|Medium|Research): ", lesson.read_text(encoding="utf-8"), re.MULTILINE)
    cells = re.split(r"^# %% \[markdown\]\n", (LESSONS / f"{solutions}.py").read_text(encoding="utf-8"), flags=re.MULTILINE)
    solved = [re.match(r"# ## (\d+)\. (?:Easy|Medium|Research): .+\n#\n# \S", cell) for cell in cells[2:]]
    assert [match and match[1] for match in solved] == tasks and all("\n# %%\n" in cell for cell in cells[2:])


@pytest.mark.parametrize("lesson", NAMES)
def test_a_lesson_ends_with_two_questions_of_four_answers(lesson):
    """The right answers and what is wrong with the others are folded."""
    text = (LESSONS / f"{lesson}.py").read_text(encoding="utf-8")
    form = (r"# ## Two questions\n#\n" + 2 * r"# \*\*\d\. (?:.+\n)+#\n# - A: (?:.+\n)+?# - B: (?:.+\n)+?# - C: (?:.+\n)+?# - D: (?:.+\n)+?#\n"
            + r"# <details><summary>Answers</summary>\n#\n# 1 [A-D]\. (?:.+\n)+?#\n# 2 [A-D]\. (?:.+\n)+?#\n# </details>\n#\n# ## Try\n")
    assert re.search(form, text)


@pytest.mark.parametrize("text", [*NAMES, *SOLUTIONS])
def test_no_line_of_prose_begins_like_a_list_by_accident(text):
    """Markdown takes a line that begins with "2021. " for an item of a list; no list here has ten."""
    assert not re.findall(r"^# \d{2,}\. .*", (LESSONS / f"{text}.py").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("lesson", NAMES)
def test_no_line_of_a_lesson_is_longer_than_88_characters(lesson):
    """The beamer and the printed page show no more."""
    lines = (LESSONS / f"{lesson}.py").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 88] == []


def test_missing_data_end_a_lesson_with_the_reason_and_no_traceback(tmp_path):
    result = run("07_faster_convergence", tmp_path, MINIDL_DATASET="mnist", MINIDL_DATA=str(tmp_path),
                 HOME=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("no data: mnist is not on this machine") and "Traceback" not in result.stderr


@pytest.mark.parametrize("variable, value", [("MINIDL_SEED", "-1"), ("MINIDL_SEED", "x"), ("MINIDL_BN", "ident"),
                                             ("MINIDL_LABELS", "x")])
def test_a_wrong_setting_ends_a_lesson_in_one_line(variable, value, tmp_path):
    """A misspelt negative control must not pass for the wrong reason."""
    result = run("07_faster_convergence", tmp_path, **{variable: value})
    assert result.returncode == 1 and result.stdout == "" and variable in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("lesson", NAMES)
def test_a_lesson_is_cells_of_prose_and_code_with_exercises_and_sources(lesson):
    text = (LESSONS / f"{lesson}.py").read_text(encoding="utf-8")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    prose = [cell for cell in cells if cell.startswith(" [markdown]")]
    assert all(line.startswith("#") for cell in prose for line in cell.strip().splitlines()[1:])
    for part in ("## Predict", "## Run", "## Explain", "## Try", "Sources:"):
        assert part in text, f"{lesson} has no {part}"
    assert len(re.findall(r"^# \d\. ", prose[-1], re.MULTILINE)) >= 3
    assert "sys.path" not in text and "minidl._" not in text
