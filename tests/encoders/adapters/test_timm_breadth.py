"""One model of each of timm's modules: the spec says what is given, and what is given is timm's own, in its order.

The reference is a second model that timm alone made, fixed to its native size.
"""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from benchmarks.coverage import examined
from encoders.adapters.registry import EncoderId, blueprint
from encoders.adapters.timm import build, trunk_parts
from encoders.adapters.timm.geometry import measure
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.errors import EncoderIdError
from encoders.contract.values import Encoded, Grid, ImageSize, TokenKind
from tests.support.closeness import close
from tests.support.suites import split

KNOWN = {
    "cait_xxs24_224": (Grid(14, 14), 1, ImageSize(224, 224)),
    "coat_lite_tiny": (Grid(7, 7), 1, ImageSize(224, 224)),
    "crossvit_tiny_240": (Grid(14, 14), 1, ImageSize(240, 240)),
    "efficientvim_m1": (Grid(4, 4), 0, ImageSize(1, 1)),
    "gemma4_vit_167m_enc": (Grid(48, 48), 0, ImageSize(48, 48)),
    "hiera_tiny_224": (Grid(7, 7), 0, ImageSize(224, 224)),
    "hrnet_w18_small": (Grid(7, 7), 0, ImageSize(32, 32)),
    "inception_v4": (Grid(8, 8), 0, ImageSize(1, 1)),
    "levit_128s": (Grid(4, 4), 0, ImageSize(224, 224)),
    "deepseek_vit_412m": (Grid(39, 39), 0, ImageSize(14, 14)),
    "maxvit_tiny_tf_224": (Grid(7, 7), 0, ImageSize(224, 224)),
    "mixer_s32_224": (Grid(7, 7), 0, ImageSize(224, 224)),
    "mobilevitv2_050": (Grid(8, 8), 0, ImageSize(64, 64)),
    "naflexvit_base_patch16_gap": (Grid(24, 24), 4, ImageSize(16, 16)),
    "pit_ti_224": (Grid(7, 7), 1, ImageSize(224, 224)),
    "pvt_v2_b0": (Grid(7, 7), 0, ImageSize(1, 1)),
    "qwen3_vit_88m_merge": (Grid(24, 24), 0, ImageSize(32, 32)),
    "sam2_hiera_tiny": (Grid(28, 28), 0, ImageSize(32, 32)),
    "sequencer2d_s": (Grid(16, 16), 0, ImageSize(1, 1)),
    "swinv2_tiny_window8_256": (Grid(8, 8), 0, ImageSize(4, 4)),
    "tresnet_m": (Grid(7, 7), 0, ImageSize(4, 4)),
    "vit_relpos_small_patch16_224": (Grid(14, 14), 0, ImageSize(224, 224)),
    "vit_so400m_patch14_siglip_384": (Grid(27, 27), 0, ImageSize(14, 14)),
    "volo_d1_224": (Grid(14, 14), 1, ImageSize(224, 224)),
    "xcit_nano_12_p16_224": (Grid(14, 14), 1, ImageSize(1, 1)),
}
"""The native grid, the prefix tokens, and the number of pixels a side must be a multiple of; or the one size."""


@pytest.mark.parametrize("name", KNOWN)
def test_a_blueprint_of_an_awkward_family_is_right(name: str) -> None:
    spec = blueprint(f"timm:{name}@random").spec
    sizes = spec.resolutions
    assert (spec.grid(), spec.prefix_tokens, sizes.only or sizes.multiple) == KNOWN[name]


@pytest.mark.parametrize("name", ["inception_v4", "resnet18", "caformer_s18", "xcit_nano_12_p16_224", "pvt_v2_b0"])
def test_the_grid_of_any_side_is_the_one_that_timm_gives(name: str) -> None:
    """Every residue of the stride, and the least sides."""
    model = blueprint(f"timm:{name}@random")
    spec, trunk = model.spec, model.tower.trunk  # type: ignore[attr-defined]  # a TorchBlueprint
    stride, least = spec.patch_size.height, spec.resolutions.minimum.height
    for side in {*range(least, least + 3), *range(spec.image_size.height, spec.image_size.height + stride)}:
        with torch.inference_mode(), torch.device("meta"):
            _, (*_, last) = trunk.forward_intermediates(torch.empty(1, 3, side, spec.image_size.width))
        assert spec.grid(ImageSize(side, spec.image_size.width)) == tuple(last.shape[2:]), side


SMALL = [
    "beit_base_patch16_224", "halonet26t", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_s",
    "cspnext_tiny", "davit_tiny", "deit_tiny_patch16_224", "densenet121", "dla46_c", "dpn48b",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "focalnet_tiny_lrf", "gcvit_tiny", "gemma4_vit_167m", "ghostnet_050", "hardcorenas_b", "hgnet_tiny",
    "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_s", "inception_next_atto",
    "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small", "levit_128s", "lowformer_b0",
    "test_mambaout", "test_maxvit", "caformer_s18", "mixer_s32_224", "lcnet_050", "mobilenetv5_base",
    "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny", "nextvit_small",
    "test_nfnet", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m_merge", "rdnet_tiny",
    "regnetx_002", "repghostnet_050", "repvit_m0_9", "res2net50_14w_8s", "resnest14d", "test_resnet",
    "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s", "shvit_s1", "skresnet18",
    "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_patch16_224", "tresnet_m", "twins_pcpvt_small", "vgg11",
    "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos", "samvit_base_patch16_224",
    "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim", "legacy_xception", "xception41",
    "xcit_nano_12_p8_224",
]  # fmt: skip
"""A small model of each module; but for deepseek_vit, of which all have 400 million parameters."""
LIGHT: dict[str, dict[str, Any]] = {
    "beit_base_patch16_224": {"depth": 3},
    "convmixer_768_32": {"pretrained_cfg_overlay": {"input_size": (3, 112, 112)}},
    "gemma4_vit_167m": {"depth": 2, "pretrained_cfg_overlay": {"input_size": (3, 192, 192)}},
    "mobilenetv5_base": {"pretrained_cfg_overlay": {"input_size": (3, 128, 128)}},
    "naflexvit_base_patch16_gap": {"depth": 3},
    "nasnetalarge": {"pretrained_cfg_overlay": {"input_size": (3, 139, 139)}},
    "pnasnet5large": {"pretrained_cfg_overlay": {"input_size": (3, 139, 139)}},
    "qwen3_vit_88m_merge": {"depth": 2, "pretrained_cfg_overlay": {"input_size": (3, 192, 192)}},
    "sam2_hiera_tiny": {"pretrained_cfg_overlay": {"input_size": (3, 224, 224)}},
    "samvit_base_patch16_224": {"depth": 3},
}
"""Of these the first blocks alone, for all are alike, or a small picture: a forward of all takes seconds."""
QUICK = [
    "pit_ti_224", "cait_xxs24_224", "coat_tiny", "efficientvim_m1", "levit_128s", "xcit_nano_12_p8_224",
    "test_vit_relpos", "test_maxvit", "crossvit_tiny_240", "tiny_vit_5m_224",
]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in KNOWN if name not in SMALL])
def test_one_too_large_to_run_gives_shapes_that_its_spec_says(name: str) -> None:
    """Of the others, forwards of an encoder say so below."""
    row = examined("timm", name, "", f"timm:{name}@random", plans=False)
    assert row.verdict in ("whole", "native"), row.reason


def random_pixels(encoder: Encoder, size: ImageSize) -> Any:
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


def shaken(model: Any) -> None:
    """Weights of which none is zero or one by initialisation, so that every branch shows."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)


def timms(name: str) -> Any:
    """timm's own model, or a light one."""
    return timm.create_model(name, num_classes=0, **LIGHT.get(name, {})).eval()


@pytest.fixture(scope="module", params=split(SMALL, quick=QUICK))
def drawn(request: pytest.FixtureRequest) -> tuple[Encoder, dict[str, Tensor]]:
    """An encoder, and its weights under timm's names, shaken."""
    name: str = request.param
    encoder_id = f"timm:{name}@random"
    if name in LIGHT:
        parts = trunk_parts(timms(name), encoder_id=encoder_id)
    else:
        parts = build(EncoderId.parse(encoder_id), with_weights=True)
    tower: Any = parts.tower
    shaken(tower.trunk)
    weights: dict[str, Tensor] = tower.trunk.state_dict()
    return parts.encoder(Placement()), weights


@pytest.fixture(scope="module")
def encoder(drawn: tuple[Encoder, dict[str, Tensor]]) -> Encoder:
    return drawn[0]


@pytest.fixture(scope="module")
def weights(drawn: tuple[Encoder, dict[str, Tensor]]) -> dict[str, Tensor]:
    return drawn[1]


def as_tokens(final: Any, places: int, width: int) -> Tensor:
    """The patch tokens in timm's final features, by their shape alone."""
    features: Tensor = final[-1] if isinstance(final, list | tuple) else final
    if features.ndim == 3:
        return features[:, -places:] if features.shape[2] == width else features.transpose(1, 2)
    if features.shape[1] * features.shape[2] == places:
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def test_tokens_pooled_vectors_and_layers_are_timms_own(encoder: Encoder, weights: dict[str, Tensor]) -> None:
    spec = encoder.spec
    name = EncoderId.parse(spec.id).name
    model = timms(name)
    model.load_state_dict(weights, strict=False)
    pixels = random_pixels(encoder, spec.image_size)
    final_outputs = spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    found = encoder.encode(pixels, final_outputs)
    assert spec.mismatch(found, images=1, size=spec.image_size, outputs=final_outputs) is None
    layers = [
        encoder.encode(pixels, spec.outputs(tokens=TokenKind.HIDDEN, layer=k, pooled=True))
        for k in (0, spec.layers - 1)
    ]
    with torch.inference_mode():
        seen = encoder.normalise(torch.from_numpy(pixels))  # type: ignore[attr-defined]
        final = model.forward_features(seen)
        indices = encoder.tower.geometry.layers  # type: ignore[attr-defined]
        maps = model.forward_intermediates(
            seen, indices=[indices[0], indices[-1]], norm=False, output_fmt="NCHW", intermediates_only=True
        )
        if encoder.tower.geometry.pooled_size is not None:  # type: ignore[attr-defined]
            pooled = model.forward_head(final)
            close(found.pooled, pooled)
            close(layers[0].pooled, pooled)
    for layer, feature_map in zip(layers, maps, strict=True):
        assert layer.tokens is not None
        assert layer.grid == tuple(feature_map.shape[2:])
        close(layer.tokens[:, layer.prefix_tokens :], feature_map.flatten(2).transpose(1, 2))
    assert found.tokens is not None
    places = found.grid.rows * found.grid.cols
    if name.startswith("pit"):  # timm's final features are class tokens alone
        close(found.tokens[:, : found.prefix_tokens], final)
        close(found.tokens[:, found.prefix_tokens :], maps[-1].flatten(2).transpose(1, 2))
    else:
        close(found.tokens[:, found.prefix_tokens :], as_tokens(final, places, spec.hidden_size))
    ordered_alike(found, layers[-1])


def ordered_alike(final: Encoded, layer: Encoded) -> None:
    """Where only a norm lies between the last layer and the final tokens, most are most like the one in their place."""
    assert final.tokens is not None
    assert layer.tokens is not None
    if final.tokens.shape[2] != layer.tokens.shape[2] or final.grid != layer.grid:
        return
    ours, theirs = (
        (rows - rows.mean(axis=0)) / np.linalg.norm(rows - rows.mean(axis=0), axis=1, keepdims=True)
        for rows in (each.tokens[0, each.prefix_tokens :] for each in (final, layer) if each.tokens is not None)
    )
    assert ((ours @ theirs.T).argmax(axis=1) == np.arange(len(ours))).mean() > 0.5


def test_another_size_runs_and_gives_the_grid_of_the_spec(encoder: Encoder) -> None:
    spec = encoder.spec
    height, width = spec.image_size
    for near in (ImageSize(height * 2 // 3, height), ImageSize(width, width + 70)):
        size = spec.resolutions.nearest(near)[-1]
        outputs = spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
        encoded = encoder.encode(random_pixels(encoder, size), outputs)
        assert spec.mismatch(encoded, images=1, size=size, outputs=outputs) is None, size


def test_a_model_without_places_is_refused_by_name() -> None:
    """As one of timm's would be whose features are no map."""

    class Formless(torch.nn.Module):
        feature_info = ({"module": "blocks.0", "reduction": 16, "num_chs": 8},)

        def forward_intermediates(self, x: Tensor, **_: Any) -> Any:
            return x.new_empty(1, 8), [x.new_empty(1, 8, 14, 14)]

    with pytest.raises(EncoderIdError, match="Formless gives no tokens of an image of 224x224"):
        measure(Formless(), ImageSize(224, 224))
