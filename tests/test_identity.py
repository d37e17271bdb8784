"""What a sweep's cache keeps is found by the same job only: what can change a result has a say."""

import functools
import importlib
import json
import os
import random
import subprocess
import sys
import threading
import tracemalloc
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from minidl import Dense, Sequential, data, experiments
from minidl.experiments import sweeps
from minidl.experiments.identity import Namer

ROOT = Path(__file__).resolve().parent.parent
JOBS = '''
import functools
from dataclasses import dataclass
import helper
import numpy as np
from helper import twice

SCALE, CALLS, COUNT, TOTAL = 1, [], {"n": 0}, 0
CONFIG = {"rates": [1]}
RNG = np.random.default_rng(0)

def job(n, factor=1):
    return {"v": n * factor * SCALE}

def counting(n):
    global TOTAL
    CALLS.append(n)
    COUNT["n"] += 1
    TOTAL += 1
    Job.calls.append(n)
    return {"v": n + len(CALLS) * 0}

def drawing(n):
    return {"v": RNG.random()}

def drawing_by_itself(n):
    class Own: pass
    Own.RNG = np.random.default_rng(n)
    return {"v": Own.RNG.random()}

def configured(n):
    result = {}
    result["v"] = n * CONFIG.get("rates")[0] * OPTIONS.rate
    return result

def helped(n):
    return {"v": twice(n)}

def by_module(n):
    return {"v": n * helper.RATE}

def lazy(n):
    import rare
    return {"v": rare.thrice(n)}

class Job:
    power, layers, calls = 1, [1, 2], []
    def __init__(self, scale):
        self.scale = scale
    def run(self, n):
        return {"v": n * self.scale ** self.power}
    def __call__(self, n):
        return self.run(n)
    @classmethod
    def of_class(cls, n):
        return {"v": n * cls.power}

class Slotted:
    __slots__ = ("scale",)
    def __init__(self, scale):
        self.scale = scale
    def __call__(self, n):
        return {"v": n * self.scale}

@dataclass
class Options:
    rate: float = 0.1

OPTIONS = Options()

def scaled(factor):
    def decorate(function):
        @functools.wraps(function)
        def inner(n):
            return {"v": function(n)["v"] * factor}
        return inner
    return decorate

FACTOR = 2
@scaled(FACTOR)
def decorated(n):
    return {"v": n}

@functools.cache
def cached(n):
    return {"v": n * SCALE}
'''
FILES = {"jobs.py": JOBS, "helper.py": "from deeper import base\nRATE = 1\ndef twice(n):\n    "
                                       "return 2 * n * base.one()\n",
         "deeper/__init__.py": "from . import base\n", "deeper/base.py": "from .leaf import "
                                                                         "ONE\ndef one():\n    "
                                                                         "return ONE\n",
         "deeper/leaf.py": "ONE = 1\n", "rare.py": "def thrice(n):\n    return 3 * n\n",
         "other.py": "x = 1\n"}


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """A project of a few files beside minidl; gives its main module."""
    folder = tmp_path / "project"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
               for name in FILES]
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("jobs")
    for name in modules:
        sys.modules.pop(name, None)


def name(job, **settings):
    return Namer().name(job, settings)


# --- Settings ------------------------------------------------------------


@dataclass
class Point:
    x: float


class Node:
    def __init__(self, child=None):
        self.child = child


def plain(**settings):
    return {}


def generator(seed, draws=0):
    rng = np.random.default_rng(seed)
    rng.random(draws)
    return rng


A = np.arange(6.0)
PAIRS = {
    "int and float": (1, 1.0), "int and bool": (1, True), "zeros of both signs": (0.0, -0.0),
         "text and number": ("1", 1),
    "nearly equal floats": (0.1, 0.1 + 2 ** -55), "list and tuple": ([1], (1,)),
         "text and bytes": ("a", b"a"),
    "a key as number and text": ({1: 2}, {"1": 2}),
         "the order of a dict": ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "nested": ([{"a": [1]}], [{"a": [1.0]}]), "None and its text": (None, "None"),
         "sets": ({1, 2}, {1, 3}),
    "set and frozenset": ({1}, frozenset({1})),
         "precision of a NumPy number": (np.float32(0.5), np.float64(0.5)),
    "NumPy's and Python's": (np.float64(0.5), 0.5), "dtype": (A, A.astype(np.float32)),
         "shape": (A, A.reshape(2, 3)),
    "content": (A, A + 1e-300 * (A == 0)),
         "a transposed array": (A.reshape(2, 3), A.reshape(3, 2).T),
    "a view with steps": (A[::2], A[1::2]),
         "mask": (np.ma.array([1, 2], mask=[0, 1]), np.ma.array([1, 2], mask=[1, 0])),
    "arrays of objects": (np.array([1, "a"], object), np.array([2, "a"], object)),
    "a dataclass": (Point(1.0), Point(2.0)),
         "an object in an object": (Node(Point(1)), Node(Point(2))),
    "partial": (functools.partial(plain, a=1), functools.partial(plain, a=2)),
    "partial in a partial": (functools.partial(functools.partial(plain, a=1), b=1),
                             functools.partial(functools.partial(plain, a=2), b=1)),
    "a method's object": (Point(1.0).__eq__, Point(2.0).__eq__),
         "two functions": (plain, generator), "two classes": (Point, Node),
    "C functions": (np.sin, np.cos), "seeds of a generator": (generator(1), generator(2)),
    "draws of a generator": (generator(1), generator(1, draws=1)),
         "Python's generators": (random.Random(1), random.Random(2)),
    "dates": (date(2020, 1, 1), date(2020, 1, 2)), "paths": (Path("a"), Path("b")),
         "complex": (1j, 2j),
    "networks": (Sequential([Dense(2)], seed=0), Sequential([Dense(2)], seed=1)),
    "weights": tuple(Sequential([Dense(2, input_shape=3)], seed=seed) for seed in (0, 1)),
         "ranges": (range(3), range(4))}


@pytest.mark.parametrize("pair", PAIRS)
def test_settings_that_differ_have_names_that_differ(pair):
    one, two = PAIRS[pair]
    namer = Namer()
    assert namer.name(plain, {"x": one}) != namer.name(plain, {"x": two})


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_setting_has_the_same_name_again(pair):
    one, two = Namer(), Namer()
    for value in PAIRS[pair]:
        name_of = one.name(plain, {"x": value})
        assert name_of == one.name(plain, {"x": value}) == two.name(plain, {"x": value})


def test_equal_content_is_the_same_whatever_its_memory():
    assert name(plain, x=A[::2]) == name(plain, x=A[::2].copy())
    assert name(plain, x=float("nan")) == name(plain, x=np.nan)
    assert name(plain, x=1, y=2) == name(plain, y=2, x=1), "the order of the axes changes no result"
    assert name(plain, x=1) != name(plain, y=1)


def test_an_object_that_holds_itself_ends():
    loop = Node()
    loop.child = loop
    assert name(plain, x=loop) != name(plain, x=Node())


@pytest.mark.parametrize("value",
                         [lambda: 1, threading.Lock(), (i for i in range(3)), sys.stderr,
                          [lambda: 1], {"f": lambda: 1},
                                   functools.partial(lambda: 1), json], ids=repr)
def test_what_no_later_run_would_know_is_refused_before_any_work(value, tmp_path):
    done = []
    with pytest.raises(ValueError, match="has nothing by which a later run would know it again"):
        experiments.sweep([{"x": 1}, {"x": value}], functools.partial(plain, y=done.append(1)),
                          cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_process_gives_the_same_names(jobs, tmp_path):
    """Whatever its hash seed, which orders sets."""
    code = ("import jobs, numpy as np; from minidl.experiments.identity import Namer\n"
            "print(Namer().name(jobs.Job({'a', 'b', 'c'}).run, {'n': {'x', 'y'}, 'a': "
            "np.arange(3), 'f': jobs.decorated}))")
    names = set()
    for seed in "012":
        environment = {**os.environ, "PYTHONHASHSEED": seed,
                       "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "project")])}
        names.add(subprocess.run([sys.executable, "-c", code], env=environment,
                                 capture_output=True, text=True, check=True).stdout)
    assert len(names) == 1


# --- Code ------------------------------------------------------------


def test_the_state_of_a_jobs_object_counts(jobs):
    assert name(jobs.Job(1).run, n=1) != name(jobs.Job(100).run, n=1)
    assert name(jobs.Job(1), n=1) != name(jobs.Job(100), n=1)
    assert name(jobs.Slotted(1), n=1) != name(jobs.Slotted(100), n=1)
    nested = functools.partial(functools.partial(jobs.job, factor=2))
    assert len({name(nested, n=1), name(functools.partial(jobs.job, factor=3), n=1),
                name(jobs.job, n=1)}) == 3


def change(**values):
    return lambda module, patch: [patch.setattr(module, key, value) for key,
                                  value in values.items()]


def change_config(module, patch):
    patch.setitem(module.CONFIG, "rates", [1, 2])


def change_options(module, patch):
    patch.setattr(module.OPTIONS, "rate", 0.2)


def change_layers(module, patch):
    patch.setattr(module.Job, "layers", [3])


def change_class(module, patch):
    patch.setattr(module.Job, "power", 2)


def change_method(module, patch):
    patch.setattr(module.Job, "run", module.Slotted.__call__)


def change_default(module, patch):
    patch.setattr(module.job, "__defaults__", (7,))


def change_module(module, patch):
    patch.setattr(module.helper, "RATE", 2)


@pytest.mark.parametrize("job, changed", [
    ("job", change(SCALE=100)), ("job", change_default), ("cached", change(SCALE=100)),
                                          ("Job.of_class", change_class),
    ("Job.of_class", change_method), ("configured", change_config), ("configured", change_options),
                                          ("Job.of_class", change_layers),
    ("by_module", change_module), ("helped", change(twice=abs))])
def test_what_a_program_changes_in_the_code_counts(job, changed, jobs, monkeypatch):
    job = functools.reduce(getattr, job.split("."), jobs)
    before = name(job, n=1)
    changed(jobs, monkeypatch)
    assert name(job, n=1) != before


def test_a_list_into_which_a_job_writes_does_not_count(jobs, tmp_path):
    for _ in range(2):
        experiments.sweep({"n": [1, 2]}, jobs.counting, cache=tmp_path)
    assert jobs.CALLS == [1, 2]


def test_a_generator_of_the_file_is_refused_since_its_draws_depend_on_what_ran_before(jobs,
                                                                                      tmp_path):
    with pytest.raises(ValueError, match="drawing uses the random generator 'RNG' of its file"):
        experiments.sweep({"n": [1, 2]}, jobs.drawing, cache=tmp_path)
    assert experiments.sweep({"n": [1]}, jobs.drawing_by_itself,
                             cache=tmp_path).results == [jobs.drawing_by_itself(1)]


@pytest.mark.parametrize("file",
                         ["jobs.py", "helper.py", "deeper/__init__.py", "deeper/base.py",
                          "deeper/leaf.py", "rare.py"])
def test_a_change_of_any_file_that_the_job_imports_starts_anew(file, jobs, tmp_path):
    """Directly, by way of others, by relative imports, or only when it runs."""
    folder = tmp_path / "project"
    before = name(jobs.lazy, n=1)
    with open(folder / file, "a") as text:
        text.write("# changed\n")
    assert name(jobs.lazy, n=1) != before


def test_a_program_run_as_a_module_of_a_package_knows_its_neighbours(tmp_path):
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").touch()
    (tmp_path / "pack" / "main.py").write_text(
        "from minidl.experiments.identity import Namer\ndef job(n):\n    from .near import f\n    return f(n)\n"
        "print(Namer().name(job, {'n': 1}))\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    names = set()
    for text in ("def f(n): return 1", "def f(n): return 2"):
        (tmp_path / "pack" / "near.py").write_text(text)
        names.add(subprocess.run([sys.executable, "-m", "pack.main"], env=environment, text=True,
                                 capture_output=True, check=True).stdout)
    assert len(names) == 2


def test_a_change_of_any_other_file_does_not(jobs, tmp_path):
    before = name(jobs.lazy, n=1)
    (tmp_path / "project" / "other.py").write_text("x = 2\n")
    assert name(jobs.lazy, n=1) == before


def test_a_builder_and_a_class_in_the_settings_bring_their_files(jobs, tmp_path):
    for value in (jobs.helped, jobs.Options(), functools.partial(jobs.helped), jobs.Job(1).run):
        before = name(plain, x=[value])
        with open(tmp_path / "project" / "deeper" / "leaf.py", "a") as text:
            text.write("# changed\n")
        assert name(plain, x=[value]) != before


def test_a_setting_that_names_a_file_stands_for_its_content(tmp_path):
    path = tmp_path / "numbers.csv"
    names = [name(plain, x=str(path))]
    for text in ("1,2", "1,3"):
        path.write_text(text)
        names += [name(plain, x=str(path)), name(plain, x=path)]
    assert len(set(names)) == 5


def test_a_file_larger_than_the_memory_can_be_a_setting(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    try:
        name(plain, x=str(tmp_path / "large"))
        assert tracemalloc.get_traced_memory()[1] < 45_000_000
    finally:
        tracemalloc.stop()


# --- Surroundings ------------------------------------------------------------


def test_variables_that_change_a_run_count_and_others_do_not(monkeypatch):
    before = name(plain, x=1)
    for variable, value in (("MINIDL_SEED", "7"), ("MINIDL_BN", "identity"),
                            ("MINIDL_LABELS", "permuted")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert name(plain, x=1) != before
    monkeypatch.setenv("MINIDL_FIGURES", "elsewhere")
    monkeypatch.setenv("UNRELATED", "1")
    assert name(plain, x=1) == before


def save_images(folder, seed):
    rng = np.random.default_rng(seed)
    arrays = {f"{kind}_{part}": rng.integers(0, 10, (20, 28, 28) if kind == "x"
                                             else 20).astype(np.uint8)
              for part in ("train", "test") for kind in "xy"}
    np.savez(folder / "mnist.npz", **arrays)


def network(seed):
    return Sequential([Dense(10)], seed=seed)


@pytest.mark.parametrize("executor", [None, sweeps.processes], ids=["serial", "processes"])
def test_other_images_behind_the_name_of_a_data_set_are_other_data(executor, tmp_path, monkeypatch):
    """Not those of the cache, nor those that this process has loaded before."""
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path))
    losses = []
    for seed in (1, 2):
        save_images(tmp_path, seed)
        options = dict(lr=0.1, steps=2, seeds=[0], eval_steps=[2], cache=tmp_path / "cache")
        if executor:
            with executor(1) as pool:
                result = experiments.compare({"net": network}, "mnist", executor=pool, **options)
        else:
            result = experiments.compare({"net": network}, "mnist", **options)
        fresh = experiments.compare({"net": network}, data.load("mnist"), lr=0.1, steps=2,
                                    seeds=[0], eval_steps=[2])
        assert np.array_equal(result.array("net", "losses"), fresh.array("net", "losses"))
        losses.append(result.array("net", "losses"))
    assert not np.array_equal(*losses)


def test_a_worker_that_finds_other_images_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_DATA", str(tmp_path))
    save_images(tmp_path, 1)
    with experiments.processes(1) as pool:
        pool.submit(os.getpid).result()  # it has started, with this folder
        (tmp_path / "other").mkdir()
        save_images(tmp_path / "other", 2)
        monkeypatch.setenv("MINIDL_DATA", str(tmp_path / "other"))
        with pytest.raises(ValueError, match="finds other images under the name 'mnist'"):
            experiments.compare({"net": network}, "mnist", lr=0.1, steps=2, seeds=[0],
                                executor=pool)
