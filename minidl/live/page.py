"""The page of the race, as it is served and as a file of its own with precomputed runs."""

import json
import math
import os
from itertools import product
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
STEPS = (0, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100, 120, 150, 175, 200)  # the points of a curve
MOMENTS = (1, 200)  # the steps after which the layers are shown
# Characters that neither JSON nor HTML has to escape. A number is two of them, a share one.
DIGITS = "".join(chr(c) for c in range(35, 127) if chr(c) not in "&<\\")
RANGES = {"accuracy": (0, 1), "loss": (-3, 6), "gradient": (-24, 12), "share": (0, 100)}


def html(**config):
    """The page as bytes. config: what its script finds there, the settings' table among it."""
    config |= {
        "names": NAMES,
        "bins": BINS,
        "settings": {name: vars(setting) for name, setting in SETTINGS.items()}
                    | config.get("settings", {}),
        "presets": PRESETS,
    }
    # In a script element "</script>" would end it, wherever it stands.
    text = json.dumps(config, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = Path(__file__).with_name("race.html").read_text(encoding="utf-8")
    nonce = os.urandom(12).hex()
    return page.replace("NONCE", nonce).replace("CONFIG", text).encode()


def write(path):
    """Train both networks at all settings of GRID, on all cores, and write a page that shows them.

    The page needs no Python and no network. Takes a minute or two.
    """
    with replacing(path) as file:  # a path that cannot be written is found before the training
        with processes(os.cpu_count() or 1) as pool:
            runs = sweep(GRID, record, pool).results
        settings = {
            name: {**vars(setting), "stops": GRID.get(name, ()), "start": setting.start}
            for name, setting in SETTINGS.items()
        }
        file.write(html(settings=settings, runs=[run["text"] for run in runs],
                        grid=GRID, fixed=FIXED, steps=STEPS, moments=MOMENTS, digits=DIGITS,
                        ranges=RANGES))


def record(**settings):
    """The job of the sweep: a race of 200 steps as {"text": characters}, see `encoded`."""
    race, layers = Race(load("digits"), FIXED | settings), []
    for step in range(1, STEPS[-1] + 1):
        race.step(look=step in MOMENTS)
        if step in MOMENTS:
            layers.append([net["inside"] for net in map(vars, race.nets)])
    return {"text": "".join(encoded(net, [moment[i] for moment in layers], settings["depth"])
                            for i, net in enumerate(race.nets))}


