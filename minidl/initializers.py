"""Initial weights: functions of (shape, rng) that return float32 arrays.

A kernel has shape (inputs, units), that of a convolution (size, size, channels, filters).
"""

import math
from functools import partial

import numpy as np

from .settings import as_number


def glorot_uniform(shape, rng):
    """U(-a, a) with a = sqrt(6 / (inputs + units)): Glorot and Bengio 2010, equation 16."""
    return _uniform(shape, rng, math.sqrt(6 / sum(_fans(shape))))


def glorot_normal(shape, rng):
    """N(0, s^2) with s = sqrt(2 / (inputs + units)): Glorot and Bengio 2010, equation 12."""
    return _normal(shape, rng, math.sqrt(2 / sum(_fans(shape))))


def he_uniform(shape, rng):
    """U(-a, a) with a = sqrt(6 / inputs): He et al. 2015, equation 10, in uniform form."""
    return _uniform(shape, rng, math.sqrt(6 / _fans(shape)[0]))


def he_normal(shape, rng):
    """N(0, s^2) with s = sqrt(2 / inputs): He et al. 2015, equation 10, for ReLU."""
    return _normal(shape, rng, math.sqrt(2 / _fans(shape)[0]))


def normal(std=0.05):
    """An initializer that draws from N(0, std^2)."""
    return partial(_normal, std=_std(std))


def constant(value):
    """An initializer that sets every weight to value."""
    return partial(_constant, value=_value(value))


def zeros(shape, rng=None):
    """Every weight 0."""
    return np.zeros(shape, np.float32)


def ones(shape, rng=None):
    """Every weight 1."""
    return np.ones(shape, np.float32)


_std = as_number("the standard deviation of initial weights is a number from 0 up, 0.05 for "
                 "example, got {!r}",
                 lambda x: 0 <= x < math.inf)
_value = as_number(
    "the value of constant initial weights is a finite number, got {!r}", math.isfinite)


def _fans(shape):
    """How many inputs an output has, and how many outputs an input: over a whole window."""
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def _normal(shape, rng, std):
    return rng.normal(0, std, shape).astype(np.float32)


def _uniform(shape, rng, limit):
    return rng.uniform(-limit, limit, shape).astype(np.float32)


def _constant(shape, rng, value):
    return np.full(shape, value, np.float32)


INITIALIZERS = {
    "glorot_uniform": glorot_uniform,
    "glorot_normal": glorot_normal,
    "he_uniform": he_uniform,
    "he_normal": he_normal,
    "normal": normal(),
    "zeros": zeros,
    "ones": ones,
}
