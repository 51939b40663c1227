"""Proof that a vLLM server answers from our tokens as it does from the pixels: greedily, the same ids.

Start vLLM on a folder with a vision-language checkpoint that format=vllm is for (docs/protocols.md has the families):

    vllm serve DIR --port 8001 --enable-mm-embeds --dtype float32
    python -m benchmarks.vllm --url http://127.0.0.1:8001 --model DIR

visiontower runs DIR's vision half in this process. Each picture is asked about twice: as a PNG, and as the part that
/embed?format=vllm gives. Pictures have the model's own size, so nothing is resized on either side. The exit status is 1
if any answer differs.
"""

import argparse
import asyncio
import base64
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image

from service.engine.backend import real_backend
from service.http.app import create_app
from service.settings import Settings

_ASKED = "What is in this picture?"
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Reply:
    """What a chat answered: ids of its tokens, how many tokens it read, and the log-probability of its first."""

    ids: tuple[int, ...]
    read: int
    logprob: float


def picture(seed: int, size: tuple[int, int]) -> bytes:
    """A PNG of (height, width) pixels, coarse patches of random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def part_of_pixels(png: bytes) -> dict[str, Any]:
    """The content part of an image as such."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(png).decode()}"}}


def chat(model: str, part: dict[str, Any], *, words: int) -> dict[str, Any]:
    """The body of a greedy request about one image, whose answer names its tokens by their ids."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": _ASKED}]}],
        "temperature": 0,
        "max_tokens": words,
        "ignore_eos": True,
        "logprobs": True,
        "return_tokens_as_token_ids": True,
    }


def reply_of(answer: dict[str, Any]) -> Reply:
    """Read a chat's answer. Its tokens are `token_id:19`."""
    tokens = answer["choices"][0]["logprobs"]["content"]
    ids = tuple(int(token["token"].removeprefix("token_id:")) for token in tokens)
    return Reply(ids, answer["usage"]["prompt_tokens"], tokens[0]["logprob"])


def verdict(from_pixels: Sequence[Reply], from_tokens: Sequence[Reply]) -> str | None:
    """Why nothing is proved; None if the ids and the number of tokens read are the same for every picture."""
    for number, (pixels, tokens) in enumerate(zip(from_pixels, from_tokens, strict=True)):
        if tokens.read != pixels.read:
            return f"picture {number}: vLLM read {tokens.read} tokens in place of {pixels.read}"
        if tokens.ids != pixels.ids:
            return f"picture {number}: {list(tokens.ids)} in place of {list(pixels.ids)}"
    if len({reply.logprob for reply in from_pixels}) == 1:
        return "the answers do not depend on the picture"
    return None


async def _parts(folder: str, *, pictures: int, dtype: str, tiles: bool) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Pictures of the model's own size, and the parts that /embed makes of them."""
    settings = Settings(model=(f"hf:{folder}",), exact_pixels=True, dtype="float32")
    app = create_app(settings, backend=real_backend(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service", timeout=_TIMEOUT_S) as client,
    ):
        height, width = (await client.get("/models")).json()["data"][0]["image_size"]
        pngs = [picture(seed, (height, width)) for seed in range(pictures)]
        answer = await client.post(
            f"/embed?format=vllm&dtype={dtype}&tiles={str(tiles).lower()}",
            files=[("image", (f"{number}.png", png, "image/png")) for number, png in enumerate(pngs)],
        )
    if answer.status_code != 200:
        raise SystemExit(f"visiontower: {answer.json().get('detail', answer.text)}")
    return pngs, [entry["part"] for entry in answer.json()["data"]]


async def _asked(client: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    answer = await client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        hint = " Start it with --enable-mm-embeds." if "mm-embeds" in answer.text else ""
        raise SystemExit(f"vLLM answered {answer.status_code}: {answer.text[:500]}{hint}")
    return reply_of(answer.json())


async def _run(arguments: argparse.Namespace) -> str | None:
    async with httpx.AsyncClient(base_url=arguments.url, timeout=_TIMEOUT_S) as client:
        try:
            listed = await client.get("/v1/models")
            model = listed.raise_for_status().json()["data"][0]["id"]
        except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
            raise SystemExit(
                f"No vLLM server answers at {arguments.url} ({error or type(error).__name__}). Start one: "
                f"vllm serve {arguments.model} --port 8001 --enable-mm-embeds --dtype float32"
            ) from None
        pngs, parts = await _parts(
            arguments.model, pictures=arguments.pictures, dtype=arguments.dtype, tiles=arguments.tiles
        )
        both: tuple[list[Reply], list[Reply]] = ([], [])
        for png, part in zip(pngs, parts, strict=True):
            for asked, replies in zip((part_of_pixels(png), part), both, strict=True):
                replies.append(await _asked(client, chat(model, asked, words=arguments.words)))
            pixels, tokens = both[0][-1], both[1][-1]
            print(f"pixels {list(pixels.ids)} {pixels.logprob:.4f}, read {pixels.read}")
            print(f"tokens {list(tokens.ids)} {tokens.logprob:.4f}, read {tokens.read}")
    return verdict(*both)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vllm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8001", help="of the vLLM server (default: %(default)s)")
    parser.add_argument("--model", required=True, metavar="DIR", help="the folder of the checkpoint that vLLM serves")
    parser.add_argument("--pictures", type=int, default=4, help="how many are asked about (default: %(default)s)")
    parser.add_argument("--words", type=int, default=16, help="tokens of each answer (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"), help="of the parts")
    parser.add_argument("--tiles", action="store_true", help="for LLaVA-NeXT and OneVision, which read images in tiles")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the proof; 0 if it holds."""
    why_not = asyncio.run(_run(_parser().parse_args(arguments)))
    print("The ids are the same." if why_not is None else f"Not proved: {why_not}.")
    return int(why_not is not None)


if __name__ == "__main__":
    sys.exit(main())
