"""Kernels, the lines of a compiled program: each calls one NumPy function.

The formulas of an op come as text: from its declaration in `tensor.py` or `functional.py`, or from
KERNELS where there is a faster form. `Writer` cuts such an expression into kernels and computes
each of them on the arrays of one real step, so that shapes and dtypes need no rules.
"""

import ast
import functools
import inspect
import itertools
import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .tensor import Node, Tensor

# {op: (forward, backward)}: the forward ends with y, the backward sets g_x for each input x; ""
# where the op's own declaration will do. labels: the batch's y. put(a, places, values) changes a.
KERNELS = {
    "linear": ("y = x @ kernel + bias",
               "g_x = g @ kernel.T; g_kernel = x.T @ g; g_bias = ones(n) @ g"),
    "sigmoid": ("y = 1 / (1 + np.exp(-x))", ""),
    "softplus": ("y = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))",
                 "g_x = g / (1 + np.exp(-x))"),
    "softmax": ("e = np.exp(x - np.maximum.reduce(x, axis=axis, keepdims=True))\n"
                "y = e / np.add.reduce(e, axis=axis, keepdims=True)", ""),
    "sum": ("y = np.add.reduce(x, axis=axis, keepdims=keepdims)", "g_x = g"),
    "reshape": ("y = x.reshape(y_shape)", ""),
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
z = logits - logits[counted(n), logits.argmax(axis=1), None]
p = np.exp(z)
total = p @ ones(classes)
places = starts(n, classes) + labels
y = np.add.reduce(np.log(total) - z.take(places)) / n""", """
g_logits = p * (g / n / total)[:, None]
right = put(g_logits, places, g_logits.take(places) - g / n)"""),
    "log_softmax": ("z = x - np.maximum.reduce(x, axis=axis, keepdims=True)\n"
                    "y = z - np.log(np.add.reduce(np.exp(z), axis=axis, keepdims=True))", ""),
}
STATISTICS = """
running_mean = running_mean * (1 - momentum) + mean * momentum
running_var = running_var * (1 - momentum) + var * (momentum * n / (n - 1))"""
UPDATES = {
    "SGD": "p = p - lr * g",
    "SGD with momentum": "velocity = velocity * momentum + g; p = p - lr * velocity",
    "Adam": """
m_sum = m_sum * b1 + g
v_sum = v_sum * b2 + g * g
root = ((1 - b2) / (1 - b2 ** t)) ** 0.5
rate = lr * (1 - b1) / (1 - b1 ** t) / root
p = p - m_sum / (np.sqrt(v_sum) + eps / root) * rate"""}
UFUNCS = {ast.Add: ("np.add", "+"), ast.Sub: ("np.subtract", "-"), ast.Mult: ("np.multiply", "*"),
          ast.Div: ("np.divide", "/"), ast.Pow: ("np.power", "**"), ast.Gt: ("np.greater", ">"),
          ast.Lt: ("np.less", "<"), ast.Eq: ("np.equal", "=="), ast.MatMult: ("np.dot", "@"),
          ast.GtE: ("np.greater_equal", ">="), ast.LtE: ("np.less_equal", "<=")}
# the functions that the declarations call by minidl's names
NAMED = {"exp": "np.exp", "log": "np.log", "where": "np.where", "sum": "np.add.reduce"}
# constant vectors: n ones, n times 1/n, the numbers of n rows, and where each flattened row begins
VECTORS = {"ones": "np.ones({0}, np.{dtype})", "shares": "np.full({0}, 1 / {0}, np.{dtype})",
           "counted": "np.arange({0})", "starts": "np.arange({0}) * {1}"}
VALUES = [f"v[{i}]" for i in range(4)]


class Inexpressible(ValueError):
    """Raised for what the compiler cannot express, with a sentence that names it."""


class Operand(NamedTuple):
    """What a kernel reads: an array, the result of another kernel, or a number.

    name: of the array or result, "" for a number. text: how it appears in the program. value: in
    the traced step.
    """

    name: str
    text: str
    value: object


def number(value):
    """The Operand of a constant."""
    return Operand("", repr(value), value)


@dataclass
class Kernel:
    """One line of a program: name = form, where the operands fill the slots {0}, {1} ...

    out: the array that takes the result, "" where NumPy makes a new one. value: the result in the
    traced step. scope: the comment above.
    """

    name: str
    form: str
    operands: list
    value: object
    scope: str
    out: str = ""

    @property
    def elementwise(self):
        """Whether the result may take the place of an operand of its shape."""
        return "{out}" in self.form and "np.dot(" not in self.form and ".reduce(" not in self.form

    @property
    def reads(self):
        """The names in the operands."""
        return set(re.findall(r"[A-Za-z_]\w*", " ".join(o.text for o in self.operands)))

    def __str__(self):
        call = self.form.format(*(o.text for o in self.operands),
                                out=f", out={self.out}" if self.out else "")
        return call if self.out == self.name else f"{self.name} = {call}"


class Writer:
    """Lowers expressions into `kernels`.

    dtype: that of the numbers. head: {name: the text that makes it} of the constant vectors. scope:
    the comment above the kernels that come next.
    """

    def __init__(self, dtype):
        self.dtype, self.kernels, self.head, self.scope = dtype, [], {}, ""
        self.names = set()  # in use

    def run(self, code, env, suffix, moved=()):
        """Lower lines `name = expression`. env: {name: Operand}, to which their results are added.

        A name in moved is an array whose old numbers the result replaces.
        """
        for line in ast.parse(code).body:
            name = line.targets[0].id
            result = self.lower(line.value, env, f"{name}_{suffix}")
            if not np.ndim(result.value) and result.text != result.name:  # from numbers alone
                result = self.emit("{0}", [result], f"{name}_{suffix}")
            if name in moved:
                self.kernels[-1].name = self.kernels[-1].out = env[name].name
            else:
                env[name] = result

    def lower(self, node, env, name="t"):
        """The Operand of an expression; appends the kernels that compute it."""
        def all_of(*nodes):
            return [self.lower(part, env) for part in nodes]

        match node:
            case ast.Constant(value=value):
                return number(value)
            case ast.Name(id=key) if key in env:
                return env[key]
            case ast.UnaryOp(op=ast.USub(), operand=x):
                x, = all_of(x)
                form = "np.negative({0}{out})" if np.ndim(x.value) else "(-{0})"
                return self.emit(form, [x], name)
            case (ast.BinOp(left=a, op=op, right=b)
                  | ast.Compare(left=a, ops=[op], comparators=[b])) if type(op) in UFUNCS:
                a, b = all_of(a, b)
                if b.value is None:  # a layer without bias
                    return a
                function, symbol = UFUNCS[type(op)]
                arrays = np.ndim(a.value) or np.ndim(b.value)
                form = f"{function}({{0}}, {{1}}{{out}})" if arrays else f"({{0}} {symbol} {{1}})"
                return self.emit(form, [a, b], name)
            case ast.Call(func=ast.Name(id="floats"), args=[x]):
                return self.lower(x, env, name)
            case ast.Call(func=ast.Name(id=vector), args=lengths) if vector in VECTORS:
                lengths = [length.text for length in all_of(*lengths)]
                name = "_".join([vector, *lengths])
                self.head[name] = VECTORS[vector].format(*lengths, dtype=self.dtype)
                return Operand(name, name, eval(self.head[name], {"np": np}))
            case ast.Call(func=ast.Name(id="put"), args=arguments):
                return self.emit("{0}.put({1}, {2})", all_of(*arguments), name)
            case ast.Attribute() | ast.Subscript() | ast.Call():
                parts, form = _slots(node)
                return self.emit(form, all_of(*parts), name)
        raise Inexpressible(f"{self.scope}: the compiler cannot read {ast.unparse(node)!r}")

    def emit(self, form, operands, name):
        """The Operand of a form; appends a kernel for it if it needs one.

        Views and numbers need none, because their text can stand wherever they are read.
        """
        values, texts = [o.value for o in operands], [o.text for o in operands]
        value = eval(form.format(*VALUES, out=""), {"np": np, "v": values})
        if operands and not any(o.name for o in operands):
            return number(value)
        if form.startswith("(") or form.endswith((".T", "[:, None]")) or ".reshape(" in form:
            return Operand(operands[0].name or operands[1].name, form.format(*texts), value)
        if ".put(" in form:  # changes its first operand
            self.kernels.append(Kernel(texts[0], form, operands, values[0], self.scope, texts[0]))
            return operands[0]
        # a second y_dense must not become y_dense_2 if the layer dense_2 already has a y_dense_2
        numbered = (f"{name}_{i}" for i in itertools.count(2))
        name = next(n for n in itertools.chain([name], numbered) if n not in self.names)
        self.names.add(name)
        self.kernels.append(Kernel(name, form, operands, value, self.scope))
        return Operand(name, name, value)

    def rename(self, old, new):
        """Give a result another name, wherever it is read."""
        for kernel in self.kernels:
            kernel.name = new if kernel.name == old else kernel.name
            kernel.operands = [o._replace(name=new, text=o.text.replace(old, new, 1))
                               if o.name == old else o for o in kernel.operands]


def _slots(node):
    """(the expressions in a call, an index or an attribute, its text with slots for them)."""
    match node:
        case ast.Attribute(value=x):
            parts = [x]
        case ast.Subscript(value=x, slice=ast.Tuple(elts=indices)):
            parts = [x, *(i for i in indices if not isinstance(i, (ast.Slice, ast.Constant)))]
        case ast.Call(func=function, args=arguments, keywords=words):
            own = [function.value] if isinstance(function, ast.Attribute) else []
            if re.fullmatch(r"np(\.\w+)+", ast.unparse(function)):
                own = []
            parts = [*own, *arguments, *(word.value for word in words)]
        case _:
            raise Inexpressible(f"the compiler cannot read {ast.unparse(node)!r}")
    text, form, end = ast.unparse(node), "", 0
    for i, part in enumerate(parts):
        found = re.compile(rf"(?<![\w.]){re.escape(ast.unparse(part))}(?!\w|=)").search(text, end)
        form += f"{text[end:found.start()]}{{{i}}}"
        end = found.end()
    form = (form + text[end:]).replace("({0})[", "{0}[")
    called, bracket, rest = form.partition("(")
    form = NAMED.get(called, called) + bracket + rest
    if bracket and not form.startswith(("np.", "{0}.take(", "{0}.argmax(", "{0}.reshape(")):
        raise Inexpressible(f"the compiler does not know the function in {text!r}")
    takes_out = form.startswith("np.") and not form.startswith("np.where")
    return parts, form[:-1] + "{out})" if takes_out else form


# --- What an op is, in the words of its declaration -----------------------------------------------

def inputs_of(node):
    """The names that the op of a node uses for its inputs."""
    return inspect.unwrap(node.op.forward).__code__.co_varnames[:len(node.inputs)]


def environment(node, names, y, **numbers):
    """{name: Operand} of all that the texts of a node's op may read."""
    env = {"labels": Operand("y", "y", y)} | {key: number(value) for key, value in numbers.items()}
    for key, i in zip(inputs_of(node), node.inputs):
        if isinstance(i, tuple) and i != y.shape:  # the graph keeps only an array's shape
            raise Inexpressible(f"{node.op.name} reads an array that is not in the graph")
        env[key] = (names[i] if isinstance(i, (Node, Tensor)) else
                    env["labels"] if isinstance(i, tuple) else number(i))
        env[f"{key}_shape"] = number(np.shape(env[key].value))
    if not node.op.fused:  # the graph keeps the constants, such as an axis, that a VJP reads
        words = [*inputs_of(node), "y", *node.op.constants]
        for (place, _), value in zip(node.plan.kept, node.saved):
            if place > len(node.inputs):
                if isinstance(value, np.ndarray):  # made from this batch; others differ
                    raise Inexpressible(f"{node.op.name} reads an array that is not in the graph")
                env[words[place]] = number(value)
    return env


def texts(node):
    """(forward, backward) of an op, as text: from KERNELS, or else as its declaration has them."""
    op = node.op
    forward, backward = KERNELS.get(op.name, ("", ""))
    if not (forward and backward):
        if op.fused:
            raise Inexpressible(f"the compiler has no kernels for {op.name}")
        declared, *vjps = _declarations(inspect.getmodule(op.vjps[0])).get(op.name) or ["", ""]
        forward = forward or f"y = {declared}"
        backward = backward or "\n".join(
            f"g_{name} = {vjp}" for name, vjp, i in zip(inputs_of(node), vjps, node.inputs)
            if isinstance(i, (Node, Tensor)))
    return forward, backward


@functools.lru_cache
def _declarations(module):
    """{name of an op: [forward, VJP ...]}, the expressions in the lambdas of a module's ops."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module)))
             if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name)
             and node.func.id in ("Op", "View") and isinstance(node.args[0], ast.Constant)]
    return {call.args[0].value: [ast.unparse(getattr(function, "body", function))
                                 for function in call.args[1:]] for call in calls}


def in_order(*ends):
    """These nodes and all that they were made from, in the order in which they were made."""
    nodes, ahead = set(), list(ends)
    while ahead:
        if isinstance(node := ahead.pop(), Node) and node not in nodes:
            nodes.add(node)
            ahead += node.inputs
    return sorted(nodes, key=lambda node: node.number)


# --- Names and comments ---------------------------------------------------------------------------

def identifier(part):
    """A layer's name, in a form that can be part of a name in the program."""
    name = re.sub(r"\W", "_", part.name, flags=re.ASCII)
    return f"layer_{name}" if name[:1].isdigit() else name


def printable(text):
    """The text, safe in a comment: a layer's name from a file, say, must not end the line."""
    return re.sub(r'[^ !#-\[\]-~]', "?", text)
