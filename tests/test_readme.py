"""The README's programs run as they are typed, and its commands and pictures exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minidl

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.+?)```", README, re.DOTALL)


def run(program, folder):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MINIDL_")}
    strict = ["-W", "error::RuntimeWarning", "-W", "error::UserWarning"]
    result = subprocess.run([sys.executable, *strict, "-c", program], cwd=folder, capture_output=True, text=True,
                            env={**environment, "OPENBLAS_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    return [float(number) for number in re.findall(r"0\.\d+", result.stdout)]


def test_the_first_program_shows_the_effect_in_fifteen_lines(tmp_path):
    assert len([line for line in PROGRAMS[0].splitlines() if line]) <= 15
    without, with_bn = run(PROGRAMS[0], tmp_path)
    assert with_bn > without + 0.1


def test_the_third_program_learns(tmp_path):
    accuracy, = run(PROGRAMS[2], tmp_path)
    assert accuracy > 0.85


def test_the_second_program_looks_inside_the_model_of_the_first(tmp_path):
    run(f"{PROGRAMS[0]}\n{PROGRAMS[1]}", tmp_path)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"graph.png", "history.png"}
    assert (tmp_path / "run.npz").stat().st_size > 300_000


def test_each_word_in_the_table_of_words_exists():
    """In minidl's column, what is called is in the package, or on a layer or a model."""
    words = (PROJECT / "minidl" / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\| Keras \| PyTorch \| minidl \|\n\|[-|]+\n((?:\|.+\n)+)", words)[1]
    rows = table.splitlines()
    words = [word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[3])]
    model = minidl.Sequential([minidl.Dense(2, input_shape=3)])
    owners = {"model": model, "layer": model[0], "training": minidl.training,
              "optim": minidl.optim,
              "Sequential": minidl.Sequential}
    for word in words:
        owner, _, attribute = re.match(r"(\w+)(\.(\w+))?", word).groups()
        if attribute:
            assert hasattr(owners[owner], attribute), word
        else:
            assert hasattr(minidl, owner) or owner in owners or hasattr(model, owner), word
    assert len(rows) > 10 and len(words) > 20


def test_the_table_of_words_names_what_minidl_lacks():
    """What is in other columns alone is answered in words."""
    for name in "BatchNormalization", "Linear", "ReLU", "BatchNorm1d", "Model", "load_model":
        with pytest.raises(AttributeError, match=f"no attribute '{name}': "):
            getattr(minidl, name)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_what_the_readme_links_to_is_there(link):
    assert (PROJECT / link).exists()


COURSE = (PROJECT / "lessons" / "README.md").read_text(encoding="utf-8")


def test_the_course_map_names_every_lesson():
    numbers = [int(n) for n in re.findall(r"^\| (\d+) [A-Z]", COURSE, re.MULTILINE)]
    there = [int(path.name[:2]) for path in (PROJECT / "lessons").glob("[0-9]*.py")]
    assert numbers == list(range(1, len(numbers) + 1)) and set(there) <= set(numbers)


def test_the_cells_that_can_be_skipped_are_there():
    """An entry with a capital letter is a heading of the lesson; others describe a cell."""
    for number, skip in re.findall(r"^\| (\d+) [A-Z].*\| ([^|]+) \|$", COURSE, re.MULTILINE):
        path, = (PROJECT / "lessons").glob(f"{int(number):02}_*.py")
        headings = "\n".join(re.findall(r"^# ## (.+)", path.read_text(encoding="utf-8"), re.MULTILINE)).lower()
        for heading in skip.split("; "):
            assert heading[0].islower() or heading.lower() in headings, (number, heading)


def test_each_term_of_the_glossary_is_in_the_lesson_that_it_names():
    glossary = COURSE[COURSE.index("## Glossary"):COURSE.index("## Settings")]
    terms = re.findall(r"([^|]+) \| (\d+)(?: \([\d, ]+\))? (?=\|)", glossary)
    assert len(terms) > 30
    for term, number in terms:
        path, = (PROJECT / "lessons").glob(f"{int(number):02}_*.py")
        text = " ".join(re.sub(r"^# ?", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).lower().split())
        for word in term.strip().split(", "):
            assert word.strip("$\\").lower().split()[0][:6] in text, (term, number)
