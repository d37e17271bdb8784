"""The engine: the backward walk, memory, modes, errors, and second derivatives."""

import copy
import gc
import operator
import pickle
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import minidl.functional as F
from minidl import (
    BatchNorm,
    Dense,
    Dropout,
    Module,
    Parameter,
    Sequential,
    Tensor,
    grad,
    no_grad,
    optim,
)


def leaf(*values, dtype=np.float64):
    return Tensor(np.array(values, dtype), requires_grad=True)


def data(n=20, features=3, classes=4, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, features)).astype(dtype), rng.integers(0, classes, n)


class Net(Module):
    """Written as in PyTorch, with a layer of every kind that has parameters."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.hidden = Dense(8, input_shape=3, rng=rng)
        self.norm = BatchNorm(input_shape=8)
        self.drop = Dropout(0.25, rng=np.random.default_rng(seed))
        self.out = Dense(4, input_shape=8, rng=rng)

    def forward(self, x):
        return self.out(self.drop(F.tanh(self.norm(self.hidden(x)))))


def train(model, optimizer, steps=5):
    """The losses of some steps on one batch."""
    x, y = data()
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- What a Tensor holds ---------------------------------------------------------------------------------

@pytest.mark.parametrize("given, dtype", [
    (1, "f4"), (1.5, "f4"), ([1, 2], "f4"), ([[1.0]], "f4"), (True, "?"), (np.float64(2), "f8"), (np.arange(3), "i8"),
    (np.zeros(2), "f8"), (np.zeros(2, np.float32), "f4"), (np.zeros(2, np.uint8), "u1"), (Tensor(np.zeros(2)), "f8")])
def test_python_numbers_become_float32_and_arrays_keep_their_dtype(given, dtype):
    assert Tensor(given).dtype == np.dtype(dtype)


@pytest.mark.parametrize("given", ["text", None, [object()], 1j, np.array(["a"])])
def test_only_numbers_are_taken(given):
    with pytest.raises(TypeError, match="real numbers"):
        Tensor(given)


@pytest.mark.parametrize("given", [np.arange(3), np.array([True])])
def test_integers_have_no_gradient(given):
    with pytest.raises(TypeError, match="float"):
        Tensor(given, requires_grad=True)


def test_an_array_is_shared_not_copied():
    x = np.zeros(3)
    assert Tensor(x).data is x and Tensor(x).numpy() is x and Tensor(x).detach().data is x


def test_shape_and_value_attributes():
    x = Tensor(np.zeros((2, 3)))
    assert (x.shape, x.ndim, x.size, len(x)) == ((2, 3), 2, 6, 2)
    assert Tensor(2.5).item() == float(Tensor(2.5)) == 2.5 and bool(Tensor(1.0)) and not bool(Tensor(0.0))


def test_repr_says_what_made_it():
    assert "requires_grad" in repr(leaf(1)) and "op=mul" in repr(leaf(1) * 2) and "op" not in repr(Tensor(1.0))


def test_detach_cuts_the_graph():
    x = leaf(2)
    assert grad((x * x.detach()).sum(), x) == 2 and not x.detach().requires_grad


@pytest.mark.parametrize("op", ["==", "!=", "<", "<=", ">", ">="])
def test_comparisons_give_plain_bool_arrays(op):
    a, b = np.array([1.0, 2, 3]), np.array([2.0, 2, 2])
    for result in (eval(f"Tensor(a) {op} Tensor(b)"), eval(f"Tensor(a) {op} b"), eval(f"a {op} Tensor(b)")):
        assert type(result) is np.ndarray and result.dtype == bool and np.array_equal(result, eval(f"a {op} b"))
    assert np.array_equal(eval(f"Tensor(a) {op} 2"), eval(f"a {op} 2"))


def test_tensors_can_be_put_in_sets():
    """Hashed by identity although == compares values."""
    a, b = leaf(1), leaf(1)
    assert len({a, b, a}) == 2


@pytest.mark.parametrize("op", ["+", "-", "*", "/", "**", "@"])
def test_array_first_gives_a_tensor_too(op):
    a, b = np.array([1.0, 2]), Tensor([3.0, 4])
    for result in eval(f"a {op} b"), eval(f"b {op} a"):
        assert type(result) is Tensor
    assert np.array_equal(eval(f"a {op} b").data, eval(f"a {op} b.data"))


@pytest.mark.parametrize("number", [np.float64(3), np.float32(3), np.int64(3)])
def test_a_numpy_scalar_first_gives_a_tensor_too(number):
    assert type(number * leaf(1, 2)) is Tensor and type(number - leaf(1, 2)) is Tensor


@pytest.mark.parametrize("call", [np.asarray, np.array, np.exp, np.sum, lambda x: np.stack([x, x]),
                                  lambda x: np.add(np.ones(2), x, out=np.ones(2))])
def test_numpy_never_swallows_a_tensor(call):
    """Silently turning into an array would cut the graph; an array of objects would be slow and wrong."""
    with pytest.raises(TypeError):
        call(leaf(1, 2))


def test_asarray_says_what_to_do():
    with pytest.raises(TypeError, match=r"minidl.functional.*\.data"):
        np.asarray(leaf(1))


def test_item_assignment_says_what_to_do():
    x = leaf(1, 2)
    with pytest.raises(TypeError, match="where"):
        x[0] = 3


def test_iteration_and_unpacking_keep_the_graph():
    a, b = x = leaf(1, 2)
    assert np.array_equal(grad(a * 3 + b * 5, x), [3, 5])


# --- The walk --------------------------------------------------------------------------------------------

def test_a_chain_of_10000_ops_differentiates():
    x = leaf(1)
    y = x
    for _ in range(10_000):
        y = y * 1.0001
    y.sum().backward()
    assert x.grad == pytest.approx([1.0001 ** 10_000], rel=1e-9)


def test_a_chain_of_100000_ops_can_be_dropped():
    """Freeing must not recurse either, with or without a backward pass."""
    x = leaf(1)
    y = x
    for _ in range(100_000):
        y = y + 1
    del y
    assert x.grad is None


def test_a_diamond_is_walked_once():
    """2^60 paths lead from y to x, 120 ops."""
    x = leaf(1)
    y = x
    for _ in range(60):
        y = y * 0.5 + y * 0.5
    y.sum().backward()
    assert x.grad == 1


def test_a_sum_gives_both_terms_their_own_gradient():
    a, b = leaf(1, 2), leaf(3, 4)
    (a + b).backward(np.array([5.0, 6]))
    assert np.array_equal(a.grad, [5, 6]) and np.array_equal(b.grad, [5, 6])
    (a * 2).sum().backward()
    assert np.array_equal(a.grad, [7, 8]) and np.array_equal(b.grad, [5, 6])  # whether or not they shared an array


def test_gradients_of_two_graphs_add_up():
    x = leaf(3)
    (x * x).backward()
    (x * 10).backward()
    assert x.grad == 16
    x.grad = None
    (x * x).backward()
    assert x.grad == 6


def test_only_leaves_that_ask_get_a_gradient():
    x, constant = leaf(1, 2), Tensor(np.ones(2))
    between = x * constant
    between.sum().backward()
    assert between.grad is None and constant.grad is None and np.array_equal(x.grad, [1, 1])


def test_backward_from_a_leaf():
    x = leaf(2)
    x.backward()
    assert x.grad == 1


@pytest.mark.parametrize("again", [lambda y, x: y.backward(), lambda y, x: grad(y, x), lambda y, x: (y * 2).backward()])
def test_a_freed_graph_says_so(again):
    x = leaf(1, 2)
    y = (x * x).sum()
    y.backward()
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        again(y, x)
    assert np.array_equal(x.grad, [2, 4])  # the failure changed nothing


def test_a_shared_part_freed_by_the_first_loss_says_so():
    x = leaf(1, 2)
    shared = x * x
    first, second = shared.sum(), (shared * 3).sum()
    first.backward()
    with pytest.raises(RuntimeError, match="freed"):
        second.backward()


def test_backward_of_many_numbers_needs_a_gradient():
    with pytest.raises(RuntimeError, match=r"\(2,\).*gradient.*sum"):
        (leaf(1, 2) * 2).backward()
    with pytest.raises(ValueError, match=r"\(3,\).*\(2,\)"):
        (leaf(1, 2) * 2).backward(np.ones(3))


@pytest.mark.parametrize("y", [Tensor(1.0), Tensor(1.0) * 2], ids=["leaf", "result"])
def test_nothing_to_differentiate_says_so(y):
    with pytest.raises(RuntimeError, match="requires a gradient"):
        y.backward()


def test_vjps_of_constants_are_never_called():
    """The large product with the input pixels is not made."""
    from minidl.tensor import Op

    def never(g, b):
        raise AssertionError("asked for the gradient of a constant")

    op = Op("op", lambda a, b: a * b, never, lambda g, a: g * a)
    w = leaf(1, 2)
    op(np.ones(2), w).sum().backward()
    op(Tensor(np.ones(2)), w).sum().backward()
    assert np.array_equal(w.grad, [2, 2])


# --- Memory ----------------------------------------------------------------------------------------------

@pytest.fixture
def no_gc():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Watched(np.ndarray):
    """An array that a weak reference can watch."""


@pytest.mark.parametrize("after", ["drop", "backward", "grad", "create_graph"])
def test_a_graph_is_freed_without_the_garbage_collector(no_gc, after):
    x, y = data()
    model = Net()
    big = np.zeros((20, 8), np.float32).view(Watched)
    watch = weakref.ref(big)
    loss = F.cross_entropy(model.out(F.tanh(model.norm(model.hidden(x)) + Tensor(big))), y)
    del big
    if after == "backward":
        loss.backward()
        assert watch() is None, "backward() keeps the arrays of the graph alive"
    elif after == "grad":
        grad(loss, model.out.kernel)
    elif after == "create_graph":
        model.norm.fused = False
        loss = F.cross_entropy_composed(model(x), y)
        grad(loss, model.parameters(), create_graph=True)
    del loss
    assert watch() is None
    for parameter in model.parameters():
        parameter.grad = None
    assert gc.collect() == 0, "the graph holds reference cycles"


def test_training_leaves_no_garbage(no_gc):
    model = Net()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer)
    gc.collect()
    train(model, optimizer)
    assert gc.collect() == 0


# --- Gradients are never written in place ------------------------------------------------------------------

def frozen(array):
    array = np.array(array)
    array.flags.writeable = False
    return array


def test_backward_writes_into_no_array_it_was_given():
    a, b, seed = Tensor(frozen([1.0, 2]), True), Tensor(frozen([3.0, 4]), True), frozen([1.0, 1])
    y = a + b + a * b + F.relu(a) - a
    grad(y, [a, b], seed)
    y.backward(seed)
    a.grad = frozen(a.grad)
    (a * 2 + a).backward(seed)  # adds to a frozen gradient
    assert np.array_equal(a.grad, [1 + 3 + 3, 1 + 4 + 3]) and np.array_equal(seed, [1, 1])


@pytest.mark.parametrize("fused", [True, False])
def test_backward_works_on_a_model_whose_arrays_are_read_only(fused):
    model = Net()
    model.norm.fused = fused
    x, y = data()
    for p in model.parameters():
        p.data = frozen(p.data)
    for _ in range(2):  # the second time gradients are added
        F.cross_entropy(model(frozen(x)), frozen(y)).backward()
        for p in model.parameters():
            p.grad = frozen(p.grad)
    assert all(p.grad.shape == p.shape for p in model.parameters())


@pytest.mark.parametrize("make", [lambda p: optim.SGD(p, lr=0.1), lambda p: optim.SGD(p, lr=0.1, weight_decay=0.1),
                                  lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
                                  lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), lambda p: optim.Adam(p)])
def test_optimizers_do_not_write_into_gradients(make):
    """The gradients of a and b in a + b can be one array."""
    a, b = Parameter([1.0, 2]), Parameter([1.0, 2])
    optimizer = make([a, b])
    gradient = frozen(np.array([0.5, -1], np.float32))
    for _ in range(3):
        a.grad = b.grad = gradient
        optimizer.step()
    assert np.array_equal(gradient, np.array([0.5, -1], np.float32))
    assert np.array_equal(a.data, b.data) and not np.array_equal(a.data, [1, 2])


def test_the_gradient_of_a_sum_can_be_read_only_and_is_still_usable():
    x = leaf(1, 2, 3)
    x.sum().backward()
    x.sum().backward()
    assert np.array_equal(x.grad, [2, 2, 2])


# --- grad() ------------------------------------------------------------------------------------------------

def test_grad_leaves_the_attribute_alone_and_the_graph_alive():
    x = leaf(3)
    y = (x * x).sum()
    assert grad(y, x) == grad(y, x) == 6 and x.grad is None
    y.backward()
    assert x.grad == 6


def test_grad_gives_one_array_for_one_tensor_and_a_list_for_a_list():
    a, b, unreached = leaf(2), leaf(3), leaf(1, 1)
    y = (a * b).sum()
    assert type(grad(y, a)) is np.ndarray
    found = grad(y, [a, b, unreached, a])
    assert type(found) is list and [type(g) for g in found] == [np.ndarray] * 4
    assert found[0] == 3 and found[1] == 2 and found[3] == 3 and np.array_equal(found[2], [0, 0])
    assert grad(y, (a,)) == [3]


def test_grad_of_something_in_the_middle():
    x = leaf(3)
    between = x * x
    assert grad((between * 5).sum(), between) == 5


def test_grad_with_a_seed_is_a_vector_jacobian_product():
    x = leaf(1, 2)
    assert np.array_equal(grad(x * x, x, np.array([10.0, 100])), [20, 400])
    assert np.array_equal(grad(x * x, x, Tensor([10.0, 100])), [20, 400])


def test_create_graph_gives_tensors_also_for_the_unreached():
    x, unreached = leaf(2), leaf(1)
    found = grad((x * x).sum(), [x, unreached], create_graph=True)
    assert [type(g) for g in found] == [Tensor, Tensor] and found[1].data == 0


# --- Higher derivatives --------------------------------------------------------------------------------------

def hessian(function, x):
    """Row by row: the gradient of each entry of the gradient."""
    x = Tensor(x, requires_grad=True)
    g = grad(function(x), x, create_graph=True)
    return np.stack([grad(g[i], x) for i in range(x.size)])


def test_hessian_of_a_cube():
    x = np.array([-1.0, 0, 2])
    np.testing.assert_allclose(hessian(lambda x: (x ** 3).sum(), x), np.diag(6 * x))


def test_hessian_of_tanh():
    x = np.array([-1.0, 0, 2])
    y = np.tanh(x)
    np.testing.assert_allclose(hessian(lambda x: F.tanh(x).sum(), x), np.diag(-2 * y * (1 - y * y)), atol=1e-15)


def test_hessian_of_logsumexp_is_the_covariance_of_softmax():
    x = np.array([-1.0, 0, 2])
    p = np.exp(x) / np.exp(x).sum()
    np.testing.assert_allclose(hessian(F.logsumexp, x), np.diag(p) - np.outer(p, p), rtol=1e-12)


def test_hessian_of_a_quadratic_form_is_its_matrix():
    a = np.random.default_rng(0).standard_normal((3, 3))
    np.testing.assert_allclose(hessian(lambda x: x @ a @ x, np.ones(3)), a + a.T, rtol=1e-12)


def test_derivatives_of_exp_to_fifth_order():
    x = leaf(0.5)
    y = F.exp(x)
    for _ in range(5):
        y = grad(y, x, create_graph=True)
    assert y.data == pytest.approx(np.exp([0.5]))


def test_a_gradient_penalty_trains():
    """backward() through a gradient: d/dw (d(w x^2)/dx)^2 = 8 w x^2."""
    w, x = leaf(3), leaf(2)
    slope = grad((w * x * x).sum(), x, create_graph=True)
    (slope * slope).sum().backward()
    assert w.grad == 8 * 3 * 4


@pytest.mark.parametrize("function, composed", [
    (lambda x: F.cross_entropy(x, np.array([0, 1])), "cross_entropy_composed"),
    (lambda x: F.batch_norm(x, np.ones(2), np.zeros(2))[0], "batch_norm_composed")])
def test_fused_ops_refuse_second_derivatives_and_name_the_way_out(function, composed):
    """A silent wrong second derivative is the worst outcome there is."""
    x = Tensor(np.array([[1.0, 2], [3, 5]]), requires_grad=True)
    with pytest.raises(RuntimeError, match=composed):
        grad(function(x).sum(), x, create_graph=True)
    assert hasattr(F, composed)
    assert grad(function(x).sum(), x).shape == (2, 2)


# --- no_grad ---------------------------------------------------------------------------------------------------

def recording():
    return (leaf(1) * 2).requires_grad


def test_no_grad_records_nothing_and_ends():
    with no_grad():
        y = leaf(1) * 2
        assert y.op is None and not y.requires_grad
    assert recording()


def test_no_grad_as_a_decorator():
    @no_grad()
    def inside():
        return recording()

    assert not inside() and not inside() and recording()


def test_no_grad_nested():
    with no_grad():
        with no_grad():
            pass
        assert not recording()
    assert recording()


def test_no_grad_ends_after_an_exception():
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert recording()


def test_no_grad_belongs_to_its_thread():
    """Two threads of a sweep do not switch each other's recording off."""
    inside, checked = threading.Event(), threading.Event()

    def evaluate():
        with no_grad():
            inside.set()
            assert checked.wait(10)
            return recording()

    def train_meanwhile():
        assert inside.wait(10)
        result = recording()
        checked.set()
        return result

    with ThreadPoolExecutor(2) as pool:
        evaluating, training = pool.submit(evaluate), pool.submit(train_meanwhile)
        assert training.result(20) and not evaluating.result(20)
    assert recording()


def test_no_grad_leaves_parameters_trainable():
    p = Parameter([1.0])
    with no_grad():
        assert p.requires_grad
        made = Parameter([1.0])
    assert (made * 2).requires_grad


# --- Copies ------------------------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_parameter_is_a_new_trainable_one(how):
    p = Parameter([1.0, 2])
    p.grad = np.ones(2, np.float32)
    q = COPIES[how](p)
    assert type(q) is Parameter and q.requires_grad
    assert np.array_equal(q.data, p.data) and np.array_equal(q.grad, p.grad)
    q.grad = None
    (q * q).sum().backward()
    optim.SGD([q], lr=0.5).step()
    assert np.array_equal(q.data, [0, 0]) and np.array_equal(p.data, [1, 2])


@pytest.mark.parametrize("how", COPIES)
def test_a_copied_model_trains_on_its_own(how):
    """The copy continues exactly as the original would, and leaves the original alone."""
    model = Net()
    train(model, optim.SGD(model.parameters(), lr=0.1))
    twin = COPIES[how](model)
    before = [p.data.copy() for p in model.parameters()] + [b.copy() for b in model.buffers()]
    losses = train(twin, optim.Adam(twin.parameters()))
    after = [p.data for p in model.parameters()] + model.buffers()
    assert all(np.array_equal(a, b) for a, b in zip(before, after))
    assert losses == train(model, optim.Adam(model.parameters()))


@pytest.mark.parametrize("activation", ["relu", "sigmoid", "tanh", "softmax", "leaky_relu", "gelu"])
@pytest.mark.parametrize("how", COPIES)
def test_a_copied_layer_keeps_its_activation(how, activation):
    """The op itself, not a copy of it: losses recognise softmax and sigmoid by identity."""
    layer = Dense(2, activation, input_shape=3, rng=np.random.default_rng(0))
    layer.parameters()
    twin = COPIES[how](layer)
    assert twin.activation is layer.activation
    x = data()[0]
    assert np.array_equal(twin(x).data, layer(x).data)


# --- Whole models ------------------------------------------------------------------------------------------------

def test_a_shared_parameter_gets_the_sum_of_both_uses():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 3)), Tensor(rng.standard_normal((3, 3)), requires_grad=True)
    first, second = Tensor(w.data, requires_grad=True), Tensor(w.data, requires_grad=True)
    (F.tanh(x @ w) @ w).sum().backward()
    (F.tanh(x @ first) @ second).sum().backward()
    np.testing.assert_allclose(w.grad, first.grad + second.grad, rtol=1e-14)


def test_a_training_run_is_bit_identical_twice():
    runs = []
    for _ in range(2):
        model = Net(seed=3)
        losses = train(model, optim.Adam(model.parameters(), lr=0.01), steps=20)
        runs.append((losses, [p.data for p in model.parameters()] + model.buffers()))
    (losses, arrays), (losses_again, arrays_again) = runs
    assert losses == losses_again and losses[-1] < losses[0]
    assert all(np.array_equal(a, b) for a, b in zip(arrays, arrays_again))


def test_training_warns_about_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Sequential([Dense(8, "relu"), BatchNorm(), Dense(4)], seed=0)
        model.build(3)
        train(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


@pytest.mark.parametrize("update", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_an_update_in_place_of_a_parameter_is_refused_and_not_silently_lost(update):
    """`p -= lr * p.grad` would bind the name p to a new Tensor, and the model would never learn."""
    p = Tensor(np.ones(3, np.float32), requires_grad=True)
    with no_grad(), pytest.raises(TypeError, match="p.data"):
        update(p, 0.1)
    assert np.array_equal(p.data, np.ones(3))
