"""The contract's metrics are there under their names."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.serving import PNG, image_bytes, serving

pytestmark = pytest.mark.anyio

CONTRACT = """
requests_total{route,status,protocol} request_seconds{route} stage_seconds{model,stage} batch_images{model}
batch_padding_ratio{model} queue_images{model} queue_oldest_seconds{model} images_total{model,resolution}
tokens_total{model} rejected_total{reason} vram_bytes{device,kind} vram_prediction_ratio{model}
admission_total{decision} model_ready{model} cache_hits_total{} cache_misses_total{}
"""
KINDS = {
    "weights", "activations_predicted", "activations_peak", "allocated", "reserved", "budget", "free", "total",
}  # fmt: skip


async def test_every_metric_of_the_contract_is_served_with_its_labels() -> None:
    async with serving() as client:
        for _ in range(2):
            assert (await client.post("/embed", content=image_bytes(), headers=PNG)).status_code == 200
        text = (await client.get("/metrics")).text
    served: dict[str, set[str]] = {}
    kinds = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = re.sub(r"_(bucket|count|sum)$", "", sample.name).removeprefix("visiontower_")
            served.setdefault(name, set()).update(sample.labels.keys() - {"le"})
            if name == "vram_bytes":
                kinds.add(sample.labels["kind"])
    wanted = {name: set(filter(None, labels.split(","))) for name, labels in re.findall(r"(\w+)\{(.*?)\}", CONTRACT)}
    assert {name: served.get(name) for name in wanted} == wanted
    assert kinds == KINDS
