"""The lessons to give away: notebooks for Jupyter, and web pages that hold prose, code, output and
figures in one file.
"""

import base64
import inspect
import json
import re
import sys
import tempfile
from html import escape
from itertools import zip_longest
from pathlib import Path

from ..files import replacing
from . import running
from .cells import PACKAGE, about, cells
from .exercises import about_exercise, exercises
from .markdown import INLINE, blocks, highlight
from .mathml import mathml

STYLE = """
body { max-width: 64rem; margin: 0 auto; padding: 1rem; font: 1.1rem/1.55 system-ui, sans-serif; color: #222; background: #fff }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em } h1 { font-size: 1.7rem } h2 { font-size: 1.3rem } a { color: #0072b2 }
pre { overflow-x: auto; padding: .7rem .9rem; font: .8rem/1.45 ui-monospace, Consolas, monospace }
p, li { max-width: 48rem } p code, li code, td code, pre.code { background: #f3f5f7; border-radius: .3rem }
pre.output { border-left: .25rem solid #0072b2 } pre.error { border-left: .25rem solid #d55e00 }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }
img { max-width: 100%; display: block; margin: 1rem auto }
.formula { overflow: auto hidden; padding: .3rem 0; text-align: center; max-width: none }
.keyword { color: #00518a; font-weight: 600 } .string { color: #006b4f } .number { color: #a4480a } .comment { color: #666 }
.FAIL { color: #b33c00; font-weight: 600 }
"""


def write(folder, names, contents):
    """Write new files into a folder, each whole or not at all. contents: the bytes of each, in
    turn.

    Raises FileExistsError, before the first of the contents is made, if one of the files is there.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"nothing written: {folder} is a file; name a new folder")
    if there := [name for name in names if (folder / name).exists()]:
        raise FileExistsError(f"nothing written: {folder} already has {', '.join(there)}; name a "
                              "new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass  # now, and not when the contents have been made
    except OSError as error:
        raise type(error)(f"nothing written: {folder} cannot be written ({error.strerror}); name a "
                          "folder of yours") from None
    for name, content in zip(names, contents, strict=True):
        with replacing(folder / name) as file:
            file.write(content)


def notebook(path):
    """A lesson as a Jupyter notebook (nbformat 4.5), without outputs: the same bytes for the same
    lesson.
    """
    made = []
    for cell in cells(path):
        for kind, text, more in (
            ("markdown", cell.prose, {}),
            ("code", cell.code, {"execution_count": None, "outputs": []}),
        ):
            if text:
                made.append({"cell_type": kind, "id": f"cell-{len(made) + 1}", "metadata": {},
                             "source": text.splitlines(keepends=True), **more})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
            "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, ensure_ascii=False, indent=1).encode() + b"\n"


def pages(paths, outcomes):
    """Run the lessons; yield the page of each, then an index of all, as bytes. outcomes: a list
    that gets theirs.
    """
    rows = ["<table><tr><th>lesson</th><th>question</th><th>time</th><th>when it was run</th></tr>"]
    with tempfile.TemporaryDirectory() as folder:
        figures = {path: str(Path(folder, path.stem)) for path in paths}
        for path, outcome in zip(
            paths, running.check_all(paths, lambda path: {"MINIDL_FIGURES": figures[path]})
        ):
            number, title, question, time = about(path)
            body = [_cell(cell, output, figures[path])
                    for cell, output in zip_longest(cells(path), outcome.outputs, fillvalue="")]
            outcomes.append(outcome)
            if outcome.code:
                body.append(f'<pre class="error">{escape(outcome.errors)}</pre>')
            verdict = f'<span class="{outcome.verdict[:4]}">{outcome.verdict}</span>'
            rows.append(
                f'<tr><td><a href="{path.stem}.html">{number}. {escape(title)}</a></td><td>{_inline(question)}</td>'
                f"<td>{escape(time)}</td><td>{verdict}</td></tr>"
            )
            yield _page(
                f"{number}. {title}",
                '<p><a href="index.html">All lessons</a></p>',
                *body,
                f"<p>{verdict}</p>",
            )
    api = '<p>The words of minidl, with their explanations: <a href="api.html">API</a></p>'
    yield _page("Lessons", "<h1>Lessons</h1>", *rows, "</table>", *_exercises(), api)
    yield api_page()


def _exercises():
    """The table of the exercises, and how to begin one."""
    yield "<h2>Exercises</h2><p>Write the code yourself, and let it be checked: "
    yield "<code>python -m minidl exercise 6 --copy DIR</code></p>"
    yield "<table><tr><th>exercise</th><th>question</th><th>lesson</th><th>time</th></tr>"
    for path in exercises():
        number, title, question, lesson, time = about_exercise(path)
        yield (f"<tr><td>{number}. {escape(title)}</td><td>{_inline(question)}</td>"
               f"<td>{lesson}</td><td>{escape(time)}</td></tr>")
    yield "</table>"


def api_page():
    """A page of everything public, from the docstrings: name, signature, explanation, and where it
    is defined.
    """
    body = ['<p><a href="index.html">All lessons</a></p>', "<h1>minidl's words</h1>"]
    face = sys.modules["minidl"]  # which imports this file, and not the other way round
    for module in (face, face.functional, face.optim, face.schedules, face.initializers, face.data,
                   face.training,
                   face.experiments, face.plotting, face.interop):
        body.append(f"<h2>{module.__name__}</h2>")
        for name, value in sorted(_public(module)):
            body.append(_entry(f"{module.__name__}.{name}", value))
            for method, function in vars(value).items() if inspect.isclass(value) else ():
                if not method.startswith("_") and inspect.isfunction(function) and function.__doc__:
                    body.append(_entry(f"{name}.{method}", function))
    return _page("API", *body)


def _public(module):
    """(name, object) of what a module offers: what __all__ lists, else the functions, classes and
    ops that it defines.
    """
    names = getattr(module, "__all__", None) or [
        name for name in vars(module) if not name.startswith("_")
    ]
    for name in names:
        value = getattr(module, name)
        own = getattr(value, "__module__", "") or ""  # an Op has none
        if callable(value) and value.__doc__ and (not own or own.startswith("minidl")):
            yield name, value


def _entry(name, value):
    """One name with its signature, its docstring and the file that defines it."""
    try:
        signature = str(inspect.signature(value))
    except (TypeError, ValueError):
        signature = ""
    code = inspect.unwrap(getattr(value, "forward", value)) if not inspect.isclass(value) else value
    try:
        where = Path(inspect.getsourcefile(code)).relative_to(PACKAGE.parent).as_posix()
    except (TypeError, ValueError):
        where = ""
    text = escape(inspect.getdoc(value) or "")
    return f'<h3><code>{escape(name + signature)}</code></h3><pre class="output">{text}</pre><p><code>{where}</code></p>'


def _page(title, *body):
    """A whole page. It is XML too, so that a parser can tell whether it is well formed."""
    head = (
        f'<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head>' + head + "</head><body>",
            *body,
            "</body></html>\n",
        ]
    ).encode()


def _cell(cell, output, figures):
    """Prose, code, and what the code printed; a line `figure: PATH` in the folder of figures
    becomes the figure.
    """
    parts = [html(cell.prose)]
    if cell.code:
        code = "".join(f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text)
                       for kind, text in highlight(cell.code))
        parts.append(f'<pre class="code"><code>{code}</code></pre>')
    for i, text in enumerate(
        re.split(rf"^figure: ({re.escape(figures)}.+)\n", output, flags=re.MULTILINE)
    ):
        if i % 2:
            image = base64.b64encode(Path(text).read_bytes()).decode()
            parts.append(
                f'<img alt="{escape(Path(text).stem)}" src="data:image/png;base64,{image}"/>'
            )
        elif text.strip():
            parts.append(f'<pre class="output">{escape(text).strip(chr(10))}</pre>')
    return "\n".join(parts)


def html(markdown):
    """The Markdown of the lessons as HTML, formulas as MathML."""
    made = []
    for kind, text in blocks(markdown):
        if kind == "item":
            marker, _, text = text.partition(" ")
            made.append(f"<ul><li>{_inline(text)}</li></ul>" if marker == "-" else
                        f'<ol start="{int(marker[:-1])}"><li>{_inline(text)}</li></ol>')
        elif kind == "heading":
            level = text.index(" ")
            made.append(f"<h{level}>{_inline(text[level + 1:])}</h{level}>")
        elif kind == "table":
            made.append(_table(text))
        elif kind == "code":
            made.append(f'<pre class="code">{escape(text)}</pre>')
        elif kind == "math" or re.fullmatch(r"\$[^$]+\$", text):
            # a narrow screen may break there
            parts = [_formula(part, large=True) for part in text.strip("$").split(r"\quad")]
            made.append(f'<p class="formula">{"&#8195;".join(parts)}</p>')
        else:
            made.append(f"<p>{_inline(text)}</p>")
    # items in a row are one list
    return re.sub(r'</ul>\n<ul>|</ol>\n<ol start="\d+">', "\n", "\n".join(made))


def _table(text):
    made, tag = [], "th"
    for line in text.splitlines():
        if set(line) - set("|-: "):  # not the line below the head
            made.append(
                "".join(
                    f"<{tag}>{_inline(field.strip())}</{tag}>"
                    for field in line.strip("| ").split("|")
                )
            )
            tag = "td"
    return f"<table><tr>{'</tr><tr>'.join(made)}</tr></table>"


def _inline(text):
    """Text with code, emphasis, links and formulas. A link to another lesson leads to its page."""
    made, done = [], 0
    for match in INLINE.finditer(text):
        made.append(escape(text[done:match.start()]))
        done, inner = match.end(), match["bold"] or match["italic"] or match["link"]
        if match["code"]:
            made.append(f"<code>{escape(match['code'])}</code>")
        elif match["math"]:
            made.append(_formula(match["math"]))
        elif match["link"]:
            made.append(
                f'<a href="{escape(re.sub("[.]py$", ".html", match["url"]))}">{_inline(inner)}</a>'
            )
        else:
            tag = "strong" if match["bold"] else "em"
            made.append(f"<{tag}>{_inline(inner)}</{tag}>")
    return "".join(made) + escape(text[done:])


def _formula(tex, large=False):
    """A formula, as MathML where `mathml` can, else as it is written."""
    try:
        return mathml(tex, large)
    except ValueError:
        return f"<code>{escape(tex)}</code>"
