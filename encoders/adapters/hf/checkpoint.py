"""A checkpoint in transformers' format, in a folder or on the Hub: its configuration, weights, tokenizer, processor.

Knows where things are and whether they fit; knows no architecture.
"""

import re
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from encoders.adapters.hf.preprocessing import Seen, seen_by
from encoders.adapters.hints import hint_for_folder, hint_for_name, read_json, timm_name
from encoders.adapters.registry import EncoderId
from encoders.contract.errors import EncoderIdError, VisiontowerError, WeightsError, in_brief
from encoders.runtime.weights import seeded
from encoders.runtime.weights_file import read_weights, refuse_adapter, require_weights

_TOKENIZERS = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model",
)  # fmt: skip
"""One of these makes a tokenizer."""

PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""One of these has the image processor's settings."""

_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".npz"}
CLASSIFIER = r"(classifier|decoder)\."
"""Heads of ...ForImageClassification and ...ForMaskedImageModeling."""


def _files_of_weights(folder: Path, encoder_id: str) -> list[Path]:
    """Those that transformers takes from a folder, one or several parts. Raises WeightsError if there are none."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            settings = read_json(index)
            parts = settings.get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise WeightsError(f"{index} names no files of weights (weight_map).", model=encoder_id)
            if not isinstance(settings.get("metadata"), dict):  # transformers looks into it
                raise WeightsError(f'{index} has no metadata: write "metadata": {{}} into it.', model=encoder_id)
            return [folder / str(part) for part in sorted(set(parts.values()))]
    others = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHT_SUFFIXES)
    found = f" It has {', '.join(others[:4])}." if others else ""
    raise WeightsError(
        f"{folder} has no model.safetensors and no pytorch_model.bin for {encoder_id}, nor parts of them.{found}",
        model=encoder_id,
    )


def _names_in(file: Path) -> list[str]:
    """The names in a safetensors file, without its tensors; none if it cannot be read."""
    try:
        with safe_open(file, framework="pt") as found:
            return list(found.keys())
    except Exception:  # read_weights says what is wrong with it
        return []


@contextmanager
def quiet() -> Iterator[None]:
    """No bars but those of downloads, and no report of keys: what the report says is raised as WeightsError."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    shows_downloads = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()  # the hub's downloads too, which take minutes
    if shows_downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is, and how its parts are read.

    Methods raise what transformers raises; `fitting` translates.
    """

    id: str
    name: str
    random: bool
    with_weights: bool
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder_id: EncoderId, *, with_weights: bool) -> "Checkpoint":
        """Raises EncoderIdError for a folder with a revision, WeightsError for a folder that is not there."""
        name, weights = encoder_id.name, encoder_id.weights
        is_folder = Path(name).is_dir()
        if Path(name).is_file():
            raise EncoderIdError(
                f"{name} is a file; {encoder_id} needs a folder with config.json. A file of weights goes with its "
                "architecture: openclip:ARCHITECTURE@FILE or timm:MODEL@FILE.",
                model=str(encoder_id),
            )
        if not is_folder and (hint := hint_for_name(name)):
            raise EncoderIdError(f"'{encoder_id}' is no id.{hint}", model=str(encoder_id))
        if not is_folder and name.startswith(("/", "./", "../", "~")):
            raise WeightsError(f"There is no folder {name} for {encoder_id}.", model=str(encoder_id))
        revision = None if encoder_id.is_random else weights
        if is_folder and revision is not None:
            raise EncoderIdError(
                f"'{encoder_id}': a folder has no revision; only '@random' can follow it.", model=str(encoder_id)
            )
        options = {"revision": revision or "main", "local_files_only": is_folder, "trust_remote_code": False}
        return cls(
            id=str(encoder_id),
            name=name,
            random=encoder_id.is_random,
            with_weights=with_weights,
            options=options,
        )

    def has(self, *files: str) -> bool:
        """Whether it has one of these files; a Hub that cannot be asked is an error, not a no."""
        if self.options["local_files_only"]:
            return any(Path(self.name, file).is_file() for file in files)
        return any(self._is_on_hub(file) for file in files)

    def _is_on_hub(self, file: str) -> bool:
        """By the cache, which also remembers what was found not to be there, else by asking; a file there is cached."""
        revision = self.options["revision"]
        cached = try_to_load_from_cache(self.name, file, revision=revision)
        if cached is not None:
            return isinstance(cached, str)
        try:
            hf_hub_download(self.name, file, revision=revision)
        except (LocalEntryNotFoundError, GatedRepoError):
            raise
        except EntryNotFoundError:
            return False
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise EncoderIdError(
                f"{self.id}: the Hub has no repository {self.name} with a revision {revision}, or keeps it private: "
                "then it needs HF_TOKEN.",
                model=self.id,
            ) from error
        return True

    def model_type(self) -> str:
        """What config.json says it is, read before any class is chosen.

        Raises WeightsError for a configuration that says nothing, EncoderIdError for one of another library's, with the
        id that loads it.
        """
        folder = Path(self.name) if self.options["local_files_only"] else None
        if folder is not None:
            refuse_adapter(folder, encoder_id=self.id)
        if not self.has("config.json"):
            raise WeightsError(f"{self.name} has no config.json.{self._meant()}", model=self.id)
        try:
            found, _ = transformers.PreTrainedConfig.get_config_dict(self.name, **self.options)
            model_type = found.get("model_type")
        except Exception as error:  # not JSON, not an object
            raise WeightsError(
                f"The config.json of {self.name} is no configuration: {in_brief(error)}", model=self.id
            ) from error
        if architecture := timm_name(found) if model_type in (None, "timm_wrapper") else None:
            tag = found.get("pretrained_cfg", {}).get("tag")
            name = f"{architecture}.{tag}" if tag and "." not in architecture else architecture
            hint = f" It is in timm's format: write timm:{name}" if folder is None else hint_for_folder(folder)
            raise EncoderIdError(f"{self.id} is no checkpoint of transformers.{hint}", model=self.id)
        if not isinstance(model_type, str):
            raise EncoderIdError(
                f"The config.json of {self.name} names no model_type, so it is not of transformers.{self._meant()}",
                model=self.id,
            )
        return model_type

    def refuse_quantised(self) -> None:
        """Raises WeightsError if config.json says that the weights are quantised."""
        found, _ = transformers.PreTrainedConfig.get_config_dict(self.name, **self.options)
        quantised = found.get("quantization_config")
        if quantised:
            method = quantised.get("quant_method", "") if isinstance(quantised, dict) else ""
            raise WeightsError(
                f"The weights of {self.name} are quantised ({method or 'quantization_config'}), which is not read: "
                "give those that they were made of.",
                model=self.id,
            )

    def _meant(self) -> str:
        """The id that loads it, as a sentence; empty if nothing is known of it."""
        if self.options["local_files_only"]:
            return hint_for_folder(Path(self.name))
        if self.has("adapter_config.json"):
            return " It is a PEFT adapter: merge it into its base model (merge_and_unload) and give the result."
        if self.has("open_clip_config.json"):
            return " It is in open_clip's format: `visiontower models --scheme openclip` lists the ids."
        if self.has("modules.json"):
            return f" It is of sentence-transformers: download it and write hf:FOLDER/0_CLIPModel for {self.name}."
        return ""

    def weights_files(self) -> list[Path]:
        """Of its folder, or of the hub's cache. Raises WeightsError if there are none."""
        if self.options["local_files_only"]:
            return _files_of_weights(Path(self.name), self.id)
        config = try_to_load_from_cache(self.name, "config.json", revision=self.options["revision"])
        if not isinstance(config, str):
            raise WeightsError(f"The cache has no {self.name} for {self.id}.", model=self.id)
        return _files_of_weights(Path(config).parent, self.id)

    def config(self) -> Any:
        """Its configuration, without the kernels for attention that it was trained with: they may not be here.

        Forwards are read by name, whatever it says of tuples. Nothing is quantised: weights that are do not fit.
        """
        found = transformers.AutoConfig.from_pretrained(self.name, **self.options)
        found._attn_implementation = None
        if hasattr(found, "quantization_config"):
            del found.quantization_config
        for each in (found, *(getattr(found, name, None) for name in found.sub_configs)):
            if each is not None:
                each.return_dict = True
        return found

    def model(self, architecture: Any, config: Any, *, unused: str = "", optional: str = "", **options: Any) -> Any:
        """The architecture with the checkpoint's weights, in float32 whatever they are stored in, so losing nothing.

        unused: a pattern of keys that belong to parts not loaded. optional: a pattern of keys that may be missing all
        together; their module is then set to None. options: further arguments of the architecture. Raises WeightsError
        that names the keys that do not fit.
        """
        if self.random or not self.with_weights:
            with seeded():
                return architecture(config, **options).float()

        def own() -> Set[str]:
            with torch.device("meta"):
                return set(architecture(config, **options).state_dict())

        weights = self._wrapped_weights(unused, own)
        source = {"state_dict": weights, "pretrained_model_name_or_path": None} if weights else self.options
        model, found = architecture.from_pretrained(
            **({"pretrained_model_name_or_path": self.name} | source),
            config=config,
            dtype=torch.float32,
            weights_only=True,
            ignore_mismatched_sizes=True,  # they are raised below, with the others
            output_loading_info=True,
            **options,
        )
        missing = set(found["missing_keys"])
        if optional:
            mine = {key for key in model.state_dict() if re.match(optional, key)}
            if mine <= missing:
                missing -= mine
                for name in {key.partition(".")[0] for key in mine}:
                    setattr(model, name, None)
        ignored = re.compile(rf"(.*\.)?position_ids$|({unused or '$^'})")
        unexpected = {key for key in found["unexpected_keys"] if not ignored.match(key)}
        misshapen = {f"{key} is {list(is_)}, must be {list(must)}" for key, is_, must in found["mismatched_keys"]}
        problems = [
            f"{what}: {', '.join(sorted(keys)[:8])}" + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("shapes", misshapen),
                ("errors", found["error_msgs"]),
            )
            if keys
        ]
        if problems:
            self.refuse_quantised()
            raise WeightsError(
                f"{self.name} does not fit {architecture.__name__}. {'; '.join(problems)}.",
                model=self.id,
                missing=sorted(missing),
                unexpected=sorted(unexpected),
            )
        return model

    def _wrapped_weights(self, unused: str, own: Callable[[], Set[str]]) -> dict[str, torch.Tensor] | None:
        """A folder's weights where transformers would not take them as they are; None where it does.

        It reads neither the names of torch.compile, DistributedDataParallel and Lightning nor what trainers save beside
        weights. unused: as `model`; what matches may be quantised. own: gives the names that the architecture has.
        Raises WeightsError that names the file for one that is not there, empty, or no file of weights.
        """
        folder = Path(self.name)
        if not folder.is_dir():
            return None
        files = _files_of_weights(folder, self.id)
        names: list[str] = []
        for file in files:
            require_weights(file, encoder_id=self.id, unused=unused)
            if file.suffix == ".safetensors":
                names += _names_in(file)
        is_prefixed = any("_orig_mod." in name or name.startswith("module.") for name in names) or (
            all(name.startswith("model.") for name in names) and own().isdisjoint(names)
        )
        if (names and not is_prefixed) or (len(files) > 1 and not names):
            return None
        known = own()
        read = (read_weights(file, encoder_id=self.id, own=known, unused=unused) for file in files)
        return {name: value for part in read for name, value in part.items()}

    def seen(self, default: str) -> Seen:
        """Its image processor's settings; those of the class named `default` if it has no file of them."""
        try:
            if self.has(*PROCESSORS):
                processor = transformers.AutoImageProcessor.from_pretrained(self.name, **self.options)
                return seen_by(processor, configured=True)
            return seen_by(getattr(transformers, default)(), configured=False)
        except VisiontowerError:
            raise
        except Exception as error:
            raise WeightsError(
                f"The preprocessing of {self.name} is not read: {in_brief(error)}", model=self.id
            ) from error

    def tokenizer(self, *, vocabulary: int) -> Any | None:
        """Its own tokenizer; None only for random weights. Raises WeightsError if it has none that fits.

        vocabulary: rows of the text tower's embedding table.
        """
        if not self.has(*_TOKENIZERS):
            if self.random:
                return None
            # AutoTokenizer would make one of two tokens and say nothing.
            raise WeightsError(f"{self.name} has no tokenizer files (tokenizer.json, ...) for its text tower.")
        self._require_whole_tokenizer()
        try:
            try:
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.name, **self.options)
            except Exception:  # its own class may need sentencepiece, and that a file of its own
                if not self.has("tokenizer.json"):
                    raise
                tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(self.name, **self.options)
        except Exception as error:
            raise WeightsError(
                f"The tokenizer of {self.name} does not load: {in_brief(error)}", model=self.id
            ) from error
        if not len(tokenizer.all_special_ids) < len(tokenizer) <= vocabulary:
            raise WeightsError(
                f"The tokenizer of {self.name} has {len(tokenizer)} tokens, its text tower {vocabulary}.", model=self.id
            )
        return tokenizer

    def _require_whole_tokenizer(self) -> None:
        """Raises WeightsError for a folder's tokenizer that lacks a part or has it empty: it may load, and be wrong."""
        if not self.options["local_files_only"]:
            return
        if not self.has("tokenizer.json", "merges.txt") and self.has("vocab.json"):
            raise WeightsError(f"{self.name} has a vocab.json without its merges.txt.", model=self.id)
        for file in (Path(self.name, name) for name in (*_TOKENIZERS, "merges.txt", "tokenizer_config.json")):
            if file.is_file() and not file.stat().st_size:
                raise WeightsError(f"{file} is empty: 0 bytes.", model=self.id)
