"""Callbacks, the History they leave, and runs that are interrupted or resumed."""

import copy
import csv
import gc
import os
import signal
import subprocess
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
    EarlyStopping,
    History,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    Sequential,
    Tensor,
    optim,
    training,
)
from minidl.schedules import StepDecay


def toy(n=96, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (np.eye(3)[y] @ np.ones((3, 6)) * y[:, None] + rng.normal(0, 1, (n, 6))).astype(np.float32), y


X, Y = toy()
OTHER = toy(seed=1)


def net(optimizer=None, metrics=("accuracy",)):
    model = Sequential([Dense(8, input_shape=6), BatchNorm(), Activation("relu"), Dropout(0.2), Dense(3)], seed=0)
    return model.compile(optimizer or optim.SGD(lr=0.1, momentum=0.9), "cross_entropy", metrics)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


class Scores(Callback):
    """Puts chosen numbers where the validation loss would be, and keeps the weights of every epoch."""

    def __init__(self, scores, name="val_loss"):
        self.scores, self.name = scores, name

    def on_train_begin(self, logs=None):
        self.weights = []

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.scores[epoch]
        self.weights.append(self.model.state_dict())


# --- Early stopping -------------------------------------------------------------------------------------

@pytest.mark.parametrize("scores, options, ran, best", [
    ([5, 4, 3, 3, 3.5, 3, 1], dict(patience=2), 5, 2),  # an equal number is no improvement
    ([5, 4, 3, 3, 1, 2, 2], dict(patience=2), 7, 4),  # an improvement starts the count anew
    ([5, 4, 6, 1], dict(), 3, 1),  # patience 0 and 1 both end at the first epoch without improvement, as in Keras
    ([5, 4, 6, 1], dict(patience=1), 3, 1),
    ([5, 4.95, 4.9, 1], dict(patience=2, min_delta=0.2), 3, 0),
    ([5, np.nan, np.nan, 1], dict(patience=2), 3, 0),
    ([1, 2, 3, 2, 2, 9], dict(patience=2, mode="max"), 5, 2),
    ([5, 4, 3, 2], dict(patience=2), 4, 3),
    ([5, 4.5, 4.6, 1], dict(patience=2, baseline=3), 3, 1),  # better than before, but not than the baseline: no new patience
    ([5, 4.5, 2.5, 2.6, 2.7, 1], dict(patience=2, baseline=3), 5, 2),
    ([1, 9, 5, 6, 7, 0.5], dict(patience=2, start_from_epoch=1), 5, 2),  # the first epoch is not even the best
])
def test_early_stopping_ends_the_run_and_restores_the_best_epoch(scores, options, ran, best):
    spy, stop, model = Scores(scores), EarlyStopping(**options), net()
    history = model.fit(X, Y, epochs=len(scores), verbose=0, callbacks=[spy, stop])
    assert len(history.epoch) == ran and (stop.best_epoch, stop.best) == (best, scores[best])
    assert same(model.state_dict(), spy.weights[best]) and not same(spy.weights[0], spy.weights[1])


def test_the_monitors_name_tells_which_way_is_better():
    for name, best in (("val_accuracy", 1), ("accuracy", 1), ("val_loss", 0), ("error", 0)):
        stop = EarlyStopping(name, patience=1)
        net(metrics=()).fit(X, Y, epochs=3, verbose=0, callbacks=[Scores([0.2, 0.4, 0.3], name), stop])
        assert stop.best_epoch == best


def test_early_stopping_can_leave_the_last_weights():
    spy, model = Scores([1, 2, 3, 4]), net()
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[spy, EarlyStopping(patience=2, restore_best_weights=False)])
    assert len(spy.weights) == 3 and same(model.state_dict(), spy.weights[-1])


def test_early_stopping_on_real_validation_data():
    model, stop = net(optim.SGD(lr=1.0)), EarlyStopping(patience=3)
    history = model.fit(X, Y, epochs=100, verbose=0, validation_data=OTHER, callbacks=[stop])
    assert len(history.epoch) < 100
    assert model.evaluate(*OTHER, return_dict=True)["loss"] == min(history.history["val_loss"]) == stop.best


def test_a_callback_used_again_begins_anew():
    """Left-over state would stop the second run at once, and restore the weights of another model."""
    stop = EarlyStopping(patience=2)
    net().fit(X, Y, epochs=3, verbose=0, callbacks=[Scores([0.1, 5, 5]), stop])
    spy, model = Scores([np.nan, 2, 1, 4]), net()
    model.fit(X, Y, epochs=4, verbose=0, callbacks=[spy, stop])
    assert stop.best_epoch == 2 and same(model.state_dict(), spy.weights[2])


def test_the_optimizer_goes_on_with_the_restored_weights():
    """Were they put into new arrays or Parameters, a second fit would train nothing."""
    model = net()
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[Scores([1, 2, 3]), EarlyStopping(patience=1)])
    before = model.state_dict()
    model.fit(X, Y, verbose=0)
    assert all(not np.array_equal(before[name], value) for name, value in model.state_dict().items())


# --- The other callbacks --------------------------------------------------------------------------------

def test_a_schedule_sets_the_rate_of_each_epoch_and_sees_the_old_one():
    seen, optimizer = [], optim.SGD(lr=0.8)
    schedule = LearningRateScheduler(lambda epoch, lr: lr if epoch < 2 else np.float64(lr / 2))
    spy = LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(optimizer.lr))
    net(optimizer).fit(X, Y, epochs=4, batch_size=96, verbose=0, callbacks=[schedule, spy])
    assert seen == [0.8, 0.8, 0.4, 0.2] and type(optimizer.lr) is float


def test_a_rate_of_zero_trains_nothing():
    model = net()
    before = [p.data.copy() for p in model.parameters()]
    model.fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch, lr: 0)])
    assert all(np.array_equal(a, p.data) for a, p in zip(before, model.parameters()))


@pytest.mark.parametrize("best_only, expected", [(False, 3), (True, 1)])
def test_a_checkpoint_holds_the_last_or_the_best_epoch(best_only, expected, tmp_path):
    spy, path, copy_ = Scores([3, 1, 2, 2]), tmp_path / "weights.npz", net()
    checkpoint = ModelCheckpoint(path, save_best_only=best_only)
    for spy.scores in ([3, 1, 2, 2], [9, 7, 8, 8]):  # a second run with the same callback begins anew
        net().fit(X, Y, epochs=4, verbose=0, callbacks=[spy, checkpoint])
        copy_.load_weights(path)
        assert same(copy_.state_dict(), spy.weights[expected])
    assert os.listdir(tmp_path) == ["weights.npz"]


def test_a_checkpoint_of_every_epoch_needs_no_validation_data(tmp_path):
    model = net()
    model.fit(X, Y, verbose=0, callbacks=[ModelCheckpoint(str(tmp_path / "weights.npz"))])
    assert same(model.state_dict(), (lambda m: m.load_weights(tmp_path / "weights.npz") or m)(net()).state_dict())


def test_a_lambda_callback_is_called_as_keras_calls_it():
    seen = []
    net().fit(X, Y, epochs=1, batch_size=96, verbose=0, callbacks=[LambdaCallback(
        on_train_begin=lambda logs: seen.append(("begin", logs)), on_train_end=lambda logs: seen.append(("end", set(logs))),
        on_epoch_begin=lambda epoch, logs: seen.append((epoch, logs)),
        on_train_batch_begin=lambda batch, logs: seen.append((batch, logs)))])
    assert seen == [("begin", {}), (0, {}), (0, {}), ("end", {"loss", "accuracy"})]


def test_what_a_callback_writes_into_its_logs_is_not_averaged():
    spy = LambdaCallback(on_train_batch_end=lambda batch, logs: logs.update({f"mine_{batch}": 1.0}))
    assert net().fit(X, Y, batch_size=32, verbose=0, callbacks=[spy]).history.keys() == {"loss", "accuracy"}


def test_callbacks_work_for_a_module_without_compile():
    model, schedule = Sequential([Dense(3)]), LearningRateScheduler(lambda epoch, lr: 0.01)
    optimizer = optim.SGD(lr=1.0)
    training.fit(model, X, Y, loss="cross_entropy", optimizer=optimizer, callbacks=[schedule], verbose=0)
    assert optimizer.lr == 0.01


# --- The History ----------------------------------------------------------------------------------------

def test_csv_holds_every_number_exactly(tmp_path):
    history = net().fit(X, Y, epochs=3, verbose=0, validation_data=OTHER)
    for steps, index, table in ((False, "epoch", history.history), (True, "step", history.steps)):
        history.to_csv(tmp_path / "h.csv", steps=steps)
        with open(tmp_path / "h.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == [index, *table] and [int(row[index]) for row in rows] == list(range(len(table["loss"])))
        assert all([float(row[key]) for row in rows] == values for key, values in table.items())
    history = History()
    history.add_epoch(3, {"a, b": 0.5})
    history.to_csv(tmp_path / "h.csv")
    assert (tmp_path / "h.csv").read_text().split("\n") == ['epoch,"a, b"', "3,0.5", ""]


def test_the_plot_tells_training_from_validation_and_names_the_modes():
    import matplotlib.pyplot as plt
    history = net().fit(X, Y, epochs=3, verbose=0, validation_data=OTHER)
    fig = history.plot()
    assert [ax.get_ylabel() for ax in fig.axes] == ["loss", "accuracy"]
    for ax, name in zip(fig.axes, ("loss", "accuracy")):
        train, validation = ax.lines
        assert (train.get_linestyle(), validation.get_linestyle()) == ("-", "--")
        assert train.get_color() != validation.get_color()
        assert list(train.get_ydata()) == history.history[name] and list(train.get_xdata()) == [1, 2, 3]
        assert list(validation.get_ydata()) == history.history["val_" + name]
    labels = [text.get_text() for text in fig.legends[0].get_texts()]
    assert labels == ["training (training mode)", "validation (evaluation mode)"]
    fig.canvas.draw()
    box = fig.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= fig.bbox.x1, "the legend is cut off"
    plt.close(fig)
    with pytest.raises(ValueError, match="no epoch was finished"):
        History().plot()


def test_every_metric_keeps_a_name_of_its_own():
    def loss(outputs, y):
        return 7

    metrics = [lambda outputs, y: 1, lambda outputs, y: 2, loss, "accuracy"]
    history = net(metrics=metrics).fit(X, Y, verbose=0, validation_data=OTHER)
    names = ["loss", "lambda", "lambda_1", "loss_2", "accuracy"]
    assert list(history.history) == names + ["val_" + name for name in names]
    assert [history.history[name] for name in names[1:4]] == [[1], [2], [7]] and history.history["loss"] != [7]


def test_a_metric_that_fails_leaves_the_weights_as_they_were():
    model = net(metrics=[lambda outputs, y: 1 / 0])
    before = [p.data.copy() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError):
        model.fit(X, Y, verbose=0)
    assert all(np.array_equal(a, p.data) for a, p in zip(before, model.parameters()))


# --- Interrupted and resumed ----------------------------------------------------------------------------

class Interrupt(Callback):
    """Raises an exception in the middle of the second epoch."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if len(self.model.history.steps["loss"]) == 5:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()], ids=repr)
def test_an_interrupted_run_leaves_its_history_and_a_model_that_trains_on(error):
    model, whole, ends = net(), net(), []
    whole_history = whole.fit(X, Y, epochs=3, verbose=0)
    with pytest.raises(type(error)):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=[Interrupt(error), LambdaCallback(on_train_end=ends.append)])
    history = model.history
    assert ends == [] and history.epoch == [0] and {len(v) for v in history.steps.values()} == {5}
    assert history.steps["loss"] == whole_history.steps["loss"][:5]
    assert history.history["loss"] == whole_history.history["loss"][:1]
    again = model.fit(X, Y, epochs=2, verbose=0)
    assert again is model.history is not history and again.epoch == [0, 1] and np.isfinite(again.steps["loss"]).all()
    assert np.isfinite(model.predict(X)).all()


def test_a_divergence_leaves_the_history_too():
    model = Sequential([Dense(8, "relu"), Dense(3)]).compile(optim.SGD(lr=1e30))
    with pytest.raises(DivergenceError) as caught:
        model.fit(X, Y, verbose=0)
    assert caught.value.history is model.history and len(model.history.steps["loss"]) >= 1


def test_an_interrupted_run_keeps_no_graph():
    """With the collector off: what is left over then would stay in memory for as long as the model."""
    model = net()
    gc.collect()
    gc.disable()
    try:
        for where in "on_train_batch_begin", "on_train_batch_end", "on_epoch_end":
            try:
                model.fit(X, Y, verbose=0, callbacks=[LambdaCallback(**{where: lambda number, logs: 1 / 0})])
            except ZeroDivisionError:
                pass
        assert [t for t in gc.get_objects() if isinstance(t, Tensor) and t.op is not None] == []
    finally:
        gc.enable()


def test_an_interruption_while_validating_restores_the_modes():
    def stop(outputs, y):
        if not model.training:
            raise KeyboardInterrupt
        return 0

    model = net(metrics=[stop])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, verbose=0, validation_data=OTHER)
    assert all(module.training for module in model.modules())


PROGRAM = """
import signal
import numpy as np
from minidl import BatchNorm, Dense, LambdaCallback, Sequential
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would this one
rng = np.random.default_rng(0)
x, y = rng.normal(0, 1, (500, 20)), rng.integers(0, 3, 500)
model = Sequential([Dense(32), BatchNorm(), Dense(3)]).compile("adam", "cross_entropy")
ready = LambdaCallback(on_epoch_end=lambda epoch, logs: print("ready", flush=True) if epoch == 1 else None)
try:
    model.fit(x, y, epochs=10 ** 6, verbose=1, callbacks=[ready])
except KeyboardInterrupt:
    steps, epochs = len(model.history.steps["loss"]), len(model.history.epoch)
    print("interrupted", epochs >= 2, steps >= 16 * epochs, all(np.isfinite(p.data).all() for p in model.parameters()))
    print("again", len(model.fit(x, y, epochs=2, verbose=0).epoch))
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_ctrl_c_in_a_real_process():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out == "interrupted True True True\nagain 2\n" and "Traceback" not in err and process.returncode == 0


def state_of(model):
    """All that a run consists of beside its data: weights and buffers, the optimizer's state, the random streams."""
    streams = [rng.bit_generator.state for rng in (model.shuffle_rng, model.dropout_rng)]
    optimizer = {key: value for key, value in vars(model.optimizer).items() if key != "parameters"}
    return copy.deepcopy((model.state_dict(), optimizer, streams))


@pytest.mark.parametrize("make", [lambda: optim.SGD(lr=0.1, momentum=0.9), lambda: optim.Adam(lr=0.01)], ids=["SGD", "Adam"])
def test_a_run_resumed_in_a_new_model_is_the_whole_run_bit_for_bit(make):
    """fit keeps nothing to itself: what state_of lists is all there is to restore."""
    whole, first = net(make()), net(make())
    history = whole.fit(X, Y, epochs=6, verbose=0, validation_data=OTHER)
    first.fit(X, Y, epochs=2, verbose=0, validation_data=OTHER)
    weights, optimizer, streams = state_of(first)

    second = net(make())
    second.load_state_dict(weights)
    second.optimizer.attach(second.parameters())
    vars(second.optimizer).update(optimizer)
    second.shuffle_rng.bit_generator.state, second.dropout_rng.bit_generator.state = streams
    resumed = second.fit(X, Y, epochs=6, initial_epoch=2, verbose=0, validation_data=OTHER)
    assert resumed.epoch == [2, 3, 4, 5]
    assert resumed.history == {key: values[2:] for key, values in history.history.items()}
    assert same(second.state_dict(), whole.state_dict())


def test_epochs_are_counted_from_the_start_also_when_resumed(capsys):
    numbers = []
    model, spy = net(), LambdaCallback(on_epoch_begin=lambda epoch, logs: numbers.append(epoch))
    model.fit(X, Y, epochs=4, initial_epoch=2, callbacks=[spy])
    lines = capsys.readouterr().err.splitlines()
    assert numbers == [2, 3] and [line.split(" - ")[0] for line in lines] == ["Epoch 3/4", "Epoch 4/4"]
    assert model.fit(X, Y, epochs=4, initial_epoch=4, verbose=0).epoch == []


def test_a_checkpoint_path_may_hold_fields_as_in_keras(tmp_path):
    model, (x, y) = net(), toy()
    model.fit(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[ModelCheckpoint(tmp_path / "e{epoch:02d}.npz")])
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["e01.npz", "e02.npz"]


def test_a_model_that_grows_trains_its_new_layer_with_the_same_optimizer():
    x, y = toy()
    optimizer = optim.SGD(lr=0.1)
    model = net(optimizer)
    model.fit(x, y, verbose=0)
    model.add(Dense(5))
    before = model.layers[-1].kernel.data.copy()
    model.compile(optimizer).fit(x, y, verbose=0)
    assert not np.array_equal(model.layers[-1].kernel.data, before)


# --- The learning rate from epoch to epoch ---------------------------------------------------------------

@pytest.mark.parametrize("schedule", [lambda epoch: 0.1 / (epoch + 1), lambda epoch, lr: 0.1 / (epoch + 1),
                                      lambda epoch, lr=9: 0.1 / (epoch + 1)])
def test_a_schedule_of_the_epoch_with_or_without_the_old_rate(schedule):
    """Both forms that Keras takes; the rate is in the logs of later callbacks and in the History."""
    seen, model = [], net(optim.SGD(lr=0.5))
    spy = LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["learning_rate"]))
    history = model.fit(X, Y, epochs=3, verbose=0, callbacks=[LearningRateScheduler(schedule), spy])
    assert history["learning_rate"] == seen == pytest.approx([0.1, 0.05, 0.1 / 3])
    assert "learning_rate" in str(history).splitlines()[0]
    assert "learning_rate" not in model.fit(X, Y, verbose=0)  # where nothing changes it


PLATEAUS = [  # scores, options, the rate of each epoch
    ([5, 4, 4, 4, 3, 3, 3, 3], dict(patience=2), [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25]),
    ([5, 5, 5, 5, 5, 5], dict(patience=1, cooldown=2), [1, 1, 0.5, 0.5, 0.25, 0.25]),
    ([5, 5, 5, 5, 5], dict(patience=1, min_lr=0.03), [1, 1, 0.5, 0.3, 0.3]),
    ([5, 4.9, 4.8, 4.7], dict(patience=1, min_delta=0.15), [1, 1, 0.5, 0.5]),
    ([1, 2, 2, 3], dict(patience=1, mode="max"), [1, 1, 1, 0.5]),
    ([5, np.nan, np.nan, 4], dict(patience=2), [1, 1, 1, 0.5])]


@pytest.mark.parametrize("scores, options, rates", PLATEAUS)
def test_the_rate_falls_on_a_plateau(scores, options, rates):
    model = net(optim.SGD(lr=0.1))
    callbacks = [Scores(scores), ReduceLROnPlateau(factor=0.5, **options)]
    history = model.fit(X, Y, epochs=len(scores), verbose=0, callbacks=callbacks)
    assert np.array(history["learning_rate"]) * 10 == pytest.approx(rates)


def test_a_resumed_run_waits_on_where_the_plateau_was():
    scores, whole = [5, 5, 5, 5, 5, 5], ReduceLROnPlateau(factor=0.5, patience=2)
    model = net(optim.SGD(lr=0.1))
    rates = model.fit(X, Y, epochs=6, verbose=0, callbacks=[Scores(scores), whole])["learning_rate"]
    first, second = ReduceLROnPlateau(factor=0.5, patience=2), ReduceLROnPlateau(factor=0.5, patience=2)
    model = net(optim.SGD(lr=0.1))
    found = model.fit(X, Y, epochs=2, verbose=0, callbacks=[Scores(scores), first])["learning_rate"]
    model.history.resumed = True
    found += model.fit(X, Y, epochs=6, initial_epoch=2, verbose=0, callbacks=[Scores(scores), second])["learning_rate"]
    assert found == rates and second.state_dict() == whole.state_dict()


def test_who_changes_the_rate_refuses_a_schedule():
    for callback in LearningRateScheduler(lambda epoch: 0.1), ReduceLROnPlateau("loss"):
        with pytest.raises(TypeError, match=f"{type(callback).__name__} would replace the optimizer's schedule"):
            net(optim.SGD(lr=StepDecay(0.1, 3))).fit(X, Y, verbose=0, callbacks=[callback])


# --- Settings, names and hooks are checked before any training -------------------------------------------

@pytest.mark.parametrize("call", [
    lambda: EarlyStopping(patience=-1), lambda: EarlyStopping(patience="3"), lambda: EarlyStopping(patience=2.0),
    lambda: EarlyStopping(patience=True), lambda: EarlyStopping(min_delta=-1), lambda: EarlyStopping(min_delta=np.nan),
    lambda: EarlyStopping(min_delta=np.inf), lambda: EarlyStopping(min_delta="0"), lambda: EarlyStopping(3),
    lambda: EarlyStopping(restore_best_weights="False"), lambda: ModelCheckpoint("w.npz", save_best_only="yes"),
    lambda: EarlyStopping("val_quality"), lambda: LearningRateScheduler(0.1), lambda: LearningRateScheduler(lambda: 0.1),
    lambda: LearningRateScheduler(StepDecay(0.1, 3)), lambda: ReduceLROnPlateau(factor=1.0), lambda: ReduceLROnPlateau(min_lr=-1),
    lambda: ReduceLROnPlateau(patience=1.5), lambda: ReduceLROnPlateau(cooldown=-1), lambda: EarlyStopping(baseline="0.5"),
    lambda: EarlyStopping(start_from_epoch=-1)])
def test_settings_of_callbacks_are_checked(call):
    with pytest.raises((TypeError, ValueError)):
        call()


def test_auto_knows_scores_from_losses():
    for name, sign in (("val_f1", -1), ("val_auc", -1), ("top5_accuracy", -1), ("val_mae", 1), ("cross_entropy_loss", 1)):
        assert EarlyStopping(name).sign == sign
    assert EarlyStopping("val_quality", mode="max").sign == -1


class Quiet(Callback):
    """What a test gives it as a method, and whether it was trained."""


@pytest.mark.parametrize("name, hook", [
    ("on_batch_end", lambda self, batch, logs=None: None), ("on_epochs_end", lambda self, epoch, logs=None: None),
    ("epoch_end", lambda self, epoch, logs=None: None), ("on_epoch_end", lambda self, epoch: None), ("on_epoch_end", 3)])
def test_a_hook_that_fit_would_not_call_is_named(name, hook):
    model = net()
    with pytest.raises(TypeError, match=name):
        model.fit(X, Y, verbose=0, callbacks=[type("Mine", (Quiet,), {name: hook})()])
    assert not hasattr(model, "history")


def test_a_method_of_ones_own_may_begin_with_on():
    net().fit(X, Y, verbose=0, callbacks=[type("Mine", (Quiet,), {"on_improvement": lambda self: None})()])


@pytest.mark.parametrize("name", ["e{epoch}-{val_acc:.2f}.npz", "e{}.npz", "e{0}.npz", "e{epoch:zz}.npz", "e{epoch.npz", "w.{epoch}"])
def test_fields_of_a_path_are_checked_before_training(name, tmp_path):
    done = []
    with pytest.raises(ValueError):
        net().fit(X, Y, verbose=0, callbacks=[LambdaCallback(on_epoch_end=lambda epoch, logs: done.append(epoch)),
                                              ModelCheckpoint(tmp_path / name)])
    assert done == []


def test_braces_in_a_folders_name_are_braces(tmp_path):
    (tmp_path / "run{1}").mkdir()
    net().fit(X, Y, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "run{1}" / "e{epoch}-{loss:.1f}.npz")])
    assert len(list((tmp_path / "run{1}").glob("e1-*.npz"))) == 1


def test_a_metric_that_is_missing_is_not_blamed_on_validation_data():
    done = LambdaCallback(on_epoch_end=lambda epoch, logs: 1 / 0)
    with pytest.raises(ValueError, match="metrics=") as caught:
        net(metrics=()).fit(X, Y, verbose=0, validation_data=OTHER, callbacks=[done, EarlyStopping("val_accuracy")])
    assert "validation_data" not in str(caught.value)


def test_a_callback_may_add_the_number_that_another_watches():
    add = LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(mine=epoch))
    stop = EarlyStopping("mine", mode="max", patience=5)
    net().fit(X, Y, epochs=3, verbose=0, callbacks=[add, stop])
    assert stop.best == 2


def test_a_schedule_of_the_optimizer_is_not_replaced():
    optimizer = optim.SGD(lr=lambda step: 0.1)
    with pytest.raises(TypeError, match="schedule"):
        net(optimizer).fit(X, Y, verbose=0, callbacks=[LearningRateScheduler(lambda epoch, lr: lr)])
    assert callable(optimizer.lr)


def test_scores_that_are_nan_restore_nothing():
    spy, stop, model = Scores([np.nan] * 3), EarlyStopping(patience=5), net()
    model.fit(X, Y, epochs=3, verbose=0, callbacks=[spy, stop])
    assert stop.best_epoch is None and same(model.state_dict(), spy.weights[-1])


def test_stopping_before_an_epoch_trains_nothing_more_and_belongs_to_the_model():
    model = net()
    stop = LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(model, "stop_training", epoch == 1))
    assert model.fit(X, Y, epochs=3, verbose=0, callbacks=[stop]).epoch == [0]
    with pytest.raises(AttributeError, match="self.model.stop_training"):
        stop.stop_training = True


def test_a_callback_that_replaces_the_model_is_told():
    class Mine(Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model = net()

    with pytest.raises(RuntimeError, match="replaced self.model"):
        net().fit(X, Y, verbose=0, callbacks=[Mine()])


def test_a_history_reads_as_a_table_and_as_a_dict():
    history = net().fit(X, Y, epochs=2, verbose=0, validation_data=OTHER)
    assert history["loss"] is history.history["loss"] and "val_loss" in history
    lines = str(history).splitlines()
    assert lines[0].split() == ["epoch", *history.history] and [line.split()[0] for line in lines[1:]] == ["1", "2"]
    with pytest.raises(KeyError, match="val_accuracy"):
        history["acc"]
    with pytest.raises(AttributeError, match="history.history"):
        history.keys()


PSEUDO_TERMINAL = """
import fcntl, os, pty, struct, sys, termios
pid, fd = pty.fork()
if pid == 0:
    sys.stdin.readline()
    import numpy as np
    from minidl import Dense, Sequential
    x = np.random.default_rng(0).normal(0, 1, (64, 4)).astype("f")
    model = Sequential([Dense(2)]).compile("sgd", "cross_entropy", ["accuracy"])
    model.fit(x, (x[:, 0] > 0).astype(int), validation_split=0.5)
    sys.exit()
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
os.write(fd, b"go\\n")
try:
    while piece := os.read(fd, 4096):
        os.write(1, piece)
except OSError:
    pass
os.waitpid(pid, 0)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")
@pytest.mark.parametrize("columns", [80, 60, 40])
def test_no_number_is_cut_off_on_a_narrow_terminal(columns):
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES")}
    out = subprocess.run([sys.executable, "-c", PSEUDO_TERMINAL.replace("COLUMNS", str(columns))], capture_output=True, text=True,
                         env={**environment, "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}, encoding="utf-8").stdout
    last = [piece for piece in out.replace("\n", "\r").split("\r") if piece.strip()][-1]
    assert last.startswith("Epoch 1/1 - 1/1 - ")
    assert all(f"{name}: " in last for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
