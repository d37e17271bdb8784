"""A whole model in one file: what comes back is what was saved, and no file can do harm."""

import json

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Flatten,
    LayerNorm,
    Module,
    Parameter,
    Sequential,
    files,
)

X = np.random.default_rng(0).random((60, 4, 5), dtype=np.float32)
Y = np.arange(60) % 3


def trained():
    """One of each layer, trained, with settings that are not the defaults."""
    model = Sequential([
        Flatten(input_shape=(4, 5)),
        Sequential([Dense(8), BatchNorm(momentum=None, eps=1e-3, ghost_batch_size=4),
                    BatchNorm(affine=False, fused=False)]),
        Activation("gelu"), LayerNorm(eps=1e-4), LayerNorm(affine=False), Dropout(0.25),
        Dense(3, "softmax", use_bias=False)], seed=3)
    model.layers[1][1].frozen_statistics = True
    model[-1].trainable = False
    model[-1].name = "out"
    model.compile("adam", "sparse_categorical_crossentropy").fit(X, Y, verbose=0)
    return model


@pytest.fixture(params=["m.npz", "m.safetensors"])
def path(tmp_path, request):
    return tmp_path / request.param


def test_a_model_comes_back_whole(path):
    """Layers, settings, names, weights, statistics, what is frozen; outputs to the last bit."""
    model = trained()
    model.save(path)
    other = Sequential.load(path)
    assert np.array_equal(model.predict(X), other.predict(X)) and repr(model) == repr(other)
    assert [layer.name for layer in model] == [layer.name for layer in other]
    assert other.input_shape == (4, 5)
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in other.named_parameters()]
    frozen = [[p.requires_grad for p in each.parameters()] for each in (model, other)]
    assert frozen[0] == frozen[1]
    for one, two in zip(model.modules(), other.modules(), strict=True):
        for name in ("units", "activation", "use_bias", "function", "momentum", "eps", "affine",
                     "fused", "ghost_batch_size", "rate", "frozen_statistics", "estimated",
                     "input_shape"):
            assert getattr(one, name, None) == getattr(two, name, None), name
    with pytest.raises(RuntimeError, match="not compiled"):
        other.fit(X, Y)
    other.compile("adam", "sparse_categorical_crossentropy").fit(X, Y, verbose=0)


def test_float64_comes_back_as_float64(path):
    Sequential([Dense(3, input_shape=2), BatchNorm()]).astype(np.float64).save(path)
    assert {p.dtype for p in Sequential.load(path).parameters()} == {np.dtype(np.float64)}


class OwnDense(Dense):
    pass


class OwnModel(Sequential):
    pass


class Own(Module):
    def forward(self, x):
        return x


def with_extra():
    model = Sequential([Dense(3, input_shape=2)])
    model[0].extra = Parameter([1.0])
    return model


def with_name(name):
    model = Sequential([Dense(3, input_shape=2)])
    model[0].name = name
    return model


def with_another_shape():
    model = Sequential([Dense(3, input_shape=2)])
    model[0].kernel.data = np.ones((2, 4), np.float32)
    return model


def with_two_dtypes():
    model = Sequential([Dense(3, input_shape=2), Dense(3)])
    model[1].astype(np.float64)
    return model


def with_a_layer_twice():
    layer = Dense(2, input_shape=2)
    return Sequential([layer, layer])


@pytest.mark.parametrize("make, words", [
    (lambda: Sequential([OwnDense(3, input_shape=2)]),
     r"owndense Dense\(2 -> 3\) is none of Dense, Activation"),
    (lambda: Sequential([Dense(3, input_shape=2), Own()]), r"own Own\(\) is none of"),
    (lambda: Sequential([Dense(3, input_shape=2), Activation(lambda x: x)]), "a function of its own"),
    (lambda: Sequential([Dense(3, lambda x: x, input_shape=2)]), "has a function of its own"),
    (lambda: OwnModel([Dense(3, input_shape=2)]), "only a plain Sequential"),
    (lambda: with_name("a" * 101), "a layer's name"), (lambda: with_name(5), "a layer's name"),
    (with_a_layer_twice, "is in it twice"), (with_extra, r"layers\.0\.extra"),
    (with_another_shape, r"\(2, 4\) instead of"),
    (with_two_dtypes, "several dtypes")])
def test_what_cannot_be_described_is_refused_before_a_file_is_touched(make, words, path):
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match=words):
        make().save(path)
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1


def test_a_model_without_weights_is_not_saved(path):
    with pytest.raises(RuntimeError, match="has no weights yet"):
        Sequential([Dense(3)]).save(path)
    assert not path.exists()


def test_other_files_are_no_models(path):
    model = Sequential([Dense(3, input_shape=2)])
    model.save_weights(path)
    with pytest.raises(ValueError, match=r"holds no whole model.*load_weights"):
        Sequential.load(path)
    with pytest.raises(FileNotFoundError):
        Sequential.load(path.with_name("absent.npz"))
    for verb in model.save, Sequential.load:
        with pytest.raises(ValueError, match=r"\.npz or \.safetensors"):
            verb("model.h5")


def setting(i, name, value):
    return lambda text: text["layers"][i]["settings"].update({name: value})


def entry(i, **values):
    return lambda text: text["layers"][i].update(values)


@pytest.mark.parametrize("spoil", [
    setting(0, "units", 10 ** 12),
    setting(0, "units", "x"),
    setting(0, "activation", "os.system"),
    setting(1, "eps", "nan"),
    setting(0, "rng", 1),
    setting(1, "momentum", []),
    entry(0, kind="Module"),
    entry(0, kind=[]),
    entry(0, name=["a"]),
    entry(0, name="a" * 10 ** 6),
    entry(0, name="\x1b[2J"),
    entry(0, settings=3),
    entry(0, input_shape=[10 ** 12]),
    entry(1, input_shape=[10 ** 12]),
    entry(1, flags={}),
    entry(0, input_shape=None),
    entry(0, layers=3),
    lambda text: text.pop("layers"),
    lambda text: text.update(layers="abc"),
    lambda text: text.update(layers=3),
    lambda text: text.update(frozen=["absent"]),
    lambda text: text.update(frozen=3),
    lambda text: text["layers"].pop(),
    lambda text: text["layers"].reverse(), lambda text: text["layers"].insert(0, "Dense"),
    lambda text: text.update(input_shape=[10 ** 9, 10 ** 9]),
    lambda text: text.update(input_shape=[5]),
    lambda text: text.update(input_shape="abc"), lambda text: text.update(input_shape=[-4])])
def test_a_text_that_lies_is_refused_without_much_memory(spoil, path):
    import tracemalloc
    Sequential([Dense(8, "relu", input_shape=4), BatchNorm(), Dense(2)]).save(path)
    state = files.load(path)
    text = json.loads(state["architecture"].tobytes())
    spoil(text)
    files.save(path, {**state, "architecture": np.frombuffer(json.dumps(text).encode(), np.uint8)})
    tracemalloc.start()
    with pytest.raises(ValueError, match=path.name) as caught:
        Sequential.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6 and len(str(caught.value)) < 1000


@pytest.mark.parametrize("architecture", [b"", b"[]", b"{", b"[" * 100_000, b"\xff", b"null"])
def test_a_text_that_is_none_is_refused(architecture, path):
    files.save(path, {"architecture": np.frombuffer(architecture, np.uint8)})
    with pytest.raises(ValueError, match=path.name):
        Sequential.load(path)


def test_load_weights_of_a_whole_model_says_how_it_is_loaded(path):
    model = trained()
    model.save(path)
    with pytest.raises(ValueError, match=r"whole model, layers and weights: use Sequential\.load"):
        model.load_weights(path)
