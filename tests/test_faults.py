"""Faults of the engine that were silent once: each has the right value now, or is refused in words."""

import numpy as np
import pytest

import minidl.functional as F
from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Op,
    Sequential,
    Tensor,
    grad,
    gradcheck,
    no_grad,
    optim,
    schedules,
)
from minidl.module import Parameter
from minidl.tensor import Node

RNG = np.random.default_rng(0)


def leaf(*shape, dtype=np.float64):
    return Tensor(np.random.default_rng(1).normal(0, 1, shape).astype(dtype), requires_grad=True)


def parameter(*shape):
    return Parameter(np.ones(shape, np.float32))


# --- Gradients that are what they say -----------------------------------------------------------------

def tracked_too_late():
    x = Tensor([1.0, 2.0])
    y = (x * leaf(2)).sum()
    x.requires_grad = True
    return grad(y, x)


@pytest.mark.parametrize("ask", [lambda: grad((leaf(2) * 2).sum(), Tensor([1.0])),
                                 lambda: grad((leaf(2) * 2).sum(), [np.ones(2)]), tracked_too_late])
def test_a_gradient_by_what_is_not_tracked_is_refused_and_not_0(ask):
    with pytest.raises(RuntimeError, match="require"):
        ask()


def test_a_gradient_by_a_tracked_tensor_that_plays_no_part_is_0():
    assert np.array_equal(grad((leaf(2) * 2).sum(), leaf(3)), np.zeros(3))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), ()])
def test_an_incoming_gradient_of_another_shape_is_refused(shape):
    for ask in (lambda y, x, g: y.backward(g), lambda y, x, g: grad(y, x, g)):
        x = leaf(2, 3)
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            ask(x * 2, x, np.ones(shape))


def test_a_vjp_of_the_wrong_shape_is_named():
    broken = Op("broken", lambda x: x * 1.0, lambda g: g.T)
    x = leaf(2, 3)
    with pytest.raises(ValueError, match=r"VJP of broken .*\(3, 2\).*\(2, 3\)"):
        broken(x).backward(np.ones((2, 3)))


def test_a_vjp_that_reads_what_does_not_exist_is_refused_when_it_is_made():
    with pytest.raises(TypeError, match="reads z, but there are only g, x, y"):
        Op("wrong", lambda x: x, lambda g, z: g)


@pytest.mark.parametrize("a, b, da, db", [
    (0.0, 2.0, 0.0, 0.0), (0.0, 1.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0), (3.0, 0.0, 0.0, np.log(3)),
    (2.0, 3.0, 12.0, 8 * np.log(2))])
def test_the_gradient_of_a_power_at_0(a, b, da, db):
    x, n = (Tensor(np.array(value), requires_grad=True) for value in (a, b))
    assert np.allclose(grad(x ** n, [x, n]), [da, db])


def test_the_second_derivative_of_a_square_at_0_is_2():
    x = Tensor(np.array(0.0), requires_grad=True)
    assert grad(grad(x ** 2, x, create_graph=True), x) == 2


# --- What the forward pass keeps, and changes meanwhile -----------------------------------------------

@pytest.mark.parametrize("make, kept", [
    (lambda a, b: a + b, []), (lambda a, b: a * b, ["a", "b"]), (lambda a, b: F.relu(a), ["y"]),
    (lambda a, b: a @ b, ["a", "b"]), (lambda a, b: a @ Tensor(b.data), ["b"]),
    (lambda a, b: F.log(a), ["a"]), (lambda a, b: a.reshape(-1), [])])
def test_a_node_keeps_what_its_vjps_read_and_no_more(make, kept):
    a, b = (Tensor(RNG.uniform(1, 2, (3, 3)), requires_grad=True) for _ in range(2))
    y = make(a, b)
    arrays = [value for value in y.node.saved if isinstance(value, np.ndarray)]
    named = {"a": a.data, "b": b.data, "y": y.data}
    found = [name for name in named for array in arrays if np.shares_memory(array, named[name])]
    assert sorted(found) == kept and len(arrays) == len(kept)
    assert isinstance(y.node, Node) and not any(isinstance(x, np.ndarray) for x in y.node.inputs)


def through_step(p):
    p.grad = np.ones_like(p.data)
    optim.SGD([p], lr=0.1).step()


def in_place(p):
    p.data -= 0.5


def replaced(p):
    p.data = p.data + 1


@pytest.mark.parametrize("change", [in_place, replaced, through_step])
@pytest.mark.parametrize("use", [
    lambda p: (p * p).sum(), lambda p: F.exp(p.reshape(-1) * p.reshape(-1)).sum(),
    lambda p: (p.T @ p).sum(), lambda p: (p[0] * p[1]).sum(),
    lambda p: F.batch_norm(leaf(4, 3), p[0], p[1])[0].sum()])
def test_a_leaf_changed_between_forward_and_backward_is_an_error(use, change):
    p = leaf(2, 3)
    loss = use(p)
    change(p)
    with pytest.raises(RuntimeError, match="changed since"):
        loss.backward()


def test_weights_loaded_between_forward_and_backward_are_an_error():
    model = Sequential([Dense(3), Activation("tanh"), Dense(2)], seed=0).build(4)
    loss = F.cross_entropy(model(np.ones((5, 4), np.float32)), np.zeros(5, int))
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="changed since"):
        loss.backward()


def test_a_change_of_what_no_gradient_reads_is_allowed():
    kernel, bias = leaf(3, 2), leaf(2)
    loss = F.linear(np.ones((4, 3)), kernel, bias).sum()
    bias.data -= 1
    loss.backward()
    assert np.array_equal(bias.grad, [4, 4])


def test_the_values_of_a_recorded_result_cannot_be_changed():
    y = leaf(3) * 2
    with pytest.raises(ValueError, match="read-only"):
        y.data[:] = 0
    with pytest.raises(TypeError, match="F.where"):
        y.data = np.zeros(3)
    with no_grad():
        y = leaf(3) * 2
    y.data[:] = 0
    assert not y.data.any()


# --- Shapes that must not broadcast -------------------------------------------------------------------

X = RNG.normal(0, 1, (5, 4))
WRONG = [(1, 4), (4, 1), (1,), (3,), (5, 4), ()]


@pytest.mark.parametrize("shape", WRONG)
@pytest.mark.parametrize("call", [
    lambda v: F.linear(X, np.ones((4, 4)), v), lambda v: F.batch_norm(X, v, np.ones(4)),
    lambda v: F.batch_norm(X, np.ones(4), v), lambda v: F.batch_norm_composed(X, v, np.ones(4)),
    lambda v: F.batch_norm_inference(X, v, np.ones(4), np.ones(4), np.ones(4))])
def test_vectors_of_another_shape_are_refused(call, shape):
    for vector in (np.ones(shape), Tensor(np.ones(shape))):
        with pytest.raises(ValueError, match=r"\(4,\)|\(units,\)"):
            call(vector)


@pytest.mark.parametrize("shape", [(1, 4), (4, 1), (3,), (1,)])
def test_layer_norm_takes_a_vector_or_a_number(shape):
    with pytest.raises(ValueError, match="features"):
        F.layer_norm(X, np.ones(shape), np.zeros(4))
    expected = (X - X.mean(1, keepdims=True)) / np.sqrt(X.var(1, keepdims=True) + 1e-5)
    assert np.allclose(F.layer_norm(X, 1.0, 0.0), expected)


@pytest.mark.parametrize("a, b", [((3,), (4,)), ((1,), (4,)), ((4,), (1,)), ((2, 3), (2, 3)), ((3,), (1, 3)),
                                  ((), (3,)), ((2, 3), ())])
def test_products_of_unequal_lengths_are_refused_as_numpy_refuses_them(a, b):
    with pytest.raises(ValueError, match="as many columns in a as rows in b"):
        Tensor(np.ones(a)) @ Tensor(np.ones(b))
    with pytest.raises(ValueError):
        np.ones(a) @ np.ones(b)


@pytest.mark.parametrize("shape", [(4,), (5, 4), (2, 5, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_takes_any_number_of_axes(shape, bias):
    x, arguments = RNG.normal(0, 1, shape), [RNG.normal(0, 1, (4, 3)), RNG.normal(0, 1, 3)][:1 + bias]
    assert np.allclose(F.linear(x, *arguments), x @ arguments[0] + (arguments[1] if bias else 0))
    assert gradcheck(F.linear, [x, *arguments], order=2)


# --- Numbers of other kinds ---------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("wrap", [np.asarray, Tensor])
def test_integers_become_floats_and_not_bytes(kind, wrap):
    x = np.array([[200, 3], [0, 250]], kind)
    assert np.allclose(np.asarray(F.plain(F.mse_loss(wrap(x), np.full((2, 2), 0.5)))),
                       np.mean((x.astype(float) - 0.5) ** 2))
    for function, numpy in ((F.sigmoid, lambda x: 1 / (1 + np.exp(-x))), (F.tanh, np.tanh),
                            (F.sqrt, np.sqrt)):
        assert np.allclose(np.asarray(F.plain(function(wrap(x)))), numpy(x.astype(float)), rtol=1e-6)
    small = np.array([[0, 1, 2]], kind)
    assert np.allclose(np.asarray(F.plain(F.softmax(wrap(small)))), np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())


@pytest.mark.parametrize("loss, rows", [
    (F.cross_entropy, [[0.2, 0.8], [0.6, 0.4]]), (F.mse_loss, [[1.0, 2], [3, 4]]),
    (F.binary_cross_entropy_with_logits, [[0.2, 0.8], [0.6, 0.4]])])
def test_targets_get_a_gradient_too(loss, rows):
    assert gradcheck(loss, [RNG.normal(0, 1, (2, 2)), np.array(rows)])


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_the_loss_behind_softmax_and_sigmoid_is_exact_with_and_without_a_graph(scale):
    logits, labels = np.array([[scale, 0.0]], np.float32), np.array([1])
    for x in (Tensor(logits), Tensor(logits, requires_grad=True)):
        assert F.categorical_crossentropy(F.softmax(x), labels).item() == scale
        assert F.binary_cross_entropy(F.sigmoid(x), np.array([[0.0, 0.0]])).item() == pytest.approx(scale / 2, rel=1e-3)
        with no_grad():
            assert F.categorical_crossentropy(F.softmax(x), labels).item() == scale


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_the_exact_loss_is_for_a_direct_softmax_over_classes_only():
    logits = Tensor(np.array([[1.0, 2.0], [0.5, 3.0]]))
    labels = np.array([1, 1])
    for p in (F.softmax(logits) * 1.0, F.softmax(logits, axis=0)):
        expected = -np.log(p.data[:, 1]).mean()
        assert F.categorical_crossentropy(p, labels).item() == pytest.approx(expected)


def test_sums_of_many_numbers_keep_their_digits():
    x = np.full(4_000_000, 0.1, np.float32)
    exact = x.astype(np.float64).sum()
    for y in (F.sum(x), F.sum(Tensor(x)).item(), F.mean(x) * len(x)):
        assert float(y) == pytest.approx(exact, rel=1e-7)


def test_half_precision_is_added_up_in_single():
    x = np.full((1000, 4), 200, np.float16)
    assert F.mean(x).dtype == np.float16 and F.mean(x) == 200 and F.var(x) == 0
    assert np.allclose(F.softmax(np.zeros((2, 100_000), np.float16)), 1e-5, rtol=0.02)
    y, mean, var = F.batch_norm(x, np.ones(4, np.float16), np.zeros(4, np.float16))
    assert y.dtype == np.float16 and np.array_equal(mean, [200] * 4) and not var.any() and not y.any()


def test_adam_trains_float16():
    p = Parameter(np.ones(3, np.float16))
    optimizer = optim.Adam([p], lr=0.1)
    for _ in range(20):
        p.grad = np.full(3, 1e-4, np.float16)
        optimizer.step()
    assert p.dtype == np.float16 and np.isfinite(p.data).all() and (p.data < 0).all()


# --- A Tensor as Python and NumPy see it --------------------------------------------------------------

def test_python_meets_numbers_and_sequences():
    t = Tensor([1.5, 2.5])
    assert sum(t).item() == 4 and [x.item() for x in t] == [1.5, 2.5] and 2.5 in t and 3 not in t
    assert f"{Tensor(0.12345):.3f}" == "0.123" and int(Tensor(2.7)) == 2 and float(t[0]) == 1.5
    assert (t + [1, 2]).dtype == np.float32 and ([[1, 0], [0, 1]] @ t).dtype == np.float32


@pytest.mark.parametrize("call", [lambda t: sum(t), lambda t: list(t), lambda t: [*t]])
def test_a_single_number_cannot_be_iterated_over(call):
    with pytest.raises(TypeError, match="item"):
        call(Tensor(3.0))


def test_tensors_in_an_index_count_as_their_arrays():
    x, rows = leaf(4, 3), Tensor(np.array([0, 2]))
    for index in (rows, (rows, 1), (rows, [1, 2]), (slice(None), rows)):
        plain = tuple(map(F.plain, index)) if isinstance(index, tuple) else index.data
        assert np.array_equal(x[index].data, x.data[plain])


@pytest.mark.parametrize("call, name", [
    (lambda t: np.exp(t), "exp"), (lambda t: np.mean(t), "mean"), (lambda t: np.maximum(t, 0), "maximum"),
    (lambda t: np.sum(t, axis=0), "sum"), (lambda t: np.stack([t, t]), "stack")])
def test_numpys_functions_point_to_minidls(call, name):
    with pytest.raises(TypeError, match=rf"np\.{name} .*minidl.functional"):
        call(leaf(3))


def test_an_array_cannot_swallow_a_tensor():
    a = np.ones(3)
    with pytest.raises(TypeError, match="a = a \\+ x"):
        a += leaf(3)
    assert isinstance(np.ones(3) + leaf(3), Tensor) and np.shape(leaf(3)) == (3,) and np.ndim(leaf(3)) == 1


# --- Optimizers and schedules -------------------------------------------------------------------------

@pytest.mark.parametrize("make", [
    lambda v: optim.SGD(lr=v), lambda v: optim.SGD(momentum=v), lambda v: optim.SGD(weight_decay=v),
    lambda v: optim.Adam(betas=(0.9, v)), lambda v: optim.Adam(eps=v), lambda v: optim.RMSprop(alpha=v),
    lambda v: optim.Adagrad(eps=v), lambda v: optim.AdamW(weight_decay=v),
    lambda v: schedules.StepDecay(v, 10), lambda v: schedules.CosineDecay(0.1, v)])
@pytest.mark.parametrize("value", [np.inf, np.nan, -0.1, "0.1", True])
def test_settings_are_checked_before_any_training(make, value):
    with pytest.raises((ValueError, TypeError)):
        make(value)


def test_learning_rate_is_lr_by_its_name_in_keras():
    optimizer = optim.Adam(learning_rate=0.25)
    assert optimizer.lr == optimizer.learning_rate == 0.25
    optimizer.learning_rate = 0.5
    assert optimizer.lr == optimizer.current_lr == 0.5


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_a_gradient_of_another_shape_updates_nothing(make):
    a, b = parameter(2, 2), parameter(3)
    optimizer = make([a, b], lr=0.1)
    a.grad, b.grad = np.ones((2, 2), np.float32), np.float32(1)
    with pytest.raises(ValueError, match=r"parameter 1 .*\(\).*\(3,\): nothing was updated"):
        optimizer.step()
    assert (a.data == 1).all() and optimizer.steps == 0


def test_a_parameter_that_has_grown_is_told():
    p = parameter(2)
    optimizer = optim.Adam([p], lr=0.1)
    p.data = np.ones(3, np.float32)
    p.grad = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"had shape \(2,\).*attach"):
        optimizer.step()


def test_state_follows_the_parameters_to_another_dtype():
    p = parameter(2)
    optimizer = optim.Adam([p], lr=0.1)
    p.data = p.data.astype(np.float64)
    p.grad = np.ones(2)
    optimizer.step()
    assert p.dtype == np.float64 and all(a.dtype == np.float64 for arrays in optimizer.state.values() for a in arrays)


def test_a_parameter_frozen_and_freed_again_is_trained():
    p = parameter(2)
    optimizer = optim.SGD([p], lr=1.0)
    for flag, value in ((True, 0), (False, 0), (True, -1)):
        p.grad, p.requires_grad = np.ones(2, np.float32), flag
        optimizer.step()
        assert (p.data == value).all()


def test_two_optimizers_on_one_parameter_both_move_it():
    p = parameter(2)
    first, second = optim.SGD([p], lr=1.0), optim.Adam([p], lr=0.5)
    for optimizer in (first, second, first):
        p.grad = np.ones(2, np.float32)
        optimizer.step()
    assert np.allclose(p.data, 1 - 1 - 0.5 - 1)


def test_many_parameters_are_not_compared_with_each_other(monkeypatch):
    monkeypatch.setattr(np, "may_share_memory", lambda a, b: pytest.fail("pairwise"))
    parameters = [parameter(1) for _ in range(5000)]
    optimizer = optim.Adam(parameters, lr=0.1)
    for p in parameters:
        p.grad = np.ones(1, np.float32)
    optimizer.step()
    assert np.allclose([p.item() for p in parameters], 0.9)


def test_momentum_set_on_an_optimizer_made_without_is_told():
    p = parameter(2)
    optimizer = optim.SGD([p], lr=0.1)
    optimizer.momentum = 0.9
    p.grad = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="made without momentum"):
        optimizer.step()


@pytest.mark.parametrize("most", [0, -1, np.nan, np.inf, "1"])
def test_the_bound_of_clip_grad_norm_is_checked(most):
    p = parameter(2)
    p.grad = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="max_norm"):
        optim.clip_grad_norm([p], most)


def test_batch_norm_trains_in_half_precision():
    model = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(2)], seed=0).build(4).astype(np.float16)
    x = RNG.normal(0, 1, (64, 4)).astype(np.float16)
    loss = F.cross_entropy(model(x), np.arange(64) % 2)
    loss.backward()
    assert loss.dtype == np.float16 and all(np.isfinite(p.grad).all() for p in model.parameters())


def test_integers_made_of_a_tensor_have_no_gradient():
    """The derivative of cutting digits off is 0, and not 1."""
    x = leaf(3)
    whole = x.astype(np.int64)
    assert whole.dtype == np.int64 and not whole.requires_grad
    (x * whole).sum().backward()
    assert np.array_equal(x.grad, whole.data)


def test_an_op_reads_its_own_output_however_many_inputs_it_takes():
    add_all = Op("add_all", lambda *arrays: arrays[0] * arrays[1] * arrays[2],
                 *[lambda g, y: g * y] * 3)
    a, b, c = leaf(2), leaf(2), leaf(2)
    y = add_all(a, b, c)
    y.backward(np.ones(2))
    assert np.array_equal(a.grad, y.data) and np.array_equal(c.grad, y.data)


def test_a_constant_given_by_position_is_refused():
    """Its place would be taken for that of the output."""
    scale = Op("scale", lambda x, factor: x * factor, lambda g, factor: g * factor)
    x = leaf(3)
    assert np.array_equal(grad(scale(x, factor=2.0).sum(), x), [2, 2, 2])
    with pytest.raises(TypeError, match="each of 1 arguments, but got 2 by position"):
        scale(x, 2.0)


def test_a_vjp_may_have_parameters_of_its_own():
    ops = [Op("times", lambda x, n=n: x * n, lambda g, n=n: g * n) for n in (2.0, 3.0)]
    x = leaf(2)
    assert [grad(op(x).sum(), x)[0] for op in ops] == [2, 3]
