"""Docstrings: the examples that a beginner reads first run as printed, and first lines are whole."""

import ast
import doctest
from pathlib import Path

import numpy as np
import pytest

import minidl
import minidl.functional as F
from minidl import data, experiments, optim

PACKAGE = Path(minidl.__file__).parent
OPENED_FIRST = [minidl.Tensor, minidl.Dense, minidl.Activation, minidl.BatchNorm, minidl.Sequential,
                optim.SGD, F.cross_entropy, data.load, experiments.compare, minidl.grad,
                minidl.gradcheck]


@pytest.mark.parametrize("thing", OPENED_FIRST, ids=lambda thing: thing.__qualname__)
def test_the_example_runs_as_printed(thing, monkeypatch):
    monkeypatch.delenv("MINIDL_DATA", raising=False)
    names = {**vars(minidl), **vars(F), **vars(optim), **vars(data), **vars(experiments), "np": np}
    found = doctest.DocTestFinder(recurse=False).find(thing, globs=names)
    assert sum(len(test.examples) for test in found) > 0
    complaints = []
    runner = doctest.DocTestRunner(verbose=False)
    for test in found:
        runner.run(test, out=complaints.append)
    assert not complaints, "".join(complaints)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")),
                         ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_first_line_of_a_docstring_stands_alone(path):
    """Editors and the API page show it by itself: no sentence is cut in the middle of it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            _, *rest = (ast.get_docstring(node) or "").split("\n")
            assert not rest or not rest[0], f"{getattr(node, 'name', path.name)}: {rest[0]}"
