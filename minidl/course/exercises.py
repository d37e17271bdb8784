"""Exercises that check themselves: copied, run with a time limit, checked, graded."""

import hashlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from time import perf_counter, sleep

from ..files import read_npz, replacing, write_csv
from .cells import PACKAGE, cells, lessons, read
from .judging import judge, refused
from .student import Mine, load, plays, results

LIMIT = 10  # seconds for one file
MOST_OUTPUT = 5_000_000  # bytes that a file may print
MOST_FILE = 1_000_000  # bytes of a file
NOTES = ".exercises.json"  # beside the copies: hints shown, and what was solved
CHECKS = "# %% The checks"  # begins what no copy has
SOLUTION = re.compile(r"^([ ]*)# --- solution\n(.*?)(?:^[ ]*# --- instead\n(.*?))?"
                      r"^[ ]*# --- end\n", re.MULTILINE | re.DOTALL)
CLOSING = '''
# %% [markdown]
# Check it: `python -m minidl exercise {name}`, with `--hint` for a hint, with
# `--watch` again whenever you save. In a notebook: `from minidl.course import check_exercise`, then
# `check_exercise({number}, {functions})`.
'''


# --- The exercises as files -----------------------------------------------------------------------

def exercises():
    """The files of the exercises in order."""
    return sorted((lessons()[0].parent / "exercises").glob("[0-9][0-9]_*.py"))


def find_exercise(name):
    """The file of an exercise, by its number or a part of its name.

    Raises ValueError if none or several match.
    """
    known = exercises()
    found = [path for path in known
             if (int(path.stem[:2]) == int(name) if name.isdecimal() else name in path.stem)]
    if len(found) != 1:
        raise ValueError(f"{'several exercises match' if found else 'no exercise matches'} "
                         f"{name!r}; there are {', '.join(path.stem for path in found or known)}")
    return found[0]


def exercise_of(file):
    """The exercise that a student's file is a copy of, by its heading or its name; else None."""
    heading = None
    try:
        if Path(file).stat().st_size <= MOST_FILE:
            heading = re.search(r"^# # Exercise (\d+)\.", read(file), re.MULTILINE)
    except (ValueError, OSError):
        pass  # that is said when it is run
    number = heading or re.match(r"(\d\d)_", Path(file).name)
    return next((path for path in exercises() if number and int(number[1]) == int(path.stem[:2])),
                None)


def about_exercise(path):
    """(number, title, question, lesson, time) of an exercise."""
    prose = " ".join(cells(path)[0].prose.split())
    found = re.match(r"# Exercise (\d+)\. (.+?): (.+?\?) .*Lesson (\d+)\. Time: (.+?)\.", prose)
    if not found:
        raise ValueError(f"{path}: the first cell must begin '# Exercise 6. Title: question?' and "
                         "say 'Lesson 5. Time: 20 minutes.'")
    number, title, question, lesson, time = found.groups()
    return int(number), title, question[0].upper() + question[1:], int(lesson), time


def blank(path):
    """The text of a copy to write in: without solution and checks."""
    text, checks, _ = read(path).partition(CHECKS)
    if not checks:
        raise ValueError(f"{path} has no line {CHECKS!r}")
    functions = re.findall(r"^(?:def|class) (\w+)", text, re.MULTILINE)
    return SOLUTION.sub(_instead, text).rstrip() + "\n" + CLOSING.format(
        name=path.name, number=int(path.stem[:2]), functions=", ".join(functions))


def _instead(match):
    indent, _, instead = match.groups()
    if instead:
        return re.sub(r"^([ ]*)# ", r"\1", instead, flags=re.MULTILINE)
    return f"{indent}raise NotImplementedError  # write it here\n"


@lru_cache(maxsize=None)
def loaded(path):
    """The exercise in this file as a module."""
    return load(path)


# --- Running and judging --------------------------------------------------------------------------

def check_file(file, exercise=None, seed=0):
    """Run a student's file and judge it; returns a Report.

    exercise: the path of the exercise, by default the one that the file is a copy of.
    """
    file = Path(file).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}; python -m minidl exercise 6 --copy DIR "
                                "makes one to write in")
    exercise = exercise or exercise_of(file)
    if exercise is None:
        raise ValueError(f"{file.name} is no copy of an exercise: it has no heading '# Exercise 6.'"
                         " and its name does not begin with a number, as in 06_...")
    if file.stat().st_size > MOST_FILE:
        return refused(f"the file has more than {MOST_FILE:,} bytes")
    said, printed = _run(exercise, file, seed)
    return judge(loaded(exercise), seed, said, printed)


def check_exercise(number, *functions, seed=0):
    """Check functions of this Python, in a notebook for example: check_exercise(6, backward).

    Prints the CHECK lines; returns whether it is solved. There is no time limit here.
    """
    exercise = loaded(find_exercise(str(number)))
    mine = Mine({function.__name__: function for function in functions})
    report = judge(exercise, seed, {name: results(exercise, mine, case)
                                    for name, case in plays(exercise, seed).items()})
    print(report)
    return report.state == "solved"


def _run(exercise, file, seed):
    """(results, what was printed) of a student's process.

    results: {play: {name: array} or the text of an error}, or the reason why there are none.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        out, log = Path(folder, "results.npz"), Path(folder, "printed.txt")
        path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
        with open(log, "wb") as stream:
            child = subprocess.Popen(
                [sys.executable, "-m", "minidl.course", "student", exercise, file, str(seed), out],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1",
                     "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "agg", "OPENBLAS_NUM_THREADS": "1"})
        try:
            fault = _wait(child, log)
        finally:
            _end(child)
        with open(log, "rb") as stream:
            printed = re.sub(r"[^\n\x20-\x7e\xa0-\uffff]", "?",
                             stream.read(10_000).decode("utf-8", "replace"))
        if fault or not out.is_file():
            return fault or _ended(child.returncode), printed
        said = {}
        try:
            for name, array in read_npz(out, most=200_000_000).items():
                play, _, name = name.partition("/")
                if name == "error":
                    said[play] = array.tobytes().decode(errors="replace")
                else:
                    said.setdefault(play, {})[name] = array
        except ValueError as error:
            return f"its results cannot be read: {error}", printed
    return said.get("file", said), printed


def _wait(child, log):
    """Wait until the child ends; why it has to be ended, or None."""
    began = perf_counter()
    while True:
        try:
            child.wait(0.1)
            return None
        except subprocess.TimeoutExpired:
            if log.stat().st_size > MOST_OUTPUT:
                return f"it was stopped after it had printed {MOST_OUTPUT:,} bytes"
            if perf_counter() - began > LIMIT:
                return f"it was stopped after {LIMIT} seconds: does a loop not end?"


def _end(child):
    """End the child, and what it has started."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:  # Windows
            child.kill()
    except OSError:
        pass  # it has ended
    child.wait()


def _ended(code):
    if code < 0:
        return (f"Python itself broke down (signal {-code}): too deep a recursion, or too much "
                "memory?")
    return f"it ended, with exit code {code}, before it had returned anything"


# --- Notes beside the copies: hints, what was solved ----------------------------------------------

def sha256(file):
    """The checksum of a file's bytes."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def _notes(folder):
    try:
        notes = json.loads((Path(folder) / NOTES).read_text(encoding="utf-8"))
        return {key: value for key, value in notes.items() if isinstance(value, dict)}
    except (OSError, ValueError, AttributeError):
        return {}


def note(file, key, value):
    """Remember something of a student's file beside it, where that folder can be written."""
    file = Path(file)
    notes = _notes(file.parent)
    notes.setdefault(file.name, {})[key] = value
    try:
        with replacing(file.parent / NOTES) as stream:
            stream.write(json.dumps(notes, indent=1).encode())
    except OSError:
        pass


def hint(file):
    """The next hint for a student's file, as a text; after the last one they begin anew."""
    exercise = exercise_of(file)
    if exercise is None:
        raise ValueError(f"{file} is no copy of an exercise, so there is no hint for it")
    hints = loaded(exercise).HINTS
    shown = _notes(Path(file).parent).get(Path(file).name, {}).get("hints", 0)
    shown = shown % len(hints) if isinstance(shown, int) else 0
    note(file, "hints", shown + 1)
    return f"hint {shown + 1} of {len(hints)}: {hints[shown]}"


def state_of(exercise, folder):
    """What is known of the copy in a folder: "solved", "changed since", "begun", "copied" or ""."""
    file = Path(folder) / exercise.name
    if not file.is_file():
        return ""
    solved = _notes(folder).get(file.name, {}).get("solved")
    if solved:
        return "solved" if solved == sha256(file) else "changed since it was solved"
    try:
        return "copied" if read(file) == blank(exercise) else "begun"
    except ValueError:
        return "begun"


def watch(file):
    """Check a file now and whenever it is saved, until Ctrl-C."""
    before = None
    while True:
        try:
            now = os.stat(file).st_mtime_ns
        except FileNotFoundError:
            now = before  # an editor is just replacing it
        if now != before:
            print(f"\n{Path(file).name}:\n{solve(file)}\nwaiting for the next save; Ctrl-C ends",
                  flush=True)
            before = now
        sleep(0.3)


def solve(file):
    """Check a file, and remember if it is solved; returns the Report."""
    report = check_file(file)
    if report.state == "solved":
        note(file, "solved", sha256(file))
    return report


# --- A class --------------------------------------------------------------------------------------

COLUMNS = ["student", "exercise", "file", "solved", "passed", "failed", "first thing wrong",
           "seconds", "seed", "sha256"]


def grade(folder, csv):
    """Check the copies of a class, one folder per student; returns the rows of its table.

    Writes a CSV file of one row per student and exercise.
    Each time the cases are drawn from a new seed, which is in the table.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder; a class is a folder with one folder per "
                                 "student")
    files = {}
    for file in sorted(folder.rglob("*.py")):
        exercise = exercise_of(file) if file.is_file() else None
        if exercise is not None:
            parts = file.relative_to(folder).parts
            student = parts[0] if len(parts) > 1 else folder.resolve().name
            files.setdefault((student, exercise), []).append(file)
    if not files:
        raise FileNotFoundError(f"there is no copy of an exercise in {folder}")
    seed = secrets.randbelow(2 ** 31)
    students = sorted({student for student, _ in files})
    asked = sorted({exercise for _, exercise in files})
    jobs = [(student, exercise, file) for student in students for exercise in asked
            for file in files.get((student, exercise), [None])]
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        rows = list(pool.map(lambda job: _row(folder, seed, *job), jobs))
    finally:
        pool.shutdown(cancel_futures=True)
    write_csv(csv, COLUMNS, [[_harmless(cell) for cell in row] for row in rows])
    return rows


def _row(folder, seed, student, exercise, file):
    number = int(exercise.stem[:2])
    if file is None:
        return [student, number, "", "no", 0, 0, "not handed in", 0, seed, ""]
    began = perf_counter()
    try:
        report, digest = check_file(file, exercise, seed), sha256(file)
    except (OSError, ValueError) as error:
        report, digest = refused(str(error)), ""
    passed = sum(check.passed for check in report.checks)
    return [student, number, file.relative_to(folder).as_posix(),
            "yes" if report.state == "solved" else "no", passed, len(report.checks) - passed,
            report.first if report.checks else report.state,
            round(perf_counter() - began, 2), seed, digest]


def _harmless(cell):
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and re.match(r"[=+\-@\t\r\n]", cell) else cell
