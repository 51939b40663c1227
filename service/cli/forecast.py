"""The memory of an encoder's forwards, by dtype, size and batch, worked out from blueprints."""

from collections.abc import Callable, Sequence

from tqdm import tqdm

from encoders.adapters import registry
from encoders.contract.encoder import Blueprint
from encoders.contract.values import ImageSize
from encoders.memory.plan import Row, largest_size, plan
from encoders.memory.prediction import overhead_of
from service.cli import tables
from service.cli.tables import Card, Forecast
from service.engine.values import PlanRequest


def forecasts(encoder_id: str, request: PlanRequest, *, device: str, gpu: Card | None) -> list[Forecast]:
    """One a dtype; with a bar on a terminal if it takes longer than a second."""
    blueprints = [registry.blueprint(encoder_id, dtype=dtype) for dtype in dict.fromkeys(request.dtypes)]
    spec = blueprints[0].spec
    sizes = list(dict.fromkeys(map(spec.size, request.resolutions))) or tables.sizes_to_plan(spec)
    shapes = len(sizes) + (len(set(request.batches)) if gpu else 0)
    with tqdm(total=len(blueprints) * shapes, unit="shape", disable=None, delay=1, leave=False) as bar:
        return [_forecast(drawn, request, sizes, device=device, gpu=gpu, done=bar.update) for drawn in blueprints]


def _forecast(
    blueprint: Blueprint,
    request: PlanRequest,
    sizes: Sequence[ImageSize],
    *,
    device: str,
    gpu: Card | None,
    done: Callable[[], object],
) -> Forecast:
    """done: called after each size, and after the largest one has been found for each batch."""
    spec, overhead, outputs = blueprint.spec, overhead_of(device), request.outputs(blueprint.spec)
    batches = sorted(set(request.batches))
    room = gpu.room if gpu else None
    rows: list[Row] = []
    for size in sizes:
        rows += plan(blueprint, [size], batches, outputs, device=device, overhead=overhead, room=room)
        done()
    if room is None:
        return Forecast(spec, overhead, rows, {})
    free = room - overhead.context - spec.weights_bytes
    largest = {}
    for batch in batches:
        largest[batch] = largest_size(
            blueprint, outputs, batch=batch, device=device, overhead=overhead, free=free, like=sizes[0]
        )
        done()
    return Forecast(spec, overhead, rows, largest)
