"""`visiontower plan`: hours, machines and bytes of a bulk run on many cards, and the stage that holds it up."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.contract.values import ImageSize
from service.cli.arguments import ArgumentError, add_command, flag, read_image, resolution_of
from service.cli.output import show, show_json
from service.sizes import parse_bytes, parse_count, parse_image_size, show_bytes

if TYPE_CHECKING:
    from encoders.contract.encoder import Blueprint
    from encoders.contract.spec import EncoderSpec
    from encoders.contract.values import Outputs
    from encoders.memory.plan import Row
    from service.cli.plan_tables import Facts, Plan
    from service.scaling.cards import Card
    from service.scaling.pipeline import Need, Pipeline, Share
    from service.scaling.sample import Sample

_CLUSTERS = (1, 2, 5, 10, 20, 50, 100)
_MOST_CARDS = 1_000_000
_LEAST = 1e-9
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


@dataclass(frozen=True)
class _Number:
    """A flag with a number or a size. said: what the value means, with {} for it. default: None if there is none."""

    flag: str
    metavar: str
    parse: Callable[[str], Any]
    said: str
    help: str
    default: Any = None

    def add(self, group: Any) -> None:
        """To a parser."""
        default = "" if self.default is None else f" [{_shown(self.default)}]"
        group.add_argument(self.flag, metavar=self.metavar, help=self.help + default)

    def given(self, arguments: argparse.Namespace) -> Any:
        """None if it was not given. Raises ArgumentError."""
        text = getattr(arguments, self.flag.removeprefix("--").replace("-", "_"))
        if text is None:
            return None
        with flag(self.flag):
            return self.parse(text)

    def chosen(self, arguments: argparse.Namespace, facts: "Facts") -> Any:
        """What was given, else the default; noted as the one or the other. Raises ArgumentError."""
        given = self.given(arguments)
        value = self.default if given is None else given
        if given is not None:
            facts.given.append(self.said.format(_shown(value)))
        elif value is not None:
            facts.assumed.append(f"{self.said.format(_shown(value))} ({self.flag})")
        return value


def _shown(value: object) -> str:
    if isinstance(value, ImageSize):
        return f"{value.width}x{value.height}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= _MOST_CARDS):
        raise ValueError(f"'{text}' is not a whole number from 1 to {_MOST_CARDS:,}")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not _LEAST <= number <= 1 / _LEAST:
        raise ValueError(f"'{text}' is not a number from 1e-9 to 1e9")
    return number


def _portion(text: str) -> float:
    number = _positive(text)
    if number > 1:
        raise ValueError(f"{text} is more than the whole: expected 0 to 1, for example 0.4")
    return number


def _file_bytes(text: str) -> int:
    count = parse_bytes(text)
    if not count:
        raise ValueError("a file has 1 byte or more")
    return count


def _picture_size(text: str) -> ImageSize:
    try:
        size = parse_image_size(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no size: expected WxH in pixels, for example 640x480") from error
    if not min(size):
        raise ValueError("a picture has 1 pixel a side or more")
    return ImageSize(min(size), max(size))


_CARDS_A_MACHINE = _Number("--gpus-per-machine", "N", _whole, "cards in a machine: {}", "cards in a machine", 8)
_CORES = _Number(
    "--cores-per-gpu", "N", _positive, "virtual cores for each card: {}", "a machine's virtual cores for each card", 12
)
_ENGINES = _Number("--engines-per-gpu", "N", _whole, "engines on each card: {}", "processes that share a card", 1)
_NETWORK = _Number(
    "--gbit-per-gpu",
    "N",
    _positive,
    "Gbit/s of the network for each card, each way: {}",
    "a machine's network for each card, each way",
    10,
)
_STORAGE = _Number(
    "--storage-gbit",
    "N",
    _positive,
    "Gbit/s that the storage gives and takes in all: {}",
    "what the storage gives and takes in all [no limit]",
)
_PRICE = _Number("--price", "P", _positive, "price of a card for an hour: {}", "of a card for an hour, in any currency")
_UTILISATION = _Number(
    "--utilisation",
    "X",
    _portion,
    "part of the card's peak that forwards reach: {}",
    "part of its peak that forwards reach",
    0.4,
)
_PACE = _Number(
    "--pace",
    "N",
    _positive,
    "images a second that one card computes: {}",
    "images a second, measured; no part of the peak is assumed then",
)
_PICTURE_SIZE = _Number(
    "--image-size", "WxH", _picture_size, "pictures of {} pixels", "of the files, in pixels", ImageSize(480, 640)
)
_HOURS = _Number("--hours", "H", _positive, "hours: {}", "as many cards as it takes to be done by then")


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
    for number in (_HOURS, _CARDS_A_MACHINE, _CORES, _ENGINES, _NETWORK, _STORAGE, _PRICE):
        number.add(cluster)
    pace = plan.add_argument_group("the pace of one card")
    for number in (_UTILISATION, _PACE):
        number.add(pace)
    pictures = plan.add_argument_group("pictures")
    _PICTURE_SIZE.add(pictures)
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
    from service.cli.plan_tables import Facts, Plan
    from service.scaling.cards import card_of
    from service.scaling.pipeline import Cluster, pipeline

    _require_apart(arguments)
    with flag("--images"):
        images = parse_count(arguments.images)
    with flag("--gpu"):
        card = card_of(arguments.gpu)
    facts = Facts()
    model = _model(arguments, card)
    need = _need(arguments, model, facts)
    share = _share(arguments, card, model, facts)
    storage = _STORAGE.chosen(arguments, facts)
    if storage is None:
        facts.assumed.append(f"a storage as fast as it is asked to be ({_STORAGE.flag})")
    storage_bytes_s = None if storage is None else storage * _GBIT
    stages = pipeline(need, share, storage_bytes_s=storage_bytes_s)
    return Plan(
        spec=model.spec,
        size=model.size,
        output=arguments.output,
        dtype=arguments.dtype,
        images=images,
        card=card,
        cards_a_machine=_CARDS_A_MACHINE.chosen(arguments, facts),
        price=_PRICE.chosen(arguments, facts),
        need=need,
        share=share,
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
    engines = _ENGINES.given(arguments) or _ENGINES.default
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


def _share(arguments: argparse.Namespace, card: "Card", model: _Model, facts: "Facts") -> "Share":
    """What goes with a card, and its pace: as given, else a part of its peak. Raises ArgumentError."""
    from service.scaling.pipeline import Share

    facts.worked_out.append("FLOPs, memory, bytes of a row: from the encoder's code")
    facts.data_sheet.append(f"{card.tflops:,g} TFLOP/s (dense, 16 bits) and {card.memory_bytes / 1e9:g} GB of the card")
    pace = _PACE.chosen(arguments, facts)
    if pace is None:
        pace = card.tflops * 1e12 * _UTILISATION.chosen(arguments, facts) / model.flops
    cores, engines, network = (number.chosen(arguments, facts) for number in (_CORES, _ENGINES, _NETWORK))
    return Share(cores, engines, network * _GBIT, pace)


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
    source = _PICTURE_SIZE.chosen(arguments, facts)
    decode_s = DECODING.core_s(source, spec.preprocessing, size)
    facts.measured.append(f"{1e3 * decode_s:.2f} ms of decoding for each picture (benchmarks.stages)")
    if arguments.image_bytes is None:
        nbytes = BYTES_A_PIXEL * source.width * source.height
        facts.assumed.append(f"{show_bytes(round(nbytes))} a file (--image-bytes)")
    else:
        with flag("--image-bytes"):
            nbytes = _file_bytes(arguments.image_bytes)
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
    hours = _HOURS.given(arguments)
    if hours is not None:
        pace = images / hours / 3600
        if pace > stages.limit:
            raise ArgumentError(
                f"--hours: with any number of cards it takes {images / stages.limit / 3600:,.1f}: "
                f"the storage gives {stages.limit:,.0f} images a second."
            )
        if (cards := stages.cards_for(pace)) > _MOST_CARDS:
            raise ArgumentError(f"--hours: it takes more than {_MOST_CARDS:,} cards.")
        return [cards]
    if arguments.gpus is None:
        return _CLUSTERS
    with flag("--gpus"):
        return [_whole(word.strip()) for word in arguments.gpus.split(",")]
