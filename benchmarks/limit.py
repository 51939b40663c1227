"""The limit: JPEG files to pooled vectors in full batches with all cores, in process, without a server.

    python -m benchmarks.limit --work vit-b-32 --runtime eager-bfloat16 --seconds 20

Ways to share out the cores are tried shortly, the best of them is measured. Answers are checked before anything is
timed. The last line printed is JSON.
"""

import argparse
import json
import multiprocessing
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import count
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from benchmarks.works import WORKS, Work
from encoders import decode, load
from encoders.adapters import openclip
from encoders.adapters.registry import EncoderId
from encoders.contract.encoder import Encoder, Placement
from encoders.contract.spec import Preprocessing
from encoders.contract.values import ImageSize, Pixels
from encoders.images.preprocess import enough, preprocess
from encoders.images.resample import resize
from encoders.memory.machine import available_cores
from encoders.runtime.torch_encoder import TorchEncoder

Prepare: TypeAlias = Callable[[bytes], Pixels]
"""JPEG file -> uint8 [H, W, 3] at the model's size."""

Forward: TypeAlias = Callable[[Tensor], Tensor]
"""uint8 [B, H, W, 3] -> [B, E]."""

_TRIAL_S = 4.0
_WARMUP_S = 1.5


@dataclass(frozen=True)
class Plan:
    """How the cores are shared out, in each of `processes`.

    decoders: threads that make batches; with 0 a lane decodes its own. lanes: forwards side by side, of `threads` each.
    """

    processes: int
    decoders: int
    lanes: int
    threads: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Plan":
        """Five numbers with commas, as __str__ writes them."""
        return cls(*map(int, text.split(",")))

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


class Limit(NamedTuple):
    """What was reached, and how."""

    images_per_s: float
    runtime: str
    decoder: str
    plan: str


def plans(cores: int) -> list[Plan]:
    """What is worth trying: everything alone on a core; decoding beside one wide forward, or beside narrow ones."""
    alone = [Plan(cores, 0, 1, 1, batch) for batch in (8, 16, 32)]
    beside = [
        Plan(1, decoders, lanes, cores // lanes, batch)
        for decoders, lanes in ((cores, 1), (cores, cores), (1, 1))
        for batch in (8, 16)
    ]
    return alone + beside


def limit(work: Work, *, runtime: str, seconds: float, decoder: str | None = None, plan: Plan | None = None) -> Limit:
    """The best there is. decoder, plan: None to try all. Raises ValueError if a vector is not what it must be."""
    decoder = decoder or fastest_decoder(work)
    if plan is None:
        tried = plans(available_cores())
        rates = _measure(work, runtime, decoder, tried, seconds=_TRIAL_S)
        for each, rate in zip(tried, rates, strict=True):
            print(f"{work.name} {runtime} {decoder} {each}: {rate:.1f} images/s", file=sys.stderr)
        plan = tried[int(np.argmax(rates))]
    (rate,) = _measure(work, runtime, decoder, [plan], seconds=seconds)
    return Limit(rate, runtime, decoder, str(plan))


def fastest_decoder(work: Work) -> str:
    """By one thread's time over the pictures."""
    torch.set_num_threads(1)
    jpegs = work.pictures[:16]
    seconds = {
        name: min(_time(make(work.preprocessing, work.side), jpegs) for _ in range(2))
        for name, make in DECODERS.items()
    }
    return min(seconds, key=seconds.__getitem__)


def _time(prepare: Prepare, jpegs: Sequence[bytes]) -> float:
    started = time.perf_counter()
    for jpeg in jpegs:
        prepare(jpeg)
    return time.perf_counter() - started


# The parts: decoders and runtimes by name.


def _as_served(how: Preprocessing, side: int) -> Prepare:
    """As the service does by default."""
    size = ImageSize(side, side)
    return lambda jpeg: preprocess(decode(jpeg, at_least=enough(how, size)), how, size, resize=resize)


_RGB = 3
"""torchvision.io.ImageReadMode.RGB."""


def _torchvision(how: Preprocessing, side: int) -> Prepare:
    import torchvision.io  # type: ignore[import-untyped]  # noqa: F401  # registers the operator
    from torchvision.transforms.v2 import functional as F  # type: ignore[import-untyped]

    target = [side, side] if how.resize == "squash" else [side]  # the latter is of the shorter side

    def prepare(jpeg: bytes) -> Pixels:
        # Not by way of torchvision.io.decode_jpeg, which since 0.29 warns at each call that it will be removed.
        image = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(jpeg), dtype=torch.uint8), _RGB, False)
        resized = F.resize(image, target, interpolation=F.InterpolationMode.BICUBIC, antialias=True)
        pixels: Pixels = F.center_crop(resized, [side, side]).permute(1, 2, 0).numpy()
        return pixels

    return prepare


DECODERS: dict[str, Callable[[Preprocessing, int], Prepare]] = {
    "service": _as_served,
    "torchvision": _torchvision,
}
"""By how a model sees a picture, bicubic and whole, and the side of its square. The forward applies mean and std."""


def _eager(work: Work, dtype: str) -> Forward:
    return _forward(load(work.encoder_id, Placement(dtype=dtype)))


def _forward(encoder: Encoder) -> Forward:
    """By PyTorch."""
    assert isinstance(encoder, TorchEncoder)
    outputs = encoder.spec.outputs(pooled=True)

    def forward(pixels: Tensor) -> Tensor:
        pooled = encoder.run(pixels, outputs).pooled
        assert pooled is not None
        return pooled

    return forward


def _channels_last(work: Work, dtype: torch.dtype) -> Forward:
    """open_clip's own model as it comes, the channels of a pixel together: PyTorch without anything of ours."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{work.folder}").eval().to(dtype=dtype, memory_format=torch.channels_last)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (work.preprocessing.mean, work.preprocessing.std))

    def forward(pixels: Tensor) -> Tensor:
        seen = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
        pooled: Tensor = model.encode_image(seen.to(dtype=dtype, memory_format=torch.channels_last))
        return pooled

    return forward


def _inductor(work: Work, dtype: str) -> Forward:
    """With its weights folded in as constants. Compiles anew for every batch size: half a minute each."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    # As it is made for OpenVINO: with plain weights, which the compiler lays out itself.
    parts = openclip.build(EncoderId.parse(work.encoder_id), with_weights=True)
    plain = TorchEncoder(parts.spec, parts.tower, parts.text, placement=Placement(dtype=dtype, runtime=_OPENVINO))
    compiled: Forward = torch.compile(_forward(plain), dynamic=False)
    return compiled


def _openvino(work: Work, dtype: str, lanes: int) -> Forward:
    """For so many threads to call at once, each with as many of its own as torch has now."""
    threads = torch.get_num_threads()
    _set_threads(lanes * threads)
    encoder = load(work.encoder_id, Placement(dtype=dtype, runtime=_OPENVINO, lanes=lanes))
    _set_threads(threads)
    if encoder.spec.runtime != _OPENVINO:
        raise ValueError(f"OpenVINO does not take {work.model}")
    outputs = encoder.spec.outputs(pooled=True)

    def forward(pixels: Tensor) -> Tensor:
        pooled = encoder.encode(pixels.numpy(), outputs).pooled
        assert pooled is not None
        return torch.from_numpy(pooled)

    return forward


_OPENVINO = "openvino"
RUNTIMES: dict[str, Callable[[Work, int], Forward]] = {
    "eager-float32": lambda work, lanes: _eager(work, "float32"),
    "eager-bfloat16": lambda work, lanes: _eager(work, "bfloat16"),
    "channels-last-bfloat16": lambda work, lanes: _channels_last(work, torch.bfloat16),
    "inductor-bfloat16": lambda work, lanes: _inductor(work, "bfloat16"),
    "openvino-bfloat16": lambda work, lanes: _openvino(work, "bfloat16", lanes),
}
"""By the work and how many lanes will run it."""


# The measurement.


def _measure(work: Work, runtime: str, decoder: str, tried: Sequence[Plan], *, seconds: float) -> list[float]:
    """Images a second of each plan; those of equal `processes` in the same processes, for loading takes long."""
    rates: dict[Plan, float] = {}
    for processes in sorted({plan.processes for plan in tried}):
        same = [plan for plan in tried if plan.processes == processes]
        for plan, rate in zip(same, _in_processes(processes, work, runtime, decoder, same, seconds), strict=True):
            rates[plan] = rate
    return [rates[plan] for plan in tried]


def _in_processes(
    processes: int, work: Work, runtime: str, decoder: str, same: Sequence[Plan], seconds: float
) -> list[float]:
    """Spawned, not forked: a fork of a process that has run torch's threads hangs."""
    context = multiprocessing.get_context("spawn")
    together = context.Barrier(processes)
    answers: Any = context.Queue()
    arguments = (work.name, runtime, decoder, list(same), seconds, together, answers)
    workers = [context.Process(target=_worker, args=arguments, daemon=True) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        lists = [_receive(answers, workers) for _ in workers]
    finally:
        for worker in workers:
            worker.join(30)
            worker.kill()
    return [sum(rates) for rates in zip(*lists, strict=True)]


def _receive(answers: Any, workers: Sequence[Any]) -> list[float]:
    """Raises RuntimeError if a worker has died."""
    while True:
        try:
            rates: list[float] = answers.get(timeout=1)
        except queue.Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise RuntimeError("a process of the limit has ended: what it said stands above") from None
        else:
            return rates


def _worker(
    name: str, runtime: str, decoder: str, same: Sequence[Plan], seconds: float, together: Barrier, answers: Any
) -> None:
    work = WORKS[name]
    prepare = DECODERS[decoder](work.preprocessing, work.side)
    forwards: dict[tuple[int, int], Forward] = {}
    rates = []
    for plan in same:
        _set_threads(plan.threads)
        shape = plan.threads, plan.lanes
        if shape not in forwards:
            forwards[shape] = RUNTIMES[runtime](work, plan.lanes)
            with torch.inference_mode():
                _check(work, prepare, forwards[shape], batch=plan.batch)
        forward = forwards[shape]
        _warm_up(plan, work, forward)
        together.wait()
        rates.append(_rate(_run(plan, work.pictures, prepare, forward, seconds=_WARMUP_S + seconds)))
    answers.put(rates)


def _check(work: Work, prepare: Prepare, forward: Forward, *, batch: int) -> None:
    """The fast path against the reference: the issue's bar is cosine 0.999 a vector."""
    pixels = [prepare(jpeg) for jpeg in work.pictures[:batch]]
    padded = np.stack(pixels + pixels[:1] * (batch - len(pixels)))
    vectors = forward(torch.from_numpy(padded)).float().numpy()[: len(pixels)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (vectors * work.references[: len(pixels)]).sum(axis=1)
    if cosines.min() < 0.999:
        raise ValueError(f"{work.name}: the limit's vectors are at cosine {cosines.min():.5f} to the reference")


def _warm_up(plan: Plan, work: Work, forward: Forward) -> None:
    with torch.inference_mode():
        forward(torch.zeros(plan.batch, work.side, work.side, 3, dtype=torch.uint8))


Mark: TypeAlias = tuple[float, int]
"""When a batch was done, and how many images it had."""


def _run(plan: Plan, jpegs: Sequence[bytes], prepare: Prepare, forward: Forward, *, seconds: float) -> list[Mark]:
    """Batches done after the warm-up."""
    ends = time.perf_counter() + seconds
    opens = ends - seconds + _WARMUP_S
    ready: queue.Queue[Tensor] = queue.Queue(2 * plan.lanes)
    indices = count()  # next() of it is atomic
    marks: list[Mark] = []
    done = threading.Event()

    def batch() -> Tensor:
        return torch.from_numpy(np.stack([prepare(jpegs[next(indices) % len(jpegs)]) for _ in range(plan.batch)]))

    def decode_on() -> None:
        _set_threads(1)
        while not done.is_set():
            made = batch()
            while not done.is_set():
                try:
                    ready.put(made, timeout=0.2)
                    break
                except queue.Full:
                    continue

    def forward_on() -> None:
        _set_threads(plan.threads)
        with torch.inference_mode():
            while time.perf_counter() < ends:
                forward(ready.get() if plan.decoders else batch())
                marks.append((time.perf_counter(), plan.batch))

    decoders = [threading.Thread(target=decode_on) for _ in range(plan.decoders)]
    lanes = [threading.Thread(target=forward_on) for _ in range(plan.lanes)]
    for thread in (*decoders, *lanes):
        thread.start()
    for thread in lanes:
        thread.join()
    done.set()
    for thread in decoders:
        thread.join()
    return sorted(mark for mark in marks if mark[0] >= opens)


def _set_threads(number: int) -> None:
    """For the calling thread. torch gives a thread the number set last anywhere when that thread first asks."""
    torch.get_num_threads()
    torch.set_num_threads(number)


def _rate(marks: Sequence[Mark]) -> float:
    """Images a second from the end of the first batch to the end of the last; 0 if there were less than two."""
    if len(marks) < 2:
        return 0.0
    return sum(images for _, images in marks[1:]) / (marks[-1][0] - marks[0][0])


def main() -> None:
    """Prints the limit as JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.limit", description=__doc__.splitlines()[0])
    parser.add_argument("--work", choices=WORKS, default="vit-b-32")
    parser.add_argument("--runtime", choices=RUNTIMES, default="eager-bfloat16")
    parser.add_argument("--decoder", choices=DECODERS, help="[the fastest]")
    parser.add_argument("--plan", type=Plan.parse, help=f"{','.join(Plan.__annotations__)} [the best of some]")
    parser.add_argument("--seconds", type=float, default=20.0)
    a = parser.parse_args()
    reached = limit(WORKS[a.work], runtime=a.runtime, seconds=a.seconds, decoder=a.decoder, plan=a.plan)
    print(json.dumps(reached._asdict()))


if __name__ == "__main__":
    main()
