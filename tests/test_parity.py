"""Agreement with PyTorch to 1e-6 in float64: `pip install -e ".[parity]"`, then `pytest -m parity`.

The other tests hold the same facts without PyTorch, by invariants and published numbers.
"""

import numpy as np
import pytest

from minidl import BatchNorm, Dense, Parameter, Sequential, Tensor, optim
from minidl import functional as F
from minidl.layers import ACTIVATIONS, Activation
from minidl.schedules import CosineDecay, ExponentialDecay, OneCycle, Schedule, StepDecay, WarmUp
from minidl.training import LOSSES

pytestmark = pytest.mark.filterwarnings("default")  # what PyTorch warns of is not for us to mend
parity = pytest.mark.parity


@pytest.fixture(scope="module")
def torch():
    """Imported here and not above, so that the default run, which leaves these tests out, needs no PyTorch."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    return torch


def close(ours, theirs, atol=1e-6):
    """Arrays of the same shape, both float64, that agree to 1e-6: absolute, and relative where the numbers are large."""
    ours, theirs = ours.data if isinstance(ours, Tensor) else ours, theirs.detach().numpy()
    assert ours.dtype == theirs.dtype == np.float64 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=atol)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


# --- Optimizers and schedules ----------------------------------------------------------------------------------

OPTIMIZERS = [
    (optim.SGD, {}), (optim.SGD, {"weight_decay": 0.1}), (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}), (optim.SGD, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    (optim.Adagrad, {}), (optim.Adagrad, {"eps": 1e-3}), (optim.RMSprop, {}), (optim.RMSprop, {"alpha": 0.9, "eps": 1e-3}),
    (optim.Adam, {}), (optim.Adam, {"betas": (0.5, 0.9), "eps": 1e-3}),
    (optim.AdamW, {}), (optim.AdamW, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3})]


def slopes(a, b, c):
    """The gradient of sum(tanh(a @ b)^2) + sum(a^2) / 8 + c^4 / 4 - c sum(a) / 5 for a (3, 4), b (4,) and a number c."""
    t = np.tanh(a @ b)
    outer = 2 * t * (1 - t ** 2)
    return outer[:, None] * b + a / 4 - c / 5, outer @ a, c ** 3 - a.sum() / 5


@parity
@pytest.mark.parametrize("optimizer, options", OPTIMIZERS, ids=str)
def test_a_hundred_steps_of_every_optimizer(torch, optimizer, options):
    """Each follows the slopes at its own weights; the last parameter has no gradient in every third step."""
    starts = [normal(3, 4), normal(4, seed=1), np.array(0.5)]
    mine, theirs = [Parameter(s.copy()) for s in starts], [torch.tensor(s, requires_grad=True) for s in starts]
    stepper = optimizer(mine, lr=0.02, **options)
    reference = getattr(torch.optim, optimizer.__name__)(theirs, lr=0.02, **options)
    for step in range(100):
        for p, g in zip(mine, slopes(*(p.data for p in mine))):
            p.grad = np.asarray(g)
        for p, g in zip(theirs, slopes(*(p.detach().numpy() for p in theirs))):
            p.grad = torch.tensor(g)
        if step % 3 == 2:
            mine[-1].grad = theirs[-1].grad = None
        stepper.step()
        reference.step()
        for p, q in zip(mine, theirs):
            close(p, q)
    assert all(0.01 < np.abs(p.data - s).max() < 10 for p, s in zip(mine, starts))


SCHEDULES = [
    (StepDecay(0.5, 30, 0.3), 100, lambda s, o: s.StepLR(o, 30, 0.3)),
    (ExponentialDecay(0.5, 7, 0.3), 100, lambda s, o: s.ExponentialLR(o, 0.3 ** (1 / 7))),
    (CosineDecay(0.5, 90), 91, lambda s, o: s.CosineAnnealingLR(o, 90)),
    (WarmUp(0.5, 10), 30, lambda s, o: s.LinearLR(o, 1 / 11, total_iters=10)),
    (WarmUp(CosineDecay(0.5, 40), 10), 51,
     lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 1 / 11, total_iters=10), s.CosineAnnealingLR(o, 40)], [10])),
    *[(OneCycle(0.5, n), n, lambda s, o, n=n: s.OneCycleLR(o, 0.5, total_steps=n, cycle_momentum=False))
      for n in (1, 2, 7, 100)]]


@parity
@pytest.mark.parametrize("schedule, steps, reference", SCHEDULES, ids=lambda value: str(value) if "(" in str(value) else "")
def test_every_schedule_over_its_whole_length(torch, schedule, steps, reference):
    p, q = Parameter(np.zeros(1)), torch.zeros(1, dtype=torch.float64, requires_grad=True)
    mine, theirs = optim.SGD([p], lr=schedule), torch.optim.SGD([q], lr=0.5)
    scheduler = reference(torch.optim.lr_scheduler, theirs)
    p.grad, q.grad = np.ones(1), torch.ones(1, dtype=torch.float64)
    for step in range(steps):
        assert mine.current_lr == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        mine.step()
        theirs.step()
        if step < steps - 1:  # OneCycleLR refuses to be asked for more
            scheduler.step()
    close(p, q)


@parity
@pytest.mark.parametrize("max_norm", [0.1, 3.0, 100.0])
def test_clip_grad_norm(torch, max_norm):
    gradients = [normal(3, 4), normal(4, seed=1), np.array(0.5)]
    mine, theirs = [Parameter(g) for g in gradients], [torch.tensor(g, requires_grad=True) for g in gradients]
    for p, q, g in zip(mine, theirs, gradients):
        p.grad, q.grad = g, torch.tensor(g)
    norm = optim.clip_grad_norm(mine, max_norm)
    assert norm == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs, max_norm).item(), rel=1e-12)
    for p, q in zip(mine, theirs):
        close(p.grad, q.grad)  # PyTorch divides by norm + 1e-6


# --- Activations and losses ------------------------------------------------------------------------------------

THEIR_ACTIVATIONS = {
    F.relu: lambda t, x: t.relu(x), F.leaky_relu: lambda t, x: t.nn.functional.leaky_relu(x),
    F.sigmoid: lambda t, x: t.sigmoid(x), F.tanh: lambda t, x: t.tanh(x), F.softplus: lambda t, x: t.nn.functional.softplus(x),
    F.gelu: lambda t, x: t.nn.functional.gelu(x, approximate="tanh"), F.softmax: lambda t, x: t.softmax(x, -1),
    F.log_softmax: lambda t, x: t.log_softmax(x, -1), F.linear_activation: lambda t, x: x * 1}


@parity
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(torch, name):
    """Value and gradient, from 0 to ±300."""
    values = np.stack([np.zeros(6), [-300, -20, -1e-3, 1e-3, 20, 300], *(2 * normal(6, 6))])
    x, their_x = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, their_y = ACTIVATIONS[name](x), THEIR_ACTIVATIONS[ACTIVATIONS[name]](torch, their_x)
    close(y, their_y)
    y.backward(normal(8, 6, seed=1))
    their_y.backward(torch.tensor(normal(8, 6, seed=1)))
    close(x.grad, their_x.grad)


LOGITS, SIGNS = 20 * normal(9, 4), np.where(normal(9, 4) > 0, 1.0, 0.0)
PROBABILITIES, SOFT = F.softmax(normal(9, 4, seed=2)), F.softmax(normal(9, 4, seed=1))
LABELS = [np.arange(9) % 4, np.eye(4)[np.arange(9) % 4], SOFT]  # class numbers, one-hot rows, class probabilities


def nll(t, p, y):
    return t.nn.functional.nll_loss(p.log(), y) if y.ndim == 1 else -(y * p.log()).sum(1).mean()


# The loss, what it is given (the logits x, unless it says otherwise), PyTorch's, x and the labels.
LOSS_CASES = [
    *[(F.cross_entropy, lambda x: x, lambda t, x, y: t.nn.functional.cross_entropy(x, y), LOGITS, y) for y in LABELS],
    *[(F.categorical_crossentropy, lambda p: p, nll, PROBABILITIES, y) for y in LABELS],
    *[(F.categorical_crossentropy, F.softmax, lambda t, x, y: t.nn.functional.cross_entropy(x, y), LOGITS, y) for y in LABELS],
    *[(F.binary_cross_entropy, lambda p: p, lambda t, p, y: t.nn.functional.binary_cross_entropy(p, y), PROBABILITIES, y)
      for y in (SIGNS, SOFT)],
    *[(loss, before, lambda t, x, y: t.nn.functional.binary_cross_entropy_with_logits(x, y), LOGITS, y)
      for loss, before in ((F.binary_cross_entropy, F.sigmoid), (F.binary_cross_entropy_with_logits, lambda x: x))
      for y in (SIGNS, SOFT)],
    (F.mse_loss, lambda x: x, lambda t, x, y: t.nn.functional.mse_loss(x, y), LOGITS, SOFT)]


@parity
@pytest.mark.parametrize("case", LOSS_CASES, ids=lambda case: case[0].__name__)
def test_every_loss(torch, case):
    loss, before, reference, values, labels = case
    x, their_x = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    value, their_value = loss(before(x), labels), reference(torch, their_x, torch.tensor(labels))
    close(value, their_value)
    value.backward()
    their_value.backward()
    close(x.grad, their_x.grad, atol=1e-9)


def test_every_optimizer_schedule_activation_and_loss_is_compared():
    """Runs without PyTorch."""
    assert {optimizer for optimizer, _ in OPTIMIZERS} == set(optim.OPTIMIZERS.values())
    assert {type(schedule) for schedule, _, _ in SCHEDULES} == {*Schedule.__subclasses__(), StepDecay}
    assert THEIR_ACTIVATIONS.keys() == set(ACTIVATIONS.values())
    assert {case[0] for case in LOSS_CASES} == set(LOSSES.values())


# --- BatchNorm and a whole network -----------------------------------------------------------------------------

@parity
@pytest.mark.parametrize("shape", [(16, 3), (5, 3, 4, 2)], ids=["2-D", "4-D"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.3, "eps": 1e-2}, {"momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
def test_batch_norm(torch, shape, settings, fused):
    """Outputs, gradients in x, gamma and beta, and running statistics over ten batches; then in evaluation mode."""
    layer = BatchNorm(**settings, fused=fused, input_shape=shape[1:])
    layer.create_parameters()
    layer.astype(np.float64)
    kind = torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d
    reference = kind(3, **settings, dtype=torch.float64)
    weights = [(layer.gamma, reference.weight), (layer.beta, reference.bias)] if layer.affine else []
    for seed, (p, q) in enumerate(weights):
        p.data = normal(3, seed=100 + seed)
        q.data = torch.tensor(p.data)
    for step in range(12):
        if step == 10:
            layer.eval()
            reference.eval()
        values, g = 3 * normal(*shape, seed=step) + step, normal(*shape, seed=50 + step)
        x, their_x = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
        y, their_y = layer(x), reference(their_x)
        layer.zero_grad()
        reference.zero_grad()
        y.backward(g)
        their_y.backward(torch.tensor(g))
        pairs = [(y, their_y), (x.grad, their_x.grad), *[(p.grad, q.grad) for p, q in weights],
                 (layer.running_mean, reference.running_mean), (layer.running_var, reference.running_var)]
        for ours, theirs in pairs:
            close(ours, theirs)


@parity
def test_a_network_trained_for_a_hundred_steps(torch):
    """Dense, BatchNorm, cross-entropy and Adam together: all weights and running statistics, and the losses on the way."""
    x, y = normal(96, 5), np.random.default_rng(1).integers(0, 4, 96)
    model = Sequential([Dense(8), BatchNorm(), Activation("relu"), Dense(6), BatchNorm(), Activation("tanh"), Dense(4)], seed=0)
    model.build(5).astype(np.float64)
    nn = torch.nn
    reference = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Tanh(),
                              nn.Linear(6, 4)).double()
    # PyTorch keeps a kernel as (units, inputs).
    kernels = [(layer.kernel, theirs.weight) for layer, theirs in zip(model.layers, reference) if isinstance(layer, Dense)]
    for kernel, weight in kernels:
        weight.data = torch.tensor(kernel.data.T.copy())
    for layer in reference[0], reference[3], reference[6]:
        nn.init.zeros_(layer.bias)
    mine, theirs = optim.Adam(model.parameters(), lr=0.01), torch.optim.Adam(reference.parameters(), lr=0.01)
    losses = []
    for step in range(100):
        batch = np.random.default_rng(step).choice(96, 32, replace=False)
        loss = F.cross_entropy(model(x[batch]), y[batch])
        their_loss = nn.functional.cross_entropy(reference(torch.tensor(x[batch])), torch.tensor(y[batch]))
        close(loss, their_loss)
        losses.append(loss.item())
        for optimizer, value in (mine, loss), (theirs, their_loss):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    for kernel, weight in kernels:
        close(kernel, weight.T)
    for layer, theirs in zip(model.layers, reference):
        names = {Dense: {"bias": "bias"}, BatchNorm: {"gamma": "weight", "beta": "bias", "running_mean": "running_mean",
                                                      "running_var": "running_var"}}
        for name, their_name in names.get(type(layer), {}).items():
            close(getattr(layer, name), getattr(theirs, their_name))
    close(model.eval()(x), reference.eval()(torch.tensor(x)))
