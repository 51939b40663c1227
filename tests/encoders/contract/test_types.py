"""The rules of sizes, layers and outputs, for all values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoders.adapters.fake import fake_spec
from encoders.contract.errors import LayerNotFound, OutputNotOffered, UnsupportedResolution
from encoders.contract.spec import Resolutions
from encoders.contract.values import ImageSize, Outputs, TokenKind

sides = st.integers(1, 5000)


@given(
    st.builds(ImageSize, sides, sides),
    st.builds(ImageSize, st.integers(1, 64), st.integers(1, 64)),
    st.builds(ImageSize, st.integers(1, 300), st.integers(1, 300)),
)
def test_the_nearest_sizes_can_be_run(size: ImageSize, multiple: ImageSize, minimum: ImageSize) -> None:
    rule = Resolutions(multiple, minimum, ImageSize(2048, 2048))
    nearest = rule.nearest(size)
    assert 1 <= len(nearest) <= 2
    assert all(rule.problem(candidate) is None for candidate in nearest)
    if rule.problem(size) is None:
        assert nearest == [size]


@given(st.integers(-20, 20))
def test_a_layer_counts_from_either_end(layer: int) -> None:
    spec = fake_spec()
    if -spec.layers <= layer < spec.layers:
        assert spec.outputs(tokens=TokenKind.HIDDEN, layer=layer).layer == list(range(spec.layers))[layer]
    else:
        with pytest.raises(LayerNotFound):
            spec.outputs(tokens=TokenKind.HIDDEN, layer=layer)


def test_the_native_size_is_always_possible() -> None:
    spec = fake_spec(image_size=ImageSize(33, 35))  # no multiple of its own patch, as ViT-B-32 at 230 would be
    assert spec.size() == spec.size(ImageSize(33, 35)) == (33, 35)
    with pytest.raises(UnsupportedResolution):
        spec.size(ImageSize(33, 36))


def test_what_is_not_there_is_not_offered() -> None:
    spec = fake_spec(projected_size=None, dense=False, scoring=None, embed_dim=None)
    for kind in (TokenKind.PROJECTED, TokenKind.DENSE):
        with pytest.raises(OutputNotOffered):
            spec.outputs(tokens=kind)
    with pytest.raises(OutputNotOffered):
        spec.require_text()


def test_a_projection_takes_only_its_own_width() -> None:
    spec = fake_spec(layer_sizes=(3, 6, 9, 12))
    assert spec.outputs(tokens=TokenKind.PROJECTED, layer=-1).layer == 3
    with pytest.raises(OutputNotOffered, match="6 wide"):
        spec.outputs(tokens=TokenKind.PROJECTED, layer=1)


@pytest.mark.parametrize("wrong", [{}, {"pooled": True, "layer": 1}, {"tokens": TokenKind.DENSE, "layer": 1}])
def test_outputs_that_make_no_sense_cannot_be_built(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"must give|does not go"):
        Outputs(**wrong)  # type: ignore[arg-type]


def test_equal_outputs_share_a_batch() -> None:
    spec = fake_spec()
    assert spec.outputs(tokens=TokenKind.HIDDEN, layer=-2) == spec.outputs(tokens=TokenKind.HIDDEN, layer=2)
