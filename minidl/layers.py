"""The layers: bookkeeping around the pure functions of `functional.py`.

A layer learns the number of its inputs from the first batch it sees, or from `input_shape`.
"""

import numpy as np

from . import functional as F
from .data import batches
from .initializers import INITIALIZERS, zeros
from .module import Module, Parameter, as_shape, evaluation, lookup
from .tensor import Tensor, no_grad

ACTIVATIONS = {"relu": F.relu, "leaky_relu": F.leaky_relu, "sigmoid": F.sigmoid, "tanh": F.tanh,
               "softplus": F.softplus, "gelu": F.gelu, "softmax": F.softmax, "log_softmax": F.log_softmax,
               "linear": F.linear_activation}


class Dense(Module):
    """Fully connected layer: activation(x @ kernel + bias).

    units: the number of outputs. activation: a name, a function, or None for none.
    kernel_initializer: a name or a function of (shape, rng); the bias starts at 0.
    input_shape: the shape of one input, if it shall be known at once. rng: where the initial weights are
    drawn from; a Sequential gives its own; without either, they differ from run to run.
    Input (n, inputs), output (n, units). Raises ValueError for another number of inputs.
    """

    def __init__(self, units, activation=None, *, use_bias=True, kernel_initializer="glorot_uniform",
                 input_shape=None, rng=None):
        if not isinstance(units, (int, np.integer)) or units < 1:
            raise ValueError(f"Dense needs a whole number of units, at least 1, got {units!r}")
        self.units, self.use_bias, self.rng = int(units), use_bias, rng
        self.activation = lookup(activation, ACTIVATIONS, "activation")
        self.kernel_initializer = lookup(kernel_initializer, INITIALIZERS, "initializer")
        self.input_shape = as_shape(input_shape)
        self.inputs = self.kernel = self.bias = None
        self.built = False

    def create_parameters(self):
        """Draw the kernel and set the bias to 0."""
        if self.input_shape is None:
            super().create_parameters()
        shape = (self.input_shape[-1], self.units)
        rng = np.random.default_rng() if self.rng is None else self.rng
        kernel = np.array(self.kernel_initializer(shape, rng), np.float32)  # a copy: training changes it in place
        if kernel.shape != shape:
            raise ValueError(f"{self.label}: the initializer made shape {kernel.shape}, the kernel needs {shape}")
        self.inputs, self.kernel = shape[0], Parameter(kernel)
        self.bias = Parameter(zeros(self.units)) if self.use_bias else None
        self.built = True

    def forward(self, x):
        """x: (n, inputs) to (n, units)."""
        if not self.built and x.ndim == 2:
            self.input_shape = self.input_shape or x.shape[1:]
            self.create_parameters()
        shape = x.shape
        if not self.built or len(shape) != 2 or shape[1] != self.inputs:
            raise ValueError(f"{self.label} expects inputs of shape (n, {self.inputs or 'inputs'}), got {shape}"
                             + ("; put Flatten() before it" if x.ndim > 2 else ""))
        if x.dtype != self.kernel.data.dtype:
            x = _converted(x, self.kernel.data.dtype, self)
        y = F.linear(x, self.kernel, self.bias)
        return y if self.activation is None else self.activation(y)

    def __repr__(self):
        inputs = f"{self.input_shape[-1]} -> " if self.input_shape else ""
        activation = f", {_name(self.activation)}" if self.activation else ""
        return f"Dense({inputs}{self.units}{activation})"


class Activation(Module):
    """An elementwise function as a layer: Activation("relu"), or any function of a Tensor."""

    def __init__(self, function):
        self.function = lookup(function, ACTIVATIONS, "activation")

    def forward(self, x):
        """Any shape to the same shape."""
        return self.function(x)

    def __repr__(self):
        return f"Activation({_name(self.function)})"


class BatchNorm(Module):
    """Batch Normalization (Ioffe and Szegedy 2015): y = gamma (x - mean) / sqrt(var + eps) + beta.

    In training mode mean and (biased) variance are those of the batch; in evaluation mode they are running
    averages, so that a sample's output does not depend on its neighbours.
    Input (n, features), or (n, channels, height, width) normalised per channel.

    momentum: the weight of the newest batch, running = (1 - momentum) running + momentum batch, with the
    batch variance times n/(n-1); None gives the plain average over all batches. affine: whether gamma and
    beta are learned. fused: the fast function, or the definition from primitives (can be differentiated twice).

    |                  | here and PyTorch | Keras        |
    |------------------|------------------|--------------|
    | momentum         | 0.1              | 0.99 (= 0.01 here: the weight of the old value) |
    | eps              | 1e-5             | 1e-3         |
    | running variance | unbiased         | biased       |

    Raises ValueError for one sample per channel in training mode: it has no variance.
    """

    def __init__(self, momentum=0.1, eps=1e-5, affine=True, fused=True, *, input_shape=None):
        if momentum is not None and not 0 <= momentum <= 1:
            raise ValueError(f"momentum is the weight of the newest batch, from 0 to 1, got {momentum!r}; "
                             "the number of features is found out from the input")
        if not eps >= 0:
            raise ValueError(f"eps is added to the variance and cannot be negative, got {eps!r}")
        self.momentum = None if momentum is None else float(momentum)  # a NumPy float64 would turn float32 into float64
        self.eps, self.affine, self.fused = float(eps), affine, fused
        self.input_shape = as_shape(input_shape)
        self.gamma = self.beta = self.running_mean = self.running_var = None
        self.updates = 0
        self.built = False

    def create_parameters(self):
        """gamma and the running variance start at 1, beta and the running mean at 0."""
        if self.input_shape is None:
            super().create_parameters()
        features = self.input_shape[0]
        if self.affine:
            self.gamma = Parameter(np.ones(features, np.float32))
            self.beta = Parameter(np.zeros(features, np.float32))
        self.running_mean = np.zeros(features, np.float32)
        self.running_var = np.ones(features, np.float32)
        self.built = True

    def forward(self, x):
        """x: (n, features) or (n, channels, height, width), to the same shape."""
        shape = x.shape
        if not self.built and len(shape) in (2, 4):
            self.input_shape = self.input_shape or shape[1:]
            self.create_parameters()
        features = len(self.running_mean) if self.built else "features"
        if len(shape) not in (2, 4) or shape[1] != features:
            raise ValueError(f"{self.label} expects inputs of shape (n, {features}) or (n, {features}, height, width), "
                             f"got {shape}")
        if x.dtype != self.running_mean.dtype:
            x = _converted(x, self.running_mean.dtype, self)
        gamma = self.gamma if self.affine else np.ones_like(self.running_var)
        beta = self.beta if self.affine else np.zeros_like(self.running_mean)
        if not self.training:
            return F.batch_norm_inference(x, gamma, beta, self.running_mean, self.running_var, self.eps)
        n = x.size // features
        if n < 2:
            raise ValueError(f"{self.label} got {n} sample per channel (input shape {shape}) in training mode, and one "
                             "sample has no variance: use a larger batch, or model.eval() for single samples")
        function = F.batch_norm if self.fused else F.batch_norm_composed
        y, mean, var = function(x, gamma, beta, self.eps)
        self._update(mean, var * (n / (n - 1)))
        return y

    def _update(self, mean, var):
        """Move the running statistics towards those of one batch."""
        self.updates += 1
        m = 1 / self.updates if self.momentum is None else self.momentum
        self.running_mean = (1 - m) * self.running_mean + m * mean
        self.running_var = (1 - m) * self.running_var + m * var

    def __repr__(self):
        return f"BatchNorm({self.input_shape[0] if self.input_shape else ''})"


class Dropout(Module):
    """In training, set a share `rate` of the inputs to 0 and scale the others by 1 / (1 - rate).

    rng: where the choice is drawn from; a Sequential gives its own. Srivastava et al. 2014.
    """

    def __init__(self, rate, rng=None):
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout needs a rate from 0 up to but not 1, got {rate!r}")
        self.rate, self.rng = float(rate), rng

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
    """(n, ...) to (n, product of the rest). input_shape: the shape of one input, if it shall be known at once."""

    def __init__(self, input_shape=None):
        self.input_shape = as_shape(input_shape)

    def forward(self, x):
        """(n, a, b, ...) to (n, a * b * ...)."""
        return x.reshape(len(x), int(np.prod(x.shape[1:])))

    def __repr__(self):
        return "Flatten()"


def estimate_population_statistics(model, x, batch_size=256):
    """Set all running statistics of model's BatchNorms to averages over the whole of x, instead of the latest batches.

    Ioffe and Szegedy 2015, algorithm 2 ("precise BN"): the mean of the batch means and of the unbiased batch
    variances. x: training inputs (n, ...). Only BatchNorm works in training mode meanwhile; no weight changes.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    settings = [(layer, layer.momentum, layer.updates) for layer in layers]
    with evaluation(model), no_grad():
        for layer in layers:
            layer.momentum, layer.updates, layer.training = None, 0, True
        try:
            for xb, _ in batches(x, x, batch_size):
                model(xb)
        finally:
            for layer, momentum, updates in settings:
                layer.momentum, layer.updates = momentum, updates


def _converted(x, dtype, layer):
    """An array in the dtype of the layer's weights; a Tensor of another dtype is an error."""
    if isinstance(x, Tensor):
        raise TypeError(f"{layer.label} holds {dtype} weights but got a {x.dtype} Tensor: "
                        f"use x.astype(np.{dtype}), or model.astype(np.{x.dtype})")
    return x.astype(dtype)


def _name(function):
    return getattr(function, "name", None) or getattr(function, "__name__", type(function).__name__)
