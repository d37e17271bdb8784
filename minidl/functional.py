"""The mathematics of layers and losses: pure functions of arrays or Tensors, no state.

Every function also takes plain arrays and then gives plain arrays. The ops of `tensor.py` are offered
here too, so that one import (`import minidl.functional as F`) has them all.
"""

import functools
import math

import numpy as np

from .tensor import (Fused, Op, Tensor, _array, abs, broadcast_to, clip, concatenate, exp, getitem, log, matmul,  # noqa: F401
                     max, maximum, mean, min, minimum, power, reshape, sqrt, stack, sum, transpose, var, where)

# --- Activations --------------------------------------------------------------------------------------

relu = Op("relu", lambda x: np.maximum(x, 0),
          lambda g, y, x: g * (y > 0))

tanh = Op("tanh", lambda x: np.tanh(x),
          lambda g, y, x: g * (1 - y * y))

_leaky_relu = Op("leaky_relu", lambda x, slope: np.where(x > 0, x, slope * x),
                 lambda g, y, x, slope: where(x > 0, g, slope * g))

_softplus = Op("softplus", lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
               lambda g, y, x: g * sigmoid(x))


@np.errstate(over="ignore")  # exp(-x) = inf is right: 1 / (1 + inf) = 0
def _sigmoid_forward(x):
    y = np.exp(-x)
    y += 1
    return np.divide(1, y, out=y if y.ndim else None)  # of one number, exp gives a NumPy scalar


sigmoid = Op("sigmoid", _sigmoid_forward,
             lambda g, y, x: g * (y * (1 - y)))


def leaky_relu(x, slope=0.01):
    """x where positive, slope * x elsewhere."""
    return _leaky_relu(x, slope=float(slope))


def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return _softplus(x)


def gelu(x):
    """Gaussian error linear unit, in the tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Hendrycks and Gimpel 2016, section 2.
    """
    return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def linear_activation(x):
    """x itself: the activation of a layer that has none."""
    return x


# --- Softmax and its logarithm, along `axis`. Subtracting the maximum changes nothing but the range. ---

def _softmax_forward(x, axis):
    y = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))
    y /= np.add.reduce(y, axis=axis, keepdims=True)
    return y


_softmax = Op("softmax", _softmax_forward,
              lambda g, y, x, axis: y * (g - sum(g * y, axis, keepdims=True)))

_logsumexp = Op("logsumexp", lambda x, axis: _logsumexp_forward(x, axis),
                lambda g, y, x, axis: g * softmax(x, axis))

_log_softmax = Op("log_softmax", lambda x, axis: _log_softmax_forward(x, axis),
                  lambda g, y, x, axis: g - exp(y) * sum(g, axis, keepdims=True))


def _log_softmax_forward(x, axis):
    y = x - np.maximum.reduce(x, axis=axis, keepdims=True)  # first, so that a large x keeps the digits of the logarithm
    y -= np.log(np.add.reduce(np.exp(y), axis=axis, keepdims=True))
    return y


def _logsumexp_forward(x, axis):
    largest = np.maximum.reduce(x, axis=axis, keepdims=True)
    return largest + np.log(np.add.reduce(np.exp(x - largest), axis=axis, keepdims=True))


def softmax(x, axis=-1):
    """exp(x) / sum(exp(x)): positive, sums to 1 along axis."""
    return _softmax(x, axis=axis)


def log_softmax(x, axis=-1):
    """log(softmax(x)), exact where the softmax itself would be rounded to 0."""
    return _log_softmax(x, axis=axis)


def logsumexp(x, axis=-1):
    """log(sum(exp(x))) along axis, which is removed."""
    return getitem(_logsumexp(x, axis=axis), index=(slice(None),) * (axis % x.ndim) + (0,))


# --- The affine map of a Dense layer ------------------------------------------------------------------

@functools.lru_cache(maxsize=16)
def _ones(n, dtype):
    """n ones, made once. ones @ x is the sum over the batch, and BLAS takes half the time of np.add.reduce for it."""
    ones = np.ones(n, dtype)
    ones.flags.writeable = False
    return ones


def _linear_forward(x, kernel, bias):
    y = x.dot(kernel)  # the product x @ kernel, with less ado for small arrays
    y += bias
    return y


_linear = Op("linear", _linear_forward,
             lambda g, y, x, kernel, bias: g.dot(kernel.T),
             lambda g, y, x, kernel, bias: x.T.dot(g),
             lambda g, y, x, kernel, bias: g.T.dot(_ones(len(g), g.dtype)))


def linear(x, kernel, bias=None):
    """x @ kernel + bias. x: (n, inputs) or more axes before the last, kernel: (inputs, units), bias: (units,) or None."""
    if x.ndim == 2 and bias is not None:
        return _linear(x, kernel, bias)
    y = matmul(x, kernel)
    return y if bias is None else y + bias


# --- Losses: scalars, the mean over the batch ---------------------------------------------------------

def _checked_labels(labels, logits):
    """What the losses below take, or an error that says what is wrong with the labels.

    Of class numbers (n,) their places (n,) in the logits, counted row after row; rows of class probabilities
    (n, classes) as they are.
    """
    labels, shape = np.asarray(_array(labels)), logits.shape
    if len(shape) != 2 or labels.shape not in (shape[:1], shape):
        raise ValueError(f"cross-entropy takes logits of shape (n, classes) and labels of shape (n,) or (n, classes); "
                         f"got {shape} and {labels.shape}"
                         + ("; use y.reshape(-1)" if labels.shape == (*shape[:1], 1) else ""))
    n, classes = shape
    if n == 0:
        raise ValueError("cross-entropy of an empty batch: there is no sample to take the mean over")
    if labels.ndim == 2:
        return labels.astype(logits.dtype, copy=False)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"class labels are integers 0 to {classes - 1}, got dtype {labels.dtype}; use y.astype(int)")
    try:
        return np.ravel_multi_index((np.arange(n), labels), (n, classes))
    except ValueError:
        raise ValueError(f"class labels must lie in 0 to {classes - 1}, as there are {classes} logits; "
                         f"got labels from {labels.min()} to {labels.max()}") from None


def _cross_entropy_forward(logits, labels):
    n, classes = logits.shape
    x = logits - logits[np.arange(n), logits.argmax(axis=1), None]  # twice as fast as max(axis=1) in rows of 10
    p = np.exp(x)
    total = p.dot(_ones(classes, p.dtype))
    if labels.ndim == 1:
        loss = np.add.reduce(np.log(total) - x.take(labels)) / n
    else:
        loss = np.add.reduce(labels * (np.log(total)[:, None] - x), axis=None) / n

    def vjp(g):
        scale = float(g) / n
        if labels.ndim == 1:
            gx = p * (scale / total)[:, None]
            gx.put(labels, gx.take(labels) - scale)  # both count row after row, however the array lies in memory
        else:
            gx = p * (labels.sum(axis=1) / total)[:, None]
            gx -= labels
            gx *= scale
        return (gx,)

    return loss, vjp


_cross_entropy = Fused("cross_entropy", _cross_entropy_forward, composed="cross_entropy_composed")


def cross_entropy(logits, labels):
    """Mean of -log softmax(logits)[label]: softmax and cross-entropy in one, exact for logits of any size.

    logits: (n, classes), what the last layer gives before any softmax. labels: class numbers (n,) or
    class probabilities such as one-hot rows (n, classes). Raises ValueError or TypeError for labels
    that do not fit.
    """
    return _cross_entropy(logits, labels=_checked_labels(labels, logits))


def cross_entropy_composed(logits, labels):
    """The same value as `cross_entropy` from primitives: slower, but can be differentiated twice."""
    labels = _checked_labels(labels, logits)
    if labels.ndim == 1:
        return -mean(_at(log_softmax(logits), labels))
    return -sum(log_softmax(logits) * labels) / len(labels)


def _at(x, places):
    """The numbers of x (n, classes) at the places that `_checked_labels` gave."""
    return getitem(x.reshape(-1), index=places)


def categorical_crossentropy(probabilities, labels):
    """Cross-entropy of probabilities, for a model that ends in softmax. Shapes as in `cross_entropy`.

    If the probabilities come straight from `softmax`, the loss is computed on its logits and stays exact
    where a probability is rounded to 0. Raises ValueError for values that are no probabilities.
    """
    if _made_by(probabilities, _softmax):
        return cross_entropy(probabilities.inputs[0], labels)
    labels = _checked_labels(labels, probabilities)
    _check_probabilities(probabilities, "Activation('softmax')", "loss='cross_entropy'")
    if labels.ndim == 1:
        return -mean(log(_at(probabilities, labels)))
    # 0 log 0 is 0: what has no weight in the labels is left out of the logarithm.
    return -sum(labels * log(where(labels > 0, probabilities, 1.0))) / len(labels)


def binary_cross_entropy(probabilities, targets):
    """Mean of -(t log p + (1 - t) log(1 - p)). Exact at p = 0 and 1 if p comes straight from `sigmoid`."""
    if _made_by(probabilities, sigmoid):
        return binary_cross_entropy_with_logits(probabilities.inputs[0], targets)
    targets = _checked_targets(targets, probabilities, "binary_cross_entropy")
    _check_probabilities(probabilities, "Activation('sigmoid')", "binary_cross_entropy_with_logits")
    log_p, log_q = log(where(targets > 0, probabilities, 1.0)), log(where(targets < 1, 1 - probabilities, 1.0))
    return -mean(targets * log_p + (1 - targets) * log_q)


def binary_cross_entropy_with_logits(logits, targets):
    """Mean of softplus(x) - t x: binary cross-entropy of sigmoid(x), exact for any x. Targets lie in [0, 1]."""
    targets = _checked_targets(targets, logits, "binary_cross_entropy_with_logits")
    return mean(softplus(logits) - targets * logits)


def mse_loss(prediction, target):
    """Mean squared error over all entries; the shapes must be equal, so that nothing is broadcast unseen."""
    if not isinstance(target, Tensor):
        target = np.asarray(target, prediction.dtype)  # integers would turn float32 into float64
    if prediction.shape != target.shape:
        raise ValueError(f"mse_loss needs equal shapes, got prediction {prediction.shape} and target {target.shape}"
                         + _column_hint(target, prediction))
    difference = prediction - target
    return mean(difference * difference)


def _column_hint(target, x):
    return "; use y.reshape(-1, 1)" if (*target.shape, 1) == x.shape else ""


def _made_by(x, op):
    """Whether x is the recorded result of op over the last axis, so that x.inputs[0] are its logits."""
    return isinstance(x, Tensor) and x.op is op and x.saved is not None and x.saved[1].get("axis", -1) in (-1, x.ndim - 1)


def _check_probabilities(p, activation, instead):
    p = _array(p)
    if p.size == 0 or not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"this loss takes probabilities between 0 and 1, got values from {p.min()} to {p.max()}: "
                         f"end the model with {activation}, or use {instead} on what it gives now")


def _checked_targets(targets, x, name):
    targets = np.asarray(_array(targets))
    if targets.shape != x.shape or x.size == 0:
        raise ValueError(f"{name} needs targets of the same shape as its input and at least one entry, "
                         f"got targets {targets.shape} and input {x.shape}" + _column_hint(targets, x))
    if not (targets.min() >= 0 and targets.max() <= 1):
        raise ValueError(f"{name} takes targets between 0 and 1, got {targets.min()} to {targets.max()}")
    return targets.astype(x.dtype, copy=False)


# --- Batch Normalization (Ioffe and Szegedy 2015, algorithm 1) -----------------------------------------

def _batch_norm_forward(x, gamma, beta, eps):
    n = len(x)
    ones = _ones(n, x.dtype if x.dtype.kind == "f" else np.dtype(float))  # the dot product of bytes is a byte
    mean = ones.dot(x) / n
    centred = x - mean
    var = ones.dot(centred * centred) / n
    scale = 1 / np.sqrt(var + eps)
    slope = gamma * scale
    y = centred * slope
    y += beta

    def vjp(g):
        # The mean and the variance depend on every x, hence two terms more than in an affine map:
        # dx = gamma scale (g - mean(g) - normalized * mean(g * normalized)), the paper's section 3, where
        # normalized = centred * scale.
        g_beta = ones.dot(g)
        g_gamma = ones.dot(g * centred) * scale
        gx = centred * (g_gamma * scale / -n)
        gx += g
        gx -= g_beta / n
        gx *= slope
        return gx, g_gamma, g_beta

    return y, vjp, mean, var


_batch_norm = Fused("batch_norm", _batch_norm_forward, composed="batch_norm_composed")


def batch_norm(x, gamma, beta, eps=1e-5):
    """Normalise each feature over the batch, then scale and shift: y = gamma (x - mean) / sqrt(var + eps) + beta.

    x: (n, features), or (n, channels, height, width) normalised per channel. gamma, beta: (features,).
    Returns (y, mean, var): the batch's mean and *biased* variance are plain arrays, for a layer to keep.
    Variance by two passes; E[x^2] - E[x]^2 would lose all its digits where the mean is large.
    """
    if x.ndim == 2:
        return _batch_norm(x, gamma, beta, eps=eps)
    if x.ndim != 4:
        raise ValueError(f"batch_norm takes x of shape (n, features) or (n, channels, height, width), got {x.shape}")
    n, c, h, w = x.shape  # per channel is per feature, once every pixel counts as a sample
    y, mean, var = _batch_norm(x.transpose(0, 2, 3, 1).reshape(n * h * w, c), gamma, beta, eps=eps)
    return y.reshape(n, h, w, c).transpose(0, 3, 1, 2), mean, var


def batch_norm_composed(x, gamma, beta, eps=1e-5):
    """The definition of `batch_norm`, line by line from primitives: the gradient follows by itself."""
    axes = (0,) + tuple(range(2, x.ndim))
    batch_mean = mean(x, axes, keepdims=True)
    batch_var = mean((x - batch_mean) ** 2, axes, keepdims=True)
    normalized = (x - batch_mean) / sqrt(batch_var + eps)
    y = per_channel(gamma, x) * normalized + per_channel(beta, x)
    return y, _array(batch_mean).reshape(-1), _array(batch_var).reshape(-1)


def batch_norm_inference(x, gamma, beta, running_mean, running_var, eps=1e-5):
    """The same map with fixed statistics: each sample by itself. Differentiable in x, gamma and beta."""
    scale = gamma / np.sqrt(running_var + eps)
    return (x - per_channel(running_mean, x)) * per_channel(scale, x) + per_channel(beta, x)


def per_channel(v, x):
    """v of shape (c,) reshaped to broadcast against x of shape (n, c, ...)."""
    return v if x.ndim == 2 else v.reshape(-1, *(1,) * (x.ndim - 2))


# --- Layer Normalization (Ba, Kiros and Hinton 2016): the same along the other axis --------------------

def _layer_norm_forward(x, gamma, beta, eps):
    normalized, transposed_vjp, *_ = _batch_norm_forward(x.T, 1.0, 0.0, eps)

    def vjp(g):
        gx, *_ = transposed_vjp((g * gamma).T)
        return gx.T, np.einsum("ij,ij->j", g, normalized.T), np.add.reduce(g, axis=0)

    return normalized.T * gamma + beta, vjp


_layer_norm = Fused("layer_norm", _layer_norm_forward, composed="layer_norm_composed")


def layer_norm(x, gamma, beta, eps=1e-5):
    """Normalise each sample over its features, then scale and shift. x: (..., features). gamma, beta: (features,)."""
    return _layer_norm(x.reshape(-1, x.shape[-1]), gamma, beta, eps=eps).reshape(x.shape)


def layer_norm_composed(x, gamma, beta, eps=1e-5):
    """The definition of `layer_norm` from primitives: slower, but can be differentiated twice."""
    return gamma * (x - mean(x, -1, keepdims=True)) / sqrt(var(x, -1, keepdims=True) + eps) + beta
