"""The lessons as a course: find them, step through one in a terminal, run and check them.

A lesson runs in a process of its own, which is this file as a program: `python -m minidl` has
loaded NumPy before the lesson can say how many threads it wants.
"""

import __future__

import os
import re
import reprlib
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import traceback
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .. import console
from .cells import cells
from .markdown import ANSI, INLINE, blocks, highlight

HELP = """
Enter runs the cell    b goes back one cell (what it did stays done)   r runs the last cell again
v lists variables      e EXPRESSION evaluates it                       q quits; Ctrl-C stops a running cell"""


class Outcome(NamedTuple):
    """What came of running a lesson.

    outputs: what each cell printed, up to the last that ran. errors: from stderr. failed: the CHECK
    lines that failed, or else why it ended early.
    """

    code: int
    verdict: str
    outputs: list
    errors: str
    failed: list


def launch(mode, path):
    """Run a lesson on this terminal; returns the exit code. mode: "step" or "run"."""
    cells(path)  # if it cannot be read, say so here
    child = subprocess.Popen(**_process(mode, path))
    # Ctrl-C is for the child, which must not inherit this
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = child.wait()
        return 128 - code if code < 0 else code  # ended by a signal: what a shell makes of it
    finally:
        signal.signal(signal.SIGINT, before)


def check_all(paths, variables=lambda path: {}):
    """Run lessons without a display, as many at a time as there are cores; print and yield each
    Outcome in order.

    variables: a function of the path that returns environment variables for that lesson.
    """
    cores = min(len(paths), os.cpu_count() or 1)
    if cores > 1:
        print(f"{cores} lessons run at a time, one on each core", file=sys.stderr)
    pool = ThreadPoolExecutor(cores)
    try:
        runs = [pool.submit(check, path, **variables(path)) for path in paths]
        for path, run in zip(paths, runs):
            print(f"{path.stem.replace('_', ' ', 1):32}", end="", flush=True)
            outcome = run.result()
            print("\n    ".join([outcome.verdict, *outcome.failed]))
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


def check(path, **variables):
    """Run a lesson without a display, with these environment variables; returns the Outcome."""
    mark, began = secrets.token_hex(), perf_counter()
    result = subprocess.run(
        **_process("run", path, mark, PYTHONIOENCODING="utf-8", MPLBACKEND="agg", **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    outputs = result.stdout.split(mark)[1:]
    checks = re.findall(r"^CHECK .+, (?:PASS|FAIL)$", "".join(outputs), re.MULTILINE)
    failed = [line for line in checks if line.endswith("FAIL")]
    verdict = (f"{'FAIL' if result.returncode else 'PASS'}  {len(checks) - len(failed)} of "
               f"{len(checks)} checks  {perf_counter() - began:.1f} s")
    if result.returncode and not failed:
        failed = result.stderr.splitlines()[-1:] or [f"ended with code {result.returncode}"]
    return Outcome(result.returncode, verdict, outputs, result.stderr, failed)


def _process(mode, path, mark="", **variables):
    if console.in_browser():
        raise OSError("a lesson is run in a process of its own, and a browser has none: open the "
                      "lesson as a notebook, or run it "
                      f"in this process: import runpy; runpy.run_path({str(path)!r}, "
                      "run_name='__main__')")
    return {"args": [sys.executable, "-m", "minidl.course", mode, str(path), mark],
            "env": {"OPENBLAS_NUM_THREADS": "1", **os.environ, **variables}}


def run(path, mark=""):
    """Run all cells in this process, printing the mark before each, up to the first error."""
    namespace = _new_main(path)
    for cell in cells(path):
        print(mark, end="", flush=True)
        if error := _execute(cell.code, cell.line, path, namespace):
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(130)
            raise SystemExit(error.code if isinstance(error, SystemExit) else 1)


def step(path):
    """Step through a lesson in this process: show a cell, do what the student types, until q or the
    end of input.
    """
    namespace, stops, at, shown, last = _new_main(path), cells(path), 0, None, None
    print(HELP)
    while at < len(stops):
        cell = stops[at]
        if cell is not shown:
            code = "".join(_paint(*piece) for piece in highlight(cell.code))
            print("\n" + "\n\n".join(filter(None, [_prose(cell.prose), code])) + "\n")
            shown = cell
        try:
            place = f"cell {at + 1} of {len(stops) - 1}" if cell.code else "the end"
            word, _, rest = input(f"{place} (Enter b r v e q) > ").strip().partition(" ")
        except EOFError:
            print()
            word = "q"
        except (KeyboardInterrupt, UnicodeDecodeError):
            word = "?"
        error = None
        if word == "q":
            return
        elif word == "b":
            at = max(0, at - 1)
        elif word == "v":
            print(_variables(namespace))
        elif word == "e":
            error = _execute(rest, 1, "<e>", namespace, "single")
        elif word == "r" and last:
            error = _execute(last.code, last.line, path, namespace)
        elif word == "":
            error = _execute(cell.code, cell.line, path, namespace)
            at, last = at + 1, cell
        else:
            print(HELP)
        if isinstance(error, SystemExit):
            print(f"here the lesson ends: {'exit code 0' if error.code is None else error.code}")


def _new_main(path):
    """The names of an empty __main__ in the place of this one, as if Python had started the lesson.
    """
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__, sys.argv = str(path), [str(path)]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(sys.path[0])  # last, it may be where minidl is
        sys.path[0] = str(Path(path).parent)  # so that the lesson finds files beside it
    return vars(main)


def _execute(code, line, path, namespace, mode="exec"):
    """Run code that stands at this line of the file; returns the exception, which it shows."""
    features = (name for name in __future__.all_feature_names
                if namespace.get(name) is getattr(__future__, name))
    # imported by a cell before
    future = sum(getattr(__future__, name).compiler_flag for name in features)
    try:
        exec(compile("\n" * (line - 1) + code, str(path), mode, future, dont_inherit=True),
             namespace)
    except SystemExit as end:
        return end
    except BaseException as error:  # Ctrl-C as well
        if isinstance(error, OSError) and (unwritten := console.lost(error)):
            raise SystemExit(console.sentence(unwritten)) from None
        if isinstance(error, KeyboardInterrupt):
            print("\ninterrupted (KeyboardInterrupt)", file=sys.stderr)
        else:
            traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
        return error


def _variables(namespace):
    lines = []
    for name, value in namespace.items():
        if not name.startswith("_") and not isinstance(
            value, (types.ModuleType, types.FunctionType, type)
        ):
            array = hasattr(value, "shape") and hasattr(value, "dtype")
            what = (
                f"{value.dtype} {value.shape}"
                if array
                else textwrap.shorten(reprlib.repr(value), 60)
            )
            lines.append(f"{name:16} {type(value).__name__:12} {what}")
    return "\n".join(lines) or "no variables yet"


def _prose(markdown):
    """Markdown for this terminal: wrapped; formulas and tables as they are written."""
    # some terminals say 0; Python 3.10 believes them
    width = min(100, shutil.get_terminal_size().columns or 80)
    shown = []
    for kind, text in blocks(markdown):
        if kind in ("paragraph", "item"):
            text = textwrap.fill(
                " ".join(text.split()),
                width,
                break_long_words=False,
                break_on_hyphens=False,
                subsequent_indent=" " * (text.index(" ") + 1) if kind == "item" else "",
            )
            text = INLINE.sub(
                lambda match: _paint(match.lastgroup, match[match.lastgroup], match[0]), text
            )
        shown.append(_paint("heading", text.lstrip("# "), text) if kind == "heading" else text)
    return "\n\n".join(shown)


def _paint(kind, text, plain=None):
    """Text in the colour of its kind; plain, or the text itself, where there are no colours."""
    colours = (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and (os.name != "nt" or "WT_SESSION" in os.environ)
    )
    return f"\033[{ANSI[kind]}m{text}\033[0m" if kind in ANSI and colours else plain or text
