"""A Module holds parameters: it finds parameters, buffers and submodules among its attributes.

The rule is by type, in the order of assignment: a Parameter is trained, a NumPy array is a buffer
(remembered, not trained), a Module is a part of this one; lists and dicts of them count as well.
"""

import random
from difflib import get_close_matches
from functools import partial
from inspect import signature
from reprlib import recursive_repr

import numpy as np

from . import habits
from .parts import attributes, evaluation
from .settings import as_flag, as_shape, lookup  # noqa: F401
from .tensor import Tensor, mark_changed, no_grad


class Parameter(Tensor):
    """A Tensor that an optimizer trains: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data, requires_grad=True):
        super().__init__(data, requires_grad)


class Module:
    """A part of a network.

    Subclass it, assign layers and Parameters to attributes, write `forward`.
    """

    training = True  # batch statistics and dropout are for training; train() and eval() switch
    built = True  # False until a layer's first input tells how many weights it needs
    forward_hooks = forward_pre_hooks = ()  # see register_forward_hook
    name = ""  # set by its Sequential, or else the path of attributes to it; used in errors
    trained_by = None  # the optimizer of the latest fit
    stream = None  # which stream of its Sequential its rng is: "weights_rng" or "dropout_rng"
    parts_named = False  # whether its parts have been given their names
    setting_checks = {}  # {name: a check of settings.py}, made at every assignment
    fixed_settings = ()  # the settings that cannot change once the weights are made
    parameter_names = ()  # the attributes that hold this layer's own Parameters
    keep_shape = ()  # attributes whose arrays can only be replaced by others of their shape
    not_parts = ()  # attributes that are not parts of this module, whatever they hold
    habit_words = habits.MODULE  # {attribute of another library: what to write here}
    argument_words = {}  # the same for arguments of the constructor

    def __new__(cls, *arguments, **named):
        for word in named:
            if word in cls.argument_words:
                own = signature(cls.__init__).parameters
                if word not in own and not any(p.kind is p.VAR_KEYWORD for p in own.values()):
                    raise TypeError(f"{cls.__name__} has no argument {word!r}: "
                                    f"{cls.argument_words[word]}")
        return super().__new__(cls)

    def __setattr__(self, name, value):
        """Check settings: one rule for the constructor and for every later assignment."""
        own = vars(self)
        if name in type(self).setting_checks:
            value = type(self).setting_checks[name](value)
            if name in type(self).fixed_settings and self.built and value != own[name]:
                raise ValueError(f"{self.label}: {name} cannot change once the weights are made; "
                                 "make a new layer and put it in the place of this one")
        elif name == "training":
            self.train(value)
            return
        elif name in own:
            trained = isinstance(own[name], Parameter)
            if trained and value is not None and not isinstance(value, Tensor):
                raise TypeError(f"{self.label}: {name} is a Parameter; the new value, "
                                f"{type(value).__name__}, would never be trained in its place: "
                                f"write layer.{name}.data[...] = values to give it new values, or "
                                f"layer.{name} = Parameter(values) and compile again")
        elif not hasattr(type(self), name):
            self._check_new(name, value)
        if name in type(self).keep_shape and value is not None and own.get(name) is not None:
            if np.shape(value) != np.shape(own[name]):
                raise ValueError(f"{self.label}: {name} has shape {np.shape(own[name])}, got "
                                 f"{np.shape(value)}; for another shape make a new layer")
        parts = value if type(value) is list else [value]
        if any(isinstance(part, Module) for part in parts):
            own.pop("parts_named", None)  # the new parts get their names at the next call
        super().__setattr__(name, value)

    def _check_new(self, name, value):
        """Refuse an attribute that would only seem to do something; subclasses are free."""
        ours = type(self).__module__.startswith("minidl.")
        if name == "requires_grad" or ours and name in type(self).habit_words:
            raise habits.unknown(type(self).__name__, name, type(self).habit_words)
        if ours and isinstance(value, (bool, int, float, str, Parameter)):
            known = {"name", "training", "trainable", *type(self).setting_checks, *vars(self)}
            for close in get_close_matches(name, sorted(known), 1, 0.8):
                raise AttributeError(f"{self.label} has no attribute {name!r}, so setting it would "
                                     f"change nothing: did you mean {close!r}?")

    def __init_subclass__(cls):
        habits.teach(cls, cls.habit_words)

    __dir__ = habits.known_names

    def forward(self, *inputs):
        """Compute the output. Every subclass writes its own."""
        hint = ": what Keras calls `call` is `forward` here" if hasattr(type(self), "call") else ""
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, x){hint}")

    def __call__(self, *inputs, **constants):
        if not self.parts_named:
            self._name_parts()
        if self.forward_pre_hooks:
            inputs = self._prepared(inputs)
        try:
            y = self.forward(*inputs, **constants)
        except (AttributeError, TypeError) as error:
            from .culprit import explain_error
            explain_error(self, error, inputs, constants)
            raise
        if type(y) is not Tensor:
            self._check_output(y, inputs)
        for hook in self.forward_hooks:
            result = hook(self, inputs, y)
            if result is not None:
                y = self._hooked(result, y)
        return y

    def _name_parts(self):
        """Give each part that has no name its path of attributes, and remember that it is done."""
        for path, part in self.named_modules(self.name):
            part.settle_new_layers()
            if not part.name and part is not self:
                part.name = path
            vars(part)["parts_named"] = True

    def _check_output(self, y, inputs):
        """TypeError unless y is a Tensor, or an array where nothing is differentiated."""
        if y is None:
            raise TypeError(f"{self.label}: forward returned nothing; it must end with `return`")
        differentiated = any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
        if isinstance(y, np.ndarray) and y.dtype.kind == "f" and differentiated:
            raise TypeError(f"{self.label}: forward was given a Tensor and returned an array, so "
                            "no gradient would pass it and the layers before it would never be "
                            "trained: compute with minidl.functional and Tensor methods, not with "
                            ".data, .numpy() or np; or return x.detach() where that is meant")

    def _prepared(self, inputs):
        for hook in self.forward_pre_hooks:
            result = hook(self, inputs)
            if result is not None:
                inputs = result if isinstance(result, tuple) else (result,)
        return inputs

    def _hooked(self, result, y):
        if not isinstance(result, (Tensor, type(y))):  # an array would end the gradient
            raise TypeError(f"{self.label}: what a forward hook returns replaces the output and "
                            f"must be a Tensor, got {type(result).__name__}; return None to leave "
                            "the output as it is")
        return result

    def register_forward_hook(self, function):
        """Call function(module, inputs, output) after every forward; inputs is a tuple.

        What the function returns replaces the output, unless it is None (as in PyTorch). This
        method returns a handle; its .remove() ends the calls.
        """
        return _HookHandle(self, "forward_hooks", function, "module, inputs, output")

    def register_forward_pre_hook(self, function):
        """Call function(module, inputs) before every forward; inputs is a tuple.

        What the function returns, the only input or a tuple of all, replaces the inputs, unless it
        is None (as in PyTorch). This method returns a handle; its .remove() ends the calls.
        """
        return _HookHandle(self, "forward_pre_hooks", function, "module, inputs")

    def __getstate__(self):
        """Copies and pickles omit the hooks: who watches a module does not watch its copy."""
        return {key: value for key, value in vars(self).items()
                if key not in ("forward_hooks", "forward_pre_hooks")}

    def build(self, input_shape):
        """Make all weights by sending one sample of zeros through.

        input_shape: without the batch axis.
        """
        shape = as_shape(input_shape)
        if shape is None:
            raise ValueError("build needs the shape of one input, 784 or (28, 28) for example, "
                             "without the batch axis")
        from .culprit import instead_of_one
        with evaluation(self), no_grad(), instead_of_one("n"):
            self(np.zeros((1, *shape), np.float32))
        return self

    def settle_new_layers(self):
        """Called before the parameters are listed: see Sequential, whose layers may change."""

    def create_parameters(self):
        """Make the weights of this layer alone, or RuntimeError while their number is unknown."""
        self._need_shape()

    def _need_shape(self):
        """RuntimeError where weights cannot be made yet, ValueError where some would be lost."""
        if getattr(self, "input_shape", None) is None:
            raise RuntimeError(f"{self.label} has no weights yet, because it has seen no input: "
                               "give input_shape, call model.build(input_shape), or send one batch "
                               "through first")
        for name in type(self).parameter_names:
            if getattr(self, name) is not None:
                raise ValueError(f"{self.label}: {name} was set before the weights were made, "
                                 "which would replace it: give input_shape, call parameters(), and "
                                 f"then set {name}")

    @property
    def label(self):
        """How errors call this module: its name in the model and what it is."""
        text = repr(self)
        return f"{self.name} {type(self).__name__ if chr(10) in text else text}".strip()  # one line

    def named_modules(self, prefix=""):
        """Yield (dotted name, module) for this module and its parts, each once, in order."""
        seen = set()
        stack = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            stack += [
                (f"{path}.{key}".strip("."), part)
                for key, part in reversed(list(module.children()))
            ]

    def children(self):
        """Yield (name, module) for the modules directly inside this one."""
        return ((key, value) for key, value in attributes(self) if isinstance(value, Module))

    def modules(self):
        """This module and all its parts, each once."""
        return [module for _, module in self.named_modules()]

    def named_parameters(self):
        """Yield (dotted name, Parameter), each once even when shared.

        Layers not yet built are built or complain.
        """
        yield from self._named(Parameter)

    def named_buffers(self):
        """Yield (dotted name, array): what is remembered but not trained, such as running means."""
        yield from self._named(np.ndarray)

    def named_generators(self):
        """Yield (dotted name, generator): where randomness comes from, of NumPy or of Python."""
        numpy = (np.random.Generator, np.random.BitGenerator, np.random.RandomState)
        yield from self._named((*numpy, random.Random))

    def _named(self, kind):
        seen = set()
        self.settle_new_layers()
        for path, module in self.named_modules():
            module.settle_new_layers()
            if not module.built:
                module.create_parameters()
            for key, value in attributes(module):
                name = f"{path}.{key}".strip(".")
                if isinstance(value, Tensor) and not isinstance(value, Parameter):
                    leaf = value.requires_grad and value.op is None
                    if leaf or key in type(module).parameter_names:
                        raise ValueError(f"{name} of {type(self).__name__} is a Tensor and would "
                                         f"never be trained: make it a Parameter, {key} = "
                                         "Parameter(values)")
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield name, value

    def parameters(self):
        """All Parameters, in order of assignment."""
        return [parameter for _, parameter in self.named_parameters()]

    def buffers(self):
        """All buffers, in order of assignment."""
        return [buffer for _, buffer in self.named_buffers()]

    def train(self, mode=True):
        """Switch this module and all its parts to training mode (or, with False, to evaluation).

        Returns self.
        """
        if not isinstance(mode, (bool, np.bool_, int)) or mode not in (0, 1):
            raise TypeError("train() only switches to training mode, and train(False) to "
                            f"evaluation; what trains a model is fit. Got {type(mode).__name__}")
        for module in self.modules():
            vars(module)["training"] = bool(mode)
        return self

    def eval(self):
        """Switch to evaluation mode: running statistics instead of the batch's, no dropout.

        Returns self.
        """
        return self.train(False)

    def zero_grad(self):
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, flag=True):
        """Whether backward() fills the gradients of all parameters: with False they are frozen.

        Returns self.
        """
        for parameter in self.parameters():
            parameter.requires_grad = flag
        return self

    @property
    def trainable(self):
        """Whether fit trains any parameter of this module; False freezes it, as in Keras.

        It may be set before the weights are made, and takes effect at once. False also freezes the
        running statistics of BatchNorm (its `frozen_statistics`); `requires_grad_(False)` freezes
        the parameters alone.
        """
        values = [value for part in self.modules() for _, value in attributes(part)]
        flags = [value.requires_grad for value in values if isinstance(value, Parameter)]
        return any(flags) if flags else vars(self).get("to_train", True)

    @trainable.setter
    def trainable(self, flag):
        """Freeze or free this module and its parts."""
        flag = as_flag("trainable")(flag)
        for part in self.modules():
            vars(part)["to_train"] = flag  # read by create_parameters
            if "frozen_statistics" in vars(part):
                part.frozen_statistics = not flag
            for _, value in attributes(part):
                if isinstance(value, Parameter):
                    value.requires_grad = flag

    def state_dict(self):
        """{dotted name: array} of all parameters and buffers, as copies, each listed once."""
        return {name: array.copy() for name, array in self._state().items()}

    def _state(self):
        return {name: p.data for name, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state, strict=True):
        """Take over the values of a dict from state_dict(), converted to the dtypes of this module.

        Returns (missing, surplus): the names that the dict lacks, and those that have no place
        here. strict: there must be none of either. Raises ValueError that lists all that does not
        fit; then nothing has changed.
        """
        if not isinstance(state, dict):
            raise TypeError("load_state_dict takes a dict as state_dict() returns it, got "
                            f"{type(state).__name__}; for a file use load_weights(path)")
        own = self._state()
        missing, surplus = (
            [name for name in own if name not in state],
            [name for name in state if name not in own],
        )
        given = {
            name: np.asarray(state[name], array.dtype)
            for name, array in own.items()
            if name in state
        }
        faults = [f"missing: {name}" for name in missing] if strict else []
        from .files import clean
        names = [clean(name, 80) for name in surplus] if strict else []
        faults += [f"not in the model: {name}" for name in names]
        faults += [f"of another shape: {name} is {own[name].shape} in the model, {array.shape} in "
                   "the state"
                   for name, array in given.items() if array.shape != own[name].shape]
        if faults:
            faults[20:] = [f"... and {len(faults) - 20:,} more"] if len(faults) > 20 else []
            raise ValueError("\n  ".join(["nothing was loaded, the state does not fit this "
                                          f"{type(self).__name__}:", *faults])
                             + "\nBuild the model with the layers it had when the state was saved")
        for name, array in given.items():
            own[name][...] = array
        mark_changed(self.parameters())
        return missing, surplus

    def get_weights(self):
        """Copies of all parameters and buffers, a list as in Keras; state_dict() has the names."""
        return list(self.state_dict().values())

    def set_weights(self, arrays):
        """Take over what get_weights returned for a module of the same layers; else ValueError."""
        names = list(self.state_dict())
        if len(names) != len(arrays):
            raise ValueError(f"{self.label} has {len(names)} arrays ({', '.join(names)}), got "
                             f"{len(arrays)}")
        self.load_state_dict(dict(zip(names, arrays)))

    def save_weights(self, path):
        """Write all parameters and buffers to a file, in the formats of `files.save`."""
        from . import files  # here, so that nets can be understood without files
        files.save(path, self.state_dict())

    def load_weights(self, path):
        """Take over what save_weights wrote for the same layers; errors: see load_state_dict."""
        from . import files
        state = files.load(path)
        if "architecture" in state:
            raise ValueError(f"{path} holds a whole model, layers and weights: use "
                             "Sequential.load(path), which makes a new one")
        if "epochs" in state and any(name.startswith("optimizer.") for name in state):
            raise ValueError(f"{path} is a checkpoint, which holds a whole run and not weights "
                             "alone: use model.load_checkpoint(path) of a compiled Sequential, or "
                             "checkpoints.load_checkpoint(path, model, optimizer)")
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def astype(self, dtype):
        """Turn all parameters and floating buffers into another floating dtype, in place.

        Returns self.
        """
        if np.dtype(dtype).kind != "f":
            raise TypeError("weights are floating-point numbers, astype(np.float32) or np.float64, "
                            f"got {np.dtype(dtype)}")
        for parameter in self.parameters():
            parameter.data = parameter.data.astype(dtype)
        for module in self.modules():
            _cast(vars(module), dtype)
        return self

    @recursive_repr()
    def __repr__(self):
        parts = [f"({key}): {part!r}".replace("\n", "\n  ") for key, part in self.children()]
        return (
            "\n  ".join([f"{type(self).__name__}(", *parts]) + "\n)"
            if parts
            else f"{type(self).__name__}()"
        )


habits.teach(Module, habits.MODULE)


def _cast(value, dtype):
    """value with floating arrays as another dtype: dicts, lists in place, tuples made anew."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    if isinstance(value, (dict, list)):
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _cast(part, dtype)
    return tuple(_cast(part, dtype) for part in value) if type(value) is tuple else value


class _HookHandle:
    def __init__(self, module, kind, function, arguments):
        if not callable(function):
            raise TypeError(f"a forward hook is a function of ({arguments}), got {function!r}")
        # an object of its own, in case the same function is registered twice
        self.hook = partial(function)
        self.module = module
        self.kind = kind
        setattr(module, kind, (*getattr(module, kind), self.hook))

    def remove(self):
        hooks = getattr(self.module, self.kind)
        setattr(self.module, self.kind, tuple(hook for hook in hooks if hook is not self.hook))
