"""What keeps a comparison honest: grids with the best inside, differences with their error.

Settings are chosen on images that are held out of the training set, never on the test set:
`data.split(x_train, y_train)` has the shape of the data that `run`, `compare` and `lr_range` take.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np


def best(grid, scores, name="learning rate"):
    """The value of the grid with the highest score; of equal ones, the middle.

    A best value at the edge of its grid may not be the best there is, so a line on stderr says on
    which side to go on. grid: at least three numbers in rising order. scores: one for each, or
    (seeds, len(grid)), whose mean over the seeds counts; NaN, as after a divergence, counts as the
    lowest. name: of the setting, for the line. Raises ValueError for anything else.
    """
    values = np.array([*grid], float)
    if len(values) < 3 or not np.all(np.diff(values) > 0):
        raise ValueError("a grid is at least three numbers in rising order, so that one of them "
                         f"lies inside, got {[*grid]}")
    scores = np.atleast_2d(np.array(scores, float))
    if scores.ndim != 2 or scores.shape[1] != len(values):
        raise ValueError(f"scores must have one column for each of the {len(values)} values of the "
                         f"grid, (seeds, {len(values)}), got shape {scores.shape}")
    means = np.where(np.isnan(scores), -np.inf, scores).mean(axis=0)
    places = np.flatnonzero(means == means.max())
    place = int(places[len(places) // 2])
    if place in (0, len(values) - 1):
        print(f"{name}: the best, {values[place]:g}, lies at the edge of its grid, {values[0]:g} "
              f"to {values[-1]:g}: try {'larger' if place else 'smaller'} ones too",
              file=sys.stderr)
    return float(values[place])


@dataclass
class PairedDifference:
    """The mean of differences seed by seed, and its standard error.

    That is their standard deviation (with n - 1) divided by the square root of n, the number of
    pairs.
    """

    mean: float
    error: float
    n: int

    def __str__(self):
        return f"{self.mean:+.3g} (standard error {self.error:.2g}, {self.n} pairs)"


def paired_difference(one, two):
    """one - two, pair by pair: a PairedDifference, which prints as one would write it.

    Networks that share seeds share initial weights and batches. What a seed does to both of them
    cancels in the difference, so its error is smaller than that of either mean. one, two: a number
    for each seed, in the same order, all finite. Raises ValueError for fewer than two pairs.
    """
    one, two = np.array(one, float), np.array(two, float)
    if one.ndim != 1 or one.shape != two.shape or len(one) < 2:
        raise ValueError("a paired difference needs two lists of equally many numbers, at least "
                         f"two, one for each seed, got shapes {one.shape} and {two.shape}")
    differences = one - two
    if not np.isfinite(differences).all():
        raise ValueError("a run without a finite result has no difference: say what it counts as, "
                         f"for example guessing for a run that diverged, got {differences}")
    return PairedDifference(float(differences.mean()),
                            float(differences.std(ddof=1) / math.sqrt(len(one))), len(one))
