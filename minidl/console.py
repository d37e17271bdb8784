"""The console: progress on stderr, text tables, and output streams that fail.

Progress is a bar on a terminal or in a notebook, plain lines everywhere else. A stream may be
closed, full, or unable to show a character; one that fails ends the program with one sentence, not
a traceback.
"""

import atexit
import importlib
import math
import os
import re
import shutil
import sys
from contextlib import contextmanager
from time import perf_counter


def in_notebook():
    """Whether this is a notebook, where output is shown by a browser."""
    return "ipykernel" in sys.modules


def in_browser():
    """Whether Python itself runs in a browser, where there are no processes."""
    return sys.platform in ("emscripten", "wasi")


class NotebookOutput:
    """One output of a notebook, written to like a terminal: \\r starts its last line again.

    It needs no widgets, and its text is not red, as that of stderr is.
    """

    def __init__(self):
        self.lines = [""]
        self.handle = None

    def write(self, text):
        """Show the lines as they are after this text."""
        for part in re.split(r"(?<=[\r\n])", text):
            if part.strip() and self.lines[-1].endswith("\r"):
                self.lines[-1] = ""
            if part.endswith("\n"):
                self.lines[-1] += part[:-1]
                self.lines.append("")
            elif part:
                self.lines[-1] += part
        shown = {"text/plain": "\n".join(self.lines).rstrip()}
        if self.handle:
            self.handle.update(shown, raw=True)
        else:
            display = importlib.import_module("IPython.display").display
            self.handle = display(shown, raw=True, display_id=True)

    def flush(self):
        """Do nothing: no text is held back."""


class Progress:
    """Shows training on stderr: a bar on a terminal or in a notebook, else one line per epoch.

    On a terminal the numbers come first, and the bar takes what width is left. Of each epoch one
    line with all its numbers stays, wrapped where it is too long.
    """

    def __init__(self, epochs, samples, batch_size, verbose):
        self.epochs = epochs
        self.verbose = verbose
        self.bar = None
        self.output = NotebookOutput() if in_notebook() else None  # one for all epochs
        self.steps = max(
            1, math.ceil(samples / batch_size) - (batch_size > 1 and samples % batch_size == 1)
        )

    def start(self, epoch):
        """A new epoch begins."""
        self.title, self.began = f"Epoch {epoch + 1}/{self.epochs}", perf_counter()
        if self.verbose == 1 and shows_bars():
            self.bar = bar(total=self.steps, desc=self.title, output=self.output,
                           bar_format="{desc} [{elapsed}<{remaining}, {rate_fmt}] |{bar}|")

    def advance(self, logs):
        """One step is done."""
        # update() is true when the bar was due to be redrawn
        if self.bar is not None and self.bar.update():
            self._show(logs)

    def _show(self, logs):
        numbers, place = format_logs(logs), f"{self.title} {self.bar.n}/{self.steps}"
        if len(place) + len(numbers) + 3 < self.bar.ncols:
            self.bar.set_description_str(f"{place} - {numbers}")
        else:  # the end is cut off where it does not fit
            self.bar.set_description_str(f"{numbers} - {place}")

    def finish(self, logs):
        """The epoch is over: a line with all its numbers stays, wrapped on a narrow terminal."""
        steps = ""
        if self.bar is not None:
            self._show(logs)
            steps, self.bar.leave = f"{self.bar.n}/{self.steps} - ", False
            self.close()
        if self.verbose:
            print(f"{self.title} - {steps}{perf_counter() - self.began:.1f}s - "
                  f"{format_logs(logs)}", file=self.output or sys.stderr, flush=True)

    def pause(self):
        """Clear the line of an open bar for other output; the next step draws it again."""
        if self.bar is not None and not in_notebook():
            self.bar.clear()

    def close(self):
        """Leave the line of a bar that is still open."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shows_bars():
    """Whether stderr can show a bar: a terminal, or a notebook."""
    # pythonw.exe has no stderr
    return in_notebook() or sys.stderr is not None and sys.stderr.isatty()


def bar(output=None, **options):
    """A tqdm bar: ASCII where the terminal cannot show blocks, none where there is no terminal.

    output: in a notebook, the NotebookOutput to draw it in.
    """
    from tqdm import tqdm
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    try:
        "█▏".encode(encoding)
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    if in_notebook():
        options.update(file=output or NotebookOutput(), ncols=79, position=0)
    else:
        columns, lines = shutil.get_terminal_size()
        # tqdm draws nothing on a terminal that reports a width of 0
        options.update(ncols=(columns or 80) - 1, nrows=lines or 24)
    return tqdm(ascii=ascii_only, disable=not shows_bars(), **options)


def format_logs(logs):
    """`loss: 0.1234 - accuracy: 0.9876`, with exponents below 0.001, as Keras prints them."""
    return " - ".join(f"{key}: {format_number(value)}" for key, value in logs.items())


def format_number(value):
    """0.1234, or 1.2345e-04 below 0.001."""
    return f"{value:.4e}" if 0 < abs(value) < 1e-3 else f"{value:.4f}"


def table(rows, left=1):
    """Rows of texts as aligned lines: the first `left` columns flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def drop_typed():
    """Forget what was typed on a terminal before it was asked for."""
    if not sys.stdin.isatty():
        return
    try:
        import termios
    except ImportError:  # Windows
        import msvcrt
        while msvcrt.kbhit():
            msvcrt.getwch()
    else:
        termios.tcflush(sys.stdin, termios.TCIFLUSH)


# --- Streams that fail ----------------------------------------------------------------------------

def repair():
    """Make all three streams usable: a closed one becomes the null device.

    What stdout cannot show becomes a ?. Python has None for a stream that was closed (`>&-`), and
    the next file opened would get its number.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        null = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")
        os.set_inheritable(null.fileno(), True)  # a program that this one starts needs them too
        setattr(sys, name, null)
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace")
    if "stdout" in closed:
        print("stdout is closed: what is printed is lost", file=sys.stderr)


def lost(error=None):
    """The OSError that keeps what was printed from being written, or None; the rest is dropped.

    error: an exception that may come from stdout and leave nothing to write; an empty line then
    tells.
    """
    try:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            print()
        sys.stdout.flush()
    except OSError as error:
        # Otherwise Python would try again on exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def sentence(error):
    """The sentence that reports such an error."""
    if isinstance(error, BrokenPipeError):
        return "stopped: the program that was reading the output has ended"
    return f"stopped: the output cannot be written ({error.strerror})"


@contextmanager
def guarded(all_said=False):
    """Run a program; where its output cannot be written, end it with a sentence and exit code 1.

    all_said: a reader that stops, as in `| head`, has read enough: end without a word.
    """
    repair()
    end = None
    try:
        yield
    except (OSError, SystemExit) as error:
        end = error
    if error := lost(end):
        raise SystemExit(1 if all_said and isinstance(error, BrokenPipeError)
                         else sentence(error)) from None
    if end:
        raise end


def watch():
    """The same from here on, for a script without a `with` around its work, and for Ctrl-C."""
    repair()
    # a debugger or a notebook has its own
    if sys.excepthook is sys.__excepthook__ and not in_notebook():
        sys.excepthook = _say
        atexit.register(_last)


def _say(kind, error, trace):
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif issubclass(kind, OSError) and (unwritten := lost(error)):
        print(sentence(unwritten), file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def _last():
    if error := lost():
        print(sentence(error), file=sys.stderr)
