"""Which part is at fault: errors in the words of the person who wrote the model."""

import re
from contextlib import contextmanager

import numpy as np

from .parts import attributes, evaluation
from .tensor import Tensor, no_grad


@contextmanager
def instead_of_one(n, one=1):
    """Let a ValueError from a trial with one sample speak of n, as many as the caller gave.

    one: how many samples it is tried with, if it is a batch of them.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(rf"got \({one},", f"got ({n},", str(error))) from error


def explain_error(module, error, inputs, constants):
    """Raise a better error for inputs of a wrong kind; let an error of a dtype name the culprit."""
    if "training" in constants and "unexpected keyword" in str(error):
        raise TypeError(f"{module.label} takes no training=...: write model.eval() before the "
                        "call, or model.train(); fit, evaluate and predict switch by "
                        "themselves") from error
    if type(module).__module__.startswith("minidl."):
        if len(inputs) != 1:
            raise TypeError(f"{module.label} takes one input, got {len(inputs)}: join them first, "
                            "F.concatenate([a, b], axis=1) for example") from error
        if not isinstance(inputs[0], (np.ndarray, Tensor)):
            kind = type(inputs[0]).__name__
            raise TypeError(f"{module.label} takes an array or a Tensor, got {kind}: " + (
                "it stands first in a Sequential; for layers in another order subclass Module and "
                "write forward" if kind == "Input" else "use np.asarray(x, np.float32)")
                ) from error
    dtype = getattr(error, "dtype", None)
    if dtype and not any(getattr(x, "dtype", None) == dtype for x in inputs):
        found = [name for name, value in _weights_and_arrays(module) if value.dtype == dtype]
        where = (f"{', '.join(found[:3])} in {type(module).__name__} is {dtype}" if found else
                 f"{_first_with(module, dtype, inputs)} turns its input into {dtype}")
        error.dtype = None  # said once, by the innermost part that holds the culprit
        error.args = (f"{error.args[0].partition(':')[0]}: {where}. Make it float32, as "
                      "Parameter(np.ones(1, np.float32)) or with a plain Python number "
                      f"(math.sqrt(2), not np.sqrt(2)); or take all of the model to {dtype} by "
                      f"model.astype(np.{dtype})",)


def _weights_and_arrays(module):
    for path, part in module.named_modules():
        for key, value in attributes(part):
            if isinstance(value, np.ndarray) or isinstance(value, Tensor) and value.op is None:
                yield f"{path}.{key}".strip("."), value


def _first_with(module, dtype, inputs):
    """The part that first turns others into this dtype; from one more run, in evaluation mode."""
    found = []

    def look(part, inputs, y):
        before, after = [getattr(x, "dtype", None) for x in inputs], getattr(y, "dtype", None)
        if after == dtype and dtype not in before:
            found.append(part.label)

    handles = [part.register_forward_hook(look) for part in module.modules() if part is not module]
    try:
        with evaluation(module), no_grad():
            module.forward(*inputs)
    except TypeError:  # the one that is being explained
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else f"{type(module).__name__}.forward"
