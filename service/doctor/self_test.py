"""The demo encoders on this machine, against what they answer elsewhere. To be run in another process.

Their weights are in the package, so nothing is fetched. Pictures are decoded, images and texts are encoded where and as
`visiontower serve` would, and the memory that a forward takes is measured against its plan.
"""

import io
from collections.abc import Sequence
from functools import partial
from importlib.resources import files

import numpy as np
from PIL import Image

from encoders.contract.values import Floats, TokenKind
from encoders.images.decode import FORMATS, decode, load_plugins
from encoders.images.pixels import pixels_of
from encoders.memory.device import Memory
from service.doctor.facts import Check, Unknown, looked
from service.engine.backend import Backend, real_backend
from service.settings import Settings

PICTURES = ("circle-house.png", "cat.jpg")
"""Of the page's samples: a drawing, and a photograph for the way of a JPEG."""
TEXTS = ("a red circle", "a house", "a blue star")
COSINES = {
    "demo:vit": ((0.4825, 0.4131, -0.0215), (0.0644, 0.2110, 0.1485)),
    "demo:resnet": ((0.5044, 0.4854, 0.0814), (0.0455, 0.1318, 0.0071)),
    "demo:convnext": ((0.3624, 0.3813, -0.0475), (0.0455, 0.2297, 0.0694)),
}
"""Of each picture with each text, in float32 on an AVX-512 CPU with torch 2.15. tests/service/doctor holds them."""
APART = 0.01
"""A cosine may be off by as much: bfloat16 and another decoder of JPEG moved them by 0.002 at most."""
_LOSS = 8
"""Of 255: what compression may change in a picture of one colour."""
_OVER = 1.02
"""On a CPU measured memory may be more than planned by as much. On a card any: no plan sees cuDNN's workspaces."""


def self_test() -> tuple[Check, ...]:
    """All checks, however many fail. Imports torch. Raises SettingsError if this machine has not what they ask for."""
    backend = real_backend(Settings())
    memory = backend.memory()
    checks = {"pictures": read_formats} | {name: partial(try_encoder, name, backend, memory) for name in COSINES}
    return tuple(_checked(name, looked(check)) for name, check in checks.items())


def _checked(name: str, found: Check | Unknown) -> Check:
    return Check(name, "", found.could_not_tell) if isinstance(found, Unknown) else found


def read_formats() -> Check:
    """Every format is written by Pillow, and read as the service does."""
    names = (*FORMATS, *load_plugins())
    read = {name: looked(partial(_write_and_read, name)) for name in names}
    failed = [f"{name}: {found.could_not_tell}" for name, found in read.items() if isinstance(found, Unknown)]
    return Check("pictures", f"{len(names) - len(failed)} of {len(names)} formats read", "; ".join(failed) or None)


def _write_and_read(name: str) -> None:
    """Raises ValueError if another picture comes out than went in."""
    written = io.BytesIO()
    drawn = Image.new("RGB", (64, 48), (200, 30, 90))
    drawn.save(written, name)
    read = decode(written.getvalue())
    if read.size != drawn.size or np.abs(np.asarray(read, np.int16) - np.asarray(drawn)).max() > _LOSS:
        raise ValueError("another picture came out")


def try_encoder(model: str, backend: Backend, memory: Memory) -> Check:
    """A forward of the pictures and one of the texts, their cosines, and the memory."""
    encoder = backend.load(model)
    spec = encoder.spec
    outputs = spec.outputs(pooled=True, tokens=TokenKind.HIDDEN)
    samples = files("service.http.web") / "static" / "samples"
    pixels = np.stack([pixels_of(encoder, (samples / each).read_bytes()) for each in PICTURES])
    with memory.reading() as reading:
        encoded = encoder.encode(pixels, outputs)
    texts = encoder.encode_text(encoder.tokenize(TEXTS).ids)
    images = [encoded.row(index).pooled for index in range(len(PICTURES))]
    off = _most_off(images, texts, COSINES[model])
    planned = memory.overhead.allocated(
        backend.blueprint(model, None).cost(spec.image_size, outputs, device=memory.device.partition(":")[0]),
        len(PICTURES),
    )
    said = f"cosines within {off:.4f}"
    problem = None
    if not off <= APART:  # nor is a value that is no number
        problem = f"cosines are off by {off:.4f}, and {APART} is allowed"
    if reading.peak is not None:
        said += f", memory {reading.peak / planned:.2f} of the plan"
        if memory.device == "cpu" and reading.peak > _OVER * planned:
            problem = f"a forward took {reading.peak:,} bytes, and the plan was {planned:,}"
    return Check(model, said, problem)


def _most_off(images: Sequence[Floats | None], texts: Floats, known: Sequence[Sequence[float]]) -> float:
    """The greatest difference of a cosine; not a number if one is none."""
    cosines = _unit(np.stack([np.asarray(each, np.float32) for each in images])) @ _unit(texts).T
    return float(np.abs(cosines - np.asarray(known)).max())


def _unit(rows: Floats) -> Floats:
    numbers = np.asarray(rows, np.float32)
    with np.errstate(all="ignore"):  # zeros have no direction, and that is told
        unit: Floats = numbers / np.linalg.norm(numbers, axis=-1, keepdims=True)
    return unit
