"""Optimizers: each against its recurrence written out by hand, and what all have in common. Schedules; clipping.

`test_parity.py` holds the same against PyTorch.
"""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from minidl import Dense, DivergenceError, Parameter, Sequential, Tensor, optim, schedules
from minidl import functional as F
from minidl.schedules import (
    CosineDecay,
    CosineRestarts,
    ExponentialDecay,
    MultiStepDecay,
    OneCycle,
    PolynomialDecay,
    StepDecay,
    WarmUp,
)

ALL = {"sgd": lambda p=None, lr=0.1: optim.SGD(p, lr=lr),
       "momentum": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, momentum=0.9),
       "nesterov": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, momentum=0.9, nesterov=True),
       "decay": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, weight_decay=0.01),
       "adagrad": lambda p=None, lr=0.1: optim.Adagrad(p, lr=lr),
       "rmsprop": lambda p=None, lr=0.1: optim.RMSprop(p, lr=lr),
       "l2": lambda p=None, lr=0.1: optim.Adam(p, lr=lr, weight_decay=0.01),
       "clipped": lambda p=None, lr=0.1: optim.SGD(p, lr=lr, clipnorm=5.0),
       "adam": lambda p=None, lr=0.1: optim.Adam(p, lr=lr),
       "adamw": lambda p=None, lr=0.1: optim.AdamW(p, lr=lr)}
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


def adagrad(p, gradients, lr=0.1, eps=1e-10):
    """p = p - lr g / sqrt(sum of all g^2 so far)."""
    for t, g in enumerate(gradients, start=1):
        p = p - lr * g / (np.sqrt((gradients[:t] ** 2).sum(axis=0)) + eps)
    return p


def rmsprop(p, gradients, lr=0.1, alpha=0.99, eps=1e-8, weight_decay=0.0):
    """p = p - lr g / sqrt(mean of the g^2, each older one weighing alpha times the next)."""
    gradients = gradients.copy()
    for t, g in enumerate(gradients, start=1):
        g += weight_decay * p
        weights = (1 - alpha) * alpha ** np.arange(t)[::-1]
        p = p - lr * g / (np.sqrt(np.tensordot(weights, gradients[:t] ** 2, axes=1)) + eps)
    return p


def l2_adam(p, gradients, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Adam of the loss plus weight_decay / 2 times the sum of p^2."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        g = g + weight_decay * p
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g ** 2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


def adam(p, gradients, lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Algorithm 1 of Kingma and Ba, line by line; with weight_decay, algorithm 2 of Loshchilov and Hutter."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        p = p - lr * weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g ** 2
        p = p - lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p


RECURRENCES = [
    (optim.SGD, sgd, {}), (optim.SGD, sgd, {"momentum": 0.9}), (optim.SGD, sgd, {"momentum": 0.9, "nesterov": True}),
    (optim.SGD, sgd, {"weight_decay": 0.1}), (optim.SGD, sgd, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adagrad, adagrad, {}), (optim.Adagrad, adagrad, {"eps": 1e-2}),
    (optim.RMSprop, rmsprop, {}), (optim.RMSprop, rmsprop, {"alpha": 0.5, "eps": 1e-2}),
    (optim.RMSprop, rmsprop, {"weight_decay": 0.1}), (optim.Adam, l2_adam, {"weight_decay": 0.1}),
    (optim.AdamW, adam, {"weight_decay": 0.1}), (optim.AdamW, adam, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.0}),
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


@pytest.mark.parametrize("optimizer, sizes", [(optim.Adagrad, 1 / np.sqrt([1, 2, 3])),
                                              (optim.RMSprop, 1 / np.sqrt([0.01, 0.0199, 0.029701]))])
def test_steps_under_a_constant_gradient(optimizer, sizes):
    """By hand, whatever the gradient: Adagrad's v is t g^2, RMSprop's (1 - 0.99^t) g^2."""
    p = parameter(0.0, 0.0)
    stepper, path = optimizer([p], lr=0.1), [0.0]
    for _ in sizes:
        p.grad = np.array([7.0, -300.0])
        stepper.step()
        path.append(p.data[0])
        assert p.data[1] == pytest.approx(-p.data[0])
    np.testing.assert_allclose(-np.diff(path), 0.1 * sizes, rtol=1e-6)


def test_decoupled_decay_does_not_pass_through_the_moments():
    """Under a zero gradient AdamW shrinks p by 1 - lr weight_decay, exactly; where the gradient is large, just as much."""
    p, plain = parameter(3.0, -2.0), parameter(3.0, -2.0)
    adamw, adam = optim.AdamW([p], lr=0.1), optim.Adam([plain], lr=0.1)
    p.grad = np.zeros(2)
    adamw.step()
    assert np.array_equal(p.data, np.array([3.0, -2.0]) * (1 - 0.1 * 0.01))
    adamw.attach([p])
    p.data[:] = 3.0, -2.0
    p.grad = plain.grad = np.array([1e-3, 1e5])
    adamw.step()
    adam.step()
    np.testing.assert_allclose(plain.data - p.data, 0.1 * 0.01 * np.array([3.0, -2.0]), rtol=1e-9)


@every_optimizer
def test_a_quadratic_bowl_is_descended(name):
    p = parameter(3.0, -2.0)
    curvature = np.array([1.0, 5.0])
    optimizer = ALL[name]([p], lr=1.0 if name == "adagrad" else 0.05)
    if name == "rmsprop":  # its steps do not shrink with the gradient
        optimizer.lr = CosineDecay(0.05, steps=500)
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
    assert all(a.dtype == np.float32 for arrays in optimizer.state.values() for a in arrays)


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
    with pytest.raises(ValueError, match="learning rate must be a finite number above 0"):
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
    classes -= {optim.Optimizer, optim.Groups}
    assert set(optim.OPTIMIZERS.values()) == classes == {optimizer for optimizer, _, _ in RECURRENCES}


@every_optimizer
def test_a_frozen_parameter_stays(name):
    """Also when it was frozen after backward() had given it a gradient."""
    p, frozen = parameter(1.0), parameter(1.0)
    optimizer = ALL[name]([p, frozen])
    p.grad = frozen.grad = np.array([1.0])
    frozen.requires_grad = False
    optimizer.step()
    assert frozen.data == 1 and p.data < 1 and optimizer.steps == 1


# --- Small parameters in one vector ---------------------------------------------------------------------------

def mixed_parameters():
    """Small ones in two groups with a large one between them, and a single number of another dtype."""
    rng = np.random.default_rng(0)
    shapes = (3, 4), (4,), (200, 100), (4, 2), (2,), ()
    return [Parameter(rng.standard_normal(shape).astype(np.float32)) for shape in shapes] + [parameter(1.0)]


def steps_with_gaps(parameters, optimizer, number):
    """Steps in which some parameters are frozen, have no gradient, or get a new array."""
    rng = np.random.default_rng(1)
    for step in range(number):
        for p in parameters:
            p.grad = rng.standard_normal(p.shape).astype(p.dtype)
        parameters[1].requires_grad = step != 2
        if step == 4:
            parameters[4].grad = None
        if step == 6:
            parameters[0].data = parameters[0].data.copy()
        parameters[3].grad = np.asfortranarray(parameters[3].grad)
        optimizer.step()


@every_optimizer
def test_small_parameters_are_updated_in_one_sweep_to_the_same_bits(name, monkeypatch):
    results = []
    for small in optim.SMALL, 0:
        monkeypatch.setattr(optim, "SMALL", small)
        parameters = mixed_parameters()
        optimizer = ALL[name](parameters)
        assert [block.places for block in optimizer._blocks] == ([range(2), range(3, 6)] if small and optimizer.kept else [])
        steps_with_gaps(parameters, optimizer, 8)
        results.append([p.data for p in parameters] + list(optimizer.state_dict().values()))
    assert all(np.array_equal(one, other) and one.dtype == other.dtype for one, other in zip(*results))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"])
@every_optimizer
def test_a_copy_in_the_middle_of_training_goes_on_alike(name, again):
    parameters = mixed_parameters()
    pair = parameters, ALL[name](parameters)
    steps_with_gaps(*pair, 3)
    other = again(pair)
    for one in pair, other:
        steps_with_gaps(*one, 5)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(pair[0], other[0]))


@every_optimizer
def test_parameters_that_share_memory_still_do(name):
    array = np.ones((2, 3), np.float32)
    tied, other = Parameter(array), Parameter(np.zeros(1, np.float32))
    tied.data, twin = array, Parameter(np.zeros((3, 2), np.float32))
    twin.data = array.T
    ALL[name]([tied, other, twin])
    assert np.shares_memory(tied.data, twin.data)


# --- State: stopping and going on ------------------------------------------------------------------------------

def batch_loss(model, step):
    rng = np.random.default_rng(step)
    return F.cross_entropy(model(rng.standard_normal((8, 3)).astype(np.float32)), rng.integers(0, 4, 8))


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        batch_loss(model, step).backward()
        if step % 3:
            optimizer.parameters[1].grad = None  # so that the parameters differ in their number of updates
        optimizer.step()


@every_optimizer
def test_a_run_that_was_stopped_goes_on_bit_for_bit(name):
    """Through what an npz file would hold; and what was saved does not change when the first run goes on."""
    def start():
        model = Sequential([Dense(5, "tanh", input_shape=3), Dense(4)], seed=0)
        return model, ALL[name](model.parameters(), lr=OneCycle(0.1, steps=20))

    model, optimizer = start()
    train(model, optimizer, range(10))
    weights, saved = [p.data.copy() for p in model.parameters()], optimizer.state_dict()
    frozen = {key: a.copy() for key, a in saved.items()}
    train(model, optimizer, range(10, 20))
    assert saved.keys() == frozen.keys() and all(np.array_equal(saved[key], frozen[key]) for key in saved)

    again, second = start()
    for p, data in zip(again.parameters(), weights):
        p.data = data
    second.load_state_dict(saved)
    train(again, second, range(10, 20))
    for p, q in zip(model.parameters(), again.parameters()):
        assert np.array_equal(p.data, q.data)
    assert all(np.array_equal(a, second.state_dict()[key]) for key, a in optimizer.state_dict().items())
    assert all(np.array_equal(saved[key], frozen[key]) for key in saved)  # loading took copies


def test_what_the_state_holds():
    names = {"momentum": ["velocity.0", "velocity.1"], "adam": ["m_sum.0", "m_sum.1", "v_sum.0", "v_sum.1"]}
    for name, expected in names.items():
        p, q = parameter(1.0, 2.0), parameter(1.0)
        optimizer = ALL[name]([p, q])
        for q.grad in None, np.ones(1):
            p.grad = np.array([0.5, 2.0])
            optimizer.step()
        state = optimizer.state_dict()
        assert sorted(state) == sorted(["steps", "updates", *expected])
        assert state["steps"] == 2 and state["updates"].tolist() == [2, 1] and state[expected[0]].shape == (2,)


@pytest.mark.parametrize("spoil, names", [
    (lambda state: state.pop("m_sum.1"), ["m_sum.1.*shape.*nothing"]), (lambda state: state.pop("steps"), ["steps"]),
    (lambda state: state.update({"velocity.0": np.ones(2)}), ["velocity.0.*nothing.*shape"]),
    (lambda state: state.update({"v_sum.0": np.ones((2, 1))}), [r"v_sum.0.*\(2,\).*\(2, 1\)"]),
    (lambda state: state.update({"updates": np.ones(3, int)}), ["updates"]),
    (lambda state: (state.pop("m_sum.0"), state.update({"m.9": 1, "v_sum.1": np.ones(5)})), ["m_sum.0", "m.9", "v_sum.1"])])
def test_state_that_does_not_fit_is_refused_and_nothing_changed(spoil, names):
    optimizer = optim.Adam([parameter(1.0, 2.0), parameter(1.0)])
    state = {key: a + 1 for key, a in optimizer.state_dict().items()}
    spoil(state)
    for name in names:
        with pytest.raises(ValueError, match=f"(?s)Adam.*{name}"):
            optimizer.load_state_dict(state)
    assert not any(a.any() for a in optimizer.state_dict().values())


def test_state_needs_parameters():
    for call in optim.Adam().state_dict, lambda: optim.Adam().load_state_dict({}):
        with pytest.raises(RuntimeError, match="no parameters"):
            call()


# --- Schedules -------------------------------------------------------------------------------------------------

def rates(schedule, steps):
    return np.array([schedule(step) for step in range(steps)])


SCHEDULES = [StepDecay(0.1, 30), ExponentialDecay(0.1, 30), CosineDecay(0.1, 90), WarmUp(0.1, 10),
             WarmUp(CosineDecay(0.1, 80), 10), OneCycle(0.1, 100), MultiStepDecay(0.1, (30, 80)), PolynomialDecay(0.1, 90, 2.0),
             CosineRestarts(0.1, 20, 2)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def test_published_numbers_of_the_schedules():
    """From their definitions: where each begins, where it turns, where it ends."""
    halves = rates(StepDecay(0.8, steps=3, factor=0.5), 8)
    np.testing.assert_allclose(halves, [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2])
    smooth = rates(ExponentialDecay(0.8, steps=3, factor=0.5), 8)
    np.testing.assert_allclose(smooth[[0, 3, 6]], [0.8, 0.4, 0.2])
    np.testing.assert_allclose(smooth[1:] / smooth[:-1], 0.5 ** (1 / 3))
    np.testing.assert_allclose(rates(CosineDecay(0.8, steps=6), 8),
                               [0.8, 0.4 + 0.2 * math.sqrt(3), 0.6, 0.4, 0.2, 0.4 - 0.2 * math.sqrt(3), 0, 0], atol=1e-16)
    np.testing.assert_allclose(rates(PolynomialDecay(0.8, steps=4), 6), [0.8, 0.6, 0.4, 0.2, 0, 0], atol=1e-16)
    np.testing.assert_allclose(rates(PolynomialDecay(0.8, 4, power=2), 6), [0.8, 0.45, 0.2, 0.05, 0, 0], atol=1e-16)
    np.testing.assert_allclose(rates(MultiStepDecay(0.8, [2, 5], 0.5), 7), [0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2])
    np.testing.assert_allclose(rates(CosineRestarts(0.8, steps=2), 6), [0.8, 0.4] * 3)
    np.testing.assert_allclose(rates(CosineRestarts(0.8, steps=2, factor=2), 8),
                               [0.8, 0.4, 0.8, 0.4 + 0.2 * math.sqrt(2), 0.4, 0.4 - 0.2 * math.sqrt(2), 0.8,
                                0.4 * (1 + math.cos(math.pi / 8))])
    np.testing.assert_allclose(rates(WarmUp(0.8, steps=3), 6), [0.2, 0.4, 0.6, 0.8, 0.8, 0.8])
    np.testing.assert_allclose(rates(WarmUp(StepDecay(0.8, 2, 0.5), steps=3), 8), [0.2, 0.4, 0.6, 0.8, 0.8, 0.4, 0.4, 0.2])


def test_one_cycle():
    """From lr / 25 to lr at 30 % of the steps, then down to lr / 250,000 in the last one; half-way, the mean of both ends."""
    schedule = OneCycle(0.5, steps=110)
    values = rates(schedule, 110)
    assert values[0] == pytest.approx(0.02) and values[32] == values.max() == pytest.approx(0.5)
    assert values[16] == pytest.approx((0.02 + 0.5) / 2)
    assert values[109] == pytest.approx(2e-6) and schedule(500) == pytest.approx(2e-6)
    assert (np.diff(values[:33]) > 0).all() and (np.diff(values[32:]) < 0).all()
    assert [OneCycle(0.5, steps)(steps - 1) for steps in (1, 2, 3, 4)] == pytest.approx([2e-6] * 4)


@every_schedule
def test_schedules_stay_between_0_and_their_rate_and_never_rise_again(schedule):
    values = rates(schedule, 20 if isinstance(schedule, CosineRestarts) else 120)  # until it starts anew
    top = values.argmax()
    assert 0 <= values.min() and values.max() == pytest.approx(0.1)
    assert (np.diff(values[:top + 1]) > 0).all() and (np.diff(values[top:]) <= 0).all()


@every_schedule
def test_schedules_can_be_printed_sent_and_trusted(schedule):
    """A process pool pickles them; a repr shows up in errors; none can be changed under a running optimizer."""
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule and repr(schedule).startswith(f"{type(schedule).__name__}(lr=") and eval(repr(schedule)) == copy
    assert np.array_equal(rates(copy, 120), rates(schedule, 120))
    with pytest.raises(FrozenInstanceError):
        schedule.lr = 1.0


@every_optimizer
def test_an_optimizer_follows_its_schedule(name):
    """Step by step as with the same rates set by hand; attach starts the schedule again."""
    p, q = parameter(1.0), parameter(1.0)
    schedule = WarmUp(StepDecay(0.1, steps=2), steps=3)
    scheduled, by_hand = ALL[name]([p], lr=schedule), ALL[name]([q])
    for step in range(10):
        assert scheduled.steps == step and scheduled.current_lr == schedule(step) and type(scheduled.current_lr) is float
        by_hand.lr = schedule(step)
        p.grad = q.grad = np.array([0.3])
        scheduled.step()
        by_hand.step()
        assert np.array_equal(p.data, q.data)
    assert scheduled.lr is schedule
    scheduled.lr = 0.25
    assert scheduled.current_lr == 0.25
    assert scheduled.attach([p]).steps == 0


@pytest.mark.parametrize("rate", [math.nan, math.inf, -0.1])
@pytest.mark.parametrize("scheduled", [True, False])
def test_an_impossible_rate_is_refused_at_its_step(rate, scheduled):
    """By a message with the schedule, the rate and the step; the parameters are not touched."""
    def spoiled(step):
        return rate if step == 2 else np.float64(0.1)

    p = parameter(1.0)
    optimizer = optim.SGD([p], lr=spoiled if scheduled else 0.1)
    p.grad = np.array([1.0])
    optimizer.step()
    optimizer.step()
    if not scheduled:
        optimizer.lr = rate
    with pytest.raises(ValueError, match=f"got {rate} at step 2 from .*{'spoiled' if scheduled else rate}"):
        optimizer.step()
    assert p.data == pytest.approx(0.8) and optimizer.steps == 2


def test_a_divergence_names_the_rate_that_the_schedule_gave():
    model = Sequential([Dense(4, input_shape=3)]).compile(optim.SGD(lr=StepDecay(1e35, steps=1, factor=10)))
    x = np.random.default_rng(0).standard_normal((64, 3))
    with pytest.raises(DivergenceError, match=r"at step (\d+): .* the learning rate is 1e\+3[5-9],") as caught:
        model.fit(x, np.arange(64) % 4, verbose=0, epochs=4, batch_size=16)
    assert f"rate is 1e+{35 + caught.value.step}," in str(caught.value)


def test_a_rate_of_zero_is_only_a_pause():
    p = parameter(1.0)
    p.grad = np.array([1.0])
    optim.SGD([p], lr=lambda step: 0).step()
    assert p.data == 1


@pytest.mark.parametrize("make, name", [
    (lambda: StepDecay(0.1, 0), "steps"), (lambda: ExponentialDecay(-0.1, 3), "lr"), (lambda: StepDecay(0.1, 3, 0), "factor"),
    (lambda: CosineDecay(math.nan, 3), "lr"), (lambda: WarmUp(0, 3), "lr"), (lambda: OneCycle(0.1, -5), "steps"),
    (lambda: MultiStepDecay(0.1, (0, 3)), "steps"), (lambda: PolynomialDecay(0.1, 3, 0), "power")])
def test_schedules_check_their_numbers(make, name):
    with pytest.raises(ValueError, match=f"(Decay|WarmUp|OneCycle) needs a positive, finite number as {name}, got"):
        make()


def test_schedules_of_several_periods_check_them():
    with pytest.raises(ValueError, match=r"the steps at which the rate falls, in order, \(300, 600\) for example, got 30"):
        MultiStepDecay(0.1, 30)
    with pytest.raises(ValueError, match="in order"):
        MultiStepDecay(0.1, (60, 30))
    with pytest.raises(ValueError, match="a factor of at least 1"):  # periods ever shorter would have no end
        CosineRestarts(0.1, 10, 0.5)


def test_every_schedule_is_tested_here():
    classes = {c for c in vars(schedules).values() if isinstance(c, type) and issubclass(c, schedules.Schedule)}
    assert classes - {schedules.Schedule} == {type(schedule) for schedule in SCHEDULES}


# --- Clipping --------------------------------------------------------------------------------------------------

def with_gradients(*gradients):
    parameters = [Parameter(np.zeros_like(g)) for g in gradients]
    for p, g in zip(parameters, gradients):
        p.grad = g
        p.grad.flags.writeable = False  # gradients may be shared: they are never written in place
    return parameters


def test_clipping_scales_all_gradients_by_one_factor():
    """3, 4 and 12 have the norm 13."""
    p, q = with_gradients(np.array([[3.0, 0.0]]), np.array([-4.0, 12.0]))
    assert optim.clip_grad_norm([p, q], 6.5) == pytest.approx(13)
    np.testing.assert_allclose(p.grad, [[1.5, 0]])
    np.testing.assert_allclose(q.grad, [-2, 6])
    assert optim.clip_grad_norm(iter([p, q, p]), 100) == pytest.approx(6.5)  # once each, and below the bound:
    np.testing.assert_allclose(q.grad, [-2, 6])


@pytest.mark.parametrize("max_norm", [1e-3, np.float64(0.5), 7])
def test_clipped_float32_gradients_stay_float32(max_norm):
    rng = np.random.default_rng(0)
    parameters = with_gradients(*(rng.standard_normal(shape).astype(np.float32) for shape in [(3, 4), (4,), ()]))
    before = math.sqrt(sum(float((p.grad.astype(float) ** 2).sum()) for p in parameters))
    old = [p.grad for p in parameters]
    norm = optim.clip_grad_norm(parameters, max_norm)
    after = math.sqrt(sum(float((p.grad.astype(float) ** 2).sum()) for p in parameters))
    assert type(norm) is float and norm == pytest.approx(before) and after == pytest.approx(min(before, max_norm), rel=1e-6)
    assert all(p.grad.dtype == np.float32 and p.grad.shape == g.shape for p, g in zip(parameters, old))
    assert all((p.grad is g) == (before <= max_norm) for p, g in zip(parameters, old))


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_norm_of_float32_gradients_neither_overflows_nor_vanishes(size):
    p, = with_gradients(np.full(4, size, np.float32))
    assert optim.clip_grad_norm([p], size) == pytest.approx(2 * size)
    np.testing.assert_allclose(p.grad, size / 2, rtol=1e-6)


def test_clipping_looks_only_at_what_a_step_would_use():
    p, unused, frozen = with_gradients(np.array([3.0]), np.array([4.0]), np.array([np.inf]))
    unused.grad, frozen.requires_grad = None, False
    assert optim.clip_grad_norm([p, unused, frozen], 1) == 3
    assert p.grad == pytest.approx(1) and unused.grad is None and frozen.grad == np.inf
    p.grad = None
    assert optim.clip_grad_norm([p, unused, frozen], 1) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_that_are_not_finite_cannot_be_clipped(bad):
    p, q = with_gradients(np.array([30.0, 40.0]), np.array([bad, 1.0]))
    with pytest.raises(ValueError, match="norm of the gradients is (nan|inf).*learning rate"):
        optim.clip_grad_norm([p, q], 1.0)
    assert p.grad.tolist() == [30, 40] and q.grad[1] == 1


@pytest.mark.parametrize("given, max_norm, error", [
    ([parameter(1.0)], 0, ValueError), ([parameter(1.0)], -1, ValueError), ([parameter(1.0)], math.nan, ValueError),
    (parameter(1.0), 1, TypeError), ([], 1, ValueError)])
def test_clipping_checks_what_it_is_given(given, max_norm, error):
    with pytest.raises(error, match="max_norm|parameter"):
        optim.clip_grad_norm(given, max_norm)


def test_only_warm_up_goes_around_another_schedule():
    with pytest.raises(ValueError, match="CosineDecay takes a rate"):
        schedules.CosineDecay(schedules.WarmUp(0.1, 3), 10)


@pytest.mark.parametrize("schedule", [schedules.CosineDecay, schedules.StepDecay, schedules.ExponentialDecay])
def test_a_schedule_with_its_arguments_exchanged_is_refused(schedule):
    with pytest.raises(ValueError, match="at least 1 step, got 0.1; the rate comes first"):
        schedule(1000, 0.1)


@pytest.mark.parametrize("optimizer, name, bad", [
    (optim.SGD(lr=0.1, momentum=0.9), "momentum", "0.9"), (optim.SGD(lr=0.1, momentum=0.9), "momentum", 1.5),
    (optim.SGD(lr=0.1), "weight_decay", -1), (optim.SGD(lr=0.1), "nesterov", "False"),
    (optim.Adagrad(), "eps", math.nan), (optim.RMSprop(), "alpha", 1), (optim.Adam(), "betas", (0.9, 1.0)),
    (optim.Adam(), "betas", 0.9), (optim.Adam(), "eps", None), (optim.AdamW(), "weight_decay", math.inf)])
def test_a_setting_is_checked_whenever_it_is_set(optimizer, name, bad):
    """Not only by the constructor: a momentum of 1.5 set later would diverge without a word."""
    before = getattr(optimizer, name)
    with pytest.raises(ValueError, match=name):
        setattr(optimizer, name, bad)
    assert getattr(optimizer, name) == before


def test_a_setting_of_numpys_float64_does_not_turn_float32_into_float64():
    p = parameter(1.0, 2.0)
    p.data = p.data.astype(np.float32)
    optimizer = optim.SGD([p], lr=0.1, momentum=0.9)
    optimizer.momentum, optimizer.weight_decay = np.float64(0.5), np.float64(0.1)
    p.grad = np.ones(p.shape, np.float32)
    optimizer.step()
    assert p.dtype == np.float32 and type(optimizer.momentum) is float


def test_only_what_a_gradient_reaches_can_be_trained():
    """A result keeps no gradient and integers have none: both would be left as they are."""
    p = parameter(1.0, 2.0)
    with pytest.raises(ValueError, match="parameter 1 is the result of mul"):
        optim.SGD([p, p * 2])
    with pytest.raises(ValueError, match="parameter 0 has dtype int64"):
        optim.SGD([Tensor(np.arange(3))])


@pytest.mark.parametrize("name, bad", [("steps", -1), ("steps", 1.5), ("updates", [-1]), ("updates", [0.5])])
def test_counters_are_whole_and_not_negative(name, bad):
    optimizer = optim.Adam([parameter(1.0)])
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="number of steps or updates must be a whole number"):
        optimizer.load_state_dict(state | {name: np.array(bad)})
    assert optimizer.steps == 0 and optimizer.updates == [0]


@pytest.mark.parametrize("clipping, expected", [
    ({"clipnorm": 2.5}, [[1.5, 2.0], [0.5, 0.0]]), ({"clipvalue": 2.0}, [[2.0, 2.0], [0.5, 0.0]]),
    ({"global_clipnorm": 50.25 ** 0.5}, [[3.0, 4.0], [0.5, 0.0]]),
    ({"global_clipnorm": 25.25 ** 0.5 / 5}, [[0.6, 0.8], [0.1, 0.0]])], ids=str)
def test_an_optimizer_clips_as_in_keras(clipping, expected):
    """Each gradient by its own norm, each number, or all gradients by their joint norm; one that is missing stays so."""
    parameters = with_gradients(np.array([3.0, 4.0]), np.array([0.5, 0.0])) + [parameter(7.0)]
    optim.SGD(parameters, lr=1.0, **clipping).step()
    np.testing.assert_allclose([-p.data for p in parameters[:2]], expected, rtol=1e-12)
    assert parameters[2].data == 7


def test_clipping_in_fit():
    x, y = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32), np.arange(40) % 3
    free, clipped = (Sequential([Dense(3)], seed=0).compile(optim.SGD(lr=1.0, **o)) for o in ({}, {"global_clipnorm": 1e-3}))
    for model in free, clipped:
        model.build(5).set_weights([np.zeros((5, 3)), np.zeros(3)])
        model.fit(x, y, batch_size=40, verbose=0)
    assert np.linalg.norm(np.concatenate([w.ravel() for w in clipped.get_weights()])) == pytest.approx(1e-3, rel=1e-4)
    assert np.abs(free[0].kernel.data).max() > 0.01


def test_clipping_options_are_checked():
    with pytest.raises(ValueError, match="clipnorm and clipvalue are two ways"):
        optim.Adam(lr=0.1, clipnorm=1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="clipvalue must be a finite number above 0, got -1"):
        optim.SGD(lr=0.1, clipvalue=-1)
    with pytest.raises(TypeError, match="clipnrom"):
        optim.SGD(lr=0.1, clipnrom=1)


# --- Groups of parameters --------------------------------------------------------------------------------------

def grouped(kind=optim.SGD, **options):
    """A model whose kernels decay and whose biases do not, and learn ten times as fast."""
    model = Sequential([Dense(4, "tanh"), Dense(3)], seed=0).build(5)
    kernels, others = [p for p in model.parameters() if p.ndim > 1], [p for p in model.parameters() if p.ndim == 1]
    return model, kind([{"params": kernels}, {"params": others, "weight_decay": 0.0, "lr": 0.5}], lr=0.05,
                       weight_decay=0.1, **options)


@pytest.mark.parametrize("kind", [optim.SGD, optim.RMSprop, optim.Adam, optim.AdamW])
def test_groups_have_their_own_settings(kind):
    """Each parameter moves as under an optimizer of its group alone."""
    model, optimizer = grouped(kind)
    alone, _ = grouped(kind)
    pieces = [kind([p], lr=0.05, weight_decay=0.1) if p.ndim > 1 else kind([p], lr=0.5, weight_decay=0.0)
              for p in alone.parameters()]
    for p, q in zip(model.parameters(), alone.parameters()):
        p.grad = q.grad = np.ones_like(p.data)
    for _ in range(3):
        optimizer.step()
        for piece in pieces:
            piece.step()
    assert optimizer.steps == 3
    for p, q in zip(model.parameters(), alone.parameters()):
        np.testing.assert_allclose(p.data, q.data, rtol=1e-6)


def test_groups_train_in_fit_and_keep_their_proportion(tmp_path):
    """Also through a checkpoint: the second half of a run is the same run."""
    x, y = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32), np.arange(40) % 3
    model, optimizer = grouped(momentum=0.9)
    model.compile(optimizer).fit(x, y, epochs=4, verbose=0)
    half, optimizer = grouped(momentum=0.9)
    half.compile(optimizer).fit(x, y, epochs=2, verbose=0)
    half.save_checkpoint(tmp_path / "half.npz", 2)
    rest, optimizer = grouped(momentum=0.9)
    rest.compile(optimizer)
    rest.fit(x, y, epochs=4, initial_epoch=rest.load_checkpoint(tmp_path / "half.npz"), verbose=0)
    assert all(map(np.array_equal, rest.get_weights(), model.get_weights()))
    optimizer.lr = 0.005
    assert [one.lr for one in optimizer.optimizers] == [0.005, pytest.approx(0.05)] and optimizer.current_lr == 0.005


def test_a_state_that_does_not_fit_one_group_changes_none():
    model, optimizer = grouped(momentum=0.9)
    for p in model.parameters():
        p.grad = np.ones_like(p.data)
    optimizer.step()
    before, state = optimizer.state_dict(), optimizer.state_dict()
    state["0.steps"], state["1.velocity.0"] = np.array(9), np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"velocity\.0"):
        optimizer.load_state_dict(state)
    assert all(np.array_equal(a, before[name]) for name, a in optimizer.state_dict().items())


def test_groups_are_checked():
    p, q = parameter(1.0), parameter(2.0)
    with pytest.raises(ValueError, match="in two groups"):
        optim.SGD([{"params": [p, q]}, {"params": [q]}], lr=0.1)
    with pytest.raises(TypeError, match="a dict like"):
        optim.SGD([{"params": [p]}, q], lr=0.1)
    with pytest.raises(TypeError, match="momntum"):
        optim.SGD([{"params": [p], "momntum": 0.9}], lr=0.1)
    model, optimizer = grouped()
    with pytest.raises(ValueError, match="already trains another model's parameters"):
        Sequential([Dense(3)]).compile(optimizer).fit(np.ones((4, 5)), np.zeros(4, int), verbose=0)
