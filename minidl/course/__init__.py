"""The lessons as a course: find, step through, run and check them, and write them as handouts."""

from .cells import Cell, about, cells, find, lessons, read
from .exercises import check_exercise
from .markdown import blocks, highlight
from .running import Outcome, check, launch, run
from .stepping import step

__all__ = ["Cell", "Outcome", "about", "blocks", "cells", "check", "check_exercise", "find",
           "highlight", "launch", "lessons", "read", "run", "step"]
