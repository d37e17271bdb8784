"""`python -m minidl`: see cli.py."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character gets a question mark
    raise SystemExit(main())
