"""The catalog of ids: each scheme's form, examples, and on request all names its library knows. Loads no weights."""

from collections.abc import Callable
from dataclasses import dataclass

from encoders.adapters.registry import schemes
from encoders.contract.errors import EncoderIdError


@dataclass(frozen=True)
class Scheme:
    """One scheme as a reader needs it. origin: the library behind it, or the plug-in's distribution."""

    name: str
    form: str
    about: str
    examples: tuple[str, ...]
    origin: str = "visiontower"


@dataclass(frozen=True)
class Recommended:
    """An encoder to begin with.

    purpose: what it is good for. download_bytes: of its weights, which the first start fetches.
    """

    id: str
    purpose: str
    download_bytes: int


DEMO = {
    "demo:vit": "a small vision transformer",
    "demo:resnet": "a small CLIP ResNet with attention pooling",
    "demo:convnext": "a small ConvNeXt",
}
"""The encoders in the package: small CLIPs of a drawn world; no network."""

RECOMMENDED = (
    Recommended(
        "openclip:RN50@openai",
        "a small CNN, to compare with vision transformers",
        408_291_932,  # of timm/resnet50_clip.openai; public code that fetches it checks this size and the SHA-256
    ),
    Recommended(
        "openclip:ViT-B-32@laion2b_s34b_b79k",
        "a fast vision transformer, for search and labels; 7x7 patches",
        605_143_316,  # of laion/CLIP-ViT-B-32-laion2B-s34B-b79K; found in the same way
    ),
    Recommended(
        "openclip:ViT-L-14-336@openai",
        "a large vision transformer, for fine heat maps; 24x24 patches",
        1_711_776_772,  # no source found: 427,944,193 parameters of 4 bytes, as the other two files have them
    ),
)
"""Encoders that know photographs, small to large. Sizes are of open_clip_model.safetensors on the hub."""

_KNOWN = (
    Scheme("demo", "demo:NAME", "in the package, no network", tuple(DEMO)),
    Scheme(
        "openclip",
        "openclip:ARCH@TAG",
        "open_clip's CLIP, SigLIP, EVA, MobileCLIP, ConvNeXt and ResNet; TAG is a pretrained tag, a file, or random; "
        "?preprocess=TAG and ?quick_gelu=true behind it say how a file was trained",
        (
            "openclip:ViT-L-14-336@openai",
            "openclip:RN50@openai",
            "openclip:convnext_base_w@laion2b_s13b_b82k",
            "openclip:RN101@/path/weights.safetensors",
            "openclip:RN101@random",
        ),
        origin="open_clip",
    ),
    Scheme(
        "hf",
        "hf:REPO[@REVISION]",
        "transformers' CLIP, SigLIP, DINO, Swin, BEiT, ConvNeXt and more, and the vision halves of Qwen-VL, InternVL, "
        "Gemma 3, LLaVA and others; REPO is a name on the hub or a folder",
        ("hf:openai/clip-vit-large-patch14-336", "hf:facebook/dinov2-base", "hf:/path/to/folder"),
        origin="transformers",
    ),
    Scheme(
        "timm",
        "timm:NAME[@WEIGHTS]",
        "timm backbones, image only; WEIGHTS is a file or random",
        ("timm:convnextv2_base.fcmae_ft_in22k_in1k", "timm:vgg16.tv_in1k", "timm:resnet50@random"),
        origin="timm",
    ),
    Scheme("fake", "fake:NAME", "no weights, numbers from the pixels: for tests and load tests", ("fake:vit",)),
)


def catalog() -> list[Scheme]:
    """Built-in schemes, then the installed plug-ins'."""
    known = {scheme.name: scheme for scheme in _KNOWN}
    plugins = [
        Scheme(
            name,
            f"{name}:NAME",
            f"plug-in, loaded by {entry.value}",
            (),
            origin=entry.dist.name if entry.dist else entry.module,
        )
        for name, entry in sorted(schemes().items())
        if name not in known
    ]
    return [*known.values(), *plugins]


def listed(scheme: str) -> list[str]:
    """Every id that `scheme` can name with published weights. Imports the library behind it; downloads nothing.

    Raises EncoderIdError if the scheme is not there, or has no list of its own.
    """
    if scheme not in schemes():
        raise EncoderIdError(
            f"Unknown scheme '{scheme}'. Known: {', '.join(sorted(schemes()))}.", known=list(schemes())
        )
    if scheme not in _LISTS:
        raise EncoderIdError(f"'{scheme}' has no list of names. These have one: {', '.join(_LISTS)}.")
    return _LISTS[scheme]()


def _openclip() -> list[str]:
    from open_clip import list_pretrained

    return [f"openclip:{architecture}@{tag}" for architecture, tag in list_pretrained()]


def _timm() -> list[str]:
    from timm import list_pretrained

    return [f"timm:{name}" for name in list_pretrained()]


_LISTS: dict[str, Callable[[], list[str]]] = {"demo": lambda: list(DEMO), "openclip": _openclip, "timm": _timm}
