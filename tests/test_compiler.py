"""The compiler: its programs take the engine's steps and run without minidl, and what it does not know it refuses."""

import copy
import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest

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
    compiler,
    kernels,
    optim,
    training,
)
from minidl import functional as F
from minidl.layers import ACTIVATIONS
from minidl.metrics import LOSSES

# The nets of the lessons: hidden sizes, activation, batch size.
NETS = [((100, 100, 100), "sigmoid", 60), ((64,), "relu", 32), ((256, 256, 256), "relu", 128)]
# At these rates training is stable, which a comparison over 1,000 steps needs. Where the loss spikes, as Adam's does at 0.001 in the
# wide net without BatchNorm, steps make differences larger: after a few hundred the last bit of one sum decides, whoever takes them.
OPTIMIZERS = {"SGD": lambda: optim.SGD(lr=0.02), "momentum": lambda: optim.SGD(lr=0.02, momentum=0.9),
              "Adam": lambda: optim.Adam(lr=0.0003)}


def sgd():
    return optim.SGD(lr=0.1)


def network(hidden=(16,), activation="relu", batch_norm=True, classes=10):
    layers = []
    for units in hidden:
        layers += [Dense(units), *([BatchNorm()] if batch_norm else []), Activation(activation)]
    return Sequential([*layers, Dense(classes)], seed=0)


def noise(n, features=20, classes=10, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.random((n, features)).astype(dtype)
    return x, (x[:, :classes].argmax(axis=1) + rng.integers(0, 2, n)) % classes


def made(text, model, optimizer):
    """The step of a program from the weights that a model has, as a function of (x, y); and the vectors that it moves."""
    namespace, count = {}, itertools.count(1)
    exec(text, namespace)
    vectors = [np.concatenate([p.data.reshape(-1) for p in model.parameters()])]
    vectors += [np.zeros_like(vectors[0]) for _ in optimizer.kept]
    statistics = [a.copy() for part in model.modules() if isinstance(part, BatchNorm)
                  for a in (part.running_mean, part.running_var)]
    vectors += [np.concatenate(statistics)] if statistics else []
    step = namespace["program"](*vectors)
    adam = isinstance(optimizer, optim.Adam)
    return lambda x, y: step(x, y, optimizer.current_lr, *([next(count)] if adam else []))[0], vectors


def compare(model, loss, optimizer, x, y, batch, steps, passes=compiler.PASSES):
    """(losses of the program, losses of the engine), the largest difference of what they moved; model is trained."""
    text = compiler.source(model, loss, optimizer, batch, passes)
    step, vectors = made(text, model, optimizer)
    optimizer.attach(model.parameters())
    losses = []
    for i in range(steps):
        place = i * batch % (len(x) - batch + 1)
        xb, yb = x[place:place + batch], y[place:place + batch]
        losses.append((step(xb, yb), training.step(model, compiler.named_loss(loss), optimizer, xb, yb)))
    moved = [vectors[0] - np.concatenate([p.data.reshape(-1) for p in model.parameters()])]
    norms = [a for part in model.modules() if isinstance(part, BatchNorm) for a in (part.running_mean, part.running_var)]
    moved += [vectors[-1] - np.concatenate(norms)] if norms else []
    return np.array(losses).T, max(np.abs(a).max() for a in moved)


# --- The programs take the engine's steps ---------------------------------------------------------

@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_norm", (False, True))
@pytest.mark.parametrize("hidden, activation, batch", NETS, ids=lambda value: str(value))
@pytest.mark.parametrize("steps", (4, pytest.param(1000, marks=pytest.mark.thorough)))
def test_the_losses_are_those_of_the_engine(hidden, activation, batch, batch_norm, optimizer, steps):
    n, features = (5 * batch, 784) if steps > 100 else (2 * batch, 50)
    model = network(hidden, activation, batch_norm).build(features).astype(np.float64)
    x, y = noise(n, features, dtype=np.float64)
    (mine, theirs), _ = compare(model, "cross_entropy", OPTIMIZERS[optimizer](), x, y, batch, steps)
    assert len(mine) == steps and np.abs(mine - theirs).max() < 1e-5
    assert mine[-1] != mine[0], "weights move"


def test_in_float32_the_numbers_stay_float32():
    model, (x, y) = network().build(20), noise(320)
    text = compiler.source(model, "cross_entropy", optim.Adam(), 32)
    step, vectors = made(text, model, optim.Adam())
    assert step(x[:32], y[:32]).dtype == np.float32 and {v.dtype for v in vectors} == {np.dtype(np.float32)}
    (mine, theirs), moved = compare(model, "cross_entropy", optim.Adam(), x, y, 32, 20)
    assert np.allclose(mine, theirs, rtol=1e-5) and moved < 1e-3


ENDS = {"categorical_crossentropy": "softmax", "sparse_categorical_crossentropy": "softmax", "binary_crossentropy": "sigmoid",
        "binary_cross_entropy": "sigmoid"}


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"huber"}))
def test_every_loss(loss):
    model = Sequential([*network().layers, *([Activation(ENDS[loss])] if loss in ENDS else [])], seed=0).build(20)
    x, y = noise(64, dtype=np.float64)
    numbers = LOSSES[loss] in (F.cross_entropy, F.categorical_crossentropy)
    (mine, theirs), moved = compare(model.astype(np.float64), loss, optim.SGD(lr=0.1, momentum=0.9), x,
                                    y if numbers else np.eye(10)[y], 32, 5)
    assert np.abs(mine - theirs).max() < 1e-9 and moved < 1e-9


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"gelu_exact"}))
@pytest.mark.parametrize("in_dense", (False, True))
def test_every_activation_as_its_declaration_has_it(activation, in_dense):
    layers = [Dense(16), BatchNorm(), Activation(activation), Dense(8), BatchNorm(), Activation(activation), Dense(10)]
    layers = [Dense(16, activation), Dense(8, activation), Dense(10)] if in_dense else layers
    model = Sequential(layers, seed=0).build(20).astype(np.float64)
    (mine, theirs), moved = compare(model, "cross_entropy", sgd(), *noise(64, dtype=np.float64), 32, 5)
    assert np.abs(mine - theirs).max() < 1e-9 and moved < 1e-9


def test_images_flattened_layers_without_bias_and_layers_used_twice():
    x, y = noise(96, 24, dtype=np.float64)
    twice, tanh = Dense(16, use_bias=False), Activation("tanh")
    model = Sequential([Flatten(), Dense(16), tanh, twice, tanh, twice, BatchNorm(), Dense(10)], seed=0)
    (mine, theirs), moved = compare(model.build((4, 6)).astype(np.float64), "cross_entropy", optim.Adam(), x.reshape(-1, 4, 6),
                                    y, 32, 5)
    assert np.abs(mine - theirs).max() < 1e-9 and moved < 1e-9


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("passes", range(len(compiler.PASSES) + 1))
def test_after_each_pass_the_program_computes_the_same(optimizer, passes):
    model = network((16, 8)).build(20).astype(np.float64)
    (mine, theirs), moved = compare(model, "cross_entropy", OPTIMIZERS[optimizer](), *noise(64, dtype=np.float64), 32, 5,
                                    compiler.PASSES[:passes])
    assert np.abs(mine - theirs).max() < 1e-9 and moved < 1e-6  # Adam takes steps for a bias's gradient that is 0 but for rounding


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("passes", [(), compiler.PASSES], ids=["no pass", "all"])
def test_the_source_runs_without_minidl(optimizer, passes, tmp_path):
    model, optimizer = network().build(20), OPTIMIZERS[optimizer]()
    before = copy.deepcopy(model.state_dict())
    text = compiler.source(model, "cross_entropy", optimizer, 32, passes)
    assert all(np.array_equal(before[key], a) for key, a in model.state_dict().items()), "source looks on and changes nothing"
    assert optimizer.parameters is None and model[1].latest is None and model.training and not model[0].forward_hooks
    assert "minidl" not in text.replace("Written by minidl's compiler.", "")
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    printed = subprocess.run([sys.executable, "-W", "error", "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    losses = [float(line) for line in printed.stdout.split()]
    assert len(losses) == 10 and losses[-1] < losses[0]


def test_each_pass_leaves_something_out():
    model = network((16, 16)).build(20)
    texts = [compiler.source(model, "cross_entropy", sgd(), 32, compiler.PASSES[:n]) for n in range(5)]
    counts = [text[text.index("def step"):text.index("return step")].count("np.") for text in texts]
    assert counts[0] > counts[1] > counts[2] and "g_x_dense =" in texts[0] and "g_x_dense =" not in texts[1]
    assert "out=b0" not in texts[3] and "out=b0" in texts[4] and "np.subtract(parameters, gradients" in texts[4]
    assert texts[4] == compiler.source(model, "cross_entropy", sgd(), 32), "two compilations write the same text"


def test_nothing_moves_when_the_loss_is_not_finite():
    model, (x, y) = network(batch_norm=False).build(20), noise(32)
    step, (parameters,) = made(compiler.source(model, "cross_entropy", sgd(), 32), model, sgd())
    before = parameters.copy()
    with np.errstate(invalid="ignore"):
        assert np.isnan(step(x * np.float32(np.nan), y)) and np.array_equal(before, parameters)


def test_the_name_of_a_layer_is_no_code():
    """A model comes from a file, perhaps, and what stands in its names must not be executed."""
    model = network().build(20)
    model[0].name, model[1].name, model[3].name = "1 a\nraise SystemExit  # \\", 't"""', "gradients"
    (mine, theirs), _ = compare(model, "cross_entropy", optim.Adam(), *noise(64), 32, 3)
    assert np.allclose(mine, theirs, rtol=1e-5)


# --- What the compiler does not know --------------------------------------------------------------

class Doubled(Dense):
    """A layer that looks like Dense to whoever looks at its name only."""

    def forward(self, x):
        return 2 * super().forward(x)


Doubled.__name__ = "Dense"


class Halved(optim.SGD):
    """An optimizer that does not do what its name says."""

    def update(self, p, g, state, t, lr):
        super().update(p, g, state, t, lr / 2)


Halved.__name__ = "SGD"


class Branches(Sequential):
    """A model whose next step may be another one."""

    def forward(self, x):
        return super().forward(x) if float(x.data[0, 0]) < 2 else x


def images(*layers):
    return lambda: Sequential([*layers, Flatten(), Dense(10)], seed=0).build((2, 8, 8))


def rows(*layers):
    return lambda: Sequential([*layers, Dense(10)], seed=0).build(20)


def changed(change):
    def build():
        model = network().build(20)
        change(model)
        return model
    return build


LAYERS = {
    "Dropout": (rows(Dropout(0.5)), "of a kind"),
    "LayerNorm": (rows(LayerNorm()), "of a kind"),
    "Conv2D": (images(Conv2D(4, 3)), "of a kind"),
    "MaxPool2D": (images(MaxPool2D(2)), "of a kind"),
    "AveragePool2D": (images(AveragePool2D(2)), "of a kind"),
    "GlobalAveragePool2D": (lambda: Sequential([GlobalAveragePool2D(), Dense(10)]).build((2, 8, 8)), "of a kind"),
    "nested": (rows(Sequential([Dense(8)])), "of a kind"),
    "own layer": (rows(Doubled(8)), "of a kind"),
    "own model": (lambda: Branches([Dense(10)]).build(20), "of a kind"),
    "own forward": (changed(lambda model: vars(model[0]).update(forward=lambda x: x)), "of a kind"),
    "own function": (rows(Dense(16), Activation(lambda x: x * x)), "may branch"),
    "own function in Dense": (rows(Dense(16, lambda x: x * x)), "may branch"),
    "gelu_exact": (rows(Dense(16, "gelu_exact")), "does not know the function"),
    "BatchNorm of (n, channels, length)": (
        lambda: Sequential([BatchNorm(), Flatten(), Dense(10)]).build((4, 6)), r"BatchNorm\(4\) has inputs of 3 axes"),
    "BatchNorm of images": (images(BatchNorm()), r"BatchNorm\(2\) has inputs of 4 axes"),
    "Dense of three axes": (lambda: Sequential([Dense(5), Flatten(), Dense(10)]).build((4, 6)), r"Dense\(6 -> 5\) has .* 3 axes"),
    "ghost batches": (rows(Dense(16), BatchNorm(ghost_batch_size=8)), "ghost_batch_size=8"),
    "averages": (rows(Dense(16), BatchNorm(momentum=None)), "averages over all batches"),
    "not fused": (rows(Dense(16), BatchNorm(fused=False)), "fused=False"),
    "not affine": (rows(Dense(16), BatchNorm(affine=False)), "affine=False"),
    "frozen statistics": (changed(lambda model: setattr(model[1], "frozen_statistics", True)), "frozen_statistics=True"),
    "evaluation": (changed(lambda model: model.eval()), "training=False"),
    "BatchNorm in evaluation": (changed(lambda model: model[1].eval()), "training=False"),
    "frozen layer": (changed(lambda model: setattr(model[0], "trainable", False)), "frozen"),
    "forward hook": (changed(lambda model: model[0].register_forward_hook(lambda *_: None)), "has hooks"),
    "forward hook of the model": (changed(lambda model: model.register_forward_hook(lambda *_: None)), "has hooks"),
    "forward pre-hook": (changed(lambda model: model[0].register_forward_pre_hook(lambda *_: None)), "has hooks"),
    "pre-hook of the model": (changed(lambda model: model.register_forward_pre_hook(lambda *_: None)), "has hooks"),
    "float16": (changed(lambda model: model.astype(np.float16)), "all float32 or all float64, and are float16"),
    "two dtypes": (changed(lambda model: model[0].astype(np.float64)), "and are float32 and float64"),
    "no parameters": (lambda: Sequential([Activation("relu")]).build(20), "and are none"),
}


def refused(words, model, loss="cross_entropy", optimizer=None):
    """Check that source says so in one sentence and leaves everything as it was."""
    hooks = [(part.forward_hooks, part.forward_pre_hooks) for part in model.modules()]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(kernels.Inexpressible, match=words) as caught:
        compiler.source(model, loss, optimizer or sgd(), 32)
    assert "\n" not in str(caught.value) and ". " not in str(caught.value) and isinstance(caught.value, ValueError)
    assert all(np.array_equal(before[key], a) for key, a in model.state_dict().items())
    assert hooks == [(part.forward_hooks, part.forward_pre_hooks) for part in model.modules()]


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_the_compiler_does_not_know(name):
    build, words = LAYERS[name]
    refused(words, build())


def own_loss(outputs, y):
    return F.cross_entropy(outputs, y) if len(y) > 3 else outputs.sum()


@pytest.mark.parametrize("loss", [own_loss, functools.partial(F.cross_entropy, label_smoothing=0.1),
                                  functools.partial(F.categorical_crossentropy, label_smoothing=0.1),
                                  functools.partial(F.cross_entropy, reduction="sum")])
def test_losses_of_ones_own_and_with_options(loss):
    refused("may branch", network().build(20), loss)


def test_losses_that_compare_arrays():
    refused("an array that is not in the graph", network().build(20), "huber")
    inner = Sequential([Dense(10, "softmax"), Flatten()], seed=0).build(20)  # probabilities that have lost their logits
    refused("an array that is not in the graph", inner, "categorical_crossentropy")


def groups(model):
    kernels, others = model.parameters()[::2], model.parameters()[1::2]
    return optim.SGD([{"params": kernels, "weight_decay": 0.1}, {"params": others}], lr=0.1)


@pytest.mark.parametrize("optimizer, words", [
    (optim.SGD(lr=0.1, weight_decay=0.1), "SGD with weight_decay"),
    (optim.SGD(lr=0.1, momentum=0.9, nesterov=True), "SGD with nesterov"),
    (optim.Adam(weight_decay=0.1), "Adam with weight_decay"),
    *((optim.SGD(lr=0.1, **{name: 1e9}), "SGD with clipping") for name in ("clipnorm", "clipvalue", "global_clipnorm")),
    (optim.Adam(clipnorm=1.0), "Adam with clipping"), (optim.AdamW(), "not AdamW"), (optim.RMSprop(), "not RMSprop"),
    (optim.RMSprop(weight_decay=0.1), "not RMSprop"), (optim.Adagrad(), "not Adagrad"), (Halved(lr=0.1), "knows optim.SGD"),
    (groups, "not Groups"), ("sgd", "not str")])
def test_optimizers_that_the_compiler_does_not_know(optimizer, words):
    model = network().build(20)
    refused(words, model, optimizer=optimizer(model) if optimizer is groups else optimizer)


@pytest.mark.parametrize("op, old, new", [
    ("linear", "g @ kernel.T", "g @ kernel.T * 1.001"), ("linear", "ones(n) @ g", "ones(n) @ g * 0.999"),
    ("batch_norm", "- g_beta * (1 / n)", "- g_beta * (1.001 / n)"), ("batch_norm", "+ beta", "+ beta * 1.001"),
    ("cross_entropy", "- g / n)", "- g / n * 1.0001)")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_wrong_kernel_writes_no_program(op, old, new, optimizer, monkeypatch):
    """The mutation: a program that does not compute what the engine computes is never returned."""
    texts = kernels.KERNELS[op]
    monkeypatch.setitem(kernels.KERNELS, op, tuple(text.replace(old, new) for text in texts))
    assert kernels.KERNELS[op] != texts
    model = network((16, 16)).build(20)
    model[1].beta.data[:] = 0.1  # at the start it is 0
    for passes in ((), compiler.PASSES):
        with pytest.raises(kernels.Inexpressible, match="would not take the step"):
            compiler.source(model, "cross_entropy", OPTIMIZERS[optimizer](), 32, passes)


@pytest.mark.parametrize("rule, old, new", [
    ("SGD with momentum", "momentum + g", "momentum + g * 1.001"), ("SGD with momentum", "lr * velocity", "velocity * lr * 1.001"),
    ("Adam", "+ g * g", "+ g * g * 1.001"), ("Adam", "eps / root", "eps * 1e6 / root"), ("Adam", "(1 - b1 ** t)", "(1 - b1)")])
def test_a_wrong_update_writes_no_program(rule, old, new, monkeypatch):
    text = kernels.UPDATES[rule]
    assert old in text
    monkeypatch.setitem(kernels.UPDATES, rule, text.replace(old, new))
    with pytest.raises(kernels.Inexpressible, match="would not take the step"):
        compiler.source(network().build(20), "cross_entropy", OPTIMIZERS["Adam" if rule == "Adam" else "momentum"](), 32)


def test_wrong_running_statistics_write_no_program(monkeypatch):
    monkeypatch.setattr(compiler, "STATISTICS", kernels.STATISTICS.replace("n / (n - 1)", "1.0"))
    refused("would not take the step", network().build(20))


def test_a_careless_pass_writes_no_program():
    def without_statistics(program):
        program.kernels = [kernel for kernel in program.kernels if "running_var" not in kernel.name]

    def other_outputs(program):
        program.outputs = "y_activation"

    for careless in (without_statistics, other_outputs):
        with pytest.raises(kernels.Inexpressible, match="would not take the step"):
            compiler.source(network().build(20), "cross_entropy", sgd(), 32, [careless])


def test_what_is_no_model_with_a_shape_is_told_what_to_do():
    for model in (network(), Module()):
        with pytest.raises(ValueError, match="takes a Sequential .* model.build"):
            compiler.source(model, "cross_entropy", sgd(), 32)
    for size in (0, 2.5, None):
        with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1"):
            compiler.source(network().build(20), "cross_entropy", sgd(), size)


def test_compile_says_where_the_compiler_is():
    with pytest.raises(TypeError, match="compile has no argument 'jit_compile': .*compiler.source.*lesson 21"):
        network().compile("sgd", jit_compile=True)
    with pytest.raises(TypeError, match="compile has no argument 'optimiser': it takes optimizer, loss and metrics"):
        network().compile(optimiser="sgd")
