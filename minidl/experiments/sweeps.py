"""Sweeps: one job for every point of a grid, and the same table whoever does the work."""

import copy
import inspect
import json
import os
import pickle
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np

from ..console import bar, in_browser
from ..files import blaming, expanded, load, save, write_csv
from ..habits import unknown
from ..settings import is_whole
from .identity import Namer

THREADS = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"


@contextmanager
def processes(n):
    """A pool of n processes, with one BLAS thread each, to be a sweep's executor.

    `with processes(2) as pool: ...` Processes that all use all cores for their products get in each
    other's way and can take several times as long. They are started afresh, not forked, because a
    BLAS asks for its number of threads only when NumPy is loaded; so a script that uses them must
    begin its work below `if __name__ == "__main__":`. Raises RuntimeError where there are no
    processes, as in a browser.
    """
    if not is_whole(n) or n < 1:
        raise ValueError("processes takes how many to start, a whole number of at least 1, got "
                         f"{n!r}")
    try:
        if in_browser():
            raise ImportError("the browser has none")
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context, synchronize  # noqa: F401
    except (ImportError, NotImplementedError) as error:
        raise RuntimeError(f"Python cannot start processes here ({error}): leave executor out, and "
                           "the same sweep runs in this one, with the same results") from None
    before = {name: os.environ.pop(name, None) for name in THREADS}
    # for the processes to inherit; this one has long had its threads
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        with ProcessPoolExecutor(int(n), mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass(repr=False)
class Sweep:
    """What a sweep found: the axes of its grid, then settings and results, one of each per job."""

    axes: dict
    settings: list
    results: list

    def __repr__(self):
        axes = ", ".join(f"{name} ({len(values)})" for name, values in self.axes.items())
        names = ", ".join(map(str,
                              dict.fromkeys(name for result in self.results for name in result)))
        return (f"<Sweep over {axes or 'nothing'}: {len(self.results)} jobs with {names}; "
                ".array(name), .to_csv(path)>")

    def __getattr__(self, name):
        table = "to_csv(path) writes a table, .settings and .results are lists of dicts"
        raise unknown("a Sweep", name, {
            "plot": "plotting.sweep(result, x='lr', y='loss') draws it",
            "table": table, "df": table, "to_dataframe": table, "to_pandas": table,
            "grid": ".axes has the values of each key"})

    def array(self, name):
        """One result of all jobs as an array: an axis for each key of the grid, then its own.

        Raises ValueError if some job has no such result, or one of another shape.
        """
        lacking = [settings for settings, result in zip(self.settings, self.results)
                   if name not in result]
        if lacking:
            known = ", ".join(map(str, dict.fromkeys(n for r in self.results for n in r)))
            raise ValueError(f"{name!r} is not among the results of {len(lacking)} of "
                             f"{len(self.results)} jobs, the first with {lacking[0]}; "
                             f"results are {known}")
        shapes = {np.shape(result[name]): settings
                  for settings, result in zip(self.settings, self.results)}
        if len(shapes) > 1:
            raise ValueError(f"{name!r} has not the same shape in all jobs: "
                             + ", ".join(f"{shape} with {settings}"
                                         for shape, settings in list(shapes.items())[:3])
                             + "; take it from .results, or fill the shorter ones up with NaN")
        values = np.array([result[name] for result in self.results])
        return values.reshape(*map(len, self.axes.values()), *values.shape[1:])

    def to_csv(self, path):
        """Write one line per job: its settings, and its results that are single numbers.

        Raises ValueError where a setting and a different result have one name.
        """
        rows = []
        for settings, result in zip(self.settings, self.results):
            single = {name: value for name, value in result.items() if np.ndim(value) == 0}
            if twice := [name for name in single if name in settings
                         and not _same(single[name], settings[name])]:
                raise ValueError(f"{twice[0]!r} is a setting, {settings[twice[0]]!r}, and a "
                                 f"result, {single[twice[0]]!r}: a table has one column for both; "
                                 "return the result under another name")
            rows.append(settings | single)
        names = list(dict.fromkeys(name for row in rows for name in row))
        write_csv(path, names, [[row.get(name, "") for name in names] for row in rows])


def sweep(grid, job, executor=None, cache=None):
    """job(**settings) for every point of the grid, with a progress bar; returns a Sweep.

    grid: {"lr": [0.1, 1.0], "seed": [0, 1, 2]}, every combination in this order, the last key
    fastest; or a list of such settings. job: a function that returns a dict of numbers and arrays;
    it gets a copy of its settings, as it would in another process. executor: any
    `concurrent.futures.Executor`; `processes(2)` makes one that suits small networks. To reach
    another process a job must be a function defined at the top of a file.

    cache: a folder where finished jobs are kept, so that an interrupted sweep continues where it
    stopped. A job is done again after a change of anything that `identity` knows to matter: its
    settings, its code and that of the files it imports, the data; a setting that names a file
    stands for the file's content. Results must then be numbers, texts, arrays or lists. Raises
    ValueError and TypeError for what cannot be run or kept, before any work.
    """
    from concurrent.futures import BrokenExecutor  # here, so that `import minidl` stays fast
    axes, points = _points(grid, job)
    _check_executor(executor, job, points)
    paths = [None] * len(points)
    if cache is not None:
        folder, namer = _folder(cache), Namer()
        paths = [folder / f"{namer.name(job, settings)}.npz" for settings in points]
    futures, results = [], []
    try:
        if executor is not None:
            futures += [executor.submit(_done, job, *task) for task in zip(points, paths)]
        with bar(total=len(points), desc="runs", leave=False) as progress:
            for i, task in enumerate(zip(points, paths)):
                results.append(futures[i].result() if executor is not None else _done(job, *task))
                progress.update()
    except BrokenExecutor as error:
        raise type(error)(f"{error}\nA script that uses processes must begin its work below "
                          "`if __name__ == \"__main__\":`, or each process begins the script "
                          "again; else it may have been the memory: use fewer processes") from None
    finally:
        for future in futures:
            future.cancel()  # those not yet begun, when one has failed or Ctrl-C was pressed
    return Sweep(axes, points, results)


def _same(one, two):
    return np.array_equal(one, two) or one != one and two != two  # NaN is not equal to itself


def _points(grid, job):
    """The axes of the grid and the settings of each job, checked."""
    if not callable(job):
        raise TypeError("a sweep needs a job, a function that returns a dict of numbers and "
                        f"arrays, got {job!r}")
    if isinstance(grid, dict):
        axes = {name: _values(name, values) for name, values in grid.items()}
        points = [dict(zip(axes, values)) for values in product(*axes.values())]
    else:
        listed = hasattr(grid, "__iter__") and not isinstance(grid, str | bytes)
        points = list(grid) if listed else [grid]
        axes = {"job": list(range(len(points)))}
        if wrong := [point for point in points if not isinstance(point, dict)]:
            raise TypeError('a grid is {"lr": [0.1, 1.0], "seed": range(3)}, or a list of '
                            f'settings, each a dict such as {{"lr": 0.1, "seed": 2}}; got '
                            f'{wrong[0]!r}')
    if not points:
        empty = [f" {name!r} has no values" for name, values in axes.items() if not values
                 and isinstance(grid, dict)]
        raise ValueError(f"the grid of this sweep is empty{':' if empty else ''}{','.join(empty)}")
    try:
        signature = inspect.signature(job)
    except (TypeError, ValueError):  # of a function written in C
        return axes, points
    for settings in points:
        try:
            signature.bind(**settings)
        except TypeError as error:
            raise TypeError("the job cannot be called with the settings "
                            f"{', '.join(map(str, settings)) or '(none)'}: {error}; it is "
                            f"{getattr(job, '__name__', 'job')}{signature}") from None
    return axes, points


def _values(name, values):
    """One axis of a grid as a list."""
    if isinstance(values, str | bytes | dict | set | frozenset) or not hasattr(values, "__iter__"):
        remedy = f": write [{values!r}] for a single one"
        if isinstance(values, dict | set | frozenset):
            remedy = ": these have no order that counts, write [...]"
        raise TypeError(f"the grid needs a list of values for {name!r}, got {values!r}{remedy}")
    values = list(values)
    try:
        twice = [value for value, times in Counter(values).items() if times > 1]
    except TypeError:  # lists, arrays and dicts cannot be counted
        twice = []
    if twice:
        raise ValueError(f"{name!r} has the value {twice[0]!r} more than once: the same job twice "
                         "is no second measurement; to repeat a run, give the grid a list of seeds")
    return values


def _check_executor(executor, job, points):
    """Refuse what is no executor, and what no other process could get."""
    if executor is None:
        return
    if not hasattr(executor, "submit"):
        raise TypeError("an executor is a pool of workers, `with processes(2) as pool: sweep(..., "
                        f"executor=pool)`, got {executor!r}")
    # other executors have their own ways to send a function
    if type(executor).__module__ == "concurrent.futures.process":
        functions = [job, *(value for value in points[0].values() if callable(value))]
        try:
            pickle.dumps(functions)
        except Exception as error:
            raise ValueError("a job for another process must be a function defined at the top of a "
                             f"file, and so must functions in its settings: {error}") from None
        main = sys.modules["__main__"]
        if not hasattr(main, "__file__") and any(getattr(f, "__module__", "") == "__main__"
                                                 for f in functions):
            raise ValueError("another process cannot see what was defined in a notebook or at the "
                             "prompt: put the job into a file, jobs.py, and write `from jobs "
                             "import job`")


def _folder(cache):
    folder = expanded(cache).absolute()  # a worker may have another working folder
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cache must name a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _done(job, settings, path):
    """The results of one job, from its file if it has been done before."""
    if path is not None and path.exists():
        try:
            with blaming(path):
                return _unpacked(load(path))
        except ValueError as error:
            print(f"{error}; this job is done again", file=sys.stderr)
    result = (job if path is None
              else _copied(job))(**{name: _copied(value) for name, value in settings.items()})
    if not isinstance(result, dict):
        raise TypeError("a job must return a dict of numbers and arrays, got "
                        f"{type(result).__name__}")
    if path is not None:
        save(path, _packed(result, path))
    return result


def _copied(value):
    """A copy, so that no job changes what the next one gets; a lock, for example, has none."""
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def _packed(result, path):
    """The results as arrays, plain Python as JSON; `_unpacked` returns them with their types."""
    arrays, plain = {}, {}
    for name, value in result.items():
        if not isinstance(name, str):
            raise TypeError("the results of a job need texts as names to be kept in a cache, got "
                            f"{name!r}")
        if type(value) is np.ndarray:
            arrays[f"array {name}"] = value
        elif isinstance(value, np.generic):
            arrays[f"number {name}"] = np.asarray(value)
        elif _is_plain(value):
            plain[name] = value
        else:
            raise TypeError("a sweep with a cache keeps numbers, texts, arrays and lists of them, "
                            f"and the job returned {name!r} as {type(value).__name__}; return "
                            ".numpy() of a Tensor, a list for a tuple, or sweep without a cache")
    text = json.dumps([list(result), plain]).encode()
    return {"plain": np.frombuffer(text, np.uint8), **arrays}


def _unpacked(arrays):
    names, plain = json.loads(arrays.pop("plain").tobytes())
    for name, array in arrays.items():
        kind, _, name = name.partition(" ")
        plain[name] = array if kind == "array" else array[()]
    return {name: plain[name] for name in names}


def _is_plain(value):
    """Whether JSON would return the value exactly as it was."""
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) in (type(None), bool, int, float, str)
