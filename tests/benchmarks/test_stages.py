"""The measurement of what an image takes of a core: a fit that finds the parts, and runs that end."""

from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import stages
from benchmarks.images import Kind
from encoders.contract.values import ImageSize
from service.scaling.measured import Decoding
from service.scaling.sample import Sample

SOURCES = [ImageSize(240, 320), ImageSize(480, 640), ImageSize(960, 1280), ImageSize(3024, 4032)]


def rows(truth: Decoding) -> list[stages.Row]:
    shapes = [(source, ImageSize(side, side)) for source in SOURCES for side in (224, 448)]
    found = [stages.Row(source, target, Sample(1, 1000.0, 1.0)) for source, target in shapes]
    return [stages.Row(row.source, row.target, Sample(1, 1000.0, row.fitted(truth))) for row in found]


@pytest.mark.parametrize("truth", [Decoding(1e-3, 2e-9, 3e-9, 4e-9), Decoding(1e-3, 2e-9, 3e-9, 0.0)])
def test_the_fit_finds_the_parts(truth: Decoding) -> None:
    measured = rows(truth)
    fit = stages.fitted(measured)
    assert stages.worst(measured, fit) < 1e-6
    assert (fit.file, fit.source, fit.decoded, fit.input) == pytest.approx(
        (truth.file, truth.source, truth.decoded, truth.input), abs=1e-14
    )


def test_no_part_is_negative() -> None:
    fit = stages.fitted(rows(Decoding(1e-3, 2e-9, 3e-9, -4e-10)))
    assert min(fit.file, fit.source, fit.decoded, fit.input) >= 0


@pytest.mark.anyio
async def test_everything_is_measured_and_printed(tmp_path: Path) -> None:
    found = stages.decoding([Kind("few", 3, (40, 40))], [16, 32], folder=tmp_path, rounds=1)
    assert [(row.source, row.sample.images) for row in found] == [(ImageSize(40, 53), 3)] * 2
    fit = stages.fitted(rows(Decoding(1e-3, 2e-9, 3e-9, 4e-9)))
    console = Console(width=80, record=True)
    console.print(stages.table(found, fit))
    assert "53x40" in console.export_text()
    bulk = await stages.bulk(images=128, folder=tmp_path)
    assert bulk.engine_s > 0
    printed = stages.constants(found, fit, bulk)
    assert [line.split(" = ")[0] for line in printed.splitlines()] == [
        "DECODING", "BYTES_A_PIXEL", "ENGINE_S", "WRITE_S"
    ]  # fmt: skip
