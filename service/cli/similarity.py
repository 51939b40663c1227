"""`visiontower similarity`: one image against texts."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli import event_loop
from service.cli.arguments import (
    add_command,
    add_model,
    add_pixels,
    add_placement,
    read_image,
    resolution_of,
    settings_of,
)
from service.cli.output import beginning, show, show_json

if TYPE_CHECKING:
    from service.engine.values import SimilarityRequest, SimilarityResult
    from service.settings import Settings

_HELP = """\
Score an image against texts: cosine, and probability as the model was trained
(over all texts for CLIP, each text alone for SigLIP).

  visiontower similarity cat.jpg "a cat" "a dog"
  visiontower similarity cat.jpg cat dog --template "a photo of a {}" --json"""


def add(commands: Any) -> None:
    """The command and its flags."""
    similarity = add_command(commands, "similarity", "score an image against texts", _HELP, run=run)
    similarity.set_defaults(gathers=("texts", str))
    similarity.add_argument("image", metavar="IMAGE", type=Path, help="an image file")
    similarity.add_argument("texts", metavar="TEXT", nargs="+", help="one or more texts")
    add_model(similarity)
    similarity.add_argument(
        "--template",
        metavar="TEXT",
        action="append",
        dest="templates",
        help="wraps each text at {}; several: their mean",
    )
    similarity.add_argument(
        "--no-truncate", action="store_true", help="refuse texts past the context length instead of cutting them"
    )
    add_pixels(similarity)
    similarity.add_argument("--json", action="store_true", help="for machines; texts in the order given")
    add_placement(similarity)


def run(arguments: argparse.Namespace) -> int:
    """Print the scores."""
    from encoders.contract.errors import VisiontowerError
    from service.cli.tables import Score, scores_table
    from service.engine.values import SimilarityRequest

    request = SimilarityRequest(
        [read_image(arguments.image)],
        arguments.texts,
        templates=arguments.templates or ("{}",),
        resolution=resolution_of(arguments),
        truncate=not arguments.no_truncate,
    )
    result = event_loop.run(_score(request, settings_of(arguments)))
    (scores,) = result.items
    if isinstance(scores, VisiontowerError):
        raise scores
    rows = [
        Score(text, float(cosine), float(logit), float(probability))
        for text, cosine, logit, probability in zip(
            request.texts, scores.cosine, scores.logits, scores.probabilities, strict=True
        )
    ]
    if arguments.json:
        about = {"model": result.model, "image": str(arguments.image), **vars(result.scoring)}
        show_json({**about, "truncated": list(result.truncated), "scores": [vars(row) for row in rows]})
    else:
        show(scores_table(rows, title=f"{arguments.image}  {result.model}  {result.scoring.activation}"))
        for index in result.truncated:
            show(f"Cut at the model's context length, its end does not count: {beginning(request.texts[index])}")
    return 0


async def _score(request: "SimilarityRequest", settings: "Settings") -> "SimilarityResult":
    from service.engine.engine import Engine

    async with Engine(settings) as engine:
        return await engine.similarity(request)
