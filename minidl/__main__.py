"""`python -m minidl`: see cli.py."""

from .cli import main
from .streams import guarded

if __name__ == "__main__":
    with guarded(all_said=True):
        raise SystemExit(main())
