"""Looking inside changes nothing, and what it shows is what happened."""

import copy

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    Module,
    Parameter,
    Sequential,
    Tensor,
    estimate_population_statistics,
    explain,
    grad,
    no_grad,
    optim,
    record,
)
from minidl import functional as F
from minidl.inside import explain_batchnorm
from minidl.tensor import watchers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 12)).astype(np.float32)
Y = RNG.integers(0, 4, 96)


def net(activation="relu", last=(), **batch_norm):
    return Sequential([Dense(16), BatchNorm(**batch_norm), Activation(activation), Dropout(0.2), Dense(4), *last], seed=1)


def weights(model):
    return [p.data for p in model.parameters()] + model.buffers()


# --- record -------------------------------------------------------------------------------------------

def test_recording_changes_no_bit_of_the_training_and_leaves_nothing_behind():
    models = [net(last=[Activation("softmax")]).compile(optim.Adam(lr=0.01), "categorical_crossentropy") for _ in range(2)]
    with record(models[0]) as log:
        recorded = models[0].fit(X, Y, epochs=2, verbose=0, validation_data=(X, Y)).history
    assert models[1].fit(X, Y, epochs=2, verbose=0, validation_data=(X, Y)).history == recorded
    assert all(np.array_equal(a, b) for a, b in zip(*map(weights, models)))
    assert all(part.forward_hooks == () for part in models[0].modules())
    assert watchers.get() == () and log.outputs == {} and log.steps == [0, 1, 2, 3, 4, 5]
    assert {type(value) for column in log.values.values() for value in column.values()} == {float}  # no array is kept


def test_a_model_can_be_copied_while_it_is_recorded_and_the_copy_is_not():
    model = net().compile(optim.SGD(lr=0.1))
    with record(model) as log:
        model.fit(X, Y, verbose=0)
        other, steps = copy.deepcopy(model), len(log.steps)
        model.fit(X, Y, verbose=0)
        other.fit(X, Y, verbose=0)
    assert len(log.steps) == 2 * steps and all(np.array_equal(a, b) for a, b in zip(weights(model), weights(other)))


def test_an_exception_and_hooks_of_ones_own_survive_a_record():
    """Also those that are registered or removed while it records; and one of two equal hooks can be removed."""
    model, calls = net().build((12,)), []
    mine = lambda *arguments: calls.append("old")  # noqa: E731
    old, _ = [model.layers[0].register_forward_hook(mine) for _ in range(2)]
    with pytest.raises(ZeroDivisionError), record(model):
        model.layers[0].register_forward_hook(lambda *arguments: calls.append("new"))
        old.remove()
        1 / 0
    model(X)
    assert calls == ["old", "new"] and model.layers[1].forward_hooks == () and watchers.get() == ()


@pytest.mark.parametrize("zero_grad_first", [True, False], ids=["PyTorch's order", "zero_grad after the forward"])
def test_the_numbers_are_those_of_the_step(zero_grad_first):
    """Against the same quantities worked out from grad() and SGD's rule."""
    model = Sequential([Dense(16), Activation("tanh"), Dense(4)], seed=1).build((12,))
    optimizer = optim.SGD(model.parameters(), lr=0.5)
    expected = {}
    with record(model) as log:
        for step in range(3):
            hidden = model.layers[0](X)
            y = F.tanh(hidden)
            g_hidden, g_kernel = grad(F.cross_entropy(model.layers[2](y), Y), [hidden, model.layers[0].kernel])
            kernel = model.layers[0].kernel.data
            row = {("activation", "mean"): y.data.mean(), ("activation", "std"): y.data.std(),
                   ("activation", "p5"): np.percentile(y.data, 5), ("activation", "p95"): np.percentile(y.data, 95),
                   ("activation", "saturation"): np.mean(np.abs(y.data) > 0.9), ("dense", "grad_mean"): g_hidden.mean(),
                   ("dense", "grad_norm"): np.linalg.norm(g_hidden), ("dense", "grad_p50"): np.percentile(g_hidden, 50),
                   ("dense.kernel", "grad_norm"): np.linalg.norm(g_kernel), ("dense.kernel", "norm"): np.linalg.norm(kernel),
                   ("dense.kernel", "update_ratio"): 0.5 * np.linalg.norm(g_kernel) / np.linalg.norm(kernel)}
            for key, value in row.items():
                expected.setdefault(key, []).append(value)
            if zero_grad_first:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(X), Y)
            if not zero_grad_first:
                optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert log.steps == [0, 1, 2]
    for key, values in expected.items():
        assert np.allclose(log[key], values, rtol=1e-4, atol=1e-8), key
    assert np.array_equal(log.array("std"), np.stack([log[row, "std"] for row in ("dense", "activation", "dense_1")], axis=1))
    kernels = ["dense.kernel", "dense_1.kernel"]
    assert np.array_equal(log.array("grad_norm", kernels)[:, 0], log["dense.kernel", "grad_norm"])


def test_every_keeps_each_tenth_and_its_update_is_of_that_step_alone():
    logs = []
    for every in (1, 4):
        model = net().compile(optim.SGD(lr=0.1))
        with record(model, every=every) as log:
            model.fit(X, Y, batch_size=16, verbose=0)
        logs.append(log)
    assert logs[1].steps == [0, 4]
    for key in logs[1].values:
        assert np.array_equal(logs[0][key][[0, 4]], logs[1][key], equal_nan=True)


def test_only_training_steps_count():
    model, other = net().build((12,)), net().build((12,))
    with record(model) as log:
        model.eval()
        F.cross_entropy(model(X), Y).backward()  # evaluation mode: a gradient, but no training
        model.train()
        with no_grad():
            model(2 * X)
        model(2 * X)  # no backward
        F.cross_entropy(other(X), Y).backward()  # another model's
        assert log.steps == []
        y = model(X)
        with no_grad():
            model(2 * X)
        F.cross_entropy(y, Y).backward()
        model(2 * X)
    assert log.steps == [0] and log["dense_1", "mean"][0] == np.mean(y.data, dtype=float)
    assert log.outputs == {}  # the graph of the last forward is not kept alive


def test_two_records_at_once_each_see_their_own_model():
    one, two = net().compile(optim.SGD(lr=0.1)), net().compile(optim.SGD(lr=0.1))
    with record(one) as log_one, record(two, every=2) as log_two:
        one.fit(X, Y, verbose=0)
        two.fit(X, Y, verbose=0)
    assert (log_one.steps, log_two.steps) == ([0, 1, 2], [0, 2])
    assert np.array_equal(log_one.array("std")[::2], log_two.array("std"))


def test_saturation_is_the_share_in_the_flat_part():
    """2 of 8 inputs lie where sigmoid or tanh is in its outer 5 %, 4 where ReLU is 0; other functions have no such number."""
    x = Tensor(np.float32([[-3.2, -2.8, -1, 0, 0.5, 1, 2.8, 3.2]]))
    for name, scale, share in [("sigmoid", 1, 0.25), ("tanh", 0.5, 0.25), ("relu", 1, 0.5), ("gelu", 1, None)]:
        model = Sequential([Dense(8, use_bias=False), Activation(name)]).build((8,))
        model.layers[0].kernel.data = scale * np.eye(8, dtype=np.float32)
        with record(model) as log:
            model.train()(x).sum().backward()
        assert (("activation", "saturation") in log.values) == (share is not None)
        assert share is None or log["activation", "saturation"].tolist() == [share]


def test_batchnorm_keeps_sigmoids_off_saturation_whatever_the_initial_weights():
    """Of N(0, 1), 0.32 % lies where the sigmoid is flat; weights of std 3 put most of the rest there (lesson 7)."""
    for between, low, high in [([BatchNorm()], 0, 0.01), ([], 0.6, 1)]:
        model = Sequential([Dense(100, kernel_initializer=lambda shape, rng: 3 * rng.standard_normal(shape)), *between,
                            Activation("sigmoid"), Dense(4)]).compile()
        with record(model) as log:
            model.fit(X, Y, verbose=0)
        assert low <= log["activation", "saturation"][0] <= high


class Net(Module):
    """Unnamed parts, one used twice, a Parameter of its own, and one layer that only comes in later."""

    def __init__(self):
        self.blocks = [Sequential([Dense(8, "relu")]), Sequential([Dense(8, "relu")])]
        self.shared, self.scale, self.late = Dense(8), Parameter(np.ones(8, np.float32)), Dense(4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        for part in (*self.blocks, self.shared, self.shared):
            x = part(x)
        return self.late(x * self.scale) if self.calls > 1 else x * self.scale


def test_any_module_has_names_and_what_is_missing_in_a_step_is_nan():
    model = Net()
    with record(model) as log:
        for _ in range(2):
            F.cross_entropy(model(X), Y).backward()
    assert log.layers == ["dense", "blocks.1.layers.0", "shared", "late"]
    assert {"net.scale", "dense.kernel", "blocks.1.layers.0.kernel", "shared.bias", "late.bias"} <= set(log.parameters)
    assert np.isnan(log["late", "std"]).tolist() == [True, False]
    last_use = model.shared(model.shared(model.blocks[1](model.blocks[0](X))))
    assert log["shared", "mean"][0] == np.mean(last_use.data, dtype=float)


def test_a_loss_on_softmax_stays_exact_and_the_softmax_has_no_gradient():
    model = Sequential([Dense(4, activation="softmax")]).build((12,))
    model.layers[0].kernel.data *= 1e4
    with record(model) as log:
        loss = F.categorical_crossentropy(model(X), Y)
        loss.backward()
    assert loss.item() > 1000 and log.steps == [0]  # log(0) would have been cut off or inf
    assert np.isnan(log["dense", "grad_norm"]).all() and log["dense.kernel", "grad_norm"][0] > 0


def test_gradients_too_small_for_a_float32_square_are_seen():
    model = Sequential([Dense(4)]).build((12,))
    with record(model) as log:
        (model(X).sum() * 1e-30).backward()
    assert np.isclose(log["dense", "grad_norm"][0], 1e-30 * np.sqrt(X.shape[0] * 4), rtol=1e-5)


def test_summary_and_errors_name_what_there_is(capsys):
    model = net().compile()
    with record(model) as log:
        with pytest.raises(KeyError, match="nothing was recorded"):
            log["dense", "std"]
        model.fit(X, Y, verbose=0)
    for key in (("dens", "std"), ("dense", "variance"), "dense"):
        with pytest.raises(KeyError, match="rows: dense, batchnorm.*statistics: mean, std"):
            log[key]
    log.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["step", "2", "mean"]
    assert [line.split()[0] for line in lines[1:]] == log.layers + log.parameters
    assert f"{log['activation', 'saturation'][-1]:.3g}" in lines[3].split()


# --- explain ------------------------------------------------------------------------------------------

def rows(text):
    """[(number, op, leads to, norm)] of what explain printed."""
    split = [line.split() for line in text.splitlines()[1:]]
    return [(int(cells[0]), cells[1], float(cells[-2])) for cells in split]


def test_explain_prints_the_gradient_at_each_op_and_keeps_the_graph(capsys):
    model = Sequential([Dense(16), Activation("sigmoid"), Dense(4)]).build((12,))
    kernel, loss = model.layers[0].kernel, F.cross_entropy(model(X), Y)
    explain(loss, kernel)
    printed = rows(capsys.readouterr().out)
    assert [row[0] for row in printed] == [1, 2, 3, 4, 5]
    assert [row[1] for row in printed] == ["cross_entropy", "linear", "sigmoid", "linear", "Parameter"]
    hidden = model.layers[0](X)
    active = model.layers[1](hidden)
    logits = model.layers[2](active)
    again = F.cross_entropy(logits, Y)
    expected = grad(again, [again, logits, active, hidden, kernel])
    assert np.allclose([row[2] for row in printed], [np.linalg.norm(g) for g in expected], rtol=5e-3)
    loss.backward()
    assert np.array_equal(kernel.grad, expected[-1])
    with pytest.raises(RuntimeError, match="freed"):
        explain(loss, kernel)


def test_explain_shows_all_paths_and_adds_them_up(capsys):
    """y = tanh(x) x + b: the gradient reaches x twice; what depends on b alone is left out."""
    x, b = Tensor(2.0, requires_grad=True), Tensor(1.0, requires_grad=True)
    product = F.tanh(x) * x
    y = product + F.exp(b)
    explain(y, x)
    text = capsys.readouterr().out
    assert [row[1] for row in rows(text)] == ["add", "mul", "tanh", "Tensor"]
    assert text.splitlines()[2].split()[2:4] == ["3,", "4"]
    assert np.isclose(rows(text)[-1][2], np.tanh(2) + 2 * (1 - np.tanh(2) ** 2), rtol=5e-3)
    explain(y, product)  # a result
    assert [row[1] for row in rows(capsys.readouterr().out)] == ["add", "mul"]


def test_explain_goes_to_any_depth(capsys):
    y = x = Tensor(1.0, requires_grad=True)
    for _ in range(3000):
        y = y * 1.0
    explain(y, x)
    assert len(capsys.readouterr().out.splitlines()) == 3002


def test_explain_says_why_there_is_no_path(capsys):
    x, b, data = Tensor(2.0, requires_grad=True), Parameter(np.ones(3)), Tensor(np.ones((5, 7)))
    loss = (x * data).sum()
    with pytest.raises(ValueError, match=r"shape \(3,\): the loss was not made from it.* 1 leaves, of shapes \(\)"):
        explain(loss, b)
    with pytest.raises(ValueError, match=r"shape \(5, 7\): it does not require a gradient"):
        explain(loss, data)
    with no_grad(), pytest.raises(RuntimeError, match="nothing to differentiate"):
        explain((x * data).sum(), x)
    assert capsys.readouterr().out == ""


# --- explain_batchnorm --------------------------------------------------------------------------------

def trained(steps, **batch_norm):
    model = net(**batch_norm).build((12,)).train()
    for i in range(steps):
        model(5 + 3 * X[i % 3::3])
    return model


def line(capsys):
    out = capsys.readouterr().out
    return out.splitlines()[1].split(), out


@pytest.mark.parametrize("steps, momentum, start", [(20, 0.01, "82%"), (20, 0.1, "12%"), (60, 0.1, "0%"), (3, None, "0%"),
                                                    (0, None, "100%"), (0, 0.1, "100%"), (1, 1.0, "0%")])
def test_how_much_of_the_starting_values_is_left(steps, momentum, start, capsys):
    """Cross-checked with the layer itself: on data of mean m, running_mean is (1 - start) m."""
    explain_batchnorm(trained(steps, momentum=momentum))
    row, out = line(capsys)
    assert row[:4] == ["batchnorm", str(steps), "average" if momentum is None else f"{momentum:g}", start]
    assert ("WARNING batchnorm: evaluate() after" in out) == (float(start[:-1]) > 5)
    layer = BatchNorm(momentum=momentum).train()
    for _ in range(steps):
        layer(np.float32([[7], [9]]))
    assert not steps or np.isclose(1 - layer.running_mean[0] / 8, float(start[:-1]) / 100, atol=0.006)


def test_the_gap_is_none_when_the_running_statistics_are_the_batch(capsys):
    explain_batchnorm(trained(4, momentum=1.0))
    assert line(capsys)[0][4:] == ["0.000", "1.000"]


def test_estimated_statistics_are_not_called_early(capsys):
    model = trained(20, momentum=0.01)
    explain_batchnorm(model)
    early, _ = line(capsys)
    estimate_population_statistics(model, 5 + 3 * X)
    explain_batchnorm(model)
    late, out = line(capsys)
    assert float(late[4]) < 0.2 < 0.4 < float(early[4]) and late[3] == "0%" and "WARNING" not in out
