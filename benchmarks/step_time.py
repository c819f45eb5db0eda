"""Seconds, operations and memory of a training iteration: stock trainer, mean teacher, SemiSAM; part by part.

    python benchmarks/step_time.py --data DATASET CONFIGURATION
    python benchmarks/step_time.py --patch-size 32 32 32 --batch-size 2 --features 8 16 32 32

The first form reads nnU-Net's three folders from the environment, and the fold must have unlabeled cases. The second
makes up a data set of that size in a temporary folder, where teachers run and then say what is in the image, so that
SAM is asked about two objects per patch. nnU-Net's usual sizes: `--patch-size 128 128 128 --batch-size 2 --features 32
64 128 256 320 320`, and `--patch-size 512 512 --batch-size 12 --features 32 64 128 256 512 512 512 512`.

Loading is included (`nnUNet_n_proc_DA=0` loads within the step); the test of SAM and its tuning before training are
not. The arms take turns, so that a change in the machine's load meets them all: each round is one plain step, timed as
a whole, and one step with parts, during which CUDA waits at each part's end. Where processes load, their queues fill up
while the other arms have their turn, and loading seems to cost nothing; so every arm then also makes steps in a row,
alone, the first of which empty the queues: what training really gets. A backend that needs a checkpoint and is
given none has random weights: its time is right, its answers are not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import step_data
import torch
from step_arms import Arm, Task, arms, good_teachers, started, stopped
from step_memory import start_and_peak
from step_parts import clock, operations_of_step, parts_of_step, seconds_of_step
from step_report import Measured, picture, tables

QUEUED = 40  # batches: more than nnU-Net's queues and workers hold


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    if bool(args.data) == bool(args.patch_size):
        parser.error("give either --data or --patch-size")
    with _task(args) as task:
        found = measure(task, args)
    text = tables(found)
    print(text)
    if args.picture:
        size = "x".join(map(str, task.plans["configurations"][task.configuration]["patch_size"]))
        picture(found, args.picture, f"patch {size}, {_device(task.device)}, {args.steps} steps")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs=2, metavar=("DATASET", "CONFIGURATION"))
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--plans", default="nnUNetPlans")
    parser.add_argument("--patch-size", type=int, nargs="+", metavar="SIDE")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--features", type=int, nargs="+", default=[8, 16, 32, 32], help="channels per stage")
    parser.add_argument(
        "--backend", action="append", metavar="NAME[=CHECKPOINT]", help="may be given again (default: embedded)"
    )
    parser.add_argument(
        "--setting", action="append", default=[], metavar="NAME=JSON", help="SemiSAM with this section, embedded"
    )
    parser.add_argument("--steps", type=int, default=7, help="rounds that count")
    parser.add_argument("--warm-up", type=int, default=2, help="rounds before")
    parser.add_argument("--in-a-row", type=int, metavar="N", help="steps (default: 50 where processes load, else none)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, on the CPU")
    parser.add_argument("--no-memory", action="store_true", help="leave out memory and start (a process per trainer)")
    parser.add_argument("--no-flops", action="store_true", help="leave out operations (one step more per trainer)")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    return parser


@contextlib.contextmanager
def _task(args: argparse.Namespace) -> Iterator[Task]:
    if args.data:
        yield Task.prepared(*args.data, fold=args.fold, plans=args.plans, device=args.device)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(folder) / name)
        step_data.write(Path(folder) / "preprocessed", args.patch_size)
        yield Task.made_up(
            args.patch_size, batch_size=args.batch_size, features=args.features, device=args.device
        )  # fmt: skip


def measure(task: Task, args: argparse.Namespace) -> dict[str, Measured]:
    """All arms, in turns; what they print themselves does not come between the tables."""
    chosen = arms(args.backend or ["embedded"], args.setting)
    found = {arm.name: Measured() for arm in chosen}
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        if not args.no_memory:
            for arm in chosen:
                found[arm.name].start, found[arm.name].memory = start_and_peak(arm, task)
        with good_teachers(task):
            _take_turns(chosen, task, args, found)
    return found


def _take_turns(chosen: list[Arm], task: Task, args: argparse.Namespace, found: dict[str, Measured]) -> None:
    with contextlib.ExitStack() as stack:
        trainers = {}
        for arm in chosen:
            trainers[arm.name] = started(arm, task)
            stack.callback(stopped, trainers[arm.name])
        _measure_all(trainers, args, found)


def _measure_all(trainers: dict[str, Any], args: argparse.Namespace, found: dict[str, Measured]) -> None:
    for step in range(args.warm_up + args.steps):
        for name, trainer in trainers.items():
            plain, by_part = seconds_of_step(trainer), parts_of_step(trainer, clock(trainer.device))
            if step >= args.warm_up:
                found[name].plain.append(plain)
                found[name].by_part.append(by_part)
    for name, trainer in trainers.items():
        if not args.no_flops:
            found[name].operations = operations_of_step(trainer)
        if steps := _in_a_row(trainer, args.in_a_row):
            found[name].in_a_row = _seconds_in_a_row(trainer, steps)
        if getattr(trainer, "sam_assisted", None) is not None:
            trainer.curves.end_epoch(0)
            found[name].objects = trainer.curves.epochs["sam/items"][0]


def _in_a_row(trainer: Any, asked: int | None) -> int:
    by_processes = hasattr(trainer.dataloader_train, "_finish")
    return asked if asked is not None else 50 if by_processes else 0


def _seconds_in_a_row(trainer: Any, steps: int) -> float:
    """Seconds per step, alone and one after the other, when what the loaders had made before is used up."""
    read = clock(trainer.device)
    for count in (QUEUED if hasattr(trainer.dataloader_train, "_finish") else 0, steps):
        start = read()
        for _ in range(count):
            trainer.train_step(next(trainer.dataloader_train))
    return (read() - start) / steps


def _device(name: str) -> str:
    return torch.cuda.get_device_name(name) if name.startswith("cuda") else f"CPU, {torch.get_num_threads()} thread(s)"


if __name__ == "__main__":
    main()
