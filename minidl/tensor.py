"""The engine: each Tensor remembers the op that made it, so that gradients can be traced back.

Convention for every op: positional arguments are differentiable, keyword arguments are constants.
Arrays in, array out; any Tensor in, Tensor out. A vector-Jacobian product (VJP) takes `g`, the
incoming gradient, and names what else it reads: `y`, the output, `x` or `a, b`, the inputs,
`x_shape` or `x_dtype` where that is all it needs, constants. The forward pass keeps just that. A
VJP uses operators and minidl's own functions, never `np.*` on an operand: then the same line runs
on arrays (fast, first order) and on Tensors (when a gradient is itself differentiated).

`sum`, `max`, `min` and `abs` are those of this file here, not Python's own.
"""

import inspect
from contextlib import contextmanager
from contextvars import ContextVar
from heapq import heappop, heappush
from itertools import count
from operator import attrgetter, itemgetter

import numpy as np
from numpy.lib.array_utils import normalize_axis_index

from . import habits

# A context variable is one per thread, so that two threads of a sweep do not switch each other's
# recording off.
recording = ContextVar("recording", default=True)
# observers of every backward(): see `inside.record`
watchers = ContextVar("watchers", default=())
clock = count(1)  # numbers results, and changes of arrays in place, in order
latest_change = 0  # by the clock: while no leaf changes, the walk need not look for changes
FREED = ("freed",)
# glibc returns each array above a threshold to the system, and the next one costs a page fault for
# every 4 kB: 20 to 33 % of a step with batches of 2,048. The threshold rises to the size of what is
# freed, here 32 MB, never written to.
np.empty(8_000_000, np.float32)
new = object.__new__  # faster than the constructor, for the Tensor that every op makes
HALF = np.dtype(np.float16)
MANY = 4096  # numbers; sums of more, added one by one in float32, visibly lose digits


@contextmanager
def no_grad():
    """Inside this block (or decorated function) ops compute values only: no graph, no gradients."""
    token = recording.set(False)
    try:
        yield
    finally:
        recording.reset(token)


class Tensor:
    """An array with a gradient.

    >>> x = Tensor(3.0, requires_grad=True)
    >>> (x * x).backward()
    >>> x.grad
    array(6., dtype=float32)

    data: any array-like. Python numbers and lists become float32; NumPy arrays keep their dtype.
    requires_grad: whether `backward()` fills `.grad` (an array of the same shape, or None).

    The array of a recorded result is read-only, since the backward pass may need it. `node` is a
    result's place in its graph, None for a leaf. `softmax_of` and `sigmoid_of` are the logits that
    this is the softmax or sigmoid of, or None: losses on probabilities compute with the logits,
    which stay exact where a probability is rounded to 0.

    Raises TypeError for data that are not numbers, or if a gradient is requested for integers.
    """

    __slots__ = ("_data", "grad", "requires_grad", "node", "changed", "softmax_of", "sigmoid_of")

    def __init__(self, data, requires_grad=False):
        self._data = _numeric(data)
        if requires_grad and self._data.dtype.kind != "f":
            raise TypeError(
                f"only floating-point Tensors have gradients, got dtype {self._data.dtype}; use "
                "x.astype(np.float32)")
        self.requires_grad = requires_grad
        self.grad = None
        self.node = None
        self.changed = 0  # by the clock: when the array was last changed in place
        self.softmax_of = None
        self.sigmoid_of = None

    @property
    def data(self):
        """The values as an array.

        `p.data -= ...` updates a leaf; a result cannot be given other values.
        """
        if self.node is None:
            return self._data
        values = self._data.view()
        values.flags.writeable = False  # the backward pass may need them
        return values

    @data.setter
    def data(self, values):
        if self.node is not None:
            raise TypeError(
                f"this Tensor is the result of {self.node.op.name}: its gradient would not know of "
                "other values. Compute a new Tensor from it, with F.where(mask, values, x) for "
                "instance, or use x.detach()")
        self._data = _numeric(values)
        mark_changed([self])

    shape = property(attrgetter("_data.shape"), doc="The lengths of the axes.")
    ndim = property(attrgetter("_data.ndim"), doc="The number of axes.")
    size = property(attrgetter("_data.size"), doc="How many numbers there are.")
    dtype = property(attrgetter("_data.dtype"), doc="The NumPy dtype of the values.")

    @property
    def T(self) -> "Tensor":
        """The axes in reverse order."""
        return transpose(self)

    @property
    def logits(self):
        """What softmax or sigmoid was applied to, if this is their direct result, else None."""
        return self.softmax_of if self.softmax_of is not None else self.sigmoid_of

    @property
    def op(self):
        """The Op that made this Tensor, None for a leaf."""
        return None if self.node is None else self.node.op

    def numpy(self):
        """The values as an array (shared, not copied)."""
        return self.data

    def item(self):
        """The only value, as a Python number."""
        return self._data.item()

    def tolist(self):
        """The values as Python numbers in nested lists."""
        return self._data.tolist()

    def detach(self) -> "Tensor":
        """The same values, cut off from the graph."""
        return Tensor(self._data)

    def astype(self, dtype) -> "Tensor":
        """The same values as another dtype; the gradient comes back in the old one.

        Integers have no gradient: as their Tensor the values are cut off from the graph.
        """
        if np.dtype(dtype).kind != "f":
            return Tensor(self._data.astype(dtype))
        return astype(self, dtype=dtype)

    def backward(self, gradient=None):
        """Fill `.grad` of every leaf this Tensor depends on, then free the graph.

        gradient: dL/d(self), an array of this shape; may be left out when self is a scalar.
        Gradients add up over several calls until they are set to None. They are never written in
        place (two leaves may share one array): rebind `.grad` to change it.
        Raises RuntimeError when nothing was recorded, the graph is already freed, or an array that
        the gradient needs was changed since the forward pass.
        """
        looking_on = watchers.get()
        watched = {}
        for watcher in looking_on:
            watched |= {y.node: y for y in watcher.outputs.values()}
        found = walk(self, starting_gradient(self, gradient), watched, free=True)
        if watched:
            found = [(watched.get(x, x), g) for x, g in found]
        for x, g in found:
            if x.grad is not None:
                g = x.grad + g
            x.grad = g if isinstance(g, np.ndarray) else np.asarray(g)
        for watcher in looking_on:
            watcher.after_backward(found)

    def __repr__(self):
        made_by = ", requires_grad=True" if self.requires_grad else ""
        if self.op:
            made_by = f", op={self.op.name}"
        values = np.array2string(self._data, precision=4, threshold=20, prefix="Tensor(")
        return f"Tensor({values}{made_by})"

    __dir__ = habits.known_names

    # As Python sees it: a number or a container.
    def __len__(self): return len(self._data)
    def __float__(self): return float(self._data)
    def __int__(self): return int(self._data)
    def __index__(self): return self._data.__index__()
    def __bool__(self): return bool(self._data)
    def __contains__(self, value): return bool((self._data == plain(value)).any())

    def __iter__(self):
        # without this method Python would take a scalar for an empty sequence
        if self._data.ndim == 0:
            raise TypeError("a Tensor with a single value cannot be iterated over; use x.item() "
                            "for the number")
        return (self[i] for i in range(len(self._data)))

    def __format__(self, spec):
        if spec and self._data.size != 1:
            raise TypeError(
                f"a Tensor of shape {self.shape} cannot be formatted as {spec!r}; a single number "
                "can, x.mean() or x[0] for instance")
        return format(self.item(), spec) if spec else str(self)

    __hash__ = object.__hash__

    # As NumPy sees it: arrays on the left of an operator work, NumPy's other functions are refused.
    def __array__(self, dtype=None, copy=None):
        raise TypeError("NumPy was given a Tensor: use minidl.functional for a differentiable "
                        "result, or tensor.data for the plain array")

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        if method == "__call__" and not options:
            if ufunc in OPERATORS:
                return OPERATORS[ufunc](*inputs)
            if ufunc in COMPARISONS:
                return ufunc(*map(plain, inputs))
        if "out" in options:
            raise TypeError("a Tensor cannot be written into an array, its gradient would be lost: "
                            "instead of `a += x` write `a = a + x`, or use x.data")
        raise _refusal(ufunc.__name__)

    def __array_function__(self, function, types, arguments, options):
        # they have no gradient
        if function in (np.shape, np.ndim, np.size):
            return function(*map(plain, arguments), **options)
        raise _refusal(function.__name__)

    def __setitem__(self, index, value):
        raise TypeError("a Tensor cannot be changed in place: its old values may be needed for the "
                        "gradient. Build a new one with F.where(mask, value, x), or change x.data "
                        "before it is used")

    # Arithmetic: the functions are below, in this file.
    def __add__(self, b) -> "Tensor": return add(self, b)
    def __radd__(self, a) -> "Tensor": return add(a, self)
    def __sub__(self, b) -> "Tensor": return sub(self, b)
    def __rsub__(self, a) -> "Tensor": return sub(a, self)
    def __mul__(self, b) -> "Tensor": return mul(self, b)
    def __rmul__(self, a) -> "Tensor": return mul(a, self)
    def __truediv__(self, b) -> "Tensor": return div(self, b)
    def __rtruediv__(self, a) -> "Tensor": return div(a, self)
    def __pow__(self, b) -> "Tensor": return power(self, b)
    def __rpow__(self, a) -> "Tensor": return power(a, self)
    def __matmul__(self, b) -> "Tensor": return matmul(self, b)
    def __rmatmul__(self, a) -> "Tensor": return matmul(a, self)
    def dot(self, b) -> "Tensor": return matmul(self, b)  # for vectors and matrices, as NumPy's
    def __neg__(self) -> "Tensor": return neg(self)
    def __pos__(self) -> "Tensor": return self
    def __abs__(self) -> "Tensor": return abs(self)
    def __getitem__(self, index) -> "Tensor": return getitem(self, index)

    # A leaf refuses `p -= ...`; for a result Python computes a new Tensor, a - b.
    def __iadd__(self, b) -> "Tensor": return _refuse_leaf(self)
    def __isub__(self, b) -> "Tensor": return _refuse_leaf(self)
    def __imul__(self, b) -> "Tensor": return _refuse_leaf(self)
    def __itruediv__(self, b) -> "Tensor": return _refuse_leaf(self)

    # Comparisons and argmax return plain arrays: a step function has no gradient to offer.
    def __eq__(self, b): return self._data == plain(b)
    def __ne__(self, b): return self._data != plain(b)
    def __lt__(self, b): return self._data < plain(b)
    def __le__(self, b): return self._data <= plain(b)
    def __gt__(self, b): return self._data > plain(b)
    def __ge__(self, b): return self._data >= plain(b)
    def argmax(self, axis=None): return self._data.argmax(axis)

    def sum(self, axis=None, keepdims=False) -> "Tensor": return sum(self, axis, keepdims)
    def mean(self, axis=None, keepdims=False) -> "Tensor": return mean(self, axis, keepdims)
    def var(self, axis=None, keepdims=False) -> "Tensor": return var(self, axis, keepdims)
    def max(self, axis=None, keepdims=False) -> "Tensor": return max(self, axis, keepdims)
    def min(self, axis=None, keepdims=False) -> "Tensor": return min(self, axis, keepdims)
    def reshape(self, *shape) -> "Tensor": return reshape(self, *shape)
    def transpose(self, *axes) -> "Tensor": return transpose(self, *axes)
    def exp(self) -> "Tensor": return exp(self)
    def log(self) -> "Tensor": return log(self)
    def sqrt(self) -> "Tensor": return sqrt(self)
    def abs(self) -> "Tensor": return abs(self)


habits.teach(Tensor, habits.TENSOR)


def mark_changed(leaves):
    """Mark the arrays of these Tensors as changed now, and return the time by the clock.

    A graph that needs their old values can no longer be differentiated.
    """
    global latest_change
    latest_change = next(clock)
    for x in leaves:
        x.changed = latest_change
    return latest_change


def changed_since(time):
    """Whether any Tensor's array was marked as changed after that time."""
    return latest_change > time


def _numeric(data):
    """An array of real numbers: arrays as they are, Python numbers and lists as float32."""
    if isinstance(data, Tensor):
        return data._data
    if not isinstance(data, (np.ndarray, np.generic)):
        data = np.asarray(data)
        if data.dtype.kind in "iuf":
            data = data.astype(np.float32)
    data = np.asarray(data)
    if data.dtype.kind not in "biuf":
        raise TypeError(f"a Tensor holds real numbers, got an array of dtype {data.dtype}")
    return data


def _refuse_leaf(x):
    if x.requires_grad and x.node is None:
        raise TypeError("p -= ... would make a new Tensor and leave the parameter as it is: write "
                        "p.data -= lr * p.grad")
    return NotImplemented


def _refusal(name):
    return TypeError(
        f"np.{name} was given a Tensor, and its result would have no gradient: use x.{name}(), "
        f"F.{name}(x) from minidl.functional or operators, as far as they exist, or "
        f"np.{name}(x.data) for plain values")


def plain(x):
    """The array of a Tensor; anything else as it is."""
    return x._data if isinstance(x, Tensor) else x


def floats(x):
    """x in floating point; integers become floats that hold them exactly, not bytes that wrap."""
    x = np.asarray(x)
    return x if x.dtype.kind == "f" else x.astype(np.result_type(x.dtype, np.float32))


# --- Ops and the graph they record ----------------------------------------------------------------

class Node:
    """The place of a result in its graph.

    number: by the clock. op: the Op that made it. inputs: for each input, the Node of a result, the
    Tensor of a leaf, the number itself, or the shape of a plain array. plan: the VJPs that are
    needed, see Plan. saved: what they read; for a Fused op, the function that computes all
    gradients. shape, dtype: those of the result. value: the result itself if it is a single number
    (for observers such as `record`), else None.
    """

    __slots__ = ("number", "op", "inputs", "plan", "saved", "shape", "dtype", "value")

    def gradients(self, g, differentiable=False):
        """[(input, its gradient)] for the inputs that need one; g is the gradient of this result.

        differentiable: g and the gradients are Tensors, which in turn remember how they were made.
        """
        return self.op.gradients(self, g, differentiable)


class Op:
    """A differentiable function: its forward on arrays, then one VJP per positional argument.

    Each VJP is called as vjp(g, ...) with the values its further parameters name, and only when its
    argument needs a gradient. It may ignore broadcasting: the walk sums its result to the
    argument's shape. doc: the docstring of the op. Raises TypeError for a VJP that reads what does
    not exist.
    """

    fused = False

    def __init__(self, name, forward, *vjps, doc=None):
        self.name = name
        self.__name__ = name
        self.forward = forward
        self.vjps = vjps
        self.__doc__ = doc
        self.__module__ = None  # pickle then looks for the module that holds this very object
        parameters = _parameters(forward, len(vjps))
        inputs = list(parameters)[:len(vjps)]
        self.constants = {key: default for key, default in parameters.items() if key not in inputs}
        places = dict(zip(inputs, range(len(vjps))))
        places |= {name: i for i, name in enumerate(["y", *self.constants], len(vjps))}
        self.reads = [_reads(name, vjp, inputs, places) for vjp in vjps]
        self.plans = {}  # {a bit for each input that needs a gradient, below a leading 1: Plan}

    def __reduce__(self):
        return self.name  # copies and pickles of a model share the op, as they share functions

    def __repr__(self):
        return f"<{type(self).__name__} {self.name}>"

    @property
    def __signature__(self):
        return inspect.signature(self.forward)

    def __call__(self, *inputs, **constants) -> Tensor:
        arrays, sources, tensors, tracked, bit = [], [], False, 0, 1
        for x in inputs:
            if isinstance(x, Tensor):
                tensors = True
                if x.requires_grad:
                    tracked += bit
                sources.append(x.node or x)
                x = x._data
            else:
                if isinstance(x, (list, tuple)):
                    x = _numeric(x)
                sources.append(x.shape if isinstance(x, np.ndarray) else x)
            arrays.append(x)
            bit += bit
        y, extras = self.forward(*arrays, **constants), ()
        if self.fused:
            y, vjp, *extras = y
        if tensors:
            t = new(Tensor)
            # a full reduction returns a NumPy scalar
            t._data = y = y if isinstance(y, np.ndarray) else np.asarray(y)
            t.grad = t.softmax_of = t.sigmoid_of = None
            if tracked and recording.get():
                t.requires_grad = True
                t.node = node = Node()
                node.number = next(clock)
                node.op = self
                node.inputs = sources
                node.shape = y.shape
                node.dtype = y.dtype
                node.value = None if node.shape else y
                try:
                    node.plan = plan = self.plans[tracked + bit]
                except KeyError:
                    node.plan = plan = self.plan(tracked + bit)
                if self.fused:
                    node.saved = vjp
                else:
                    arrays.append(y)
                    if self.constants:
                        arrays += [
                            constants.get(name, default) for name, default in self.constants.items()
                        ]
                    node.saved = plan.keep(arrays)
            else:
                t.requires_grad = False
                t.node = None
                t.changed = 0
            y = t
        return (y, *extras) if extras else y

    def plan(self, pattern):
        """The Plan for a pattern of inputs that need a gradient: bit i stands for input i.

        The bit on top counts them. Raises TypeError for another number of inputs than of VJPs.
        """
        *places, number = _set_bits(pattern)
        if number != len(self.vjps):
            raise TypeError(f"{self.name} has a gradient for each of {len(self.vjps)} arguments, "
                            f"but got {number} by position; constants are given by name")
        self.plans[pattern] = Plan(places, [self.reads[i] for i in places])
        return self.plans[pattern]

    def gradients(self, node, g, differentiable=False):
        """As Node.gradients, which calls it."""
        saved = node.saved
        if differentiable:
            saved = [_linked(node, read, value) for read, value in zip(node.plan.kept, saved)]
        pairs = []
        for i, pick in node.plan.picks:
            pairs.append((node.inputs[i], self.vjps[i](g, *pick(saved))))
        return pairs

    def check_unchanged(self, node):
        """RuntimeError if a VJP reads the array of a leaf changed since the forward pass."""
        for place, attribute in node.plan.kept:
            if attribute is None and place < len(node.inputs):
                _check_unchanged(node, node.inputs[place])


class Plan:
    """What the gradients need when these inputs of an op are tracked.

    kept: what the VJPs read, see `_reads`. keep: picks that from (*inputs, output, *constants).
    picks: for each tracked input its place, and what picks its VJP's share of what is kept.
    """

    def __init__(self, places, reads):
        self.kept = list(dict.fromkeys(read for one in reads for read in one))
        self.keep = _picker([place for place, _ in self.kept])
        if any(attribute for _, attribute in self.kept):
            self.keep = self.keep_attributes
        self.picks = []
        for place, one in zip(places, reads):
            self.picks.append((place, _picker([self.kept.index(read) for read in one])))

    def keep_attributes(self, values):
        """As `keep`, where of some values only the shape or the dtype is read."""
        return [getattr(values[i], attribute) if attribute else values[i]
                for i, attribute in self.kept]


class View(Op):
    """An Op whose result holds the numbers of its input, not copies of them."""

    def check_unchanged(self, node):
        """As that of an Op. Reading the result is reading the input, so every change counts."""
        _check_unchanged(node, node.inputs[0])


class Fused(Op):
    """An op whose backward shares work between its inputs, for speed.

    forward(*arrays, **constants) returns (y, vjp, *extras): vjp(g) returns the gradients of all
    inputs at once, extras are plain arrays handed through to the caller. Its gradient cannot be
    differentiated again; `composed` names the function made of primitives that can.
    """

    fused = True

    def __init__(self, name, forward, composed, doc=None):
        super().__init__(name, forward, doc=doc)
        self.composed = composed

    def plan(self, pattern):
        """The places of the inputs that need a gradient."""
        *self.plans[pattern], _ = _set_bits(pattern)
        return self.plans[pattern]

    def gradients(self, node, g, differentiable=False):
        """As Node.gradients, which calls it."""
        if differentiable:
            raise RuntimeError(f"{self.name} is fused for speed: its gradient cannot be "
                               f"differentiated again. Use {self.composed}, which returns the same "
                               "values from primitives")
        gradients = node.saved(g)
        return [(node.inputs[i], gradients[i]) for i in node.plan]

    def check_unchanged(self, node):
        """As that of an Op. Its function may keep anything, so every change counts."""
        for x in node.inputs:
            _check_unchanged(node, x)


def _set_bits(number):
    return [i for i in range(number.bit_length()) if number >> i & 1]


def _parameters(function, inputs):
    """{name: default} of a function's parameters; of NumPy's own functions x, or a and b."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return dict.fromkeys("x" if inputs < 2 else "ab")
    names = code.co_varnames[:code.co_argcount + code.co_kwonlyargcount]
    defaults = function.__defaults__ or ()
    start = code.co_argcount - len(defaults)
    return (
        dict.fromkeys(names) | dict(zip(names[start:], defaults)) | (function.__kwdefaults__ or {})
    )


def _reads(op, vjp, inputs, places):
    """What a VJP reads besides g: for each parameter (place, attribute).

    places: {name: place in (*inputs, output, *constants)}. attribute: "shape" or "dtype" where that
    is all it reads of the value, else None. A parameter with a default of its own is left alone.
    """
    table = {name: (i, None) for name, i in places.items()}
    for name in inputs:
        table[f"{name}_shape"] = places[name], "shape"
        table[f"{name}_dtype"] = places[name], "dtype"
    reads = dict(list(_parameters(vjp, 1).items())[1:])
    unknown = [name for name, default in reads.items() if name not in table and default is None]
    if unknown:
        raise TypeError(f"a VJP of {op} reads {', '.join(unknown)}, but there are only g, "
                        f"{', '.join(table)}")
    return [table[name] for name in reads if name in table]


def _picker(places):
    """A function that picks the values at these places, as a tuple or list."""
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


def _linked(node, read, value):
    """What a VJP reads, as a Tensor linked into the graph: its gradient can be taken in turn."""
    place, attribute = read
    if attribute or place > len(node.inputs):
        return value  # a shape, a dtype, a constant
    source = (*node.inputs, node)[place]
    if isinstance(source, Node):
        t = Tensor(value)
        t.requires_grad = True
        t.node = source
        return t
    if isinstance(source, Tensor):
        return source
    # array.dot(Tensor) would be NumPy's
    return Tensor(value) if isinstance(value, np.ndarray) else value


def _check_unchanged(node, x):
    if isinstance(x, Tensor) and x.changed > node.number:
        raise RuntimeError(
            f"the gradient of {node.op.name} needs the values that its input of shape {x.shape} "
            "had in the forward pass, but they were changed since, by an optimizer's step() for "
            "example. Call backward() of every loss before the first step(), or compute this loss "
            "again after it")


def walk(root, gradient, wanted=(), everything=False, differentiable=False, free=False):
    """The backward pass: [(leaf or Node, a gradient of root)] for all leaves root depends on.

    wanted: Nodes to list as well; everything: list all of them. A leaf used several times is listed
    as often: its gradient is the sum. Of the results whose gradient has begun to arrive, the one
    made last comes next, since nothing made from it can still be waiting. So no recursion is
    needed, and a graph may be of any depth. free: release the graph on the way.
    """
    if root.node is None:
        return [(root, gradient)]
    gradients, ahead, found = {root.node: gradient}, [(-root.node.number, root.node)], []
    while ahead:
        _, node = heappop(ahead)
        if node.inputs is FREED:
            raise RuntimeError("this graph was freed by an earlier backward(). Compute the loss "
                               "again before the second backward(), or use grad(), which keeps the "
                               "graph")
        if latest_change > node.number:
            node.op.check_unchanged(node)
        g = gradients.pop(node)
        if everything or node in wanted:
            found.append((node, g))
        for x, gx in node.op.gradients(node, g, differentiable):
            if isinstance(x, Node):
                if gx.shape != x.shape or gx.dtype is not x.dtype:
                    gx = _fitted(gx, x, node.op)
                if x in gradients:
                    # never in place: two inputs may share one array
                    gradients[x] = gradients[x] + gx
                else:
                    gradients[x] = gx
                    heappush(ahead, (-x.number, x))
            else:
                if gx.shape != x._data.shape or gx.dtype is not x._data.dtype:
                    gx = _fitted(gx, x, node.op)
                found.append((x, gx))
        if free:
            node.inputs, node.saved = FREED, None
    return found


def starting_gradient(y, gradient=None):
    """The gradient the walk starts with: 1 for a scalar, else the caller's, of y's shape."""
    if not isinstance(y, Tensor) or not y.requires_grad:
        raise RuntimeError("nothing to differentiate: no input requires a gradient, or it was "
                           "computed in no_grad()")
    if gradient is None:
        if y._data.size != 1:
            raise RuntimeError(f"backward from a Tensor of shape {y.shape} needs an explicit "
                               "gradient of that shape; a loss is usually reduced with .sum() or "
                               ".mean() first")
        return np.ones(y.shape, y.dtype) if y.ndim else y.dtype.type(1)
    gradient = gradient if isinstance(gradient, Tensor) else np.asarray(gradient, y.dtype)
    if gradient.shape != y.shape:
        raise ValueError(f"the gradient has shape {gradient.shape}, the Tensor {y.shape}")
    return gradient


def _fitted(g, x, op):
    """g in the dtype of x, summed over the axes that broadcasting added to x or stretched."""
    extra = len(g.shape) - len(x.shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(x.shape, g.shape[extra:])):
        raise ValueError(f"a VJP of {op.name} returned a gradient of shape {g.shape} for an input "
                         f"of shape {x.shape}; it must have that shape, or one that broadcasting "
                         "made of it")
    stretched = tuple(
        i + extra for i, n in enumerate(x.shape) if n == 1 and g.shape[i + extra] != 1
    )
    if extra or stretched:
        g = reshape(sum(g, (*range(extra), *stretched)), x.shape)
    return g if g.dtype == x.dtype else astype(g, dtype=x.dtype)


def grad(y, xs, gradient=None, create_graph=False):
    """dy/dx as one gradient for a Tensor x, or as a list for a list of them; leaves `.grad` alone.

    >>> x = Tensor([1.0, 2.0], requires_grad=True)
    >>> grad((x ** 2).sum(), x)
    array([2., 4.], dtype=float32)

    The gradients are arrays; with create_graph they are Tensors that can be differentiated again.
    An x that y does not depend on gets zeros. gradient: as in `Tensor.backward`. The graph is kept.
    Raises RuntimeError for an x that does not require a gradient, or did not when y was computed.
    """
    wanted = [xs] if isinstance(xs, Tensor) else list(xs)
    for i, x in enumerate(wanted):
        if not isinstance(x, Tensor) or not x.requires_grad:
            what = (
                f"a Tensor of shape {x.shape} that"
                if isinstance(x, Tensor)
                else f"a {type(x).__name__}, which"
            )
            raise RuntimeError(
                f"grad was asked for the gradient by {what} requires none (number {i}): make it "
                "with Tensor(data, requires_grad=True) before y is computed from it, outside "
                "no_grad()")
    start = starting_gradient(y, plain(gradient) if not create_graph else gradient)
    if create_graph and not isinstance(start, Tensor):
        start = Tensor(start)
    found = {}
    for x, g in walk(
        y, start, {x.node for x in wanted if x.node is not None}, differentiable=create_graph
    ):
        found[x] = found[x] + g if x in found else g
    gradients = []
    for x in wanted:
        g = found.get(x.node or x)
        if g is None:
            _check_untracked(y, x)
            g = np.zeros_like(x._data)
        if not create_graph:
            g = np.asarray(g)
        elif not isinstance(g, Tensor):
            g = Tensor(g)
        gradients.append(g)
    return gradients[0] if isinstance(xs, Tensor) else gradients


def _check_untracked(y, x):
    """RuntimeError if y used the leaf x before x required a gradient: 0 would be wrong."""
    ahead, seen = [y.node], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for source in node.inputs:
            if source is x:
                raise RuntimeError(f"y was computed from this Tensor of shape {x.shape} before it "
                                   "required a gradient: set requires_grad first, then compute y")
            if isinstance(source, Node):
                ahead.append(source)


# --- Elementwise arithmetic -----------------------------------------------------------------------

add = Op("add", lambda a, b: a + b,
         lambda g: g,
         lambda g: g,
         doc="a + b, elementwise, with NumPy's broadcasting.")

sub = Op("sub", lambda a, b: a - b,
         lambda g: g,
         lambda g: -g,
         doc="a - b, elementwise, with NumPy's broadcasting.")

mul = Op("mul", lambda a, b: a * b,
         lambda g, b: g * b,
         lambda g, a: g * a,
         doc="a * b, elementwise, with NumPy's broadcasting.")

div = Op("div", lambda a, b: a / b,
         lambda g, b: g / b,
         lambda g, y, b: -g * y / b,
         doc="a / b, elementwise, with NumPy's broadcasting.")

neg = Op("neg", lambda x: -x,
         lambda g: -g,
         doc="-x.")

# Where b is 0, the exponent b - 1 is replaced by 0: the product is then 0 because of its factor b,
# not 0 * inf. Where a is 0 and b is not negative, the log is taken of 1: there a ** b does not
# depend on b.
power = Op("power", lambda a, b: a ** b,
           lambda g, a, b: g * b * a ** (b - 1 + (b == 0)),
           lambda g, y, a, b: g * y * log(where((a == 0) & (b >= 0), 1.0, a)),
           doc="a to the power of b, elementwise, with NumPy's broadcasting.")

exp = Op("exp", lambda x: np.exp(floats(x)),
         lambda g, y: g * y,
         doc="e to the power of x, elementwise.")

log = Op("log", lambda x: np.log(floats(x)),
         lambda g, x: g / x,
         doc="The natural logarithm, elementwise.")

sqrt = Op("sqrt", lambda x: np.sqrt(floats(x)),
          lambda g, y: 0.5 * g / y,
          doc="The square root, elementwise.")

abs = Op("abs", lambda x: np.abs(x),
         lambda g, x: g * (x > 0) - g * (x < 0),
         doc="The absolute value, elementwise; its gradient at 0 is 0.")

# Where a equals b, each of them gets half of the gradient.
maximum = Op("maximum", lambda a, b: np.maximum(a, b),
             lambda g, a, b: 0.5 * (g * (a > b) + g * (a >= b)),
             lambda g, a, b: 0.5 * (g * (b > a) + g * (b >= a)),
             doc="The larger of a and b, elementwise; equal ones share the gradient.")

minimum = Op("minimum", lambda a, b: np.minimum(a, b),
             lambda g, a, b: 0.5 * (g * (a < b) + g * (a <= b)),
             lambda g, a, b: 0.5 * (g * (b < a) + g * (b <= a)),
             doc="The smaller of a and b, elementwise; equal ones share the gradient.")

_clip = Op("clip", lambda x, low, high: np.clip(x, low, high),
           lambda g, y, x: g * (x == y))

_where = Op("where", lambda a, b, condition: np.where(condition, a, b),
            lambda g, condition: g * condition,
            lambda g, condition: g * ~condition)

astype = Op("astype", lambda x, dtype: np.asarray(x).astype(dtype),
            lambda g, x_dtype: astype(g, dtype=x_dtype),
            doc="The same values as another dtype; the gradient comes back in the old one.")


def clip(x, low, high) -> Tensor:
    """x limited to the range from low to high (None: no bound); limited values pass no gradient."""
    return _clip(x, low=constant(low, "low"), high=constant(high, "high"))


def where(condition, a, b) -> Tensor:
    """a where the condition (bool array) holds, b elsewhere."""
    return _where(a, b, condition=np.asarray(plain(condition), bool))


def constant(value, name):
    """The plain value of a constant argument; TypeError for a Tensor that requires a gradient."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"{name} is a constant: no gradient would reach it. Give a number or "
                        f"{name}.data, or write the formula with F.where, F.maximum or F.minimum, "
                        "which pass gradients to both of their values")
    return plain(value)


# What Python calls, through NumPy, when an array is on the left of an operator and a Tensor on the
# right.
OPERATORS = {
    np.add: add,
    np.subtract: sub,
    np.multiply: mul,
    np.true_divide: div,
    np.power: power,
    np.matmul: lambda a, b: matmul(a, b),
}
COMPARISONS = {np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal}

# --- Products -------------------------------------------------------------------------------------

_matmul = Op("matmul", lambda a, b: a @ b,
             lambda g, b: g @ _swap(b),
             lambda g, a: _swap(a) @ g)


def _swap(x):
    return transpose(x, *range(x.ndim - 2), -1, -2)


def matmul(a, b) -> Tensor:
    """The matrix product a @ b by NumPy's rules: stacks of matrices broadcast, vectors are allowed.

    Raises ValueError for single numbers, and for shapes that do not fit.
    """
    a, b = (x if isinstance(x, Tensor) else _numeric(x) for x in (a, b))
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(
            f"a @ b needs as many columns in a as rows in b, got shapes {a.shape} and {b.shape}; a "
            "number is multiplied by *")
    if a.ndim == 1:
        return (a.reshape(1, -1) @ b)[..., 0, :] if b.ndim > 1 else sum(a * b)
    if b.ndim == 1:
        return _matmul(a, b.reshape(-1, 1))[..., 0]
    return _matmul(a, b)


# --- Shapes ---------------------------------------------------------------------------------------

_reshape = View("reshape", lambda x, shape: np.reshape(x, shape),
                lambda g, x_shape: g.reshape(x_shape))

_transpose = View("transpose", lambda x, axes: np.transpose(x, axes),
                  lambda g, axes: g.transpose(*np.argsort([i % len(axes) for i in axes])))

_broadcast_to = View("broadcast_to", lambda x, shape: np.broadcast_to(x, shape),
                     lambda g: g)

_getitem = View("getitem", lambda x, index: x[index],
                lambda g, index, x_shape: _scatter(g, index=index, shape=x_shape))

_scatter = Op("scatter", lambda x, index, shape: _add_at(np.zeros(shape, x.dtype), index, x),
              lambda g, index: g[index])


def getitem(x, index) -> Tensor:
    """x[index], with NumPy's rules; Tensors in the index count as their arrays."""
    return _getitem(x, index=_plain_index(index))


def _plain_index(index):
    """An index without Tensors: they may stand for it, or within a tuple or list."""
    if isinstance(index, (tuple, list)):
        return type(index)(map(_plain_index, index))
    return plain(index)


def _add_at(out, index, values):
    parts = index if isinstance(index, tuple) else (index,)
    if all(isinstance(i, (int, slice, type(None), type(Ellipsis))) for i in parts):
        out[index] = values  # no place is named twice: faster than adding
    else:
        np.add.at(out, index, values)
    return out


def reshape(x, *shape) -> Tensor:
    """x with another shape; one length may be -1. reshape(x, 2, 3) or reshape(x, (2, 3))."""
    return _reshape(x, shape=_unpack(shape))


def broadcast_to(x, shape) -> Tensor:
    """x repeated along axes that it lacks, or where its length is 1, up to shape."""
    return _broadcast_to(x, shape=shape)


def transpose(x, *axes) -> Tensor:
    """x with its axes in another order; reversed when none is given."""
    return _transpose(x, axes=_unpack(axes) or tuple(range(x.ndim))[::-1])


def _unpack(numbers):
    if len(numbers) == 1 and isinstance(numbers[0], (tuple, list)):
        return tuple(numbers[0])
    return numbers


def concatenate(xs, axis=0) -> Tensor:
    """Join along an axis that exists. Raises AxisError for another."""
    axis = normalize_axis_index(axis, xs[0].ndim)
    ends = np.cumsum([x.shape[axis] for x in xs])
    ndim = xs[0].ndim

    def part(i):
        index = [slice(None)] * ndim
        index[axis] = slice(int(ends[i]) - xs[i].shape[axis], int(ends[i]))
        index = tuple(index)
        return lambda g: g[index]

    return Op(
        "concatenate", lambda *arrays: np.concatenate(arrays, axis), *map(part, range(len(xs)))
    )(*xs)


def stack(xs, axis=0) -> Tensor:
    """Join along a new axis. Raises AxisError for one that the result would not have."""
    axis = normalize_axis_index(axis, xs[0].ndim + 1)
    return concatenate([reshape(x, *x.shape[:axis], 1, *x.shape[axis:]) for x in xs], axis)


# --- Reductions: axis None (all), a number or a tuple ---------------------------------------------

def _sum_forward(x, axis, keepdims):
    """The sum, added up in a wider dtype where x's own would overflow or lose digits."""
    x = np.asarray(x)
    wider = None
    if x.dtype is HALF:
        wider = np.float32
    elif x.size > MANY and x.dtype == np.float32 and _count(x, axis) > MANY:
        wider = np.float64
    y = np.add.reduce(x, axis=axis, keepdims=keepdims, dtype=wider)
    return y if wider is None else y.astype(x.dtype)


_sum = Op(
    "sum",
    _sum_forward,
    lambda g, x_shape, axis, keepdims: broadcast_to(
        _restore(g, x_shape, axis, keepdims), shape=x_shape
    ),
)

_max = Op(
    "max",
    lambda x, axis, keepdims: np.max(x, axis=axis, keepdims=keepdims),
    lambda g, y, x, axis, keepdims: (
        _restore(g, x.shape, axis, keepdims) * _ties(x, y, axis, keepdims)
    ),
)

_min = Op(
    "min",
    lambda x, axis, keepdims: np.min(x, axis=axis, keepdims=keepdims),
    lambda g, y, x, axis, keepdims: (
        _restore(g, x.shape, axis, keepdims) * _ties(x, y, axis, keepdims)
    ),
)


def _restore(g, shape, axis, keepdims):
    """g with the reduced axes back, of length 1, so that it broadcasts against the shape before."""
    if keepdims:
        return g
    axes = range(len(shape)) if axis is None else [i % len(shape) for i in np.atleast_1d(axis)]
    return g.reshape([1 if i in axes else n for i, n in enumerate(shape)])


def _ties(x, y, axis, keepdims):
    """Shares of the extreme values y: 1 where x equals y, or 1/k at each of k equal places."""
    equal = plain(x == _restore(y, x.shape, axis, keepdims))
    return (equal / equal.sum(axis=axis, keepdims=True)).astype(x.dtype)


def _count(x, axis):
    """How many numbers a reduction over axis takes together."""
    return x.size if axis is None else int(np.prod([x.shape[i] for i in np.atleast_1d(axis)]))


def in_float32(function, *arguments, **options):
    """function(*arguments) computed in float32, where sums do not overflow, as float16 again."""
    wide = [
        astype(x, dtype=np.float32) if getattr(x, "dtype", None) == HALF else x for x in arguments
    ]
    results = function(*wide, **options)
    if isinstance(results, tuple):
        return tuple(astype(y, dtype=HALF) for y in results)
    return astype(results, dtype=HALF)


def sum(x, axis=None, keepdims=False) -> Tensor:
    """The sum over axis."""
    return _sum(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims=False) -> Tensor:
    """The mean over axis."""
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if x.dtype is HALF:
        return in_float32(mean, x, axis, keepdims)
    return sum(x, axis, keepdims) / _count(x, axis)


def var(x, axis=None, keepdims=False) -> Tensor:
    """The biased variance over axis (divided by n), in two passes: the mean comes first."""
    x = x if isinstance(x, Tensor) else np.asarray(x)
    if x.dtype is HALF:
        return in_float32(var, x, axis, keepdims)
    centred = x - mean(x, axis, keepdims=True)
    return mean(centred * centred, axis, keepdims)


def max(x, axis=None, keepdims=False) -> Tensor:
    """The largest value over axis; equal ones share the gradient."""
    return _max(x, axis=axis, keepdims=keepdims)


def min(x, axis=None, keepdims=False) -> Tensor:
    """The smallest value over axis; equal ones share the gradient."""
    return _min(x, axis=axis, keepdims=keepdims)
