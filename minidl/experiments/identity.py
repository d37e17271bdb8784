"""What a job's result depends on, as a name: a sweep with a cache keeps the result under it.

Whatever can change the result must change the name. It is therefore made of the settings, by type
and content; of the state of objects; of the code of all functions and classes reached on the way,
and the text of their files and of all project files that those import; of minidl's own text,
NumPy's version, the MINIDL_ variables and the images behind the names of data sets. What cannot be
told apart is refused. Not seen are other files and variables that a job reads by itself, unless a
setting names the file, and lists and dicts of a module that the job writes into: pass them as
settings.
"""

import ast
import copyreg
import dis
import hashlib
import inspect
import json
import os
import reprlib
import sys
import sysconfig
import textwrap
from importlib import util
from pathlib import Path
from types import BuiltinMethodType, CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple

import numpy as np

from .. import data

PACKAGE = Path(__file__).resolve().parent.parent
WITHOUT_EFFECT = "MINIDL_FIGURES", "MINIDL_OFFLINE"  # variables that change no number
PLAIN = type(None), bool, int, complex, str, bytes, type(...)
OF_EVERY_CLASS = {"__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__",
                  "__static_attributes__"}
GENERATORS = "Generator", "RandomState", "Random"  # by name: NumPy loads its own when needed
# methods that leave a list or dict as it is
READING = {"get", "items", "keys", "values", "index", "count", "copy"}


def of_data(name):
    """A checksum of the images of `data.load(name)`; "published" where only that set counts."""
    found, _ = data.find(name)
    if found is None or name in data.published.SETS and not found.own:
        return "published"
    return _digest(b"".join(_digest(array).encode() for array in found.arrays))


class Namer:
    """Gives jobs their names. One per sweep: it remembers the arrays and files that it has read."""

    def __init__(self):
        variables = {name: value for name, value in os.environ.items()
                     if name.startswith("MINIDL_") and name not in WITHOUT_EFFECT}
        self.arrays = {}
        self.files = {}
        self.imports = {}
        self.uses = {}
        texts = [self._file(path) for path in sorted(PACKAGE.rglob("*.py"))]
        self.surroundings = [sys.version_info[:2], np.__version__, sorted(variables.items()),
                             _data_sets(), texts]

    def name(self, job, settings):
        """24 letters and digits; ValueError for what a later run could not recognise."""
        self.reached, self.modules, self.active, self.written = {}, set(), set(), set()
        what = [self._describe(job),
                [[name, self._describe(value)] for name, value in sorted(settings.items())]]
        written = None
        # again, now that it is known what the functions write into
        while self.written != written:
            written, code = set(self.written), {}
            while new := self.reached.keys() - code.keys():
                for key in new:
                    code[key] = [_qualified(self.reached[key]), self._code(self.reached[key])]
        texts = self._texts()
        text = json.dumps([self.surroundings, what, sorted(map(json.dumps, code.values())), texts])
        return _digest(text.encode())[:24]

    # --- Values

    def _describe(self, value):
        """A value as something that JSON knows: equal for equal types and contents only."""
        kind = type(value)
        if kind is str and os.path.isfile(value):
            return ["file", value, self._file(value)]
        if kind in PLAIN:
            return [kind.__name__, repr(value)]
        if kind is float:
            return ["float", value.hex()]
        if isinstance(value, np.generic) and kind is not np.void:
            return [value.dtype.str, value.tobytes().hex()]
        if isinstance(value, Path):
            return [kind.__name__, str(value), self._file(value) if value.is_file() else None]
        if isinstance(value, FunctionType | type | BuiltinMethodType | MethodType):
            return self._callable(value)
        if id(value) in self.active:
            return "the same again"  # an object that holds itself
        self.active.add(id(value))
        try:
            return self._container(value, kind)
        finally:
            self.active.discard(id(value))

    def _container(self, value, kind):
        if kind is np.ndarray and not value.dtype.hasobject:
            if id(value) not in self.arrays:
                # kept alive, so that no other array gets its id
                self.arrays[id(value)] = value, _digest(value)
            return self.arrays[id(value)][1]
        if kind is np.ndarray:
            return ["objects", value.shape, self._describe(value.ravel().tolist())]
        if kind in (list, tuple):
            return [kind.__name__, *map(self._describe, value)]
        if kind is dict:
            return ["dict",
                    *([self._describe(key), self._describe(item)] for key, item in value.items())]
        if kind in (set, frozenset):
            return [kind.__name__, *sorted(json.dumps(self._describe(item)) for item in value)]
        try:
            special = copyreg.dispatch_table.get(kind)
            # what pickle would keep of the object
            parts = special(value) if special else value.__reduce_ex__(4)
        except Exception:
            raise _refusal(value) from None
        if isinstance(parts, str):  # a global name
            self._reach(getattr(value, "__wrapped__", None))  # by functools.cache, for example
            return [getattr(value, "__module__", None), parts]
        make, arguments, state, items, pairs, *_ = (*parts, None, None, None)
        return [self._describe(kind),
                *map(self._describe,
                     (make, arguments, state, list(items or ()), list(pairs or ())))]

    def _callable(self, value):
        if isinstance(value, MethodType):
            self._reach(value.__func__)
            return ["method", self._describe(value.__self__), _qualified(value.__func__)]
        owner = getattr(value, "__self__", None)
        if isinstance(value, BuiltinMethodType) and not isinstance(owner, ModuleType | None):
            return ["method", self._describe(value.__self__), value.__name__]
        module = found = sys.modules.get(value.__module__)
        for part in value.__qualname__.split("."):
            found = getattr(found, part, None)
        # as of a function in a notebook
        if found is not value or not (getattr(module, "__file__", None) or module.__spec__):
            raise _refusal(value)
        self._reach(value)
        return _qualified(value)

    # --- Code

    def _reach(self, value):
        """Note a function or class; those of the project are looked into."""
        if isinstance(value, FunctionType | type):
            self.modules.add(value.__module__)
            if _of_the_project(_path(value.__module__)):
                self.reached[id(value)] = value

    def _code(self, value):
        """What Python made of a function or class: its file may have changed since."""
        if isinstance(value, FunctionType):
            if id(value) not in self.uses:
                # kept alive, so that no other function gets its id
                self.uses[id(value)] = value, _use(value)
            use = self.uses[id(value)][1]
            self.written |= use.written
            stored = {step.argval for step in dis.get_instructions(value.__code__)
                      if step.opname == "STORE_GLOBAL"}
            found = {name: value.__globals__[name] for name in sorted(use.names - stored)
                     if name in value.__globals__}
            for name in use.loaded & found.keys():
                if type(found[name]).__name__ in GENERATORS:
                    raise ValueError(f"{_qualified(value)} uses the random generator {name!r} of "
                                     "its file, so that its results depend on what ran before: "
                                     "make a generator in the job, from a seed among its settings")
            held = dict(zip(value.__code__.co_freevars,
                            (cell.cell_contents for cell in value.__closure__ or ())))
            defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).items()]
            return [_instructions(value.__code__), self._found(found, use), self._found(held, use),
                    [self._seen(item, use, False) for item in defaults]]
        members = {name: member for name, member in sorted(vars(value).items())
                   if name not in OF_EVERY_CLASS}
        return [[self._seen(base, None, False) for base in value.__bases__],
                self._found(members, None)]

    def _found(self, values, use):
        return {name: self._seen(value, use, name in self.written)
                for name, value in values.items()}

    def _seen(self, value, use, written):
        """What code finds in its module, class, closure or defaults.

        Of a list or dict into which it writes, only the type.
        """
        if isinstance(value, ModuleType):
            inside = use.names if use and _of_the_project(getattr(value, "__file__", None)) else ()
            return self._found({name: vars(value)[name] for name in sorted(inside)
                                if name in vars(value)
                                and not isinstance(vars(value)[name], ModuleType)}, use)
        if isinstance(value, FunctionType | type):
            self._reach(value)
            return _qualified(value)
        if isinstance(value, staticmethod | classmethod):
            return self._seen(value.__func__, use, written)
        if isinstance(value, property):
            return [self._seen(function, use, written)
                    for function in (value.fget, value.fset, value.fdel)]
        if isinstance(value, list | dict | set) and written:
            return type(value).__name__
        if type(value) in (list, tuple):
            return [type(value).__name__, *(self._seen(item, use, written) for item in value)]
        if type(value) is dict:
            return ["dict",
                    *([repr(key), self._seen(item, use, written)] for key, item in value.items())]
        if type(value) in PLAIN:
            return repr(value)
        try:
            return self._describe(value)
        except ValueError:  # it cannot be told apart, but its file's text counts
            return type(value).__name__

    # --- Files

    def _file(self, path):
        path = str(path)
        if path not in self.files:
            content = hashlib.sha256()
            with open(path, "rb") as file:
                while piece := file.read(2 ** 20):  # it may be larger than the memory
                    content.update(piece)
            self.files[path] = content.hexdigest()
        return self.files[path]

    def _texts(self):
        """[module, checksum of its file] of all that was met, of what that imports, and so on."""
        found, waiting = {}, sorted(self.modules)
        while waiting:
            module = waiting.pop()
            path = None if module in found else _path(module)
            if path and os.path.isfile(path) and (module in self.modules or _of_the_project(path)):
                found[module] = self._file(path)
                if module not in self.imports:
                    self.imports[module] = _imports(module, path) if _of_the_project(path) else []
                waiting += self.imports[module]
        return sorted(found.items())


def _digest(content):
    """The SHA-256 of bytes, or of an array with its dtype and shape."""
    if isinstance(content, np.ndarray):
        content = repr((content.dtype.descr, content.shape)).encode() + content.tobytes()
    return hashlib.sha256(content).hexdigest()


def _data_sets():
    """{name: checksum} of the images that a job can load by name, or what is wrong with them."""
    found = {}
    # elsewhere published sets are checked by md5
    for name in data.NAMES if os.environ.get("MINIDL_DATA") else ("digits",):
        try:
            found[name] = of_data(name)
        except (OSError, ValueError) as error:
            found[name] = str(error)
    return found


def _refusal(value):
    return ValueError(f"{reprlib.repr(value)} has nothing by which a later run would know it "
                      "again: a sweep with a cache takes numbers, strings, arrays, functions and "
                      "classes defined at the top of a file, and objects that pickle can save; "
                      "make the rest inside the job")


def _qualified(value):
    return f"{value.__module__}:{value.__qualname__}"


def _instructions(code):
    """Bytecode, constants and names of a function and of those within it."""
    constants = [_instructions(item) if isinstance(item, CodeType) else
                 sorted(map(repr, item)) if isinstance(item, frozenset) else repr(item)
                 for item in code.co_consts]
    return [code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]


class Use(NamedTuple):
    """Names in a function: all, attributes too; those it loads; what it writes into."""

    names: set
    loaded: set
    written: set


def _use(function):
    """The Use of a function, from its text; where there is none, it may write into anything."""
    names = _names(function.__code__)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return Use(names, names, names)
    loaded, written = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, set()
    for node in ast.walk(tree):
        into = None
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr not in READING:
            into = node.func.value  # x.append(1)
        elif isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            into = node.value  # x[0] = 1, x.a = 1
        while isinstance(into, ast.Subscript):
            into = into.value
        if isinstance(into, ast.Name | ast.Attribute):
            written.add(into.id if isinstance(into, ast.Name) else into.attr)
    return Use(names, loaded, written)


def _names(code):
    """The global names, attributes and free variables that a function uses, and those within it."""
    within = (_names(item) for item in code.co_consts if isinstance(item, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*within)


def _of_the_project(path):
    """Whether a file is the user's: not Python's, not of an installed package, not of minidl."""
    path = path and Path(path).resolve()
    installed = {"site-packages", "dist-packages"}
    return bool(path and path.is_file() and not installed & {*path.parts} and path.parent != PACKAGE
                and not path.is_relative_to(Path(sysconfig.get_path("stdlib")).resolve()))


def _path(module):
    """The file of a module, imported or not; None if it has none."""
    if module in sys.modules:
        return getattr(sys.modules[module], "__file__", None)
    package = module.rpartition(".")[0]
    if package and (path := _path(package)) and not _of_the_project(path):
        return None  # looking for it would import the package
    try:
        return getattr(util.find_spec(module), "origin", None)
    except Exception:  # of the package's __init__.py, whatever it does
        return None


def _imports(module, path):
    """The names of all modules that a module's text may import, wherever it does."""
    parts, found = module.split("."), set()
    if package := getattr(sys.modules.get(module), "__package__", None):  # also of `python -m`
        parts = package.split(".")
    elif not path.endswith("__init__.py"):
        parts.pop()
    try:
        nodes = [*ast.walk(ast.parse(Path(path).read_bytes()))]
    # a compiled one, or one for another Python that is imported conditionally
    except (SyntaxError, ValueError):
        nodes = []
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            above = parts[:len(parts) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            steps = name.split(".")
            found |= {".".join(steps[:n]) for n in range(1, len(steps) + 1)}
    return sorted(found)
