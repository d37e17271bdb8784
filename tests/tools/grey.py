"""How do the figures look on a grey printer, and to somebody with deuteranopia (red-green blindness)?

    python tests/tools/grey.py figures/*.png --to DIR

Writes DIR/<name>-seen.png for each: in colour, in grey, and through the filter, one above the other. Look at
them: can the lines be told apart, and does each still carry its label?
"""

import argparse
from pathlib import Path

import numpy as np

# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision deficiency, 2009:
# deuteranomaly of severity 1.0, for linear RGB
DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968],
                         [0.280085, 0.672501, 0.047413],
                         [-0.011820, 0.042940, 0.968881]])
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # ITU-R BT.709


def linear(rgb):
    """sRGB values from 0 to 1, as in a PNG, to amounts of light."""
    rgb = np.asarray(rgb, float)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def encoded(light):
    """Amounts of light to sRGB values from 0 to 1."""
    light = np.clip(light, 0, 1)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def grey(rgb):
    """What a black-and-white printer makes of colours (..., 3)."""
    return np.repeat(encoded(linear(rgb) @ LUMINANCE)[..., None], 3, axis=-1)


def deuteranopia(rgb):
    """What colours (..., 3) look like without the green-sensitive cones."""
    return encoded(linear(rgb) @ DEUTERANOPIA.T)


def main():
    """Read the command line, write the pictures."""
    from PIL import Image
    parser = argparse.ArgumentParser(description="Figures in grey and through a deuteranopia filter.")
    parser.add_argument("figures", nargs="+", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="a folder for the results")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for path in options.figures:
        colours = np.asarray(Image.open(path).convert("RGB")) / 255
        stacked = np.concatenate([colours, grey(colours), deuteranopia(colours)])
        target = options.to / f"{path.stem}-seen.png"
        Image.fromarray((255 * stacked).round().astype(np.uint8)).save(target)
        print(target)


if __name__ == "__main__":
    main()
