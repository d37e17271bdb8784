"""Measure the offline digits: how hard they are, and how near to real handwriting.

    python datasets/measure_digits.py                   # the offline digits alone
    python datasets/measure_digits.py --real FOLDER     # beside MNIST, whose IDX files are in FOLDER

FOLDER holds MNIST's four files, or any one pair of images and labels, which is split 80/20, always alike.
Figures in brackets are the lowest and the highest of five seeds. The exit code is 1 when a figure leaves the bounds
that this project sets for its digits. The datasheet, README.md, shows what this script prints.
"""

import argparse
import os
import platform
from functools import partial
from pathlib import Path
from time import perf_counter

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # set before NumPy loads: small products are fastest on one thread

import numpy as np

import minidl
from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Sequential,
    data,
    experiments,
    initializers,
    optim,
    schedules,
)

NEAREST, SOFTMAX, NETWORK = "nearest class mean", "softmax regression", "784-256-256-10, ReLU, BatchNorm"
FEWER, TRANSFER = "the network, 4,000 training images", "the network, tested on the other set"
STEPS, RATE_3, RATE_6 = "steps to 85 %, 3 layers", "largest rate that works, 3 layers", "largest rate that works, 6 layers"

BOUNDS = {  # (figure, data set): the lowest and the highest mean over seeds
    (NEAREST, "digits"): (0, 0.85),
    (SOFTMAX, "digits"): (0.86, 0.94),
    (NETWORK, "digits"): (0.97, 0.993),
    (TRANSFER, "digits"): (0.8, 1),  # trained on the digits, tested on real ones
    (TRANSFER, "real"): (0.8, 1),
}
LARGEST_DIFFERENCE = 2  # an effect has "the same size" on both sets if neither median is more than this times the other

RATES = 10 ** np.arange(-1.5, 1.51, 0.25)  # lesson 8's: 13 learning rates from 0.03 to 32


def pixel_statistics(x):
    """{name: text} of images x (n, 784) in [0, 1]."""
    shares = {"not zero": x > 0, "nearly full ink, 250 to 255": x > 249.5 / 255, "exactly 255": x == 1}
    return {"mean": f"{x.mean(dtype=float):.3f}", "standard deviation": f"{x.std(dtype=float):.3f}",
            **{f"share that is {name}": f"{100 * chosen.mean():.1f} %" for name, chosen in shares.items()}}


def nearest_mean(train, test):
    """Accuracy of giving each test image the digit whose mean training image is nearest."""
    (x, y), (x_test, y_test) = train, test
    means = np.stack([x[y == digit].mean(axis=0) for digit in range(10)])
    distances = (means ** 2).sum(axis=1) - 2 * x_test @ means.T  # squared, without a part that is the same for all ten
    return (distances.argmin(axis=1) == y_test).mean()


def network(seed, hidden, activation="relu", kernel_initializer="he_normal", batch_norm=True):
    """A classifier with hidden layers of these sizes; with none of them it is softmax regression."""
    layers = []
    for units in hidden:
        layers.append(Dense(units, kernel_initializer=kernel_initializer))
        if batch_norm:
            layers.append(BatchNorm())
        layers.append(Activation(activation))
    return Sequential([*layers, Dense(10, kernel_initializer=kernel_initializer)], seed=seed)


def train_and_test(seed, hidden, train, tests, epochs):
    """Train a network; for each of the tests, which images it reads rightly (n,). All pixels are normalised alike."""
    (x, y), batch_size = train, 64
    scale = data.standardization(x, axis=None)
    rate = schedules.CosineDecay(0.003, steps=epochs * -(-len(x) // batch_size))
    model = network(seed, hidden).compile(optim.Adam(lr=rate))
    model.fit(scale(x), y, batch_size=batch_size, epochs=epochs, verbose=0)
    return {f"test {i}": model.predict(scale(x)).argmax(axis=1) == y for i, (x, y) in enumerate(tests)}


def pair(hidden, activation, kernel_initializer):
    """Builders of a network with and without BatchNorm."""
    build = partial(network, hidden=hidden, activation=activation, kernel_initializer=kernel_initializer)
    return {"with": partial(build, batch_norm=True), "without": partial(build, batch_norm=False)}


def steps_ratio(dataset, seeds, steps=1500):
    """Lesson 7: by how much BatchNorm divides the steps to 85 % accuracy, one number per seed.

    A run that does not get there counts as having needed all steps.
    """
    result = experiments.compare(pair([100] * 3, "sigmoid", initializers.normal(0.1)), dataset, lr=0.5, steps=steps,
                                 batch_size=60, seeds=seeds, eval_steps=range(0, steps + 1, 10))
    with_bn, without = (np.minimum(result.steps_to(name, 0.85), steps) for name in ("with", "without"))
    return without / with_bn


def rate_ratio(depth, dataset, seeds, steps=120):
    """Lesson 8: by how much BatchNorm multiplies the largest rate with a final loss below 0.7, one number per seed.

    Where no rate gets there, the smallest one counts.
    """
    result = experiments.lr_range(pair([64] * depth, "relu", "he_normal"), dataset, RATES, steps=steps, batch_size=64,
                                  seeds=seeds)
    with_bn, without = (np.maximum(result.largest(name, below=0.7), RATES[0]) for name in ("with", "without"))
    return with_bn / without


def percent(values):
    """Numbers over seeds as text: the mean, with the lowest and the highest."""
    text = f"{100 * np.mean(values):.1f} %"
    return text if len(values) == 1 else f"{text} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def times(values):
    """Numbers over seeds as text: the median, with the lowest and the highest."""
    return f"{np.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def print_row(name, cells):
    """One line of a table, at once: the whole takes minutes."""
    print(f"{name:42}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def measure(sets, seeds=range(5), epochs=10, steps=1500, rate_steps=120):
    """Print the figures of {"digits": data, "real": data}, or of the digits alone, row by row.

    Gives the figures as {(name, data set): numbers over seeds}. steps, rate_steps: how long the lessons' effects are trained.
    """
    figures = {}

    def report(name, row, text=percent):
        figures.update({(name, column): values for column, values in row.items()})
        print_row(name, map(text, row.values()))

    def right(train, *tests, hidden=(256, 256)):
        """For each of the tests, which images are read rightly: (seeds, n)."""
        jobs = [dict(seed=seed, hidden=hidden, train=train, tests=tests, epochs=epochs) for seed in seeds]
        results = experiments.sweep(jobs, train_and_test).results
        return [np.stack([result[name] for result in results]) for name in results[0]]

    for name, (train, test) in sets.items():
        print(f"{name}: {len(train[0])} training and {len(test[0])} test images")
    whole = {name: [np.concatenate(parts) for parts in zip(*both)] for name, both in sets.items()}
    print()
    print_row("all pixels, scaled to 0..1", sets)
    for texts in zip(*(pixel_statistics(x).items() for x, _ in whole.values())):
        print_row(texts[0][0], [text for _, text in texts])

    print()
    print_row(f"accuracy on test images, {epochs} epochs", sets)
    report(NEAREST, {name: [nearest_mean(*both)] for name, both in sets.items()})
    report(SOFTMAX, {name: right(*both, hidden=())[0].mean(axis=1) for name, both in sets.items()})
    # The digits' network meets all the real images there are; the real images' network meets the digits' test images.
    others = {"digits": [whole["real"]], "real": [sets["digits"][1]]} if "real" in sets else {"digits": []}
    runs = {name: right(train, test, *others[name]) for name, (train, test) in sets.items()}
    report(NETWORK, {name: own.mean(axis=1) for name, (own, *_) in runs.items()})
    report(FEWER, {name: right([part[:4000] for part in train], test)[0].mean(axis=1) for name, (train, test) in sets.items()})
    if "real" in sets:
        report(TRANSFER, {name: other.mean(axis=1) for name, (_, other) in runs.items()})
        for digit in range(10):
            print_row(f"    misread there, of all {digit}s", [percent([1 - other[:, others[name][0][1] == digit].mean()])
                                                         for name, (_, other) in runs.items()])

    print()
    print_row("with BatchNorm, by how much better", sets)
    report(STEPS, {name: steps_ratio(both, seeds, steps) for name, both in sets.items()}, times)
    for name, depth in ((RATE_3, 3), (RATE_6, 6)):
        report(name, {column: rate_ratio(depth, both, seeds, rate_steps) for column, both in sets.items()}, times)
    return figures


def check(figures):
    """Print PASS or FAIL for each bound whose figure there is; True if none failed."""
    lines = [(f"{name}, {column}", np.mean(figures[name, column]), *bounds)
             for (name, column), bounds in BOUNDS.items() if (name, column) in figures]
    for name in (STEPS, RATE_3, RATE_6):
        if (name, "real") in figures:
            quotient = np.median(figures[name, "digits"]) / np.median(figures[name, "real"])
            lines.append((f"{name}, digits / real", quotient, 1 / LARGEST_DIFFERENCE, LARGEST_DIFFERENCE))
    print()
    for name, value, low, high in lines:
        print(f"CHECK {name}: {value:.3f}, required {low:.3g} to {high:.3g}, {'PASS' if low <= value <= high else 'FAIL'}")
    return all(low <= value <= high for _, value, low, high in lines)


def main():
    """Read the command line, measure, check."""
    parser = argparse.ArgumentParser(description="Measure the offline digits, alone or beside real ones.")
    parser.add_argument("--real", metavar="FOLDER", help="a folder with MNIST's IDX files")
    args = parser.parse_args()
    start = perf_counter()
    try:
        sets = {"digits": data.load("digits")}
        if args.real is not None:
            found, _ = data.find("mnist", args.real)
            if not found or Path(args.real).resolve() not in [found.path.resolve(), *found.path.resolve().parents]:
                raise FileNotFoundError(f"{args.real} has no files of mnist")
            sets["real"] = data.load("mnist", args.real)
    except (OSError, ValueError) as error:
        raise SystemExit(f"no data: {error}") from None
    passed = check(measure(sets))
    print(f"\nPython {platform.python_version()}, NumPy {np.__version__}, minidl {minidl.__version__}, "
          f"{perf_counter() - start:.0f} s")
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
