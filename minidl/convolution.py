"""Images: the convolution as one op, pooling, and the layers around them.

An image is (channels, height, width), a batch (n, channels, height, width), as in PyTorch:
BatchNorm has its features on axis 1 then, whether they are units or channels, and one rule holds
for both. In memory the channels lie last, for the sake of speed: the numbers that a window needs
lie beside each other, and a row of windows times a matrix is one matrix product.
"""

import math
from functools import reduce

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from . import functional as F
from . import habits
from .layers import Dense, function_name
from .module import Module
from .parts import converted
from .settings import as_shape, as_whole, is_whole
from .tensor import Op, Tensor, floats, plain

IN_CACHE = 2 ** 16  # numbers: 256 kB in float32

# --- The convolution ------------------------------------------------------------------------------
# y is linear in the image and in the kernel. So sum(g * y) is a product of three, g, image and
# kernel, and its gradient by each of them is an op that needs the other two: these are the three
# ops below, and each is the VJP of the other two.


def _on_canvas(x, height, width, start, gap=1):
    """x (n, c, h, w), its pixels `gap` apart from `start` on, among zeros: channels last."""
    n, c, h, w = x.shape
    canvas = np.zeros((n, height, width, c), x.dtype)
    canvas[:, start:start + gap * h:gap, start:start + gap * w:gap] = x.transpose(0, 2, 3, 1)
    return canvas


def _windows(canvas, size, stride):
    """Every window of size x size pixels, (n, h, w, size, size, c), still without copies."""
    windows = sliding_window_view(canvas, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return windows.transpose(0, 1, 2, 4, 5, 3)


def _rows(windows):
    """(places, rows) of some images at a time: each window copied into a row, for a product.

    As many images as fit into a processor's cache: that takes half the time of all at once.
    """
    step = max(1, IN_CACHE // math.prod(windows.shape[1:]))
    for i in range(0, len(windows), step):
        piece = windows[i:i + step]
        yield slice(i, i + step), piece.reshape(-1, math.prod(piece.shape[3:]))


def _products(windows, kernel):
    """Each window times the kernel: (n, units, h, w)."""
    kernel = kernel.reshape(-1, kernel.shape[-1])
    y = np.empty((*windows.shape[:3], kernel.shape[1]), windows.dtype)
    for some, rows in _rows(windows):
        y[some] = rows.dot(kernel).reshape(y[some].shape)
    return y.transpose(0, 3, 1, 2)


def _padded(x, padding):
    return _on_canvas(x, x.shape[2] + 2 * padding, x.shape[3] + 2 * padding, padding)


def _convolve_forward(x, kernel, stride, padding):
    return _products(_windows(_padded(x, padding), len(kernel), stride), kernel)


def _by_image_forward(d, kernel, shape, stride, padding):
    """d spread over the places its windows stood at, convolved with the kernel turned round."""
    size = len(kernel)
    canvas = _on_canvas(d, shape[2] + size - 1, shape[3] + size - 1, size - 1 - padding, stride)
    return _products(_windows(canvas, size, 1), kernel[::-1, ::-1].swapaxes(2, 3))


def _by_kernel_forward(x, d, size, stride, padding):
    """The sum over all windows of x: each number in it times what came out, d."""
    d = d.transpose(0, 2, 3, 1)
    kernel = np.zeros((size * size * x.shape[1], d.shape[3]), x.dtype)
    for some, rows in _rows(_windows(_padded(x, padding), size, stride)):
        kernel += rows.T.dot(d[some].reshape(len(rows), -1))
    return kernel.reshape(size, size, x.shape[1], d.shape[3])


_convolve = Op(
    "convolve", _convolve_forward,
    lambda g, kernel, x_shape, stride, padding: _by_image(
        g, kernel, shape=x_shape, stride=stride, padding=padding),
    lambda g, x, kernel_shape, stride, padding: _by_kernel(
        x, g, size=kernel_shape[0], stride=stride, padding=padding))

_by_image = Op(
    "convolve_by_image", _by_image_forward,
    lambda g, kernel, stride, padding: _convolve(g, kernel, stride=stride, padding=padding),
    lambda g, d, kernel_shape, stride, padding: _by_kernel(
        g, d, size=kernel_shape[0], stride=stride, padding=padding))

_by_kernel = Op(
    "convolve_by_kernel", _by_kernel_forward,
    lambda g, d, x_shape, stride, padding: _by_image(
        d, g, shape=x_shape, stride=stride, padding=padding),
    lambda g, x, stride, padding: _convolve(x, g, stride=stride, padding=padding))


def convolve(x, kernel, stride=1, padding=0) -> Tensor:
    """Every window of the image times the kernel, summed: y[n, o, a, b] is the sum over i, j, c of
    x[n, c, a * stride + i - padding, b * stride + j - padding] * kernel[i, j, c, o].

    x: (n, channels, height, width). kernel: (size, size, channels, filters). stride: pixels from
    one window to the next. padding: rows and columns of zeros around the image, less than size.
    Output (n, filters, h, w) with h = (height + 2 padding - size) // stride + 1. Raises ValueError
    for other shapes. Differentiable any number of times.
    """
    x = x if isinstance(x, Tensor) else floats(x)
    size, channels = kernel.shape[0], kernel.shape[-2:-1]
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[1] != size or x.shape[1:2] != channels:
        raise ValueError("convolve takes images (n, channels, height, width) and a kernel (size, "
                         f"size, channels, filters), got {x.shape} and {kernel.shape}")
    if not 0 <= padding < size:
        raise ValueError(f"convolve with windows of {size} x {size} takes a padding from 0 to "
                         f"{size - 1}, got {padding}: beyond that a window would see nothing of "
                         "the image")
    if min(x.shape[2:]) + 2 * padding < size:
        raise ValueError(f"a window of {size} x {size} pixels does not fit into an image of "
                         f"{x.shape[2]} x {x.shape[3]} with {padding} rows of zeros around it")
    return _convolve(x, kernel, stride=stride, padding=padding)


# --- Pooling --------------------------------------------------------------------------------------

def _largest(windows):
    """The largest number of each window. One maximum for each place in a window is quicker than one
    over two short axes."""
    size = windows.shape[3]
    places = [windows[:, :, :, i, :, j] for i in range(size) for j in range(size)]
    return reduce(np.maximum, places)


def _shares(windows, y):
    """1 where a number is the largest of its window, 1/k where k are equal, else 0."""
    equal = windows == y[:, :, :, None, :, None]
    size = equal.shape[3]
    ties = sum(equal[:, :, :, i, :, j].astype(y.dtype) for i in range(size) for j in range(size))
    return equal / ties[:, :, :, None, :, None]


_max_pool = Op("max_pool", _largest,
               lambda g, y, windows: (
                   g[:, :, :, None, :, None] * _shares(plain(windows), plain(y))))


def max_pool(x, size) -> Tensor:
    """The largest number of each window of size x size pixels; equal ones share the gradient.

    x: (n, channels, height, width), output (n, channels, height // size, width // size): the
    windows do not overlap, and what is left over on the right and below is left out.
    """
    return _max_pool(_cut(x, size))


def average_pool(x, size) -> Tensor:
    """The mean of each window of size x size pixels; shapes as of `max_pool`."""
    return F.mean(_cut(x, size), axis=(3, 5))


def _cut(x, size):
    """(n, c, h, w) as (n, c, h // size, size, w // size, size): two axes to reduce over."""
    x = x if isinstance(x, Tensor) else floats(x)
    if x.ndim != 4 or min(x.shape[2:]) < size:
        raise ValueError(f"pooling over {size} x {size} pixels takes images (n, channels, height, "
                         f"width) that are as large as that, got {x.shape}")
    n, c, h, w = x.shape
    h, w = h // size, w // size
    if (h * size, w * size) != x.shape[2:]:
        x = x[:, :, :h * size, :w * size]
    return F.reshape(x, n, c, h, size, w, size)


# --- Layers ---------------------------------------------------------------------------------------

def _side(name):
    """A check for a side of a window: a whole number, or twice the same, (3, 3), as in Keras."""
    def checked(value):
        pair = value if isinstance(value, (tuple, list)) else (value, value)
        if len(pair) != 2 or pair[0] != pair[1] or not is_whole(pair[0]) or pair[0] < 1:
            raise ValueError(f"{name} is a whole number, at least 1, for windows as high as wide "
                             f"(3, or (3, 3)), got {value!r}")
        return int(pair[0])
    return checked


def _padding(value):
    if value in ("valid", "same"):
        return value
    if not is_whole(value) or value < 0:
        raise ValueError('padding is "valid" (none), "same" (as many pixels come out as go in, at '
                         "stride 1) or how many rows of zeros to put around the image, got "
                         f"{value!r}")
    return int(value)


def _image(shape):
    shape = as_shape(shape)
    if shape is not None and len(shape) != 3:
        hint = f"(1, {shape[0]}, {shape[1]})" if len(shape) == 2 else "(1, 28, 28)"
        raise ValueError("input_shape of a layer of images is (channels, height, width), such as "
                         f"{hint}, got {shape}")
    return shape


WORDS = habits.DENSE | {
    "weight": "write kernel, of shape (size, size, channels, filters), as in Keras",
    "in_channels": "write inputs",
    "out_channels": "write filters",
    "strides": "write stride",
    "dilation": "minidl has none"}
ARGUMENT_WORDS = habits.DENSE_ARGUMENTS | {
    "in_channels": "leave it out, or write input_shape=(channels, height, width)",
    "out_channels": "write Conv2D(8, 3)",
    "strides": "write stride=2",
    "dilation": "minidl has none",
    "dilation_rate": "minidl has none",
    "groups": "minidl has none",
    "data_format": "leave it out, images have the shape (n, channels, height, width)"}
POOL_WORDS = habits.ARGUMENTS | {
    "pool_size": "write size, MaxPool2D(2)",
    "kernel_size": "write size, MaxPool2D(2)",
    "strides": "leave it out, windows lie side by side",
    "stride": "leave it out, windows lie side by side",
    "padding": "leave it out, what does not fill a window is left out",
    "data_format": "leave it out, images have the shape (n, channels, height, width)"}


class Conv2D(Dense):
    """A Dense layer on every window of an image: activation(convolve(x, kernel) + bias).

    filters: the number of outputs of each window. kernel_size: the side of a window, in pixels.
    stride: from one window to the next. padding: zeros around the image, "valid" for none, "same"
    for (kernel_size - 1) / 2 on each side, or how many. The others are those of Dense. Input (n,
    channels, height, width), output (n, filters, h, w); `convolve` says how large h and w are.
    kernel: (kernel_size, kernel_size, channels, filters), as in Keras. Raises ValueError for
    another number of channels.

    With stride 2 and padding "same" Keras puts the odd row of zeros below and right of an image of
    even size; here both sides get the same, as in PyTorch.
    """

    setting_checks = {name: check for name, check in Dense.setting_checks.items()
                      if name != "units"}
    setting_checks |= {"filters": as_whole("filters", 1), "kernel_size": _side("kernel_size"),
                       "stride": _side("stride"), "padding": _padding, "input_shape": _image}
    fixed_settings = "filters", "kernel_size", "use_bias", "kernel_initializer"
    habit_words, argument_words = WORDS, ARGUMENT_WORDS

    def __init__(
        self,
        filters,
        kernel_size,
        stride=1,
        padding="valid",
        activation=None,
        *,
        use_bias=True,
        kernel_initializer="glorot_uniform",
        input_shape=None,
        rng=None,
    ):
        self.filters, self.kernel_size, self.stride = filters, kernel_size, stride
        self.padding, self.activation, self.use_bias = padding, activation, use_bias
        self.kernel_initializer, self.input_shape, self.rng = kernel_initializer, input_shape, rng
        if self.padding == "same" and self.kernel_size % 2 == 0:
            raise ValueError(f"padding \"same\" puts as many zeros on both sides, which windows of "
                             f"{self.kernel_size} x {self.kernel_size} do not allow: take an odd "
                             "kernel_size")

    units = property(lambda self: self.filters, doc="The number of filters, as of a Dense.")
    zeros = property(lambda self: {"valid": 0, "same": (self.kernel_size - 1) // 2}.get(
        self.padding, self.padding), doc="How many rows of zeros padding puts on each side.")

    def kernel_shape(self):
        """(kernel_size, kernel_size, channels, filters)."""
        return self.kernel_size, self.kernel_size, self.input_shape[0], self.filters

    def forward(self, x):
        """x: (n, channels, height, width) to (n, filters, h, w)."""
        if self.input_shape is None and x.ndim == 4:
            self.input_shape = x.shape[1:]
        if not self.built and x.ndim == 4:
            self.create_parameters()
        if not self.built or x.ndim != 4 or x.shape[1] != self.inputs:
            raise ValueError(f"{self.label} expects images of shape (n, "
                             f"{self.inputs or 'channels'}, height, width), got {x.shape}"
                             + _image_hint(x.shape))
        if x.dtype != self.kernel.dtype:
            x = converted(x, self.kernel.dtype, self)
        y = convolve(x, self.kernel, self.stride, self.zeros)
        if self.use_bias:
            y = y + F.per_channel(self.bias, y)
        return y if self.activation is None else self.activation(y)

    def __repr__(self):
        inputs = f"{self.input_shape[0]} -> " if self.input_shape else ""
        stride = f", stride={self.stride}" if self.stride != 1 else ""
        padding = f", padding={self.padding!r}" if self.padding != "valid" else ""
        activation = f", {function_name(self.activation)}" if self.activation else ""
        return f"Conv2D({inputs}{self.filters}, {self.kernel_size}{stride}{padding}{activation})"


def _image_hint(shape):
    if len(shape) == 3:
        return f"; of grey images make one channel, x.reshape(-1, 1, {shape[1]}, {shape[2]})"
    side = int(round(shape[-1] ** 0.5)) if len(shape) == 2 else 0
    if side > 1 and side * side == shape[1]:
        return f"; make images of the rows, x.reshape(-1, 1, {side}, {side})"
    if len(shape) == 4 and shape[3] < shape[1]:
        return "; of images with channels last make x.transpose(0, 3, 1, 2)"
    return ""


class _Pool(Module):
    setting_checks = {"size": _side("size")}
    argument_words = POOL_WORDS

    def __init__(self, size=2):
        self.size = size

    def __repr__(self):
        return f"{type(self).__name__}({self.size})"


class MaxPool2D(_Pool):
    """The largest number of each window of size x size pixels, channel by channel.

    Input (n, channels, height, width), output (n, channels, height // size, width // size).
    """

    def forward(self, x):
        """See `max_pool`."""
        return max_pool(x, self.size)


class AveragePool2D(_Pool):
    """The mean of each window of size x size pixels, channel by channel; shapes as of MaxPool2D."""

    def forward(self, x):
        """See `average_pool`."""
        return average_pool(x, self.size)


class GlobalAveragePool2D(Module):
    """The mean of each channel over all pixels: (n, channels, height, width) to (n, channels)."""

    argument_words = habits.ARGUMENTS

    def forward(self, x):
        """(n, channels, height, width) to (n, channels)."""
        if x.ndim != 4:
            raise ValueError(f"{self.label} takes images (n, channels, height, width), got "
                             f"{x.shape}")
        return F.mean(x, axis=(2, 3))

    def __repr__(self):
        return "GlobalAveragePool2D()"
