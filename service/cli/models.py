"""`visiontower models`: the ids that can be served; one encoder's spec."""

import argparse
from typing import Any

from service.cli.arguments import add_command, add_placement, placement_of
from service.cli.output import show, show_json

_HELP = """\
Without ID: what can be served, how ids are written, and three encoders to
begin with. With ID: load that encoder and show its spec and its tokens by
resolution.

  visiontower models
  visiontower models demo:vit
  visiontower models --scheme openclip | grep ViT-B
  visiontower models openclip:RN101@random --json"""


def add(commands: Any) -> None:
    """The command and its flags."""
    models = add_command(commands, "models", "what can be served; one encoder's spec", _HELP, run=run)
    which = models.add_mutually_exclusive_group()
    which.add_argument("id", metavar="ID", nargs="?", help="an encoder id, for example demo:vit")
    which.add_argument("--scheme", metavar="NAME", help="every id this scheme knows, one a line")
    models.add_argument("--json", action="store_true", help="for machines")
    add_placement(models)


def run(arguments: argparse.Namespace) -> int:
    """Print the schemes, the ids of one scheme, or one encoder's spec."""
    import encoders
    from encoders.adapters.catalog import RECOMMENDED, catalog, listed
    from service.cli import tables
    from service.spec_json import spec_json

    if arguments.scheme:
        ids = listed(arguments.scheme)
        if arguments.json:
            show_json(ids)
        else:
            print("\n".join(ids))
        return 0
    if arguments.id is None:
        schemes = catalog()
        if arguments.json:
            show_json([vars(scheme) for scheme in schemes])
        else:
            show(tables.catalog_table(schemes), tables.recommended_text(RECOMMENDED))
        return 0
    placement = placement_of(arguments)
    spec = encoders.load(arguments.id, placement).spec
    if arguments.json:
        by_resolution = [
            {"resolution": row.size, "grid": row.grid, "tokens": row.tokens} for row in tables.at_resolutions(spec)
        ]
        show_json({**spec_json(spec), "tokens_by_resolution": by_resolution})
    else:
        show(tables.spec_table(spec_json(spec)), tables.resolutions_table(spec))
    return 0
