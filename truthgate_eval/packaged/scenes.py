"""Small pictures of coloured shapes, drawn from a seed: what a small child model learns to see.

Sixteen objects, some common and most rare; two to five of them on a picture of 64 x 64. Parts (training,
probing, choosing, testing) draw from random streams of their own, so that no part sees another's pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from truthgate_eval.errors import DataError

MAKE = 1  # changes with every change of what is drawn, so that no stale picture is used
SIZE = 64
COLOURS = {"red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 90, 214), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
# Common ones first: neighbours in frequency share neither colour nor shape.
OBJECTS = tuple(
    f"{colour} {SHAPES[(place + turn) % len(SHAPES)]}"
    for turn in range(len(SHAPES))
    for place, colour in enumerate(COLOURS)
)
PARTS = ("train", "probe", "selection", "test", "sibling")
FEWEST, MOST = 2, 5
_CELLS, _SLOT = 3, 21  # a grid of slots, so that objects do not cover each other
_TAIL = 1.0  # frequency falls as rank to this power


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture and what is on it.

    Attributes:
        name: Part and number, such as `test-00017`.
        picture: RGB, 64 x 64.
        objects: Their names, in reading order.
    """

    name: str
    image: Image.Image
    objects: tuple[str, ...]

    @property
    def caption(self) -> str:
        """The objects in a sentence, in reading order."""
        named = [f"a {name}" for name in self.objects]
        return f"{', '.join(named[:-1])} and {named[-1]}.".capitalize()


def make_scene(part: str, number: int, *, tail: float = _TAIL) -> Scene:
    """The picture of that number in a part.

    Args:
        part: One of `PARTS`.
        number: 0 or more.
        tail: How fast frequency falls with rank; 0 makes all objects equally common.

    Raises:
        DataError: There is no such part.
    """
    if part not in PARTS:
        raise DataError(f"scenes have no part {part!r}: expected one of {', '.join(PARTS)}")
    draw = np.random.default_rng([PARTS.index(part), number])
    weights = np.arange(1, len(OBJECTS) + 1) ** -tail
    count = int(draw.integers(FEWEST, MOST + 1))
    chosen = draw.choice(len(OBJECTS), count, replace=False, p=weights / weights.sum())
    slots = np.sort(draw.choice(_CELLS**2, count, replace=False))
    shade = int(draw.integers(215, 246))
    picture = Image.new("RGB", (SIZE, SIZE), (shade, shade, shade))
    pen = ImageDraw.Draw(picture)
    for place, slot in zip(chosen, slots, strict=True):
        _put(pen, OBJECTS[place], int(slot), draw)
    return Scene(f"{part}-{number:05d}", picture, tuple(OBJECTS[place] for place in chosen))


def _put(pen: Any, name: str, slot: int, draw: np.random.Generator) -> None:
    """Draw an object somewhere in its slot, at some size, in a tone of its colour."""
    colour, shape = name.split()
    radius = int(draw.integers(6, 10))
    room = _SLOT // 2 - radius
    x = (slot % _CELLS) * _SLOT + _SLOT // 2 + int(draw.integers(-room, room + 1)) + 1
    y = (slot // _CELLS) * _SLOT + _SLOT // 2 + int(draw.integers(-room, room + 1)) + 1
    tone = tuple(int(np.clip(value + draw.integers(-14, 15), 0, 255)) for value in COLOURS[colour])
    left, top, right, bottom = x - radius, y - radius, x + radius, y + radius
    if shape == "circle":
        pen.ellipse((left, top, right, bottom), fill=tone)
    elif shape == "square":
        pen.rectangle((left, top, right, bottom), fill=tone)
    elif shape == "triangle":
        pen.polygon([(x, top), (left, bottom), (right, bottom)], fill=tone)
    else:
        third = max(2, radius // 3)
        pen.rectangle((left, y - third, right, y + third), fill=tone)
        pen.rectangle((x - third, top, x + third, bottom), fill=tone)
