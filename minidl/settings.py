"""Checks of settings: each returns the value to keep, or raises a ValueError that teaches."""

from numbers import Real

import numpy as np


def as_shape(shape):
    """A tuple from a tuple or number; None (not known yet) stays None. Else ValueError."""
    if shape is None:
        return None
    result = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not result or not all(is_whole(n) and n > 0 for n in result):
        got = f"an array of shape {shape.shape}" if hasattr(shape, "shape") else repr(shape)
        raise ValueError("a shape is whole numbers, 784 or (28, 28) for example, without the batch "
                         f"axis; got {got}")
    return tuple(map(int, result))


def as_flag(name):
    """A check for a setting that is True or False: a string such as "False" would count as true."""
    def checked(value):
        if not isinstance(value, (bool, np.bool_)) and not (is_whole(value) and value in (0, 1)):
            raise ValueError(f"{name} is True or False, got {value!r}")
        return bool(value)
    return checked


def as_rng(rng):
    """A Generator from one or from a seed; None stays None. ValueError for what is neither."""
    try:
        return None if rng is None else np.random.default_rng(rng)
    except (TypeError, ValueError):
        raise ValueError("rng is where random numbers come from, np.random.default_rng(0) or a "
                         f"seed such as 0, got {rng!r}") from None


def is_whole(n):
    """Whether n is an integer, of Python or NumPy; True and False are not."""
    return isinstance(n, (int, np.integer)) and not isinstance(n, (bool, np.bool_))


def is_number(x):
    """Whether x is a real number, of Python or NumPy; True and False are not."""
    return isinstance(x, Real) and not isinstance(x, bool)


def check_whole(name, value, least):
    """value as an int; ValueError if it is no whole number, or too small."""
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")
    return int(value)


def as_whole(name, least):
    """A check for a setting that is a whole number, at least least."""
    return lambda value: check_whole(name, value, least)


def as_number(text, fits):
    """A check for a number for which fits(number) holds; text says which, and {!r} what came."""
    def checked(value):
        if not is_number(value) or not fits(value):
            raise ValueError(text.format(value))
        return float(value)  # a NumPy float64 would turn float32 into float64
    return checked


def lookup(name, table, what):
    """table[name] for a string, name itself for a function or None; else an error with valid names.

    A class is none of these: it has to be called to make the function.
    """
    if isinstance(name, type):
        raise TypeError(f"{what} is a name or a function, got the class {name.__name__}")
    if name is None or callable(name):
        return name
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {name!r}; known are {', '.join(sorted(table))}")
    return table[name]
