"""The flags that commands share, and how a wrong one is told."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from encoders.contract.values import ImageSize
from service.cli import event_loop
from service.settings import Settings
from service.sizes import parse_image_size

if TYPE_CHECKING:
    from encoders.contract.encoder import Placement

_WIDTH = 80


class ArgumentError(Exception):
    """Arguments that do not go together, or name something that is not there."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Help for a terminal of 80 columns."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_WIDTH, max_help_position=26)


def add_command(
    commands: Any, name: str, summary: str, text: str, *, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A command with its help; `run` gives the exit status.

    Its default `gathers`, if it is set: the name and the type of the list whose values flags may stand between.
    """
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=Help, allow_abbrev=False
    )
    command.set_defaults(run=run)
    return command


def add_model(command: argparse.ArgumentParser) -> None:
    """--model."""
    command.add_argument("--model", metavar="ID", default="demo:vit", help="encoder id [demo:vit]")


def add_pixels(command: argparse.ArgumentParser) -> None:
    """--resolution and --exact-pixels."""
    command.add_argument("--resolution", metavar="N|HxW", help="run the encoder at this size [native]")
    command.add_argument(
        "--exact-pixels",
        action="store_true",
        help="decode and resize to the pixel as the model's own transforms do; slower",
    )


def add_placement(command: argparse.ArgumentParser, *, runtime: str | None = "torch") -> None:
    """--device, --compute-dtype, --calibration and --runtime; its default is None where something else has it."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto]")
    command.add_argument(
        "--compute-dtype",
        choices=("auto", "float32", "float16", "bfloat16", "int8"),
        metavar="DTYPE",
        default="auto",
        help="what the encoder computes in: auto, float32, float16, bfloat16, or int8, faster on CPUs, less exact "
        "[auto]",
    )
    command.add_argument(
        "--calibration", type=Path, metavar="DIR", help="for int8: pictures like those to come [it draws some]"
    )
    command.add_argument(
        "--runtime",
        choices=("torch", "openvino"),
        default=runtime,
        help=f"what runs it; openvino: faster on CPUs, needs the extra of that name [{runtime or 'as embed did'}]",
    )


def refuse_without_ray(arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """For a command that runs on this machine alone. Raises ArgumentError if one of these flags was given."""
    for name in names:
        if getattr(arguments, name) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')} is for a cluster: add --ray.")


def placement_of(arguments: argparse.Namespace) -> "Placement":
    """Of the flags of add_placement. Raises ArgumentError if this machine does not have what they ask for."""
    from encoders.runtime.device import resolve  # imports torch

    try:
        return resolve(arguments.device, arguments.compute_dtype, arguments.runtime, calibration=arguments.calibration)
    except ValueError as error:
        raise ArgumentError(str(error)) from error


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def read_image(path: Path) -> bytes:
    """Before an encoder is loaded, which takes seconds. Raises ArgumentError."""
    try:
        return path.read_bytes() if path.is_file() else event_loop.run(_read_pipe(path))
    except OSError as error:
        raise ArgumentError(f"{path}: {error.strerror}.") from error


async def _read_pipe(path: Path) -> bytes:
    """Whose writer may never come: Python can lose a Ctrl-C just before it reads, and the event loop does not."""
    from service.bulk.reading import on_a_thread

    return await on_a_thread(path.read_bytes)


def settings_of(arguments: argparse.Namespace, **more: Any) -> Settings:
    """An engine's settings for one command: what its flags say, and for the rest the environment. No logs."""
    return Settings(
        model=(arguments.model,),
        device=arguments.device,
        dtype=arguments.compute_dtype,
        calibration=arguments.calibration,
        runtime=arguments.runtime,
        exact_pixels=arguments.exact_pixels,
        **more,
    )


def resolution_of(arguments: argparse.Namespace) -> ImageSize | None:
    """Of --resolution; None if it was not given. Raises ArgumentError."""
    if arguments.resolution is None:
        return None
    return image_size(arguments.resolution)


def image_size(word: str) -> ImageSize:
    """One value of --resolution. Raises ArgumentError."""
    try:
        return parse_image_size(word)
    except ValueError as error:
        raise ArgumentError(f"--resolution: '{word}' is no size: {error}.") from error


@contextmanager
def flag(name: str) -> Iterator[None]:
    """A ValueError inside is said of the flag. Raises ArgumentError."""
    try:
        yield
    except ValueError as error:
        raise ArgumentError(f"{name}: {str(error).rstrip('.')}.") from error
