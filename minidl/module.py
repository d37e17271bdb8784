"""What holds parameters: a Module finds its parameters, buffers and submodules among its own attributes.

The rule is by type, in the order of assignment: a Parameter is trained, a NumPy array is a buffer
(remembered, not trained), a Module is a part of this one; lists and dicts of them count as well.
"""

import random
from contextlib import contextmanager
from functools import partial

import numpy as np

from . import files
from .tensor import Tensor, no_grad


class Parameter(Tensor):
    """A Tensor that an optimizer trains: a leaf with requires_grad=True."""

    __slots__ = ()

    def __init__(self, data, requires_grad=True):
        super().__init__(data, requires_grad)


class Module:
    """A part of a network. Subclass it, assign layers and Parameters to attributes, write `forward`."""

    training = True  # batch statistics and dropout are for training; train() and eval() switch
    built = True  # False while a layer waits for its first input to tell how many weights it needs
    forward_hooks = ()  # see register_forward_hook
    name = ""  # given by the Sequential it is in; errors use it

    def forward(self, *inputs):
        """Compute the output. Every subclass writes its own."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(self, x)")

    def __call__(self, *inputs, **constants):
        y = self.forward(*inputs, **constants)
        if y is None:
            raise TypeError(f"{self.label}: forward gave nothing back; it must end with `return`")
        for hook in self.forward_hooks:
            hook(self, inputs, y)
        return y

    def register_forward_hook(self, function):
        """Call function(module, inputs, output) after every forward until .remove() of what this returns; inputs is a tuple."""
        hook = partial(function)  # an object of its own, should the same function be registered twice
        self.forward_hooks = (*self.forward_hooks, hook)
        return _HookHandle(self, hook)

    def __getstate__(self):
        """Copies and pickles go without the hooks: who watches this module does not watch its copy."""
        return {key: value for key, value in vars(self).items() if key != "forward_hooks"}

    def build(self, input_shape):
        """Make all weights by sending one sample of zeros through. input_shape: without the batch axis."""
        for path, part in self.named_modules():
            part.name = part.name or path
        with evaluation(self), no_grad():
            self(np.zeros((1, *as_shape(input_shape)), np.float32))
        return self

    def create_parameters(self):
        """Make the weights of this layer alone, if it can be known how many; else RuntimeError."""
        raise RuntimeError(f"{self.label} has no weights yet, because it has seen no input: give input_shape, "
                           "call model.build(input_shape), or send one batch through first")

    @property
    def label(self):
        """How errors call this module: its name in the model and what it is."""
        return f"{self.name} {self!r}".strip()

    def named_modules(self, prefix=""):
        """Yield (dotted name, module) for this module and all parts, each once, in order of assignment."""
        seen = set()
        stack = [(prefix, self)]
        while stack:
            path, module = stack.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            stack += [(f"{path}.{key}".strip("."), part) for key, part in reversed(list(module.children()))]

    def children(self):
        """Yield (name, module) for the modules right inside this one."""
        return ((key, value) for key, value in self._attributes() if isinstance(value, Module))

    def _attributes(self):
        """Yield (name, value) for all attributes, in order of assignment; lists, tuples and dicts are opened."""
        stack = list(reversed(vars(self).items()))
        while stack:
            key, value = stack.pop()
            if isinstance(value, (list, tuple)):
                value = dict(enumerate(value))
            if isinstance(value, dict):
                stack += [(f"{key}.{inner}", part) for inner, part in reversed(value.items())]
            else:
                yield key, value

    def modules(self):
        """This module and all its parts, each once."""
        return [module for _, module in self.named_modules()]

    def named_parameters(self):
        """Yield (dotted name, Parameter), each once even when shared. Layers not yet built are built or complain."""
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
        for path, module in self.named_modules():
            if not module.built:
                module.create_parameters()
            for key, value in module._attributes():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{path}.{key}".strip("."), value

    def parameters(self):
        """All Parameters, in order of assignment."""
        return [parameter for _, parameter in self.named_parameters()]

    def buffers(self):
        """All buffers, in order of assignment."""
        return [buffer for _, buffer in self.named_buffers()]

    def train(self, mode=True):
        """Switch this module and all its parts to training mode (or, with False, to evaluation). Returns self."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self):
        """Switch to evaluation mode: running statistics instead of the batch's, no dropout. Returns self."""
        return self.train(False)

    def zero_grad(self):
        """Forget all gradients."""
        for parameter in self.parameters():
            parameter.grad = None

    def requires_grad_(self, flag=True):
        """Whether backward() fills the gradients of all parameters: with False they are frozen. Returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = flag
        return self

    def state_dict(self):
        """{dotted name: array} of all parameters and buffers, as copies; what is shared is there once."""
        return {name: array.copy() for name, array in self._state().items()}

    def _state(self):
        return {name: p.data for name, p in self.named_parameters()} | dict(self.named_buffers())

    def load_state_dict(self, state, strict=True):
        """Take over the values of a dict that state_dict() gave, converted to the dtypes of this module.

        Returns the names it lacks and those that have no place here; strict: there must be none of either.
        Raises ValueError with all that does not fit, and then nothing has changed.
        """
        if not isinstance(state, dict):
            raise TypeError(f"load_state_dict takes a dict as state_dict() gives it, got {type(state).__name__}; "
                            "for a file use load_weights(path)")
        own = self._state()
        missing, surplus = [name for name in own if name not in state], [name for name in state if name not in own]
        given = {name: np.asarray(state[name], array.dtype) for name, array in own.items() if name in state}
        faults = [f"missing: {name}" for name in missing] if strict else []
        names = [files.clean(name, 80) for name in surplus] if strict else []
        faults += [f"not in the model: {name}" for name in names]
        faults += [f"of another shape: {name} is {own[name].shape} in the model, {array.shape} in the state"
                   for name, array in given.items() if array.shape != own[name].shape]
        if faults:
            faults[20:] = [f"... and {len(faults) - 20:,} more"] if len(faults) > 20 else []
            raise ValueError("\n  ".join([f"nothing was loaded, the state does not fit this {type(self).__name__}:", *faults])
                             + "\nBuild the model with the layers it had when the state was saved")
        for name, array in given.items():
            own[name][...] = array
        return missing, surplus

    def save_weights(self, path):
        """Write all parameters and buffers to a file, in the formats of `files.save`."""
        files.save(path, self.state_dict())

    def load_weights(self, path):
        """Take over what save_weights wrote for a model of the same layers; ValueError as load_state_dict."""
        state = files.load(path)
        if "epochs" in state and any(name.startswith("optimizer.") for name in state):
            raise ValueError(f"{path} is a checkpoint, which holds a whole run and not weights "
                             "alone: use model.load_checkpoint(path) of a compiled Sequential, or "
                             "checkpoints.load_checkpoint(path, model, optimizer)")
        try:
            self.load_state_dict(state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def astype(self, dtype):
        """Turn all parameters and floating buffers into another floating dtype, in place. Returns self."""
        for parameter in self.parameters():
            parameter.data = parameter.data.astype(dtype)
        for module in self.modules():
            _cast(vars(module), dtype)
        return self

    def __repr__(self):
        parts = [f"({key}): {part!r}".replace("\n", "\n  ") for key, part in self.children()]
        return "\n  ".join([f"{type(self).__name__}(", *parts]) + "\n)" if parts else f"{type(self).__name__}()"


def _cast(value, dtype):
    """value with its floating arrays in another dtype: dicts and lists are changed in place, tuples made anew."""
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return value.astype(dtype)
    if isinstance(value, (dict, list)):
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            value[key] = _cast(part, dtype)
    return tuple(_cast(part, dtype) for part in value) if type(value) is tuple else value


class _HookHandle:
    def __init__(self, module, hook):
        self.module, self.hook = module, hook

    def remove(self):
        self.module.forward_hooks = tuple(hook for hook in self.module.forward_hooks if hook is not self.hook)


@contextmanager
def evaluation(module):
    """Evaluation mode inside the block; afterwards every part is back in the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def as_shape(shape):
    """A tuple from a tuple or a single number; None stays None: not known yet. ValueError for what is no shape."""
    if shape is None:
        return None
    result = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if not all(isinstance(n, (int, np.integer)) and n > 0 for n in result):
        raise ValueError(f"a shape is whole numbers, 784 or (28, 28) for example, without the batch axis; got {shape!r}")
    return result


def lookup(name, table, what):
    """table[name] for a string, name itself for a function or None; ValueError with the valid names."""
    if name is None or callable(name):
        return name
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {name!r}; known are {', '.join(sorted(table))}")
    return table[name]
