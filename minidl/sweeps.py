"""Sweeps: one job for every point of a grid, and the same table whoever does the work."""

import hashlib
import json
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from .files import load, save, write_csv
from .progress import bar


THREADS = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"


@contextmanager
def processes(n):
    """A pool of n processes with one BLAS thread each, to be the executor of a sweep: `with processes(2) as pool: ...`

    Processes that all use all cores for their products get in each other's way and can take several times as long.
    They are started anew, not forked, since a BLAS asks for its number of threads only when NumPy is loaded; so a
    script that uses them must begin its work below `if __name__ == "__main__":`.
    """
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context
    before = {name: os.environ.pop(name, None) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # for the processes to inherit; this one has long had its threads
    try:
        with ProcessPoolExecutor(n, mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@dataclass
class Sweep:
    """What a sweep found: the axes of its grid, and of each job the settings and the results, in the order of the grid."""

    axes: dict
    settings: list
    results: list

    def array(self, name):
        """One result of all jobs as an array: first an axis for each key of the grid, then those of the result itself."""
        values = np.array([result[name] for result in self.results])
        return values.reshape(*map(len, self.axes.values()), *values.shape[1:])

    def to_csv(self, path):
        """One line per job: its settings and those of its results that are single numbers; empty where a job has none."""
        rows = [settings | {name: value for name, value in result.items() if np.ndim(value) == 0}
                for settings, result in zip(self.settings, self.results)]
        names = list(dict.fromkeys(name for row in rows for name in row))
        write_csv(path, names, [[row.get(name, "") for name in names] for row in rows])


def sweep(grid, job, executor=None, cache=None):
    """job(**settings) for every point of the grid, with a progress bar; gives a Sweep.

    grid: {"lr": [0.1, 1.0], "seed": [0, 1, 2]}, every combination in this order, the last key fastest; or a
    list of such settings. job: a function that returns a dict of numbers and arrays. executor: any
    `concurrent.futures.Executor`; `processes(2)` makes one that suits small networks. To reach another process a
    job must be a function defined at the top of a file. cache: a folder where finished jobs are kept, so that
    a sweep that was interrupted goes on where it was; a change of the file that defines the job makes it start anew.
    """
    if isinstance(grid, dict):
        axes = {name: list(values) for name, values in grid.items()}
        points = [dict(zip(axes, values)) for values in product(*axes.values())]
    else:
        points = list(grid)
        axes = {"job": list(range(len(points)))}
    if not points:
        raise ValueError("the grid of this sweep is empty")
    if cache is not None:
        Path(cache).mkdir(parents=True, exist_ok=True)
    tasks = [(job, settings, cache and Path(cache, f"{_key(job, settings)}.npz")) for settings in points]
    futures = [executor.submit(_done, *task) for task in tasks] if executor else []
    results = []
    try:
        with bar(total=len(tasks), desc="runs", leave=False) as progress:
            for i, task in enumerate(tasks):
                results.append(futures[i].result() if executor else _done(*task))
                progress.update()
    finally:
        for future in futures:
            future.cancel()  # those not begun, when one has failed or Ctrl-C was pressed
    return Sweep(axes, points, results)


def _done(job, settings, path):
    """The results of one job, from its file if it has been done before."""
    if path is not None and path.exists():
        return {name: value.item() if value.ndim == 0 else value for name, value in load(path).items()}
    result = job(**settings)
    if not isinstance(result, dict):
        raise TypeError(f"a job must return a dict of numbers and arrays, got {type(result).__name__}")
    if path is not None:
        save(path, {name: np.asarray(value) for name, value in result.items()})
    return result


def _key(job, settings):
    """A name for the file of a job: changes with the settings and with the text of the files whose functions are in them."""
    return hashlib.sha256(json.dumps([job, settings], default=_describe).encode()).hexdigest()[:24]


def _describe(value):
    """What JSON does not know, as something it knows."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        source = getattr(sys.modules[value.__module__], "__file__", None)
        if source or value.__module__ != "__main__":  # of a notebook's function nothing tells that it has changed
            return [value.__module__, value.__qualname__, source and hashlib.sha256(Path(source).read_bytes()).hexdigest()]
    raise ValueError(f"{value!r} has no name that a later run would know: a sweep with a cache takes numbers, strings, arrays "
                     "and functions defined at the top of a file")
