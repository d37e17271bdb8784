"""Comparisons and sweeps: fair by construction, recorded as they were, the same table on any executor, resumable."""

import csv
import io
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Module,
    Sequential,
    Tensor,
    data,
    experiments,
    plotting,
)
from minidl.experiments import sweeps

ROOT = Path(__file__).resolve().parent.parent


def network(seed, batch_norm):
    layers = [Dense(16), BatchNorm(), Activation("relu")] if batch_norm else [Dense(16), Activation("relu")]
    return Sequential([*layers, Dense(10)], seed=seed)


BUILDERS = {"BN": partial(network, batch_norm=True), "plain": partial(network, batch_norm=False)}


def toy_data(n=300):
    """Gaussian blobs: ((x_train, y_train), (x_test, y_test))."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, n)
    x = (rng.normal(0, 1, (5, 20))[y] + rng.normal(0, 1, (n, 20))).astype(np.float32)
    return (x[:200], y[:200]), (x[200:], y[200:])


def job(lr, seed, power=1):
    """A job as a user writes one: numbers in, numbers and an array out."""
    model = network(seed, batch_norm=True)
    result = experiments.run(model, toy_data(), optimizer=experiments.SGD(lr=lr), steps=4)
    return {"loss": result.final_loss(2) ** power, "losses": result.losses, "seed": seed}


GRID = {"lr": [0.01, 0.1, 1.0], "seed": range(2)}


def executors():
    """One of each kind: none, threads, processes (spawned, as on Windows), and dask's."""
    yield "serial", nullcontext()
    yield "threads", ThreadPoolExecutor(3)
    yield "processes", experiments.processes(2)


def same(one, two):
    return one.settings == two.settings and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a) for a, b in zip(one.results, two.results))


# --- Sweeps -------------------------------------------------------------------------------------------

def test_a_sweep_goes_through_the_grid_in_order_and_gives_arrays(tmp_path):
    result = experiments.sweep(GRID, job)
    assert result.settings == [{"lr": lr, "seed": seed} for lr in GRID["lr"] for seed in GRID["seed"]]
    assert result.array("loss").shape == (3, 2) and result.array("losses").shape == (3, 2, 4)
    assert result.array("seed").tolist() == [[0, 1]] * 3
    assert result.array("loss")[2, 1] == job(lr=1.0, seed=1)["loss"]
    assert experiments.sweep([{"lr": 0.1, "seed": 3}], job).array("seed").tolist() == [3]


def test_every_executor_gives_the_same_table_bit_for_bit():
    serial = experiments.sweep(GRID, job)
    for name, executor in executors():
        with executor as pool:
            assert same(experiments.sweep(GRID, job, pool), serial), name


def test_dask_gives_the_same_table_bit_for_bit():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster, \
            distributed.Client(cluster) as client:
        assert same(experiments.sweep(GRID, job, client.get_executor()), experiments.sweep(GRID, job))


def test_a_comparison_runs_on_processes_that_load_the_data_by_name():
    options = dict(lr=0.1, steps=3, seeds=(0, 1), eval_steps=[3])
    serial = experiments.compare(BUILDERS, data.load("digits"), **options)
    with experiments.processes(2) as pool:
        parallel = experiments.compare(BUILDERS, "digits", executor=pool, **options)
    for name in BUILDERS:
        assert all(np.array_equal(serial.array(name, what), parallel.array(name, what)) for what in ("losses", "accuracy"))


def threads(number):
    return {"number": number, "threads": int(os.environ["OPENBLAS_NUM_THREADS"]), "process": os.getpid()}


def test_processes_have_one_blas_thread_each_and_this_one_keeps_its_settings(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    with experiments.processes(2) as pool:
        result = experiments.sweep({"number": range(4)}, threads, pool)
    assert result.array("threads").tolist() == [1] * 4 and os.getpid() not in result.array("process")
    assert os.environ["OPENBLAS_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ


def test_processes_hide_no_error_when_the_environment_was_changed_meanwhile(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(ArithmeticError), experiments.processes(1):
        del os.environ["OMP_NUM_THREADS"]
        raise ArithmeticError
    assert os.environ["OMP_NUM_THREADS"] == "3"


def failing(lr):
    if lr > 0.5:
        raise ArithmeticError(f"no good: {lr}")
    time.sleep(0.05)
    return {"lr": lr}


def test_a_failing_job_ends_the_sweep_with_its_own_error():
    for name, executor in executors():
        with executor as pool, pytest.raises(ArithmeticError, match="no good: 0.7"):
            experiments.sweep({"lr": [0.1, 0.7, 0.2]}, failing, pool)


@pytest.mark.parametrize("grid", [{}, {"lr": []}, []])
def test_an_empty_grid_and_a_job_without_a_dict_are_refused(grid):
    if grid != {}:
        with pytest.raises(ValueError, match="empty"):
            experiments.sweep(grid, job)
    with pytest.raises(TypeError, match="dict"):
        experiments.sweep({"lr": [1]}, lambda lr: lr)


# --- The cache ----------------------------------------------------------------------------------------

def counted(lr, marks):
    Path(marks, f"{lr}-{time.time_ns()}").touch()
    return {"twice": 2 * lr, "many": np.arange(3) * lr}


def test_finished_jobs_are_not_done_again(tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    first = experiments.sweep({"lr": [0.1, 0.2], "marks": [str(marks)]}, counted, cache=tmp_path / "cache")
    again = experiments.sweep({"lr": [0.1, 0.2, 0.3], "marks": [str(marks)]}, counted, cache=tmp_path / "cache")
    assert len(list(marks.iterdir())) == 3
    assert again.array("twice")[:2].tolist() == first.array("twice").tolist()
    assert np.array_equal(again.array("many")[:2], first.array("many"))
    assert type(again.results[0]["twice"]) is float


SCRIPT = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from minidl import experiments
def job(i, scale):
    time.sleep(0.02)
    open(sys.argv[1] + f"/{{i}}-{{time.time_ns()}}", "w").close()
    return {{"i": i * {factor}}}
result = experiments.sweep({{"i": range(20), "scale": [1]}}, job, cache=sys.argv[2])
print(result.array("i").sum())
"""


def test_a_killed_sweep_resumes_and_changed_code_starts_anew(tmp_path):
    marks, script = tmp_path / "marks", tmp_path / "script.py"
    marks.mkdir()
    script.write_text(SCRIPT.format(factor=1))
    command = [sys.executable, str(script), str(marks), str(tmp_path / "cache")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(list(marks.iterdir())) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    done = len(list(marks.iterdir()))
    assert 5 <= done < 20

    def finish():
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()

    assert finish() == "190"
    assert len(list(marks.iterdir())) in (20, 21), "at most the job that was under way is done twice"
    script.write_text(SCRIPT.format(factor=2))
    assert finish() == "380"


def notebook_job(lr):
    return {"lr": lr}


notebook_job.__module__ = "__main__"


@pytest.mark.parametrize("job", [lambda lr: {"lr": lr}, notebook_job], ids=["lambda", "of a notebook"])
def test_what_has_no_lasting_name_cannot_be_cached(job, tmp_path, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # as in a notebook
    with pytest.raises(ValueError, match="top of a file"):
        experiments.sweep({"lr": [1]}, job, cache=tmp_path)


def test_a_comparison_with_a_cache_is_the_same_the_second_time(tmp_path):
    options = dict(lr=0.1, steps=3, seeds=(0,), eval_steps=[3], cache=tmp_path)
    one, two = (experiments.compare(BUILDERS, toy_data(), **options) for _ in range(2))
    assert all(np.array_equal(one.array(name, what), two.array(name, what)) for name in BUILDERS
               for what in ("losses", "accuracy", "seconds")), "even the seconds are those of the first time"


RESULTS = {"float": 0.1, "nan": math.nan, "int": 3, "huge": 10 ** 30, "bool": True,
           "text": "é\ud800", "none": None,
           "list": [1, 2.5, [True, None]], "dict": {"a": [1]}, "numpy": np.float32(0.1),
           "numpy bool": np.bool_(True),
           "int64": np.int64(3), "array": np.arange(6, dtype=np.int16).reshape(2, 3),
           "0-d": np.array(2.0), "empty": np.zeros((0, 3)),
           "transposed": np.arange(6.0).reshape(2, 3).T, "with spaces: x": 1}


def results_of_all_types(n):
    return RESULTS


def alike(one, two):
    if isinstance(one, np.ndarray | np.generic):
        kind = type(one) is type(two) and one.dtype == two.dtype and one.shape == two.shape
        return kind and np.array_equal(one, two)
    return repr(one) == repr(two) and type(one) is type(two)


def test_a_result_from_the_cache_is_the_fresh_one_with_its_type(tmp_path):
    fresh, kept = (experiments.sweep({"n": [1]}, results_of_all_types, cache=tmp_path).results[0]
                   for _ in range(2))
    assert list(fresh) == list(kept) == list(RESULTS)
    assert [key for key in RESULTS
            if not (alike(fresh[key], RESULTS[key]) and alike(kept[key], RESULTS[key]))] == []


def a_tuple(n):
    return {"value": (1, 2)}


def a_tensor(n):
    return {"value": Tensor(np.ones(3))}


def a_complex(n):
    return {"value": np.ones(2, complex)}


def a_number_for_a_name(n):
    return {0: 1}


@pytest.mark.parametrize("job, kind, message", [
    (a_tuple, TypeError, "'value' as tuple; return"), (a_tensor, TypeError, "'value' as Tensor; "
                                                                            "return .numpy"),
    (a_complex, ValueError, "complex128"), (a_number_for_a_name, TypeError, "need texts as names")])
def test_a_result_that_would_come_back_as_something_else_is_not_kept(job, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        experiments.sweep({"n": [1]}, job, cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage",
                         [lambda b: b"", lambda b: b[:len(b) // 2], lambda b: b[:100] + b"\xff"
                          + b[101:],
                                    lambda b: b"nonsense"],
                         ids=["empty", "half", "a byte", "nonsense"])
def test_a_damaged_file_of_the_cache_is_done_again(damage, tmp_path, capsys):
    first = experiments.sweep({"n": [1]}, results_of_all_types, cache=tmp_path)
    path, = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = experiments.sweep({"n": [1]}, results_of_all_types, cache=tmp_path)
    assert repr(again.results) == repr(first.results) and path.read_bytes() == whole
    assert f"{path.name}" in capsys.readouterr().err


def test_an_older_kind_of_file_is_done_again(tmp_path, capsys):
    experiments.sweep({"n": [1]}, results_of_all_types, cache=tmp_path)
    path, = tmp_path.iterdir()
    np.savez(path, value=np.array(5))
    assert list(experiments.sweep({"n": [1]}, results_of_all_types,
                                  cache=tmp_path).results[0]) == list(RESULTS)
    assert "done again" in capsys.readouterr().err


def test_two_sweeps_at_once_share_a_folder(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        sweeps_at_once = [pool.submit(experiments.sweep, {"n": range(20)}, counted_slowly, None,
                                      tmp_path) for _ in range(4)]
        tables = [future.result().array("twice").tolist() for future in sweeps_at_once]
    assert tables == [[2 * n for n in range(20)]] * 4 and len(list(tmp_path.iterdir())) == 20


def counted_slowly(n):
    time.sleep(0.001)
    return {"twice": 2 * n}


def test_a_cache_is_a_folder_wherever_the_workers_are(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="cache must name a folder"):
        experiments.sweep({"n": [1]}, counted_slowly, cache=tmp_path / "file")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    experiments.sweep({"n": [1]}, counted_slowly, cache="~/kept")
    experiments.sweep({"n": [1]}, counted_slowly, cache="kept")
    assert len(list((tmp_path / "kept").iterdir())) == 1 and not (tmp_path / "~").exists()


# --- Jobs are independent, and settings are checked ------------------------------

def greedy(n, queue, weights):
    weights += queue.pop()
    return {"sum": weights.sum()}


@pytest.mark.parametrize("cached", [False, True])
def test_no_job_changes_what_the_next_one_gets(cached, tmp_path):
    """As in another process, so that serial and parallel tables are the same."""
    queue, weights = [1.0, 2.0, 3.0], np.zeros(2)
    grid = {"n": range(3), "queue": [queue], "weights": [weights]}
    for _, executor in executors():
        with executor as pool:
            result = experiments.sweep(grid, greedy, pool, tmp_path if cached else None)
        assert result.array("sum").tolist() == [[[6.0]]] * 3
        assert queue == [1.0, 2.0, 3.0] and not weights.any()
    assert result.settings[0]["queue"] is queue


class Stateful:
    def __init__(self):
        self.seen = 0

    def run(self, n):
        self.seen += 1
        return {"seen": self.seen}


def test_an_interrupted_sweep_of_an_object_that_changes_is_the_whole_one(tmp_path):
    whole = experiments.sweep({"n": range(3)}, Stateful().run,
                              cache=tmp_path / "whole").array("seen").tolist()
    experiments.sweep({"n": range(2)}, Stateful().run, cache=tmp_path / "parts")
    assert experiments.sweep({"n": range(3)}, Stateful().run,
                             cache=tmp_path / "parts").array("seen").tolist() == whole


def test_what_cannot_be_copied_is_shared():
    import threading
    lock = threading.Lock()
    result = experiments.sweep({"lock": [lock]}, lambda lock: {"locked": lock.locked()})
    assert result.results == [{"locked": False}]


def test_results_that_make_no_table_say_which_jobs():
    result = sweeps.Sweep({"n": [1, 2]}, [{"n": 1}, {"n": 2}], [{"a": [1], "b": 1}, {"a": [1, 2]}])
    with pytest.raises(ValueError, match=r"'b' is not among the results of 1 of 2 jobs, the first "
                                         r"with \{'n': 2\}"):
        result.array("b")
    with pytest.raises(ValueError, match=r"'a' has not the same shape in all jobs: \(1,\) with "
                                         r"\{'n': 1\}, \(2,\)"):
        result.array("a")


def test_a_result_does_not_overwrite_a_setting_in_the_table(tmp_path):
    with pytest.raises(ValueError, match="'lr' is a setting, 1, and a result, 2"):
        sweeps.Sweep({}, [{"lr": 1}], [{"lr": 2}]).to_csv(tmp_path / "x.csv")
    sweeps.Sweep({}, [{"lr": math.nan, "x": 1}],
                 [{"lr": math.nan, "x": np.float64(1)}]).to_csv(tmp_path / "x.csv")


def test_the_same_seeds_are_no_repetition_and_generators_are_lists():
    assert experiments.sweep({"n": (n for n in range(3))},
                             counted_slowly).array("twice").tolist() == [0, 2, 4]
    assert experiments.sweep(({"n": n} for n in range(3)),
                             counted_slowly).array("twice").tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="more than once"):
        experiments.sweep({"n": [1, 2, 1]}, counted_slowly)


def test_a_lambda_does_not_reach_another_process():
    with experiments.processes(1) as pool:
        for grid, job in (({"n": [1]}, lambda n: {}), ({"n": [1], "f": [lambda: 1]}, network)):
            with pytest.raises((ValueError, TypeError), match="top of a file|cannot be called"):
                experiments.sweep(grid, job, pool)


def dying(n):
    os._exit(1)


def test_a_process_that_dies_says_what_may_be_wrong():
    with experiments.processes(1) as pool, pytest.raises(RuntimeError, match="__main__"):
        experiments.sweep({"n": [1]}, dying, pool)


def test_without_processes_the_browser_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "platform", "emscripten")
    with pytest.raises(RuntimeError, match="leave executor out"), experiments.processes(2):
        pass
    monkeypatch.undo()
    # as where there are no semaphores
    monkeypatch.setitem(sys.modules, "multiprocessing.synchronize", None)
    import multiprocessing
    monkeypatch.delattr(multiprocessing, "synchronize", raising=False)
    with pytest.raises(RuntimeError, match="leave executor out"), experiments.processes(2):
        pass


# --- Comparisons and learning-rate ranges ---------------------------------------------------------------

def test_both_networks_of_a_pair_start_alike_and_see_the_same_batches():
    models = [builder(7).build(20) for builder in BUILDERS.values()]
    for one, two in zip(models[0].layers[::3], models[1].layers[::2]):
        assert np.array_equal(one.kernel.data, two.kernel.data)
    assert models[0].shuffle_rng.bit_generator.state == models[1].shuffle_rng.bit_generator.state


def test_a_comparison_trains_for_exactly_the_steps_and_measures_where_asked(tmp_path):
    result = experiments.compare(BUILDERS, toy_data(), lr=0.1, steps=23, batch_size=32, seeds=(5, 6), eval_steps=[0, 7, 23, 99])
    for name in BUILDERS:
        assert result.array(name, "losses").shape == (2, 23) and np.isfinite(result.array(name, "losses")).all()
        assert result.runs[name][0].eval_steps.tolist() == [0, 7, 23]
        assert np.all(np.diff(result.array(name, "seconds"), axis=1) > 0)
    assert "BN" in result.table(0.5, at=(7, 23))
    with pytest.raises(ValueError, match="not measured"):
        result.accuracy_at("BN", 8)
    result.to_csv(tmp_path / "comparison.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "comparison.csv").read_text())))
    assert len(rows) == 2 * 2 * 3 and rows[-1]["network"] == "plain" and rows[-1]["seed"] == "6" and rows[-1]["step"] == "23"
    assert float(rows[-1]["accuracy"]) == result.accuracy_at("plain", 23)[1]


def test_without_eval_steps_the_last_step_is_measured():
    result = experiments.compare(BUILDERS, toy_data(), lr=0.1, steps=119, seeds=(0,))
    assert np.isfinite(result.accuracy_at("BN", 119)).all()


def test_a_table_says_where_runs_diverged():
    result = experiments.compare(BUILDERS, toy_data(), lr=1e30, steps=10, seeds=(0, 1), eval_steps=[0, 1, 10])
    assert "diverged" in result.table(0.5, at=(10,)) and "nan" not in result.table(0.5, at=(10,))
    for r in [r for runs in result.runs.values() for r in runs]:  # as if all had died before the first measurement
        r.accuracy[:], r.seconds[:] = np.nan, np.nan
    assert "nan" not in result.table(0.5, at=(10,))


def test_steps_to_a_target_are_the_first_crossing_and_infinite_without_one():
    r = experiments.Run(np.zeros(30), np.array([0, 10, 20, 30]), np.array([0.1, 0.9, 0.8, 0.95]), np.array([0, 1.0, 2, 3]))
    assert (r.steps_to(0.85), r.steps_to(0.95), r.steps_to(0.99)) == (10, 30, math.inf)
    assert r.seconds_to(0.85) == 1.0


def test_a_diverged_run_is_recorded_as_diverged(tmp_path):
    result = experiments.lr_range(BUILDERS, toy_data(), [0.1, 1e30], steps=10, seeds=(0,))
    assert np.isfinite(result.losses["plain"][0, 0]) and np.isinf(result.losses["plain"][0, 1])
    assert result.largest("plain", below=1e9).tolist() == [0.1]
    assert result.largest("plain", below=0).tolist() == [0]
    result.to_csv(tmp_path / "range.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "range.csv").read_text())))
    assert [row["final loss"] for row in rows if row["learning rate"] == "1e+30"][1] == "inf"


def test_threads_give_the_same_learning_rate_range():
    options = dict(rates=[0.03, 0.1, 0.3], steps=10, seeds=(0, 1))
    serial = experiments.lr_range(BUILDERS, toy_data(), **options)
    with ThreadPoolExecutor(3) as executor:
        threaded = experiments.lr_range(BUILDERS, toy_data(), executor=executor, **options)
    assert all(np.array_equal(serial.losses[name], threaded.losses[name]) for name in BUILDERS)


def test_a_sweep_is_written_and_drawn(tmp_path):
    result = experiments.sweep({"lr": [0.01, 0.1, 1.0], "power": [1, 2], "seed": range(2)}, job)
    result.to_csv(tmp_path / "sweep.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    assert rows[0][:4] == ["lr", "power", "seed", "loss"] and len(rows) == 1 + 12
    assert float(rows[1][3]) == result.results[0]["loss"]
    uneven = sweeps.Sweep({}, [{"lr": 1, "a": 2}, {"a": 3, "lr": 4}], [{"loss": 5}, {"loss": 6, "diverged_at": 7}])
    uneven.to_csv(tmp_path / "uneven.csv")
    assert (tmp_path / "uneven.csv").read_text().split() == ["lr,a,loss,diverged_at", "1,2,5,", "4,3,6,7"]
    ax = plotting.sweep(result, x="lr", y="loss", by="power")
    assert [line.get_label() for line in ax.lines] == ["power 1", "power 2"]
    assert np.allclose(ax.lines[1].get_ydata(), np.median(result.array("loss")[:, 1], axis=1))
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "lr" and ax.get_ylabel() == "loss"
    with pytest.raises(ValueError, match="depth"):
        plotting.sweep(result, x="depth", y="loss")
    names = experiments.sweep({"kind": ["a", "b"], "seed": [0, 1]}, lambda kind, seed: {"loss": seed})
    with pytest.raises(ValueError, match="by='kind'"):
        plotting.sweep(names, x="kind", y="loss")


def test_steps_beyond_the_last_are_said_once(capsys):
    result = experiments.compare(BUILDERS, toy_data(), lr=0.1, steps=5, seeds=(0, 1),
                                 eval_steps=[5, 7, 9])
    assert result.runs["BN"][0].eval_steps.tolist() == [5]
    assert capsys.readouterr().err == "eval_steps 7, 9: not measured, the run ends after step 5\n"


def test_last_steps_are_all_if_there_are_fewer():
    r = experiments.Run(np.arange(4.0), np.array([]), np.array([]), np.array([]))
    assert r.final_loss(2) == 2.5 and r.final_loss(99) == 1.5




def test_results_say_what_they_hold_in_one_line():
    shown = repr(experiments.sweep(GRID, job))
    assert shown.startswith("<Sweep over lr (3), seed (2): 6 jobs with loss, losses, seed; .array(")
    shown = repr(experiments.Comparison({"BN": [], "plain": []}, range(2)))
    assert shown.startswith("<Comparison of 'BN', 'plain' with seeds [0, 1];")
    table = experiments.LearningRateRange(np.array([0.1, 1]), {"BN": np.zeros((1, 2))})
    assert repr(table).startswith("<LearningRateRange of 'BN' at 2 rates from 0.1 to 1;")


class Ordered(Module):
    """A network of one's own that sees the samples in their order."""

    shuffle_rng = None

    def __init__(self, seed):
        self.dense = Dense(5, rng=np.random.default_rng(seed))

    def forward(self, x):
        return self.dense(x)


def test_a_module_of_ones_own_is_compared_too():
    result = experiments.compare({"own": Ordered}, toy_data(), lr=0.1, steps=3, eval_steps=[3],
                                 seeds=(0, 1))
    one, two = result.array("own", "losses")
    assert np.isfinite(one).all() and not np.array_equal(one, two)


UNGUARDED = """
from minidl import experiments
def job(n):
    return {"n": n}
with experiments.processes(1) as pool:
    experiments.sweep({"n": [1]}, job, pool)
"""


def test_a_script_without_a_guard_for_its_processes_is_told_so(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    result = subprocess.run([sys.executable, tmp_path / "script.py"],
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                            text=True)
    assert result.returncode == 1 and 'below `if __name__ == "__main__":`' in result.stderr.splitlines()[-1]


class Plain(Module):
    """A network of the user's own, which shuffles nothing."""

    def __init__(self):
        self.layer = Dense(10, rng=0)

    def forward(self, x):
        return self.layer(x)


def test_a_run_takes_any_module():
    (x, y), test_data = data.load("digits")
    result = experiments.run(Plain(), ((x[:200], y[:200]), test_data), optimizer=experiments.SGD(lr=0.5),
                             steps=30, batch_size=20, eval_steps=[0, 30])
    assert result.losses[-1] < result.losses[0] and result.accuracy[1] > result.accuracy[0] + 0.2


# --- Choosing settings, and differences -----------------------------------------------------------------

def test_settings_are_chosen_on_held_out_images_and_the_test_set_stays_unseen():
    """data.split returns what a comparison takes, and not one of its images is in the test set."""
    train, test = toy_data()
    held_out = data.split(*train)
    seen = {tuple(row) for x, _ in held_out for row in x.tolist()}
    assert seen == set(map(tuple, train[0].tolist())) and not seen & set(map(tuple, test[0].tolist()))
    result = experiments.compare(BUILDERS, held_out, lr=0.1, steps=3, eval_steps=[3], seeds=(0, 1))
    right = result.array("BN", "accuracy") * len(held_out[1][1])  # a whole number of its images
    assert right.shape == (2, 1) and np.allclose(right, right.round())


@pytest.mark.parametrize("scores, expected, said", [
    ([0.1, 0.9, 0.3], 0.1, ""),
    ([[0.1, 0.9, 0.2], [0.3, 0.3, 0.6]], 0.1, ""),  # the mean of both seeds
    ([np.nan, 0.1, np.nan], 0.1, ""),
    ([-np.inf, -50, -60], 0.1, ""),
    ([0.5, 0.9, 0.9], 1.0, "the best, 1, lies at the edge of its grid, 0.01 to 1: try larger ones too"),
    ([0.9, 0.5, 0.4], 0.01, "try smaller ones too"),
    ([0.1, 0.1, 0.1], 0.1, "")])
def test_the_best_rate_is_chosen_and_its_edge_is_said(scores, expected, said, capsys):
    assert experiments.best([0.01, 0.1, 1.0], scores) == expected
    printed = capsys.readouterr().err
    assert said in printed and bool(said) == bool(printed)


def test_of_equal_rates_the_middle_one_is_chosen(capsys):
    assert experiments.best([1, 2, 3, 4, 5], [0, 7, 7, 7, 0], name="scale") == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("grid, scores, message", [
    ([0.1, 1], [1, 2], "at least three"), ([1, 0.1, 2], [1, 2, 3], "rising order"), ([1, 1, 2], [1, 2, 3], "rising order"),
    ([1, 2, 3], [1, 2], "one column for each of the 3"), ([1, 2, 3], [[[1, 2, 3]]], "got shape")])
def test_a_grid_in_which_nothing_can_be_chosen_is_refused(grid, scores, message):
    with pytest.raises(ValueError, match=message):
        experiments.best(grid, scores)


def test_a_paired_difference_has_the_error_of_the_differences_and_not_of_the_means():
    """Known from a table: differences 1, 2, 3 have mean 2 and standard deviation 1."""
    difference = experiments.paired_difference([101, 202, 303], [100, 200, 300])
    assert (difference.mean, difference.n) == (2.0, 3) and math.isclose(difference.error, 1 / math.sqrt(3))
    assert str(difference) == "+2 (standard error 0.58, 3 pairs)"
    assert experiments.paired_difference([1, 2], [1, 2]).error == 0


@pytest.mark.parametrize("one, two, message", [
    ([1], [2], "at least two"), ([1, 2], [1, 2, 3], "equally many"), (1, 2, "at least two"),
    ([1, np.nan], [1, 2], "say what it counts as"), ([[1, 2]], [[1, 2]], "equally many")])
def test_differences_that_cannot_be_paired_are_refused(one, two, message):
    with pytest.raises(ValueError, match=message):
        experiments.paired_difference(one, two)
