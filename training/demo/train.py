"""Trains the demo models: first the shared text tower, then an image tower that meets it.

Knows steps, optimisers and checkpoints. Everything random is drawn from (seed, step), so a run that was stopped and
resumed computes what an unbroken run computes.
"""

import argparse
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from encoders.adapters.demo import saved
from encoders.adapters.demo.vocabulary import MERGES, WEIGHTS, tokenizer
from training.demo import dense, language, objective, saving
from training.demo.pool import Pool, PoolSpec, kept_pool
from training.demo.sketches import COLOURS
from training.demo.world import HELD_OUT, SEEN_SUBJECTS, SUBJECTS

_SEED = 1
_STEPS = {"text": 2100, "vit": 11500, "resnet": 1500, "convnext": 2000}
_PEAK_RATE = {"text": 1e-3, "vit": 1e-3, "resnet": 2e-3, "convnext": 2e-3}


@dataclass(frozen=True)
class Plan:
    """How one training runs.

    name: "text", "vit", "resnet" or "convnext".
    steps: Length of the schedule; the learning rate ends at zero there.
    batch: Scenes, or captions, a step.
    scenes: Drawings in the pool that the steps choose from.
    text_steps: Length of the text tower's own training, if it must be done first.
    """

    name: str
    steps: int
    batch: int = 64
    scenes: int = 40_000
    text_steps: int = _STEPS["text"]
    seed: int = _SEED
    peak_rate: float = 1e-3
    warmup: int = 100


def learning_rate(plan: Plan, step: int) -> float:
    """Linear warm-up, then a half cosine down to zero."""
    if step < plan.warmup:
        return plan.peak_rate * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


class Training:
    """A model, its optimiser and the number of steps done: what a checkpoint holds."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan = plan
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.checkpoint = folder / f"{plan.name}.checkpoint.pt"
        self.done = 0
        torch.manual_seed(plan.seed)
        tower = "convnext" if plan.name == "text" else plan.name
        described = saving.config(tower, embed_dim=language.EMBED_DIM)
        self.model: CLIP = saved.build(described["model_cfg"]).to(self.device)
        self.visual: nn.Module = self.model.visual
        if plan.name == "convnext":
            _wake(self.visual)
        if plan.name in ("resnet", "convnext"):
            self.model.to(memory_format=torch.channels_last)
        self.optimiser = torch.optim.AdamW(self._groups(), betas=(0.9, 0.98), eps=1e-8)

    def _groups(self) -> list[dict[str, object]]:
        """Matrices decay, vectors do not; the logit scale learns five times as fast."""
        if self.plan.name == "text":
            names = set(language.text_tower(self.model))
            learnt = [(n, p) for n, p in self.model.named_parameters() if n in names]
        else:
            learnt = list(self.visual.named_parameters())
        groups: list[dict[str, object]] = [
            {"params": [p for _, p in learnt if p.ndim >= 2], "weight_decay": 0.05, "pace": 1.0},
            {"params": [p for _, p in learnt if p.ndim < 2], "weight_decay": 0.0, "pace": 1.0},
        ]
        if self.plan.name != "text":
            groups.append({"params": [self.model.logit_scale], "weight_decay": 0.0, "pace": 5.0})
        return groups

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser at the schedule's rate."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.plan, self.done) * group["pace"]
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        nn.utils.clip_grad_norm_([p for g in self.optimiser.param_groups for p in g["params"]], 1.0)
        self.optimiser.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        self.done += 1

    def keep(self) -> None:
        """Writes the checkpoint; it is replaced whole or not at all."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict(), "done": self.done}
        torch.save(state, f"{self.checkpoint}.partial")
        os.replace(f"{self.checkpoint}.partial", self.checkpoint)

    def resume(self) -> bool:
        """Takes up the checkpoint if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done = int(state["done"])
        return True


def _wake(convnext: nn.Module) -> None:
    """Fan-in initialisation and layer scales of 0.5: timm's defaults (std .02, 1e-6) hardly learn in a short run."""
    for name, parameter in convnext.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif parameter.ndim >= 2:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")


def train_text(plan: Plan, folder: Path, *, stop: int | None = None, resume: bool = False) -> Training:
    """Trains the text tower on captions alone, to step `stop` (the end by default)."""
    training = Training(plan, folder)
    if resume:
        training.resume()
    encode = tokenizer()
    end = plan.steps if stop is None else stop
    with tqdm(total=plan.steps, initial=training.done, desc="text", mininterval=2) as bar:
        while training.done < end:
            rng = np.random.default_rng([plan.seed, 10, training.done])
            texts, places = zip(*(language.sample_caption(rng) for _ in range(plan.batch)), strict=True)
            embedded = training.model.encode_text(encode(list(texts)).to(training.device))
            loss = language.placement_loss(embedded, torch.from_numpy(np.stack(places)).to(training.device))
            training.update(loss)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    training.keep()
    return training


@torch.no_grad()
def _embedded(model: CLIP, texts: list[str]) -> Tensor:
    encode = tokenizer()
    device = model.logit_scale.device
    parts = [model.encode_text(encode(texts[k : k + 512]).to(device)) for k in range(0, len(texts), 512)]
    return functional.normalize(torch.cat(parts), dim=-1)


class Aims:
    """The losses of an image tower, over tables of text embeddings that never change."""

    def __init__(self, model: CLIP) -> None:
        self.model = model
        captions = objective.all_captions()
        self.rows = captions.rows
        self.captions = [_embedded(model, texts) for texts in captions.wordings]
        self.names = _embedded(model, objective.cell_names())
        self.nouns = _embedded(model, objective.nouns())
        device = self.names.device
        everything = objective.contents((subject,) for subject in SUBJECTS).to(device)
        self.words = torch.cat([everything, torch.zeros_like(everything[:1])])  # the last row: no subject
        said = objective.contents(captions.subjects).to(device)
        nouns = objective.contents(objective.noun_subjects()).to(device)
        seen = objective.contents([*((subject,) for subject in SEEN_SUBJECTS), ()]).to(device)
        self.said, self.noun_words = said, nouns
        self.skipped_names = objective.unjudged(seen, seen)
        self.skipped_nouns = objective.unjudged(seen, nouns)

    def losses(
        self,
        pooled: Tensor,
        cells: Tensor,
        subjects: NDArray[np.int64],
        boxes: NDArray[np.float32],
        *,
        coloured: int,
        step: int,
    ) -> dict[str, Tensor]:
        """What to add up. The first `coloured` images have their colours; of the others only the shapes are judged."""
        device = pooled.device
        scale = self.model.logit_scale.exp()
        numbers = torch.from_numpy(subjects).to(device)  # [B, 2]
        shown = self.words[numbers].any(dim=1)  # -1 takes the last row
        rows = torch.from_numpy(self.rows[subjects[:coloured, 0], subjects[:coloured, 1]]).to(device)
        labels = objective.cell_labels(subjects, boxes, (cells.shape[1], cells.shape[2])).to(device)
        known = labels.clamp(min=-1)  # what is ignored may skip anything
        return {
            "image": objective.image_loss(
                pooled[:coloured],
                self.captions[step % len(self.captions)],
                rows,
                scale,
                objective.unjudged(shown[:coloured], self.said),
            ),
            "cells": objective.cell_loss(
                cells[:coloured], self.names, labels[:coloured], scale, self.skipped_names[known[:coloured]]
            ),
            "nouns": objective.noun_loss(
                pooled,
                self.nouns,
                objective.named_nouns(subjects).to(device),
                scale,
                objective.unjudged(shown, self.noun_words),
            ),
            "blind": 2
            * objective.colour_blindness_loss(pooled[: len(pooled) - coloured], pooled[coloured:], self.nouns),
            "cell nouns": objective.cell_loss(
                cells, self.nouns, objective.noun_labels(labels), scale, self.skipped_nouns[known]
            ),
        }


def recolour(image: NDArray[np.float32], subjects: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float32]:
    """The image in other colours, or in grey: float32 [H, W, 3], 0 to 255.

    No shape gets the colour that is held out for it: its new paint must be far from that one, and nearer to another
    named colour. What remains is grey, between 60 and 190, so neither black nor white.
    """
    shapes = [SUBJECTS[number] for number in subjects if number >= 0 and SUBJECTS[number].colour is not None]
    for _ in range(4 if rng.random() < 0.8 else 0):
        mix = rng.dirichlet((0.4, 0.4, 0.4), size=3).astype(np.float32)
        gain = rng.uniform(0.6, 1.1, size=3).astype(np.float32)
        lift = rng.uniform(-10, 60, size=3).astype(np.float32)
        paints = [(COLOURS[str(shape.colour)] @ mix.T * gain + lift).clip(0, 255) for shape in shapes]
        if all(_is_allowed(paint, shape.name) for paint, shape in zip(paints, shapes, strict=True)):
            changed: NDArray[np.float32] = (image @ mix.T * gain + lift).clip(0, 255)
            return changed
    grey = image @ rng.dirichlet((2, 2, 2)).astype(np.float32)
    return np.repeat(60 + grey[..., None] * np.float32(130 / 255), 3, axis=-1)


def _is_allowed(paint: NDArray[np.float32], shape: str) -> bool:
    """Whether nobody would call this shape in this paint one of the held-out pairs."""
    away = {name: float(np.linalg.norm(paint - np.array(known))) for name, known in COLOURS.items()}
    held_out = next(str(pair.colour) for pair in HELD_OUT if pair.name == shape)
    return away[held_out] > 100 and min(away, key=lambda name: away[name]) != held_out


class SceneBatches:
    """Batches from a pool, mirrored, shifted, brighter or darker, recoloured. Batch k depends on (seed, k) only."""

    def __init__(self, pool: Pool, *, batch: int, seed: int) -> None:
        self.pool, self.batch, self.seed = pool, batch, seed
        self.mean = np.array(saving.PREPROCESSING["mean"], np.float32) * 255
        self.std = np.array(saving.PREPROCESSING["std"], np.float32) * 255

    @property
    def recoloured(self) -> int:
        """How many of each batch, the last ones, have lost their colours."""
        return self.batch // 2

    def __getitem__(self, step: int) -> tuple[Tensor, NDArray[np.int64], NDArray[np.float32]]:
        """Pixels [B, 3, H, W], subjects [B, 2] and boxes [B, 2, 4].

        The second half shows the scenes of the first again in other colours: it teaches shapes apart from colours.
        Otherwise "red is never a triangle", true of every training scene, is learnt before the shapes.
        """
        rng = np.random.default_rng([self.seed, 20, step])
        chosen = rng.integers(len(self.pool), size=self.batch)
        chosen[-self.recoloured :] = chosen[: self.recoloured]
        images = np.empty((self.batch, *self.pool.images.shape[1:]), np.float32)
        boxes = self.pool.boxes[chosen].copy()
        size = images.shape[1]
        along = np.arange(size)
        for row, number in enumerate(chosen):
            down, right = rng.integers(-6, 7, size=2)
            columns = np.clip(along + right, 0, size - 1)
            image = self.pool.images[number][np.clip(along + down, 0, size - 1)]
            boxes[row] -= np.array([right, down, right, down], np.float32) / size
            if rng.random() < 0.5:
                columns = columns[::-1]
                boxes[row] = np.stack(
                    [1 - boxes[row, :, 2], boxes[row, :, 1], 1 - boxes[row, :, 0], boxes[row, :, 3]], 1
                )
            images[row] = image[:, columns]
        gain = rng.uniform(0.85, 1.15, size=(self.batch, 1, 1, 1)).astype(np.float32)
        lift = rng.uniform(-12, 12, size=(self.batch, 1, 1, 1)).astype(np.float32)
        images = np.clip(images * gain + lift, 0, 255)
        for row in range(self.batch - self.recoloured, self.batch):
            images[row] = recolour(images[row], self.pool.subjects[chosen[row]], rng)
        images = (images - self.mean) / self.std
        return torch.from_numpy(images).permute(0, 3, 1, 2), self.pool.subjects[chosen], boxes


def train_image(
    plan: Plan, folder: Path, out: Path, *, stop: int | None = None, resume: bool = False, keep_every: int = 200
) -> Training:
    """Trains one image tower against the frozen text tower, to step `stop`, and saves the model in `out`.

    Args:
        plan: What to train and for how long.
        folder: Where the pool of drawings, the text tower and the checkpoints are kept.
        out: Where the configuration and the fp16 weights go, at every checkpoint.
        stop: Last step of this call; the end of the plan by default.
        resume: Take up the checkpoint in `folder`.
        keep_every: Steps between checkpoints.
    """
    pool = kept_pool(PoolSpec(saving.IMAGE_SIZE, plan.scenes, plan.seed), folder)
    text = _trained_text(plan, folder)
    training = Training(plan, folder)
    if resume:
        training.resume()
    training.model.load_state_dict(language.text_tower(text), strict=False)
    aims = Aims(training.model)
    batches = SceneBatches(pool, batch=plan.batch, seed=plan.seed)
    coloured = plan.batch - batches.recoloured
    end = plan.steps if stop is None else stop
    training.model.train()
    with tqdm(total=plan.steps, initial=training.done, desc=plan.name, mininterval=5) as bar:
        while training.done < end:
            pixels, subjects, boxes = batches[training.done]
            if plan.name != "vit":
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            pooled, cells = dense.features(training.visual, pixels.to(training.device))
            losses = aims.losses(pooled, cells, subjects, boxes, coloured=coloured, step=training.done)
            training.update(sum(losses.values(), torch.zeros((), device=training.device)))
            bar.update()
            if training.done % 20 == 0:
                bar.set_postfix({name: f"{loss.item():.3f}" for name, loss in losses.items()}, refresh=False)
            if training.done % keep_every == 0:
                training.keep()
                saving.save(training.model, plan.name, out, embed_dim=language.EMBED_DIM)
    training.keep()
    saving.save(training.model, plan.name, out, embed_dim=language.EMBED_DIM)
    return training


def _trained_text(plan: Plan, folder: Path) -> CLIP:
    """The text tower that all image towers share, trained now if it is not in `folder`."""
    text_plan = Plan("text", plan.text_steps, batch=2 * plan.batch, seed=plan.seed, warmup=plan.warmup)
    training = Training(text_plan, folder)
    if not training.resume() or training.done < text_plan.steps:
        training = train_text(text_plan, folder, resume=True)
    return training.model


def main(arguments: list[str] | None = None) -> None:
    """The command line: `python -m training.demo.train --help`."""
    parser = argparse.ArgumentParser(
        prog="python -m training.demo.train",
        description="Train one demo model on scenes that are drawn here. The first call draws the scenes (1.1 GB) and "
        "trains the text tower that the three models share (a few minutes each); then the image tower is trained: "
        "from a quarter of an hour (resnet) to an hour (vit) on one free core, less on a GPU, which is used if "
        "there is one. With a busy CPU give --threads 1: several threads then wait for each other.",
        epilog="Example: `python -m training.demo.train vit`, stop it with Ctrl-C, go on with `--resume`: the result "
        "is that of an unbroken run. Then `python -m training.demo.evaluate vit` measures it. "
        f"The vocabulary file must be there: `python -m training.demo.vocabulary` writes {MERGES.name}.",
    )
    parser.add_argument(
        "name", choices=["text", *saved.NAMES], help="what to train; 'text' is done by the others when needed"
    )
    parser.add_argument("--steps", type=int, help=f"length of the schedule, 64 scenes each (default: {_STEPS})")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the work folder")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder for NAME.json and NAME.safetensors")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(".training"),
        help="folder for drawings and checkpoints (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    plan = Plan(chosen.name, chosen.steps or _STEPS[chosen.name], peak_rate=_PEAK_RATE[chosen.name])
    if chosen.name == "text":
        plan = replace(plan, batch=2 * plan.batch)  # as when an image tower needs it
        train_text(plan, chosen.work, resume=chosen.resume)
    else:
        train_image(plan, chosen.work, chosen.out, resume=chosen.resume)


if __name__ == "__main__":
    main()
