"""GET /vram: what a forward would take, before it runs."""

from dataclasses import dataclass

from service.engine.values import PlanRequest, PlanResult
from service.http.json import to_json
from service.http.protocol import Answer, Asked, Incoming
from service.http.protocols.native.options import VramOptions, read
from service.spec_json import plan_json


@dataclass(frozen=True)
class Reply:
    """is_table: several forwards are asked about, so that the answer is a list."""

    is_table: bool


def read_vram(incoming: Incoming) -> Asked:
    """Raises InvalidOption."""
    options = read(VramOptions, query=incoming.query, body=())
    request = PlanRequest(
        model=options.model,
        resolutions=options.resolution,
        batches=options.batch,
        dtypes=options.dtype,
        output=options.output,
        layer=options.layer,
    )
    return Asked(request, Reply(options.is_table))


def write_vram(result: PlanResult, reply: Reply) -> Answer:
    """One row, or a list of them."""
    about = {"model": result.model, "device": result.device, "budget_bytes": result.budget_bytes}
    rows = [plan_json(each.row, each.spec, max_resolution=each.max_resolution) for each in result.rows]
    answer = {"object": "list", **about, "data": rows} if reply.is_table else {**about, **rows[0]}
    return Answer(to_json(answer), "application/json")
