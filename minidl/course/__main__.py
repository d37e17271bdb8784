"""Runs one lesson, or one student's file, in a process of its own.

python -m minidl.course step|run FILE [MARK]
python -m minidl.course student EXERCISE FILE SEED OUT
"""

import sys
from pathlib import Path

from ..console import guarded
from . import student
from .running import run
from .stepping import step

if __name__ == "__main__":
    if sys.argv[1] == "student":
        student.main(*sys.argv[2:])
    with guarded():
        if sys.argv[1] == "step":
            step(Path(sys.argv[2]))
        else:
            run(Path(sys.argv[2]), sys.argv[3])
