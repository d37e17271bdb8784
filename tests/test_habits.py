"""Words from other libraries: who reads one learns what to write here, and nothing else changes."""

import numpy as np
import pytest

from minidl import Dense, Module, Parameter, Tensor, habits, optim
from minidl.module import Module as Base


@pytest.mark.parametrize("thing, name, hint", [
    (Tensor(1.0), "cpu", "x.numpy"), (Dense(3), "weight", "kernel"), (Dense(3), "apply", "modules"),
    (optim.SGD(lr=0.1), "param_groups", "optimizer.lr")])
def test_a_word_from_habit_is_answered(thing, name, hint):
    with pytest.raises(AttributeError, match=f"{type(thing).__name__} has no attribute '{name}'.*{hint}"):
        getattr(thing, name)
    assert not hasattr(thing, name) and not hasattr(type(thing), name) and name not in dir(thing)


def test_other_unknown_names_get_pythons_own_error_with_its_suggestion():
    with pytest.raises(AttributeError, match="'Tensor' object has no attribute 'shapes'") as caught:
        Tensor(1.0).shapes
    assert caught.value.obj is not None  # of which Python makes "Did you mean: 'shape'?"


class Mixin:
    def apply(self):
        return "mixin"


class Own(Module, Mixin):
    """A layer that uses some of these words for things of its own."""

    def __init__(self):
        self.weight = Parameter(np.ones(2, np.float32))

    def count_params(self):
        return 2

    @property
    def weights(self):
        return [self.weight]


def test_in_a_layer_of_ones_own_every_word_is_free():
    layer = Own()
    assert layer.weight.size == layer.count_params() == 2 and layer.apply() == "mixin"
    assert layer.weights[0] is layer.weight and {"weight", "weights", "apply"} <= set(dir(layer))


@pytest.mark.parametrize("cls, words", [
    (Tensor, habits.TENSOR), (Base, habits.MODULE), (Dense, habits.DENSE),
    (optim.Optimizer, habits.OPTIMIZER)])
def test_no_word_hides_what_is_there(cls, words):
    """A table that names an attribute which exists by now would be a lie."""
    assert [name for name in words if hasattr(cls, name)] == []
