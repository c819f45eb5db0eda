"""Other ways to use the embedded generalist on volumes: a finer grid, or its 2D network on planes along three axes.

    python benchmarks/embedded_variants.py --data FOLDER [--data FOLDER …] --splits splits.json [--limit 8]

Mask prompts as in `embedded_on_real.py`, on the first cases of the `val` list. Prints mean Dice and seconds per object.
"""

from __future__ import annotations

import argparse
import json
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import embedded_on_real
import numpy as np
import torch
from torch import Tensor

from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.embedded import Generalist
from nnunet_semisam.sam.embedded.corruption import corrupt_to_dice
from nnunet_semisam.sam.embedded.noise import dice
from nnunet_semisam.types import Prompts

LEVELS, SURE = (0.6, 0.75, 0.9), 6.0
SMALLEST = 8  # voxels of a plane that is asked about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--splits", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--weights", help="default: those of the package")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {f"3D, grid of {grid}": partial(whole, with_grid(args.weights, grid)) for grid in (32, 40, 48)}
    backend = EmbeddedSam(args.weights)
    ways |= {"2D along three axes": partial(planes, backend), "mean of both": partial(both, backend)}
    print("| data set | class | prompt | what | Dice | s |\n|---|---|---|---|---|---|")
    for folder in args.data:
        for name, value in json.loads((folder / "dataset.json").read_text())["labels"].items():
            if name != "background":
                evaluate(folder, name, value, ways, args)


def evaluate(folder: Path, name: str, value: int, ways: dict[str, Callable], args: argparse.Namespace) -> None:
    """The rows of one class."""
    cases = [
        (c, *embedded_on_real.load(folder, c)) for c in embedded_on_real.cases_of(folder, args.splits)[: args.limit]
    ]
    for level in LEVELS:
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for case, image, labels in cases:
            mask = labels == value
            seed = zlib.crc32(f"{case} {name}".encode()) + round(100 * level)
            spoiled = corrupt_to_dice(mask, level, torch.Generator().manual_seed(seed))
            logits = embedded_on_real.CONFIDENT * (2 * spoiled.float() - 1)
            for way, ask in ways.items():
                began = time.perf_counter()
                answer = ask(image, logits)
                found[way].append((dice(answer > 0, mask), time.perf_counter() - began))
        for way, numbers in found.items():
            reached, seconds = np.mean(numbers, axis=0)
            print(f"| {folder.name} | {name} | mask {level} | {way} | {reached:.3f} | {seconds:.2f} |", flush=True)


def with_grid(weights: str | None, grid: int) -> EmbeddedSam:
    backend = EmbeddedSam(weights)
    backend.generalists[3] = Generalist(backend.generalists[3].network, grid)
    return backend


def whole(backend: EmbeddedSam, image: Tensor, logits: Tensor) -> Tensor:
    prompts = embedded_on_real.one(3, logits=logits[None])
    return backend.decode(backend.embed(image[None, None]), prompts).mask_logits[0]


def planes(backend: EmbeddedSam, image: Tensor, logits: Tensor) -> Tensor:
    return torch.stack([along(backend, image, logits, axis) for axis in range(3)]).mean(0)


def both(backend: EmbeddedSam, image: Tensor, logits: Tensor) -> Tensor:
    return planes(backend, image, logits) + whole(backend, image, logits).clamp(-SURE, SURE)


def along(backend: EmbeddedSam, image: Tensor, logits: Tensor, axis: int) -> Tensor:
    """Answers for every plane across an axis that shows the prompt; surely nothing on the others."""
    image, logits = image.movedim(axis, 0), logits.movedim(axis, 0)
    shown = ((logits > 0).flatten(1).sum(1) >= SMALLEST).nonzero()[:, 0]
    answer = torch.full_like(logits, -SURE)
    if len(shown):
        items, no_points = torch.arange(len(shown)), torch.zeros(len(shown), 0, 2)
        prompts = Prompts(items, torch.ones_like(items), no_points, no_points[..., 0].long(), None, logits[shown])
        answer[shown] = backend.decode(backend.embed(image[shown, None]), prompts).mask_logits.clamp(-SURE, SURE)
    return answer.movedim(0, axis)


if __name__ == "__main__":
    main()
