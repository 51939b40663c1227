"""The drawn world: what can be seen in it, how it is drawn, what is said about it, and where each object lies.

Knows names, seeds, boxes and pixels (Pillow and NumPy); knows nothing of models, tokens or training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.demo.sketches import COLOURS, SHAPES, THINGS, Rgb, Sketch

SHAPE_NAMES: tuple[str, ...] = tuple(SHAPES)
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
THING_NAMES: tuple[str, ...] = tuple(THINGS)

Which = Literal["seen", "held-out", "all"]


@dataclass(frozen=True)
class Subject:
    """What an object is: a shape with a colour, or a thing, whose colours are its own (`colour` is None)."""

    name: str
    colour: str | None

    @property
    def words(self) -> str:
        """The bare noun phrase: "red circle", "house"."""
        return self.name if self.colour is None else f"{self.colour} {self.name}"

    @property
    def phrase(self) -> str:
        """The noun phrase with its article: "an orange star", "a house"."""
        return f"{'an' if self.words[0] in 'aeiou' else 'a'} {self.words}"

    @property
    def attributes(self) -> tuple[str, ...]:
        """What is said of it, one word each: ("red", "circle"), ("house",)."""
        return (self.name,) if self.colour is None else (self.colour, self.name)


PAIRS: tuple[Subject, ...] = tuple(Subject(shape, colour) for shape in SHAPE_NAMES for colour in COLOUR_NAMES)
# One pair for each shape and each colour (3 is coprime to 8, so this is a permutation): never drawn and never
# named while training, and what "held-out compositions" means everywhere.
HELD_OUT: frozenset[Subject] = frozenset(
    Subject(shape, COLOUR_NAMES[(3 * k + 2) % len(COLOUR_NAMES)]) for k, shape in enumerate(SHAPE_NAMES)
)
DRAWN_THINGS: tuple[Subject, ...] = tuple(Subject(name, None) for name in THING_NAMES)
SUBJECTS: tuple[Subject, ...] = PAIRS + DRAWN_THINGS
SEEN_PAIRS: tuple[Subject, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
SEEN_SUBJECTS: tuple[Subject, ...] = SEEN_PAIRS + DRAWN_THINGS

TEMPLATES: tuple[str, ...] = (
    "{}",
    "a drawing of {}",
    "a picture of {}",
    "there is {}",
    "an image of {}",
)
CONJUNCTIONS: tuple[str, ...] = (" and ", " next to ", " with ")

Box = tuple[float, float, float, float]
_SIDES = {1: (0.42, 0.8), 2: (0.34, 0.48), 3: (0.3, 0.4)}
"""Number of objects -> the smallest and the largest side of each one's slot."""


@dataclass(frozen=True)
class PlacedObject:
    """A subject in its box: (left, top, right, bottom) as fractions of the image, x to the right, y down."""

    subject: Subject
    box: Box
    turn: float
    stretch: float
    mirrored: bool
    seed: int


@dataclass(frozen=True)
class Scene:
    """One to three objects whose boxes do not touch, on a background. Renders to the same pixels every time."""

    objects: tuple[PlacedObject, ...]
    background: Rgb
    texture: Literal["plain", "gradient", "stripes"]
    seed: int

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What the scene shows, in drawing order."""
        return tuple(placed.subject for placed in self.objects)


def caption(subjects: Sequence[Subject], rng: np.random.Generator | None = None) -> str:
    """A caption naming all subjects: the plain one ("a red circle and a house"), or with `rng` a random wording."""
    if rng is None:
        return " and ".join(subject.phrase for subject in subjects)
    order = rng.permutation(len(subjects))
    join = CONJUNCTIONS[int(rng.integers(len(CONJUNCTIONS)))]
    text = join.join(subjects[int(k)].phrase for k in order)
    return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(text)


def sample_subject(rng: np.random.Generator, which: Which) -> Subject:
    """A random subject: a pair of shape and colour two times in three, else a thing (never for "held-out")."""
    if which != "held-out" and rng.random() < 1 / 3:
        return DRAWN_THINGS[int(rng.integers(len(DRAWN_THINGS)))]
    pool = {"seen": SEEN_PAIRS, "all": PAIRS, "held-out": tuple(pair for pair in PAIRS if pair in HELD_OUT)}[which]
    return pool[int(rng.integers(len(pool)))]


def sample_scene(
    rng: np.random.Generator,
    *,
    which: Which = "seen",
    count: int | None = None,
    subjects: Sequence[Subject] | None = None,
) -> Scene:
    """A random scene.

    Args:
        rng: The only source of randomness: the same state gives the same scene.
        which: "seen" for training scenes (no held-out pair ever), "held-out" for held-out pairs only, "all" for any.
        count: 1 or 2 objects; random if None.
        subjects: What to draw, at most three, instead of a random choice.
    """
    if subjects is None:
        wanted = count or int(rng.integers(1, 3))
        chosen: list[Subject] = []
        while len(chosen) < wanted:
            subject = sample_subject(rng, which)
            if subject not in chosen:
                chosen.append(subject)
        subjects = chosen
    boxes = _place(rng, len(subjects))
    objects = tuple(_posed(rng, subject, box) for subject, box in zip(subjects, boxes, strict=True))
    textures: tuple[Literal["plain", "gradient", "stripes"], ...] = ("plain", "gradient", "stripes")
    return Scene(
        objects=objects,
        background=_background(rng, subjects),
        texture=textures[int(rng.integers(3))],
        seed=int(rng.integers(2**31)),
    )


def _place(rng: np.random.Generator, count: int) -> list[Box]:
    """Square slots that lie inside the image and apart from each other."""
    while True:
        low, high = _SIDES[count]
        boxes: list[Box] = []
        for _ in range(count):
            side = rng.uniform(low, high)
            left, top = rng.uniform(0.02, 0.98 - side, size=2)
            boxes.append((float(left), float(top), float(left + side), float(top + side)))
        if all(_apart(a, b) for a, b in combinations(boxes, 2)):
            return boxes


def _apart(a: Box, b: Box, gap: float = 0.03) -> bool:
    return a[2] + gap < b[0] or b[2] + gap < a[0] or a[3] + gap < b[1] or b[3] + gap < a[1]


def _posed(rng: np.random.Generator, subject: Subject, slot: Box) -> PlacedObject:
    """The object turned and fitted into its slot; its box is the tight one around what will be painted."""
    placed = PlacedObject(
        subject=subject,
        box=slot,
        turn=float(rng.uniform(-15, 15)),
        stretch=float(rng.uniform(0.88, 1.14)),
        mirrored=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )
    points = np.concatenate([polygon for polygon, _ in _outline(placed)])
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    size = max(right - left, bottom - top)
    side = slot[2] - slot[0]
    centre_x, centre_y = (slot[0] + slot[2]) / 2, (slot[1] + slot[3]) / 2
    half_x, half_y = (right - left) / size * side / 2, (bottom - top) / size * side / 2
    box = (centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y)
    return PlacedObject(subject, tuple(map(float, box)), placed.turn, placed.stretch, placed.mirrored, placed.seed)  # type: ignore[arg-type]  # map loses the length 4


def _outline(placed: PlacedObject) -> Sketch:
    """The turned and stretched sketch, not yet moved into the box."""
    rng = np.random.default_rng(placed.seed)
    subject = placed.subject
    sketch = THINGS[subject.name](rng) if subject.colour is None else [(SHAPES[subject.name], COLOURS[subject.colour])]
    angle = np.radians(placed.turn)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    scale = np.array([(-1 if placed.mirrored else 1) * placed.stretch, 1 / placed.stretch])
    tint = rng.uniform(-14, 14, size=3)
    return [(points * scale @ turn.T, _rgb(np.array(paint) + tint)) for points, paint in sketch]


def _rgb(values: NDArray[np.float64]) -> Rgb:
    red, green, blue = (int(value) for value in values.round().clip(0, 255))
    return red, green, blue


def _background(rng: np.random.Generator, subjects: Sequence[Subject]) -> Rgb:
    """A dull colour that no shape in the scene is painted in."""
    paints = [np.array(COLOURS[subject.colour]) for subject in subjects if subject.colour is not None]
    while True:
        ground = rng.uniform(70, 205) + rng.uniform(-22, 22, size=3)
        if all(np.linalg.norm(ground - paint) > 85 for paint in paints):
            return _rgb(ground)


def render(scene: Scene, size: int, *, noise: bool = True) -> NDArray[np.uint8]:
    """The scene as pixels: uint8 [size, size, 3], RGB, the same for the same scene and size.

    Painted at twice the size and box-averaged, which smooths the edges; then slight noise, which training wants and a
    picture for people does not: with it a PNG takes over ten times the bytes.
    """
    rng = np.random.default_rng(scene.seed)
    big = 2 * size
    canvas = Image.fromarray(_ground(scene, big, rng))
    pen = ImageDraw.Draw(canvas)
    for placed in scene.objects:
        for points, paint in fitted(placed):
            pen.polygon([(float(x), float(y)) for x, y in points * big], fill=paint)
    smooth = canvas.reduce(2)
    if not noise:
        return np.asarray(smooth)
    pixels = np.asarray(smooth, dtype=np.float32)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(0, 6))
    return (pixels + grain).clip(0, 255).astype(np.uint8)


def fitted(placed: PlacedObject) -> Sketch:
    """The object's polygons moved into its box, in fractions of the image."""
    sketch = _outline(placed)
    points = np.concatenate([polygon for polygon, _ in sketch])
    low, high = points.min(axis=0), points.max(axis=0)
    corner, far = np.array(placed.box[:2]), np.array(placed.box[2:])
    return [((polygon - low) / (high - low) * (far - corner) + corner, paint) for polygon, paint in sketch]


def _ground(scene: Scene, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    base = np.array(scene.background, dtype=np.float32)
    if scene.texture == "plain":
        return np.broadcast_to(base, (size, size, 3)).astype(np.uint8)
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    if scene.texture == "stripes":
        along = np.sign(np.sin(along * rng.uniform(6, 18)))
    strength = rng.uniform(6, 18)
    ground: NDArray[np.uint8] = (base + strength * along[..., None]).clip(0, 255).astype(np.uint8)
    return ground


def cell_cover(boxes: NDArray[np.floating], grid: tuple[int, int]) -> NDArray[np.float64]:
    """How much of each grid cell each box covers.

    Args:
        boxes: [..., 4] as (left, top, right, bottom), fractions of the image; NaN for "no object" covers nothing.
        grid: (rows, columns).

    Returns:
        [..., rows, columns], from 0 to 1.
    """
    rows, columns = grid

    def overlap(low: NDArray[np.floating], high: NDArray[np.floating], cells: int) -> NDArray[np.float64]:
        edge = np.arange(cells + 1) / cells
        shared = np.minimum(high[..., None], edge[1:]) - np.maximum(low[..., None], edge[:-1])
        return np.nan_to_num(np.asarray(shared, dtype=np.float64)).clip(0) * cells

    across = overlap(boxes[..., 0], boxes[..., 2], columns)
    down = overlap(boxes[..., 1], boxes[..., 3], rows)
    return np.asarray(down[..., :, None] * across[..., None, :])


def on_object(cover: NDArray[np.float64], least: float = 0.25) -> NDArray[np.bool_]:
    """Which cells count as lying on which object.

    A cell lies on an object if the object's box covers more of it than any other object's box does, and either
    `least` of the cell or more than of any other cell (so that a small object has its cell on a coarse grid).

    Args:
        cover: [..., objects, rows, columns] from `cell_cover`.
        least: The share of a cell that suffices.
    """
    best_cell = cover >= cover.max(axis=(-2, -1), keepdims=True)
    best_object = cover >= cover.max(axis=-3, keepdims=True)
    return np.asarray((cover > 0) & best_object & ((cover >= least) | best_cell))
