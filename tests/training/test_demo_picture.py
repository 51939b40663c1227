"""The README's picture shows what the demo encoders say."""

import numpy as np
import pytest

from tests.support.paths import ROOT
from training.demo.picture import SIZE, TEXTS, draw, see


@pytest.mark.parametrize("encoder_id", ["demo:vit", "demo:resnet"])
def test_the_heat_lies_on_the_object_named(encoder_id: str) -> None:
    assert TEXTS == ("a red circle", "a house", "a blue star")
    seen = see(encoder_id, (ROOT / "docs" / "example.png").read_bytes(), TEXTS, SIZE)
    circle, house, _ = (np.unravel_index(heat.argmax(), heat.shape) / np.array(heat.shape) for heat in seen.heat)
    assert circle[0] > 0.3  # the circle is on the left, below; the house on the right, above
    assert circle[1] < 0.5
    assert house[0] < 0.5 < house[1]
    assert seen.cosine[2] < 0.2 < min(seen.cosine[:2])


def test_every_encoder_has_a_row_of_maps() -> None:
    image = (ROOT / "docs" / "example.png").read_bytes()
    figure = draw(image, [see("demo:vit", image, TEXTS, SIZE)], TEXTS)
    assert len(figure.axes) == 1 + len(TEXTS) + 1
