"""Agreement with PyTorch to 1e-6 in float64, and with Keras where PyTorch has no such thing: `pip install -e ".[parity]"`, then `pytest -m parity`.

The other tests hold the same facts without PyTorch, by invariants and published numbers.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from minidl import (
    BatchNorm,
    Dense,
    History,
    Parameter,
    ReduceLROnPlateau,
    Sequential,
    Tensor,
    callbacks,
    ops,
    optim,
)
from minidl import functional as F
from minidl.layers import ACTIVATIONS, Activation
from minidl.metrics import binary_accuracy, top_k_accuracy
from minidl.schedules import (
    CosineDecay,
    CosineRestarts,
    ExponentialDecay,
    MultiStepDecay,
    OneCycle,
    PolynomialDecay,
    Schedule,
    StepDecay,
    WarmUp,
)
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
    (optim.RMSprop, {"weight_decay": 0.1}), (optim.Adam, {"weight_decay": 0.1}),
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


@parity
@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adam", "AdamW"])
def test_groups_of_parameters(torch, name):
    """Decay for the matrix alone, another rate for the rest."""
    starts = [normal(3, 4), normal(4, seed=1), np.array(0.5)]
    mine, theirs = [Parameter(s.copy()) for s in starts], [torch.tensor(s, requires_grad=True) for s in starts]

    def made(kind, parameters):
        return kind([{"params": parameters[:1]}, {"params": parameters[1:], "weight_decay": 0.0, "lr": 0.005}], lr=0.02,
                    weight_decay=0.1)

    stepper, reference = made(getattr(optim, name), mine), made(getattr(torch.optim, name), theirs)
    for step in range(50):
        for p, q, g in zip(mine, theirs, slopes(*(p.data for p in mine))):
            p.grad, q.grad = np.asarray(g), torch.tensor(np.asarray(g))
        stepper.step()
        reference.step()
        for p, q in zip(mine, theirs):
            close(p, q)


@parity
def test_the_rate_falls_on_a_plateau_as_that_of_pytorch_one_epoch_later(torch):
    """PyTorch's patience of 2 epochs is Keras' and ours of 3."""
    scores = np.random.default_rng(0).uniform(0.4, 0.6, 60) + np.linspace(1, 0, 60)
    q = torch.zeros(1, requires_grad=True)
    theirs = torch.optim.SGD([q], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, factor=0.5, patience=2, threshold=0.05, threshold_mode="abs")
    callback = ReduceLROnPlateau(factor=0.5, patience=3, min_delta=0.05)
    callback.model, callback.optimizer = SimpleNamespace(history=History()), optim.SGD([Parameter(np.zeros(1))], lr=0.1)
    callback.on_train_begin()
    for epoch, score in enumerate(scores):
        callback.on_epoch_end(epoch, {"val_loss": score})
        scheduler.step(score)
        assert callback.optimizer.lr == pytest.approx(theirs.param_groups[0]["lr"])
    assert callback.optimizer.lr < 0.03


SCHEDULES = [
    (StepDecay(0.5, 30, 0.3), 100, lambda s, o: s.StepLR(o, 30, 0.3)),
    (ExponentialDecay(0.5, 7, 0.3), 100, lambda s, o: s.ExponentialLR(o, 0.3 ** (1 / 7))),
    (CosineDecay(0.5, 90), 91, lambda s, o: s.CosineAnnealingLR(o, 90)),
    (WarmUp(0.5, 10), 30, lambda s, o: s.LinearLR(o, 1 / 11, total_iters=10)),
    (WarmUp(CosineDecay(0.5, 40), 10), 51,
     lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 1 / 11, total_iters=10), s.CosineAnnealingLR(o, 40)], [10])),
    (MultiStepDecay(0.5, (10, 25), 0.3), 40, lambda s, o: s.MultiStepLR(o, [10, 25], 0.3)),
    (PolynomialDecay(0.5, 30), 40, lambda s, o: s.PolynomialLR(o, 30)),
    (PolynomialDecay(0.5, 30, 2.5), 40, lambda s, o: s.PolynomialLR(o, 30, 2.5)),
    *[(CosineRestarts(0.5, 10, factor), 75, lambda s, o, k=factor: s.CosineAnnealingWarmRestarts(o, 10, k)) for factor in (1, 2)],
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
    F.gelu: lambda t, x: t.nn.functional.gelu(x, approximate="tanh"),
    F.gelu_exact: lambda t, x: t.nn.functional.gelu(x), F.elu: lambda t, x: t.nn.functional.elu(x),
    F.silu: lambda t, x: t.nn.functional.silu(x), F.softmax: lambda t, x: t.softmax(x, -1),
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
    (F.mse_loss, lambda x: x, lambda t, x, y: t.nn.functional.mse_loss(x, y), LOGITS, SOFT),
    (F.l1_loss, lambda x: x, lambda t, x, y: t.nn.functional.l1_loss(x, y), LOGITS, SOFT),
    (F.huber_loss, lambda x: x, lambda t, x, y: t.nn.functional.huber_loss(x, y), LOGITS, SOFT)]


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


OPTIONS = [  # the loss, its options here and in PyTorch, labels
    *[("cross_entropy", o, y) for y in LABELS for o in ({"label_smoothing": 0.1}, {"reduction": "sum"}, {"reduction": "none"},
                                                         {"reduction": "none", "label_smoothing": 0.3})],
    *[("cross_entropy", {"ignore_index": 2, **o}, LABELS[0]) for o in (
        {}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.2})],
    *[(name, {"reduction": reduction}, SOFT) for reduction in ("sum", "none")
      for name in ("mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy_with_logits")],
    *[("huber_loss", {"delta": delta}, SOFT) for delta in (0.3, 5.0)]]


@parity
@pytest.mark.parametrize("name, options, labels", OPTIONS, ids=lambda value: str(value) if not hasattr(value, "shape") else "")
def test_every_option_of_a_loss(torch, name, options, labels):
    x, their_x = Tensor(LOGITS, requires_grad=True), torch.tensor(LOGITS, requires_grad=True)
    value, their_value = getattr(F, name)(x, labels, **options), getattr(torch.nn.functional, name)(
        their_x, torch.tensor(labels), **options)
    close(value, their_value)
    u = normal(*value.shape, seed=3)
    value.backward(u)
    their_value.backward(torch.tensor(u))
    close(x.grad, their_x.grad, atol=1e-9)


OPS = {  # here and in PyTorch, what they are given
    "square": (F.square, lambda t, x: t.square(x), [normal(3, 4)]), "sin": (F.sin, lambda t, x: t.sin(x), [normal(3, 4)]),
    "cos": (F.cos, lambda t, x: t.cos(x), [normal(3, 4)]), "log1p": (F.log1p, lambda t, x: t.log1p(x), [normal(3, 4) ** 2]),
    "erf": (F.erf, lambda t, x: t.erf(x), [normal(3, 4)]),
    "squeeze": (lambda x: F.squeeze(x, 1), lambda t, x: t.squeeze(x, 1), [normal(3, 1, 4)]),
    "expand_dims": (lambda x: F.expand_dims(x, 1), lambda t, x: t.unsqueeze(x, 1), [normal(3, 4)]),
    "split": (lambda x: F.split(x, 3)[1], lambda t, x: t.chunk(x, 3)[1], [normal(6, 4)]),
    "split at places": (lambda x: F.split(x, [1, 4])[1], lambda t, x: t.tensor_split(x, (1, 4))[1], [normal(6, 4)]),
    "std": (lambda x: F.std(x, 1), lambda t, x: t.std(x, 1, correction=0), [normal(3, 4)]),
    "prod": (lambda x: F.prod(x, 1), lambda t, x: t.prod(x, 1), [np.where(normal(3, 4) > 1, 0, normal(3, 4))]),
    "cumsum": (lambda x: F.cumsum(x, 1), lambda t, x: t.cumsum(x, 1), [normal(3, 4, 2)]),
    "norm": (lambda x: F.norm(x, (0, 2)), lambda t, x: t.linalg.vector_norm(x, dim=(0, 2)), [normal(3, 4, 2)]),
    "norm of 0": (lambda x: F.norm(x, 1), lambda t, x: t.linalg.vector_norm(x, dim=1), [np.diag([0.0, 2, 3])]),
    "outer": (F.outer, lambda t, a, b: t.outer(a, b), [normal(3), normal(4)]),
    "einsum": (lambda a, b: F.einsum("bhd,bkd->bhk", a, b), lambda t, a, b: t.einsum("bhd,bkd->bhk", a, b),
               [normal(2, 3, 4), normal(2, 5, 4)]),
    "einsum of three": (lambda *xs: F.einsum("ij,jk,l->ki", *xs), lambda t, *xs: t.einsum("ij,jk,l->ki", *xs),
                        [normal(2, 3), normal(3, 4), normal(5)]),
    "pad": (lambda x: F.pad(x, ((1, 2), (3, 0)), 0.5), lambda t, x: t.nn.functional.pad(x, (3, 0, 1, 2), value=0.5), [normal(3, 4)]),
    "tile": (lambda x: F.tile(x, (2, 1, 3)), lambda t, x: t.tile(x, (2, 1, 3)), [normal(3, 4)]),
    "logsumexp": (lambda x: F.logsumexp(x, (0, 2)), lambda t, x: t.logsumexp(x, (0, 2)), [20 * normal(3, 4, 2)]),
    "softmax": (lambda x: F.softmax(x, (1, 2)), lambda t, x: t.softmax(x.reshape(3, 8), 1).reshape(3, 4, 2), [20 * normal(3, 4, 2)]),
    "unary +": (lambda x: +x * x, lambda t, x: +x * x, [normal(3)]),
    "elu alpha": (lambda x: F.elu(x, 0.3), lambda t, x: t.nn.functional.elu(x, 0.3), [normal(3, 4)])}


@parity
@pytest.mark.parametrize("name", OPS)
def test_the_ops_of_ones_own_programs(torch, name):
    function, reference, values = OPS[name]
    xs, theirs = [Tensor(x, requires_grad=True) for x in values], [torch.tensor(x, requires_grad=True) for x in values]
    y, their_y = function(*xs), reference(torch, *theirs)
    close(y, their_y)
    u = normal(*y.shape, seed=3)
    y.backward(u)
    their_y.backward(torch.tensor(u))
    for x, their_x in zip(xs, theirs):
        close(x.grad, their_x.grad)


def test_every_optimizer_schedule_activation_and_loss_is_compared():
    """Runs without PyTorch."""
    assert {optimizer for optimizer, _ in OPTIMIZERS} == set(optim.OPTIMIZERS.values())
    assert {type(schedule) for schedule, _, _ in SCHEDULES} == {*Schedule.__subclasses__(), StepDecay}
    assert THEIR_ACTIVATIONS.keys() == set(ACTIVATIONS.values())
    assert {case[0] for case in LOSS_CASES} == set(LOSSES.values())
    assert {name.split(" ")[0] for name in OPS} >= set(ops.__all__) - {"argmax"}


# --- BatchNorm and a whole network -----------------------------------------------------------------------------

@parity
@pytest.mark.parametrize("shape", [(16, 3), (5, 3, 7), (5, 3, 4, 2)], ids=["2-D", "3-D", "4-D"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.3, "eps": 1e-2}, {"momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "composed"])
def test_batch_norm(torch, shape, settings, fused):
    """Outputs, gradients in x, gamma and beta, and running statistics over ten batches; then in evaluation mode."""
    layer = BatchNorm(**settings, fused=fused, input_shape=shape[1:])
    layer.create_parameters()
    layer.astype(np.float64)
    kind = torch.nn.BatchNorm1d if len(shape) < 4 else torch.nn.BatchNorm2d
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
def test_dense_along_the_last_axis(torch):
    layer, reference = Dense(4, input_shape=3, rng=0).build(3).astype(np.float64), torch.nn.Linear(3, 4).double()
    reference.weight.data, reference.bias.data = torch.tensor(layer.kernel.data.T.copy()), torch.tensor(layer.bias.data)
    x, their_x = Tensor(normal(5, 6, 3), requires_grad=True), torch.tensor(normal(5, 6, 3), requires_grad=True)
    y, their_y = layer(x), reference(their_x)
    y.backward(normal(5, 6, 4, seed=1))
    their_y.backward(torch.tensor(normal(5, 6, 4, seed=1)))
    for ours, theirs in ((y, their_y), (x.grad, their_x.grad), (layer.kernel.grad.T, reference.weight.grad),
                         (layer.bias.grad, reference.bias.grad)):
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


# --- Keras: what PyTorch has not ------------------------------------------------------------------------------

@pytest.fixture
def keras(torch, monkeypatch):
    """On PyTorch, which is there already."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras")


SCORES = np.random.default_rng(0).uniform(0, 1, (30, 25)) + np.linspace(0.6, 0, 25)


def rates_and_end(callback, model, optimizer, scores):
    """The rate of each epoch until the callback ends the run."""
    rates, model.stop_training = [], False
    callback.on_train_begin()
    for epoch, score in enumerate(scores):
        rates.append(float(optimizer.learning_rate))
        callback.on_epoch_end(epoch, {"val_loss": float(score)})
        if model.stop_training:
            break
    return rates, callback.best


@parity
@pytest.mark.parametrize("name, options", [
    *[("ReduceLROnPlateau", {"factor": 0.5, "patience": p, "cooldown": c, "min_delta": d, "min_lr": m})
      for p, c, d, m in ((0, 0, 0, 0), (1, 2, 0, 0.1), (2, 0, 0.05, 0), (3, 3, 0.05, 0.1))],
    *[("EarlyStopping", {"patience": p, "min_delta": d, "baseline": b, "start_from_epoch": s})
      for p, d, b, s in ((0, 0, None, 3), (2, 0.05, 0.5, 0), (3, 0, 0.2, 2), (4, 0.05, None, 5))]], ids=str)
def test_callbacks_that_watch_a_number(keras, name, options):
    for scores in SCORES:
        theirs, reference = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]), getattr(keras.callbacks, name)(**options)
        theirs.compile(keras.optimizers.SGD(1.0), "mse")
        reference.set_model(theirs)
        callback, model = getattr(callbacks, name)(**options), Sequential([Dense(1, input_shape=1)]).compile(optim.SGD(lr=1.0), "mse")
        callback.model, callback.optimizer, model.history = model, model.optimizer, History()
        rates, best = rates_and_end(callback, model, model.optimizer, scores)
        their_rates, their_best = rates_and_end(reference, theirs, theirs.optimizer, scores)
        assert rates == pytest.approx(their_rates) and best == pytest.approx(their_best)


@parity
@pytest.mark.parametrize("clipping", [{}, {"clipnorm": 0.1}, {"clipvalue": 0.05}, {"global_clipnorm": 0.1}], ids=str)
@pytest.mark.parametrize("options", [{}, {"sample_weight": np.linspace(0, 3, 40)},
                                     {"sample_weight": np.linspace(0, 3, 40), "validation_split": 0.25}], ids=["", "weights", "split"])
def test_fit_with_weights_and_clipping(keras, clipping, options):
    x, y = normal(40, 5).astype(np.float32), np.random.default_rng(1).integers(0, 3, 40)
    model = Sequential([Dense(3, input_shape=5)], seed=0).compile(optim.SGD(lr=0.5, **clipping), metrics=["accuracy"])
    theirs = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)])
    theirs.layers[0].set_weights(model[0].get_weights())
    theirs.compile(keras.optimizers.SGD(0.5, **clipping), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                   metrics=["accuracy"])
    history, reference = (m.fit(x, y, batch_size=10, epochs=4, shuffle=False, verbose=0, **options) for m in (model, theirs))
    for name in set(history) - {"val_loss"}:  # in Keras the weights of the held-out part count there
        assert history[name] == pytest.approx(reference.history[name], rel=1e-5)
    for ours, expected in zip(model[0].get_weights(), theirs.layers[0].get_weights()):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@parity
def test_losses_and_metrics_in_keras_words(keras):
    def number(value):
        return pytest.approx(float(keras.ops.convert_to_numpy(value)), rel=1e-5)

    rows, p, zeros = np.eye(4)[LABELS[0]], PROBABILITIES, SIGNS
    assert F.categorical_crossentropy(p, rows, label_smoothing=0.1) == number(
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1)(rows, p))
    assert F.cross_entropy(LOGITS, LABELS[0], ignore_index=2) == number(
        keras.losses.SparseCategoricalCrossentropy(ignore_class=2, from_logits=True)(LABELS[0], LOGITS))
    for metric, ours, y in ((keras.metrics.SparseTopKCategoricalAccuracy(k=2), top_k_accuracy(2), LABELS[0]),
                            (keras.metrics.TopKCategoricalAccuracy(k=3), top_k_accuracy(3), rows),
                            (keras.metrics.BinaryAccuracy(), binary_accuracy, zeros)):
        metric.update_state(y, p)
        assert ours(p, y) == number(metric.result())
