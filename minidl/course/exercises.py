"""Exercises that check themselves: find and copy them, run a student's file, judge its numbers, say
what they show.

The student's code runs in a process of its own (student.py) with a time limit and hands back
arrays. What is right is computed here, from the solution in the exercise's file, and so are its
usual mistakes: one of them is named only if the student's numbers are its numbers in all cases.
"""

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
from typing import NamedTuple

import numpy as np

from ..files import read_npz, replacing, write_csv
from . import evidence
from .cells import PACKAGE, cells, lessons, read
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


class Check(NamedTuple):
    """One CHECK line, and the lines of evidence below it."""

    line: str
    passed: bool
    words: list


class Report(NamedTuple):
    """What came of a file: state is "solved", "not started yet" or "not solved"; checks a list of
    Check; printed what it wrote on the terminal.
    """

    state: str
    checks: list
    printed: str = ""

    @property
    def first(self):
        """The first thing that is wrong, in one line, "" if nothing is."""
        failed = next((check for check in self.checks if not check.passed), None)
        return "" if failed is None else ": ".join([failed.line.split(", required")[0],
                                                    *failed.words])

    def __str__(self):
        lines = []
        for check in self.checks:
            lines += [check.line, *(f"      {words}" for words in check.words)]
        printed = self.printed.strip().splitlines()
        lines += [f"  | {line[:200]}" for line in printed[:10]]
        lines += [f"  | ... {len(printed) - 10} more lines were printed"] if printed[10:] else []
        passed = sum(check.passed for check in self.checks)
        return "\n".join([*lines, self.state if self.state == "not started yet" else
                          f"{passed} checks passed, {len(self.checks) - passed} failed: "
                          f"{self.state}"])


# --- The exercises as files -----------------------------------------------------------------------

def exercises():
    """The files of the exercises in order."""
    return sorted((lessons()[0].parent / "exercises").glob("[0-9][0-9]_*.py"))


def find_exercise(name):
    """The file of an exercise, by its number or a part of its name; ValueError if none or several
    match.
    """
    known = exercises()
    found = [path for path in known
             if (int(path.stem[:2]) == int(name) if name.isdecimal() else name in path.stem)]
    if len(found) != 1:
        raise ValueError(f"{'several exercises match' if found else 'no exercise matches'} "
                         f"{name!r}; there are {', '.join(path.stem for path in found or known)}")
    return found[0]


def exercise_of(file):
    """The exercise that a student's file is a copy of, by its heading, or else by its name; None if
    it is none.
    """
    try:
        heading = re.search(r"^# # Exercise (\d+)\.", read(file), re.MULTILINE)
    except (ValueError, OSError):
        heading = None
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
    """Run a student's file and judge it; returns a Report. exercise: the path of the exercise, by
    default the one that the file is a copy of.
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
        return _refused(f"the file has more than {MOST_FILE:,} bytes")
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


def _refused(text):
    return Report("not solved", [Check("CHECK the file runs: measured 0, required >= 1, FAIL",
                                       False, [text])])


def _run(exercise, file, seed):
    """({play: {name: array} or the text of an error}, what was printed) of a student's process, or
    (the reason why there is none, what was printed).
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


def judge(exercise, seed, said, printed=""):
    """A Report of what a student's functions returned. said: {play: {name: array} or the text of an
    error}, or one text where nothing was played.
    """
    if isinstance(said, str):
        return _refused(said)._replace(printed=printed)
    return _Judge(exercise, seed, said).report(printed)


class _Judge:
    """Compares what a student's functions returned with what the solution returns."""

    def __init__(self, exercise, seed, said):
        self.exercise = exercise
        self.arguments = plays(exercise, seed)
        mine = Mine(vars(exercise))
        self.right = {name: results(exercise, mine, case) for name, case in self.arguments.items()}
        self.said = {name: said.get(name, "this case was not played") for name in self.arguments}
        self.cases = [name for name in self.arguments if not name.startswith("half ")]
        self.mutated, self.failed = None, []

    def report(self, printed):
        if "not started yet" in self.said.values():
            return Report("not started yet", [], printed)
        checks = [self._errors(), self._changed(), self._dtypes()]
        if any(isinstance(self.said[name], dict) for name in self.cases):
            checks += [self._output(name) for name in self.right[self.cases[0]]
                       if name != "changed"]
        solved = all(check.passed for check in checks)
        return Report("solved" if solved else "not solved", checks, printed)

    def _errors(self):
        texts = {name: self.said[name] for name in self.cases if isinstance(self.said[name], str)}
        words = []
        for text in dict.fromkeys(texts.values()):
            first = next(name for name, said in texts.items() if said == text)
            words.append(f"{text} (case {int(first) + 1} of {len(self.cases)}: "
                         f"{self._shapes(first)})")
        if texts and (mistake := self._mistake(None)):
            words.append(f"this happens in this way when {mistake}")
        return _check("cases that end in an error", len(texts), words[:4])

    def _changed(self):
        names = list(self.arguments["0"])
        found = {names[i] for said in self.said.values() if isinstance(said, dict)
                 for i in np.flatnonzero(said.get("changed", ())[:len(names)])}
        words = [f"{name} was changed in place: whoever called still needs it; compute a new array"
                 for name in sorted(found)]
        return _check("arguments that were changed", len(found), words)

    def _dtypes(self):
        found = {}
        for name in self.cases:
            for output, right in self.right[name].items():
                got = self.said[name].get(output) if isinstance(self.said[name], dict) else None
                if got is not None and right.dtype.kind == "f" and got.dtype != right.dtype:
                    found.setdefault(output, f"{output} is {got.dtype}, expected is {right.dtype} "
                                             f"({self._shapes(name)})")
        return _check("results of another dtype", len(found), list(found.values()))

    def _output(self, output):
        """The CHECK of one output over all cases that did not end in an error."""
        cases = [name for name in self.cases if isinstance(self.said[name], dict)
                 and output in self.said[name]]
        got = [self.said[name][output] for name in cases]
        right = [self.right[name][output] for name in cases]
        special = [self._special(output, *three) for three in zip(cases, got, right)]
        allowed = [0 if output in getattr(self.exercise, "EXACT", ()) else
                   evidence.tolerance(b, b) for b in right]
        errors = [evidence.distance(a, b) if own is None else own[0]
                  for a, b, own in zip(got, right, special)]
        failed = [i for i, (error, most) in enumerate(zip(errors, allowed)) if not error <= most]
        worst = failed[0] if failed else int(np.argmax(errors)) if errors else None
        if worst is None:
            return _check(f"{output}", 1, ["it was not returned"])
        words = []
        if failed:
            words = list(special[worst][1]) if special[worst] is not None else [
                f"{evidence.first_wrong(output, got[worst], right[worst])}"
                f"{self._which(cases, failed, worst)}"]
            words += self._words(output, cases, got, right, worst, special[worst] is not None)
            self.failed.append(output)
        measured = f"{errors[worst]:.1e}" if errors[worst] else "0"
        line = (f"CHECK {output}: relative error: measured {measured}, required <= "
                f"{allowed[worst]:.0e}, {'FAIL' if failed else 'PASS'}")
        if special[worst] is not None:
            line = (f"CHECK {output}: places that are wrong: measured {errors[worst]:g}, "
                    f"required <= 0, {'FAIL' if failed else 'PASS'}")
        return Check(line, not failed, words)

    def _words(self, output, cases, got, right, worst, special):
        """What is known of the cause, as lines."""
        if mistake := self._mistake(output):
            return [f"these are just the numbers you get when {mistake}"]
        if any(isinstance(run, dict) and np.any(run.get("changed", 0))
               for run in self.said.values()):
            return ["an argument was changed in place: look at that first"]
        depends = getattr(self.exercise, "FOLLOWS", {}).get(output, ())
        if before := [name for name in self.failed if name in depends]:
            return [f"this depends on what is wrong above ({', '.join(before)}): look there first"]
        if special:
            return []
        arguments = [self.arguments[name] for name in cases]
        mine, ideal, case = self.said[cases[worst]], self.right[cases[worst]], arguments[worst]
        if got[worst].shape == right[worst].shape and not np.isfinite(got[worst]).all():
            return self._infinite(output, got[worst], case)
        words = []
        if (output in getattr(self.exercise, "GRADIENTS", ())
                and got[worst].shape == right[worst].shape):
            way = np.random.default_rng(0).standard_normal(right[worst].shape)
            words.append(f"along a random direction the loss changes by "
                         f"{(right[worst] * way).sum():.6g} per unit; your {output} predicts "
                         f"{(got[worst] * way).sum():.6g}")
        finite = [i for i in range(len(cases)) if np.isfinite(got[i]).all()]
        terms = getattr(self.exercise, "terms", lambda case: {})
        own = getattr(self.exercise, "evidence", lambda *_: [])(output, case, mine, ideal)
        known = own or evidence.cause(
            output, [got[i] for i in finite], [right[i] for i in finite],
            [self._known(cases[i], output) for i in finite],
            [terms(arguments[i]).get(output, {}) for i in finite],
            [self._factors(arguments[i]) for i in finite])
        known += self._dependence(output)[:2]
        return words + (known or ["what causes this cannot be told from the numbers"])

    def _special(self, output, name, got, right):
        own = getattr(self.exercise, "judge", None)
        return own and own(output, self.arguments[name], got, right)

    def _which(self, cases, failed, worst):
        if len(cases) == 1:
            return ""
        fine = [self._shapes(name) for i, name in enumerate(cases) if i not in failed]
        only = f"; right in {len(fine)}: {'; '.join(fine[:3])}" if fine else ""
        return (f"; case {int(cases[worst]) + 1} of {len(self.cases)}, "
                f"{self._shapes(cases[worst])}{only}")

    def _shapes(self, name):
        own = getattr(self.exercise, "label", None)
        arguments = self.arguments[name]
        return own(arguments) if own else ", ".join(
            f"{key} {value.shape}" for key, value in arguments.items()
            if isinstance(value, np.ndarray))

    def _infinite(self, output, got, arguments):
        place = tuple(map(int, np.argwhere(~np.isfinite(got))[0]))
        there = [f"{key} is {value[place]:.4g}" for key, value in arguments.items()
                 if np.shape(value) == got.shape and got.ndim]
        return [f"{output}{list(place) if place else ''} is {got[place]}"
                + f", where {', '.join(there)}" * bool(there)
                + ": a division by 0, or a number too large for its dtype"]

    def _known(self, name, output):
        known = {f"the argument {key}": value for key, value in self.arguments[name].items()
                 if isinstance(value, np.ndarray) and value.dtype.kind in "fi"}
        return known | {f"the right {key}": value for key, value in self.right[name].items()
                        if key not in (output, "changed")}

    def _factors(self, arguments):
        known = {key: value for key, value in arguments.items()
                 if isinstance(value, (int, float, np.ndarray)) and not isinstance(value, bool)
                 and np.asarray(value).dtype.kind == "f"}
        return known | getattr(self.exercise, "factors", lambda case: {})(arguments)

    def _dependence(self, output):
        words = []
        for play in self.arguments:
            runs = [side[name] for side in (self.said, self.right) for name in ("0", play)]
            if play.startswith("half ") and all(isinstance(run, dict) for run in runs):
                words.append(evidence.dependence(output, play.removeprefix("half "),
                                                 *(run[output] for run in runs)))
        return list(filter(None, words))

    def _mistake(self, output):
        """The words of the only known mistake with the student's numbers, or None. output: None for
        all of them.
        """
        if self.mutated is None:
            self.mutated = {
                words: {name: results(self.exercise, Mine(vars(self.exercise), changes),
                                      self.arguments[name]) for name in self.cases}
                for words, changes in self.exercise.MUTATIONS.items()}
        alone = output and all(run[output].dtype.kind == "f" for run in self.right.values())
        for keys in (None, output) if alone else (None,):  # all that was returned, else this
            found = [words for words, made in self.mutated.items() if self._agree(made, keys)
                     and (output is None or not self._agree(made, output, self.right))]
            if len(found) == 1:
                return found[0]
        return None

    def _agree(self, made, output, said=None):
        """Whether results are those of a mistake in all cases, in one output or in all (None), with
        numbers in at least one case. said: by default what the student's functions returned.
        """
        numbers = False
        for name in self.cases:
            mine, theirs = (said or self.said)[name], made[name]
            if isinstance(mine, str) or isinstance(theirs, str):
                kinds = [re.match(r"\w*", text)[0] for text in (mine, theirs)
                         if isinstance(text, str)]
                if len(kinds) < 2 or kinds[0] != kinds[1]:
                    return False
                continue
            for key in [output] if output else theirs:
                if key not in mine or not evidence.close(mine[key], theirs[key]):
                    return False
                numbers = True
        return numbers


def _check(name, measured, words):
    verdict = "FAIL" if measured else "PASS"
    return Check(f"CHECK {name}: measured {measured}, required <= 0, {verdict}", not measured,
                 words)


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
    """Check all copies in the folders of a class, one folder per student, and write a CSV file of
    one row per student and exercise; returns the rows.

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
        report, digest = _refused(str(error)), ""
    passed = sum(check.passed for check in report.checks)
    return [student, number, file.relative_to(folder).as_posix(),
            "yes" if report.state == "solved" else "no", passed, len(report.checks) - passed,
            report.first if report.checks else report.state,
            round(perf_counter() - began, 2), seed, digest]


def _harmless(cell):
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r\n") and cell else cell
