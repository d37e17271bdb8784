"""What the lesson scripts share: settings from the environment, and CHECK lines that decide the exit code."""

import os

import numpy as np

from . import data, experiments
from . import functional as F
from .layers import BatchNorm


class Lesson:
    """The settings and checks of one lesson.

    $MINIDL_DATASET (digits, mnist, fashion_mnist) and $MINIDL_DATA (a folder) choose the data, $MINIDL_SEED
    (default 0) moves every random seed. $MINIDL_BN=identity makes BatchNorm only scale and shift, without
    normalising: a lesson that claims an effect of BatchNorm must then fail.
    """

    def __init__(self):
        self.seed = _whole_number("MINIDL_SEED", 0)
        self.dataset = os.environ.get("MINIDL_DATASET") or "digits"
        self.failed = self.passed = 0
        control = os.environ.get("MINIDL_BN") or ""
        if control not in ("", "identity"):
            raise SystemExit(f"MINIDL_BN can only be identity, got {control!r}")
        if control:
            print("MINIDL_BN=identity: BatchNorm does not normalise in this run; the CHECKs should fail")
            BatchNorm.forward = scale_and_shift

    def load_data(self):
        """((x_train, y_train), (x_test, y_test)) of the chosen data set; ends the script in one line if it is missing."""
        try:
            loaded = data.load(self.dataset)
        except (OSError, ValueError) as error:
            raise SystemExit(f"no data: {error}") from None
        print(f"data set {self.dataset}: {len(loaded[0][0])} training and {len(loaded[1][0])} test images; seed {self.seed}")
        return loaded

    def seeds(self, n):
        """n seeds that no other $MINIDL_SEED gives."""
        return [1000 * self.seed + i for i in range(n)]

    def check(self, name, measured, *, at_least=None, at_most=None, text=None, on_default_data=False):
        """Print a CHECK line and remember whether it passed.

        text: what to print for the number, where it is only known to be larger. on_default_data: the bound was
        set for the digits; on other data the line reports and cannot fail.
        """
        passed = measured >= at_least if at_most is None else measured <= at_most
        required = f">= {at_least:.4g}" if at_most is None else f"<= {at_most:.4g}"
        if on_default_data and self.dataset != "digits":
            verdict = "REPORTED (the bound is for the digits)"
        else:
            self.passed, self.failed = self.passed + passed, self.failed + (not passed)
            verdict = "PASS" if passed else "FAIL"
        print(f"CHECK {name}: measured {text or f'{measured:.4g}'}, required {required}, {verdict}")

    def finish(self):
        """Sum up; exit code 1 if a check failed."""
        print(f"{self.passed} checks passed, {self.failed} failed")
        if self.failed:
            raise SystemExit(1)


def scale_and_shift(layer, x):
    """The negative control for BatchNorm.forward: y = gamma x + beta."""
    if not layer.built:
        layer.input_shape = x.shape[1:]
        layer.create_parameters()
    return x * F.per_channel(layer.gamma, x) + F.per_channel(layer.beta, x) if layer.affine else x


def ratio(slow, fast, limit):
    """(slow / fast, text): how many times more; where slow was not reached within the limit, a lower bound as text."""
    slow, fast = np.median(slow), np.median(fast)
    if not np.isfinite(fast):
        return 0.0, "0 (the first was not reached)"
    if not np.isfinite(slow):
        return limit / fast, f"> {limit / fast:.3g}"
    return slow / fast, experiments.or_more(slow / fast, limit, ".3g")


def _whole_number(variable, default):
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise SystemExit(f"{variable} must be a whole number, 0 or more, got {text!r}")
    return int(text)
