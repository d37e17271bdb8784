"""The lessons as a course: find them, step through one in a terminal, run and check them.

A lesson runs in a process of its own, which is this file as a program: `python -m minidl` has loaded NumPy before
the lesson can say how many threads it wants.
"""

import __future__

import ast
import io
import keyword
import os
import re
import reprlib
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import tokenize
import traceback
import types
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from . import streams

PACKAGE = Path(__file__).resolve().parent
HELP = """
Enter runs the cell    b goes back one cell (what it did stays done)   r runs the last cell again
v lists variables      e EXPRESSION evaluates it                       q quits; Ctrl-C stops a running cell"""
ANSI = {"heading": "1;4", "bold": "1", "italic": "3", "code": "36", "keyword": "1;34", "string": "32", "number": "35",
        "comment": "90"}
# As in CommonMark, a list may begin in the middle of a paragraph, but not with a number above 1 that wrapping put there.
BLOCK = re.compile(r"""
    ^```.*\n (?P<code> (?:.*\n)*? ) ```$
  | ^\$\$ (?P<math> [^$]+ ) \$\$$
  | ^(?P<heading> \#+\ .* )$
  | (?P<table> (?:^\|.*\n)+ )
  | (?P<item> ^(?:-|\d+\.)\ .*\n (?:^(?!-\ |\d+\.\ ).+\n)* )
  | (?P<paragraph> ^.+\n (?:^(?!```|\$\$|\#+\ |\||-\ |1\.\ ).+\n)* )""", re.MULTILINE | re.VERBOSE)
INLINE = re.compile(r"""
    `(?P<code> [^`]+ )` | \$(?P<math> [^$]+ )\$ | \[(?P<link> [^]]+ )\]\((?P<url> [^)\s]+ )\)
  | \*\*(?P<bold> (?=\S).+?(?<=\S) )\*\* | \*(?P<italic> [^*\s](?:[^*]*[^*\s])? )\*""", re.DOTALL | re.VERBOSE)
# as jupytext reads it: not "# %%time", which is a magic in a comment
MARK = re.compile(r"#[ \t]*%%+(?=\s|\[|$)")
MARKDOWN = re.compile(r"(?:%|\s)\[(?:markdown|md)\](?:\s|$)")


class Cell(NamedTuple):
    """Prose in Markdown and the code that follows it, either of them perhaps empty; line: where the code begins."""

    prose: str
    code: str
    line: int


class Outcome(NamedTuple):
    """What came of running a lesson. outputs: what each cell printed, up to the last that ran; errors: from stderr."""

    code: int
    verdict: str
    outputs: list
    errors: str


def lessons(folder=None):
    """The files of the lessons in order; in a wheel they lie inside the package. FileNotFoundError if there are none."""
    folder = folder or next((f for f in (PACKAGE / "lessons", PACKAGE.parent / "lessons") if f.is_dir()), PACKAGE)
    if not (found := sorted(Path(folder).glob("[0-9][0-9]_*.py"))):
        raise FileNotFoundError(f"there are no lessons in {folder}; if minidl is incomplete, install it anew")
    return found


def find(name, folder=None):
    """The file of a lesson, by its number, by a part of its name, or by the path of one of your own."""
    if name.lower().endswith(".py") and Path(name).is_file():
        return Path(name).resolve()
    if re.search(r"[/\\]|\.(py|ipynb)$", name, re.IGNORECASE):
        raise FileNotFoundError(f"there is no lesson {name}: a lesson of your own is named by the "
                                "path of its .py file, those of "
                                "minidl by their numbers")
    known = lessons(folder)
    found = [path for path in known if (int(path.stem[:2]) == int(name) if name.isdecimal() else name in path.stem)]
    if len(found) != 1:
        raise ValueError(f"{'several lessons match' if found else 'no lesson matches'} {name!r}; there are "
                         + ", ".join(path.stem for path in found or known))
    return found[0]


def about(path):
    """(number, title, question, running time) of a lesson. Raises ValueError that says what its first cell must say."""
    prose = cells(path)[0].prose
    heading = re.match(r"# (\d+)\. (.+?): (.+)", prose)
    time = re.search(r"Running time: (.+?)\.(?: |$)", " ".join(prose.split()))
    if not heading or not time:
        raise ValueError(f"{path}: the first cell must begin '# 7. Title: question?' and say 'Running time: 5 seconds.'")
    return int(heading[1]), heading[2], heading[3][0].upper() + heading[3][1:], time[1]


def cells(path):
    """The cells of a lesson: `# %% [markdown]` begins prose in comments, any other `# %%` code.

    The last has no code.
    Raises ValueError that names file and line for a text that Python would not read either.
    """
    text = read(path)
    lines = text.split("\n")
    marks = [*_marks(text), len(lines) + 1]
    found, prose = [], []
    preamble = "\n".join(lines[:marks[0] - 1])
    # not just a coding or jupytext's settings
    if len(marks) == 1 or re.search(r"^\s*[^#\s]", preamble, re.MULTILINE):
        found += _code_cell([], preamble, 1)
    for start, end in zip(marks, marks[1:]):
        body, line = "\n".join(lines[start:end - 1]), start + 1
        if MARKDOWN.search(lines[start - 1]):
            said, code = _said(body)
            prose.append(said)
            line += body[:len(body) - len(code)].count("\n")
            body = code
        if cell := _code_cell(prose, body, line):
            found, prose = found + cell, []
    return [*found, Cell("\n\n".join(prose), "", len(lines) + 1)]


def _code_cell(prose, body, line):
    """[the Cell with this code, which begins in this line], or [] if there is none."""
    code = re.sub(r"^(?:[ \t\f]*\n)+", "", body)
    line += body[:len(body) - len(code)].count("\n")
    return [Cell("\n\n".join(prose), code.rstrip(), line)] if code.strip() else []


def _said(body):
    """(prose, code) of a Markdown cell: comments, or a text in quotes; then code, perhaps."""
    if re.match(r"\s*r?(\"{3}|'{3})", body):
        try:
            text = ast.parse(body).body[0]
            rest = body.split("\n")[text.end_lineno:]
            return ast.literal_eval(text.value).strip(), "\n".join(rest)
        except (SyntaxError, ValueError, AttributeError):
            return "", body
    said = re.match(r"(?:[ \t]*(?:#.*)?(?:\n|$))*", body)[0]
    return re.sub(r"^[ \t]*# ?", "", said, flags=re.MULTILINE).strip(), body[len(said):]


def read(path):
    """A file's text as Python reads it: any newlines, a byte order mark, a named encoding."""
    content = Path(path).read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or content.count(b"\0") > len(content) / 3:
        raise ValueError(f"{path} is saved as UTF-16, which Python cannot run: choose UTF-8 in "
                         "your editor's Save As")
    encoding = "utf-8"
    try:
        try:
            encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        except SyntaxError as error:
            content.decode("utf-8")  # if this fails, it is the reason
            raise ValueError(f"{path}: Python cannot read its first lines, {error}") from None
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        remedy = "" if "utf" in encoding else (f"; its first lines say {encoding}, correct them "
                                               "if it is saved as UTF-8")
        raise ValueError(f"{path}, line {line}: the byte {content[error.start]:#04x} is not "
                         f"{encoding.upper()}, so Python cannot run it"
                         + (remedy or ": save the file as UTF-8, or name its encoding in the first "
                                      "line, # coding: latin-1")) from None
    if "\0" in text:
        raise ValueError(f"{path}, line {text.count(chr(10), 0, text.index(chr(0))) + 1}: Python "
                         "cannot run a file with a zero byte in "
                         "it: delete the line and write it anew")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _marks(text):
    """The numbers of the lines that begin a cell: not those within a text in quotes."""
    marks, read_to = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            read_to = token.end[0]
            if token.type == tokenize.COMMENT and token.start[1] == 0 and MARK.match(token.string):
                marks.append(token.start[0])
    # the rest is no Python, or a text in quotes does not end
    except (tokenize.TokenError, SyntaxError):
        marks += [number for number, line in enumerate(text.split("\n"), 1) if number > read_to
                  and MARK.match(line)]
    return marks


def blocks(markdown):
    """(kind, text) of each block: heading, paragraph, item of a list, table, code, math."""
    return [(match.lastgroup, match[match.lastgroup].rstrip()) for match in BLOCK.finditer(markdown + "\n")]


def highlight(code):
    """(kind, text) of each piece of Python code; kind: keyword, string, number, comment, or nothing for the rest."""
    starts, done = [0, 0], 0
    for line in code.split("\n"):  # splitlines() would also split at form feeds
        starts.append(starts[-1] + len(line) + 1)
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            kind = tokenize.tok_name[token.type].lower()
            kind = "keyword" if keyword.iskeyword(token.string) else "string" if kind[1:7] == "string" else kind
            if kind in ANSI:
                start, end = (starts[row] + column for row, column in (token.start, token.end))
                yield from (("", code[done:start]), (kind, code[start:end]))
                done = end
    except (tokenize.TokenError, SyntaxError):
        pass  # what is no Python is shown as it is
    yield "", code[done:]


def launch(mode, path):
    """Run a lesson on this terminal; returns the exit code. mode: "step" or "run"."""
    cells(path)  # if it cannot be read, say so here
    child = subprocess.Popen(**_process(mode, path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the child, which must not inherit this
    try:
        code = child.wait()
        return 128 - code if code < 0 else code  # ended by a signal: what a shell makes of it
    finally:
        signal.signal(signal.SIGINT, before)


def check(path, **variables):
    """Run a lesson without a display, with these variables; print and return the Outcome."""
    print(f"{path.stem.replace('_', ' ', 1):32}", end="", flush=True)
    mark, began = secrets.token_hex(), perf_counter()
    result = subprocess.run(**_process("run", path, mark, PYTHONIOENCODING="utf-8", MPLBACKEND="agg", **variables),
                            stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace")
    outputs = result.stdout.split(mark)[1:]
    checks = re.findall(r"^CHECK .+, (?:PASS|FAIL)$", "".join(outputs), re.MULTILINE)
    failed = [line for line in checks if line.endswith("FAIL")]
    verdict = (f"{'FAIL' if result.returncode else 'PASS'}  {len(checks) - len(failed)} of {len(checks)} checks  "
               f"{perf_counter() - began:.1f} s")
    if result.returncode and not failed:
        failed = result.stderr.splitlines()[-1:] or [f"ended with code {result.returncode}"]
    print("\n    ".join([verdict, *failed]))
    return Outcome(result.returncode, verdict, outputs, result.stderr)


def _process(mode, path, mark="", **variables):
    if streams.in_browser():
        raise OSError("a lesson is run in a process of its own, and a browser has none: open the "
                      "lesson as a notebook, or run it "
                      f"in this process: import runpy; runpy.run_path({str(path)!r}, "
                      "run_name='__main__')")
    return {"args": [sys.executable, "-m", "minidl.course", mode, str(path), mark],
            "env": {"OPENBLAS_NUM_THREADS": "1", **os.environ, **variables}}


def run(path, mark=""):
    """Run all cells in this process, printing the mark before each, up to the first error."""
    namespace = _new_main(path)
    for cell in cells(path):
        print(mark, end="", flush=True)
        if error := _execute(cell.code, cell.line, path, namespace):
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(130)
            raise SystemExit(error.code if isinstance(error, SystemExit) else 1)


def step(path):
    """Step through a lesson in this process: show a cell, do what the student types, until q or the end of input."""
    namespace, stops, at, shown, last = _new_main(path), cells(path), 0, None, None
    print(HELP)
    while at < len(stops):
        cell = stops[at]
        if cell is not shown:
            code = "".join(_paint(*piece) for piece in highlight(cell.code))
            print("\n" + "\n\n".join(filter(None, [_prose(cell.prose), code])) + "\n")
            shown = cell
        try:
            place = f"cell {at + 1} of {len(stops) - 1}" if cell.code else "the end"
            word, _, rest = input(f"{place} (Enter b r v e q) > ").strip().partition(" ")
        except EOFError:
            print()
            word = "q"
        except (KeyboardInterrupt, UnicodeDecodeError):
            word = "?"
        error = None
        if word == "q":
            return
        elif word == "b":
            at = max(0, at - 1)
        elif word == "v":
            print(_variables(namespace))
        elif word == "e":
            error = _execute(rest, 1, "<e>", namespace, "single")
        elif word == "r" and last:
            error = _execute(last.code, last.line, path, namespace)
        elif word == "":
            error = _execute(cell.code, cell.line, path, namespace)
            at, last = at + 1, cell
        else:
            print(HELP)
        if isinstance(error, SystemExit):
            print(f"here the lesson ends: {'exit code 0' if error.code is None else error.code}")


def _new_main(path):
    """The names of an empty __main__ in the place of this one, as if Python had started the lesson."""
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__, sys.argv = str(path), [str(path)]
    if not getattr(sys.flags, "safe_path", False):
        sys.path.append(sys.path[0])  # last, it may be where minidl is
        sys.path[0] = str(Path(path).parent)  # so that the lesson finds files beside it
    return vars(main)


def _execute(code, line, path, namespace, mode="exec"):
    """Run code that stands at this line of the file; returns the exception, which it shows."""
    features = (name for name in __future__.all_feature_names
                if namespace.get(name) is getattr(__future__, name))
    # imported by a cell before
    future = sum(getattr(__future__, name).compiler_flag for name in features)
    try:
        exec(compile("\n" * (line - 1) + code, str(path), mode, future, dont_inherit=True),
             namespace)
    except SystemExit as end:
        return end
    except BaseException as error:  # Ctrl-C as well
        if isinstance(error, OSError) and (unwritten := streams.lost(error)):
            raise SystemExit(streams.sentence(unwritten)) from None
        if isinstance(error, KeyboardInterrupt):
            print("\ninterrupted (KeyboardInterrupt)", file=sys.stderr)
        else:
            traceback.print_exception(error.with_traceback(error.__traceback__.tb_next))
        return error


def _variables(namespace):
    lines = []
    for name, value in namespace.items():
        if not name.startswith("_") and not isinstance(value, (types.ModuleType, types.FunctionType, type)):
            array = hasattr(value, "shape") and hasattr(value, "dtype")
            what = f"{value.dtype} {value.shape}" if array else textwrap.shorten(reprlib.repr(value), 60)
            lines.append(f"{name:16} {type(value).__name__:12} {what}")
    return "\n".join(lines) or "no variables yet"


def _prose(markdown):
    """Markdown for this terminal: wrapped; formulas and tables as they are written."""
    width = min(100, shutil.get_terminal_size().columns or 80)  # some terminals say 0; Python 3.10 believes them
    shown = []
    for kind, text in blocks(markdown):
        if kind in ("paragraph", "item"):
            text = textwrap.fill(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False,
                                 subsequent_indent=" " * (text.index(" ") + 1) if kind == "item" else "")
            text = INLINE.sub(lambda match: _paint(match.lastgroup, match[match.lastgroup], match[0]), text)
        shown.append(_paint("heading", text.lstrip("# "), text) if kind == "heading" else text)
    return "\n\n".join(shown)


def _paint(kind, text, plain=None):
    """Text in the colour of its kind; plain, or the text itself, where there are no colours."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and (os.name != "nt" or "WT_SESSION" in os.environ)
    return f"\033[{ANSI[kind]}m{text}\033[0m" if kind in ANSI and colours else plain or text


if __name__ == "__main__":
    with streams.guarded():
        if sys.argv[1] == "step":
            step(Path(sys.argv[2]))
        else:
            run(Path(sys.argv[2]), sys.argv[3])
