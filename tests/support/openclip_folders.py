"""Tiny open_clip folders whose text tower is a model of transformers: seeded random weights, and a word tokenizer."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{index}" for index in range(40)]
_VOCABULARY = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
_IDS = {"vocab_size": 50, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
_M2M = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}

TEXT_MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "roberta": (
        transformers.RobertaConfig(**_SIZES, **_IDS, max_position_embeddings=100),
        {"hf_pooler_type": "mean_pooler"},
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig(**_SIZES, **_IDS, max_position_embeddings=100),
        {"hf_pooler_type": "mean_pooler"},
    ),
    "nllb": (
        transformers.M2M100Config(
            **_M2M, **_IDS, d_model=32, encoder_layers=2, decoder_layers=1, max_position_embeddings=100
        ),
        {"hf_pooler_type": "cls_pooler", "hf_proj_type": "linear"},
    ),
    "mt5": (
        transformers.MT5Config(**_IDS, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4),
        {"hf_pooler_type": "mean_pooler"},
    ),
    "coca": (
        transformers.RobertaConfig(**_SIZES, **_IDS, max_position_embeddings=100),
        {"hf_proj_type": "linear", "output_tokens": True, "width": 32},
    ),
}
"""The configuration of the text model, and open_clip's own options, as its architectures of that kind have them."""


def word_tokenizer(**options: Any) -> transformers.PreTrainedTokenizerFast:
    """A token a word, between <s> and </s>."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(_VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, pad_token="<pad>", unk_token="<unk>", **options
    )


def write(kind: str, folder: Path) -> Any:
    """The model, in eval mode, and its files in `folder`."""
    config, text_cfg = TEXT_MODELS[kind]
    config.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    model_cfg: dict[str, Any] = {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8},
        "text_cfg": {"hf_model_name": str(folder), "hf_tokenizer_name": "a-name/that-a-folder-replaces", **text_cfg},
    }
    if kind == "coca":
        model_cfg["vision_cfg"]["output_tokens"] = True
        model_cfg["multimodal_cfg"] = {"context_length": 76, "width": 32, "heads": 4, "layers": 1}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, load_weights=False).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    save_file(
        {name: value.clone() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return model
