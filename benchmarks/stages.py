"""What an image takes of a core in a bulk run, stage by stage: the figures of service/scaling/measured.py.

    python -m benchmarks.stages

  decode   from a JPEG to the encoder's pixels, by the size of the picture and of the encoder's input
  engine   from a file's name to a row of the result, with a fake encoder and pictures of 32 x 32
  write    the same with 576 tokens of 1,024 halves a row, what is more than engine, by the byte

Processor time is measured, so other programs disturb it little. Photographs are made from scikit-image's, JPEG quality
90, and kept in build/bench. The last lines are the constants to put into measured.py.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.images import Kind, pictures
from benchmarks.works import FOLDER
from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory, fake_spec
from encoders.contract.spec import Preprocessing
from encoders.contract.values import Encoded, ImageSize
from encoders.images.decode import decode_for
from service.bulk.embedding import EngineEmbedder
from service.bulk.run import Job, run
from service.bulk.sources import inputs_of
from service.engine.backend import Backend
from service.engine.engine import Engine
from service.engine.values import EmbedRequest
from service.scaling.measured import Decoding, terms
from service.scaling.sample import Sample, measured
from service.settings import Settings

_CLIP = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_SENSOR = 4.0
"""Noise of photographs that are larger than scikit-image's: enlarged crops are too smooth."""
KINDS = (
    Kind("scaling-320x240", 64, (240, 240)),
    Kind("scaling-640x480", 64, (480, 480)),
    Kind("scaling-1280x960", 32, (960, 960), noise=_SENSOR),
    Kind("scaling-2560x1920", 16, (1920, 1920), noise=_SENSOR),
    Kind("scaling-4032x3024", 16, (3024, 3024), noise=_SENSOR),
)
SIDES = (224, 336, 448, 672)
"""Of the encoder's input."""

_WIDTH, _TOKENS_AT = 1024, ImageSize(192, 192)
"""Tokens of the fake encoder: as wide as ViT-L/14's, and 576 of them as at 336 pixels."""
_BATCH = 32


@dataclass(frozen=True)
class Row:
    """A kind of pictures at one size of input."""

    source: ImageSize
    target: ImageSize
    sample: Sample

    def fitted(self, fit: Decoding) -> float:
        """Seconds of a core by the fit."""
        return fit.core_s(self.source, _CLIP, self.target)


def decoding(kinds: Sequence[Kind], sides: Sequence[int], *, folder: Path, rounds: int) -> list[Row]:
    """The fastest of the rounds of each."""
    rows = []
    for kind in kinds:
        files = pictures(kind, folder)
        short = kind.short[0]
        for side in sides:
            target = ImageSize(side, side)
            samples = [measured(files, _CLIP, target) for _ in range(rounds)]
            best = min(samples, key=lambda sample: sample.core_s)
            rows.append(Row(ImageSize(short, short * 4 // 3), target, best))
    return rows


def fitted(rows: Sequence[Row]) -> Decoding:
    """Least squares of the relative errors; no part is negative."""
    matrix = np.array([np.array(terms(row.source, _CLIP, row.target)) / row.sample.core_s for row in rows])
    columns = list(range(matrix.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(matrix[:, columns], np.ones(len(rows)))
        if found.min() >= 0:
            break
        columns.pop(int(np.argmin(found)))
    parts = np.zeros(matrix.shape[1])
    parts[columns] = found
    return Decoding(*parts.tolist())


def worst(rows: Sequence[Row], fit: Decoding) -> float:
    """The greatest relative error."""
    return max(abs(row.fitted(fit) / row.sample.core_s - 1) for row in rows)


@dataclass(frozen=True)
class Bulk:
    """Seconds of a core. engine_s: of an image, beside decoding and the forward. write_s: of a byte of its row."""

    engine_s: float
    write_s: float


async def bulk(*, images: int, folder: Path) -> Bulk:
    """Runs with a fake encoder: `images` pooled vectors of a few numbers, and a quarter as many tokens of a megabyte.

    What decoding and the fake forward take by themselves is taken off.
    """
    spec = fake_spec(hidden_size=_WIDTH, prefix_tokens=0)
    grid = spec.grid(_TOKENS_AT)
    numbers = np.random.default_rng(0).standard_normal((_BATCH, grid.rows * grid.cols, _WIDTH), np.float32)

    def as_a_model_s(encoded: Encoded) -> Encoded:  # the fake encoder's tokens are of rank 3, and compress otherwise
        return encoded if encoded.tokens is None else replace(encoded, tokens=numbers[: len(encoded.tokens)])

    encoder = FakeEncoder(spec, after=as_a_model_s)
    backend = Backend(
        load=lambda encoder_id: encoder,
        blueprint=lambda encoder_id, dtype: FakeBlueprint(spec),
        memory=lambda: FakeMemory(64 * 2**30),
    )
    files = _noise(images, folder / "noise")
    pooled = EmbedRequest((), output="pooled", dtype="float16")
    tokens = EmbedRequest((), output="tokens", dtype="float16", resolution=_TOKENS_AT)

    async with Engine(Settings(model=(spec.id,), max_images=256, queue_images=256), backend=backend) as engine:

        async def spent(request: EmbedRequest, files: Sequence[Path], out: str) -> float:
            job = Job(folder / out, inputs_of(list(map(str, files))), request, batch_size=_BATCH)
            started = time.process_time()
            await run(job, EngineEmbedder(engine))
            return (time.process_time() - started) / len(files) - _alone(encoder, request, files)

        await spent(pooled, files[: images // 4], "warm-up")
        engine_s = await spent(pooled, files, "pooled")
        with_tokens = await spent(tokens, files[: images // 4], "tokens")
    return Bulk(engine_s, (with_tokens - engine_s) / (numbers[0].size * np.dtype(tokens.dtype).itemsize))


def _noise(count: int, folder: Path) -> list[Path]:
    """JPEG files of 32 x 32 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{index:06}.jpg" for index in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return paths


def _alone(encoder: FakeEncoder, request: EmbedRequest, files: Sequence[Path]) -> float:
    """Seconds of decoding and of the fake forward of an image."""
    size, outputs = encoder.spec.size(request.resolution), request.outputs(encoder.spec)
    started = time.thread_time()
    for batch in zip(*[iter(files)] * _BATCH, strict=False):
        images = (decode_for(encoder.spec.preprocessing, path.read_bytes(), size) for path in batch)
        encoder.encode(np.stack([encoder.preprocess(image, size) for image in images]), outputs)
    return (time.thread_time() - started) / (len(files) // _BATCH * _BATCH)


def table(rows: Sequence[Row], fit: Decoding) -> Table:
    """A kind of pictures a row; by the encoder's input, milliseconds measured and those of the fit."""
    sides = list(dict.fromkeys(row.target.height for row in rows))
    shown = Table("picture", "KiB", *(f"at {side}" for side in sides), title="ms of a core: measured (fitted)")
    for source in dict.fromkeys(row.source for row in rows):
        of_source = [row for row in rows if row.source == source]
        cells = (f"{1e3 * row.sample.core_s:.2f} ({1e3 * row.fitted(fit):.2f})" for row in of_source)
        shown.add_row(f"{source.width}x{source.height}", f"{of_source[0].sample.nbytes / 1024:.0f}", *cells)
    return shown


def constants(rows: Sequence[Row], fit: Decoding, found: Bulk) -> str:
    """As service/scaling/measured.py has them."""
    by_pixel = [row.sample.nbytes / (row.source.height * row.source.width) for row in rows]
    parts = ", ".join(f"{name}={value:.3g}" for name, value in asdict(fit).items())
    return (
        f"DECODING = Decoding({parts})\n"
        f"BYTES_A_PIXEL = {np.mean(by_pixel):.2g}\n"
        f"ENGINE_S = {found.engine_s:.2g}\n"
        f"WRITE_S = {found.write_s:.2g}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of decoding; the fastest counts [3]")
    parser.add_argument("--images", type=int, default=8192, help="of the runs with a fake encoder [8192]")
    parser.add_argument("--folder", type=Path, help="where their temporary folder is made [the system's]")
    arguments = parser.parse_args()
    rows = decoding(KINDS, SIDES, folder=FOLDER / "images", rounds=arguments.rounds)
    fit = fitted(rows)
    with TemporaryDirectory(dir=arguments.folder) as folder:
        found = asyncio.run(bulk(images=arguments.images, folder=Path(folder)))
    Console().print(table(rows, fit))
    print(f"The fit is {worst(rows, fit):.0%} off at worst.\n")
    print(constants(rows, fit, found))


if __name__ == "__main__":
    main()
