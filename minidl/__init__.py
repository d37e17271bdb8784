"""minidl: a deep-learning framework small enough to read in an evening.

    from minidl import Sequential, Dense, BatchNorm, Activation, data
"""

import sys
from importlib import import_module
from importlib.util import spec_from_loader

from . import (
    callbacks,
    convolution,
    data,
    experiments,
    functional,
    habits,
    initializers,
    interop,
    optim,
    plotting,
    schedules,
    training,
)
from .callbacks import (
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
)
from .convolution import AveragePool2D, Conv2D, GlobalAveragePool2D, MaxPool2D
from .gradcheck import gradcheck
from .inside import explain, explain_batchnorm, record
from .layers import Activation, Dense, Dropout, Flatten
from .module import Module, Parameter
from .normalization import BatchNorm, LayerNorm, estimate_population_statistics
from .sequential import Input, Sequential
from .tensor import Op, Tensor, grad, no_grad
from .training import Callback, DivergenceError, History

__version__ = "0.1.0"
__all__ = [
    "Activation", "AveragePool2D", "BatchNorm", "Callback", "Conv2D", "Dense", "DivergenceError",
    "Dropout", "EarlyStopping", "Flatten", "GlobalAveragePool2D", "History", "Input",
    "LambdaCallback", "LayerNorm", "LearningRateScheduler", "MaxPool2D", "ModelCheckpoint",
    "Module", "Op", "Parameter", "ReduceLROnPlateau", "Sequential", "Tensor", "callbacks",
    "convolution", "data",
    "estimate_population_statistics", "experiments", "explain", "explain_batchnorm", "functional",
    "grad", "gradcheck", "initializers", "interop", "no_grad", "optim", "plotting", "record",
    "schedules", "training"]

# Files that have moved since the first version: old programs and pickles use these names.
MOVED = {"minidl.cli": "course.cli", "minidl.handout": "course.handout",
         "minidl.progress": "console", "minidl.published": "data.published",
         "minidl.sweeps": "experiments.sweeps"}


class _Moved:
    """Finds a file under its first name: the same module, not a second one."""

    def find_spec(self, name, path=None, target=None):
        return spec_from_loader(name, self) if name in MOVED else None

    def create_module(self, spec):
        module = import_module(f"minidl.{MOVED[spec.name]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = module.__spec__.loader_state  # the import has put the old name's there


sys.meta_path.append(_Moved())


def __getattr__(name):
    error = habits.unknown("minidl", name, habits.PACKAGE)
    # `from minidl import Linear` would turn an AttributeError into an ImportError without its text.
    if name in habits.PACKAGE and sys._getframe(1).f_code.co_name == "_handle_fromlist":
        raise ImportError(str(error), name=name)
    raise error
