"""Shapes and costs. All that is asked of the fake encoder's blueprint is asked here."""

from encoders.adapters.fake import FakeEncoder, fake_spec
from encoders.contract.cost import Cost, Curve
from encoders.contract.values import ImageSize, Outputs
from service.memory.shape import ImageShape, TextShape

MODEL = "fake:vit"
POOLED = Outputs(pooled=True)


def image_shape(
    model: str = MODEL, side: int = 8, outputs: Outputs = POOLED, *, height: int | None = None, cost: Cost | None = None
) -> ImageShape:
    """Images of `side` x `side` pixels, or of `height` x `side`. Each call makes a shape of its own."""
    size = ImageSize(height or side, side)
    if cost is None:
        cost = FakeEncoder(fake_spec(model)).blueprint.cost(size, outputs, device="cpu")
    return ImageShape(model, size, outputs, cost)


def text_shape(model: str = MODEL, *, cost: Cost | None = None) -> TextShape:
    """Each call makes a shape of its own."""
    if cost is None:
        cost = FakeEncoder(fake_spec(model)).blueprint.text_cost(device="cpu")
    return TextShape(model, cost)


def linear(item: int, fixed: int = 0, *, flops: int = 1) -> Cost:
    """`item` bytes an item and `fixed` bytes a forward, matrix products or not."""
    curve = Curve(fixed + item, ((fixed, item),))
    return Cost(curve, curve, input_bytes=0, output_bytes=0, flops=flops, tokens=1)
