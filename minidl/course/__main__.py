"""A lesson in a process of its own: python -m minidl.course step|run FILE [MARK]."""

import sys
from pathlib import Path

from ..console import guarded
from .running import run
from .stepping import step

if __name__ == "__main__":
    with guarded():
        if sys.argv[1] == "step":
            step(Path(sys.argv[2]))
        else:
            run(Path(sys.argv[2]), sys.argv[3])
