"""What the metrics say of encoders, batches and the process; how those of several processes become one."""

import re
import sys
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
from prometheus_client.parser import text_string_to_metric_families

from encoders.adapters.fake import FakeBlueprint, FakeEncoder, FakeMemory, fake_spec
from encoders.memory.prediction import MIB
from service.engine.backend import Backend
from service.engine.models import ModelState
from service.http.app import create_app
from service.http.protocols import PROTOCOLS
from service.http.siblings import merged
from service.memory.account import Account
from service.settings import Settings
from service.telemetry.metrics import CHANGES, STATES, ImageStages, Metrics, ModelNow, Now
from service.telemetry.metrics_table import labels_table
from tests.support.serving import PNG, client_of, image_bytes

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()


def values(text: str, family: str) -> dict[tuple[str, ...], float]:
    """Of a gauge or a counter, by the values of its labels in the order of their names."""
    found = (each for each in text_string_to_metric_families(text) if each.name == family)
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for each in found
        for sample in each.samples
    }


async def test_an_encoder_s_state_and_its_changes_are_told() -> None:
    """Two of which one fits at a time: one that waits to be loaded is not ready, and does not fail."""
    specs = {model: fake_spec(model, weights_bytes=60 * MIB) for model in ("fake:one", "fake:two")}
    now = [0.0]
    backend = Backend(
        load=lambda model: FakeEncoder(specs[model]),
        blueprint=lambda model, dtype: FakeBlueprint(specs[model]),
        memory=lambda: FakeMemory(100 * MIB),
    )
    settings = Settings(model=tuple(specs), vram_budget=100 * MIB, when_full="evict", evict_idle_s=10)
    async with client_of(create_app(settings, backend=backend, clock=lambda: now[0])) as client:
        before = (await client.get("/metrics")).text
        now[0] = 100
        assert (await client.post("/embed?model=fake:two", content=PICTURE, headers=PNG)).status_code == 200
        after = (await client.get("/metrics")).text
    state = "visiontower_model_state"
    assert [key for key, value in values(before, state).items() if value] == [
        ("fake:one", "ready"), ("fake:two", "not loaded"),
    ]  # fmt: skip
    assert [key for key, value in values(after, state).items() if value] == [
        ("fake:one", "not loaded"), ("fake:two", "ready"),
    ]  # fmt: skip
    assert values(before, state).keys() == {(model, each) for model in specs for each in STATES}
    changes = values(after, "visiontower_model_changes")
    assert {key for key, value in changes.items() if value == 1} == {
        ("loaded", "fake:one"), ("evicted", "fake:one"), ("loaded", "fake:two"),
    }  # fmt: skip
    assert changes.keys() == {(each, model) for model in specs for each in CHANGES}
    assert ("cpu", "float32", "fake:two", "fake", "torch") in values(after, "visiontower_model_info")


async def test_a_batch_s_ceiling_is_counted_beside_its_images() -> None:
    specs = {"fake:vit": fake_spec()}
    backend = Backend(
        load=lambda model: FakeEncoder(specs[model]),
        blueprint=lambda model, dtype: FakeBlueprint(specs[model]),
        memory=lambda: FakeMemory(100 * MIB),
    )
    settings = Settings(model=("fake:vit",), max_batch=4, max_forward_s=float("inf"))
    async with client_of(create_app(settings, backend=backend)) as client:
        for _ in range(3):
            await client.post("/embed", content=PICTURE, headers=PNG)
        text = (await client.get("/metrics")).text
    assert values(text, "visiontower_batch_ceiling_images") == {("fake:vit",): 12}


async def test_of_several_processes_an_encoder_is_in_every_state_that_one_of_them_has() -> None:
    one, other = (
        Metrics(["a"]).exposition(Now({"a": ModelNow(0, 0.0, state)}, "cpu", {}, {})).decode()
        for state in ("ready", "hangs")
    )
    both = merged([one, other]).decode()
    assert [key for key, value in values(both, "visiontower_model_state").items() if value] == [
        ("a", "ready"), ("a", "hangs"),
    ]  # fmt: skip
    assert values(both, "visiontower_model_ready") == {("a",): 0}
    assert set(values(both, "visiontower_build_info").values()) == {1}


async def test_several_processes_have_each_its_memory_for_the_cache_and_share_the_disk() -> None:
    now = Now({}, "cpu", {}, {}, {"memory": 3, "disk": 10})
    texts = [Metrics(["a"]).exposition(now).decode() for _ in range(2)]
    assert values(merged(texts).decode(), "visiontower_cache_bytes") == {("memory",): 6, ("disk",): 10}


@pytest.mark.skipif(sys.platform != "linux", reason="process_* are of Linux")
async def test_the_process_is_told_and_of_several_the_youngest_start_stands() -> None:
    one = Metrics(["a"]).exposition(Now({}, "cpu", {}, {})).decode()
    (started,) = values(one, "process_start_time_seconds").values()
    younger = re.sub(r"(?m)^process_start_time_seconds .*$", f"process_start_time_seconds {started + 60}", one)
    assert values(merged([younger, one]).decode(), "process_start_time_seconds") == {(): started + 60}


async def test_the_sets_of_labels_are_those_of_the_code() -> None:
    rows = {line.split(" | ")[0]: line for line in labels_table().splitlines()}
    assert all(f"`{name}`" in rows["| `protocol`"] for name in PROTOCOLS)
    assert all(f"`{state}`" in rows["| `state`"] for state in get_args(get_type_hints(ModelState)["state"]))
    account = rows["| `stage` of `visiontower_host_memory_bytes`"]
    assert all(f"`{stage}`" in account for stage in Account(1).held)
    stages = rows["| `stage` of `visiontower_stage_seconds`"]
    assert all(f"`{stage.name}`" in stages for stage in fields(ImageStages) if stage.type is float)
