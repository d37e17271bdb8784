"""What people type in the first weeks with Keras or PyTorch, and type here as well."""

import numpy as np
import pytest

from minidl import Activation, BatchNorm, Dense, Flatten, Input, LayerNorm, Sequential, Tensor

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
