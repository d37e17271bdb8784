"""The engine: a Tensor remembers which op made it, so that a gradient can walk back through the ops.

Convention for every op: positional arguments are differentiable, keyword arguments are constants.
Arrays in, array out; any Tensor in, Tensor out. In every vector-Jacobian product (VJP) the names are
`g` (incoming gradient), `y` (output) and `x` or `a, b` (inputs). A VJP uses operators and minidl's own
functions, never `np.*` on an operand: then the same line runs on arrays (fast, first order) and on
Tensors (when a gradient is itself differentiated).
"""

from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter

import numpy as np

# A context variable is one per thread, so that two threads of a sweep do not switch each other's recording off.
_recording = ContextVar("recording", default=True)
_watchers = ContextVar("watchers", default=())  # who looks on at every backward(): see `inside.record`
_numbers = count(1)
_FREED = ("freed",)


@contextmanager
def no_grad():
    """Inside this block (or decorated function) ops compute values only: no graph, no gradients."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Tensor:
    """An array with a gradient.

    data: any array-like. Python numbers and lists become float32; NumPy arrays keep their dtype.
    requires_grad: whether `backward()` shall fill `.grad` (an array of the same shape, or None).

    Raises TypeError for data that are not numbers, or a gradient asked for integers.
    """

    __slots__ = ("data", "grad", "requires_grad", "number", "op", "inputs", "saved")
    __array_ufunc__ = None  # lets `ndarray + Tensor` reach Tensor.__radd__

    def __init__(self, data, requires_grad=False):
        if isinstance(data, Tensor):
            data = data.data
        if not isinstance(data, (np.ndarray, np.generic)):
            data = np.asarray(data)
            if data.dtype.kind in "iuf":
                data = data.astype(np.float32)
        self.data = np.asarray(data)
        if self.data.dtype.kind not in "biuf":
            raise TypeError(f"a Tensor holds real numbers, got an array of dtype {self.data.dtype}")
        if requires_grad and self.data.dtype.kind != "f":
            raise TypeError(f"only floating-point Tensors have gradients, got dtype {self.data.dtype}; "
                            "use x.astype(np.float32)")
        self.requires_grad = requires_grad
        self.grad = None
        self.number = 0  # results are numbered in the order of their making
        self.op = self.inputs = self.saved = None

    shape = property(attrgetter("data.shape"))
    ndim = property(attrgetter("data.ndim"))
    size = property(attrgetter("data.size"))
    dtype = property(attrgetter("data.dtype"))
    T = property(lambda self: transpose(self))

    def numpy(self):
        """The values as an array (shared, not copied)."""
        return self.data

    def item(self):
        """The only value, as a Python number."""
        return self.data.item()

    def detach(self):
        """The same values, cut off from the graph."""
        return Tensor(self.data)

    def astype(self, dtype):
        """The same values as another dtype; the gradient comes back in the old one."""
        return astype(self, dtype=dtype)

    def backward(self, gradient=None):
        """Fill `.grad` of every leaf this Tensor depends on, then free the graph.

        gradient: dL/d(self), an array of this shape; may be left out when self is a scalar.
        Gradients add up over several calls until they are set to None. They are never written in
        place (two leaves may share one array): rebind `.grad` to change it.
        Raises RuntimeError when nothing was recorded, or the graph is already freed.
        """
        watchers = _watchers.get()
        watched = {id(y) for watcher in watchers for y in watcher.outputs.values()} if watchers else ()
        found = _gradients(self, _seed(self, gradient), watched, free=True)
        for x, g in found:
            x.grad = np.asarray(g if x.grad is None else x.grad + g)
        for watcher in watchers:
            watcher.after_backward(found)

    def __repr__(self):
        made_by = f", op={self.op.name}" if self.op else ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, precision=4, threshold=20, prefix='Tensor(')}{made_by})"

    def __len__(self): return len(self.data)
    def __float__(self): return float(self.data)
    def __bool__(self): return bool(self.data)

    __hash__ = object.__hash__

    def __array__(self, dtype=None, copy=None):
        raise TypeError("NumPy was given a Tensor: use minidl.functional for a differentiable result, "
                        "or tensor.data for the plain array")

    def __setitem__(self, index, value):
        raise TypeError("a Tensor cannot be changed in place: its old values may be needed for the gradient. "
                        "Build a new one with F.where(mask, value, x), or change x.data before it is used")

    # Arithmetic: the functions are below, in this file.
    def __add__(self, b): return add(self, b)
    def __radd__(self, a): return add(a, self)
    def __sub__(self, b): return sub(self, b)
    def __rsub__(self, a): return sub(a, self)
    def __mul__(self, b): return mul(self, b)
    def __rmul__(self, a): return mul(a, self)
    def __truediv__(self, b): return div(self, b)
    def __rtruediv__(self, a): return div(a, self)
    def __pow__(self, b): return power(self, b)
    def __rpow__(self, a): return power(a, self)
    def __matmul__(self, b): return matmul(self, b)
    def __rmatmul__(self, a): return matmul(a, self)
    def dot(self, b): return matmul(self, b)  # for vectors and matrices, as of arrays
    def __neg__(self): return neg(self)
    def __abs__(self): return abs(self)
    def __getitem__(self, index): return getitem(self, index=_array(index))

    # A leaf refuses `p -= ...`; of a result Python makes a new Tensor by a - b.
    def __iadd__(self, b): return _refuse_leaf(self)
    def __isub__(self, b): return _refuse_leaf(self)
    def __imul__(self, b): return _refuse_leaf(self)
    def __itruediv__(self, b): return _refuse_leaf(self)

    # Comparisons give plain bool arrays: a step function has no gradient to offer.
    def __eq__(self, b): return self.data == _array(b)
    def __ne__(self, b): return self.data != _array(b)
    def __lt__(self, b): return self.data < _array(b)
    def __le__(self, b): return self.data <= _array(b)
    def __gt__(self, b): return self.data > _array(b)
    def __ge__(self, b): return self.data >= _array(b)

    def sum(self, axis=None, keepdims=False): return sum(self, axis, keepdims)
    def mean(self, axis=None, keepdims=False): return mean(self, axis, keepdims)
    def var(self, axis=None, keepdims=False): return var(self, axis, keepdims)
    def max(self, axis=None, keepdims=False): return max(self, axis, keepdims)
    def min(self, axis=None, keepdims=False): return min(self, axis, keepdims)
    def reshape(self, *shape): return reshape(self, *shape)
    def transpose(self, *axes): return transpose(self, *axes)
    def exp(self): return exp(self)
    def log(self): return log(self)
    def sqrt(self): return sqrt(self)
    def abs(self): return abs(self)


def _refuse_leaf(x):
    if x.requires_grad and x.op is None:
        raise TypeError("p -= ... would make a new Tensor and leave the parameter as it is: write p.data -= lr * p.grad")
    return NotImplemented


def _array(x):
    return x.data if isinstance(x, Tensor) else x


def _tensor(x):
    """An array as a Tensor, so that a VJP may call methods with Tensors: array.dot(Tensor) would be NumPy's."""
    return Tensor(x) if isinstance(x, np.ndarray) else x


class Op:
    """A differentiable function: its forward on arrays, then one VJP per positional argument.

    Each VJP is called as vjp(g, y, *inputs, **constants), only when its argument needs a gradient, and
    may leave broadcasting alone: the walk sums its result to the argument's shape.
    """

    fused = False

    def __init__(self, name, forward, *vjps):
        self.name, self.forward, self.vjps = name, forward, vjps
        self.__module__ = None  # pickle then looks for the module that holds this very object

    def __reduce__(self):
        return self.name  # copies and pickles of a model share the op: losses recognise it by identity

    def __call__(self, *inputs, **constants):
        arrays, requires_grad = [], None  # None where there is no Tensor at all: then the result is an array
        for x in inputs:
            if isinstance(x, Tensor):
                requires_grad = requires_grad or x.requires_grad
                x = x.data
            arrays.append(x)
        y, saved, extras = self.forward(*arrays, **constants), (arrays, constants), ()
        if self.fused:
            y, saved, *extras = y
        if requires_grad is not None:
            t = Tensor.__new__(Tensor)
            t.data = y if isinstance(y, np.ndarray) else np.asarray(y)  # a full reduction gives a NumPy scalar
            t.grad = None
            if requires_grad and _recording.get():
                t.requires_grad, t.number, t.op, t.inputs, t.saved = True, next(_numbers), self, inputs, saved
            else:
                t.requires_grad, t.number, t.op, t.inputs, t.saved = False, 0, None, None, None
            y = t
        return (y, *extras) if extras else y

    def gradients(self, g, t, differentiable):
        """[(x, its gradient)] for the inputs x of t that need one, from g, the gradient of t."""
        arrays, constants = t.saved
        y, inputs = (t, [_tensor(x) for x in t.inputs]) if differentiable else (t.data, arrays)
        pairs = []
        for x, vjp in zip(t.inputs, self.vjps):
            if isinstance(x, Tensor) and x.requires_grad:
                pairs.append((x, vjp(g, y, *inputs, **constants)))
        return pairs


class Fused(Op):
    """An op whose backward shares work between its inputs, for speed.

    forward(*arrays, **constants) returns (y, vjp, *extras): vjp(g) gives the gradients of all inputs at
    once, extras are plain arrays handed through to the caller. Its gradient cannot be differentiated
    again; `composed` names the function made of primitives that can.
    """

    fused = True

    def __init__(self, name, forward, composed):
        super().__init__(name, forward)
        self.composed = composed

    def gradients(self, g, t, differentiable):
        """[(x, its gradient)] for the inputs x of t that need one, from g, the gradient of t."""
        if differentiable:
            raise RuntimeError(f"{self.name} is fused for speed: its gradient cannot be differentiated again. "
                               f"Use {self.composed}, which gives the same values from primitives")
        return [(x, gx) for x, gx in zip(t.inputs, t.saved(g)) if isinstance(x, Tensor) and x.requires_grad]


def _gradients(root, seed, wanted=(), differentiable=False, free=False):
    """[(x, a gradient of root)] for all leaves x it depends on, and for the results whose id is in wanted.

    A leaf used several times is listed as often: its gradient is the sum. This is the backward walk. Of
    the results whose gradient has begun to arrive, the one made last is next: nothing made from it can still
    be waiting. So no recursion is needed, and a graph may be of any depth. free: forget the graph on the way.
    """
    if root.op is None:
        return [(root, seed)]
    gradients, ahead, found = {id(root): seed}, [(-root.number, id(root), root)], []
    while ahead:
        _, key, t = heappop(ahead)
        if t.inputs is _FREED:
            raise RuntimeError("this graph was freed by an earlier backward(). Compute the loss again before the "
                               "second backward(), or use grad(), which keeps the graph")
        g = gradients.pop(key)
        if key in wanted:
            found.append((t, g))
        for x, gx in t.op.gradients(g, t, differentiable):
            if gx.shape != x.data.shape or gx.dtype != x.data.dtype:
                gx = _fitted(gx, x.data)
            key = id(x)
            if x.op is None:
                found.append((x, gx))
            elif key in gradients:
                gradients[key] = gradients[key] + gx  # never in place: two inputs may share one array
            else:
                gradients[key] = gx
                heappush(ahead, (-x.number, key, x))
        if free:
            t.inputs, t.saved = _FREED, None
    return found


def _seed(y, gradient):
    """The gradient the walk starts with: 1 for a scalar, else what the caller gives."""
    if not isinstance(y, Tensor) or not y.requires_grad:
        raise RuntimeError("nothing to differentiate: no input requires a gradient, or it was computed in no_grad()")
    if gradient is None:
        if y.data.size != 1:
            raise RuntimeError(f"backward from a Tensor of shape {y.shape} needs an explicit gradient of that shape; "
                               "a loss is usually reduced with .sum() or .mean() first")
        return np.ones(y.shape, y.dtype) if y.ndim else y.dtype.type(1)
    gradient = gradient if isinstance(gradient, Tensor) else np.asarray(gradient, y.dtype)
    if gradient.shape != y.shape:
        raise ValueError(f"the gradient has shape {gradient.shape}, the Tensor {y.shape}")
    return gradient


def _fitted(g, x):
    """g in the dtype of x, summed over the axes that broadcasting added to x or stretched."""
    extra = g.ndim - x.ndim
    stretched = tuple(i + extra for i, n in enumerate(x.shape) if n == 1 and g.shape[i + extra] != 1)
    return g.sum(axis=tuple(range(extra)) + stretched).reshape(x.shape).astype(x.dtype)


def grad(y, xs, gradient=None, create_graph=False):
    """dy/dx for one Tensor x (gives one gradient) or a list of them (gives a list). `.grad` is left alone.

    The gradients are arrays; with create_graph they are Tensors that can be differentiated again. An x
    that y does not depend on gets zeros. gradient: as in `Tensor.backward`. The graph is kept.
    """
    wanted = [xs] if isinstance(xs, Tensor) else list(xs)
    seed = _seed(y, _array(gradient) if not create_graph else gradient)
    if create_graph and not isinstance(seed, Tensor):
        seed = Tensor(seed)
    found = {}
    for x, g in _gradients(y, seed, {id(x) for x in wanted}, differentiable=create_graph):
        found[id(x)] = found[id(x)] + g if id(x) in found else g
    gradients = [found.get(id(x), np.zeros_like(x.data)) for x in wanted]
    as_asked = Tensor if create_graph else np.asarray
    gradients = [g if isinstance(g, Tensor) else as_asked(g) for g in gradients]
    return gradients[0] if isinstance(xs, Tensor) else gradients


# --- Elementwise arithmetic ---------------------------------------------------------------------------

add = Op("add", lambda a, b: a + b,
         lambda g, y, a, b: g,
         lambda g, y, a, b: g)

sub = Op("sub", lambda a, b: a - b,
         lambda g, y, a, b: g,
         lambda g, y, a, b: -g)

mul = Op("mul", lambda a, b: a * b,
         lambda g, y, a, b: g * b,
         lambda g, y, a, b: g * a)

div = Op("div", lambda a, b: a / b,
         lambda g, y, a, b: g / b,
         lambda g, y, a, b: -g * y / b)

neg = Op("neg", lambda x: -x,
         lambda g, y, x: -g)

# Where b is 0 the exponent b - 1 is raised to 0: the factor b already makes the product 0, not 0 * inf.
# Where a is 0 the log is taken of 1: a ** b is 0 there and does not change with b.
power = Op("power", lambda a, b: a ** b,
           lambda g, y, a, b: g * b * a ** (b - 1 + (b == 0)),
           lambda g, y, a, b: g * y * log(where(a == 0, 1.0, a)))

exp = Op("exp", lambda x: np.exp(x),
         lambda g, y, x: g * y)

log = Op("log", lambda x: np.log(x),
         lambda g, y, x: g / x)

sqrt = Op("sqrt", lambda x: np.sqrt(x),
          lambda g, y, x: 0.5 * g / y)

abs = Op("abs", lambda x: np.abs(x),
         lambda g, y, x: g * (x > 0) - g * (x < 0))

# Where a equals b, each of the two gets half.
maximum = Op("maximum", lambda a, b: np.maximum(a, b),
             lambda g, y, a, b: 0.5 * (g * (a > b) + g * (a >= b)),
             lambda g, y, a, b: 0.5 * (g * (b > a) + g * (b >= a)))

minimum = Op("minimum", lambda a, b: np.minimum(a, b),
             lambda g, y, a, b: 0.5 * (g * (a < b) + g * (a <= b)),
             lambda g, y, a, b: 0.5 * (g * (b < a) + g * (b <= a)))

_clip = Op("clip", lambda x, low, high: np.clip(x, low, high),
           lambda g, y, x, low, high: g * (x == y))

_where = Op("where", lambda a, b, condition: np.where(condition, a, b),
            lambda g, y, a, b, condition: g * condition,
            lambda g, y, a, b, condition: g * ~condition)

astype = Op("astype", lambda x, dtype: np.asarray(x).astype(dtype),
            lambda g, y, x, dtype: astype(g, dtype=x.dtype))


def clip(x, low, high):
    """x with values below low or above high replaced by them (they pass no gradient); None is no bound."""
    return _clip(x, low=low, high=high)


def where(condition, a, b):
    """a where the condition (bool array) holds, b elsewhere."""
    return _where(a, b, condition=np.asarray(_array(condition), bool))


# --- Products -----------------------------------------------------------------------------------------

_matmul = Op("matmul", lambda a, b: a @ b,
             lambda g, y, a, b: g @ _swap(b),
             lambda g, y, a, b: _swap(a) @ g)


def _swap(x):
    return transpose(x, *range(x.ndim - 2), -1, -2)


def matmul(a, b):
    """The matrix product a @ b, with NumPy's rules: stacks of matrices broadcast, vectors are allowed."""
    if a.ndim == 1:
        return (a.reshape(1, -1) @ b)[..., 0, :] if b.ndim > 1 else sum(a * b)
    if b.ndim == 1:
        return _matmul(a, b.reshape(-1, 1))[..., 0]
    return _matmul(a, b)


# --- Shapes -------------------------------------------------------------------------------------------

_reshape = Op("reshape", lambda x, shape: np.reshape(x, shape),
              lambda g, y, x, shape: g.reshape(x.shape))

_transpose = Op("transpose", lambda x, axes: np.transpose(x, axes),
                lambda g, y, x, axes: g.transpose(*np.argsort([i % x.ndim for i in axes])))

broadcast_to = Op("broadcast_to", lambda x, shape: np.broadcast_to(x, shape),
                  lambda g, y, x, shape: g)

getitem = Op("getitem", lambda x, index: x[index],
             lambda g, y, x, index: _scatter(g, index=index, shape=x.shape))

_scatter = Op("scatter", lambda x, index, shape: _add_at(np.zeros(shape, x.dtype), index, x),
              lambda g, y, x, index, shape: g[index])


def _add_at(out, index, values):
    parts = index if isinstance(index, tuple) else (index,)
    if all(isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in parts):
        out[index] = values  # no place is named twice: quicker than adding
    else:
        np.add.at(out, index, values)
    return out


def reshape(x, *shape):
    """x with another shape; one length may be -1. reshape(x, 2, 3) or reshape(x, (2, 3))."""
    return _reshape(x, shape=_unpack(shape))


def transpose(x, *axes):
    """x with its axes in another order; reversed when none is given."""
    return _transpose(x, axes=_unpack(axes) or tuple(range(x.ndim))[::-1])


def _unpack(numbers):
    return tuple(numbers[0]) if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)) else numbers


def concatenate(xs, axis=0):
    """Join along an axis that exists."""
    ends = np.cumsum([x.shape[axis] for x in xs])
    ndim = xs[0].ndim

    def part(i):
        index = [slice(None)] * ndim
        index[axis] = slice(int(ends[i]) - xs[i].shape[axis], int(ends[i]))
        index = tuple(index)
        return lambda g, y, *inputs: g[index]

    return Op("concatenate", lambda *arrays: np.concatenate(arrays, axis), *map(part, range(len(xs))))(*xs)


def stack(xs, axis=0):
    """Join along a new axis."""
    axis = axis % (xs[0].ndim + 1)
    return concatenate([reshape(x, *x.shape[:axis], 1, *x.shape[axis:]) for x in xs], axis)


# --- Reductions: axis None (all), a number or a tuple -------------------------------------------------

_sum = Op("sum", lambda x, axis, keepdims: np.add.reduce(x, axis=axis, keepdims=keepdims),
          lambda g, y, x, axis, keepdims: broadcast_to(_restore(g, x, axis, keepdims), shape=x.shape))

_max = Op("max", lambda x, axis, keepdims: np.max(x, axis=axis, keepdims=keepdims),
          lambda g, y, x, axis, keepdims: _restore(g, x, axis, keepdims) * _ties(x, y, axis, keepdims))

_min = Op("min", lambda x, axis, keepdims: np.min(x, axis=axis, keepdims=keepdims),
          lambda g, y, x, axis, keepdims: _restore(g, x, axis, keepdims) * _ties(x, y, axis, keepdims))


def _restore(g, x, axis, keepdims):
    """g with the reduced axes back, of length 1, so that it broadcasts against x."""
    if keepdims:
        return g
    axes = range(x.ndim) if axis is None else [i % x.ndim for i in np.atleast_1d(axis)]
    return g.reshape([1 if i in axes else n for i, n in enumerate(x.shape)])


def _ties(x, y, axis, keepdims):
    """Shares of the extreme values y: 1 at the place where x equals y, 1/k each at k equal places."""
    equal = _array(x == _restore(y, x, axis, keepdims))
    return (equal / equal.sum(axis=axis, keepdims=True)).astype(x.dtype)


def _count(x, axis):
    """How many numbers a reduction over axis takes together."""
    return x.size if axis is None else int(np.prod([x.shape[i] for i in np.atleast_1d(axis)]))


def sum(x, axis=None, keepdims=False):
    """The sum over axis."""
    return _sum(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    """The mean over axis."""
    return sum(x, axis, keepdims) / _count(x, axis)


def var(x, axis=None, keepdims=False):
    """The biased variance over axis (divided by n), in two passes: the mean, then the mean square about it."""
    centred = x - mean(x, axis, keepdims=True)
    return mean(centred * centred, axis, keepdims)


def max(x, axis=None, keepdims=False):
    """The largest value over axis; equal ones share the gradient."""
    return _max(x, axis=axis, keepdims=keepdims)


def min(x, axis=None, keepdims=False):
    """The smallest value over axis; equal ones share the gradient."""
    return _min(x, axis=axis, keepdims=keepdims)
