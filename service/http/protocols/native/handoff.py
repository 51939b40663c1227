"""Projected tokens as content parts of a chat, as a vLLM server with `--enable-mm-embeds` takes them.

A part is {"type": "image_embeds", "image_embeds": E} with one image's tokens [tokens, width]. E is a file in base64:
torch.save's or npy. A language model that places tokens by the image's grid takes an object of two such files instead.

What each family takes was read in vLLM 0.32 (model_executor/models, renderers/chat_utils.py).
"""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from encoders.contract.errors import OutputNotOffered
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Grid
from service.engine.values import Numbers
from service.http.json import base64_pieces
from service.http.protocols.native.negotiation import Format

_TOKENS_ALONE = {"blip-2", "internvl", "llava", "llava_next", "llava_onevision", "paligemma"}
_WITH_GRID = {"qwen2_5_vl", "qwen2_vl"}
_PIXELS_ONLY = "vLLM takes pixels alone for it: send vLLM the image itself"
_DEEPSTACK = "it also reads DeepStack features of inner layers, which are not given: send vLLM the image itself"
_REFUSED: Mapping[str, str] = {
    "aya_vision": "vLLM has no model of it since 0.25: run its language model in transformers, with format=safetensors",
    "cohere2_vision": _PIXELS_ONLY,
    "gemma3": _PIXELS_ONLY,
    "glm4v": "it needs the image's grid, and vLLM has no way in for that: send vLLM the image itself",
    "idefics3": _PIXELS_ONLY,
    "mistral3": _PIXELS_ONLY,
    "pixtral": _PIXELS_ONLY,
    "qwen3_vl": _DEEPSTACK,
    "qwen3_vl_moe": _DEEPSTACK,
    "smolvlm": _PIXELS_ONLY,
    "vipllava": "vLLM has no model of it: run its language model in transformers, with format=safetensors",
}
"""By EncoderSpec.language_model: why there is no part for it, and what to do."""


@dataclass(frozen=True)
class Parts:
    """The form of an encoder's parts.

    write: an array as a file. merges: patches a side of a token, where the language model must be told the grid of
    patches; None where it reads the tokens one after the other.
    """

    write: Callable[[Numbers], memoryview]
    merges: int | None

    def part(self, tokens: Numbers, grid: Grid) -> dict[str, object]:
        """The part of one image. tokens: [tokens, width]. grid: of the tokens."""
        embeds: object = base64_pieces(self.write(tokens))
        if self.merges is not None:
            sides = np.array([1, grid.rows * self.merges, grid.cols * self.merges], dtype=np.int64)  # time, rows, cols
            embeds = {
                "image_embeds": embeds,
                "image_grid_thw": base64.b64encode(self.write(sides)).decode("ascii"),
            }
        return {"type": "image_embeds", "image_embeds": embeds}


def parts_of(spec: EncoderSpec, *, format: Format) -> Parts:
    """How the encoder's tokens go to its language model. Raises OutputNotOffered where they cannot."""
    family = spec.language_model
    if family is None:
        reason = (
            "no language model reads its tokens: serve the checkpoint of a vision-language model, such as "
            "hf:llava-hf/llava-1.5-7b-hf, or ask for format=safetensors"
        )
    else:
        why = _REFUSED.get(family, "how vLLM takes them is not known here: send the image itself")
        reason = f"its tokens are for a {family} model: {why}"
        if family in _TOKENS_ALONE | _WITH_GRID:
            write = torch_file if format == "vllm" else npy_file
            return Parts(write, spec.projection_merges if family in _WITH_GRID else None)
    raise OutputNotOffered(encoder=spec.id, output=f"format={format}", reason=reason)


def torch_file(array: Numbers) -> memoryview:
    """What torch.save writes of the array as a tensor; torch.load reads it with weights_only."""
    import torch  # late: the service is imported without it

    raw = torch.from_numpy(array.reshape(-1).view(np.uint8))
    buffer = io.BytesIO()
    torch.save(raw.view(getattr(torch, array.dtype.name)).reshape(array.shape), buffer)
    return buffer.getbuffer()


def npy_file(array: Numbers) -> memoryview:
    """The array in NumPy's file format, which has no bfloat16."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getbuffer()
