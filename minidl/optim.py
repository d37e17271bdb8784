"""Optimizers: each step reads `.grad` of its parameters and changes their `.data` in place.

`SGD(model.parameters(), lr=0.1)` binds at once; `SGD(lr=0.1)` is bound by `compile` or `attach`.
State is kept in the order of the parameters, never by their identity.
"""

import math
from itertools import combinations

import numpy as np

from .files import clean
from .tensor import Tensor

SMALL = 2 ** 14  # numbers: for fewer, a call of NumPy takes longer than its arithmetic


class Optimizer:
    """What all optimizers share. lr: a number, or a schedule (see `schedules.py`); may be set anew at any time.

    steps: how often step() was called. updates: how often each parameter was changed by it. state: for each name
    in kept, a list with one array per parameter, 0 at the start.

    Where something is kept, small parameters that follow one another are moved into one vector, of which their `.data`
    are then views, and so is their state: one sweep updates them all. Whoever gives them new arrays only loses speed.
    """

    def __init__(self, parameters, lr, kept=()):
        if not callable(lr) and not lr > 0:
            raise ValueError(f"the learning rate must be positive, got {lr!r}")
        self.lr, self.kept, self.parameters, self.steps = lr, kept, None, 0
        if parameters is not None:
            self.attach(parameters)

    def attach(self, parameters):
        """Take over the parameters to train, and start afresh; the same one twice counts once. Returns self."""
        self.parameters = _listed(parameters)
        self.steps, self.updates = 0, [0] * len(self.parameters)
        self.state = {name: [np.zeros_like(p.data) for p in self.parameters] for name in self.kept}
        self._groups = [(start, stop, *self._join(start, stop)) for start, stop in _runs(self.parameters)] if self.kept else []
        places = range(len(self.parameters))
        self._alone = [i for i in places if not any(start <= i < stop for start, stop, *_ in self._groups)]
        self._state_of = [[arrays[i] for arrays in self.state.values()] for i in places]
        return self

    def _join(self, start, stop):
        """Make the data of parameters start to stop views of one vector, and their state too; gives the vectors."""
        data, views = _joined([p.data for p in self.parameters[start:stop]])
        for p, view in zip(self.parameters[start:stop], views):
            p.data = view
        vectors = []
        for arrays in self.state.values():
            vector, arrays[start:stop] = _joined(arrays[start:stop])
            vectors.append(vector)
        return data, vectors

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for p in self._bound():
            p.grad = None

    def step(self):
        """Update every parameter that has a gradient, unless its requires_grad is False."""
        parameters, updates, alone, lr = self._bound(), self.updates, self._alone, self.current_lr
        for start, stop, data, state in self._groups:
            gradients = [p.grad.reshape(-1) for p in parameters[start:stop]
                         if p.grad is not None and p.requires_grad and p.data.base is data]
            if len(gradients) == stop - start == updates[start:stop].count(updates[start]):
                updates[start:stop] = [updates[start] + 1] * (stop - start)
                self.update(data, np.concatenate(gradients), state, updates[start], lr)
            else:
                alone = [*alone, *range(start, stop)]
        for i in alone:
            p = parameters[i]
            if p.grad is not None and p.requires_grad:
                updates[i] += 1
                self.update(p.data, p.grad, self._state_of[i], updates[i], lr)
        self.steps += 1

    @property
    def current_lr(self):
        """The learning rate of the next step. Raises ValueError for one that is negative or not finite."""
        # As a Python float: a NumPy float64 would turn float32 arithmetic into float64.
        rate = float(self.lr(self.steps) if callable(self.lr) else self.lr)
        if not 0 <= rate < math.inf:
            raise ValueError(f"a learning rate must be finite and not negative: {self.lr!r} gives {rate} at step {self.steps}")
        return rate

    def state_dict(self):
        """A copy of the state: "steps", "updates" and "velocity.0" or the like; not the settings, such as lr and momentum."""
        arrays = {name: a.copy() for name, a in self._named_state().items()}
        return {"steps": np.array(self.steps), "updates": np.array(self.updates), **arrays}

    def _named_state(self):
        self._bound()
        return {f"{name}.{i}": a for name, kept in self.state.items() for i, a in enumerate(kept)}

    def load_state_dict(self, state):
        """Take over the state of an optimizer with the same settings, to go on exactly as it would.

        Raises ValueError naming every missing, unexpected or wrong-shaped entry; nothing is changed then.
        """
        own, given = ({name: f"shape {np.shape(a)}" for name, a in d.items()} for d in (self.state_dict(), state))
        faults = [f"{clean(name, 80)}: "
                  f"expected {own.get(name, 'nothing')}, got {given.get(name, 'nothing')}"
                  for name in own | given if own.get(name) != given.get(name)]
        if faults:
            faults[10:] = [f"and {len(faults) - 10:,} more"] if len(faults) > 10 else []
            raise ValueError(f"this is not the state of {type(self).__name__} with these parameters; {'; '.join(faults)}")
        arrays = self._named_state()
        new = {name: np.array(state[name], a.dtype) for name, a in arrays.items()}
        for name, a in arrays.items():
            a[...] = new[name]
        self.steps, self.updates = int(state["steps"]), np.asarray(state["updates"]).tolist()

    def _bound(self):
        if self.parameters is None:
            raise RuntimeError(f"this {type(self).__name__} has no parameters: "
                               f"use {type(self).__name__}(model.parameters(), lr=...)")
        return self.parameters

    def update(self, p, g, state, t, lr):
        """Change the array p in place, given its gradient g. Each optimizer has its own.

        state: p's arrays of the names in kept, to be changed in place as well. t: which update of p this is, from 1.
        """
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
        super().__init__(parameters, lr, kept=["velocity"] if momentum else [])

    def update(self, p, g, state, t, lr):
        """p -= lr * direction."""
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.momentum:
            v, = state
            v *= self.momentum
            v += g
            g = g + self.momentum * v if self.nesterov else v
        p -= lr * g


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011, diagonal form): v = v + g^2, p = p - lr g / (sqrt(v) + eps)."""

    def __init__(self, parameters=None, lr=0.01, eps=1e-10):
        self.eps = eps
        super().__init__(parameters, lr, kept=["v"])

    def update(self, p, g, state, t, lr):
        """Move v, then p."""
        v, = state
        v += g * g
        p -= lr * g / (np.sqrt(v) + self.eps)


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012): v = alpha v + (1 - alpha) g^2, p = p - lr g / (sqrt(v) + eps).

    As in PyTorch; Keras has alpha = 0.9, called rho, and an eps of 1e-7 under the root.
    """

    def __init__(self, parameters=None, lr=0.01, alpha=0.99, eps=1e-8):
        self.alpha, self.eps = alpha, eps
        super().__init__(parameters, lr, kept=["v"])

    def update(self, p, g, state, t, lr):
        """Move v, then p."""
        v, = state
        v *= self.alpha
        v += (1 - self.alpha) * (g * g)
        p -= lr * g / (np.sqrt(v) + self.eps)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): steps scaled by running moments of the gradient.

    p = p - lr m^ / (sqrt(v^) + eps), where m^ and v^ are averages of g and g^2 over all steps until now, the older
    ones with weights that fall as b1^k and b2^k. Kept are the sums with these weights, m = b1 m + g and
    v = b2 v + g^2: the paper's m and v, without their factors (1 - b1) and (1 - b2).
    """

    def __init__(self, parameters=None, lr=0.001, betas=(0.9, 0.999), eps=1e-8):
        if not all(0 <= b < 1 for b in betas):
            raise ValueError(f"betas are two numbers from 0 up to but not 1, got {betas!r}")
        self.betas, self.eps = betas, eps
        super().__init__(parameters, lr, kept=["m_sum", "v_sum"])

    def update(self, p, g, state, t, lr):
        """Move m and v, then p. Factors of whole arrays are moved into lr and eps: the fewer passes, the faster."""
        b1, b2 = self.betas
        m, v = state
        m *= b1
        m += g
        v *= b2
        v += g * g
        mean, root = (1 - b1) / (1 - b1 ** t), math.sqrt((1 - b2) / (1 - b2 ** t))  # m^ = mean m, sqrt(v^) = root sqrt(v)
        step = np.sqrt(v, out=np.empty_like(v))
        step += self.eps / root
        np.divide(m, step, out=step)
        step *= lr * mean / root
        p -= step


class AdamW(Adam):
    """Adam with weight decay apart from the gradient, p = (1 - lr weight_decay) p (Loshchilov and Hutter 2019)."""

    def __init__(self, parameters=None, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        self.weight_decay = weight_decay
        super().__init__(parameters, lr, betas, eps)

    def update(self, p, g, state, t, lr):
        """The decay, then Adam's update."""
        p *= 1 - lr * self.weight_decay
        super().update(p, g, state, t, lr)


OPTIMIZERS = {"sgd": SGD, "adagrad": Adagrad, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients by one factor so that their joint Euclidean norm is at most max_norm; returns the norm before.

    To be called between backward() and step(). Pascanu et al. 2013, algorithm 1.
    Raises ValueError if a gradient is not finite: no factor would help, and no gradient is changed.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be positive, got {max_norm!r}")
    parameters = [p for p in _listed(parameters) if p.grad is not None and p.requires_grad]
    # In float64, where squares of float32 numbers neither overflow nor vanish.
    norm = math.hypot(*(np.linalg.norm(p.grad.astype(np.float64)) for p in parameters))
    if not math.isfinite(norm):
        raise ValueError(f"the norm of the gradients is {norm}: training has diverged. Try a smaller learning rate")
    if norm > max_norm:
        for p in parameters:
            p.grad = p.grad * (float(max_norm) / norm)
    return norm


def _runs(parameters):
    """[(start, stop)] of neighbours of one dtype that are small, taken together; none if any two share memory."""
    if any(np.may_share_memory(one.data, other.data) for one, other in combinations(parameters, 2)):
        return []
    runs, size = [[0, 0]], 0
    for i, p in enumerate(parameters):
        size += p.size
        if size > SMALL or p.dtype != parameters[runs[-1][0]].dtype:
            runs.append([i, i])
            size = p.size
        runs[-1][1] = i + 1
    return [(start, stop) for start, stop in runs if stop - start > 1]


def _joined(arrays):
    """All numbers of the arrays in one new vector, and views of it in the shapes of the arrays."""
    vector, views, end = np.concatenate([a.reshape(-1) for a in arrays]), [], 0
    for a in arrays:
        views.append(vector[end:end + a.size].reshape(a.shape))
        end += a.size
    return vector, views


def _listed(parameters):
    """The parameters as a list, each once."""
    module = hasattr(parameters, "parameters")  # a Sequential can be iterated, too: over its layers
    if isinstance(parameters, Tensor) or module or not hasattr(parameters, "__iter__"):
        raise TypeError(f"expected a list of parameters, as model.parameters() gives it, got a {type(parameters).__name__}")
    parameters = list({id(p): p for p in parameters}.values())
    if not parameters or not all(isinstance(p, Tensor) for p in parameters):
        kinds = ", ".join(sorted({type(p).__name__ for p in parameters})) or "none"
        raise ValueError(f"expected at least one parameter, and all must be Tensors, got {kinds}")
    return parameters
