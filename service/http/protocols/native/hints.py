"""What a caller may have meant, for requests that are nearly right. Visited by those alone."""

import re
from collections.abc import Collection

from service.http.errors import ImageAsText, InvalidBody
from service.http.sources import is_base64

_NUMBERED = re.compile(r"(\[\w*\]|_?\d+)$")
"""The ends of image[], images[0], file1."""
_IMAGES = re.compile(
    r"(the_)?(image|img|picture|pic|photo|file|upload|input|media|data|content|blob|body|binary|base64|b64|ur[il])s?"
    r"(_?(ur[il]|data|file|path|base64|b64|json|bytes)s?)?|pixel_values"
)
_TEXTS = re.compile(
    r"(candidate_|input_|text_)?"
    r"(text|label|candidate|class|classe|class_?name|categorie|category|caption|prompt|query|querie|sentence|word|tag)s?"
)
_OPTIONS = {
    "model_id": "model",
    "model_name": "model",
    "encoder": "model",
    "size": "resolution",
    "image_size": "resolution",
    "pooling": "output",
    "pooled": "output",
    "outputs": "output",
    "return_tokens": "output",
    "block": "layer",
    "hidden_layer": "layer",
    "precision": "dtype",
    "truncation": "truncate",
    "hypothesis_template": "templates",
    "prompt_template": "templates",
    "response_format": "format",
    "l2_normalize": "normalize",
    "label_set": "labels",
    "k": "top_k",
    "topk": "top_k",
    "top_n": "top_k",
    "limit": "top_k",
    "max_results": "top_k",
    "num_results": "top_k",
}
"""Other services' words for options, and ours."""
IMAGES_GO = "Images go in parts named 'image' of a form, or in the list 'images' of JSON"


def meant(name: str, known: Collection[str]) -> str:
    """A sentence, after a blank, about an option of a well-known other name; empty for any other."""
    plain = name[:100].strip().lower().replace("-", "_")
    unnumbered = _NUMBERED.sub("", plain)
    if _TEXTS.fullmatch(unnumbered):
        if "labels" in known:
            return " Did you mean 'labels'? Labels go in fields named 'label', or in the list 'labels' of JSON."
        if "texts" in known:
            return " Did you mean 'texts'? Texts go in fields named 'text', or in the list 'texts' of JSON."
        return " Texts go to /similarity." if "images" in known else ""
    if "images" in known and (_IMAGES.fullmatch(plain) or _IMAGES.fullmatch(unnumbered)):
        question = "" if name == "images" else " Did you mean 'images'?"
        return f"{question} {IMAGES_GO}."
    option = _OPTIONS.get(plain)
    return f" Did you mean '{option}'?" if option in known else ""


def as_image(content: bytes) -> bytes | ImageAsText:
    """The bytes of an image, or the error that they are text that stands for one."""
    beginning = content[:256].lstrip()[:64]
    lower = beginning.lower()
    if lower.startswith(b"data:"):
        return ImageAsText("a data: URI")
    if lower.startswith((b"http://", b"https://")):
        return ImageAsText("a URL")
    if is_base64(beginning.splitlines()[0] if beginning else b""):
        return ImageAsText("base64")
    return ImageAsText("JSON") if is_json(content) else content


def is_json(content: bytes) -> bool:
    """Whether it begins as a JSON object, or a list of texts or objects."""
    beginning = content[:256].removeprefix(b"\xef\xbb\xbf").lstrip()
    return re.match(rb'\{\s*["}]|\[\s*["{]', beginning) is not None


def require_no_json(content: bytes, content_type: str) -> None:
    """Raises InvalidBody for JSON that is announced as something else."""
    if is_json(content):
        says = f"Content-Type says '{content_type[:100]}'" if content_type else "there is no Content-Type"
        raise InvalidBody(f"The body is JSON, but {says}: send it with Content-Type: application/json.")


def type_advice(content: bytes, kind: str) -> str:
    """A sentence, after a blank, on the Content-Type that the body should have had."""
    if content.startswith(b"--"):
        return (
            " The body is a form in parts: its Content-Type is multipart/form-data with the boundary, "
            "which an HTTP client writes by itself if you leave the header to it."
        )
    if not content[:16].isascii() or b"\0" in content[:16]:
        return " An image by itself needs, for curl --data-binary, -H 'Content-Type: image/jpeg'."
    if kind == "application/x-www-form-urlencoded":
        return " A form with images is multipart/form-data, as curl -F image=@photo.jpg sends it."
    return ""
