"""minidl: a deep-learning framework small enough to read in an evening.

    from minidl import Sequential, Dense, BatchNorm, Activation, data
"""

from . import data, experiments, functional, initializers, interop, optim, plotting
from .gradcheck import gradcheck
from .layers import Activation, BatchNorm, Dense, Dropout, Flatten, estimate_population_statistics
from .module import Module, Parameter
from .sequential import Sequential
from .tensor import Tensor, grad, no_grad
from .training import Callback, DivergenceError, History

__version__ = "0.1.0"
__all__ = ["Activation", "BatchNorm", "Callback", "Dense", "DivergenceError", "Dropout", "Flatten", "History", "Module",
           "Parameter", "Sequential", "Tensor", "data", "estimate_population_statistics", "experiments", "functional", "grad",
           "gradcheck", "initializers", "interop", "no_grad", "optim", "plotting"]
