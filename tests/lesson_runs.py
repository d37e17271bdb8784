"""The lessons run in the background while the other tests do, for most of the tests' time is theirs."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from minidl.course.cells import about
from minidl.files import idx_bytes

LESSONS = Path(__file__).parent.parent / "lessons"
# The test that looks at a run, and the kind of run that it looks at.
VARIANTS = {"test_a_lesson_passes_its_checks_and_saves_its_figures": "plain",
            "test_a_lesson_fails_when_batch_norm_is_the_identity": "identity",
            "test_a_lesson_fails_when_the_labels_are_permuted": "permuted",
            "test_a_lesson_runs_on_a_folder_of_idx_files": "mnist"}


def run(lesson, folder, **environment):
    """Run a lesson in a folder, on one thread, with warnings as errors; returns the finished process."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MINIDL_")}
    environment = {**inherited, "MPLBACKEND": "agg", "MINIDL_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1", **environment}
    strict = ["-W", "error::RuntimeWarning", "-W", "error::UserWarning"]
    return subprocess.run([sys.executable, *strict, LESSONS / f"{lesson}.py"], cwd=folder, env=environment, capture_output=True,
                          text=True)


def seconds(lesson):
    """What the lesson says of its running time."""
    return float(re.search(r"\d+", about(LESSONS / f"{lesson}.py")[3])[0])


def idx_folder(folder):
    """5,000 digits of the project as a folder of IDX files, as MNIST comes."""
    with np.load(LESSONS.parent / "datasets" / "digits.npz") as file:
        images, labels = file["x_train"][:5000], file["y_train"][:5000].astype(np.uint8)
    (folder / "images-idx3-ubyte").write_bytes(idx_bytes(images))
    (folder / "labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return folder


@contextmanager
def started(items, new_folder):
    """Start what the chosen tests will look at, two at a time, the longest first.

    items: pytest's. new_folder: makes an empty one from a name. Inside the block, the value is a function of lesson and
    variant that waits for that run and returns (finished process, folder).
    """
    wanted = {(item.callspec.params["lesson"], VARIANTS[item.originalname]) for item in items
              if getattr(item, "originalname", "") in VARIANTS}
    environments = {"plain": {}, "identity": {"MINIDL_BN": "identity"}, "permuted": {"MINIDL_LABELS": "permuted"}}
    if any(variant == "mnist" for _, variant in wanted):
        environments["mnist"] = {"MINIDL_DATASET": "mnist", "MINIDL_FIGURES": "elsewhere",
                                 "MINIDL_DATA": str(idx_folder(new_folder("mnist")))}
    folders = {key: new_folder(key[1]) for key in sorted(wanted, key=lambda key: (-seconds(key[0]), key))}
    pool = ThreadPoolExecutor(2)
    futures = {key: pool.submit(run, key[0], folder, **environments[key[1]]) for key, folder in folders.items()}
    try:
        yield lambda lesson, variant: (futures[lesson, variant].result(), folders[lesson, variant])
    finally:
        pool.shutdown(cancel_futures=True)
