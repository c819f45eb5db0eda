"""An iteration of SemiSAM as published, and of this package on the same network and patches: seconds and operations.

    nnUNet_n_proc_DA=0 OMP_WAIT_POLICY=passive python benchmarks/published_step.py [--device cuda]

Patches of 128^3, 1 labeled and 3 unlabeled, V-Net, random weights. Published (arXiv 2312.06316 and its code): student
and teacher on all four patches; SAM-Med3D, its attention windows padded, on each of them: one encoding, and ten clicks
that are decoded one after the other; and eight more passes of the teacher, whose mean is not used by any loss (told
apart in the table). Its clicks are random voxels here, its augmentation and loading are left out: both in its favour.
This package: the iteration of its trainer with loading, asked about two objects per patch. The arms take turns; every
number is told as it comes, and the table last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import step_data
import torch
from published_semisam import LABELED, UNLABELED, Published
from published_vnet import VNet
from step_arms import Arm, Task, good_teachers, started, stopped
from step_parts import clock
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam.med3d import Med3D
from nnunet_semisam.trainer import nnUNetTrainerMeanTeacher, nnUNetTrainerSemiSAM

SIDE = 128
Step = tuple[str, Callable[[], None]]


class _OnVNet:
    """Mixin for trainers: the published network in place of the planned one."""

    def initialize(self) -> None:
        self.enable_deep_supervision = False
        super().initialize()  # type: ignore[misc]

    @staticmethod
    def build_network_architecture(
        plans_manager: Any, configuration_manager: Any, num_input_channels: int, num_output_channels: int,
        enable_deep_supervision: bool = True,  # noqa: FBT001, FBT002
    ) -> VNet:  # fmt: skip
        return VNet(num_input_channels, num_output_channels)

    def set_deep_supervision_enabled(self, enabled: bool) -> None:  # noqa: FBT001
        """The network has none."""


class MeanTeacherOnVNet(_OnVNet, nnUNetTrainerMeanTeacher):
    """The arm without SAM."""


class SemiSAMOnVNet(_OnVNet, nnUNetTrainerSemiSAM):
    """The arms with SAM."""


def ours(device: str, at_end: ExitStack) -> list[Step]:
    """The iterations of this package, by name; the data set is in nnU-Net's folders. Loaders stop `at_end`."""
    task = Task.made_up([SIDE] * 3, batch_size=LABELED, features=[8, 16, 32], device=device)
    task.plans["configurations"][task.configuration]["semisam"] = {"unlabeled_batch_size": UNLABELED}
    asked = {"embedded": {}, "sam_med3d": {}, "sam_med3d, window patch": {"window": "patch"}}
    arms = [Arm("mean teacher", MeanTeacherOnVNet)]
    for name, arguments in asked.items():
        sam = SamConfig(backend=name.partition(",")[0], backend_args=arguments)
        arms.append(Arm(f"SemiSAM, {name}", SemiSAMOnVNet, sam))
    trainers = [(arm.name, started(arm, task)) for arm in arms]
    for _, trainer in trainers:
        at_end.callback(stopped, trainer)
    return [(name, _step_of(trainer, task)) for name, trainer in trainers]


def _step_of(trainer: Any, task: Task) -> Callable[[], None]:
    def step() -> None:
        with good_teachers(task):
            trainer.train_step(next(trainer.dataloader_train))

    return step


def measure(steps: list[Step], device: torch.device, rounds: int) -> tuple[dict, dict]:
    """Seconds of every round and GFLOP of one more iteration before them, by name; the arms take turns."""
    operations = {}
    for name, step in steps:
        with FlopCounterMode(display=False) as counter:
            step()
        operations[name] = counter.get_total_flops() / 1e9
        print(f"{name}: {operations[name]:.0f} GFLOP", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {name: [] for name, _ in steps}
    read = clock(device)
    for _ in range(rounds):
        for name, step in steps:
            begin = read()
            step()
            seconds[name].append(read() - begin)
            print(f"{name}: {seconds[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds, operations


def table(seconds: dict[str, list[float]], operations: dict[str, float]) -> str:
    """A row per arm; the first one's numbers as multiples of each."""
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    first = next(iter(seconds))
    lines = [
        "| iteration | median s | min | max | first / this | GFLOP | first / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, took in seconds.items():
        times = f"{medians[name]:.2f} | {min(took):.2f} | {max(took):.2f} | {medians[first] / medians[name]:.2f}"
        lines.append(f"| {name} | {times} | {operations[name]:.0f} | {operations[first] / operations[name]:.2f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="after one in which operations are counted")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    begin = time.perf_counter()
    found = _all(torch.device(args.device), args.rounds)
    print(table(*found))
    print(f"\n{args.device}, {torch.get_num_threads()} thread(s), {time.perf_counter() - begin:.0f} s in all")


def _all(device: torch.device, rounds: int) -> tuple[dict, dict]:
    """Both packages' arms; what trainers print does not come between."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as at_end:
        at_end.enter_context(redirect_stdout(at_end.enter_context(open(os.devnull, "w"))))
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(folder) / name)
        step_data.write(Path(folder) / "preprocessed", [SIDE] * 3)
        names = {"SemiSAM as published": True, "the same without the unused passes": False}
        sam = Med3D()
        steps = [(name, Published(device, unused=unused, sam=sam).step) for name, unused in names.items()]
        return measure([*steps, *ours(str(device), at_end)], device, rounds)


if __name__ == "__main__":
    main()
