"""The training loop, Sequential's verbs and what they promise: reproducible, honest numbers, errors before any work."""

import io
import math
import pickle
import re
import sys

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Callback,
    Dense,
    DivergenceError,
    Dropout,
    Flatten,
    LambdaCallback,
    Module,
    Parameter,
    Sequential,
    Tensor,
    data,
    estimate_population_statistics,
    optim,
    progress,
    training,
)
from minidl import functional as F


def toy(n=200, features=20, classes=5, seed=0):
    """Gaussian blobs that a small net can learn: x (n, features) float32, y (n,)."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    centres = rng.normal(0, 1, (classes, features))
    return (centres[y] + rng.normal(0, 1, (n, features))).astype(np.float32), y


def net(batch_norm=True, dropout=False, seed=0, **options):
    layers = [Dense(16, **options)]
    layers += [BatchNorm()] if batch_norm else []
    layers += [Activation("relu")]
    layers += [Dropout(0.2)] if dropout else []
    return Sequential([*layers, Dense(5)], seed=seed)


def compiled(model, lr=0.1, **options):
    return model.compile(optim.SGD(lr=lr), "cross_entropy", ["accuracy"], **options)


def weights(model):
    return [p.data.copy() for p in model.parameters()] + [b.copy() for b in model.buffers()]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(u, v) for u, v in zip(a, b))


# --- Reproducible -------------------------------------------------------------------------------------

def test_fit_is_the_ten_line_loop_bit_for_bit():
    x, y = toy()
    history = compiled(net(dropout=True)).fit(x, y, batch_size=32, epochs=3, verbose=0)

    model = net(dropout=True).build(x.shape[1:])
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        for xb, yb in data.batches(x, y, 32, model.shuffle_rng):
            loss = F.cross_entropy(model(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert history.steps["loss"] == losses


def test_one_seed_gives_one_run_bit_for_bit_and_another_seed_another():
    x, y = toy()
    runs = [compiled(net(dropout=True, seed=seed)).fit(x, y, epochs=2, verbose=0).steps["loss"] for seed in (3, 3, 4)]
    assert runs[0] == runs[1] != runs[2]


def test_inserting_batch_norm_or_dropout_leaves_dense_weights_and_batch_order_equal():
    models = [net(batch_norm, dropout).build((20,)) for batch_norm in (False, True) for dropout in (False, True)]
    for model in models[1:]:
        dense = [[layer for layer in m.layers if isinstance(layer, Dense)] for m in (models[0], model)]
        for a, b in zip(*dense):
            assert np.array_equal(a.kernel.data, b.kernel.data)
    orders = [model.shuffle_rng.permutation(50).tolist() for model in models]
    assert all(order == orders[0] for order in orders)


def test_weights_shuffling_and_dropout_have_streams_of_their_own():
    """How many numbers dropout has drawn must not change weights that are made later, nor the order of batches."""
    model = net(dropout=True).build((20,))
    dense, dropout = model.layers[0], model.layers[3]
    assert dense.rng is model.weights_rng and dropout.rng is model.dropout_rng
    fresh = net(dropout=True)
    model.train()(np.ones((4, 20), np.float32))
    assert model.shuffle_rng.permutation(50).tolist() == fresh.shuffle_rng.permutation(50).tolist()
    assert len({rng.random() for rng in (fresh.weights_rng, fresh.shuffle_rng, fresh.dropout_rng)}) == 3


class Noise(Module):
    """A layer of one's own that draws numbers."""

    stream, rng = "dropout_rng", None

    def forward(self, x):
        return x + self.rng.normal(size=x.shape).astype(np.float32)


def test_a_layer_of_ones_own_names_its_stream_and_is_seeded():
    x = np.ones((4, 20), np.float32)
    one, two = (Sequential([Dense(5), Noise()], seed=3) for _ in range(2))
    assert np.array_equal(one(x).data, two(x).data) and one.layers[1].rng is one.dropout_rng


def test_training_does_not_touch_numpys_global_random_state():
    x, y = toy()
    before = np.random.get_state()[1].copy()
    compiled(net(dropout=True)).fit(x, y, verbose=0)
    assert np.array_equal(before, np.random.get_state()[1])


def test_weights_do_not_depend_on_when_the_shape_becomes_known():
    at_once, later = net(input_shape=(20,)), net()
    later.build((20,))
    assert same(weights(at_once), weights(later))


# --- Honest numbers -----------------------------------------------------------------------------------

def test_epoch_numbers_weight_each_batch_by_its_length():
    x, y = toy(70)
    history = compiled(net()).fit(x, y, batch_size=32, epochs=1, verbose=0)
    sizes = np.array([32, 32, 6])
    for key in ("loss", "accuracy"):
        assert history.history[key] == [pytest.approx((history.steps[key] * sizes).sum() / 70)]


def test_a_last_batch_of_one_joins_the_batch_before_it():
    x, y = toy(65)
    assert [len(xb) for xb, _ in data.batches(x, y, 32)] == [32, 33]
    assert [len(xb) for xb, _ in data.batches(x, y, 64, np.random.default_rng(0))] == [65]
    assert [len(xb) for xb, _ in data.batches(x[:1], y[:1], 32)] == [1]
    assert len(compiled(net()).fit(x, y, batch_size=32, verbose=0).steps["loss"]) == 2


def test_validation_numbers_are_those_of_evaluate():
    x, y = toy()
    model = compiled(net(dropout=True))
    history = model.fit(x, y, epochs=2, verbose=0, validation_data=(x[:50], y[:50]))
    loss, accuracy = model.evaluate(x[:50], y[:50])
    assert set(history.history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert history.history["val_loss"][-1] == loss and history.history["val_accuracy"][-1] == accuracy
    assert history.epoch == [0, 1]


def test_evaluate_does_not_depend_on_the_batch_size_and_matches_predict():
    x, y = toy()
    model = compiled(net(dropout=True))
    model.fit(x, y, epochs=2, verbose=0)
    small, large = model.evaluate(x, y, batch_size=7, return_dict=True), model.evaluate(x, y, return_dict=True)
    assert small["loss"] == pytest.approx(large["loss"], rel=1e-5) and small["accuracy"] == pytest.approx(large["accuracy"])
    assert large["accuracy"] == pytest.approx((model.predict(x).argmax(axis=1) == y).mean())
    assert compiled(model).compile("sgd").evaluate(x, y) == pytest.approx(large["loss"])  # without metrics: the loss alone


def test_one_hot_labels_give_the_same_run():
    x, y = toy()
    runs = [compiled(net()).fit(x, labels, verbose=0) for labels in (y, np.eye(5)[y])]
    assert runs[0].steps["loss"] == pytest.approx(runs[1].steps["loss"], rel=1e-4)
    assert runs[0].steps["accuracy"] == runs[1].steps["accuracy"]


def test_seconds_grow_and_leave_callbacks_out():
    x, y = toy()

    class Slow(Callback):
        def on_train_batch_end(self, batch, logs=None):
            sum(range(200_000))

    fast, slow = (compiled(net()).fit(x, y, verbose=0, callbacks=c).steps["seconds"] for c in ([], [Slow()]))
    assert np.all(np.diff(fast) > 0)
    assert len(fast) == len(slow) == math.ceil(200 / 32)


# --- The model is left as it was ----------------------------------------------------------------------

def test_evaluate_and_predict_change_no_array_and_restore_each_modules_mode():
    x, y = toy()
    model = compiled(net(dropout=True))
    model.fit(x, y, verbose=0)
    model.layers[1].eval()  # frozen statistics stay frozen
    before, modes = weights(model), [m.training for m in model.modules()]
    model.evaluate(x, y)
    model.predict(x)
    assert same(before, weights(model)) and modes == [m.training for m in model.modules()]
    with pytest.raises(ValueError):
        model.predict(x[:, :3])
    assert modes == [m.training for m in model.modules()]


@pytest.mark.parametrize("spoil, message", [
    (lambda x, y: (x, np.where(np.arange(len(y)) == 199, 5, y)), "0 to 4"),
    (lambda x, y: (x, y - 1), "0 to 4"),
    (lambda x, y: (x, y.astype(float)), "integers"),
    (lambda x, y: (x, y[:-1]), "199"),
    (lambda x, y: (np.where(np.arange(x.size).reshape(x.shape) == 41, np.nan, x), y), "sample 2"),
    (lambda x, y: (x[:0], y[:0]), "at least one sample"),
    (lambda x, y: (x.astype(str), y), "numbers"),
    (lambda x, y: (x[:, :7], y), "expects inputs"),
    (lambda x, y: (x, np.eye(6)[y]), "classes"),
])
def test_bad_data_is_refused_before_any_work(spoil, message):
    x, y = toy()
    model = compiled(net(input_shape=20))
    before = weights(model)
    with pytest.raises((ValueError, TypeError), match=message):
        model.fit(*spoil(x, y), verbose=0)
    assert same(before, weights(model))


def test_float64_and_integer_inputs_become_float32():
    x, y = toy()
    for converted in (x.astype(np.float64), (10 * x).astype(int)):
        model = compiled(net())
        model.fit(converted, y, verbose=0)
        assert {a.dtype for a in weights(model)} == {np.dtype(np.float32), np.dtype(np.int64)}  # BatchNorm counts its updates
        assert model.predict(converted).dtype == np.float32


# --- Divergence ---------------------------------------------------------------------------------------

def test_a_divergence_names_step_layer_rate_and_last_good_loss_and_keeps_the_history():
    x, y = toy()
    model = compiled(net(batch_norm=False), lr=1e30)
    with pytest.raises(DivergenceError) as caught:
        model.fit(x, y, verbose=0)
    error = caught.value
    losses = error.history.steps["loss"]
    assert error.step == len(losses) >= 1 and np.isfinite(losses).all()
    assert all(part in str(error) for part in (f"step {error.step}", "dense", "1e+30", f"{losses[-1]:.4g}"))


def test_the_diagnosis_names_the_first_bad_layer_and_moves_no_statistics():
    x, _ = toy()
    model = net().build((20,))
    model.layers[3].kernel.data[0, 0] = np.nan
    before = weights(model)
    assert training.first_nonfinite(model, x).startswith("dense_1")
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, weights(model)))
    assert model.layers[0].forward_hooks == ()


# --- Keras' verbs -------------------------------------------------------------------------------------

def test_a_model_that_ends_in_softmax_has_an_exact_loss_at_huge_logits():
    x, y = np.array([[1e4, -1e4]], np.float32), np.array([1])
    model = Sequential([Dense(2, use_bias=False, kernel_initializer=lambda shape, rng: np.eye(2), input_shape=2),
                        Activation("softmax")])
    for loss, labels in (("sparse_categorical_crossentropy", y), ("categorical_crossentropy", np.eye(2)[y])):
        model.compile("sgd", loss)
        assert model.evaluate(x, labels) == 20000.0


@pytest.mark.parametrize("call, names", [
    (lambda: Activation("rleu"), ["relu", "sigmoid"]),
    (lambda: Dense(3, kernel_initializer="glorot"), ["glorot_uniform", "he_normal"]),
    (lambda: net().compile("adamm"), ["adam", "sgd"]),
    (lambda: net().compile("sgd", "crossentropy"), ["cross_entropy", "mse"]),
    (lambda: net().compile("sgd", "mse", ["acuracy"]), ["accuracy"]),
    (lambda: data.load("minst"), ["digits", "mnist"]),
])
def test_an_unknown_name_lists_the_valid_ones(call, names):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(name in str(caught.value) for name in names)


def test_a_shape_error_names_the_layer_what_it_expects_and_where_its_input_comes_from():
    model = Sequential([Dense(4), BatchNorm(), Dense(5, input_shape=9)])
    with pytest.raises(ValueError) as caught:
        model(np.zeros((2, 3), np.float32))
    message = str(caught.value)
    assert all(part in message for part in ("layer 2", "dense_1", "(n, 9)", "(2, 4)", "layer 1", "batchnorm"))


def test_an_optimizer_cannot_be_shared_by_two_models():
    """It would go on training the first and leave the second as it is, without a word."""
    optimizer = optim.SGD(lr=0.1)
    net().compile(optimizer).fit(*toy(), verbose=0)
    with pytest.raises(ValueError, match="another model"):
        net().compile(optimizer).fit(*toy(), verbose=0)


def test_accuracy_with_one_output_compares_with_one_half():
    outputs = np.array([[0.9], [0.2], [0.6], [0.4]], np.float32)
    assert training.accuracy(outputs, np.array([[1], [0], [0], [0]])) == 0.75
    assert training.accuracy(outputs, np.array([1, 0, 0, 0])) == 0.75
    with pytest.raises(ValueError, match="labels 0 and 1"):
        training.accuracy(outputs, np.array([3, 1, 2, 0]))
    model = Sequential([Dense(1)]).compile(loss="binary_cross_entropy_with_logits", metrics=["accuracy"])
    x, y = toy()
    labels = model.predict(x) > 0  # a logit of 0 is a probability of one half
    assert model.evaluate(x, labels, return_dict=True)["accuracy"] == 1


def test_a_binary_classifier_trains_without_warnings():
    x, y = toy(classes=2)
    model = Sequential([Dense(8, "relu"), Dense(1, "sigmoid")]).compile("Adam", "binary_crossentropy", ["accuracy"])
    history = model.fit(x, y[:, None], epochs=20, verbose=0)
    assert history.history["accuracy"][-1] > 0.9


def test_nested_models_draw_from_the_outer_seed_and_differ():
    def kernels(seed):
        model = Sequential([Sequential([Dense(6)]), Sequential([Dense(6)])], seed=seed).build((6,))
        return [p.data for p in model.parameters() if p.ndim == 2]
    one, two = kernels(0)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, kernels(1)[0]) and np.array_equal(one, kernels(0)[0])


def test_bad_validation_data_are_refused_before_any_work_and_named():
    x, y = toy()
    model = compiled(net(input_shape=20))
    before = weights(model)
    for bad in ((x, y + 1), (np.full_like(x, np.nan), y)):
        with pytest.raises(ValueError, match="validation data"):
            model.fit(x, y, validation_data=bad, verbose=0)
    assert same(before, weights(model))


def test_validation_split_holds_out_the_last_samples():
    x, y = toy()
    runs = [compiled(net()).fit(*fitted, verbose=0, **options).history for fitted, options in (
        ((x, y), {"validation_split": 0.2}), ((x[:160], y[:160]), {"validation_data": (x[160:], y[160:])}))]
    assert runs[0] == runs[1] and "val_loss" in runs[0]


def test_keras_arguments_that_change_nothing_are_taken():
    x, y = toy()
    model = compiled(net())
    model.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0) == model.evaluate(x, y)
    assert np.array_equal(model.predict(x, verbose=0), model.predict(x))
    images = Sequential([Flatten(input_shape=(4, 5)), Dense(5)])
    assert images.input_shape == (4, 5) and images.parameters()[0].shape == (20, 5)


def test_a_failed_first_batch_leaves_no_shape_behind():
    model = Sequential([BatchNorm(), Dense(3)])
    with pytest.raises(ValueError, match="expects inputs"):
        model(np.zeros((4, 5, 6, 2, 2), np.float32))
    model(np.zeros((4, 6), np.float32))
    assert model.input_shape == (6,)


def test_population_statistics_are_those_of_the_whole_set_and_nothing_else_changes():
    x, y = toy()
    model = compiled(net(dropout=True))
    model.fit(x, y, verbose=0)
    parameters, norm = [p.data.copy() for p in model.parameters()], model.layers[1]
    settings = norm.momentum, norm.updates, [m.training for m in model.modules()]
    estimate_population_statistics(model, x, batch_size=len(x))
    z = x @ model.layers[0].kernel.data + model.layers[0].bias.data
    assert np.allclose(norm.running_mean, z.mean(axis=0), atol=1e-5)
    assert np.allclose(norm.running_var, z.var(axis=0, ddof=1), rtol=1e-4)
    assert settings == (norm.momentum, norm.updates, [m.training for m in model.modules()])
    estimate_population_statistics(model, x, batch_size=len(x) - 2)  # a batch of two would weigh as much as all others
    assert np.allclose(norm.running_mean, z.mean(axis=0), atol=1e-5)
    assert same(parameters, [p.data for p in model.parameters()])


def test_a_divergence_survives_pickling_as_a_process_pool_needs_it():
    x, y = toy()
    with pytest.raises(DivergenceError) as caught:
        compiled(net(batch_norm=False), lr=1e30).fit(x, y, verbose=0)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value) and copy.layer == caught.value.layer
    assert copy.history.steps == caught.value.history.steps


def test_wrong_arguments_say_what_is_expected():
    for call, expected in ((lambda: Sequential(Dense(3)), "list of layers"), (lambda: net().compile(0.1), "optim.SGD"),
                           (lambda: net().build((20,)).predict(toy()[0], batch_size=-1), "at least 1"),
                           (lambda: data.batches(np.zeros(4), np.zeros(2), 2), "as many labels")):
        with pytest.raises((TypeError, ValueError), match=expected):
            call()


def test_verbs_before_compile_say_so():
    with pytest.raises(RuntimeError, match="compile"):
        net().fit(*toy())


def test_images_go_through_flatten_and_nested_sequentials():
    images = np.random.default_rng(0).random((40, 4, 5)).astype(np.float32)
    labels = np.arange(40) % 5
    model = compiled(Sequential([Flatten(), Sequential([Dense(8), BatchNorm()]), Activation("relu"), Dense(5)]))
    model.fit(images, labels, epochs=1, verbose=0)
    assert model.predict(images).shape == (40, 5)


def test_a_subclassed_module_trains_with_the_same_functions():
    class Net(Module):
        def __init__(self):
            super().__init__()
            rng = np.random.default_rng(0)
            self.fc1, self.bn, self.fc2 = Dense(16, rng=rng), BatchNorm(), Dense(5, rng=rng)

        def forward(self, x):
            return self.fc2(F.relu(self.bn(self.fc1(x))))

    x, y = toy()
    model = Net()
    history = training.fit(model, x, y, loss="cross_entropy", optimizer=optim.Adam(lr=0.01), metrics=["accuracy"], epochs=10,
                           rng=np.random.default_rng(0), verbose=0)
    assert history.history["accuracy"][-1] > 0.9 > history.history["accuracy"][0]


def test_callbacks_are_told_everything_in_order_and_can_stop_the_run():
    events = []

    class Log(Callback):
        def on_train_begin(self, logs=None): events.append("train_begin")
        def on_train_end(self, logs=None): events.append("train_end")
        def on_epoch_begin(self, epoch, logs=None): events.append(f"epoch_begin {epoch}")
        def on_epoch_end(self, epoch, logs=None): events.append(f"epoch_end {epoch} {sorted(logs)}")
        def on_train_batch_begin(self, batch, logs=None): events.append(f"batch_begin {batch}")

        def on_train_batch_end(self, batch, logs=None):
            events.append(f"batch_end {batch} {sorted(logs)}")
            self.model.stop_training = len(events) > 9

    x, y = toy(64)
    compiled(net()).fit(x, y, batch_size=32, epochs=5, verbose=0, callbacks=[Log()])
    batch = [e.format(i) for i in (0, 1) for e in ("batch_begin {}", "batch_end {} ['accuracy', 'loss']")]
    epoch = ["epoch_begin {}", *batch, "epoch_end {} ['accuracy', 'loss']"]
    assert events == (["train_begin"] + [e.format(0) for e in epoch] + ["epoch_begin 1", *batch[:2]]
                      + ["epoch_end 1 ['accuracy', 'loss']", "train_end"])


# --- Building layer by layer, state, hooks ------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, {"input_shape": 20}])
def test_adding_layer_by_layer_gives_the_same_model(options):
    def layers():
        return [Dense(16, **options), BatchNorm(), Activation("relu"), Dropout(0.2), Dense(5)]

    whole, grown = Sequential(layers(), seed=3), Sequential(seed=3)
    for layer in layers():
        grown.add(layer)
    x, y = toy()
    assert [layer.name for layer in grown.layers] == [layer.name for layer in whole.layers] == [
        "dense", "batchnorm", "activation", "dropout", "dense_1"]
    assert compiled(grown).fit(x, y, verbose=0).steps["loss"] == compiled(whole).fit(x, y, verbose=0).steps["loss"]
    grown.add(Dense(2))
    assert grown.predict(x).shape == (200, 2)
    with pytest.raises(RuntimeError, match="not compiled"):  # the optimizer knows nothing of the new layer
        grown.fit(x, y)


def trained(seed=0, **options):
    model = compiled(net(seed=seed, **options))
    model.fit(*toy(), verbose=0)
    return model


def test_a_state_moves_a_trained_model_into_a_new_one():
    old, new = trained(), net(seed=1, input_shape=20)
    state = old.state_dict()
    names = [f"layers.{name}" for name in ("0.kernel", "0.bias", "1.gamma", "1.beta", "3.kernel", "3.bias",
                                           "1.running_mean", "1.running_var")]
    assert set(names) <= set(state) == {n for n, _ in old.named_parameters()} | {n for n, _ in old.named_buffers()}
    parameters = new.parameters()
    assert new.load_state_dict(state) == ([], [])
    x, _ = toy()
    assert np.array_equal(new.predict(x), old.predict(x)) and all(a is b for a, b in zip(parameters, new.parameters()))


def test_a_state_is_a_copy_in_both_directions():
    model = trained()
    state = model.state_dict()
    before = {name: array.copy() for name, array in state.items()}
    model.fit(*toy(), verbose=0)
    assert all(np.array_equal(before[name], array) for name, array in state.items())
    model.load_state_dict(state)
    model.fit(*toy(), verbose=0)
    assert all(np.array_equal(before[name], array) for name, array in state.items())


def test_a_state_is_converted_to_the_models_dtypes():
    model = net(input_shape=20)
    model.load_state_dict({name: array.astype(np.float64) for name, array in trained().state_dict().items()})
    assert all(np.array_equal(array, model.state_dict()[name]) and array.dtype == model.state_dict()[name].dtype
               for name, array in trained().state_dict().items())


def test_a_zero_dimensional_buffer_is_part_of_the_state():
    class Counter(Module):
        def __init__(self):
            self.parts = {"count": np.array(0)}

    one, other = Counter(), Counter()
    one.parts["count"][...] = 7
    assert other.load_state_dict(one.state_dict()) == ([], []) and other.parts["count"] == 7


@pytest.mark.parametrize("spoil", [
    lambda s: s.pop("layers.3.bias"), lambda s: s.update(extra=np.zeros(2)), lambda s: s.update({"layers.3.bias": np.zeros(4)}),
    lambda s: s.update({"layers.3.bias": np.array(list("abcde"))})], ids=["missing", "unexpected", "shape", "no numbers"])
def test_a_state_that_does_not_fit_changes_nothing(spoil):
    """Its other entries do fit, and come first."""
    model, state = net(input_shape=20), trained().state_dict()
    before = weights(model)
    spoil(state)
    with pytest.raises(ValueError):
        model.load_state_dict(state)
    assert same(before, weights(model))


def test_without_strict_what_fits_is_loaded_and_the_rest_is_named():
    model, state = net(input_shape=20), trained().state_dict()
    bias, state["extra"] = state.pop("layers.3.bias"), np.zeros(2)
    assert model.load_state_dict(state, strict=False) == (["layers.3.bias"], ["extra"])
    now = model.state_dict()
    assert np.array_equal(now["layers.3.kernel"], state["layers.3.kernel"]) and not np.array_equal(now["layers.3.bias"], bias)
    with pytest.raises(ValueError, match="of another shape: layers.3.kernel"):
        model.load_state_dict({"layers.3.kernel": np.zeros((5, 16))}, strict=False)


def test_what_two_layers_share_is_in_the_state_once():
    shared = Dense(20, input_shape=20)
    assert list(Sequential([shared, Activation("relu"), shared]).state_dict()) == ["layers.0.kernel", "layers.0.bias"]


@pytest.mark.parametrize("kind", ["Sequential", "subclass"])
def test_weights_go_through_a_file(kind, tmp_path):
    class Net(Module):
        def __init__(self):
            self.blocks = [Dense(4, input_shape=20), BatchNorm(input_shape=4)]

    old, new = (net(input_shape=20, seed=0), net(input_shape=20, seed=1)) if kind == "Sequential" else (Net(), Net())
    old.save_weights(tmp_path / "w.npz")
    new.load_weights(tmp_path / "w.npz")
    assert same(weights(old), weights(new))
    with pytest.raises(ValueError, match=r"w\.npz: nothing was loaded"):
        net(batch_norm=False, input_shape=20).load_weights(tmp_path / "w.npz")


def test_an_unbuilt_model_writes_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="has no weights yet"):
        net().save_weights(tmp_path / "w.npz")
    assert list(tmp_path.iterdir()) == []


def test_frozen_parameters_are_not_trained():
    x, y = toy()
    model = compiled(net(input_shape=20))
    assert model.layers[0].requires_grad_(False) is model.layers[0]
    frozen, free = model.layers[0].kernel.data.copy(), model.layers[3].kernel.data.copy()
    model.fit(x, y, verbose=0)
    assert np.array_equal(frozen, model.layers[0].kernel.data) and not np.array_equal(free, model.layers[3].kernel.data)
    model.requires_grad_().fit(x, y, verbose=0)
    assert not np.array_equal(frozen, model.layers[0].kernel.data)


def test_hooks_record_activations_until_they_are_removed():
    model, seen = net(input_shape=20), []
    handles = [layer.register_forward_hook(lambda layer, inputs, y: seen.append((layer.name, inputs[0].shape, y.shape)))
               for layer in (model.layers[1], model.layers[3], model.layers[3])]
    model(toy(4)[0])
    assert seen == [("batchnorm", (4, 16), (4, 16))] + 2 * [("dense_1", (4, 16), (4, 5))]
    handles[1].remove()
    model(toy(4)[0])
    assert len(seen) == 5
    for handle in handles:
        handle.remove()
    model(toy(4)[0])
    assert len(seen) == 5 and len(model.modules()) == 5


# --- The console --------------------------------------------------------------------------------------

class Terminal(io.TextIOWrapper):
    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding)

    def isatty(self):
        return True

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


def test_on_a_pipe_there_is_one_plain_line_per_epoch(capsys):
    compiled(net()).fit(*toy(), epochs=2, validation_data=toy())
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2 and "\r" not in err and "\x1b" not in err and err.isascii()
    assert re.fullmatch(r"Epoch 1/2 - \d+\.\ds - loss: \d\.\d{4} - accuracy: \d\.\d{4} - val_loss: \d\.\d{4} "
                        r"- val_accuracy: \d\.\d{4}", lines[0])


def test_silent_means_silent(capsys):
    compiled(net()).fit(*toy(), verbose=0)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_on_a_terminal_there_is_a_bar_in_characters_it_can_show(encoding, monkeypatch):
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stderr", terminal)
    compiled(net()).fit(*toy(), epochs=1)
    text = terminal.text()
    assert "Epoch 1/1" in text and "7/7" in text and "loss: " in text
    assert text.isascii() == (encoding == "cp1252")


def test_numbers_are_printed_as_keras_prints_them():
    assert progress.format_logs({"loss": 0.123456, "mse": 0.000123456}) == "loss: 0.1235 - mse: 1.2346e-04"


def test_a_tensor_input_trains_as_an_array_does():
    x, y = toy()
    model = net().build((20,))
    assert np.array_equal(model(Tensor(x)).data, model(x).data)


def test_labels_of_any_integer_type_and_one_metric_without_a_list():
    x, y = toy()
    results = []
    for dtype in (np.int64, np.uint64, np.uint8):
        model = net().compile("sgd", metrics=training.accuracy)
        results.append(model.fit(x, y.astype(dtype), verbose=0).history)
    assert results[0] == results[1] == results[2] and "accuracy" in results[0]


# --- Everything is trained, or fit says what is not -----------------------------------------------

def moved(model, fit, layer):
    """Whether fit changes the kernel of a layer."""
    before = layer.kernel.data.copy()
    fit()
    return not np.array_equal(before, layer.kernel.data)


def fitted(optimizer=None):
    model = net().compile(optimizer or optim.Adam(lr=0.01))
    model.fit(*toy(), verbose=0)
    return model


def replace_last(model):
    model.layers[-1] = Dense(5)


def insert(model):
    model.layers.insert(3, Dense(16))


def append(model):
    model.layers.append(Dense(5))


def pop(model):
    model.layers.pop(1)


def replace_parameter(model):
    model.layers[0].kernel = Parameter(np.ones((20, 16), np.float32))


def add_parameter(model):
    model.layers[0].extra = Parameter(np.ones(3, np.float32))


def grow_parameter(model):
    model.layers[-1].kernel.data = np.ones((16, 6), np.float32)
    model.layers[-1].bias.data = np.ones(6, np.float32)


CHANGES = {replace_last: ["layers.3.kernel, layers.3.bias",
                          r"2 of its Parameters, of shape \(16, 5\), \(5,\)"],
           insert: ["layers.3.kernel"],
           append: ["layers.4.kernel"],
           pop: [r"2 of its Parameters, of shape \(16,\), \(16,\)"],
           replace_parameter: ["layers.0.kernel", "1 of its Parameters"],
           add_parameter: ["layers.0.extra"],
           grow_parameter: ["layers.3.kernel, layers.3.bias in another shape"]}


@pytest.mark.parametrize("change", CHANGES)
def test_fit_says_what_the_optimizer_does_not_train_after_a_change(change):
    model = fitted()
    change(model)
    with pytest.raises(ValueError) as caught:
        model.fit(*toy(), verbose=0)
    for words in [*CHANGES[change], "compile it again", r"layer\.trainable = False"]:
        assert re.search(words, str(caught.value))


@pytest.mark.parametrize("change", CHANGES)
def test_compile_gives_the_models_optimizer_the_parameters_it_has_now(change):
    """With the same optimizer object as before; of the layers that are new, every weight moves."""
    optimizer = optim.Adam(lr=0.01)
    model = fitted(optimizer)
    change(model)
    model.compile(optimizer).fit(*toy(), verbose=0)
    for layer in model:
        if isinstance(layer, Dense):
            assert moved(model, lambda: model.fit(*toy(), verbose=0), layer)
    assert {id(p) for p in optimizer.parameters} == {id(p) for p in model.parameters()}


def test_compiling_an_unchanged_model_again_keeps_the_optimizers_state():
    optimizer = optim.Adam(lr=0.01)
    model = fitted(optimizer)
    steps = optimizer.steps
    model.compile(optimizer).fit(*toy(), verbose=0)
    assert optimizer.steps == 2 * steps


def test_a_new_layer_is_drawn_from_the_models_seed_and_has_a_name():
    """Also when its weights are made by asking for the parameters, before any forward."""
    kernels = []
    for _ in range(2):
        model = net(input_shape=20)
        model.layers[-1] = Dense(3, input_shape=16)
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        kernels.append(model.layers[-1].kernel.data)
        assert model.layers[-1].name == "dense_2" and model.layers[-1].rng is model.weights_rng
    assert np.array_equal(*kernels) and optimizer
    model.layers.append(Dropout(0.5))
    model.layers.append(Dense(2, input_shape=9))
    with pytest.raises(ValueError,
                       match=r"layer 5, dense_3 Dense\(9 -> 2\).*from layer 4, dropout"):
        model.predict(toy()[0])
    assert model.layers[4].rng is model.dropout_rng


def test_a_new_layer_in_a_nested_model_is_drawn_from_its_seed():
    class Net(Module):
        def __init__(self):
            self.body = Sequential([Dense(4, input_shape=3)], seed=7)

    kernels = []
    for _ in range(2):
        model = Net()
        model.body.layers.append(Dense(5, input_shape=4))
        kernels.append(model.parameters()[2].data)
    assert np.array_equal(*kernels)


def test_the_shape_of_the_input_is_that_of_the_first_layer_now(capsys):
    model = net(input_shape=20)
    model.layers[0] = Dense(16, input_shape=7)
    model.summary()
    assert model.input_shape == (7,) and "dense_2 (Dense)" in capsys.readouterr().out
    model.layers[0] = Dense(16)
    model.predict(np.ones((2, 9), np.float32))
    model.summary()
    assert model.input_shape == (9,)


def test_a_whole_new_list_of_layers_is_taken_and_checked():
    model = fitted()
    model.layers = (Dense(4), Dense(5))
    with pytest.raises(ValueError, match="no longer has 6 of its Parameters"):
        model.fit(*toy(), verbose=0)
    model.predict(toy()[0])
    assert [layer.name for layer in model] == ["dense_2", "dense_3"]
    for wrong in ["relu"], [Dense]:
        model.layers = wrong
        with pytest.raises(TypeError, match="a layer is an object"):
            model.predict(toy()[0])
    with pytest.raises(TypeError, match="list of layers"):
        model.layers = "relu"


def test_parts_of_a_module_of_ones_own_and_of_nested_models_are_watched_as_well():
    class Net(Module):
        def __init__(self):
            self.body, self.head = Sequential([Dense(8), BatchNorm()]), Dense(5, rng=0)

        def forward(self, x):
            return self.head(self.body(x))

    model, optimizer = Net(), optim.SGD(lr=0.1)
    x, y = toy()

    def fit():
        return training.fit(model, x, y, loss="cross_entropy", optimizer=optimizer, verbose=0)

    fit()
    model.head = Dense(5, rng=1)
    with pytest.raises(ValueError, match="does not train head.kernel, head.bias"):
        fit()
    optimizer = optim.SGD(lr=0.1)
    fit()
    model.body.layers.append(Dense(8))
    with pytest.raises(ValueError, match="does not train body.layers.2.kernel"):
        fit()


def test_who_trains_a_part_freezes_the_rest():
    x, y = toy()
    model = net(input_shape=20)
    model.compile(optim.SGD(model.layers[-1].parameters(), lr=0.1))
    with pytest.raises(ValueError, match="does not train layers.0.kernel"):
        model.fit(x, y, verbose=0)
    for layer in model[:-1]:
        layer.trainable = False
    assert moved(model, lambda: model.fit(x, y, verbose=0), model[-1])
    model[0].trainable = True
    with pytest.raises(ValueError, match="does not train layers.0.kernel, layers.0.bias"):
        model.fit(x, y, verbose=0)


def test_frozen_layers_that_are_freed_later_are_trained():
    model = net(input_shape=20)
    model[0].trainable = False
    model.compile(optim.Adam(lr=0.01))
    assert not moved(model, lambda: model.fit(*toy(), verbose=0), model[0])
    model[0].trainable = True
    assert moved(model, lambda: model.fit(*toy(), verbose=0), model[0])


def test_a_layer_in_two_models_is_trained_by_both():
    body = Dense(8, "relu", input_shape=20, rng=0)
    x, y = toy()
    for model in [Sequential([body, Dense(5)]).compile(optim.Adam(lr=0.01)) for _ in range(2)]:
        assert moved(model, lambda: model.fit(x, y, verbose=0), body)


def test_trainable_false_freezes_statistics_too_and_the_summary_counts_it(capsys):
    x, y = toy()
    model = compiled(net(input_shape=20))
    model[0].trainable = model[1].trainable = False
    frozen = weights(model[:2])
    assert moved(model, lambda: model.fit(x, y, verbose=0), model[-1])
    assert same(frozen, weights(model[:2]))
    model.summary()
    assert "Trainable params: 85" in capsys.readouterr().out  # 16 x 5 + 5


def test_a_model_with_nothing_to_train_says_why():
    class Own(Module):
        def __init__(self):
            self.kernel = np.ones((20, 5), np.float32)

        def forward(self, x):
            return Tensor(x) @ self.kernel

    class Late(Module):
        def forward(self, x):
            return Dense(5, rng=0)(x)

    frozen = net(input_shape=20)
    frozen.trainable = False
    for model, words in ((Own(), r"its arrays kernel are kept.*Parameter\(array\)"),
                         (Late(), "__init__ and not in forward"),
                         (frozen, "all parameters are frozen: layers.0.kernel.*trainable = True")):
        with pytest.raises(ValueError, match=f"nothing to train.*{words}"):
            optimizer = optim.SGD(lr=0.1)
            training.fit(model, *toy(), loss="cross_entropy", optimizer=optimizer, verbose=0)


def test_layers_in_an_object_that_is_no_module_are_reported():
    class Block:
        def __init__(self):
            self.dense = Dense(20, input_shape=20, rng=0)

    class Net(Module):
        def __init__(self):
            self.block, self.head = Block(), Dense(5, rng=0)

        def forward(self, x):
            return self.head(self.block.dense(x))

    def fit(model):
        optimizer = optim.SGD(lr=0.1)
        training.fit(model, *toy(), loss="cross_entropy", optimizer=optimizer, verbose=0)

    with pytest.raises(ValueError,
                       match="block.dense would not be trained.*Make the class that holds them a Module"):
        fit(Net())
    model = Net()
    model.block.dense.trainable = False
    fit(model)
    slope = Parameter(np.ones(1, np.float32))
    with pytest.raises(ValueError, match="layers.1.function.slope would not be trained"):
        fit(Sequential([Dense(8), Activation(lambda x: F.maximum(x, slope * x)), Dense(5)]))


def test_what_a_module_may_keep_without_being_asked_about_it():
    """A library, a trainer that holds the model, a teacher in evaluation mode, any function."""
    from types import SimpleNamespace

    class Net(Module):
        def __init__(self):
            self.inner, self.library = Dense(5, rng=0), F
            self.trainer = SimpleNamespace(model=self, layers=[self.inner])
            self.teacher = SimpleNamespace(model=net(input_shape=20).eval())
            self.scale = lambda y: y * later

        def forward(self, x):
            return self.scale(self.inner(x))

    model = Net()
    later = 2.0
    optimizer = optim.SGD(lr=0.1)
    training.fit(model, *toy(), loss="cross_entropy", optimizer=optimizer, verbose=0)


@pytest.mark.parametrize("attached", [True, False])
def test_a_parameter_in_the_loss_is_trained_with_the_model(attached):
    """Given to the optimizer by hand, or not."""
    x, y = toy()
    scale, model = Parameter(np.ones(1, np.float32)), net(input_shape=20)
    optimizer = optim.SGD([*model.parameters(), scale] if attached else None, lr=0.1)
    model.compile(optimizer, lambda outputs, labels: F.cross_entropy(outputs * scale, labels))
    model.fit(x, y, verbose=0)
    assert scale.data != 1
    model.compile(optimizer).fit(x, y, verbose=0)  # without it again


def test_a_part_in_evaluation_mode_is_not_undone_in_silence():
    x, y = toy()
    model = compiled(net(dropout=True, input_shape=20))
    for part, name in ((model[1], r"batchnorm BatchNorm\(16\)"), (model[3], "dropout")):
        part.eval()
        with pytest.raises(ValueError,
                           match=f"{name}.*is in evaluation mode.*frozen_statistics = True.*train"):
            model.fit(x, y, verbose=0)
        model.train()
    model[0].eval()  # a Dense does the same in both
    model.eval().fit(x, y, verbose=0)  # and a whole model is switched, as always
    assert model.training


def test_a_train_of_ones_own_may_leave_a_part_in_evaluation_mode():
    """The way in which PyTorch programs keep BatchNorm frozen."""
    class Frozen(Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    x, y = toy()
    model = Frozen([Dense(16, input_shape=20), BatchNorm(), Dense(5)]).compile(optim.SGD(lr=0.1))
    for _ in range(2):
        model.train().fit(x, y, verbose=0)
    assert model[1].updates == 0 and model.training


def test_keras_training_argument_says_what_to_write():
    for model in net(input_shape=20), Dense(3):
        with pytest.raises(TypeError, match=r"takes no training=.*write model\.eval\(\)"):
            model(toy()[0], training=False)


def test_a_callback_that_changes_the_model_is_told():
    class Replace(Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1] = Dense(5, input_shape=16)

    with pytest.raises(ValueError, match="does not train layers.3.kernel"):
        compiled(net()).fit(*toy(), epochs=3, verbose=0, callbacks=[Replace()])


def test_loss_optimizer_and_metrics_may_be_set_after_compile_and_are_checked():
    x, y = toy()
    model = compiled(net(input_shape=20))
    model.optimizer, model.loss, model.metrics = "adam", "mse", "mse"
    history = model.fit(x, np.eye(5, dtype=np.float32)[y], verbose=0)
    assert isinstance(model.optimizer, optim.Adam) and set(history.history) == {"loss", "mse"}
    for name, value, kind in (("optimizer", 0.1, TypeError), ("loss", "msee", ValueError),
                              ("optimizer", "adamm", ValueError)):
        with pytest.raises(kind):
            setattr(model, name, value)
    for arguments in (None, "mse"), ("sgd", None), ("sgd", "mse", 5):
        with pytest.raises(TypeError, match="compile needs|metrics is a list"):
            model.compile(*arguments)
    assert model.compile("sgd", "mse", None).metrics == []  # Keras' default
    model = net(input_shape=20)
    model.loss = "mse"
    with pytest.raises(RuntimeError, match="not compiled"):
        model.fit(x, y)


# --- Sequential as a list, errors about the data --------------------------------------------------

def test_a_model_is_a_sequence_of_its_layers():
    model = fitted()
    x, _ = toy()
    features = model[:-1]
    assert len(model) == 4
    assert list(model) == model.layers
    assert model[0] is model.layers[0]
    assert model[-1] is model.layers[3]
    assert type(features) is Sequential and features.layers == model.layers[:-1] and Sequential()
    outputs = model[-1](features.predict(x)).data
    np.testing.assert_allclose(outputs, model.predict(x), rtol=1e-5, atol=1e-6)
    assert model[1:].layers == model.layers[1:]
    assert [layer.name for layer in features] == ["dense", "batchnorm", "activation"]
    for index in "dense", 1.0, None:
        with pytest.raises(TypeError, match=r"model\[0\] is the first layer"):
            model[index]
    with pytest.raises(IndexError):
        model[4]


def test_weights_as_a_list_go_from_one_model_to_another():
    old, new, x = fitted(), net(seed=5, input_shape=20), toy()[0]
    new.set_weights(old.get_weights())
    assert np.array_equal(old.predict(x), new.predict(x))
    with pytest.raises(ValueError, match="has 9 arrays.*got 2"):
        new.set_weights(old.get_weights()[:2])
    with pytest.raises(ValueError, match="of another shape"):
        new.set_weights(old.get_weights()[::-1])


def test_adding_builds_only_what_is_new():
    """Each layer is sent one sample when it is added, not all layers before it as well."""
    calls = []

    class Counted(Dense):
        def forward(self, x):
            calls.append(self.name)
            return super().forward(x)

    model = Sequential([Counted(4, input_shape=4)])
    for _ in range(20):
        model.add(Counted(4))
    assert len(calls) == 21
    Sequential([Counted(4, input_shape=4) for _ in range(20)])
    assert len(calls) == 41


def test_a_layer_that_does_not_fit_is_not_added():
    model = compiled(net(input_shape=20))
    with pytest.raises(ValueError,
                       match=r"layer 4, dense_2 Dense\(9 -> 3\).*got \(n, 5\).*from layer 3, dense_1"):
        model.add(Dense(3, input_shape=9))
    assert len(model) == 4 and model.loss is not None
    model.add(Dense(3))
    assert model.predict(toy()[0]).shape == (200, 3)


def test_a_model_cannot_hold_itself():
    inner = Sequential([Dense(3)])
    outer = Sequential([inner])
    with pytest.raises(ValueError, match="layer of itself"):
        outer.add(outer)
    inner.layers.append(outer)
    with pytest.raises(ValueError, match="layer of itself"):
        outer.predict(np.ones((2, 3), np.float32))


def test_errors_speak_of_the_data_and_not_of_the_sample_that_was_tried():
    images, y = np.ones((40, 28, 28), np.float32), np.arange(40) % 3
    model = Sequential([Flatten(), Dense(3, input_shape=100)]).compile()
    for call in (lambda: model.fit(images, y, verbose=0), lambda: model.evaluate(images, y),
                 lambda: model.predict(images)):
        with pytest.raises(ValueError,
                           match=r"expects inputs of shape \(n, 100\), got \(40, 784\)"):
            call()
    with pytest.raises(ValueError, match=r"got \(n, 28, 28\)"):
        Sequential([Dense(3, input_shape=100)]).build((28, 28))


def test_one_sample_without_a_batch_axis_is_recognised():
    model = Sequential([Flatten(input_shape=(28, 28)), Dense(3)])
    with pytest.raises(ValueError, match=r"one sample, write x\.reshape\(1, 28, 28\)"):
        model.predict(np.ones((28, 28), np.float32))
    with pytest.raises(ValueError,
                       match=r"model takes data of shape \(n, 28, 28\), got \(5, 30, 30\)"):
        model.predict(np.ones((5, 30, 30), np.float32))
    with pytest.raises(ValueError, match=r"one sample, write x\.reshape\(1, 20\)"):
        net(input_shape=20)(toy()[0][0])


def test_a_layer_in_a_nested_model_knows_where_its_input_comes_from():
    model = Sequential([Dense(3), Sequential([Dense(2, input_shape=9)])])
    with pytest.raises(ValueError) as caught:
        model(toy()[0])
    assert str(caught.value) == (
        "layer 1, layer 0, dense Dense(9 -> 2) expects inputs of shape (n, 9), got (200, 3); its "
        "input comes from layer 0, dense Dense(20 -> 3)")


def test_a_seed_for_the_shuffling_is_refused_before_any_callback():
    begun = []
    model = Sequential([Dense(3, input_shape=4)])
    with pytest.raises(TypeError, match="rng is a NumPy Generator"):
        training.fit(model, np.ones((8, 4), np.float32), np.zeros(8, int), loss="cross_entropy",
                     optimizer=optim.SGD(lr=0.1), rng=0, verbose=0,
                     callbacks=[LambdaCallback(on_train_begin=begun.append)])
    assert not begun
