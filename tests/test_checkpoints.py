"""A run that was stopped, saved and loaded in another process is, bit for bit, the run that was never stopped."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minidl import Activation, BatchNorm, Dense, Dropout, Module, Sequential, data, files, optim, schedules, training
from minidl import functional as F
from minidl.checkpoints import load_checkpoint, save_checkpoint

SCRIPT = """
import sys
import numpy as np
from minidl import Activation, BatchNorm, Dense, Dropout, LambdaCallback, LearningRateScheduler, Sequential, optim, schedules

optimizer = {
    "momentum": lambda: optim.SGD(lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optim.Adam(lr=schedules.OneCycle(0.01, steps=70)),
    "rmsprop": lambda: optim.RMSprop(lr=0.001),
}[sys.argv[1]]()
falling = LearningRateScheduler(lambda epoch, lr: 0.8 * lr)  # depends on the rate it finds
rng = np.random.default_rng(0)
x, y = rng.normal(0, 1, (200, 12)).astype(np.float32), rng.integers(0, 4, 200)
model = Sequential([Dense(16, input_shape=12), BatchNorm(momentum=None), Activation("relu"), Dropout(0.3), Dense(4)], seed=3)
model.compile(optimizer)
first, last, load, save = sys.argv[2:]
done = model.load_checkpoint(load) if load != "-" else 0
assert done == int(first)
keep = LambdaCallback(on_epoch_end=lambda epoch, logs: model.save_checkpoint(save, epoch + 1))
callbacks = [keep] if callable(optimizer.lr) else [falling, keep]
history = model.fit(x, y, epochs=int(last), initial_epoch=done, verbose=0, callbacks=callbacks)
print([loss.hex() for loss in history.steps["loss"]])
"""


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parents[1])}
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("optimizer, suffix", [("momentum", "npz"), ("adam", "safetensors"), ("rmsprop", "npz")])
def test_ten_epochs_are_five_and_five_in_another_process(tmp_path, optimizer, suffix):
    half, resumed, whole = (tmp_path / f"{name}.{suffix}" for name in ("half", "resumed", "whole"))
    first = run(optimizer, 0, 5, "-", half)
    second = run(optimizer, 5, 10, half, resumed)
    assert first.strip()[:-1] + ", " + second.strip()[1:] == run(optimizer, 0, 10, "-", whole).strip()
    one, two = files.load(resumed), files.load(whole)
    assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


def toy(seed=0, lr=0.1):
    model = Sequential([Dense(6, input_shape=5), BatchNorm(), Activation("relu"), Dropout(0.5), Dense(3)], seed=seed)
    return model.compile(optim.SGD(lr=lr, momentum=0.9))


def trained(**options):
    rng = np.random.default_rng(1)
    model = toy(**options)
    model.fit(rng.normal(0, 1, (40, 5)).astype(np.float32), rng.integers(0, 3, 40), epochs=2, verbose=0)
    return model


def everything(model):
    """All that a checkpoint may change, as something that can be compared."""
    arrays = {**model.state_dict(), **model.optimizer.state_dict()} if model.optimizer.parameters else model.state_dict()
    random = [str(rng.bit_generator.state) for rng in (model.weights_rng, model.shuffle_rng, model.dropout_rng)]
    return {name: array.tobytes() for name, array in arrays.items()}, random, model.optimizer.lr


def test_a_module_with_a_loop_of_its_own_resumes_too(tmp_path):
    class Net(Module):
        def __init__(self):
            self.rng = np.random.default_rng(5)
            self.fc1, self.fc2 = Dense(4, input_shape=5, rng=self.rng), Dense(3, rng=self.rng)
            self.drop = Dropout(0.5, rng=self.rng)

        def forward(self, x):
            return self.fc2(self.drop(F.tanh(self.fc1(x))))

    x, y = np.random.default_rng(0).normal(0, 1, (30, 5)).astype(np.float32), np.arange(30) % 3

    def steps(model, optimizer, n):
        history = training.fit(model, x, y, epochs=n, loss="cross_entropy", optimizer=optimizer, rng=model.rng, verbose=0)
        return history.steps["loss"]

    model, other = Net().build(5), Net().build(5)
    optimizer = optim.Adam(model.parameters())
    steps(model, optimizer, 2)
    save_checkpoint(tmp_path / "run.npz", model, optimizer, 2)
    other_optimizer = optim.Adam()
    assert load_checkpoint(tmp_path / "run.npz", other, other_optimizer) == 2
    assert steps(other, other_optimizer, 3) == steps(model, optimizer, 3)


@pytest.mark.parametrize("change, fault", [
    (lambda state: state.pop("epochs"), "no checkpoint"),
    (lambda state: state.pop("random.shuffle_rng"), "generators shuffle_rng; a Dropout"),
    (lambda state: state.update({"random.shuffle_rng": np.zeros(3, np.uint8)}), "Expecting value"),
    (lambda state: state.update({"random.shuffle_rng": np.frombuffer(b'{"state": 1}', np.uint8)}), "run.npz"),
    (lambda state: state.pop("optimizer.velocity.0"), "velocity.0"),
    (lambda state: state.pop("model.layers.0.kernel"), "kernel"),
    (lambda state: state.update({"model.layers.0.kernel": np.zeros((2, 2))}), "shape"),
    (lambda state: state.update({"model.layers.9.kernel": np.zeros((2, 2))}), "not in the model"),
    (lambda state: state.update({"epochs": np.zeros(2)}), "run.npz"), (lambda state: state.pop("lr"), "lr"),
])
def test_what_does_not_fit_is_refused_and_nothing_has_changed(tmp_path, change, fault):
    path = tmp_path / "run.npz"
    trained().save_checkpoint(path, 2)
    state = files.load(path)
    change(state)
    files.save(path, state)
    model = trained(seed=4, lr=0.3)
    before = everything(model)
    with pytest.raises(ValueError, match=fault) as caught:
        model.load_checkpoint(path)
    assert str(path) in str(caught.value) and everything(model) == before


def test_weights_alone_and_another_models_checkpoint_are_refused(tmp_path):
    model = trained()
    model.save_weights(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="no checkpoint"):
        toy().load_checkpoint(tmp_path / "weights.npz")
    model.save_checkpoint(tmp_path / "run.npz", 2)
    other = Sequential([Dense(7, input_shape=5), Dense(3)]).compile(optim.SGD(lr=0.1, momentum=0.9))
    with pytest.raises(ValueError, match="run.npz"):
        other.load_checkpoint(tmp_path / "run.npz")


def test_mutated_checkpoints_end_in_a_named_fault_or_in_a_run_that_goes_on(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "run.safetensors"
    trained().save_checkpoint(path, 2)
    content, faults = path.read_bytes(), 0
    for _ in range(1000):
        mutated = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            mutated[rng.integers(0, len(mutated))] = rng.integers(0, 256)
        path.write_bytes(mutated[:rng.integers(0, len(mutated))] if rng.random() < 0.1 else mutated)
        model = toy(seed=4)
        before = everything(model)[1:]
        try:
            assert isinstance(model.load_checkpoint(path), int)
        except ValueError as error:
            faults += 1
            assert "run.safetensors" in str(error) and everything(model)[1:] == before
    assert 300 < faults < 1000


def test_a_rate_that_a_callback_changed_is_kept_and_a_schedule_is_not_overwritten(tmp_path):
    model = trained(lr=0.1)
    model.optimizer.lr = 0.025
    model.save_checkpoint(tmp_path / "run.npz", 2)
    other = toy(lr=0.5)
    other.load_checkpoint(tmp_path / "run.npz")
    assert other.optimizer.lr == 0.025
    scheduled = toy(lr=schedules.CosineDecay(0.1, steps=10))
    with pytest.raises(ValueError, match="lr"):
        scheduled.load_checkpoint(tmp_path / "run.npz")
