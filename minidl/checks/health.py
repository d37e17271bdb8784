"""Runs that cannot go well: warnings from the data, the first step and the first epochs.

Each is one line with a remedy, by warnings.warn, and needs evidence that no healthy run has. It is
looked for before the first step, after it, and after an epoch, never in every step; what counts is
what the network receives, not what was given to fit: a layer may scale it first.
"""

import math
import os
import sys
import warnings
from collections.abc import Hashable
from contextlib import contextmanager

import numpy as np

from .. import functional as F
from ..batching import pieces
from ..layers import Activation, Dense
from ..module import Parameter
from ..normalization import BatchNorm, LayerNorm
from ..tensor import Tensor

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
FEW = 20  # samples: fewer are a trial of the program, not a training set
SAMPLED = 10 ** 6  # the most numbers of the inputs that are looked at
# root mean square of inputs that need scaling; pixels divided by 255 twice end at 0.0039
LARGE, TINY = 20, 0.004
ALWAYS = {F.softmax: ("softmax", 1), F.log_softmax: ("log_softmax", 0)}  # for a single number
FAR = 100  # root mean square of targets that need scaling


def say(text):
    """Warn, and point to the line outside this package that began it."""
    frame, level = sys._getframe(0), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, UserWarning, stacklevel=level)


@contextmanager
def probing(model):
    """Collect [(module, its first input, its output)], as arrays, while one sample goes through."""
    seen = []

    def look(part, inputs, y):
        seen.append(
            (
                part,
                *(
                    np.asarray(a.data if isinstance(a, Tensor) else a)
                    for a in (inputs[0] if inputs else y, y)
                ),
            )
        )

    handles = [part.register_forward_hook(look) for part in model.modules()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _activation(part):
    """The function that ends a Dense or an Activation; None for other parts.

    Also for a function that no table can hold, one without a hash.
    """
    function = (
        part.activation
        if isinstance(part, Dense)
        else part.function
        if isinstance(part, Activation)
        else None
    )
    return function if isinstance(function, Hashable) else None


def check_activations(seen):
    """ValueError for an activation that is constant here, from what `probing` collected."""
    for part, _, y in seen:
        if y.shape[1:] == (1,) and _activation(part) in ALWAYS:
            name, value = ALWAYS[_activation(part)]
            raise ValueError(f"{part.label}: {name} of a single output is always {value}, so "
                             "nothing could be learned: use 'sigmoid' with the loss "
                             "'binary_crossentropy', or one output for each class")


def ending(seen):
    """The activations at the very end of a model, from what `probing` collected."""
    return {_activation(part) for part, _, y in seen if y is seen[-1][2]}


class Watch:
    """Looks at one run of fit. seen: what `probing` collected while the first sample went through.

    `before`, `after_first_step` and `after_epoch` return a list of texts, one for each thing that
    is wrong.
    """

    def __init__(self, x, y, loss, batch_size, optimizer, seen, shuffled):
        self.silent = len(x) < FEW
        self.x = x
        self.y = y
        self.loss = loss
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.shuffled = shuffled
        self.seen = seen
        self.fresh = optimizer.steps == 0
        self.told = False
        self.layers = [
            (part, a)
            for part, a, _ in seen
            if any(isinstance(v, Parameter) for v in vars(part).values())
        ]
        self.norms = [(part, a) for part, a, _ in seen if isinstance(part, BatchNorm)]
        self.ending = ending(seen)

    def before(self, validation_data):
        """What the data and settings tell."""
        if self.silent:
            return []
        found = [*self._inputs(), *self._labels()]
        size = min(self.batch_size, len(self.x))
        if size in (2, 3) and any(
            a.ndim == 2 and not part.frozen_statistics for part, a in self.norms
        ):
            found.append(f"batches of {size} are too small for BatchNorm: a mean and a variance of "
                         f"{size} samples are mostly noise. Take batch_size=16 or more, or "
                         "LayerNorm()")
        found += self._last_axes()
        if validation_data is not None and len(validation_data[0]) >= FEW:
            ours, theirs = _size(_sample(self.x)), _size(_sample(validation_data[0]))
            if ours and theirs and not 1 / LARGE < theirs / ours < LARGE:
                found.append(f"the validation inputs are {theirs / ours:.3g} times as large as the "
                             f"training inputs (root mean square {theirs:.3g} and {ours:.3g}): "
                             "scale both in the same way, with the numbers of the training data")
            unseen = self._unseen(validation_data[1])
            if unseen > 0.5:
                found.append(f"{unseen:.0%} of the validation samples are of classes that the "
                             "training samples lack; y was sorted, it seems: shuffle x and y "
                             "before they are split, or use data.split")
        self.told = bool(found)
        return found

    def _last_axes(self):
        """BatchNorms that get (n, time, features) from a Dense, and would normalise over time."""
        features_last = []  # outputs of a Dense, also after activations
        for part, a, y in self.seen:
            behind = any(a is each for each in features_last)
            if behind and isinstance(part, BatchNorm) and a.ndim == 3:
                return [f"{part.label} normalises along axis 1, the {a.shape[1]} places of its "
                        f"input {('n', *a.shape[1:])}, but Dense has its features on the last "
                        "axis: take LayerNorm(), or a Module that exchanges the two axes before "
                        "and after by x.transpose(0, 2, 1)".replace("'", "")]
            if isinstance(part, Dense) or behind and isinstance(part, Activation):
                features_last.append(y)
        return []

    def _unseen(self, y):
        """The share of labels that do not occur in training."""
        if self.loss not in CLASSES or y.ndim != 1 or self.y.ndim != 1:
            return 0
        here = np.bincount(self.y.astype(np.intp), minlength=int(y.max()) + 1) > 0
        return 1 - here[y.astype(np.intp)].mean()

    def _inputs(self):
        rows = _sample(self.x)
        if (rows == rows[:1]).all() and all((part == rows[:1]).all() for part in pieces(self.x)):
            return ["all samples in x are equal, so nothing in them tells one from another: look "
                    "at how x was made"]
        raw = not self.layers or np.array_equal(
            np.ravel(self.layers[0][1]), np.ravel(self.x[:1]).astype(self.layers[0][1].dtype)
        )
        if not raw or any(isinstance(part, (BatchNorm, LayerNorm)) for part, _ in self.layers[:2]):
            return []  # a layer scales them, or the scale cancels
        low, high, size = rows.min(), rows.max(), _size(rows)
        if size > LARGE and low >= 0 and 100 < high <= 255 and (rows == np.floor(rows)).all():
            return [f"the inputs are pixels from {low:g} to {high:g}, and training needs numbers "
                    "around 1: write x / 255, for training and test data alike"]
        if size > LARGE:
            columns = np.sqrt(np.square(rows).mean(axis=0)) if rows.ndim == 2 else np.ones(1)
            uneven = (
                f"; feature {columns.argmax()} is the largest, feature {columns.argmin()} the "
                "smallest"
                if columns.max() > 100 * columns.min()
                else ""
            )
            return [f"the inputs run from {low:.4g} to {high:.4g}, and training needs numbers "
                    f"around 1{uneven}: scale them with data.standardization(x_train), training "
                    "and test data alike"]
        if 0 < max(-low, high) <= TINY:
            return [f"no input is larger than {max(-low, high):.2g}, and training needs numbers "
                    "around 1: were they divided by 255 twice? If not, scale them with "
                    "data.standardization(x_train)"]
        return []

    def _labels(self):
        y, classes = self.y, self.loss is not F.mse_loss
        if self.loss not in GUESS:
            return []
        if all((part == y[:1]).all() for part in pieces(y)):
            return [f"all {'labels' if classes else 'targets'} are {y[0].tolist()}, so there is "
                    "nothing to learn: look at how y was made"]
        if (
            not self.shuffled
            and self.loss in CLASSES
            and y.ndim == 1
            and len(y) > 2 * self.batch_size
            and (y[1:] >= y[:-1]).all()
        ):
            return ["the labels are sorted and the samples are not shuffled, so each batch is of "
                    "one class: use shuffle=True (in training.fit, rng=np.random.default_rng(0))"]
        if self.loss in CLASSES and y.ndim == 2:
            sums = y.sum(axis=1, dtype=np.float64)
            if abs(sums - 1).max() > 0.01:
                worst = int(abs(sums - 1).argmax())
                return ["each row of y should be the probabilities of the classes and sum to 1, "
                        f"but row {worst} sums to {sums[worst]:.4g}: for several labels per sample "
                        "end the model with Activation('sigmoid') and use "
                        "loss='binary_crossentropy'"]
        return []

    def after_first_step(self, outputs, y, value):
        """What the first step tells. outputs, y: of its batch. value: its loss."""
        if self.silent:
            return []
        found, p = [], outputs.data
        squashed = F.sigmoid in self.ending or outputs.logits is not None
        if self.loss is F.cross_entropy and (
            squashed or p.min() >= 0 and abs(p.sum(axis=1) - 1).max() < 1e-3
        ):
            found.append("the outputs are probabilities already, and loss='cross_entropy' applies "
                         "softmax once more: drop the activation at the end of the model, or end "
                         "it with softmax and use loss='categorical_crossentropy'")
        if self.loss is F.binary_cross_entropy_with_logits and squashed:
            found.append("the outputs are probabilities already, and "
                         "binary_cross_entropy_with_logits applies sigmoid once more: drop the "
                         "activation at the end of the model, or use loss='binary_crossentropy'")
        if self.loss is F.mse_loss:
            found += self._targets(value)
        trained = [p for p in self.optimizer.parameters if p.requires_grad]
        if self.fresh and trained and not any(p.grad is not None and p.grad.any() for p in trained):
            found.append("every gradient of the first step is exactly 0, so nothing is trained: "
                         "the units of a layer are all switched off or saturated (look at the "
                         "initial weights and the scale of x), or the loss does not depend on the "
                         "outputs")
        guess = math.log(p.shape[1] if self.loss in CLASSES else 2)
        if (
            self.fresh
            and not (self.told or found)
            and self.loss in GUESS
            and self.loss is not F.mse_loss
            and value > 10 * guess
        ):
            found.append(f"the first loss is {value:.4g}, where guessing would give {guess:.3f}: "
                         "the inputs or the initial weights are too large; scale x, or use the "
                         "usual initializers")
        self.told = self.told or bool(found)
        return found

    def _targets(self, value):
        low, high = self.y.min(), self.y.max()
        size = _size(_sample(self.y))
        bounds = next((BOUNDS[f] for f in self.ending if f in BOUNDS), None)
        if bounds and (low < bounds[0] - 0.5 or high > bounds[1] + 0.5):
            return [f"the targets run from {low:.4g} to {high:.4g}, but the model ends in an "
                    f"activation with outputs from {bounds[0]} to {bounds[1]}: leave the "
                    "activation of the last layer out, or scale the targets"]
        # a single layer can grow as fast as its targets
        if len(self.layers) > 1 and size > FAR and value > 0.5 * size ** 2:
            return [f"the targets run from {low:.4g} to {high:.4g}, and the first loss is "
                    f"{value:.4g}: training needs targets around 1. Fit (y - y.mean()) / y.std(), "
                    "and scale the predictions back"]
        return []

    def after_epoch(self, history):
        """Whether the last hundred steps are no better than the best constant answer."""
        losses = history.steps["loss"]
        if self.silent or self.told or len(losses) < 200 or self.loss not in GUESS:
            return []
        guess, share = GUESS[self.loss](np.asarray(self.y))
        loss, right = np.mean(losses[-100:]), np.mean(history.steps.get("accuracy", [0])[-100:])
        noise = 3 * math.sqrt(share * (1 - share) / (100 * min(self.batch_size, len(self.y))))
        if not guess or loss < 0.99 * guess or right > share + noise:
            return []
        self.told = True
        return [f"after {len(losses)} steps the loss is {loss:.4g}, no better than the same answer "
                f"for every sample, {guess:.4g}: try another learning rate (now "
                f"{self.optimizer.current_lr:.3g}), other initial weights or BatchNorm, and look "
                "whether x and y belong together"]


def _sample(x):
    """Evenly spread samples, in float64."""
    rows = min(256, max(2, SAMPLED // max(1, x[:1].size)))
    return np.asarray(x[::-(-len(x) // rows)], np.float64)


def _size(rows):
    return math.sqrt(np.square(rows).mean())


# The loss of the best constant answer, and the share of samples that it gets right.

def _guess_class(y):
    p = np.bincount(y.astype(np.intp)) / len(y) if y.ndim == 1 else y.mean(axis=0, dtype=np.float64)
    return _entropy(p).sum(), p.max()


def _guess_binary(y):
    p = y.reshape(len(y), -1).mean(axis=0, dtype=np.float64)
    return (_entropy(p) + _entropy(1 - p)).mean(), np.maximum(p, 1 - p).mean()


def _guess_number(y):
    return y.var(axis=0, dtype=np.float64).mean(), 1.0


def _entropy(p):
    return -p * np.log(np.where(p > 0, p, 1))


GUESS = {
    F.cross_entropy: _guess_class,
    F.categorical_crossentropy: _guess_class,
    F.binary_cross_entropy: _guess_binary,
    F.binary_cross_entropy_with_logits: _guess_binary,
    F.mse_loss: _guess_number,
}
CLASSES = (F.cross_entropy, F.categorical_crossentropy)
BOUNDS = {
    F.sigmoid: (0, 1),
    F.softmax: (0, 1),
    F.tanh: (-1, 1),
    F.relu: (0, math.inf),
    F.softplus: (0, math.inf),
}
