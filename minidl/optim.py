"""Optimizers: each step reads `.grad` of its parameters and changes their `.data` in place.

`SGD(model.parameters(), lr=0.1)` binds at once; `SGD(lr=0.1)` is bound by `compile` or `attach`.
State is kept in the order of the parameters, never by their identity.
"""

import math

import numpy as np

from .tensor import Tensor


class Optimizer:
    """What all optimizers share: the parameters (each once) and the learning rate."""

    def __init__(self, parameters, lr):
        if not lr > 0:
            raise ValueError(f"the learning rate must be positive, got {lr!r}")
        self.lr = lr
        self.parameters = None
        if parameters is not None:
            self.attach(parameters)

    def attach(self, parameters):
        """Take over the parameters to train; the same one twice counts once. Returns self."""
        if isinstance(parameters, Tensor) or not hasattr(parameters, "__iter__"):
            raise TypeError(f"an optimizer takes a list of parameters, as model.parameters() gives it, "
                            f"got a {type(parameters).__name__}")
        unique = {id(p): p for p in parameters}
        self.parameters = list(unique.values())
        if not self.parameters or not all(isinstance(p, Tensor) for p in self.parameters):
            kinds = ", ".join(sorted({type(p).__name__ for p in self.parameters})) or "none"
            raise ValueError(f"an optimizer needs at least one parameter, and all must be Tensors, got {kinds}")
        return self

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for p in self._bound():
            p.grad = None

    def step(self):
        """Update every parameter that has a gradient."""
        lr = float(self.lr)  # a NumPy float64 would turn float32 arithmetic into float64
        for i, p in enumerate(self._bound()):
            g = p.grad
            if g is not None:
                self.update(i, p, g, lr)

    def _bound(self):
        if self.parameters is None:
            raise RuntimeError(f"this {type(self).__name__} has no parameters: "
                               f"use {type(self).__name__}(model.parameters(), lr=...)")
        return self.parameters

    def update(self, i, p, g, lr):
        """Change p.data in place, given its gradient g; i is its place in the list. Each optimizer has its own."""
        raise NotImplementedError


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: v = momentum v + g, p = p - lr v.

    nesterov: steps by lr (g + momentum v), the gradient seen from where the momentum leads (Sutskever et
    al. 2013, in PyTorch's form). weight_decay: adds weight_decay * p to the gradient.
    """

    def __init__(self, parameters=None, lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0):
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs a momentum, 0.9 say")
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        super().__init__(parameters, lr)

    def attach(self, parameters):
        """Take over the parameters to train; velocities start at 0."""
        super().attach(parameters)
        self.velocity = [np.zeros_like(p.data) for p in self.parameters] if self.momentum else None
        return self

    def update(self, i, p, g, lr):
        """p -= lr * direction."""
        if self.weight_decay:
            g = g + self.weight_decay * p.data
        if self.momentum:
            v = self.velocity[i]
            v *= self.momentum
            v += g
            g = g + self.momentum * v if self.nesterov else v
        p.data -= lr * g


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): steps scaled by running moments of the gradient.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p = p - lr m^ / (sqrt(v^) + eps), where the hats
    divide by 1 - b^t, since m and v start at 0.
    """

    def __init__(self, parameters=None, lr=0.001, betas=(0.9, 0.999), eps=1e-8):
        self.betas, self.eps = betas, eps
        super().__init__(parameters, lr)

    def attach(self, parameters):
        """Take over the parameters to train; the moments start at 0."""
        super().attach(parameters)
        self.m = [np.zeros_like(p.data) for p in self.parameters]
        self.v = [np.zeros_like(p.data) for p in self.parameters]
        self.updates = [0] * len(self.parameters)
        return self

    def update(self, i, p, g, lr):
        """p -= lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)."""
        b1, b2 = self.betas
        m, v = self.m[i], self.v[i]
        self.updates[i] += 1
        t = self.updates[i]
        m += (1 - b1) * (g - m)
        v *= b2
        v += (1 - b2) * (g * g)
        step = np.sqrt(v, out=np.empty_like(v))
        step *= 1 / math.sqrt(1 - b2 ** t)
        step += self.eps
        np.divide(m, step, out=step)
        step *= lr / (1 - b1 ** t)
        p.data -= step


OPTIMIZERS = {"sgd": SGD, "adam": Adam}
