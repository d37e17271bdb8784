"""Sequential: layers in a row, with Keras' verbs. Each verb is a thin call of `training.py`."""

import math
from collections import Counter

import numpy as np

from . import habits, training
from .module import Module
from .optim import OPTIMIZERS, Optimizer
from .parts import evaluation
from .settings import as_flag, as_shape, lookup
from .tensor import Tensor, no_grad

DATA = "; its input comes straight from the data"


def _layers(value):
    if not isinstance(value, (list, tuple)):
        raise TypeError("Sequential takes a list of layers, Sequential([Dense(64), "
                        f"Activation('relu')]), got {value!r}")
    return list(value)


def _optimizer(value):
    if isinstance(value, str):
        value = lookup(value.lower(), OPTIMIZERS, "optimizer")()
    if value is not None and not isinstance(value, Optimizer):
        raise TypeError(f"optimizer is a name or an object like optim.SGD(lr=0.1), got {value!r}")
    return value


def _loss(value):
    return None if value is None else training.named_loss(value)


def _metrics(value):
    if isinstance(value, str) or callable(value):
        value = [value]
    if value is not None and not isinstance(value, (list, tuple)):
        raise TypeError(f"metrics is a list of names and functions, ['accuracy'], got {value!r}")
    training.named_metrics(value)  # complains about unknown names
    return list(value or ())


class _OfTheClass(classmethod):
    """A classmethod that no model has: model.load(path) would look as if it changed the model."""

    def __get__(self, instance, owner=None):
        if instance is not None:
            raise habits.unknown(owner.__name__, "load", owner.habit_words)
        return super().__get__(instance, owner)


class Input:
    """The shape of one input, in place of a Sequential's first layer: Input(784), as in Keras.

    It is not a layer: the model takes the shape and builds its weights.
    """

    def __init__(self, shape):
        self.shape = as_shape(shape)
        if self.shape is None:
            raise ValueError("Input needs the shape of one input, 784 or (28, 28) for example")

    def __repr__(self):
        return f"Input({self.shape})"


class Sequential(Module):
    """A model whose layers feed one another.

    >>> model = Sequential([Input(784), Dense(64, activation="relu"), Dense(10)])
    >>> model.predict(np.zeros((2, 784))).shape
    (2, 10)

    layers: a list of Modules, optionally after an Input. seed: where initial weights, shuffling and
    dropout come from, as three independent streams. Layers without random weights draw nothing, so
    inserting BatchNorm() leaves all Dense weights and the order of the batches unchanged. The
    weights are made once the input's shape is known: from an Input, from the first layer's
    input_shape, from build(), or from the first data. Call build() before you use the layers one by
    one: a layer that no model has called draws from no seed.

    `layers` is a list that may be changed; new layers are named, drawn from the seed and checked at
    the next use. Compile again afterwards. model[0] is the first layer, model[:-1] a Sequential of
    all but the last, with the same layers.
    """

    setting_checks = {"layers": _layers, "optimizer": _optimizer, "loss": _loss,
                      "metrics": _metrics}
    known_layers = ()  # the layers at the last use: these have their names and random streams
    seen_shape = output_shape = None  # of one sample, once one has passed through
    not_parts = "known_layers", "loss", "metrics"
    habit_words, argument_words = habits.SEQUENTIAL, habits.SEQUENTIAL_ARGUMENTS

    def __init__(self, layers=(), seed=0):
        self.layers = layers
        try:
            streams = np.random.SeedSequence(seed).spawn(3)
        except (TypeError, ValueError):
            raise ValueError("seed is a whole number from 0 up, or None for other weights each "
                             f"time, got {seed!r}") from None
        self.weights_rng = np.random.default_rng(streams[0])
        self.shuffle_rng = np.random.default_rng(streams[1])
        self.dropout_rng = np.random.default_rng(streams[2])
        self.kind_counts = Counter()  # how many layers of each kind have been named here
        self.optimizer = None
        self.loss = None
        self.metrics = []
        if self.layers and isinstance(self.layers[0], Input):
            self.seen_shape = self.layers.pop(0).shape
        for layer in self.layers:
            self._check(layer)
            self._name(layer)
        if self.input_shape is not None:
            self.build(self.input_shape)

    @property
    def input_shape(self):
        """The shape of one input, from the first layer or the first data; None before."""
        first = self.layers[0] if self.layers else None
        return getattr(first, "input_shape", None) or self.seen_shape

    def add(self, layer):
        """Append a layer. Compile afterwards: an optimizer trains the layers that it was given.

        Raises ValueError for one that does not fit, if shapes are known; the model is then as
        before.
        """
        if isinstance(layer, Input) and not self.layers:
            self.seen_shape = layer.shape
            return
        shape = self.output_shape if self.known_layers == self.layers else None
        self._check(layer)
        self._name(layer)
        self.layers.append(layer)
        try:
            if shape is not None:  # only what is new has to be built
                self._hand_out_streams([layer])
                from .culprit import instead_of_one
                with evaluation(layer), no_grad(), instead_of_one("n"):
                    x = np.zeros((1, *shape), np.float32)
                    try:
                        y = layer(x)
                    except ValueError as error:
                        raise self._complaint(len(self) - 1, error) from error
                self.known_layers.append(layer)
                self.output_shape = y.shape[1:]
            elif self.input_shape is not None:
                self.build(self.input_shape)
        except ValueError:
            self.layers.pop()
            raise
        self._forget_compile()

    def pop(self):
        """Remove the last layer and return it. Compile afterwards."""
        layer = self.layers.pop()
        self._forget_compile()
        return layer

    def _forget_compile(self):
        if self.optimizer is not None:
            # when compiled again, it takes over the new layer's parameters too
            self.optimizer.release()
        self.optimizer = self.loss = None

    def _check(self, layer):
        if not isinstance(layer, Module):
            remedy = (f"; write {layer.__name__}(...)" if isinstance(layer, type) else
                      "; write Activation(function)" if callable(layer) else "")
            raise TypeError("a layer is an object like Dense(64) or Activation('relu'), got "
                            f"{layer!r}{remedy}")
        if any(part is self for part in layer.modules()):
            raise ValueError("a model cannot be a layer of itself, nor of one of its layers")

    def _name(self, layer):
        """Name a layer dense, dense_1, dense_2 ... as in Keras, unless it has a name."""
        kind = type(layer).__name__.lower()
        number, self.kind_counts[kind] = self.kind_counts[kind], self.kind_counts[kind] + 1
        layer.name = layer.name or (f"{kind}_{number}" if number else kind)

    def settle_new_layers(self):
        """Take in the layers that are new in the list, and give them this model's random streams.

        Called at every forward and before the parameters are listed, so the outermost model comes
        first.
        """
        if self.known_layers == self.layers:
            return
        for layer in self.layers:
            self._check(layer)
            if not layer.name:
                self._name(layer)
        self._hand_out_streams(self.layers)
        vars(self).update(known_layers=list(self.layers), output_shape=None)

    def _hand_out_streams(self, layers):
        """Give each part without a random stream this model's."""
        for layer in layers:
            for module in layer.modules():
                if module.stream and module.rng is None:
                    module.rng = getattr(self, module.stream)

    def forward(self, x):
        """Send x through all layers.

        A layer's error is passed on with a note on where its input came from.
        """
        if self.known_layers != self.layers:
            self.settle_new_layers()
        first = x
        for i, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except ValueError as error:
                raise self._complaint(i, error, first) from error
        if self.output_shape is None and isinstance(x, (np.ndarray, Tensor)):
            vars(self).update(seen_shape=first.shape[1:], output_shape=x.shape[1:])
        return x

    def _complaint(self, i, error, first=None):
        """The error of layer i, with where its input came from; first: the input of the model."""
        text, shape = f"layer {i}, {error}", self.input_shape
        text = text.removesuffix(DATA)  # added by a Sequential inside, about its first layer
        if "; its input comes" not in text:
            before = f"from layer {i - 1}, {self.layers[i - 1].label}" if i else ""
            text += f"; its input comes {before}" if i else DATA
        if shape is None or first is None:
            return ValueError(text)
        if first.shape[1:] != shape and first.size == math.prod(shape):
            text += f". If this is one sample, write x.reshape{(1, *shape)}, a batch of one"
        elif i and first.shape[1:] != shape:
            axes = ", ".join(map(str, shape))
            text += f". The model takes data of shape (n, {axes}), got {first.shape}"
        return ValueError(text)

    def __len__(self):
        return len(self.layers)

    def __bool__(self):  # a model without layers is true, too
        return True

    def __iter__(self):
        return iter(self.layers)

    def __getitem__(self, index):
        if not isinstance(index, (int, np.integer, slice)):
            raise TypeError("model[0] is the first layer and model[:-1] a Sequential of all but "
                            f"the last, got {index!r}; by name: {{layer.name: layer for layer in "
                            f"model}}[{index!r}]")
        if not isinstance(index, slice):
            return self.layers[index]
        part = Sequential()
        part.layers, part.training = self.layers[index], self.training
        for stream in ("weights_rng", "shuffle_rng", "dropout_rng"):
            setattr(part, stream, getattr(self, stream))
        part.seen_shape = self.seen_shape if len(part) and part[0] is self[0] else None
        return part

    def save(self, path):
        """Write layers and weights into one .npz or .safetensors file: see `saving.py`."""
        from . import saving
        saving.save(path, self, Sequential)

    @_OfTheClass
    def load(cls, path):
        """The model that save wrote, as a new one to be compiled; ValueError if damaged."""
        from . import saving
        return saving.load(path, Sequential)

    def compile(self, optimizer="sgd", loss="cross_entropy", metrics=(), **others):
        """Choose how to train; returns self.

        optimizer: a name, or one of `minidl.optim`. loss, metrics: names or functions. Losses on
        what the last layer returns: "cross_entropy" on logits; "categorical_crossentropy" and
        "sparse_categorical_crossentropy" on probabilities, for a model that ends in softmax.

        Compile again after the layers have changed: if the optimizer is the one of the latest fit,
        it takes over the Parameters that the model has now, and starts afresh.
        """
        for name in others:
            hint = habits.COMPILE_ARGUMENTS.get(name, "it takes optimizer, loss and metrics")
            raise TypeError(f"compile has no argument {name!r}: {hint}")
        for name, value in (("optimizer", optimizer), ("loss", loss)):
            if value is None:
                raise TypeError(f"compile needs {'an' if name == 'optimizer' else 'a'} {name}, got "
                                "None")
        optimizer, metrics, loss = _optimizer(optimizer), _metrics(metrics), _loss(loss)
        from .checks.binding import trains
        if optimizer is self.trained_by and not trains(optimizer, self, loss):
            optimizer.release()
        self.optimizer, self.loss, self.metrics = optimizer, loss, metrics
        return self

    def fit(self, x, y=None, batch_size=32, epochs=1, verbose=1, callbacks=(), validation_split=0.0,
            validation_data=None, shuffle=True, initial_epoch=0, *, class_weight=None,
            sample_weight=None):
        """Train; returns a History. The arguments are those of Keras; see `training.fit`.

        validation_split: the share of the samples, taken from the end, that validates and does not
        train.
        """
        self._need_compile()
        shuffle = as_flag("shuffle")(shuffle)
        if validation_split != 0 and validation_data is None:
            from .checks import hold_out
            if sample_weight is not None:
                (_, sample_weight), _ = hold_out(x, sample_weight, validation_split)
            (x, y), validation_data = hold_out(x, y, validation_split)
        return training.fit(self, x, y, loss=self.loss, optimizer=self.optimizer, epochs=epochs,
                            batch_size=batch_size, metrics=self.metrics, callbacks=callbacks,
                            validation_data=validation_data,
                            rng=self.shuffle_rng if shuffle else None, initial_epoch=initial_epoch,
                            verbose=verbose, class_weight=class_weight, sample_weight=sample_weight)

    def evaluate(self, x, y, batch_size=256, verbose=0, return_dict=False):
        """Loss and metrics in evaluation mode: [loss, metric, ...] as in Keras, or a dict.

        Without metrics, the loss alone. verbose is accepted for Keras' sake: this is over before a
        bar could be read.
        """
        self._need_compile()
        scores = training.evaluate(
            self, x, y, loss=self.loss, metrics=self.metrics, batch_size=batch_size
        )
        return scores if return_dict else list(scores.values()) if self.metrics else scores["loss"]

    def train_on_batch(self, x, y):
        """One update from one batch; returns the loss before it, or [loss, metric, ...].

        fit without an epoch around it, for batches of your own making. Its checks take longer than
        the step of a small net; training.step has none.
        """
        history = self.fit(x, y, batch_size=len(x), shuffle=False, verbose=0).history
        numbers = [values[-1] for values in history.values()]
        return numbers if self.metrics else numbers[0]

    def predict(self, x, batch_size=256, verbose=0):
        """The outputs for x in evaluation mode, as an array."""
        return training.predict(self, x, batch_size)

    def save_checkpoint(self, path, epochs):
        """Write all that a run needs to continue as if it had never stopped: see `checkpoints.py`.

        epochs: how many are done. To save after each of them:

            fit(..., callbacks=[LambdaCallback(
                on_epoch_end=lambda epoch, logs: model.save_checkpoint("run.npz", epoch + 1))])
        """
        from . import checkpoints
        self._need_compile()
        self._attach()
        checkpoints.save_checkpoint(path, self, self.optimizer, epochs)

    def load_checkpoint(self, path):
        """Take over such a file; returns the epochs done, for fit(..., initial_epoch=...)."""
        from . import checkpoints
        self._need_compile()
        self._attach()
        epochs = checkpoints.load_checkpoint(path, self, self.optimizer)
        self.trained_by = self.optimizer  # as if fit had trained the epochs of the file
        return epochs

    def _attach(self):
        """Before the first fit: give the optimizer what it is going to train."""
        if self.optimizer.parameters is None:
            from .checks.binding import to_train
            self.optimizer.attach(to_train(self, self.loss).values())

    def explain_batchnorm(self):
        """Print what each BatchNorm has learned of the data: see `inside.explain_batchnorm`."""
        from .inside import explain_batchnorm
        explain_batchnorm(self)

    def summary(self):
        """Print layers, output shapes and parameter counts, as Keras does."""
        from .console import table
        lines = table(self._rows(), left=3)
        rule = "-" * max(map(len, lines))
        if self.input_shape is None:
            counts = ["Shapes and numbers follow from the first data, from model.build(784), or",
                      "from Input(784) as the first layer."]
        else:
            trainable = sum(p.size for p in self.parameters() if p.requires_grad)
            total = _size(self)
            counts = [f"Total params: {total:,}", f"Trainable params: {trainable:,}",
                      f"Non-trainable params: {total - trainable:,}"]
        print("\n".join([rule, lines[0], rule, *lines[1:], rule, *counts]))

    def _rows(self):
        """The table of summary(): name, output shape, number of parameters of each layer."""
        rows = [("Layer (type)", "Output Shape", "Param #")]
        self.settle_new_layers()
        if self.input_shape is None:
            return rows + [(f"{layer.name} ({type(layer).__name__})", "not known", "not made")
                           for layer in self.layers]
        x = np.zeros((1, *self.input_shape), np.float32)
        with evaluation(self), no_grad():
            for layer in self.layers:
                x = layer(x)
                rows.append(
                    (
                        f"{layer.name} ({type(layer).__name__})",
                        str((None, *x.shape[1:])),
                        f"{_size(layer):,}",
                    )
                )
        return rows

    def _need_compile(self):
        if self.loss is None or self.optimizer is None:
            raise RuntimeError("the model is not compiled: call model.compile(optimizer=..., "
                               "loss=..., metrics=[...]) first")


def _size(module):
    """How many floating-point numbers a module holds; as in Keras, counters do not count."""
    return sum(a.size for a in [*module.parameters(), *module.buffers()] if a.dtype.kind == "f")
