"""minidl: a deep-learning framework small enough to read in an evening.

    from minidl import Sequential, Dense, BatchNorm, Activation, data
"""

import sys

from . import (callbacks, data, experiments, functional, habits, initializers, interop, optim,
               plotting, schedules)
from .callbacks import Callback, EarlyStopping, History, LambdaCallback, LearningRateScheduler, ModelCheckpoint
from .gradcheck import gradcheck
from .inside import explain, explain_batchnorm, record
from .layers import Activation, BatchNorm, Dense, Dropout, Flatten, LayerNorm, estimate_population_statistics
from .module import Module, Parameter
from .sequential import Sequential
from .tensor import Tensor, grad, no_grad
from .training import DivergenceError

__version__ = "0.1.0"
__all__ = ["Activation", "BatchNorm", "Callback", "Dense", "DivergenceError", "Dropout", "EarlyStopping", "Flatten",
           "History", "LambdaCallback", "LayerNorm", "LearningRateScheduler", "ModelCheckpoint", "Module", "Parameter",
           "Sequential", "Tensor", "callbacks", "data", "estimate_population_statistics", "experiments", "explain",
           "explain_batchnorm", "functional", "grad", "gradcheck", "initializers", "interop", "no_grad", "optim", "plotting", "record",
           "schedules"]


def __getattr__(name):
    error = habits.unknown("minidl", name, habits.PACKAGE)
    # `from minidl import Linear` makes an ImportError without these words of an AttributeError.
    if name in habits.PACKAGE and sys._getframe(1).f_code.co_name == "_handle_fromlist":
        raise ImportError(str(error), name=name)
    raise error
