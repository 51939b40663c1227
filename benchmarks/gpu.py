"""Forwards on a card: eager, channels_last, folded, compiled and as CUDA graphs, against what the card can do.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --model openclip:ViT-L-14@random --variant eager,compile --batch 32,128,256
    python -m benchmarks.gpu --device cpu --model demo:resnet --variant eager,folded --batch 8 --seconds 0.2

The forward is the service's own: uint8 images that lie on the card -> pooled vectors on the card; decoding, upload and
download are not in it. Weights are random and nothing is downloaded. What stands in the table:

    img/s     batch / median seconds of back-to-back forwards, by CUDA events (on a CPU by the clock), after warm-up
    TFLOP/s   img/s x 2 x multiply-adds of one image
    of peak   TFLOP/s, of what a large matrix product in the same dtype reached at the start of this run
    of sheet  TFLOP/s, of the dense peak that the card's datasheet names, where it is known here
    x eager   img/s, of eager's at the same batch
    MB        10^6 bytes allocated at the highest point, beyond weights and the images; on a CPU not measured
    first s   until the first answer: compiling or capturing is in it
    cosine    the least one to float32 eager on the same photographs; what differs (below 0.999) is marked, not praised

Variants:

    eager          as it is served
    channels_last  convolution weights and input with the channels innermost
    folded         each batch norm folded into the convolution before it; float32 alone, for other dtypes eager is so
    compile        torch.compile, for the largest batch alone, as each model and shape takes 10 to 60 s
    max-autotune   torch.compile(mode="max-autotune-no-cudagraphs"): minutes each, so only where --variant names it
    cudagraphs     recorded once, replayed, as --cuda-graph-bytes does it: nothing is left for Python to do

What cannot be measured is listed with its reason. Run it on an idle card and host: every share is of one product
measured once. The defaults are meant to take less than nine minutes on an H200, most of them compiling.
"""

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.card import Card, Upload, median_seconds, uploads
from benchmarks.images import PHOTOGRAPHS, pictures
from benchmarks.variants import COMPILED, DEFAULT, POOLED, VARIANTS, eager
from benchmarks.works import FOLDER
from encoders import pixels_of
from encoders.adapters.registry import blueprint, load
from encoders.contract.encoder import Placement
from encoders.memory.device import Reading
from encoders.runtime.device import resolve
from encoders.runtime.device_memory import memory_of
from encoders.runtime.torch_encoder import TorchEncoder

MODELS = (
    "openclip:ViT-L-14@random",
    "openclip:ViT-L-14-336@random",
    "openclip:ViT-B-32@random",
    "openclip:RN50@random",
    "openclip:convnext_base_w@random",
)
BATCHES = (1, 8, 32, 128)
EQUAL = 0.999
"""Cosine from which two vectors are the same answer: bfloat16 gives 0.9999 of float32."""

_WIDTH = 98

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is measured of every model. seconds: about, of each measurement. compile_all: at every batch."""

    placement: Placement
    variants: Sequence[str] = DEFAULT
    batches: Sequence[int] = BATCHES
    seconds: float = 1.0
    compile_all: bool = False

    @property
    def points(self) -> list[tuple[str, int]]:
        """Variant and batch, in order; what compiles has the largest batch alone, unless it is to have all."""
        return [
            (variant, batch)
            for variant in self.variants
            for batch in self.batches
            if variant not in COMPILED or self.compile_all or batch == max(self.batches)
        ]


@dataclass(frozen=True)
class Row:
    """One model, variant and batch; zeros, and the reason in `error`, if it failed.

    forward_ms: median. of_peak, of_datasheet: shares of the card's. first_s: from nothing to the first answer.
    peak_bytes: allocated at the highest point of a forward or its capture, beyond weights and the images; 0 on a CPU.
    cosine: the least of the batch's pooled vectors to float32 eager ones.
    """

    model: str
    resolution: str
    gflop_per_image: float
    variant: str
    batch: int
    images_per_s: float = 0.0
    forward_ms: float = 0.0
    tflop_per_s: float = 0.0
    of_peak: float = 0.0
    of_datasheet: float | None = None
    peak_bytes: int = 0
    first_s: float = 0.0
    cosine: float = 0.0
    error: str = ""

    @property
    def is_equal(self) -> bool:
        """Whether it gives what float32 eager gives, as near as half precision can."""
        return self.cosine >= EQUAL


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    photographs: uint8 [N, H, W, 3] on its device. references: [N, E], float32, what eager float32 gives for them.
    """

    encoder: TorchEncoder
    photographs: Tensor
    references: Tensor

    def of_batch(self, batch: int) -> tuple[Tensor, Tensor]:
        """So many photographs, again from the first where there are too few, and their references."""
        rows = torch.arange(batch, device=self.photographs.device) % len(self.photographs)
        return self.photographs[rows], self.references[rows]


def measure(
    model: str, plan: Plan, card: Card, jpegs: Sequence[bytes], *, say: Callable[[str], object]
) -> Iterator[Row]:
    """A row for every point of the plan, whatever happens to it. say: is told what comes next."""
    memory = memory_of(plan.placement.device)
    blank, subject, error = Row(model, "", 0.0, "", 0), None, ""
    say(f"{model}: loading")
    try:
        blank, subject = _drawn(model, plan.placement), _subject(model, plan.placement, jpegs)
    except Exception as failure:  # every library raises its own
        error = _reason(failure)
    for variant, batch in plan.points:
        row = replace(blank, variant=variant, batch=batch, error=error)
        if subject is not None:
            say(f"{model} {variant} {batch}")
            try:
                row = _measured(row, subject, plan, card)
            except Exception as failure:
                row = replace(row, error=_reason(failure))
            memory.release()
        yield row


def _reason(error: BaseException) -> str:
    """The first line of what it says, and of what caused it."""
    first, *_ = str(error).strip().split("\n")
    said = f"{type(error).__name__}: {first}"
    return f"{said} ({_reason(error.__cause__)})" if error.__cause__ else said


def _drawn(model: str, placement: Placement) -> Row:
    """A row with what is known without weights."""
    drawn = blueprint(model, dtype=placement.dtype)
    size = drawn.spec.image_size
    flops = drawn.cost(size, POOLED, device=torch.device(placement.device).type).flops
    return Row(model, str(size), flops / 1e9, "", 0)


def _subject(model: str, placement: Placement, jpegs: Sequence[bytes]) -> Subject:
    photographs, references = _references(_load(model, replace(placement, dtype="float32")), jpegs)
    memory_of(placement.device).release()
    return Subject(_load(model, placement), photographs, references)


def _load(model: str, placement: Placement) -> TorchEncoder:
    encoder = load(model, placement)
    if not isinstance(encoder, TorchEncoder):
        raise ValueError("it does not run on torch")
    return encoder


def _references(encoder: TorchEncoder, jpegs: Sequence[bytes]) -> tuple[Tensor, Tensor]:
    """Photographs, uint8 [N, H, W, 3], and their pooled vectors, [N, E], both on the encoder's device.

    In float32 throughout: on its own cuDNN rounds the factors of convolutions to TF32, which has ten bits of mantissa.
    """
    images = [torch.from_numpy(pixels_of(encoder, jpeg, exact=True)) for jpeg in jpegs]
    photographs = torch.stack(images).to(encoder.spec.device)
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return photographs, torch.cat([eager(encoder, some)() for some in torch.split(photographs, 8)])


def _measured(row: Row, subject: Subject, plan: Plan, card: Card) -> Row:
    """The row with what was measured of its variant and batch."""
    device, variant = plan.placement.device, VARIANTS[row.variant]
    memory = memory_of(device)
    # A CPU's counts operations one by one, which torch does not let compiled code run under.
    reading = memory.reading if memory.reads_freely else lambda: nullcontext(Reading())
    pixels, references = subject.of_batch(row.batch)
    encoder = variant.change(subject.encoder)
    with torch.inference_mode():
        started = time.perf_counter()
        with reading() as starting:
            forward = variant.start(encoder, pixels)
        _ = forward().cpu()
        first_s = time.perf_counter() - started
        seconds = median_seconds(forward, device=device, seconds=plan.seconds)
        with reading() as running:
            pooled = forward()
        cosines = F.cosine_similarity(pooled.float(), references)
    images_per_s = row.batch / seconds
    tflop_per_s = images_per_s * row.gflop_per_image / 1000
    return replace(
        row,
        images_per_s=images_per_s,
        forward_ms=1000 * seconds,
        tflop_per_s=tflop_per_s,
        of_peak=tflop_per_s / card.peak,
        of_datasheet=tflop_per_s / card.datasheet if card.datasheet else None,
        peak_bytes=max(starting.peak or 0, running.peak or 0),
        first_s=first_s,
        cosine=float(cosines.nan_to_num(0.0).min()),  # what is not a number is like nothing
    )


def tables(rows: Sequence[Row]) -> list[Table]:
    """One a model, of what was measured."""
    measured = [row for row in rows if not row.error]
    return [_table(of_model) for of_model in _by(measured, lambda row: row.model).values()]


def _table(rows: Sequence[Row]) -> Table:
    first = rows[0]
    title = f"{first.model}, {first.resolution}, {first.gflop_per_image:.4g} GFLOP an image"
    shown = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="bold")
    shown.add_column("variant", no_wrap=True)
    for name in ("batch", "img/s", "x eager", "TFLOP/s", "of peak", "of sheet", "MB", "first s", "cosine"):
        shown.add_column(name, justify="right", no_wrap=True)
    of_eager = {row.batch: row.images_per_s for row in rows if row.variant == "eager"}
    for row in rows:
        shown.add_row(*_cells(row, of_eager.get(row.batch)))
    return shown


def _cells(row: Row, of_eager: float | None) -> list[str]:
    return [
        row.variant,
        str(row.batch),
        _figure(row.images_per_s),
        "differs" if not row.is_equal else f"{row.images_per_s / of_eager:.2f}" if of_eager else "",
        _figure(row.tflop_per_s),
        f"{row.of_peak:.1%}",
        "" if row.of_datasheet is None else f"{row.of_datasheet:.1%}",
        _figure(row.peak_bytes / 1e6) if row.peak_bytes else "",
        f"{row.first_s:.1f}",
        f"{row.cosine:.5f}",
    ]


def _figure(value: float) -> str:
    """Four digits, or all there are before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def summary(rows: Sequence[Row]) -> list[str]:
    """The fastest of each model among what gives equal answers; then what was not measured, and why."""
    lines = []
    for model, of_model in _by([row for row in rows if row.is_equal], lambda row: row.model).items():
        best = max(of_model, key=lambda row: row.images_per_s)
        sheet = "" if best.of_datasheet is None else f", {best.of_datasheet:.1%} of the datasheet's"
        how = f"{best.variant} at batch {best.batch}, {_figure(best.images_per_s)} images/s"
        lines.append(f"Fastest: {model} {how}: {best.of_peak:.1%} of the measured peak{sheet}")
    failed = [row for row in rows if row.error]
    for (model, variant, error), same in _by(failed, lambda row: (row.model, row.variant, row.error)).items():
        batches = ", ".join(str(row.batch) for row in same)
        lines.append(f"Not measured: {model} {variant} at batch {batches}: {error}")
    return lines


def _by(rows: Sequence[Row], key: Callable[[Row], T]) -> Mapping[T, list[Row]]:
    """Grouped, in order of appearance."""
    groups: dict[T, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


# The command.


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, show. 0 if anything could be measured, 2 if what was asked for is not to be had."""
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any adapter is imported
    try:
        placement = resolve(arguments.device, arguments.dtype)
    except ValueError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    if torch.device(placement.device).type == "cuda":
        # Streams, events and graphs are the current device's.
        torch.cuda.set_device(torch.device(placement.device).index or 0)
    elif arguments.device == "auto":
        print("benchmarks.gpu: no CUDA device: on a CPU choose small models and batches", file=sys.stderr)
    plan = Plan(
        placement,
        arguments.variant or DEFAULT,
        sorted(set(arguments.batch or BATCHES)),
        arguments.seconds,
        arguments.compile_all,
    )
    models = arguments.model or MODELS
    jpegs = pictures(PHOTOGRAPHS, FOLDER / "images")
    with tqdm(total=len(models) * len(plan.points), unit="point", file=sys.stderr, dynamic_ncols=True) as bar:
        bar.set_description("matrix products")
        card = Card.of(placement, seconds=plan.seconds)
        sent = uploads(placement.device, batch=max(plan.batches), seconds=plan.seconds)
        measured = (row for model in models for row in measure(model, plan, card, jpegs, say=bar.set_description))
        rows = []
        for row in kept(measured, card, arguments.out):
            rows.append(row)
            bar.update()
    document = {"card": asdict(card), "uploads": list(map(asdict, sent)), "forwards": list(map(asdict, rows))}
    beside = arguments.out.with_suffix(".json")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    _show(card, sent, rows)
    print(f"Written: {arguments.out}, {beside}")
    return 0 if any(not row.error for row in rows) else 1


def kept(rows: Iterator[Row], card: Card, path: Path) -> Iterator[Row]:
    """The rows, each on disk, with the card's columns, before it is passed on: a run that is killed keeps them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = asdict(card)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *(field.name for field in fields(Row))])
        writer.writeheader()
        for row in rows:
            writer.writerow({**columns, **asdict(row)})
            file.flush()
            yield row


def _show(card: Card, sent: Sequence[Upload], rows: Sequence[Row]) -> None:
    sheet = f"{card.datasheet:g} by its datasheet" if card.datasheet else "no datasheet figure known"
    print(f"{card.device}, {card.dtype}, torch {card.torch}: {card.peak:.4g} TFLOP/s measured, {sheet}")
    if sent:
        each = [f"{one.host} {_figure(one.images_per_s)} images/s, {one.gb_per_s:.3g} GB/s" for one in sent]
        print(f"Upload of {sent[0].batch} images of 224x224: {'; '.join(each)}")
    console = Console(width=_WIDTH)
    for table in tables(rows):
        console.print()
        console.print(table)
    print("", *summary(rows), sep="\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several = "; several with commas or by repeating it"
    parser.add_argument("--model", metavar="ID", type=_names, action="extend", help=f"[{', '.join(MODELS)}]{several}")
    parser.add_argument(
        "--variant", type=_variants, action="extend", help=f"of {', '.join(VARIANTS)} [all but max-autotune]{several}"
    )
    parser.add_argument(
        "--batch", metavar="N", type=_batches, action="extend", help=f"[{','.join(map(str, BATCHES))}]{several}"
    )
    parser.add_argument("--compile-all", action="store_true", help="compile for every batch, not the largest alone")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    parser.add_argument(
        "--dtype", default="auto", help="float32, float16, bfloat16 [auto: as served; bfloat16 from A100 on]"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement, about, after its warm-up [1]")
    parser.add_argument(
        "-o",
        "--out",
        metavar="CSV",
        type=_csv,
        default=FOLDER / "gpu.csv",
        help=f"rows, as they are measured; all of it in .json beside it [{FOLDER}/gpu.csv]",
    )
    return parser


def _csv(text: str) -> Path:
    if Path(text).suffix != ".csv":
        raise argparse.ArgumentTypeError("must end in .csv")
    return Path(text)


def _names(text: str) -> list[str]:
    return text.split(",")


def _variants(text: str) -> list[str]:
    if unknown := [name for name in _names(text) if name not in VARIANTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(VARIANTS)}")
    return _names(text)


def _batches(text: str) -> list[int]:
    numbers = [int(number) for number in _names(text)]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("a batch has one image or more")
    return numbers


if __name__ == "__main__":
    sys.exit(main())
