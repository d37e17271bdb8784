"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one file.

Weights and buffers, the optimizer's state and learning rate, every random generator in the model, and the
number of epochs done. Settings and callbacks are not in it: the program that resumes builds the model as before.
"""

import json

import numpy as np

from . import files


def save_checkpoint(path, model, optimizer, epochs):
    """Write the state of a run after so many epochs to a .npz or .safetensors file, whole or not at all."""
    state = {f"model.{name}": array for name, array in model.state_dict().items()}
    state |= {f"optimizer.{name}": array for name, array in optimizer.state_dict().items()}
    state |= {f"random.{name}": _encoded(rng.bit_generator.state) for name, rng in _generators(model).items()}
    if not callable(optimizer.lr):  # a schedule is a setting; a number may have been changed on the way
        state["lr"] = np.array(optimizer.lr, np.float64)
    files.save(path, state | {"epochs": np.array(epochs)})


def load_checkpoint(path, model, optimizer):
    """Take over a saved state; gives the number of epochs done, for fit(initial_epoch=...).

    model: built, with the layers it had. optimizer: of the same kind; it is given the model's parameters if it has none.
    Raises ValueError that names the file for a damaged one, or one of another model or optimizer; nothing is changed then.
    """
    state = files.load(path)
    model_state, optimizer_state, random = ({name.removeprefix(kind): array for name, array in state.items()
                                             if name.startswith(kind)} for kind in ("model.", "optimizer.", "random."))
    if optimizer.parameters is None:
        optimizer.attach(model.parameters())
    before, generators = optimizer.state_dict(), _generators(model)
    try:
        if "epochs" not in state or ("lr" in state) == callable(optimizer.lr):
            raise ValueError("it is no checkpoint of such a run: epochs are missing, or lr is a schedule in one of them")
        if different := random.keys() ^ generators.keys():
            raise ValueError(f"not in both, file and model, are the random generators {', '.join(sorted(different))}; a "
                             "Dropout outside a Sequential needs one of its own, rng=np.random.default_rng(seed)")
        epochs, lr, decoded = int(state["epochs"]), float(state.get("lr", 0)), {n: _decoded(a) for n, a in random.items()}
        for name, rng in generators.items():
            type(rng.bit_generator)().state = decoded[name]  # complains about a state that is none
        optimizer.load_state_dict(optimizer_state)
        model.load_state_dict(model_state)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        optimizer.load_state_dict(before)
        raise ValueError(f"{path}: {error}") from None
    for name, rng in generators.items():
        rng.bit_generator.state = decoded[name]
    if "lr" in state:
        optimizer.lr = lr
    return epochs


def _generators(model):
    """{dotted name: Generator} of all random generators in a model, each once."""
    found = {}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, np.random.Generator) and value not in found.values():
                found[f"{path}.{key}".strip(".")] = value
    return found


def _encoded(state):
    """A generator's state, which holds integers of 128 bits, as an array of bytes."""
    return np.frombuffer(json.dumps(state, default=np.ndarray.tolist).encode(), np.uint8)


def _decoded(array):
    return json.loads(array.astype(np.uint8).tobytes().decode())
