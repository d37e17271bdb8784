"""Every op: its value against an independent formula, its gradient against finite differences.

CASES names, for each public function, operator and method, how to call it and on what. Two tests keep the
table honest: one lists the names by inspection and fails when a name has no case, the other breaks every
VJP in turn and fails when no case notices.
"""

import functools
import inspect
import math
import operator
from typing import Callable, NamedTuple

import hypothesis
import hypothesis.extra.numpy as some
import numpy as np
import pytest
from hypothesis import strategies as st

import minidl.functional as F
import minidl.ops as O
import minidl.tensor as T
from minidl import Tensor, grad, gradcheck, no_grad

RNG = np.random.default_rng(0)
properties = hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
no_warnings = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def rng():
    """Every test draws the same numbers, whichever ran before."""
    global RNG
    RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape)


def positive(*shape):
    return RNG.uniform(0.5, 2, shape)


def apart(*shape):
    """Numbers of both signs at least 0.1 from 0 and from each other: no finite difference crosses a kink."""
    n = math.prod(shape)
    return (RNG.permutation(n).reshape(shape) - n // 2 + 0.3) * 0.4


class Case(NamedTuple):
    function: Callable
    inputs: list
    order: int  # up to which gradcheck shall go: 1 for fused ops, 2 for what is made of primitives


CASES = {}


def case(name, function, *inputs, order=2):
    """name: what is called (`relu`, `Tensor.sum`), then, after a space, what is special about this case."""
    assert name not in CASES, f"two cases are named {name!r}"
    CASES[name] = Case(function, list(inputs), order)


# --- Elementwise -------------------------------------------------------------------------------------

BROADCASTS = [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((4,), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((3, 4), ())]
OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
             "pow": operator.pow}
WEIGHTS = np.array([0.5, 1.5, 2.0, 3.0], np.float32)  # a constant array that is exact in both precisions

for name, op in OPERATORS.items():
    for a_shape, b_shape in BROADCASTS:
        case(f"Tensor.__{name}__ {a_shape} {b_shape}", op, positive(*a_shape), positive(*b_shape))
    in_place = getattr(operator, f"i{name}")
    if name != "pow":  # on a result; on a parameter it is refused, see test_tensor.py
        case(f"Tensor.__i{name}__", lambda a, b, op=in_place: op(a * 1, b), positive(3, 4), positive(4))
    case(f"Tensor.__{name}__ number", lambda x, op=op: op(x, 2.5), positive(3, 4))
    case(f"Tensor.__{name}__ array", lambda x, op=op: op(x, WEIGHTS), positive(3, 4))
    case(f"Tensor.__{name}__ with itself", lambda x, op=op: op(x, x), positive(3))
    case(f"Tensor.__r{name}__ number", lambda x, op=op: op(2.5, x), positive(3, 4))
    case(f"Tensor.__r{name}__ list", lambda x, op=op: op(WEIGHTS.tolist(), x), positive(3, 4))
    case(f"Tensor.__array_ufunc__ {name}", lambda x, op=op: op(WEIGHTS, x), positive(3, 4))

for name in "add", "sub", "mul", "div":
    case(name, lambda a, b, name=name: getattr(T, name)(a, b), positive(3, 4), positive(4))
for exponent in 0, 1, 2, 3, -1:
    case(f"power exponent={exponent}", lambda x, e=exponent: F.power(x, e), apart(3, 4))
case("power", lambda a, b: F.power(a, b), positive(3, 4), normal(3, 4))
case("neg", lambda x: T.neg(x), normal(3, 4))
case("Tensor.__neg__", lambda x: -x, normal(3, 4))
case("Tensor.__abs__", lambda x: abs(x), apart(3, 4))
case("astype", lambda x: T.astype(x, dtype=np.float64), normal(3, 4))
case("Tensor.astype", lambda x: x.astype(np.float64), normal(3, 4))

for name, draw in {"exp": normal, "log": positive, "sqrt": positive, "abs": apart}.items():
    case(name, lambda x, name=name: getattr(F, name)(x), draw(3, 4))
    case(f"Tensor.{name}", lambda x, name=name: getattr(x, name)(), draw(3, 4))
for name in "sin", "cos", "erf", "square", "log1p":
    case(name, lambda x, name=name: getattr(F, name)(x), positive(3, 4))
for name in "relu", "tanh", "sigmoid", "leaky_relu", "softplus", "gelu", "gelu_exact", "elu", "silu", "linear_activation":
    case(name, lambda x, name=name: getattr(F, name)(x), apart(3, 4))
case("leaky_relu slope=0.3", lambda x: F.leaky_relu(x, 0.3), apart(3, 4))

case("elu alpha=0.3", lambda x: F.elu(x, 0.3), apart(3, 4))
case("Tensor.__pos__", lambda x: +x * x, normal(3, 4))

PAIR = apart(2, 3, 4)  # two arrays without equal entries
for name in "maximum", "minimum":
    case(name, lambda a, b, name=name: getattr(F, name)(a, b), PAIR[0], PAIR[1])
    case(f"{name} number", lambda x, name=name: getattr(F, name)(x, 0.5), PAIR[0])
case("clip", lambda x: F.clip(x, -1.2, 0.9), apart(3, 4))
case("clip low only", lambda x: F.clip(x, 0.1, None), apart(3, 4))
MASK = np.arange(12).reshape(3, 4) % 3 > 0
case("where", lambda a, b: F.where(MASK, a, b), normal(3, 4), normal(4))
case("where number", lambda x: F.where(MASK, x * x, 0.5), normal(3, 4))

# --- Products ----------------------------------------------------------------------------------------

for a_shape, b_shape in [((3, 4), (4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
                         ((2, 1, 3, 4), (5, 4, 2)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,))]:
    case(f"matmul {a_shape} {b_shape}", lambda a, b: F.matmul(a, b), normal(*a_shape), normal(*b_shape))
    case(f"Tensor.__matmul__ {a_shape} {b_shape}", operator.matmul, normal(*a_shape), normal(*b_shape))
case("Tensor.dot", lambda a, b: a.dot(b), normal(3, 4), normal(4, 2))
case("Tensor.__rmatmul__", lambda x: np.eye(3).tolist() @ x, normal(3, 4))
case("Tensor.__array_ufunc__ matmul", lambda x: np.eye(3, dtype=np.float32) @ x, normal(3, 4))
case("linear", lambda x, kernel, bias: F.linear(x, kernel, bias), normal(5, 3), normal(3, 4), normal(4))
case("linear with a third axis", lambda x, kernel, bias: F.linear(x, kernel, bias), normal(3, 3, 3), normal(3, 3), normal(3))
case("linear without bias", lambda x, kernel: F.linear(x, kernel), normal(5, 3), normal(3, 4))

# --- Shapes ------------------------------------------------------------------------------------------

INDICES = {"row": 1, "last": -1, "slice": slice(1, None), "steps": (slice(None, None, 2), slice(None, None, -1)),
           "new axis": (Ellipsis, None, 0), "place": (2, 1), "repeated rows": [0, 2, 0, 0],
           "pairs": (np.array([0, 1, 1, 1]), np.array([3, 2, 2, 0])), "numpy integer": np.int64(1),
           "mask": MASK, "row mask": np.array([True, False, True]), "slice and list": (slice(0, 2), [3, 3, 1])}
for label, index in INDICES.items():
    case(f"getitem {label}", lambda x, index=index: F.getitem(x, index=index), normal(3, 4))
    case(f"Tensor.__getitem__ {label}", lambda x, index=index: x[index], normal(3, 4))
case("Tensor.__getitem__ Tensor", lambda x: x[Tensor(np.array([2, 2, 0]))], normal(3, 4))
case("Tensor.__iter__", lambda x: F.stack(list(x), axis=1), normal(3, 4))
case("scatter", lambda x: T._scatter(x, index=[0, 2, 0], shape=(3, 4)), normal(3, 4))

case("reshape", lambda x: F.reshape(x, 2, -1), normal(3, 4))
case("reshape tuple", lambda x: F.reshape(x, (2, 6)), normal(3, 4))
case("Tensor.reshape", lambda x: x.reshape(2, 3, -1), normal(3, 4))
case("transpose", lambda x: F.transpose(x), normal(2, 3, 4))
case("transpose axes", lambda x: F.transpose(x, 1, 2, 0), normal(2, 3, 4))
case("transpose negative axes", lambda x: F.transpose(x, (-1, 0, 1)), normal(2, 3, 4))
case("Tensor.transpose", lambda x: x.transpose(0, 2, 1), normal(2, 3, 4))
case("Tensor.T", lambda x: x.T, normal(3, 4))
case("broadcast_to", lambda x: F.broadcast_to(x, shape=(2, 3, 4)), normal(3, 1))
case("concatenate", lambda a, b, c: F.concatenate([a, b, c]), normal(2, 3), normal(1, 3), normal(2, 3))
case("concatenate axis=-1", lambda a, b: F.concatenate([a, b], axis=-1), normal(2, 3), normal(2, 1))
case("concatenate with itself", lambda a: F.concatenate([a, a * a]), normal(2, 3))
case("stack", lambda a, b: F.stack([a, b]), normal(2, 3), normal(2, 3))
case("stack axis=-1", lambda a, b: F.stack([a, b], axis=-1), normal(2, 3), normal(2, 3))

case("squeeze", lambda x: F.squeeze(x), normal(1, 3, 1))
case("squeeze axis=-1", lambda x: F.squeeze(x, axis=-1), normal(1, 3, 1))
case("expand_dims", lambda x: F.expand_dims(x, 1), normal(3, 4))
case("split", lambda x: F.split(x, 2)[1], normal(4, 3))
case("split at places", lambda x: F.stack([F.sum(part) for part in F.split(x, [1, 3], axis=1)]) ** 2, normal(2, 4))
case("tile", lambda x: F.tile(x, 3), normal(2, 3))
case("tile both", lambda x: F.tile(x, (2, 1, 3)), normal(2, 3))
case("pad", lambda x: F.pad(x, ((1, 2), (0, 3)), value=0.5), normal(2, 3))
case("cumsum", lambda x: F.cumsum(x, axis=1), normal(2, 3, 2))
case("cumsum axis=-1", lambda x: F.cumsum(x, axis=-1), normal(2, 3))

# --- Products that name their axes -------------------------------------------------------------------

case("outer", lambda a, b: F.outer(a, b), normal(3), normal(4))
EINSUMS = {"ij,jk->ik": [(2, 3), (3, 4)], "ij,jk": [(2, 3), (3, 4)], "i,i->": [(3,), (3,)], "i,j->ji": [(3,), (2,)],
           "bhd,bkd->bhk": [(2, 3, 4), (2, 2, 4)], "ij->ji": [(2, 3)], "ij->": [(2, 3)], "ij,jk,kl->il": [(2, 3), (3, 4), (4, 2)],
           "ij,jk,l->i": [(2, 3), (3, 4), (2,)], ",ij->j": [(), (2, 3)]}
for subscripts, shapes in EINSUMS.items():
    case(f"einsum {subscripts}", lambda *xs, s=subscripts: F.einsum(s, *xs), *(normal(*shape) for shape in shapes))
case("einsum with itself", lambda x: F.einsum("ij,kj->ik", x, x), normal(2, 3))

# --- Reductions --------------------------------------------------------------------------------------

AXES = [{}, {"keepdims": True}, {"axis": 1}, {"axis": -1}, {"axis": -2, "keepdims": True}, {"axis": (0, 2)},
        {"axis": (-1, 0), "keepdims": True}, {"axis": (0, 1, 2)}]
for name in "sum", "mean", "var", "max", "min", "std", "prod", "norm":
    for options in AXES:
        label = " ".join(f"{key}={value}" for key, value in options.items())
        case(f"{name} {label}", lambda x, name=name, o=options: getattr(F, name)(x, **o), apart(2, 3, 4) / (5 if name == "prod" else 1))
    if hasattr(Tensor, name):
        case(f"Tensor.{name}", lambda x, name=name: getattr(x, name)(axis=1, keepdims=True), apart(2, 3, 4))

# --- Softmax, losses ---------------------------------------------------------------------------------

for name in "softmax", "log_softmax", "logsumexp":
    case(name, lambda x, name=name: getattr(F, name)(x), normal(3, 4))
    case(f"{name} axis=0", lambda x, name=name: getattr(F, name)(x, axis=0), normal(3, 4))
    case(f"{name} axis=(0, 2)", lambda x, name=name: getattr(F, name)(x, axis=(0, -1)), normal(2, 3, 2))

CLASSES = np.array([2, 0, 3])
SOFT = np.array([[0.5, 0.25, 0.25, 0], [0, 0, 0, 1], [0.125, 0.375, 0.25, 0.25]], np.float32)
LABELS = {"class numbers": CLASSES, "one-hot": np.eye(4, dtype=int)[CLASSES], "soft": SOFT, "weighted": 3 * SOFT}
for label, y in LABELS.items():
    case(f"cross_entropy {label}", lambda x, y=y: F.cross_entropy(x, y), normal(3, 4), order=1)
    case(f"cross_entropy_composed {label}", lambda x, y=y: F.cross_entropy_composed(x, y), normal(3, 4))
    case(f"categorical_crossentropy {label}", lambda p, y=y: F.categorical_crossentropy(p, y),
         RNG.uniform(0.1, 0.9, (3, 4)))
case("categorical_crossentropy after softmax", lambda x: F.categorical_crossentropy(F.softmax(x), SOFT), normal(3, 4),
     order=1)  # computed by the fused cross_entropy
case("binary_cross_entropy", lambda p: F.binary_cross_entropy(p, SOFT), RNG.uniform(0.1, 0.9, (3, 4)))
case("binary_cross_entropy after sigmoid", lambda x: F.binary_cross_entropy(F.sigmoid(x), SOFT), normal(3, 4))
case("binary_cross_entropy_with_logits", lambda x: F.binary_cross_entropy_with_logits(x, SOFT), normal(3, 4))
case("mse_loss", lambda a, b: F.mse_loss(a, b), normal(3, 4), normal(3, 4))
case("l1_loss", lambda a, b: F.l1_loss(a, b), PAIR[0], PAIR[1])
case("huber_loss", lambda a, b: F.huber_loss(a, b), PAIR[0], PAIR[1])  # some errors are below 1, some above
case("huber_loss delta=0.5", lambda a, b: F.huber_loss(a, b, 0.5), PAIR[0], PAIR[1])
for reduction in "sum", "none":
    for name in "mse_loss", "l1_loss", "huber_loss":
        case(f"{name} {reduction}", lambda a, b, name=name, r=reduction: getattr(F, name)(a, b, reduction=r), PAIR[0], PAIR[1])
    for name in "cross_entropy", "cross_entropy_composed":
        for label, y in LABELS.items():
            case(f"{name} {label} {reduction}", lambda x, y=y, r=reduction, name=name: getattr(F, name)(x, y, reduction=r),
                 normal(3, 4))
    for label, y in LABELS.items():
        case(f"categorical_crossentropy {label} {reduction}",
             lambda p, y=y, r=reduction: F.categorical_crossentropy(p, y, reduction=r), RNG.uniform(0.1, 0.9, (3, 4)))
    case(f"binary_cross_entropy {reduction}", lambda p, r=reduction: F.binary_cross_entropy(p, SOFT, reduction=r),
         RNG.uniform(0.1, 0.9, (3, 4)))
    case(f"binary_cross_entropy_with_logits {reduction}",
         lambda x, r=reduction: F.binary_cross_entropy_with_logits(x, SOFT, reduction=r), normal(3, 4))
for label, y in LABELS.items():
    case(f"cross_entropy {label} smoothed", lambda x, y=y: F.cross_entropy(x, y, label_smoothing=0.1), normal(3, 4), order=1)
    case(f"cross_entropy_composed {label} smoothed", lambda x, y=y: F.cross_entropy_composed(x, y, label_smoothing=0.1),
         normal(3, 4))
    case(f"categorical_crossentropy {label} smoothed", lambda p, y=y: F.categorical_crossentropy(p, y, label_smoothing=0.1),
         RNG.uniform(0.1, 0.9, (3, 4)))
for reduction in "mean", "sum", "none":
    case(f"cross_entropy ignore_index {reduction}",
         lambda x, r=reduction: F.cross_entropy(x, np.array([2, -1, 3]), ignore_index=-1, reduction=r), normal(3, 4))

# --- Batch and Layer Normalization -------------------------------------------------------------------

MEAN, VARIANCE = np.array([0.5, -1, 2], np.float32), np.array([0.25, 4, 1], np.float32)
for shape in (5, 3), (3, 3, 2, 2):
    case(f"batch_norm {shape}", lambda x, g, b: F.batch_norm(x, g, b)[0], normal(*shape), normal(3), normal(3), order=1)
    case(f"batch_norm_composed {shape}", lambda x, g, b: F.batch_norm_composed(x, g, b)[0],
         normal(*shape), normal(3), normal(3))
    case(f"batch_norm_inference {shape}", lambda x, g, b: F.batch_norm_inference(x, g, b, MEAN, VARIANCE),
         normal(*shape), normal(3), normal(3))
    case(f"per_channel {shape}", lambda v, x: F.per_channel(v, x) * x, normal(3), normal(*shape))
for shape in (5, 4), (2, 3, 4):
    case(f"layer_norm {shape}", lambda x, g, b: F.layer_norm(x, g, b), normal(*shape), normal(4), normal(4), order=1)
    case(f"layer_norm_composed {shape}", lambda x, g, b: F.layer_norm_composed(x, g, b), normal(*shape), normal(4), normal(4))


# --- The table is complete ---------------------------------------------------------------------------

NOT_DIFFERENTIABLE = {f"Tensor.{name}" for name in (
    "data shape ndim size dtype op logits numpy item tolist detach backward __init__ __repr__ __len__ __float__ "
    "__int__ __index__ __bool__ __contains__ __format__ __dir__ __hash__ __array_function__ "
    "__array__ __setitem__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ argmax").split()} | {
    "argmax", "grad", "no_grad", "walk", "starting_gradient", "plain", "constant", "floats", "in_float32", "unknown", "column_sums", "mark_changed",
    "changed_since", "is_whole"}


def public_names():
    """Every public function of functional.py, ops.py and tensor.py, every method, operator and property of Tensor."""
    def function_of(module, value):
        return isinstance(value, (T.Op, T.Fused)) or (inspect.isfunction(value) and value.__module__ == module.__name__)

    names = {name for module in (F, O) for name, value in vars(module).items()
             if callable(value) and not inspect.isclass(value)}
    names |= {name for name, value in vars(T).items() if function_of(T, value)}
    names = {name for name in names if not name.startswith("_")}
    names |= {f"Tensor.{name}" for name, value in vars(Tensor).items()
              if callable(value) or isinstance(value, property)}
    return names - NOT_DIFFERENTIABLE


def all_ops():
    """Every Op and Fused of the three modules by name, also those behind a public wrapper (_sum behind sum)."""
    return {name: op for module in (T, O, F) for name, op in vars(module).items() if isinstance(op, (T.Op, T.Fused))}


def ops_in(case):
    """The ops in the graph of a case, and of its gradient if that is checked too."""
    xs = [Tensor(x, requires_grad=True) for x in case.inputs]
    y = case.function(*xs)
    results, seen = [y], set()
    if case.order == 2:
        results += grad(F.sum(y * np.ones(y.shape)), xs, create_graph=True)
    stack = [t.node for t in results]
    while stack:
        node = stack.pop()
        if isinstance(node, T.Node) and node not in seen:
            seen.add(node)
            stack += node.inputs
    return {node.op for node in seen}


@functools.cache
def cases_by_op():
    table = {}
    for name, case in CASES.items():
        for op in ops_in(case):
            table.setdefault(op, []).append(name)
    return table


def names_without_case():
    missing = public_names() - {name.split(" ")[0] for name in CASES}
    return missing | {name for name, op in all_ops().items() if op not in cases_by_op()}


def test_every_op_has_a_case():
    """A VJP that returns a wrong larger shape would be summed silently: no op may go unchecked."""
    assert names_without_case() == set(), "add a case to CASES for each of these (or list it in NOT_DIFFERENTIABLE)"


@pytest.mark.parametrize("module, name, value", [
    (F, "swish", T.Op("swish", lambda x: x, lambda g: g)), (F, "_hidden", T.Op("hidden", lambda x: x)),
    (F, "quick", T.Fused("quick", lambda x: x, composed="slow")), (T, "_hidden", T.Op("hidden", lambda x: x)),
    (O, "_hidden", T.Op("hidden", lambda x: x)),
    (F, "cube", lambda x: x), (Tensor, "cube", lambda x: x * x * x), (Tensor, "__mod__", lambda a, b: a - b)])
def test_a_new_op_without_a_case_is_noticed(monkeypatch, module, name, value):
    monkeypatch.setattr(module, name, value, raising=False)
    assert names_without_case() == {f"Tensor.{name}" if module is Tensor else name}


@pytest.mark.parametrize("name", CASES)
def test_a_case_calls_what_its_name_says(monkeypatch, name):
    called = name.split(" ")[0]
    owner = Tensor if called.startswith("Tensor.") else F if hasattr(F, called) else T
    called = {"scatter": "_scatter"}.get(called, called.removeprefix("Tensor."))

    class Called(Exception):
        pass

    def stop(*arguments, **options):
        raise Called

    monkeypatch.setattr(owner, called, property(stop) if called == "T" else stop)
    with pytest.raises(Called):
        CASES[name].function(*map(Tensor, CASES[name].inputs))


# --- The gradients are right, and wrong ones are noticed -----------------------------------------------

@pytest.mark.parametrize("name", CASES)
def test_gradient_agrees_with_finite_differences(name):
    assert gradcheck(CASES[name].function, CASES[name].inputs, order=CASES[name].order)


def noticed(op):
    """Whether gradcheck fails on one of the cases in which op occurs."""
    for name in cases_by_op()[op]:
        try:
            gradcheck(CASES[name].function, CASES[name].inputs, order=CASES[name].order, draws=1)
        except AssertionError:
            return True
    return False


def times(factor, vjp):
    return functools.wraps(vjp)(lambda *arguments: vjp(*arguments) * factor)


def break_fused(monkeypatch, op, i, factor):
    """Multiply the gradient of input i by factor."""
    def forward(*inputs, good=op.forward, **constants):
        y, vjp, *extras = good(*inputs, **constants)
        return y, lambda g: [gx * factor if j == i else gx for j, gx in enumerate(vjp(g))], *extras

    monkeypatch.setattr(op, "forward", forward)


VJPS = [(name, i) for name, op in all_ops().items() if isinstance(op, T.Op) for i in range(len(op.vjps))]
FUSED = [*((name, i) for name in ("_batch_norm", "_layer_norm") for i in range(3)), ("_cross_entropy", 0)]
FACTORS = [-7, 0, 1.001]


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name, i", VJPS)
def test_mutation_a_wrong_vjp_is_noticed(monkeypatch, name, i, factor):
    op = all_ops()[name]
    cases_by_op()  # made before the op is broken
    monkeypatch.setattr(op, "vjps", tuple(times(factor, v) if j == i else v for j, v in enumerate(op.vjps)))
    assert noticed(op), f"gradcheck passes although VJP {i} of {name} is multiplied by {factor}"


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("name, i", FUSED)
def test_mutation_a_wrong_fused_gradient_is_noticed(monkeypatch, name, i, factor):
    cases_by_op()
    break_fused(monkeypatch, all_ops()[name], i, factor)
    assert noticed(all_ops()[name])


def test_mutation_covers_every_fused_op():
    assert {name for name, _ in FUSED} == {name for name, op in all_ops().items() if isinstance(op, T.Fused)}


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("i", [0, 1, 2])
def test_mutation_a_wrong_part_of_concatenate_is_noticed(monkeypatch, i, factor):
    """Its op is made anew at each call, so the class is replaced."""
    def broken(name, forward, *vjps, Op=T.Op):
        return Op(name, forward, *(times(factor, v) if j == i else v for j, v in enumerate(vjps)))

    monkeypatch.setattr(T, "Op", broken)
    with pytest.raises(AssertionError, match=f"input {i} "):
        gradcheck(CASES["concatenate"].function, CASES["concatenate"].inputs)


CURVED = ("mul div power exp log sqrt square sin cos erf log1p _norm _contract _elu _matmul tanh _sigmoid _softplus _softmax _logsumexp _log_softmax _linear").split()


@pytest.mark.parametrize("name", CURVED)
def test_mutation_a_vjp_that_takes_an_operand_for_a_constant_is_noticed(monkeypatch, name):
    """Such a VJP (np.something(x) on an operand, say) is right at first order and silently wrong at second."""
    def constant(x):
        return x.detach() if isinstance(x, Tensor) else x

    op = all_ops()[name]
    cases_by_op()
    cut = [lambda g, *read, vjp=vjp: vjp(g, *map(constant, read)) for vjp in op.vjps]
    monkeypatch.setattr(op, "vjps", tuple(cut))
    first = cases_by_op()[op][0]
    assert gradcheck(CASES[first].function, CASES[first].inputs, order=1)
    assert noticed(op)


def test_a_cotangent_of_ones_is_blind_but_gradcheck_is_not(monkeypatch):
    """The sum of normalised numbers is 0 whatever x is: its gradient passes a naive check even times -7."""
    break_fused(monkeypatch, F._batch_norm, 0, -7)
    check = CASES["batch_norm (5, 3)"]
    x, gamma, beta = check.inputs

    def total(values):
        return F.batch_norm(values, gamma, beta)[0].sum()

    xt = Tensor(x, requires_grad=True)
    wrong = grad(total(xt), xt)
    h = 1e-5
    for place in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[place] = h
        assert abs((total(x + step) - total(x - step)) / (2 * h) - wrong[place]) < 1e-8  # blind
    with pytest.raises(AssertionError, match="input 0"):
        gradcheck(check.function, check.inputs)


# --- What holds for every case -------------------------------------------------------------------------

@pytest.mark.parametrize("name", CASES)
def test_float32_stays_float32(name):
    """Data and gradients, also where Python numbers take part."""
    function, inputs, order = CASES[name]
    xs = [Tensor(x.astype(np.float32), requires_grad=True) for x in inputs]
    y = function(*xs)
    if "astype" not in name:
        assert y.dtype == np.float32
    gradients = grad(y, xs, np.ones(y.shape))
    assert [g.dtype for g in gradients] == [np.float32] * len(xs)
    assert [g.shape for g in gradients] == [x.shape for x in xs]
    if order == 2:
        assert {g.dtype for g in grad(y, xs, np.ones(y.shape), create_graph=True)} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("Tensor.")])
def test_arrays_in_array_out(name):
    """Functions of plain arrays give plain arrays with the values that Tensors have."""
    function, inputs, _ = CASES[name]
    y, expected = function(*inputs), function(*map(Tensor, inputs))
    assert isinstance(y, (np.ndarray, np.float64)) and not expected.requires_grad
    if " after " in name:  # an array does not know the logits that it was computed from
        assert np.allclose(y, expected.data, rtol=1e-12)
    else:
        assert np.array_equal(y, expected.data)


@pytest.mark.parametrize("name", CASES)
def test_recording_changes_no_value_and_no_input(name):
    function, inputs, _ = CASES[name]
    before = [x.copy() for x in inputs]
    recorded = function(*[Tensor(x, requires_grad=True) for x in inputs])
    grad(recorded, recorded, np.ones(recorded.shape))
    with no_grad():
        plain = function(*[Tensor(x, requires_grad=True) for x in inputs])
    np.testing.assert_allclose(recorded.data, plain.data, rtol=1e-14)  # a loss looks up recorded logits
    assert plain.op is None
    assert all(np.array_equal(x, b) for x, b in zip(inputs, before))


# --- Values against formulas ---------------------------------------------------------------------------

ERF_GELU = np.vectorize(lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))))
FORMULAS = {
    "exp": math.exp, "tanh": math.tanh, "relu": lambda x: x if x > 0 else 0.0, "abs": math.fabs,
    "sigmoid": lambda x: math.exp(x) / (math.exp(x) + 1), "softplus": lambda x: math.log(math.exp(x) + 1),
    "leaky_relu": lambda x: x if x > 0 else x / 100, "linear_activation": lambda x: x,
    "gelu": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3))),
    "gelu_exact": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))), "elu": lambda x: x if x > 0 else math.expm1(x),
    "silu": lambda x: x / (1 + math.exp(-x)), "sin": math.sin, "cos": math.cos, "erf": math.erf, "square": lambda x: x * x,
    "log1p": math.log1p, "log": math.log, "sqrt": math.sqrt}


@pytest.mark.parametrize("name", FORMULAS)
def test_elementwise_value(name):
    x = np.linspace(0.05, 4, 40) if name in ("log", "sqrt", "log1p") else np.linspace(-4, 4, 41)
    np.testing.assert_allclose(getattr(F, name)(Tensor(x)).data, [FORMULAS[name](v) for v in x], rtol=1e-13, atol=1e-15)


def test_gelu_is_close_to_its_definition_by_erf():
    x = np.linspace(-6, 6, 1001)
    assert np.abs(F.gelu(x) - ERF_GELU(x)).max() < 5e-4


@pytest.mark.parametrize("options", AXES, ids=str)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "max", "min", "std", "prod"])
def test_reductions_are_numpys(name, options):
    x = normal(2, 3, 4)
    np.testing.assert_allclose(getattr(F, name)(Tensor(x), **options).data, getattr(np, name)(x, **options), rtol=1e-13)


@pytest.mark.parametrize("a, b", [((3, 4), (4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)),
                                  ((2, 1, 3, 4), (5, 4, 2))])
def test_matmul_is_numpys(a, b):
    a, b = normal(*a), normal(*b)
    for product in Tensor(a) @ Tensor(b), a @ Tensor(b), Tensor(a) @ b:
        assert isinstance(product, Tensor) and product.shape == (a @ b).shape
        np.testing.assert_allclose(product.data, a @ b, rtol=1e-13)


def test_shape_functions_are_numpys():
    a, b = normal(2, 3), normal(2, 3)
    for axis in 0, 1, -1:
        assert np.array_equal(F.concatenate([Tensor(a), b], axis).data, np.concatenate([a, b], axis))
        assert np.array_equal(F.stack([Tensor(a), b], axis).data, np.stack([a, b], axis))
    assert np.array_equal(F.broadcast_to(Tensor(a), (4, 2, 3)).data, np.broadcast_to(a, (4, 2, 3)))
    assert np.array_equal(F.clip(Tensor(a), -0.5, 0.5).data, np.clip(a, -0.5, 0.5))
    assert np.array_equal(F.where(a > b, Tensor(a), b).data, np.maximum(a, b))
    assert F.expand_dims(a, -1).shape == (2, 3, 1) and F.squeeze(a[None, :, None]).shape == (2, 3)
    for repeats in 2, (2, 3), (2, 1, 3):
        assert np.array_equal(F.tile(Tensor(a), repeats).data, np.tile(a, repeats))
    for parts in 3, [1], [1, 2]:
        assert all(map(np.array_equal, F.split(a, parts, axis=1), np.split(a, parts, axis=1)))
    assert np.array_equal(F.pad(Tensor(a), ((1, 0), (2, 3)), 0.5).data, np.pad(a, ((1, 0), (2, 3)), constant_values=0.5))
    assert np.array_equal(F.cumsum(Tensor(a), 1).data, np.cumsum(a, 1)) and np.array_equal(F.outer(a[0], b[0]), np.outer(a[0], b[0]))
    assert np.array_equal(F.argmax(Tensor(a), 1), a.argmax(1)) and np.array_equal(Tensor(a).argmax(axis=0), a.argmax(0))


@pytest.mark.parametrize("subscripts", EINSUMS)
def test_einsum_is_numpys(subscripts):
    xs = [normal(*shape) for shape in EINSUMS[subscripts]]
    y = F.einsum(subscripts, *map(Tensor, xs))
    np.testing.assert_allclose(y.data, np.einsum(subscripts, *xs), rtol=1e-12)


@pytest.mark.parametrize("subscripts, shapes, words", [
    ("ij,jk->ik", [(2, 3), (4, 5)], "axis 'j' has the lengths 3 and 4"), ("ii->i", [(3, 3)], "diagonal"),
    ("...ij->ij", [(2, 3)], "not known"), ("ij->k", [(2, 3)], "no input has"), ("ij,j->i", [(2, 3)], "2 inputs")])
def test_einsum_says_what_does_not_fit(subscripts, shapes, words):
    with pytest.raises(ValueError, match=words):
        F.einsum(subscripts, *(normal(*shape) for shape in shapes))


@no_warnings
def test_products_and_norms_have_gradients_at_0():
    """Dividing the product by each number, or by the norm, would make NaN of them."""
    x = Tensor(np.array([2.0, 0, 3]), requires_grad=True)
    assert np.array_equal(grad(F.prod(x), x), [0, 6, 0]) and F.prod(np.ones((0, 2)), 0).tolist() == [1, 1]
    zero = Tensor(np.zeros(3), requires_grad=True)
    assert F.norm(zero).item() == 0 and np.array_equal(grad(F.norm(zero), zero), np.zeros(3))


@pytest.mark.parametrize("call, words", [
    (lambda x: F.squeeze(x, 0), "length 1"), (lambda x: F.split(x, 2, axis=1), "2 equal parts"), (lambda x: F.outer(x, x), "two vectors"),
    (lambda x: F.pad(x, 1), "a pair"), (lambda x: F.pad(x, ((0, -1), (0, 0))), "from 0 up"), (lambda x: F.cumsum(x, 2), "axis=2")])
def test_shape_functions_say_what_does_not_fit(call, words):
    with pytest.raises(ValueError, match=words):
        call(normal(2, 3))


@pytest.mark.parametrize("join, axis", [(F.stack, 3), (F.stack, -4), (F.concatenate, 2), (F.concatenate, -3)])
def test_an_axis_that_is_not_there_is_refused(join, axis):
    """stack once took it modulo the number of axes, and joined along another one."""
    with pytest.raises(np.exceptions.AxisError, match="out of bounds"):
        join([Tensor(normal(2, 3)), Tensor(normal(2, 3))], axis)


def test_softmax_sums_to_one_and_ignores_a_shift():
    x = normal(5, 7)
    p = F.softmax(x)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(F.softmax(x + 100), p, rtol=1e-12)
    np.testing.assert_allclose(F.softmax(x, axis=0).sum(axis=0), 1, rtol=1e-14)
    np.testing.assert_allclose(np.log(p), F.log_softmax(x), rtol=1e-12)
    np.testing.assert_allclose(F.logsumexp(x), np.log(np.exp(x).sum(axis=1)), rtol=1e-13)
    assert F.logsumexp(x, axis=0).shape == (7,)


# --- Extreme inputs: the exact result, without a warning -------------------------------------------------

@no_warnings
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name, value, slope", [
    ("sigmoid", [0, 0.5, 1], [0, 0.25, 0]), ("softplus", [0, math.log(2), 1e4], [0, 0.5, 1]),
    ("tanh", [-1, 0, 1], [0, 1, 0]), ("gelu", [0, 0, 1e4], [0, 0.5, 1]), ("gelu_exact", [0, 0, 1e4], [0, 0.5, 1]),
    ("silu", [0, 0, 1e4], [0, 0.5, 1]), ("elu", [-1, 0, 1e4], [0, 1, 1])])
def test_activations_at_10000(name, value, slope, dtype):
    x = Tensor(np.array([-1e4, 0, 1e4], dtype), requires_grad=True)
    y = getattr(F, name)(x)
    np.testing.assert_allclose(y.data, np.array(value, dtype), rtol=1e-6)
    np.testing.assert_allclose(grad(y, x, np.ones(3)), np.array(slope, dtype), rtol=1e-6)


FAR = np.array([[1e4, 0, -1e4], [-1e4, 1e4, 1e4]])


@no_warnings
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_family_at_10000(dtype):
    x = Tensor(FAR.astype(dtype), requires_grad=True)
    log2 = math.log(2)
    np.testing.assert_allclose(F.softmax(x).data, [[1, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(F.log_softmax(x).data, [[0, -1e4, -2e4], [-2e4 - log2, -log2, -log2]], rtol=1e-6)
    np.testing.assert_allclose(F.logsumexp(x).data, [1e4, 1e4 + log2], rtol=1e-7)
    np.testing.assert_allclose(grad(F.logsumexp(x), x, np.ones(2)), [[1, 0, 0], [0, 0.5, 0.5]])
    np.testing.assert_allclose(grad(F.log_softmax(x), x, np.ones((2, 3))), [[-2, 1, 1], [1, -0.5, -0.5]])


SOFTMAX_LOSSES = {"cross_entropy": F.cross_entropy, "cross_entropy_composed": F.cross_entropy_composed,
                  "softmax then categorical": lambda x, y: F.categorical_crossentropy(F.softmax(x), y)}


@no_warnings
@pytest.mark.parametrize("labels", [np.array([1, 0]), np.array([[0, 1, 0], [1, 0, 0]])], ids=["classes", "one-hot"])
@pytest.mark.parametrize("name", SOFTMAX_LOSSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_exact_at_10000(name, labels, dtype):
    """log(p + 1e-7) would stop at 16.1; the true losses are 1e4 and 2e4 + log 2."""
    x = Tensor(FAR.astype(dtype), requires_grad=True)
    loss = SOFTMAX_LOSSES[name](x, labels)
    np.testing.assert_allclose(loss.item(), (1e4 + 2e4 + math.log(2)) / 2, rtol=1e-7)
    np.testing.assert_allclose(grad(loss, x), [[0.5, -0.5, 0], [-0.5, 0.25, 0.25]], rtol=1e-6)


@no_warnings
@pytest.mark.parametrize("name", ["binary_cross_entropy", "binary_cross_entropy_with_logits"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binary_cross_entropy_is_exact_at_10000(name, dtype):
    x = Tensor(np.array([1e4, 1e4, -1e4, -1e4], dtype), requires_grad=True)
    targets = np.array([0, 1, 0, 1])
    loss = getattr(F, name)(F.sigmoid(x) if name == "binary_cross_entropy" else x, targets)
    assert loss.item() == 5000
    assert np.array_equal(grad(loss, x), [0.25, 0, 0, -0.25])


@no_warnings
@pytest.mark.parametrize("x", [1.0, 1e4, 1e15, -1e15])
def test_cross_entropy_ignores_a_shift_of_all_logits(x):
    assert F.cross_entropy(np.full((1, 2), x), np.array([0])) == pytest.approx(math.log(2), rel=1e-15)


@no_warnings
def test_probabilities_of_exactly_0_or_1_with_no_weight_give_no_nan():
    """0 log 0 is 0."""
    p = Tensor(np.array([[1.0, 0.0], [0.0, 1.0]]), requires_grad=True)
    for loss in (F.categorical_crossentropy(p, np.eye(2)), F.categorical_crossentropy(p, np.array([0, 1])),
                 F.binary_cross_entropy(p, np.eye(2))):
        assert loss.item() == 0 and np.isfinite(grad(loss, p)).all()


# --- Kinks and corners ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["max", "min"])
def test_ties_share_the_gradient(name):
    x = Tensor(np.array([[1.0, 3, 3], [2, 2, 2], [0, 5, -5]]) * (1 if name == "max" else -1), requires_grad=True)
    shares = [[0, 0.5, 0.5], [1 / 3, 1 / 3, 1 / 3], [0, 1, 0]]
    np.testing.assert_allclose(grad(getattr(x, name)(axis=1), x, np.ones(3)), shares, rtol=1e-15)
    np.testing.assert_allclose(grad(getattr(x, name)(axis=1, keepdims=True), x, np.ones((3, 1))), shares, rtol=1e-15)
    everywhere = Tensor(np.full((2, 4), 7.0), requires_grad=True)
    assert np.array_equal(grad(getattr(everywhere, name)(), everywhere), np.full((2, 4), 1 / 8))


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_equal_arguments_get_half_each(name):
    a, b = (Tensor(np.array([1.0, 2]), requires_grad=True) for _ in range(2))
    for gradient in grad(getattr(F, name)(a, b), [a, b], np.array([1.0, 3])):
        assert np.array_equal(gradient, [0.5, 1.5])


def test_relu_and_abs_have_slope_0_at_0():
    x = Tensor(np.zeros(1), requires_grad=True)
    assert grad(F.relu(x), x) == 0 and grad(F.abs(x), x) == 0


@no_warnings
def test_clip_passes_no_gradient_outside():
    x = Tensor(np.array([-3.0, 0.5, 3]), requires_grad=True)
    assert np.array_equal(grad(F.clip(x, -1, 1), x, np.ones(3)), [0, 1, 0])


@no_warnings
@pytest.mark.parametrize("exponent, derivatives", [(0, [1, 0, 0, 0]), (1, [0, 1, 0, 0]), (2, [0, 0, 2, 0]),
                                                   (3, [0, 0, 0, 6]), (2.0, [0, 0, 2, 0])])
def test_powers_at_0_to_third_order(exponent, derivatives):
    """x ** 2 at 0 has derivatives 0, 0, 2, 0, and never 0 * inf."""
    x = Tensor(np.zeros(()), requires_grad=True)
    y, found = x ** exponent, []
    for _ in range(3):
        found.append(y.item())
        y = grad(y, x, create_graph=True) if y.requires_grad else Tensor(np.zeros(()))
    assert [*found, y.item()] == derivatives


@no_warnings
def test_power_with_base_0_has_no_slope_in_the_exponent():
    a, b = Tensor(np.zeros(3), requires_grad=True), Tensor(np.array([1.0, 2, 3]), requires_grad=True)
    of_a, of_b = grad((a ** b).sum(), [a, b])
    assert np.array_equal(of_b, np.zeros(3)) and np.array_equal(of_a, [1, 0, 0])


def test_repeated_indices_add_up():
    x = Tensor(np.zeros(3), requires_grad=True)
    assert np.array_equal(grad(x[[0, 2, 0]], x, np.array([1.0, 10, 100])), [101, 0, 10])


@pytest.mark.parametrize("name", FORMULAS)
def test_elementwise_functions_take_a_single_number(name):
    """A loss is a 0-d array, on which NumPy returns scalars instead of arrays."""
    x = Tensor(np.array(0.5, np.float32), requires_grad=True)
    y = getattr(F, name)(x)
    assert y.shape == () and y.dtype == np.float32 and grad(y, x).shape == ()
    assert gradcheck(getattr(F, name), np.array(0.5), order=2)


# --- Fused equals composed -----------------------------------------------------------------------------

def values_and_gradients(function, arrays, u):
    xs = [Tensor(x, requires_grad=True) for x in arrays]
    y = function(*xs)
    return [y.data, *grad(y, xs, np.broadcast_to(u, y.shape))]


@pytest.mark.parametrize("shape", [(2, 3), (50, 3), (4, 3, 5, 2)])
def test_fused_batch_norm_is_the_composed_one(shape):
    arrays, u = [normal(*shape) * 3 + 5, normal(3), normal(3)], normal(*shape)
    fused = values_and_gradients(lambda *xs: F.batch_norm(*xs)[0], arrays, u)
    composed = values_and_gradients(lambda *xs: F.batch_norm_composed(*xs)[0], arrays, u)
    for a, b in zip(fused, composed):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    for a, b in zip(F.batch_norm(*arrays)[1:], F.batch_norm_composed(*arrays)[1:]):
        assert a.shape == (3,)
        np.testing.assert_allclose(a, b, rtol=1e-13)


@pytest.mark.parametrize("shape", [(1, 4), (50, 4), (2, 3, 4)])
def test_fused_layer_norm_is_the_composed_one(shape):
    arrays, u = [normal(*shape) * 3 + 5, normal(4), normal(4)], normal(*shape)
    for a, b in zip(*(values_and_gradients(f, arrays, u) for f in (F.layer_norm, F.layer_norm_composed))):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label", LABELS)
def test_fused_cross_entropy_is_the_composed_one(label):
    x = [normal(3, 4) * 5]
    fused = values_and_gradients(lambda x: F.cross_entropy(x, LABELS[label]), x, 1.7)
    composed = values_and_gradients(lambda x: F.cross_entropy_composed(x, LABELS[label]), x, 1.7)
    for a, b in zip(fused, composed):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, bool])
def test_batch_norm_of_small_integers_does_not_wrap_around(dtype):
    x, one, zero = np.array([[100, 1], [120, 0], [110, 1]]).astype(dtype), np.ones(2), np.zeros(2)
    _, mean, var = F.batch_norm(x, one, zero)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(var, x.var(0))
    np.testing.assert_allclose(F.layer_norm(x, one, zero), F.layer_norm(x.astype(float), one, zero))


@pytest.mark.parametrize("label", LABELS)
def test_logits_that_lie_column_after_column_in_memory_give_the_same_gradient(label):
    """As they do behind a transposition: reshape(-1) of such an array is a copy, and what is written there is lost."""
    x = normal(3, 4)
    loss, gradient = values_and_gradients(lambda x: F.cross_entropy(x, LABELS[label]), [x], 1.0)
    turned_loss, turned_gradient = values_and_gradients(lambda x: F.cross_entropy(x.T, LABELS[label]), [x.T.copy()], 1.0)
    assert loss == pytest.approx(turned_loss, rel=1e-14)
    np.testing.assert_allclose(gradient, turned_gradient.T, rtol=1e-14, atol=1e-16)


def test_labels_as_numbers_and_as_one_hot_rows_mean_the_same():
    x = normal(3, 4)
    for loss in F.cross_entropy, F.cross_entropy_composed, lambda x, y: F.categorical_crossentropy(F.softmax(x), y):
        assert loss(x, LABELS["class numbers"]) == pytest.approx(loss(x, LABELS["one-hot"]), rel=1e-14)


# --- Known numbers ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("eps, outer, inner", [(1e-5, 1.34163542, 0.44721181), (1e-3, 1.34110445, 0.44703482)])
@pytest.mark.parametrize("function", [F.batch_norm, F.batch_norm_composed])
def test_batch_norm_of_1_2_3_4(function, eps, outer, inner):
    y, mean, var = function(np.array([[1.0], [2], [3], [4]]), np.ones(1), np.zeros(1), eps)
    np.testing.assert_allclose(y[:, 0], [-outer, -inner, inner, outer], atol=5e-9)
    assert (mean.item(), var.item()) == (2.5, 1.25)


def test_layer_norm_is_batch_norm_along_the_other_axis():
    """Bit for bit: which axis is all there is to tell them apart."""
    x = normal(5, 4) * 3 + 5
    transposed, _, _ = F.batch_norm(x.T, np.ones(5), np.zeros(5))
    assert np.array_equal(F.layer_norm(x, np.ones(4), np.zeros(4)), transposed.T)
    assert not np.allclose(transposed.T, F.batch_norm(x, np.ones(4), np.zeros(4))[0], atol=0.1)


def test_batch_norm_inference_is_an_affine_map_per_channel():
    x, gamma, beta = normal(5, 3), normal(3), normal(3)
    y = F.batch_norm_inference(x, gamma, beta, MEAN, VARIANCE, 1e-3)
    np.testing.assert_allclose(y, gamma * (x - MEAN) / np.sqrt(VARIANCE + 1e-3) + beta, rtol=1e-6)


@pytest.mark.parametrize("function", [F.batch_norm, F.batch_norm_composed])
def test_batch_norm_variance_survives_a_large_mean_in_float32(function):
    """E[x^2] - E[x]^2 loses every digit here and can come out negative."""
    x = np.random.default_rng(0).normal(30, 0.01, (1000, 4)).astype(np.float32)
    y, mean, var = function(x, np.ones(4, np.float32), np.zeros(4, np.float32), 0.0)
    assert var.dtype == np.float32 and (var > 0).all()
    np.testing.assert_allclose(var, x.astype(np.float64).var(axis=0), rtol=1e-3)
    np.testing.assert_allclose(y.std(axis=0), 1, rtol=1e-3)


def test_variance_survives_a_large_mean_in_float32():
    x = np.random.default_rng(0).normal(30, 0.01, (1000, 4)).astype(np.float32)
    np.testing.assert_allclose(F.var(x, axis=0), x.astype(np.float64).var(axis=0), rtol=1e-3)


def test_cross_entropy_of_uniform_logits_is_log_of_the_number_of_classes():
    assert F.cross_entropy(np.zeros((5, 10)), np.arange(5)) == pytest.approx(math.log(10), rel=1e-15)


def test_softmax_twice_cannot_get_below_1_4612():
    """A model that ends in softmax, given to a loss on logits: at best log(1 + 9/e) for ten classes."""
    perfect = F.softmax(np.array([[1e4] + [0] * 9]))
    floor = F.cross_entropy(perfect, np.array([0]))
    assert floor == pytest.approx(math.log(1 + 9 / math.e), rel=1e-15) == pytest.approx(1.4612, abs=5e-5)
    worse = F.cross_entropy(F.softmax(normal(200, 10) * 20), RNG.integers(0, 10, 200))
    assert worse > floor


def test_mse_loss_is_the_mean_over_all_entries():
    assert F.mse_loss(np.array([[1.0, 2], [3, 4]]), np.zeros((2, 2))) == 7.5


def test_mean_sum_and_none_of_a_loss_belong_together():
    """Whatever the mean is of: its losses one by one have that mean and that sum."""
    x, p, y = normal(3, 4), F.softmax(normal(3, 4)), np.eye(4)[CLASSES]
    for loss in (F.cross_entropy, F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits):
        each = loss(x, y, reduction="none")
        assert each.shape == ((3,) if loss is F.cross_entropy else (3, 4))
        assert loss(x, y) == pytest.approx(each.mean()) and loss(x, y, reduction="sum") == pytest.approx(each.sum())
        with pytest.raises(ValueError, match="'mean', 'sum' or 'none', got 'avg'"):
            loss(x, y, reduction="avg")
    for loss in F.categorical_crossentropy, F.binary_cross_entropy:
        assert loss(p, y) == pytest.approx(loss(p, y, reduction="none").mean())


def test_label_smoothing_is_a_mixture_of_labels():
    """One tenth of every label goes to all four classes alike, for both losses, before and behind the softmax."""
    x, mixed = normal(3, 4), 0.9 * np.eye(4)[CLASSES] + 0.1 / 4
    for y in CLASSES, np.eye(4)[CLASSES]:
        for loss in F.cross_entropy, F.cross_entropy_composed:
            assert loss(x, y, label_smoothing=0.1) == pytest.approx(F.cross_entropy(x, mixed), rel=1e-14)
        for p in F.softmax(x), F.softmax(Tensor(x)):
            value = F.categorical_crossentropy(p, y, label_smoothing=0.1)
            assert float(value) == pytest.approx(F.cross_entropy(x, mixed), rel=1e-12)
    with pytest.raises(ValueError, match="from 0 to 1, got 10"):
        F.cross_entropy(x, CLASSES, label_smoothing=10)


def test_ignored_samples_count_neither_in_the_sum_nor_in_the_number():
    x = normal(4, 3)
    loss = F.cross_entropy(x, np.array([0, 9, 2, 9]), ignore_index=9)
    assert loss == pytest.approx(F.cross_entropy(x[[0, 2]], np.array([0, 2])), rel=1e-14)
    xt = Tensor(x, requires_grad=True)
    assert not grad(F.cross_entropy(xt, np.array([0, 9, 2, 9]), ignore_index=9), xt)[[1, 3]].any()
    with pytest.raises(ValueError, match="at least one of another class than 9"):
        F.cross_entropy(x, np.full(4, 9), ignore_index=9)


def test_the_huber_loss_is_half_a_square_and_then_a_line():
    assert F.huber_loss(np.array([0.0, 0, 0, 0]), np.array([0.5, -1, 2, -10]), reduction="none").tolist() == [0.125, 0.5, 1.5, 9.5]
    assert F.huber_loss(np.zeros(1), np.full(1, 10.0), 2.0) == 2 * (10 - 1)


def test_categorical_crossentropy_of_probabilities_that_no_softmax_made():
    p = np.array([[0.5, 0.5], [0.1, 0.9]])
    loss = F.categorical_crossentropy(Tensor(p), np.array([0, 1]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.9)) / 2)


def test_categorical_crossentropy_looks_up_logits_only_behind_a_softmax_over_classes():
    """A softmax over the batch (axis=0) gives other probabilities than one over the classes."""
    x, y = Tensor(normal(3, 4), requires_grad=True), np.array([0, 1, 3])
    for axis in 0, 1, -1:
        p = F.softmax(x, axis=axis)
        assert F.categorical_crossentropy(p, y).item() == pytest.approx(-np.log(p.data[range(3), y]).mean(), rel=1e-12)


# --- Errors that teach -----------------------------------------------------------------------------------

LOGITS = np.zeros((3, 4))


@pytest.mark.parametrize("labels, error, words", [
    (np.array([0, 4, 1]), ValueError, "0 to 3.*from 0 to 4"),
    (np.array([0, -1, 1]), ValueError, "0 to 3.*from -1 to 1"),
    (np.array([0.0, 1, 2]), TypeError, "float64.*astype"), (np.array([0, 1]), ValueError, r"\(3, 4\) and \(2,\)"),
    (np.zeros((3, 5)), ValueError, r"\(3, 4\) and \(3, 5\)"), (np.zeros((3, 1), int), ValueError, r"\(3, 1\)")])
@pytest.mark.parametrize("loss", [F.cross_entropy, F.cross_entropy_composed, F.categorical_crossentropy])
def test_labels_that_do_not_fit(loss, labels, error, words):
    with pytest.raises(error, match=words):
        loss(Tensor(LOGITS), labels)


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i4", ">i4", "<i8", ">u2"])
def test_labels_of_any_integer_type(dtype):
    """Files in big-endian order (IDX) give big-endian arrays."""
    assert F.cross_entropy(LOGITS, np.array([0, 3, 1]).astype(dtype)) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="0 to 3"):
        F.cross_entropy(LOGITS, np.array([0, 4, 1]).astype(dtype))


def test_losses_refuse_an_empty_batch():
    with pytest.raises(ValueError, match="empty"):
        F.cross_entropy(np.zeros((0, 4)), np.zeros(0, int))


@pytest.mark.parametrize("loss, y", [(F.categorical_crossentropy, np.array([0])),
                                     (F.binary_cross_entropy, np.zeros((1, 2)))])
@pytest.mark.parametrize("p", [-0.1, 1.1, np.nan])
def test_losses_of_probabilities_refuse_logits(loss, y, p):
    with pytest.raises(ValueError, match="probabilities between 0 and 1"):
        loss(Tensor(np.array([[0.5, p]])), y)


def test_mse_loss_of_integer_targets_stays_float32():
    assert F.mse_loss(Tensor(np.ones(3, np.float32)), np.arange(3)).dtype == np.float32


def test_mse_loss_never_broadcasts():
    with pytest.raises(ValueError, match=r"\(3, 1\).*\(3,\)"):
        F.mse_loss(np.zeros((3, 1)), np.zeros(3))


def test_binary_targets_are_checked():
    with pytest.raises(ValueError, match="between 0 and 1"):
        F.binary_cross_entropy_with_logits(np.zeros(2), np.array([0, 2]))
    with pytest.raises(ValueError, match="same shape"):
        F.binary_cross_entropy_with_logits(np.zeros((2, 1)), np.array([0, 1]))


# --- Properties for shapes nobody thought of ---------------------------------------------------------------
# A linear function L and its VJP are adjoint: u . L(v) = L^T(u) . v for all u and v.

def assert_adjoint(function, x, seed):
    """function: linear in x. Its gradient has x's shape and dtype and is adjoint to it."""
    rng = np.random.default_rng(seed)
    xt = Tensor(x, requires_grad=True)
    y = function(xt)
    u, v = rng.standard_normal(y.shape), rng.standard_normal(x.shape)
    gx = grad(y, xt, u)
    assert gx.shape == x.shape and gx.dtype == x.dtype
    precision = 1e-4 if x.dtype == np.float32 else 1e-10
    np.testing.assert_allclose((gx * v).sum(), (u * function(Tensor(v)).data).sum(), rtol=precision, atol=precision)


SHAPES = some.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
FLOATS = st.sampled_from([np.float32, np.float64])


@properties
@hypothesis.given(some.mutually_broadcastable_shapes(num_shapes=2, min_side=0, max_side=3, max_dims=3), FLOATS, FLOATS,
                  st.integers(0, 99))
def test_property_broadcast_gradients_have_the_arguments_shape_and_dtype(shapes, a_type, b_type, seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.uniform(0.5, 2, shape).astype(t) for shape, t in zip(shapes.input_shapes, (a_type, b_type)))
    for op in operator.mul, operator.truediv:
        assert_adjoint(lambda x: op(x, b), a, seed)
    zero = np.zeros_like(b)
    for op in operator.add, operator.sub, lambda x, y: y - x:
        assert_adjoint(lambda x: op(x, zero), a, seed)
    for op in OPERATORS.values():
        at, bt = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        y = op(at, bt)
        assert y.shape == shapes.result_shape
        for x, g in zip((at, bt), grad(y, [at, bt], np.ones(y.shape))):
            assert g.shape == x.shape and g.dtype == x.dtype


@st.composite
def reductions(draw):
    x = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(
        draw(some.array_shapes(min_dims=1, max_dims=4, max_side=4))).astype(draw(FLOATS))
    axes = draw(st.none() | st.integers(-x.ndim, x.ndim - 1) | some.valid_tuple_axes(x.ndim))
    return x, {"axis": axes, "keepdims": draw(st.booleans())}


@properties
@hypothesis.given(reductions())
def test_property_reductions(drawn):
    x, options = drawn
    precision = 1e-4 if x.dtype == np.float32 else 1e-12
    for name in "sum", "mean", "var", "max", "min":
        xt = Tensor(x, requires_grad=True)
        y = getattr(xt, name)(**options)
        np.testing.assert_allclose(y.data, getattr(np, name)(x, **options), rtol=precision, atol=precision)
        g = grad(y, xt, np.ones(y.shape))
        assert y.dtype == g.dtype == x.dtype and g.shape == x.shape
        if name in ("max", "min"):  # the shares of each group add up to 1
            np.testing.assert_allclose(g.sum(axis=options["axis"]), 1, rtol=1e-5)
    for name in "sum", "mean":
        assert_adjoint(lambda x: getattr(x, name)(**options), x, seed=0)


@st.composite
def indexings(draw):
    shape = draw(some.array_shapes(min_dims=1, max_dims=3, max_side=4))
    index = draw(some.basic_indices(shape, allow_newaxis=True) | some.integer_array_indices(shape)
                 | some.arrays(bool, shape))
    return np.random.default_rng(0).standard_normal(shape).astype(draw(FLOATS)), index


@properties
@hypothesis.given(indexings())
def test_property_indexing(drawn):
    x, index = drawn
    assert np.array_equal(Tensor(x)[index].data, x[index])
    assert_adjoint(lambda x: x[index], x, seed=0)


@properties
@hypothesis.given(some.array_shapes(min_dims=1, max_dims=4, max_side=4).flatmap(
    lambda shape: st.tuples(st.just(shape), st.permutations(range(len(shape))))))
def test_property_transpose(drawn):
    shape, axes = drawn
    x = np.random.default_rng(0).standard_normal(shape)
    assert np.array_equal(Tensor(x).transpose(*axes).data, x.transpose(axes))
    assert_adjoint(lambda x: x.transpose(*axes), x, seed=0)
    assert_adjoint(lambda x: x.transpose(*[i - len(shape) for i in axes]), x, seed=0)
