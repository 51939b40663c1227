"""Figures that circulate about encoder memory, beside what follows from the encoders' own code.

    python -m benchmarks.folklore

All but the claims is worked out anew by each run. No weights are read and no GPU is needed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from encoders.adapters.registry import blueprint
from encoders.contract.values import ImageSize, TokenKind
from encoders.memory.plan import plan
from encoders.memory.prediction import CUDA, Prediction

_TOLERANCE = 0.10

_RULE = """\
Float32, which takes the most (bfloat16: half); MB = 10^6 bytes. Feature maps and activations: all that is alive at once
at the highest point of a forward that gives tokens, weights and input apart. True: within a tenth of what is said."""


@dataclass(frozen=True)
class Claim:
    """What is said and what is so, in the same unit. shown: the latter in words."""

    text: str
    said: float
    actual: float
    shown: str

    @property
    def verdict(self) -> str:
        """True within a tenth of what is said; else by how much it is off."""
        if abs(self.actual / self.said - 1) <= _TOLERANCE:
            return "true"
        off = self.said / self.actual
        return f"false: {off:.2g} times too high" if off > 1 else f"false: {1 / off:.2g} times too low"


def claims() -> list[Claim]:
    """Every claim with what is so. Takes seconds."""
    rn50 = _forwards("openclip:RN50@random", sides=(224, 448))
    rn101 = _forwards("openclip:RN101@random", sides=(224, 448), batches=(1, 32))
    vit = _forwards("openclip:ViT-L-14-336@random", sides=(336,))
    weights = rn101[224, 1].weights_bytes / 1e6
    growth = _maps(rn50[448, 1]) / _maps(rn50[224, 1])
    alone, many = (_held(rn101[448, batch]) / _held(rn101[224, batch]) for batch in (1, 32))
    # Four bits a weight, and a scale of sixteen bits for every 32 of them, as in llama.cpp's Q4_0.
    llm = 7e9 * (4 + 16 / 32) / 8 / 1e9
    return [
        Claim("ResNet-50 at 224: about 200 MB of feature maps", 200, *_megabytes(_maps(rn50[224, 1]))),
        Claim("448 quadruples that", 4, growth, f"x {growth:.2f}"),
        Claim("ViT-L/14 at 336 gives 576 tokens", 576, *_count(vit[336, 1].tokens)),
        Claim("ResNet-101 at 224 gives 49 tokens", 49, *_count(rn101[224, 1].tokens)),
        Claim("ResNet-101 at 448 gives 196 tokens", 196, *_count(rn101[448, 1].tokens)),
        Claim("ResNet-101: about 1 GB of weights", 1000, weights, f"{weights:.0f} MB, CLIP's text half included"),
        Claim("ResNet-101: about 0.5 GB of activations at batch 1", 500, *_megabytes(_maps(rn101[224, 1]))),
        Claim("448 doubles what the encoder takes", 2, alone, f"x {alone:.2f} at batch 1, x {many:.2f} at batch 32"),
        Claim("A language model of 7B at 4 bits takes about 4 GB", 4, llm, f"{llm:.1f} GB, its KV cache apart"),
    ]


def table(judged: Iterable[Claim]) -> str:
    """As Markdown, with the rule by which it was judged."""
    rows = [f"| {claim.text} | {claim.shown} | {claim.verdict} |" for claim in judged]
    return "\n".join(["| it is said | it is | so that is |", "|---|---|---|", *rows, "", _RULE])


def _forwards(
    encoder_id: str, *, sides: Iterable[int], batches: Iterable[int] = (1,)
) -> Mapping[tuple[int, int], Prediction]:
    """By side and batch."""
    drawn = blueprint(encoder_id)
    sizes = [ImageSize(side, side) for side in sides]
    outputs = drawn.spec.outputs(tokens=TokenKind.HIDDEN)
    rows = plan(drawn, sizes, list(batches), outputs, device="cuda", overhead=CUDA, room=None)
    return {(row.size.height, row.prediction.batch): row.prediction for row in rows}


def _maps(forward: Prediction) -> int:
    return forward.activation_bytes + forward.output_bytes


def _held(forward: Prediction) -> int:
    """All tensors: the device's own needs are apart."""
    return forward.weights_bytes + forward.io_bytes + forward.activation_bytes


def _megabytes(count: int) -> tuple[float, str]:
    return count / 1e6, f"{count / 1e6:.1f} MB"


def _count(tokens: int) -> tuple[float, str]:
    return tokens, str(tokens)


if __name__ == "__main__":
    print(table(claims()))
