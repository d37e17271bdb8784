"""Layers, their initial weights, and what a Module knows about its parts."""

import copy
import math
import pickle

import numpy as np
import pytest

import minidl.functional as F
from minidl import (
    Activation,
    BatchNorm,
    Dense,
    DivergenceError,
    Dropout,
    Flatten,
    LayerNorm,
    Module,
    Parameter,
    Sequential,
    Tensor,
    estimate_population_statistics,
    grad,
    gradcheck,
    initializers,
    no_grad,
    optim,
)
from minidl.layers import ACTIVATIONS
from minidl.module import evaluation


@pytest.fixture(autouse=True)
def rng():
    """Every test draws the same numbers, whichever ran before."""
    global RNG
    RNG = np.random.default_rng(0)


def normal(*shape, dtype=np.float64):
    return RNG.standard_normal(shape).astype(dtype)


def batch_norm(features=3, dtype=np.float64, **options):
    """A built BatchNorm in float64, with gamma and beta that are not 1 and 0."""
    layer = BatchNorm(input_shape=features, **options)
    layer.parameters()
    layer.astype(dtype)
    if layer.affine:
        layer.gamma.data = np.linspace(0.5, 2, features).astype(dtype)
        layer.beta.data = np.linspace(-1, 1, features).astype(dtype)
    return layer


def dense(inputs, units, activation=None, seed=0, **options):
    layer = Dense(units, activation, input_shape=inputs, rng=np.random.default_rng(seed), **options)
    layer.parameters()
    return layer


# --- BatchNorm: training mode ------------------------------------------------------------------------------

SHAPES = [(8, 3), (4, 3, 5, 2)]


def over_batch(x):
    """Every axis but that of the channels."""
    return tuple(i for i in range(x.ndim) if i != 1)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bn_normalises_with_the_biased_variance(shape, fused):
    layer, x = batch_norm(fused=fused), normal(*shape) * 3 + 5
    y = layer(x).data
    np.testing.assert_allclose(y.mean(axis=over_batch(y)), layer.beta.data, atol=1e-12)
    var = x.var(axis=over_batch(x))
    np.testing.assert_allclose(y.var(axis=over_batch(y)), layer.gamma.data ** 2 * var / (var + 1e-5), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 0.25])
def test_bn_running_statistics(shape, momentum):
    """running = (1 - momentum) running + momentum batch, variance unbiased, from mean 0 and variance 1."""
    layer, mean, var = batch_norm(momentum=momentum), np.zeros(3), np.ones(3)
    assert np.array_equal(layer.running_mean, mean) and np.array_equal(layer.running_var, var)
    for i in range(3):
        x = normal(*shape) * (i + 1) + i
        layer(x)
        mean = (1 - momentum) * mean + momentum * x.mean(axis=over_batch(x))
        var = (1 - momentum) * var + momentum * x.var(axis=over_batch(x), ddof=1)
        np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(layer.running_var, var, rtol=1e-12)


def test_bn_momentum_none_is_the_plain_average_over_all_batches():
    layer, batches = batch_norm(momentum=None), normal(5, 8, 3)
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean, batches.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(layer.running_var, batches.var(axis=1, ddof=1).mean(axis=0), rtol=1e-12)


def test_bn_after_one_step_evaluation_has_the_right_scale():
    """A running variance started at 0 would give outputs with standard deviation 3.16."""
    layer, x = BatchNorm(), normal(1000, 4, dtype=np.float32)
    layer(x)
    assert 0.9 < layer.eval()(x).data.std() < 1.1


def test_bn_training_under_no_grad_moves_the_statistics_too():
    """As `estimate_population_statistics` needs it."""
    with_graph, without = batch_norm(), batch_norm()
    x = normal(8, 3)
    with_graph(x)
    with no_grad():
        without(x)
    assert np.array_equal(with_graph.running_var, without.running_var) and with_graph.running_mean.any()


def test_bn_statistics_are_outside_the_graph():
    layer = batch_norm()
    layer(Tensor(normal(8, 3), requires_grad=True))
    assert type(layer.running_mean) is type(layer.running_var) is np.ndarray


def test_bn_without_affine_has_no_parameters():
    layer, x = BatchNorm(affine=False), normal(8, 3)
    y = layer(Tensor(x.astype(np.float32), requires_grad=True))
    np.testing.assert_allclose(y.data, (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5), rtol=1e-4, atol=1e-5)
    assert layer.parameters() == [] and len(layer.buffers()) == 3
    assert gradcheck(batch_norm(affine=False), x)


def outputs_and_gradients(layer, x, u):
    xt = Tensor(x, requires_grad=True)
    y = layer(xt)
    return [y.data, *grad(y, [xt, layer.gamma, layer.beta], u), layer.running_mean, layer.running_var]


@pytest.mark.parametrize("shape", SHAPES)
def test_bn_fused_is_the_composed_one(shape):
    x, u = normal(*shape) + 2, normal(*shape)
    for a, b in zip(*(outputs_and_gradients(batch_norm(fused=fused), x, u) for fused in (True, False))):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_bn_of_images_is_bn_of_their_pixels(fused, training):
    """(n, c, h, w) is (n h w, c), every pixel a sample."""
    x, u = normal(4, 3, 5, 2), normal(4, 3, 5, 2)

    def pixels(a):
        return a.transpose(0, 2, 3, 1).reshape(-1, 3)

    images = outputs_and_gradients(batch_norm(fused=fused).train(training), x, u)
    flat = outputs_and_gradients(batch_norm(fused=fused).train(training), pixels(x), pixels(u))
    for i, (a, b) in enumerate(zip(images, flat)):
        np.testing.assert_allclose(pixels(a) if i < 2 else a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, {"fused": False}, {"momentum": None}], ids=str)
def test_bn_gradients_in_training(shape, options):
    layer = batch_norm(**options)

    def function(x, gamma, beta):
        layer.gamma, layer.beta = gamma, beta
        return layer(x)

    assert gradcheck(function, [normal(*shape) * 2, normal(3), normal(3)], order=1 if layer.fused else 2)


def test_bn_of_two_samples_forgets_all_but_the_order():
    """The output is beta plus or minus gamma, whatever the two numbers are."""
    layer = batch_norm(eps=0.0)
    x = normal(2, 3)
    expected = layer.beta.data + np.sign(x - x.mean(axis=0)) * layer.gamma.data
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12)


@pytest.mark.parametrize("a", [0.01, 100.0])
def test_bn_does_not_see_the_scale_of_the_weights(a):
    """BN(a W x) = BN(W x), and the gradient with respect to W shrinks by a (section 3.3 of the paper)."""
    layer, x, w, u = batch_norm(eps=0.0), normal(8, 5), normal(5, 3), normal(8, 3)
    results = []
    for kernel in Tensor(w, requires_grad=True), Tensor(a * w, requires_grad=True):
        y = layer(x @ kernel)
        results.append((y.data, grad(y, kernel, u)))
    (y, g), (y_scaled, g_scaled) = results
    np.testing.assert_allclose(y_scaled, y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(g_scaled * a, g, rtol=1e-9, atol=1e-12)


def test_bn_can_become_the_identity():
    """With gamma = sqrt(var + eps) and beta = mean."""
    layer, x = batch_norm(), normal(8, 3) * 3 + 5
    layer.gamma.data, layer.beta.data = np.sqrt(x.var(axis=0) + layer.eps), x.mean(axis=0)
    np.testing.assert_allclose(layer(x).data, x, rtol=1e-12)


def test_a_bias_before_bn_has_no_effect():
    """The mean takes it away again: its gradient is 0, the kernel's is not."""
    before, layer = dense(5, 3).astype(np.float64), batch_norm()
    y = layer(before(normal(8, 5)))
    of_bias, of_kernel = grad(y, [before.bias, before.kernel], normal(8, 3))
    assert np.abs(of_bias).max() < 1e-12 * np.abs(of_kernel).max()


def test_bn_gradient_is_orthogonal_to_ones_and_to_the_normalised_input():
    """Shifting or stretching the batch changes no output."""
    layer = batch_norm(eps=0.0)
    x = Tensor(normal(8, 3), requires_grad=True)
    y = layer(x)
    g = grad(y, x, normal(8, 3))
    centred = x.data - x.data.mean(axis=0)
    np.testing.assert_allclose([g.sum(axis=0), (g * centred).sum(axis=0)], 0, atol=1e-12)


def test_bn_variance_survives_a_large_mean_in_float32():
    x = np.random.default_rng(0).normal(30, 0.01, (1000, 3)).astype(np.float32)
    for fused in True, False:
        layer = BatchNorm(momentum=1.0, fused=fused)
        y = layer(x).data
        np.testing.assert_allclose(layer.running_var, 1e-4, rtol=0.15)
        np.testing.assert_allclose(y.std(axis=0), math.sqrt(1e-4 / 1.1e-4), rtol=0.02)


# --- BatchNorm: evaluation mode -----------------------------------------------------------------------------

def trained_bn(**options):
    layer = batch_norm(**options)
    for i in range(3):
        layer(normal(8, 3) * (i + 1) + i)
    return layer.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_bn_evaluation_uses_the_running_statistics(shape):
    layer, x = trained_bn(), normal(*shape)
    vectors = layer.running_mean, layer.running_var, layer.gamma.data, layer.beta.data
    mean, var, gamma, beta = (v if x.ndim == 2 else v[:, None, None] for v in vectors)
    expected = gamma * (x - mean) / np.sqrt(var + layer.eps) + beta
    np.testing.assert_allclose(layer(x).data, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_bn_evaluation_of_a_sample_ignores_its_companions(shape):
    """Bit for bit: alone, in a batch, with other companions."""
    layer, x = trained_bn(), normal(*shape)
    together = layer(x).data
    assert np.array_equal(together, np.concatenate([layer(x[i:i + 1]).data for i in range(len(x))]))
    assert np.array_equal(together[:1], layer(np.concatenate([x[:1], 1e6 * normal(*shape)])).data[:1])


def test_bn_evaluation_changes_no_buffer():
    layer = trained_bn()
    before = [b.copy() for b in layer.buffers()]
    layer(Tensor(normal(8, 3), requires_grad=True)).sum().backward()
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fused", [True, False])
def test_bn_gradients_in_evaluation(shape, fused):
    layer = trained_bn(fused=fused)

    def function(x, gamma, beta):
        layer.gamma, layer.beta = gamma, beta
        return layer(x)

    assert gradcheck(function, [normal(*shape), normal(3), normal(3)], order=2)


# --- BatchNorm: errors ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_bn_training_on_one_sample_names_the_layer(shape):
    layer = BatchNorm()
    layer.name = "layers.1"
    with pytest.raises(ValueError, match=r"layers\.1 BatchNorm.*one sample.*eval"):
        layer(np.zeros(shape, np.float32))
    layer.eval()(np.zeros(shape, np.float32))


def test_bn_training_on_one_image_of_several_pixels_is_fine():
    assert BatchNorm()(normal(1, 3, 2, 2)).shape == (1, 3, 2, 2)


@pytest.mark.parametrize("shape", [(8, 4), (8,), (8, 5, 3), (8, 5, 3, 3)])
def test_bn_on_the_wrong_number_of_features(shape):
    layer = batch_norm()
    with pytest.raises(ValueError, match=r"BatchNorm\(3\) expects.*\(n, 3\).*got \(8"):
        layer(np.zeros(shape))
    assert not layer.running_mean.any()


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan, 99])
def test_bn_momentum_lies_between_0_and_1(momentum):
    with pytest.raises(ValueError, match="from 0 to 1"):
        BatchNorm(momentum=momentum)


@pytest.mark.parametrize("layer", [BatchNorm, LayerNorm])
def test_eps_is_not_negative(layer):
    with pytest.raises(ValueError, match="negative"):
        layer(eps=-1e-5)


# --- BatchNorm: what it counts and shows ------------------------------------------------------------------------

def test_bn_updates_is_a_buffer_as_in_pytorch():
    """Of 64 features: 64 + 64 + 1 numbers are remembered. A NumPy scalar would drop out of the buffers."""
    layer = BatchNorm(input_shape=64)
    for i in range(3):
        assert dict(layer.named_buffers())["updates"].shape == () and layer.updates == i
        assert layer.updates.dtype == np.int64 and sum(b.size for b in layer.buffers()) == 129
        layer(normal(8, 64))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("make", [lambda: trained_bn(ghost_batch_size=4).train(), lambda: layer_norm(), lambda: dense(3, 3),
                                  lambda: Activation("relu"), lambda: Dropout(0.5, np.random.default_rng(0)), Flatten])
def test_a_copy_of_a_layer_is_equal_and_independent(make, copied):
    layer = make()
    twin, x = copied(layer), normal(8, 3).astype(layer.parameters()[0].dtype if layer.parameters() else np.float64)
    before = [b.copy() for b in layer.buffers()]
    y = twin(Tensor(x)).data
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))
    assert np.array_equal(layer(Tensor(x)).data, y)
    assert all(np.array_equal(a, b) for a, b in zip(twin.buffers(), layer.buffers(), strict=True))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_bn_shows_the_latest_batch(shape, fused):
    layer, x = batch_norm(fused=fused), normal(*shape) + 2
    assert layer.latest is None and layer.eval()(x) is not None and layer.latest is None
    layer.train()(normal(*shape))
    layer(x)
    np.testing.assert_allclose(layer.latest.mean, x.mean(axis=over_batch(x)), rtol=1e-12)
    np.testing.assert_allclose(layer.latest.var, x.var(axis=over_batch(x)), rtol=1e-12)
    assert layer.latest.n == x.size // 3 and len(layer.buffers()) == 3, "what is shown is not a buffer"


def test_bn_in_a_run_that_diverges_counts_the_steps_and_not_the_search_for_the_cause():
    model = Sequential([Dense(4, input_shape=3), BatchNorm(), Dense(2)]).compile(optim.SGD(lr=1e30))
    with pytest.raises(DivergenceError) as caught:
        model.fit(normal(64, 3), RNG.integers(0, 2, 64), batch_size=8, epochs=5, verbose=0)
    assert model.layers[1].updates == len(caught.value.history.steps["loss"]) + 1


# --- BatchNorm: frozen statistics -----------------------------------------------------------------------------------

def test_bn_with_frozen_statistics_learns_gamma_and_beta_alone():
    layer, x = trained_bn(), normal(8, 3)
    expected, before = layer(x).data, [b.copy() for b in layer.buffers()]
    layer.train().frozen_statistics = True
    layer(Tensor(x[:1])).sum().backward()  # one sample will do
    assert layer.gamma.grad.any() and layer.beta.grad.any() and np.array_equal(layer(x).data, expected)
    assert all(np.array_equal(a, b) for a, b in zip(before, layer.buffers(), strict=True))
    layer.frozen_statistics = False
    assert not np.array_equal(layer(x).data, expected) and layer.updates == before[-1] + 1


def test_bn_with_frozen_parameters_still_moves_its_statistics():
    layer = batch_norm()
    layer.gamma.requires_grad = layer.beta.requires_grad = False
    assert not layer(Tensor(normal(8, 3))).requires_grad and layer.running_mean.all()


@pytest.mark.parametrize("frozen", [True, False])
def test_population_statistics_are_set_on_request_and_settings_come_back(frozen):
    """Also where they are frozen; the count of each layer is its own again."""
    model = Pair(BatchNorm(momentum=0.3, input_shape=3), BatchNorm(momentum=None, input_shape=3))
    model(normal(8, 3))
    model.first(normal(8, 3))
    model.first.frozen_statistics = model.second.frozen_statistics = frozen
    kept = [(m.momentum, m.updates, m.latest, m.frozen_statistics, m.training) for m in (model.first, model.second)]
    x = normal(40, 3, dtype=np.float32) * 2 + 5
    estimate_population_statistics(model, x, batch_size=10)
    groups = x.reshape(4, 10, 3)
    np.testing.assert_allclose(model.first.running_mean, x.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.first.running_var, groups.var(axis=1, ddof=1).mean(axis=0), rtol=1e-5)
    for layer, (momentum, updates, latest, *flags) in zip((model.first, model.second), kept):
        assert layer.momentum == momentum and layer.updates is updates and layer.latest is latest
        assert [layer.frozen_statistics, layer.training] == flags
    assert (model.first.updates, model.second.updates) == (2, 1)


# --- BatchNorm: ghost batches ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("n, ends", [(8, [4, 8]), (11, [4, 8, 11]), (9, [4, 9]), (6, [4, 6]), (5, [5]), (16, [4, 8, 12, 16]),
                                     (29, [4, 8, 12, 16, 20, 24, 29]), (3, [3])])
def test_ghost_batches_are_batches_of_their_own_one_after_the_other(n, ends, momentum):
    """One sample left over joins the ghost before it, by the rule of `data.batches`."""
    ghost, plain = batch_norm(ghost_batch_size=4, momentum=momentum), batch_norm(momentum=momentum)
    x = normal(n, 3) + 2
    parts = [plain(part).data for part in np.split(x, ends[:-1])]
    assert np.array_equal(ghost(x).data, np.concatenate(parts))
    assert np.array_equal(ghost.running_mean, plain.running_mean) and np.array_equal(ghost.running_var, plain.running_var)
    assert ghost.updates == plain.updates == len(ends) and np.array_equal(ghost.latest.mean, plain.latest.mean)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ghost_batch_of_the_whole_batch_is_plain_bn(shape):
    x, u = normal(*shape), normal(*shape)
    plain = outputs_and_gradients(batch_norm(), x, u)
    for size in len(x), len(x) + 1, 1000:
        for a, b in zip(outputs_and_gradients(batch_norm(ghost_batch_size=size), x, u), plain):
            assert np.array_equal(a, b)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 2, 2)])
def test_ghost_batch_gradients(shape, fused):
    layer = batch_norm(ghost_batch_size=2, fused=fused)

    def function(x, gamma, beta):
        layer.gamma, layer.beta = gamma, beta
        return layer(x)

    assert gradcheck(function, [normal(*shape) * 2, normal(3), normal(3)], order=1 if fused else 2)


def test_ghost_batches_are_for_training_alone():
    x, plain = normal(8, 3), trained_bn()
    ghost = copy.deepcopy(plain)
    ghost.ghost_batch_size = 2
    assert np.array_equal(ghost(x).data, plain(x).data)
    with pytest.raises(ValueError, match="one sample has no variance"):
        ghost.train()(x[:1])


@pytest.mark.parametrize("size", [1, 0, -4, 2.5, "4"])
def test_ghost_batches_have_at_least_two_samples(size):
    with pytest.raises(ValueError, match="ghost_batch_size.*at least 2"):
        BatchNorm(ghost_batch_size=size)


# --- BatchNorm: folded into a Dense, subclassed ---------------------------------------------------------------------

@pytest.mark.parametrize("dtype, tolerance", [(np.float64, 1e-10), (np.float32, 1e-5)])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_fold_gives_one_dense_for_two_layers(use_bias, affine, dtype, tolerance):
    before, layer = dense(5, 3, use_bias=use_bias).astype(dtype), trained_bn(affine=affine).astype(dtype)
    if use_bias:
        before.bias.data = normal(3).astype(dtype)
    arrays = [a if isinstance(a, np.ndarray) else a.data for m in (before, layer) for a in (*m.parameters(), *m.buffers())]
    kept, x = [a.copy() for a in arrays], normal(8, 5).astype(dtype)
    folded = layer.fold(before)
    np.testing.assert_allclose(folded(x).data, layer(before(x)).data, rtol=tolerance, atol=tolerance)
    assert repr(folded) == "Dense(5 -> 3)" and {p.dtype for p in folded.parameters()} == {np.dtype(dtype)}
    for p in folded.parameters():
        p.data += 1
    assert all(np.array_equal(a, b) for a, b in zip(kept, arrays)) and before.use_bias is use_bias


@pytest.mark.parametrize("make, error, words", [
    (lambda: batch_norm().fold(dense(5, 3, "relu")), ValueError, r"BatchNorm\(3\).*without activation.*Dense\(5 -> 3, relu\)"),
    (lambda: batch_norm().fold(Flatten()), ValueError, r"BatchNorm\(3\).*Dense.*Flatten\(\)"),
    (lambda: batch_norm().fold(dense(5, 4)), ValueError, r"Dense\(5 -> 4\) has 4.*BatchNorm\(3\) takes 3"),
    (lambda: batch_norm().fold(Dense(3)), RuntimeError, r"Dense\(3\) has no weights yet"),
    (lambda: BatchNorm().fold(dense(5, 3)), RuntimeError, r"BatchNorm\(\) has no weights yet")])
def test_fold_says_what_does_not_fit(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_fold_takes_the_identity_for_no_activation():
    assert trained_bn().fold(dense(5, 3, "linear").astype(np.float64)).activation is None


class NoisyBatchNorm(BatchNorm):
    """Adds noise whose mean and variance are drawn anew for each unit at each step (Santurkar et al. 2018, section 2.1)."""

    def __init__(self, rng, **options):
        super().__init__(**options)
        self.rng = rng

    def forward(self, x):
        y = super().forward(x)
        if not self.training:
            return y
        mean, std = self.rng.uniform(-0.5, 0.5, y.shape[1]), self.rng.uniform(1, 1.25, y.shape[1])
        noise = self.rng.normal(mean, std, y.shape)
        return y + noise.astype(y.dtype)


def test_batch_norm_is_easy_to_subclass():
    """As the lesson on covariate shift does. All else stays: statistics, evaluation, training, precise BN."""
    model = Sequential([Dense(4, input_shape=3), NoisyBatchNorm(np.random.default_rng(1)), Activation("relu"), Dense(2)])
    noisy, x = model.layers[1], normal(2000, 4, dtype=np.float32)
    assert noisy.name == "noisybatchnorm" and repr(noisy) == "NoisyBatchNorm(4)" and len(model.buffers()) == 3
    plain = BatchNorm(input_shape=4)
    noise = np.array([noisy(x).data - plain(x).data for _ in range(10)])
    assert noise.dtype == np.float32 and noisy.updates == 10
    assert noise.mean(axis=1).std() > 0.2 and (noise.std(axis=1) > 0.95).all() and noise.std(axis=1).std() > 0.05
    assert np.array_equal(noisy.eval()(x).data, plain.eval()(x).data)
    noisy.train()
    samples = normal(64, 3, dtype=np.float32)
    history = model.compile(optim.SGD(lr=0.1)).fit(samples, (samples[:, 0] > 0).astype(int), epochs=8, batch_size=16, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    estimate_population_statistics(model, samples, batch_size=64)
    np.testing.assert_allclose(noisy.running_mean, model.layers[0](samples).data.mean(axis=0), rtol=1e-4, atol=1e-5)


# --- LayerNorm ----------------------------------------------------------------------------------------------------

def layer_norm(features=3, **options):
    """A built LayerNorm in float64, with gamma and beta that are not 1 and 0."""
    layer = LayerNorm(input_shape=features, **options)
    if layer.parameters():
        layer.astype(np.float64)
        layer.gamma.data, layer.beta.data = np.linspace(0.5, 2, features), np.linspace(-1, 1, features)
    return layer


def test_layer_norm_is_bn_along_the_other_axis():
    x = normal(8, 3)
    transposed = batch_norm(features=8, affine=False)(x.T).T
    assert np.array_equal(layer_norm(affine=False)(x), transposed)
    layer = layer_norm()
    np.testing.assert_allclose(layer(x).data, layer.gamma.data * transposed + layer.beta.data, rtol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_of_a_sample_ignores_its_companions_and_its_own_scale(affine):
    """Alone, in a batch and in another order (but for the order in which BLAS adds); shifted and stretched too, eps being 0."""
    layer, x = layer_norm(6, affine=affine, eps=0.0), normal(8, 6)
    y = layer(Tensor(x)).data
    np.testing.assert_allclose(y, np.concatenate([layer(Tensor(x[i:i + 1])).data for i in range(8)]), rtol=1e-13)
    np.testing.assert_allclose(y[::-1], layer(Tensor(x[::-1])).data, rtol=1e-13)
    np.testing.assert_allclose(layer(Tensor(x * RNG.uniform(0.1, 10, (8, 1)) + normal(8, 1))).data, y, rtol=1e-9, atol=1e-9)
    assert not np.allclose(layer(Tensor(x * RNG.uniform(0.1, 10, 6))).data, y, atol=0.01), "unlike BatchNorm, units count"


def test_layer_norm_is_the_same_in_training_and_evaluation_and_remembers_nothing():
    layer, x = layer_norm(), normal(1, 3)
    y = layer(x).data
    assert np.array_equal(layer.eval()(x).data, y) and layer.buffers() == [] and len(layer.parameters()) == 2
    assert layer_norm(affine=False).parameters() == []


def test_layer_norm_of_more_axes_normalises_along_the_last():
    layer, x = layer_norm(5), normal(2, 3, 4, 5)
    assert np.array_equal(layer(x).data, layer(x.reshape(-1, 5)).data.reshape(x.shape))


@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_gradients(affine):
    layer = layer_norm(4, affine=affine)

    def function(x, gamma, beta):
        if affine:
            layer.gamma, layer.beta = gamma, beta
        return layer(x)

    assert gradcheck(function, [normal(5, 4), normal(4), normal(4)][:3 if affine else None])


@pytest.mark.parametrize("shape", [(8, 4), (3,), (8, 3, 4)])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm_on_the_wrong_number_of_features(shape, affine):
    with pytest.raises(ValueError, match=r"LayerNorm\(3\) expects.*\(n, 3\), got"):
        layer_norm(affine=affine)(np.zeros(shape))


def test_layer_norm_learns_its_features_from_the_first_batch():
    model = Sequential([Dense(5), LayerNorm(), Activation("relu"), Dense(2)], seed=3)
    assert model.build(3).layers[1].gamma.shape == (5,) and model.layers[1].name == "layernorm"
    assert LayerNorm()(np.arange(6, dtype=np.uint8).reshape(2, 3)).dtype == np.float32
    assert LayerNorm(affine=False)(np.arange(6, dtype=np.uint8).reshape(2, 3)).dtype == np.float32


# --- Dense ----------------------------------------------------------------------------------------------------

def test_dense_is_an_affine_map_then_the_activation():
    layer, x = dense(5, 3, "tanh"), normal(8, 5, dtype=np.float32)
    layer.bias.data = normal(3, dtype=np.float32)
    np.testing.assert_allclose(layer(x).data, np.tanh(x @ layer.kernel.data + layer.bias.data), rtol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_dense_takes_every_activation_by_name(name):
    x = normal(8, 5, dtype=np.float32)
    by_name, plain = dense(5, 3, name), dense(5, 3)
    assert np.array_equal(by_name(x).data, ACTIVATIONS[name](plain(x)).data)
    assert np.array_equal(Activation(name)(plain(x)).data, by_name(x).data)


def test_dense_takes_a_function_as_activation():
    x = normal(8, 5, dtype=np.float32)
    assert np.array_equal(dense(5, 3, lambda y: y * y)(x).data, dense(5, 3)(x).data ** 2)


def test_dense_learns_its_inputs_from_the_first_batch():
    layer = Dense(3)
    assert layer.kernel is None and not layer.built
    layer(np.zeros((8, 5), np.float32))
    assert layer.built and layer.kernel.shape == (5, 3) and layer.bias.shape == (3,) and not layer.bias.data.any()


@pytest.mark.parametrize("input_shape", [5, (5,), [5], np.int64(5)])
def test_dense_with_input_shape_has_its_weights_at_once(input_shape):
    assert [p.shape for p in Dense(3, input_shape=input_shape).parameters()] == [(5, 3), (3,)]


def test_dense_without_bias():
    layer = dense(5, 3, use_bias=False)
    x = normal(8, 5, dtype=np.float32)
    assert [p.shape for p in layer.parameters()] == [(5, 3)] and layer.bias is None
    assert np.array_equal(layer(x).data, x @ layer.kernel.data)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_dense_gradients(activation, use_bias):
    layer = dense(5, 3, activation, use_bias=use_bias).astype(np.float64)

    def function(x, kernel, bias):
        layer.kernel, layer.bias = kernel, bias if use_bias else None
        return layer(x)

    assert gradcheck(function, [normal(8, 5), normal(5, 3), normal(3)], order=2)


def test_dense_weights_depend_on_the_rng_alone():
    assert np.array_equal(dense(5, 3, seed=1).kernel.data, dense(5, 3, seed=1).kernel.data)
    assert not np.array_equal(dense(5, 3, seed=1).kernel.data, dense(5, 3, seed=2).kernel.data)


@pytest.mark.parametrize("shape, words", [((8, 4), r"Dense\(5 -> 3\) expects.*\(n, 5\).*got \(8, 4\)"),
                                          ((5,), r"Dense\(5 -> 3\) expects.*got \(5,\)"),
                                          ((8, 2, 4), r"Dense.*got \(8, 2, 4\).*Flatten")])
def test_dense_on_the_wrong_shape(shape, words):
    layer = dense(5, 3)
    layer.name = "layers.2"
    with pytest.raises(ValueError, match=r"layers\.2 " + words):
        layer(np.zeros(shape, np.float32))


def test_dense_works_along_the_last_axis():
    """(n, time, inputs): the same numbers and gradients as of the rows one after the other."""
    x, u = normal(4, 6, 5, dtype=np.float32), normal(4, 6, 3, dtype=np.float32)
    layer, found = dense(5, 3), []
    for values, g in (x, u), (x.reshape(24, 5), u.reshape(24, 3)):
        layer.zero_grad()
        y = layer(Tensor(values))
        y.backward(g)
        found.append([y.data.reshape(24, 3), layer.kernel.grad, layer.bias.grad])
    for several, rows in zip(*found):
        np.testing.assert_allclose(several, rows, rtol=1e-5, atol=1e-6)
    inferred = Dense(2)
    assert inferred(x).shape == (4, 6, 2) and inferred.inputs == Dense(2, input_shape=(6, 5)).build((6, 5)).inputs == 5


@pytest.mark.parametrize("units", [0, -1, 2.5, "ten", None])
def test_dense_units_are_a_whole_number(units):
    with pytest.raises(ValueError, match="whole number"):
        Dense(units)


@pytest.mark.parametrize("make, valid", [
    (lambda: Dense(3, "rely"), "unknown activation 'rely'.*relu.*tanh"),
    (lambda: Activation("rely"), "unknown activation 'rely'.*relu.*tanh"),
    (lambda: Dense(3, kernel_initializer="he"), "unknown initializer 'he'.*glorot_uniform.*he_normal")])
def test_unknown_names_list_the_valid_ones(make, valid):
    with pytest.raises(ValueError, match=valid):
        make()


def test_layers_convert_arrays_but_not_tensors():
    """Images of bytes are fine; two precisions in one graph are a mistake."""
    for layer in dense(3, 2), BatchNorm(input_shape=3), LayerNorm(input_shape=3):
        assert layer(np.arange(6, dtype=np.uint8).reshape(2, 3)).dtype == np.float32
        assert layer(normal(4, 3)).dtype == np.float32
        with pytest.raises(TypeError, match="float32 weights.*float64 Tensor.*astype"):
            layer(Tensor(normal(4, 3)))


def test_an_initial_array_of_the_caller_is_not_trained():
    """Two networks that start from one array must not move each other's weights."""
    start = np.ones((5, 3), np.float32)
    first, second = (Dense(3, input_shape=5, kernel_initializer=lambda shape, rng: start) for _ in range(2))
    optimizer = optim.SGD(first.parameters(), lr=0.1)
    first(normal(8, 5)).sum().backward()
    optimizer.step()
    second.parameters()
    assert np.array_equal(start, np.ones((5, 3))) and np.array_equal(second.kernel.data, start)


def test_an_initializer_of_the_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(5, 3\)"):
        Dense(3, input_shape=5, kernel_initializer=lambda shape, rng: np.zeros((3, 5))).parameters()


# --- Dropout, Flatten -------------------------------------------------------------------------------------------

def test_dropout_in_evaluation_is_the_identity():
    x = Tensor(normal(8, 5))
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.8])
def test_dropout_keeps_the_expectation(rate):
    """Zeros or x / (1 - rate): the share of zeros is rate, the mean that of x (5 standard deviations allowed)."""
    n = 100_000
    y = Dropout(rate, rng=np.random.default_rng(0))(Tensor(np.ones(n))).data
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
    deviation = math.sqrt(rate * (1 - rate) / n)
    assert abs((y == 0).mean() - rate) < 5 * deviation and abs(y.mean() - 1) < 5 * deviation / (1 - rate)


def test_dropout_draws_from_its_rng_alone():
    x = Tensor(np.ones((8, 5)))
    a, b, c = (Dropout(0.5, rng=rng) for rng in (np.random.default_rng(1), 1, 2))
    first = a(x).data
    assert np.array_equal(first, b(x).data) and not np.array_equal(first, c(x).data)
    assert np.array_equal(a(x).data, b(x).data) and not np.array_equal(first, a(x).data), "a new choice for each batch"


def test_dropout_gradient_is_the_same_mask():
    x = Tensor(np.ones((8, 5)), requires_grad=True)
    y = Dropout(0.5, rng=np.random.default_rng(0))(x)
    assert np.array_equal(grad(y, x, np.ones((8, 5))), y.data)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, math.nan])
def test_dropout_rate_is_checked(rate):
    with pytest.raises(ValueError, match="rate"):
        Dropout(rate)


def test_flatten_keeps_the_samples():
    x = normal(4, 3, 5, 2)
    assert np.array_equal(Flatten()(x), x.reshape(4, 30)) and Flatten()(Tensor(x)).shape == (4, 30)
    assert Flatten()(Tensor(x[:0])).shape == (0, 30) and Flatten()(x[:, 0, 0, 0]).shape == (4, 1)


# --- Initializers -----------------------------------------------------------------------------------------------

VARIANCES = {"glorot_uniform": 2 / (200 + 300), "glorot_normal": 2 / (200 + 300), "he_uniform": 2 / 200,
             "he_normal": 2 / 200, "normal": 0.05 ** 2, "zeros": 0, "ones": 0}


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_initializer_statistics(name):
    """Mean and variance as the papers give them; 60000 draws know a variance to about 1 %."""
    w = initializers.INITIALIZERS[name]((200, 300), np.random.default_rng(0))
    assert w.dtype == np.float32 and w.shape == (200, 300)
    variance = VARIANCES[name]
    assert abs(w.mean() - (name == "ones")) <= 5 * math.sqrt(variance / w.size)
    np.testing.assert_allclose(w.var(), variance, rtol=0.03)
    if "uniform" in name:
        limit = math.sqrt(3 * variance)
        assert 0.999 * limit < np.abs(w).max() <= np.float32(limit)
    elif "normal" in name:
        assert np.abs(w).max() > 3.5 * math.sqrt(variance), "normal, not uniform or truncated at 2"


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_initializers_are_deterministic(name):
    make = initializers.INITIALIZERS[name]
    assert np.array_equal(make((4, 3), np.random.default_rng(7)), make((4, 3), np.random.default_rng(7)))


def test_initializer_factories():
    w = initializers.constant(0.25)((4, 3), None)
    assert w.dtype == np.float32 and (w == 0.25).all()
    w = initializers.normal(2.0)((200, 300), np.random.default_rng(0))
    assert w.dtype == np.float32 and w.std() == pytest.approx(2, rel=0.02)
    assert dense(5, 3, kernel_initializer=initializers.constant(0.25)).kernel.data.sum() == 15 / 4


# --- Module -------------------------------------------------------------------------------------------------------

class Net(Module):
    """A module as a PyTorch user writes it."""

    def __init__(self):
        super().__init__()
        self.scale = Parameter([2.0])
        self.blocks = [dense(3, 4, seed=1), BatchNorm(input_shape=4), dense(4, 4, seed=2)]
        self.offset = np.zeros(1, np.float32)  # a buffer
        self.head = dense(4, 2, seed=3)

    def forward(self, x):
        x = F.relu(self.blocks[1](self.blocks[0](x)))
        return self.head(self.blocks[2](x)) * self.scale + self.offset


class Pair(Module):
    def __init__(self, first, second):
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x))


def test_parameters_come_in_order_of_assignment():
    """Never from a set: the optimizer's state and saved files rely on it."""
    names = [name for name, _ in Net().named_parameters()]
    assert names == ["scale", "blocks.0.kernel", "blocks.0.bias", "blocks.1.gamma", "blocks.1.beta",
                     "blocks.2.kernel", "blocks.2.bias", "head.kernel", "head.bias"]


def test_lists_in_lists_are_looked_into():
    """A layer that is not found would silently stay as it is."""
    model = Pair(None, None)
    model.stages = [[dense(2, 2), dense(2, 2)], (dense(2, 2),)]
    assert [name for name, _ in model.named_parameters()] == [
        f"stages.{place}.{kind}" for place in ("0.0", "0.1", "1.0") for kind in ("kernel", "bias")]
    assert not any(m.training for m in model.eval().modules()) and len(model.modules()) == 4


def test_buffers_are_the_arrays_that_are_not_trained():
    assert [name for name, _ in Net().named_buffers()] == ["offset", "blocks.1.running_mean", "blocks.1.running_var",
                                                           "blocks.1.updates"]


def test_parts_of_parts_have_dotted_names():
    model = Pair(Pair(dense(2, 2), Activation("relu")), dense(2, 2))
    assert [name for name, _ in model.named_modules()] == ["", "first", "first.first", "first.second", "second"]
    assert [name for name, _ in model.named_parameters()][:2] == ["first.first.kernel", "first.first.bias"]


def test_a_shared_layer_counts_once_and_learns_from_both_uses():
    shared = dense(3, 3)
    model = Pair(shared, shared)
    assert len(model.modules()) == 2
    assert [name for name, _ in model.named_parameters()] == ["first.kernel", "first.bias"]
    model(normal(4, 3, dtype=np.float32)).sum().backward()
    before = shared.bias.data.copy()
    optim.SGD(model.parameters(), lr=1.0).step()
    np.testing.assert_allclose(shared.bias.data, before - shared.bias.grad, rtol=1e-6)  # stepped once


def test_a_shared_parameter_counts_once():
    first, second = dense(3, 3), dense(3, 3)
    second.kernel = first.kernel
    assert len(Pair(first, second).parameters()) == 3


def test_train_and_eval_reach_every_part_and_return_the_module():
    model = Net()
    assert all(m.training for m in model.modules())
    assert model.eval() is model and not any(m.training for m in model.modules())
    assert model.train() is model and all(m.training for m in model.modules())


def test_modes_belong_to_each_module():
    first, second = Net(), Net()
    first.eval()
    assert second.training and Net().training
    first.train()
    first.blocks[1].eval()
    assert first.training and not first.blocks[1].training


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_evaluation_restores_every_mode_also_after_an_exception(error):
    """A frozen BatchNorm stays frozen."""
    model = Net()
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    try:
        with evaluation(model):
            assert not any(m.training for m in model.modules())
            if error:
                raise error
    except ZeroDivisionError:
        pass
    assert [m.training for m in model.modules()] == modes and True in modes and False in modes


@pytest.mark.parametrize("layer, name", [(Dense(3), r"Dense\(3\)"), (BatchNorm(), r"BatchNorm\(\)"),
                                         (LayerNorm(), r"LayerNorm\(\)")])
def test_a_layer_without_weights_complains(layer, name):
    """Instead of giving an optimizer nothing to train, or writing an empty file."""
    for ask in layer.parameters, layer.buffers, Pair(dense(2, 2), layer).parameters:
        with pytest.raises(RuntimeError, match=f"{name} has no weights yet.*input_shape.*build"):
            ask()


def test_build_makes_all_weights_and_changes_nothing_else():
    model = Pair(Dense(4, rng=np.random.default_rng(0)), BatchNorm())
    assert model.build(3) is model and [p.shape for p in model.parameters()] == [(3, 4), (4,), (4,), (4,)]
    assert model.training and (model.second.running_var == 1).all() and model.second.updates == 0


def test_forward_must_be_written():
    class Empty(Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define forward"):
        Empty()(1)


def test_astype_turns_parameters_and_buffers():
    """Also those in lists, tuples and dicts; a count stays a whole number, and the layers stay the same objects."""
    model = Net()
    model.tables = {"a": [np.ones(2, np.float32), (np.ones(3, np.float32),)], "counts": np.arange(3)}
    blocks, layers = model.blocks, list(model.blocks)
    assert model.astype(np.float64) is model and model.blocks is blocks
    dtypes = {name: a.dtype for name, a in [*model.named_parameters(), *model.named_buffers()]}
    assert {name for name, dtype in dtypes.items() if dtype != np.float64} == {"tables.counts", "blocks.1.updates"}
    assert dtypes["tables.a.1.0"] == np.float64 and all(a is b for a, b in zip(layers, model.blocks, strict=True))
    assert model(normal(4, 3)).dtype == np.float64 and model.astype(np.float32)(normal(4, 3)).dtype == np.float32


def test_zero_grad_forgets_all_gradients():
    model = Net()
    model(normal(4, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_forward_hooks_see_inputs_and_outputs():
    model, seen = Net(), []
    model.head.forward_hooks = [lambda module, inputs, y: seen.append((module, inputs[0].shape, y.shape))]
    x = normal(4, 3)
    model(x)
    assert seen == [(model.head, (4, 4), (4, 2))]
    model.head.forward_hooks = []
    model(x)
    assert len(seen) == 1 and len(model.modules()) == 5


def test_repr_shows_the_parts():
    text = repr(Net())
    assert text.startswith("Net(") and "Dense(3 -> 4)" in text and "BatchNorm(4)" in text
    assert repr(Dense(3, "relu")) == "Dense(3, relu)" and repr(Activation("tanh")) == "Activation(tanh)"


def test_a_module_in_pytorch_style_learns():
    model = Net()
    x = normal(60, 3, dtype=np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    optimizer, losses = optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(150):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert (model.eval()(x).data.argmax(axis=1) == y).mean() > 0.9


# --- float32 everywhere --------------------------------------------------------------------------------------------

OPTIMIZERS = {"SGD": lambda p: optim.SGD(p, lr=np.float64(0.1), momentum=0.9, nesterov=True, weight_decay=1e-4),
              "Adam": lambda p: optim.Adam(p, lr=np.float64(0.1))}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_float32_network_holds_nothing_else(name, fused):
    model = Pair(Pair(dense(3, 8, "gelu"), BatchNorm(input_shape=8, fused=fused)), Pair(Dropout(0.1), dense(8, 4)))
    optimizer = OPTIMIZERS[name](model.parameters())
    x, y = normal(20, 3), RNG.integers(0, 4, 20)
    for _ in range(3):
        outputs = model(x)  # float64 data
        loss = F.cross_entropy(outputs, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held = [outputs, loss, *model.parameters(), *[p.grad for p in model.parameters()], *model.buffers()]
    held += sum(optimizer.state.values(), [])
    assert {a.dtype for a in held} == {np.dtype(np.float32), np.dtype(np.int64)} and len(optimizer.state) in (1, 2)
    assert [a.shape for a in held if a.dtype == np.int64] == [()], "BatchNorm's count of its updates and nothing else"
    assert model.eval()(x).dtype == np.float32


@pytest.mark.parametrize("make", [
    lambda number: BatchNorm(momentum=number(0.1)), lambda number: BatchNorm(eps=number(1e-3)),
    lambda number: BatchNorm(eps=number(1e-3), fused=False), lambda number: BatchNorm(momentum=None),
    lambda number: LayerNorm(eps=number(1e-3)), lambda number: LayerNorm(eps=number(1e-3), affine=False),
    lambda number: Dropout(number(0.5))],
    ids=["momentum", "eps", "eps, composed", "momentum None", "LayerNorm", "LayerNorm without affine", "dropout rate"])
@pytest.mark.parametrize("number", [float, np.float64, np.float32])
def test_settings_from_a_numpy_grid_keep_float32(make, number):
    """A sweep over np.linspace gives np.float64 numbers, which are strong: float32 times them is float64."""
    layer, x = make(number), Tensor(normal(8, 3, dtype=np.float32))
    for _ in range(2):
        assert layer(x).dtype == np.float32
    assert layer.eval()(x).dtype == np.float32
    assert {b.dtype for b in layer.buffers() if b.ndim} <= {np.dtype(np.float32)}  # without the count of updates


def test_parameters_in_lists_and_dicts_are_found():
    """What is overlooked is never trained, without a word."""
    class Net(Module):
        def __init__(self):
            self.scales = [Parameter(np.ones(2, np.float32)), Parameter(np.ones(3, np.float32))]
            self.blocks = {"a": Dense(3, input_shape=2), "b": [BatchNorm(input_shape=3)]}

    assert [name for name, _ in Net().named_parameters()] == ["scales.0", "scales.1", "blocks.a.kernel", "blocks.a.bias",
                                                              "blocks.b.0.gamma", "blocks.b.0.beta"]


def test_errors_in_a_built_module_name_the_attribute():
    class Net(Module):
        def __init__(self):
            self.fc1 = Dense(4)

        def forward(self, x):
            return self.fc1(x)

    net = Net().build(6)
    with pytest.raises(ValueError, match=r"fc1 Dense\(6 -> 4\)"):
        net(np.zeros((2, 5), np.float32))


# --- Hooks that replace the output ----------------------------------------------------------------

def test_what_a_forward_hook_returns_replaces_the_output_and_the_gradient_follows():
    """As in PyTorch. Hooks are called in order, each with the output of the one before."""
    layer, x = dense(3, 2), normal(4, 3, dtype=np.float32)
    plain = layer(x).data
    layer.register_forward_hook(lambda module, inputs, y: y * 3)
    layer.register_forward_hook(lambda module, inputs, y: None)
    handle = layer.register_forward_hook(lambda module, inputs, y: y + 1)
    y = layer(x)
    np.testing.assert_allclose(y.data, 3 * plain + 1, rtol=1e-6)
    np.testing.assert_allclose(grad(y.sum(), layer.bias), [12, 12])
    handle.remove()
    np.testing.assert_allclose(layer(x).data, 3 * plain, rtol=1e-6)


def test_a_hook_that_returns_no_tensor_is_refused():
    for result, kind in (7, "int"), (np.ones((1, 2)), "ndarray"):
        layer = dense(3, 2)
        layer.register_forward_hook(lambda module, inputs, y: result)
        with pytest.raises(TypeError, match=f"must be a Tensor, got {kind}; return None"):
            layer(np.ones((1, 3), np.float32))
    with pytest.raises(TypeError, match="forward hook is a function"):
        layer.register_forward_hook("relu")


# --- Freezing in Keras' words ---------------------------------------------------------------------

def test_trainable_is_read_and_set_for_a_layer_and_for_all_parts():
    model = Net()
    assert model.trainable and model.head.trainable and Flatten().trainable
    model.head.trainable = False
    assert not model.head.trainable and model.trainable and not model.head.kernel.requires_grad
    model.trainable = False
    assert not any(p.requires_grad for p in model.parameters()) and not model.blocks[0].trainable
    assert model.blocks[1].frozen_statistics, "as Keras' BatchNorm, which is in inference mode then"
    model.blocks[1].trainable = True
    assert model.blocks[1].gamma.requires_grad
    assert not model.blocks[1].frozen_statistics
    assert model.trainable
    assert not model.head.trainable


def test_trainable_may_be_set_before_the_weights_are_made():
    layers = [Dense(4), BatchNorm(), LayerNorm(), Dense(2)]
    for layer in layers[:3]:
        layer.trainable = False
    model = Sequential(layers).build(3)
    assert [p.requires_grad for p in model.parameters()] == 6 * [False] + 2 * [True]
    assert model.layers[1].frozen_statistics


def test_requires_grad_tells_the_truth_to_trainable():
    layer = dense(3, 2).requires_grad_(False)
    assert not layer.trainable
    layer.bias.requires_grad = True
    assert layer.trainable


@pytest.mark.parametrize("flag", ["False", None, 2, []])
def test_trainable_is_a_flag(flag):
    with pytest.raises(ValueError, match="trainable is True or False"):
        dense(3, 2).trainable = flag


# --- Attributes that look as if they did something ------------------------------------------------

def test_settings_may_be_set_anew_and_work_as_in_the_constructor():
    x = normal(8, 3, dtype=np.float32)
    layer, norm, dropout = dense(3, 3), BatchNorm(input_shape=3), Dropout(0.5, rng=0)
    linear = layer(x).data
    layer.activation = "relu"
    assert np.array_equal(layer(x).data, np.maximum(linear, 0))
    norm.momentum = np.float64(1)
    norm(x)
    np.testing.assert_allclose(norm.running_mean, x.mean(axis=0), rtol=1e-5, atol=1e-6)
    norm.eps = np.float64(3.0)
    y = norm(x)
    np.testing.assert_allclose(y.data.var(axis=0), x.var(axis=0) / (x.var(axis=0) + 3), rtol=1e-4)
    assert y.dtype == np.float32
    dropout.rate = 0
    assert np.array_equal(dropout(x), x)


@pytest.mark.parametrize("make, name, value, words", [
    (lambda: dense(3, 2), "activation", "rleu", "unknown activation 'rleu'"),
    (lambda: dense(3, 2), "units", 5, r"Dense\(3 -> 2\): units cannot change"),
    (lambda: dense(3, 2), "use_bias", False, "use_bias cannot change"),
    (lambda: dense(3, 2), "kernel_initializer", "zeros", "kernel_initializer cannot change"),
    (lambda: batch_norm(), "affine", False, "affine cannot change"),
    (lambda: batch_norm(), "eps", "x", "eps is added"),
    (lambda: batch_norm(), "momentum", 2, "from 0 to 1"),
    (lambda: batch_norm(), "ghost_batch_size", 1, "at least 2"),
    (lambda: batch_norm(), "frozen_statistics", "no", "True or False"),
    (lambda: batch_norm(), "running_mean", [0.0], "an array of floating-point"),
    (lambda: Dropout(0.5), "rate", 50, "from 0 up to but not 1"),
    (lambda: Dropout(0.5), "rng", "zero", "rng is where random numbers come from"),
    (lambda: Activation("relu"), "function", "rleu", "unknown activation")])
def test_a_setting_that_cannot_be_is_refused_at_the_assignment(make, name, value, words):
    layer = make()
    before = getattr(layer, name)
    with pytest.raises(ValueError, match=words):
        setattr(layer, name, value)
    assert getattr(layer, name) is before


@pytest.mark.parametrize("make, name, shape", [
    (lambda: dense(4, 3), "kernel", (4, 1)), (lambda: dense(4, 3), "bias", (1,)),
    (lambda: dense(4, 3), "bias", (1, 3)),
    (lambda: batch_norm(), "gamma", (1,)), (lambda: batch_norm(), "beta", (8, 1)), (lambda: layer_norm(), "beta", ())])
def test_a_parameter_of_another_shape_does_not_broadcast(make, name, shape):
    layer = make()
    with pytest.raises(ValueError, match=f"{name} has shape.*got.*make a new layer"):
        setattr(layer, name, Parameter(np.ones(shape)))


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("shape", [(1,), (1, 3), (), (4,)])
def test_running_statistics_of_another_shape_do_not_broadcast(name, shape):
    layer = batch_norm()
    with pytest.raises(ValueError, match=rf"{name} has shape \(3,\), got"):
        setattr(layer, name, np.ones(shape))
    setattr(layer, name, np.full(3, 2.0))
    assert getattr(layer, name).tolist() == [2, 2, 2]


def test_units_may_change_before_the_weights_are_made():
    layer = Dense(3)
    layer.units = 5
    assert layer(np.ones((2, 4), np.float32)).shape == (2, 5)


@pytest.mark.parametrize("make, name, value, words", [
    (lambda: batch_norm(), "momentun", 0.5, "did you mean 'momentum'"),
    (lambda: dense(3, 2), "use_bais", False, "did you mean 'use_bias'"),
    (lambda: dense(3, 2), "kernal", Parameter([1.0]), "did you mean 'kernel'"),
    (lambda: dense(3, 2), "trainble", False, "did you mean 'trainable'"),
    (lambda: batch_norm(), "epsilon", 1e-3, "write eps"),
    (lambda: dense(3, 2), "weight", Parameter([1.0]), "write kernel"),
    (lambda: Dropout(0.5), "p", 0.1, "write rate"),
    (lambda: dense(3, 2), "dtype", "float64", "astype"),
    (lambda: Sequential(), "seed", 3, r"seed=0"),
    (lambda: Sequential(), "learning_rate", 0.1, r"model\.optimizer\.lr"),
    (lambda: Sequential(), "epochs", 10, r"model\.fit"),
    (lambda: dense(3, 2), "requires_grad", False, "trainable = False"),
    (lambda: Net(), "requires_grad", False, "trainable = False")])
def test_an_attribute_that_would_do_nothing_says_which_one_does(make, name, value, words):
    with pytest.raises(AttributeError, match=words):
        setattr(make(), name, value)


def test_a_layer_of_ones_own_may_have_any_attribute():
    """Also those whose names resemble others, and those that are words of other libraries."""
    class Free(Module):
        def __init__(self):
            self.weight, self.weights, self.momentun = Parameter([1.0]), [Parameter([2.0])], 3
            self.gamma2, self.p, self.settings, self.words = Parameter([1.0]), 0.5, {"p": 3}, ["a"]

    class Wide(Dense):
        def __init__(self, units, name):
            super().__init__(units)
            self.use_bais, self.weight = 1, name

    assert len(Free().parameters()) == 3 and Wide(3, name="x").weight == "x"


def test_training_of_the_container_is_training_of_its_parts():
    model = Net()
    model.training = False
    assert not any(part.training for part in model.modules())
    model.blocks[1].training = True
    assert model.blocks[1].training and not model.training


def test_an_array_in_the_place_of_a_parameter_is_refused_and_a_parameter_taken():
    layer = dense(3, 2)
    with pytest.raises(TypeError,
                       match=r"kernel is a Parameter.*layer\.kernel\.data\[\.\.\.\] = values"):
        layer.kernel = np.ones((3, 2), np.float32)
    layer.kernel = Parameter(np.ones((3, 2), np.float32))
    assert layer(np.ones((1, 3), np.float32)).data.tolist() == [[3, 3]]


def test_weights_given_before_they_are_made_are_not_thrown_away():
    for kernel in Parameter(np.ones((3, 2), np.float32)), np.ones((3, 2), np.float32):
        layer = Dense(2)
        layer.kernel = kernel
        with pytest.raises(ValueError, match="kernel was set before the weights were made"):
            layer(np.ones((1, 3), np.float32))


# --- What would never be trained ------------------------------------------------------------------

@pytest.mark.parametrize("hide", [lambda t: t, lambda t: [t], lambda t: {"a": [t]}])
def test_a_tensor_for_a_parameter_says_so(hide):
    class Scale(Module):
        def __init__(self):
            self.scale = hide(Tensor(np.ones(1, np.float32), requires_grad=True))

    for ask in Scale().parameters, lambda: Pair(dense(2, 2), Scale()).parameters():
        with pytest.raises(ValueError,
                           match="is a Tensor and would never be trained: make it a Parameter"):
            ask()


def test_a_tensor_in_the_place_of_a_layers_parameter_says_so_too():
    layer = dense(3, 2)
    layer.kernel = Tensor(np.ones((3, 2), np.float32))
    with pytest.raises(ValueError, match="kernel of Dense is a Tensor"):
        layer.parameters()


def test_tensors_that_are_no_weights_are_fine_as_attributes():
    """A constant, and the result that a layer keeps to be looked at."""
    class Keeps(Module):
        def __init__(self):
            self.mask, self.inner = Tensor(np.ones(2, np.float32)), dense(3, 2)

        def forward(self, x):
            self.latest = self.inner(x) * self.mask
            return self.latest

    model = Keeps()
    model(normal(4, 3, dtype=np.float32))
    assert model.latest.requires_grad and len(model.parameters()) == 2


def test_parts_in_deques_and_object_arrays_are_found_and_sets_are_refused():
    from collections import deque
    model = Pair(None, None)
    model.stages, model.grid = deque([dense(2, 2)]), np.array([[dense(2, 3), None]], dtype=object)
    assert [name for name, _ in model.named_modules()] == ["", "stages.0", "grid.0"]
    model.grid = {dense(2, 2)}
    with pytest.raises(ValueError, match="Pair.grid is a set.*use a list"):
        model.parameters()


def test_a_forward_that_leaves_the_graph_is_refused_where_something_would_not_be_trained():
    class Leaves(Module):
        def forward(self, x):
            return np.maximum(x.data if isinstance(x, Tensor) else x, 0)

    x = normal(4, 3, dtype=np.float32)
    model = Sequential([Dense(5), Leaves(), Dense(2)])
    with pytest.raises(TypeError,
                       match=r"leaves Leaves\(\): forward was given a Tensor and returned an array"):
        model(x)
    class Classes(Module):
        def forward(self, x):
            return x.data.argmax(axis=1)

    assert Sequential([Dense(5), Classes()])(x).shape == (4,), "class numbers have no gradient"
    assert Leaves()(x).min() == 0, "with nothing to differentiate it is fine"
    assert model.predict(x).shape == (4, 2)


# --- The culprit is named -------------------------------------------------------------------------

class Times(Module):
    def __init__(self, factor):
        self.factor = factor

    def forward(self, x):
        return x * self.factor


@pytest.mark.parametrize("culprit, words", [
    (lambda: Times(Parameter(np.ones(1))), "layers.2.factor in Sequential is float64"),
    (lambda: Times(np.ones(1)), "layers.2.factor in Sequential is float64"),
    (lambda: Times(np.sqrt(2)), r"times Times\(\) turns its input into float64")])
def test_who_made_float64_is_told_by_the_layer_that_complains(culprit, words):
    """An activation in between passes it on and is innocent."""
    first = BatchNorm()
    model = Sequential([first, Dense(4), culprit(), Activation("relu"), BatchNorm(), Dense(2)])
    with pytest.raises(TypeError,
                       match=rf"batchnorm_1 BatchNorm\(4\) holds float32 weights.*{words}.*np\.float32"):
        model(normal(4, 3, dtype=np.float32))
    assert first.updates == 1, "the search moves no statistics"


def test_float64_from_the_forward_of_ones_own_model_is_told():
    class Net(Module):
        def __init__(self):
            self.first, self.second = dense(3, 4), dense(4, 2)

        def forward(self, x):
            return self.second(self.first(x) / np.sqrt(4.0))

    with pytest.raises(TypeError,
                       match=r"second Dense\(4 -> 2\).*Net\.forward turns its input into float64.*math\.sqrt"):
        Net()(normal(4, 3, dtype=np.float32))


def test_a_float64_input_is_still_the_users_own():
    with pytest.raises(TypeError, match="use x.astype"):
        Sequential([Dense(4, input_shape=3)])(Tensor(normal(4, 3)))


@pytest.mark.parametrize("x, words", [
    ([[1.0, 2.0, 3.0]], r"takes an array or a Tensor, got list"), (None, "got NoneType"),
    ("abc", "got str"), (3.0, "got float"), (np.ones((2, 3), complex), "takes numbers"),
    (np.full((2, 3), "a"), "takes numbers, got an array of dtype <U1"),
    (Tensor(np.ones((2, 3), int)), r"int64 Tensor: use x.astype\(np.float32\)$")])
@pytest.mark.parametrize("make", [lambda: dense(3, 2), lambda: BatchNorm(input_shape=3),
                                  lambda: LayerNorm(input_shape=3)])
def test_inputs_that_are_none_are_named(make, x, words):
    with pytest.raises(TypeError, match=words):
        make()(x)


def test_a_layer_takes_one_input():
    with pytest.raises(TypeError, match=r"Dense\(3 -> 2\) takes one input, got 2.*F\.concatenate"):
        dense(3, 2)(np.ones((1, 3)), np.ones((1, 3)))


def test_layers_inside_a_module_have_their_paths_in_errors_without_build():
    class Outer(Module):
        def __init__(self):
            self.pair, self.blocks = Pair(dense(3, 4), dense(5, 2)), [dense(2, 2)]

        def forward(self, x):
            return self.blocks[0](self.pair(x))

    model = Outer()
    with pytest.raises(ValueError, match=r"^pair\.second Dense\(5 -> 2\) expects"):
        model(np.ones((1, 3), np.float32))
    model.pair.second = dense(4, 3)
    with pytest.raises(ValueError, match=r"^blocks\.0 Dense\(2 -> 2\) expects"):
        model(np.ones((1, 3), np.float32))
    model.blocks = [dense(9, 9)]
    with pytest.raises(ValueError, match=r"^blocks\.0 Dense\(9 -> 9\) expects"):
        model(np.ones((1, 3), np.float32))


def test_a_part_that_knows_its_parent_can_be_shown_and_used():
    class Child(Module):
        def __init__(self, parent):
            self.parent, self.inner = parent, dense(3, 2)

        def forward(self, x):
            return self.inner(x)

    class Parent(Module):
        def __init__(self):
            self.child = Child(self)

        def forward(self, x):
            return self.child(x)

    model = Parent()
    assert "..." in repr(model)
    assert model(np.ones((1, 3), np.float32)).shape == (1, 2)
    assert len(model.modules()) == 3
    around = [dense(2, 2)]
    around.append(around)
    model.around = around
    assert len(model.modules()) == 4, "a list that holds itself is opened once"


# --- Settings nobody checked ----------------------------------------------------------------------

@pytest.mark.parametrize("make, words", [
    (lambda: Dense("64"), "got '64'"),
    (lambda: Dense(64.0), r"got 64\.0"),
    (lambda: Dense(True), "got True"),
    (lambda: Dense(3, use_bias="False"), "use_bias is True or False, got 'False'"),
    (lambda: Dense(3, kernel_initializer=None), "unknown initializer None"),
    (lambda: Dense(3, rng="zero"), "rng is where random numbers come from"),
    (lambda: BatchNorm("0.1"), "from 0 to 1, got '0.1'"),
    (lambda: BatchNorm(True), "from 0 to 1, got True"),
    (lambda: BatchNorm(eps=math.inf), "cannot be negative or infinite"),
    (lambda: BatchNorm(eps=math.nan), "got nan"),
    (lambda: BatchNorm(affine="no"), "affine is True or False"),
    (lambda: BatchNorm(input_shape=(3, 4, 5, 6)), "input_shape is"),
    (lambda: LayerNorm("x"), "got 'x'"), (lambda: LayerNorm(affine=2), "affine is True or False"),
    (lambda: Dropout("0.5"), "got '0.5'"),
    (lambda: Dropout(50), r"\(0\.5 for 50 percent\), got 50"),
    (lambda: Dropout(None), "got None"),
    (lambda: Dropout(0.5, rng=1.5), "rng is"),
    (lambda: Activation(None), "got None"),
    (lambda: initializers.normal(-1), "standard deviation"),
    (lambda: initializers.normal("0.1"), "standard deviation"),
    (lambda: initializers.constant(np.ones(3)), "constant"),
    (lambda: initializers.constant(math.nan), "constant"),
    (lambda: Sequential(seed="a"), "seed is a whole number"),
    (lambda: Sequential(seed=-1), "seed is a whole number")])
def test_settings_are_checked_in_the_constructor(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("shape", [(0,), 0, -3, 28.0, "784", (), (True,), (None, 3), (2, (3,)),
                                   np.ones((1000, 3))])
def test_a_shape_is_whole_numbers(shape):
    for make in (lambda: Dense(3, input_shape=shape), lambda: Flatten(input_shape=shape),
                 lambda: Net().build(shape)):
        with pytest.raises(ValueError, match="a shape is whole numbers") as caught:
            make()
        assert len(str(caught.value)) < 200, "data for a shape are not printed"
    with pytest.raises(ValueError, match="build needs the shape"):
        Net().build(None)


@pytest.mark.parametrize("initializer, words", [
    (initializers.normal, r"a function of \(shape, rng\).*initializers\.normal\(0\.05\)"),
    (lambda shape: np.zeros(shape), r"a function of \(shape, rng\)"),
    (lambda shape, rng: np.full(shape, np.nan), "NaN or infinite"),
    (lambda shape, rng: 0.0, r"made shape \(\)"),
    (lambda shape, rng: "zeros", r"a function of \(shape, rng\)")])
def test_an_initializer_that_returns_no_weights_is_named(initializer, words):
    with pytest.raises(ValueError, match=words):
        Dense(3, input_shape=2, kernel_initializer=initializer).parameters()


def test_an_initializer_may_return_whole_numbers():
    layer = dense(3, 3, kernel_initializer=lambda shape, rng: np.eye(3, dtype=int))
    assert layer.kernel.dtype == np.float32


@pytest.mark.parametrize("name, value", [("softmax", "1"), ("log_softmax", "0")])
def test_softmax_of_one_output_is_not_trained_and_of_two_is(name, value):
    x, y = np.eye(3, dtype=np.float32), np.ones((3, 1))
    for layers, label in (([Dense(1, name)], r"dense Dense\(3 -> 1"),
                          ([Dense(1), Activation(name), Dense(2)], r"activation Activation\(")):
        model = Sequential(layers).compile("sgd", "mse")
        with pytest.raises(ValueError, match=f"{label}.*always {value}.*'sigmoid'"):
            model.fit(x, np.ones((3, layers[-1].units)), verbose=0)
        assert not hasattr(model, "history")
    Sequential([Dense(1, "sigmoid")]).compile("sgd", "mse").fit(x, y, verbose=0)
    Sequential([Dense(2, name)]).compile("sgd", "mse").fit(x, np.ones((3, 2)), verbose=0)


def test_a_class_where_a_function_or_a_layer_belongs():
    for make, words in ((lambda: Activation(Dense), "got the class Dense"),
                        (lambda: Dense(3, Activation), "class Activation"),
                        (lambda: Sequential([BatchNorm]), r"write BatchNorm\(\.\.\.\)"),
                        (lambda: Sequential([F.relu]), r"write Activation\(function\)")):
        with pytest.raises(TypeError, match=words):
            make()


@pytest.mark.parametrize("make, words", [
    (lambda: Dense(3, bias=False), "use_bias=False"), (lambda: Dense(3, name="a"), r"layer\.name"),
    (lambda: Dense(3, input_dim=4), "input_shape=784"),
    (lambda: BatchNorm(epsilon=1e-3), "write eps"),
    (lambda: BatchNorm(num_features=3), "found out"), (lambda: BatchNorm(axis=-1), "axis 1"),
    (lambda: LayerNorm(normalized_shape=3), "found out"), (lambda: Dropout(p=0.5), "write rate"),
    (lambda: Activation("relu", inplace=True), "leave it out"),
    (lambda: Sequential([], name="net"), "leave it out"),
    (lambda: Flatten(start_dim=1), "leave it out"),
    (lambda: Dense(3, colour=1), "unexpected keyword argument 'colour'")])
def test_arguments_of_other_libraries_say_minidls_word(make, words):
    with pytest.raises(TypeError, match=words):
        make()


@pytest.mark.parametrize("ask, words", [
    (lambda: dense(3, 2).weight, "write kernel"),
    (lambda: dense(3, 2).weights, r"write parameters\(\)"),
    (lambda: batch_norm().weight, "write gamma"),
    (lambda: batch_norm().moving_mean, "write running_mean"),
    (lambda: Dropout(0.5).p, "write rate"),
    (lambda: Net().cuda(), "CPU"),
    (lambda: Net().half(), "astype"),
    (lambda: Net().fit(1, 2), "training.fit"),
    (lambda: Net().add_module("a", 3), "assign the part"),
    (lambda: Sequential().predict_classes(1), "argmax"),
    (lambda: Sequential().fit_generator(1), r"model\.fit"),
    (lambda: Sequential().load("m.npz"), r"Sequential\.load\(path\)"),
    (lambda: Net().nonsense, "no attribute 'nonsense'$")])
def test_attributes_of_other_libraries_say_minidls_word(ask, words):
    with pytest.raises(AttributeError, match=words):
        ask()


def test_keras_call_is_forward_here():
    class Layer(Module):
        def call(self, x):
            return x

    with pytest.raises(NotImplementedError, match="what Keras calls `call` is `forward` here"):
        Layer()(1)


def test_train_that_is_given_data_says_what_trains():
    for data in np.ones((4, 3)), 10, "x":
        with pytest.raises(TypeError, match="what trains a model is fit"):
            Net().train(data)


def test_weights_are_floating_point_numbers():
    with pytest.raises(TypeError, match="floating-point numbers"):
        Net().astype(int)


def test_a_seed_for_one_layer_is_one_stream():
    """It is made at once, so that a checkpoint taken before the first batch has it, too."""
    layer = Dropout(0.5, rng=3)
    assert isinstance(layer.rng, np.random.Generator)
    assert isinstance(Dense(2, rng=3).rng, np.random.Generator)
    kept = np.random.default_rng(3).random((4, 5), np.float32) >= 0.5
    assert np.array_equal(layer(np.ones((4, 5), np.float32)), 2 * kept)


def test_names_of_other_libraries_say_minidls_word_where_they_are_imported():
    """Not an ImportError that only says that the name is not there."""
    import minidl
    from minidl import layers
    for owner in minidl, layers:
        with pytest.raises(AttributeError, match="no attribute 'BatchNormalization': write BatchNorm"):
            owner.BatchNormalization
        assert not hasattr(owner, "Linear") and not hasattr(owner, "nonsense")
    for line, words in (("from minidl import Linear", r"write Dense\(64, input_shape=784\)"),
                        ("from minidl import nn", "layers are in minidl itself"),
                        ("from minidl import Dense, ReLU", r"write Activation\('relu'\)"),
                        ("from minidl import nonsense", "cannot import name 'nonsense'")):
        with pytest.raises(ImportError, match=words):
            exec(line)
