"""Makes the pictures that the page offers: our drawings, and photographs that are free to pass on.

Knows scenes, scikit-image's photographs and files; knows nothing of models. LICENCES.md beside the pictures says where
the photographs come from.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.demo.world import Subject, render, sample_scene

SAMPLES = Path(__file__).parents[2] / "service" / "http" / "web" / "static" / "samples"
LIST = "samples.json"
"""The list's file: the samples in the order in which the page shows them."""

_DRAWING_SIDE = 288
"""Three times what the demo encoders see."""
_PHOTOGRAPH_SIDE = 384
"""The longer side."""
_JPEG_QUALITY = 70


@dataclass(frozen=True)
class Drawing:
    """A scene. objects: "house" or "red circle". seed: chosen by eye. absent: a text of what it does not show."""

    objects: tuple[str, ...]
    seed: int
    absent: str

    @property
    def file(self) -> str:
        """The file's name: `circle-house.png`."""
        return "-".join(subject.name for subject in self._subjects) + ".png"

    @property
    def entry(self) -> dict[str, object]:
        """Its line of the list; the last text is absent from the picture."""
        *others, last = self.objects
        name = f"{', '.join(others)} and {last}" if others else last
        texts = [*(subject.phrase for subject in self._subjects), self.absent]
        return {"file": self.file, "name": name, "texts": texts, "drawing": True}

    def picture(self) -> Image.Image:
        """The drawing, without the noise that training adds."""
        scene = sample_scene(np.random.default_rng(self.seed), subjects=self._subjects)
        return Image.fromarray(render(scene, _DRAWING_SIDE, noise=False))

    @property
    def _subjects(self) -> tuple[Subject, ...]:
        words = (name.split() for name in self.objects)
        return tuple(Subject(last, colour[0] if colour else None) for *colour, last in words)


@dataclass(frozen=True)
class Photograph:
    """A photograph of scikit-image's. source: its name there. texts: the last is absent from the picture."""

    source: str
    name: str
    texts: tuple[str, ...]

    @property
    def file(self) -> str:
        """The file's name: `astronaut.jpg`."""
        return f"{self.name}.jpg"

    @property
    def entry(self) -> dict[str, object]:
        """Its line of the list."""
        return {"file": self.file, "name": self.name, "texts": list(self.texts), "drawing": False}

    def picture(self) -> Image.Image:
        """The photograph, made smaller."""
        from skimage import data

        photograph = Image.fromarray(np.asarray(getattr(data, self.source)()))
        photograph.thumbnail((_PHOTOGRAPH_SIDE, _PHOTOGRAPH_SIDE), Image.Resampling.LANCZOS)
        return photograph


DRAWINGS = (
    Drawing(("red circle", "house"), seed=2, absent="a blue star"),
    Drawing(("sun", "tree"), seed=1, absent="a snowman"),
    Drawing(("fish", "boat"), seed=8, absent="a red heart"),
    Drawing(("blue star", "green triangle"), seed=4, absent="a red circle"),
    Drawing(("car", "cloud", "yellow heart"), seed=15, absent="a tree"),
    Drawing(("mushroom",), seed=5, absent="a flower"),
)
PHOTOGRAPHS = (
    Photograph("chelsea", "cat", ("a cat", "green eyes", "a dog")),
    Photograph("coffee", "coffee", ("a cup of coffee", "a spoon", "a plate of pasta")),
    Photograph("astronaut", "astronaut", ("an astronaut", "a flag", "a bicycle")),
    Photograph("rocket", "rocket", ("a rocket on its launch pad", "the evening sky", "a beach")),
)
_SAVING: Mapping[str, Mapping[str, Any]] = {
    ".png": {"optimize": True},
    ".jpg": {"quality": _JPEG_QUALITY, "optimize": True, "progressive": True},
}


def write(folder: Path) -> None:
    """All pictures, and their list."""
    samples = (*DRAWINGS, *PHOTOGRAPHS)
    for sample in samples:
        path = folder / sample.file
        sample.picture().save(path, **_SAVING[path.suffix])
    lines = ",\n".join(f"  {json.dumps(sample.entry)}" for sample in samples)
    (folder / LIST).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    """The command line: `python -m training.demo.samples --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.samples", description="Make the pictures that the page offers, and their list."
    )
    parser.add_argument("--out", type=Path, default=SAMPLES, help="an existing folder [where the page has them]")
    chosen = parser.parse_args(arguments)
    write(chosen.out)
    total = sum(path.stat().st_size for path in chosen.out.iterdir())
    print(f"{chosen.out}: {total / 1000:.0f} kB")


if __name__ == "__main__":
    main()
