"""An editor knows what a Tensor is: completion offers its methods after every way to make one."""

import jedi
import pytest

START = """
import numpy as np
from minidl import BatchNorm, Dense, Sequential, Tensor
from minidl import functional as F
x = Tensor([1.0, 2.0], requires_grad=True)
model = Sequential([Dense(3)])
"""


@pytest.mark.parametrize("expression", [
    "(x * 2)", "(x - 2)", "(x @ x)", "x[0]", "x.T", "x.sum()", "x.reshape(2, 1)", "x.detach()",
    "F.relu(x)", "F.exp(x)", "F.squeeze(x)", "F.einsum('i,i', x, x)", "F.sin(x)", "F.softmax(x)", "F.cross_entropy(x, x)", "F.mse_loss(x, x)",
    "F.where(x > 0, x, 0)", "F.linear(x, x)", "Dense(3)(x)", "BatchNorm()(x)", "model(x)"])
def test_tensors_are_completed_as_tensors(expression):
    names = {name.name for name in jedi.Script(f"{START}{expression}.").complete()}
    assert {"backward", "requires_grad", "reshape", "numpy", "item"} <= names
