"""`demo:` ids are the trained models, through the same adapter as any open_clip model."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import TokenKind, blueprint, load
from encoders.adapters.demo import NAMES, WEIGHTS, saved
from encoders.contract.errors import EncoderIdError
from tests.support.closeness import close
from training.demo import dense, world


def scene(*subjects: world.Subject, seed: int = 5) -> Image.Image:
    drawn = world.sample_scene(np.random.default_rng(seed), subjects=subjects)
    return Image.fromarray(world.render(drawn, size=192))


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_gives_what_training_saw(name: str) -> None:
    """Heat maps are served from the very features that training supervised."""
    encoder = load(f"demo:{name}")
    model, _ = saved.load(name, WEIGHTS)
    pixels = encoder.preprocess(scene(world.Subject("star", "blue")), encoder.spec.size())[None]
    found = encoder.encode(pixels, encoder.spec.outputs(tokens=TokenKind.DENSE, pooled=True))
    with torch.inference_mode():
        pooled, cells = dense.features(model.visual, encoder.normalise(torch.from_numpy(pixels)))  # type: ignore[attr-defined]
    close(found.pooled, pooled)
    close(found.tokens, cells.flatten(1, 2))


@pytest.mark.parametrize("name", NAMES)
def test_they_say_that_they_know_drawings(name: str) -> None:
    assert load(f"demo:{name}").spec.trained_on == blueprint(f"demo:{name}").spec.trained_on == "drawings"


@pytest.mark.parametrize("name", NAMES)
def test_the_right_caption_wins(name: str) -> None:
    encoder = load(f"demo:{name}")
    image = scene(world.Subject("circle", "red"), world.Subject("house", None))
    pixels = encoder.preprocess(image, encoder.spec.size())[None]
    pooled = encoder.encode(pixels, encoder.spec.outputs(pooled=True)).pooled
    assert pooled is not None
    texts = encoder.encode_text(encoder.tokenize(["a tree", "a red circle and a house", "a blue star", "a dog"]).ids)
    scores = texts @ pooled[0] / np.linalg.norm(texts, axis=1)
    assert scores.argmax() == 1


def test_on_a_cpu_a_forward_has_ended_when_it_has_begun() -> None:
    encoder = load("demo:vit")
    pixels = np.zeros((2, *encoder.spec.size(), 3), np.uint8)
    forward = encoder.begin(pixels, encoder.spec.outputs(pooled=True))
    assert forward.is_done
    np.testing.assert_array_equal(
        forward.wait().pooled, encoder.encode(pixels, encoder.spec.outputs(pooled=True)).pooled
    )


@pytest.mark.parametrize("text", ["demo:swin", "demo:vit@openai"])
def test_there_are_no_others(text: str) -> None:
    with pytest.raises(EncoderIdError, match="demo:vit, demo:resnet, demo:convnext"):
        load(text)
