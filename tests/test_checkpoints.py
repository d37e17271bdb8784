"""A run that was stopped, saved and loaded in another process is, bit for bit, the run that was never stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    EarlyStopping,
    LambdaCallback,
    ModelCheckpoint,
    Module,
    Parameter,
    Sequential,
    data,
    files,
    optim,
    schedules,
    training,
)
from minidl import functional as F
from minidl.callbacks import Callback
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


@pytest.mark.parametrize(
    "change, fault",
    [
        (lambda state: state.pop("epochs"), "no checkpoint, or not a whole one"),
        (lambda state: state.pop("random.shuffle_rng"), "generators shuffle_rng; a Dropout"),
        (
            lambda state: state.update({"random.shuffle_rng": np.zeros(3, np.uint8)}),
            "Expecting value",
        ),
        (lambda state: state.update({"random.shuffle_rng": np.zeros(3)}), "bytes of text"),
        (
            lambda state: state.update({"random.shuffle_rng": np.full(19_000, ord("["), np.uint8)}),
            "recursion",
        ),
        (
            lambda state: state.update({"random.shuffle_rng": np.full(30_000, ord("["), np.uint8)}),
            "at most 20,000 bytes",
        ),
        (
            lambda state: state.update({"epochs": np.array(-1)}),
            "epochs should be one whole number from 0 up, not -1",
        ),
        (lambda state: state.update({"epochs": np.array(2.0)}), "epochs should be"),
        (
            lambda state: state.update({"lr": np.array(np.nan)}),
            "lr should be one number from 0 up, not nan",
        ),
        (lambda state: state.update({"lr": np.array([0.1, 0.1])}), "lr should be"),
        (
            lambda state: state.update({"optimizer.steps": np.array(-1)}),
            "steps should be whole numbers",
        ),
        (
            lambda state: state.update({"optimizer.updates": np.array([-1, 1, 1, 1, 1, 1])}),
            "updates should be whole numbers",
        ),
        (
            lambda state: state.update(
                {"random.shuffle_rng": np.frombuffer(b'{"state": 1}', np.uint8)}
            ),
            "run.npz",
        ),
        (lambda state: state.pop("optimizer.velocity.0"), "velocity.0"),
        (lambda state: state.pop("model.layers.0.kernel"), "kernel"),
        (lambda state: state.update({"model.layers.0.kernel": np.zeros((2, 2))}), "shape"),
        (
            lambda state: state.update({"model.layers.9.kernel": np.zeros((2, 2))}),
            "not in the model",
        ),
        (lambda state: state.update({"epochs": np.zeros(2)}), "run.npz"),
        (lambda state: state.pop("lr"), "lr"),
    ],
)
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


# --- Which file is which --------------------------------------------------------------------------


def test_a_checkpoint_and_weights_alone_are_told_apart(tmp_path):
    model = trained()
    model.save_checkpoint(tmp_path / "run.npz", 2)
    model.save_weights(tmp_path / "weights.npz")
    with pytest.raises(
        ValueError, match=r"run\.npz is a checkpoint, .*: use model\.load_checkpoint\(path\)"
    ) as caught:
        toy().load_weights(tmp_path / "run.npz")
    assert "missing" not in str(caught.value)
    with pytest.raises(
        ValueError,
        match=r"weights\.npz: it is no checkpoint, .*: model\.load_weights\(path\) reads weights",
    ):
        toy().load_checkpoint(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    "lr, found",
    [
        (0.1, "a schedule when this was saved, but is a number"),
        (schedules.CosineDecay(0.1, 9), "a number when this was saved, but is a schedule"),
    ],
)
def test_another_kind_of_learning_rate_is_named(tmp_path, lr, found):
    (trained() if callable(lr) else trained(lr=schedules.CosineDecay(0.1, 9))).save_checkpoint(
        tmp_path / "run.npz", 2
    )
    with pytest.raises(ValueError, match=f"lr was {found} now"):
        toy(lr=lr).load_checkpoint(tmp_path / "run.npz")


@pytest.mark.parametrize("epochs", [-1, 2.0, "2", True, None])
def test_a_wrong_number_of_epochs_is_not_saved(tmp_path, epochs):
    with pytest.raises(ValueError, match="epochs is how many are done, a whole number from 0 up"):
        trained().save_checkpoint(tmp_path / "run.npz", epochs)
    assert not any(tmp_path.iterdir())


def test_a_run_may_be_saved_before_its_first_step(tmp_path):
    model = toy()
    model.save_checkpoint(tmp_path / "run.npz", 0)
    other = toy(seed=9)
    assert other.load_checkpoint(tmp_path / "run.npz") == 0 and everything(other) == everything(
        model
    )


# --- Random generators ----------------------------------------------------------------------------


class Mixer(Module):
    """Generators in a list, a dict and a tuple, one of them twice, and a bit generator."""

    def __init__(self):
        self.dense = Dense(3, input_shape=5)
        shared = np.random.default_rng(1)
        self.list, self.dict = (
            [shared, np.random.default_rng(2)],
            {"a": {"b": np.random.Generator(np.random.Philox(3))}},
        )
        self.tuple, self.again, self.bits = (np.random.default_rng(4),), shared, np.random.SFC64(5)

    def forward(self, x):
        if self.training:
            draw = [
                g.random(dtype=np.float32)
                for g in (*self.list, self.dict["a"]["b"], *self.tuple, self.again)
            ]
            x = x * (sum(draw) + np.float32(self.bits.random_raw() / 2 ** 64))
        return self.dense(x)


def resumed_is_the_same(make, tmp_path, x, y, callbacks=lambda: (), epochs=(3, 6), **options):
    """Train in one go, and with a stop, a file and a fresh model between; gives both models."""
    whole, first, second = make(), make(), make()
    whole.fit(x, y, epochs=epochs[1], verbose=0, callbacks=callbacks(), **options)
    first.fit(x, y, epochs=epochs[0], verbose=0, callbacks=callbacks(), **options)
    first.save_checkpoint(tmp_path / "run.npz", epochs[0])
    done = second.load_checkpoint(tmp_path / "run.npz")
    second.fit(
        x, y, epochs=epochs[1], initial_epoch=done, verbose=0, callbacks=callbacks(), **options
    )
    assert first.history.steps["loss"] + second.history.steps["loss"] == whole.history.steps["loss"]
    assert all(
        np.array_equal(a, b)
        for a, b in zip(whole.state_dict().values(), second.state_dict().values())
    )
    return whole, second


XY = np.random.default_rng(0).normal(0, 1, (30, 5)).astype(np.float32), np.arange(30) % 3


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Dropout(0.5, rng=3)],
        lambda: [Dropout(0.5, rng=3), Dropout(0.5, rng=3), Dropout(0.3)],
        lambda: [Dropout(0.5, rng=np.random.Generator(np.random.MT19937(3)))],
        lambda: [Sequential([Dropout(0.5), Dense(5), Dropout(0.2, rng=1)])],
        lambda: [Mixer()],
        lambda rng=np.random.default_rng: (lambda g: [Dropout(0.5, rng=g), Dropout(0.5, rng=g)])(
            rng(7)
        ),
    ],
)
def test_wherever_randomness_comes_from_a_fresh_model_goes_on_with_it(tmp_path, layers):
    def make():
        return Sequential([Dense(5, input_shape=5), *layers(), Dense(3)]).compile("adam")
    resumed_is_the_same(make, tmp_path, *XY)


def test_a_generator_that_two_layers_share_is_shared_and_saved_once(tmp_path):
    def make():
        rng = np.random.default_rng(7)
        return Sequential(
            [Dense(5, input_shape=5), Dropout(0.5, rng=rng), Dropout(0.5, rng=rng), Dense(3)]
        ).compile("sgd")

    model = make()
    model.save_checkpoint(tmp_path / "run.npz", 0)
    assert [
        name for name in files.load(tmp_path / "run.npz") if name.startswith("random.layers")
    ] == ["random.layers.1.rng"]
    other = make()
    other.load_checkpoint(tmp_path / "run.npz")
    assert other.layers[1].rng is other.layers[2].rng


@pytest.mark.parametrize("rng", [np.random.RandomState(0), __import__("random").Random(0)])
def test_generators_that_cannot_be_saved_are_named(tmp_path, rng):
    model = toy()
    model.noise = [rng]
    with pytest.raises(
        ValueError, match=r"cannot hold the random generator noise\.0, a Random.*default_rng"
    ):
        model.save_checkpoint(tmp_path / "run.npz", 0)


HOSTILE = [
    -1,
    5.0,
    1.5,
    True,
    None,
    "3",
    [],
    {},
    [3],
    2**31,
    10**9,
    2**63,
    2**64,
    2**128,
    10**4000,
    -(2**64),
]


def leaves(state, path=()):
    for key, value in state.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_no_state_of_a_generator_crashes_or_is_believed_unseen(tmp_path, kind):
    """A place outside of NumPy's buffers ended the process."""

    def make():
        rng = np.random.Generator(getattr(np.random, kind)(0))
        return Sequential([Dropout(0.5, rng=rng), Dense(3, input_shape=5)]).compile("sgd")
    model = make()
    model.fit(*XY, verbose=0)
    model.save_checkpoint(tmp_path / "run.npz", 1)
    state = files.load(tmp_path / "run.npz")
    right = json.loads(state["random.layers.0.rng"].tobytes())
    for path, value in leaves(right):
        numbers = value if isinstance(value, list) else None
        changes = HOSTILE + (
            [numbers[:-1], numbers + [0], [2**64, *numbers[1:]], [True, *numbers[1:]]]
            if numbers
            else []
        )
        for changed in [
            change for change in changes if type(change) is not type(value) or change != value
        ]:
            wrong = json.loads(json.dumps(right))
            inner = wrong
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = changed
            state["random.layers.0.rng"] = np.frombuffer(json.dumps(wrong).encode(), np.uint8)
            files.save(tmp_path / "wrong.npz", state)
            other = make()
            before = other.layers[0].rng.bit_generator.state
            try:
                other.load_checkpoint(tmp_path / "wrong.npz")
                assert (
                    type(changed) is int
                    and 0 <= changed < 2**128
                    and path[-1] in ("state", "inc", "uinteger")
                )
                assert path[-1] != "inc" or changed % 2
                other.fit(*XY, verbose=0)
            except ValueError as error:
                assert (
                    "random generator layers.0.rng: " in str(error)
                    and len(str(error)) < len(str(tmp_path)) + 400
                )
                assert str(other.layers[0].rng.bit_generator.state) == str(before)


# --- Callbacks ------------------------------------------------------------------------------------

VALIDATION = (
    np.random.default_rng(1).normal(0, 1, (30, 5)).astype(np.float32),
    (np.arange(30) + 1) % 3,
)


def monitored(seed=0):
    return Sequential([Dense(16, "tanh", input_shape=5), Dense(3)], seed=seed).compile(
        optim.SGD(lr=0.5)
    )


@pytest.mark.parametrize("stop", [1, 2, 5, 8])
def test_early_stopping_ends_a_resumed_run_where_it_would_have_ended(tmp_path, stop):
    """The validation labels are wrong: the first epochs are best, and a half would wait anew."""
    made = []

    def callbacks():
        made.append(EarlyStopping(patience=10))
        return [LambdaCallback(), made[-1]]

    whole, second = resumed_is_the_same(
        monitored, tmp_path, *XY, callbacks, (stop, 40), validation_data=VALIDATION
    )
    one, _, two = made
    assert (one.best, one.best_epoch, one.wait) == (
        two.best,
        two.best_epoch,
        two.wait,
    ) and one.best_epoch < 8
    assert all(
        np.array_equal(one.best_weights[name], two.best_weights[name]) for name in one.best_weights
    )
    assert len(whole.history.epoch) < 40, "else nothing was stopped"


def test_weights_chosen_after_loading_are_not_overwritten_by_those_of_the_last_epoch(tmp_path):
    """From after the run, it holds the best weights and the last ones, to go on with."""
    model = monitored()
    model.fit(
        *XY,
        epochs=20,
        verbose=0,
        validation_data=VALIDATION,
        callbacks=[best := EarlyStopping(patience=50)],
    )
    assert best.wait and np.array_equal(
        model.state_dict()["layers.0.kernel"], best.best_weights["layers.0.kernel"]
    )
    model.save_checkpoint(tmp_path / "run.npz", 20)
    other, chosen = monitored(), monitored(seed=5).state_dict()
    done = other.load_checkpoint(tmp_path / "run.npz")
    assert np.array_equal(
        other.state_dict()["layers.0.kernel"], best.best_weights["layers.0.kernel"]
    )
    other.load_state_dict(chosen)
    other.fit(*XY, epochs=20, initial_epoch=done, verbose=0, validation_data=VALIDATION,
              callbacks=[EarlyStopping(patience=50, restore_best_weights=False)])
    assert all(np.array_equal(chosen[name], array) for name, array in other.state_dict().items())


def test_the_best_file_is_not_overwritten_by_a_worse_epoch_of_a_resumed_run(tmp_path):
    def keeper(name):
        return [ModelCheckpoint(tmp_path / name, save_best_only=True)]
    model = monitored()
    model.fit(*XY, epochs=20, verbose=0, validation_data=VALIDATION, callbacks=keeper("whole.npz"))
    for first, last in ((0, 12), (12, 20)):
        model = monitored()
        done = model.load_checkpoint(tmp_path / "run.npz") if first else 0
        model.fit(
            *XY,
            epochs=last,
            initial_epoch=done,
            verbose=0,
            validation_data=VALIDATION,
            callbacks=keeper("parts.npz"),
        )
        model.save_checkpoint(tmp_path / "run.npz", last)
    assert (tmp_path / "whole.npz").read_bytes() == (tmp_path / "parts.npz").read_bytes()


def test_a_checkpoint_from_within_the_run_holds_the_callbacks_too_and_so_does_one_after_ctrl_c(
    tmp_path,
):
    def interrupt(epoch, logs):
        if epoch == 4:
            raise KeyboardInterrupt
    model, stopping = monitored(), EarlyStopping(patience=10)
    saving = LambdaCallback(
        on_epoch_end=lambda epoch, logs: model.save_checkpoint(tmp_path / "within.npz", epoch + 1)
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(*XY, epochs=9, verbose=0, validation_data=VALIDATION,
                  callbacks=[stopping, saving, LambdaCallback(on_epoch_end=interrupt)])
    model.save_checkpoint(tmp_path / "after.npz", 5)
    within, after = files.load(tmp_path / "within.npz"), files.load(tmp_path / "after.npz")
    assert within.keys() == after.keys() and all(
        np.array_equal(within[name], after[name]) for name in within
    )
    assert (
        within["callback.EarlyStopping.best"] == stopping.best
        and within["callback.EarlyStopping.wait"] == stopping.wait
    )


class Counter(Callback):
    """A callback of one's own that counts over all parts of a run."""

    def on_train_begin(self, logs=None):
        self.epochs, self.losses = 0, np.zeros(0)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.losses = np.append(self.losses, logs["loss"])

    def state_dict(self):
        return {"epochs": self.epochs, "losses": self.losses}

    def load_state_dict(self, state):
        self.epochs, self.losses = int(state["epochs"]), state["losses"]


def test_callbacks_of_ones_own_take_part_each_with_its_own_state(tmp_path):
    model = monitored()
    counters = [Counter(), Counter()]
    model.fit(*XY, epochs=3, verbose=0, callbacks=counters)
    counters[1].epochs = 30
    losses = model.history.history["loss"]
    model.history.states["Counter_1.epochs"] = 30
    model.save_checkpoint(tmp_path / "run.npz", 3)
    again = [LambdaCallback(), Counter(), EarlyStopping("loss", patience=50), Counter(), Counter()]
    other = monitored()
    other.fit(
        *XY,
        epochs=5,
        initial_epoch=other.load_checkpoint(tmp_path / "run.npz"),
        verbose=0,
        callbacks=again,
    )
    assert [c.epochs for c in again if isinstance(c, Counter)] == [5, 32, 2], (
        "what the file does not know begins anew"
    )
    assert (
        again[1].losses[:3].tolist() == losses
        and len(again[1].losses) == 5
        and again[2].best_epoch in (3, 4)
    )
    other.fit(*XY, epochs=2, verbose=0, callbacks=again[1:2])
    assert again[1].epochs == 2, "a run from its beginning begins with nothing"


def test_a_file_loaded_and_saved_again_forgets_nothing_and_a_failed_start_does_not_either(tmp_path):
    model = monitored()
    model.fit(*XY, epochs=3, verbose=0, callbacks=[Counter()])
    model.save_checkpoint(tmp_path / "run.npz", 3)
    other = monitored()
    done = other.load_checkpoint(tmp_path / "run.npz")
    other.save_checkpoint(tmp_path / "again.npz", done)
    assert (tmp_path / "run.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    with pytest.raises(FileNotFoundError):
        other.fit(
            *XY,
            epochs=5,
            initial_epoch=done,
            verbose=0,
            callbacks=[ModelCheckpoint(tmp_path / "nowhere" / "w.npz")],
        )
    other.fit(*XY, epochs=5, initial_epoch=done, verbose=0, callbacks=[counter := Counter()])
    assert counter.epochs == 5


def test_a_module_whose_history_is_its_own_is_saved_and_loaded(tmp_path):
    class Net(Module):
        def __init__(self):
            self.dense, self.history = (
                Dense(3, input_shape=5, rng=np.random.default_rng(0)),
                ["mine"],
            )

        def forward(self, x):
            return self.dense(x)
    model = Net()
    save_checkpoint(tmp_path / "run.npz", model, optim.SGD(), 1)
    for _ in range(2):
        training.fit(
            model,
            *XY,
            epochs=2,
            initial_epoch=1,
            loss="cross_entropy",
            optimizer=optim.SGD(),
            verbose=0,
        )
        model.history = ["mine"]
    assert load_checkpoint(tmp_path / "run.npz", model, optim.SGD()) == 1


def test_a_checkpoint_without_callbacks_as_they_once_were_goes_on(tmp_path):
    model = monitored()
    model.fit(*XY, epochs=3, verbose=0, callbacks=[EarlyStopping("loss", patience=50)])
    model.save_checkpoint(tmp_path / "run.npz", 3)
    state = {
        name: a
        for name, a in files.load(tmp_path / "run.npz").items()
        if not name.startswith("callback.")
    }
    files.save(tmp_path / "run.npz", state)
    other = monitored()
    other.fit(*XY, epochs=5, initial_epoch=other.load_checkpoint(tmp_path / "run.npz"), verbose=0,
              callbacks=[stopping := EarlyStopping("loss", patience=50)])
    assert stopping.best_epoch in (3, 4)


@pytest.mark.parametrize(
    "name, value",
    [
        ("best", np.array(np.nan)),
        ("best", np.zeros(2)),
        ("wait", np.zeros(0)),
        ("wait", None),
        ("best_epoch", np.zeros((2, 2))),
        ("best_weights.layers.0.kernel", np.zeros((2, 2))),
        ("best_weights.layers.0.kernel", None),
        ("best_weights.x", np.zeros(1)),
    ],
)
def test_states_of_callbacks_that_do_not_fit_are_named_before_any_training(tmp_path, name, value):
    model = monitored()
    model.fit(*XY, epochs=3, verbose=0, callbacks=[EarlyStopping("loss", patience=50)])
    model.save_checkpoint(tmp_path / "run.npz", 3)
    state = files.load(tmp_path / "run.npz") | {f"callback.EarlyStopping.{name}": value}
    files.save(tmp_path / "run.npz", {key: a for key, a in state.items() if a is not None})
    done = model.load_checkpoint(tmp_path / "run.npz")
    before = model.state_dict()
    with pytest.raises(ValueError, match="state of EarlyStopping does not fit"):
        model.fit(
            *XY,
            epochs=5,
            initial_epoch=done,
            verbose=0,
            callbacks=[EarlyStopping("loss", patience=50)],
        )
    assert all(np.array_equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))


def test_the_record_of_a_run_keeps_no_model_alive_and_its_copies_carry_no_weights():
    import copy
    import gc
    import pickle
    import weakref
    model = monitored()
    model.fit(*XY, epochs=2, verbose=0, callbacks=[EarlyStopping("loss", patience=50)])
    assert "EarlyStopping.best" in model.history.callback_states()
    for twin in (copy.deepcopy(model.history), pickle.loads(pickle.dumps(model.history))):
        assert twin.history == model.history.history and twin.callback_states() == {}
    gc.collect()
    gc.disable()
    try:
        model.fit(*XY, epochs=2, verbose=0, callbacks=[EarlyStopping("loss", patience=50)])
        layer = weakref.ref(model.layers[0])
        del model
        assert layer() is None, "only reference counts free memory here"
    finally:
        gc.enable()


class Scaled(Module):
    """A loss with a Parameter of its own."""

    def __init__(self):
        self.scale = Parameter(np.ones(1, np.float32))

    def forward(self, outputs, y):
        return F.cross_entropy(outputs * self.scale, y)


def test_a_run_whose_loss_has_parameters_goes_on_where_it_was(tmp_path):
    def compiled():
        return Sequential([Dense(8, "relu", input_shape=XY[0].shape[1]), Dense(10)]).compile("adam", Scaled())

    whole, first, second = compiled(), compiled(), compiled()
    whole.fit(*XY, epochs=4, verbose=0)
    first.fit(*XY, epochs=2, verbose=0)
    first.save_checkpoint(tmp_path / "run.npz", 2)
    epochs = second.load_checkpoint(tmp_path / "run.npz")
    second.fit(*XY, epochs=4, initial_epoch=epochs, verbose=0)
    for one, other in zip(whole.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert whole.loss.scale.data == second.loss.scale.data != 1
    with pytest.raises(ValueError, match="run.npz.*\n?.*outside of the model|run.npz.*not the state"):
        compiled().compile("adam").load_checkpoint(tmp_path / "run.npz")


def test_a_checkpoint_of_a_compiled_model_before_its_first_fit_may_be_all_frozen(tmp_path):
    model = Sequential([Dense(10, input_shape=XY[0].shape[1])], seed=1).compile("sgd")
    model.trainable = False
    model.save_checkpoint(tmp_path / "run.npz", 0)
    twin = Sequential([Dense(10, input_shape=XY[0].shape[1])], seed=2).compile("sgd", Scaled())
    twin.compile("sgd").load_checkpoint(tmp_path / "run.npz")
    np.testing.assert_array_equal(twin[0].kernel.data, model[0].kernel.data)


def test_generators_in_lists_and_dicts_and_a_dropout_of_a_seed_go_on(tmp_path):
    class Noise(Module):
        def __init__(self):
            self.sources = [np.random.default_rng(1), {"other": np.random.default_rng(2)}]

        def forward(self, x):
            if not self.training:
                return x
            noise = sum(rng.normal(0, 0.1, x.shape) for rng in (self.sources[0], *self.sources[1].values()))
            return x + noise.astype(x.dtype)

    def compiled():
        return Sequential([Dense(8, input_shape=XY[0].shape[1]), Noise(), Dropout(0.5, rng=3), Dense(10)]).compile("adam")

    whole, first, second = compiled(), compiled(), compiled()
    stop = dict(callbacks=[EarlyStopping("loss", patience=50)], verbose=0)
    whole.fit(*XY, epochs=4, **stop)
    first.fit(*XY, epochs=2, **stop)
    first.save_checkpoint(tmp_path / "run.npz", 2)
    second.fit(*XY, epochs=4, initial_epoch=second.load_checkpoint(tmp_path / "run.npz"), **stop)
    for one, other in zip(whole.get_weights(), second.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert whole.optimizer is whole.trained_by and second.optimizer is second.trained_by
