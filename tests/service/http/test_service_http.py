"""The other routes: models, metrics, health, the API's own pages, ids and logs."""

import inspect
import io
import json
import logging
import re
from dataclasses import asdict

import pytest
from prometheus_client.parser import text_string_to_metric_families

from encoders.adapters.catalog import RECOMMENDED
from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.spec import Preprocessing
from service.http import problems
from service.http.exchange import Exchange
from service.http.protocols import PROTOCOLS
from service.telemetry import logs
from tests.support.serving import PNG, assert_problem, image_bytes, serving

pytestmark = pytest.mark.anyio
PICTURE = image_bytes()
LONG_ID = "fake:/path/to/weights@some/tag"


async def test_models_says_what_each_encoder_is() -> None:
    async with serving(FakeEncoder(), FakeEncoder(fake_spec(LONG_ID))) as client:
        listed = (await client.get("/models")).json()["data"]
    fields = (
        "id family trained_on image_size patch_size preprocessing grid prefix_tokens hidden_size embed_dim layers "
        "tokens has_text context_length resolutions dtype device parameters weights_bytes revision state"
    )
    assert [entry["id"] for entry in listed] == ["fake:vit", LONG_ID]
    assert set(fields.split()) <= set(listed[0])
    assert listed[0]["resolutions"]["multiple"] == [8, 8]
    assert (listed[0]["tokens"], listed[0]["grid"], listed[0]["state"]) == (16, [4, 4], "ready")


async def test_models_says_how_an_encoder_sees_a_picture_and_what_pictures_it_knows() -> None:
    preprocessing = Preprocessing(
        mean=(0.5, 0.5, 0.25), std=(1.0, 1.0, 0.5), resize="longest", fill=(1, 2, 3), crop_pct=0.875
    )
    x_rays = fake_spec("fake:xray", preprocessing=preprocessing, trained_on="x-rays")
    async with serving(FakeEncoder(), FakeEncoder(x_rays)) as client:
        photographs, other = (await client.get("/models")).json()["data"]
    assert (photographs["trained_on"], other["trained_on"]) == (None, "x-rays")
    assert other["preprocessing"] == {
        "mean": [0.5, 0.5, 0.25],
        "std": [1.0, 1.0, 0.5],
        "interpolation": "bicubic",
        "resize": "longest",
        "crop_pct": 0.875,
        "fill": [1, 2, 3],
        "crop_offset": "round",
    }


async def test_models_recommends_encoders_that_know_photographs() -> None:
    async with serving() as client:
        recommended = (await client.get("/models")).json()["recommended"]
    assert recommended == [asdict(each) for each in RECOMMENDED]
    assert recommended[0].keys() == {"id", "purpose", "download_bytes"}


@pytest.mark.parametrize("path", [LONG_ID, LONG_ID.replace("/", "%2F")])
async def test_an_id_with_slashes_can_be_asked_for(path: str) -> None:
    async with serving(FakeEncoder(), FakeEncoder(fake_spec(LONG_ID))) as client:
        assert (await client.get(f"/models/{path}")).json()["id"] == LONG_ID


async def test_an_unknown_id_lists_the_known() -> None:
    async with serving() as client:
        assert assert_problem(await client.get("/models/x"), 404, "unknown-model")["served"] == ["fake:vit"]


async def test_metrics_have_the_contract_s_names_and_move() -> None:
    async with serving(max_images=8) as client:
        await client.post("/embed", content=PICTURE, headers=PNG)
        await client.post("/embed?resolution=64x32", files=[("image", PICTURE)] * 2)
        await client.post("/embed", files=[("image", PICTURE)] * 9)
        await client.get("/nowhere/else")
        text = (await client.get("/metrics")).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value  # labels in the order of their values
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["visiontower_requests_total", "/embed", "200", "native"] == 2
    assert samples["visiontower_requests_total", "/embed", "413", "native"] == 1
    assert samples["visiontower_requests_total", "404", "native", "other"] == 1
    assert samples["visiontower_request_seconds_count", "/embed"] == 3
    assert samples["visiontower_images_total", "32x32", "fake:vit"] == 1
    assert samples["visiontower_images_total", "64x32", "fake:vit"] == 2
    assert samples["visiontower_tokens_total", "fake:vit"] == 16 + 2 * 32
    assert samples["visiontower_rejected_total", "too-many-images"] == 1
    assert samples["visiontower_batch_images_sum", "fake:vit"] == 3
    assert samples["visiontower_batch_padding_ratio", "fake:vit"] == 0
    assert samples["visiontower_queue_images", "fake:vit"] == 0
    assert samples["visiontower_queue_oldest_seconds", "fake:vit"] == 0
    assert samples["visiontower_model_ready", "fake:vit"] == 1
    for stage, count in (("decode", 3), ("preprocess", 3), ("queue", 3), ("serialize", 2)):
        assert samples["visiontower_stage_seconds_count", *sorted(["fake:vit", stage])] == count
    assert samples["visiontower_stage_seconds_count", "fake:vit", "forward"] <= 3


async def test_callers_cannot_make_more_than_a_few_resolution_labels() -> None:
    async with serving() as client:
        for height in range(8, 8 * 41, 8):
            await client.post(f"/embed?output=pooled&resolution={height}x8", content=PICTURE, headers=PNG)
        text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("visiontower_images_total{")]
    assert len(lines) == 33
    assert 'visiontower_images_total{model="fake:vit",resolution="other"} 8.0' in text


async def test_two_services_in_a_process_do_not_share_counts() -> None:
    async with serving() as one, serving() as other:
        await one.post("/embed", content=PICTURE, headers=PNG)
        assert 'tokens_total{model="fake:vit"} 0.0' in (await other.get("/metrics")).text


async def test_every_problem_type_has_its_page() -> None:
    async with serving() as client:
        listed = (await client.get("/problems")).json()["problems"]
        pages = [await client.get(path) for path in listed]
        assert_problem(await client.get("/problems/none"), 404, "unknown-problem")
    assert listed == [f"/problems/{slug}" for slug in problems.slugs()]
    assert all(page.status_code == 200 and len(page.text) > 60 for page in pages)


async def test_the_api_s_own_pages_document_bodies_that_are_parsed_by_hand() -> None:
    async with serving() as client:
        schema = (await client.get("/openapi.json")).json()
        docs = await client.get("/docs")
        needed = set(re.findall(r'(?:src|href)="([^"#]+)"', docs.text))
        assert {url: (await client.get(f"/{url}")).status_code for url in needed} == dict.fromkeys(needed, 200)
    assert {"web/page.css", "web/docs.css", "web/docs.js", "openapi.json"} <= needed
    assert all(path in docs.text for path in schema["paths"])
    assert not re.search("<style|<script>| on[a-z]+=| style=", docs.text), "the pages' policy forbids it"
    assert "http" not in docs.text.replace("http(s)", "").replace("http, ", "")
    for route in ("/embed", "/similarity"):
        operation = schema["paths"][route]["post"]
        assert set(operation["requestBody"]["content"]) == {
            "multipart/form-data",
            "image/*",
            "application/octet-stream",
            "application/json",
        }
        assert {"200", "207", "413", "415", "422", "503", "504"} <= set(operation["responses"])
        assert "model" in {parameter["name"] for parameter in operation["parameters"]}
    names = {parameter["name"] for parameter in schema["paths"]["/embed"]["post"]["parameters"]}
    options = {"model", "output", "layer", "resolution", "prefix", "project", "normalize", "dtype", "encoding_format"}
    assert options <= names


async def test_the_api_s_page_has_every_protocol_with_what_its_bodies_hold() -> None:
    async with serving() as client:
        page = (await client.get("/docs")).text
        schema = (await client.get("/openapi.json")).json()
    for name in PROTOCOLS:
        assert f"<h2>Protocol <code>{name}</code></h2>" in page
    assert set(re.findall(r'<li><a href="#([^"]+)"', page)) == set(re.findall(r'<h3 id="([^"]+)"', page))
    for field in ("input", "dimensions", "embedding_types", "entries", "outputs"):
        assert f"<td><code>{field}</code></td>" in page
    described = [each["description"] for path in schema["paths"].values() for each in path.values() if "tags" in each]
    assert not [text for text in described if text == inspect.getdoc(Exchange.respond)], "of our code, not of the route"


async def test_every_documented_json_example_works() -> None:
    async with serving(FakeEncoder(fake_spec("demo:vit"))) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        answers = {}
        for path, methods in paths.items():
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            if "application/json" in content:
                example = content["application/json"]["example"]
                answers[path] = await client.post(path.replace("{model}", "demo:vit"), json=example)
    assert {"/embed", "/similarity", "/classify", "/v1/embeddings", "/v2/embed"} < set(answers)
    assert {path: answer.text for path, answer in answers.items() if answer.status_code != 200} == {}


async def test_an_answer_carries_its_request_s_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as client:
        own = await client.get("/health/live", headers={"x-request-id": "abc-1"})
        forged = await client.get("/health/live", headers={"x-request-id": "a b\tc"})
        none = await client.get("/health/live")
    assert own.headers["x-request-id"] == "abc-1"
    assert len(forged.headers["x-request-id"]) == len(none.headers["x-request-id"]) == 32
    ids = [getattr(record, "request_id", None) for record in caplog.records if record.name == "visiontower.requests"]
    assert ids[0] == "abc-1"


async def test_a_request_is_one_line_that_says_what_it_asked_and_how_it_went(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serving() as client:
        two = [("image", image_bytes()), ("image", b"no image")]
        await client.post("/embed", files=two)
        await client.post("/embed", content=b"no image", headers=PNG)
        await client.post("/embed?model=x", content=image_bytes(), headers=PNG)
        await client.get("/nowhere")
    lines = [vars(record) for record in caplog.records if record.name == "visiontower.requests"]
    told = [
        (line["status"], line["outcome"], line.get("model"), line.get("images"), line.get("failed")) for line in lines
    ]
    assert told == [
        (207, "ok", "fake:vit", 2, 1),
        (415, "not-an-image", "fake:vit", 1, None),
        (404, "unknown-model", None, 1, None),
        (404, "no-such-route", None, None, None),
    ]
    assert lines[0]["stages"].keys() >= {"decode", "queue", "forward", "serialize"}
    assert lines[0]["resolution"] == "32x32"
    assert lines[0]["request_bytes"] > 2 * len(b"no image")
    assert lines[0]["answer_bytes"] > 0


def test_a_log_line_is_one_json_object() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it %s", "failed", extra={"request_id": "7"})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["level"], line["request_id"]) == ("it failed", "error", "7")
    assert "ValueError" in line["trace"]
    assert stream.getvalue().count("\n") == 1


async def test_a_model_says_the_width_and_the_grid_of_its_projected_tokens() -> None:
    merging, without = fake_spec("fake:merging", projection_merges=2), fake_spec("fake:none", projected_size=None)
    async with serving(FakeEncoder(merging), FakeEncoder(without)) as client:
        models = (await client.get("/models")).json()["data"]
    assert [(model["projected_size"], model["projected_grid"]) for model in models] == [(6, [2, 2]), (None, None)]
