"""Compiles a training step into the NumPy program that one would have written by hand.

It is a second reader of the graph: `trace` sends one batch through the engine and walks the graph
that this leaves, forward and backward; the computation of each op becomes lines of NumPy
(`kernels.py`). PASSES rewrite the list of lines. `source` returns the program as text, which runs
without minidl, once a step of it has agreed with the engine's.
"""

import copy
import math
import re
from bisect import bisect_left

import numpy as np

from . import functional as F
from . import optim
from .kernels import (
    STATISTICS,
    UPDATES,
    Inexpressible,
    Operand,
    Writer,
    environment,
    identifier,
    in_order,
    inputs_of,
    number,
    printable,
    texts,
)
from .layers import ACTIVATIONS
from .metrics import LOSSES, named_loss
from .normalization import BatchNorm
from .parts import evaluation
from .settings import check_whole
from .tensor import MANY, Node, Tensor, no_grad
from .training import step

# What may be compiled, and the settings that must have these values.
LAYERS = {"Sequential": {"training": True}, "Dense": {}, "Activation": {}, "Flatten": {},
          "BatchNorm": {"training": True, "fused": True, "affine": True, "ghost_batch_size": None,
                        "frozen_statistics": False}}
UPDATE = "update"  # the comment above the update
TEXT = '''"""A training step of {title}. Written by minidl's compiler."""

import math

import numpy as np


def program({vectors}):
    """Returns {call}, which moves these vectors in place."""
    {head}

    def {call}:
        {step}

    return step


if __name__ == "__main__":  # a trial: noise for weights and data
    rng = np.random.default_rng(0)
    vectors = [{zeros}]
    vectors[0][:] = rng.normal(0, 0.05, len(vectors[0]))
    step = program(*vectors)
    x, y = {x}, {y}
    for t in range(1, 11):
        print({trial}[0])
'''


class Program(Writer):
    """A training step: `kernels`, and what they work on.

    x, y: the batch of the trace. arrays: {name: (vector, start, shape)}, views of the vectors that
    the program moves; vectors: {name: length}. outputs: the name of the array that the model
    returns. buffers: {name: an array of its shape and dtype}. update: the rule, an entry of
    UPDATES. settings: the numbers in it.
    """

    def __init__(self, parts, x, y, outputs, optimizer):
        super().__init__(str(outputs.dtype))
        self.x, self.y, self.classes = x, y, outputs.shape[-1]
        self.arrays, self.vectors, self.outputs, self.buffers = {}, {}, "", {}
        kind, own = type(optimizer).__name__, vars(optimizer)
        self.title = f"{', '.join(map(repr, parts))}; batches of {len(x)}; {kind}"
        self.update = UPDATES[kind + " with momentum" * bool(own.get("momentum"))]
        self.settings = {key: number(own[key]) for key in ("momentum", "eps") if key in own}
        betas = zip(("b1", "b2"), own.get("betas", ()))
        self.settings |= {key: number(beta) for key, beta in betas}
        self.settings |= {key: Operand(key, key, 1.0) for key in ("lr", "t")}

    def move(self, arrays):
        """Add the update. arrays: {"p": name, "g": name ...}, the arrays that it works on."""
        self.scope = UPDATE
        like = {name: np.zeros(shape, self.dtype) for name, (_, _, shape) in self.arrays.items()}
        whole = np.zeros(self.vectors["parameters"], self.dtype)
        env = {key: Operand(name, name, like.get(name, whole)) for key, name in arrays.items()}
        self.run(self.update, env | self.settings, "update", moved=set(arrays) - {"g"})

    def __str__(self):
        lines, scope, result = [], "", f"return loss, {self.outputs}"
        for kernel in self.kernels:
            if kernel.scope != scope:
                scope = kernel.scope
                lines.append(f"# {printable(scope)}")
            lines.append(str(kernel))
            if kernel.name == "loss":
                lines += ["if not math.isfinite(loss):  # then nothing moves", f"    {result}"]
        numbers, made = {}, {"gradients": "np.empty_like(parameters)"}
        step = re.sub(r"\bt_\d+\b", lambda t: numbers.setdefault(t[0], f"t_{len(numbers) + 1}"),
                      "\n        ".join([*lines, result]))
        used = set(re.findall(r"\w+", " ".join(map(str, self.kernels))))
        used -= {kernel.name for kernel in self.kernels if kernel.out != kernel.name}
        for name, (vector, start, shape) in self.arrays.items():
            text = f"{vector}[{start}:{start + math.prod(shape)}]"
            made[name] = text + f".reshape{shape}" * (len(shape) > 1)
        made |= self.head | {name: f"np.empty({value.shape}, np.{value.dtype})"
                             for name, value in self.buffers.items()}
        call = "step(x, y, lr, t)" if "t" in used else "step(x, y, lr)"
        x, y = (f"rng.random({a.shape}).astype(np.{a.dtype})" if a.dtype.kind == "f" else
                f"rng.integers(0, {self.classes}, {len(a)})" for a in (self.x, self.y))
        return TEXT.format(
            title=printable(self.title), vectors=", ".join(self.vectors), call=call, step=step,
            head="\n    ".join(f"{name} = {text}" for name, text in made.items() if name in used),
            zeros=", ".join(f"np.zeros({n}, np.{self.dtype})" for n in self.vectors.values()),
            trial=call.replace("lr", "0.01"), x=x, y=y)


# --- The graph into kernels -----------------------------------------------------------------------

@np.errstate(all="ignore")  # a divergence is for the engine to report
def trace(model, loss, optimizer, x, y, passes):
    """The Program of one step from the batch x, y, as the engine computes it and after the passes.

    The model must be a copy, because it gets hooks and its running statistics move. Raises
    Inexpressible for what the compiler does not know.
    """
    parts, marks = _parts(model), []  # marks: (the number of its last node, part, its axes)
    for part in parts:
        part.register_forward_hook(
            lambda part, inputs, y: marks.append((y.node.number, part, len(y.shape))))
    outputs = model(leaf := Tensor(x, requires_grad=True))
    for _, part, axes in marks:
        if part.parameter_names and axes > 2:
            raise Inexpressible(f"{part.label} has inputs of {axes} axes, and the compiler knows "
                                "(n, features) only")
    value = loss(outputs, y)
    program = Program(parts, x, y, outputs, optimizer)
    names = {leaf: Operand("x", "x", x)}
    parameters = _lay_out(program, parts, optimizer, names)
    nodes = in_order(outputs.node, value.node)
    environments = {}
    for node in nodes:  # forward, in the order of the engine
        place = bisect_left(marks, node.number, key=lambda mark: mark[0])
        part = marks[place][1] if place < len(marks) else None  # None: the loss
        layer, label = (identifier(part), part.label) if part else ("loss", "loss")
        program.scope = f"{label}: {node.op.name}"
        env = environment(node, names, y, n=len(x), classes=program.classes, y_shape=node.shape,
                           **{key: getattr(part, key) for key in ("eps", "momentum")
                              if hasattr(part, key)})
        forward, backward = texts(node)
        program.run(forward, env, layer)
        names[node], environments[node] = env["y"], (env, backward, layer, label)
    program.rename(names[value.node].name, "loss")
    program.outputs = names[outputs.node].name

    program.scope = "the gradient of the loss"
    gradients = {value.node: program.emit("1.0", [], "seed")}
    for node in reversed(nodes):  # backward
        if node in gradients:
            env, backward, layer, label = environments[node]
            program.scope = f"{label}: gradients of {node.op.name}"
            env["g"] = gradients.pop(node)
            program.run(backward, env, layer)
            for key, i in zip(inputs_of(node), node.inputs):
                if isinstance(i, (Node, Tensor)):
                    g = env[f"g_{key}"]
                    if np.shape(g.value) not in ((), i.shape):
                        raise Inexpressible(f"{program.scope} must be summed over broadcast axes")
                    gradients[i] = g if i not in gradients else program.emit(
                        "np.add({0}, {1}{out})", [gradients[i], g], "g_sum")
    for p, name in parameters.items():
        program.rename(gradients[p].name, f"{name}_gradients")

    for env, _, layer, label in environments.values():  # what moves
        if "mean" in env:
            program.scope = f"{label}: running statistics"
            for key in ("running_mean", "running_var"):
                start = program.vectors.setdefault("statistics", 0)
                array, name = env["mean"].value, f"{layer}_{key}"
                program.arrays[name] = ("statistics", start, array.shape)
                program.vectors["statistics"] += len(array)
                env[key] = Operand(name, name, array)
            program.run(STATISTICS, env, layer, moved=("running_mean", "running_var"))
    for name in parameters.values():
        program.move({"p": name, "g": f"{name}_gradients",
                      **{key: f"{name}_{key}" for key in optimizer.kept}})
    for rewrite in passes:
        rewrite(program)
    return program


def _parts(model):
    return [part for part in model.modules() if not any(part.children())]


def _lay_out(program, parts, optimizer, names):
    """{Parameter: name}; also enters the parameters in names and in the program's arrays."""
    parameters, start = {}, 0
    for part in parts:
        for key in type(part).parameter_names:
            if (p := getattr(part, key)) is not None:
                parameters[p] = name = f"{identifier(part)}_{key}"
                names[p] = Operand(name, name, p.data)
                program.arrays[name] = ("parameters", start, p.shape)
                for vector in ("gradients", *optimizer.kept):
                    program.arrays[f"{name}_{vector}"] = (vector, start, p.shape)
                start += p.size
    program.names |= {"t", *program.arrays}  # t counts the steps
    if len({identifier(part) for part in parts}) < len(parts):
        raise Inexpressible("two layers have the same name")
    program.vectors |= dict.fromkeys(["parameters", *optimizer.kept], start)
    return parameters


# --- Passes: each rewrites the list of kernels ----------------------------------------------------

def dead_code(program):
    """Remove what is never read, such as the gradient of the data."""
    needed, alive = {"loss", program.outputs}, []
    for kernel in reversed(program.kernels):
        moves = kernel.out in program.arrays or kernel.out in program.vectors
        if moves or kernel.name in needed:
            alive.append(kernel)
            needed |= kernel.reads
    program.kernels = alive[::-1]


def one_update(program):
    """Update all parameters as one vector; for plain SGD the backward pass starts from the rate."""
    program.names -= {kernel.name for kernel in program.kernels if kernel.scope == UPDATE}
    program.kernels = [kernel for kernel in program.kernels if kernel.scope != UPDATE]
    for kernel in program.kernels:
        if kernel.name in program.arrays:  # gradients, each a part of one vector
            kernel.out = kernel.name
        if kernel.name == "seed" and program.update == UPDATES["SGD"]:
            kernel.form, program.update = "lr", "p = p - g"
    states = [name for name in program.vectors if name not in ("parameters", "statistics")]
    program.move({"p": "parameters", "g": "gradients", **dict(zip(states, states))})


def constants(program):
    """Turn known numbers into arrays once, before the first step, instead of at every step."""
    for kernel in program.kernels:
        if kernel.elementwise and np.ndim(kernel.value):
            for i, o in enumerate(kernel.operands):
                if not o.name and isinstance(o.value, (int, float)):
                    text = f"np.array({o.text}, np.{program.dtype})"
                    names = {made: name for name, made in program.head.items()}
                    name = names.get(text, f"c{len(program.head)}")
                    program.head[name] = text
                    kernel.operands[i] = Operand(name, name, o.value)


def reuse_memory(program):
    """Store each result in an array that is no longer needed, instead of in a new one."""
    kernels, homes, free = program.kernels, {"gradients": "gradients"}, []
    last = {name: i for i, kernel in enumerate(kernels) for name in kernel.reads}
    last[program.outputs] = math.inf

    def alike(a, b):
        return np.shape(a) == np.shape(b) and a.dtype == b.dtype

    def rewritten(name, i):  # whether an array is overwritten before anything else reads it
        after = [k for k in kernels[i + 1:] if name in k.reads or k.out == name]
        return bool(after) and after[0].out == name and name not in after[0].reads

    for i, kernel in enumerate(kernels):
        dying = {o.name: o.value for o in kernel.operands
                 if last.get(o.name) == i and o.name in homes}
        if "{out}" in kernel.form and not kernel.out and np.ndim(kernel.value):
            places = [homes.get(o.name, o.name) for o in kernel.operands
                      if kernel.elementwise and o.text == o.name
                      and (o.name in dying or rewritten(o.name, i))
                      and alike(o.value, kernel.value)]
            places += [name for name, value in free if alike(value, kernel.value)][-1:]
            kernel.out = places[0] if places else f"b{len(program.buffers)}"
            if not places:
                program.buffers[kernel.out] = kernel.value
            free = [(name, value) for name, value in free if name != kernel.out]
            if kernel.out in program.buffers or kernel.out == "gradients":
                homes[kernel.name] = kernel.out
        free += [(homes[name], program.buffers.get(homes[name], value))
                 for name, value in dying.items() if homes[name] != kernel.out]


PASSES = dead_code, one_update, constants, reuse_memory


# --- What may be compiled, and the proof ----------------------------------------------------------

def _check(model, loss, optimizer, batch_size):
    """Raise Inexpressible for what the graph of one step does not show, or what might branch."""
    for own in model.modules():
        kind, settings = type(own).__name__, LAYERS.get(type(own).__name__)
        if (settings is None or not type(own).__module__.startswith("minidl.")
                or (kind == "Sequential") != (own is model) or "forward" in vars(own)):
            raise Inexpressible(f"{own.label} is of a kind that the compiler does not know")
        function = getattr(own, "activation", None) or getattr(own, "function", None)
        if function is not None and function not in ACTIVATIONS.values():
            raise Inexpressible(f"{own.label} has a function that is none of minidl's, and may "
                                "branch")
        if own.forward_hooks or own.forward_pre_hooks:
            raise Inexpressible(f"{own.label} has hooks, and they may do anything")
        for key, value in settings.items():
            if getattr(own, key) != value:
                raise Inexpressible(f"{own.label} has {key}={getattr(own, key)!r}")
        if getattr(own, "momentum", 0) is None:
            raise Inexpressible(f"{own.label} averages over all batches")
    if loss not in LOSSES.values():
        raise Inexpressible("the loss is none of minidl's, or has options of its own, and may "
                            "branch")
    if type(optimizer) not in (optim.SGD, optim.Adam):
        raise Inexpressible("the compiler knows optim.SGD(...) and optim.Adam(...), not "
                            f"{type(optimizer).__name__}")
    for key in ("nesterov", "weight_decay", "clipping"):
        if getattr(optimizer, key, None):
            raise Inexpressible(f"the compiler does not know {type(optimizer).__name__} with {key}")
    if not all(p.requires_grad for p in model.parameters()):
        raise Inexpressible("some parameters are frozen")
    dtypes = {str(p.dtype) for p in model.parameters()}
    if dtypes not in ({"float32"}, {"float64"}):
        raise Inexpressible("the parameters must be all float32 or all float64, and are "
                            f"{' and '.join(sorted(dtypes)) or 'none'}")
    if batch_size > MANY:
        raise Inexpressible(f"batches of more than {MANY:,} samples are summed in a wider dtype")


def _batch(model, loss, batch_size, rng):
    """Noise in the shape of a batch, and labels for it."""
    dtype = model.parameters()[0].dtype
    x = rng.random((batch_size, *model.input_shape)).astype(dtype)
    with evaluation(model), no_grad():
        outputs = model(Tensor(x)).data
    if loss in (F.cross_entropy, F.categorical_crossentropy):
        return x, rng.integers(0, outputs.shape[-1], batch_size)
    return x, rng.random(outputs.shape).astype(dtype)


def _prove(text, model, loss, optimizer, x, y):
    """Raise Inexpressible unless the program takes the step that the engine takes.

    Compares the loss, the outputs and everything that moves: in float64, so that rounding hides
    nothing; at a third step, from moments that are not 0, because Adam's first step hardly depends
    on the size of a gradient; and at a large rate, so that every part of the update shows. The
    model must be a copy.
    """
    model.astype(np.float64)
    optimizer = copy.copy(optimizer).attach(model.parameters())
    optimizer.lr, optimizer.updates, t = 1e6, [2] * len(optimizer.parameters), 3
    rng = np.random.default_rng(1)
    for array in (a for arrays in optimizer.state.values() for a in arrays):
        array[...] = rng.random(array.shape)

    def vectors():
        kinds = [[p.data for p in model.parameters()], *optimizer.state.values(),
                 [a for part in _parts(model) if isinstance(part, BatchNorm)
                  for a in (part.running_mean, part.running_var)]]
        return [np.concatenate([a.reshape(-1) for a in arrays]) for arrays in kinds if arrays]

    namespace, moved = {}, vectors()
    exec(text.replace("float32", "float64"), namespace)
    x, y = x.astype(np.float64), y if y.ndim == 1 else y.astype(np.float64)
    arguments = [x, y, optimizer.lr, *([t] if type(optimizer) is optim.Adam else [])]
    with np.errstate(all="ignore"):
        value, outputs = namespace["program"](*moved)(*arguments)
    expected = []
    step(model, loss, optimizer, x, y,
         measure=lambda outputs, value: expected.extend([value, outputs.data]))
    for mine, theirs in zip([value, outputs, *moved], [*expected, *vectors()], strict=True):
        if (np.shape(mine) != np.shape(theirs)
                or not np.abs(mine - theirs).max() <= 1e-9 * np.abs(theirs).max()):
            raise Inexpressible("the program would not take the step that the engine takes: an "
                                "error of the compiler, or something that the graph of one step "
                                "does not show")


def source(model, loss, optimizer, batch_size, passes=PASSES):
    """One training step as the text of a NumPy program that is readable and runs without minidl.

    model: a built Sequential. loss: a name or function of `metrics.LOSSES`, which decides whether
    the program's y are class numbers or floats in the shape of the outputs. passes: as in PASSES;
    with none, the program computes as the engine does. The program does not check its arguments.
    Its step returns the loss and the outputs, an array that the next step may overwrite. Raises
    Inexpressible, a ValueError, for what the compiler does not know, and if the program's step on a
    batch of noise differs from the engine's.
    """
    loss, batch_size = named_loss(loss), check_whole("batch_size", batch_size, 1)
    if getattr(model, "input_shape", None) is None:
        raise ValueError("the compiler takes a Sequential that knows the shape of its input: "
                         "model.build(input_shape)")
    _check(model, loss, optimizer, batch_size)
    traced, stepped, rng = copy.deepcopy(model), copy.deepcopy(model), np.random.default_rng(0)
    batch = _batch(model, loss, batch_size, rng)
    text = str(trace(traced, loss, optimizer, *batch, passes))
    _prove(text, stepped, loss, optimizer, *_batch(model, loss, batch_size, rng))
    return text
