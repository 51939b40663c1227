"""The outlines of what can be drawn: polygons in a unit box, with y pointing down.

Knows geometry and paint of single objects; knows nothing of scenes, captions or pixels.
A sketch is a list of (points, colour): points an array [n, 2] in about [-1, 1], painted in order.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Rgb = tuple[int, int, int]
Sketch = list[tuple[Points, Rgb]]

COLOURS: dict[str, Rgb] = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 160, 60),
    "blue": (35, 75, 205),
    "purple": (130, 45, 165),
    "black": (25, 25, 25),
    "white": (245, 245, 245),
}

_BROWN = (120, 75, 40)
_GREY = (120, 120, 125)
_SKIN = (245, 205, 120)
_GLASS = (185, 220, 240)
_CREAM = (240, 230, 205)


def _at(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _rect(left: float, top: float, right: float, bottom: float) -> Points:
    return _at((left, top), (right, top), (right, bottom), (left, bottom))


def _oval(x: float, y: float, rx: float, ry: float | None = None, *, start: float = 0.0, stop: float = 360.0) -> Points:
    angle = np.radians(np.linspace(start, stop, 33))
    return np.stack([x + rx * np.cos(angle), y + (rx if ry is None else ry) * np.sin(angle)], axis=1)


def _polar(radii: Points, *, turn: float = -90.0) -> Points:
    angle = np.radians(turn) + np.arange(len(radii)) * 2 * np.pi / len(radii)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x, y], axis=1) / 17


# One outline each; chosen to stay apart from each other under a turn of 20 degrees.
SHAPES: dict[str, Points] = {
    "circle": _oval(0, 0, 1),
    "square": _rect(-0.9, -0.9, 0.9, 0.9),
    "triangle": _polar(np.ones(3)),
    "star": _polar(np.where(np.arange(10) % 2, 0.42, 1.0)),
    "heart": _heart(),
    "cross": _at(
        (-0.33, -1), (0.33, -1), (0.33, -0.33), (1, -0.33), (1, 0.33), (0.33, 0.33),
        (0.33, 1), (-0.33, 1), (-0.33, 0.33), (-1, 0.33), (-1, -0.33), (-0.33, -0.33),
    ),
    # The hole is walked backwards, so that one polygon holds it and the background shows through.
    "ring": np.concatenate([_oval(0, 0, 1), _oval(0, 0, 0.52)[::-1]]),
    "arrow": _at((-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)),
}  # fmt: skip


def _one_of(rng: np.random.Generator, *names: str) -> Rgb:
    return COLOURS[names[int(rng.integers(len(names)))]]


def _house(rng: np.random.Generator) -> Sketch:
    return [
        (_rect(-0.7, -0.1, 0.7, 0.9), _one_of(rng, "white", "yellow") if rng.random() < 0.6 else _CREAM),
        (_at((-0.95, -0.1), (0, -0.9), (0.95, -0.1)), _one_of(rng, "red", "purple", "black")),
        (_rect(-0.15, 0.3, 0.2, 0.9), _BROWN),
        (_rect(-0.55, 0.1, -0.25, 0.4), _GLASS),
        (_rect(0.33, 0.1, 0.6, 0.4), _GLASS),
    ]


def _tree(rng: np.random.Generator) -> Sketch:
    green = COLOURS["green"]
    trunk = (_rect(-0.14, 0.2, 0.14, 1), _BROWN)
    if rng.random() < 0.5:
        return [trunk, (_oval(0, -0.3, 0.65, 0.7), green)]
    return [trunk, (_at((-0.7, 0.4), (0, -0.5), (0.7, 0.4)), green), (_at((-0.55, -0.1), (0, -1), (0.55, -0.1)), green)]


def _sun(rng: np.random.Generator) -> Sketch:
    rays = [_polar(np.array([1.0, 0.5, 0.5]), turn=k * 45.0) for k in range(8)]
    for k, ray in enumerate(rays):
        side = np.radians(k * 45.0) + np.array([-0.28, 0.28])
        ray[1:] = 0.6 * np.stack([np.cos(side), np.sin(side)], axis=1)
    return [*((ray, COLOURS["orange"]) for ray in rays), (_oval(0, 0, 0.58), COLOURS["yellow"])]


def _fish(rng: np.random.Generator) -> Sketch:
    paint = _one_of(rng, "orange", "blue", "purple")
    return [
        (_at((0.45, 0), (1, -0.5), (1, 0.5)), paint),
        (_oval(-0.2, 0, 0.8, 0.48), paint),
        (_at((-0.1, -0.4), (0.3, -0.75), (0.3, -0.3)), paint),
        (_oval(-0.62, -0.1, 0.13), COLOURS["white"]),
        (_oval(-0.64, -0.1, 0.06), COLOURS["black"]),
    ]


def _car(rng: np.random.Generator) -> Sketch:
    paint = _one_of(rng, "red", "blue", "green")
    return [
        (_at((-0.55, -0.05), (-0.35, -0.5), (0.35, -0.5), (0.6, -0.05)), paint),
        (_rect(-1, -0.08, 1, 0.35), paint),
        (_at((-0.42, -0.08), (-0.28, -0.4), (0, -0.4), (0, -0.08)), _GLASS),
        (_at((0.08, -0.08), (0.08, -0.4), (0.3, -0.4), (0.45, -0.08)), _GLASS),
        (_oval(-0.55, 0.35, 0.25), COLOURS["black"]),
        (_oval(0.55, 0.35, 0.25), COLOURS["black"]),
        (_oval(-0.55, 0.35, 0.1), _GREY),
        (_oval(0.55, 0.35, 0.1), _GREY),
    ]


def _boat(rng: np.random.Generator) -> Sketch:
    return [
        (_rect(-0.06, -1, 0.04, 0.4), _BROWN),
        (_at((0.1, -0.9), (0.1, 0.25), (0.75, 0.25)), COLOURS["white"]),
        (_at((-0.12, -0.7), (-0.12, 0.25), (-0.6, 0.25)), COLOURS["white"]),
        (
            _at((-1, 0.35), (1, 0.35), (0.65, 0.85), (-0.65, 0.85)),
            _one_of(rng, "red", "blue") if rng.random() < 0.6 else _BROWN,
        ),
    ]


def _flower(rng: np.random.Generator) -> Sketch:
    paint = _one_of(rng, "red", "purple", "white")
    petals = _polar(np.full(6, 0.34))
    return [
        (_rect(-0.06, -0.3, 0.06, 1), COLOURS["green"]),
        (_oval(0.24, 0.62, 0.22, 0.1), COLOURS["green"]),
        *((_oval(x, y - 0.4, 0.24), paint) for x, y in petals),
        (_oval(0, -0.4, 0.2), COLOURS["yellow"]),
    ]


def _face(rng: np.random.Generator) -> Sketch:
    return [
        (_oval(0, 0, 0.95), _SKIN),
        (_oval(-0.35, -0.25, 0.14), COLOURS["black"]),
        (_oval(0.35, -0.25, 0.14), COLOURS["black"]),
        (
            np.concatenate([_oval(0, 0.1, 0.6, 0.55, start=10, stop=170), _oval(0, 0.1, 0.5, 0.3, start=170, stop=10)]),
            COLOURS["red"],
        ),
    ]


def _cloud(rng: np.random.Generator) -> Sketch:
    paint = (235, 240, 248) if rng.random() < 0.5 else (165, 180, 205)
    return [
        (_oval(-0.55, 0.15, 0.42), paint),
        (_oval(0.55, 0.15, 0.42), paint),
        (_oval(-0.15, -0.15, 0.48), paint),
        (_oval(0.3, -0.05, 0.42), paint),
        (_rect(-0.55, 0.1, 0.55, 0.57), paint),
    ]


def _mushroom(rng: np.random.Generator) -> Sketch:
    return [
        (_at((-0.25, 0), (0.25, 0), (0.35, 0.9), (-0.35, 0.9)), _CREAM),
        (_oval(0, 0.05, 0.95, 0.9, start=180, stop=360), COLOURS["red"]),
        (_oval(-0.45, -0.25, 0.15), COLOURS["white"]),
        (_oval(0.1, -0.5, 0.17), COLOURS["white"]),
        (_oval(0.55, -0.2, 0.13), COLOURS["white"]),
    ]


def _snowman(rng: np.random.Generator) -> Sketch:
    white, black = COLOURS["white"], COLOURS["black"]
    return [
        (_oval(0, 0.5, 0.55), white),
        (_oval(0, -0.3, 0.38), white),
        (_rect(-0.4, -0.68, 0.4, -0.58), black),
        (_rect(-0.25, -1, 0.25, -0.6), black),
        (_oval(-0.14, -0.38, 0.07), black),
        (_oval(0.14, -0.38, 0.07), black),
        (_at((0, -0.28), (0.34, -0.2), (0, -0.14)), COLOURS["orange"]),
        (_oval(0, 0.35, 0.07), black),
        (_oval(0, 0.65, 0.07), black),
    ]


def _umbrella(rng: np.random.Generator) -> Sketch:
    paint = _one_of(rng, "purple", "blue", "green")
    return [
        (_rect(-0.05, -0.95, 0.05, 0.8), _BROWN),
        (
            np.concatenate([_oval(0.15, 0.75, 0.2, start=0, stop=180), _oval(0.15, 0.75, 0.1, start=180, stop=0)]),
            _BROWN,
        ),
        (_oval(0, 0, 1, 0.85, start=180, stop=360), paint),
        (_oval(-0.66, 0, 0.3, 0.12, start=180, stop=360), COLOURS["white"]),
        (_oval(0.66, 0, 0.3, 0.12, start=180, stop=360), COLOURS["white"]),
    ]


THINGS: dict[str, Callable[[np.random.Generator], Sketch]] = {
    "house": _house,
    "tree": _tree,
    "sun": _sun,
    "fish": _fish,
    "car": _car,
    "boat": _boat,
    "flower": _flower,
    "face": _face,
    "cloud": _cloud,
    "mushroom": _mushroom,
    "snowman": _snowman,
    "umbrella": _umbrella,
}
