"""How much of each library is served: every model of its list as a blueprint, on tensors that hold no bytes.

    python -m benchmarks.coverage                       all models of open_clip, timm and transformers
    python -m benchmarks.coverage timm --sample 50      every n-th of 50
    python -m benchmarks.coverage -o rows.jsonl         goes on where an earlier run stopped
    python -m benchmarks.coverage -o rows.jsonl --markdown

A model works whole if its blueprint loads, and the shapes of final tokens, pooled vectors, layers and every further
output that its spec offers are what the spec says, at native size and at another, non-square one. The memory of a
forward is planned for every model of open_clip and transformers and for one of each of timm's modules.

No network: models need no weights, and the configurations of open_clip's text models, which are on the Hugging Face
hub, are written from their published sizes. Seconds are CPU time of the blueprint.
"""

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from encoders.adapters.registry import blueprint
from encoders.contract.errors import EncoderIdError, VisiontowerError
from encoders.contract.spec import EncoderSpec
from encoders.contract.values import Encoded, Floats, ImageSize, Outputs, TokenKind
from encoders.runtime.blueprint import TorchBlueprint

_WIDTH = 80


@dataclass(frozen=True)
class Row:
    """How one model fared.

    group: timm's module or transformers' model type. verdict: `native` runs at its own size alone; `refused` is told in
    a sentence of ours; `failed` is anything else. seconds: CPU time of the blueprint.
    """

    library: str
    name: str
    group: str
    verdict: Literal["whole", "native", "refused", "failed"]
    reason: str
    seconds: float


def examined(library: str, name: str, group: str, encoder_id: str, *, plans: bool = True) -> Row:
    """One model, tried. plans: whether the memory of a forward is planned too, which takes as long as all else."""
    begun = time.process_time()
    seconds = 0.0
    try:
        model = blueprint(encoder_id)
        seconds = time.process_time() - begun
        assert isinstance(model, TorchBlueprint)
        problem = _problem(model, plans=plans)
    except VisiontowerError as error:
        cause = f" ({error.__cause__})" if error.__cause__ and str(error.__cause__) not in str(error) else ""
        return Row(library, name, group, "refused", f"{error}{cause}", seconds or time.process_time() - begun)
    except Exception as error:
        return Row(library, name, group, "failed", f"{type(error).__name__}: {error}", time.process_time() - begun)
    if problem:
        return Row(library, name, group, "failed", problem, seconds)
    return Row(library, name, group, "native" if model.spec.resolutions.only else "whole", "", seconds)


def _problem(model: TorchBlueprint, *, plans: bool) -> str | None:
    """The first answer whose shape is not what the spec says; raises what a forward raises."""
    spec = model.spec
    final = spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    if plans:
        model.cost(spec.image_size, final, device="cpu")
    if plans and spec.has_text:
        model.text_cost(device="cpu")
    asked = [(spec.image_size, outputs) for outputs in _offered(spec)]
    other = _another_size(spec)
    if other != spec.image_size:
        asked.append((other, final))
    for size, outputs in asked:
        pixels = torch.empty(1, dtype=torch.uint8).expand(1, *size, 3).to("meta")
        with torch.inference_mode():
            features = model.run(pixels, outputs)
        encoded = Encoded(
            features.grid, features.prefix_tokens, _zeros_like(features.tokens), _zeros_like(features.pooled)
        )
        if problem := spec.mismatch(encoded, images=1, size=size, outputs=outputs):
            return f"{outputs} at {size}: {problem}"
    return None


def _zeros_like(values: Tensor | None) -> Floats | None:
    """An array of the shape, all of it one number."""
    return None if values is None else np.broadcast_to(np.float32(0), values.shape)


def _offered(spec: EncoderSpec) -> Iterator[Outputs]:
    """Final tokens with pooled vectors, a layer beside pooled vectors, and all else that the spec offers."""
    yield spec.outputs(tokens=TokenKind.HIDDEN, pooled=True)
    yield spec.outputs(tokens=TokenKind.HIDDEN, layer=max(-2, -spec.layers), pooled=True)
    if spec.projects:
        yield spec.outputs(tokens=TokenKind.PROJECTED)
    if spec.dense:
        yield spec.outputs(tokens=TokenKind.DENSE)


def _another_size(spec: EncoderSpec) -> ImageSize:
    """A size a third higher and a fifth narrower, or the nearest that the spec allows."""
    height, width = spec.image_size
    return spec.resolutions.nearest(ImageSize(height + height // 3, width - width // 5))[-1]


_TABLES = (
    "MODEL_FOR_IMAGE_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_BACKBONE_MAPPING_NAMES",
    "MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES",
    "MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES",
    "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
)
"""transformers' tables of models that read images: their keys are model types."""


def _timm() -> Iterator[tuple[str, Callable[[], Row]]]:
    import timm
    from timm.models import model_entrypoint

    planned: set[str] = set()
    for name in timm.list_models():
        module = model_entrypoint(name).__module__.rpartition(".")[2]
        yield name, partial(examined, "timm", name, module, f"timm:{name}@random", plans=module not in planned)
        planned.add(module)


def _openclip() -> Iterator[tuple[str, Callable[[], Row]]]:
    import open_clip

    for name in open_clip.list_models():
        yield name, partial(examined, "openclip", name, "", f"openclip:{name}@random")


def _transformers() -> Iterator[tuple[str, Callable[[], Row]]]:
    from transformers.models.auto import modeling_auto

    types = {name for table in _TABLES for name in getattr(modeling_auto, table)}
    for name in sorted(types | set(_supported_types())):
        yield name, partial(_of_type, name)


def _supported_types() -> list[str]:
    """The model types that `hf:` takes, by its own word."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text('{"model_type": "none"}')
        try:
            blueprint(f"hf:{folder}@random")
        except EncoderIdError as error:
            supported = error.facts["supported"]
            assert isinstance(supported, list)
            return supported
    raise AssertionError("hf: took a model type that is none")


def _of_type(name: str) -> Row:
    """A checkpoint with the default configuration of the model type."""
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as folder:
        try:
            AutoConfig.for_model(name).save_pretrained(folder)
        except Exception as error:
            return Row("transformers", name, name, "failed", f"no default configuration: {error}", 0.0)
        return examined("transformers", name, name, f"hf:{folder}@random")


_LIBRARIES = {"openclip": _openclip, "timm": _timm, "transformers": _transformers}

_TEXT_MODELS: dict[str, dict[str, object]] = {
    "roberta-base": {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514},
    "xlm-roberta-base": {"model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514},
    "xlm-roberta-large": {
        "model_type": "xlm-roberta", "vocab_size": 250002, "max_position_embeddings": 514, "hidden_size": 1024,
        "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
    },
    "google/mt5-base": {
        "model_type": "mt5", "vocab_size": 250112, "d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12,
        "num_heads": 12,
    },
    "google/mt5-xl": {
        "model_type": "mt5", "vocab_size": 250112, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
        "num_heads": 32,
    },
    "facebook/nllb-200-distilled-600M": {
        "model_type": "m2m_100", "vocab_size": 256206, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
        "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
    },
    "facebook/nllb-200-distilled-1.3B": {
        "model_type": "m2m_100", "vocab_size": 256206, "d_model": 1024, "encoder_layers": 24, "decoder_layers": 24,
        "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192,
    },
}  # fmt: skip
"""open_clip's text models of the hub, by their published sizes."""


@contextmanager
def hub_of_configurations() -> Iterator[None]:
    """A hub cache that holds the configurations of open_clip's text models, and nothing else.

    Enter it before a library that reads the hub is imported: they look up the place of the cache at import.
    """
    with tempfile.TemporaryDirectory() as cache:
        for name, config in _TEXT_MODELS.items():
            model = Path(cache) / f"models--{name.replace('/', '--')}"
            for folder in (model / "snapshots" / "0", model / "refs"):
                folder.mkdir(parents=True)
            (model / "refs" / "main").write_text("0")
            (model / "snapshots" / "0" / "config.json").write_text(json.dumps(config))
        before = dict(os.environ)
        os.environ |= {"HF_HUB_CACHE": cache, "HF_HUB_OFFLINE": "1"}
        try:
            yield
        finally:
            os.environ.clear()
            os.environ |= before


def examine(libraries: Sequence[str], *, sample: int | None, file: Path | None) -> list[Row]:
    """The rows of the libraries' models, those of `file` taken as they are and all others added to it."""
    rows = [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file and file.exists() else []
    known = {(row.library, row.name) for row in rows}
    rows = [row for row in rows if row.library in libraries]
    for library in libraries:
        models = list(_LIBRARIES[library]())
        chosen = models if sample is None else models[:: max(1, len(models) // sample)]
        for name, examined_now in tqdm(chosen, desc=library, unit=" models"):
            if (library, name) not in known:
                rows.append(examined_now())
                if file:
                    with file.open("a") as lines:
                        lines.write(json.dumps(asdict(rows[-1])) + "\n")
    return rows


_HEADER = ("library", "asked", "whole", "native only", "refused", "failed", "9 in 10", "slowest")


def totals(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """A line a library: models by verdict, and the seconds within which nine blueprints in ten and all are made."""
    lines = []
    for library in _LIBRARIES:
        own = [row for row in rows if row.library == library]
        if own:
            counts = Counter(row.verdict for row in own)
            numbers = [len(own), *(counts[verdict] for verdict in ("whole", "native", "refused", "failed"))]
            seconds = sorted(row.seconds for row in own)
            times = (f"{seconds[len(seconds) * 9 // 10]:.2f} s", f"{seconds[-1]:.2f} s")
            lines.append((library, *map(str, numbers), *times))
    return lines


def _shown(rows: Sequence[Row]) -> None:
    console = Console(width=_WIDTH)
    table = Table(*_HEADER)
    for line in totals(rows):
        table.add_row(*line)
    console.print(table)
    for row in rows:
        if row.verdict in ("refused", "failed"):
            console.print(f"{row.library} {row.name}: {row.verdict}. {row.reason}", markup=False, highlight=False)


def markdown(rows: Sequence[Row]) -> str:
    """The totals, the models that run at one size alone by their module, and those that do not work with the reason."""
    lines = [_line(_HEADER), _line("---" for _ in _HEADER), *map(_line, totals(rows))]
    for library in ("timm", "openclip"):
        native = [row for row in rows if row.library == library and row.verdict == "native"]
        if native:
            lines += ["", f"Native size only, {library}:", ""]
            groups = Counter(row.group or row.name for row in native)
            lines.append(", ".join(f"{group} {count}" if count > 1 else group for group, count in groups.items()))
    broken = [row for row in rows if row.verdict in ("refused", "failed")]
    if broken:
        lines += ["", "Refused or failed:", ""]
        by_reason: dict[tuple[str, str], list[str]] = {}
        for row in broken:
            unsupported = "which is not supported" in row.reason
            reason = "the model type is not supported" if unsupported else row.reason.split("\n")[0]
            by_reason.setdefault((row.library, reason), []).append(row.name)
        lines += [f"- {library}, {reason}: {', '.join(names)}" for (library, reason), names in by_reason.items()]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("libraries", nargs="*", choices=[*_LIBRARIES, []], help="default: all")
    parser.add_argument("--sample", type=int, help="about so many models of each library")
    parser.add_argument("-o", "--output", type=Path, help="a file of JSON lines, read first and added to")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="a JSON array of rows")
    shown.add_argument("--markdown", action="store_true", help="the tables of docs/coverage.md")
    given = parser.parse_args(arguments)
    with hub_of_configurations():
        rows = examine(given.libraries or list(_LIBRARIES), sample=given.sample, file=given.output)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
    elif given.markdown:
        print(markdown(rows))
    else:
        _shown(rows)


if __name__ == "__main__":
    main()
