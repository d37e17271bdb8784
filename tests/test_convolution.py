"""Convolution and pooling: against loops, gradients of both orders, layers that train, are saved and say what is wrong."""

import numpy as np
import pytest

import minidl
from minidl import (
    Activation,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Flatten,
    GlobalAveragePool2D,
    LambdaCallback,
    MaxPool2D,
    Sequential,
    Tensor,
    gradcheck,
    initializers,
    no_grad,
    optim,
)
from minidl import functional as F
from minidl.convolution import _by_image, _by_kernel, _convolve, average_pool, convolve, max_pool

RNG = np.random.default_rng(0)
GEOMETRIES = [(3, 1, 0), (3, 1, 1), (3, 1, 2), (3, 2, 1), (2, 2, 0), (2, 3, 1), (1, 1, 0), (5, 2, 2), (1, 2, 0)]
IDS = [f"size {size}, stride {stride}, padding {padding}" for size, stride, padding in GEOMETRIES]


def normal(*shape, dtype=np.float64):
    return RNG.standard_normal(shape).astype(dtype)


def by_loops(x, kernel, stride, padding):
    """The definition of convolve, one output at a time."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    size = len(kernel)
    h, w = ((side - size) // stride + 1 for side in x.shape[2:])
    y = np.empty((len(x), kernel.shape[3], h, w), x.dtype)
    for a in range(h):
        for b in range(w):
            window = x[:, :, a * stride:a * stride + size, b * stride:b * stride + size]
            y[:, :, a, b] = np.einsum("ncij,ijco->no", window, kernel)
    return y


# --- Ops --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size, stride, padding", GEOMETRIES, ids=IDS)
def test_a_convolution_is_what_its_definition_says(size, stride, padding):
    x, kernel = normal(3, 2, 6, 7), normal(size, size, 2, 4)
    expected = by_loops(x, kernel, stride, padding)
    np.testing.assert_allclose(convolve(x, kernel, stride, padding), expected, rtol=1e-12, atol=1e-12)
    got = convolve(Tensor(x.astype(np.float32)), kernel.astype(np.float32), stride, padding)
    assert got.dtype == np.float32 and got.shape == expected.shape


@pytest.mark.parametrize("size, stride, padding", GEOMETRIES, ids=IDS)
def test_gradients_of_both_orders(size, stride, padding):
    """The second order runs through the VJPs of the other two ops: no third is needed."""
    assert gradcheck(lambda x, kernel: convolve(x, kernel, stride, padding),
                     [normal(2, 2, 6, 5), normal(size, size, 2, 3)], order=2)


@pytest.mark.parametrize("size, stride, padding", GEOMETRIES, ids=IDS)
def test_the_three_ops_are_one_trilinear_form(size, stride, padding):
    """sum(g * y), seen from each of its three arguments: the same number."""
    x, kernel = normal(2, 2, 6, 7), normal(size, size, 2, 3)
    settings = {"stride": stride, "padding": padding}
    y = _convolve(x, kernel, **settings)
    g = normal(*y.shape)
    number = np.sum(g * y)
    assert np.sum(x * _by_image(g, kernel, shape=x.shape, **settings)) == pytest.approx(number)
    assert np.sum(kernel * _by_kernel(x, g, size=size, **settings)) == pytest.approx(number)


def calls(op):
    """op with settings that leave nothing to chance, and arrays to call it on."""
    settings = {"stride": 2, "padding": 1}
    x, kernel, d = normal(2, 2, 5, 6), normal(3, 3, 2, 3), normal(2, 3, 3, 3)
    return {_convolve: (lambda a, b: op(a, b, **settings), [x, kernel]),
            _by_image: (lambda a, b: op(a, b, shape=x.shape, **settings), [d, kernel]),
            _by_kernel: (lambda a, b: op(a, b, size=3, **settings), [x, d])}[op]


@pytest.mark.parametrize("op", [_convolve, _by_image, _by_kernel])
def test_each_of_the_three_has_right_gradients(op):
    assert gradcheck(*calls(op), order=2)


@pytest.mark.parametrize("op", [_convolve, _by_image, _by_kernel])
@pytest.mark.parametrize("place", [0, 1])
def test_the_check_notices_each_broken_vjp(op, place, monkeypatch):
    vjps = list(op.vjps)
    right = vjps[place]
    vjps[place] = lambda *arguments: right(*arguments) * 1.01
    monkeypatch.setattr(op, "vjps", vjps)
    with pytest.raises(AssertionError):
        gradcheck(*calls(op))


def test_a_convolution_moves_with_its_image():
    """Away from the edge: move the image, and the output moves by as much."""
    image, kernel = np.zeros((1, 1, 12, 12)), normal(3, 3, 1, 2)
    image[0, 0, 3:7, 4:8] = normal(4, 4)
    moved = np.roll(image, (2, 1), axis=(2, 3))
    expected = np.roll(convolve(image, kernel, padding=1), (2, 1), axis=(2, 3))
    np.testing.assert_allclose(convolve(moved, kernel, padding=1), expected, atol=1e-15)


@pytest.mark.parametrize("pool, reduce", [(max_pool, np.max), (average_pool, np.mean)])
def test_pooling(pool, reduce):
    x = RNG.permutation(2 * 3 * 7 * 5).reshape(2, 3, 7, 5) * 0.1
    for size in 1, 2, 3:
        expected = [[reduce(x[:, :, size * a:size * (a + 1), size * b:size * (b + 1)], axis=(2, 3))
                     for b in range(5 // size)] for a in range(7 // size)]
        np.testing.assert_allclose(pool(x, size), np.transpose(expected, (2, 3, 0, 1)))
        assert gradcheck(lambda x: pool(x, size) ** 2, x, order=2)


def test_whatever_order_the_numbers_have_in_memory():
    x, kernel = normal(2, 3, 6, 6), normal(3, 3, 3, 4)
    last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for one, two in zip(map(convolve, (x, last), (kernel, kernel)), map(max_pool, (x, last), (2, 2)), strict=True):
        assert one.shape[0] == two.shape[0]
    assert np.array_equal(convolve(x, kernel), convolve(last, kernel)) and np.array_equal(max_pool(x, 2), max_pool(last, 2))


# --- Layers -----------------------------------------------------------------------------------------------

def network(**options):
    return Sequential([Conv2D(4, 3, padding="same", use_bias=False, **options), BatchNorm(), Activation("relu"), MaxPool2D(2),
                       Conv2D(6, (3, 3), 2, 1, "tanh"), AveragePool2D(2), Conv2D(5, 1), GlobalAveragePool2D(), Dense(3)],
                      seed=1)


X = np.random.default_rng(1).random((40, 2, 12, 13), np.float32)
Y = np.arange(40) % 3


def trained(epochs=2, **fit):
    model = network().compile(optim.SGD(lr=0.1, momentum=0.9), metrics=["accuracy"])
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, **fit)
    return model


def test_a_network_of_images_trains_and_sums_up(capsys):
    model = trained(30)
    assert model.evaluate(X, Y)[1] > 0.6  # of noise with three labels in turn, learned by heart
    model.summary()
    text = " ".join(capsys.readouterr().out.split())
    for words in "(None, 4, 12, 13) 72", "(None, 4, 6, 6)", "(None, 6, 3, 3) 222", "(None, 5)":
        assert words in text
    assert repr(model[0]) == "Conv2D(2 -> 4, 3, padding='same')" and repr(model[3]) == "MaxPool2D(2)"
    assert repr(model[4]) == "Conv2D(4 -> 6, 3, stride=2, padding=1, tanh)"


def test_the_seed_of_a_model_decides_its_filters():
    one, two = network().build((2, 12, 13)), network().build((2, 12, 13))
    assert np.array_equal(one[0].kernel.data, two[0].kernel.data) and one[0].kernel.dtype == np.float32
    assert not np.array_equal(one[0].kernel.data, Sequential([Conv2D(4, 3, input_shape=(2, 9, 9))], seed=2)[0].kernel.data)


def test_the_initial_weights_know_how_many_inputs_a_filter_has():
    """Glorot and He count every pixel of a window: standard deviations for 3 x 3 x 50 inputs and 3 x 3 x 70 outputs."""
    shape, rng = (3, 3, 50, 70), np.random.default_rng(0)
    assert initializers.he_normal(shape, rng).std() == pytest.approx((2 / 450) ** 0.5, rel=0.02)
    for draw in initializers.glorot_normal, initializers.glorot_uniform:
        assert draw(shape, rng).std() == pytest.approx((2 / (450 + 630)) ** 0.5, rel=0.02)
    assert np.abs(initializers.he_uniform(shape, rng)).max() == pytest.approx((6 / 450) ** 0.5, rel=0.01)


@pytest.mark.parametrize("name", ["m.npz", "m.safetensors"])
def test_a_model_of_images_comes_back_whole(name, tmp_path):
    model = trained()
    model.save(tmp_path / name)
    other = Sequential.load(tmp_path / name)
    assert np.array_equal(model.predict(X), other.predict(X)) and repr(model) == repr(other)
    assert other.input_shape == (2, 12, 13)


def test_a_run_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    path = tmp_path / "run.npz"
    whole, first = trained(4), network().compile(optim.SGD(lr=0.1, momentum=0.9), metrics=["accuracy"])
    first.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[
        LambdaCallback(on_epoch_end=lambda epoch, logs: first.save_checkpoint(path, epoch + 1))])
    second = network(input_shape=(2, 12, 13)).compile(optim.SGD(lr=0.1, momentum=0.9), metrics=["accuracy"])
    second.fit(X, Y, batch_size=8, epochs=4, verbose=0, initial_epoch=second.load_checkpoint(path))
    assert np.array_equal(whole.predict(X), second.predict(X))


def test_a_small_file_cannot_ask_for_a_large_convolution(tmp_path):
    """An image of 4,096 x 4,096 pixels times 1,000 filters would be 64 gigabytes."""
    Sequential([Conv2D(1000, 1)]).build((1, 2, 2)).save(tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as file:
        arrays = dict(file)
    text = arrays["architecture"].tobytes().replace(b"[1, 2, 2]", b"[1, 4096, 4096]")
    np.savez(tmp_path / "m.npz", **{**arrays, "architecture": np.frombuffer(text, np.uint8)})
    with pytest.raises(ValueError, match="too large for weights as few as these"):
        Sequential.load(tmp_path / "m.npz")


def test_batch_norm_folds_into_the_convolution_before_it():
    model = Sequential([Conv2D(5, 3, 2, 1, use_bias=False), BatchNorm()]).build((2, 8, 8)).astype(np.float64)
    for p in model.parameters():
        p.data = p.data + normal(*p.shape)
    model(normal(16, 2, 8, 8))
    folded, x = model[1].fold(model[0]), normal(4, 2, 8, 8)
    np.testing.assert_allclose(folded(x).data, model.eval()(x).data, rtol=1e-10, atol=1e-12)
    assert model[0].bias is None and folded.use_bias and repr(folded) == repr(model[0])


def test_batch_norm_has_one_mean_for_each_channel():
    """Over the images and over all their pixels, as BatchNorm2d of PyTorch."""
    layer, x = BatchNorm(), normal(8, 5, 4, 3, dtype=np.float32)
    y = layer(x).data
    assert layer.latest.n == 8 * 4 * 3 and layer.running_mean.shape == (5,)
    np.testing.assert_allclose(layer.latest.mean, x.mean(axis=(0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), np.zeros(5), atol=1e-6)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), np.ones(5), atol=1e-4)


def test_images_of_any_size_go_through_one_network():
    model = network().build((2, 12, 13)).eval()
    with no_grad():
        assert model(np.zeros((1, 2, 20, 30), np.float32)).shape == (1, 3)


# --- What is wrong, and what to do ------------------------------------------------------------------------

@pytest.mark.parametrize("make, words", [
    (lambda: Conv2D(3, (3, 2)), "kernel_size is a whole number.*windows as high as wide.*got \\(3, 2\\)"),
    (lambda: Conv2D(0, 3), "filters"), (lambda: Conv2D(3, 3, 0), "stride is a whole number"),
    (lambda: Conv2D(3, 3, padding="full"), 'padding is "valid".*got \'full\''),
    (lambda: Conv2D(3, 2, padding="same"), "take an odd kernel_size"),
    (lambda: Conv2D(3, 3, input_shape=(28, 28)), r"\(channels, height, width\), such as \(1, 28, 28\), got \(28, 28\)"),
    (lambda: Conv2D(3, 3, input_shape=784), r"such as \(1, 28, 28\), got \(784,\)"),
    (lambda: Conv2D(3, 3)(np.zeros((5, 784), np.float32)), r"x.reshape\(-1, 1, 28, 28\)"),
    (lambda: Conv2D(3, 3)(np.zeros((5, 28, 28), np.float32)), r"x.reshape\(-1, 1, 28, 28\)"),
    (lambda: Conv2D(3, 3, input_shape=(3, 32, 32))(np.zeros((5, 32, 32, 3), np.float32)), r"x.transpose\(0, 3, 1, 2\)"),
    (lambda: Conv2D(3, 3, padding=3)(np.zeros((5, 1, 9, 9), np.float32)), "takes a padding from 0 to 2, got 3"),
    (lambda: Conv2D(3, 5)(np.zeros((5, 1, 9, 4), np.float32)), "5 x 5 pixels does not fit into an image of 9 x 4"),
    (lambda: convolve(normal(2, 3, 5, 5), normal(3, 3, 2, 4)), r"\(2, 3, 5, 5\) and \(3, 3, 2, 4\)"),
    (lambda: MaxPool2D(0), "size is a whole number"), (lambda: AveragePool2D((2, 3)), "as high as wide"),
    (lambda: MaxPool2D(3)(normal(2, 3, 2, 5)), "as large as that, got"),
    (lambda: GlobalAveragePool2D()(Tensor(normal(2, 3))), r"takes images .*got \(2, 3\)"),
    (lambda: F.cross_entropy(Sequential([Conv2D(3, 3), Dense(2)])(normal(5, 1, 8, 8)), np.zeros(5, int)),
     r"put Flatten\(\) before the first Dense")])
def test_an_error_says_what_to_do(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("make, words", [
    (lambda: Conv2D(3, 3, strides=2), "write stride=2"), (lambda: Conv2D(3, 3, data_format="x"), "channels, height, width"),
    (lambda: Conv2D(in_channels=1, filters=3, kernel_size=3), "input_shape="), (lambda: MaxPool2D(pool_size=2), "MaxPool2D"),
    (lambda: minidl.Conv2d, r"Conv2D\(8, 3\)"), (lambda: minidl.MaxPooling2D, "MaxPool2D"), (lambda: Conv2D(3, 3).weight, "kernel")])
def test_words_from_habit_are_answered(make, words):
    with pytest.raises((TypeError, AttributeError), match=words):
        make()


def test_a_pool_may_sleep_in_a_model_that_trains():
    """It does the same in training and evaluation, so fit need not complain."""
    model = Sequential([Conv2D(2, 3), MaxPool2D(2), GlobalAveragePool2D(), Flatten(), Dense(3)])
    model[1].eval()
    model.compile().fit(X, Y, verbose=0)


# --- As PyTorch -------------------------------------------------------------------------------------------

@pytest.mark.parity
@pytest.mark.parametrize("size, stride, padding", GEOMETRIES, ids=IDS)
def test_torch(size, stride, padding):
    torch = pytest.importorskip("torch")
    x, kernel, bias = normal(3, 2, 6, 7), normal(size, size, 2, 4), normal(4)
    layer = Conv2D(4, size, stride, padding, input_shape=(2, 6, 7))
    layer.create_parameters()
    layer.kernel.data, layer.bias.data = kernel, bias
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    weight = torch.tensor(kernel.transpose(3, 2, 0, 1), requires_grad=True)
    y, yt = layer(ours), torch.nn.functional.conv2d(theirs, weight, torch.tensor(bias), stride, padding)
    g = normal(*y.shape)
    y.backward(g)
    yt.backward(torch.tensor(g))
    for one, two in ((y.data, yt), (ours.grad, theirs.grad), (layer.kernel.grad.transpose(3, 2, 0, 1), weight.grad)):
        np.testing.assert_allclose(one, two.detach().numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(layer.bias.grad, g.sum(axis=(0, 2, 3)))
