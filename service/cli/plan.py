"""`visiontower plan`: hours, machines and bytes of a bulk run on many cards, and the stage that holds it up."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.contract.values import ImageSize
from service.cli.arguments import ArgumentError, add_command, flag, read_image, resolution_of
from service.cli.output import show, show_json
from service.cli.plan_flags import (
    CARDS_A_MACHINE,
    CORES,
    ENGINES,
    HOURS,
    MOST_CARDS,
    NETWORK,
    PACE,
    PICTURE_SIZE,
    PRICE,
    STORAGE,
    UTILISATION,
    file_bytes,
    whole,
)
from service.sizes import parse_count, show_bytes

if TYPE_CHECKING:
    from encoders.contract.encoder import Blueprint
    from encoders.contract.spec import EncoderSpec
    from encoders.contract.values import Outputs
    from encoders.memory.plan import Row
    from service.scaling.cards import Card
    from service.scaling.pipeline import Need, Pipeline, Supply
    from service.scaling.plan import Facts, Plan
    from service.scaling.sample import Sample

_CLUSTERS = (1, 2, 5, 10, 20, 50, 100)
_BATCH = 32
"""Of `embed`."""
_SAMPLED = 64
_GBIT = 1e9 / 8
"""Bytes."""

_HELP = """\
How long a bulk run takes on many cards, what it moves, what holds it up.
Nothing is loaded and nothing runs: FLOPs, memory and bytes follow from the
encoder's code, a card's peak from its data sheet, decoding and writing from
measurements. The answer says which figures are measured and which assumed.

  visiontower plan --images 1e9 --model openclip:ViT-L-14@openai --gpu h100
  visiontower plan --images 10M --model demo:vit --gpu l4 --hours 2 --price 0.8
  visiontower plan --images 1e9 --model openclip:ViT-L-14-336@openai \\
      --gpu h100 --gpus 64 --output tokens --dtype float16 --storage-gbit 400
  visiontower plan --images 5M --model demo:vit --gpu a100-80 --sample photos/

Without --gpus and --hours it shows clusters from one card to a hundred.
Put your figures in the place of assumed ones: --sample measures your
pictures, --pace is what one card computes in a second."""


def add(commands: Any) -> None:
    """The command and its flags."""
    plan = add_command(commands, "plan", "hours, machines and bytes of a run on many cards", _HELP, run=run)
    plan.add_argument("--images", metavar="N", required=True, help="250000, 10M, 1e9")
    plan.add_argument("--model", "--encoder", metavar="ID", required=True, help="encoder id, for example demo:vit")
    plan.add_argument("--resolution", metavar="N|HxW", help="run the encoder at this size [native]")
    plan.add_argument("--output", choices=("pooled", "tokens", "both"), default="pooled", help="[pooled]")
    plan.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of what is written [float32]")
    plan.add_argument("--json", action="store_true", help="for machines")
    cluster = plan.add_argument_group("cluster")
    cluster.add_argument("--gpu", metavar="NAME", required=True, help="h100, l4, a100-80, ...; a wrong one lists all")
    cluster.add_argument("--gpus", metavar="N,...", help=f"cards [{','.join(map(str, _CLUSTERS))}]")
    for number in (HOURS, CARDS_A_MACHINE, CORES, ENGINES, NETWORK, STORAGE, PRICE):
        number.add(cluster)
    pace = plan.add_argument_group("the pace of one card")
    for number in (UTILISATION, PACE):
        number.add(pace)
    pictures = plan.add_argument_group("pictures")
    PICTURE_SIZE.add(pictures)
    pictures.add_argument("--image-bytes", metavar="SIZE", help="of a file [a JPEG's of that size]")
    pictures.add_argument(
        "--sample", metavar="PATH", type=Path, help="your pictures: their bytes and decoding are measured, here"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from service.cli import plan_tables

    plan = planned(arguments)
    if arguments.json:
        show_json(plan_tables.plan_json(plan))
    else:
        show(
            plan_tables.title(plan),
            plan_tables.stages_table(plan),
            plan_tables.clusters_table(plan),
            plan_tables.amounts(plan),
            plan_tables.facts_table(plan.facts),
        )
    return 0


def planned(arguments: argparse.Namespace) -> "Plan":
    """What the flags ask for. Raises ArgumentError, BulkError for a sample, and as the registry does for an id."""
    from service.scaling.cards import card_of
    from service.scaling.pipeline import Cluster, pipeline
    from service.scaling.plan import Facts, Plan

    _require_apart(arguments)
    with flag("--images"):
        images = parse_count(arguments.images)
    with flag("--gpu"):
        card = card_of(arguments.gpu)
    facts = Facts()
    model = _model(arguments, card)
    need = _need(arguments, model, facts)
    supply = _supply(arguments, card, model, facts)
    storage = STORAGE.chosen(arguments, facts)
    if storage is None:
        facts.assumed.append(f"a storage as fast as it is asked to be ({STORAGE.flag})")
    storage_bytes_s = None if storage is None else storage * _GBIT
    stages = pipeline(need, supply, storage_bytes_s=storage_bytes_s)
    return Plan(
        spec=model.spec,
        size=model.size,
        output=arguments.output,
        dtype=arguments.dtype,
        images=images,
        card=card,
        cards_a_machine=CARDS_A_MACHINE.chosen(arguments, facts),
        price=PRICE.chosen(arguments, facts),
        need=need,
        supply=supply,
        storage_bytes_s=storage_bytes_s,
        forward=model.forward,
        clusters=[Cluster(stages, images, cards) for cards in _cards(arguments, stages, images)],
        facts=facts,
    )


def _require_apart(arguments: argparse.Namespace) -> None:
    """Raises ArgumentError for flags of which one takes the other's place."""
    for one, other in (("gpus", "hours"), ("utilisation", "pace"), ("sample", "image_size"), ("sample", "image_bytes")):
        if getattr(arguments, one) is not None and getattr(arguments, other) is not None:
            names = [f"--{name.replace('_', '-')}" for name in (one, other)]
            raise ArgumentError(f"{' and '.join(names)} do not go together: leave one of them out.")


@dataclass(frozen=True)
class _Model:
    """An encoder at a size. forward: of a batch as `embed` makes them. row_bytes: of a row of the result."""

    spec: "EncoderSpec"
    size: ImageSize
    forward: "Row"
    row_bytes: int

    @property
    def flops(self) -> float:
        """Of an image."""
        return self.forward.prediction.flops / self.forward.prediction.batch


def _model(arguments: argparse.Namespace, card: "Card") -> _Model:
    from encoders.adapters import registry
    from service.engine.values import PlanRequest

    blueprint = registry.blueprint(arguments.model, dtype="bfloat16")
    spec = blueprint.spec
    size = spec.size(resolution_of(arguments))
    outputs = PlanRequest(output=arguments.output).outputs(spec)
    engines = ENGINES.given(arguments) or ENGINES.default
    forward = forward_on(card, engines, blueprint, size, outputs)
    return _Model(spec, size, forward, _row_bytes(spec, size, outputs, arguments.dtype))


def forward_on(card: "Card", engines: int, blueprint: "Blueprint", size: ImageSize, outputs: "Outputs") -> "Row":
    """Of a batch as `embed` makes them, where so many engines share the card.

    Raises ArgumentError if there is no room for a forward of one image.
    """
    from encoders.memory.plan import plan
    from encoders.memory.prediction import CUDA

    room = card.memory_bytes // engines
    one, forward = plan(blueprint, [size], [1, _BATCH], outputs, device="cuda", overhead=CUDA, room=room)
    if not one.max_batch:
        raise ArgumentError(
            f"{blueprint.spec.id} at {size} does not fit: a forward of one image takes "
            f"{show_bytes(one.prediction.total_bytes)}, and an engine on a {card.name} has {show_bytes(room)}. "
            "Choose a larger --gpu, a smaller --resolution or fewer --engines-per-gpu."
        )
    return forward


def _row_bytes(spec: "EncoderSpec", size: ImageSize, outputs: "Outputs", dtype: str) -> int:
    """Of a row of what `embed` writes."""
    import pyarrow as pa

    from service.bulk.rows import Columns

    shapes: dict[str, tuple[int, ...]] = {}
    if outputs.tokens is not None:
        grid = spec.tokens_grid(size, outputs)
        shapes["tokens"] = (grid.rows * grid.cols, spec.hidden_size)
    if outputs.pooled:
        shapes["pooled"] = (spec.pooled_size,)
    return Columns(shapes, dtype, pa.schema([])).row_bytes


def _supply(arguments: argparse.Namespace, card: "Card", model: _Model, facts: "Facts") -> "Supply":
    """What goes with a card, and its pace: as given, else a part of its peak. Raises ArgumentError."""
    from service.scaling.pipeline import Supply

    facts.worked_out.append("FLOPs, memory, bytes of a row: from the encoder's code")
    facts.data_sheet.append(f"{card.tflops:,g} TFLOP/s (dense, 16 bits) and {card.memory_bytes / 1e9:g} GB of the card")
    pace = PACE.chosen(arguments, facts)
    if pace is None:
        pace = card.tflops * 1e12 * UTILISATION.chosen(arguments, facts) / model.flops
    cores, engines, network = (number.chosen(arguments, facts) for number in (CORES, ENGINES, NETWORK))
    return Supply(cores, engines, network * _GBIT, pace)


def _need(arguments: argparse.Namespace, model: _Model, facts: "Facts") -> "Need":
    """What an image takes. Raises ArgumentError or BulkError."""
    from service.scaling.measured import CONDITIONS, ENGINE_S, WRITE_S
    from service.scaling.pipeline import Need

    file_bytes, decode_s = _picture(arguments, model.spec, model.size, facts)
    facts.measured += [
        f"{1e3 * ENGINE_S:.2f} ms of the engine for each image (benchmarks.stages)",
        f"{1e-6 / WRITE_S:,.0f} MB/s written by a core (benchmarks.stages)",
        f"benchmarks.stages: {CONDITIONS}",
    ]
    facts.assumed.append("the engine's time is all Python's: one thread at a time")
    return Need(file_bytes, decode_s, ENGINE_S, WRITE_S * model.row_bytes, model.row_bytes)


def _picture(
    arguments: argparse.Namespace, spec: "EncoderSpec", size: ImageSize, facts: "Facts"
) -> tuple[float, float]:
    """Bytes of a picture, seconds of its decoding: of the sample, or of a JPEG. Raises ArgumentError or BulkError."""
    from service.scaling.measured import BYTES_A_PIXEL, DECODING

    if arguments.sample is not None:
        sample = _sampled(arguments.sample, spec, size)
        facts.measured.append(
            f"{show_bytes(round(sample.nbytes))} and {1e3 * sample.core_s:.2f} ms of decoding for each picture, "
            f"of {sample.images} in {arguments.sample} on this machine"
        )
        return sample.nbytes, sample.core_s
    source = PICTURE_SIZE.chosen(arguments, facts)
    decode_s = DECODING.core_s(source, spec.preprocessing, size)
    facts.measured.append(f"{1e3 * decode_s:.2f} ms of decoding for each picture (benchmarks.stages)")
    if arguments.image_bytes is None:
        nbytes = BYTES_A_PIXEL * source.width * source.height
        facts.assumed.append(f"{show_bytes(round(nbytes))} a file (--image-bytes)")
    else:
        with flag("--image-bytes"):
            nbytes = file_bytes(arguments.image_bytes)
        facts.given.append(f"{show_bytes(round(nbytes))} a file")
    return nbytes, decode_s


def _sampled(path: Path, spec: "EncoderSpec", size: ImageSize) -> "Sample":
    """Pictures from all over the folder."""
    from encoders.contract.errors import ImageError
    from service.bulk.sources.files import find_images
    from service.scaling.sample import measured

    if not path.exists():
        raise ArgumentError(f"--sample: {path} is not there.")
    found = find_images([path])
    chosen = found[:: -(-len(found) // _SAMPLED)]
    try:
        return measured([read_image(each) for each in chosen], spec.preprocessing, size)
    except ImageError as error:
        raise ArgumentError(f"--sample: none of {len(chosen)} pictures could be decoded: {error}") from error


def _cards(arguments: argparse.Namespace, stages: "Pipeline", images: int) -> Sequence[int]:
    """How many, of each cluster that is asked about. Raises ArgumentError if no number of cards is done in time."""
    hours = HOURS.given(arguments)
    if hours is not None:
        pace = images / hours / 3600
        if pace > stages.limit:
            raise ArgumentError(
                f"--hours: with any number of cards it takes {images / stages.limit / 3600:,.1f}: "
                f"the storage gives {stages.limit:,.0f} images a second."
            )
        if (cards := stages.cards_for(pace)) > MOST_CARDS:
            raise ArgumentError(f"--hours: it takes more than {MOST_CARDS:,} cards.")
        return [cards]
    if arguments.gpus is None:
        return _CLUSTERS
    with flag("--gpus"):
        return [whole(word.strip()) for word in arguments.gpus.split(",")]
