"""The same model in PyTorch and Keras: outputs, gradients, running statistics. Tests marked parity need those packages."""

import os
import sys

import numpy as np
import pytest

import minidl.functional as F
from minidl import (
    Activation,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    LayerNorm,
    MaxPool2D,
    Module,
    Sequential,
    Tensor,
    interop,
    optim,
)
from minidl.layers import ACTIVATIONS

MODELS = {  # layers, shape of one input
    **{name: (lambda name=name: [Dense(6), Activation(name), Dense(3, name)], (4,)) for name in ACTIVATIONS},
    "batch norm": (lambda: [Dense(6, use_bias=False), BatchNorm(0.3, 1e-2), Activation("tanh"), BatchNorm(affine=False)], (4,)),
    "cumulative average": (lambda: [BatchNorm(momentum=None), Dense(3)], (4,)),
    "layer norm": (lambda: [Dense(6), LayerNorm(1e-3), Activation("relu"), LayerNorm(affine=False), Dense(3)], (4,)),
    "images": (lambda: [BatchNorm(), Activation("softmax"), Flatten(), Dense(6), BatchNorm(), Dense(3)], (2, 3, 4)),
    "convolutions": (lambda: [Conv2D(4, 3, padding="same"), BatchNorm(), Activation("relu"), MaxPool2D(2),
                              Conv2D(3, 3, 2, 1, "tanh", use_bias=False), Conv2D(5, 2), AveragePool2D(2),
                              GlobalAveragePool2D(), Dense(3)], (2, 12, 13)),
    "nested": (lambda: [Sequential([Dense(6, "gelu")]), Sequential([BatchNorm(), Sequential([Dense(3)])]), Dropout(0)], (4,)),
    "a layer used twice": (lambda: 2 * [Dense(4, "tanh")], (4,))}


def trained(name, dtype="float32"):
    """(model, batch): a model with no weight and no running statistic left at its initial value."""
    layers, shape = MODELS[name]
    rng = np.random.default_rng(0)
    model = Sequential(layers()).build(shape).astype(dtype)
    for p in model.parameters():
        p.data = p.data + rng.standard_normal(p.shape).astype(dtype)
    for _ in range(3):
        model(rng.normal(1, 2, (8, *shape)).astype(dtype))
    return model, rng.standard_normal((8, *shape)).astype(dtype)


def assert_close(actual, expected, tolerance):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)
    assert np.asarray(actual).dtype == expected.dtype


def numbers(tensor):
    return turned(tensor.numpy(force=True))


def turned(array):
    """From PyTorch's order of axes to minidl's."""
    return array.T if array.ndim < 4 else array.transpose(2, 3, 1, 0)


# --- PyTorch ----------------------------------------------------------------------------------------------

@pytest.mark.parity
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("name", MODELS)
def test_torch_and_back(name, dtype, tolerance, training):
    """Outputs, gradients (of the input too) and statistics; then from_torch gives the model we came from."""
    torch = pytest.importorskip("torch")
    model, x = trained(name, dtype)
    there = interop.to_torch(model.train(training))
    back = interop.from_torch(there)
    assert all(module.training == training for module in there.modules())
    assert all(module.training == training for module in back.modules())

    x, xt = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, yt = model(x), there(xt)
    weights = np.random.default_rng(1).standard_normal(y.shape).astype(dtype)
    F.sum(y * weights).backward()
    (yt * torch.tensor(weights)).sum().backward()
    assert_close(yt.numpy(force=True), y.data, tolerance)
    assert_close(xt.grad.numpy(), x.grad, tolerance)
    assert len(model.parameters()) == len(list(there.parameters()))
    for p, q in zip(model.parameters(), there.parameters()):
        assert_close(numbers(q), p.data, 0)
        assert_close(numbers(q.grad), p.grad, 10 * tolerance)  # a sum over the batch of numbers equal to the tolerance

    assert_close(back(x).data, y.data, 0)
    assert len(model.buffers()) == len(back.buffers()) == len(list(there.buffers()))
    for ours, returned, theirs in zip(model.buffers(), back.buffers(), there.buffers()):
        assert_close(returned, ours, 0)
        assert_close(numbers(theirs), ours, tolerance)
    updates = [int(layer.updates) for layer in model.modules() if isinstance(layer, BatchNorm)]
    assert updates == [3 + training] * len(updates)


@pytest.mark.parity
def test_training_goes_on_in_torch_as_it_would_here():
    """Fifty steps of SGD with momentum: the same losses, and the same outputs in evaluation mode afterwards."""
    torch = pytest.importorskip("torch")
    model, x = trained("batch norm", "float64")
    there, labels = interop.to_torch(model), np.arange(8) % 6
    ours = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    theirs = torch.optim.SGD(there.parameters(), lr=0.05, momentum=0.9)
    for _ in range(50):
        model.zero_grad()
        theirs.zero_grad()
        loss = F.cross_entropy(model(Tensor(x)), labels)
        loss_there = torch.nn.functional.cross_entropy(there(torch.tensor(x)), torch.tensor(labels))
        loss.backward()
        loss_there.backward()
        ours.step()
        theirs.step()
        assert loss_there.item() == pytest.approx(float(loss.data), rel=1e-6)
    assert_close(numbers(there.eval()(torch.tensor(x))).T, model.predict(x), 1e-6)


@pytest.mark.parity
def test_what_else_is_carried_to_torch_and_back():
    torch = pytest.importorskip("torch")
    model = Sequential([Dense(3, input_shape=4), BatchNorm(0.2, 1e-3), Dropout(0.25)])
    model.layers[0].kernel.requires_grad = False
    model.layers[1].eval()  # one layer frozen in evaluation mode while the others train
    state = torch.get_rng_state()
    there = interop.to_torch(model)
    assert torch.equal(state, torch.get_rng_state()), "to_torch drew from PyTorch's global generator"
    dense, norm, dropout = there
    assert (norm.eps, norm.momentum, dropout.p) == (1e-3, 0.2, 0.25)
    assert [p.requires_grad for p in there.parameters()] == [False, True, True, True]
    assert [m.training for m in there.modules()] == [True, True, False, True]
    back = interop.from_torch(there)
    assert [(p.requires_grad, p.shape) for p in back.parameters()] == [(p.requires_grad, p.shape) for p in model.parameters()]
    assert [m.training for m in back.modules()] == [True, True, False, True]
    assert (back.layers[1].eps, back.layers[1].momentum, back.layers[2].rate) == (1e-3, 0.2, 0.25)
    with torch.no_grad():
        dense.bias += 1  # copies: neither model sees what is done to another
    assert not model.layers[0].bias.data.any() and not back.layers[0].bias.data.any()


@pytest.mark.parity
def test_from_torch_reads_the_usual_spellings():
    torch = pytest.importorskip("torch")
    nn = torch.nn
    there = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, (3, 3), padding="same"), nn.ReLU(inplace=True), nn.Flatten(),
                          nn.Linear(24, 3), nn.Softmax(dim=1))
    x = np.random.default_rng(0).standard_normal((5, 2, 3, 4), np.float32)
    model = interop.from_torch(there)
    assert_close(numbers(there(torch.tensor(x))).T, model(x).data, 1e-5)
    assert str(interop.to_torch(model)[0]) == str(there[0])
    assert_close(interop.from_torch(nn.Tanh())(x), np.tanh(x), 1e-6)


@pytest.mark.parity
@pytest.mark.parametrize("name, options", [
    ("Bilinear", {"in1_features": 1, "in2_features": 2, "out_features": 3}), ("Softplus", {"beta": 2.0}),
    ("ELU", {"alpha": 2.0}), ("Softplus", {"threshold": 1.0}), ("LeakyReLU", {"negative_slope": 0.2}), ("Softmax", {"dim": 0}),
    ("Flatten", {"start_dim": 0}), ("BatchNorm1d", {"num_features": 3, "track_running_stats": False}),
    ("LazyLinear", {"out_features": 3}), ("Conv2d", {"in_channels": 1, "out_channels": 1, "kernel_size": (3, 2)}),
    ("Conv2d", {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "groups": 2}),
    ("Conv2d", {"in_channels": 2, "out_channels": 2, "kernel_size": 3, "padding_mode": "circular"}),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2}), ("AdaptiveAvgPool2d", {"output_size": 2})])
def test_from_torch_names_what_it_does_not_know(name, options):
    nn = pytest.importorskip("torch").nn
    module = getattr(nn, name)(**options)
    with pytest.raises(ValueError, match=f"no counterpart for {name}.*Linear.*GELU\\(approximate='tanh'\\)"):
        interop.from_torch(nn.Sequential(nn.Linear(3, 3), nn.Sequential(module)))


# --- Keras ------------------------------------------------------------------------------------------------

@pytest.mark.parity
@pytest.mark.parametrize("name", MODELS)
def test_keras(name):
    os.environ.setdefault("KERAS_BACKEND", "torch")  # Keras' own default is TensorFlow
    keras = pytest.importorskip("keras")
    model, x = trained(name)
    there = interop.to_keras(model)
    assert_close(keras.ops.convert_to_numpy(there(x, training=False)), model.predict(x), 1e-5)
    assert there.count_params() == sum(a.size for a in model.parameters() + model.buffers() if a.dtype.kind == "f")


@pytest.mark.parity
def test_what_else_is_carried_to_keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    model = Sequential([Dense(3, input_shape=4), BatchNorm(0.2, 1e-3), Dropout(0.25)])
    model.layers[0].kernel.requires_grad = False
    x = np.random.default_rng(0).standard_normal((8, 4), np.float32)
    there = interop.to_keras(model)
    assert len(there.trainable_variables) == 3
    norm, dropout = there.layers[1:]
    assert (norm.momentum, norm.epsilon, dropout.rate) == (0.8, 1e-3, 0.25)
    y, expected = norm(there.layers[0](x), training=True), model.layers[1](model.layers[0](x))
    assert_close(keras.ops.convert_to_numpy(y), expected.data, 1e-5)
    assert_close(keras.ops.convert_to_numpy(norm.moving_mean), model.layers[1].running_mean, 1e-6)


# --- Neither is there -------------------------------------------------------------------------------------

class Twice(Module):
    def forward(self, x):
        return 2 * x


class NegativeDense(Dense):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("convert, package", [
    (interop.to_torch, "torch"), (interop.from_torch, "torch"), (interop.to_keras, "keras")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(convert, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"^{convert.__name__} needs .*: pip install {package}") as error:
        convert(Sequential([Dense(3, input_shape=4)]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("convert", [interop.to_torch, interop.to_keras])
@pytest.mark.parametrize("layer, label", [
    (Twice(), "Twice"), (NegativeDense(3), "Dense"), (Activation(np.sin), "sin"), (Dense(3, activation=F.exp), "exp"),
    (Dense(3, activation=Activation("relu")), "Activation")])
def test_a_layer_without_counterpart_is_named(convert, layer, label, monkeypatch):
    """Also without the package: nobody shall install one to learn that the model cannot go there."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "keras", None)
    model = Sequential([Dense(4), Sequential([layer])])
    message = f"{convert.__name__} has no counterpart for .*{label}.*: it knows .*Dense.*write this one"
    with pytest.raises(ValueError, match=message):
        convert(model)


@pytest.mark.parametrize("convert", [interop.to_torch, interop.to_keras])
def test_a_model_without_weights_says_how_to_make_them(convert):
    with pytest.raises(RuntimeError, match=r"call model.build\(input_shape\)"):
        convert(Sequential([Dense(3), Activation("relu")]))


def test_to_keras_needs_the_shape_of_an_input():
    with pytest.raises(RuntimeError, match="build"):
        interop.to_keras(Sequential([Activation("relu"), Dropout(0.5)]))


def test_every_activation_has_counterparts():
    assert set(interop.ACTIVATIONS) == set(ACTIVATIONS.values())
