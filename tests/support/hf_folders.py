"""Tiny checkpoints in transformers' format, of every supported family: seeded random weights, written to a folder.

Weights are shaken after initialisation, norms and biases too, so that a norm left out or done twice shows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from encoders import load
from encoders.runtime.torch_encoder import TorchEncoder
from tests.support.hf_tokenizers import WORDS, write_bert_tokenizer, write_clip_tokenizer, write_word_tokenizer

SIDE, PATCH = 32, 8
_VIT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": PATCH}
_MLP: dict[str, Any] = {"intermediate_size": 64}
_CLIP = {**_VIT, **_MLP, "image_size": SIDE}
_TEXT: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **_MLP}
_CNN: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
_NECK: dict[str, Any] = {"neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8}
_EFFICIENTNET: dict[str, Any] = {
    "image_size": 72,
    "hidden_dim": 32,
    "width_coefficient": 1.0,
    "depth_coefficient": 1.2,
    "depthwise_padding": [5],
    "in_channels": [32, 16, 16],
    "out_channels": [16, 16, 32],
    "strides": [1, 2, 2],
    "kernel_sizes": [3, 5, 3],
    "num_block_repeats": [1, 2, 2],
    "expand_ratios": [1, 2, 2],
}
_BERT_TEXT: dict[str, Any] = {**_TEXT, "vocab_size": len(WORDS) + 8, "max_position_embeddings": 40, "pad_token_id": 0}
_SWIN: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_CLIP_TEXT = {
    **_TEXT,
    "vocab_size": 49408,
    "max_position_embeddings": 20,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
_SIGLIP_TEXT = {
    **_TEXT,
    "vocab_size": len(WORDS) + 8,
    "max_position_embeddings": 16,
    "projection_size": 32,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_NAFLEX = {**_VIT, **_MLP, "num_patches": (SIDE // PATCH) ** 2}


_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 60,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _llava(name: str, vision: str, **options: Any) -> Any:
    vision_config = {"model_type": vision, **_CLIP} | ({"vision_use_head": False} if "siglip" in vision else {})
    config = getattr(transformers, f"{name}Config")
    return config(vision_config=vision_config, text_config=dict(_LLAMA), image_token_index=59, **options)


_CANVASES = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [3 * SIDE, SIDE]]
_SIGLIP_OF_VLM = {"model_type": "siglip_vision_model", **_CLIP, "vision_use_head": False}
_PIXTRAL = {"model_type": "pixtral", **_CLIP}


def _vlm(name: str, vision: dict[str, Any], text: dict[str, Any], **options: Any) -> tuple[str, Callable[[], Any]]:
    """A vision-language model whose text configuration is like Llama's, but for `text`."""
    return (
        f"{name}ForConditionalGeneration",
        lambda: getattr(transformers, f"{name}Config")(vision_config=vision, text_config={**_LLAMA, **text}, **options),
    )


_QWEN_VISION = {"depth": 4, "num_heads": 4, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}}
_HALF_ROTARY = {**_MROPE["rope_parameters"], "partial_rotary_factor": 0.5}
_QWEN_TOKENS = {"image_token_id": 57, "video_token_id": 58, "vision_start_token_id": 55, "vision_end_token_id": 56}
VLMS: dict[str, tuple[str, Callable[[], Any]]] = {
    "qwen2-vl": _vlm(
        "Qwen2VL",
        {**_QWEN_VISION, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2},
        {"model_type": "qwen2_vl_text", **_MROPE},
        **_QWEN_TOKENS,
    ),
    "qwen2.5-vl": _vlm(
        "Qwen2_5_VL",
        {
            **_QWEN_VISION,
            **_MLP,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "window_size": 32,
            "fullatt_block_indexes": [1, 3],
        },
        {"model_type": "qwen2_5_vl_text", **_MROPE},
        **_QWEN_TOKENS,
    ),
    "qwen3-vl": _vlm(
        "Qwen3VL",
        {
            **_QWEN_VISION,
            **_MLP,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [1, 2],
        },
        {"model_type": "qwen3_vl_text", "head_dim": 12, **_MROPE},
        **_QWEN_TOKENS,
    ),
    "qwen3-vl-moe": _vlm(
        "Qwen3VLMoe",
        {
            **_QWEN_VISION,
            **_MLP,
            "hidden_size": 32,
            "out_hidden_size": 48,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [1, 2],
        },
        {
            "model_type": "qwen3_vl_moe_text",
            "head_dim": 12,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 16,
            **_MROPE,
        },
        **_QWEN_TOKENS,
    ),
    "glm4v": _vlm(
        "Glm4v",
        {**_QWEN_VISION, "hidden_size": 32, "out_hidden_size": 48, "intermediate_size": 64, "image_size": SIDE},
        {"model_type": "glm4v_text", "rope_parameters": {**_HALF_ROTARY, "mrope_section": [1, 1, 1]}},
        image_token_id=57,
        video_token_id=58,
    ),
    "internvl": _vlm(
        "InternVL", {"model_type": "internvl_vision", **_CLIP}, {}, image_token_id=59, downsample_ratio=0.5
    ),
    "gemma3": _vlm(
        "Gemma3",
        _SIGLIP_OF_VLM,
        {"model_type": "gemma3_text", "head_dim": 12, "layer_types": ["sliding_attention", "full_attention"]},
        mm_tokens_per_image=4,
        image_token_index=59,
        boi_token_index=57,
        eoi_token_index=58,
    ),
    "mistral3": _vlm("Mistral3", _PIXTRAL, {}, image_token_index=59, spatial_merge_size=2, vision_feature_layer=-1),
    "mistral3-layers": _vlm(
        "Mistral3", _PIXTRAL, {}, image_token_index=59, spatial_merge_size=2, vision_feature_layer=-2
    ),
    "llava-pixtral": _vlm(
        "Llava",
        _PIXTRAL,
        {},
        image_token_index=59,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
    "llava-dinov2": _vlm("Llava", {"model_type": "dinov2", **_VIT, "image_size": SIDE}, {}, image_token_index=59),
    "paligemma": _vlm(
        "PaliGemma", _SIGLIP_OF_VLM, {"model_type": "gemma", "head_dim": 12}, image_token_index=59, projection_dim=48
    ),
    "idefics3": _vlm("Idefics3", {"model_type": "idefics3_vision", **_CLIP}, {}, scale_factor=2, image_token_id=59),
    "smolvlm": _vlm("SmolVLM", {"model_type": "smolvlm_vision", **_CLIP}, {}, scale_factor=2, image_token_id=59),
    "aya-vision": _vlm(
        "AyaVision",
        _SIGLIP_OF_VLM,
        {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]},
        image_token_index=59,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        adapter_layer_norm_eps=1e-6,
    ),
    "cohere2-vision": _vlm(
        "Cohere2Vision",
        _SIGLIP_OF_VLM,
        {"model_type": "cohere2", "layer_types": ["sliding_attention", "full_attention"]},
        image_token_id=59,
        alignment_intermediate_size=64,
    ),
    "blip-2": (
        "Blip2ForConditionalGeneration",
        lambda: transformers.Blip2Config(
            vision_config={**_CLIP},
            qformer_config={**_TEXT, "encoder_hidden_size": 32, "vocab_size": 60, "cross_attention_frequency": 2},
            text_config={
                "model_type": "opt",
                "hidden_size": 48,
                "ffn_dim": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "vocab_size": 60,
                "word_embed_proj_dim": 48,
                "max_position_embeddings": 40,
            },
            num_query_tokens=6,
            image_token_index=59,
        ),
    ),
}
"""Vision-language models that are read by description."""

FAMILIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "clip": (
        "CLIPModel",
        lambda: transformers.CLIPConfig(vision_config=_CLIP, text_config=_CLIP_TEXT, projection_dim=24),
    ),
    "clip-vision": ("CLIPVisionModel", lambda: transformers.CLIPVisionConfig(**_CLIP)),
    "clip-vision-projected": (
        "CLIPVisionModelWithProjection",
        lambda: transformers.CLIPVisionConfig(**_CLIP, projection_dim=24),
    ),
    "siglip": ("SiglipModel", lambda: transformers.SiglipConfig(vision_config=_CLIP, text_config=_SIGLIP_TEXT)),
    "siglip-vision": ("SiglipVisionModel", lambda: transformers.SiglipVisionConfig(**_CLIP)),
    "siglip2": ("Siglip2Model", lambda: transformers.Siglip2Config(vision_config=_NAFLEX, text_config=_SIGLIP_TEXT)),
    "siglip2-vision": ("Siglip2VisionModel", lambda: transformers.Siglip2VisionConfig(**_NAFLEX)),
    "dinov2": ("Dinov2Model", lambda: transformers.Dinov2Config(**_VIT, image_size=SIDE)),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        lambda: transformers.Dinov2WithRegistersConfig(**_VIT, image_size=SIDE, num_register_tokens=3),
    ),
    "dinov3": ("DINOv3ViTModel", lambda: transformers.DINOv3ViTConfig(**_CLIP, num_register_tokens=4)),
    "dinov3-convnext": ("DINOv3ConvNextModel", lambda: transformers.DINOv3ConvNextConfig(**_CNN, image_size=64)),
    "convnext": ("ConvNextModel", lambda: transformers.ConvNextConfig(**_CNN, image_size=64)),
    "convnextv2": ("ConvNextV2Model", lambda: transformers.ConvNextV2Config(**_CNN, image_size=64)),
    "vit": ("ViTModel", lambda: transformers.ViTConfig(**_CLIP)),
    "vit-classifier": ("ViTForImageClassification", lambda: transformers.ViTConfig(**_CLIP)),
    "resnet": ("ResNetModel", lambda: transformers.ResNetConfig(**_CNN, embedding_size=8)),
    "deit": ("DeiTModel", lambda: transformers.DeiTConfig(**_CLIP)),
    "deit-classifier": ("DeiTForImageClassificationWithTeacher", lambda: transformers.DeiTConfig(**_CLIP)),
    "aimv2": (
        "Aimv2Model",
        lambda: transformers.Aimv2Config(vision_config=_CLIP, text_config=_CLIP_TEXT, projection_dim=24),
    ),
    "align": (
        "AlignModel",
        lambda: transformers.AlignConfig(
            vision_config=_EFFICIENTNET, text_config=_BERT_TEXT, projection_dim=_EFFICIENTNET["hidden_dim"]
        ),
    ),
    "altclip": (
        "AltCLIPModel",
        lambda: transformers.AltCLIPConfig(
            vision_config=_CLIP, text_config={**_BERT_TEXT, "project_dim": 24}, projection_dim=24
        ),
    ),
    "blip": (
        "BlipModel",
        lambda: transformers.BlipConfig(vision_config=_CLIP, text_config=_BERT_TEXT, projection_dim=24),
    ),
    "blip-retrieval": (
        "BlipForImageTextRetrieval",
        lambda: transformers.BlipConfig(vision_config=_CLIP, text_config=_BERT_TEXT, image_text_hidden_size=24),
    ),
    "blip-captions": (
        "BlipForConditionalGeneration",
        lambda: transformers.BlipConfig(vision_config=_CLIP, text_config=_BERT_TEXT),
    ),
    "chinese-clip": (
        "ChineseCLIPModel",
        lambda: transformers.ChineseCLIPConfig(vision_config=_CLIP, text_config=_BERT_TEXT, projection_dim=24),
    ),
    "clipseg": (
        "CLIPSegForImageSegmentation",
        lambda: transformers.CLIPSegConfig(
            vision_config=_CLIP,
            text_config=_CLIP_TEXT,
            projection_dim=24,
            extract_layers=[0, 1, 2],
            reduce_dim=16,
            decoder_num_attention_heads=4,
        ),
    ),
    "metaclip2": (
        "MetaClip2Model",
        lambda: transformers.MetaClip2Config(vision_config=_CLIP, text_config=_CLIP_TEXT, projection_dim=24),
    ),
    "swin": ("SwinModel", lambda: transformers.SwinConfig(**_SWIN)),
    "swin-classifier": ("SwinForImageClassification", lambda: transformers.SwinConfig(**_SWIN)),
    "swinv2": ("Swinv2Model", lambda: transformers.Swinv2Config(**_SWIN, pretrained_window_sizes=[4, 2])),
    "beit": ("BeitModel", lambda: transformers.BeitConfig(**_CLIP, use_relative_position_bias=True)),
    "beit-classifier": (
        "BeitForImageClassification",
        lambda: transformers.BeitConfig(**_CLIP, use_shared_relative_position_bias=True, use_mask_token=True),
    ),
    "beit-masked": (
        "BeitForMaskedImageModeling",
        lambda: transformers.BeitConfig(
            **_CLIP, use_absolute_position_embeddings=True, use_mean_pooling=False, vocab_size=50
        ),
    ),
    "dpt": (
        "DPTForDepthEstimation",
        lambda: transformers.DPTConfig(**_CLIP, **_NECK, backbone_out_indices=[0, 1, 2, 3]),
    ),
    "dpt-hybrid": (
        "DPTForDepthEstimation",
        lambda: transformers.DPTConfig(
            **{**_CLIP, "image_size": 64, "patch_size": 16},
            **_NECK,
            is_hybrid=True,
            backbone_config={
                "model_type": "bit",
                "embedding_size": 8,
                "hidden_sizes": [8, 16, 32],
                "depths": [1, 1, 1],
                "num_groups": 2,
                "layer_type": "bottleneck",
                "embedding_dynamic_padding": True,
                "global_padding": "SAME",
                "out_features": ["stage1", "stage2", "stage3"],
            },
            backbone_featmap_shape=[1, 32, 4, 4],
        ),
    ),
    "dpt-beit": (
        "DPTForDepthEstimation",
        lambda: transformers.DPTConfig(
            **_NECK,
            backbone_config=transformers.BeitConfig(
                **_CLIP, use_relative_position_bias=True, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
            ),
        ),
    ),
    "depth-anything": (
        "DepthAnythingForDepthEstimation",
        lambda: transformers.DepthAnythingConfig(
            backbone_config=transformers.Dinov2Config(
                **_VIT, image_size=SIDE, out_indices=[1, 2, 3, 4], reshape_hidden_states=False
            ),
            patch_size=PATCH,
            reassemble_hidden_size=32,
            **_NECK,
        ),
    ),
    "data2vec": ("Data2VecVisionModel", lambda: transformers.Data2VecVisionConfig(**_CLIP)),
    "data2vec-classifier": (
        "Data2VecVisionForImageClassification",
        lambda: transformers.Data2VecVisionConfig(**_CLIP, use_relative_position_bias=True),
    ),
    "aimv2-vision": ("Aimv2VisionModel", lambda: transformers.Aimv2VisionConfig(**_CLIP)),
    "aimv2-vision-native": (
        "Aimv2VisionModel",
        lambda: transformers.Aimv2VisionConfig(**_CLIP, is_native=True, use_head=False),
    ),
    "mlcd": ("MLCDVisionModel", lambda: transformers.MLCDVisionConfig(**_CLIP)),
    "ijepa": ("IJepaModel", lambda: transformers.IJepaConfig(**_CLIP)),
    "vit-mae": (
        "ViTMAEForPreTraining",
        lambda: transformers.ViTMAEConfig(
            **_CLIP, decoder_hidden_size=16, decoder_num_attention_heads=2, decoder_num_hidden_layers=1
        ),
    ),
    "llava": ("LlavaForConditionalGeneration", lambda: _llava("Llava", "clip_vision_model", image_seq_length=16)),
    "llava-layers": (
        "LlavaForConditionalGeneration",
        lambda: _llava("Llava", "clip_vision_model", vision_feature_layer=[-2, 0, 3]),
    ),
    "llava-full": (
        "LlavaForConditionalGeneration",
        lambda: _llava("Llava", "clip_vision_model", vision_feature_select_strategy="full", vision_feature_layer=-1),
    ),
    "llava-siglip": (
        "LlavaForConditionalGeneration",
        lambda: _llava("Llava", "siglip_vision_model", vision_feature_select_strategy="full"),
    ),
    "llava-siglip-default": (
        "LlavaForConditionalGeneration",
        lambda: _llava("Llava", "siglip_vision_model", vision_feature_select_strategy="default"),
    ),
    "llava-next": (
        "LlavaNextForConditionalGeneration",
        lambda: _llava("LlavaNext", "clip_vision_model", image_grid_pinpoints=_CANVASES),
    ),
    "llava-onevision": (
        "LlavaOnevisionForConditionalGeneration",
        lambda: _llava(
            "LlavaOnevision", "siglip_vision_model", image_grid_pinpoints=_CANVASES, vision_aspect_ratio="anyres_max_2"
        ),
    ),
    "vipllava": (
        "VipLlavaForConditionalGeneration",
        lambda: _llava("VipLlava", "clip_vision_model", vision_feature_layers=[-2, 2]),
    ),
}


POOLERLESS = ("beit-masked", "data2vec", "deit-classifier", "dpt", "dpt-hybrid", "vit-classifier")
"""Without a pooler, which their weights alone tell: a blueprint has one."""


@contextmanager
def one_thread() -> Iterator[None]:
    """On tensors this small a second thread only waits for the first: tenfold the time on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Twins:
    """An encoder of ours and transformers' model from the same folder, made once for each family."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, tuple[TorchEncoder, Any]] = {}

    def __call__(self, family: str) -> tuple[TorchEncoder, Any]:
        if family not in self._made:
            folder = self._folder / family
            model = write(family, folder)
            encoder = load(f"hf:{folder}")
            assert isinstance(encoder, TorchEncoder)
            self._made[family] = encoder, model
        return self._made[family]


def write(family: str, folder: Path, *, tokenizer: bool = True) -> Any:
    """The family's tiny model, saved to `folder` with its tokenizer; returned in eval mode."""
    transformers.utils.logging.disable_progress_bar()
    architecture, config = (FAMILIES | VLMS)[family]
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(config()).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
    if tokenizer and family in ("aimv2", "clip", "clipseg", "metaclip2"):
        write_clip_tokenizer(folder)
    if tokenizer and family in ("align", "altclip", "blip", "blip-retrieval", "chinese-clip"):
        write_bert_tokenizer(folder)
    if tokenizer and family in ("siglip", "siglip2"):
        write_word_tokenizer(folder)
    return model
