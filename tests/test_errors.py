"""Every teaching error, word for word: read this file as a beginner would, and judge whether it says what to do."""

import re

import numpy as np
import pytest

from minidl import (
    Activation,
    BatchNorm,
    Dense,
    Dropout,
    EarlyStopping,
    Flatten,
    Input,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    Module,
    Parameter,
    Sequential,
    Tensor,
    data,
    experiments,
    initializers,
    optim,
    training,
)
from minidl import files as data_files
from minidl import functional as F
from minidl.layers import ACTIVATIONS

RNG = np.random.default_rng(0)
X = RNG.normal(0, 1, (40, 20)).astype(np.float32)
Y = np.arange(40) % 5
NAN = np.where(np.arange(X.size).reshape(X.shape) == 41, np.nan, X)


def net(**options):
    return Sequential([Dense(16, **options), BatchNorm(), Activation("relu"), Dense(5)])


def compiled(loss="cross_entropy", metrics=(), **options):
    return net(**options).compile("sgd", loss, metrics)


def fit(x=X, y=Y, loss="cross_entropy", metrics=(), **options):
    return lambda: compiled(loss, metrics, input_shape=20).fit(x, y, verbose=0, **options)


def backward_twice():
    loss = (Parameter(X) ** 2).sum()
    loss.backward()
    loss.backward()


def set_item():
    Tensor(X)[0] = 1


def subtract_in_place():
    p = Parameter(X)
    p -= 0.1


def use_one_optimizer_for_two_models():
    optimizer = optim.SGD(lr=0.1)
    for _ in range(2):
        net().compile(optimizer).fit(X, Y, verbose=0)


def load_a_state_that_does_not_fit():
    state = {name: array for name, array in net(input_shape=20).state_dict().items() if name != "layers.1.beta"}
    state["layers.0.kernel"] = np.zeros((20, 12))
    net(input_shape=20).load_state_dict({**state, "layers.4.kernel": np.zeros(3)})


def known(table):
    return ", ".join(sorted(table))


def replace_a_layer():
    model = compiled(input_shape=20)
    model.fit(X, Y, verbose=0)
    model.layers[-1] = Dense(5)
    model.fit(X, Y, verbose=0)


def evaluate_one_part():
    model = compiled(input_shape=20)
    model[1].eval()
    model.fit(X, Y, verbose=0)


def freeze_all():
    model = compiled(input_shape=20)
    model.trainable = False
    model.fit(X, Y, verbose=0)


class Scale(Module):
    def __init__(self, scale):
        self.scale = scale

    def forward(self, x):
        return x * self.scale


class NoReturn(Module):
    def forward(self, x):
        F.relu(x)


class NoForward(Module):
    pass


def job(seed, lr=1):
    return {"loss": 0.0}


NETS = {"a": lambda seed: Sequential([Dense(5)], seed=seed)}
DATA = (X, Y), (X, Y)


def net_without_seed():
    return net()


RUN = experiments.Run(np.zeros(3), np.array([], int), np.array([]), np.array([]))


def compare(builders=NETS, data=DATA, **options):
    return lambda: experiments.compare(builders, data, **{"lr": 0.1, "steps": 2, **options})


PROBABILITIES = Tensor(np.array([[-0.5, 1.5]]))
ERRORS = {
    # --- Shapes: which layer, what it expects, what it got, from where
    "data of another width": (
        lambda: compiled(input_shape=20).predict(X[:, :7]), ValueError,
        "layer 0, dense Dense(20 -> 16) expects inputs of shape (n, 20), got (40, 7); its input comes straight from the data"),
    "layers that do not fit": (
        lambda: Sequential([Dense(4), BatchNorm(), Dense(5, input_shape=9)])(X), ValueError,
        "layer 2, dense_1 Dense(9 -> 5) expects inputs of shape (n, 9), got (40, 4); its input comes from layer 1, "
        "batchnorm BatchNorm(4)"),
    "images into Dense": (
        lambda: net(input_shape=20)(np.zeros((40, 28, 28), np.float32)), ValueError,
        "layer 0, dense Dense(20 -> 16) expects inputs of shape (n, 20), got (40, 28, 28); put Flatten() before it; its input "
        "comes straight from the data"),
    "images without Flatten": (
        lambda: Sequential([Dense(5)]).compile("sgd").fit(np.zeros((40, 28, 28)), np.zeros(40, int)), ValueError,
        "cross-entropy takes logits of shape (n, classes) and labels of shape (n,) or (n, classes); got (40, 28, 5) and "
        "(40,); put Flatten() before the first Dense"),
    "a label for each place": (
        lambda: F.cross_entropy(np.zeros((4, 7, 3)), np.zeros((4, 7), int)), ValueError,
        "cross-entropy takes logits of shape (n, classes) and labels of shape (n,) or (n, classes); got (4, 7, 3) and (4, 7); "
        "reshape both, to (-1, classes) and (-1)"),
    "BatchNorm of one sample": (
        lambda: net()(X[:1]), ValueError,
        "layer 1, batchnorm BatchNorm(16) got 1 sample per channel (input shape (1, 16)) in training mode, and one sample has "
        "no variance: use a larger batch, or model.eval() for single samples; its input comes from layer 0, "
        "dense Dense(20 -> 16)"),
    "a float64 Tensor": (
        lambda: net(input_shape=20)(Tensor(X.astype(float))), TypeError,
        "dense Dense(20 -> 16) holds float32 weights but got a float64 Tensor: use x.astype(np.float32), or "
        "model.astype(np.float64)"),
    "Keras' shape with a batch axis": (
        lambda: net().build((None, 20)), ValueError,
        "a shape is whole numbers, 784 or (28, 28) for example, without the batch axis; got (None, 20)"),
    # --- Names
    "unknown activation": (
        lambda: Activation("rleu"), ValueError,
        f"unknown activation 'rleu'; known are {known(ACTIVATIONS)}"),
    "PyTorch's Linear(784, 64)": (
        lambda: Dense(784, 64), ValueError,
        "unknown activation 64: PyTorch's Linear(784, 64) is Dense(64, input_shape=784) here, and "
        "the number of inputs may be left out"),
    "PyTorch's BatchNorm1d(64)": (
        lambda: BatchNorm(64), ValueError,
        "momentum is the weight of the newest batch, from 0 to 1, got 64; the number of features is found out from the input"),
    "unknown loss": (
        lambda: compiled("crossentropy"), ValueError,
        f"unknown loss 'crossentropy'; known are {known(training.LOSSES)}"),
    "unknown metric": (
        lambda: compiled(metrics=["auc"]), ValueError, f"unknown metric 'auc'; known are {known(training.METRICS)}"),
    "unknown data set": (
        lambda: data.load("minst"), ValueError, "unknown data set 'minst'; known are digits, fashion_mnist, mnist, moons, "
        "spiral, xor"),
    "an optimizer's class": (
        lambda: net().compile(optim.SGD), TypeError,
        "optimizer is a name or an object like optim.SGD(lr=0.1), got <class 'minidl.optim.SGD'>"),
    "unknown optimizer": (
        lambda: net().compile("adamm"), ValueError, f"unknown optimizer 'adamm'; known are {known(optim.OPTIMIZERS)}"),
    # --- Data, before any work
    "labels too large": (
        fit(y=Y + 1), ValueError, "class labels must lie in 0 to 4, as there are 5 logits; got labels from 1 to 5"),
    "labels that are floats": (
        fit(y=Y.astype(float)), TypeError, "class labels are integers 0 to 4, got dtype float64; use y.astype(int)"),
    "labels in a column": (
        fit(y=Y[:, None]), ValueError,
        "cross-entropy takes logits of shape (n, classes) and labels of shape (n,) or (n, classes); got (40, 5) and (40, 1); "
        "use y.reshape(-1)"),
    "one label too few": (
        fit(y=Y[1:]), ValueError, "x has 40 samples, y has shape (39,): there must be one label for each sample"),
    "targets in a row": (
        lambda: Sequential([Dense(1)]).compile("sgd", "mse").fit(X, Y), ValueError,
        "mse_loss needs equal shapes, got prediction (40, 1) and target (40,); use y.reshape(-1, 1)"),
    "binary targets in a row": (
        lambda: Sequential([Dense(1, "sigmoid")]).compile("sgd", "binary_crossentropy").fit(X, Y), ValueError,
        "binary_cross_entropy needs targets of the same shape as its input and at least one entry, got targets (40,) and "
        "input (40, 1); use y.reshape(-1, 1)"),
    "a softmax forgotten": (
        lambda: F.categorical_crossentropy(PROBABILITIES, np.array([0])), ValueError,
        "this loss takes probabilities between 0 and 1, got values from -0.5 to 1.5: end the model with "
        "Activation('softmax'), or use loss='cross_entropy' on what it returns now"),
    "NaN in the data": (fit(x=NAN), ValueError, "x contains NaN or infinite values, first in sample 2"),
    "NaN in the targets": (fit(y=np.full(40, np.nan)), ValueError, "y contains NaN or infinite values"),
    "an empty batch": (
        fit(x=X[:0], y=Y[:0]), ValueError, "x must have shape (samples, features) with at least one sample, got (0, 20)"),
    "an empty batch for a loss": (
        lambda: F.cross_entropy(X[:0], Y[:0]), ValueError,
        "cross-entropy of an empty batch: there is no sample to take the mean over"),
    "text": (fit(x=X.astype(str)), TypeError, re.compile(r"x must hold numbers, got dtype <U\d+")),
    "validation labels": (
        fit(validation_data=(X, Y - 1)), ValueError,
        "validation data: class labels must lie in 0 to 4, as there are 5 logits; got labels from -1 to 3"),
    "validation data without labels": (fit(validation_data=X), TypeError, "validation data: give a pair (x, y)"),
    "validation split": (
        fit(validation_split=1.5), ValueError, "validation_split is a share of the samples, from 0 up to but not 1, got 1.5"),
    "batch size": (fit(batch_size=0), ValueError, "batch_size must be a whole number, at least 1, got 0"),
    "epochs": (fit(epochs="3"), ValueError, "epochs must be a whole number, at least 0, got '3'"),
    "accuracy of a regression": (
        lambda: Sequential([Dense(1)]).compile("sgd", "mse", ["accuracy"]).fit(X, Y[:, None], verbose=0), ValueError,
        "the accuracy of a model with one output needs labels 0 and 1; for other targets use 'mse'"),
    # --- Divergence
    "divergence": (
        lambda: training.fit(Sequential([Dense(5, kernel_initializer="zeros")]), X, Y, loss="cross_entropy", verbose=0,
                             optimizer=optim.SGD(lr=1e39)), training.DivergenceError,
        "training diverged at step 1: the loss is no longer finite. inf or NaN first appears in dense Dense(20 -> 5); the "
        "learning rate is 1e+39, the last good loss was 1.609. A smaller learning rate usually helps, and so does BatchNorm"),
    # --- Tensors and gradients
    "x[0] = ...": (
        set_item, TypeError,
        "a Tensor cannot be changed in place: its old values may be needed for the gradient. Build a new one with "
        "F.where(mask, value, x), or change x.data before it is used"),
    "p -= ...": (
        subtract_in_place, TypeError,
        "p -= ... would make a new Tensor and leave the parameter as it is: write p.data -= lr * p.grad"),
    "backward twice": (
        backward_twice, RuntimeError,
        "this graph was freed by an earlier backward(). Compute the loss again before the second backward(), or use grad(), "
        "which keeps the graph"),
    "backward of many numbers": (
        lambda: (Parameter(X) * 2).backward(), RuntimeError,
        "backward from a Tensor of shape (40, 20) needs an explicit gradient of that shape; a loss is usually reduced with "
        ".sum() or .mean() first"),
    "nothing to differentiate": (
        lambda: Tensor(X).sum().backward(), RuntimeError,
        "nothing to differentiate: no input requires a gradient, or it was computed in no_grad()"),
    "a Tensor for NumPy": (
        lambda: np.asarray(Tensor(X)), TypeError,
        "NumPy was given a Tensor: use minidl.functional for a differentiable result, or tensor.data for the plain array"),
    "a loss that is no Tensor": (
        fit(loss=lambda outputs, y: 0.5), TypeError,
        "a loss returns one number as a Tensor, made with minidl.functional, but this one returned a float of shape ()"),
    "a loss per sample": (
        fit(loss=lambda outputs, y: outputs.sum(axis=1)), TypeError,
        "a loss returns one number as a Tensor, made with minidl.functional, but this one returned a Tensor of shape (40,); end it "
        "with .mean()"),
    # --- Too early
    "fit before compile": (
        lambda: net().fit(X, Y), RuntimeError,
        "the model is not compiled: call model.compile(optimizer=..., loss=..., metrics=[...]) first"),
    "parameters before any shape": (
        lambda: optim.Adam(net().parameters()), RuntimeError,
        "dense Dense(16) has no weights yet, because it has seen no input: give input_shape, call model.build(input_shape), "
        "or send one batch through first"),
    "no forward": (lambda: NoForward()(X), NotImplementedError, "NoForward must define forward(self, x)"),
    "forward without return": (
        lambda: NoReturn()(X), TypeError, "NoReturn(): forward returned nothing; it must end with `return`"),
    # --- Optimizers
    "a model for parameters": (
        lambda: optim.Adam(net(input_shape=20)), TypeError,
        "expected a list of parameters, as model.parameters() returns it, got a Sequential"),
    "named parameters": (
        lambda: optim.Adam(net(input_shape=20).named_parameters()), ValueError,
        "expected at least one parameter, and all must be Tensors, got tuple"),
    "no parameters": (
        lambda: optim.Adam([]), ValueError, "expected at least one parameter, and all must be Tensors, got none"),
    "a step of nothing": (
        lambda: optim.Adam().step(), RuntimeError, "this Adam has no parameters: use Adam(model.parameters(), lr=...)"),
    "learning rate": (lambda: optim.SGD(lr=-1), ValueError, "the learning rate must be a finite number above 0, got -1; 0.1 for example, or a schedule"),
    "an optimizer for two models": (
        use_one_optimizer_for_two_models, ValueError,
        "this optimizer already trains another model's parameters: each model needs an optimizer of its own"),
    # --- State
    "a state of another model": (
        load_a_state_that_does_not_fit, ValueError,
        "nothing was loaded, the state does not fit this Sequential:\n"
        "  missing: layers.1.beta\n"
        "  not in the model: layers.4.kernel\n"
        "  of another shape: layers.0.kernel is (20, 16) in the model, (20, 12) in the state\n"
        "Build the model with the layers it had when the state was saved"),
    "a path for a state": (
        lambda: net(input_shape=20).load_state_dict("weights.npz"), TypeError,
        "load_state_dict takes a dict as state_dict() returns it, got str; for a file use load_weights(path)"),
    # --- Layers and callbacks
    "a layer for a list": (
        lambda: Sequential(Dense(3)), TypeError,
        "Sequential takes a list of layers, Sequential([Dense(64), Activation('relu')]), got Dense(3)"),
    "a name for a layer": (
        lambda: Sequential([Dense(3), "relu"]), TypeError,
        "a layer is an object like Dense(64) or Activation('relu'), got 'relu'"),
    "a callback's class": (
        fit(callbacks=[EarlyStopping]), TypeError,
        "callbacks is a list of Callback objects, [EarlyStopping(patience=3)] for example, got "
        "[<class 'minidl.callbacks.EarlyStopping'>]"),
    "no validation data to watch": (
        fit(callbacks=[EarlyStopping()], metrics=["accuracy"]), ValueError,
        "EarlyStopping watches 'val_loss', but this run measures only loss, accuracy: fit needs validation_data or "
        "validation_split"),
    "another metric to watch": (
        fit(callbacks=[ModelCheckpoint("w.npz", "acc", save_best_only=True)]), ValueError,
        "ModelCheckpoint watches 'acc', but this run measures only loss: a metric of this name is given to compile, "
        "metrics=['acc']"),
    "better or worse": (
        lambda: EarlyStopping(mode="maximum"), ValueError, "mode is 'min', 'max' or 'auto', got 'maximum'"),
    "a schedule without return": (
        fit(callbacks=[LearningRateScheduler(lambda epoch, lr: None)]), ValueError,
        "the schedule must return a learning rate, a number from 0 up, but returned None for epoch 0"),
    "an event that does not exist": (
        lambda: LambdaCallback(on_epoch=3), TypeError,
        "LambdaCallback takes functions named on_train_begin, on_train_end, on_epoch_begin, on_epoch_end, "
        "on_train_batch_begin, on_train_batch_end, got on_epoch=3"),
    # --- Modules, layers, Sequential
    "a layer replaced after fit": (
        replace_a_layer, ValueError,
        "the optimizer does not fit the model: it does not train layers.3.kernel, layers.3.bias; "
        "the model no longer has 2 of its Parameters, of shape (16, 5), (5,). If the model has "
        "changed, compile it again or give a new optimizer; if a part should not be trained, freeze "
        "it first: layer.trainable = False, or requires_grad_(False)"),
    "a part in evaluation mode": (
        evaluate_one_part, ValueError,
        "batchnorm BatchNorm(16) is in evaluation mode and the model is not; fit switches all of "
        "it to training mode. To keep running statistics as they are, set frozen_statistics = True "
        "(or trainable = False, which freezes gamma and beta too) on the BatchNorm; else call "
        "model.train() first"),
    "all is frozen": (
        freeze_all, ValueError,
        "there is nothing to train, all parameters are frozen: layers.0.kernel, layers.0.bias, "
        "layers.1.gamma, layers.1.beta ... Set trainable = True on the layers that should learn, or "
        "call requires_grad_()"),
    "a Tensor for a Parameter": (
        lambda: Scale(Tensor(np.ones(1, np.float32), requires_grad=True)).parameters(), ValueError,
        "scale of Scale is a Tensor and would never be trained: make it a Parameter, scale = "
        "Parameter(values)"),
    "a Parameter of float64": (
        lambda: Sequential([Scale(Parameter(np.ones(1))), Activation("relu"),
                            Dense(5, input_shape=20)])(Tensor(X)), TypeError,
        "dense Dense(20 -> 5) holds float32 weights but got a float64 Tensor: layers.0.scale in "
        "Sequential is float64. Make it float32, as Parameter(np.ones(1, np.float32)) or with a "
        "plain Python number (math.sqrt(2), not np.sqrt(2)); or take all of the model to float64 "
        "by model.astype(np.float64)"),
    "an array for a Parameter": (
        lambda: setattr(net(input_shape=20)[0], "kernel", np.ones((20, 16))), TypeError,
        "dense Dense(20 -> 16): kernel is a Parameter; the new value, ndarray, would never be trained "
        "in its place: write layer.kernel.data[...] = values to give it new values, or "
        "layer.kernel = Parameter(values) and compile again"),
    "a setting too late": (
        lambda: setattr(net(input_shape=20)[0], "units", 5), ValueError,
        "dense Dense(20 -> 16): units cannot change once the weights are made; make a new layer "
        "and put it in the place of this one"),
    "a misspelt setting": (
        lambda: setattr(BatchNorm(), "momentun", 0.5), AttributeError,
        "BatchNorm() has no attribute 'momentun', so setting it would change nothing: did you mean "
        "'momentum'?"),
    "PyTorch's layer.weight": (
        lambda: Dense(3).weight, AttributeError,
        "Dense has no attribute 'weight': write kernel, of shape (inputs, units): the transpose of "
        "PyTorch's weight"),
    "Keras' epsilon": (
        lambda: BatchNorm(epsilon=1e-3), TypeError,
        "BatchNorm has no argument 'epsilon': write eps, which is 1e-5 by default; Keras' is 1e-3"),
    "softmax of one output": (
        lambda: Sequential([Dense(1, "softmax")]).compile("sgd", "mse").fit(X, X[:, :1], verbose=0),
        ValueError, "dense Dense(20 -> 1, softmax): softmax of a single output is always 1, so nothing could be learned: "
        "use 'sigmoid' with the loss 'binary_crossentropy', or one output for each class"),
    "percent for a rate": (
        lambda: Dropout(50), ValueError, "Dropout needs a rate from 0 up to but not 1 (0.5 for 50 "
                                         "percent), got 50"),
    "one image": (
        lambda: Sequential([Flatten(input_shape=(4, 5)), Dense(3)]).predict(X[0].reshape(4, 5)),
        ValueError,
        "layer 1, dense Dense(20 -> 3) expects inputs of shape (n, 20), got (4, 5); its input "
        "comes from layer 0, flatten Flatten(). If this is one sample, write "
        "x.reshape(1, 4, 5), a batch of one"),
    "layers called with an Input": (
        lambda: Dense(3)(Input((28, 28))), TypeError,
        "Dense(3) takes an array or a Tensor, got Input: it stands first in a Sequential; for layers in another order subclass "
        "Module and write forward"),
    "a list for a batch": (
        lambda: net(input_shape=20)([[1.0] * 20]), TypeError,
        "Sequential takes an array or a Tensor, got list: use np.asarray(x, np.float32)"),
    "a class for a layer": (
        lambda: Sequential([BatchNorm]), TypeError,
        "a layer is an object like Dense(64) or Activation('relu'), got <class "
        "'minidl.normalization.BatchNorm'>; write BatchNorm(...)"),
    "a factory for an initializer": (
        lambda: Dense(3, input_shape=4, kernel_initializer=initializers.normal).parameters(),
        ValueError,
        "Dense(4 -> 3): an initializer is a function of (shape, rng) that returns an array, such "
        "as initializers.normal(0.05), but normal fails: normal() takes from 0 to 1 positional "
        "arguments but 2 were given"),
    "load of a model": (
        lambda: net().load("m.npz"), AttributeError,
        "Sequential has no attribute 'load': write model = Sequential.load(path), which makes a "
        "new model; load_weights(path) fills this one"),
    # --- Files and data
    "a state with the names of another file": (
        lambda: net(input_shape=20).load_state_dict(
            net(input_shape=20).state_dict() | {f"\x1b[2J{i}": X for i in range(99)}), ValueError,
        re.compile(r"nothing was loaded, the state does not fit this Sequential:"
                   r"(\n  not in the model: \?\[2J\d+){20}\n  \.\.\. and 79 more\n"
                   r"Build the model with the layers it had when the state was saved")),
    "an optimizer's state of another model": (
        lambda: optim.SGD(net(input_shape=20).parameters(), lr=0.1).load_state_dict(
            {"steps": np.array(0), "updates": np.zeros(6), **{f"\x1b{i}": X for i in range(12)}}),
        ValueError, re.compile(r"this is not the state of SGD with these parameters; "
                               r"(\?\d: expected nothing, got shape \(40, 20\); ){10}and 2 more")),
    "a folder that is missing": (
        lambda: net(input_shape=20).save_weights("absent/w.npz"), FileNotFoundError,
        "cannot write absent/w.npz: there is no folder absent"),
    "a name for a file that is a folder": (
        lambda: data_files.write_csv(".", ["a"], []), IsADirectoryError,
        ". is a folder, not a file to write"),
    "a size of batches": (
        lambda: data.batches(X, Y, "32"), ValueError,
        "the size of batches is a whole number of samples, at least 1, got '32'"),
    "a seed for a generator": (
        lambda: data.batches(X, Y, 32, 0), TypeError,
        "rng is a NumPy Generator, np.random.default_rng(0) for example, or None, got 0"),
    "batches of nothing": (
        lambda: data.batches(X[:0], Y[:0], 32), ValueError,
        "batches need samples and as many labels, got 0 samples and 0 labels"),
    "a share in per cent": (
        lambda: data.split(X, Y, 20), ValueError,
        "the share to hold out is a number between 0 and 1, 0.2 for example, got 20"),
    "labels in a column for one_hot": (
        lambda: data.one_hot(Y[:, None]), ValueError,
        f"one_hot takes whole class numbers of shape (n,), got {Y.dtype} of shape (40, 1); "
        "y.reshape(-1).astype(int) makes them of a column or of floats"),
    "a number of classes": (
        lambda: data.one_hot(Y, 5.0), ValueError,
        "classes is how many there are, a whole number, got 5.0"),
    "a scaling of other features": (
        lambda: data.standardization(X)(X[:, :1]), ValueError,
        "this Scaling was fitted on samples of shape (20,), but x of shape (40, 1) does not end "
        "like that"),
    "a scaling of NaN": (
        lambda: data.min_max(NAN), ValueError,
        "a Scaling needs finite numbers, and no scale of 0: is there NaN or inf in the training "
        "data? np.argwhere(~np.isfinite(x)) finds them"),
    "a scaling of each sample by itself": (
        lambda: data.standardization(X, axis=1), ValueError,
        "axis is 0, for each feature by itself, or None, for all alike, got 1: every sample, in "
        "training and test, gets the same shift and scale"),
    "epochs of a checkpoint": (
        lambda: compiled(input_shape=20).save_checkpoint("run.npz", 2.0), ValueError,
        "epochs is how many are done, a whole number from 0 up, got 2.0"),
    # --- Sweeps and comparisons
    "a text for an axis": (
        lambda: experiments.sweep({"kind": "abc"}, job), TypeError,
        "the grid needs a list of values for 'kind', got 'abc': write ['abc'] for a single one"),
    "a number for an axis": (
        lambda: experiments.sweep({"seed": 3}, job), TypeError,
        "the grid needs a list of values for 'seed', got 3: write [3] for a single one"),
    "a set for an axis": (
        lambda: experiments.sweep({"seed": {3}}, job), TypeError,
        "the grid needs a list of values for 'seed', got {3}: these have no order that counts, "
        "write [...]"),
    "an axis without values": (
        lambda: experiments.sweep({"seed": [], "lr": [1]}, job), ValueError,
        "the grid of this sweep is empty: 'seed' has no values"),
    "a seed twice": (
        lambda: experiments.sweep({"seed": [0, 1, 0]}, job), ValueError,
        "'seed' has the value 0 more than once: the same job twice is no second measurement; to "
        "repeat a run, give the grid a "
        "list of seeds"),
    "a number for a grid": (
        lambda: experiments.sweep(3, job), TypeError,
        'a grid is {"lr": [0.1, 1.0], "seed": range(3)}, or a list of settings, each a dict such '
        'as {"lr": 0.1, "seed": 2}; got 3'),
    "a setting that the job does not take": (
        lambda: experiments.sweep({"seed": [0], "rate": [1]}, job), TypeError,
        "the job cannot be called with the settings seed, rate: got an unexpected keyword argument "
        "'rate'; it is job(seed, lr=1)"),
    "a setting that is missing": (
        lambda: experiments.sweep({"lr": [1]}, job), TypeError,
        "the job cannot be called with the settings lr: missing a required argument: 'seed'; it is "
        "job(seed, lr=1)"),
    "no job": (
        lambda: experiments.sweep({"lr": [1]}, {"loss": 1}), TypeError,
        "a sweep needs a job, a function that returns a dict of numbers and arrays, got {'loss': 1}"),
    "a number for an executor": (
        lambda: experiments.sweep({"seed": [1]}, job, 2), TypeError,
        "an executor is a pool of workers, `with processes(2) as pool: sweep(..., executor=pool)`, "
        "got 2"),
    "no processes": (
        lambda: experiments.processes(0).__enter__(), ValueError,
        "processes takes how many to start, a whole number of at least 1, got 0"),
    "half a process": (
        lambda: experiments.processes(1.5).__enter__(), ValueError,
        "processes takes how many to start, a whole number of at least 1, got 1.5"),
    "no builders": (
        compare(builders={}), TypeError,
        'builders is a dict of functions of a seed, {"BatchNorm": with_bn, "none": without}, and '
        'not empty, got {}'),
    "a network for a builder": (
        compare(builders={"a": 3}), TypeError,
        "builder 'a' must be a function of a seed that returns a new network, got 3: "
        "3 is not a callable object"),
    "a builder without a seed": (
        compare(builders={"a": net_without_seed}), TypeError,
        re.compile("builder 'a' must be a function of a seed that returns a new network, "
                   "got <function .*>: too many positional arguments")),
    "a builder that returns nothing": (
        compare(builders={"a": lambda seed: None}), TypeError,
        "builder 'a' needs a network, a Sequential or another Module, got None"),
    "a builder that returns one network": (
        compare(builders={"a": lambda seed, model=net(): model}), ValueError,
        "builder 'a' returns the same network each time, which would then be trained on and on: "
        "make a new one in the builder"),
    "a builder that ignores its seed": (
        compare(builders={"a": lambda seed: net()}), ValueError,
        "builder 'a' ignores its seed: the networks of all seeds would be the same, write "
        "Sequential([...], seed=seed)"),
    "a builder that is never the same": (
        compare(builders={"a": lambda seed: Sequential([Dense(5)], seed=None)}), ValueError,
        "builder 'a' returns different networks for the seed 0: let all randomness come from the "
        "seed, "
        "Sequential([...], seed=seed)"),
    "no steps": (compare(steps=0), ValueError, "steps must be a whole number, at least 1, got 0"),
    "half a step": (compare(steps=2.5), ValueError, "steps must be a whole number, at least 1, "
                                                    "got 2.5"),
    "no steps of a run": (
        lambda: experiments.run(net(), ((X, Y), (X, Y)), optimizer=optim.SGD(lr=1), steps=0),
                          ValueError,
        "steps must be a whole number, at least 1, got 0"),
    "a negative step to measure at": (
        compare(eval_steps=[-1]), ValueError, "each of eval_steps must be a whole number, at "
                                              "least 0, got -1"),
    "half a step to measure at": (
        compare(eval_steps=[0.5]), ValueError, "each of eval_steps must be a whole number, at "
                                               "least 0, got 0.5"),
    "the same seed twice": (
        compare(seeds=[1, 1]), ValueError,
        "seeds must be a list of at least one value, none of them twice, such as range(3), got [1, "
        "1]"),
    "how many seeds": (compare(seeds=3), TypeError,
                       "seeds must be a list, such as range(3), got 3"),
    "a seed below 0": (compare(seeds=[-1]), ValueError, "a seed is a whole number, 0 or more, got "
                                                        "-1"),
    "a rate of 0": (compare(lr=0), ValueError, "a learning rate must be a finite number above 0, "
                                               "or a schedule, got 0"),
    "a rate of nothing": (
        compare(lr=float("nan")), ValueError, "a learning rate must be a finite number above 0, or "
                                              "a schedule, got nan"),
    "data without a test set": (
        compare(data=(X, Y)), ValueError,
        re.compile(r"data must be \(\(x_train, y_train\), \(x_test, y_test\)\), as data.load "
                   r"returns them, with as many labels as "
                   r"images and at least one of each, got tuple")),
    "a test set without labels": (
        compare(data=((X, Y), (X, Y[:3]))), ValueError,
        "data must be ((x_train, y_train), (x_test, y_test)), as data.load returns them, with as "
        "many labels as images and at "
        "least one of each, got 40 images and 40 labels to train, 40 and 3 to test"),
    "rates that fall": (
        lambda: experiments.lr_range(NETS, DATA, [1.0, 0.1], steps=2), ValueError,
        "rates must be numbers in rising order, since result.losses has one column for each: "
        "sorted(rates); got [1.0, 0.1]"),
    "a mean of no losses": (
        lambda: experiments.lr_range(NETS, DATA, [0.1], steps=2, last=0), ValueError,
        "last must be a whole number, at least 1, got 0"),
    "a target in percent": (
        lambda: RUN.steps_to(85), ValueError,
        "a target is a share of right answers, above 0 and at most 1 (0.85 for 85 %), got 85"),
    "a target that was never measured": (
        lambda: RUN.steps_to(0.85), ValueError,
        "no accuracy was measured in this run: give eval_steps, the steps after which to measure it"),
    "a network that was not compared": (
        lambda: experiments.Comparison({"a": [RUN]}, [0]).array("b", "losses"), ValueError,
        "no network 'b' was compared, only 'a'"),
    "an array that was not recorded": (
        lambda: experiments.Comparison({"a": [RUN]}, [0]).array("a", "loss"), ValueError,
        "a comparison has arrays of losses, accuracy, seconds and eval_steps, not of 'loss'"),
    "an attribute of a comparison": (
        lambda: experiments.Comparison({"a": [RUN]}, [0]).losses, AttributeError,
        "a Comparison has no attribute 'losses': array(name, 'losses') has it of one network, as "
        "an array (seeds, steps)"),
    "an attribute of a sweep": (
        lambda: experiments.sweep({"seed": [1]}, job).df, AttributeError,
        "a Sweep has no attribute 'df': to_csv(path) writes a table, .settings and .results are "
        "lists of dicts"),
    "a step for the table": (
        lambda: experiments.Comparison({"a": [RUN]}, [0]).table(0.85, at=100), TypeError,
                             "at is a list of steps, at=[100], got 100"),
    "a name for an optimizer": (
        lambda: experiments.run(net(), DATA, optimizer="sgd", steps=2), TypeError,
        "run needs an optimizer, such as optimizer=optim.SGD(lr=0.1), got 'sgd'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_the_error_says(name):
    call, kind, text = ERRORS[name]
    with pytest.raises(Exception) as caught:
        call()
    assert type(caught.value) is kind
    message = str(caught.value)
    assert text.fullmatch(message) if isinstance(text, re.Pattern) else message == text


@pytest.mark.parametrize("name, kind, message", [
    ("absent/w.npz", FileNotFoundError, "ModelCheckpoint cannot write {}: there is no folder {.parent}"),
    ("w.h5", ValueError, "{}: the suffix says how arrays are stored and must be .npz or .safetensors, not '.h5'")])
def test_a_checkpoint_that_cannot_be_written_says_so_before_any_training(name, kind, message, tmp_path):
    model, path = compiled(input_shape=20), tmp_path / name
    before = model.state_dict()
    with pytest.raises(kind) as caught:
        model.fit(X, Y, verbose=0, callbacks=[ModelCheckpoint(path)])
    assert str(caught.value) == message.format(path, path)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
