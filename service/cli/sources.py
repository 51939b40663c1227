"""The flags of `visiontower embed` that say what is embedded."""

import argparse
from typing import TYPE_CHECKING

from service.cli.output import say

if TYPE_CHECKING:
    from service.bulk.items import Inputs


def add_source_flags(command: argparse.ArgumentParser) -> None:
    """PATH..., --list, --texts, and the columns of tables and tars."""
    command.set_defaults(gathers=("paths", str))
    command.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="images, tables, tars, folders of them, globs; s3://, gs://, https:// too",
    )
    command.add_argument(
        "--list",
        metavar="FILE",
        action="append",
        default=[],
        help="a path or URL of an image in each line; - is standard input",
    )
    command.add_argument(
        "--texts", metavar="FILE", action="append", default=[], help="a text in each line; - is standard input"
    )
    command.add_argument(
        "--image-column", metavar="NAME", help="column of bytes, paths or URLs; a tar's suffix [found]"
    )
    command.add_argument("--text-column", metavar="NAME", help="embed this column's texts, no images")
    command.add_argument("--id-column", metavar="NAME", help="column that names the rows [path, or FILE#ROW]")
    command.add_argument("--columns", metavar="A,B", default="", help="columns that are carried into the result")
    command.add_argument(
        "--trust-paths", action="store_true", help="let a table's paths lead out of its folder, into buckets too"
    )


def inputs_from(arguments: argparse.Namespace) -> "Inputs":
    """What the flags name. Raises BulkError."""
    from service.bulk.sources import Options, inputs_of

    names = (name.strip() for name in arguments.columns.split(","))
    options = Options(
        image=arguments.image_column,
        text=arguments.text_column,
        id=arguments.id_column,
        carried=[name for name in dict.fromkeys(names) if name],
        trust_paths=arguments.trust_paths,
    )
    return inputs_of(arguments.paths, options, lists=arguments.list, texts=arguments.texts, warn=say)
