"""Scenes: small generated images of coloured shapes, which `smollm2-135m-scenes` is trained on.

There are 16 objects, with a long-tailed frequency distribution. A scene has two to five of them, on an image
of 64 x 64 pixels. Each subset has random streams of its own, so that no image is in two subsets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from truthgate_eval.errors import DataError

DRAWING_VERSION = 1  # increased with every change to the drawing, so that cached images are drawn again
IMAGE_SIZE = 64
COLORS = {"red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 90, 214), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
# The most frequent first. Objects of neighbouring ranks share neither color nor shape.
OBJECTS = tuple(
    f"{color} {SHAPES[(index + turn) % len(SHAPES)]}"
    for turn in range(len(SHAPES))
    for index, color in enumerate(COLORS)
)
SUBSETS = ("train", "probe", "selection", "test", "sibling")
MIN_OBJECTS, MAX_OBJECTS = 2, 5
_GRID, _CELL_SIZE = 3, 21  # an object is inside one cell of a grid, so that objects do not overlap
_TAIL = 1.0


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and the objects on it.

    Attributes:
        name: Subset and number, such as `test-00017`.
        image: RGB, 64 x 64.
        objects: Names of the objects, in reading order.
    """

    name: str
    image: Image.Image
    objects: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The objects in a sentence, in reading order, such as "A red circle and a blue square."."""
        named = [f"a {name}" for name in self.objects]
        return f"{', '.join(named[:-1])} and {named[-1]}.".capitalize()


def make_scene(subset: str, number: int, *, tail: float = _TAIL) -> Scene:
    """Draw a scene, which its subset and number determine.

    Args:
        subset: One of `SUBSETS`.
        number: 0 or more.
        tail: An object of rank r is drawn with probability proportional to r ** -tail; 0 makes all objects
            equally frequent.

    Raises:
        DataError: There is no such subset.

    Example:
        >>> make_scene("test", 17).name
        'test-00017'
    """
    if subset not in SUBSETS:
        raise DataError(f"scenes have no subset {subset!r}: expected one of {', '.join(SUBSETS)}")
    rng = np.random.default_rng([SUBSETS.index(subset), number])
    weights = np.arange(1, len(OBJECTS) + 1) ** -tail
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    chosen = rng.choice(len(OBJECTS), count, replace=False, p=weights / weights.sum())
    cells = np.sort(rng.choice(_GRID**2, count, replace=False))
    shade = int(rng.integers(215, 246))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (shade, shade, shade))
    canvas = ImageDraw.Draw(image)
    for index, cell in zip(chosen, cells, strict=True):
        _draw_object(canvas, OBJECTS[index], int(cell), rng)
    return Scene(f"{subset}-{number:05d}", image, tuple(OBJECTS[index] for index in chosen))


def _draw_object(canvas: ImageDraw.ImageDraw, name: str, cell: int, rng: np.random.Generator) -> None:
    """Draw an object inside a cell, at a random position, in a random size and tone of its color."""
    color, shape = name.split()
    radius = int(rng.integers(6, 10))
    margin = _CELL_SIZE // 2 - radius
    x = (cell % _GRID) * _CELL_SIZE + _CELL_SIZE // 2 + int(rng.integers(-margin, margin + 1)) + 1
    y = (cell // _GRID) * _CELL_SIZE + _CELL_SIZE // 2 + int(rng.integers(-margin, margin + 1)) + 1
    tone = tuple(int(np.clip(value + rng.integers(-14, 15), 0, 255)) for value in COLORS[color])
    left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
    if shape == "circle":
        canvas.ellipse((left, top, right, bottom), fill=tone)
    elif shape == "square":
        canvas.rectangle((left, top, right, bottom), fill=tone)
    elif shape == "triangle":
        canvas.polygon([(x, top), (left, bottom), (right, bottom)], fill=tone)
    else:
        third = max(2, radius // 3)
        canvas.rectangle((left, y - third, right, y + third), fill=tone)
        canvas.rectangle((x - third, top, x + third, bottom), fill=tone)
