"""The live race: a network with BatchNorm and one without train side by side in a page, while a
class moves the sliders.
"""

from .page import write
from .race import PRESETS, SETTINGS, Race
from .server import PORT, serve

__all__ = ["PORT", "PRESETS", "SETTINGS", "Race", "serve", "write"]
