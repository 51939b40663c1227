"""The command line: flags in, a command's function called, errors as one line. Imports nothing heavy until it must.

Exit status: 0 done, 1 done but some files failed, 2 not done and why, 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from encoders.contract.errors import VisiontowerError
from service.bulk.resume import BulkError
from service.settings import PREFIX, Settings

_WIDTH = 80

_TOP = """\
Images in; patch tokens, embeddings and image-text scores out.

  visiontower serve                               # demo encoders, port 8000
  visiontower embed photos/ -o photos.parquet     # a folder to a table
  visiontower similarity cat.jpg "a cat" "a dog"  # which text fits
  visiontower models                              # what can be served
  visiontower vram demo:vit                       # what it takes of a GPU"""

_SERVE = """\
Serve encoders over HTTP. Without --model: the three demo encoders.

  visiontower serve
  visiontower serve --model openclip:ViT-L-14-336@openai --model demo:vit
  visiontower serve --device cuda --dtype bfloat16 --port 9000

Every flag is a variable too: --max-batch 8 is VISIONTOWER_MAX_BATCH=8. Flags
win. List flags are given once an item, list variables hold commas."""

_EMBED = """\
Encode files, or all images below folders, into one file. Its suffix chooses:

  .parquet      columns path, grid_rows, grid_cols, tokens, pooled
  .safetensors  tensors tokens, pooled; metadata paths, a JSON list
  .npy          one array; OUT.json says which file each row is

  visiontower embed photos/ -o photos.parquet
  visiontower embed a.png b.png -o tokens.npy --output tokens --dtype float16
  visiontower embed photos/ -o llava.safetensors --output tokens --layer -2 \\
      --model openclip:ViT-L-14-336@openai --resolution 336

Rows are in the order of the files: as given, folders sorted. A file that
cannot be encoded has no row; it is listed at the end and in OUT.errors.jsonl.
Interrupted or killed, the same command continues from OUT.parts and gives what
an uninterrupted run gives; files that failed before are not tried again."""

_SIMILARITY = """\
Score an image against texts: cosine, and probability as the model was trained
(over all texts for CLIP, each text alone for SigLIP).

  visiontower similarity cat.jpg "a cat" "a dog"
  visiontower similarity cat.jpg cat dog --template "a photo of a {}" --json"""

_MODELS = """\
Without ID: what can be served and how ids are written. With ID: load that
encoder and show its spec and its tokens by resolution.

  visiontower models
  visiontower models demo:vit
  visiontower models --scheme openclip | grep ViT-B
  visiontower models openclip:RN101@random --json"""

_VRAM = """\
What an encoder takes of a card, worked out from its code: no GPU is needed, no
weights are read. With --gpu: does it fit, in which batches, at which sizes.

  visiontower vram openclip:ViT-L-14-336@openai
  visiontower vram openclip:RN50@openai --resolution 224,336x448 --batch 1,64
  visiontower vram openclip:ViT-L-14@openai --gpu 24GiB --beside 6GiB
  visiontower vram demo:vit --dtype float32,bfloat16 --plot memory.png

--beside is all that others hold of the card. Of a language model that is its
weights, its KV cache, and half a GiB for its own CUDA context."""


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH, max_help_position=26)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
    except (VisiontowerError, BulkError, SettingsError) as error:
        return _failed(arguments.command, str(error))
    except ValidationError as error:
        return _failed(arguments.command, "; ".join(_problem(each) for each in error.errors()))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `visiontower models --scheme timm | head`
        sys.stdout = None  # nothing is left to flush it into
        return 0
    return status


def parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    top = argparse.ArgumentParser("visiontower", description=_TOP, formatter_class=_Help, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"visiontower {version('visiontower')}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_serve(commands)
    _add_embed(commands)
    _add_similarity(commands)
    _add_models(commands)
    _add_vram(commands)
    return top


def _add_serve(commands: Any) -> None:
    serve = _command(commands, "serve", "serve encoders over HTTP", _SERVE, run=_serve)
    for name, field in Settings.model_fields.items():
        serve.add_argument(_flag(name), dest=f"setting_{name}", **_flag_options(field))


def _add_embed(commands: Any) -> None:
    embed = _command(commands, "embed", "files or folders to a file of embeddings", _EMBED, run=_embed)
    embed.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="image files, or folders of them")
    embed.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="file to write")
    _add_model(embed)
    embed.add_argument("--output", choices=("pooled", "tokens", "both"), default="pooled", help="[pooled]")
    embed.add_argument("--layer", metavar="K", type=int, help="tokens of block or stage K; -1 is the last")
    embed.add_argument("--resolution", metavar="N|HxW", help="run the encoder at this size [native]")
    embed.add_argument("--prefix", action="store_true", help="keep class and register tokens")
    embed.add_argument("--project", action="store_true", help="tokens through the model's own projection")
    embed.add_argument("--normalize", action="store_true", help="L2-normalise each vector")
    embed.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the file [float32]")
    embed.add_argument("--batch-size", metavar="N", type=_positive, default=32, help="images in one forward [32]")
    embed.add_argument("--workers", metavar="N", type=_positive, help="decoding threads [one a core, at most 16]")
    embed.add_argument("--restart", action="store_true", help="drop what an earlier run left, write OUT anew")
    _add_placement(embed)


def _add_similarity(commands: Any) -> None:
    similarity = _command(commands, "similarity", "score an image against texts", _SIMILARITY, run=_similarity)
    similarity.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    similarity.add_argument("texts", metavar="TEXT", nargs="+", help="one or more texts")
    _add_model(similarity)
    similarity.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        dest="templates",
        help="wraps each text at {}; several: their mean",
    )
    similarity.add_argument("--resolution", metavar="N|HxW", help="run the encoder at this size [native]")
    similarity.add_argument("--json", action="store_true", help="for machines; texts in the order given")
    _add_placement(similarity)


def _add_models(commands: Any) -> None:
    models = _command(commands, "models", "what can be served; one encoder's spec", _MODELS, run=_models)
    which = models.add_mutually_exclusive_group()
    which.add_argument("id", metavar="ID", nargs="?", help="an encoder id, for example demo:vit")
    which.add_argument("--scheme", metavar="NAME", help="every id this scheme knows, one a line")
    models.add_argument("--json", action="store_true", help="for machines")
    _add_placement(models)


def _add_vram(commands: Any) -> None:
    vram = _command(commands, "vram", "what an encoder takes of a card, and what fits", _VRAM, run=_vram)
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


def _command(commands: Any, name: str, summary: str, text: str, *, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=_Help, allow_abbrev=False
    )
    command.set_defaults(run=run)
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="ID", default="demo:vit", help="encoder id [demo:vit]")


def _add_placement(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    command.add_argument(
        "--compute-dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="what the encoder computes in [auto]",
    )
    command.add_argument(
        "--runtime",
        choices=("torch", "openvino"),
        default="torch",
        help="what runs it; openvino: faster on CPUs, needs the extra of that name [torch]",
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def _flag_options(field: FieldInfo) -> dict[str, Any]:
    """add_argument's keywords for a setting. No default: what is not given is left to the environment."""
    default = ", ".join(field.default) or "none" if isinstance(field.default, tuple) else field.default
    options: dict[str, Any] = {"default": None, "help": f"{field.description} [{default}]".replace("%", "%%")}
    kind = field.annotation
    if kind is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {**options, "action": "append", "metavar": "X"}
    if get_origin(kind) is Literal:
        return {**options, "choices": get_args(kind)}
    return {**options, "metavar": "N" if kind in (int, float) else "X"}


def _problem(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    where = f"{_flag(name)} ({PREFIX}{name.upper()}): " if name else ""
    return where + str(error["msg"])


def _failed(command: str, message: str) -> int:
    print(f"visiontower {command}: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _serve(arguments: argparse.Namespace) -> int:
    given = {
        name: value for name in Settings.model_fields if (value := getattr(arguments, f"setting_{name}")) is not None
    }
    settings = Settings(**given)
    from service.run.server import serve

    serve(settings)
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    from service.cli.commands import embed

    return embed(arguments)


def _similarity(arguments: argparse.Namespace) -> int:
    from service.cli.commands import similarity

    return similarity(arguments)


def _models(arguments: argparse.Namespace) -> int:
    from service.cli.commands import models

    return models(arguments)


def _vram(arguments: argparse.Namespace) -> int:
    from service.cli.commands import vram

    return vram(arguments)
