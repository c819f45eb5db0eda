"""Trains the embedded generalist on synthetic images: `python -m nnunet_semisam.sam.embedded.train --out DIR --ndim 3`.

Step s draws its examples from (seed, s), so a run that was stopped goes on from its checkpoint as if nothing had
happened, and the same command gives the same examples. `--minutes` only limits how long one call works. After both
networks are trained, `--pack FILE` writes them into one weights file.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.sam.embedded import load_generalists
from nnunet_semisam.sam.embedded.network import PromptableUNet
from nnunet_semisam.sam.embedded.sampling import KINDS, Example, draw_example
from nnunet_semisam.sam.embedded.shapes import LabelMap, random_label_map
from nnunet_semisam.sam.embedded.synthesis import CLEAR, FAINT, Contrast


@dataclass(frozen=True)
class Phase:
    """A part of the training: up to which step, and how strong the corruption of mask prompts may be.

    `cycle` is the last step of the learning rate's cycle that the phase belongs to.
    """

    until: int
    hardest: float
    cycle: int
    kinds: Mapping[str, float] = field(default_factory=lambda: KINDS)
    contrast: Contrast = CLEAR


# first learn to use the image, then to spare good prompts; a second cycle learns all of it, with more boxes and points;
# a third one (3D) sees targets whose borders are faint, or missing in part
MORE_BOXES = {"mask": 0.6, "box": 0.16, "box and point": 0.12, "points": 0.12}
PHASES = {
    2: (Phase(409, 1.2, 900), Phase(900, 0.7, 900), Phase(2400, 1.0, 2400, MORE_BOXES)),
    3: (
        *(Phase(766, 1.2, 1450), Phase(1450, 0.7, 1450), Phase(4800, 1.0, 4800, MORE_BOXES)),
        Phase(7500, 1.0, 7500, MORE_BOXES, FAINT),
    ),
}
# grid of the frame, side of synthetic patches, width, pool of label maps, batch
SETTINGS: dict[int, dict[str, int]] = {
    2: {"grid": 64, "side": 96, "width": 40, "maps": 3000, "batch": 24},
    3: {"grid": 32, "side": 40, "width": 32, "maps": 1200, "batch": 8},
}
VALIDATION_MAPS, VALIDATION_EXAMPLES, VALIDATION_SEED = 64, 64, 987654321
_LAYOUT = {2: torch.channels_last, 3: torch.channels_last_3d}


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, then trains or packs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, cache and log")
    parser.add_argument("--ndim", type=int, choices=(2, 3), default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time; call again to go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--start", type=Path, metavar="FILE", help="packed weights to begin with, at their step")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="only write the trained networks of --out into FILE")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.pack:
        pack(args.out, args.pack, args.start)
    else:
        train(args)


def train(args: argparse.Namespace) -> None:
    """The loop: examples, loss, step, EMA; every few minutes a checkpoint and the synthetic validation."""
    started, settings = time.monotonic(), SETTINGS[args.ndim]
    phases = PHASES[args.ndim]
    steps = phases[-1].until
    torch.manual_seed(args.seed)
    network = PromptableUNet(args.ndim, settings["width"]).to(memory_format=_LAYOUT[args.ndim])
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.02)
    checkpoint = args.out / f"checkpoint_{args.ndim}d.pt"
    first = _resume(checkpoint, network, average, optimizer)
    if args.start and not first:
        first = _start(args.start, args.ndim, network, average)
    maps = label_maps(args.out, args.ndim, settings["maps"], args.seed)
    held_out = label_maps(args.out, args.ndim, VALIDATION_MAPS, VALIDATION_SEED)
    saved, seen = time.monotonic(), []
    for step in range(first, steps):
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        phase = next(phase for phase in phases if step < phase.until)
        asked: dict[str, Any] = {"hardest": phase.hardest, "kinds": phase.kinds, "contrast": phase.contrast}
        examples = [draw_example(maps, settings["grid"], rng, **asked) for _ in range(settings["batch"])]
        for group in optimizer.param_groups:
            group["lr"] = args.lr * schedule(step, phases)
        seen.append(_update(network, average, optimizer, examples, step))
        late = time.monotonic() - started > 60 * args.minutes
        if late or step + 1 == steps or time.monotonic() - saved > 600:
            _save(checkpoint, network, average, optimizer, step + 1, args)
            report = validate(average, held_out, settings["grid"])
            _log(args, step + 1, sum(seen) / len(seen), report, started)
            saved, seen = time.monotonic(), []
        if late:
            break


def schedule(step: int, phases: Sequence[Phase]) -> float:
    """Share of the learning rate: in every cycle 100 steps of warm-up, flat, linear to zero over the last 40 %."""
    end = next(phase.cycle for phase in phases if step < phase.cycle)
    start = max((phase.cycle for phase in phases if phase.cycle <= step), default=0)
    return min(1.0, (step - start + 1) / 100, (end - step) / (0.4 * (end - start)))


def loss_of(network: PromptableUNet, examples: list[Example]) -> Tensor:
    """Dice + cross entropy (voxels where the prompt is wrong count more) + the IoU that the quality head should say."""
    channels = torch.stack([example.channels for example in examples])
    truth = torch.stack([example.truth for example in examples])
    guess = torch.stack([example.guess for example in examples])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, quality = network(channels)
    valid, axes = channels[:, 1], tuple(range(1, truth.ndim))
    weight = valid * (1 + (truth - guess).abs())
    entropy = F.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum") / weight.sum()
    prob = logits.sigmoid() * valid
    overlap = 1 - (2 * (prob * truth).sum(axes) + 1) / (prob.sum(axes) + truth.sum(axes) + 1)
    reached = iou((logits.detach() > 0).float() * valid, (truth > 0.5).float())
    return overlap.mean() + 2 * entropy + 0.2 * F.binary_cross_entropy_with_logits(quality, reached)


def iou(first: Float[Tensor, "P *G"], second: Float[Tensor, "P *G"]) -> Float[Tensor, " P"]:
    """Intersection over union of 0/1 masks, per item."""
    axes = tuple(range(1, first.ndim))
    both = (first * second).sum(axes)
    return both / (first.sum(axes) + second.sum(axes) - both).clamp(min=1)


@torch.no_grad()
def validate(network: PromptableUNet, maps: Sequence[LabelMap], grid: int) -> dict[str, list[float]]:
    """Per prompt kind: mean Dice of the prompt, mean Dice of the answer, correlation of predicted and true IoU."""
    report, network = {}, network.eval()
    for number, kind in enumerate(KINDS):
        rng = torch.Generator().manual_seed(VALIDATION_SEED + number)
        examples = [draw_example(maps, grid, rng, kind) for _ in range(VALIDATION_EXAMPLES)]
        channels, truth = (torch.stack([getattr(e, part) for e in examples]) for part in ("channels", "truth"))
        prompt = (torch.stack([e.guess for e in examples]) > 0.5).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, quality = network(channels)
        true = (truth > 0.5).float()
        reached, before = iou((logits > 0).float() * channels[:, 1], true), iou(prompt, true)
        told = float(torch.corrcoef(torch.stack([quality, reached]))[0, 1])
        report[kind] = [round(float((2 * x / (1 + x)).mean()), 4) for x in (before, reached)] + [round(told, 3)]
    return report


def label_maps(out: Path, ndim: int, count: int, seed: int) -> list[LabelMap]:
    """The pool of label maps, made once and kept in `out`."""
    side = SETTINGS[ndim]["side"]
    cache = out / f"maps_{ndim}d_{side}_{count}_{seed}.pt"
    if not cache.exists():
        rng = torch.Generator().manual_seed(seed)
        maps = [random_label_map(side, ndim, rng) for _ in range(count)]
        _write(cache, [vars(drawn) for drawn in maps])
    return [LabelMap(**fields) for fields in torch.load(cache, weights_only=True)]


def pack(out: Path, file: Path, start: Path | None = None) -> None:
    """Both networks as fp16 tensors with the numbers needed to rebuild them; safe to load with `weights_only=True`.

    A network without a checkpoint in `out` is taken from `start`, as it is there.
    """
    content: dict = {"format": "nnunet_semisam embedded generalist 1"}
    for ndim, settings in SETTINGS.items():
        checkpoint = out / f"checkpoint_{ndim}d.pt"
        if start and not checkpoint.exists():
            content[f"{ndim}d"] = torch.load(start, weights_only=True)[f"{ndim}d"]
            continue
        state = torch.load(checkpoint, weights_only=True)
        content[f"{ndim}d"] = {
            "width": settings["width"],
            "grid": settings["grid"],
            "step": state["step"],
            "seed": state["seed"],
            "state": {name: tensor.half().contiguous() for name, tensor in state["average"].items()},
        }
    _write(file, content)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB")


def _update(network, average, optimizer, examples: list[Example], step: int) -> float:
    """One optimizer step, then one step of the running average of the weights."""
    loss = loss_of(network, examples)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    keep = min(0.998, (step + 1) / (step + 10))
    with torch.no_grad():
        for mean, now in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(now, 1 - keep)
    return float(loss.detach())


def _resume(checkpoint: Path, network, average, optimizer) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {state['step']} of {checkpoint.name}", flush=True)
    return state["step"]


def _start(file: Path, ndim: int, network: PromptableUNet, average: PromptableUNet) -> int:
    """Weights of a packed file in both networks; returns the step at which they were packed."""
    state = load_generalists(file)[ndim].network.state_dict()
    network.load_state_dict(state)
    average.load_state_dict(state)
    return torch.load(file, weights_only=True)[f"{ndim}d"]["step"]


def _save(checkpoint: Path, network, average, optimizer, step: int, args: argparse.Namespace) -> None:
    parts = {"network": network, "average": average, "optimizer": optimizer}
    _write(checkpoint, {name: part.state_dict() for name, part in parts.items()} | {"step": step, "seed": args.seed})


def _write(file: Path, content) -> None:
    """Written beside, then renamed, so that an interrupted run leaves the old file whole."""
    beside = file.with_suffix(".part")
    torch.save(content, beside)
    os.replace(beside, file)


def _log(args: argparse.Namespace, step: int, loss: float, report: dict, started: float) -> None:
    minutes = round((time.monotonic() - started) / 60, 1)
    line = json.dumps({"ndim": args.ndim, "step": step, "minutes": minutes, "loss": round(loss, 4)} | report)
    print(line, flush=True)
    with (args.out / f"log_{args.ndim}d.jsonl").open("a") as log:
        log.write(line + "\n")


if __name__ == "__main__":
    main()
