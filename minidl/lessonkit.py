"""What the lesson scripts share: settings from the environment, and CHECK lines that can fail."""

import json
import math
import os
import tempfile
from numbers import Real

import numpy as np

from . import console, data, experiments, plotting
from . import functional as F
from .files import replacing
from .normalization import BatchNorm
from .settings import is_whole


class Lesson:
    """The settings, figures and checks of one lesson. name: that of its file, without .py.

    $MINIDL_DATASET (digits, mnist, fashion_mnist) and $MINIDL_DATA (a folder) choose the data,
    $MINIDL_SEED (default 0) moves every random seed. Two negative controls, in which a lesson that
    claims an effect of BatchNorm must fail: $MINIDL_BN=identity makes BatchNorm only scale and
    shift, without normalising; $MINIDL_LABELS=permuted gives each image the label of another one,
    so that nothing can be learned.

    From here on the script ends in one sentence where its output cannot be written, as in `| head`,
    and after Ctrl-C.
    """

    def __init__(self, name):
        if not isinstance(name, str) or not name or any(c in name for c in '/\\:\n\0'):
            raise ValueError("a lesson's name is that of its file, without .py and without "
                             f"folders, got {name!r}")
        console.watch()
        self.name = name
        self.seed = _whole_number("MINIDL_SEED", 0)
        self.dataset = os.environ.get("MINIDL_DATASET") or "digits"
        self.figures = {}
        self.checks = []
        self.predictions = []
        self.permuted = _switch("MINIDL_LABELS", "permuted")
        negative_control()
        try:
            with tempfile.TemporaryFile(dir=plotting.folder()):
                pass
        except OSError as error:  # now, and not with the first figure, after the training
            raise SystemExit(
                f"figures cannot be saved, set MINIDL_FIGURES to a folder of yours: {error}"
            ) from None

    def load_data(self):
        """((x_train, y_train), (x_test, y_test)) of the chosen data set.

        Ends the script, saying why, if it is missing.
        """
        try:
            train, test = data.load(self.dataset)
        except (OSError, RuntimeError, ValueError) as error:
            raise SystemExit(f"no data: {error}") from None
        print(f"data set {self.dataset}: {len(train[0])} training and {len(test[0])} test images; "
              f"seed {self.seed}")
        if self.permuted:
            print("MINIDL_LABELS=permuted: no image has its own label in this run; the CHECKs "
                  "should fail")
            rng = np.random.default_rng(self.seed)
            train, test = ((x, rng.permutation(y)) for x, y in (train, test))
        return train, test

    def show(self, fig, name):
        """Show a figure, saved as figures/<lesson>-<name>.png; keep its numbers for `finish`."""
        self.figures[name] = plotting.numbers(fig)
        plotting.show(fig, f"{self.name}-{name}")

    def seeds(self, n):
        """n seeds, at most 1000, that no other $MINIDL_SEED yields."""
        if not is_whole(n) or not 1 <= n <= 1000:
            raise ValueError(f"seeds takes a whole number from 1 to 1000, got {n!r}")
        return [1000 * self.seed + i for i in range(n)]

    def predict(self, text):
        """Keep a prediction, in words, for `finish` to print below what was measured.

        It asks nothing, so a run without a keyboard goes on; an empty text is no prediction. In a
        terminal, stepping keeps what is typed; a notebook has a cell with this line to fill in.
        """
        if not isinstance(text, str):
            raise TypeError(f"a prediction is a text in quotes, got {text!r}")
        if text.strip() and text.strip() not in self.predictions:  # a cell may be run again
            self.predictions.append(text.strip())

    def check(self, name, measured, *, at_least=None, at_most=None, text=None,
              on_default_data=False, claim=True):
        """Print a CHECK line and remember whether it passed.

        measured: one number; NaN fails. Either at_least or at_most is the bound, a finite number.
        text: what to print for the number, where it is only known to be larger. on_default_data:
        the bound was set for the digits; on other data the line reports and cannot fail. claim:
        whether it claims an effect of BatchNorm, so that it must fail where BatchNorm does nothing.
        Raises ValueError and TypeError for what could not be checked.
        """
        measured = measured.item() if getattr(measured, "shape", None) == () else measured
        if not isinstance(measured, Real):
            raise TypeError(f"CHECK {name}: measured must be one number, got {measured!r}; of "
                            "several take the mean or the median")
        bounds = [bound for bound in (at_least, at_most) if bound is not None]
        if len(bounds) != 1 or not isinstance(bounds[0], Real) or not math.isfinite(bounds[0]):
            raise ValueError(f"CHECK {name}: needs one bound, at_least or at_most, that is a "
                             f"finite number, got at_least={at_least!r}, at_most={at_most!r}; a "
                             "range is two CHECKs")
        if not all(isinstance(words, str) and words and words.isprintable()
                   for words in (name, text or "-")):
            raise ValueError(f"a CHECK has a name on one line, and perhaps a text, got {name!r}, "
                             f"{text!r}")
        passed = bool(measured >= at_least if at_most is None else measured <= at_most)
        required = f">= {at_least:.4g}" if at_most is None else f"<= {at_most:.4g}"
        reported = on_default_data and self.dataset != "digits"
        verdict = (
            "REPORTED (the bound is for the digits)" if reported else "PASS" if passed else "FAIL"
        )
        text = text or f"{measured:.4g}"
        self.checks.append(
            {
                "name": name,
                "measured": float(measured) if np.isfinite(measured) else None,
                "text": text,
                "at_least": _plain(at_least),
                "at_most": _plain(at_most),
                "claim": claim,
                "passed": None if reported else passed,
            }
        )
        print(f"CHECK {name}: measured {text}, required {required}, {verdict}")

    def finish(self):
        """Sum up, and end with exit code 1 if a check failed.

        Writes checks, predictions and the numbers behind the figures to figures/<lesson>.json.
        """
        record = {
            "lesson": self.name,
            "seed": self.seed,
            "dataset": self.dataset,
            "checks": self.checks,
            "predictions": self.predictions,
            "figures": self.figures,
        }
        with replacing(plotting.folder() / f"{self.name}.json") as file:
            file.write(json.dumps(record, allow_nan=False).encode())
        for text in self.predictions:
            print(f"you predicted: {text}")
        passed, failed = (
            sum(check["passed"] is verdict for check in self.checks) for verdict in (True, False)
        )
        print(f"{passed} checks passed, {failed} failed", flush=True)
        if failed:
            raise SystemExit(1)


def negative_control():
    """With $MINIDL_BN=identity, keep BatchNorm in this program from normalising, and say so."""
    if _switch("MINIDL_BN", "identity"):
        print("MINIDL_BN=identity: BatchNorm does not normalise in this run; what is claimed "
              "of it should fail")
        BatchNorm.forward = scale_and_shift


def scale_and_shift(layer, x):
    """The negative control for BatchNorm.forward: y = gamma x + beta."""
    if not layer.built:
        layer.input_shape = x.shape[1:]
        layer.create_parameters()
    return x * F.per_channel(layer.gamma, x) + F.per_channel(layer.beta, x) if layer.affine else x


def ratio(slow, fast, limit):
    """(slow / fast, text): how many times more; a lower bound as text where slow is not reached.

    limit: how far slow was followed.
    """
    slow, fast = np.median(slow), np.median(fast)
    if fast == 0:
        raise ValueError("the target was reached before the first step, so there is no ratio of "
                         "steps: choose one that has to be learned")
    if not np.isfinite(fast):
        return 0.0, "0 (the first was not reached)"
    if not np.isfinite(slow):
        return limit / fast, f"> {limit / fast:.3g}"
    return slow / fast, experiments.or_more(slow / fast, limit, ".3g")


def written(number, digits=2, sign=False):
    """A number as people write it in a sentence: 1,650, −0.013, 4 × 10¹⁹.

    digits: how many significant ones. sign: a plus, too. Numbers below 0.001 and from a million up
    get a power of ten; what rounds to 0 is 0 and never −0.
    """
    if not math.isfinite(number):
        return str(number)
    mantissa, exponent = f"{number:.{digits - 1}e}".split("e")
    power, value = int(exponent), float(f"{mantissa}e{exponent}")
    if value and not -3 <= power < 6:
        text = f"{abs(float(mantissa)):.{digits - 1}f} × 10" + str(power).translate(SUPERSCRIPTS)
    else:
        text = f"{abs(value):,.{max(0, digits - 1 - power)}f}"
    return ("−" if value < 0 else "+" if sign else "") + text


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _plain(bound):
    """A bound as JSON knows it: not as NumPy's float32."""
    return bound.item() if isinstance(bound, np.generic) else bound


def _switch(variable, only):
    """Whether an environment variable has its only value; SystemExit if it has another."""
    text = os.environ.get(variable) or ""
    if text not in ("", only):
        raise SystemExit(f"{variable} can only be {only}, got {text!r}")
    return bool(text)


def _whole_number(variable, default):
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise SystemExit(f"{variable} must be a whole number, 0 or more, got {text!r}")
    return int(text)
