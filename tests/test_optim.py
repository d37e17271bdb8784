"""Optimizers: each against its recurrence written out by hand, and what all have in common."""

import math

import numpy as np
import pytest

from minidl import Parameter, Tensor, optim

ALL = {"sgd": lambda p=None, lr=0.1: optim.SGD(p, lr=lr),
       "momentum": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, momentum=0.9),
       "nesterov": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
       "decay": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, weight_decay=0.01),
       "adam": lambda p=None, lr=0.1: optim.Adam(p, lr=lr)}
every_optimizer = pytest.mark.parametrize("name", ALL)


def parameter(*values, dtype=np.float64):
    return Parameter(np.array(values, dtype))


def sgd(p, gradients, lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0):
    """v = momentum v + g; p = p - lr v, or p - lr (g + momentum v)."""
    v = 0.0
    for g in gradients:
        g = g + weight_decay * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    return p


def adam(p, gradients, lr=0.1, betas=(0.9, 0.999), eps=1e-8):
    """Algorithm 1 of Kingma and Ba, line by line."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g ** 2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


RECURRENCES = [
    (optim.SGD, sgd, {}), (optim.SGD, sgd, {"momentum": 0.9}), (optim.SGD, sgd, {"momentum": 0.9, "nesterov": True}),
    (optim.SGD, sgd, {"weight_decay": 0.1}), (optim.SGD, sgd, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adam, adam, {}), (optim.Adam, adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (optim.Adam, adam, {"betas": (0.0, 0.0)})]


@pytest.mark.parametrize("optimizer, recurrence, options", RECURRENCES, ids=str)
def test_twenty_steps_follow_the_recurrence(optimizer, recurrence, options):
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (4,)]
    starts = [rng.standard_normal(s) for s in shapes]
    gradients = [rng.standard_normal((20, *s)) * 10.0 ** rng.integers(-3, 3, s) for s in shapes]
    parameters = [Parameter(s.copy()) for s in starts]
    stepper = optimizer(parameters, lr=0.1, **options)
    for step in range(20):
        for p, g in zip(parameters, gradients):
            p.grad = g[step]
        stepper.step()
    for p, start, g in zip(parameters, starts, gradients):
        np.testing.assert_allclose(p.data, recurrence(start, g, **options), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-6, 1, 1e6])
def test_the_first_adam_step_has_the_size_of_the_learning_rate(size):
    """Whatever the gradient: m^ / sqrt(v^) is g / |g|."""
    p = parameter(1.0, 1.0)
    p.grad = np.array([size, -size])
    optim.Adam([p], lr=0.01).step()
    np.testing.assert_allclose(p.data, [0.99, 1.01], rtol=1e-3)


@every_optimizer
def test_a_quadratic_bowl_is_descended(name):
    p = parameter(3.0, -2.0)
    curvature = np.array([1.0, 5.0])
    optimizer = ALL[name]([p], lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        (p * p * curvature).sum().backward()
        optimizer.step()
    assert np.abs(p.data).max() < 1e-3


@every_optimizer
def test_a_parameter_given_twice_is_stepped_once(name):
    once, twice = parameter(1.0, 2.0), parameter(1.0, 2.0)
    for p, given in (once, [once]), (twice, [twice, twice]):
        optimizer = ALL[name](given)
        for _ in range(3):
            p.grad = np.array([1.0, -1])
            optimizer.step()
    assert np.array_equal(once.data, twice.data) and optimizer.parameters == [twice]


@every_optimizer
def test_parameters_without_gradient_stay(name):
    """Adam's correction then counts their own updates, not the calls of step()."""
    p, frozen, late, alone = (parameter(1.0) for _ in range(4))
    optimizer, reference = ALL[name]([p, frozen, late]), ALL[name]([alone])
    p.grad = np.array([1.0])
    optimizer.step()
    optimizer.step()
    assert frozen.data == 1 and late.data == 1 and p.data < 1
    late.grad = alone.grad = np.array([0.5])
    optimizer.step()
    reference.step()
    assert late.data == alone.data


@every_optimizer
def test_parameters_are_changed_in_place(name):
    """A model and its optimizer share the array; `.data` is not replaced behind anyone's back."""
    p = parameter(1.0)
    array, p.grad = p.data, np.array([1.0])
    ALL[name]([p]).step()
    assert p.data is array and array[0] < 1


@every_optimizer
def test_a_numpy_learning_rate_keeps_float32(name):
    """And changes no bit: a run with a rate from np.logspace is the run with the same Python number."""
    start, g = np.random.default_rng(0).standard_normal((2, 100)).astype(np.float32)
    results = []
    for lr in 0.1, np.float64(0.1):
        p = Parameter(start.copy())
        optimizer = ALL[name]([p], lr=lr)
        for _ in range(3):
            p.grad = g
            optimizer.step()
        results.append(p.data)
    assert p.dtype == np.float32 and np.array_equal(*results)
    assert all(a.dtype == np.float32 for value in vars(optimizer).values() if isinstance(value, list)
               for a in value if isinstance(a, np.ndarray))


@every_optimizer
def test_a_single_number_is_trained(name):
    """Parameter(1.0) is a 0-d array, on which NumPy returns scalars instead of arrays."""
    p, one = Parameter(1.0), Parameter([1.0])
    for q in p, one:
        optimizer = ALL[name]([q])
        for _ in range(3):
            optimizer.zero_grad()
            (q * q).backward()
            optimizer.step()
    assert p.shape == () and p.dtype == np.float32 and p.data == one.data[0]


@every_optimizer
def test_a_change_of_the_learning_rate_is_followed(name):
    p = parameter(1.0)
    optimizer = ALL[name]([p])
    p.grad = np.array([1.0])
    optimizer.lr = 1e-9
    optimizer.step()
    assert 1 > p.data[0] > 1 - 1e-8


@every_optimizer
@pytest.mark.parametrize("verb", ["step", "zero_grad"])
def test_an_unbound_optimizer_says_how_to_bind_it(name, verb):
    optimizer = ALL[name]()
    with pytest.raises(RuntimeError, match=f"{type(optimizer).__name__}.*no parameters.*model.parameters"):
        getattr(optimizer, verb)()


@every_optimizer
def test_attach_binds_later_and_starts_afresh(name):
    bound, later = parameter(1.0), parameter(1.0)
    early, optimizer = ALL[name]([bound]), ALL[name]()
    assert optimizer.attach([later]) is optimizer
    for p, o in (bound, early), (later, optimizer):
        p.grad = np.array([0.5])
        o.step()
        o.step()
    assert np.array_equal(bound.data, later.data)
    fresh = parameter(1.0)
    optimizer.attach(p for p in [fresh])  # a generator will do; the momentum of `later` is gone
    fresh.grad = np.array([0.5])
    optimizer.step()
    other = parameter(1.0)
    other.grad = np.array([0.5])
    ALL[name]([other]).step()
    assert np.array_equal(fresh.data, other.data)


@every_optimizer
def test_state_belongs_to_the_place_in_the_list(name):
    """Not to the id, which a later object can get again: a parameter replaced in place keeps its momentum."""
    a, b = [parameter(1.0), parameter(5.0)], [parameter(1.0), parameter(5.0)]
    first, second = ALL[name](a), ALL[name](b)
    for step in range(4):
        for parameters, optimizer in (a, first), (b, second):
            for p in parameters:
                p.grad = np.array([0.3])
            optimizer.step()
        second.parameters[0] = b[0] = Parameter(b[0].data.copy())
    assert [p.data for p in a] == [p.data for p in b]


@every_optimizer
@pytest.mark.parametrize("lr", [0, -0.1, math.nan, 0.0])
def test_the_learning_rate_is_positive(name, lr):
    with pytest.raises(ValueError, match="learning rate must be positive"):
        ALL[name](lr=lr)


@pytest.mark.parametrize("given, error", [(parameter(1.0), TypeError), (3, TypeError), ([], ValueError),
                                          ([np.ones(2)], ValueError)])
@every_optimizer
def test_parameters_are_checked(name, given, error):
    with pytest.raises(error, match="parameter"):
        ALL[name](given)


def test_zero_grad_forgets_the_gradients_of_all():
    p, q = parameter(1.0), parameter(2.0)
    p.grad = np.ones(1)
    optim.SGD([p, q]).zero_grad()
    assert p.grad is None and q.grad is None


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="momentum"):
        optim.SGD(nesterov=True)


def test_plain_tensors_can_be_trained_too():
    x = Tensor(np.array([2.0]), requires_grad=True)
    (x * x).backward()
    optim.SGD([x], lr=0.25).step()
    assert x.data == 1


def test_every_optimizer_has_a_name_for_compile_and_a_recurrence_here():
    classes = {c for c in vars(optim).values() if isinstance(c, type) and issubclass(c, optim.Optimizer)}
    classes.remove(optim.Optimizer)
    assert set(optim.OPTIMIZERS.values()) == classes == {optimizer for optimizer, _, _ in RECURRENCES}
