# %% [markdown]
# # Exercise 10. SGD with momentum: what does a velocity remember?
#
# Lesson 3. Time: 10 minutes.
#
# Momentum keeps a velocity $v$ of each parameter: $v \leftarrow \mu v + g$, and then the step
# $p \leftarrow p - \eta v$ with the learning rate $\eta$. This is PyTorch's convention, and
# minidl's: the rate is not inside $v$, so a new rate acts at once on all that is remembered.

# %%
def step(p, g, v, lr, momentum):
    """The new parameter and the new velocity, arrays of the shape of p. Changes no argument."""
    # --- solution
    v = momentum * v + g
    return p - lr * v, v
    # --- end


# %% The checks
import numpy as np

from minidl.course.student import take

HINTS = [
    "Two lines: first the velocity, then the parameter.",
    "The new velocity, not the old one, moves the parameter. And return both.",
    "Velocity: momentum times the old one, plus the gradient with weight 1. Parameter: minus the "
    "rate times that.",
]


def cases(rng):
    def case(shape):
        return {"p": rng.uniform(1, 2, shape), "g": rng.standard_normal((5, *shape)),
                "v": rng.standard_normal(shape), "lr": float(rng.uniform(0.05, 0.2)),
                "momentum": float(rng.uniform(0.6, 0.8))}
    return [case((8,)), case((4, 3))]


def play(mine, case):
    p, g, v, lr, momentum = case.values()
    made = {"p after one step, v after one step": mine.step(p, g[0], v, lr, momentum)}
    v, places = np.zeros_like(p), []
    for i, gradient in enumerate(g):
        p, v = take("p, v", mine.step(p, gradient, v, lr / (1 + i), momentum))
        places.append(p)
    return made | {"p after 1 to 5 steps": np.stack(places)}


def terms(case):
    p, g, v, lr, momentum = case.values()
    return {"p after one step": {"p": p, "-lr g": -lr * g[0], "-lr momentum v": -lr * momentum * v},
            "v after one step": {"momentum v": momentum * v, "g": g[0]}}


FOLLOWS = {"p after 1 to 5 steps": ("p after one step", "v after one step")}


def _wrong(velocity=lambda v, g, m, lr: m * v + g, move=lambda p, v, g, lr, old, m: p - lr * v,
           keep=lambda v, old, g: v):
    def step(p, g, v, lr, momentum):
        new = velocity(v, g, momentum, lr)
        return move(p, new, g, lr, v, momentum), keep(new, v, g)
    return {"step": step}


MUTATIONS = {
    "the gradient enters the velocity with the factor (1 - momentum)": _wrong(
        lambda v, g, m, lr: m * v + (1 - m) * g),
    "the velocity is lost: the old one comes back unchanged": _wrong(keep=lambda v, old, g: old),
    "the velocity is only the last gradient": _wrong(lambda v, g, m, lr: g),
    "the rate is inside the velocity": _wrong(lambda v, g, m, lr: m * v + lr * g,
                                              lambda p, v, g, lr, old, m: p - v),
    "the rate is inside the velocity, whose sign is turned round": _wrong(
        lambda v, g, m, lr: m * v - lr * g, lambda p, v, g, lr, old, m: p + v),
    "the step is made with the old velocity": _wrong(
        move=lambda p, v, g, lr, old, m: p - lr * old),
    "the step is made with the gradient, without the velocity": _wrong(
        move=lambda p, v, g, lr, old, m: p - lr * g),
    "the step goes uphill": _wrong(move=lambda p, v, g, lr, old, m: p + lr * v),
    "the step is Nesterov's": _wrong(move=lambda p, v, g, lr, old, m: p - lr * (g + m * v)),
    "momentum is forgotten: the velocity is a sum that never fades": _wrong(
        lambda v, g, m, lr: v + g),
}
