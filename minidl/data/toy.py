"""Points in the plane that no straight line separates, drawn from a seed: data to start with."""

import numpy as np

SAMPLES = 300  # for training, and as many for the test


def spiral(n, rng):
    """Three arms that wind around the origin, a class each."""
    y = np.arange(n) % 3
    radius = rng.uniform(0.05, 1, n)
    angle = 4 * radius + 2 * np.pi / 3 * y + rng.normal(0, 0.15, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1), y


def moons(n, rng):
    """Two half circles, each with an end inside the other."""
    y = np.arange(n) % 2
    angle = rng.uniform(0, np.pi, n)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x = np.where(y[:, None] == 0, upper, [1, 0.5] - upper)
    return x + rng.normal(0, 0.15, x.shape), y


def xor(n, rng):
    """Four clouds in the corners of a square, those of opposite corners of one class."""
    corner = np.arange(n) % 4
    signs = np.stack([corner % 2, corner // 2], axis=1)
    return 2 * signs - 1 + rng.normal(0, 0.35, (n, 2)), signs[:, 0] ^ signs[:, 1]


SETS = {"spiral": spiral, "moons": moons, "xor": xor}


def load(name, seed):
    """((x_train, y_train), (x_test, y_test)) of one of SETS: x float32 (300, 2), y int64."""
    rng = np.random.default_rng(seed)

    def drawn():
        x, y = SETS[name](SAMPLES, rng)
        order = rng.permutation(SAMPLES)
        return x[order].astype(np.float32), y[order].astype(np.int64)

    return drawn(), drawn()
