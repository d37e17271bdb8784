"""What people type in the first weeks with Keras or PyTorch, and type here as well."""

import functools

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    EarlyStopping,
    Flatten,
    Input,
    LayerNorm,
    LearningRateScheduler,
    ModelCheckpoint,
    Module,
    ReduceLROnPlateau,
    Sequential,
    Tensor,
    data,
    optim,
    plotting,
    training,
)
from minidl import functional as F
from minidl.metrics import METRICS, binary_accuracy, top_k_accuracy

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6)).astype(np.float32)
Y = (X @ RNG.standard_normal((6, 3))).argmax(axis=1)


def net(*before):
    return Sequential([*before, Dense(8, "tanh"), BatchNorm(), Dense(3)], seed=0)


# --- Sequential ---------------------------------------------------------------------------------------

def test_an_input_first_builds_the_model_and_is_no_layer():
    model, same = net(Input(shape=(6,))), net().build(6)
    assert [layer.name for layer in model] == ["dense", "batchnorm", "dense_1"] and model.input_shape == (6,)
    assert all(map(np.array_equal, model.get_weights(), same.get_weights()))
    added = Sequential(seed=0)
    for layer in Input((6,)), Dense(8, "tanh"), BatchNorm(), Dense(3):
        added.add(layer)
    assert all(map(np.array_equal, added.get_weights(), same.get_weights()))
    with pytest.raises(TypeError, match="a layer is an object"):
        Sequential([Dense(3), Input(6)])
    with pytest.raises(ValueError, match="784 or"):
        Input(None)


def test_a_model_of_an_input_is_saved_whole(tmp_path):
    model = Sequential([Input((2, 3)), Flatten(), Dense(3)], seed=0)
    model.save(tmp_path / "model.npz")
    x = X.reshape(60, 2, 3)
    assert np.array_equal(Sequential.load(tmp_path / "model.npz").predict(x), model.predict(x))


def test_pop_returns_the_last_layer_and_another_takes_its_place():
    """The first step of fine-tuning: the layers that stay keep their weights."""
    model = net(Input(6)).compile("sgd")
    model.fit(X, Y, verbose=0)
    kernel = model[0].kernel.data.copy()
    head = model.pop()
    assert head.units == 3 and len(model) == 2 and model.optimizer is None
    model.add(Dense(2))
    model.compile("sgd").fit(X, Y % 2, verbose=0)
    assert model.predict(X).shape == (60, 2) and np.abs(model[0].kernel.data - kernel).max() < 0.1


def test_layers_have_get_weights_and_set_weights_too():
    model, other = net(Input(6)), Sequential([Input(6), Dense(8), BatchNorm(), Dense(3)], seed=1)
    for layer, target in zip(model, other):
        target.set_weights(layer.get_weights())
    kernel, bias = model[0].get_weights()
    assert kernel.shape == (6, 8) and bias.shape == (8,) and np.array_equal(other[0].kernel.data, kernel)
    with pytest.raises(ValueError, match=r"dense Dense\(6 -> 8.*has 2 arrays \(kernel, bias\), got 1"):
        model[0].set_weights([kernel])


def test_summary_before_the_shape_is_known(capsys):
    net().summary()
    text = capsys.readouterr().out
    assert "dense_1 (Dense)" in text and "not known" in text and "model.build(784)" in text
    net(Input(6)).summary()
    assert "Total params: 115" in capsys.readouterr().out  # 6*8+8, 4*8, 8*3+3


def test_train_on_batch_is_one_step_of_fit():
    model, by_fit = (net(Input(6)).compile("adam", metrics=["accuracy"]) for _ in range(2))
    history = by_fit.fit(X, Y, batch_size=20, shuffle=False, verbose=0)
    numbers = [model.train_on_batch(X[i:i + 20], Y[i:i + 20]) for i in (0, 20, 40)]
    assert [loss for loss, _ in numbers] == history.steps["loss"]
    assert all(map(np.array_equal, model.get_weights(), by_fit.get_weights()))
    assert isinstance(net().compile("sgd").train_on_batch(X, Y), float)


# --- Weights of samples and of classes ----------------------------------------------------------------

def trained(x, y, **options):
    """The weights after some steps of the whole batch, without BatchNorm, which would see a repeated sample."""
    model = Sequential([Input(6), Dense(8, "tanh"), Dense(3)], seed=0).compile(optim.SGD(lr=0.5))
    return model, model.fit(x, y, batch_size=1000, epochs=3, verbose=0, **options)


def test_a_weight_of_2_is_the_sample_twice():
    """A loss is the mean of weight times loss: over 60 samples of weights 2 and 1 it is 90 / 60 of that over 90 samples."""
    weights = np.where(Y == 1, 2.0, 1.0)
    twice = np.repeat(np.arange(60), weights.astype(int))
    model, history = trained(X, Y, sample_weight=weights * len(twice) ** -1 * 60)
    same, expected = trained(X[twice], Y[twice])
    np.testing.assert_allclose(history.steps["loss"], expected.steps["loss"], rtol=1e-5)
    for a, b in zip(model.get_weights(), same.get_weights()):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_class_weight_is_the_sample_weight_of_the_class():
    by_class, by_sample = trained(X, Y, class_weight={1: 5.0, 2: 0.5}), trained(X, Y, sample_weight=np.array([1, 5, 0.5])[Y])
    one_hot = trained(X, np.eye(3)[Y], class_weight={1: 5.0, 2: 0.5})
    assert by_class[1].steps["loss"] == by_sample[1].steps["loss"]
    np.testing.assert_allclose(one_hot[1].steps["loss"], by_class[1].steps["loss"], rtol=1e-6)


def test_weights_of_1_change_nothing_and_metrics_and_validation_take_no_part():
    options = dict(validation_split=0.2)
    (plain, a), (weighted, b), (heavy, c) = (trained(X, Y, **options, **more) for more in (
        {}, {"sample_weight": np.ones(60)}, {"sample_weight": np.full(60, 3.0)}))
    np.testing.assert_allclose(a.steps["loss"], b.steps["loss"], rtol=1e-6)
    assert c.steps["loss"][0] == pytest.approx(3 * a.steps["loss"][0], rel=1e-6)
    model = net(Input(6)).compile("sgd", metrics=["accuracy"])
    model.optimizer.lr = 1e-30
    history = model.fit(X, Y, epochs=1, batch_size=60, verbose=0, sample_weight=np.full(60, 3.0), validation_data=(X, Y))
    loss, accuracy = model.evaluate(X, Y)
    assert history["val_loss"] == [pytest.approx(loss)] and history["val_accuracy"] == [accuracy]
    assert history["accuracy"][0] <= 1


def test_weights_meet_their_samples_whatever_the_order():
    """Samples of weight 0 with nonsense for labels, shuffled and in several batches: nothing of them is learned."""
    y, weights = Y.copy(), np.ones(60)
    y[::3], weights[::3] = (Y[::3] + 1) % 3, 0
    model = Sequential([Input(6), Dense(3)], seed=0).compile(optim.Adam(lr=0.05))
    model.fit(X, y, batch_size=7, epochs=60, verbose=0, sample_weight=weights)
    assert (model.predict(X).argmax(axis=1) == Y).mean() > 0.9


def test_every_loss_by_name_and_a_loss_of_ones_own_take_weights():
    def own(outputs, y, reduction="mean"):
        return F.cross_entropy(outputs, y, reduction=reduction)

    losses = [own, functools.partial(F.cross_entropy, label_smoothing=0.1)]
    losses += [loss for name, loss in training.LOSSES.items() if "cross" not in name]
    for loss in losses:
        y = Y if loss in losses[:2] else np.eye(3)[Y]
        model = Sequential([Input(6), Dense(3)], seed=0).compile("sgd", loss)
        weights = np.arange(60.0)
        history = model.fit(X, y, batch_size=60, verbose=0, sample_weight=weights)
        each = loss(Sequential([Input(6), Dense(3)], seed=0).predict(X), y, reduction="none")
        assert history["loss"][0] == pytest.approx((each.T * weights).mean(), rel=1e-5)


@pytest.mark.parametrize("options, error, words", [
    ({"sample_weight": np.ones(59)}, ValueError, r"each of 60 samples, got float64 of shape \(59,\)"),
    ({"sample_weight": -np.ones(60)}, ValueError, "from 0 up"), ({"sample_weight": np.zeros(60)}, ValueError, "not all of them 0"),
    ({"class_weight": "balanced"}, TypeError, r"len\(y\) / \(classes"), ({"class_weight": {"a": 1}}, TypeError, "class number"),
    ({"class_weight": {0: 1.0}, "sample_weight": np.ones(60)}, ValueError, "not both")])
def test_weights_are_checked_before_any_step(options, error, words):
    model = net(Input(6)).compile("sgd")
    before = model.get_weights()
    with pytest.raises(error, match=words):
        model.fit(X, Y, verbose=0, **options)
    assert all(map(np.array_equal, model.get_weights(), before))


def test_a_loss_that_has_only_a_mean_says_what_it_needs_for_weights():
    with pytest.raises(TypeError, match='reduction="mean"'):
        net().compile("sgd", lambda outputs, y: F.cross_entropy(outputs, y)).fit(X, Y, verbose=0, class_weight={0: 2.0})


# --- Losses and metrics by name -----------------------------------------------------------------------

def test_keras_names_of_losses_and_metrics():
    targets = (X[:, :1] + 1).astype(np.float32)
    for loss in "mae", "mean_absolute_error", "huber":
        history = Sequential([Dense(1)], seed=0).compile("adam", loss, ["mae"]).fit(X, targets, epochs=2, verbose=0)
        assert history["loss"][1] < history["loss"][0]
        assert loss == "huber" or history["mae"] == pytest.approx(history["loss"])
    history = net().compile("adam", metrics=["acc", "sparse_categorical_accuracy"]).fit(X, Y, verbose=0)
    assert history["acc"] == history["sparse_categorical_accuracy"]


def test_binary_accuracy_counts_entries_and_knows_logits():
    y = np.array([[1, 0], [0, 1], [1, 1]])
    assert binary_accuracy(np.array([[0.9, 0.6], [0.2, 0.7], [0.4, 0.5]]), y) == pytest.approx(3 / 6)
    rows = (X[:, :2] > 0).astype(float)
    model = Sequential([Dense(2)], seed=0).compile("sgd", "binary_cross_entropy_with_logits", ["binary_accuracy"])
    _, share = model.evaluate(X, rows)
    assert share == pytest.approx(((model.predict(X) > 0) == rows).mean())
    with pytest.raises(ValueError, match="a 0 or 1 for each"):
        binary_accuracy(np.zeros((3, 1)), np.array([0, 1, 2]))


def test_top_k_accuracy_counts_the_k_largest():
    outputs, y = np.array([[3, 1, 2.0], [1, 2, 3], [3, 2, 1]]), np.array([2, 0, 0])
    assert [top_k_accuracy(k)(outputs, y) for k in (1, 2)] == pytest.approx([1 / 3, 2 / 3])
    assert top_k_accuracy(2)(outputs, np.eye(3)[y]) == pytest.approx(2 / 3)
    model = net().compile("sgd", metrics=["accuracy", top_k_accuracy(2)])
    history = model.fit(X, Y, verbose=0)
    assert history["accuracy"][0] <= history["top_2_accuracy"][0] < 1
    with pytest.raises(ValueError, match="of 3 classes is always 1"):
        net().compile("sgd", metrics=["top_k_categorical_accuracy"]).fit(X, Y, verbose=0)
    assert METRICS["top_k_categorical_accuracy"].__name__ == "top_5_accuracy"


# --- A generator instead of arrays --------------------------------------------------------------------

class Loader:
    """As PyTorch's: it can be iterated over again and again."""

    def __iter__(self):
        return ((X[i:i + 20], Y[i:i + 20]) for i in (0, 20, 40))


def test_batches_that_come_one_after_the_other_get_a_loop_that_runs():
    """The error's own five lines, as they are, train the model."""
    model = net(Input(6)).compile(optim.SGD(lr=0.1))
    for x in iter(Loader()), Loader():
        with pytest.raises(TypeError, match="DataLoader") as caught:
            model.fit(x, epochs=5)
    loop = [line.removeprefix("    ") for line in str(caught.value).splitlines() if line.startswith("    ")]
    assert len(loop) == 5
    before = model.evaluate(X, Y)
    exec("\n".join(loop), {"model": model, "loader": Loader(), "training": training, "np": np})
    assert model.evaluate(X, Y) < before and model.optimizer.steps == 15
    with pytest.raises(TypeError, match="needs arrays x and y, got a ndarray"):
        model.fit(X)


@pytest.mark.parametrize("make, words", [
    (lambda: EarlyStopping(patience=2, verbose=1), "EarlyStopping has no argument 'verbose': leave it out, print"),
    (lambda: LearningRateScheduler(lambda epoch: 0.1, verbose=1), "leave it out"),
    (lambda: ReduceLROnPlateau(verbose=1), "leave it out"), (lambda: ModelCheckpoint("a.npz", save_weights_only=True), "weights are all")])
def test_arguments_of_keras_callbacks_that_are_not_here(make, words):
    with pytest.raises(TypeError, match=words):
        make()


def test_the_ops_of_the_other_file_are_listed_with_the_functions():
    assert {"squeeze", "einsum", "relu", "cross_entropy"} <= set(dir(F))
    with pytest.raises(AttributeError, match="F.huber_loss"):
        F.smooth_l1_loss


class Net(Module):
    def __init__(self):
        self.out = Dense(3)

    def forward(self, x):
        return self.out(x)


def test_training_fit_takes_weights_for_any_module():
    history = training.fit(Net(), X, Y, loss="cross_entropy", optimizer=optim.SGD(lr=0.1), class_weight={0: 3.0}, verbose=0)
    assert history["loss"][0] > 0


# --- Layers -------------------------------------------------------------------------------------------

def test_batch_norm_of_sequences_is_that_of_all_their_places():
    """(n, channels, length): a mean for each channel, over samples and places."""
    x = RNG.standard_normal((5, 3, 7)).astype(np.float32)
    for fused in True, False:
        layer, rows = BatchNorm(fused=fused), BatchNorm()
        y = layer(Tensor(x)).data
        expected = rows(Tensor(x.transpose(0, 2, 1).reshape(35, 3))).data.reshape(5, 7, 3).transpose(0, 2, 1)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.running_var, rows.running_var, rtol=1e-6)
        np.testing.assert_allclose(layer.eval()(x).data, rows.eval()(x.transpose(0, 2, 1).reshape(35, 3)).data.reshape(
            5, 7, 3).transpose(0, 2, 1), rtol=1e-5, atol=1e-6)


def test_batch_norm_behind_a_dense_with_a_time_axis_is_warned_of():
    """It would take the places for the features, and nothing else would tell."""
    x, y = RNG.standard_normal((30, 4, 6)), RNG.standard_normal((30, 4, 2))
    with pytest.warns(UserWarning, match=r"batchnorm BatchNorm\(4\) normalises along axis 1, the 4 places of.*\(n, 4, 8\)"):
        Sequential([Dense(8), Activation("relu"), BatchNorm(), Dense(2)]).compile("sgd", "mse").fit(x, y, verbose=0)
    Sequential([Dense(8), Activation("relu"), LayerNorm(), Dense(2)]).compile("sgd", "mse").fit(x, y, verbose=0)


def test_a_forward_pre_hook_sees_the_inputs_and_may_replace_them():
    layer, seen = Dense(2, input_shape=6, rng=0).build(6), []
    watching = layer.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].shape)))
    halving = layer.register_forward_pre_hook(lambda module, inputs: inputs[0] / 2)
    assert np.array_equal(layer(X).data, layer.forward(X / 2).data) and seen == [(layer, (60, 6))]
    halving.remove()
    watching.remove()
    assert np.array_equal(layer(X).data, layer.forward(X).data) and len(seen) == 1
    layer.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 3,))
    assert np.array_equal(layer(X).data, layer.forward(X * 3).data)
    with pytest.raises(TypeError, match=r"a function of \(module, inputs\)"):
        layer.register_forward_pre_hook(3)


# --- Toy data and figures -----------------------------------------------------------------------------

def least_squares(x, y, x_test):
    """The classes that the best straight lines tell: what no hidden layer can do better."""
    def columns(x):
        return np.column_stack([x, np.ones(len(x))])

    weights, *_ = np.linalg.lstsq(columns(x), np.eye(y.max() + 1)[y], rcond=None)
    return (columns(x_test) @ weights).argmax(axis=1)


@pytest.mark.parametrize("name, linear", [("spiral", 0.75), ("moons", 0.95), ("xor", 0.65)])
def test_toy_data_need_a_hidden_layer(name, linear):
    """Drawn from the seed, the same each time; straight lines do not separate them, near neighbours do."""
    (x, y), (x_test, y_test) = data.load(name)
    assert x.shape == x_test.shape == (300, 2) and (x.dtype, y.dtype) == (np.float32, np.int64)
    assert np.array_equal(data.load(name, seed=0)[0][0], x) and not np.array_equal(data.load(name, seed=1)[0][0], x)
    assert not np.array_equal(x, x_test) and len(np.unique(y)) == (3 if name == "spiral" else 2)
    assert (least_squares(x, y, x_test) == y_test).mean() < linear
    nearest = ((x_test[:, None] - x) ** 2).sum(axis=2).argmin(axis=1)
    assert (y[nearest] == y_test).mean() > 0.95


@pytest.fixture
def agg():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")


def test_a_decision_boundary_lies_where_the_model_changes_its_mind(agg):
    """One output with and without sigmoid, two scores, and softmax: the class changes where x + y = 0."""
    x = np.array([[-1.0, -1], [1, 1], [-1, 0.5], [1, -0.5]])
    for units, end in (1, "sigmoid"), (1, None), (2, None), (2, "softmax"):
        model = Sequential([Input(2), Dense(units, end)])
        model[0].kernel.data[...] = [[0, 1]] * 2 if units == 2 else [[1]] * 2
        ax = plotting.decision_boundary(model, x, np.array([0, 1, 0, 1]))
        edges = np.concatenate([path.vertices for part in ax.collections if not len(part.get_facecolor())
                                for path in part.get_paths()])
        assert len(edges) > 50 and np.abs(edges.sum(axis=1)).max() < 1e-5
        assert [line.get_label() for line in ax.lines] == ["class 0", "class 1"]
    with pytest.raises(ValueError, match=r"of shape \(n, 2\), got \(60, 6\)"):
        plotting.decision_boundary(model, X, Y)


def test_a_decision_boundary_leaves_the_model_in_its_mode(agg):
    model = Sequential([Input(2), BatchNorm(), Dense(3)], seed=0).train()
    before = model.get_weights()
    plotting.decision_boundary(model, X[:, :2], np.eye(3)[Y])
    assert model.training and all(map(np.array_equal, model.get_weights(), before))


def test_one_call_saves_the_figure_of_a_history(agg, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MINIDL_FIGURES", str(tmp_path))
    plotting.history(net().compile("sgd").fit(X, Y, verbose=0), "run")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG") and "run.png" in capsys.readouterr().out
