"""The page of the race, as it is served and as a file of its own with precomputed runs."""

import json
import math
import os
from pathlib import Path

from ..data import load
from ..experiments import processes, sweep
from ..files import replacing
from .race import BINS, NAMES, PRESETS, SETTINGS, Race

# What the sliders of the file select from: 6 x 3 x 3 x 3 x 2 = 324 settings.
GRID = {
    "lr": (0.03, 0.1, 0.3, 1.0, 3.0, 10.0),
    "depth": (2, 4, 8),
    "scale": (0.1, 1.0, 5.0),
    "batch_size": (4, 60, 250),
    "activation": ("sigmoid", "relu"),
}
FIXED = {"width": 50, "weights": "he"}
STEPS = (0, 10, 20, 30, 40, 50, 60, 80, 100, 120, 140, 160, 180, 200)  # the points of a curve
MOMENTS = (1, 200)  # the steps after which the layers are shown
# Characters that neither JSON nor HTML has to escape. A number is two of them, a share one.
DIGITS = "".join(chr(c) for c in range(35, 127) if chr(c) not in "<\\")
RANGES = {"step": (0, 200), "accuracy": (0, 1), "loss": (-3, 6), "gradient": (-24, 12)}


def html(**config):
    """The page as bytes. config: what its script reads, in addition to names, bins and settings."""
    config |= {
        "names": NAMES,
        "bins": BINS,
        "settings": {name: vars(setting) for name, setting in SETTINGS.items()}
                    | config.get("settings", {}),
        "presets": {} if "runs" in config else PRESETS,  # a file has no lesson's exact settings
    }
    # "</script>" would end the script element, even within a string.
    text = json.dumps(config, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = Path(__file__).with_name("race.html").read_text(encoding="utf-8")
    nonce = os.urandom(12).hex()
    return page.replace("NONCE", nonce).replace("CONFIG", text).encode()


def write(path):
    """Train both networks at all settings of GRID, on all cores, and write a page that shows them.

    The page needs neither Python nor a network connection: nothing is trained in it, its sliders
    only select. Takes some minutes; raises OSError before the training if the path cannot be
    written.
    """
    with replacing(path) as file:
        with processes(os.cpu_count() or 1) as pool:
            runs = [run["text"] for run in sweep(GRID, record, pool).results]
        start = FIXED | {name: values[len(values) // 2] for name, values in GRID.items()}
        stops = GRID | {"speed": SETTINGS["speed"].stops}
        settings = {
            name: {**vars(setting), "stops": stops.get(name, ()),
                   "start": start.get(name, setting.start), "live": name == "speed"}
            for name, setting in SETTINGS.items()
        }
        about = (f"Computed beforehand by minidl: {len(runs)} settings, {STEPS[-1]} steps each, on "
                 "drawn digits, seed 0, 50 units a layer, He's initial weights. The sliders only "
                 f"select. Layers are those of steps {MOMENTS[0]} and {MOMENTS[1]}.")
        file.write(html(settings=settings, runs=runs, grid=GRID, steps=STEPS, moments=MOMENTS,
                        digits=DIGITS, ranges=RANGES, about=about))


def record(**settings):
    """The job of the sweep: a race of STEPS[-1] steps as {"text": characters}, see `encoded`."""
    race, insides = Race(load("digits"), FIXED | settings, every=10), []
    for step in range(1, STEPS[-1] + 1):
        race.step(look=step in MOMENTS)
        if step in MOMENTS:
            insides.append([net.inside for net in race.nets])
    return {"text": "".join(encoded(net, [inside[i] for inside in insides], settings)
                            for i, net in enumerate(race.nets))}


def encoded(net, insides, settings):
    """A Contestant as text, from which the page's script reads its curves and layers.

    In this order: the step at which it died, the points at STEPS, and for each moment the
    histograms, gradients and update ratios. What a dead network did not reach is None or 0.
    """
    points = {point[0]: point for point in net.points}
    text = number("step", net.dead and net.dead["step"])
    for step in STEPS:
        _, _, accuracy, _, loss = points.get(step, [None] * 5)
        text += number("accuracy", accuracy) + number("loss", loss, log=True)
    bins = BINS + (settings["activation"] == "relu")
    for inside in insides:
        for shares in inside["activations"] or [[0] * bins] * settings["depth"]:
            text += "".join(DIGITS[round(share / 100 * (len(DIGITS) - 1))] for share in shares)
        for name in ("gradients", "ratios"):
            for value in inside[name] or [0.0] * (settings["depth"] + 1):
                text += number("gradient", value, log=True)
    return text


def number(kind, value, log=False):
    """Two characters that encode a number in its range of RANGES.

    log: encode its power of ten, with 0 as the lowest. None and NaN get the last code.
    """
    low, high = RANGES[kind]
    most = len(DIGITS) ** 2 - 2
    if value is None or math.isnan(value):
        n = most + 1
    else:
        value = (math.log10(value) if value > 0 else low) if log else value
        n = round(most * (min(max(value, low), high) - low) / (high - low))
    return DIGITS[n // len(DIGITS)] + DIGITS[n % len(DIGITS)]
