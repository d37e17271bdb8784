"""The programs that course texts print for Keras and PyTorch run here with other import lines and layer names, and learn."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest

from minidl import Activation, BatchNorm, Dense, Module, Sequential, data, optim
from minidl import functional as F

(X, Y), (X_TEST, Y_TEST) = data.load("digits")
X, Y, X_TEST, Y_TEST = X[:600], Y[:600], X_TEST[:300], Y_TEST[:300]
FEW = np.random.default_rng(0).normal(0, 0.2, (784, 32)).astype(np.float32)  # 784 pixels to 32 numbers


def printed(function):
    out = io.StringIO()
    with redirect_stdout(out):
        function()
    return out.getvalue()


def counts(model):
    """The rows of summary() as Keras prints them, and its three totals."""
    lines = printed(model.summary).splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"-"}]
    assert lines[1].split("  ")[0] == "Layer (type)" and "Output Shape" in lines[1] and lines[1].endswith("Param #")
    return [line.split()[-1] for line in lines[rules[1] + 1:rules[2]]], lines[rules[2] + 1:]


def test_the_keras_program_of_text_000():
    """Text 000, "Для чего используют бач нормализацию?": two hidden layers with BatchNorm, compiled, summarised."""
    # Creating the model
    model = Sequential([
        Dense(64, input_shape=(32,)),
        BatchNorm(),
        Activation('relu'),
        Dense(64),
        BatchNorm(),
        Activation('relu'),
        Dense(10, activation='softmax')
    ])

    # Compiling the model
    model.compile(optimizer='adam', loss='categorical_crossentropy', metrics=['accuracy'])

    # Printing the structure of the model
    model.summary()

    rows, totals = counts(model)
    assert rows == ["2,112", "256", "0", "4,160", "256", "0", "650"]
    assert totals == ["Total params: 7,434", "Trainable params: 7,178", "Non-trainable params: 256"]
    history = model.fit(X @ FEW, np.eye(10)[Y], epochs=15, batch_size=32, verbose=0)  # the text stops before training
    assert history.history["accuracy"][-1] > 0.8 > 0.5 > history.history["accuracy"][0]
    assert model.evaluate(X_TEST @ FEW, np.eye(10)[Y_TEST])[1] > 0.5


def test_the_keras_program_of_text_002():
    """Text 002, "Batch normalizace": a softmax layer of its own, integer labels, five epochs."""
    x_train, y_train = X, Y

    model = Sequential([
        Dense(64, input_shape=(784,)),
        BatchNorm(),
        Activation('relu'),
        Dense(10),
        Activation('softmax')
    ])
    model.compile(optimizer='adam', loss='sparse_categorical_crossentropy', metrics=['accuracy'])
    model.fit(x_train, y_train, epochs=5, batch_size=32)

    rows, totals = counts(model)
    assert rows == ["50,240", "256", "0", "650", "0"]
    assert totals == ["Total params: 51,146", "Trainable params: 51,018", "Non-trainable params: 128"]
    assert model.history.epoch == [0, 1, 2, 3, 4] and len(model.history.steps["loss"]) == 5 * 19
    assert model.evaluate(X_TEST, Y_TEST)[1] > 0.8


def pytorch_program():
    """Text 002, the PyTorch half: a subclassed Module, a criterion, and an optimizer before any forward."""
    class Model(Module):
        def __init__(self):
            super(Model, self).__init__()
            self.fc1 = Dense(64, input_shape=(784,))
            self.bn = BatchNorm(input_shape=(64,))
            self.relu = Activation('relu')
            self.fc2 = Dense(10, input_shape=(64,))
            self.softmax = Activation('softmax')

        def forward(self, x):
            x = self.fc1(x)
            x = self.bn(x)
            x = self.relu(x)
            x = self.fc2(x)
            x = self.softmax(x)
            return x

    model = Model()
    criterion = F.cross_entropy
    optimizer = optim.Adam(model.parameters(), lr=0.001)
    return model, criterion, optimizer


def trained(model, criterion, optimizer):
    """The losses of ten epochs, in the loop that PyTorch's courses teach."""
    rng, losses = np.random.default_rng(0), []
    for _ in range(10):
        for xb, yb in data.batches(X, Y, 32, rng):
            loss = criterion(model(xb), yb)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def test_the_pytorch_program_of_text_002():
    """It learns, but slowly towards a floor: the criterion takes the softmax's output for logits, as PyTorch's does."""
    model, criterion, optimizer = pytorch_program()
    assert sum(p.size for p in model.parameters()) == 51_018
    names = [name for name, _ in model.named_parameters()]
    assert names == ["fc1.kernel", "fc1.bias", "bn.gamma", "bn.beta", "fc2.kernel", "fc2.bias"]
    losses = trained(model, criterion, optimizer)
    floor = np.log(1 + 9 / np.e)  # of a softmax that gives 1 to the label and 0 to the nine others
    assert floor == pytest.approx(1.4612, abs=1e-4)
    assert losses[0] > 2.2 and floor < np.mean(losses[-19:]) < 1.6
    assert (model.eval()(X_TEST).numpy().argmax(axis=1) == Y_TEST).mean() > 0.8


def test_text_002_without_its_softmax_passes_the_floor():
    """The negative control: the same layers with the criterion on logits end far below 1.4612."""
    model, criterion, optimizer = pytorch_program()
    model.softmax = Activation("linear")
    assert np.mean(trained(model, criterion, optimizer)[-19:]) < 0.5
