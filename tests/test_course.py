"""The course: lessons are found, stepped through, run, checked and given away, and the doctor sees what is wrong."""

import base64
import configparser
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from minidl import __all__ as words_of_minidl
from minidl import console, course, plotting
from minidl.course import cli, handout, markdown, plain, stepping
from minidl.course import terminal as terminal_view

PROJECT = Path(__file__).parent.parent
LESSONS = course.lessons()
SMALL = '''# %% [markdown]
# # 3. Small: does it *step*?
#
# Sums of $x_i < 3$, **bold** & `a < b`. You need: nothing. Running time: 1 second.

# %%
import os
x = [1, 2, 3] if 1 < 2 & 3 else None
print("sum", sum(x), "<b>&", os.environ["OPENBLAS_NUM_THREADS"])

# %% [markdown]
# Here is a mistake.

# %%
count = 1 + globals().get("count", 0)


def broken():
    return x[count + 2]  # line 19


broken()

# %%
import numpy as np
array = np.zeros((2, 3), np.float32)
share = np.float32(0.3)
print("CHECK shape: measured 2, required >= 1, PASS")

# %% [markdown]
# The end: × and σ².
'''
FIGURE = '''# %% [markdown]
# # 4. Figure: where is it?
#
# Running time: 1 second.
# %%
from minidl import plotting
print("before")
fig, ax = plotting.figure()
plotting.show(fig, "one")
print("after")
# %%
print("CHECK good: measured 1, required >= 1, PASS")
print("CHECK bad: measured 0, required >= 1, FAIL")
raise SystemExit(1)
# %% [markdown]
# The end.
'''


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A lesson with an error in its second code cell; the working folder is its own."""
    (tmp_path / "03_small.py").write_text(SMALL, encoding="utf-8")
    (tmp_path / "04_figure.py").write_text(FIGURE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    for name in ("NO_COLOR", "MINIDL_FIGURES", "OPENBLAS_NUM_THREADS", "PYTHONUTF8", "PYTHONIOENCODING",
                 "VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "03_small.py"


def minidl(*words, **options):
    return subprocess.run([sys.executable, "-m", "minidl", *words], capture_output=True, encoding="utf-8", **options)


def read(session, shown):
    """What comes next; a session that is silent for a minute is stuck."""
    if not select.select([session.stdout], [], [], 60)[0]:
        session.kill()
        raise AssertionError(f"stuck after {shown!r}")
    return os.read(session.stdout.fileno(), 10_000)


def terminal(lesson, *typed):
    """What a lesson shows on a pseudo-terminal. typed: lines for its prompts, one at each; a pair (text, keys) waits for that
    text instead. At the end it gets the end of input."""
    pytest.importorskip("pty", reason="no pseudo-terminals here")
    # A job in the background ignores Ctrl-C, and so would its children.
    spawn = "import pty, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    command = [sys.executable, "-c", spawn, sys.executable, "-m", "minidl", "lesson", str(lesson)]
    steps = [(b") > ", f"{line}\n".encode()) if isinstance(line, str) else line for line in typed]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as session:
        shown = b""
        for text, keys in [*steps, (b") > ", b"\x04")]:
            already = len(shown)
            while text not in shown[already:]:
                if not (piece := read(session, shown)):
                    break  # it has ended
                shown += piece
            try:
                session.stdin.write(keys)
            except BrokenPipeError:
                break
        while piece := read(session, shown):
            shown += piece
    assert session.returncode == 0, shown
    return shown.decode().replace("\r\n", "\n")


def unpainted(text):
    return re.sub(r"\033\[[\d;]*m", "", text)


# --- Reading a lesson ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_no_line_of_a_lesson_is_lost_and_every_line_keeps_its_number(path):
    lines, seen = path.read_text(encoding="utf-8").splitlines(), []
    for cell in course.cells(path):
        code = cell.code.splitlines()
        assert lines[cell.line - 1:cell.line - 1 + len(code)] == code
        seen += [*cell.prose.splitlines(), *code]
    expected = [line.strip("# ") for line in lines if not line.startswith("# %%")]
    assert list(filter(None, (line.strip("# ") for line in seen))) == list(filter(None, expected))


WRITTEN = "# %% [markdown]\n# # 1. Größe: warum?\n#\n# Satz.\n\n# %%\nx = 'é'\nprint(x)\n\n# %%\ny = 2"
CELLS = [("# 1. Größe: warum?\n\nSatz.", "x = 'é'\nprint(x)", 7), ("", "y = 2", 11)]


@pytest.mark.parametrize("content", [
    WRITTEN.encode(), WRITTEN.encode("utf-8-sig"),
                                     WRITTEN.replace("\n", "\r\n").encode("utf-8-sig"),
    WRITTEN.replace("\n", "\r").encode(), (WRITTEN + "\n\n\n").encode()],
                         ids=["plain", "mark", "Windows", "old Mac", "newlines"])
def test_a_lesson_reads_the_same_however_an_editor_saved_it(content, tmp_path):
    (tmp_path / "own.py").write_bytes(content)
    assert course.cells(tmp_path / "own.py")[:-1] == CELLS


def test_a_lesson_may_name_its_encoding(tmp_path):
    (tmp_path / "own.py").write_bytes(b"# -*- coding: latin-1 -*-\n" + WRITTEN.encode("latin-1"))
    assert course.cells(tmp_path / "own.py")[:-1] == [(prose, code, line + 1) for prose, code,
                                                      line in CELLS]


@pytest.mark.parametrize("content, message", [
    (WRITTEN.encode("latin-1"), "own.py, line 2: the byte 0xf6 is not UTF-8, so Python cannot run "
                                "it: save the file as UTF-8"),
    (("x = 1\n" * 9 + "y = 'é'\n").encode("latin-1"),
     "own.py, line 10: the byte 0xe9 is not UTF-8"),
    (b"# coding: ascii\n# %%\nx = '\xc3\xa9'\n", "own.py, line 3: the byte 0xc3 is not ASCII, "
                                                 ".*its first lines say ascii"),
    (WRITTEN.encode("utf-16"), "own.py is saved as UTF-16"),
                                              (WRITTEN.encode("utf-16-be"), "own.py is saved as "
                                                                            "UTF-16"),
    (b"# coding: klingon\n",
     "own.py: Python cannot read its first lines, unknown encoding: klingon"),
    (b"\xef\xbb\xbf# coding: latin-1\n", "own.py: Python cannot read its first lines, encoding "
                                         "problem"),
    (b"# %%\nx = 1\n\0y = 2\n", "own.py, line 3: Python cannot run a file with a zero byte")])
def test_what_python_cannot_read_is_said_with_its_line(content, message, tmp_path, capsys,
                                                       monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        course.cells(Path("own.py"))
    assert subprocess.run([sys.executable, "own.py"],
                          capture_output=True).returncode == 1, "Python's own judgement"
    for way in ([], ["--run"], ["--notebook", "books"], ["--html", "pages"]):
        assert cli.main(["lesson", "./own.py", *way]) == 1
        assert re.search(message, capsys.readouterr().err)


def test_marks_of_cells_are_those_of_jupytext(tmp_path):
    (tmp_path / "own.py").write_text("""#%%
a = 1
#%% a title
b = 1
# %%\ttabbed
c = 1
# %% [md]
# one
#%%[markdown]
# two
# %% a title [markdown] tags=["x"]
# three
# %% tags=["y"] z=[md1]
d = 1
# %%time
# %matplotlib inline
# %%%% a level below
e = 1
if e:
    # %%
    f = 1
""")
    assert [(cell.prose, cell.code.replace("\n", ";"))
            for cell in course.cells(tmp_path / "own.py")] == [
        ("", "a = 1"), ("", "b = 1"), ("", "c = 1"), ("one\n\ntwo\n\nthree", "d = 1;# %%time;# "
                                                                             "%matplotlib inline"),
        ("", "e = 1;if e:;    # %%;    f = 1"), ("", "")]


def test_a_mark_within_a_text_in_quotes_is_no_mark(tmp_path):
    text = '# %%\nx = """\n# %% [markdown]\n# no prose\n# %%\n"""\n# %%\ny = f\'\'\'\n# %%\n{x}\'\'\'\n'
    (tmp_path / "own.py").write_text(text)
    assert [(cell.line, cell.code.count("\n") + 1)
            for cell in course.cells(tmp_path / "own.py")[:-1]] == [(2, 5), (8, 3)]
    namespace = {}
    for cell in course.cells(tmp_path / "own.py"):
        exec(cell.code, namespace)
    expected = {}
    exec(text, expected)
    assert (namespace["x"], namespace["y"]) == (expected["x"], expected["y"])


def test_prose_in_quotes_settings_on_top_and_code_that_follows_prose(tmp_path):
    """As jupytext may write them; and what Python would run is code, also where a mark was forgotten."""
    (tmp_path / "own.py").write_text('#!/usr/bin/env python\n# ---\n# jupyter: {}\n# ---\n\n# %% '
                                     '[markdown]\n"""\n# 1. T: q?\n"""\n'
                                     "# %% [markdown]\n# Then:\n\nx = 1\n# why\ny = 2\n")
    assert course.cells(tmp_path / "own.py")[:-1] == [("# 1. T: q?\n\nThen:",
                                                       "x = 1\n# why\ny = 2", 13)]


@pytest.mark.parametrize("text, codes",
                         [("", []), ("\n", []), ("# %%", []), ("# %%\n# %%\n", []),
                          ("# a comment", ["# a comment"]),
                                         ("x = 1", ["x = 1"]), ("\tx = 1", ["\tx = 1"]),
                                         ("# %%\nx = (\n# %%\ny = ]\n# %%\nz",
                                          ["x = (", "y = ]", "z"]),
                                         ('# %%\nx = """\n# %%\ny', ['x = """', "y"])])
def test_lessons_of_little_and_of_broken_code(text, codes, tmp_path):
    (tmp_path / "own.py").write_text(text)
    assert [cell.code for cell in course.cells(tmp_path / "own.py")][:-1] == codes


def test_code_before_the_first_mark_is_a_cell_at_line_1(tmp_path):
    (tmp_path / "own.py").write_text("x = 1\n# %%\n\ny = 2\n")
    assert course.cells(tmp_path / "own.py")[:-1] == [("", "x = 1", 1), ("", "y = 2", 4)]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_says_number_title_question_and_time(path):
    number, title, question, running_time = course.about(path)
    assert number == int(path.stem[:2]) and title and question[0].isupper() and re.search(r"second|minute", running_time)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_pages_can_show_all_that_a_lesson_says(path):
    """Each formula can be typeset, each link leads somewhere, and no mark of Markdown is left over."""
    for cell in course.cells(path):
        page = ET.fromstring(f"<body>{handout.html(cell.prose)}</body>")
        plain = "".join(text for part in page.iter() if part.tag not in ("code", "pre", "math") for text in [part.text or ""])
        assert not re.search(r"\*\*|`|\$|^\||!\[|^#+ ", plain, re.MULTILINE), plain
        for match in markdown.INLINE.finditer(cell.prose):
            if match["math"]:
                assert "<code>" not in handout.html(f"${match['math']}$"), f"cannot typeset {match['math']}"
            if match["url"]:
                assert match["url"].startswith("http") or match["url"] in [other.name for other in LESSONS]


@pytest.mark.parametrize("path", [*LESSONS, *sorted((PROJECT / "minidl").glob("*.py"))], ids=lambda path: path.stem)
def test_highlighting_changes_no_code(path):
    code = path.read_text(encoding="utf-8")
    assert "".join(text for _, text in course.highlight(code)) == code


def test_highlighting_marks_keywords_strings_numbers_comments_and_shows_broken_code():
    marked = [piece for piece in course.highlight("if x == 'a' + 1:  # why") if piece[0]]
    assert marked == [("keyword", "if"), ("string", "'a'"), ("number", "1"), ("comment", "# why")]
    assert "".join(text for _, text in course.highlight("print('a'\nx = (")) == "print('a'\nx = ("


def test_a_lesson_is_found_by_number_part_of_its_name_and_path(small):
    folder = small.parent
    assert course.find("3", folder) == course.find("03", folder) == course.find("sma", folder) == small
    assert course.find("./04_figure.py", folder) == folder / "04_figure.py"
    with pytest.raises(ValueError, match="no lesson matches '5'; there are 03_small, 04_figure"):
        course.find("5", folder)
    with pytest.raises(ValueError, match="several lessons match '_'; there are 03_small, 04_figure"):
        course.find("_", folder)
    with pytest.raises(FileNotFoundError, match="no lessons in"):
        course.lessons(folder / "nothing")


def test_the_list_of_lessons(capsys):
    assert cli.main(["lessons"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r" 7  Faster convergence +10-20 seconds +How many fewer steps", lines[7])
    questions = {line.index(course.about(path)[2]) for line, path in zip(lines[1:], LESSONS)}
    assert len(questions) == 1, "the column of questions"
    assert cli.main(["lesson"]) == 1 and "name a lesson" in capsys.readouterr().err


# --- Stepping -----------------------------------------------------------------------------------------


def test_stepping_on_a_terminal(small):
    """A cell that raises is not left; e takes values and statements; b and r, then Enter goes on and runs nothing twice."""
    shown = terminal(small, "", "", "r", "e count * 100", "e x.append(9); print(len(x))", "e nope", "e", "zzz", "g 3", "", "b",
                     "r", "", "v", "h")
    plain = unpainted(shown)
    assert "\033[1;34mdef\033[0m" in shown and "\033[1mbold\033[0m" in shown and "does it \033" not in shown
    assert "sum 6 <b>& 1" in plain
    assert plain.count('03_small.py", line 22, in <module>\n') == 1
    assert plain.count("line 19, in broken") == 1 and "IndexError: still at cell 2" in plain
    assert "return x[count + 2]" in plain and "course.py" not in plain and "stepping.py" not in plain
    assert "count * 100\n100\n" in plain and "print(len(x))\n4\n" in plain and "NameError: name 'nope' is not defined" in plain
    assert "e needs something to evaluate" in plain and "SyntaxError" not in plain
    assert "'zzz' is no command here; h helps" in plain
    assert plain.count("CHECK shape") == 2 + 2  # the cell is shown at g 3 and after b, and was run by Enter and by r
    assert re.search(r"^array +ndarray +float32 \(2, 3\)$", plain, re.MULTILINE)
    assert re.search(r"^count +int +1$", plain, re.MULTILINE) and re.search(r"^share +float32 +0.3$", plain, re.MULTILINE)
    assert re.search(r"\bx +list +\[1, 2, 3, 9\]$", plain, re.MULTILINE)
    assert not re.search(r"^(np|broken|__name__) ", plain, re.MULTILINE)
    assert "The end: × and σ²." in plain and "x_i < 3" in plain and stepping.HELP.strip() in plain
    assert max(map(len, stepping.HELP.splitlines())) <= 80


SLOW = """# %% [markdown]
# ## Predict
# How long? Predict it.
# %%
import time
print("started", flush=True)
time.sleep(60 if "fast" not in globals() else 0)
print("done")
# %%
print("second cell ran")
# %%
print("third cell ran")
"""


def test_ctrl_c_stays_on_the_cell_and_what_was_typed_meanwhile_is_dropped(small):
    """The word is stopped, without a traceback; three Enters typed while it trained run nothing."""
    (small.parent / "slow.py").write_text(SLOW)
    shown = terminal(small.parent / "slow.py", "", (b"started\r", b"\n\n\n\n"), (b"\n\r", b"\x03"), "e 6 * 7", "e fast = 1", "",
                     "q")
    assert "stopped: still at cell 1" in shown and "Traceback" not in shown and "KeyboardInterrupt" not in shown
    assert "42\n" in shown and "\ndone\n" in shown and "\nsecond cell ran" not in shown


def test_a_prediction_is_kept_and_stands_beside_the_result(small):
    """Also at the next start, and in the lesson's last lines and its JSON file."""
    text = ("# %%\nfrom minidl.lessonkit import Lesson\nlesson = Lesson('own')\n# %% [markdown]\n# ## Predict\n# How many?\n"
            "# %%\nprint('measured 41')\n# %%\nlesson.finish()\n")
    own = small.parent / "own.py"
    own.write_text(text)
    shown = terminal(own, "", "about 40, I think", "", "q")
    assert "kept; when the cell has run" in shown and "measured 41\nyou predicted: about 40, I think" in unpainted(shown)
    assert "type your prediction" in shown
    terminal(own, "q")  # at once: the place stays the one before
    again = unpainted(terminal(own, "g 3", "", "q"))
    assert "Last time you were at cell 3. g 3 runs the cells before it" in again
    assert again.count("you predicted: about 40, I think\n") == 2 and "0 checks passed" in again
    written = json.loads((small.parent / "figures" / "own.json").read_text())
    assert written["predictions"] == ["about 40, I think"]
    assert "Last time" not in terminal(own, "q")  # the lesson was at its end


def test_cells_are_listed_gone_to_and_replaced(small):
    (small.parent / "slow.py").write_text(SLOW)
    (small.parent / "slow.py").write_text("# %%\nfast = 1\n" + SLOW)
    shown = unpainted(terminal(small.parent / "slow.py", "l", "g 4", "l", "x", (b"dot runs", b"a = [\n\n  1 / 0]\n.\n"), "x",
                               (b"dot runs", b"print('my own')\n.\n"), "", "g", "g 9", "q"))
    assert ">   1  fast = 1\n    2  Predict\n    3  print" in shown
    assert "cell 2\nstarted\ndone\ncell 3\nsecond cell ran\n" in shown and "+   3  print" in shown and ">   4  print" in shown
    assert 'File "<x>", line 3' in shown and "    1 / 0]" in shown and "my own\nyour block has run in the place" in shown
    assert "the end (Enter leaves" in shown and shown.count("g needs the number of a cell, 1 to 5") == 2
    assert not re.search("^third cell ran", shown, re.MULTILINE)  # the block took its place


@pytest.mark.skipif(os.name == "nt", reason="the editor is a shell script")
def test_a_cell_is_edited_in_ones_editor(small, monkeypatch):
    (small.parent / "edit.sh").write_text("#!/bin/sh\nsed -i.bak 's/1, 2, 3/4, 5, 6/' \"$1\"\n")
    monkeypatch.setenv("EDITOR", f"sh {small.parent / 'edit.sh'}")
    assert "sum 15 <b>&" in unpainted(terminal(small, "x", "q"))
    monkeypatch.setenv("EDITOR", "no-such-editor")
    assert "the editor did not work" in terminal(small, "x", "q")


QUESTION = """# %%
x = 1
# %% [markdown]
# ## Two questions
#
# **1. Is $\\sigma_B^2$ a mean?**
#
# - A: yes
# - B: no
#
# <details><summary>Answers</summary>
#
# 1 A, because it is.
#
# </details>
#
# The last words.
"""


def test_answers_are_folded_in_a_terminal_and_on_a_page(small):
    (small.parent / "own.py").write_text(QUESTION)
    shown = unpainted(terminal(small.parent / "own.py", "", "a", "q"))
    before, after = shown.split("(Answers: type a)")
    assert "1. Is σ²_B a mean?" in before and "because" not in before and "The last words." in after
    assert after.count("1 A, because it is.") == 1 and after.count("The last words.") == 1
    page = ET.fromstring(f"<body>{handout.html(course.cells(small.parent / 'own.py')[-1].prose)}</body>")
    assert page.find("details/summary").text == "Answers" and "because" in page.find("details/p").text
    assert page.findall("p")[-1].text == "The last words."


def test_end_of_input_ends_the_session(small):
    assert "cell 1 of 3" in terminal(small)


def test_stepping_through_a_pipe_has_no_colours_and_no_terminal_needs_unicode(small):
    result = minidl("lesson", "./03_small.py", input="\n\ng 3\n\n\n", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0 and "\033" not in result.stdout
    assert "does it *step*?" in result.stdout and "The end: ? and ??." in result.stdout


def test_a_terminal_without_a_home_or_with_broken_notes_steps_all_the_same(small):
    notes = small.parent / "cache" / "minidl" / "lessons.json"
    notes.parent.mkdir(parents=True)
    for content in ("{", "[]", '{"%s": {"cell": 99}}' % small, '{"%s": {"cell": "x", "predictions": []}}' % small):
        notes.write_text(content)
        assert "sum 6" in minidl("lesson", "./03_small.py", input="\nq\n").stdout
    (small.parent / "file").touch()
    result = minidl("lesson", "./03_small.py", input="\nq\n", env={**os.environ, "XDG_CACHE_HOME": str(small.parent / "file")})
    assert result.returncode == 0 and "sum 6" in result.stdout and "Errno" not in result.stderr


@pytest.mark.parametrize("tex, expected", [
    (r"\sigma_B^2", "σ²_B"), (r"\hat x_i = \frac{x_i - \mu_B}{\sqrt{\sigma_B^2 + \epsilon}}", "x̂_i = (x_i − μ_B)/√(σ²_B + ε)"),
    (r"\frac{1}{m}\sum_i (x_i - \mu_B)^2", "1/m Σ_i (x_i − μ_B)²"), (r"10^{-5}", "10⁻⁵"), (r"y = w x + b", "y = w x + b"),
    (r"(1-a)^k", "(1 − a)^k"), (r"|\rho| \le 1", "|ρ| ≤ 1"), (r"\|W_{t+1}\|^2", "‖W_(t+1)‖²"), (r"-\ln p", "−ln p"),
    (r"\frac{dL}{dw} = \frac{dL}{dy} \cdot x", "dL/dw = dL/dy ⋅ x"), (r"\left[0.5, 1\right]", "[0.5, 1]"),
    (r"\text{act}(Wu)", "act(Wu)"), (r"X^T X", "Xᵀ X")])
def test_formulas_as_text(tex, expected):
    assert plain.plain(tex) == expected


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_fits_a_terminal_of_80_columns(path, monkeypatch):
    """Prose, tables and code; no word is broken, and no TeX is left. A word longer than a line stays whole."""
    monkeypatch.setenv("COLUMNS", "80")
    for cell in course.cells(path):
        shown = terminal_view.prose(cell.prose), terminal_view.code(cell.code)
        for line in "\n".join(shown).split("\n"):
            assert len(line) <= 80 or " " not in line.strip(), line
        assert "".join(shown[1].split()) == "".join(cell.code.split())
        for match in markdown.INLINE.finditer(cell.prose):
            if match["math"]:
                assert not set("\\$") & set(plain.plain(match["math"]))


def test_no_color_is_respected(small, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033" not in terminal(small, "q")


def test_a_lesson_that_ends_does_not_end_the_session(small):
    result = minidl("lesson", "./04_figure.py", input="e 1 / 0\ne import os, sys; sys.exit('enough')\n\n\ne 6 * 7\n")
    assert "here the lesson ends: enough" in result.stdout and "here the lesson ends: 1\n" in result.stdout
    assert "42" in result.stdout and "ZeroDivisionError" in result.stderr and result.returncode == 0


# --- Running ------------------------------------------------------------------------------------------


def test_run_gives_the_lessons_exit_code_and_its_own_line_numbers(small):
    as_a_script = "# %%\nimport sys\nassert __name__ == '__main__' and sys.argv == [__file__]\nraise SystemExit\n"
    (small.parent / "good.py").write_text(as_a_script)
    assert minidl("lesson", "./good.py", "--run").returncode == 0
    result = minidl("lesson", "./03_small.py", "--run")
    assert result.returncode == 1 and "sum 6" in result.stdout and "CHECK" not in result.stdout
    assert "line 22, in <module>" in result.stderr and "line 19, in broken" in result.stderr
    assert "course.py" not in result.stderr
    assert minidl("lesson", "./04_figure.py", "--run").returncode == 1


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_lesson_of_ones_own_runs_as_python_runs_it(newline, small):
    """In a folder with a space and an accent, beside a file that it imports; lines keep their numbers."""
    folder = small.parent / "mine é" / "sub folder"
    folder.mkdir(parents=True)
    (folder / "mine_helper.py").write_text("WORD = 'helped'\n")
    text = ("# %%\nfrom __future__ import annotations\nimport mine_helper\n# "
            "%%\nprint(mine_helper.WORD)\n"
            "def f(x: nothing): return 1 / x\n# %%\n\nf(0)\n")
    (folder / "own.py").write_bytes(b"\xef\xbb\xbf" + text.replace("\n", newline).encode())
    relative = "mine é/sub folder/own.py"
    python = subprocess.run([sys.executable, relative], capture_output=True, encoding="utf-8")
    for way, typed in (("--run", None), (None, "\n\n\n")):
        result = minidl("lesson", relative, *filter(None, [way]), input=typed)
        assert "helped" in result.stdout and result.stderr.split('", ')[1:] == python.stderr.split('", ')[1:]
        assert "line 9, in <module>" in result.stderr and "line 6, in f" in result.stderr
    assert minidl("lesson", relative, "--run").returncode == python.returncode == 1


STREAMS = [("lessons >&-", 0), ("lessons >/dev/full", 1), ("data >/dev/full", 1),
           ("doctor >/dev/full", 1), ("lessons | true", None),
           ("doctor 2>&- >/dev/null", 0), ("lesson 99 2>&-", 1),
           ("lesson ./good.py <&- >/dev/null", 0),
           ("lesson ./good.py --run <&- >&- 2>&-", 0), ("lesson ./good.py --run >&-", 0),
           ("lesson ./good.py --run >/dev/full", 1),
           ("lesson ./good.py --run | head -1", None), ("lesson ./good.py --all | true", None),
           ("lesson ./good.py --all >/dev/full", 1),
           ("lesson ./good.py --all >&-", 0), ("lesson ./good.py | head -1", None),
           ("lesson ./04_figure.py --run >&-", 1)]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command, code", STREAMS, ids=[command for command, _ in STREAMS])
def test_closed_full_and_broken_streams_end_in_one_sentence(command, code, unbuffered, small,
                                                            monkeypatch):
    """Whether Python keeps what is printed for a while or not."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    (small.parent / "good.py").write_text("# %%\nfrom minidl.lessonkit import Lesson\nlesson = "
                                          "Lesson('good')\n"
                                          + "# %%\nfor _ in range(3000):\n    print('a line of ten')\n" * 3 + "lesson.finish()\n")
    result = subprocess.run(["bash", "-c", f'"$0" -m minidl {command}', sys.executable],
                            stdin=subprocess.DEVNULL, capture_output=True,
                            text=True)
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.stderr.count("\n") <= 1
    assert code is None or result.returncode == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
@pytest.mark.parametrize("command, code",
                         [("| head -1", 1), (">/dev/full", 1), (">&-", 0), ("2>&- >/dev/null", 0),
                          ("<&- >&- 2>&-", 0)])
def test_a_lesson_run_as_a_script_ends_in_one_sentence_too(command, code, small):
    (small.parent / "good.py").write_text("from minidl.lessonkit import Lesson\nlesson = "
                                          "Lesson('good')\n"
                                          "for _ in range(9000):\n    print('a line of ten "
                                          "é')\nlesson.finish()\n")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(["bash", "-c", f'"$0" good.py {command}; exit ${{PIPESTATUS[0]}}',
                             sys.executable], capture_output=True,
                            text=True, env=environment)
    assert "Traceback" not in result.stderr and "Exception ignored" not in result.stderr
    assert result.stderr.count("\n") <= 1
    assert result.returncode == code and ("stopped" in result.stderr) == bool(code)


@pytest.mark.skipif(os.name == "nt", reason="sends a signal")
@pytest.mark.parametrize("command",
                         [["slow.py"], ["-m", "minidl", "lesson", "./slow.py", "--run"]],
                         ids=["script", "--run"])
def test_ctrl_c_ends_a_lesson_in_one_word(command, small):
    (small.parent / "slow.py").write_text("# %%\nfrom minidl.lessonkit import Lesson\nimport "
                                          "time\nlesson = Lesson('slow')\n"
                                          "print('started', flush=True)\ntime.sleep(60)\n")
    reset = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    with subprocess.Popen([sys.executable, "-c", reset, sys.executable, *command],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True) as lesson:
        assert lesson.stdout.readline() == "started\n"
        os.killpg(lesson.pid, signal.SIGINT)
        _, errors = lesson.communicate(timeout=60)
    assert errors.strip().startswith("interrupted") and errors.strip().count("\n") == 0
    assert lesson.returncode in (130, -signal.SIGINT)


@pytest.mark.parametrize("words, message", [
    (["lesson", "0"], "no lesson matches '0'"), (["lesson", "99"], "no lesson matches '99'"),
                                            (["lesson", ""], "several lessons match ''"),
    (["lesson", "7.5"], "no lesson matches '7.5'"), (["lesson", "-1"], "no lesson matches '-1'"),
    (["lesson", "my/07.py"], "there is no lesson my/07.py: a lesson of your own is named by the "
                             "path of its .py file"),
    (["lesson", "x.ipynb"], "there is no lesson x.ipynb"),
                                            (["lesson", "7", "--copy", ""], "name a folder to "
                                                                            "write into"),
    (["lesson", "7", "--copy", "03_small.py"], "nothing written: 03_small.py is a file; name a new "
                                               "folder"),
    (["lesson", "7", "--html", "03_small.py/x"], "nothing written: "),
    (["data", "--pack", "missing/sets.zip"], "cannot write 'missing/sets.zip': there is no folder "
                                             "missing"),
    (["data", "--pack", ""], "cannot write '': name a file"),
                                            (["data", "mnist", "--unpack", "x.zip"], "leave mnist "
                                                                                     "out")])
def test_what_cannot_be_done_is_said_before_any_work(words, message, small, capsys):
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert message in err and not out and "Errno" not in err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is locked for root")
def test_a_folder_that_cannot_be_written_is_said_before_the_lessons_run(small, capsys):
    (small.parent / "locked").mkdir(mode=0o500)
    assert cli.main(["lesson", "./03_small.py", "--html", "locked"]) == 1
    assert "locked cannot be written" in capsys.readouterr().err


def test_the_browser_is_told_that_it_has_no_processes(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "emscripten")
    for way in ([], ["--run"], ["--all"], ["--html", "pages"]):
        assert cli.main(["lesson", "./03_small.py", *way]) == 1
        assert "a browser has none: open the lesson as a notebook" in capsys.readouterr().err
    cli.main(["doctor"])
    assert "in the browser: 20 times slower, no processes" in capsys.readouterr().out


def test_lesson_1_leaves_the_browsers_stack_alone_and_puts_the_limit_back():
    """There its recursion would overflow before Python's limit."""
    path = next(path for path in LESSONS if path.stem.startswith("01"))
    cell = next(cell.code for cell in course.cells(path) if "recursion gave up" in cell.code)
    limit, seen = sys.getrecursionlimit(), []

    class Weight:
        grad = 10_001.0
        node = None

        def __add__(self, other):
            return self

        def backward(self):
            assert sys.getrecursionlimit() == limit

    namespace = {"Tensor": lambda *args, **options: Weight(), "here": 0.5, "sys": sys,
                 "by_recursion": lambda *args: seen.append(sys.getrecursionlimit()) or 0.0}
    with pytest.MonkeyPatch.context() as patch:
        exec(cell, namespace)
        patch.setattr(sys, "platform", "emscripten")
        exec(cell, namespace)
    assert seen[0] == limit and seen[1] <= 300 and sys.getrecursionlimit() == limit


@pytest.mark.parametrize("path", [*LESSONS, *sorted((PROJECT / "minidl").glob("*.py"))],
                         ids=lambda path: path.stem)
def test_labels_are_counted_as_32_bit_machines_need_it(path):
    """np.bincount takes no int64 there, as in the browser, and labels are int64."""
    for match in re.finditer(r"np\.bincount\((.*)", path.read_text(encoding="utf-8")):
        assert "astype(np.intp)" in match[1] or "epoch" in match[1]


def test_all_prints_a_line_for_each_lesson_and_why_it_failed(small, monkeypatch, capfd):
    good = small.parent / "02_good.py"
    good.write_text("# %%\nprint('CHECK one: measured 1, required >= 1, PASS')\n")
    monkeypatch.setattr(cli, "lessons", lambda folder=None: sorted(small.parent.glob("*.py")))
    assert cli.main(["lesson", "--all"]) == 1
    lines = re.sub(r"\d+\.\d s", "0.1 s", capfd.readouterr().out).splitlines()
    assert lines == ["02 good                         PASS  1 of 1 checks  0.1 s",
                     "03 small                        FAIL  0 of 0 checks  0.1 s", "    IndexError: list index out of range",
                     "04 figure                       FAIL  1 of 2 checks  0.1 s",
                     "    CHECK bad: measured 0, required >= 1, FAIL"]
    monkeypatch.setattr(cli, "lessons", lambda folder=None: [good])
    assert cli.main(["lesson", "--all"]) == 0


# --- Giving away --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way, name", [("--copy", "03_small.py"), ("--notebook", "03_small.ipynb"), ("--html", "index.html")])
def test_nothing_is_overwritten(way, name, small, capfd):
    own = small.parent / "mine" / name
    own.parent.mkdir()
    own.write_text("my work")
    assert cli.main(["lesson", "./03_small.py", way, "mine"]) == 1
    assert f"nothing written: mine already has {name}" in capfd.readouterr().err
    assert [path.name for path in own.parent.iterdir()] == [name] and own.read_text() == "my work"


def test_copies_are_the_lessons(tmp_path, capsys):
    assert cli.main(["lesson", "--copy", str(tmp_path / "a" / "b")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == \
        {path.name: path.read_bytes() for path in LESSONS}


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_notebook_has_the_structure_of_nbformat_4_5(path, tmp_path, capsys):
    """The required keys and no others, unique ids, prose and code unchanged, the same bytes each time."""
    assert cli.main(["lesson", path.stem, "--notebook", str(tmp_path)]) == 0
    content = (tmp_path / f"{path.stem}.ipynb").read_bytes()
    assert content == handout.notebook(path)
    book = json.loads(content)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"nbformat", "nbformat_minor", "metadata", "cells"}
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", each) for each in ids)
    common = {"id", "cell_type", "metadata", "source"}
    for cell in book["cells"]:
        assert set(cell) == (common if cell["cell_type"] == "markdown" else common | {"execution_count", "outputs"})
        assert all(line.endswith("\n") for line in cell["source"][:-1]) and cell["source"][-1] == cell["source"][-1].rstrip()
    texts = ["".join(cell["source"]) for cell in book["cells"]]
    told = re.compile(rf"<details><summary>{handout.EXPLANATION}</summary>\n\n(.*)\n\n</details>", re.DOTALL)
    plain_texts = [told.sub(r"\1", text) for text in texts if text != handout.PREDICTION]
    assert plain_texts == [text for cell in course.cells(path) for text in (cell.prose, cell.code) if text]
    asked = [i for i, text in enumerate(texts) if text == handout.PREDICTION]
    assert asked and all("Predict" in texts[i - 1] for i in asked)
    assert any(book["cells"][i + 1]["metadata"] == {"jupyter": {"outputs_hidden": True}} for i in asked)


def test_a_notebook_shows_all_its_figures(monkeypatch):
    """Its backend turns interactive mode on while the first figure is made: the figures' style must not turn it off again."""
    import matplotlib.pyplot as plt
    make = plt.subplots
    monkeypatch.setattr(plt, "subplots", lambda *args, **options: (plt.interactive(True), make(*args, **options))[1])
    try:
        plotting.figure()
        assert plt.isinteractive()
    finally:
        plt.interactive(False)
        plt.close("all")


def test_the_api_page_explains_every_word(site):
    """Names, signatures, docstrings and places, of ops too."""
    text = "".join(site["api.html"].itertext())
    for name in words_of_minidl:
        if not name.islower() or name in ("explain", "grad", "gradcheck", "no_grad", "record"):
            assert f"minidl.{name}" in text, name
    for words in ("minidl.functional.relu(x)", "x where it is positive, 0 elsewhere.", "minidl/functional.py",
                  "Sequential.fit(self, x, y", "minidl.training.step(model, loss, optimizer, xb, yb"):
        assert words in text, words


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The pages of the two small lessons, parsed."""
    folder, outcomes = tmp_path_factory.mktemp("site"), []
    (folder / "03_small.py").write_text(SMALL, encoding="utf-8")
    (folder / "04_figure.py").write_text(FIGURE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(PROJECT))
        patch.setenv("MPLBACKEND", "nope")  # a handout opens no window, whatever the user's backend
        handout.write(folder / "site", ["03_small.html", "04_figure.html", "index.html", "api.html"],
                      handout.pages(course.lessons(folder), outcomes))
    assert [outcome.code for outcome in outcomes] == [1, 1]
    return {path.name: ET.parse(path).getroot() for path in (folder / "site").iterdir()}


def test_a_page_holds_prose_code_output_and_figures_in_order(site):
    """Output stands below the cell that printed it, a figure where it was shown; what failed is said."""
    body = site["04_figure.html"].find("body")
    shown = [(part.get("class") or part.tag, "".join(part.itertext())) for part in body]
    assert " ".join(kind for kind, _ in shown) == "nav h1 p code output figure output code output p error p nav"
    assert [text for kind, text in shown if kind == "output"][:2] == ["before", "after"]
    assert shown[-2][1].startswith("FAIL  1 of 2 checks") and shown[7][1].endswith("raise SystemExit(1)")
    kind, _, data = body.find(".//img").get("src").partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")


def test_a_page_shows_what_was_written_and_the_error(site):
    page = site["03_small.html"]
    text = "".join(page.find("body").itertext())
    assert "sum 6 <b>& " in text and "& a < b." in text and "The end: × and σ²." in text
    assert "line 19, in broken" in "".join(page.find(".//pre[@class='error']").itertext())
    assert page.find(".//math/mrow/msub/mi").text == "x" and page.find(".//strong").text == "bold"
    assert page.find(".//span[@class='keyword']").text == "import" and page.find(".//h1/em").text == "step"


def test_a_page_needs_nothing_from_elsewhere_and_the_index_links_all(site):
    for page in site.values():
        assert not {"script", "link", "iframe"} & {part.tag for part in page.iter()}
        for part in page.iter():
            assert (part.get("src") or "data:").startswith("data:") and (part.get("href") or "index.html") in site
        assert "url(" not in page.find("head/style").text
    index = site["index.html"]
    assert [link.get("href") for link in index.iter("a")] == ["03_small.html", "04_figure.html", "api.html"]
    assert ["".join(field.itertext()) for field in index.findall(".//td")][1:3] == ["Does it step?", "1 second"]


def test_pages_lead_to_the_one_before_and_the_next(site):
    links = [(link.get("href"), link.text) for link in site["04_figure.html"].find("body/nav")]
    assert links == [("03_small.html", "← 3. Small"), ("index.html", "All lessons")]
    assert site["03_small.html"].find("body/nav")[-1].get("href") == "04_figure.html"


def test_no_answer_stands_below_its_question(tmp_path):
    """From the first output after a prediction to the next heading all is folded; what comes before and after is not."""
    stops = [course.Cell("Predict: what?", "x = 1", 1), course.Cell("So:", "print(x)", 3), course.Cell("It is 1.", "plot()", 5),
             course.Cell("As you see.\n\n## Next\n\nWords.", "print(2)", 7), course.Cell("The end", "", 9)]
    page = ET.fromstring("<body>" + "".join(handout.folded(stops, ["", "1\n", "drawn\n", "2\n"], "figures")) + "</body>")
    fold, = page.findall("details")
    assert fold.get("class") == "result"
    inside, outside = "".join(fold.itertext()), "".join("".join(part.itertext()) for part in page if part is not fold)
    assert [text in inside for text in ("1", "It is 1.", "drawn", "As you see.", "plot()")] == [True] * 5
    assert [text in outside for text in ("Predict: what?", "print(x)", "Next", "Words.", "2", "The end")] == [True] * 6
    assert "drawn" not in outside and "As you see." not in outside


def test_a_figure_says_its_title_and_what_it_shows(tmp_path):
    """From the lesson's JSON; the image is enlarged by a click, without a script."""
    series = [{"kind": "line", "label": "with"}, {"kind": "area", "label": "_child1"}, {"kind": "line", "label": "without"}]
    panel = {"title": "", "x": "training\nstep", "y": "accuracy", "series": series}
    figure = {"title": "Two  curves", "panels": [panel]}
    (tmp_path / "07_x.json").write_text(json.dumps({"figures": {"a": figure}}))
    for name in ("a", "b"):
        (tmp_path / f"07_x-{name}.png").write_bytes(b"\x89PNG")
    shown = handout.output(f"figure: {tmp_path}/07_x-a.png\nfigure: {tmp_path}/07_x-b.png\n", str(tmp_path))
    images = [ET.fromstring(part).find("summary/img") for part in shown]
    assert [image.get("alt") for image in images] == [
        "Two curves. It shows accuracy against training step (with, without).", "07_x-b"]


def test_solutions_are_run_and_folded_only_where_they_are_asked_for(small, capfd):
    """Not in the student's copy, and nowhere without --solutions."""
    (small.parent / "02_good.py").write_text("# %% [markdown]\n# # 2. Good: is it? Running time: 1 second.\n# %%\nprint('ran')\n")
    (small.parent / "solutions").mkdir()
    (small.parent / "solutions" / "02_good.py").write_text(
        "# %% [markdown]\n# # Solutions\n# %%\nx = 6\n# %% [markdown]\n# ## 1. Easy: *what*?\n#\n# Think.\n# %%\nprint(x * 7)\n")
    for way in (["--html", "a", "--solutions"], ["--html", "b"], ["--copy", "c"], ["--notebook", "d"]):
        assert cli.main(["lesson", "./02_good.py", *way]) == 0
    page = ET.parse(small.parent / "a" / "02_good.html").getroot()
    fold = page.findall(".//details[@class='solution']")[-1]
    assert "".join(fold.find("summary").itertext()) == "1. Easy: what?" and "".join(fold.itertext()).endswith("print(x * 7)\n42")
    assert "solutions of 02 good" in capfd.readouterr().out
    assert not any("Think." in path.read_text() for folder in "bcd" for path in (small.parent / folder).iterdir())
    assert cli.main(["lesson", "./02_good.py", "--solutions"]) == 1 and "belongs to --html" in capfd.readouterr().err


def test_a_bar_in_a_notebook_is_one_output(monkeypatch):
    """However many epochs, no widget is needed, and nothing goes to stderr, which would be red."""
    shown, updates = [], []

    class Handle:
        def update(self, content, raw):
            updates.append(content["text/plain"])

    def display(content, raw, display_id):
        shown.append(content["text/plain"])
        return Handle()

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = console.Progress(epochs=3, samples=40, batch_size=4, verbose=1)
    for epoch in range(3):
        progress.start(epoch)
        for step in range(10):
            progress.advance({"loss": 1 / (step + 1)})
        progress.finish({"loss": 0.1})
    assert len(shown) == 1 and sys.stderr.getvalue() == ""
    lines = updates[-1].splitlines()
    assert len(lines) == 3 and all(re.match(r"Epoch \d/3 - 10/10 - .*s - loss: 0.1000$", line) for line in lines), lines


def test_html_of_the_markdown_that_lessons_use():
    html = handout.html("## A `b`\n\none\ntwo [x](http://a.b/?c&d) [y](07_z.py)\n1. one\n   more\n2. *two*\n\n- p\n- q\n\n"
                        "| a | b |\n|---|---|\n| 1 | $n$ |\n\n```\nx < 1\n\ny\n```\n\n$$\nz\n$$\n\n3. third\nlazy")
    assert html.split("\n") == [
        "<h2>A <code>b</code></h2>", "<p>one", 'two <a href="http://a.b/?c&amp;d">x</a> <a href="07_z.html">y</a></p>',
        '<ol start="1"><li>one', "   more</li>", "<li><em>two</em></li></ol>", "<ul><li>p</li>", "<li>q</li></ul>",
        f"<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>{handout.mathml('n')}</td></tr></table>",
        '<pre class="code">x &lt; 1', "", "y</pre>", f'<p class="formula">{handout.mathml("z", large=True)}</p>',
        '<ol start="3"><li>third', "lazy</li></ol>"]


@pytest.mark.parametrize("tex, expected", [
    (r"x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
    (r"\frac{a}{2}", '<mfrac displaystyle="true"><mrow><mi>a</mi></mrow><mrow><mn>2</mn></mrow></mfrac>'),
    (r"|a|", '<mo stretchy="false">|</mo><mi>a</mi><mo stretchy="false">|</mo>'),
    (r"\hat x", '<mover accent="true"><mi>x</mi><mo stretchy="false">^</mo></mover>'),
    (r"\sqrt{\sigma^2}", "<msqrt><mrow><msup><mi>σ</mi><mn>2</mn></msup></mrow></msqrt>"),
    (r"\ln 10", '<mi>ln</mi><mspace width="0.17em"/><mn>10</mn>'),
    (r"a<-b", '<mi>a</mi><mo stretchy="false">&lt;</mo><mo stretchy="false">−</mo><mi>b</mi>'),
    (r"\left[0.5\right]", "<mrow><mo>[</mo><mrow><mn>0.5</mn></mrow><mo>]</mo></mrow>"),
    (r"x_{\text{at rest}}", "<msub><mi>x</mi><mrow><mtext>at\xa0rest</mtext></mrow></msub>"),
    (r"\mathbb{R}\|", '<mi>ℝ</mi><mo stretchy="false">‖</mo>')])
def test_formulas(tex, expected):
    assert handout.mathml(tex) == f'<math displaystyle="false"><mrow>{expected}</mrow></math>'


def test_sums_have_their_limits_above_and_below():
    assert re.search(r"<munderover><mo[^>]*>∑</mo>.*</munderover>", handout.mathml(r"\sum_{i=1}^n i"))


@pytest.mark.parametrize("tex", [r"\nope", r"\frac{1}", "{a", "a}", "x_", r"\left( a", "a & b", r"\text{a"])
def test_a_formula_that_cannot_be_typeset_is_shown_as_it_is_written(tex):
    with pytest.raises(ValueError, match="cannot typeset"):
        handout.mathml(tex)
    shown = ET.fromstring(handout.html(f"so ${tex}$ it"))
    assert "".join(shown.itertext()) == f"so {tex} it" and shown.find("code").text == tex


# --- Doctor -------------------------------------------------------------------------------------------


def doctor(**variables):
    result = minidl("doctor", cwd=PROJECT, env={**os.environ, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8", **variables})
    return result.returncode, dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def test_the_doctor_finds_a_good_machine_fine(monkeypatch):
    code, lines = doctor()
    assert code == 0 and list(lines) == ["versions", "BLAS", "plots", "data", "cache", "terminal"]
    assert all(line.endswith(": fine") for line in lines.values())


def test_the_doctor_says_what_to_do(tmp_path):
    """A cache that is a file, an unknown backend, a data folder that is not there, a poor terminal: still a line for each."""
    (tmp_path / "file").touch()
    code, lines = doctor(XDG_CACHE_HOME=str(tmp_path / "file"), MPLBACKEND="nope", PYTHONIOENCODING="ascii",
                         MINIDL_DATA=str(tmp_path / "missing"))
    assert code == 1 and len(lines) == 6
    for name, advice in (("cache", "set XDG_CACHE_HOME"), ("plots", "MPLBACKEND"), ("terminal", "PYTHONUTF8=1"),
                         ("data", "MINIDL_DATA names")):
        assert advice in lines[name] and not lines[name].endswith("fine")
    assert lines["versions"].endswith(": fine")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="nothing is locked for root")
def test_the_doctor_goes_on_where_the_cache_is_locked(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    code, lines = doctor(XDG_CACHE_HOME=str(tmp_path / "locked" / "cache"))
    assert code == 1 and "cannot be written" in lines["cache"] and "terminal" in lines


def test_the_doctor_sees_old_and_missing_packages(monkeypatch):
    versions = {"numpy": "1.26.4", "matplotlib": "3.11.0rc1"}

    def version(name):
        if name in versions:
            return versions[name]
        raise cli.metadata.PackageNotFoundError

    monkeypatch.setattr(cli.metadata, "version", version)
    found, advice = cli._versions()
    assert "numpy 1.26.4" in found and advice == 'python -m pip install --upgrade "numpy>=2.0" "tqdm>=4.60"'


def test_the_doctor_wants_what_the_installation_wants():
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    wanted = dict(line.split(">=") for line in config["options"]["install_requires"].split())
    assert wanted == {name: ".".join(map(str, version)) for name, version in cli.NEEDED.items()}


def test_the_doctor_goes_on_without_a_home(tmp_path):
    """No HOME, and a user that the system does not know, as in a container."""
    environment = {key: value for key, value in os.environ.items()
                   if key not in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "KERAS_HOME")}
    environment |= {"PYTHONPATH": str(PROJECT)}
    nobody = "import os, pwd, runpy, sys\npwd.getpwuid = lambda uid: {}[uid]\nsys.argv[1:] = ['doctor']\n"
    code = nobody + "runpy.run_module('minidl', run_name='__main__')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                            env=environment, cwd=tmp_path)
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert "set XDG_CACHE_HOME" in lines["cache"] and "terminal" in lines and "Traceback" not in result.stderr
    assert result.returncode == 1 and not (tmp_path / "~").exists()


def test_the_doctor_goes_on_where_nothing_says_where_downloads_go(monkeypatch):
    for error in (RuntimeError, FileNotFoundError, ValueError):
        def cache():
            raise error("there is no home\nset it")
        monkeypatch.setattr(cli.data, "cache", cache)
        found, advice = cli._cache()
        assert found == "no folder for downloads (there is no home)" and "XDG_CACHE_HOME" in advice



def test_the_doctor_knows_no_blas_where_numpy_names_none(monkeypatch):
    monkeypatch.setattr(cli.np, "show_config", lambda mode: {})
    assert cli._blas()[0].startswith("unknown")
