"""The command line: python -m minidl data, lessons, lesson, exercises, exercise, race, doctor."""

import argparse
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
from importlib import metadata

import numpy as np

from .. import console, data
from ..data import published
from . import exercises, handout, running, terminal
from .cells import about, find, lessons, solution

NEEDED = {"numpy": (2, 0), "matplotlib": (3, 9), "tqdm": (4, 60)}  # as in setup.cfg


def main(arguments=None):
    """Run one command; returns the exit code. arguments: by default, those of the program."""
    parser = argparse.ArgumentParser(prog="python -m minidl")
    commands = parser.add_subparsers(metavar="command")
    sets = commands.add_parser("data", help="list, fetch, pack and unpack data sets")
    sets.add_argument("name", nargs="?", choices=data.NAMES, help="the set to fetch or to pack; "
                                                                  "without it, list all")
    ways = sets.add_mutually_exclusive_group()
    ways.add_argument("--pack", metavar="FILE", help="write the published sets that are here into "
                                                     "one zip file")
    ways.add_argument("--unpack", metavar="FILE", help="install the sets in such a file")
    sets.set_defaults(run=_data)
    commands.add_parser("lessons", help="list the lessons").set_defaults(run=_lessons)
    lesson = commands.add_parser("lesson", help="step through a lesson, run it, or give the "
                                                "lessons away")
    lesson.add_argument("name", nargs="?", help="its number, a part of its name, or the path of "
                                                "a copy of your own (my/07.py); without it, the "
                                                "options mean all lessons")
    ways = lesson.add_mutually_exclusive_group()
    ways.add_argument("--run", dest="run_through", action="store_true", help="run it through")
    ways.add_argument("--all", action="store_true", help="run without windows; one line for each "
                                                         "lesson, with its CHECKs")
    ways.add_argument("--copy", metavar="DIR", help="copy into a folder, to edit")
    ways.add_argument("--notebook", metavar="DIR", help="write Jupyter notebooks into a folder")
    ways.add_argument("--html", metavar="DIR", help="run, and write web pages with output and "
                                                    "figures into a folder")
    lesson.add_argument("--solutions", action="store_true", help="with --html, for teachers: run "
                                                                 "the solutions too, and fold "
                                                                 "them under each lesson")
    lesson.set_defaults(run=_lesson)
    listed = commands.add_parser("exercises", help="list the exercises, or grade a class")
    listed.add_argument("--grade", metavar="FOLDER", help="check all copies in a folder with one "
                                                          "folder per student")
    listed.add_argument("--csv", metavar="FILE", help="where --grade writes its table")
    listed.set_defaults(run=_exercises)
    exercise = commands.add_parser(
        "exercise", help="copy an exercise to write in, or check it",
        description="The file runs as your own program, in a process with a time limit. That is no "
                    "sandbox: check only files that you would run yourself. Its memory is limited "
                    "on Linux only, and on Windows a process that it starts in spite of all may "
                    "stay.")
    exercise.add_argument("name", nargs="?", help="its number or a part of its name, or the file "
                                                  "that you have written")
    ways = exercise.add_mutually_exclusive_group()
    ways.add_argument("--copy", metavar="DIR", help="write it into a folder, without its solution; "
                                                    "without a number, all exercises")
    ways.add_argument("--hint", action="store_true", help="show the next of three hints")
    ways.add_argument("--watch", action="store_true", help="check again whenever it is saved")
    exercise.set_defaults(run=_exercise)
    race = commands.add_parser("race", help="train with and without BatchNorm side by side, in a "
                                            "page with sliders")
    race.add_argument("--port", type=int, help="where the page is served, on this machine only")
    race.add_argument("--page", metavar="FILE", help="write a page of precomputed races instead, "
                                                     "which needs no Python (takes minutes)")
    race.set_defaults(run=_race)
    commands.add_parser("doctor", help="check that this machine has what the lessons "
                                       "need").set_defaults(run=_doctor)
    options = parser.parse_args(arguments)
    if "run" not in options:
        parser.print_help()
        return 0
    try:
        return options.run(options) or 0
    except (OSError, RuntimeError, ValueError) as error:
        unwritten = console.lost(error)
        if not isinstance(unwritten, BrokenPipeError):  # `head` has read enough: no complaint
            print(console.sentence(unwritten) if unwritten else error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _data(options):
    if options.unpack is not None and options.name:
        raise ValueError(f"--unpack installs all sets that are in the file; leave {options.name} "
                         "out")
    if options.pack is not None:
        _pack(options.pack, [options.name] if options.name else list(published.SETS))
    elif options.unpack is not None:
        names = published.unpack(options.unpack, data.cache())
        print(f"unpacked {', '.join(names)} into {data.cache()}")
    elif options.name:
        data.load(options.name)
        print(_line(options.name))
    else:
        print("\n".join(_line(name) for name in data.NAMES))


def _pack(path, names):
    folder = pathlib.Path(path).parent
    if not path or not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path!r}: "
                                + (f"there is no folder {folder}" if path else
                                   "name a file, --pack sets.zip"))
    here = {}
    for name in names:
        found = data.find(name)[0] if name in published.SETS else None
        if found:
            published.check(name, found.arrays, found.path)
            here[name] = found.arrays
    if not here:
        raise FileNotFoundError(f"nothing to pack: of {', '.join(names)} none is here as published "
                                "files; fetch them first: python -m minidl data mnist")
    published.pack(path, here)
    print(f"packed {', '.join(here)} into {path}; on the other machine: python -m minidl data "
          f"--unpack {path}")


def _line(name):
    """What `data` prints for one set: how many images and where, or how to get it."""
    try:
        found, unusable = data.find(name)
    except (OSError, RuntimeError, ValueError) as error:
        return f"{name:14} not usable: {error}"
    if found:
        x_train, _, x_test, _ = found.arrays
        own = " of your own" if found.own else ""
        return (f"{name:14} {len(x_train):,} training and {len(x_test):,} test images{own} in "
                f"{found.path.resolve()}")
    size, licence = published.SETS[name].megabytes, published.SETS[name].licence
    lines = [f"{name:14} not here; fetch it ({size} MB, licence {licence}): python -m minidl data "
             f"{name}", *unusable]
    return "\n               ".join(lines)


def _lessons(options):
    rows = [("", "lesson", "time", "question")]
    for path in lessons():
        number, title, question, time = about(path)
        rows.append((f"{number:2}", title, time.replace(" to ", "-"), question))
    # a pipe gets one line for each lesson, whatever its length
    columns = (shutil.get_terminal_size().columns or 80) if sys.stdout.isatty() else 10_000
    print("\n".join(terminal.table(rows, columns)))
    print("\nstep through one: python -m minidl lesson 7")


def _lesson(options):
    """Returns the exit code: 1 if a lesson failed."""
    folder = next((way for way in (options.copy, options.notebook, options.html)
                   if way is not None), None)
    if folder == "":
        raise ValueError("name a folder to write into: python -m minidl lesson --copy my_lessons")
    if options.solutions and not options.html:
        raise ValueError("--solutions belongs to --html: python -m minidl lesson --html DIR "
                         "--solutions")
    paths = [find(options.name)] if options.name is not None else lessons()
    outcomes = []
    if options.copy:
        handout.write(
            options.copy, [path.name for path in paths], (path.read_bytes() for path in paths)
        )
    elif options.notebook:
        handout.write(
            options.notebook, [f"{path.stem}.ipynb" for path in paths], map(handout.notebook, paths)
        )
    elif options.html:
        names = [f"{path.stem}.html" for path in paths]
        solutions = [*filter(None, map(solution, paths))] if options.solutions else []
        handout.write(options.html, [*names, "index.html", "api.html"],
                      handout.pages(paths, outcomes, solutions))
    elif options.all:
        outcomes = list(running.check_all(paths))
    elif options.name is not None:
        return running.launch("run" if options.run_through else "step", paths[0])
    else:
        raise ValueError("name a lesson: python -m minidl lesson 7; python -m minidl lessons lists "
                         "them")
    if folder:
        print(f"written: {len(paths)} {'lesson' if len(paths) == 1 else 'lessons'} in {folder}")
    return any(outcome.code for outcome in outcomes)


def _exercises(options):
    if (options.grade is None) != (options.csv is None):
        raise ValueError("--grade needs --csv, and --csv --grade: python -m minidl exercises "
                         "--grade class --csv marks.csv")
    if options.grade is not None:
        rows = exercises.grade(options.grade, options.csv)
        solved = sum(row[3] == "yes" for row in rows)
        print(f"{len(rows)} exercises of {len({row[0] for row in rows})} students, {solved} "
              f"solved: {options.csv}")
        return
    for path in exercises.exercises():
        number, title, question, lesson, time = exercises.about_exercise(path)
        state = exercises.state_of(path, ".")
        print(f"{number:2}  {title:26} lesson {lesson:<3} {time:11} {question}"
              + f"  [{state}]" * bool(state))
    print("\nbegin one: python -m minidl exercise 6 --copy my_exercises")


def _exercise(options):
    """Returns the exit code: 1 if the exercise is not solved."""
    if options.copy is not None:
        if not options.copy:
            raise ValueError("name a folder to write into: python -m minidl exercise 6 --copy DIR")
        paths = ([exercises.find_exercise(options.name)] if options.name else
                 exercises.exercises())
        handout.write(options.copy, [path.name for path in paths],
                      (exercises.blank(path).encode() for path in paths))
        where = pathlib.Path(options.copy) / paths[0].name
        print(f"written: {where}" if len(paths) == 1 else
              f"written: {len(paths)} exercises in {options.copy}")
        print(f"write in it, then check it: python -m minidl exercise {where}")
        return 0
    if options.name is None:
        raise ValueError("name an exercise: python -m minidl exercise 6 --copy DIR; python -m "
                         "minidl exercises lists them")
    file = pathlib.Path(options.name)
    if file.suffix != ".py" and not file.is_file():
        file = pathlib.Path(exercises.find_exercise(options.name).name)
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file} in this folder; begin it: python -m "
                                    f"minidl exercise {options.name} --copy DIR")
    if options.hint:
        print(exercises.hint(file))
        return 0
    if options.watch:
        return exercises.watch(file)
    report = exercises.solve(file)
    print(report)
    return report.state != "solved"


def _race(options):
    from .. import live
    from ..lessonkit import negative_control
    if options.page is None:
        negative_control()
        port = live.PORT if options.port is None else options.port
        live.serve(live.Race(data.load("digits")), port)
    elif not options.page:
        raise ValueError("name a file to write: python -m minidl race --page race.html")
    else:
        live.write(options.page)
        print(f"written: {options.page}; any browser opens it")


def _doctor(options):
    """Print one line for each thing that lessons need; returns whether any needs attention."""
    ill = 0
    if console.in_browser():
        print("browser    in the browser: 20 times slower, no processes (no `lesson`, no "
              "experiments.processes): open the lessons "
              "as notebooks")
    for name, examine in (
        ("versions", _versions),
        ("BLAS", _blas),
        ("plots", _plots),
        ("data", _sets),
        ("cache", _cache),
        ("terminal", _terminal),
    ):
        found, advice = examine()
        ill += bool(advice)
        print(f"{name:10} {found}: {advice or 'fine'}")
    return ill > 0


def _versions():
    found, old = [f"Python {platform.python_version()}"], []
    for name, needed in NEEDED.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = "0.0 (missing)"
        found.append(f"{name} {version}")
        if tuple(map(int, re.findall(r"\d+", version)[:2])) < needed:
            old.append(f'"{name}>={needed[0]}.{needed[1]}"')
    return ", ".join(found), old and f"python -m pip install --upgrade {' '.join(old)}"


def _blas():
    blas = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    threads = os.environ.get("OPENBLAS_NUM_THREADS")
    found = (f"{blas.get('name', 'unknown')} {blas.get('version', '')}, OPENBLAS_NUM_THREADS "
             f"{f'is {threads}' if threads else 'not set'}")
    if "openblas" in blas.get("name", "") and not threads:
        found += (" (lessons set it; in scripts of your own set it to 1 before NumPy loads, small "
                  "nets are fastest so)")
    return found, None


def _plots():
    try:
        import matplotlib.pyplot as plt
        plt.switch_backend(plt.get_backend())  # loads what it needs
    except (ImportError, ValueError) as error:
        return f"no figures ({error})", "unset MPLBACKEND, or install what it asks for"
    backend = plt.get_backend()
    return (
        f"backend {backend}, figures "
        f"{'are saved as files' if backend.lower() == 'agg' else 'open in windows'}",
        None,
    )


def _sets():
    try:
        here = [name for name in data.NAMES if data.find(name)[0]]
    except (OSError, RuntimeError, ValueError) as error:
        return str(error), "put that right, or unset MINIDL_DATA"
    missing = [name for name in data.NAMES if name not in here]
    found = f"{', '.join(here)} here"
    if missing:
        found += f", not {', '.join(missing)} (python -m minidl data)"
    return found, None


def _cache():
    advice = "set XDG_CACHE_HOME to a folder of yours"
    try:
        cache = data.cache()
    except (OSError, RuntimeError, ValueError) as error:
        return f"no folder for downloads ({str(error).splitlines()[0]})", advice
    if not cache.is_absolute():
        return f"no home folder, downloads would go to {cache.absolute()}", advice
    folder = next(path for path in (cache, *cache.parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return f"{cache} can be written", None
    except OSError as error:
        return f"{cache} cannot be written ({error.strerror})", advice


def _terminal():
    encoding = sys.stdout.encoding or "unknown"
    try:
        "█ σ² é".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return (
            f"{encoding}, some characters show as ?",
            "set PYTHONUTF8=1 (Windows: use Windows Terminal)",
        )
    return encoding, None
