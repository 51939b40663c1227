"""`visiontower verify`: served numbers against the reference library's, on the user's own pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.cli.arguments import add_command, add_placement, placement_of
from service.cli.output import on_a_line, say, show, show_json

if TYPE_CHECKING:
    from encoders.contract.encoder import Encoder
    from encoders.contract.values import Floats
    from service.cli.fidelity import Agreement, Served

_TEXTS = ("a photo of a person", "a photo of an animal", "a photo of food", "a drawing")

_HELP = """\
Run pictures twice: as the server would (its pixels, dtype and runtime), and by
the library that the encoder comes from (its own transform and forward, in
float32 on the CPU). Print how far the two are apart, picture by picture:

  pixels  the greatest difference of a pixel's value, of 255
  pooled  cosine of the two pooled vectors
  tokens  least cosine of two patch tokens
  scores  the greatest difference of an image-text cosine; = if both find the
          same text nearest, != if not

  visiontower verify demo:vit
  visiontower verify openclip:ViT-B-32@openai holiday/ cat.jpg
  visiontower verify hf:facebook/dinov2-base photos/ --compute-dtype bfloat16
  visiontower verify timm:resnet50 cat.jpg --bound 0.999 --json

Both models are in memory at once. Exit status: 0 all within the bound, 1 some
picture is not or could not be read, 2 not done and why."""


def add(commands: Any) -> None:
    """The command and its flags."""
    verify = add_command(commands, "verify", "served numbers against the reference library's", _HELP, run=run)
    verify.set_defaults(gathers=("named", str))
    verify.usage = "visiontower verify ID [PHOTO ...] [flags]"
    verify.add_argument(  # in one, so that flags may stand before the id
        "named",
        metavar="ID, PHOTO",
        nargs="+",
        help="an encoder id, for example demo:vit; then image files or folders [a drawing of ours]",
    )
    verify.add_argument(
        "--text", metavar="TEXT", action="append", dest="texts", help="score this text; several [four of ours]"
    )
    verify.add_argument(
        "--bound",
        metavar="COSINE",
        type=_cosine,
        default=0.99,
        help="least cosine of pooled vectors and tokens; scores may differ by 1 - COSINE [0.99]",
    )
    verify.add_argument(
        "--exact-pixels", action="store_true", help="serve with pixels as the model's own transforms make them"
    )
    verify.add_argument("--json", action="store_true", help="for machines")
    add_placement(verify)


def run(arguments: argparse.Namespace) -> int:
    """Print the comparison. 1 if it is below the bound anywhere."""
    import encoders
    from encoders.adapters import registry
    from encoders.contract.errors import VisiontowerError
    from encoders.images.decode import decode
    from service.bulk.sources.files import find_images
    from service.cli.fidelity import agreement

    encoder_id, *paths = arguments.named
    photos: Sequence[Path | None] = find_images(map(Path, paths)) if paths else [None]
    placement = placement_of(arguments)
    say(f"Loading {encoder_id} as it is served.")
    encoder = encoders.load(encoder_id, placement)
    spec = encoder.spec
    say(f"Loading {encoder_id} as its own library runs it.")
    reference = registry.reference(encoder_id)
    texts = tuple(arguments.texts or _TEXTS) if spec.has_text else ()
    served_texts, reference_texts = (_embedded(encoder, texts), reference.embed_texts(texts)) if texts else (None, None)
    agreements: list[Agreement] = []
    failures: dict[str, str] = {}
    for photo in photos:
        name = "a drawing" if photo is None else photo.name  # for the table; failures are told by their path
        try:
            image_bytes = _drawing() if photo is None else photo.read_bytes()
            agreements.append(
                agreement(
                    name,
                    _served(encoder, image_bytes, exact=arguments.exact_pixels),
                    reference.encode(decode(image_bytes)),
                    preprocessing=spec.preprocessing,
                    served_texts=served_texts,
                    reference_texts=reference_texts,
                )
            )
        except (VisiontowerError, OSError, ValueError) as error:
            failures[str(photo or name)] = str(error)
            say(f"{on_a_line(str(photo or name))}: {error}")
    about = f"{spec.id}: {spec.runtime} {spec.dtype} on {spec.device}, against {reference.library} in float32"
    within = not failures and all(each.holds(arguments.bound) for each in agreements)
    if arguments.json:
        show_json(
            {
                "model": spec.id,
                "revision": spec.revision,
                "served": {"runtime": spec.runtime, "dtype": spec.dtype, "device": spec.device},
                "reference": reference.library,
                "texts": list(texts),
                "bound": arguments.bound,
                "within_bound": within,
                "photos": [vars(each) for each in agreements],
                "errors": failures,
            }
        )
    elif agreements:
        from service.cli.tables import fidelity_table

        show(about, fidelity_table(agreements, bound=arguments.bound))
    return 0 if within else 1


def _embedded(encoder: "Encoder", texts: Sequence[str]) -> "Floats":
    return encoder.encode_text(encoder.tokenize(texts).ids)


def _served(encoder: "Encoder", image_bytes: bytes, *, exact: bool) -> "Served":
    from encoders.contract.values import TokenKind
    from encoders.images.pixels import pixels_of
    from service.cli.fidelity import Served

    pixels = pixels_of(encoder, image_bytes, exact=exact)
    both = encoder.spec.outputs(pooled=True, tokens=TokenKind.HIDDEN)
    return Served(pixels, encoder.encode(pixels[None], both).row(0))


def _drawing() -> bytes:
    """A JPEG of 640 x 480 that is always there: colour gradients under discs and stripes."""
    import io

    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:480, 0:640].astype(np.float32)
    gradients = np.stack([x / 640, y / 480, 1 - x / 640], axis=-1)
    stripes = 0.5 + 0.5 * np.sin((x + 2 * y) / 9)[..., None]
    discs = ((x % 160 - 80) ** 2 + (y % 160 - 80) ** 2 < 50**2)[..., None]
    values = np.where(discs, stripes * (1 - gradients), gradients)
    out = io.BytesIO()
    Image.fromarray((255 * values).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def _cosine(text: str) -> float:
    value = float(text)
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError("a cosine is between -1 and 1")
    return value
