"""What a module is made of: the values of its attributes, and the modes of its parts."""

from collections import deque
from contextlib import contextmanager

import numpy as np

from .tensor import Tensor

OPENED = (list, tuple, dict, deque)  # containers whose contents count as attributes


def attributes(module):
    """Yield (name, value) for all attributes, in order of assignment; looks into OPENED."""
    none = type(module).not_parts
    stack = [(key, value) for key, value in reversed(vars(module).items()) if key not in none]
    opened = {}  # by id, and kept alive meanwhile: a list that holds itself is opened once
    while stack:
        key, value = stack.pop()
        if isinstance(value, OPENED) or isinstance(value, np.ndarray) and value.dtype == object:
            if id(value) not in opened:
                opened[id(value)] = value
                inside = value.ravel() if isinstance(value, np.ndarray) else value
                pairs = value.items() if isinstance(value, dict) else enumerate(inside)
                stack += [(f"{key}.{inner}", part) for inner, part in reversed(list(pairs))]
        elif isinstance(value, (set, frozenset)) and any(
                isinstance(part, Tensor) or hasattr(part, "named_modules") for part in value):
            raise ValueError(f"{type(module).__name__}.{key} is a set of parts, and a set has no "
                             "order in which to train and to save them: use a list")
        else:
            yield key, value


@contextmanager
def evaluation(module):
    """Evaluation mode inside the block; afterwards every part is back in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            vars(part)["training"] = mode


def converted(x, dtype, layer):
    """An array in the dtype of the layer's weights; TypeError for Tensors and non-numbers."""
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{layer.label} takes numbers, got an array of dtype {x.dtype}")
    if isinstance(x, Tensor):
        remedy = f", or model.astype(np.{x.dtype})" if x.dtype.kind == "f" else ""
        error = TypeError(f"{layer.label} holds {dtype} weights but got a {x.dtype} Tensor: use "
                          f"x.astype(np.{dtype}){remedy}")
        error.dtype = x.dtype  # Module.__call__ looks for the part that made it
        raise error
    return x.astype(dtype)
