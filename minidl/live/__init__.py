"""The live race: a network with BatchNorm and one without train side by side in a web page.

The settings are sliders, which a class can move while the networks train.
"""

from .page import write
from .race import PRESETS, SETTINGS, Race
from .server import PORT, serve

__all__ = ["PORT", "PRESETS", "SETTINGS", "Race", "serve", "write"]
