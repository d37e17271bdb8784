"""A whole model in one file: its layers as a short text, its weights beside it, and no pickle.

The file is one of `files.py` (.npz or .safetensors) with all that `state_dict` holds, and under the
name "architecture" the layers with their settings: JSON, as an array of bytes. What the text says
of a shape is believed only where an array in the file has that shape, so that a small file cannot
ask for much memory.
"""

import json
import math

import numpy as np

from . import files
from .convolution import AveragePool2D, Conv2D, GlobalAveragePool2D, MaxPool2D
from .layers import ACTIVATIONS, Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm

KINDS = {  # the arguments that each layer is made with again
    Dense: ("units", "activation", "use_bias"),
    Activation: ("function",),
    BatchNorm: ("momentum", "eps", "affine", "fused", "ghost_batch_size"),
    LayerNorm: ("eps", "affine"),
    Dropout: ("rate",),
    Flatten: (),
    Conv2D: ("filters", "kernel_size", "stride", "padding", "activation", "use_bias"),
    MaxPool2D: ("size",),
    AveragePool2D: ("size",),
    GlobalAveragePool2D: ()}
TABLE = {kind.__name__: kind for kind in KINDS}
FLAGS = ("frozen_statistics", "estimated")  # what else a BatchNorm remembers beside its arrays
MOST_INPUTS = 2 ** 24  # numbers in one sample, more only if the file is larger
# numbers in all windows of a convolution, more only if the file is larger
MOST_IN_WINDOWS = 2 ** 26


def save(path, model, cls):
    """Write a model of the class cls, Sequential.

    Written are Dense, Activation by name, BatchNorm, LayerNorm, Dropout, Flatten, Conv2D, the
    poolings and Sequentials of them, with their names and weights, and what is frozen. Not written:
    optimizer, loss, metrics, hooks, seeds. ValueError for any other layer, before a file is
    touched.
    """
    if type(model) is not cls:
        raise ValueError(f"cannot save a whole {type(model).__name__}, only a plain "
                         f"{cls.__name__}; save_weights(path) writes the weights alone")
    state = model.state_dict()
    entries = _described(model, cls, set())
    _check_shapes(state, _planned(entries))
    text = {"layers": entries, "input_shape": model.input_shape,
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad]}
    architecture = np.frombuffer(json.dumps(text, allow_nan=False).encode(), np.uint8)
    files.save(path, {**state, "architecture": architecture})


def load(path, cls):
    """The Sequential, of class cls, that save wrote. ValueError for any other file."""
    state = files.load(path)
    if "architecture" not in state:
        raise ValueError(f"{path} holds no whole model, as model.save writes it; for weights alone "
                         "build the model and call model.load_weights(path)")
    with files.blaming(f"{path} is damaged, or no model that model.save wrote"):
        text = json.loads(state.pop("architecture").tobytes().decode())
        plan = _planned(text["layers"])
        _check_shapes(state, plan)
        for layer, _ in plan:
            layer.parameters()
        model = _assembled(text["layers"], iter(plan), cls)
        for dtype in {array.dtype for array in state.values() if array.dtype.kind == "f"}:
            model.astype(dtype)
        model.load_state_dict(state)
        parameters = dict(model.named_parameters())
        for name in text["frozen"]:
            parameters[name].requires_grad = False
        if text["input_shape"] is not None:
            size = sum(array.size for array in state.values())
            if math.prod(text["input_shape"]) > MOST_INPUTS + size:
                raise ValueError(f"samples of shape {text['input_shape']} do not belong to weights "
                                 "as small as these")
            _check_windows([layer for layer, _ in plan], text["input_shape"], size)
            model.build(text["input_shape"])  # do the layers fit one another?
    return model


def _described(model, cls, seen):
    """The layers of a Sequential as a list for JSON."""
    entries = []
    for layer in model.layers:
        label = f"cannot save the whole model: {layer.label}"
        if id(layer) in seen:
            raise ValueError(f"{label} is in it twice; save_weights(path) writes the weights alone")
        seen.add(id(layer))
        if type(layer) is cls:
            entries.append({"name": layer.name, "layers": _described(layer, cls, seen)})
        elif type(layer) in KINDS:
            settings = {name: getattr(layer, name) for name in KINDS[type(layer)]}
            for name in settings.keys() & {"activation", "function"}:
                settings[name] = _name_of(settings[name], label)
            flags = FLAGS if type(layer) is BatchNorm else ()
            entries.append({"name": layer.name, "kind": type(layer).__name__, "settings": settings,
                            "input_shape": getattr(layer, "input_shape", None),
                            "flags": {name: getattr(layer, name) for name in flags}})
        else:
            raise ValueError(f"{label} is none of {', '.join(TABLE)} and Sequential; "
                             "save_weights(path) writes the weights alone")
    return entries


def _name_of(function, label):
    names = [name for name, known in ACTIVATIONS.items() if known is function]
    if function is not None and not names:
        raise ValueError(f"{label} has a function of its own, not one of {', '.join(ACTIVATIONS)}; "
                         "save_weights(path) writes the weights alone")
    return names[0] if names else None


def _planned(entries, path="layers"):
    """[(layer, {name: shape of its array})] for all layers in order, still without weights."""
    plan = []
    for i, entry in enumerate(entries):
        name = entry["name"]
        if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
            raise ValueError("a layer's name must be a short text that can be printed")
        if "layers" in entry:
            plan += _planned(entry["layers"], f"{path}.{i}.layers")
            continue
        if entry["kind"] not in TABLE:
            raise ValueError(f"there is no layer {entry['kind']!r}, only {', '.join(TABLE)}")
        kind = TABLE[entry["kind"]]
        if set(entry["settings"]) != set(KINDS[kind]):
            raise ValueError(f"{entry['kind']} has the settings {', '.join(KINDS[kind])}, found "
                             f"{', '.join(entry['settings'])}")
        layer = kind(**entry["settings"])
        if "input_shape" in layer.setting_checks:
            layer.input_shape = entry["input_shape"]
        for name in FLAGS if kind is BatchNorm else ():
            setattr(layer, name, bool(entry["flags"][name]))
        shapes = {f"{path}.{i}.{name}": shape for name, shape in _shapes(layer).items()}
        plan.append((layer, shapes))
    return plan


def _shapes(layer):
    """{name: shape} of the arrays that a layer will have."""
    if isinstance(layer, Dense):
        kernel = {"kernel": layer.kernel_shape()}
        return kernel | ({"bias": (layer.units,)} if layer.use_bias else {})
    if isinstance(layer, (BatchNorm, LayerNorm)):
        features = (layer.input_shape[0 if isinstance(layer, BatchNorm) else -1],)
        result = {"gamma": features, "beta": features} if layer.affine else {}
        if isinstance(layer, BatchNorm):
            result |= {"running_mean": features, "running_var": features, "updates": ()}
        return result
    return {}


def _check_windows(layers, shape, size):
    """ValueError where a convolution of an image of this shape would take much memory.

    size: how many numbers there are in the file. Pooling is not counted on to make images smaller.
    """
    convolutions = [layer for layer in layers if isinstance(layer, Conv2D)]
    margin = sum(2 * layer.zeros for layer in convolutions)
    pixels = math.prod(n + margin for n in shape[1:])
    for layer in convolutions:
        of_a_pixel = math.prod(layer.kernel_shape()[:-1]) + layer.filters
        if pixels * of_a_pixel > MOST_IN_WINDOWS + 64 * size:
            raise ValueError(f"images of shape {tuple(shape)} are too large for weights as few as "
                             "these")


def _check_shapes(state, plan):
    expected = {name: shape for _, shapes in plan for name, shape in shapes.items()}
    found = {name: array.shape for name, array in state.items()}
    wrong = [f"{name}: {found.get(name, 'nothing')} instead of {expected.get(name, 'nothing')}"
             for name in found | expected if found.get(name) != expected.get(name)]
    if wrong:
        raise ValueError(f"the arrays are not those of the layers, {'; '.join(wrong[:3])}. (Only "
                         "the layers' own weights can be saved with the model; save_weights(path) "
                         "writes all there are, for a model that is built first)")
    if len({array.dtype for array in state.values() if array.dtype.kind == "f"}) > 1:
        raise ValueError("the weights have several dtypes; call model.astype(np.float32) first")


def _assembled(entries, plan, cls):
    """The Sequential of the layers in plan."""
    model = cls()
    layers = []
    for entry in entries:
        inner = "layers" in entry
        layers.append(_assembled(entry["layers"], plan, cls) if inner else next(plan)[0])
        layers[-1].name = entry["name"]
    model.layers = layers
    return model
