"""`visiontower serve`: encoders over HTTP. Every setting is a flag."""

import argparse
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from service.cli.arguments import add_command, refuse_without_ray
from service.cli.replicas import REPLICA_FLAGS, add_replicas, services_of
from service.run.exits import end_at_once_on_signals
from service.settings import Settings
from service.telemetry.tracing import propagator

_HELP = """\
Serve encoders over HTTP. Without --model: the three demo encoders.

  visiontower serve
  visiontower serve --model openclip:ViT-L-14-336@openai --model demo:vit
  visiontower serve --device cuda --dtype bfloat16 --port 9000
  visiontower serve --ray local --replicas 2        # a cluster here, to try it
  visiontower serve --ray --replicas 1-8            # on the cluster of machines

Every flag is a variable too: --max-batch 8 is VISIONTOWER_MAX_BATCH=8. Flags
win. List flags are given once an item, list variables hold commas."""


def add(commands: Any) -> None:
    """The command and its flags."""
    serve = add_command(commands, "serve", "serve encoders over HTTP", _HELP, run=run)
    serve.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help="serve on a cluster of Ray: auto (the one that this machine is of), local (a new one here), HOST:PORT or "
        "ray://HOST:PORT; without an address auto",
    )
    add_replicas(serve)
    add_settings(serve)


def add_settings(command: argparse.ArgumentParser) -> None:
    """A flag for every setting."""
    for name, field in Settings.model_fields.items():
        command.add_argument(setting_flag(name), dest=f"setting_{name}", **_flag_options(field))


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    settings = settings_of(arguments)
    propagator()  # FastAPI looks too, and raises what nobody understands
    if arguments.ray is not None:
        from service.run.ray.serving import serve as serve_on_ray

        serve_on_ray(
            services_of(arguments, settings),
            address=arguments.ray,
            host=settings.host,
            port=settings.port,
            log_level=settings.log_level,
        )
        return 0
    refuse_without_ray(arguments, REPLICA_FLAGS)
    end_at_once_on_signals()  # the imports that follow take seconds
    from service.run.server import serve

    serve(settings)
    return 0


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings by the command's flags and the environment. Raises ValidationError or SettingsError."""
    given = {
        name: value for name in Settings.model_fields if (value := getattr(arguments, f"setting_{name}")) is not None
    }
    return Settings(**given)


def setting_flag(setting: str) -> str:
    """--max-batch of max_batch."""
    return f"--{setting.replace('_', '-')}"


def _flag_options(field: FieldInfo) -> dict[str, Any]:
    """add_argument's keywords for a setting. No default: what is not given is left to the environment."""
    default = ", ".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = "none" if default in ("", None) else default
    options: dict[str, Any] = {"default": None, "help": f"{field.description} [{shown}]".replace("%", "%%")}
    kind = field.annotation
    if kind is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if get_origin(kind) is tuple:
        return {**options, "action": "append", "metavar": "X"}
    if get_origin(kind) is Literal:
        return {**options, "choices": get_args(kind)}
    return {**options, "metavar": "N" if kind in (int, float, int | None) else "X"}
