"""Forwards of text towers beside the best that the same weights give in other ways, in process: texts a second.

    python -m benchmarks.text_towers
    python -m benchmarks.text_towers --model vit-b-32,siglip-b-16 --batch 1,64 --cores 1 --cpu-time

Ours is `Encoder.encode_text`. Beside it lie open_clip's own forward in bfloat16, as it comes and with no column of
padding that no text of the batch needs, and OpenVINO's graph of exactly that shape. SigLIP reads its padding, so there
nothing can be left out. Weights are random. All lie in one process and take turns; figures are medians of the rounds.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.serve import names
from benchmarks.works import WORKS, Work
from encoders import load
from encoders.contract.encoder import Encoder
from encoders.contract.values import Floats, TokenIds
from encoders.memory.machine import available_cores
from encoders.runtime.device import resolve

MODELS = ("vit-b-32", "vit-l-14", "siglip-b-16")
LENGTHS: Mapping[str, tuple[int, int]] = {"labels": (3, 10), "sentences": (20, 30), "full": (77, 77)}
"""Tokens of the shortest and the longest text of a kind, those around it included; cut to the model's context."""
_ALIKE = 0.999
"""Least cosine to open_clip's own forward in float32 with which a way is measured."""
_WORDS = range(1000, 30_000)
_WIDTH = 120

Forward: TypeAlias = Callable[[TokenIds], Floats]
"""int64 [N, context] -> [N, E]."""


@dataclass(frozen=True)
class Row:
    """texts_per_s: of each way, ours first."""

    model: str
    texts: str
    batch: int
    texts_per_s: Mapping[str, float]

    @property
    def of_best(self) -> float:
        """Ours, as a share of the best other way."""
        ours, *others = self.texts_per_s.values()
        return ours / max(others)


def ids_of(texts: str, batch: int, *, context: int, pads: bool) -> tuple[TokenIds, int]:
    """Random texts, and the columns that they need. pads: whether a model reads no padding, which is 0.

    The largest id ends a text, as CLIP's does.
    """
    rng = np.random.default_rng(0)
    low, high = (min(length, context) for length in LENGTHS[texts])
    lengths = rng.integers(low, high + 1, size=batch)
    ids = np.zeros((batch, context), dtype=np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [49406, *rng.choice(_WORDS, length - 2), 49407]
    return ids, int(lengths.max()) if pads else context


def measure(
    work: Work, texts: str, batch: int, *, seconds: float, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> Row:
    """Raises ValueError if a way gives other vectors."""
    plain = _text_half(work)
    context = plain.positional_embedding.shape[0]
    ids, columns = ids_of(texts, batch, context=context, pads=plain.attn_mask is not None)
    with torch.inference_mode():
        wanted = plain(torch.from_numpy(ids)).numpy()
    ways = dict(_ways(work, plain, ids, columns=columns))
    for name, forward in ways.items():
        _require_alike(name, forward(ids), wanted)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, forward in ways.items():
            forward(ids)
            started, done = clock(), 0
            while (spent := clock() - started) < seconds:
                forward(ids)
                done += batch
            rates[name].append(done / spent)
    return Row(work.model, texts, batch, {name: median(found) for name, found in rates.items()})


def _ways(work: Work, plain: "_TextHalf", ids: TokenIds, *, columns: int) -> Iterator[tuple[str, Forward]]:
    yield "ours", _ours(work).encode_text
    yield "open_clip", _by_torch(plain, columns=ids.shape[1])
    if columns < ids.shape[1]:
        yield "open_clip, cut", _by_torch(plain, columns=columns)
    yield "OpenVINO, cut", _by_openvino(plain, ids[:, :columns])


@lru_cache(maxsize=1)
def _ours(work: Work) -> Encoder:
    return load(work.encoder_id, resolve("cpu"))


class _TextHalf(nn.Module):
    """open_clip's own forward, of as many columns as its positions have."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def half(self) -> Any:
        """Where its parts are."""
        return getattr(self.model, "text", self.model)

    @property
    def positional_embedding(self) -> Tensor:
        """[context, C]."""
        positions: Tensor = self.half.positional_embedding
        return positions

    @property
    def attn_mask(self) -> Tensor | None:
        """[context, context], of a causal tower."""
        mask: Tensor | None = self.half.attn_mask
        return mask

    def forward(self, ids: Tensor) -> Tensor:
        """[N, context] -> [N, E]."""
        embedded: Tensor = self.model.encode_text(ids)
        return embedded

    def cut(self, columns: int) -> "_TextHalf":
        """A copy for so many columns."""
        made = copy.deepcopy(self)
        made.half.positional_embedding = nn.Parameter(self.positional_embedding[:columns].clone(), requires_grad=False)
        if self.attn_mask is not None:
            made.half.attn_mask = self.attn_mask[:columns, :columns].clone()
        return made


@lru_cache(maxsize=1)
def _text_half(work: Work) -> _TextHalf:
    import open_clip

    model = open_clip.create_model(f"local-dir:{work.folder}").eval().requires_grad_(False)
    model.visual = nn.Identity()
    return _TextHalf(model)


def _by_torch(plain: _TextHalf, *, columns: int) -> Forward:
    half = plain.cut(columns).to(torch.bfloat16)

    def forward(ids: TokenIds) -> Floats:
        with torch.inference_mode():
            embedded: NDArray[np.float32] = half(torch.from_numpy(ids[:, :columns])).float().numpy()
        return embedded

    return forward


def _by_openvino(plain: _TextHalf, ids: TokenIds) -> Forward:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    frontend = FrontEndManager().load_by_framework("pytorch")  # convert_model, which wraps it, tells its makers
    half = plain.cut(ids.shape[1])
    decoder = TorchScriptPythonDecoder(half, example_input=(torch.from_numpy(ids),))  # frontends do not hold it
    model = frontend.convert(frontend.load(decoder))
    model.reshape({model.inputs[0]: ids.shape})
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": 1}
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    columns = ids.shape[1]

    def forward(ids: TokenIds) -> Floats:
        embedded: Floats = request.infer({0: np.ascontiguousarray(ids[:, :columns])}, share_inputs=True)[0]
        return embedded

    return forward


def _require_alike(name: str, given: Floats, wanted: Floats) -> None:
    given = np.asarray(given, np.float32)
    cosines = (given * wanted).sum(axis=1) / np.linalg.norm(given, axis=1) / np.linalg.norm(wanted, axis=1)
    if not cosines.min() >= _ALIKE:
        raise ValueError(f"{name} gives vectors at cosine {cosines.min():.5f} to open_clip's in float32")


def table(rows: list[Row]) -> Table:
    """A line a row, a column a way."""
    ways = list(dict.fromkeys(way for row in rows for way in row.texts_per_s))
    shown = Table("model", "texts", "batch", *ways, "ours, of the best", box=None, pad_edge=False)
    for row in rows:
        rates = [f"{row.texts_per_s[way]:.4g}" if way in row.texts_per_s else "" for way in ways]
        shown.add_row(row.model, row.texts, str(row.batch), *rates, f"{row.of_best:.0%}")
    return shown


def main() -> None:
    """Prints a line a setting as it is measured, and the table."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.text_towers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = lambda text: [int(each) for each in text.split(",")]  # noqa: E731
    parser.add_argument("--model", type=names(MODELS), default=list(MODELS), help=f"of {', '.join(MODELS)} [all]")
    parser.add_argument("--texts", type=names(LENGTHS), default=list(LENGTHS), help=f"of {', '.join(LENGTHS)} [all]")
    parser.add_argument("--batch", type=numbers, default=[1, 8, 64], help="[1,8,64]")
    parser.add_argument("--cores", type=int, default=available_cores(), help="that a forward takes [all]")
    parser.add_argument("--cpu-time", action="store_true", help="of processor time: for a machine that others use too")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn [1]")
    parser.add_argument("--rounds", type=int, default=5, help="[5]")
    a = parser.parse_args()
    torch.set_num_threads(a.cores)
    clock = time.process_time if a.cpu_time else time.perf_counter
    rows = []
    for model, texts, batch in product(a.model, a.texts, a.batch):
        row = measure(WORKS[model], texts, batch, seconds=a.seconds, rounds=a.rounds, clock=clock)
        rates = ", ".join(f"{way} {rate:.4g}" for way, rate in row.texts_per_s.items())
        print(f"{model} {texts} x{batch}: {rates} texts/s", flush=True)
        rows.append(row)
    Console(width=_WIDTH).print(table(rows))


if __name__ == "__main__":
    main()
