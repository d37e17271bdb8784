"""Runs that cannot go well are told in one line that names the remedy; healthy runs stay silent (pytest makes warnings errors)."""

import tracemalloc
import warnings

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Flatten,
    Module,
    Sequential,
    checks,
    data,
    experiments,
    optim,
    training,
)
from minidl import functional as F

(X, Y), (X_TEST, Y_TEST) = data.load("digits")
X, Y, X_TEST, Y_TEST = X[:1000], Y[:1000], X_TEST[:200], Y_TEST[:200]
BYTES = (X * 255).round().astype(np.uint8)
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(0, 1, (300, 6)).astype(np.float32)
TARGETS = FEATURES @ RNG.normal(0, 1, (6, 1)).astype(np.float32)


def net(*last):
    return [Dense(16, "relu"), *(last or [Dense(10)])]


def heard(layers, x=X, y=Y, loss="cross_entropy", optimizer="adam", **options):
    """The texts of the warnings of one fit; all of them point to this file."""
    model = Sequential(layers).compile(optimizer, loss)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, verbose=0, **options)
    assert all(w.category is UserWarning and w.filename == __file__ and "\n" not in str(w.message) for w in caught)
    return [str(w.message) for w in caught]


NEGATIVE = {"kernel_initializer": lambda shape, rng: -np.ones(shape)}
HUGE = {"kernel_initializer": lambda shape, rng: rng.normal(0, 3, shape)}
SORTED = np.argsort(Y, kind="stable")


@pytest.mark.parametrize("remedy, run", {
    "x / 255": lambda: heard(net(), BYTES),
    "x / 255, for": lambda: heard([Flatten(), *net()], BYTES.reshape(-1, 28, 28).astype(float)),
    "255 twice": lambda: heard(net(), X / 255),
    "data.standardization": lambda: heard(net(Dense(1)), FEATURES * np.logspace(-1, 3, 6), TARGETS, "mse"),
    "(y - y.mean()) / y.std()": lambda: heard(net(Dense(1)), FEATURES, 1e4 * TARGETS, "mse"),
    "no better than the same answer": lambda: heard([Dense(1)], FEATURES, 1e4 * TARGETS + 1e5, "mse", epochs=25),
    "another learning rate": lambda: heard(net(), optimizer=optim.SGD(lr=30.0), epochs=8),
    "softmax once more": lambda: heard(net(Dense(10, "softmax"))),
    "sigmoid once more": lambda: heard(net(Dense(1, "sigmoid")), y=(Y > 4)[:, None],
                                       loss="binary_cross_entropy_with_logits"),
    "batch_size=16": lambda: heard([Dense(8), BatchNorm(), Dense(10)], X[:100], Y[:100], batch_size=2),
    "how x was made": lambda: heard(net(), np.ones((1000, 4))),
    "how y was made": lambda: heard(net(), y=np.full(1000, 3)),
    "exactly 0": lambda: heard([Dense(8, "relu", **NEGATIVE), Dense(10, use_bias=False)]),
    "usual initializers": lambda: heard([Dense(64, "relu", **HUGE), Dense(10, **HUGE)]),
    "the validation inputs": lambda: heard(net(), validation_data=(255 * X_TEST, Y_TEST)),
    "loss='binary_crossentropy'": lambda: heard(net(Dense(3)), FEATURES, (FEATURES[:, :3] > 0) * 1.0),
    "leave the activation": lambda: heard(net(Dense(1, "sigmoid")), FEATURES, 5 * TARGETS, "mse"),
    "shuffle=True": lambda: heard(net(), X[SORTED], Y[SORTED], shuffle=False),
    "data.split": lambda: heard(net(), X[SORTED], Y[SORTED], validation_split=0.2),
}.items())
def test_a_run_that_cannot_go_well_is_told_the_remedy(remedy, run):
    texts = run()
    assert len(texts) == 1 and remedy in texts[0]


@pytest.mark.parametrize("run", [
    lambda: heard(net(), epochs=3, validation_data=(X_TEST, Y_TEST)),
    lambda: heard([Dense(16), BatchNorm(), Activation("relu"), Dense(10)], BYTES),  # the scale cancels
    lambda: heard([Activation(lambda t: t / 255), *net()], BYTES),  # a layer scales them
    lambda: heard(net(Dense(10, "softmax")), loss="categorical_crossentropy"),
    lambda: heard(net(Dense(1, "sigmoid")), y=(Y > 4)[:, None], loss="binary_crossentropy"),
    lambda: heard(net(Dense(1)), FEATURES, TARGETS, "mse"),
    lambda: heard([Dense(1)], FEATURES, 1e3 * TARGETS, "mse", optim.SGD(lr=0.1), epochs=25),  # a line has any slope
    lambda: heard(net(), np.ones((4, 3)), np.zeros(4, int)),  # a trial of the program
], ids=["digits", "BatchNorm", "scaled inside", "softmax", "sigmoid", "regression", "linear", "few"])
def test_a_healthy_run_is_silent(run):
    assert run() == []


def test_in_a_comparison_a_network_that_fails_is_a_result():
    model = Sequential(net(), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiments.run(model, ((BYTES, Y), (BYTES, Y)), optimizer=optim.SGD(lr=0.1), steps=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float64])
def test_no_verb_converts_the_data_as_a_whole(dtype):
    x = np.zeros((20_000, 256), dtype)
    x[np.arange(20_000), np.arange(20_000) % 256] = 1
    y = np.arange(20_000) % 2
    model = Sequential([Dense(2)]).compile("sgd", "cross_entropy", ["accuracy"])
    for verb in (lambda: model.fit(x, y, batch_size=128, validation_split=0.2, verbose=0), lambda: model.evaluate(x, y),
                 lambda: model.predict(x)):
        tracemalloc.start()
        verb()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4.5e6, f"{peak:,} bytes for {x.nbytes:,}"


def test_the_trial_of_the_loss_takes_a_few_rows():
    model = Sequential([Dense(5000, input_shape=4)]).compile("sgd")
    x, y = RNG.normal(0, 1, (3000, 4)).astype(np.float32), np.arange(3000)
    tracemalloc.start()
    model.fit(x, y, epochs=0, verbose=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # all of them: 60 MB
    y[1234] = 5000
    with pytest.raises(ValueError, match="0 to 4999"):
        model.fit(x, y, epochs=0, verbose=0)


@pytest.mark.parametrize("layers, loss, y, remedy", [
    ([Dense(1), Activation("softmax")], "categorical_crossentropy", (Y > 4)[:, None] * 1.0, "sigmoid"),
    ([Dense(1)], "cross_entropy", Y > 4, "binary_crossentropy"),
    ([Dense(1), Activation("softmax")], "mse", (Y > 4)[:, None], "always 1"),
    ([Dense(10, "sigmoid")], "categorical_crossentropy", Y, "sum to 1"),
    ([Dense(10)], "cross_entropy", Y.astype(str), "np.unique"),
    ([Dense(10)], "cross_entropy", Y[:, None], r"\(1000, 1\); use y.reshape"),
    ([Dense(10)], lambda y_true, y_pred: F.cross_entropy(y_pred, y_true), Y, "exchange the two"),
    ([Dense(10)], lambda outputs, y: F.cross_entropy(F.softmax(outputs).data, y) + F.mean(outputs.data), Y, "a loss returns|gradient"),
])
def test_a_loss_that_cannot_mean_anything_is_refused_before_training(layers, loss, y, remedy):
    model = Sequential(layers)
    with pytest.raises((TypeError, ValueError), match=remedy):
        model.compile("sgd", loss).fit(X, y, verbose=0)
    assert not hasattr(model, "history")


def test_accuracy_of_several_labels_is_that_of_the_entries():
    y = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]])
    outputs = np.array([[0.9, 0.8, 0.6], [0.1, 0.2, 0.3], [0.6, 0.9, 0.9]])
    assert training.accuracy(outputs, y) == pytest.approx(8 / 9)
    assert training.accuracy(outputs, np.eye(3)[[0, 2, 1]]) == 1  # one-hot rows: the largest (the first of two) decides
    for bad in (y[:, :1], y[:2], np.full((3, 3), 0.7), np.array(["a", "b", "c"])):
        with pytest.raises(ValueError, match="accuracy"):
            training.accuracy(outputs, bad)
    with pytest.raises(ValueError, match="accuracy"):
        training.accuracy(outputs[None], y)


def test_accuracy_of_several_labels_compares_logits_with_0():
    y = (FEATURES[:, :3] > 0) * 1
    model = Sequential([Dense(3, kernel_initializer=lambda shape, rng: np.eye(*shape))])
    model.compile("sgd", "binary_cross_entropy_with_logits", ["accuracy"])
    assert model.evaluate(FEATURES, y)[1] == 1


def test_validation_split_rounds_as_data_split_does():
    (x, y), (x_held, y_held) = checks.hold_out(X[:100], Y[:100], 0.29)
    assert len(x) == len(y) == 71 and len(x_held) == len(data.split(X[:100], Y[:100], 0.29)[1][0]) == 29
    assert np.shares_memory(x, X) and np.array_equal(y_held, Y[71:100])
    for share in (0.001, 0.999, True, "0.2", np.nan):
        with pytest.raises(ValueError, match="validation_split"):
            checks.hold_out(X[:100], Y[:100], share)


@pytest.mark.parametrize("options", [
    {"batch_size": True}, {"batch_size": 32.0}, {"epochs": 2.0}, {"epochs": True}, {"initial_epoch": 3}, {"verbose": 3},
    {"verbose": "yes"}, {"shuffle": "batch"}, {"validation_data": (X, Y, Y)}, {"validation_split": "0.2"}], ids=str)
def test_settings_of_fit_are_checked(options):
    with pytest.raises((TypeError, ValueError), match="|".join([*options, "samples all count alike"])):
        Sequential([Dense(10)]).compile("sgd").fit(X, Y, **{"verbose": 0, **options})


def test_what_keras_allows_is_taken():
    model = Sequential([Dense(10)]).compile("sgd", "cross_entropy", None)
    model.fit(X.tolist(), tuple(Y.tolist()), batch_size=None, callbacks=None, verbose=0)
    assert np.isfinite(model.evaluate(X, Y, batch_size=None))


@pytest.mark.parametrize("metric", [lambda o, y: o[:, 0], lambda o, y: None, lambda o, y: "0.5", lambda o, y: np.ones(1)])
def test_a_metric_that_is_no_number_is_refused_before_an_update(metric):
    model = Sequential([Dense(10, input_shape=784)]).compile("sgd", "cross_entropy", [metric])
    before = model.state_dict()
    with pytest.raises(TypeError, match="one number"):
        model.fit(X, Y, verbose=0)
    assert all(np.array_equal(before[name], a) for name, a in model.state_dict().items())


def test_one_sample_without_its_batch_axis_is_named():
    model = Sequential([Dense(10, input_shape=784)])
    for x in (X[0], X[0].reshape(28, 28)):
        with pytest.raises(ValueError, match=r"x\.reshape|batch axis"):
            model.predict(x)
    with pytest.raises(ValueError, match=r"\(1000, 28, 10\).*Flatten"):
        Sequential([Dense(10)]).compile("sgd").fit(X.reshape(-1, 28, 28), Y, verbose=0)


def test_a_divergence_before_any_update_does_not_blame_the_rate():
    model = Sequential([Dense(10, input_shape=784)]).compile("sgd")
    model[0].kernel.data[...] = np.nan
    with pytest.raises(training.DivergenceError, match="not the learning rate"):
        model.fit(X, Y, verbose=0)
    with pytest.raises(training.DivergenceError) as caught:
        Sequential([Dense(8), BatchNorm(), Dense(10)]).compile(optim.SGD(lr=1e30)).fit(X, Y, verbose=0)
    assert "BatchNorm" not in str(caught.value).split("smaller learning rate")[1]


def test_parts_of_ones_own_may_call_anything_an_activation():
    class Own(Module):
        def __init__(self):
            self.activation = np.ones(10, np.float32)  # a buffer

        def forward(self, x):
            return x * self.activation

    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return F.relu(x)

    model = Sequential([Dense(10), Activation(Unhashable()), Own()]).compile("sgd")
    model.fit(X, Y, verbose=0)
    assert len(model.history.epoch) == 1
