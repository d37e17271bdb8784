"""One slip in a right solution: a turned sign, a factor left out, a wrong name, and so on.

Where a student's numbers are those of such a variant, the slip can be named although it stands in
no list. Because the comparison is with numbers, the sentence holds for any way of writing the
formula: "the numbers you get when gamma is left out".
"""

import ast
import copy
from functools import lru_cache
from itertools import combinations

from .cells import read

LONGEST = 20  # characters of an expression that is quoted; a longer one would give the answer away
ATTRIBUTES = [f"layer.{name}" for name in ("gamma", "beta", "running_mean", "running_var", "eps",
                                           "momentum")]
SIBLINGS = {"sum": ("mean",), "mean": ("sum", "max"), "var": ("std",), "std": ("var",),
            "argmin": ("argmax",), "argmax": ("argmin",), "zeros": ("ones",), "ones": ("zeros",)}


@lru_cache(maxsize=None)
def variants(exercise):
    """[(words, {function: variant})] of the functions that a student writes in this exercise.

    Functions with a `while` are left out, since a variant of them might not end; an exercise whose
    functions take long names those that are worth it, VARIED.
    """
    visible = ast.parse(read(exercise.__file__).partition("# %% The checks")[0])
    wanted = getattr(exercise, "VARIED", None)
    made, seen = [], set()
    for function in visible.body:
        if (not isinstance(function, ast.FunctionDef)
                or wanted is not None and function.name not in wanted
                or any(isinstance(node, ast.While) for node in ast.walk(function))):
            continue
        for words, changed in sorted(_slips(function), key=lambda slip: slip[0].count("`")):
            text = ast.unparse(changed)
            if text not in seen:
                seen.add(text)
                namespace = dict(vars(exercise))
                exec(compile(text, "<a variant>", "exec"), namespace)
                made.append((words, {function.name: namespace[function.name]}))
    return made


def _slips(function):
    """(words, the function's tree with one slip in it)."""
    places = [path for path in _paths(function)
              if path and not isinstance(_at(function, path[:-1]), ast.arguments)]
    for path in places:
        node = _at(function, path)
        if isinstance(node, ast.expr) and not isinstance(_at(function, path[:-1]), ast.keyword):
            for words, other in _instead(node):
                yield words, _with(function, path, other)
    yield from _unbracketed(ast.unparse(function))
    names = _names(function)
    for path in places:
        node = _at(function, path)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ATTRIBUTES:
            for other in ATTRIBUTES:
                if other != ast.unparse(node):
                    yield (f"`{other}` stands where `{ast.unparse(node)}` belongs",
                           _with(function, path, ast.parse(other, mode="eval").body))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
            line = _at(function, path[:1])
            for other in sorted(_used(line) & names - {node.id}):
                yield (f"`{other}` stands where `{node.id}` belongs",
                       _with(function, path, ast.Name(other, ast.Load())))
            yield (f"the square of `{node.id}` stands where `{node.id}` itself belongs",
                   _with(function, path, ast.BinOp(node, ast.Pow(), ast.Constant(2))))
    for a, b in combinations(sorted(names), 2):
        for path in [(), *(path for path in places if isinstance(
                _at(function, path), (ast.Return, ast.Assign, ast.BinOp)))]:
            where = _at(function, path)
            if {a, b} <= _used(where):
                yield (f"`{a}` and `{b}` are exchanged",
                       _with(function, path, _Exchange({a: b, b: a}).visit(copy.deepcopy(where))))
    for i, line in enumerate(function.body):
        if isinstance(line, ast.Assign):
            changed = copy.deepcopy(function)
            target = ast.unparse(changed.body.pop(i).targets[0])
            yield f"the line that computes `{target}` is missing, so that the old one is used", changed
        for j in range(i + 1, len(function.body) - 1):
            changed = copy.deepcopy(function)
            changed.body.insert(j, changed.body.pop(i))
            yield "a line comes too late, so that an old value is used before it", changed


def _unbracketed(text):
    """The same with one pair of brackets less, where that is not the pair of a call."""
    for start in (i for i, sign in enumerate(text) if sign == "(" and text[i - 1] in " (-"):
        depth, end = 1, start
        while depth:
            end += 1
            depth += {"(": 1, ")": -1}.get(text[end], 0)
        inner = text[start + 1:end]
        try:
            changed = ast.parse(text[:start] + inner + text[end + 1:]).body[0]
        except SyntaxError:
            continue
        short = f"`{inner}`" if len(inner) <= LONGEST else "a sum"
        yield f"the brackets around {short} are missing", changed


def _instead(node):
    """(words, expression): what may stand by mistake in the place of this expression."""
    if isinstance(node, ast.BinOp):
        yield from _operation(node)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield f"{_quoted(node.operand, 'a term')} has the wrong sign", node.operand
    if isinstance(node, ast.Call):
        yield from _called(node)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        for other in {node.value - 1, node.value + 1, -node.value} - {node.value}:
            yield f"{other} stands where {node.value} belongs", ast.Constant(other)


def _operation(node):
    left, right, op = node.left, node.right, node.op
    a, b = _quoted(left, "a term"), _quoted(right, "a term")
    if isinstance(op, (ast.Add, ast.Sub)):
        minus = isinstance(op, ast.Sub)
        yield f"{b} has the wrong sign", ast.BinOp(left, (ast.Sub, ast.Add)[minus](), right)
        yield f"{a} has the wrong sign", ast.BinOp(ast.UnaryOp(ast.USub(), left), op, right)
        yield f"{b} is left out", left
        yield f"{a} is left out", ast.UnaryOp(ast.USub(), right) if minus else right
        for factor in _factors(right):  # a - b c for (a - b) c is made where c is met
            yield (f"{_quoted(factor, 'a factor')} multiplies the whole sum, not only its last term",
                   ast.BinOp(ast.BinOp(left, op, _without(right, factor)), ast.Mult(), factor))
    if isinstance(op, (ast.Mult, ast.Div)):
        a, b = _quoted(left, "a factor"), _quoted(right, "a factor")
        divides = isinstance(op, ast.Div)
        yield f"{b} is left out", left
        if divides:
            yield f"{a} is left out", ast.BinOp(ast.Constant(1), op, right)
            yield f"{b} multiplies where it should divide", ast.BinOp(left, ast.Mult(), right)
        else:
            yield f"{a} is left out", right
            yield f"{b} divides where it should multiply", ast.BinOp(left, ast.Div(), right)
            yield f"{a} divides where it should multiply", ast.BinOp(right, ast.Div(), left)
    if isinstance(op, ast.Pow):
        yield f"the power of {_quoted(left, 'a number')} is forgotten", left
        yield (f"{_quoted(left, 'a number')} is multiplied by the exponent instead of raised to it",
               ast.BinOp(left, ast.Mult(), right))
        yield f"the absolute value of {a} stands where a power belongs", _call("np.abs", left)
        yield "base and exponent are exchanged", ast.BinOp(right, op, left)
    if isinstance(op, ast.MatMult):
        yield "the two factors of a matrix product are exchanged", ast.BinOp(right, op, left)


def _called(node):
    name = ast.unparse(node.func)
    if name in ("np.sqrt", "np.exp", "np.abs", "np.log") and len(node.args) == 1:
        yield f"`{name}` is forgotten", node.args[0]
        inner = node.args[0]
        if isinstance(inner, ast.BinOp) and isinstance(inner.op, ast.Add):
            yield (f"{_quoted(inner.right, 'a term')} is added outside of `{name}`",
                   ast.BinOp(_call(name, inner.left), inner.op, inner.right))
        if isinstance(inner, ast.UnaryOp):
            yield "the sign in an exponent is wrong", _call(name, inner.operand)
    if isinstance(node.func, ast.Attribute):
        for other in SIBLINGS.get(node.func.attr, ()):
            changed = copy.deepcopy(node)
            changed.func.attr = other
            yield f"`{other}` stands where `{node.func.attr}` belongs", changed
    for i, keyword in enumerate(node.keywords):
        if isinstance(keyword.value, ast.Constant):
            short = name.split(".")[-1]
            changed = copy.deepcopy(node)
            del changed.keywords[i]
            yield f"`{keyword.arg}` is not given to `{short}`", changed
            if keyword.arg == "axis":
                other = copy.deepcopy(node)
                other.keywords[i].value = ast.Constant(1 - keyword.value.value)
                yield (f"`{short}` runs along axis {1 - keyword.value.value} instead of axis "
                       f"{keyword.value.value}"), other
    if isinstance(node.func, ast.Attribute) and node.func.attr in ("var", "std") and not any(
            keyword.arg == "ddof" for keyword in node.keywords):
        changed = copy.deepcopy(node)
        changed.keywords.append(ast.keyword("ddof", ast.Constant(1)))
        yield "the variance is the unbiased one, `ddof=1`", changed


def _factors(node):
    return [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(
        node.op, ast.Mult) else []


def _without(product, factor):
    return product.right if factor is product.left else product.left


def _quoted(node, otherwise):
    text = ast.unparse(node)
    return f"`{text}`" if len(text) <= LONGEST else otherwise


def _call(name, argument):
    return ast.Call(ast.parse(name, mode="eval").body, [argument], [])


def _names(function):
    """The parameters, and the names that are assigned."""
    return {a.arg for a in function.args.args} | {
        node.id for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _used(node):
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


class _Exchange(ast.NodeTransformer):
    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        if isinstance(node.ctx, ast.Load):
            node.id = self.names.get(node.id, node.id)
        return node


def _paths(node, path=()):
    """The paths to all nodes of a tree: (field, index or None) per step."""
    yield path
    for field, value in ast.iter_fields(node):
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST):
                yield from _paths(child, (*path, (field, i)))


def _at(node, path):
    for field, i in path:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    return node


def _with(function, path, other):
    """A copy of the tree with another node at this path."""
    if not path:
        return other
    changed = copy.deepcopy(function)
    parent, (field, i) = _at(changed, path[:-1]), path[-1]
    if i is None:
        setattr(parent, field, other)
    else:
        getattr(parent, field)[i] = other
    return changed
