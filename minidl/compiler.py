"""A second reader of the graph: it writes a training step as the NumPy program that one would have
written by hand.

`trace` runs one step through the engine and goes through its graph: of each op it takes the forward
and the VJPs as `tensor.py` and `functional.py` declare them, or from KERNELS where there is a
faster form, and cuts them into kernels, each a call of one NumPy function. PASSES rewrite the list
of kernels. `source` prints it: a program that runs without minidl. `Compiled` runs it in place of
`training.step`, once its first step has been found equal to the engine's.
"""

import ast
import inspect
import math
import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import functional as F
from . import training
from .metrics import named_loss
from .normalization import BatchNorm, BatchStatistics
from .optim import Adam
from .tensor import MANY, Fused, Node, Op, Tensor, View, mark_changed, watchers

# What a program takes for granted of each kind of layer; of other kinds nothing is known.
ASSUMED = {
    "Sequential": (),
    "Dense": ("kernel", "bias", "activation"),
    "Activation": ("function",),
    "Flatten": (),
    "BatchNorm": ("gamma", "beta", "eps", "momentum", "fused", "ghost_batch_size",
                  "frozen_statistics"),
}
SETTINGS = "momentum", "nesterov", "weight_decay", "betas", "eps", "state", "parameters"

# The forward, which ends with y, and the backward, which sets g_x for each input x; None: what the
# op declares. labels: the batch's y. put(a, places, values) writes into a.
KERNELS = {
    "linear": ("y = x @ kernel + bias",
               "g_x = g @ kernel.T; g_kernel = x.T @ g; g_bias = ones(n) @ g"),
    "sigmoid": ("y = 1 / (1 + np.exp(-x))", None),
    "softplus": ("y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))",
                 "g_x = g / (1 + np.exp(-x))"),
    "softmax": ("""
e = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))
y = e / np.add.reduce(e, axis=axis, keepdims=True)""", None),
    "sum": ("y = np.add.reduce(x, axis=axis, keepdims=keepdims)", "g_x = g"),
    "reshape": ("y = x.reshape(y_shape)", None),
    "batch_norm": ("""
mean = shares(n) @ x
centred = x - mean
var = shares(n) @ (centred * centred)
scale = 1 / np.sqrt(var + eps)
slope = gamma * scale
y = centred * slope + beta""", """
g_beta = ones(n) @ g
g_gamma = (ones(n) @ (g * centred)) * scale
g_x = (centred * (g_gamma * scale * (-1 / n)) + g - g_beta * (1 / n)) * slope"""),
    "cross_entropy": ("""
z = logits - logits[arange(n), logits.argmax(axis=1), None]
p = np.exp(z)
total = p @ ones(classes)
places = arange(n) * classes + labels
y = np.add.reduce(np.log(total) - z.take(places)) / n""", """
rough = p * (g / n / total)[:, None]
g_logits = put(rough, places, rough.take(places) - g / n)"""),
    "cross_entropy of rows": ("""
z = logits - logits[arange(n), logits.argmax(axis=1), None]
p = np.exp(z)
total = p @ ones(classes)
y = np.add.reduce(labels * (np.log(total)[:, None] - z), axis=None) / n""", """
g_logits = (p * (np.add.reduce(labels, axis=1) / total)[:, None] - labels) * (g / n)"""),
}
STATISTICS = """
running_mean = running_mean * (1 - momentum) + mean * momentum
running_var = running_var * (1 - momentum) + var * (momentum * n / (n - 1))"""
UPDATE = "update"
UFUNCS = {ast.Add: ("np.add", "+"), ast.Sub: ("np.subtract", "-"), ast.Mult: ("np.multiply", "*"),
          ast.Div: ("np.divide", "/"), ast.Pow: ("np.power", "**"), ast.Gt: ("np.greater", ">"),
          ast.Lt: ("np.less", "<"), ast.Eq: ("np.equal", "=="), ast.MatMult: ("np.dot", "@"),
          ast.GtE: ("np.greater_equal", ">="), ast.LtE: ("np.less_equal", "<=")}
NAMED = {"exp": "np.exp", "log": "np.log", "where": "np.where", "sum": "np.add.reduce"}
SLOTS = [f"v[{i}]" for i in range(4)]
VECTORS = {"ones": "np.ones({n}, np.{dtype})", "shares": "np.full({n}, 1 / {n}, np.{dtype})",
           "arange": "np.arange({n})"}


TEXT = '''"""A training step of {title}.

Written by minidl's compiler.
"""

import math

import numpy as np


def program({vectors}):
    """step({arguments}), which moves these vectors in place; the loss comes first."""
    {head}

    def step({arguments}):
        {step}

    return step


if __name__ == "__main__":  # a trial, with noise for weights and data
    rng = np.random.default_rng(0)
    vectors = {zeros},
    vectors[0][:] = rng.normal(0, 0.05, len(vectors[0]))
    step = program(*vectors)
    x, y = {x}, {y}
    for t in range(1, 11):
        print(step({trial})[0])
'''


class Inexpressible(ValueError):
    """What the compiler has no words for, in one sentence."""


class Operand(NamedTuple):
    """What a kernel reads: the variable, None for a number; its text; its value in the trace."""

    name: str
    text: str
    value: object


@dataclass
class Kernel:
    """One line of the program: name = form, filled with the operands. out: the array it writes.

    scope: the comment above it. value: its result in the trace.
    """

    name: str
    form: str
    operands: list
    value: object
    scope: str
    out: str = ""

    @property
    def elementwise(self):
        """Whether each number of the result depends on one of each operand: it may replace it."""
        return "{out}" in self.form and not self.form.startswith(("np.dot", "np.add.reduce"))

    def __str__(self):
        call = self.form.format(*(operand.text for operand in self.operands),
                                out=f", out={self.out}" if self.out else "")
        return call if self.out == self.name else f"{self.name} = {call}"


@dataclass
class Program:
    """A training step as a list of kernels.

    x, y: the batch of the trace. update: the update rule, as text. arrays: {name: (vector, start,
    shape)}, views of the vectors that the program moves; vectors: {name: length}. kept: results
    that outlive the step. buffers: {name: a result like it}. head: {name: how a constant is made}.
    """

    title: str
    x: np.ndarray
    y: np.ndarray
    dtype: str
    update: str
    arrays: dict = field(default_factory=dict)
    vectors: dict = field(default_factory=dict)
    kernels: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    buffers: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)
    names: Counter = field(default_factory=Counter)
    scope: str = ""
    classes: int = 1

    # --- Expressions into kernels ---

    def run(self, code, env, suffix, scope):
        """Lower `name = expression` lines. env: {name: Operand}; an array of a vector is moved."""
        self.scope = scope
        for statement in ast.parse(code).body:
            name = statement.targets[0].id
            old = env.get(name)
            env[name] = result = self.lower(statement.value, env, f"{name}_{suffix}")
            if old is not None and old.name in (*self.arrays, *self.vectors):
                self.kernels[-1].name = self.kernels[-1].out = old.name
                env[name] = old._replace(value=result.value)

    def lower(self, node, env, name="t"):
        """The Operand of an expression, after the kernels that compute it."""
        def all_of(*nodes):
            return [self.lower(part, env) for part in nodes]

        match node:
            case ast.Constant(value=value):
                return Operand(None, repr(value), value)
            case ast.Name(id=key) if key in env:
                return env[key]
            case ast.UnaryOp(op=ast.USub(), operand=x):
                x, = all_of(x)
                return self.emit("np.negative({0}{out})" if np.ndim(x.value) else "-{0}", [x], name)
            case (ast.BinOp(left=a, op=op, right=b)
                  | ast.Compare(left=a, ops=[op], comparators=[b])) if type(op) in UFUNCS:
                a, b = all_of(a, b)
                if b.value is None:  # no bias
                    return a
                function, symbol = UFUNCS[type(op)]
                arrays = np.ndim(a.value) or np.ndim(b.value)
                form = f"{function}({{0}}, {{1}}{{out}})" if arrays else f"{{0}} {symbol} {{1}}"
                return self.emit(form, [a, b], name)
            case ast.Call(func=ast.Name(id="floats"), args=[x]):
                return self.lower(x, env, name)
            case ast.Call(func=ast.Name(id="put"), args=arguments):
                return self.emit("{0}.put({1}, {2})", all_of(*arguments), name)
            case ast.Call(func=ast.Name(id=vector), args=[n]) if vector in VECTORS:
                n, = all_of(n)
                vector, made = f"{vector}_{n.text}", VECTORS[vector]
                self.head[vector] = made = made.format(n=n.text, dtype=self.dtype)
                return Operand(vector, vector, eval(made, {"np": np}))
            case ast.Attribute() | ast.Subscript() | ast.Call():
                parts, form = _slots(node)
                operands = all_of(*parts)
                if form.endswith((".T", "[:, None]")) or ".reshape(" in form:  # a view, no kernel
                    text = form.format(*(operand.text for operand in operands))
                    value = eval(form.format(*SLOTS), {"v": [operand.value for operand in operands]})
                    return Operand(operands[0].name, text, value)
                return self.emit(form, operands, name)
        raise Inexpressible(f"{self.scope}: the compiler cannot read {ast.unparse(node)}")

    def emit(self, form, operands, name):
        """Add a kernel, unless all that it reads are numbers; returns the Operand of its result."""
        values, out = [operand.value for operand in operands], ""
        if ".put(" in form:
            name = out = operands[0].name
        value = eval(form.format(*SLOTS, out=""), {"np": np, "v": values})
        if operands and not any(operand.name for operand in operands):
            return Operand(None, repr(value), value)
        if out:
            value = values[0]
        else:
            self.names[name] += 1
            name += f"_{self.names[name]}" if self.names[name] > 1 or name == "t" else ""
        self.kernels.append(Kernel(name, form, operands, value, self.scope, out))
        return Operand(name, name, value)

    def rename(self, old, new):
        """Give a result another name, wherever it is read."""
        for kernel in self.kernels:
            kernel.name = new if kernel.name == old else kernel.name
            kernel.operands = [operand._replace(name=new, text=operand.text.replace(old, new, 1))
                               if operand.name == old else operand for operand in kernel.operands]

    def move(self, env):
        """Add the update of p by g."""
        self.run(self.update, env | {name: Operand(name, name, 1.0) for name in ("lr", "t")},
                 "update", UPDATE)

    def overwritten(self, name, kernel, i):
        """Whether nobody reads the array of this name any more before it is written anew, and what
        kernel i would leave there until then.
        """
        for later in self.kernels[i + 1:]:
            if later.out == name:
                return True
            if any(operand.name == name for operand in later.operands):
                return False
        return False

    # --- Text ---

    def __str__(self):
        step, scope = [], ""
        result = f"return {', '.join(['loss', *self.kept])}"
        for kernel in self.kernels:
            if kernel.scope != scope:
                scope = kernel.scope
                step.append(f"# {scope}")
            step.append(str(kernel))
            if kernel.name == "loss":
                step += ["if not math.isfinite(loss):  # then nothing moves", f"    {result}"]
        used = set(re.findall(r"\w+", "\n".join(step)))
        step.append(result)
        gradients = {"gradients": "np.empty_like(parameters)"} if "gradients" in used else {}
        views = {name: f"{vector}[{start}:{start + math.prod(shape)}].reshape{shape}"
                 for name, (vector, start, shape) in self.arrays.items()
                 if vector in gradients or vector != "gradients"}
        empty = {name: f"np.empty({value.shape}, np.{value.dtype})"
                 for name, value in self.buffers.items()}
        head = [f"{name} = {made}" for name, made in (gradients | views | self.head | empty).items()
                if name in used]
        arguments = f"x, y, lr{', t' * ('t' in used)}"
        x, y = (f"rng.random({a.shape}).astype(np.{self.dtype})" if a.dtype.kind == "f" else
                f"rng.integers(0, {self.classes}, {a.shape})" for a in (self.x, self.y))
        zeros = ", ".join(f"np.zeros({n}, np.{self.dtype})" for n in self.vectors.values())
        return TEXT.format(title=self.title, vectors=", ".join(self.vectors), arguments=arguments,
                           head="\n    ".join(head), step="\n        ".join(step), zeros=zeros,
                           x=x, y=y, trial=arguments.replace("lr", "0.1"))


def _slots(node):
    """(the expressions in a call, an index or an attribute, its text with slots for them)."""
    match node:
        case ast.Attribute(value=x):
            parts = [x]
        case ast.Subscript(value=x, slice=ast.Tuple(elts=indices)):
            parts = [x, *(i for i in indices if not isinstance(i, (ast.Slice, ast.Constant)))]
        case ast.Call(func=function, args=arguments, keywords=words):
            text = ast.unparse(function)
            own = [] if text.startswith("np.") or text in NAMED else [function.value]
            parts = [*own, *arguments, *(word.value for word in words)]
    text, form, end = ast.unparse(node), "", 0
    for i, part in enumerate(parts):
        found = re.compile(rf"(?<![\w.]){re.escape(ast.unparse(part))}(?!\w)").search(text, end)
        form += f"{text[end:found.start()]}{{{i}}}"
        end = found.end()
    form += text[end:]
    name, rest = form.partition("(")[::2]
    form = f"{NAMED.get(name, name)}({rest}" if rest else form
    return parts, form[:-1] + "{out})" if form.startswith("np.") and "where" not in form else form


# --- The graph into kernels -----------------------------------------------------------------------

def trace(model, loss, optimizer, x, y):
    """The Program of one step from the batch x, y, kernel by kernel as the engine computes it.

    Raises Inexpressible, in one sentence, for what the compiler does not know.
    """
    _check(model, optimizer, x)
    parts = [part for part in model.modules() if not any(part.children())]
    norms = [part for part in parts if isinstance(part, BatchNorm)]
    saved, latest, marks = model.state_dict(), [part.latest for part in norms], []
    handles = [part.register_forward_hook(
        lambda part, inputs, y: marks.append((y.node.number, part))) for part in parts]
    try:
        leaf = Tensor(x, requires_grad=True)  # the gradient of the data will be dead code
        outputs = model(leaf)
        value = loss(outputs, y)
    finally:
        for handle in handles:
            handle.remove()
        model.load_state_dict(saved)
        for part, statistics in zip(norms, latest):
            vars(part)["latest"] = statistics
    names = {leaf: Operand("x", "x", x)}
    title = f"{', '.join(map(repr, parts))}, batches of {len(x)}, {type(optimizer).__name__}"
    program = Program(title, x, y, str(outputs.dtype), _update_rule(optimizer))
    program.vectors["parameters"] = sum(p.size for p in model.parameters())
    program.vectors |= dict.fromkeys(optimizer.kept, program.vectors["parameters"])
    program.classes, start = outputs.shape[-1], 0
    for part in parts:
        for key in type(part).parameter_names:
            if (p := getattr(part, key)) is not None:
                name = f"{part.name}_{key}"
                program.arrays |= {name: ("parameters", start, p.shape)} | {
                    f"{name}_{of}": (of, start, p.shape) for of in ("gradients", *optimizer.kept)}
                names[p] = Operand(name, name, p.data)
                start += p.size
    if len(names) <= len(model.parameters()) or len(program.arrays) % (len(names) - 1):
        raise Inexpressible("two layers share a name or a parameter")

    # Forward: the nodes in the order of their making; each remembers its environment.
    nodes, ahead = set(), [outputs.node, value.node]
    while ahead:
        if isinstance(node := ahead.pop(), Node) and node not in nodes:
            nodes.add(node)
            ahead += node.inputs
    nodes, environments = sorted(nodes, key=lambda node: node.number), {}
    for node in nodes:
        place = bisect_left(marks, node.number, key=lambda mark: mark[0])
        part = marks[place][1] if place < len(marks) else None
        layer, label = (part.name, part.label) if part else ("loss", "loss")
        inputs = [names[i] if i in names else _plain_input(i, y, node) for i in node.inputs]
        words = _input_names(node)
        env = dict(zip(words, inputs)) | {"labels": Operand("y", "y", y), **_literals(
            n=len(x), classes=outputs.shape[-1], y_shape=node.shape, eps=getattr(part, "eps", 0),
            **{f"{word}_shape": np.shape(i.value) for word, i in zip(words, inputs)},
            **_constants(node))}
        forward, backward = _texts(node.op, y)
        program.run(forward, env, layer, f"{label}: {node.op.name}")
        names[node], environments[node] = env["y"], (env, words, backward, layer, label)
    program.rename(names[value.node].name, "loss")
    program.kept = [names[outputs.node].name]

    # Backward: the same nodes in reverse.
    program.scope = "the gradient of the loss"
    gradients = {value.node: program.emit("1.0", [], "seed")}
    for node in reversed(nodes):
        if node in gradients:
            env, words, backward, layer, label = environments[node]
            env["g"] = gradients.pop(node)
            program.run(backward, env, layer, f"{label}: gradients of {node.op.name}")
            for word, i in zip(words, node.inputs):
                if isinstance(i, (Node, Tensor)):
                    g = env[f"g_{word}"]
                    if np.shape(g.value) not in ((), i.shape):
                        raise Inexpressible(f"{label}: a gradient of {node.op.name} would have to "
                                            "be summed over axes")
                    if i in gradients:
                        g = program.emit("np.add({0}, {1}{out})", [gradients[i], g], "g")
                    gradients[i] = g
    for p in model.parameters():
        name = names[p].name
        program.rename(gradients[p].name, f"{name}_gradients")

    # What moves: running statistics, and parameters one by one.
    for node, (env, *_, layer, label) in environments.items():
        if node.op.name == "batch_norm":
            part = next(part for part in norms if part.name == layer)
            length = program.vectors.get("statistics", 0)
            for i, key in enumerate(("running_mean", "running_var")):
                name, array = f"{layer}_{key}", getattr(part, key)
                program.arrays[name] = ("statistics", length + i * len(array), array.shape)
                env[key] = Operand(name, name, array)
            program.vectors["statistics"] = length + 2 * len(array)
            program.kept += [env["mean"].name, env["var"].name]
            env |= _literals(momentum=part.momentum)
            program.run(STATISTICS, env, layer, f"{label}: running statistics")
    for p in model.parameters():
        name = names[p].name
        views = {key: f"{name}_{key}" for key in optimizer.kept} | {"p": name, "g": f"{name}_gradients"}
        program.move({key: Operand(view, view, p.data) for key, view in views.items()})
    return program


def _literals(**values):
    return {name: Operand(None, repr(value), value) for name, value in values.items()}


def _plain_input(value, y, node):
    """An input that is no Tensor: a number, None, or the targets, of which only the shape is kept."""
    if isinstance(value, tuple):
        if value != y.shape:
            raise Inexpressible(f"{node.op.name} reads an array that the graph does not keep")
        return Operand("y", "y", y)
    return Operand(None, repr(value), value)


def _input_names(node):
    return inspect.unwrap(node.op.forward).__code__.co_varnames[:len(node.inputs)]


def _constants(node):
    """{name: value} of the constants of a node, such as an axis, that its VJPs read."""
    if node.op.fused:
        return {}
    words = [*_input_names(node), "y", *node.op.constants]
    return {words[place]: value for (place, attribute), value in zip(node.plan.kept, node.saved)
            if place > len(node.inputs)}


def _texts(op, y):
    """(forward, backward) of an op, as text: from KERNELS, or else as its declaration says it."""
    rows = " of rows" * (op.name == "cross_entropy" and y.ndim == 2)
    forward, backward = KERNELS.get(op.name + rows, (None, None))
    if forward is None or backward is None:
        tree = ast.parse(inspect.getsource(inspect.getmodule(op.vjps[0] if op.vjps else F)))
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and call.args and (
                    isinstance(call.args[0], ast.Constant) and call.args[0].value == op.name):
                made, *vjps = (ast.unparse(getattr(f, "body", f)) for f in call.args[1:])
                words = op.forward.__code__.co_varnames
                forward = forward or f"y = {made}"
                backward = backward or "\n".join(f"g_{x} = {g}" for x, g in zip(words, vjps))
    return forward, backward


def _update_rule(optimizer):
    """The update of p by g, with the settings of an optimizer as numbers."""
    if isinstance(optimizer, Adam):
        b1, b2 = optimizer.betas
        decay = getattr(optimizer, "weight_decay", 0)
        return (f"p = p * (1 - lr * {decay})\n" if decay else "") + f"""
m_sum = m_sum * {b1} + g
v_sum = v_sum * {b2} + g * g
root = ({1 - b2} / (1 - {b2} ** t)) ** 0.5
rate = lr * {1 - b1} / (1 - {b1} ** t) / root
p = p - m_sum / (np.sqrt(v_sum) + {optimizer.eps} / root) * rate"""
    momentum, g = optimizer.momentum, "g"
    lines = []
    if optimizer.weight_decay:
        lines.append(f"g = g + {optimizer.weight_decay} * p")
    if momentum:
        lines.append(f"velocity = velocity * {momentum} + g")
        g = f"(g + {momentum} * velocity)" if optimizer.nesterov else "velocity"
    return "\n".join([*lines, f"p = p - lr * {g}"])


def _check(model, optimizer, x):
    """Inexpressible for layers and settings that the compiler does not know."""
    for part in model.modules():
        kind = type(part).__name__
        if kind not in ASSUMED or not type(part).__module__.startswith("minidl."):
            raise Inexpressible(f"{part.label} is of a kind that the compiler does not know")
        if part.forward_hooks:
            raise Inexpressible(f"{part.label} has a forward hook")
        if not part.training:
            raise Inexpressible(f"{part.label} is in evaluation mode")
        if kind == "BatchNorm" and (part.ghost_batch_size or part.frozen_statistics
                                    or not part.fused or not part.affine or part.momentum is None):
            raise Inexpressible(f"{part.label} has settings that the compiler does not know")
    if type(optimizer).__name__ not in ("SGD", "Adam", "AdamW"):
        raise Inexpressible(f"the compiler has no update rule of {type(optimizer).__name__}")
    if not all(p.requires_grad for p in model.parameters()):
        raise Inexpressible("some parameters are frozen")
    if len(x) > MANY:
        raise Inexpressible(f"batches of more than {MANY:,} samples are summed in a wider dtype")


# --- Passes: each rewrites the list of kernels ----------------------------------------------------

def dead_code(program):
    """Leave out what nobody reads, such as the gradient of the data."""
    needed, alive = {"loss", *program.kept}, []
    for kernel in reversed(program.kernels):
        moves = kernel.out in program.arrays or kernel.out in program.vectors
        if moves or kernel.name in needed:
            alive.append(kernel)
            needed |= {operand.name for operand in kernel.operands}
    program.kernels = alive[::-1]


def one_update(program):
    """One update of one vector of all parameters; plain SGD scales the loss by the rate instead."""
    program.kernels = [kernel for kernel in program.kernels if kernel.scope != UPDATE]
    for kernel in program.kernels:
        if kernel.name in program.arrays:
            kernel.out = kernel.name
        if kernel.name == "seed" and program.update == "p = p - lr * g":
            kernel.form, program.update = "lr", "p = p - g"
    zeros = np.zeros(program.vectors["parameters"], program.dtype)
    flat = {"p": "parameters", "g": "gradients", **dict(zip(program.vectors, program.vectors))}
    program.move({key: Operand(name, name, zeros) for key, name in flat.items()})


def reuse_memory(program):
    """Give each result an array: that of an operand nobody needs any more, or one that is free."""
    last = {operand.name: i for i, kernel in enumerate(program.kernels)
            for operand in kernel.operands} | dict.fromkeys(program.kept, math.inf)
    homes, free = {"gradients": "gradients"}, {}  # {result: its array}, {kind: arrays}

    def kind(value):
        return np.shape(value), getattr(value, "dtype", None)

    for i, kernel in enumerate(program.kernels):
        dying = {operand.name: operand for operand in kernel.operands if last[operand.name] == i}
        if "{out}" in kernel.form and not kernel.out and np.ndim(kernel.value):
            same = [operand.name for operand in kernel.operands
                    if kernel.elementwise and operand.text == operand.name
                    and kind(operand.value) == kind(kernel.value)]
            places = [homes[name] for name in same if name in dying and name in homes]
            places += [name for name in same if program.overwritten(name, kernel, i)]
            places += free.get(kind(kernel.value), [])[-1:]
            kernel.out = places[0] if places else f"b{len(program.buffers)}"
            if kernel.out in free.get(kind(kernel.value), []):
                free[kind(kernel.value)].remove(kernel.out)
            if kernel.out not in program.arrays and kernel.out not in program.vectors:
                homes[kernel.name] = kernel.out
                if not places:
                    program.buffers[kernel.out] = kernel.value
        for name, operand in dying.items():
            home = homes.pop(name, kernel.out)
            if home != kernel.out:
                free.setdefault(kind(operand.value), []).append(home)


PASSES = dead_code, one_update, reuse_memory


def source(model, loss, optimizer, batch_size, passes=PASSES):
    """The training step as a NumPy program, as text."""
    loss = named_loss(loss)
    rng = np.random.default_rng(0)
    x = rng.random((batch_size, *model.input_shape)).astype(model.parameters()[0].dtype)
    y = np.arange(batch_size) % 10
    return str(compiled(model, loss, optimizer, x, y, passes))


def compiled(model, loss, optimizer, x, y, passes=PASSES):
    """The Program of a step, after the passes."""
    program = trace(model, loss, optimizer, x, y)
    for rewrite in passes:
        rewrite(program)
    return program
