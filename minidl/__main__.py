"""`python -m minidl`: see course/cli.py."""

from .console import guarded
from .course.cli import main

if __name__ == "__main__":
    with guarded(all_said=True):
        raise SystemExit(main())
