"""Runs lessons: on this terminal, or without a display to check them.

A lesson runs in a process of its own, `python -m minidl.course`, because `python -m minidl` has
loaded NumPy before the lesson can say how many threads it wants.
"""

import __future__

import os
import re
import secrets
import signal
import subprocess
import sys
import traceback
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from .. import console
from .cells import cells


class Outcome(NamedTuple):
    """The outcome of running a lesson.

    code: the exit code. verdict: a line with the number of checks and the time. outputs: what each
    cell printed, up to the last that ran. errors: from stderr. failed: the CHECK lines that failed,
    or else why the lesson ended early.
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
        return 128 - code if code < 0 else code  # ended by a signal: as a shell reports it
    finally:
        signal.signal(signal.SIGINT, before)


def check_all(paths, variables=lambda path: {}):
    """Run lessons without a display, one per core at a time; print and yield the Outcomes in order.

    variables: a function of the path that returns environment variables for that lesson.
    """
    cores = min(len(paths), os.cpu_count() or 1)
    if cores > 1:
        print(f"{cores} lessons run at a time, one on each core", file=sys.stderr)
    pool = ThreadPoolExecutor(cores)
    try:
        runs = [pool.submit(check, path, **variables(path)) for path in paths]
        for path, run in zip(paths, runs):
            print(f"{_named(path):31} ", end="", flush=True)
            outcome = run.result()
            print("\n    ".join([outcome.verdict, *outcome.failed]))
            yield outcome
    finally:
        pool.shutdown(cancel_futures=True)


def _named(path):
    solutions = "solutions of " * (path.parent.name == "solutions")
    return solutions + path.stem.replace("_", " ", 1)


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
    namespace = new_main(path)
    for cell in cells(path):
        print(mark, end="", flush=True)
        if error := execute(cell.code, cell.line, path, namespace):
            if isinstance(error, KeyboardInterrupt):
                print("\ninterrupted", file=sys.stderr)
                raise SystemExit(130)
            raise SystemExit(error.code if isinstance(error, SystemExit) else 1)


def new_main(path):
    """The names of a new, empty __main__, as if Python had started the lesson.

    It replaces the __main__ of this process; sys.argv and sys.path change to match.
    """
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__, sys.argv = str(path), [str(path)]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(sys.path[0])  # kept at the end, because minidl may be there
        sys.path[0] = str(Path(path).parent)  # so that the lesson finds files beside it
    return vars(main)


def execute(code, line, path, namespace, mode="exec"):
    """Run code that stands on this line of the file; returns the exception, or None.

    The exception is printed unless it is SystemExit or KeyboardInterrupt. mode: as for `compile`.
    """
    features = (name for name in __future__.all_feature_names
                if namespace.get(name) is getattr(__future__, name))
    # those that an earlier cell imported
    future = sum(getattr(__future__, name).compiler_flag for name in features)
    try:
        exec(compile("\n" * (line - 1) + code, str(path), mode, future, dont_inherit=True),
             namespace)
    except SystemExit as end:
        return end
    except BaseException as error:  # Ctrl-C as well
        if isinstance(error, OSError) and (unwritten := console.lost(error)):
            raise SystemExit(console.sentence(unwritten)) from None
        if not isinstance(error, KeyboardInterrupt):
            traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
        return error
