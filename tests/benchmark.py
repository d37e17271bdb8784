"""How fast is one training step? minidl against the same arithmetic written by hand in NumPy, against the
bare matrix products (no step can be faster), and against PyTorch where it is installed.

    python tests/benchmark.py [--quick] [--json FILE]

One step is forward, softmax cross-entropy, backward and a plain SGD update, in float32, on one batch of
random data. Before anything is timed, all steps must give the same losses: speed is only compared for
equal arithmetic. The contenders take turns in short blocks, so that noise of the machine hits all alike.
PyTorch brings its own matrix products, so its column also compares two BLAS libraries.
"""

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

# One thread for everybody: a BLAS that starts threads for one product and not for another would be what is
# measured. The libraries read these variables when they are loaded, hence before NumPy is imported.
for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[variable] = "1"
sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np

from minidl import Activation, BatchNorm, Dense, Sequential, experiments, optim
from minidl import functional as F

try:
    import torch
except ImportError:
    torch = None
else:
    torch.set_num_threads(1)

NETS = [([784, 100, 100, 100, 10], "sigmoid", 60), ([784, 64, 10], "relu", 32), ([784, 256, 256, 256, 10], "relu", 128)]
LR, EPS, MOMENTUM = 0.1, 1e-5, 0.1
BLOCK = 5  # timed steps of one contender before the next one's turn


def minidl_step(kernels, activation, batch_norm, x, labels):
    """The step as a lesson writes it."""
    layers = []
    for kernel in kernels[:-1]:
        layers += [Dense(kernel.shape[1]), *([BatchNorm(MOMENTUM, EPS)] if batch_norm else []), Activation(activation)]
    model = Sequential([*layers, Dense(kernels[-1].shape[1])]).build(x.shape[1])
    for layer, kernel in zip([layer for layer in model.layers if isinstance(layer, Dense)], kernels):
        layer.kernel.data = kernel.copy()
    optimizer = optim.SGD(model.parameters(), lr=LR)

    def step():
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def numpy_step(kernels, activation, batch_norm, x, labels):
    """The step with all gradients derived by hand: plain NumPy, the same expressions as minidl's, no framework."""
    kernels = [kernel.copy() for kernel in kernels]
    biases = [np.zeros(kernel.shape[1], np.float32) for kernel in kernels]
    gammas = [np.ones_like(bias) for bias in biases[:-1]] if batch_norm else []
    betas = [np.zeros_like(gamma) for gamma in gammas]
    running_means, running_vars = [beta.copy() for beta in betas], [gamma.copy() for gamma in gammas]
    n, rows, hidden = len(x), np.arange(len(x)), len(kernels) - 1

    def normalize(i, z):
        mean = z.sum(axis=0) / n
        centred = z - mean
        var = np.einsum("ij,ij->j", centred, centred) / n
        scale = 1 / np.sqrt(var + EPS)
        running_means[i] = (1 - MOMENTUM) * running_means[i] + MOMENTUM * mean
        running_vars[i] = (1 - MOMENTUM) * running_vars[i] + MOMENTUM * (var * (n / (n - 1)))
        return centred * (gammas[i] * scale) + betas[i], centred, scale

    def normalize_gradient(i, g, centred, scale):
        g_beta, g_gamma = g.sum(axis=0), np.einsum("ij,ij->j", g, centred) * scale
        gx = gammas[i] * scale * (g - g_beta / n - centred * (g_gamma * scale / n))
        return gx, g_gamma, g_beta

    def step():
        outputs, saved = [x], []
        for i, (kernel, bias) in enumerate(zip(kernels, biases)):
            z = outputs[i] @ kernel + bias
            if i < hidden:
                if batch_norm:
                    z, centred, scale = normalize(i, z)
                    saved.append((centred, scale))
                outputs.append(np.maximum(z, 0) if activation == "relu" else 1 / (1 + np.exp(-z)))

        z = z - z.max(axis=1, keepdims=True)
        p = np.exp(z)
        total = p.sum(axis=1, keepdims=True)
        loss = (np.log(total[:, 0]) - z[rows, labels]).sum() / n
        g = p / total
        g[rows, labels] -= 1
        g /= n

        updates = []
        for i in reversed(range(hidden + 1)):
            updates += [(kernels[i], outputs[i].T @ g), (biases[i], g.sum(axis=0))]
            if i:
                y = outputs[i]
                g = g @ kernels[i].T
                g = g * (y > 0) if activation == "relu" else g * (y * (1 - y))
                if batch_norm:
                    g, g_gamma, g_beta = normalize_gradient(i - 1, g, *saved[i - 1])
                    updates += [(gammas[i - 1], g_gamma), (betas[i - 1], g_beta)]
        for parameter, gradient in updates:
            parameter -= LR * gradient
        return loss

    return step


def products_step(kernels, activation, batch_norm, x, labels):
    """Only the matrix products of a step: forward, for the kernels, and for all inputs but the pixels."""
    inputs = [x] + [np.ones((len(x), kernel.shape[1]), np.float32) for kernel in kernels]

    def step():
        for i, kernel in enumerate(kernels):
            inputs[i] @ kernel
            inputs[i].T @ inputs[i + 1]
            if i:
                inputs[i + 1] @ kernel.T

    return step


def torch_step(kernels, activation, batch_norm, x, labels):
    """The step in PyTorch, eager."""
    layers = []
    for kernel in kernels:
        dense = torch.nn.Linear(*kernel.shape)
        dense.weight.data, dense.bias.data = torch.tensor(kernel.T.copy()), torch.zeros(kernel.shape[1])
        layers.append(dense)
        if kernel is not kernels[-1]:
            layers += [torch.nn.BatchNorm1d(kernel.shape[1], EPS, MOMENTUM)] if batch_norm else []
            layers.append(torch.nn.ReLU() if activation == "relu" else torch.nn.Sigmoid())
    model = torch.nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    x, labels = torch.tensor(x), torch.tensor(labels)

    def step():
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    return step


STEPS = {"minidl": minidl_step, "hand-written": numpy_step, "products": products_step,
         **({} if torch is None else {"PyTorch": torch_step})}


def contenders(sizes, activation, batch, batch_norm):
    """A step of each kind, all from the same weights and on the same data."""
    rng = np.random.default_rng(0)
    kernels = [rng.normal(0, n ** -0.5, (n, units)).astype(np.float32) for n, units in zip(sizes, sizes[1:])]
    x, labels = rng.random((batch, sizes[0]), np.float32), rng.integers(0, sizes[-1], batch)
    return {name: make(kernels, activation, batch_norm, x, labels) for name, make in STEPS.items()}


def check_equal(net, steps):
    """Run 5 steps of each; SystemExit unless all losses agree."""
    losses = {name: [step().item() for _ in range(5)] for name, step in steps.items() if name != "products"}
    for name, values in losses.items():
        if not np.allclose(values, losses["minidl"], rtol=1e-4, atol=0):
            sys.exit(f"{net}: {name} does not compute what minidl computes, so there is nothing to compare. "
                     f"Losses of 5 steps: {name} {values}, minidl {losses['minidl']}")


def time_steps(steps, seconds):
    """Median microseconds of each step. The first step of a block only warms the caches."""
    times = {name: [] for name in steps}
    end = perf_counter() + seconds
    while perf_counter() < end:
        for name, step in steps.items():
            step()
            for _ in range(BLOCK):
                start = perf_counter()
                step()
                times[name].append(perf_counter() - start)
    return {name: 1e6 * median(values) for name, values in times.items()}


def sweep_network(seed, batch_norm):
    """The network of lesson 8. At the top of the file, so that another process can find it."""
    layers = []
    for _ in range(3):
        layers += [Dense(64, kernel_initializer="he_normal"), *([BatchNorm()] if batch_norm else []), Activation("relu")]
    return Sequential([*layers, Dense(10)], seed=seed)


def time_sweeps(repeats):
    """Median seconds of lesson 8's sweep over learning rates, one run after the other and on two processes, in turns."""
    builders = {name: partial(sweep_network, batch_norm=name == "BN") for name in ("BN", "plain")}

    def sweep(executor=None):
        start = perf_counter()
        experiments.lr_range(builders, "digits", 10 ** np.arange(-1.5, 1.51, 0.25), steps=120, batch_size=64, executor=executor)
        return perf_counter() - start

    times = {"serial": [], "two processes": []}
    with ProcessPoolExecutor(2) as pool:
        sweep(pool)  # the processes start and load the data
        for _ in range(repeats):
            times["serial"].append(sweep())
            times["two processes"].append(sweep(pool))
    return {name: median(values) for name, values in times.items()}


def main():
    """Print the table, and write it to a file if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="half a minute instead of two: more noise")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE as well")
    arguments = parser.parse_args()

    versions = {"machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
                "python": platform.python_version(), "numpy": np.__version__, "torch": torch and torch.__version__}
    print(", ".join(f"{key} {value or 'not installed'}" for key, value in versions.items()))
    print("Median microseconds of one training step, then minidl's time divided by that of the others\n")
    names, others = ["minidl", "hand-written", "PyTorch", "products"], ["hand-written", "PyTorch", "products"]
    show = ("{:34}" + 7 * "{:>15}").format
    print(show("net, batch", *names, *(f"/ {name}" for name in others)))
    results = []
    for sizes, activation, batch in NETS:
        for batch_norm in (False, True):
            net = f"{'-'.join(map(str, sizes))} {activation}{' BN' if batch_norm else ''}, {batch}"
            steps = contenders(sizes, activation, batch, batch_norm)
            check_equal(net, steps)
            times = time_steps(steps, 3.5 if arguments.quick else 18)
            ratios = {name: times["minidl"] / times[name] for name in others if name in times}
            results.append({"net": net, "microseconds": times, "ratios": ratios})
            print(show(net, *(f"{times[name]:.0f}" if name in times else "not installed" for name in names),
                       *(f"{ratios[name]:.2f}" if name in ratios else "not installed" for name in others)), flush=True)
    sweeps = time_sweeps(1 if arguments.quick else 3)
    print(f"\nA sweep of 52 short runs: {sweeps['serial']:.1f} s one after the other, {sweeps['two processes']:.1f} s on two "
          f"processes, {sweeps['serial'] / sweeps['two processes']:.2f} times as fast")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({**versions, "results": results, "sweeps": sweeps}, indent=1) + "\n")


if __name__ == "__main__":
    main()
