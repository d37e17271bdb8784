"""Handouts of the lessons: Jupyter notebooks, and web pages that are complete in one file each.

A web page holds prose, code, output and figures.
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
from .cells import PACKAGE, about, cells, heading, predicts
from .exercises import about_exercise, exercises
from .markdown import INLINE, blocks, highlight
from .mathml import mathml
from .plain import plain

STYLE = """
body { max-width: 64rem; margin: 0 auto; padding: 1rem; font: 1.1rem/1.55 system-ui, sans-serif; color: #222; background: #fff; overflow-x: clip }
h1, h2, h3 { line-height: 1.25; margin: 1.6em 0 .5em } h1 { font-size: 1.7rem } h2 { font-size: 1.3rem } a { color: #0072b2 }
pre { overflow-x: auto; padding: .7rem .9rem; font: .8rem/1.45 ui-monospace, Consolas, monospace }
p, li { max-width: 48rem; overflow-wrap: break-word } p code, li code, td code, pre.code { background: #f3f5f7; border-radius: .3rem }
pre.output { border-left: .25rem solid #0072b2 } pre.error { border-left: .25rem solid #d55e00 }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .3rem .6rem; text-align: left; vertical-align: top }
nav { display: flex; flex-wrap: wrap; gap: .3rem 2rem; justify-content: space-between; font-size: 1rem }
img { max-width: 100%; display: block; margin: 1rem auto }
summary { cursor: pointer; color: #0072b2; font-weight: 600; padding: .4rem 0 }
details.figure > summary { list-style: none; cursor: zoom-in; padding: 0 } details.figure > summary::-webkit-details-marker { display: none }
details.figure[open] { width: 100vw; margin-left: calc(50% - 50vw); overflow-x: auto } details.figure[open] > summary { cursor: zoom-out }
details.figure[open] img { max-width: none; width: max(100%, 68rem) }
.formula { overflow: auto hidden; padding: .3rem 0; text-align: center; max-width: none; line-height: 2.2 }
.keyword { color: #00518a; font-weight: 600 } .string { color: #006b4f } .number { color: #a4480a } .comment { color: #666 }
.FAIL { color: #b33c00; font-weight: 600 }
@media (max-width: 44rem) {
  body { font-size: 1rem; padding: .6rem } pre { padding: .5rem; font-size: .72rem }
  pre.code, pre.error { white-space: pre-wrap; overflow-wrap: anywhere } pre.output { font-size: .62rem }
}
@media print {
  @page { margin: 15mm }
  body { max-width: none; padding: 0; font-size: 10pt } nav { display: none }
  pre { font-size: 6.8pt; padding: .3rem .5rem; white-space: pre-wrap; overflow-wrap: anywhere }
  p, li { max-width: none; orphans: 3; widows: 3 } h1, h2, h3, summary { break-after: avoid }
  table { display: table; width: 100%; font-size: 9pt } tr, details.figure, .formula { break-inside: avoid }
  details.figure[open] { width: auto; margin: 0 } details.figure img, details.figure[open] img { width: auto; max-width: 100%; max-height: 11cm }
  details.result::details-content, details.solution::details-content { content-visibility: visible; block-size: auto; display: block }
}
"""
EXPLANATION = "What to make of it: open this when the cell above has run"
PREDICTION = 'lesson.predict("")  # write your prediction between the quotes'
LESSON = re.compile(r"^lesson = Lesson\(", re.MULTILINE)
RESULT = "The result. Write down your prediction, then open it"


def write(folder, names, contents):
    """Write new files into a folder, each whole or not at all.

    contents: the bytes of each, in turn. Raises OSError, before the first of the contents is made,
    if the folder cannot be written or already has one of the files.
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
            pass  # fails now rather than after the contents have been made
    except OSError as error:
        raise type(error)(f"nothing written: {folder} cannot be written ({error.strerror}); name a "
                          "folder of yours") from None
    for name, content in zip(names, contents, strict=True):
        with replacing(folder / name) as file:
            file.write(content)


def notebook(path):
    """A lesson as a Jupyter notebook (nbformat 4.5), without outputs.

    The same lesson yields the same bytes. Where it asks for a prediction, a cell takes it; the
    result and the prose about it, up to the next heading, are folded.
    """
    made, folded = [], False
    stops = cells(path)
    asks = any(LESSON.search(cell.code) for cell in stops)
    for cell in stops:
        folded = folded and not heading(cell.prose)
        predicted = predicts(cell.prose)
        prose = cell.prose
        if folded and prose and not predicted:
            prose = f"<details><summary>{EXPLANATION}</summary>\n\n{prose}\n\n</details>"
        _add(made, "markdown", prose)
        if predicted and asks:
            _add(made, "code", PREDICTION)
        _add(made, "code", cell.code, {"jupyter": {"outputs_hidden": True}} if predicted else {})
        folded = folded or predicted
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": made, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
            "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, ensure_ascii=False, indent=1).encode() + b"\n"


def _add(made, kind, text, metadata={}):
    """Add one more cell, unless its text is empty."""
    if text:
        more = {"execution_count": None, "outputs": []} if kind == "code" else {}
        made.append({"cell_type": kind, "id": f"cell-{len(made) + 1}", "metadata": metadata,
                     "source": text.splitlines(keepends=True), **more})


def pages(paths, outcomes, solutions=()):
    """Run the lessons; yield the page of each, then the index and the API page, as bytes.

    outcomes: a list to which the Outcome of each run is appended. solutions: the files with the
    solutions of some of the lessons, which are run too, and folded.
    """
    rows = ["<table><tr><th>lesson</th><th>question</th><th>time</th><th>when it was run</th></tr>"]
    solved = {path.name: path for path in solutions}
    programs = [program for path in paths for program in (path, solved.get(path.name)) if program]
    with tempfile.TemporaryDirectory() as folder:
        figures = {program: str(Path(folder, program.parent.name, program.stem))
                   for program in programs}
        runs = running.check_all(programs, lambda path: {"MINIDL_FIGURES": figures[path]})
        for path in paths:
            number, title, question, time = about(path)
            outcome = next(runs)
            outcomes.append(outcome)
            body = folded(cells(path), outcome.outputs, figures[path])
            if outcome.code:
                body.append(f'<pre class="error">{escape(outcome.errors)}</pre>')
            verdict = f'<span class="{outcome.verdict[:4]}">{outcome.verdict}</span>'
            body.append(f"<p>{verdict}</p>")
            if path.name in solved:
                outcomes.append(next(runs))
                body += _solutions(solved[path.name], outcomes[-1], figures[solved[path.name]])
            rows.append(
                f'<tr><td><a href="{path.stem}.html">{number}. {escape(title)}</a></td>'
                f"<td>{_inline(question)}</td><td>{escape(time)}</td><td>{verdict}</td></tr>"
            )
            nav = _nav(paths, path)
            yield _page(f"{number}. {title}", nav, *body, nav)
    api = '<p>The words of minidl, with their explanations: <a href="api.html">API</a></p>'
    yield _page("Lessons", "<h1>Lessons</h1>", *rows, "</table>", *_exercises(), api)
    yield api_page()


def _nav(paths, path):
    """Links to the previous lesson, to all lessons, and to the next."""
    at, links = paths.index(path), ['<a href="index.html">All lessons</a>']
    for place, other, words in ((0, at - 1, "← {}. {}"), (2, at + 1, "{}. {} →")):
        if 0 <= other < len(paths):
            number, title, _, _ = about(paths[other])
            link = f'<a href="{paths[other].stem}.html">{escape(words.format(number, title))}</a>'
            links.insert(place, link)
    return f"<nav>{' '.join(links)}</nav>"


def folded(stops, outputs, figures):
    """The cells of a lesson as HTML, with the answers to its predictions folded.

    From the first output after "Predict" to the next heading, what is shown is folded, so that no
    answer is visible below its question.
    """
    made, asked, opened = [], False, False
    for cell, printed in zip_longest(stops, outputs, fillvalue=""):
        before, after = _at_heading(cell.prose) if opened else ("", cell.prose)
        if predicts(before):
            before, after = "", cell.prose
        made.append(html(before))
        if opened and after:
            made.append("</details>")
            opened = False
        asked = asked or predicts(after)
        made += [html(after), _code(cell.code)]
        if printed.strip() and asked and not opened:
            made.append(f'<details class="result"><summary>{RESULT}</summary>')
            asked, opened = False, True
        made += output(printed, figures)
    return [*filter(None, made), *["</details>"] * opened]


def _at_heading(prose):
    """(what comes before the first heading, the heading and the rest)."""
    at = re.search(r"^#+ ", prose, re.MULTILINE)
    return (prose[:at.start()], prose[at.start():]) if at else (prose, "")


def _solutions(path, outcome, figures):
    """The solutions of a lesson, each folded under its heading."""
    made = ["<h2>Solutions</h2>"]
    for cell, printed in zip_longest(cells(path), outcome.outputs, fillvalue=""):
        parts = [*filter(None, [_code(cell.code), *output(printed, figures)])]
        title, prose = heading(cell.prose), re.sub(r"^#+ .+", "", cell.prose, count=1,
                                                   flags=re.MULTILINE)
        inner = "\n".join([html(prose), *parts])
        made.append(f'<details class="solution"><summary>{_inline(title)}</summary>{inner}'
                    "</details>" if title else inner)
    if outcome.code:
        made.append(f'<pre class="error">{escape(outcome.errors)}</pre>')
    return made


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
    """A page of everything public, made from the docstrings.

    Each entry has the name, the signature, the explanation, and the file that defines it.
    """
    body = ['<p><a href="index.html">All lessons</a></p>', "<h1>minidl's words</h1>"]
    face = sys.modules["minidl"]  # not imported, because imports go down only
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
    """(name, object) of each thing that a module offers.

    That is what __all__ lists, or else the functions, classes and ops that the module defines.
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
    return (f'<h3><code>{escape(name + signature)}</code></h3><pre class="output">{text}</pre>'
            f"<p><code>{where}</code></p>")


def _page(title, *body):
    """A whole page. It is XML too, so that a parser can tell whether it is well formed."""
    head = (
        '<meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head>' + head + "</head><body>",
            *body,
            "</body></html>\n",
        ]
    ).encode()


def _code(text):
    """Code in colours, or nothing."""
    code = "".join(f'<span class="{kind}">{escape(part)}</span>' if kind else escape(part)
                   for kind, part in highlight(text))
    return f'<pre class="code"><code>{code}</code></pre>' if text else ""


def output(printed, figures):
    """What a cell printed; a line `figure: PATH` in the folder of figures becomes the figure."""
    parts = []
    for i, text in enumerate(
        re.split(rf"^figure: ({re.escape(figures)}.+)\n", printed, flags=re.MULTILINE)
    ):
        if i % 2:
            image = base64.b64encode(Path(text).read_bytes()).decode()
            kind = "gif" if text.endswith(".gif") else "png"
            parts.append('<details class="figure"><summary title="larger or smaller">'
                         f'<img alt="{escape(_described(Path(text)))}" '
                         f'src="data:image/{kind};base64,{image}"/></summary></details>')
        elif text.strip():
            parts.append(f'<pre class="output">{escape(text).strip(chr(10))}</pre>')
    return parts


def _described(image):
    """A figure in words: its title, and a sentence that says what is drawn.

    Both come from the lesson's JSON; if the lesson did not reach its end, the text is the name of
    the file.
    """
    try:
        lesson, _, name = image.stem.partition("-")
        figure = json.loads(image.with_name(f"{lesson}.json").read_bytes())["figures"][name]
    except (OSError, ValueError, KeyError):
        return image.stem
    panels = [panel for panel in figure["panels"] if panel["x"] or panel["y"]] or figure["panels"]
    said = []
    for panel in panels:
        labels = [series["label"] for series in panel["series"]
                  if not series.get("label", "_").startswith("_")]
        words = " against ".join(filter(None, (panel["y"] or "values", panel["x"])))
        title = f"{panel['title']}, " if panel["title"] and len(panels) > 1 else ""
        said.append(title + words + (f" ({', '.join(dict.fromkeys(labels))})" if labels else ""))
    drawn = any(panel["x"] or panel["y"] for panel in panels)
    shows = f"It shows {'; '.join(dict.fromkeys(said))}." if drawn else "A drawing without axes."
    title = figure["title"] or panels[0]["title"] or image.stem
    return " ".join(f"{_without_tex(title).rstrip('.')}. {_without_tex(shows)}".split())


def _without_tex(text):
    """The text, with its formulas between dollar signs in Unicode."""
    try:
        return re.sub(r"\$([^$]+)\$", lambda match: plain(match[1]), text)
    except ValueError:
        return text


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
        elif kind == "details":
            made.append(f"<details><summary>{_inline(text)}</summary>")
        elif kind == "end":
            made.append("</details>")
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
    """Text with code, emphasis, links and formulas; a link to another lesson leads to its page."""
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
    """A formula as MathML if `mathml` can typeset it, else as it is written."""
    try:
        return mathml(tex, large)
    except ValueError:
        return f"<code>{escape(tex)}</code>"
