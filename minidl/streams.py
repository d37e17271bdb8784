"""Streams that are closed, full, or too poor for a character: one sentence, no traceback.

And where they lead: a terminal, a notebook or a browser.
"""

import atexit
import os
import sys
from contextlib import contextmanager


def in_notebook():
    """Whether this is a notebook, where output is shown by a browser, and bars as widgets."""
    return "ipykernel" in sys.modules


def in_browser():
    """Whether Python itself runs in a browser, where there are no processes."""
    return sys.platform in ("emscripten", "wasi")


def repair():
    """Make all three usable: a closed one becomes the null device, what stdout cannot show a ?.

    Python has None for a stream that was closed (`>&-`), and the next file that is opened would get
    its number.
    """
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        null = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")
        os.set_inheritable(null.fileno(), True)  # a program that this one starts needs them, too
        setattr(sys, name, null)
    if hasattr(sys.stdout, "reconfigure"):  # not in a notebook
        sys.stdout.reconfigure(errors="replace")
    if "stdout" in closed:
        print("stdout is closed: what is printed is lost", file=sys.stderr)


def lost(error=None):
    """The OSError that keeps what was printed from being written, or None; the rest is dropped.

    error: an exception that perhaps came from there, with nothing left to write; then an empty line
    tells.
    """
    try:
        if isinstance(error, OSError) and error.errno and error.filename is None:
            print()
        sys.stdout.flush()
    except OSError as error:
        # Else Python would try again when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def sentence(error):
    """What to say of it."""
    if isinstance(error, BrokenPipeError):
        return "stopped: the program that was reading the output has ended"
    return f"stopped: the output cannot be written ({error.strerror})"


@contextmanager
def guarded(all_said=False):
    """A program's work; where its output cannot be written, it ends in a sentence, with code 1.

    all_said: whoever stops reading, as in `| head`, has read enough, and the program ends without a
    word.
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
    """The same for a script that has no `with` around its work, and for Ctrl-C, from here on."""
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
