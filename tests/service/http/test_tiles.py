"""Images cut into views over HTTP: each view is an image to the queue, and the answer is one image's."""

import io
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.values import Floats, Grid, ImageSize, TokenKind
from tests.support.serving import PNG, assert_problem, noise, serving

pytestmark = pytest.mark.anyio
SPEC = fake_spec(most_views=3, most_joined=48)


async def test_tiles_are_the_encoders_views_joined() -> None:
    encoder, picture = FakeEncoder(SPEC), noise(1, (90, 30))
    async with serving(encoder) as client:
        answer = await client.post("/embed?project=true&tiles=true&output=both", content=picture, headers=PNG)
    found = answer.json()["data"][0]
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    outputs = SPEC.outputs(tokens=TokenKind.PROJECTED, pooled=True)
    views = [encoder.encode(view[None], outputs) for view in encoder.cut(image)]
    theirs = encoder.join([view.tokens[0, 1:] for view in views if view.tokens is not None], ImageSize(30, 90))
    assert Grid(*found["grid"]) == (1, 48)
    np.testing.assert_allclose(found["tokens"]["data"], theirs, atol=1e-6)
    assert views[0].pooled is not None
    np.testing.assert_allclose(found["pooled"]["data"], views[0].pooled[0], atol=1e-6)
    assert answer.json()["usage"] == {"images": 1, "tokens": 48}


async def test_a_bad_image_in_tiles_is_an_error_at_its_index() -> None:
    async with serving(FakeEncoder(SPEC)) as client:
        files = [("image", noise(1)), ("image", b"GIF89a nothing"), ("image", noise(2))]
        answer = await client.post("/embed?project=true&tiles=true", files=files)
    assert answer.status_code == 207
    assert ["error" in each for each in answer.json()["data"]] == [False, True, False]


@pytest.mark.parametrize("format", ["safetensors", "npy", "raw"])
async def test_one_array_holds_the_tiles_of_one_image(format: str) -> None:
    """Wide and square images have different numbers of tokens: an array of both would be corrupt."""
    query = f"/embed?project=true&tiles=true&format={format}"
    async with serving(FakeEncoder(SPEC)) as client:
        files = [("image", noise(1, (90, 30))), ("image", noise(2, (32, 32)))]
        assert_problem(await client.post(query, files=files), 422, "invalid-option")
        assert (await client.post(query, files=files[:1])).status_code == 200


async def test_every_view_takes_a_place_in_the_queue() -> None:
    async with serving(FakeEncoder(SPEC), queue_images=4, max_images=4) as client:
        assert (await client.post("/embed?project=true&tiles=true", content=noise(1), headers=PNG)).status_code == 200
        two = await client.post("/embed?project=true&tiles=true", files=[("image", noise(n)) for n in range(2)])
    assert_problem(two, 503, "overloaded")


@pytest.mark.parametrize(
    ("query", "slug"),
    [("tiles=true", "invalid-option"), ("tiles=true&project=true&resolution=64", "invalid-option")],
)
async def test_tiles_go_with_the_projection_at_native_size(query: str, slug: str) -> None:
    async with serving(FakeEncoder(SPEC)) as client:
        assert_problem(await client.post(f"/embed?{query}", content=noise(1), headers=PNG), 422, slug)


async def test_an_encoder_that_cuts_no_images_says_so() -> None:
    async with serving() as client:
        answer = await client.post("/embed?project=true&tiles=true", content=noise(1), headers=PNG)
    assert "does not cut images" in assert_problem(answer, 422, "output-not-offered")["detail"]


async def test_views_that_cannot_be_joined_are_their_images_error() -> None:
    class Unjoined(FakeEncoder):
        def join(self, views: Sequence[Floats], image: ImageSize) -> Floats:
            if image.width > 32:
                raise RuntimeError("of a library")
            return super().join(views, image)

    async with serving(Unjoined(SPEC)) as client:
        files = [("image", noise(1)), ("image", noise(1, (64, 32)))]
        answer = await client.post("/embed?project=true&tiles=true", files=files)
    assert answer.status_code == 207
    assert [each.get("error", {}).get("type") for each in answer.json()["data"]] == [None, "/problems/encoder-failed"]


@pytest.mark.parametrize("method", ["cut", "join"])
@pytest.mark.parametrize("given", [None, "views", []])
async def test_views_that_are_none_are_a_failure_of_the_encoder(
    method: str, given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEncoder, method, lambda *_, **__: given)
    async with serving(FakeEncoder(SPEC)) as client:
        answer = await client.post("/embed?project=true&tiles=true", content=noise(1), headers=PNG)
    assert "fake:vit did not" in assert_problem(answer, 500, "encoder-failed")["detail"]
