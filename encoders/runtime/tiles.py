"""How LLaVA-NeXT and LLaVA-OneVision see an image of any shape: cut into views, whose tokens are joined.

The first view is the whole image. The others are tiles of a canvas that the image is laid on, as large as fits. Their
tokens, laid out as the canvas, lose what belongs to the canvas alone. (transformers: image_processing_llava_next,
LlavaNextModel.pack_image_features and LlavaOnevisionModel.pack_image_features.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.contract.spec import Preprocessing
from encoders.contract.values import Floats, ImageSize, Pixels
from encoders.images.preprocess import Resize, preprocess

_SHRINKS_FROM = 1.1
"""A canvas whose sides have over so many times the most tokens is made smaller."""


@dataclass(frozen=True)
class Canvases:
    """view: the side of a view in pixels. sizes: of the canvases, in whole views. grid: tokens a side of a view.

    shrinks_over: a canvas of more tokens than so many views have is made smaller; None for never.
    """

    view: int
    grid: int
    sizes: Sequence[ImageSize]
    shrinks_over: int | None = None

    @property
    def views(self) -> int:
        """The most views that one image is cut into."""
        return 1 + max(height // self.view * (width // self.view) for height, width in self.sizes)

    @property
    def tokens(self) -> int:
        """The most tokens that one image can have, with one at the end of each row."""
        side = self.grid
        canvases = [(height // self.view * side, width // self.view * side) for height, width in self.sizes]
        return side * side + max(rows * (cols + 1) for rows, cols in canvases)

    def of(self, image: ImageSize) -> ImageSize:
        """The canvas that shows most of the image; of several, the smallest."""
        best, most, least = self.sizes[0], 0, math.inf
        for canvas in self.sizes:
            scale = min(canvas.width / image.width, canvas.height / image.height)
            shown = int(image.width * scale) * int(image.height * scale)
            useful = min(shown, image.width * image.height)
            wasted = canvas.height * canvas.width - useful
            if useful > most or (useful == most and wasted < least):
                best, most, least = canvas, useful, wasted
        return best


class Tiles(nn.Module):
    """What a tower that takes images in views has beside it. newline: [C], the token behind each row of the canvas."""

    def __init__(self, canvases: Canvases, newline: nn.Parameter) -> None:
        super().__init__()
        self.canvases = canvases
        self.newline = newline

    def cut(self, image: Image.Image, preprocessing: Preprocessing, *, resize: Resize) -> list[Pixels]:
        """An RGB image as views, uint8 [view, view, 3]: the whole of it, then the tiles of its canvas, row by row."""
        view, given = self.canvases.view, ImageSize(image.height, image.width)
        canvas = self.canvases.of(given)
        across, down = canvas.width / given.width, canvas.height / given.height
        if across < down:
            fitted = ImageSize(min(math.ceil(given.height * across), canvas.height), canvas.width)
        else:
            fitted = ImageSize(canvas.height, min(math.ceil(given.width * down), canvas.width))
        squashed = replace(preprocessing, resize="squash", crop_pct=1.0)
        laid = np.zeros((*canvas, 3), dtype=np.uint8)
        top, left = (canvas.height - fitted.height) // 2, (canvas.width - fitted.width) // 2
        laid[top : top + fitted.height, left : left + fitted.width] = preprocess(image, squashed, fitted, resize=resize)
        tiles = laid.reshape(canvas.height // view, view, canvas.width // view, view, 3).swapaxes(1, 2)
        whole = preprocess(image, squashed, ImageSize(view, view), resize=resize)
        return [np.ascontiguousarray(each) for each in (whole, *tiles.reshape(-1, view, view, 3))]

    def join(self, views: Sequence[Floats], image: ImageSize) -> Tensor:
        """Tokens [views, grid * grid, C] -> [N, C] as the language model reads them, float32 on the CPU.

        image: the size of the image that was cut.
        """
        canvases, side = self.canvases, self.canvases.grid
        canvas = canvases.of(image)
        rows, cols = canvas.height // canvases.view, canvas.width // canvases.view
        tokens = torch.from_numpy(np.asarray(views, dtype=np.float32))
        laid = tokens[1:].reshape(rows, cols, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
        laid = self._smaller(_without_margins(laid, image))
        newline = self.newline.detach().float().cpu()[:, None, None].expand(*laid.shape[:-1], 1)
        return torch.cat([tokens[0], torch.cat([laid, newline], dim=-1).flatten(1).T])

    def _smaller(self, laid: Tensor) -> Tensor:
        """The canvas's tokens [C, rows, cols], at most about as many as shrinks_over views have."""
        if self.canvases.shrinks_over is None:
            return laid
        _, rows, cols = laid.shape
        ratio = math.sqrt(rows * cols / (self.canvases.shrinks_over * self.canvases.grid**2))
        if ratio <= _SHRINKS_FROM:
            return laid
        return F.interpolate(laid[None], [int(rows // ratio), int(cols // ratio)], mode="bilinear")[0]


def _without_margins(laid: Tensor, image: ImageSize) -> Tensor:
    """The tokens [C, rows, cols] of a canvas without those that lie beside the image."""
    _, rows, cols = laid.shape
    if image.width / image.height > cols / rows:
        margin = (rows - int(round(image.height * (cols / image.width), 7))) // 2
        return laid[:, margin : rows - margin]
    margin = (cols - int(round(image.width * (rows / image.height), 7))) // 2
    return laid[:, :, margin : cols - margin]
