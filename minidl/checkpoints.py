"""Checkpoints: everything that a run needs to continue as if it had never stopped, in one file.

Weights and buffers, a loss's own Parameters, the optimizer's state and learning rate, every random
generator in the model, what the callbacks want to keep (`Callback.state_dict`), and the number of
epochs done. Settings are not in it: the program that resumes builds model, optimizer and callbacks
as before.
"""

import json
import math

import numpy as np

from . import files
from .settings import is_whole
from .tensor import mark_changed
from .training import History

# bytes of a generator's state; MT19937, the largest, has 624 numbers of 10 digits
MOST_JSON = 20_000
# The largest value of each number in a state; beyond the first two, NumPy's generators would read
# outside of their memory.
LIMITS = {"pos": 624, "buffer_pos": 4, "has_uint32": 1, "uinteger": 2 ** 32 - 1}


def save_checkpoint(path, model, optimizer, epochs):
    """Write a run's state after so many epochs to a .npz or .safetensors file, whole or not at all.

    During fit, a callback that calls this should be the last of all: what it saves is what the
    others have already done.
    """
    if not is_whole(epochs) or epochs < 0:
        raise ValueError(f"epochs is how many are done, a whole number from 0 up, got {epochs!r}")
    if optimizer.parameters is None:  # before the first step
        optimizer.attach(model.parameters())
    state = {f"model.{name}": array for name, array in model.state_dict().items()}
    state |= {f"optimizer.{name}": array for name, array in optimizer.state_dict().items()}
    state |= {f"other.{i}": p.data for i, p in enumerate(_others(model, optimizer))}
    state |= {f"random.{name}": _encoded(bits.state) for name, bits in _generators(model).items()}
    history = getattr(model, "history", None)
    if isinstance(history, History):
        state |= {f"callback.{name}": value for name, value in history.callback_states().items()}
    # a schedule is a setting; a number may have been changed during the run
    if not callable(optimizer.lr):
        state["lr"] = np.array(optimizer.lr, np.float64)
    files.save(path, state | {"epochs": np.array(epochs)})


def load_checkpoint(path, model, optimizer):
    """Take over a saved state; returns the number of epochs done, for fit(initial_epoch=...).

    model: built, with the layers it had. optimizer: of the same kind; it is given the model's
    parameters if it has none. The next fit with that initial_epoch hands the callbacks' states to
    callbacks of the same classes. Raises ValueError that names the file for a damaged one, or one
    of another model or optimizer; nothing is changed then.
    """
    state = files.load(path)
    model_state, optimizer_state, other_values, random, callback_states = (
        {name.removeprefix(kind): array for name, array in state.items() if name.startswith(kind)}
        for kind in ("model.", "optimizer.", "other.", "random.", "callback."))
    if optimizer.parameters is None:
        optimizer.attach(model.parameters())
    before, generators = optimizer.state_dict(), _generators(model)
    others = {str(i): p for i, p in enumerate(_others(model, optimizer))}
    try:
        epochs, lr = _checked(state, model_state, optimizer)
        _check_counts(optimizer_state)
        if files.shapes(other_values) != files.shapes(others):
            raise ValueError("the optimizer trains other Parameters outside of the model, those of "
                             "a loss for example, than when this was saved: "
                             f"{files.shapes(others)} here, "
                             f"{files.clean(files.shapes(other_values), 150)} in the file")
        if different := random.keys() ^ generators.keys():
            raise ValueError("not in both, file and model, are the random generators "
                             f"{files.listed(sorted(different))}; a Dropout outside a Sequential "
                             "needs one of its own, rng=np.random.default_rng(seed)")
        decoded = {name: _decoded(name, random[name], bits) for name, bits in generators.items()}
        optimizer.load_state_dict(optimizer_state)
        model.load_state_dict(model_state)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        optimizer.load_state_dict(before)
        raise ValueError(f"{path}: {_shortened(error)}") from None
    for name, p in others.items():
        p.data[...] = other_values[name]
    mark_changed(others.values())
    for name, generator in generators.items():
        generator.state = decoded[name]
    if lr is not None:
        optimizer.lr = lr
    model.history = history = History()
    history.states, history.resumed = callback_states, True
    return epochs


def _checked(state, model_state, optimizer):
    """(epochs, lr) of a checkpoint; lr is None where it is a schedule.

    ValueError for a file that is no checkpoint.
    """
    if "epochs" not in state and not model_state:
        raise ValueError("it is no checkpoint, which holds a whole run: model.load_weights(path) "
                         "reads weights alone")
    if "epochs" not in state:
        raise ValueError("it is no checkpoint, or not a whole one: the number of epochs is missing")
    if ("lr" in state) == callable(optimizer.lr):
        found, here = ("a number", "a schedule") if "lr" in state else ("a schedule", "a number")
        raise ValueError(f"lr was {found} when this was saved, but is {here} now: compile with the "
                         "optimizer it had")
    epochs, lr = state["epochs"], state.get("lr")
    if epochs.shape != () or epochs.dtype.kind not in "iu" or epochs < 0:
        raise ValueError("epochs should be one whole number from 0 up, not "
                         f"{files.clean(epochs, 80)}")
    if lr is not None and (lr.shape != () or not 0 <= float(lr) < math.inf):
        raise ValueError(f"lr should be one number from 0 up, not {files.clean(lr, 80)}")
    return int(epochs), lr if lr is None else float(lr)


def _check_counts(state):
    """ValueError unless the optimizer's counts are whole numbers from 0 up: it divides by them."""
    for name, counts in state.items():  # in a group of parameters its name is 1.steps
        counted = name.rpartition(".")[2] in ("steps", "updates")
        if counted and (counts.dtype.kind not in "iu" or (counts < 0).any()):
            raise ValueError(f"the optimizer's {name} should be whole numbers from 0 up")


def _shortened(error):
    """The error's text, at most 30 lines, without control characters, which names may hold."""
    lines = str(error).splitlines()
    lines[29:-1] = ["  ..."] if len(lines) > 30 else lines[29:-1]
    return "\n".join(files.clean(line) for line in lines)


def _others(model, optimizer):
    """What an optimizer trains beside a model: a loss may have Parameters too."""
    own = {id(p) for p in model.parameters()}
    return [p for p in optimizer.parameters if id(p) not in own]


def _generators(model):
    """{dotted name: bit generator} of all random generators in a model, each once."""
    found = {}
    for name, generator in model.named_generators():
        if not isinstance(generator, (np.random.Generator, np.random.BitGenerator)):
            raise ValueError(f"a checkpoint cannot hold the random generator {name}, a "
                             f"{type(generator).__name__}: use np.random.default_rng(seed), which "
                             "has all its state in one place")
        bits = getattr(generator, "bit_generator", generator)
        if not any(bits is other for other in found.values()):
            found[name] = bits
    return found


def _encoded(state):
    """A generator's state, which holds integers of 128 bits, as an array of bytes."""
    return np.frombuffer(json.dumps(state, default=np.ndarray.tolist).encode(), np.uint8)


def _decoded(name, array, generator):
    """The state in such an array; ValueError unless this generator can take it."""
    with files.blaming(f"the state of the random generator {name}"):
        if array.dtype != np.uint8 or array.ndim != 1 or len(array) > MOST_JSON:
            raise ValueError(f"it should be at most {MOST_JSON:,} bytes of text")
        state = json.loads(array.tobytes().decode())
        _check_state(state, generator.state)
        type(generator)().state = state  # complains about an invalid state
    return state


def _check_state(found, own, key="state"):
    """ValueError unless found has the form of own, a generator's state, with numbers in range.

    NumPy takes over a state without a check: a place outside of its buffers would end this process,
    or read its memory.
    """
    if isinstance(own, dict):
        if not isinstance(found, dict) or set(found) != set(own):
            raise ValueError(f"{key} should hold {', '.join(own)}")
        for inner, value in own.items():
            _check_state(found[inner], value, inner)
    elif isinstance(own, np.ndarray):
        if not isinstance(found, list) or len(found) != len(own):
            raise ValueError(f"{key} should hold {len(own)} numbers")
        for number in found:
            _check_number(number, key, np.iinfo(own.dtype).max)
    elif isinstance(own, str):
        if found != own:
            raise ValueError(f"{key} should be {own}, as in the model, not {files.quoted(found)}")
    else:
        _check_number(found, key, LIMITS.get(key, 2 ** 128 - 1))
        if key == "inc" and found % 2 == 0:
            raise ValueError("inc should be odd: with an even one PCG64 can repeat one number for "
                             "ever")


def _check_number(number, key, most):
    if type(number) is not int or not 0 <= number <= most:
        raise ValueError(f"{key} should be a whole number from 0 to {most}, not "
                         f"{files.quoted(number)}")
