"""The proof against vLLM asks what it should and believes no answer that differs. Without vLLM."""

import base64
import io
import re
import socket
from dataclasses import replace

import pytest
from PIL import Image

from benchmarks.vllm import Reply, chat, main, part_of_pixels, picture, reply_of, verdict

PIXELS = [Reply((19, 27, 264), 43, -4.25), Reply((19, 5, 5), 43, -4.1)]


def test_a_chat_is_greedy_and_holds_the_part_as_it_is() -> None:
    part = {"type": "image_embeds", "image_embeds": "aGk="}
    body = chat("llava", part, words=8)
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("llava", 0, 8)
    (message,) = body["messages"]
    assert message["content"][0] == part
    assert message["content"][1]["type"] == "text"


def test_the_same_chat_about_pixels_holds_the_picture() -> None:
    png = picture(1, (56, 42))
    part = part_of_pixels(png)
    address = part["image_url"]["url"]
    assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == png
    assert Image.open(io.BytesIO(png)).size == (42, 56)
    assert picture(2, (56, 42)) != png


def test_an_answer_is_read_by_its_ids() -> None:
    content = [{"token": "token_id:19", "logprob": -4.25}, {"token": "token_id:27", "logprob": -1.0}]
    answer = {"choices": [{"logprobs": {"content": content}}], "usage": {"prompt_tokens": 43}}
    assert reply_of(answer) == Reply((19, 27), 43, -4.25)


def test_equal_ids_are_a_proof() -> None:
    assert verdict(PIXELS, [replace(reply, logprob=reply.logprob + 1e-4) for reply in PIXELS]) is None


@pytest.mark.parametrize(
    ("pixels", "tokens", "why"),
    [
        (PIXELS, [PIXELS[0], replace(PIXELS[1], ids=(19, 5, 6))], r"picture 1: \[19, 5, 6\] in place of \[19, 5, 5\]"),
        (PIXELS, [replace(PIXELS[0], read=35), PIXELS[1]], "picture 0: vLLM read 35 tokens in place of 43"),
        ([PIXELS[0], PIXELS[0]], [PIXELS[0], PIXELS[0]], "do not depend on the picture"),
    ],
)
def test_anything_else_is_none(pixels: list[Reply], tokens: list[Reply], why: str) -> None:
    assert re.search(why, verdict(pixels, tokens) or "")


def test_without_a_server_it_says_how_to_start_one() -> None:
    with socket.socket() as bound:  # it listens to nobody
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(SystemExit, match=r"No vLLM server answers at .* vllm serve DIR .*--enable-mm-embeds"):
            main(["--url", url, "--model", "DIR"])


def test_help_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "vllm serve DIR" in said
    assert "--model DIR" in said
