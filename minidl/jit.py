"""The step of `fit` after `compile(..., jit_compile=True)`: the compiler's programs, each checked
against the engine, and the engine where there is none.
"""

import math

import numpy as np

from . import training
from .checks.health import say
from .compiler import PASSES, trace
from .kernels import Inexpressible, labels_for
from .normalization import BatchStatistics
from .tensor import Tensor, mark_changed, watchers

# What a program takes for granted of layers and optimizer; once one of these is another, all
# programs are written anew.
SETTINGS = ("training", "forward_hooks", "kernel", "bias", "gamma", "beta", "activation",
            "function", "eps", "momentum", "affine", "fused", "ghost_batch_size",
            "frozen_statistics", "nesterov", "weight_decay", "betas", "state", "parameters")
TOLERANCE = 0.75  # sums are taken in another order: eps ** 0.75 is 6e-6 in float32
LARGE = 2.0 ** 20  # a rate at which the gradient is seen in what the parameters lose


class CompiledStep:
    """Called in place of `training.step`: the same arguments, effects and result, one program for
    each shape of a batch.

    The first step of each shape is taken by the engine, and by the program on copies, and they must
    agree. From then on parameters, optimizer state and running statistics are views of the vectors
    that the programs move, so whoever reads or saves them finds them as ever. Gradients are not
    kept: `.grad` is None after a step. What cannot be compiled is told once, in one sentence.
    """

    def __init__(self):
        self.told = set()
        self.forget()

    def __reduce__(self):
        return CompiledStep, ()  # the copy of a model compiles for itself

    def forget(self):
        """Be ready for another model, or for one that has changed."""
        self.programs = {}  # {shapes and dtypes: (program, dtype), or None for the engine}
        self.assumed, self.views, self.norms = [], [], []
        self.layers = self.loss = self.optimizer = self.vectors = None

    def __call__(self, model, loss, optimizer, xb, yb, measure=None, history=None):
        arguments = model, loss, optimizer, xb, yb, measure, history
        if watchers.get():
            return self._by_engine(arguments, "somebody looks at the gradients")
        if not self._holds(model, loss, optimizer):
            self.forget()
        key = xb.shape, xb.dtype, yb.shape, yb.dtype
        if key not in self.programs:
            return self._first(key, arguments)
        if self.programs[key] is None:
            return training.step(*arguments)
        run, dtype = self.programs[key]
        for part, mean, var in self.norms:  # the engine's steps give them new arrays
            if part.running_mean is not mean or part.running_var is not var:
                mean[:], var[:] = part.running_mean, part.running_var
                vars(part).update(running_mean=mean, running_var=var)
        t = optimizer.updates[0] + 1
        with np.errstate(over="ignore", invalid="ignore"):
            value, outputs, *statistics = run(
                xb, labels_for(yb, dtype), *self._rate(optimizer.current_lr, t))
        value = float(value)
        if not math.isfinite(value):  # nothing has moved yet
            return training.step(*arguments)
        if measure is not None:
            measure(Tensor(outputs.copy()), value)
        for i, (part, _, _) in enumerate(self.norms):
            latest = BatchStatistics(*statistics[2 * i:2 * i + 2], len(xb))
            vars(part).update(latest=latest, updates=np.asarray(part.updates + 1))
        if self.views[0][0].grad is not None:  # it is that of an earlier step
            optimizer.zero_grad()
        optimizer.steps += 1
        optimizer.updates = [t] * len(optimizer.updates)
        mark_changed(optimizer.parameters)
        return value

    def _rate(self, rate, t):
        """What a program is given besides the batch: Adam's counts its steps."""
        return (rate, t) if "m_sum" in self.optimizer.kept else (rate,)

    def _holds(self, model, loss, optimizer):
        """Whether everything still is as the programs take it to be."""
        if self.loss is not loss or self.optimizer is not optimizer:
            return False
        if self.layers != model.layers or not model.training or model.forward_hooks:
            return False
        for own, name, value in self.assumed:
            if own.get(name) is not value:
                return False
        for p, view in self.views:
            if p.data is not view or not p.requires_grad:
                return False
        return True

    def _first(self, key, arguments):
        """The first step of a shape: compile, let the engine take it, and compare."""
        model, loss, optimizer, xb, yb, *_ = arguments
        self.loss, self.optimizer, self.layers = loss, optimizer, list(model.layers)
        try:
            program = trace(model, loss, optimizer, xb, yb, PASSES)
            if len(set(optimizer.updates)) > 1:
                raise Inexpressible("some parameters have been updated more often than others")
            if set(optimizer.parameters) != set(program.parameters):
                raise Inexpressible("the optimizer trains other parameters than the model's")
            namespace = {}
            exec(compile(str(program), "<program>", "exec"), namespace)
        except Inexpressible as reason:
            self.programs[key] = None
            self._assume(model, optimizer)
            return self._by_engine(arguments, reason)
        make, before = namespace["program"], _vectors(program, optimizer)
        mine = [a.copy() for a in before]
        rate = optimizer.current_lr if optimizer.kept else LARGE
        with np.errstate(all="ignore"):
            loss_of_mine, *_ = make(*mine)(
                xb, labels_for(yb, program.dtype), *self._rate(rate, optimizer.updates[0] + 1))
        value = training.step(*arguments)
        theirs = _vectors(program, optimizer)
        if not optimizer.kept:  # SGD: the parameters have moved by rate times gradient
            mine[0] = (before[0] - mine[0]) / LARGE
        gradient = [np.concatenate([p.grad.reshape(-1) for p in program.parameters])]
        expected = theirs if optimizer.kept else gradient + theirs[1:]
        if not _agree([np.asarray(loss_of_mine), *mine], [np.asarray(value), *expected], optimizer):
            self.programs[key] = None
            self._assume(model, optimizer)
            self._tell("the program's first step is not the engine's")
            return value
        if self.vectors is None:
            self.vectors = theirs
            self._bind(program, optimizer)
        self.programs[key] = make(*self.vectors), program.dtype
        self._assume(model, optimizer)
        return value

    def _assume(self, model, optimizer):
        """Remember what the programs take for granted."""
        owners = [optimizer, *(part for part in model.modules() if part is not model)]
        self.assumed = [(vars(owner), name, vars(owner)[name])
                        for owner in owners for name in SETTINGS if name in vars(owner)]
        self.views = [(p, p.data) for p in model.parameters()]

    def _bind(self, program, optimizer):
        """Make parameters, optimizer state and running statistics views of the vectors."""
        parameters, *states = self.vectors
        order, start = {p: i for i, p in enumerate(optimizer.parameters)}, 0
        for p in program.parameters:
            end = start + p.size
            p.data = parameters[start:end].reshape(p.shape)
            for name, vector in zip(optimizer.kept, states):
                optimizer.state[name][order[p]] = vector[start:end].reshape(p.shape)
            start = end
        start = 0
        for part in program.norms:
            middle = start + len(part.running_mean)
            end = middle + len(part.running_mean)
            mean, var = states[-1][start:middle], states[-1][middle:end]
            vars(part).update(running_mean=mean, running_var=var)
            self.norms.append((part, mean, var))
            start = end

    def _by_engine(self, arguments, reason):
        self._tell(reason)
        return training.step(*arguments)

    def _tell(self, reason):
        if str(reason) not in self.told:
            self.told.add(str(reason))
            say(f"jit_compile: {reason}, so the engine takes such steps")


def _vectors(program, optimizer):
    """Copies of all that a program moves, each kind in one vector."""
    order = {p: i for i, p in enumerate(optimizer.parameters)}
    kinds = [[p.data for p in program.parameters]]
    kinds += [[arrays[order[p]] for p in program.parameters] for arrays in optimizer.state.values()]
    if program.norms:
        kinds.append([a for part in program.norms for a in (part.running_mean, part.running_var)])
    return [np.concatenate([a.reshape(-1) for a in arrays]) for arrays in kinds]


def _agree(mine, theirs, optimizer):
    """Whether two steps are the same but for rounding.

    Adam divides by the size of the gradient: where that is 0 but for rounding, as for a bias before
    BatchNorm, the step has a size but no meaning.
    """
    meant = True
    if optimizer.kept:
        size = np.abs(theirs[2])
        meant = size > 1e-3 * size.max()
    for i, (a, b) in enumerate(zip(mine, theirs)):
        largest = np.finfo(mine[1].dtype).eps ** TOLERANCE * np.abs(b).max()
        wrong = ~(np.abs(a - b) <= largest)
        if (wrong & meant if i == 1 else wrong).any():
            return False
    return True
