"""A student's file in a process of its own: see __main__.py.

It runs the cases of an exercise and writes arrays into the file OUT, nothing else counts: not what
is printed, and not the exit code. Accidents are refused (processes, files, memory); who wants to
break out, can, since this is no sandbox.
"""

import copy
import importlib.util
import os
import re
import sys
import traceback
import types
from pathlib import Path

import numpy as np

from ..files import DTYPES, write_npz
from ..tensor import Tensor
from .cells import read

MEMORY = 4 * 2 ** 30  # bytes of addresses
MOST = 1_000_000  # numbers in a result
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
PROCESSES = ("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec",
             "os.spawn", "os.startfile")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod",
           "os.truncate", "shutil.rmtree", "shutil.move")


class Refused(Exception):
    """What a student's code returned cannot be judged; says why."""


class Mine:
    """The functions of an exercise, under their names: those of `namespace`, or of `changes`."""

    def __init__(self, namespace, changes=None):
        self.names = {**namespace, **(changes or {})}

    def __getattr__(self, name):
        if name not in self.names:
            raise Refused(f"there is no {name} in it: write it under this name")
        return self.names[name]


def take(names, value):
    """The arrays that were returned for these names, "p, v"; one array if there is one name.

    Raises Refused for anything but arrays or numbers, and as many as there are names.
    """
    names = names.split(", ")
    many = len(names) > 1
    if value is None:
        raise Refused(f"nothing is returned where {' and '.join(names)} should be: is there a "
                      "`return`?")
    if many and not (isinstance(value, (tuple, list)) and len(value) == len(names)):
        count = f"{len(value)} results" if isinstance(value, (tuple, list)) else "one result"
        raise Refused(f"{len(names)} results should be returned, {', '.join(names)}; here it is "
                      f"{count}")
    arrays = [_array(name, part) for name, part in zip(names, value if many else [value])]
    return tuple(arrays) if many else arrays[0]


def _array(name, value):
    if isinstance(value, tuple):
        raise Refused(f"{len(value)} results are returned where one array, {name}, should be")
    if isinstance(value, (list, dict, set, str, Tensor)) or value is None:
        raise Refused(f"{name} should be an array, and is {_called(value)}")
    array = np.asarray(value)
    if array.dtype.name not in DTYPES:
        raise Refused(f"{name} should be an array of numbers, and is one of "
                      f"{'objects' if array.dtype.kind == 'O' else array.dtype}")
    if array.size > MOST:
        raise Refused(f"{name} has the shape {array.shape}, far too large")
    return array.astype(np.int64) if array.dtype.kind == "b" else array


def _called(value):
    return "nothing (None)" if value is None else f"a {type(value).__name__}"


def load(path):
    """An exercise as a module: solution, cases, play, HINTS and MUTATIONS are its attributes."""
    spec = importlib.util.spec_from_file_location(f"exercise_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plays(exercise, seed):
    """{name: arguments}: the cases by number, and the first one again in several ways.

    These are with each of its floating-point arguments halved, and at last as it was.
    """
    cases = exercise.cases(np.random.default_rng(seed))
    made = {str(i): case for i, case in enumerate(cases)}
    for name, value in cases[0].items() if getattr(exercise, "HALVED", True) else ():
        if np.asarray(value).dtype.kind == "f":
            half = 0.5 * value if isinstance(value, float) else (0.5 * value).astype(value.dtype)
            made[f"half {name}"] = {**cases[0], name: half}
    made["again"] = cases[0]
    return made


def results(exercise, mine, arguments, file=None):
    """{name: array} of one case, or the text of the error that ended it. file: the student's."""
    case = copy.deepcopy(arguments)
    try:
        with np.errstate(all="ignore"):
            made = exercise.play(mine, case)
            made = {name: array for names, value in made.items()
                    for name, array in zip(names.split(", "), _several(names, value))}
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return failure(error, file)
    changed = [name for name, value in arguments.items()
               if isinstance(value, np.ndarray) and not np.array_equal(value, case[name])]
    made["changed"] = np.array([int(name in changed) for name in arguments])
    return made


def _several(names, value):
    arrays = take(names, value)
    return arrays if isinstance(arrays, tuple) else (arrays,)


def failure(error, file):
    """An error in one line: what, and in which line of the student's file."""
    if isinstance(error, NotImplementedError):
        return "not started yet"
    if isinstance(error, Refused):
        return str(error)
    text = re.sub(r"[^ -~\xa0-\uffff]", "?", " ".join(str(error).split()))[:300]
    if isinstance(error, EOFError):
        text = "input() has nobody to ask here: leave it out"
    if isinstance(error, MemoryError):
        text = text or "it asks for more memory than there is"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if file and frame.filename == str(file)]
    if isinstance(error, SyntaxError):
        lines = [error.lineno or 1]
        text = error.msg
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def _limit_memory():
    try:
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # Windows has no such limit, macOS not this one


def _refuse(folder):
    """From here on no process is started, and no file changed outside the folder."""
    inside = os.path.realpath(folder)

    def allowed(path):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return isinstance(path, int)
        path = os.path.realpath(os.fsdecode(path))
        return path.startswith(inside + os.sep) or path in (os.devnull, "/dev/tty")

    def look(event, arguments):
        if event in PROCESSES:
            raise PermissionError("an exercise starts no other program")
        if event == "open":
            path, mode, flags = arguments
            writes = (any(c in mode for c in "wax+") if isinstance(mode, str)
                      else (flags or 0) & WRITING)
            if writes and not allowed(path):
                raise PermissionError(f"an exercise writes no files, and this opens {path}")
        if event in CHANGES and not allowed(arguments[0]):
            raise PermissionError(f"an exercise changes no files, and this changes {arguments[0]}")

    sys.addaudithook(look)


def main(exercise, file, seed, out):
    """Run the file and all plays, write their results, and end the process."""
    _limit_memory()
    sys.path[0] = str(Path(file).parent)  # for files beside it that it imports
    exercise, file = load(exercise), Path(file)
    _refuse(Path(out).parent)
    try:
        module = types.ModuleType("student")
        module.__file__ = str(file)
        sys.modules["student"] = module
        with np.errstate(all="ignore"):
            exec(compile(read(file), str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        said = {"file": failure(error, file)}
    else:
        mine = Mine(vars(module))
        said = {name: results(exercise, mine, case, file)
                for name, case in plays(exercise, int(seed)).items()}
    arrays = {}
    for play, result in said.items():
        for name, array in ({"error": result} if isinstance(result, str) else result).items():
            if isinstance(array, str):
                array = np.frombuffer(array.encode(errors="replace"), np.uint8)
            arrays[f"{play}/{name}"] = array
    write_npz(out, arrays)
    sys.stdout.flush()
    os._exit(0)  # whatever threads it has left
