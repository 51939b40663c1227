"""`visiontower vram`: what an encoder takes of a card, and what fits. Nothing is loaded and nothing runs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.arguments import ArgumentError, add_command, flag, image_size
from service.cli.output import show, show_json
from service.sizes import parse_bytes

if TYPE_CHECKING:
    from service.cli.tables import Card
    from service.engine.values import PlanRequest

_DTYPES = ("float32", "float16", "bfloat16", "int8")

_HELP = """\
What an encoder takes of a card, worked out from its code: no GPU is needed, no
weights are read. With --gpu: does it fit, in which batches, at which sizes.

  visiontower vram openclip:ViT-L-14-336@openai
  visiontower vram openclip:RN50@openai --resolution 224,336x448 --batch 1,64
  visiontower vram openclip:ViT-L-14@openai --gpu 24GiB --beside 6GiB
  visiontower vram demo:vit --dtype float32,bfloat16 --plot memory.png

--beside is all that others hold of the card. Of a language model that is its
weights, its KV cache, and half a GiB for its own CUDA context."""


def add(commands: Any) -> None:
    """The command and its flags."""
    vram = add_command(commands, "vram", "what an encoder takes of a card, and what fits", _HELP, run=run)
    vram.add_argument("id", metavar="ID", help="an encoder id, for example demo:vit")
    vram.add_argument("--resolution", metavar="N|HxW,...", help="sizes [native, 1.5 and 2 times native]")
    vram.add_argument("--batch", metavar="N,...", default="1,8,32", help="images in one forward [1,8,32]")
    vram.add_argument(
        "--dtype", metavar="X,...", help="float32, float16, bfloat16 [bfloat16 for cuda, float32 for cpu]"
    )
    vram.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="what it would run on [cuda]")
    vram.add_argument("--output", choices=("tokens", "pooled", "both"), default="tokens", help="[tokens]")
    vram.add_argument("--layer", metavar="K", type=int, help="tokens of block or stage K; -1 is the last")
    vram.add_argument("--gpu", metavar="SIZE", help="the card's memory: 24GiB, 24GB (10^9), 24G (GiB), bytes")
    vram.add_argument("--beside", metavar="SIZE", help="what others hold of it [0]")
    vram.add_argument("--json", action="store_true", help="for machines")
    vram.add_argument("--plot", metavar="FILE", type=Path, help="total against resolution: .png, .svg or .pdf")


def run(arguments: argparse.Namespace) -> int:
    """Print what forwards of an encoder would take, and what of it fits a card."""
    from service.cli import plots, tables
    from service.cli.forecast import forecasts

    request = _request(arguments)
    gpu = _card(arguments)
    if arguments.plot:
        with flag("--plot"):
            plots.check(arguments.plot)
    found = forecasts(arguments.id, request, device=arguments.device, gpu=gpu)
    if arguments.plot:
        with flag("--plot"):
            plots.draw(arguments.plot, found, gpu=gpu)
    if arguments.json:
        about = {"model": arguments.id, "device": arguments.device, "output": request.output, "layer": request.layer}
        show_json({**about, **tables.vram_json(found, gpu=gpu)})
    else:
        show(*(tables.vram_table(forecast, gpu=gpu) for forecast in found))
        show(tables.assumptions(found[0].overhead, gpu=gpu))
        show(*(f"\n{tables.verdict(forecast, gpu)}" for forecast in found if gpu))
    return 0


def _request(arguments: argparse.Namespace) -> "PlanRequest":
    from service.engine.values import PlanRequest

    resolutions = [image_size(word) for word in _words(arguments.resolution)]
    with flag("--batch"):
        batches = [_batch(word) for word in _words(arguments.batch)]
    dtypes: Sequence[Any] = _words(arguments.dtype) or ["bfloat16" if arguments.device == "cuda" else "float32"]
    for dtype in dtypes:
        if dtype not in _DTYPES:
            raise ArgumentError(f"--dtype: '{dtype}' is none of {', '.join(_DTYPES)}.")
    if not batches:
        raise ArgumentError("--batch: there is no number.")
    return PlanRequest(
        resolutions=resolutions, batches=batches, dtypes=dtypes, output=arguments.output, layer=arguments.layer
    )


def _words(text: str | None) -> Sequence[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def _batch(word: str) -> int:
    if not word.isdecimal() or not 1 <= int(word) <= 100_000:
        raise ValueError(f"'{word}' is not a whole number from 1 to 100,000")
    return int(word)


def _card(arguments: argparse.Namespace) -> "Card | None":
    """Of --gpu and --beside."""
    from service.cli.tables import Card

    if arguments.gpu is None:
        if arguments.beside is not None:
            raise ArgumentError("--beside is about a card: say with --gpu how large it is.")
        return None
    with flag("--gpu"):
        total = parse_bytes(arguments.gpu)
    with flag("--beside"):
        beside = parse_bytes(arguments.beside or 0)
    if beside > total:
        raise ArgumentError(f"--beside {arguments.beside} is more than --gpu {arguments.gpu}.")
    return Card(total, beside)
