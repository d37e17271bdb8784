"""The console: progress on stderr, a bar on a terminal or in a notebook, plain lines everywhere else; text tables."""

import math
import shutil
import sys
from time import perf_counter


class Progress:
    """Shows training on stderr: a bar on a terminal or in a notebook, else one plain line per epoch."""

    def __init__(self, epochs, samples, batch_size, verbose):
        self.epochs, self.verbose, self.bar = epochs, verbose, None
        self.steps = max(1, math.ceil(samples / batch_size) - (batch_size > 1 and samples % batch_size == 1))

    def start(self, epoch):
        """A new epoch begins."""
        self.epoch, self.began = epoch, perf_counter()
        if self.verbose == 1 and shows_bars():
            self.bar = bar(total=self.steps, desc=f"Epoch {epoch + 1}/{self.epochs}")

    def advance(self, logs):
        """One step is done."""
        if self.bar is not None and self.bar.update():  # update() is true when the bar was due to be redrawn
            self.bar.set_postfix_str(format_logs(logs), refresh=False)

    def finish(self, logs):
        """The epoch is over."""
        if self.bar is not None:
            self.bar.set_postfix_str(format_logs(logs))
            self.close()
        elif self.verbose:
            print(f"Epoch {self.epoch + 1}/{self.epochs} - {perf_counter() - self.began:.1f}s - {format_logs(logs)}",
                  file=sys.stderr, flush=True)

    def close(self):
        """Leave the line of a bar that is still open."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shows_bars():
    """Whether stderr can show a bar: a terminal, or a notebook."""
    return "ipykernel" in sys.modules or sys.stderr is not None and sys.stderr.isatty()  # pythonw.exe has no stderr


def bar(**options):
    """A tqdm bar that is ASCII where the terminal cannot show block characters, and absent where there is no terminal."""
    from tqdm.auto import tqdm
    encoding = getattr(sys.stderr, "encoding", None) or "ascii"
    try:
        "█▏".encode(encoding)
        ascii_only = False
    except (UnicodeEncodeError, LookupError):
        ascii_only = True
    if "ipykernel" not in sys.modules:  # there it would be a width in pixels
        columns, lines = shutil.get_terminal_size()
        options.update(ncols=(columns or 80) - 1, nrows=lines or 24)  # tqdm draws nothing on a terminal that says it is 0 wide
    return tqdm(ascii=ascii_only, disable=not shows_bars(), **options)


def format_logs(logs):
    """`loss: 0.1234 - accuracy: 0.9876`, with exponents below 0.001, as Keras prints them."""
    return " - ".join(f"{key}: {value:.4f}" if abs(value) >= 1e-3 or value == 0 else f"{key}: {value:.4e}"
                      for key, value in logs.items())


def table(rows, left=1):
    """Rows of texts as lines with aligned columns: so many on the left side, the others on the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) if i < left else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
