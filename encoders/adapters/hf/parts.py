"""What a family makes of a checkpoint."""

from typing import NamedTuple

from encoders.contract.spec import EncoderSpec
from encoders.runtime.tower import TextTower, Tower


class Parts(NamedTuple):
    """What a family makes of a checkpoint."""

    spec: EncoderSpec
    tower: Tower
    text: TextTower | None = None
