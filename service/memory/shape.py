"""A shape: images or texts of one shape can share a forward. It holds the forward's cost.

Shapes are compared by identity. The planner gives the same object until it forgets the shape.
"""

from dataclasses import dataclass
from typing import TypeAlias

from encoders.contract.cost import Cost
from encoders.contract.values import ImageSize, Outputs


@dataclass(frozen=True, eq=False)
class ImageShape:
    """Images of one model, size and outputs."""

    model: str
    size: ImageSize
    outputs: Outputs
    cost: Cost

    @property
    def upload_bytes(self) -> int:
        """Bytes of one image as it travels to the device: uint8 [H, W, 3]."""
        return 3 * self.size.height * self.size.width


@dataclass(frozen=True, eq=False)
class TextShape:
    """Texts of one model."""

    model: str
    cost: Cost

    @property
    def upload_bytes(self) -> int:
        """None worth counting."""
        return 0


Shape: TypeAlias = ImageShape | TextShape
