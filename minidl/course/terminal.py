"""Lessons as text for a terminal: prose, tables and code that fit its width, in its colours."""

import os
import shutil
import sys
import textwrap

from .markdown import ANSI, INLINE, blocks, highlight
from .plain import plain


def width():
    """The columns to fill, at most 100: longer lines of prose are hard to read."""
    # some terminals report 0 columns, and Python 3.10 believes them
    return min(100, shutil.get_terminal_size().columns or 80)


def prose(markdown, unfolded=False):
    """Markdown for this terminal, formulas in Unicode. unfolded: show only what is folded."""
    shown, folded, before = [], False, ""
    for kind, text in blocks(markdown):
        if kind == "details":
            folded = True
            if not unfolded:
                shown.append(paint("comment", f"({text}: type a)"))
        elif kind == "end":
            folded = False
        elif folded == unfolded:
            if kind == before == "item":
                shown[-1] += "\n" + _block(kind, text)  # a list stays together
            else:
                shown.append(_block(kind, text))
        before = kind
    return "\n\n".join(shown)


def has_folded(markdown):
    """Whether a part of it is shown only when asked for."""
    return any(kind == "details" for kind, _ in blocks(markdown))


def code(text):
    """Python code for this terminal; long lines are broken at a space and continue indented."""
    breaks, start = {}, 0
    for line in text.split("\n"):
        if len(line) > width():
            aligned = max(0, len(line) - len(line.lstrip()) - 24)  # a bracket far to the right
            breaks |= dict.fromkeys(range(start, start + aligned), "")
            for at in _breaks(line[aligned:], width()):
                breaks[start + aligned + at] = "\n" + _continued(line)
        start += len(line) + 1
    made, done = [], 0
    for kind, piece in highlight(text):
        inner = "".join(breaks.get(done + i, letter) for i, letter in enumerate(piece))
        made.append("\n".join(paint(kind, part) for part in inner.split("\n")))
        done += len(piece)
    return "".join(made)


def paint(kind, text, without=None):
    """Text in the colour of its kind; where colours are off, `without`, or else the text itself."""
    colours = (
        sys.stdout.isatty()
        and not os.environ.get("NO_COLOR")
        and (os.name != "nt" or "WT_SESSION" in os.environ)
    )
    return f"\033[{ANSI[kind]}m{text}\033[0m" if kind in ANSI and colours else without or text


def table(rows, columns):
    """Rows of texts as lines of at most so many columns; a text too long continues below."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    while sum(widths) + 2 * (len(widths) - 1) > columns and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row in rows:
        parts = [_wrapped(text, width) for text, width in zip(row, widths)]
        for i in range(max(map(len, parts))):
            line = [(part[i] if i < len(part) else "").ljust(width)
                    for part, width in zip(parts, widths)]
            lines.append("  ".join(line).rstrip())
    return lines


def _block(kind, text):
    if kind == "heading":
        marks, _, words = _formulas(text).partition(" ")
        lines = _wrapped(words, width() - len(marks) - 1)
        return "\n".join(paint("heading", line, f"{marks} {line}") for line in lines)
    if kind == "math":
        return _formula(text)
    if kind == "table":
        rows = [[_formulas(field.strip()) for field in line.strip().strip("|").split("|")]
                for line in text.splitlines() if set(line) - set("|-: ")]
        head, *body = table([[INLINE.sub(_inner, field) for field in row] for row in rows],
                            width() - 2)
        return "\n".join("  " + line for line in (head, "-" * len(head), *body))
    if kind == "code":
        return text
    if text.startswith("$") and text.strip(".$").count("$") == 0:
        return _formula(text)
    indent = " " * (text.index(" ") + 1) if kind == "item" else ""
    lines = _wrapped(" ".join(_formulas(text).split()), width(), indent)
    return INLINE.sub(lambda match: paint(match.lastgroup, _inner(match), match[0]),
                      "\n".join(lines))


def _formula(text):
    """A formula on lines of its own: one for each of its parts."""
    parts = text.strip("$.").split(r"\quad")
    return "\n".join("    " + _plain(part.strip(" ,\n")) for part in parts)


def _formulas(text):
    """The text with its formulas in Unicode, also those in bold words or in a link."""
    def replaced(match):
        inner = match["bold"] or match["italic"] or match["link"]
        if inner:
            return match[0].replace(inner, _formulas(inner), 1)
        return _plain(match["math"]) if match["math"] else match[0]

    return INLINE.sub(replaced, text)


def _plain(tex):
    try:
        return plain(tex)
    except ValueError:
        return tex


def _inner(match):
    """The words of code, emphasis or a link, without its marks."""
    return match["link"] or match[match.lastgroup]


def _wrapped(text, columns, indent=""):
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False,
                         subsequent_indent=indent) or [""]


def _continued(line):
    indent = len(line) - len(line.lstrip())
    return " " * (indent + 8 if indent < 24 else 24)


def _breaks(line, columns):
    """The places of the spaces where a line of code is broken to fit."""
    found, start, room = [], 0, columns
    while len(line) - start > room:
        at = line.rfind(" ", start + 1, start + room + 1)
        if at <= start or not line[:at].strip():
            at = line.find(" ", start + room)  # a long word stays whole
            if at < 0:
                break
        found.append(at)
        start, room = at + 1, columns - len(_continued(line))
    return found
