"""What `visiontower plan` prints: for people and as JSON."""

from dataclasses import asdict

from rich import box
from rich.table import Table

from service.scaling.pipeline import Need, fed
from service.scaling.plan import Facts, Plan
from service.sizes import show_bytes


def title(plan: Plan) -> str:
    """What it is about."""
    return f"{plan.spec.id} at {plan.size}, {plan.output} in {plan.dtype}, on {plan.card.name}"


def stages_table(plan: Plan) -> Table:
    """What an image takes of each stage, and what there is of it for each card. The first cluster's wall is marked."""
    need, supply = plan.need, plan.supply
    first = plan.clusters[0]
    network = f"{_gbit(supply.bytes_s)} Gbit/s"
    words = {
        "read": (_bytes(need.read_bytes), network),
        "cores": (_core_parts(need), f"{supply.cores:,g} cores"),
        "engine": (f"{_ms(need.engine_s)} of Python", _engines(supply.engines)),
        "forward": (f"{plan.flops / 1e9:,.1f} GFLOP", f"{supply.forwards_s * plan.flops / 1e12:,.4g} TFLOP/s"),
        "write": (_bytes(need.write_bytes), network),
    }
    if plan.storage_bytes_s is not None:
        words["storage"] = (_bytes(need.read_bytes + need.write_bytes), f"{_gbit(plan.storage_bytes_s)} Gbit/s for all")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name in ("stage", "an image takes", "each card has"):
        table.add_column(name)
    table.add_column("images/s", justify="right", no_wrap=True)
    table.add_column()
    for stage in first.pipeline.stages:
        table.add_row(
            stage.name, *words[stage.name], _short(stage.pace), "the wall" if stage.name == first.wall else ""
        )
    return table


def clusters_table(plan: Plan) -> Table:
    """A cluster a row."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    names = ("cards", "machines", "images/s", "hours", "card hours", *(["price"] if plan.price else []))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("the wall")
    for cluster in plan.clusters:
        price = [] if plan.price is None else [_short(plan.price * cluster.card_hours)]
        table.add_row(
            f"{cluster.cards:,}",
            f"{plan.machines(cluster):,}",
            _short(cluster.pace),
            _short(cluster.hours),
            _short(cluster.card_hours),
            *price,
            cluster.wall,
        )
    return table


def amounts(plan: Plan) -> str:
    """Bytes that are moved and kept, what keeps a card busy, and its memory."""
    busy = fed(plan.need, plan.supply.forwards_s)
    predicted, most, need = plan.forward.prediction, plan.forward.max_batch or 0, plan.need
    fits = "" if most >= predicted.batch else f" Run `embed` with --batch-size {most} or less."
    return (
        f"{plan.images:,} images: {_bytes(plan.images * need.read_bytes)} are read over the network, "
        f"{_bytes(plan.images * need.write_bytes)} are written and lie at rest, without compression.\n"
        f"A card is kept busy by {_short(busy.cores)} cores, {_engines(busy.engines)} and "
        f"{_short(8e-9 * busy.bytes_s)} Gbit/s.\n"
        f"Memory: a batch of {predicted.batch} takes {show_bytes(predicted.total_bytes)} of an engine's "
        f"{show_bytes(plan.card.memory_bytes // plan.supply.engines)}; up to {most:,} images fit.{fits}\n"
    )


def facts_table(facts: Facts) -> Table:
    """Where the figures come from."""
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, said in asdict(facts).items():
        if said:
            table.add_row(f"{name.replace('_', ' ').capitalize()}:", "\n".join(said))
    return table


def plan_json(plan: Plan) -> dict[str, object]:
    """In seconds, bytes, images a second and FLOP/s.

    Stages are of one card's share, shared ones of all machines together. busy_gpu: what keeps a card busy.
    """
    need, first = plan.need, plan.clusters[0]
    busy = fed(need, plan.supply.forwards_s)
    return {
        "model": plan.spec.id,
        "resolution": list(plan.size),
        "output": plan.output,
        "dtype": plan.dtype,
        "images": plan.images,
        "gpu": asdict(plan.card),
        "image": {**asdict(need), "core_s": need.core_s, "flops": plan.flops},
        "stages": [
            {"name": stage.name, "images_per_second": stage.pace, "shared": stage.is_shared}
            for stage in first.pipeline.stages
        ],
        "busy_gpu": {"cores": busy.cores, "engines": busy.engines, "bytes_per_second": busy.bytes_s},
        "clusters": [
            {
                "gpus": cluster.cards,
                "machines": plan.machines(cluster),
                "images_per_second": cluster.pace,
                "hours": cluster.hours,
                "gpu_hours": cluster.card_hours,
                "price": None if plan.price is None else plan.price * cluster.card_hours,
                "wall": cluster.wall,
            }
            for cluster in plan.clusters
        ],
        "read_bytes": round(plan.images * need.read_bytes),
        "at_rest_bytes": round(plan.images * need.write_bytes),
        "memory": {
            "batch": plan.forward.prediction.batch,
            "total_bytes": plan.forward.prediction.total_bytes,
            "max_batch": plan.forward.max_batch,
        },
        **asdict(plan.facts),
    }


def _engines(count: int) -> str:
    return f"{count:,} engine{'s' * (count > 1)}"


def _core_parts(need: Need) -> str:
    parts = {"decode": need.decode_s, "engine": need.engine_s, "write": need.write_s}
    return "\n".join(f"{name} {_ms(seconds)}" for name, seconds in parts.items() if seconds >= 1e-6)


def _bytes(count: float) -> str:
    return show_bytes(round(count))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def _gbit(bytes_s: float) -> str:
    return f"{8e-9 * bytes_s:,g}"


def _short(value: float) -> str:
    """Three digits, or all of the whole number."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
