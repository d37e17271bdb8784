"""Steps through a lesson in a terminal: shows and runs cells, keeps predictions and the place."""

import json
import linecache
import os
import reprlib
import shlex
import subprocess
import sys
import tempfile
import textwrap
import types
from pathlib import Path

import numpy as np

from .. import console, data
from ..files import replacing
from ..lessonkit import Lesson
from ..tensor import Tensor
from . import terminal
from .cells import cells, heading, predicts
from .running import execute, new_main

HELP = """
Enter   runs the cell; if it has run, goes on
b       goes back one cell; what it did stays done
r       runs the cell again, or, if it has not run, the last that has
g 7     goes to cell 7, and runs those before it that have not run
l       lists the cells                 v       lists variables, with values
e 6*7   evaluates an expression         x       runs your own block instead
a       shows folded answers            h       shows this help
Ctrl-C  stops a running cell            q       quits; the place is remembered
A prediction is simply typed; it is kept, and shown beside the result."""


def step(path):
    """Step through a lesson in this process, until q or the end of input."""
    Session(path).talk()


class Session:
    """A lesson on a terminal: the cell that is shown, those that have run, and what was typed."""

    def __init__(self, path):
        self.path, self.stops, self.namespace = Path(path), cells(path), new_main(path)
        self.at, self.last = 0, None
        self.ran, self.tried = set(), set()  # tried: also those that were stopped or raised
        note = _notes().get(str(self.path))
        try:
            self.place = int(note["cell"])
            self.predictions = {int(at): str(text) for at, text in note["predictions"].items()}
        except (AttributeError, KeyError, TypeError, ValueError):  # no notes, or not in our format
            self.place, self.predictions = 0, {}

    def talk(self):
        """Ask and obey until the lesson is over."""
        print("h helps, q quits")
        if 0 < self.place < len(self.stops):
            _say(f"Last time you were at cell {self.place + 1}. g {self.place + 1} runs the cells "
                 "before it and goes there; Enter begins anew.")
        shown = None
        while self.at < len(self.stops):
            if self.at != shown:
                self.show()
                shown = self.at
            console.drop_typed()  # Enter pressed while a cell trained is not meant for the next
            try:
                line = input(self._prompt()).strip()
            except EOFError:
                print()
                break
            except (KeyboardInterrupt, UnicodeDecodeError):
                print("\nq quits, h helps")
                continue
            if line == "q":
                break
            try:
                self.obey(line)
            except KeyboardInterrupt:  # between two lines of a block, say
                print("\nstopped")
        self._remember()

    def obey(self, line):
        """Do what a line asks for; any other line is a prediction, or is answered with help."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if line in ("", "b", "r", "v", "l", "h", "a", "x"):
            {"": self.go_on, "b": self.back, "r": self.again, "v": self.variables,
             "l": self.list, "h": lambda: print(HELP), "a": self.answers, "x": self.own}[line]()
        elif word == "g" and rest.isdecimal() and 1 <= int(rest) <= len(self.stops):
            self.go_to(int(rest) - 1)
        elif word == "e" and rest:
            _say_end(execute(rest, 1, "<e>", self.namespace, "single"))
        elif line == "e":
            print("e needs something to evaluate: e 6 * 7")
        elif word == "g" and (not rest or rest.isdecimal()):
            print(f"g needs the number of a cell, 1 to {len(self.stops)}: g 7; l lists them")
        elif predicts(self.stops[self.at].prose):
            self.predictions[self.at] = line
            self._remember()
            _say("kept; when the cell has run, it is shown beside the result. Enter runs the cell")
        else:
            print(f"{line.split()[0]!r} is no command here; h helps")

    def show(self):
        """Print the cell that we are at."""
        cell = self.stops[self.at]
        parts = [terminal.prose(cell.prose), terminal.code(cell.code)]
        print("\n" + "\n\n".join(filter(None, parts)) + "\n")

    def go_on(self):
        """Run the cell if it has not run, and go on to the next."""
        if self.at in self.ran or self.run(self.at):
            self.at += 1

    def back(self):
        """Go back one cell; what it did stays done."""
        self.at = max(0, self.at - 1)

    def again(self):
        """Run the cell once more, or, if it has not run, the last that has."""
        again = self.at if self.at in self.ran else self.last
        if again is None:
            print("no cell has run yet; Enter runs this one")
        else:
            self.run(again)

    def go_to(self, at):
        """Go to a cell; run those before it that were never tried, because it needs their names."""
        for before in range(at):
            if before not in self.tried:
                print(f"cell {before + 1}")
                if not self.run(before):
                    self.at = before
                    return
        self.at = at

    def run(self, at):
        """Run a cell; returns whether it came to its end. If not, it can be run again."""
        cell = self.stops[at]
        for lesson in self.namespace.values():
            if isinstance(lesson, Lesson):  # its last lines show them beside the CHECKs
                lesson.predictions = [self.predictions[i] for i in sorted(self.predictions)]
        done = self._done(at, execute(cell.code, cell.line, self.path, self.namespace))
        if done and at in self.predictions:
            print(terminal.paint("bold", f"you predicted: {self.predictions[at]}"))
        return done

    def own(self):
        """Run a block of the student's in place of the cell: from the editor, or pasted."""
        code = self._edited() if _editor() and sys.stdin.isatty() else _pasted()
        if code.strip():
            # so that a traceback can show its lines
            linecache.cache["<x>"] = len(code), None, code.splitlines(keepends=True), "<x>"
            if self._done(self.at, execute(code, 1, "<x>", self.namespace)):
                print("your block has run in the place of this cell; Enter goes on")

    def variables(self):
        """Print the variables: scalars with their values, arrays with their shapes."""
        rows = [(name, type(value).__name__, _summary(value))
                for name, value in self.namespace.items()
                if not name.startswith("_")
                and not isinstance(value, (types.ModuleType, types.FunctionType, type))]
        print("\n".join(console.table(rows, left=3)) if rows else "no variables yet")

    def list(self):
        """Print the cells: which have run, where we are, and what each is about."""
        for at, cell in enumerate(self.stops):
            mark = ">" if at == self.at else "+" if at in self.ran else " "
            about = heading(cell.prose) or (cell.prose or cell.code).lstrip("# ").split("\n")[0]
            text = textwrap.shorten(terminal.prose(about), terminal.width() - 8, placeholder=" …")
            print(f"{mark} {at + 1:3}  {text}")
        print("+ has run, > is shown; g 7 goes to cell 7")

    def answers(self):
        """Show what is folded in the prose of this cell."""
        prose = self.stops[self.at].prose
        if terminal.has_folded(prose):
            print("\n" + terminal.prose(prose, unfolded=True) + "\n")
        else:
            print("nothing is folded here")

    def _done(self, at, error):
        """Note the outcome of running a cell; returns whether it came to its end."""
        self.tried.add(at)
        if error is None or isinstance(error, SystemExit):
            _say_end(error)
            self.ran.add(at)
            self.last = at
            return True
        what = "stopped" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        print()
        _say(f"{what}: still at cell {at + 1}; Enter runs it again, x a block of your own, "
             f"g {at + 2} goes on without it")
        return False

    def _prompt(self):
        cell = self.stops[self.at]
        if not cell.code:
            what, place = "Enter leaves", "the end"
        else:
            place = f"cell {self.at + 1} of {len(self.stops) - 1}"
            what = ("has run, Enter goes on" if self.at in self.ran
                    else "Enter runs it" if self.at in self.predictions or not predicts(cell.prose)
                    else "type your prediction; Enter runs it")
        return f"{place} ({what}, h helps) > "

    def _edited(self):
        """The cell's code as the student's editor saves it."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"cell_{self.at + 1}.py")
            file.write_text(self.stops[self.at].code + "\n", encoding="utf-8")
            try:
                subprocess.run([*_editor(), str(file)], check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"the editor did not work: {error}; set EDITOR to another, or to nothing")
                return ""
            return file.read_text(encoding="utf-8")

    def _remember(self):
        """Save the place and the predictions, unless the file cannot be written."""
        notes = _notes()
        over = self.at >= len(self.stops) - 1
        place = 0 if over else self.at if self.tried else self.place
        notes[str(self.path)] = {"cell": place, "predictions": self.predictions}
        try:
            _notebook().parent.mkdir(parents=True, exist_ok=True)
            with replacing(_notebook()) as file:
                file.write(json.dumps(notes).encode())
        except OSError:
            pass


def _notebook():
    """The file of places and predictions. Raises FileNotFoundError if there is no home folder."""
    return data.cache() / "lessons.json"


def _notes():
    try:
        notes = json.loads(_notebook().read_bytes())
        return notes if isinstance(notes, dict) else {}
    except (OSError, ValueError):
        return {}


def _say(text):
    print(textwrap.fill(text, terminal.width(), break_long_words=False))


def _say_end(error):
    if isinstance(error, KeyboardInterrupt):
        print("\nstopped")
    elif isinstance(error, SystemExit):
        print(f"here the lesson ends: {'exit code 0' if error.code is None else error.code}")


def _editor():
    """The words of the command that $VISUAL or $EDITOR names; [] if neither does."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    return shlex.split(command, posix=os.name != "nt")


def _pasted():
    """Lines from the terminal, up to one that is a single dot."""
    _say("type or paste lines of Python; a line with a single dot runs them (set EDITOR to edit "
         "the cell)")
    lines = []
    while True:
        try:
            line = input()
        except EOFError:
            break
        if line.strip() == ".":
            break
        lines.append(line)
    return "\n".join(lines) + "\n"


def _summary(value):
    """A number as it is, an array by its dtype and shape, anything else shortened."""
    array = value.data if isinstance(value, Tensor) else value
    if isinstance(array, (np.ndarray, np.generic)):
        return str(array) if array.ndim == 0 else f"{array.dtype} {array.shape}"
    if hasattr(array, "shape") and hasattr(array, "dtype"):
        return f"{array.dtype} {array.shape}"
    return textwrap.shorten(reprlib.repr(array), 60)
