"""The mathematics of layers and losses: pure functions of arrays or Tensors, no state.

Every function also takes plain arrays and then returns plain arrays. The ops of `tensor.py` are
offered here too, so that one import (`import minidl.functional as F`) has them all.
"""

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from . import habits
from .tensor import (  # noqa: F401
    HALF,
    MANY,
    Fused,
    Op,
    Tensor,
    abs,
    broadcast_to,
    clip,
    concatenate,
    constant,
    exp,
    floats,
    getitem,
    in_float32,
    log,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    plain,
    power,
    reshape,
    sqrt,
    stack,
    sum,
    transpose,
    var,
    where,
)

if TYPE_CHECKING:  # for the editor, which lists and completes them
    from .ops import *  # noqa: F403


def __getattr__(name):
    """The ops of `ops.py`, which nothing here needs, are found when they are asked for."""
    from . import ops
    if name in ops.__all__:
        return getattr(ops, name)
    raise habits.unknown("minidl.functional", name, habits.FUNCTIONAL)


def __dir__():
    from . import ops
    return [*globals(), *ops.__all__]


# --- Activations ----------------------------------------------------------------------------------

relu = Op("relu", lambda x: np.maximum(x, 0),
          lambda g, y: g * (y > 0),
          doc="x where it is positive, 0 elsewhere.")

tanh = Op("tanh", lambda x: np.tanh(floats(x)),
          lambda g, y: g * (1 - y * y),
          doc="The hyperbolic tangent: from -1 to 1.")

_leaky_relu = Op("leaky_relu", lambda x, slope: np.where(x > 0, x, slope * x),
                 lambda g, x, slope: where(x > 0, g, slope * g))

_elu = Op("elu", lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
          lambda g, y, x, alpha: where(x > 0, g, g * (y + alpha)))

_softplus = Op("softplus", lambda x: _softplus_forward(floats(x)),
               lambda g, x: g * sigmoid(x))


@np.errstate(over="ignore")  # exp(-x) = inf is right: 1 / (1 + inf) = 0
def _sigmoid_forward(x):
    y = np.exp(-floats(x))
    y += 1
    return np.divide(1, y, out=y if y.ndim else None)  # exp of one number is a NumPy scalar


_sigmoid = Op("sigmoid", _sigmoid_forward,
              lambda g, y: g * (y * (1 - y)))


def _softplus_forward(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x) -> Tensor:
    """1 / (1 + exp(-x)): between 0 and 1.

    The result remembers its logits, x, for a loss on probabilities.
    """
    y = _sigmoid(x)
    if isinstance(y, Tensor):
        y.sigmoid_of = x
    return y


def leaky_relu(x, slope=0.01) -> Tensor:
    """x where positive, slope * x elsewhere. slope: a number."""
    return _leaky_relu(x, slope=float(constant(slope, "slope")))


def elu(x, alpha=1.0) -> Tensor:
    """x where positive, alpha (exp(x) - 1) elsewhere (Clevert et al. 2016). alpha: a number."""
    x = x if isinstance(x, Tensor) else floats(x)
    return _elu(x, alpha=float(constant(alpha, "alpha")))


def silu(x) -> Tensor:
    """x sigmoid(x), also called swish (Ramachandran et al. 2017)."""
    return x * _sigmoid(x)


def softplus(x) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return _softplus(x)


def gelu(x) -> Tensor:
    """Gaussian error linear unit, in the tanh form: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Hendrycks and Gimpel 2016, section 2. At most 0.0005 from `gelu_exact`, and quicker.
    """
    x = x if isinstance(x, Tensor) else floats(x)
    return 0.5 * x * (1 + tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def gelu_exact(x) -> Tensor:
    """x times the share of a normal distribution below x: what Keras and PyTorch call gelu."""
    from .ops import erf
    x = x if isinstance(x, Tensor) else floats(x)
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def linear_activation(x) -> Tensor:
    """x itself: the activation of a layer that has none."""
    return x


# --- Softmax and its logarithm along `axis`, one or a tuple ---------------------------------------
# Subtracting the maximum changes nothing but the range.

def _softmax_forward(x, axis):
    x = floats(x)
    y = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))
    y /= np.add.reduce(y, axis=axis, keepdims=True)
    return y


_softmax = Op("softmax", _softmax_forward,
              lambda g, y, axis: y * (g - sum(g * y, axis, keepdims=True)))

_logsumexp = Op("logsumexp", lambda x, axis: _logsumexp_forward(floats(x), axis),
                lambda g, x, axis: g * softmax(x, axis))

_log_softmax = Op("log_softmax", lambda x, axis: _log_softmax_forward(floats(x), axis),
                  lambda g, y, axis: g - exp(y) * sum(g, axis, keepdims=True))


def _log_softmax_forward(x, axis):
    # subtracted first, so that with a large x the logarithm keeps its digits
    y = x - np.maximum.reduce(x, axis=axis, keepdims=True)
    y -= np.log(np.add.reduce(np.exp(y), axis=axis, keepdims=True))
    return y


def _logsumexp_forward(x, axis):
    largest = np.maximum.reduce(x, axis=axis, keepdims=True)
    return largest + np.log(np.add.reduce(np.exp(x - largest), axis=axis, keepdims=True))


def softmax(x, axis=-1) -> Tensor:
    """exp(x) / sum(exp(x)): positive, sums to 1 along axis.

    Over the last axis the result remembers its logits, x.
    """
    x = _checked_axis(x, axis)
    y = in_float32(softmax, x, axis) if x.dtype is HALF else _softmax(x, axis=axis)
    if isinstance(y, Tensor) and axis in (-1, x.ndim - 1):
        y.softmax_of = x
    return y


def log_softmax(x, axis=-1) -> Tensor:
    """log(softmax(x)), exact where the softmax itself would be rounded to 0."""
    x = _checked_axis(x, axis)
    return in_float32(log_softmax, x, axis) if x.dtype is HALF else _log_softmax(x, axis=axis)


def logsumexp(x, axis=-1) -> Tensor:
    """log(sum(exp(x))) along axis, which is removed."""
    x = _checked_axis(x, axis)
    if x.dtype is HALF:
        return in_float32(logsumexp, x, axis)
    axes = [i % x.ndim for i in (axis if isinstance(axis, tuple) else (axis,))]
    rest = [n for i, n in enumerate(x.shape) if i not in axes]
    return reshape(_logsumexp(x, axis=axis), rest)


def _checked_axis(x, axis):
    """x as a Tensor or an array that has this axis."""
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if x.ndim == 0:
        raise ValueError(f"softmax and its kin work along an axis, here {axis}, but got a single "
                         "number")
    return x


# --- The affine map of a Dense layer --------------------------------------------------------------

@functools.lru_cache(maxsize=16)
def _ones(n, dtype):
    """n ones, made once.

    ones @ x is the sum over the batch, and BLAS takes half the time of np.add.reduce for it.
    """
    ones = np.ones(n, dtype)
    ones.flags.writeable = False
    return ones


@functools.lru_cache(maxsize=16)
def _rows(n):
    """The numbers of n rows, made once."""
    return np.arange(n)


def column_sums(x):
    """The sum over the batch, for each feature. x: an array (n, features)."""
    if x.dtype is HALF:
        return np.add.reduce(x, axis=0, dtype=np.float64).astype(x.dtype)
    if len(x) > MANY:
        pieces = [column_sums(x[i:i + MANY]) for i in range(0, len(x), MANY)]
        return np.add.reduce(pieces, axis=0, dtype=np.float64).astype(x.dtype)
    return _ones(len(x), x.dtype).dot(x)


def _linear_forward(x, kernel, bias):
    if kernel.ndim != 2 or bias is not None and (bias.ndim != 1 or bias.size != kernel.shape[1]):
        raise ValueError(_linear_shapes(x, kernel, bias))
    y = x.dot(kernel)  # x @ kernel, with less overhead for small arrays
    if bias is not None:
        y += bias
    return y


_linear = Op("linear", _linear_forward,
             lambda g, kernel: g.dot(kernel.T),
             lambda g, x: _as_batch(x).T.dot(_as_batch(g)),
             lambda g: _sum_of_rows(_as_batch(g)))


def _as_batch(x):
    return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


def _sum_of_rows(g):
    return sum(g, axis=0) if len(g) > MANY or g.dtype is HALF else g.T.dot(_ones(len(g), g.dtype))


def linear(x, kernel, bias=None) -> Tensor:
    """x @ kernel + bias.

    x: (n, inputs) or more axes before the last. kernel: (inputs, units). bias: (units,) or None.
    Raises ValueError for other shapes.
    """
    return _linear(x, kernel, bias)


def _linear_shapes(x, kernel, bias):
    return ("linear takes x of shape (n, inputs), a kernel (inputs, units) and a bias (units,) or "
            f"None; got {x.shape}, {kernel.shape} and {None if bias is None else bias.shape}")


# --- Losses: the mean over the batch, or by reduction="sum" the sum, by "none" all numbers --------

def _reduced(losses, reduction):
    """The mean of the losses, their sum, or the losses themselves, in PyTorch's words."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', got {reduction!r}")
    return mean(losses) if reduction == "mean" else sum(losses) if reduction == "sum" else losses


def _checked_labels(labels, logits):
    """Labels as the losses below take them, or an error that says what is wrong with them.

    Class numbers (n,) become their places (n,) in the logits, counted row by row; rows of class
    probabilities (n, classes) stay as they are, as a Tensor if they require a gradient.
    """
    given, labels, shape = labels, np.asarray(plain(labels)), logits.shape
    if len(shape) != 2 or labels.shape not in (shape[:1], shape):
        raise ValueError("cross-entropy takes logits of shape (n, classes) and labels of shape "
                         f"(n,) or (n, classes); got {shape} and {labels.shape}"
                         + ("; use y.reshape(-1)" if labels.shape == (*shape[:1], 1) else "")
                         + ("; reshape both, to (-1, classes) and (-1)"
                            if len(shape) > 2 and labels.shape == shape[:-1] else
                            "; put Flatten() before the first Dense" if len(shape) > 2 else ""))
    n, classes = shape
    if n == 0:
        raise ValueError("cross-entropy of an empty batch: there is no sample to take the mean "
                         "over")
    if classes == 1:
        raise ValueError("cross-entropy over one class is always 0, so nothing would be learned: "
                         "for two classes end the model with Dense(1, 'sigmoid') and use "
                         "loss='binary_crossentropy', or with Dense(2) and class numbers 0 and 1; "
                         "for other targets use loss='mse'")
    if labels.ndim == 2:
        if isinstance(given, Tensor) and given.requires_grad:
            return given if given.dtype == logits.dtype else given.astype(logits.dtype)
        return labels.astype(logits.dtype, copy=False)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"class labels are integers 0 to {classes - 1}, got dtype {labels.dtype}; "
                        "use y.astype(int)")
    try:
        return np.ravel_multi_index((_rows(n), labels), (n, classes))
    except ValueError:
        raise ValueError(f"class labels must lie in 0 to {classes - 1}, as there are {classes} "
                         f"logits; got labels from {labels.min()} to {labels.max()}") from None


def _cross_entropy_forward(logits, labels):
    n, classes = logits.shape
    # twice as fast as max(axis=1) in rows of 10
    x = logits - logits[_rows(n), logits.argmax(axis=1), None]
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
            # both count row by row, whatever the array's order in memory
            gx.put(labels, gx.take(labels) - scale)
        else:
            gx = p * (labels.sum(axis=1) / total)[:, None]
            gx -= labels
            gx *= scale
        return (gx,)

    return loss, vjp


_cross_entropy = Fused("cross_entropy", _cross_entropy_forward, composed="cross_entropy_composed")


def _real(x):
    """A prediction with floating-point numbers, as a Tensor if it is one, else as an array."""
    if isinstance(x, Tensor):
        return x if x.dtype.kind == "f" else Tensor(floats(x.data))
    return floats(x)


def _smoothed(labels, x, share):
    """Checked labels as rows, this share of which is spread evenly over all classes of x.

    Szegedy et al. 2016, section 7.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"label_smoothing is a share from 0 to 1, got {share!r}")
    if labels.ndim == 1:
        rows = np.zeros(x.size, x.dtype)
        rows[labels] = 1
        labels = rows.reshape(x.shape)
    return (1 - float(share)) * labels + float(share) / x.shape[1]


def cross_entropy(logits, labels, *, reduction="mean", label_smoothing=0.0, ignore_index=None
                  ) -> Tensor:
    """The mean of -log softmax(logits)[label]: softmax and cross-entropy in one.

    >>> cross_entropy(Tensor([[2.0, 0.0], [0.0, 2.0]]), [0, 0])
    Tensor(1.1269)

    Exact for logits of any size. logits: (n, classes), what the last layer returns before any
    softmax. labels: class numbers (n,) or class probabilities such as one-hot rows (n, classes).
    label_smoothing: the share of each label that is spread over all classes. ignore_index: a class
    number whose samples do not count (PyTorch: -100). Raises ValueError or TypeError for labels
    that do not fit.
    """
    if reduction != "mean" or ignore_index is not None:
        return cross_entropy_composed(
            logits, labels, reduction=reduction, ignore_index=ignore_index,
            label_smoothing=label_smoothing)
    logits = _real(logits)
    if logits.dtype is HALF:
        return in_float32(cross_entropy, logits, labels, label_smoothing=label_smoothing)
    labels = _checked_labels(labels, logits)
    if label_smoothing:
        labels = _smoothed(labels, logits, label_smoothing)
    # labels with a gradient of their own, which the fused function does not compute
    if isinstance(labels, Tensor):
        return cross_entropy_composed(logits, labels)
    return _cross_entropy(logits, labels=labels)


def cross_entropy_composed(logits, labels, *, reduction="mean", label_smoothing=0.0,
                           ignore_index=None) -> Tensor:
    """`cross_entropy` from primitives: the same value, slower, but can be differentiated twice."""
    logits = _real(logits)
    if logits.dtype is HALF:
        return in_float32(cross_entropy_composed, logits, labels, reduction=reduction,
                          label_smoothing=label_smoothing, ignore_index=ignore_index)
    counts = None
    if ignore_index is not None:
        labels = np.asarray(plain(labels))
        counts = labels != ignore_index
        if labels.ndim != 1 or not counts.any():
            raise ValueError("ignore_index needs class numbers (n,), at least one of another class "
                             f"than {ignore_index}; got labels of shape {labels.shape}")
        labels = np.where(counts, labels, 0)
    labels = _checked_labels(labels, logits)
    if label_smoothing:
        labels = _smoothed(labels, logits, label_smoothing)
    found = log_softmax(logits)
    found = _at(found, labels) if labels.ndim == 1 else sum(found * labels, axis=1)
    if counts is None:
        return -_reduced(found, reduction)
    found = where(counts, found, 0.0)
    return -(sum(found) / int(counts.sum()) if reduction == "mean" else _reduced(found, reduction))


def _at(x, places):
    """The numbers of x (n, classes) at the places that `_checked_labels` found."""
    return getitem(x.reshape(-1), index=places)


def categorical_crossentropy(probabilities, labels, *, reduction="mean", label_smoothing=0.0
                             ) -> Tensor:
    """Cross-entropy of probabilities, for a model that ends in softmax.

    Shapes and options as in `cross_entropy`. If the probabilities come straight from `softmax`, the
    loss is computed from its logits and stays exact where a probability is rounded to 0. Raises
    ValueError for values that are no probabilities.
    """
    logits = getattr(probabilities, "softmax_of", None)  # an array has none
    if logits is not None:
        return cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)
    probabilities = _real(probabilities)
    if probabilities.dtype is HALF:
        return in_float32(categorical_crossentropy, probabilities, labels, reduction=reduction,
                          label_smoothing=label_smoothing)
    labels = _checked_labels(labels, probabilities)
    if label_smoothing:
        labels = _smoothed(labels, probabilities, label_smoothing)
    _check_probabilities(probabilities, "Activation('softmax')", "loss='cross_entropy'")
    if labels.ndim == 1:
        return -_reduced(log(_at(probabilities, labels)), reduction)
    # 0 log 0 is 0: entries without weight in the labels are kept out of the logarithm.
    logs = labels * log(where(labels > 0, probabilities, 1.0))
    return -_reduced(sum(logs, axis=1), reduction)


def binary_cross_entropy(probabilities, targets, *, reduction="mean") -> Tensor:
    """Mean of -(t log p + (1 - t) log(1 - p)).

    Exact at p = 0 and 1 if p comes straight from `sigmoid`.
    """
    logits = getattr(probabilities, "sigmoid_of", None)
    if logits is not None:
        return binary_cross_entropy_with_logits(logits, targets, reduction=reduction)
    probabilities = _real(probabilities)
    if probabilities.dtype is HALF:
        return in_float32(binary_cross_entropy, probabilities, targets, reduction=reduction)
    targets = _checked_targets(targets, probabilities, "binary_cross_entropy")
    _check_probabilities(probabilities, "Activation('sigmoid')", "binary_cross_entropy_with_logits")
    log_p, log_q = (
        log(where(targets > 0, probabilities, 1.0)),
        log(where(targets < 1, 1 - probabilities, 1.0)),
    )
    return -_reduced(targets * log_p + (1 - targets) * log_q, reduction)


def binary_cross_entropy_with_logits(logits, targets, *, reduction="mean") -> Tensor:
    """Mean of softplus(x) - t x: binary cross-entropy of sigmoid(x), exact for any x.

    Targets lie in [0, 1].
    """
    logits = _real(logits)
    if logits.dtype is HALF:
        return in_float32(binary_cross_entropy_with_logits, logits, targets, reduction=reduction)
    targets = _checked_targets(targets, logits, "binary_cross_entropy_with_logits")
    return _reduced(softplus(logits) - targets * logits, reduction)


def mse_loss(prediction, target, *, reduction="mean") -> Tensor:
    """Mean squared error over all entries; the shapes must be equal, so nothing is broadcast."""
    if (prediction := _real(prediction)).dtype is HALF:
        return in_float32(mse_loss, prediction, target, reduction=reduction)
    difference = _difference("mse_loss", prediction, target)
    return _reduced(difference * difference, reduction)


def l1_loss(prediction, target, *, reduction="mean") -> Tensor:
    """Mean absolute error over all entries, Keras' "mae"; shapes as in `mse_loss`."""
    if (prediction := _real(prediction)).dtype is HALF:
        return in_float32(l1_loss, prediction, target, reduction=reduction)
    return _reduced(abs(_difference("l1_loss", prediction, target)), reduction)


def huber_loss(prediction, target, delta=1.0, *, reduction="mean") -> Tensor:
    """Mean of d^2 / 2 where the error |d| is at most delta, else of delta (|d| - delta / 2).

    Huber 1964: outliers pull with a constant force. Shapes as in `mse_loss`.
    """
    if (prediction := _real(prediction)).dtype is HALF:
        return in_float32(huber_loss, prediction, target, delta, reduction=reduction)
    error = abs(_difference("huber_loss", prediction, target))
    losses = where(error <= delta, 0.5 * error * error, delta * (error - 0.5 * delta))
    return _reduced(losses, reduction)


def _difference(name, prediction, target):
    if not isinstance(target, Tensor) or not target.requires_grad:
        # integers would turn float32 into float64
        target = np.asarray(plain(target), prediction.dtype)
    if prediction.shape != target.shape:
        raise ValueError(f"{name} needs equal shapes, got prediction {prediction.shape} and target "
                         f"{target.shape}" + _column_hint(target, prediction))
    return prediction - target


def _column_hint(target, x):
    return "; use y.reshape(-1, 1)" if (*target.shape, 1) == x.shape else ""


def _check_probabilities(p, activation, instead):
    p = plain(p)
    if p.size == 0 or not (p.min() >= 0 and p.max() <= 1):
        raise ValueError("this loss takes probabilities between 0 and 1, got values from "
                         f"{p.min()} to {p.max()}: end the model with {activation}, or use "
                         f"{instead} on what it returns now")


def _checked_targets(targets, x, name):
    """Targets of x's shape and dtype in [0, 1]: an array, or a Tensor that requires a gradient."""
    given, targets = targets, np.asarray(plain(targets))
    if targets.shape != x.shape or x.size == 0:
        raise ValueError(f"{name} needs targets of the same shape as its input and at least one "
                         f"entry, got targets {targets.shape} and input {x.shape}"
                         + _column_hint(targets, x))
    if not (targets.min() >= 0 and targets.max() <= 1):
        raise ValueError(f"{name} takes targets between 0 and 1, got {targets.min()} to "
                         f"{targets.max()}")
    if isinstance(given, Tensor) and given.requires_grad:
        return given if given.dtype == x.dtype else given.astype(x.dtype)
    return targets.astype(x.dtype, copy=False)


# --- Batch Normalization (Ioffe and Szegedy 2015, algorithm 1) ------------------------------------

def _batch_norm_forward(x, gamma, beta, eps):
    n = len(x)
    mean = column_sums(x) / n
    centred = x - mean
    var = column_sums(centred * centred) / n
    scale = 1 / np.sqrt(var + eps)
    slope = gamma * scale
    y = centred * slope
    y += beta

    def vjp(g):
        # Mean and variance depend on every x, so there are two more terms than in an affine map:
        # dx = gamma scale (g - mean(g) - normalized * mean(g * normalized)), the paper's section 3,
        # where normalized = centred * scale.
        g_beta = column_sums(g)
        g_gamma = column_sums(g * centred) * scale
        gx = centred * (g_gamma * scale / -n)
        gx += g
        gx -= g_beta / n
        gx *= slope
        return gx, g_gamma, g_beta

    return y, vjp, mean, var


_batch_norm = Fused("batch_norm", _batch_norm_forward, composed="batch_norm_composed")


def batch_norm(x, gamma, beta, eps=1e-5):
    """Normalise each feature over the batch: y = gamma (x - mean) / sqrt(var + eps) + beta.

    x: (n, features), or (n, channels, length) or (n, channels, height, width), normalised per
    channel. gamma, beta: (features,). Returns (y, mean, var): the batch's mean and *biased*
    variance are plain arrays, for a layer to keep. The variance takes two passes, because E[x^2] -
    E[x]^2 would lose all its digits where the mean is large. Raises ValueError for other shapes.
    """
    x = _checked_features("batch_norm", x, gamma, beta)
    if x.dtype is HALF:
        return in_float32(batch_norm, x, gamma, beta, eps)
    if x.ndim == 2:
        return _batch_norm(x, gamma, beta, eps=eps)
    if x.ndim == 3:  # as if it were an image one pixel wide
        y, mean, var = batch_norm(x.reshape(*x.shape, 1), gamma, beta, eps)
        return y.reshape(x.shape), mean, var
    n, c, h, w = x.shape  # per channel is per feature, once every pixel counts as a sample
    y, mean, var = _batch_norm(x.transpose(0, 2, 3, 1).reshape(n * h * w, c), gamma, beta, eps=eps)
    return y.reshape(n, h, w, c).transpose(0, 3, 1, 2), mean, var


def batch_norm_composed(x, gamma, beta, eps=1e-5):
    """The definition of `batch_norm` in primitives: the gradient follows by itself."""
    x = _checked_features("batch_norm_composed", x, gamma, beta)
    if x.dtype is HALF:
        return in_float32(batch_norm_composed, x, gamma, beta, eps)
    axes = (0,) + tuple(range(2, x.ndim))
    batch_mean = mean(x, axes, keepdims=True)
    batch_var = mean((x - batch_mean) ** 2, axes, keepdims=True)
    normalized = (x - batch_mean) / sqrt(batch_var + eps)
    y = per_channel(gamma, x) * normalized + per_channel(beta, x)
    return y, plain(batch_mean).reshape(-1), plain(batch_var).reshape(-1)


def batch_norm_inference(x, gamma, beta, running_mean, running_var, eps=1e-5) -> Tensor:
    """The same map with fixed statistics, so that samples do not affect one another.

    Differentiable in x, gamma and beta.
    """
    x = _checked_features("batch_norm_inference", x, gamma, beta, running_mean, running_var)
    scale = gamma / np.sqrt(running_var + eps)
    return (x - per_channel(running_mean, x)) * per_channel(scale, x) + per_channel(beta, x)


def _checked_features(name, x, *vectors):
    """x (an array as floats), if it has the right axes and each vector one entry per feature."""
    x = x if isinstance(x, Tensor) else floats(x)
    shape = x.shape
    if len(shape) not in (2, 3, 4):
        raise ValueError(f"{name} takes x of shape (n, features), (n, channels, length) or (n, "
                         f"channels, height, width), got {shape}")
    for vector in vectors:
        if getattr(vector, "shape", ()) != shape[1:2]:
            raise ValueError(f"{name} takes gamma, beta and statistics of shape {shape[1:2]}, a "
                             f"number for each feature of x {shape}; got "
                             f"{', '.join(str(np.shape(plain(v))) for v in vectors)}")
    return x


def per_channel(v, x):
    """v of shape (c,) reshaped to broadcast against x of shape (n, c, ...)."""
    return v if x.ndim == 2 else v.reshape(-1, *(1,) * (x.ndim - 2))


# --- Layer Normalization (Ba, Kiros and Hinton 2016): the same along the other axis ---------------

def _layer_norm_forward(x, gamma, beta, eps):
    normalized, transposed_vjp, *_ = _batch_norm_forward(x.T, 1.0, 0.0, eps)

    def vjp(g):
        gx, *_ = transposed_vjp((g * gamma).T)
        return gx.T, np.einsum("ij,ij->j", g, normalized.T), np.add.reduce(g, axis=0)

    return normalized.T * gamma + beta, vjp


_layer_norm = Fused("layer_norm", _layer_norm_forward, composed="layer_norm_composed")


def layer_norm(x, gamma, beta, eps=1e-5) -> Tensor:
    """Normalise each sample over its features, then scale and shift.

    x: (..., features). gamma, beta: (features,), or a number for all. Raises ValueError for other
    shapes.
    """
    x = _checked_last_axis("layer_norm", x, gamma, beta)
    if x.dtype is HALF:
        return in_float32(layer_norm, x, gamma, beta, eps)
    return _layer_norm(x.reshape(-1, x.shape[-1]), gamma, beta, eps=eps).reshape(x.shape)


def layer_norm_composed(x, gamma, beta, eps=1e-5) -> Tensor:
    """The definition of `layer_norm` from primitives: slower, but can be differentiated twice."""
    x = _checked_last_axis("layer_norm_composed", x, gamma, beta)
    if x.dtype is HALF:
        return in_float32(layer_norm_composed, x, gamma, beta, eps)
    return gamma * (x - mean(x, -1, keepdims=True)) / sqrt(var(x, -1, keepdims=True) + eps) + beta


def _checked_last_axis(name, x, *vectors):
    """x (an array as floats), if each vector is a number or has one entry per feature."""
    x = x if isinstance(x, Tensor) else floats(x)
    shapes = [np.shape(plain(vector)) for vector in vectors]
    if x.ndim == 0 or any(shape not in ((), x.shape[-1:]) for shape in shapes):
        raise ValueError(f"{name} takes x of shape (..., features), gamma and beta of shape "
                         f"(features,); got {x.shape}, {', '.join(map(str, shapes))}")
    return x
