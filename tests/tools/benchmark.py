"""How fast is minidl? Everything is a ratio, measured side by side in one run.

    python tests/tools/benchmark.py [--quick] [--json FILE] [--figure FILE]

The yardsticks: the same step by hand in NumPy, PyTorch's eager mode, JAX's jit and Keras' `fit` where they are installed, and
the matrix products alone, below which no step can be. By hand means as one writes it, not with the expressions that
minidl chose for their speed; but before anything is timed, all steps must give the same losses.
The contenders take turns, some 20 steps each, so that noise of the machine hits all alike; the first 5 of each
turn are not timed, as in training no step follows a stranger's. PyTorch brings its own matrix products, so its
columns also compare two BLAS libraries.
"""

import argparse
import gc
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter

# One thread for everybody: a BLAS that starts threads for one product and not for another would be what is
# measured. The libraries read these variables when they are loaded, hence before NumPy is imported. The
# processes that `threads` starts are given other values.
THREADS = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"
if __name__ == "__main__":
    os.environ.update(dict.fromkeys(THREADS, "1"))
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # of JAX
sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np
from contenders import STEPS, Task, minidl_step, numpy_step, products_step, torch

from minidl import Activation, BatchNorm, Dense, Sequential, Tensor, experiments, optim, plotting
from minidl import functional as F
from minidl.console import table
from minidl.convolution import convolve

NETS = [([784, 100, 100, 100, 10], 60, "sigmoid"), ([784, 64, 10], 32, "relu"), ([784, 256, 256, 256, 10], 128, "relu")]
LESSON_NETS = [Task(*net, batch_norm) for net in NETS for batch_norm in (False, True)]
WARM, TIMED = 5, 20  # steps of one contender before the next one's turn


def turns(contenders, seconds):
    """Median microseconds of each of several functions, which take turns for so many seconds."""
    times = {name: [] for name in contenders}
    end = perf_counter() + seconds
    while perf_counter() < end:
        for name, function in contenders.items():
            for _ in range(WARM):
                function()
            for _ in range(TIMED):
                start = perf_counter()
                function()
                times[name].append(perf_counter() - start)
    return {name: 1e6 * median(values) for name, values in times.items()}


def check_equal(task, steps):
    """Run 5 steps of each; SystemExit unless all losses agree."""
    losses = {name: [step().item() for _ in range(5)] for name, step in steps.items() if name != "products"}
    for name, values in losses.items():
        if not np.allclose(values, losses["minidl"], rtol=1e-4, atol=0):
            sys.exit(f"{task}: {name} does not compute what minidl computes, so there is nothing to compare. "
                     f"Losses of 5 steps: {name} {values}, minidl {losses['minidl']}")


def show(title, rows):
    """Print a table under its title."""
    cells = [[cell if isinstance(cell, str) else f"{cell:.2f}" if cell < 10 else f"{cell:.0f}" for cell in row] for row in rows]
    print(f"\n{title}\n", *table(cells), sep="\n", flush=True)


def steps(optimizer, seconds):
    """One training step of the nets of the lessons: microseconds, and minidl's time divided by the others'."""
    results, rows = [], [["net, batch, optimizer", *STEPS, *(f"/ {name}" for name in STEPS if name != "minidl"),
                         *(f"compiled / {name}" for name in ("by hand", "JAX") if name in STEPS)]]
    for lesson in LESSON_NETS:
        task = Task(lesson.sizes, lesson.batch, lesson.activation, lesson.batch_norm, optimizer)
        contenders = {name: make(task) for name, make in STEPS.items()}
        check_equal(task, contenders)
        times = turns(contenders, seconds)
        ratios = {name: times["minidl"] / time for name, time in times.items() if name != "minidl"}
        results.append({"net": str(task), "microseconds": times, "ratios": ratios})
        rows.append([str(task), *times.values(), *ratios.values(),
                     *(times["compiled"] / times[name] for name in ("by hand", "JAX") if name in times)])
    show(f"One step with {optimizer}, microseconds, and minidl's time divided by that of the others", rows)
    return results


class Terminal(io.StringIO):
    """Somewhere to draw progress bars."""

    encoding = "utf-8"

    def isatty(self):
        return True


def fit(rounds):
    """The Keras program of many courses: `fit` with Adam, batches of 32, accuracy and a progress bar, per step."""
    rng = np.random.default_rng(0)
    count = 300
    x, y = rng.random((32 * count, 784), np.float32), rng.integers(0, 10, 32 * count)

    def program():
        model = Sequential([Dense(64, input_shape=(784,)), BatchNorm(), Activation("relu"), Dense(10), Activation("softmax")])
        model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    fitted, stepped = program(), program()
    optimizer = optim.Adam(stepped.parameters())

    def bare():
        for start in range(0, len(x), 32):
            loss = F.categorical_crossentropy(stepped(x[start:start + 32]), y[start:start + 32])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    contenders = {"bare steps": bare, "fit": lambda: fitted.fit(x, y, batch_size=32)}
    try:
        import keras
    except ImportError:
        pass
    else:
        layers = keras.layers
        theirs = keras.Sequential([keras.Input((784,)), layers.Dense(64), layers.BatchNormalization(),
                                   layers.Activation("relu"), layers.Dense(10), layers.Activation("softmax")])
        theirs.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        contenders["Keras on JAX"] = lambda: theirs.fit(x, y, batch_size=32)
    times = {name: [] for name in contenders}
    with redirect_stderr(Terminal()), redirect_stdout(Terminal()):
        for _ in range(rounds + 1):
            for name, function in contenders.items():
                start = perf_counter()
                function()
                times[name].append(perf_counter() - start)
    result = {name: 1e6 * median(values[1:]) / count for name, values in times.items()}
    show("fit with a progress bar: microseconds per step, and its time divided by that of the others",
         [["", *result], ["784-64-10 relu BN softmax, 32, Adam", *result.values()],
          ["fit /", *(result["fit"] / time for time in result.values())]])
    return result


SCALES = {"batch size": ("784-100-100-10", (1, 4, 16, 64, 256, 1024, 4096), lambda n: Task([784, 100, 100, 10], n)),
          "width": ("n-n-n-10, batch 64", (16, 32, 64, 128, 256, 512, 1024, 2048), lambda n: Task([n, n, n, 10], 64)),
          "depth": ("64-...-64-10, batch 64", (1, 2, 4, 8, 16, 32, 64), lambda n: Task([64] * n + [10], 64))}


def scaling(seconds):
    """Step time against batch size, width and depth, and its ratio to the matrix products."""
    results = {}
    for name, (net, values, make) in SCALES.items():
        results[name] = {"values": values, "microseconds": [], "products": []}
        for value in values:
            times = turns({"minidl": minidl_step(make(value)), "products": products_step(make(value))}, seconds)
            results[name]["microseconds"].append(times["minidl"])
            results[name]["products"].append(times["products"])
        ratios = np.divide(results[name]["microseconds"], results[name]["products"])
        show(f"One step against {name} ({net}, ReLU, SGD)",
             [[name, *map(str, values)], ["microseconds", *results[name]["microseconds"]], ["/ products", *ratios]])
    return results


def draw_scaling(results, path):
    """The ratio of a step to its matrix products, one panel for each way to grow."""
    fig, axes = plotting.figure(columns=len(results), size=(16, 6), sharey=True,
                                title="The more arithmetic in a layer, the less the framework costs")
    for ax, (name, result) in zip(axes, results.items()):
        values = result["values"]
        ax.plot(values, np.divide(result["microseconds"], result["products"]), "o-", linewidth=3, markersize=9, color="#0072B2")
        ax.axhline(1, color="0.4", linewidth=1.5, linestyle=":")
        ax.set(xlabel=f"{name} ({SCALES[name][0]})", xscale="log", yscale="log", ylim=(0.9, 12))
        ax.set_xticks(values[::2], map(str, values[::2]))
        ax.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        ax.minorticks_off()
    axes[0].set_ylabel("step / its matrix products")
    fig.savefig(path)
    print(f"saved {path}")


def engine():
    """What the graph costs for each op: additions of two small arrays, recorded and differentiated."""
    a, x, n = np.ones(4, np.float32), Tensor(np.ones(4, np.float32), requires_grad=True), 500

    def plain():
        y = a
        for _ in range(n):
            y = y + a

    def forward():
        y = x
        for _ in range(n):
            y = y + a
        return y

    def both():
        forward().backward(a)
        x.grad = None

    times = {name: time / n for name, time in turns({"NumPy": plain, "forward": forward, "both": both}, 1).items()}
    result = {"forward": times["forward"] - times["NumPy"], "backward": times["both"] - times["forward"]}
    show("What the graph adds to each op, microseconds", [["", *result], ["an addition", *result.values()]])
    return result


def peak(step):
    """The most bytes that a step holds at a time, its parameters and what stays from step to step included."""
    for _ in range(3):
        step()
    tracemalloc.start()
    step(), step()  # what the first of them leaves behind, such as gradients, is freed by the second
    tracemalloc.reset_peak()
    step()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def memory(count):
    """Peak memory of a step against the one by hand; what count steps leave behind; what is left to the garbage collector."""
    result, rows = {}, [["net, batch, optimizer", "minidl", "by hand", "/ by hand"]]
    for task in [*LESSON_NETS, *(Task([784, 256, 256, 256, 10], 2048, "relu", batch_norm) for batch_norm in (False, True))]:
        parameters = sum(kernel.nbytes for kernel in task.kernels)
        sizes = [(parameters + peak(make(task))) / 1e6 for make in (minidl_step, numpy_step)]
        result[str(task)] = sizes
        rows.append([str(task), *sizes, sizes[0] / sizes[1]])
    show("Peak memory of a step, megabytes", rows)

    step = minidl_step(Task([16, 8, 4], 4, "relu", True))
    for _ in range(100):
        step()
    collections = []
    gc.callbacks.append(lambda phase, info: phase == "start" and collections.append(phase))
    gc.collect()
    collections.clear()
    blocks = sys.getallocatedblocks()
    for _ in range(count):
        step()
    result["collections"] = len(collections)
    gc.callbacks.pop()
    gc.disable()
    result["blocks"] = sys.getallocatedblocks() - blocks
    for _ in range(1000):
        step()
    result["unreachable"] = gc.collect()
    gc.enable()
    print(f"\nAfter {count:,} steps {result['blocks']} more blocks of memory are in use. Meanwhile the garbage collector ran "
          f"{result['collections']} times; after 1,000 steps without it, it found {result['unreachable']} objects to free")
    return result


def passes(seconds):
    """The fused ops, forward and backward, against the bare passes over memory that they are made of."""
    rng = np.random.default_rng(0)
    results, rows = {}, [["forward and backward", "fused", "its passes", "/ its passes"]]
    for n, features in (128, 256), (1024, 512):
        x, g, out = rng.standard_normal((3, n, features), np.float32)
        row, ones, column = np.ones(features, np.float32), np.ones(n, np.float32), np.ones((n, 1), np.float32)
        norm = [Tensor(x, requires_grad=True), Tensor(row, requires_grad=True), Tensor(row, requires_grad=True)]
        logits, labels = Tensor(x, requires_grad=True), rng.integers(0, features, n)

        def batch_norm():
            F.batch_norm(*norm)[0].backward(g)
            for t in norm:
                t.grad = None

        def batch_norm_passes():
            for a in x, out, g, out:  # the means and sums of squares; forward, then backward
                ones.dot(a)
            for a in x, x, x, out, out, out:  # centred, scaled, shifted; dx from centred times a row, less a row, times a row
                np.multiply(a, row, out=out)
            for a in x, x, x:  # the squares; g times centred; the sum with g
                np.multiply(a, g, out=out)

        def cross_entropy():
            F.cross_entropy(logits, labels).backward()
            logits.grad = None

        def cross_entropy_passes():
            np.maximum.reduce(x, axis=1)
            np.subtract(x, column, out=out)
            np.exp(out, out=out)
            np.add.reduce(out, axis=1)
            np.multiply(out, column, out=out)

        for name, fused, bare in (("batch_norm", batch_norm, batch_norm_passes),
                                  ("cross_entropy", cross_entropy, cross_entropy_passes)):
            times = turns({"fused": fused, "passes": bare}, seconds)
            results[f"{name} {n} x {features}"] = times
            rows.append([f"{name} {n} x {features}", *times.values(), times["fused"] / times["passes"]])
    show("Fused ops, microseconds", rows)
    return results


CONVOLUTIONS = [((32, 8, 28, 28), 8), ((64, 16, 14, 14), 16), ((64, 1, 28, 28), 8)]


def convolutions(seconds):
    """A convolution with windows of 3 x 3 and a row of zeros around the image, forward and backward: minidl and PyTorch."""
    rng = np.random.default_rng(0)
    results, rows = {}, [["images, filters", "minidl", "PyTorch", "/ PyTorch"]]
    for shape, filters in CONVOLUTIONS:
        x, kernel = rng.standard_normal(shape, np.float32), rng.standard_normal((3, 3, shape[1], filters), np.float32)
        g = rng.standard_normal((len(x), filters, *shape[2:]), np.float32)
        ours = [Tensor(x, requires_grad=True), Tensor(kernel, requires_grad=True)]
        theirs = [torch.tensor(a, requires_grad=True) for a in (x, kernel.transpose(3, 2, 0, 1).copy())]
        g_theirs = torch.tensor(g)

        def minidl():
            for t in ours:
                t.grad = None
            y = convolve(*ours, padding=1)
            y.backward(g)
            return y.data

        def pytorch():
            for t in theirs:
                t.grad = None
            y = torch.nn.functional.conv2d(*theirs, padding=1)
            y.backward(g_theirs)
            return y.detach().numpy()

        name = f"{shape} -> {filters}"
        if not (np.allclose(minidl(), pytorch(), atol=1e-4) and np.allclose(ours[0].grad, theirs[0].grad, atol=1e-4)):
            sys.exit(f"{name}: PyTorch does not compute what minidl computes")
        times = turns({"minidl": minidl, "PyTorch": pytorch}, seconds)
        results[name] = times
        rows.append([name, *times.values(), times["minidl"] / times["PyTorch"]])
    show("A convolution, 3 x 3, forward and backward, microseconds", rows)
    return results


def imports(rounds):
    """Milliseconds to start Python and import, once the modules' bytecode is there."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        times = {name: [] for name in ("numpy", "minidl")}
        for _ in range(rounds + 1):
            for name, values in times.items():
                start = perf_counter()
                subprocess.run([sys.executable, "-c", f"import {name}"], check=True, env=environment)
                values.append(perf_counter() - start)
    result = {name: 1e3 * median(values[1:]) for name, values in times.items()}
    print(f"\nimport numpy: {result['numpy']:.0f} ms, import minidl: {result['minidl']:.0f} ms, "
          f"{result['minidl'] / result['numpy']:.2f} times as long")
    return result


def network(seed, batch_norm):
    """The network of lesson 8. At the top of the file, so that another process can find it."""
    layers = []
    for _ in range(3):
        layers += [Dense(64, kernel_initializer="he_normal"), *([BatchNorm()] if batch_norm else []), Activation("relu")]
    return Sequential([*layers, Dense(10)], seed=seed)


def sweeps(rounds):
    """Lesson 8's sweep over learning rates, one run after the other and on two processes."""
    builders = {name: partial(network, batch_norm=name == "BN") for name in ("BN", "plain")}

    def sweep(executor=None):
        start = perf_counter()
        experiments.lr_range(builders, "digits", 10 ** np.arange(-1.5, 1.51, 0.25), steps=120, batch_size=64, executor=executor)
        return perf_counter() - start

    times = {"serial": [], "two processes": []}
    with experiments.processes(2) as pool:
        sweep(pool)  # the processes start and load the data
        for _ in range(rounds):
            times["serial"].append(sweep())
            times["two processes"].append(sweep(pool))
    result = {name: median(values) for name, values in times.items()}
    print(f"\nA sweep of 52 short runs: {result['serial']:.1f} s one after the other, {result['two processes']:.1f} s on two "
          f"processes, {result['serial'] / result['two processes']:.2f} times as fast")
    return result


def step_time(sizes, batch, seconds):
    """Microseconds of a step in the process that is asked."""
    return turns({"step": minidl_step(Task(sizes, batch, "relu", True))}, seconds)["step"]


def threads(seconds):
    """A step with one BLAS thread and with one for each core, alone and with another process that does the same."""
    nets = ([784, 64, 10], 32), ([784, 256, 256, 256, 10], 128), ([784, 1024, 1024, 10], 256)
    results, rows = {}, [["BLAS threads, processes", *("-".join(map(str, sizes)) + f" BN, {batch}" for sizes, batch in nets)]]
    for count in 1, os.cpu_count():
        os.environ.update(dict.fromkeys(THREADS, str(count)))  # for the new processes
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for future in [pool.submit(step_time, *nets[0], 0.1) for _ in range(2)]:  # both processes are started
                future.result()
            for processes in 1, 2:
                times = [max(future.result() for future in [pool.submit(step_time, *net, seconds) for _ in range(processes)])
                         for net in nets]
                results[f"{count} threads, {processes} processes"] = times
                rows.append([f"{count}, {processes}", *times])
    os.environ.update(dict.fromkeys(THREADS, "1"))
    show("A step against the number of BLAS threads, microseconds; of two processes the slower one", rows)
    return results


def main():
    """Measure, print, and write to files what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one minute instead of five: more noise")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE as well")
    parser.add_argument("--figure", metavar="FILE", help="draw how the time grows with the net, and save it as FILE")
    arguments = parser.parse_args()
    quick = arguments.quick
    np.ones(7_000_000, np.float32)  # as large as a data set: glibc learns to keep freed memory instead of fetching it anew

    results = {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
               "python": platform.python_version(), "numpy": np.__version__, "torch": torch and torch.__version__}
    print(", ".join(f"{key} {value or 'not installed'}" for key, value in results.items()))
    results["SGD"] = steps("SGD", 1.5 if quick else 15)
    results["Adam"] = steps("Adam", 1 if quick else 8)
    results["fit"] = fit(5 if quick else 20)
    results["scaling"] = scaling(0.2 if quick else 2)
    results["graph"] = engine()
    results["memory"] = memory(10_000 if quick else 100_000)
    results["passes"] = passes(0.3 if quick else 3)
    if torch is not None:
        results["convolutions"] = convolutions(1 if quick else 10)
    results["imports"] = imports(3 if quick else 20)
    results["sweeps"] = sweeps(1 if quick else 5)
    results["threads"] = threads(0.3 if quick else 3)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    if arguments.figure:
        draw_scaling(results["scaling"], arguments.figure)


if __name__ == "__main__":
    main()
