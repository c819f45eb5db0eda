"""How long do prompts take to make? One CPU thread, real masks, two classes.

    python benchmarks/prompt_time.py --data FOLDER

FOLDER is a data set in nnU-Net raw format with two classes. The first cases are laid side by side until a patch of 64^3
and 128^3 is full ("many objects"); "one object" is a single case enlarged to fill the patch. The teacher is the
smoothed truth. Prints Markdown: milliseconds of process time per patch, best of three. The
last row is what stays on the CPU wherever the patch is: components and clicks with the defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from embedded_on_real import cases_of, load

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam import clicks, objects
from nnunet_semisam.sam.jitter import seeds_for, shaken
from nnunet_semisam.sam.objects import find_objects
from nnunet_semisam.sam.prompts import prompts_for, prompts_from_prob
from nnunet_semisam.sam.rounds import corrected

SETTINGS = {
    "defaults": {},
    "components 0": {"components": 0},
    "components 8": {"components": 8},
    "points_from certain": {"points_from": "certain"},
    "3 + 3 points": {"num_points": 3, "num_negative_points": 3},
    "box": {"prompts": ["box"]},
    "mask": {"prompts": ["mask"]},
    "points": {"prompts": ["points"]},
    "negative_points + points": {"prompts": ["negative_points", "points"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    patches = {}
    for side in (64, 128):
        patches[f"{side}^3, many objects"] = teacher(tiled(args.data, side))
        patches[f"{side}^3, one object"] = teacher(enlarged(args.data, side))
    print("| setting | " + " | ".join(f"{name} ({items(prob)} items)" for name, prob in patches.items()) + " |")
    print("|---" * (1 + len(patches)) + "|")
    for name, settings in SETTINGS.items():
        config = SamConfig(**settings)
        row(name, [lambda prob=prob, config=config: ask(prob, config) for prob in patches.values()])
    row("one error click round, on top", [second_round(prob) for prob in patches.values()])
    row("one shaking, on top", [one_shaking(prob) for prob in patches.values()])
    row("defaults, on the CPU in any case", [on_cpu(prob) for prob in patches.values()])


def row(name: str, calls) -> None:
    cells = [f"{1000 * min(seconds(call) for _ in range(3)):.0f}" for call in calls]
    print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def seconds(call) -> float:
    """Of process time; a call that returns a number has measured it itself."""
    started = time.process_time()
    measured = call()
    return measured if isinstance(measured, float) else time.process_time() - started


def on_cpu(prob):
    def measure() -> float:
        spent = 0.0

        def timed(function):
            def call(*args):
                nonlocal spent
                started = time.process_time()
                result = function(*args)
                spent += time.process_time() - started
                return result

            return call

        parts = [(objects, "_components"), *((clicks, name) for name in ("_inside", "_outside", "_spread"))]
        with contextlib.ExitStack() as patches:
            for module, name in parts:
                patches.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
            ask(prob, SamConfig())
        return spent

    return measure


def ask(prob, config: SamConfig):
    return prompts_from_prob(prob, outputs=OutputSpace(3), config=config)


def items(prob) -> int:
    return len(ask(prob, SamConfig()))


def made(prob):
    hard, config, outputs = OutputSpace(3).harden(prob) > 0, SamConfig(), OutputSpace(3)
    found = find_objects(prob, hard, heads=(1, 2), config=config)
    return found, prompts_for(found, prob, hard, outputs=outputs, config=config)


def second_round(prob):
    """The answer: every object moved by five voxels."""
    found, prompts = made(prob)
    answer = (8.0 * found.masks.float() - 4).roll(5, dims=-1)
    return lambda: corrected(prompts, answer, found, prob)


def one_shaking(prob):
    found, prompts = made(prob)
    seeds = seeds_for(0, torch.arange(len(prompts)), 0)
    return lambda: shaken(prompts, found, prob, seeds=seeds)


def teacher(labels: torch.Tensor) -> torch.Tensor:
    """Smoothed one-hot labels, (1, 3, *S)."""
    hot = F.one_hot(labels.clamp(max=2).long(), 3).movedim(-1, 0)[None].float()
    return F.avg_pool3d(hot, 3, stride=1, padding=1, count_include_pad=False).clamp(1e-6, 1)


def tiled(data: Path, side: int) -> torch.Tensor:
    """Cases cut to boxes of 32 x 48 x 32 voxels, side by side."""
    patch = torch.zeros(side, side, side)
    cases = iter(cases_of(data, None))
    for z in range(0, side, 32):
        for y in range(0, side, 48):
            for x in range(0, side, 32):
                labels = load(data, next(cases))[1][:32, : min(48, side - y), :32]
                patch[z : z + labels.shape[0], y : y + labels.shape[1], x : x + labels.shape[2]] = labels
    return patch


def enlarged(data: Path, side: int) -> torch.Tensor:
    labels = load(data, cases_of(data, None)[0])[1].float()
    return F.interpolate(labels[None, None], (side, side, side), mode="nearest")[0, 0]


if __name__ == "__main__":
    main()
