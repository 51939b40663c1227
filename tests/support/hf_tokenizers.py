"""Tokenizers in the files that transformers' checkpoints have, for a few texts."""

import json
from functools import cache
from pathlib import Path

import open_clip
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TEXTS = [
    "a red circle",
    "a photo of a cat",
    "A Blue SQUARE, left of two cats and a dog! And some more words that do not fit",
]
WORDS = sorted({word for text in TEXTS for word in text.lower().replace(",", "").replace("!", "").split()})


@cache
def _clip_vocabulary() -> tuple[str, str]:
    own = open_clip.tokenizer.SimpleTokenizer()
    merges = [" ".join(pair) for pair in sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)]
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's for OpenAI's
    return json.dumps(
        {names.get(token, token): index for token, index in own.encoder.items()}
    ), "#version: 0.2\n" + "\n".join(merges) + "\n"


def write_clip_tokenizer(folder: Path) -> None:
    """CLIP's vocabulary and merges, from open_clip's copy, in the files that OpenAI's checkpoints have."""
    vocabulary, merges = _clip_vocabulary()
    (folder / "vocab.json").write_text(vocabulary)
    (folder / "merges.txt").write_text(merges)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "bos_token": "<|startoftext|>",
                "eos_token": "<|endoftext|>",
                "unk_token": "<|endoftext|>",
                "pad_token": "<|endoftext|>",
                "model_max_length": 77,
            }
        )
    )


def write_bert_tokenizer(folder: Path) -> None:
    """BERT's tokenizer with a few words, in the one file that its checkpoints have."""
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})
    )


def write_word_tokenizer(folder: Path) -> None:
    """A word-level tokenizer.json that ends and pads as SigLIP's does, under the name of its sentencepiece class."""
    words = {word: index for index, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(",", "")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "SiglipTokenizer",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "</s>",
                "model_input_names": ["input_ids"],
            }
        )
    )
