"""Lessons as files: where they are, and the cells of each."""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent
# as in jupytext, for which "# %%time" is no mark but a magic command in a comment
MARK = re.compile(r"#[ \t]*%%+(?=\s|\[|$)")
MARKDOWN = re.compile(r"(?:%|\s)\[(?:markdown|md)\](?:\s|$)")


class Cell(NamedTuple):
    """Prose in Markdown and the code that follows it, either of which may be empty.

    line: the line of the file on which the code begins.
    """

    prose: str
    code: str
    line: int


def lessons(folder=None):
    """The files of the lessons in order; in a wheel they are inside the package.

    Raises FileNotFoundError if there are none.
    """
    folder = folder or next(
        (f for f in (PACKAGE / "lessons", PACKAGE.parent / "lessons") if f.is_dir()), PACKAGE
    )
    if not (found := sorted(Path(folder).glob("[0-9][0-9]_*.py"))):
        raise FileNotFoundError(f"there are no lessons in {folder}; if minidl is incomplete, "
                                "install it anew")
    return found


def find(name, folder=None):
    """The file of a lesson, found by number, by part of its name, or by the path of your own file.

    Raises FileNotFoundError for a path without a file, and ValueError unless exactly one lesson
    matches.
    """
    if name.lower().endswith(".py") and Path(name).is_file():
        return Path(name).resolve()
    if re.search(r"[/\\]|\.(py|ipynb)$", name, re.IGNORECASE):
        raise FileNotFoundError(f"there is no lesson {name}: a lesson of your own is named by the "
                                "path of its .py file, those of "
                                "minidl by their numbers")
    known = lessons(folder)
    found = [
        path
        for path in known
        if (int(path.stem[:2]) == int(name) if name.isdecimal() else name in path.stem)
    ]
    if len(found) != 1:
        raise ValueError(f"{'several lessons match' if found else 'no lesson matches'} {name!r}; "
                         "there are "
                         + ", ".join(path.stem for path in found or known))
    return found[0]


def solution(path):
    """The file with the solutions of a lesson, for teachers; None if it has none."""
    found = Path(path).parent / "solutions" / Path(path).name
    return found if found.is_file() else None


def about(path):
    """(number, title, question, running time) of a lesson.

    Raises ValueError, with what its first cell must say, if that is missing.
    """
    prose = cells(path)[0].prose
    heading = re.match(r"# (\d+)\. (.+?): (.+)", prose)
    time = re.search(r"Running time: (.+?)\.(?: |$)", " ".join(prose.split()))
    if not heading or not time:
        raise ValueError(f"{path}: the first cell must begin '# 7. Title: question?' and say "
                         "'Running time: 5 seconds.'")
    return int(heading[1]), heading[2], heading[3][0].upper() + heading[3][1:], time[1]


def cells(path):
    """The cells of a lesson: `# %% [markdown]` begins prose in comments, any other `# %%` code.

    The last cell has no code. Raises ValueError, with file and line, for a text that Python could
    not read either.
    """
    text = read(path)
    lines = text.split("\n")
    marks = [*_marks(text), len(lines) + 1]
    found, prose = [], []
    preamble = "\n".join(lines[:marks[0] - 1])
    # more than an encoding line and jupytext's settings
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


def predicts(prose):
    """Whether this prose asks for a prediction of what its code will show."""
    return bool(re.search(r"\bPredict\b", prose))


def heading(prose):
    """The text of the first heading in this prose, or ""."""
    found = re.findall(r"^#+ (.+)", prose, re.MULTILINE)
    return found[0] if found else ""


def _code_cell(prose, body, line):
    """[the Cell with this code, which begins on this line], or [] if there is none."""
    code = re.sub(r"^(?:[ \t\f]*\n)+", "", body)
    line += body[:len(body) - len(code)].count("\n")
    return [Cell("\n\n".join(prose), code.rstrip(), line)] if code.strip() else []


def _said(body):
    """(prose, code) of a Markdown cell: comments or a string literal, then perhaps code."""
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
            content.decode("utf-8")  # if this fails, its error is the reason
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
    """The numbers of the lines that begin a cell, except those inside a string literal."""
    marks, read_to = [], 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            read_to = token.end[0]
            if token.type == tokenize.COMMENT and token.start[1] == 0 and MARK.match(token.string):
                marks.append(token.start[0])
    # the rest is not Python, or a string literal does not end
    except (tokenize.TokenError, SyntaxError):
        marks += [number for number, line in enumerate(text.split("\n"), 1) if number > read_to
                  and MARK.match(line)]
    return marks
