"""Layers that normalise: BatchNorm over the batch, LayerNorm over the features of each sample."""

from copy import copy
from dataclasses import dataclass

import numpy as np

from . import functional as F
from . import habits
from .module import Module, Parameter
from .parts import converted, evaluation
from .settings import as_flag, as_number, as_shape, as_whole
from .tensor import no_grad


def _features(shape):
    shape = as_shape(shape)
    if shape is not None and len(shape) not in (1, 2, 3):
        raise ValueError("BatchNorm expects inputs of shape (n, features), (n, channels, length) "
                         f"or (n, channels, height, width), but input_shape is {shape}")
    return shape


def _array(value):
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        raise ValueError("running statistics are an array of floating-point numbers, got "
                         f"{type(value).__name__}")
    return value


def _or_none(check):
    return lambda value: None if value is None else check(value)


_eps = as_number(
    "eps is added to the variance and cannot be negative or infinite, got {!r}",
    lambda x: 0 <= x < np.inf)
_momentum = as_number("momentum is the weight of the newest batch, from 0 to 1, got {!r}; the "
                      "number of features is found out from the input", lambda x: 0 <= x <= 1)


@dataclass
class BatchStatistics:
    """What a batch was normalised by: mean and biased variance of each feature over n numbers."""

    mean: np.ndarray
    var: np.ndarray
    n: int


class BatchNorm(Module):
    """Batch Normalization (Ioffe and Szegedy 2015): y = gamma (x - mean) / sqrt(var + eps) + beta.

    >>> BatchNorm()(Tensor([[1.0], [3.0]]))
    Tensor([[-1.]
            [ 1.]], op=batch_norm)

    In training mode mean and (biased) variance are those of the batch; in evaluation mode they are
    running averages, so that a sample's output does not depend on the rest of its batch. Input (n,
    features), or (n, channels, length) or (n, channels, height, width), normalised per channel: the
    features are on axis 1, as in PyTorch, while Dense and Keras have them on the last one.

    momentum: the weight of the newest batch, running = (1 - momentum) running + momentum batch,
    with the batch variance times n/(n-1); None takes the plain average over all batches. affine:
    whether gamma and beta are learned. fused: use the fast function, or else the definition from
    primitives, which can be differentiated twice. ghost_batch_size: in training, treat so many
    samples of a batch at a time as a batch of their own, one after the other, running statistics
    included (Hoffer et al. 2017, algorithm 1). A last ghost batch of one sample joins the one
    before it.

    Attributes: frozen_statistics, False at first; True makes training mode use the running
    statistics and leave them unchanged, while gamma and beta learn unless their requires_grad is
    False; trainable = False does both, as in Keras. latest: the BatchStatistics of the latest
    (ghost) batch in training mode, None before. updates: the number of (ghost) batches seen.
    estimated: whether estimate_population_statistics has replaced the starting values.

    |                  | here and PyTorch | Keras        |
    |------------------|------------------|--------------|
    | momentum         | 0.1              | 0.99 (= 0.01 here: the weight of the old value) |
    | eps              | 1e-5             | 1e-3         |
    | running variance | unbiased         | biased       |

    Raises ValueError for one sample per channel in training mode: it has no variance.
    """

    built = estimated = False
    parameter_names = "gamma", "beta"
    keep_shape = "gamma", "beta", "running_mean", "running_var"
    setting_checks = {"momentum": _or_none(_momentum), "eps": _eps, "input_shape": _features,
                      "affine": as_flag("affine"), "fused": as_flag("fused"),
                      "ghost_batch_size": _or_none(as_whole("ghost_batch_size", 2)),
                      "frozen_statistics": as_flag("frozen_statistics"),
                      "running_mean": _or_none(_array), "running_var": _or_none(_array)}
    fixed_settings = ("affine",)
    habit_words, argument_words = habits.NORM, habits.NORM_ARGUMENTS

    def __init__(self, momentum=0.1, eps=1e-5, affine=True, fused=True, *, ghost_batch_size=None,
                 input_shape=None):
        self.momentum = momentum
        self.eps = eps
        self.affine = affine
        self.fused = fused
        self.ghost_batch_size = ghost_batch_size
        self.input_shape = input_shape
        self.gamma = None
        self.beta = None
        self.running_mean = None
        self.running_var = None
        self.latest = None
        self.updates = np.zeros((), np.int64)  # an array, so that it is a buffer
        self.frozen_statistics = False

    def create_parameters(self):
        """Set gamma and the running variance to 1, beta and the running mean to 0."""
        self._need_shape()
        features = self.input_shape[0]
        if self.affine:
            train = self.trainable
            self.gamma = Parameter(np.ones(features, np.float32), train)
            self.beta = Parameter(np.zeros(features, np.float32), train)
        self.running_mean = np.zeros(features, np.float32)
        self.running_var = np.ones(features, np.float32)
        self.built = True

    def forward(self, x):
        """Normalise x, of one of the three shapes above; the output has the same shape."""
        x = self._checked(x)
        gamma = self.gamma if self.affine else np.ones_like(self.running_var)
        beta = self.beta if self.affine else np.zeros_like(self.running_mean)
        if not self.training or self.frozen_statistics:
            return F.batch_norm_inference(
                x, gamma, beta, self.running_mean, self.running_var, self.eps
            )
        return self._normalize(x, gamma, beta)

    def _checked(self, x):
        """x in the dtype of the statistics, if its shape fits. Builds the layer."""
        shape = x.shape
        if not self.built and len(shape) in (2, 3, 4):
            self.input_shape = self.input_shape or shape[1:]
            self.create_parameters()
        features = len(self.running_mean) if self.built else "features"
        if len(shape) not in (2, 3, 4) or shape[1] != features:
            raise ValueError(f"{self.label} expects inputs of shape (n, {features}), (n, "
                             f"{features}, length) or (n, {features}, height, width), got {shape}")
        return (
            x if x.dtype == self.running_mean.dtype else converted(x, self.running_mean.dtype, self)
        )

    def _normalize(self, x, gamma, beta):
        """Normalise a batch, or each ghost batch in it, by its own statistics, and record them."""
        size = self.ghost_batch_size
        # by repeated halving, because the gradient of each cut is as large as what was cut
        if size and len(x) > size + 1:
            half = (len(x) // size + 1) // 2 * size
            return F.concatenate(
                [self._normalize(part, gamma, beta) for part in (x[:half], x[half:])]
            )
        n = x.size // len(self.running_mean)
        if n < 2:
            raise ValueError(f"{self.label} got {n} sample per channel (input shape {x.shape}) in "
                             "training mode, and one sample has no variance: use a larger batch, "
                             "or model.eval() for single samples")
        function = F.batch_norm if self.fused else F.batch_norm_composed
        y, mean, var = function(x, gamma, beta, self.eps)
        self._update(mean, var, n)
        return y

    def _update(self, mean, var, n):
        """Move the running statistics towards those of a batch of n numbers per feature.

        The biased variance is made unbiased.
        """
        updates = np.asarray(self.updates + 1)
        m = 1 / int(updates) if self.momentum is None else self.momentum
        own = vars(self)  # faster than assigning attributes, which are checked
        own["latest"], own["updates"] = BatchStatistics(mean, var, n), updates
        own["running_mean"] = (1 - m) * self.running_mean + m * mean
        own["running_var"] = (1 - m) * self.running_var + m * n / (n - 1) * var

    def fold(self, dense):
        """A new Dense, or Conv2D, that does the work of `dense` and of this BatchNorm after it.

        In evaluation mode BatchNorm is affine. Both stay as they are. Raises ValueError if they do
        not fit or dense has an activation, RuntimeError if one has no weights yet.
        """
        activation = getattr(dense, "activation", "none of a Dense")
        if activation not in (None, F.linear_activation):
            raise ValueError(f"{self.label} can be folded only into a Dense or Conv2D without "
                             f"activation right before it, got {dense!r}")
        for layer in dense, self:
            layer.parameters()  # complains if there are none yet
        if dense.units != len(self.running_mean):
            raise ValueError(f"{dense.label} has {dense.units} outputs, {self.label} takes "
                             f"{len(self.running_mean)}")
        gamma, beta = (self.gamma.data, self.beta.data) if self.affine else (1.0, 0.0)
        bias = dense.bias.data if dense.use_bias else 0.0
        scale = gamma / np.sqrt(self.running_var + self.eps)
        folded, kernel = copy(dense), Parameter(dense.kernel.data * scale)
        bias = Parameter((bias - self.running_mean) * scale + beta)
        vars(folded).update(use_bias=True, activation=None, kernel=kernel, bias=bias)
        return folded

    def __repr__(self):
        return f"{type(self).__name__}({self.input_shape[0] if self.input_shape else ''})"


class LayerNorm(Module):
    """Layer Normalization (Ba, Kiros and Hinton 2016): BatchNorm's formula along the other axis.

    Each sample is normalised over its own features: no running statistics, no difference between
    training and evaluation, and a batch of one works. affine: whether gamma and beta (features,)
    are learned. Input (n, features); of (n, ..., features) each row along the last axis is
    normalised by itself, so put Flatten() before it to normalise whole images. Raises ValueError
    for another number of features.
    """

    built = False
    gamma = beta = None
    parameter_names = keep_shape = "gamma", "beta"
    setting_checks = {"eps": _eps, "affine": as_flag("affine"), "input_shape": as_shape}
    fixed_settings = ("affine",)
    habit_words, argument_words = habits.NORM, habits.NORM_ARGUMENTS

    def __init__(self, eps=1e-5, affine=True, *, input_shape=None):
        self.eps = eps
        self.affine = affine
        self.input_shape = input_shape

    def create_parameters(self):
        """Set gamma to 1, beta to 0."""
        self._need_shape()
        if self.affine:
            train = self.trainable
            self.gamma = Parameter(np.ones(self.input_shape[-1], np.float32), train)
            self.beta = Parameter(np.zeros(self.input_shape[-1], np.float32), train)
        self.built = True

    def forward(self, x):
        """x: (n, ..., features), to the same shape."""
        shape = x.shape
        if not self.built and len(shape) > 1:
            self.input_shape = self.input_shape or shape[1:]
            self.create_parameters()
        features = self.input_shape[-1] if self.input_shape else "features"
        if len(shape) < 2 or shape[-1] != features:
            raise ValueError(f"{self.label} expects inputs of shape (n, {features}), got {shape}")
        dtype = self.gamma.dtype if self.affine else np.result_type(x.dtype, np.float32)
        gamma, beta = (self.gamma, self.beta) if self.affine else (1.0, 0.0)
        return F.layer_norm(
            x if x.dtype == dtype else converted(x, dtype, self), gamma, beta, self.eps
        )

    def __repr__(self):
        return f"LayerNorm({self.input_shape[-1] if self.input_shape else ''})"


def estimate_population_statistics(model, x, batch_size=256):
    """Set all running statistics of model's BatchNorms to averages over the whole of x.

    Ioffe and Szegedy 2015, algorithm 2 ("precise BN"): the mean of the batch means and of the
    unbiased batch variances, instead of averages that favour the latest batches. x: training inputs
    (n, ...), cut into batches of at least batch_size. Only BatchNorm is in training mode meanwhile;
    no weight changes. Frozen statistics are set too, because the caller asks for it, and stay
    frozen.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm)]
    settings = {
        "momentum": None,
        "updates": np.zeros((), np.int64),
        "frozen_statistics": False,
        "latest": None,
    }
    before = [{name: getattr(layer, name) for name in settings} for layer in layers]
    with evaluation(model), no_grad():
        for layer in layers:
            vars(layer).update(settings, training=True)
        try:
            # equal in size, because each counts the same
            for xb in np.array_split(x, max(1, len(x) // batch_size)):
                model(xb)
            for layer in layers:
                layer.estimated = True
        finally:
            for layer, kept in zip(layers, before):
                vars(layer).update(kept)
