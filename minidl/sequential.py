"""Sequential: layers in a row, with Keras' verbs. Each verb is a thin call of `training.py`."""

import numpy as np

from . import checkpoints, training
from .inside import explain_batchnorm
from .layers import Dense, Dropout
from .module import Module, evaluation, lookup
from .optim import OPTIMIZERS, Optimizer
from .progress import table
from .tensor import no_grad


class Sequential(Module):
    """A model whose layers feed one another.

    layers: a list of Modules. seed: where initial weights, shuffling and dropout come from, as three
    independent streams. Layers without random weights draw nothing, so inserting BatchNorm() leaves all Dense
    weights and the order of the batches as they were. The weights are made when the input's shape is
    known: from the first layer's input_shape, from build(), or from the first data. Call build() before you use the layers
    one by one: a layer that no model has called draws from no seed.
    """

    def __init__(self, layers=(), seed=0):
        if not isinstance(layers, (list, tuple)):
            raise TypeError(f"Sequential takes a list of layers, Sequential([Dense(64), Activation('relu')]), got {layers!r}")
        self.layers = []
        self.weights_rng, self.shuffle_rng, self.dropout_rng = map(
            np.random.default_rng, np.random.SeedSequence(seed).spawn(3))
        self.input_shape = self.optimizer = self.loss = None
        self.metrics = []
        for layer in layers:
            self.add(layer)

    def add(self, layer):
        """Append a layer. Compile afterwards: an optimizer trains the layers that it was given."""
        if not isinstance(layer, Module):
            raise TypeError(f"a layer is an object like Dense(64) or Activation('relu'), got {layer!r}")
        kind = type(layer).__name__.lower()
        number = sum(type(other) is type(layer) for other in self.layers)
        layer.name = layer.name or (f"{kind}_{number}" if number else kind)  # dense, dense_1, dense_2 ... as in Keras
        self.layers.append(layer)
        if self.optimizer is not None:
            self.optimizer.parameters = None  # when it is compiled again, it takes over the new layer's, too
        self.optimizer = self.loss = None
        shape = getattr(self.layers[0], "input_shape", None) if self.input_shape is None else self.input_shape
        if shape is not None:
            self.input_shape = None  # the new layer, too, gets its random stream at the first forward
            self.build(shape)

    def forward(self, x):
        """Send x through all layers. A layer's complaint is passed on with where its input came from."""
        first = x
        if self.input_shape is None:
            self._hand_out_streams()
        for i, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except ValueError as error:
                source = f"from layer {i - 1}, {self.layers[i - 1].label}" if i else "straight from the data"
                raise ValueError(f"layer {i}, {error}; its input comes {source}") from error
        if self.input_shape is None:
            self.input_shape = first.shape[1:]
        return x

    def _hand_out_streams(self):
        """Give each layer without a random stream this model's. At the first forward, so that the outermost model does it."""
        for module in self.modules():
            if isinstance(module, (Dense, Dropout)) and module.rng is None:
                module.rng = self.weights_rng if isinstance(module, Dense) else self.dropout_rng

    def compile(self, optimizer="sgd", loss="cross_entropy", metrics=()):
        """Choose how to train. optimizer: a name, or one of `minidl.optim`. loss, metrics: names or functions.

        Losses on what the last layer gives: "cross_entropy" on logits; "categorical_crossentropy" and
        "sparse_categorical_crossentropy" on probabilities, for a model that ends in softmax. Returns self.
        """
        if isinstance(optimizer, str):
            optimizer = lookup(optimizer.lower(), OPTIMIZERS, "optimizer")()
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer is a name or an object like optim.SGD(lr=0.1), got {optimizer!r}")
        metrics = [metrics] if isinstance(metrics, str) or callable(metrics) else list(metrics or ())
        training.named_metrics(metrics)  # complains about unknown names
        self.loss, self.optimizer, self.metrics = lookup(loss, training.LOSSES, "loss"), optimizer, metrics
        return self

    def fit(self, x, y, batch_size=32, epochs=1, verbose=1, callbacks=(), validation_split=0.0, validation_data=None,
            shuffle=True, initial_epoch=0):
        """Train; returns a History. The arguments are those of Keras; see `training.fit`.

        validation_split: the share of the samples, the last ones, to validate on instead of training.
        """
        self._need_compile()
        if not isinstance(shuffle, (bool, np.bool_)):
            raise TypeError(f"shuffle is True or False, got {shuffle!r}")
        if validation_split != 0 and validation_data is None:
            (x, y), validation_data = training.hold_out(x, y, validation_split)
        return training.fit(self, x, y, loss=self.loss, optimizer=self.optimizer, epochs=epochs, batch_size=batch_size,
                            metrics=self.metrics, callbacks=callbacks, validation_data=validation_data,
                            rng=self.shuffle_rng if shuffle else None, initial_epoch=initial_epoch, verbose=verbose)

    def evaluate(self, x, y, batch_size=256, verbose=0, return_dict=False):
        """Loss and metrics in evaluation mode: [loss, metric, ...] as Keras gives them, or a dict, or the loss alone.

        verbose is there for Keras' sake: this is over before a bar could be read.
        """
        self._need_compile()
        scores = training.evaluate(self, x, y, loss=self.loss, metrics=self.metrics, batch_size=batch_size)
        return scores if return_dict else list(scores.values()) if self.metrics else scores["loss"]

    def predict(self, x, batch_size=256, verbose=0):
        """The outputs for x in evaluation mode, as an array."""
        return training.predict(self, x, batch_size)

    def save_checkpoint(self, path, epochs):
        """Write all that a run needs to go on as if it had never stopped: see `checkpoints.py`. epochs: how many are done.

        After each of them: fit(..., callbacks=[LambdaCallback(
            on_epoch_end=lambda epoch, logs: model.save_checkpoint("run.npz", epoch + 1))])
        """
        self._need_compile()
        checkpoints.save_checkpoint(path, self, self.optimizer, epochs)

    def load_checkpoint(self, path):
        """Take over such a file; gives the epochs done: fit(x, y, epochs=10, initial_epoch=model.load_checkpoint(path))."""
        self._need_compile()
        return checkpoints.load_checkpoint(path, self, self.optimizer)

    def explain_batchnorm(self):
        """Print what each BatchNorm knows of the data, and whether evaluate comes too early: see `inside.explain_batchnorm`."""
        explain_batchnorm(self)

    def summary(self):
        """Print layers, output shapes and parameter counts, as Keras does. RuntimeError before the input's shape is known."""
        lines = table(self._rows(), left=3)
        rule = "-" * max(map(len, lines))
        trainable = sum(p.size for p in self.parameters() if p.requires_grad)
        total = _size(self)
        print("\n".join([rule, lines[0], rule, *lines[1:], rule, f"Total params: {total:,}",
                         f"Trainable params: {trainable:,}", f"Non-trainable params: {total - trainable:,}"]))

    def _rows(self):
        """The table of summary(): name, output shape, number of parameters of each layer."""
        if self.input_shape is None:
            raise RuntimeError("summary() needs the shape of the input: give the first layer input_shape, call "
                               "model.build(input_shape), or send one batch through first")
        rows = [("Layer (type)", "Output Shape", "Param #")]
        x = np.zeros((1, *self.input_shape), np.float32)
        with evaluation(self), no_grad():
            for layer in self.layers:
                x = layer(x)
                rows.append((f"{layer.name} ({type(layer).__name__})", str((None, *x.shape[1:])), f"{_size(layer):,}"))
        return rows

    def _need_compile(self):
        if self.loss is None:
            raise RuntimeError("the model is not compiled: call model.compile(optimizer=..., loss=..., metrics=[...]) first")


def _size(module):
    """How many numbers a module holds, as Keras counts: without integers such as BatchNorm's count of its updates."""
    return sum(a.size for a in [*module.parameters(), *module.buffers()] if a.dtype.kind == "f")
