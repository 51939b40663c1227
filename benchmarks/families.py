"""Forwards of one architecture through each scheme that has it, beside OpenVINO's and int8 of it: images a second.

    python -m benchmarks.families
    python -m benchmarks.families --family clip-b-32,clip-rn50 --batch 1,16 --output tokens --seconds 4 --rounds 5
    python -m benchmarks.families --family clip-b-32,clip-l-14 --runtime torch,int8

The forward is the service's own, with its defaults and all cores in one lane: uint8 images in memory -> vectors in
memory. Weights are random. The encoders of a family lie in one process and take turns; figures are medians of the
rounds.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.serve import names
from benchmarks.works import FOLDER
from encoders import load
from encoders.contract.encoder import Encoder
from encoders.contract.errors import Int8Refused
from encoders.contract.values import Outputs, TokenKind
from encoders.memory.machine import available_cores
from encoders.runtime.device import resolve

_SIDE = 224
_OUTPUTS = {"pooled": Outputs(pooled=True), "tokens": Outputs(tokens=TokenKind.HIDDEN)}
_RUNTIMES: dict[str, dict[str, Any]] = {
    "torch": {},
    "openvino": {"runtime": "openvino"},
    "int8": {"dtype": "int8"},
}
"""What each asks for; the rest are defaults."""
_WIDTH = 120
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}


def _hf(name: str, **config: Any) -> Callable[[], str]:
    """The id of a checkpoint without weights."""

    def folder() -> str:
        path: Path = (FOLDER / "models" / f"hf-{name}").absolute()
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps(config))
        return f"hf:{path}@random"

    return folder


def _known(encoder_id: str) -> Callable[[], str]:
    return lambda: encoder_id


_CLIP = {
    "model_type": "clip_vision_model",
    "architectures": ["CLIPVisionModelWithProjection"],
    "image_size": _SIDE,
    "hidden_act": "gelu",
}
FAMILIES: dict[str, Sequence[Callable[[], str]]] = {
    "clip-b-32": (
        _known("openclip:ViT-B-32@random"),
        _known("timm:vit_base_patch32_clip_224@random"),
        _hf("clip-b-32", **_CLIP, patch_size=32, projection_dim=512),
    ),
    "clip-b-16": (
        _known("openclip:ViT-B-16@random"),
        _known("timm:vit_base_patch16_clip_224@random"),
        _hf("clip-b-16", **_CLIP, patch_size=16, projection_dim=512),
    ),
    "clip-b-32-256": (_known("openclip:ViT-B-32-256@random"), _known("timm:vit_base_patch32_clip_256@random")),
    "clip-b-16-384": (_known("timm:vit_base_patch16_clip_384@random"),),
    "clip-l-14": (
        _known("openclip:ViT-L-14@random"),
        _known("timm:vit_large_patch14_clip_224@random"),
        _hf("clip-l-14", **_CLIP, **_LARGE, patch_size=14, projection_dim=768),
    ),
    "siglip-b-16": (
        _known("openclip:ViT-B-16-SigLIP@random"),
        _known("timm:vit_base_patch16_siglip_224@random"),
        _hf("siglip-b-16", model_type="siglip_vision_model", patch_size=16),
    ),
    "dinov2-s-14": (
        _known("timm:vit_small_patch14_dinov2@random"),
        _hf("dinov2-s-14", model_type="dinov2", **_SMALL, patch_size=14, image_size=518),
    ),
    "clip-rn50": (_known("openclip:RN50@random"),),
    "clip-rn50x4": (_known("openclip:RN50x4@random"),),
    "clip-rn101": (_known("openclip:RN101@random"),),
    "resnet50": (_known("timm:resnet50@random"), _hf("resnet50", model_type="resnet")),
    "clip-convnext-b": (_known("openclip:convnext_base_w@random"),),
    "convnext-b": (
        _known("timm:convnext_base@random"),
        _hf("convnext-b", model_type="convnext", depths=[3, 3, 27, 3], hidden_sizes=[128, 256, 512, 1024]),
    ),
}
"""The same architecture through each scheme that has it. Three are there for their size: 256, 384 and RN50x4's 288."""


@dataclass(frozen=True)
class Row:
    """One encoder. size: of the images, HxW."""

    family: str
    scheme: str
    runtime: str
    size: str
    output: str
    batch: int
    images_per_s: float

    @property
    def setting(self) -> tuple[str, str, int]:
        """Rows that have it in common are compared."""
        return self.family, self.output, self.batch


def measure(
    name: str, *, runtimes: Sequence[str], batch: int, output: str, seconds: float, rounds: int
) -> Iterator[Row]:
    """A row an encoder, with the median of the rounds."""
    torch.set_num_threads(available_cores())
    served = list(_loaded(name, runtimes))
    size = served[0][2].spec.image_size
    pixels = np.random.default_rng(0).integers(256, size=(batch, *size, 3), dtype=np.uint8)
    rates: list[list[float]] = [[] for _ in served]
    for _ in range(rounds):
        for found, (_, _, encoder) in zip(rates, served, strict=True):
            encoder.encode(pixels, _OUTPUTS[output])
            started, done = time.perf_counter(), 0
            while (spent := time.perf_counter() - started) < seconds:
                encoder.encode(pixels, _OUTPUTS[output])
                done += batch
            found.append(done / spent)
    for (scheme, runtime, _), found in zip(served, rates, strict=True):
        yield Row(name, scheme, runtime, str(size), output, batch, median(found))


def _loaded(name: str, runtimes: Sequence[str]) -> Iterator[tuple[str, str, Encoder]]:
    """Scheme, runtime and encoder. OpenVINO has native sizes alone; neither it nor int8 has every tower."""
    size = None
    for each in FAMILIES[name]:
        encoder_id = each()
        for runtime in runtimes:
            try:
                encoder = load(encoder_id, resolve("cpu", **_RUNTIMES[runtime]))
            except Int8Refused:
                continue
            size = size or encoder.spec.image_size
            is_left_to_torch = runtime == "openvino" and encoder.spec.runtime == "torch"
            if not is_left_to_torch and (runtime != "openvino" or encoder.spec.image_size == size):
                yield encoder_id.partition(":")[0], runtime, encoder


_COLUMNS = ("family", "scheme", "runtime", "size", "output", "batch", "images/s", "of PyTorch", "of OpenVINO")


def table(rows: Sequence[Row]) -> Table:
    """All rows, each with its share of the fastest of its family, output and batch in either runtime."""
    shown = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        shown.add_column(column, justify="right" if column in _COLUMNS[5:] else "left")
    fastest: dict[tuple[str, str, int, str], float] = {}
    for row in rows:
        key = (*row.setting, row.runtime)
        fastest[key] = max(fastest.get(key, 0.0), row.images_per_s)
    for row in rows:
        best = [fastest.get((*row.setting, runtime)) for runtime in ("torch", "openvino")]
        shares = [f"{row.images_per_s / each:.0%}" if each else "" for each in best]
        *facts, rate = astuple(row)
        shown.add_row(*map(str, facts), f"{rate:.4g}", *shares)
    return shown


def main() -> None:
    """Prints a line an encoder as it is measured, and the table."""
    parser = argparse.ArgumentParser("python -m benchmarks.families", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--family", type=names(FAMILIES), default=list(FAMILIES), help=f"of {', '.join(FAMILIES)} [all]"
    )
    parser.add_argument("--batch", type=lambda text: [int(each) for each in text.split(",")], default=[16], help="[16]")
    parser.add_argument("--output", type=names(_OUTPUTS), default=["pooled"], help=f"of {', '.join(_OUTPUTS)} [pooled]")
    parser.add_argument(
        "--runtime",
        type=names(_RUNTIMES),
        default=["torch", "openvino"],
        help=f"of {', '.join(_RUNTIMES)} [the first two]",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn [3]")
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    a = parser.parse_args()
    rows = []
    for name, output, batch in product(a.family, a.output, a.batch):
        for row in measure(name, runtimes=a.runtime, batch=batch, output=output, seconds=a.seconds, rounds=a.rounds):
            print(
                f"{row.family} {row.scheme} {row.runtime} {row.output} x{row.batch}: {row.images_per_s:.4g} images/s",
                flush=True,
            )
            rows.append(row)
    Console(width=_WIDTH).print(table(rows))


if __name__ == "__main__":
    main()
