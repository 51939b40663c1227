"""The doors that are compared lead to the same vector."""

import numpy as np
import pytest

from benchmarks.doors import DOORS
from encoders.adapters.fake import FakeEncoder, fake_spec
from tests.support.serving import image_bytes, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", DOORS)
async def test_a_door_s_question_is_answered_with_the_image_s_vector(name: str) -> None:
    image, model = image_bytes(image_format="JPEG"), "openclip:/a folder/of@weights"
    question = DOORS[name].ask(image, model)
    headers = {"content-type": question.content_type, **question.headers}
    async with serving(FakeEncoder(fake_spec(model))) as client:
        answer = await client.post(question.path, content=question.content, headers=headers)
        plain = await client.post("/embed?output=pooled", content=image, headers={"content-type": "image/jpeg"})
    vector = np.asarray(DOORS[name].vector(answer.content))
    expected = np.asarray(plain.json()["data"][0]["pooled"]["data"])
    np.testing.assert_allclose(vector / np.linalg.norm(vector), expected / np.linalg.norm(expected), atol=1e-6)
