"""The compiler: its programs are the engine's steps, they run without minidl, and `fit` is as before whoever takes the steps."""

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import minidl
from minidl import (
    Activation,
    BatchNorm,
    Callback,
    Dense,
    DivergenceError,
    Dropout,
    Flatten,
    LambdaCallback,
    Sequential,
    compiler,
    kernels,
    optim,
    record,
    schedules,
)

# The nets of the lessons: hidden sizes, activation, batch size.
NETS = [((100, 100, 100), "sigmoid", 60), ((64,), "relu", 32), ((256, 256, 256), "relu", 128)]
# At these rates training is stable; where it is chaotic, a rounding grows, whoever takes the steps.
OPTIMIZERS = {"SGD": lambda: optim.SGD(lr=0.02), "momentum": lambda: optim.SGD(lr=0.02, momentum=0.9),
              "Adam": lambda: optim.Adam(lr=0.001)}


def network(hidden=(16,), activation="relu", batch_norm=True, classes=10):
    layers = []
    for units in hidden:
        layers += [Dense(units), *([BatchNorm()] if batch_norm else []), Activation(activation)]
    return Sequential([*layers, Dense(classes)], seed=0)


def noise(n, features=20, classes=10, dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.random((n, features)).astype(dtype)
    return x, (x[:, :classes].argmax(axis=1) + rng.integers(0, 2, n)) % classes


def fitted(jit, optimizer=OPTIMIZERS["SGD"], dtype=np.float64, n=210, features=20, epochs=3, batch_size=32, model=None, loss=
           "cross_entropy", metrics=("accuracy",), y=None, **options):
    x, labels = noise(n, features, dtype=dtype)
    model = (model or network)().build(features).astype(dtype)
    model.compile(optimizer(), loss, list(metrics), jit_compile=jit)
    model.fit(x, labels if y is None else y, batch_size=batch_size, epochs=epochs, verbose=0, **options)
    if jit:
        assert model.compiled_step.programs and None not in model.compiled_step.programs.values()
    return model


def difference(a, b):
    """The largest difference of two runs: losses, metrics, weights and running statistics."""
    pairs = [*zip(a.history.steps.values(), b.history.steps.values()), *zip(a.get_weights(), b.get_weights())]
    return max(np.abs(np.subtract(u, v)).max() for (u, v), key in
               zip(pairs, [*a.history.steps, *range(len(pairs))]) if key != "seconds")


@pytest.mark.filterwarnings("ignore:after .* steps the loss is")  # the sigmoid net without BatchNorm learns nothing
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("batch_norm", (False, True))
@pytest.mark.parametrize("hidden, activation, batch", NETS, ids=lambda value: str(value))
@pytest.mark.parametrize("steps", (4, pytest.param(1000, marks=pytest.mark.thorough)))
def test_the_losses_are_those_of_the_engine(hidden, activation, batch, batch_norm, optimizer, steps):
    n, features = (5 * batch, 784) if steps > 100 else (2 * batch + 7, 50)
    runs = [fitted(jit, OPTIMIZERS[optimizer], n=n, features=features, batch_size=batch, epochs=-(-steps // (n // batch)),
                   model=lambda: network(hidden, activation, batch_norm)) for jit in (False, True)]
    a, b = (np.array(model.history.steps["loss"]) for model in runs)
    assert len(a) >= steps and np.abs(a - b).max() < 1e-5
    assert runs[0].history.steps["accuracy"] == runs[1].history.steps["accuracy"]


def test_in_float32_the_numbers_stay_float32_and_those_of_the_engine():
    a, b = (fitted(jit, OPTIMIZERS["Adam"], np.float32) for jit in (False, True))
    assert np.allclose(a.history.steps["loss"], b.history.steps["loss"], rtol=1e-5)
    assert {array.dtype for array in b.get_weights() if array.dtype.kind == "f"} == {np.dtype(np.float32)}


ENDS = {
    "softmax, class numbers": ("sparse_categorical_crossentropy", Activation("softmax"), lambda y: y),
    "softmax, one-hot": ("categorical_crossentropy", Activation("softmax"), lambda y: np.eye(10)[y].astype(np.float32)),
    "sigmoid": ("binary_crossentropy", Activation("sigmoid"), lambda y: np.eye(10)[y]),
    "mse": ("mse", None, lambda y: np.eye(10)[y]),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_losses_of_the_keras_programs(end):
    loss, activation, labels = ENDS[end]
    y = labels(noise(210)[1])

    def model():
        return Sequential([*network().layers, *([activation] if activation else [])])

    a, b = (fitted(jit, loss=loss, y=y, model=model, metrics=(), dtype=np.float64) for jit in (False, True))
    assert difference(a, b) < 1e-9


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "sigmoid", "tanh", "softplus", "gelu", "linear", "softmax"])
def test_every_activation_as_its_declaration_has_it(activation):
    a, b = (fitted(jit, model=lambda: network((16, 8), activation)) for jit in (False, True))
    assert difference(a, b) < 1e-9


def test_images_flattened_layers_without_bias_and_activations_in_dense():
    x, y = noise(100, 24)
    runs = []
    for jit in (False, True):
        model = Sequential([Flatten(), Dense(16, "tanh", use_bias=False), Dense(10)], seed=0)
        model.compile("sgd", jit_compile=jit).fit(x.reshape(-1, 4, 6), y, epochs=2, verbose=0)
        runs.append(model)
    assert difference(*runs) < 1e-5 and None not in runs[1].compiled_step.programs.values()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("passes", range(len(compiler.PASSES) + 1))
def test_the_source_runs_without_minidl_and_is_the_engine_step(optimizer, passes, tmp_path):
    """After each of the passes the program computes the same."""
    model = network().build(20)
    before = model.get_weights()
    text = compiler.source(model, "cross_entropy", OPTIMIZERS[optimizer](), 32, compiler.PASSES[:passes])
    assert "minidl" not in text.replace("Written by minidl's compiler.", "")
    assert all(np.array_equal(u, v) for u, v in zip(before, model.get_weights())), "source looks on and changes nothing"
    (tmp_path / "program.py").write_text(text, encoding="utf-8")
    printed = subprocess.run([sys.executable, "-W", "error", "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    losses = [float(line) for line in printed.stdout.split()]
    assert len(losses) == 10 and losses[-1] < losses[0]
    namespace = {}
    exec(text, namespace)
    x, y = noise(32)
    model.compile(OPTIMIZERS[optimizer]())
    model._attach()
    vectors = [np.concatenate([p.data.reshape(-1) for p in model.parameters()])]
    vectors += [np.zeros_like(vectors[0]) for _ in model.optimizer.kept]
    vectors.append(np.repeat(np.float32([0, 1]), 16))
    step, loss = namespace["program"](*vectors), compiler.named_loss("cross_entropy")
    for t in range(1, 6):
        expected = minidl.training.step(model, loss, model.optimizer, x, y)
        arguments = (t,) if optimizer == "Adam" else ()
        assert step(x, y, model.optimizer.current_lr, *arguments)[0] == pytest.approx(expected, rel=1e-5)


def test_each_pass_leaves_something_out():
    model = network((16, 16)).build(20)
    texts = [compiler.source(model, "cross_entropy", optim.SGD(lr=0.1), 32, compiler.PASSES[:n]) for n in range(5)]
    counts = [text[text.index("def step"):text.index("return step")].count("np.") for text in texts]
    assert counts[0] > counts[1] > counts[2] and "g_x_dense =" in texts[0] and "g_x_dense =" not in texts[1]
    assert "out=b0" not in texts[3] and "out=b0" in texts[4] and "np.subtract(parameters, gradients" in texts[4]
    assert texts[4] == compiler.source(model, "cross_entropy", optim.SGD(lr=0.1), 32), "two compilations write the same text"


# --- fit as before --------------------------------------------------------------------------------

def test_a_run_is_resumed_as_if_it_had_never_stopped(tmp_path):
    whole = fitted(True, OPTIMIZERS["Adam"], epochs=4)
    half = fitted(True, OPTIMIZERS["Adam"], epochs=2)
    half.save_checkpoint(tmp_path / "run.npz", 2)
    for jit in (True, False):
        x, y = noise(210, dtype=np.float64)
        model = network().build(20).astype(np.float64).compile(OPTIMIZERS["Adam"](), jit_compile=jit)
        model.fit(x, y, verbose=0, epochs=4, initial_epoch=model.load_checkpoint(tmp_path / "run.npz"))
        assert np.allclose(model.history.steps["loss"], whole.history.steps["loss"][14:], atol=1e-9, rtol=0)


def test_weights_loaded_between_two_fits_count():
    x, y = noise(210, dtype=np.float64)
    runs = []
    for jit in (False, True):
        model = fitted(jit, OPTIMIZERS["momentum"])
        model.set_weights([array * 0.5 for array in model.get_weights()])
        model.fit(x, y, epochs=2, verbose=0)
        model[0].kernel.data = model[0].kernel.data * 2  # a new array, which no program knows
        model.fit(x, y, epochs=2, verbose=0)
        runs.append(model)
    assert difference(*runs) < 1e-9


class Meddler(Callback):
    """Changes what programs take for granted, in the midst of an epoch."""

    def __init__(self, change):
        self.change, self.steps = change, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == 5:
            self.change(self.model)


CHANGES = {
    "rate": lambda model: setattr(model.optimizer, "lr", 0.01),
    "momentum of BatchNorm": lambda model: setattr(model[1], "momentum", 0.5),
    "momentum of SGD": lambda model: setattr(model.optimizer, "momentum", 0.5),
    "activation": lambda model: setattr(model[2], "function", minidl.functional.tanh),
    "new layer": lambda model: model.layers.insert(3, Activation("tanh")),
    "array": lambda model: setattr(model[0].bias, "data", model[0].bias.data + 1),
    "in place": lambda model: np.add(model[0].bias.data, 1, out=model[0].bias.data),
    "running mean": lambda model: setattr(model[1], "running_mean", model[1].running_mean + 1),
    "weights": lambda model: model.set_weights([array * 0.9 for array in model.get_weights()]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_callback_may_change_what_the_program_was_written_for(change):
    a, b = (fitted(jit, OPTIMIZERS["momentum"], callbacks=[Meddler(CHANGES[change])]) for jit in (False, True))
    assert difference(a, b) < 1e-9


@pytest.mark.parametrize("change", [lambda model: setattr(model[0], "trainable", False),
                                    lambda model: setattr(model[1], "frozen_statistics", True),
                                    lambda model: model[0].register_forward_hook(lambda *_: None)])
def test_what_cannot_be_compiled_any_more_goes_on_with_the_engine(change):
    with pytest.warns(UserWarning, match="^jit_compile: .*so the engine takes such steps$") as caught:
        runs = []
        for jit in (False, True):
            x, y = noise(210, dtype=np.float64)
            model = network().build(20).astype(np.float64).compile(OPTIMIZERS["momentum"](), jit_compile=jit)
            model.fit(x, y, epochs=3, verbose=0, callbacks=[Meddler(change)])
            runs.append(model)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert difference(*runs) < 1e-9


def test_schedules_and_statistics_of_the_batch():
    a, b = (fitted(jit, lambda: optim.SGD(lr=schedules.CosineDecay(0.1, 30))) for jit in (False, True))
    assert difference(a, b) < 1e-9 and a.optimizer.steps == b.optimizer.steps == 21
    assert np.allclose(a[1].latest.mean, b[1].latest.mean) and np.allclose(a[1].latest.var, b[1].latest.var)
    assert a[1].latest.n == b[1].latest.n and a[1].updates == b[1].updates


def test_a_divergence_is_told_as_by_the_engine():
    errors = []
    for jit in (False, True):
        with pytest.raises(DivergenceError) as caught:
            fitted(jit, lambda: optim.SGD(lr=1e200), model=lambda: network(batch_norm=False))
        errors.append(caught.value)
    assert str(errors[0]) == str(errors[1]) and errors[0].step == errors[1].step and errors[0].layer == errors[1].layer


def test_ctrl_c_leaves_a_model_that_trains_on():
    def interrupt(batch, logs):
        if batch == 4:
            raise KeyboardInterrupt

    x, y = noise(210, dtype=np.float64)
    model = network().build(20).astype(np.float64).compile("adam", jit_compile=True)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[LambdaCallback(on_train_batch_end=interrupt)])
    assert len(model.history.steps["loss"]) == 5 == model.optimizer.steps
    assert model.fit(x, y, verbose=0).history["loss"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_class_numbers_of_any_integer_dtype(dtype):
    a, b = (fitted(jit, y=noise(210)[1].astype(dtype)) for jit in (False, True))
    assert difference(a, b) < 1e-9


def test_a_saved_model_is_the_one_that_was_trained(tmp_path):
    model = fitted(True, dtype=np.float32)
    model.save(tmp_path / "model.npz")
    x, _ = noise(50)
    assert np.array_equal(Sequential.load(tmp_path / "model.npz").predict(x), model.predict(x))


def test_a_copy_of_a_model_compiles_for_itself():
    model = fitted(True)
    before = model.get_weights()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.fit(*noise(210, dtype=np.float64), epochs=2, verbose=0)
        assert all(np.array_equal(u, v) for u, v in zip(before, model.get_weights()))
        assert None not in twin.compiled_step.programs.values()


def test_who_records_gets_the_gradients_from_the_engine():
    x, y = noise(210, dtype=np.float64)
    logs = []
    for jit in (False, True):
        model = fitted(jit)
        with record(model) as log, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            model.fit(x, y, epochs=1, verbose=0)
        logs.append(log)
    assert np.allclose(logs[0]["dense", "grad_norm"], logs[1]["dense", "grad_norm"])


# --- What the compiler does not know --------------------------------------------------------------

def own_loss(outputs, y):
    return minidl.functional.cross_entropy(outputs, y) if len(y) > 3 else outputs.sum()


UNKNOWN = {
    "Dropout": (lambda: Sequential([Dense(16), Dropout(0.5), Dense(10)]), {}, "kind that the compiler does not know"),
    "a function": (lambda: Sequential([Dense(16), Activation(lambda x: x * x), Dense(10)]), {}, "may branch"),
    "a loss": (network, {"loss": own_loss}, "may branch"),
    "ghost batches": (lambda: Sequential([Dense(16), BatchNorm(ghost_batch_size=8), Dense(10)]), {}, "ghost_batch_size=8"),
    "softmax not at the end": (lambda: Sequential([Dense(10, "softmax"), Flatten()]), {"loss": "categorical_crossentropy"},
                   "an array that is not in the graph"),
    "RMSprop": (network, {"optimizer": "rmsprop"}, "RMSprop"),
    "weight decay": (network, {"optimizer": optim.SGD(lr=0.1, weight_decay=0.1)}, "SGD with these settings"),
    "AdamW": (network, {"optimizer": "adamw"}, "AdamW"),
    "average": (lambda: Sequential([Dense(16), BatchNorm(momentum=None), Dense(10)]), {}, "averages over all batches"),
    "nested": (lambda: Sequential([network((8,)), Dense(10)]), {}, "kind that the compiler does not know"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_the_compiler_does_not_know_is_said_once_and_left_to_the_engine(name):
    make, options, words = UNKNOWN[name]
    x, y = noise(100)
    losses = []
    for jit in (False, True):
        model = make().build(20)
        model.compile(copy.deepcopy(options.get("optimizer", "sgd")), options.get("loss", "cross_entropy"), jit_compile=jit)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses.append(model.fit(x, y, epochs=2, verbose=0).steps["loss"])
        assert [words in str(warning.message) for warning in caught] == [True] * jit, [str(w.message) for w in caught]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match=words):
        compiler.source(make().build(20), options.get("loss", "cross_entropy"),
                        optim.OPTIMIZERS[options["optimizer"]]() if isinstance(options.get("optimizer"), str) else
                        options.get("optimizer", optim.SGD(lr=0.1)), 32)


def test_a_wrong_kernel_is_found_at_the_first_step(monkeypatch):
    """The mutation: a program that does not compute what the engine computes is never used."""
    forward, backward = kernels.KERNELS["linear"]
    monkeypatch.setitem(kernels.KERNELS, "linear", (forward, backward.replace("g @ kernel.T", "g @ kernel.T * 1.001")))
    x, y = noise(100)
    model = network().build(20).compile("sgd", jit_compile=True)
    with pytest.warns(UserWarning, match="the program's first step is not the engine's"):
        model.fit(x, y, verbose=0)
    engine = network().build(20).compile("sgd")
    assert engine.fit(x, y, verbose=0).steps["loss"] == model.history.steps["loss"]


def test_a_model_that_is_not_built_is_told_to_be():
    with pytest.raises(ValueError, match="model.build"):
        compiler.source(network(), "cross_entropy", optim.SGD(lr=0.1), 32)


def test_the_name_of_a_layer_is_no_code():
    """A model comes from a file, perhaps, and what stands in its names must not be executed."""
    model = network().build(20)
    model[0].name, model[1].name, model[3].name = "1 a\nraise SystemExit  # \\", 't"""', "gradients"
    x, y = noise(64)
    model.compile("adam", jit_compile=True).fit(x, y, verbose=0)
    assert model.compiled_step.programs and None not in model.compiled_step.programs.values()


def test_half_precision_is_left_to_the_engine():
    model = network().build(20).astype(np.float16)
    with pytest.raises(ValueError, match="float16 numbers need a wider dtype"):
        compiler.source(model, "cross_entropy", optim.SGD(lr=0.1), 32)
