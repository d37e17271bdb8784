"""The architecture cannot rot: imports inside minidl go down only, and only the allowed packages are used."""

import ast
import inspect
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import minidl

PACKAGE = Path(minidl.__file__).parent
README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
ORDER = re.findall(r"\[`([\w/]+)`\]\(minidl/\1\.py\)", README)  # of the table "Reading the code"
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """tensor, or plotting/graphs: a file as README's table names it."""
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path):
    """(module, names, depth): what is imported, from where; depth 0 is the top of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield ("." * node.level + (node.module or "")), [a.name for a in node.names], id(node) not in top
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, [], id(node) not in top


def targets(path):
    """(file, only when a function needs it): what a file imports from minidl, as README's table names it."""
    for module, names, inside in imports(path):
        if module.startswith("."):
            level = len(module) - len(module.lstrip("."))
            folder = path.parents[level - 1]
            base = folder.joinpath(*filter(None, module[level:].split(".")))
            for name in names:
                found = [base / f"{name}.py", base / name / "__init__.py", base.with_suffix(".py"), base / "__init__.py"]
                yield name_of(next(file for file in found if file.is_file())), inside


def test_the_table_in_the_readme_names_every_file_once():
    assert sorted(ORDER) == sorted(map(name_of, FILES))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_only(path):
    for target, _ in targets(path):
        assert ORDER.index(target) < ORDER.index(name_of(path)), f"{name_of(path)} imports {target}, which is not before it"


def closure(name):
    """The files that are loaded with a file: what it imports at its top, and what those import."""
    found, ahead = set(), [name]
    while ahead:
        if (name := ahead.pop()) not in found:
            found.add(name)
            ahead += [target for target, inside in targets(PACKAGE / f"{name}.py") if not inside]
    return found


def test_what_must_be_read_to_understand_sequential_stays_small():
    files = closure("sequential")
    lines = sum(len((PACKAGE / f"{name}.py").read_text(encoding="utf-8").splitlines()) for name in files)
    assert len(files) <= 12 and lines <= 4650, (sorted(files), lines)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_numpy_matplotlib_and_tqdm_beside_the_standard_library(path):
    for module, _, inside in imports(path):
        package = module.split(".")[0]
        if package in ("matplotlib", "tqdm"):
            assert inside, f"{path.name} must import {package} where it is needed, so that `import minidl` stays quick"
        elif package:
            assert package == "numpy" or package in sys.stdlib_module_names, f"{path.name} imports {package}"


def test_importing_minidl_loads_no_plotting_no_progress_bar_and_no_other_framework():
    code = "import sys, minidl; print([m for m in ('matplotlib', 'tqdm', 'torch', 'keras') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_face_of_the_package():
    names = ["Tensor", "no_grad", "grad", "gradcheck", "Module", "Parameter", "Sequential", "Dense", "Activation", "BatchNorm",
             "Dropout", "Flatten", "functional", "optim", "data", "plotting", "experiments",
             "record", "explain"]
    assert set(names) <= set(minidl.__all__) <= set(dir(minidl))


def code_tokens(path):
    """How many tokens of code a file has, without comments and docstrings: short lines cost nothing."""
    source = path.read_text(encoding="utf-8")
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docstrings = {line for n in nodes if ast.get_docstring(n) for line in range(n.body[0].lineno, n.body[0].end_lineno + 1)}
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in layout]
    return sum(t.start[0] not in docstrings for t in tokens)


def test_the_core_that_a_student_reads_stays_small():
    core = ["tensor", "functional", "gradcheck", "module", "layers", "initializers", "optim", "training", "sequential"]
    assert sum(code_tokens(PACKAGE / f"{name}.py") for name in core) < 25_600


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_everything_public_has_a_docstring(path):
    """One-line operators of Tensor say what they do by their name, setters by their property; the rest is documented."""
    def check(node, owner):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
                one_line = isinstance(child, ast.FunctionDef) and child.body[0].lineno == child.lineno
                setter = any(getattr(d, "attr", "") == "setter" for d in child.decorator_list)
                if not one_line and not setter and not owner.startswith("_"):
                    assert ast.get_docstring(child), f"{path.name}: {owner}{child.name} has no docstring"
                if isinstance(child, ast.ClassDef):
                    check(child, f"{child.name}.")
    check(ast.parse(path.read_text(encoding="utf-8")), "")


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_uses_a_private_name_of_another(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"imports {private} from {node.module}"
            modules |= {alias.asname or alias.name for alias in node.names if alias.name.islower()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            assert owner not in modules, f"line {node.lineno}: {owner}.{node.attr}"


def test_every_public_object_explains_itself_in_its_own_words():
    """Also ops, which are objects: docstring, signature and repr are theirs and not those of their class."""
    for module in (minidl.functional, minidl.tensor):
        ops = {name: op for name, op in vars(module).items() if isinstance(op, minidl.Op)}
        for name, op in ops.items():
            if not name.startswith("_"):
                assert op.__doc__ and op.__doc__ != type(op).__doc__, name
                assert op.__name__ in repr(op) and "inputs" not in inspect.signature(op).parameters, name
        for name, value in vars(module).items():
            if inspect.isfunction(value) and not name.startswith("_"):
                assert value.__doc__, name
