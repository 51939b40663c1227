"""A language model answers from the tokens that we serve as it does from the pixels: greedily, the same ids.

transformers generates from the pixels; then again from tokens that came over HTTP, in place of its own image features.
Tokens come as a part for vLLM where there is one for the family, else as safetensors.
"""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load as read_safetensors
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders.contract.values import ImageSize
from encoders.images.pixels import pixels_of
from encoders.runtime.torch_encoder import TorchEncoder
from tests.encoders.adapters.test_hf_vlm import PACKED, PIXTRAL, inputs
from tests.support.hf_folders import PATCH, Twins, one_thread
from tests.support.serving import PNG, noise, serving
from tests.support.suites import split

pytestmark = pytest.mark.anyio
VLLM = [
    "llava", "llava-layers", "llava-full", "llava-siglip", "llava-siglip-default", "llava-dinov2", "llava-next",
    "llava-onevision", "qwen2-vl", "qwen2.5-vl", "internvl", "paligemma", "blip-2",
]  # fmt: skip
"""Families whose tokens come as parts for vLLM."""
OTHERS = [
    "llava-pixtral", "vipllava", "mistral3", "gemma3", "glm4v", "idefics3", "smolvlm", "aya-vision", "cohere2-vision",
]  # fmt: skip
"""Families that vLLM takes no tokens for. With VLLM, all that are served but Qwen3-VL, whose language model also reads
DeepStack features."""
TILED = ["llava-next", "llava-onevision"]
STACKED = ["vipllava", "internvl", "paligemma", "gemma3", "idefics3", "smolvlm", "aya-vision", "cohere2-vision"]
"""transformers has the features of all images in one array, not in a list."""
OTHER = ImageSize(32, 48)
"""The size that models of native resolution are asked for."""


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twins]:
    with one_thread():
        yield Twins(tmp_path_factory.mktemp("hf-handoff"))


def loaded(file: str) -> Tensor:
    """As vLLM loads it."""
    tensor: Tensor = torch.load(io.BytesIO(base64.b64decode(file, validate=True)), weights_only=True)
    return tensor


async def served(family: str, encoder: TorchEncoder, picture: bytes) -> tuple[Tensor, Tensor | None]:
    """Tokens [tokens, width], and (time, rows, columns) of the patches where the part has them."""
    query = "&tiles=true" if family in TILED else f"&resolution={OTHER}" if family in [*PACKED, *PIXTRAL] else ""
    async with serving(encoder, exact_pixels=True) as client:
        if family in VLLM:
            answer = await client.post(f"/embed?format=vllm{query}", content=picture, headers=PNG)
            assert answer.status_code == 200, answer.text
            part = answer.json()["data"][0]["part"]
            assert part["type"] == "image_embeds"
            embeds = part["image_embeds"]
            if isinstance(embeds, str):
                return loaded(embeds), None
            return loaded(embeds["image_embeds"]), loaded(embeds["image_grid_thw"])
        answer = await client.post(
            f"/embed?format=safetensors&project=true&prefix=true{query}", content=picture, headers=PNG
        )
        assert answer.status_code == 200, answer.text
        return read_safetensors(answer.content)["tokens"][0], None


def of_pixels(family: str, encoder: TorchEncoder, picture: bytes) -> dict[str, Any]:
    """What the whole model takes of the image. Its pixels are ours: resizing is not what is compared."""
    if family in TILED:
        image = Image.open(io.BytesIO(picture))
        views = encoder.normalise(torch.from_numpy(np.stack(encoder.cut(image, exact=True))))
        options = {"vision_aspect_ratio": "anyres_max_2"} if family == "llava-onevision" else {}
        return {"pixel_values": views[None], "image_sizes": torch.tensor([[image.height, image.width]]), **options}
    size = OTHER if family in [*PACKED, *PIXTRAL] else None
    made = inputs(family, encoder, pixels_of(encoder, picture, size, exact=True)[None])
    return {name: value for name, value in made.items() if name != "interpolate_pos_encoding"}


def of_tokens(family: str, tokens: Tensor, grid: Tensor | None) -> dict[str, Any]:
    """The same, from what its vision half gives."""
    given: Any = tokens[None] if family in STACKED else [tokens]
    of_image = {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=given)}}
    return of_image if grid is None else {**of_image, "image_grid_thw": grid[None]}


def words(family: str, model: Any, prompt: Tensor, seen: dict[str, Any]) -> tuple[list[int], Tensor]:
    """Eight ids, and the scores [vocabulary] that the first was chosen by."""
    is_image = (prompt == model.config.image_token_id).long()
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": 8,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    if family in ("gemma3", "paligemma"):
        options["token_type_ids"] = is_image
    if family in PACKED:
        options["mm_token_type_ids"] = is_image
    if family == "blip-2" and "mm_encoder_outputs" in seen:  # its own generate takes pixels alone, and then does this
        (tokens,) = seen["mm_encoder_outputs"]["image"].pooler_output
        embeds = model.get_input_embeddings()(prompt).masked_scatter(is_image.bool()[..., None], tokens)
        given = model.language_model.generate(input_ids=prompt, inputs_embeds=embeds, **options)
    else:
        given = model.generate(input_ids=prompt, **options, **seen)
    return given.sequences[0, prompt.shape[1] :].tolist(), given.scores[0][0]


@pytest.mark.parametrize("family", split([*VLLM, *OTHERS], quick=["llava", "llava-onevision", "qwen2.5-vl", "gemma3"]))
async def test_greedy_words_from_served_tokens_are_those_from_pixels(twins: Twins, family: str) -> None:
    encoder, model = twins(family)
    assert encoder.spec.language_model == ("pixtral" if family == "llava-pixtral" else model.config.model_type)
    picture = noise(3, (90, 40))
    tokens, grid = await served(family, encoder, picture)
    prompt = torch.tensor([[1, 5, *[model.config.image_token_id] * len(tokens), 7, 11]])
    if family == "glm4v":  # it has no part to say so
        grid = torch.tensor([1, *(side // PATCH for side in OTHER)])
    from_pixels, scores = words(family, model, prompt, of_pixels(family, encoder, picture))
    from_tokens, same_scores = words(family, model, prompt, of_tokens(family, tokens, grid))
    assert from_tokens == from_pixels
    assert len(from_tokens) == 8
    off = float((same_scores - scores).abs().max())
    _, blind_scores = words(family, model, prompt, of_tokens(family, torch.zeros_like(tokens), grid))
    assert off < 1e-4
    assert 1000 * off < float((blind_scores - scores).abs().max())  # they do depend on the image
