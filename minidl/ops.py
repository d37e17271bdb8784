"""Ops that the layers here do not need and your own programs may: `F.squeeze`, `F.einsum` ...

`functional.py` offers them too. Names and rules are NumPy's, with the axis called `axis`; where
PyTorch differs, the docstring says so. Most are written in terms of the ops of `tensor.py`, so that
their gradients, of any order, follow by themselves.
"""

import math

import numpy as np

from .settings import is_whole
from .tensor import (
    HALF,
    Op,
    Tensor,
    broadcast_to,
    concatenate,
    constant,
    exp,
    floats,
    getitem,
    in_float32,
    plain,
    reshape,
    sqrt,
    sum,
    transpose,
    var,
    where,
)

__all__ = ["argmax", "cos", "cumsum", "einsum", "erf", "expand_dims", "log1p", "norm", "outer",
           "pad", "prod", "sin", "split", "square", "squeeze", "std", "tile"]

# --- Elementwise ----------------------------------------------------------------------------------

square = Op("square", lambda x: np.square(x),
            lambda g, x: 2 * g * x,
            doc="x * x, elementwise.")

sin = Op("sin", lambda x: np.sin(floats(x)),
         lambda g, x: g * cos(x),
         doc="The sine, elementwise.")

cos = Op("cos", lambda x: np.cos(floats(x)),
         lambda g, x: -g * sin(x),
         doc="The cosine, elementwise.")

log1p = Op("log1p", lambda x: np.log1p(floats(x)),
           lambda g, x: g / (1 + x),
           doc="log(1 + x), elementwise, exact where x is small.")

_erf_of_numbers = np.frompyfunc(math.erf, 1, 1)  # NumPy has none of its own

erf = Op("erf", lambda x: np.asarray(_erf_of_numbers(x)).astype(floats(x).dtype),
         lambda g, x: (2 / math.sqrt(math.pi)) * g * exp(-x * x),
         doc="The error function, elementwise: one number after the other, so not fast.")

# --- Shapes ---------------------------------------------------------------------------------------


def _array(x):
    return x if isinstance(x, Tensor) else np.asarray(x)


def _axes(axis, ndim):
    """The axes as a set of numbers from 0 up; None means all. ValueError for one out of range."""
    axes = range(ndim) if axis is None else axis if isinstance(axis, (tuple, list)) else [axis]
    if not all(is_whole(i) and -ndim <= i < ndim for i in axes):
        raise ValueError(f"axis={axis!r} does not fit an array of {ndim} axes: they are numbered "
                         f"from 0 to {ndim - 1}, or from the last one, -1, to {-ndim}")
    return {i % ndim for i in axes}


def squeeze(x, axis=None) -> Tensor:
    """x without its axes of length 1, or without those named, which must have that length."""
    x = _array(x)
    axes = _axes(axis, x.ndim)
    if axis is not None and any(x.shape[i] != 1 for i in axes):
        raise ValueError(f"squeeze removes axes of length 1, but axis={axis!r} of shape {x.shape} "
                         "is longer")
    return reshape(x, [n for i, n in enumerate(x.shape) if n != 1 or i not in axes])


def expand_dims(x, axis) -> Tensor:
    """x with a new axis of length 1 at this place: PyTorch's unsqueeze."""
    x = _array(x)
    place, = _axes(axis, x.ndim + 1)
    return reshape(x, (*x.shape[:place], 1, *x.shape[place:]))


def split(x, parts, axis=0):
    """The parts of x along axis, as a list.

    parts: the number of equal parts, or a list of the places to cut at; PyTorch's split takes the
    length of a part instead. ValueError if the length is not a multiple of the number of parts.
    """
    x = _array(x)
    place, = _axes(axis, x.ndim)
    length = x.shape[place]
    if is_whole(parts):
        if parts < 1 or length % parts:
            raise ValueError(f"an axis of length {length} cannot be split into {parts} equal parts")
        parts = range(length // parts, length, length // parts)
    ends = [0, *parts, length]
    index = (slice(None),) * place
    return [getitem(x, index=(*index, slice(start, end))) for start, end in zip(ends, ends[1:])]


def tile(x, repeats) -> Tensor:
    """x repeated along its axes. repeats: a number for each axis, or one for the last."""
    x = _array(x)
    repeats = (repeats,) if is_whole(repeats) else tuple(repeats)
    ndim = max(x.ndim, len(repeats))
    repeats = (1,) * (ndim - len(repeats)) + repeats
    shape = (1,) * (ndim - x.ndim) + x.shape
    apart = [n for length in shape for n in (1, length)]
    together = [n for pair in zip(repeats, shape) for n in pair]
    y = broadcast_to(reshape(x, apart), shape=tuple(together))
    return reshape(y, [r * n for r, n in zip(repeats, shape)])


_pad = Op("pad", lambda x, widths, value: np.pad(x, widths, constant_values=value),
          lambda g, widths, x_shape: g[tuple(
              slice(before, before + n) for (before, _), n in zip(widths, x_shape))])


def pad(x, widths, value=0.0) -> Tensor:
    """x with a border of one value. widths: ((before, after), ...), a pair for each axis.

    PyTorch's pad takes the same numbers in one row, the last axis first.
    """
    x = _array(x)
    widths = np.asarray(widths)
    if widths.shape != (x.ndim, 2) or widths.dtype.kind not in "iu" or (widths < 0).any():
        raise ValueError("pad takes ((before, after), ...), a pair of whole numbers from 0 up for "
                         f"each of the {x.ndim} axes, got {widths.tolist()}")
    return _pad(x, widths=widths.tolist(), value=constant(value, "value"))


# --- Reductions and sums --------------------------------------------------------------------------

def argmax(x, axis=None):
    """The place of the largest number along axis, as a plain array: it has no gradient."""
    return np.argmax(plain(x), axis=axis)


def std(x, axis=None, keepdims=False) -> Tensor:
    """The standard deviation over axis, divided by n as NumPy's and Keras'; PyTorch's: by n - 1."""
    return sqrt(var(x, axis, keepdims))


_norm = Op("norm", lambda x, axis: np.sqrt(np.add.reduce(np.square(x), axis=axis, keepdims=True)),
           lambda g, y, x: g * x / where(y == 0, 1.0, y))


def norm(x, axis=None, keepdims=False) -> Tensor:
    """The Euclidean norm over axis, sqrt(sum(x^2)); its gradient at 0 is 0, as PyTorch's."""
    x = x if isinstance(x, Tensor) else floats(x)
    if x.dtype is HALF:
        return in_float32(norm, x, axis, keepdims)
    axes = _axes(axis, x.ndim)
    y = _norm(x, axis=tuple(sorted(axes)))
    return y if keepdims else reshape(y, [n for i, n in enumerate(x.shape) if i not in axes])


def prod(x, axis=None, keepdims=False) -> Tensor:
    """The product over axis: half of the numbers times the other half, again and again.

    No gradient thus divides by a number that may be 0.
    """
    x = _array(x)
    axes = sorted(_axes(axis, x.ndim))
    kept = [i for i in range(x.ndim) if i not in axes]
    y = reshape(transpose(x, (*axes, *kept)), (math.prod(x.shape[i] for i in axes),
                                               *(x.shape[i] for i in kept)))
    while len(y) > 1:
        half = len(y) // 2
        product = y[:half] * y[half:2 * half]
        y = concatenate([product, y[2 * half:]]) if len(y) % 2 else product
    y = sum(y, 0) if len(y) else sum(y, 0) + 1  # the product of no numbers is 1
    return reshape(y, [1 if i in axes else n for i, n in enumerate(x.shape)]) if keepdims else y


_cumsum = Op("cumsum", lambda x, axis: np.cumsum(x, axis=axis),
             lambda g, axis: _flipped(_cumsum(_flipped(g, axis), axis=axis), axis))


def _flipped(x, axis):
    return x[(slice(None),) * axis + (slice(None, None, -1),)]


def cumsum(x, axis) -> Tensor:
    """The sums of the first, the first two, the first three ... numbers along one axis."""
    x = _array(x)
    place, = _axes(axis, x.ndim)
    return _cumsum(x, axis=place)


# --- Products -------------------------------------------------------------------------------------

def outer(a, b) -> Tensor:
    """Each number of a vector a times each of a vector b: (n,) and (m,) to (n, m)."""
    a, b = _array(a), _array(b)
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"outer takes two vectors, got shapes {a.shape} and {b.shape}")
    return reshape(a, -1, 1) * b


_contract = Op("einsum", lambda a, b, left, right, out: np.einsum(f"{left},{right}->{out}", a, b,
                                                                  optimize=True),
               lambda g, b, left, right, out: _contract(g, b, left=out, right=right, out=left),
               lambda g, a, left, right, out: _contract(g, a, left=out, right=left, out=right))


def einsum(subscripts, *xs) -> Tensor:
    """Sums of products over named axes: einsum("ij,jk->ik", a, b) is a @ b.

    As np.einsum and torch.einsum, without "..." and without a letter twice in one input (a
    diagonal). The inputs are contracted from left to right. Raises ValueError for what does not fit
    together.
    """
    names, out = _named_axes(subscripts, xs)
    y, done = None, ""
    for i, (x, letters) in enumerate(zip(xs, names)):
        later = {*out}.union(*names[i + 1:])
        # axes of this input alone are summed at once: no product needs them
        alone = [k for k, letter in enumerate(letters) if letter not in later | {*done}]
        y_letters = "".join(letter for k, letter in enumerate(letters) if k not in alone)
        x = sum(_array(x), tuple(alone)) if alone else _array(x)
        if y is None:
            y, done = x, y_letters
        else:
            joined = "".join(c for c in dict.fromkeys(done + y_letters) if c in later)
            y, done = _contract(y, x, left=done, right=y_letters, out=joined), joined
    return transpose(y, tuple(done.index(letter) for letter in out))


def _named_axes(subscripts, xs):
    """The letters of each input and of the output; of "ij,jk" the output is what occurs once."""
    left, arrow, out = subscripts.replace(" ", "").partition("->")
    names = left.split(",")
    every = "".join(names)
    if not arrow:
        out = "".join(sorted(c for c in set(every) if every.count(c) == 1))
    if not all(name.isalpha() or not name for name in [*names, out]):
        raise ValueError('einsum names each axis by a letter, "ij,jk->ik" for example, got '
                         f'{subscripts!r}; "..." is not known here')
    shapes = [np.shape(plain(x)) for x in xs]
    if [len(name) for name in names] != [len(shape) for shape in shapes]:
        raise ValueError(f"einsum({subscripts!r}) names the axes of {len(names)} inputs, one "
                         f"letter for each axis, but got the shapes {shapes}")
    for name in [*names, out]:
        if len(set(name)) < len(name):
            raise ValueError(f"einsum: {name!r} has a letter twice; take the diagonal first, "
                             "x[range(n), range(n)]")
    if not set(out) <= set(every):
        raise ValueError(f"einsum: the output {out!r} has a letter that no input has")
    lengths = {}
    for name, shape in zip(names, shapes):
        for letter, n in zip(name, shape):
            if lengths.setdefault(letter, n) != n:
                raise ValueError(f"einsum({subscripts!r}): the axis {letter!r} has the lengths "
                                 f"{lengths[letter]} and {n}")
    return names, out
