"""What the page shows of tokens, worked out again with NumPy from the API's answers."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

Floats = NDArray[np.float32]


def tokens_of(server: str, picture: Path, **options: Any) -> tuple[Floats, tuple[int, int]]:
    """The patch tokens [rows * cols, width] of a picture as the page asks for them, and the grid."""
    options = {"model": "demo:vit", "dtype": "bfloat16", **options}
    headers = {"Accept": "application/vnd.safetensors"}
    body = {"image": (picture.name, picture.read_bytes())}
    answer = httpx.post(f"{server}/embed", params=options, files=body, headers=headers, timeout=60).raise_for_status()
    tokens = load(answer.content)["tokens"][0].float().numpy()
    header = answer.content[8 : 8 + int.from_bytes(answer.content[:8], "little")]
    rows, cols = json.loads(header)["__metadata__"]["grid"].split(",")
    return tokens, (int(rows), int(cols))


def component_colours(tokens: Floats) -> NDArray[np.uint8]:
    """RGB [n, 3]: three principal components, each from its 1st to its 99th percentile."""
    centred = tokens.astype(np.float64) - tokens.mean(0, dtype=np.float64)
    left, variances, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(3), np.abs(right[:3]).argmax(1)])
    scores = left[:, :3] * variances[:3] * signs
    low, high = np.percentile(scores, [1, 99], axis=0)
    colours: NDArray[np.uint8] = np.clip(np.rint(255 * (scores - low) / (high - low)), 0, 255).astype(np.uint8)
    return colours


def cosines(tokens: Floats, index: int) -> Floats:
    """Of every token with one of them, [n]."""
    unit = tokens / np.linalg.norm(tokens, axis=1, keepdims=True)
    products: Floats = unit @ unit[index]
    return products
