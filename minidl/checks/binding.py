"""What fit ensures before it trains: that each parameter that should be trained will be."""

from inspect import getclosurevars, isfunction
from types import ModuleType

import numpy as np

from ..convolution import AveragePool2D, GlobalAveragePool2D, MaxPool2D
from ..layers import Activation, Dense, Flatten
from ..module import Module, Parameter
from ..normalization import LayerNorm
from ..parts import attributes
from ..tensor import Tensor

MODELESS = (Dense, Activation, Flatten, LayerNorm, AveragePool2D, GlobalAveragePool2D,
            MaxPool2D)  # the same in training and evaluation


def check(model):
    """ValueError for what fit would silently undo or leave untrained, whatever the optimizer.

    A part in evaluation mode in a model that is not, since fit switches all of it to training mode;
    and Parameters and layers in plain objects and functions, where no model looks for its parts.
    """
    if model.training:
        asleep = [part for part in model.modules() if not part.training]
        model.train()  # a method of one's own may leave a part asleep on purpose
        for part in asleep:
            if part.training and not any(part.children()) and not isinstance(part, MODELESS):
                for each in asleep:
                    vars(each)["training"] = False
                raise ValueError(f"{part.label} is in evaluation mode and the model is not; fit "
                                 "switches all of it to training mode. To keep running statistics "
                                 "as they are, set frozen_statistics = True (or trainable = False, "
                                 "which freezes gamma and beta too) on the BatchNorm; else call "
                                 "model.train() first")
    if hidden := _overlooked(model):
        raise ValueError(f"{', '.join(hidden)} would not be trained: a model finds its layers and "
                         "Parameters among its own attributes, in lists and dicts of them, and in "
                         "Modules. Make the class that holds them a Module; or freeze what should "
                         "stay as it is, by its trainable = False")


def bind(optimizer, model, loss):
    """Give the parameters of model and loss to an optimizer that has none.

    ValueError if an optimizer that has some lacks any of these, or has others: then something would
    not be trained. Frozen parameters may be missing: whoever trains a part on purpose freezes the
    rest.
    """
    parameters = to_train(model, loss)
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError(_nothing_to_train(model, list(parameters)))
    if optimizer.parameters is None:
        optimizer.attach(parameters.values())
    missing, lost, reshaped = _differences(optimizer, parameters)
    if optimizer is not model.trained_by and len(lost) == len(optimizer.parameters):
        raise ValueError("this optimizer already trains another model's parameters: each model "
                         "needs an optimizer of its own")
    faults = []
    if missing:
        faults.append(f"it does not train {', '.join(missing)}")
    if lost:
        shapes = ", ".join(str(p.shape) for p in lost)
        faults.append(f"the model no longer has {len(lost)} of its Parameters, of shape {shapes}")
    if reshaped:
        faults.append(f"it was given {', '.join(reshaped)} in another shape")
    if faults:
        raise ValueError(f"the optimizer does not fit the model: {'; '.join(faults)}. If the model "
                         "has changed, compile it again or give a new optimizer; if a part should "
                         "not be trained, freeze it first: layer.trainable = False, or "
                         "requires_grad_(False)")
    model.trained_by = optimizer


def trains(optimizer, model, loss):
    """Whether an optimizer holds what bind asks for; False while some weights are not made."""
    if optimizer.parameters is None or not all(part.built for part in model.modules()):
        return False
    return not any(_differences(optimizer, to_train(model, loss)))


def to_train(model, loss):
    """{name: Parameter} of the model, and of a loss that has some of its own."""
    of_loss = loss.named_parameters() if isinstance(loss, Module) else _inside(loss)
    parameters = dict(model.named_parameters())
    own = {id(p) for p in parameters.values()}
    more = {name: p for name, p in of_loss if isinstance(p, Parameter) and id(p) not in own}
    return parameters | {f"loss.{name}": p for name, p in more.items()}


def _differences(optimizer, parameters):
    """(names it does not hold, Parameters the model lacks, names in another shape)."""
    own, held = {id(p) for p in parameters.values()}, {id(p) for p in optimizer.parameters}
    states = zip(optimizer.parameters, *optimizer.state.values())
    grown = {id(p) for p, *arrays in states if any(a.shape != p.shape for a in arrays)}
    return ([name for name, p in parameters.items() if p.requires_grad and id(p) not in held],
            [p for p in optimizer.parameters if p.requires_grad and id(p) not in own],
            [name for name, p in parameters.items() if id(p) in grown])


def _nothing_to_train(model, parameters):
    if parameters:
        return (f"there is nothing to train, all parameters are frozen: {', '.join(parameters[:4])}"
                f"{' ...' if len(parameters) > 4 else '.'} Set trainable = True on the layers that "
                "should learn, or call requires_grad_()")
    arrays = [name for name, _ in model.named_buffers()]
    hint = (f"its arrays {', '.join(arrays)} are kept, but only a Parameter is trained: "
            "Parameter(array)" if arrays else
            "layers and Parameters are found among the attributes, so make them in __init__ and "
            "not in forward")
    return f"there is nothing to train, this {type(model).__name__} has no Parameters; {hint}"


def _overlooked(model):
    """Dotted names of Parameters, and of Modules that train, in plain objects and functions."""
    found = {id(part) for part in model.modules()}
    found |= {id(value) for part in model.modules() for _, value in attributes(part)}
    names = []
    for path, module in model.named_modules():
        for key, value in attributes(module):
            for name, part in _inside(value):
                trains = isinstance(part, Parameter) and part.requires_grad or (
                    isinstance(part, Module) and part.training and part.trainable)
                if trains and id(part) not in found:
                    names.append(f"{path}.{key}.{name}".strip("."))
    return names


def _inside(value):
    """(name, part) of what a plain object or a function holds, one level deep."""
    if isfunction(value):
        try:
            variables = getclosurevars(value)
        except ValueError:  # a variable has no value yet
            return []
        named = {**variables.globals, **variables.nonlocals}
        return [(name, part) for name, part in named.items() if isinstance(part, Parameter)]
    ours = type(value).__module__.startswith("minidl.")
    if ours or isinstance(value, (Module, Tensor, np.ndarray, type, ModuleType)):
        return []
    return [(name, each) for name, part in getattr(value, "__dict__", {}).items()
            for each in (part if isinstance(part, (list, tuple)) else [part])]
