"""Learning-rate schedules: functions of the number of steps done that return the next rate.

`optim.SGD(lr=WarmUp(CosineDecay(0.1, steps=900), steps=100))`; steps count 0, 1, 2 ..., and any
other function of them works as well. Schedules remember nothing: a stopped run continues from its
number of steps alone.
"""

import math
from dataclasses import dataclass
from numbers import Real


@dataclass(frozen=True)
class Schedule:
    """What all schedules have: lr, the largest rate, and steps.

    Raises ValueError for a number that is not positive.
    """

    lr: float
    steps: int

    def __post_init__(self):
        for name, value in vars(self).items():
            if callable(value) and not isinstance(self, WarmUp):
                raise ValueError(f"{type(self).__name__} takes a rate, not a schedule: WarmUp is "
                                 "what goes around another one")
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not callable(value) and not (number and 0 < value < math.inf):
                raise ValueError(f"{type(self).__name__} needs a positive, finite number as "
                                 f"{name}, got {value!r}")
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 step, got {self.steps!r}; "
                             "the rate comes first, then the steps")


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """lr * factor ** (step / steps): lr falls smoothly by factor over each `steps` steps."""

    factor: float = 0.1

    def __call__(self, step):
        return self.lr * self.factor ** (step / self.steps)


class StepDecay(ExponentialDecay):
    """lr * factor ** (step // steps): lr falls by factor at once after every `steps` steps."""

    def __call__(self, step):
        return self.lr * self.factor ** (step // self.steps)


class CosineDecay(Schedule):
    """From lr to 0 in `steps` steps along half a cosine wave; then 0.

    Loshchilov and Hutter 2017, one period.
    """

    def __call__(self, step):
        return _cosine(self.lr, 0, step / self.steps)


@dataclass(frozen=True)
class CosineRestarts(Schedule):
    """CosineDecay again and again, each time from lr (Loshchilov and Hutter 2017, "SGDR").

    The first period has `steps` steps, and each is factor times as long as the one before.
    """

    factor: float = 1

    def __post_init__(self):
        super().__post_init__()
        if self.factor < 1:
            raise ValueError("CosineRestarts needs a factor of at least 1, by which each period is "
                             f"longer than the one before, got {self.factor!r}")

    def __call__(self, step):
        length = self.steps
        while step >= length:
            step, length = step - length, length * self.factor
        return _cosine(self.lr, 0, step / length)


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """From lr to 0 in `steps` steps as lr * (1 - step / steps) ** power; then 0."""

    power: float = 1.0

    def __call__(self, step):
        return self.lr * (1 - min(step / self.steps, 1)) ** self.power


@dataclass(frozen=True)
class MultiStepDecay(Schedule):
    """lr, multiplied by factor at each given step: MultiStepDecay(0.1, steps=(300, 600))."""

    steps: tuple
    factor: float = 0.1

    def __post_init__(self):
        if not isinstance(self.steps, (tuple, list)) or list(self.steps) != sorted(self.steps):
            raise ValueError("MultiStepDecay needs the steps at which the rate falls, in order, "
                             f"(300, 600) for example, got {self.steps!r}")
        for step in self.steps:
            StepDecay(self.lr, step, self.factor)  # complains about an invalid number of steps
        object.__setattr__(self, "steps", tuple(self.steps))

    def __call__(self, step):
        return self.lr * self.factor ** sum(step >= start for start in self.steps)


class WarmUp(Schedule):
    """A straight line up to lr, reached at step number `steps` (Goyal et al. 2017).

    lr: a rate to stay at, or a schedule to start then.
    """

    def __call__(self, step):
        rate = self.lr(max(step - self.steps, 0)) if callable(self.lr) else self.lr
        return rate * min((step + 1) / (self.steps + 1), 1)


class OneCycle(Schedule):
    """Up from lr / 25 to lr in 30 % of the steps, then down to lr / 250,000.

    Both along half a cosine wave: Smith and Topin 2018, in PyTorch's form. The last step has the
    lowest rate, and the momentum stays constant.
    """

    def __call__(self, step):
        top, last = 0.3 * self.steps - 1, self.steps - 1
        if step <= top:
            return _cosine(self.lr / 25, self.lr, step / top if top else 1)
        return _cosine(self.lr, self.lr / 250_000, (step - top) / (last - top))


def _cosine(start, end, share):
    """From start to end along half a cosine wave at this share of the way; after it, end."""
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1))) / 2
