"""Optimizers: each step reads `.grad` of its parameters and changes their `.data` in place.

`SGD(model.parameters(), lr=0.1)` binds at once; `SGD(lr=0.1)` is bound by `compile` or `attach`.
State is kept in the order of the parameters, never by their identity.
"""

import math
from numbers import Real
from typing import NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

from . import habits
from .settings import as_flag, check_whole
from .tensor import HALF, Tensor, changed_since, mark_changed

SMALL = 2 ** 14  # numbers: below it a NumPy call takes longer than its arithmetic


class Setting:
    """An attribute of an optimizer that is checked at every assignment.

    It is stored as the check returns it, where any other attribute is, so reading it costs nothing.
    """

    def __init__(self, check):
        self.check = check

    def __set_name__(self, owner, name):
        self.name = name

    def __set__(self, optimizer, value):
        vars(optimizer)[self.name] = self.check(value)


def check_number(name, value, least=None, above=None, below=None, hint=None):
    """value as a float: NumPy's float64 would turn float32 arithmetic into float64.

    Raises ValueError unless it is a finite number, at least or above one bound and below another.
    """
    scalar = isinstance(value, Real) and not isinstance(value, bool)
    scalar = scalar or isinstance(value, np.ndarray) and value.ndim == 0
    fits = (scalar and math.isfinite(value)
            and (least is None or value >= least)
            and (above is None or value > above)
            and (below is None or value < below))
    if not fits:
        limits = {"at least": least, "above": above, "below": below}
        bounds = [f"{word} {limit}" for word, limit in limits.items() if limit is not None]
        raise ValueError(f"{name} must be a finite number {' and '.join(bounds)}, got {value!r}"
                         + (f"; {hint}" if hint else ""))
    return float(value)


def _setting(name, **bounds):
    return Setting(lambda value: check_number(name, value, **bounds))


def _betas(betas):
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError("betas are two numbers from 0 up to but not 1, (0.9, 0.999) for example; "
                         f"got {betas!r}")
    return tuple(check_number("each of the betas", beta, least=0, below=1) for beta in betas)


class Optimizer:
    """What all optimizers share: parameters, a learning rate, clipping and state.

    parameters: a list of them, or as in PyTorch a list of dicts, {"params": [...], "weight_decay":
    0.0}: groups with settings of their own, see Groups. lr: a number or a schedule (see
    `schedules.py`); may be set at any time. learning_rate: Keras' name for lr; as an argument it
    replaces lr. Clipping as in Keras, one of three: clipnorm limits the norm of each parameter's
    gradient, global_clipnorm that of all gradients together (as `clip_grad_norm` does), clipvalue
    the size of each number in them. float16 parameters are updated with float32 arithmetic, and
    their state is float32. steps: how often step() was called. updates: how often it changed each
    parameter. state: for each name in kept, a list with one array per parameter, 0 at the start.

    Where there is state, small parameters that follow one another are moved into one vector, of
    which their `.data` are then views, and so is their state: one operation updates them all.
    Assigning new arrays to them only costs speed.
    """

    def __new__(cls, *arguments, **options):
        for name in options:
            if name in habits.OPTIMIZER:
                raise TypeError(f"{cls.__name__} has no argument {name!r}: "
                                f"{habits.OPTIMIZER[name]}")
        groups = arguments[0] if arguments else options.get("parameters")
        if isinstance(groups, (list, tuple)) and any(isinstance(g, dict) for g in groups):
            options.pop("parameters", None)
            return _grouped(cls, groups, arguments[1:], options)
        return super().__new__(cls)

    def __init__(self, parameters, lr, kept=(), learning_rate=None, *, clipnorm=None,
                 clipvalue=None, global_clipnorm=None):
        lr = lr if learning_rate is None else learning_rate
        if not callable(lr):
            check_number("the learning rate", lr, above=0, hint="0.1 for example, or a schedule")
        if isinstance(parameters, Real):
            raise TypeError(f"{type(self).__name__}'s first argument is a list of parameters, "
                            "model.parameters(); name the learning rate: "
                            f"{type(self).__name__}(lr={parameters})")
        clipping = [("clipnorm", clipnorm), ("clipvalue", clipvalue),
                    ("global_clipnorm", global_clipnorm)]
        self.clipping = [(name, limit) for name, limit in clipping if limit is not None]
        for name, limit in self.clipping:
            check_number(name, limit, above=0)
        if len(self.clipping) > 1:
            raise ValueError(f"{' and '.join(dict(self.clipping))} are two ways to clip the "
                             "gradients: choose one")
        self.lr = lr
        self.kept = kept
        self.release()
        self.steps = 0
        if parameters is not None:
            self.attach(parameters)

    __dir__ = habits.known_names

    @property
    def learning_rate(self):
        """Keras' name for lr."""
        return self.lr

    @learning_rate.setter
    def learning_rate(self, lr):
        self.lr = lr

    def attach(self, parameters):
        """Take over the parameters to train, each once, and start afresh; returns self."""
        self.parameters = _listed(parameters)
        self.steps = 0
        self.updates = [0] * len(self.parameters)
        self.state = {
            name: [np.zeros(p.shape, _state_dtype(p)) for p in self.parameters]
            for name in self.kept
        }
        runs = _runs(self.parameters) if self.kept else []
        self._blocks = [self._block(start, stop) for start, stop in runs]
        places = range(len(self.parameters))
        self._alone = [i for i in places if not any(i in block.places for block in self._blocks)]
        self._arrays = [p.data for p in self.parameters]  # what `state` fits, see `_refitted`
        self._shapes = [None] * len(self.parameters)
        self._last = mark_changed(self.parameters)
        self._state_of = [[arrays[i] for arrays in self.state.values()] for i in places]
        return self

    def release(self):
        """Let go of the parameters: the next fit attaches those that its model has then."""
        self.parameters = None

    def zero_grad(self):
        """Forget the gradients of all parameters."""
        for p in self._bound():
            p.grad = None

    def step(self):
        """Update every parameter that has a gradient, unless its requires_grad is False.

        Raises ValueError for a gradient of another shape than its parameter's; then nothing is
        updated.
        """
        parameters, lr = self._bound(), self.current_lr
        gradients = [p.grad if p.requires_grad else None for p in parameters]
        if self.clipping:
            gradients = self._clipped(gradients)
        if (
            changed_since(self._last)
            or [None if g is None else g.shape for g in gradients] != self._shapes
        ):
            gradients = [
                self._refitted(i, p, g) for i, (p, g) in enumerate(zip(parameters, gradients))
            ]
        self._last = mark_changed(parameters)
        for block in self._blocks:
            self._update_together(block, gradients, lr)
        self._update_alone(self._alone, gradients, lr)
        self.steps += 1

    def _clipped(self, gradients):
        (how, limit), = self.clipping
        there = [g for g in gradients if g is not None]
        if how == "clipvalue":
            clipped = [np.clip(g, -float(limit), float(limit)) for g in there]
        else:
            together = [there] if how == "global_clipnorm" else [[g] for g in there]
            clipped = [g for some in together for g in _within(some, limit)[0]]
        clipped = iter(clipped)
        return [None if g is None else next(clipped) for g in gradients]

    def _refitted(self, i, p, g):
        """The gradient g of parameter i, checked; takes note of a new array of the parameter."""
        if g is None:
            self._shapes[i] = None
            return None
        for name, arrays in self.state.items():
            if arrays[i].shape != p.shape:
                raise ValueError(
                    f"parameter {i} had shape {arrays[i].shape} when this {type(self).__name__} "
                    f"took it over, now it has {p.shape}: attach the parameters again, "
                    "optimizer.attach(model.parameters())")
            if arrays[i].dtype != _state_dtype(p):  # after model.astype
                arrays[i] = arrays[i].astype(_state_dtype(p))
        if g.shape != p.shape:
            raise ValueError(
                f"the gradient of parameter {i} has shape {g.shape}, the parameter {p.shape}: "
                "nothing was updated. backward() sets gradients of the right shape; look for code "
                "that assigned p.grad or p.data")
        self._arrays[i] = p.data
        self._state_of[i] = [arrays[i] for arrays in self.state.values()]
        # its squares overflow above 255; without a shape, every step comes here
        if p.dtype is HALF:
            return g.astype(np.float32)
        self._shapes[i] = p.shape
        return g

    def _update_alone(self, places, gradients, lr):
        for i in places:
            if gradients[i] is not None:
                self.updates[i] += 1
                self.update(self._arrays[i], gradients[i], self._state_of[i], self.updates[i], lr)

    # --- Small parameters side by side: one update of one vector instead of many ---

    def _block(self, start, stop):
        """Make the data of parameters start to stop views of one vector, and their state too."""
        data, views = _joined([p.data for p in self.parameters[start:stop]])
        for p, view in zip(self.parameters[start:stop], views):
            p.data = view
        vectors = []
        for arrays in self.state.values():
            vector, arrays[start:stop] = _joined(arrays[start:stop])
            vectors.append(vector)
        return _Block(range(start, stop), data, vectors)

    def _update_together(self, block, gradients, lr):
        """One update for a whole block if all its parameters are due, else one for each."""
        places, updates = block.places, self.updates
        together = [
            gradients[i].reshape(-1)
            for i in places
            if gradients[i] is not None
            and self._arrays[i].base is block.data
            and updates[i] == updates[places[0]]
        ]
        if len(together) < len(places):
            return self._update_alone(places, gradients, lr)
        for i in places:
            updates[i] += 1
        self.update(block.data, np.concatenate(together), block.state, updates[places[0]], lr)

    @property
    def current_lr(self):
        """The learning rate of the next step.

        Raises ValueError for one that is negative or not finite.
        """
        # As a Python float: a NumPy float64 would turn float32 arithmetic into float64.
        try:
            rate = float(self.lr(self.steps) if callable(self.lr) else self.lr)
        except (TypeError, ValueError):
            raise ValueError("a learning rate is a number or a schedule, a function of the step; "
                             f"got {self.lr!r}") from None
        if not 0 <= rate < math.inf:
            raise ValueError(f"a learning rate must be finite and not negative, got "
                             f"{rate} at step {self.steps} from {self.lr!r}")
        return rate

    def state_dict(self):
        """A copy of the state ("steps", "updates", "velocity.0" ...), without the settings."""
        arrays = {name: a.copy() for name, a in self._named_state().items()}
        return {"steps": np.array(self.steps), "updates": np.array(self.updates), **arrays}

    def _named_state(self):
        self._bound()
        return {f"{name}.{i}": a for name, kept in self.state.items() for i, a in enumerate(kept)}

    def load_state_dict(self, state):
        """Take over the state of an optimizer with the same settings, to go on exactly as it would.

        Raises ValueError naming every missing, unexpected or wrong-shaped entry; nothing is changed
        then.
        """
        own, given = (
            {name: f"shape {np.shape(a)}" for name, a in d.items()}
            for d in (self.state_dict(), state)
        )
        from .files import clean
        faults = [f"{clean(name, 80)}: expected {own.get(name, 'nothing')}, got "
                  f"{given.get(name, 'nothing')}"
                  for name in own | given if own.get(name) != given.get(name)]
        if faults:
            faults[10:] = [f"and {len(faults) - 10:,} more"] if len(faults) > 10 else []
            raise ValueError(f"this is not the state of {type(self).__name__} with these "
                             f"parameters; {'; '.join(faults)}")
        steps, *updates = [
            check_whole("a number of steps or updates", n.item(), least=0)
            for n in map(np.asarray, [state["steps"], *np.asarray(state["updates"])])
        ]
        arrays = self._named_state()
        new = {name: np.array(state[name], a.dtype) for name, a in arrays.items()}
        for name, a in arrays.items():
            a[...] = new[name]
        self.steps, self.updates = steps, updates

    def _bound(self):
        if self.parameters is None:
            raise RuntimeError(f"this {type(self).__name__} has no parameters: use "
                               f"{type(self).__name__}(model.parameters(), lr=...)")
        return self.parameters

    def update(self, p, g, state, t, lr):
        """Change the array p in place, given its gradient g. Each optimizer has its own.

        state: p's arrays of the names in kept, to be changed in place as well. t: which update of p
        this is, from 1.
        """
        raise NotImplementedError


habits.teach(Optimizer, habits.OPTIMIZER)


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: v = momentum v + g, p = p - lr v.

    >>> p = Tensor([1.0], requires_grad=True)
    >>> optimizer = SGD([p], lr=0.1)
    >>> (p * p).sum().backward()
    >>> optimizer.step()
    >>> p.data
    array([0.8], dtype=float32)

    nesterov: steps by lr (g + momentum v), the gradient seen from where the momentum leads
    (Sutskever et al. 2013, in PyTorch's form). weight_decay: adds weight_decay * p to the gradient.
    """

    momentum = _setting("momentum", least=0, below=1)
    nesterov = Setting(as_flag("nesterov"))
    weight_decay = _setting("weight_decay", least=0)

    def __init__(self, parameters=None, lr=0.01, momentum=0.0, nesterov=False, weight_decay=0.0, *,
                 learning_rate=None, **clipping):
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs a momentum, 0.9 say")
        kept = ["velocity"] if momentum else []
        super().__init__(parameters, lr, kept, learning_rate, **clipping)

    def update(self, p, g, state, t, lr):
        """p -= lr * direction."""
        if self.weight_decay:
            g = g + self.weight_decay * p
        if self.momentum:
            if not state:
                raise ValueError("this SGD was made without momentum and keeps no velocity: make a "
                                 f"new one, SGD(lr=..., momentum={self.momentum})")
            v, = state
            v *= self.momentum
            v += g
            g = g + self.momentum * v if self.nesterov else v
        p -= lr * g


class Adagrad(Optimizer):
    """Adagrad (Duchi et al. 2011, diagonal form): v = v + g^2, p = p - lr g / (sqrt(v) + eps)."""

    eps = _setting("eps", least=0)

    def __init__(self, parameters=None, lr=0.01, eps=1e-10, *, learning_rate=None, **clipping):
        self.eps = eps
        super().__init__(parameters, lr, ["v"], learning_rate, **clipping)

    def update(self, p, g, state, t, lr):
        """Move v, then p."""
        v, = state
        v += g * g
        p -= lr * g / (np.sqrt(v) + self.eps)


class RMSprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012): steps scaled by a running mean square of the gradient.

    v = alpha v + (1 - alpha) g^2, p = p - lr g / (sqrt(v) + eps), as in PyTorch; Keras has alpha =
    0.9, called rho, and an eps of 1e-7 under the root. weight_decay: adds weight_decay * p to the
    gradient.
    """

    alpha = _setting("alpha", least=0, below=1)
    eps = _setting("eps", least=0)
    weight_decay = _setting("weight_decay", least=0)

    def __init__(self, parameters=None, lr=0.01, alpha=0.99, eps=1e-8, weight_decay=0.0, *,
                 learning_rate=None, **clipping):
        self.alpha = alpha
        self.eps = eps
        self.weight_decay = weight_decay
        super().__init__(parameters, lr, ["v"], learning_rate, **clipping)

    def update(self, p, g, state, t, lr):
        """Move v, then p."""
        if self.weight_decay:
            g = g + self.weight_decay * p
        v, = state
        v *= self.alpha
        v += (1 - self.alpha) * (g * g)
        p -= lr * g / (np.sqrt(v) + self.eps)


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1): steps scaled by running moments of the gradient.

    p = p - lr m^ / (sqrt(v^) + eps), where m^ and v^ are averages of g and g^2 over all steps so
    far, with weights that fall as b1^k and b2^k, k steps back. What is stored are the sums with
    these weights, m = b1 m + g and v = b2 v + g^2: the paper's m and v without their factors (1 -
    b1) and (1 - b2). weight_decay: adds weight_decay * p to the gradient, as in PyTorch; Keras' is
    that of AdamW.
    """

    betas = Setting(_betas)
    eps = _setting("eps", least=0)
    weight_decay = _setting("weight_decay", least=0)
    decoupled = False  # whether the decay bypasses the moments

    def __init__(self, parameters=None, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0,
                 *, learning_rate=None, **clipping):
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        super().__init__(parameters, lr, ["m_sum", "v_sum"], learning_rate, **clipping)

    def update(self, p, g, state, t, lr):
        """Move m and v, then p.

        Factors of whole arrays are moved into lr and eps: the fewer passes, the faster.
        """
        if self.weight_decay and not self.decoupled:
            g = g + self.weight_decay * p
        b1, b2 = self.betas
        m, v = state
        m *= b1
        m += g
        v *= b2
        v += g * g
        # m^ = mean m, sqrt(v^) = root sqrt(v)
        mean, root = (1 - b1) / (1 - b1 ** t), math.sqrt((1 - b2) / (1 - b2 ** t))
        step = np.sqrt(v, out=np.empty_like(v))
        step += self.eps / root
        np.divide(m, step, out=step)
        step *= lr * mean / root
        p -= step


class AdamW(Adam):
    """Adam with decoupled weight decay, p = (1 - lr weight_decay) p: Loshchilov and Hutter 2019."""

    decoupled = True

    def __init__(self, parameters=None, lr=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
                 *, learning_rate=None, **clipping):
        super().__init__(parameters, lr, betas, eps, weight_decay, learning_rate=learning_rate,
                         **clipping)

    def update(self, p, g, state, t, lr):
        """The decay, then Adam's update."""
        p *= 1 - lr * self.weight_decay
        super().update(p, g, state, t, lr)


class Groups(Optimizer):
    """Optimizers that step together, each with its own parameters and settings.

    PyTorch's parameter groups: SGD([{"params": kernels}, {"params": others, "weight_decay": 0.0}],
    lr=0.1, weight_decay=1e-4) makes two SGDs in one, its `optimizers`. lr is that of the first;
    setting it changes all of them in proportion. Raises ValueError for a parameter in two groups.
    """

    state = {}  # in the optimizers

    def __init__(self, optimizers):
        self.optimizers = list(optimizers)
        self.parameters = [p for one in self.optimizers for p in one.parameters]
        self.steps = 0
        if len(_listed(self.parameters)) < len(self.parameters):
            raise ValueError("a parameter is in two groups, so it would be updated twice")

    @property
    def lr(self):
        """The rate, or schedule, of the first group."""
        return self.optimizers[0].lr

    @lr.setter
    def lr(self, lr):
        before = self.lr
        numbers = not any(callable(one.lr) for one in self.optimizers) and not callable(lr)
        for one in self.optimizers:
            one.lr = lr * one.lr / before if numbers and before else lr

    @property
    def current_lr(self):
        """The learning rate that the first group has in the next step."""
        return self.optimizers[0].current_lr

    def attach(self, parameters):
        """ValueError: groups keep their parameters."""
        raise ValueError("the groups of this optimizer are of other parameters than the model's: "
                         "make a new one from model.parameters()")

    def step(self):
        """One step of each optimizer."""
        for one in self.optimizers:
            one.step()
        self.steps += 1

    def state_dict(self):
        """Copies of the states of all optimizers, named "0.steps", "1.velocity.0" and so on."""
        states = {f"{i}.{name}": a for i, one in enumerate(self.optimizers)
                  for name, a in one.state_dict().items()}
        return {"steps": np.array(self.steps), **states}

    def load_state_dict(self, state):
        """As that of an Optimizer; nothing is changed if a part does not fit."""
        before = [one.state_dict() for one in self.optimizers]
        try:
            for i, one in enumerate(self.optimizers):
                one.load_state_dict({name.removeprefix(f"{i}."): a for name, a in state.items()
                                     if name.startswith(f"{i}.")})
            self.steps = int(state["steps"])
        except (ValueError, KeyError):
            for one, own in zip(self.optimizers, before):
                one.load_state_dict(own)
            raise


def _grouped(cls, groups, arguments, options):
    """Groups with one optimizer per dict; the call's options apply where a dict has none."""
    for group in groups:
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError('a group of parameters is a dict like {"params": [...], "lr": 0.01}, '
                            f"got {group!r:.60}")
    return Groups(cls(group["params"], *arguments,
                      **options | {k: v for k, v in group.items() if k != "params"})
                  for group in groups)


OPTIMIZERS = {"sgd": SGD, "adagrad": Adagrad, "rmsprop": RMSprop, "adam": Adam, "adamw": AdamW}


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients to a joint Euclidean norm of at most max_norm; returns the old norm.

    Call it between backward() and step(). Pascanu et al. 2013, algorithm 1. Raises ValueError if a
    gradient is not finite, because no factor would help; no gradient is changed then.
    """
    check_number("max_norm", max_norm, above=0)
    parameters = [p for p in _listed(parameters) if p.grad is not None and p.requires_grad]
    gradients, norm = _within([p.grad for p in parameters], max_norm)
    for p, g in zip(parameters, gradients):
        p.grad = g
    return norm


def _within(gradients, max_norm):
    """(gradients scaled to a joint norm of at most max_norm, their norm before)."""
    # In float64, where squares of float32 numbers neither overflow nor vanish.
    norm = math.hypot(*(np.linalg.norm(g.astype(np.float64)) for g in gradients))
    if not math.isfinite(norm):
        raise ValueError(f"the norm of the gradients is {norm}: training has diverged. Try a "
                         "smaller learning rate")
    if norm > max_norm:
        gradients = [g * (float(max_norm) / norm) for g in gradients]
    return gradients, norm


def _state_dtype(p):
    """The dtype of a parameter's state: its own, or float32 for float16, whose averages stall."""
    return np.dtype(np.float32) if p.dtype is HALF else p.dtype


class _Block(NamedTuple):
    """Small parameters side by side: their places, one vector of numbers, vectors of state."""

    places: range
    data: np.ndarray
    state: list


def _runs(parameters):
    """[(start, stop)] of small neighbours of one dtype; none if any two parameters share memory."""
    spans = sorted(byte_bounds(p.data) for p in parameters)  # where in memory they begin and end
    if any(start < end for (_, end), (start, _) in zip(spans, spans[1:])):
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
    module = hasattr(parameters, "parameters")  # a Sequential can be iterated too, over its layers
    if isinstance(parameters, Tensor) or module or not hasattr(parameters, "__iter__"):
        raise TypeError("expected a list of parameters, as model.parameters() returns it, got a "
                        f"{type(parameters).__name__}")
    parameters = list({id(p): p for p in parameters}.values())
    if not parameters or not all(isinstance(p, Tensor) for p in parameters):
        kinds = ", ".join(sorted({type(p).__name__ for p in parameters})) or "none"
        raise ValueError(f"expected at least one parameter, and all must be Tensors, got {kinds}")
    for i, p in enumerate(parameters):
        if p.node is not None:
            raise ValueError(f"parameter {i} is the result of {p.op.name}: no gradient stays in "
                             "it, so it would never be trained. Pass the Tensors it was computed "
                             "from")
        if p.dtype.kind != "f":
            raise ValueError(f"parameter {i} has dtype {p.dtype}, and integers have no gradient: "
                             "make it from p.astype(np.float32)")
    return parameters
