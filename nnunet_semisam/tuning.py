"""Tuning of the generalist at the start of a training: labeled cases of the fold in, one file in the fold folder out.

A training that is resumed, or started again with nothing changed, takes the weights of the file, so it sees exactly the
generalist that it had.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_semisam.checkpoint import write_atomically
from nnunet_semisam.data.labeled import LabeledCases, NotFinite, StrangeLabel
from nnunet_semisam.data.splits import read_split
from nnunet_semisam.ranks import on_first_rank
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.patches import mostly_labeled
from nnunet_semisam.sam.tuning import REPORTED, Report, Tunable, TuningTask, tune_and_report
from nnunet_semisam.types import LabeledCase

if TYPE_CHECKING:
    from nnunet_semisam.trainer import SemiSAM

FILE = "semisam_tuned.pt"
EVERY = 60.0  # seconds from one line about the tuning to the next
MOST_CASES = 16  # that are tuned on: evenly spread over the fold's list


def tune_generalist(trainer: SemiSAM, backend: SamBackend) -> None:
    """Tunes `backend` in place, on the cases of the fold's `train` list alone, where `sam.tune` asks for it.

    After the test for `sam.trust`, which would flatter a generalist that has learned the cases it is asked about.

    Random numbers come from generators of its own, seeded with the run's seed (0 without one). Under DDP rank 0 tunes
    and the others take its weights.
    """
    sam = trainer.semisam.sam
    if sam is None or not any((trainer.trust or {"": 1.0}).values()):
        return
    automatic = sam.tune == "auto"
    if not (backend.tuning_steps(MOST_CASES) if automatic else sam.tune):
        return
    if not isinstance(backend, Tunable):
        trainer.print_to_log_file(f"semisam: sam.backend {sam.backend!r} cannot be tuned; it is used as it is")
        return
    heads, patch_size = trainer.outputs.foreground_heads, tuple(trainer.configuration_manager.patch_size)
    planar = len(patch_size) == 2  # a plane may be whole, whatever is labeled on others: the task looks at each
    cases = labeled_cases(trainer)
    if trainer.label_manager.has_ignore_label and not planar:
        cases = cases.only(lambda case: all(mostly_labeled(case, head) for head in heads))
    if automatic:
        sam = replace(sam, tune=backend.tuning_steps(len(cases)))
    asked: dict[str, Any] = {"heads": heads, "patch_size": patch_size, "config": sam}
    try:
        task = backend.tuning_task(cases, **asked)
    except ValueError as error:
        if not automatic or isinstance(error, (NotFinite, StrangeLabel)):
            raise
        trainer.print_to_log_file(f"semisam: the generalist is used as it is ({error})")
        return
    tune = partial(_tune_or_load, trainer, backend, task, cases, asked)
    on_first_rank(trainer, tune, "tuning of the generalist")
    if trainer.is_ddp:
        for tensor in task.module.state_dict().values():
            dist.broadcast(tensor, 0)


def labeled_cases(trainer: SemiSAM) -> LabeledCases:
    """Cases of the fold's `train` list, at most `MOST_CASES`.

    Raises:
        ValueError: a case of the list is hidden as well, or was not preprocessed.
    """
    trained_on = sorted(trainer.do_split()[0])  # fold all comes as the file system lists it
    chosen = [trained_on[number * len(trained_on) // MOST_CASES] for number in range(MOST_CASES)]
    folder = trainer.preprocessed_dataset_folder
    splits = os.path.join(trainer.preprocessed_dataset_folder_base, "splits_final.json")
    known = trainer.dataset_class.get_identifiers(folder)
    read_split(splits, trainer.fold, known=known, allow_unlabeled_val=trainer.semisam.allow_unlabeled_val)
    return LabeledCases(folder, list(dict.fromkeys(map(str, chosen))), trainer.label_manager)


def _tune_or_load(
    trainer: SemiSAM, backend: Tunable, task: TuningTask, cases: LabeledCases, asked: dict[str, Any]
) -> None:
    seed = trainer.semisam.seed or 0
    key = fingerprint(task.module, cases, {**asked, "config": asdict(asked["config"]), "seed": seed})
    file = os.path.join(trainer.output_folder, FILE)
    if (state := _read(file, key)) is not None:
        task.module.load_state_dict(state)
        trainer.print_to_log_file(f"semisam: generalist tuned before; weights of {file}")
        return
    if trainer.iteration:
        trainer.print_to_log_file(
            f"WARNING: semisam: a resumed training tunes its generalist anew: {file} is missing, "
            "damaged, or of other cases or settings"
        )
    began = time.perf_counter()
    trainer.print_to_log_file(
        f"semisam: tuning the generalist on the labeled cases {', '.join(cases.names)}: {asked['config'].tune} steps, "
        "and its answers before and after (sam.tune = 0 skips both)"
    )
    report = tune_and_report(backend, cases, task, seed=seed, told=_Clock(trainer.print_to_log_file), **asked)
    for line in _told(report, trainer.dataset_json["labels"]):
        trainer.print_to_log_file(line, add_timestamp=False)
    trainer.print_to_log_file(f"semisam: tuned {asked['config'].tune} steps, {time.perf_counter() - began:.0f} s")
    if not trainer.disable_checkpointing:
        state = {name: tensor.cpu() for name, tensor in task.module.state_dict().items()}
        content = {"key": key, "cases": cases.names, "sum": checksum(state), "state": state}
        write_atomically(content, file)


class _Clock:
    """Says now and then how far the tuning is."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self.last = say, time.monotonic()

    def __call__(self, step: int, steps: int) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.say(f"semisam: tuning: step {step} of {steps}")
            self.last = time.monotonic()


def fingerprint(module: nn.Module, cases: Sequence[LabeledCase], settings: dict[str, Any]) -> str:
    """A hash of everything that the tuned weights depend on: weights before, settings, cases with their labels."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in module.state_dict().items():
        digest.update(name.encode() + _bytes(tensor))
    for case in cases:
        digest.update(case.name.encode())
        for part in (case.image, case.truth, case.valid):
            digest.update(str(tuple(part.shape)).encode() + _bytes(part))
    return digest.hexdigest()


def checksum(state: dict[str, Tensor]) -> str:
    """A hash of tensors and their names: `torch.load` does not notice a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in state.items():
        digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _read(file: str, key: str) -> dict[str, Tensor] | None:
    """The weights in `file` if it was written for the same `key`; a file that cannot be read is made anew."""
    if not os.path.isfile(file):
        return None
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file makes the unpickler fail in any way
        return None
    if not isinstance(content, dict) or content.get("key") != key or not isinstance(content.get("state"), dict):
        return None
    return content["state"] if content.get("sum") == checksum(content["state"]) else None


def _told(report: Report | None, labels: dict[str, Any]) -> list[str]:
    """The report in words, a line per class and prompt."""
    if report is None:
        return ["semisam: no labeled case to spare for a report on tuning"]
    names = [name for name in labels if name not in ("background", "ignore")]
    lines = [f"semisam: after {report.steps} steps without {report.case}, Dice of the answers on that case:"]
    for head in sorted({head for head, _ in report.before}):
        levels = [wanted for wanted in REPORTED if (head, wanted) in report.after]
        numbers = (f"{w} -> {report.before[head, w]:.3f}, tuned {report.after[head, w]:.3f}" for w in levels)
        lines.append(f"    {_name(names, labels, head)}: prompt {'; '.join(numbers)}")
    return lines


def _name(names: Sequence[str], labels: dict[str, Any], head: int) -> str:
    """The class of a head: its label, or for regions (lists of labels) its place in the file."""
    if any(isinstance(value, (list, tuple)) for value in labels.values()):
        return names[head]
    return next((name for name in names if labels[name] == head), f"head {head}")
