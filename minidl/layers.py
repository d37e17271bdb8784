"""The layers: bookkeeping around the pure functions of `functional.py`.

A layer learns the number of its inputs from the first batch it sees, or from `input_shape`.
"""

import numpy as np

from . import functional as F
from . import habits
from .initializers import INITIALIZERS, zeros
from .module import Module, Parameter
from .normalization import (  # noqa: F401  layers, too
    BatchNorm,
    BatchStatistics,
    LayerNorm,
    estimate_population_statistics,
)
from .parts import converted
from .settings import as_flag, as_number, as_rng, as_shape, is_whole, lookup

ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "sigmoid": F.sigmoid,
    "tanh": F.tanh,
    "softplus": F.softplus,
    "gelu": F.gelu,
    "gelu_exact": F.gelu_exact,
    "elu": F.elu,
    "silu": F.silu,
    "swish": F.silu,
    "softmax": F.softmax,
    "log_softmax": F.log_softmax,
    "linear": F.linear_activation,
}


# --- Settings: what each may be, at construction and at every later assignment --------------------

def _units(value):
    if not is_whole(value) or value < 1:
        raise ValueError(f"Dense needs a whole number of units, at least 1, got {value!r}")
    return int(value)


def _activation(value):
    return lookup(value, ACTIVATIONS, "activation")


def _function(value):
    if value is None:
        raise ValueError("Activation needs a function or its name, Activation('relu') for example, "
                         "got None")
    return lookup(value, ACTIVATIONS, "activation")


def _initializer(value):
    if value is None:
        raise ValueError(f"unknown initializer None; known are {', '.join(sorted(INITIALIZERS))}")
    return lookup(value, INITIALIZERS, "initializer")


_rate = as_number(
    "Dropout needs a rate from 0 up to but not 1 (0.5 for 50 percent), got {!r}",
    lambda x: 0 <= x < 1)


# --- Layers ---------------------------------------------------------------------------------------

class Dense(Module):
    """Fully connected layer: activation(x @ kernel + bias).

    >>> Dense(3, input_shape=2, rng=0)(np.ones((5, 2))).shape
    (5, 3)

    units: the number of outputs. activation: a name, a function, or None for none.
    kernel_initializer: a name or a function of (shape, rng); the bias starts at 0. input_shape: the
    shape of one input, to make the weights at once. rng: a Generator or a seed that the initial
    weights are drawn from; a Sequential provides its own; without either, they differ from run to
    run. Input (n, inputs), output (n, units); with more axes, (n, ..., inputs), the kernel
    multiplies the last one. Raises ValueError for another number of inputs.
    """

    built = False
    stream = "weights_rng"
    inputs = kernel = bias = None
    parameter_names = keep_shape = "kernel", "bias"
    setting_checks = {"units": _units, "activation": _activation, "rng": as_rng,
                      "use_bias": as_flag("use_bias"), "kernel_initializer": _initializer,
                      "input_shape": as_shape}
    fixed_settings = "units", "use_bias", "kernel_initializer"
    habit_words, argument_words = habits.DENSE, habits.DENSE_ARGUMENTS

    def __init__(
        self,
        units,
        activation=None,
        *,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        input_shape=None,
        rng=None,
    ):
        self.units = units
        self.use_bias = use_bias
        self.rng = rng
        if is_whole(activation):
            raise ValueError(f"unknown activation {activation}: PyTorch's Linear({units}, "
                             f"{activation}) is Dense({activation}, input_shape={units}) here, and "
                             "the number of inputs may be left out")
        self.activation = activation
        self.kernel_initializer = kernel_initializer
        self.input_shape = input_shape

    def create_parameters(self):
        """Draw the kernel and set the bias to 0."""
        self._need_shape()
        shape = self.kernel_shape()
        kernel = self._initial(shape, np.random.default_rng() if self.rng is None else self.rng)
        train = self.trainable
        self.inputs, self.kernel = shape[-2], Parameter(kernel, train)
        self.bias = Parameter(zeros(self.units), train) if self.use_bias else None
        self.built = True

    def kernel_shape(self): return self.input_shape[-1], self.units

    def _initial(self, shape, rng):
        """The initializer's array as float32; ValueError if it does not have the kernel's shape."""
        try:  # a copy: training changes it in place
            kernel = np.array(self.kernel_initializer(shape, rng), np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.label}: an initializer is a function of (shape, rng) that "
                             "returns an array, such as initializers.normal(0.05), but "
                             f"{function_name(self.kernel_initializer)} fails: {error}") from error
        if kernel.shape != shape:
            raise ValueError(f"{self.label}: the initializer made shape {kernel.shape}, the kernel "
                             f"needs {shape}")
        if not np.isfinite(kernel).all():
            raise ValueError(f"{self.label}: the initializer made NaN or infinite weights")
        return kernel

    def forward(self, x):
        """x: (n, ..., inputs) to (n, ..., units)."""
        if not self.built and x.ndim > 1:
            self.input_shape = self.input_shape or x.shape[1:]
            self.create_parameters()
        shape = x.shape
        if len(shape) < 2 or shape[-1] != self.inputs:
            raise ValueError(
                f"{self.label} expects inputs of shape (n, {self.inputs or 'inputs'}), got {shape}"
                + ("; put Flatten() before it" if x.ndim > 2 else ""))
        if x.dtype != self.kernel.dtype:
            x = converted(x, self.kernel.dtype, self)
        y = F.linear(x, self.kernel, self.bias)
        return y if self.activation is None else self.activation(y)

    def __repr__(self):
        inputs = f"{self.input_shape[-1]} -> " if self.input_shape else ""
        activation = f", {function_name(self.activation)}" if self.activation else ""
        return f"Dense({inputs}{self.units}{activation})"


class Activation(Module):
    """An elementwise function as a layer: Activation("relu"), or any function of a Tensor.

    >>> Activation("relu")(Tensor([-1.0, 2.0]))
    Tensor([0. 2.])
    """

    setting_checks = {"function": _function}
    habit_words, argument_words = habits.ACTIVATION, habits.ACTIVATION_ARGUMENTS

    def __init__(self, function):
        self.function = function

    def forward(self, x):
        """Any shape to the same shape."""
        return self.function(x)

    def __repr__(self):
        return f"Activation({function_name(self.function)})"


class Dropout(Module):
    """In training, set a share `rate` of the inputs to 0 and scale the others by 1 / (1 - rate).

    rng: a Generator or a seed that the choice is drawn from; a Sequential provides its own.
    Srivastava et al. 2014.
    """

    stream = "dropout_rng"
    setting_checks = {"rate": _rate, "rng": as_rng}
    habit_words, argument_words = habits.DROPOUT, habits.DROPOUT_ARGUMENTS

    def __init__(self, rate, rng=None):
        self.rate = rate
        self.rng = rng

    def forward(self, x):
        """Any shape to the same shape; x itself in evaluation mode."""
        if not self.training or self.rate == 0:
            return x
        if self.rng is None:
            self.rng = np.random.default_rng()
        kept = self.rng.random(x.shape, np.float32) >= self.rate
        return x * (kept.astype(x.dtype) / (1 - self.rate))

    def __repr__(self):
        return f"Dropout({self.rate})"


class Flatten(Module):
    """(n, ...) to (n, product of the rest).

    input_shape: the shape of one input, if it is to be known at once.
    """

    setting_checks = {"input_shape": as_shape}
    argument_words = habits.FLATTEN_ARGUMENTS

    def __init__(self, input_shape=None):
        self.input_shape = input_shape

    def forward(self, x):
        """(n, a, b, ...) to (n, a * b * ...)."""
        return x.reshape(len(x), int(np.prod(x.shape[1:])))

    def __repr__(self):
        return "Flatten()"


def function_name(function):
    """What to call an activation or an initializer in a text."""
    return getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)


def __getattr__(name):
    raise habits.unknown("minidl.layers", name, habits.PACKAGE)
