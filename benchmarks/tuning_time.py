"""Seconds of a step of tuning the embedded generalist, in float32 and in bfloat16, in 3D and in 2D.

    python benchmarks/tuning_time.py [--steps 5] [--threads 1]
    ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/tuning_time.py     # as a CPU without AVX-512 would compute

A made-up case with two balls, for patches of 64^3 and 128^2. Median of the steps after the first: CPU time of the
process, forth and back, and of it what drawing the examples takes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from unittest import mock

import numpy as np
import step_data
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.embedded import tuning
from nnunet_semisam.types import LabeledCase

SIDES = {3: (64, 64, 64), 2: (128, 128)}


def case(patch_size: tuple[int, ...]) -> LabeledCase:
    """A made-up case for patches of this size; in 2D it has four slices."""
    image, labels = (torch.from_numpy(part) for part in step_data._case(patch_size, np.random.default_rng(0)))
    heads = torch.stack([labels[0] == head for head in range(3)])
    return LabeledCase("balls", image, heads, torch.ones_like(heads[0]))


def seconds(task: tuning.FrameTask, steps: int, *, half: bool) -> float:
    """Median CPU seconds of a step."""
    spent = []
    with mock.patch.object(tuning, "_quick_in_bfloat16", lambda device: half):
        for step in range(steps + 1):
            begin = time.process_time()
            task.loss(torch.Generator().manual_seed(step)).backward()
            spent.append(time.process_time() - begin)
    return statistics.median(spent[1:])


def drawing(task: tuning.FrameTask, steps: int) -> float:
    """Median CPU seconds of the examples of a step."""
    spent = []
    for step in range(steps + 1):
        begin = time.process_time()
        task._drawn(torch.Generator().manual_seed(step), threads=1)
        spent.append(time.process_time() - begin)
    return statistics.median(spent[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print("| | float32, s | bfloat16, s | of it drawing, s |\n|---|---|---|---|")
    for ndim, side in SIDES.items():
        config = SamConfig(tune=args.steps)
        backend = build_backend(config, torch.device("cpu"), (1.0,) * ndim)
        task = backend.tuning_task([case(side)], heads=[1, 2], patch_size=side, config=config)
        task.module.requires_grad_(requires_grad=True)
        single, half = (seconds(task, args.steps, half=half) for half in (False, True))
        print(f"| {ndim}D | {single:.2f} | {half:.2f} | {drawing(task, args.steps):.2f} |", flush=True)


if __name__ == "__main__":
    main()
