"""The runs that a protocol asks for, each with a name that its settings decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.arms import Arm
from nnunet_semisam.benchmark.dataset import RawDataset
from nnunet_semisam.benchmark.draws import ALL, Fold, ceilings, folds
from nnunet_semisam.benchmark.protocol import Protocol


@dataclass(frozen=True)
class Run:
    """One training with its predictions and scores.

    Args:
        digest: of everything that decides the weights but seed and labeled cases. Other settings, other folder. An arm
            of equal time has another one for every draw, since its length is another.
    """

    dataset: RawDataset
    fold: Fold
    arm: Arm
    seed: int
    digest: str
    protocol: Protocol = field(repr=False)

    @property
    def name(self) -> str:
        """Relative folder: data set / labels / draw / arm, seed and digest."""
        return f"{self.dataset.name}/{self.fold.labels}/{self.fold.draw}/{self.configuration}"

    @property
    def configuration(self) -> str:
        """Name of its configuration in the plans."""
        return f"{self.arm.name}_s{self.seed}_{self.digest}"

    @property
    def title(self) -> str:
        """For people."""
        labels = "all labels" if self.fold.labels == ALL else f"{self.fold.labels} labels, draw {self.fold.draw}"
        return f"{self.dataset.name}, {labels}, {self.arm.name}, seed {self.seed}"

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases that are evaluated."""
        return self.fold.val[: self.protocol.max_cases]

    def section(self, epochs: int) -> dict[str, Any]:
        """The whole `semisam` section."""
        protocol = self.protocol
        return dict(self.arm.section) | {
            "num_epochs": epochs,
            "num_iterations_per_epoch": protocol.iterations,
            "num_val_iterations_per_epoch": protocol.val_iterations,
            "seed": self.seed,
        }


def expand(protocol: Protocol, datasets: list[RawDataset]) -> list[Run]:
    """All runs; the arms of a labeled set one after the other, and after those that they need."""
    runs = []
    for dataset in datasets:
        found = folds(protocol, dataset)
        of = ceilings(found)
        for seed in protocol.seeds:
            for key, fold in found.items():
                for arm in in_order(protocol.arms):
                    used = fold if arm.labels == "budget" else of[key]
                    runs.append(Run(dataset, used, arm, seed, digest(protocol, arm, used), protocol))
    return list({run.name: run for run in runs}.values())


def in_order(arms: tuple[Arm, ...]) -> Iterator[Arm]:
    """Arms that need others come last."""
    yield from sorted(arms, key=lambda arm: bool(arm.needs))


def needs(run: Run, runs: list[Run]) -> list[Run]:
    """The runs that have to be finished before this one can start."""
    same = [r for r in runs if (r.dataset, r.fold, r.seed) == (run.dataset, run.fold, run.seed)]
    return [other for other in same if other.arm.name in run.arm.needs]


def digest(protocol: Protocol, arm: Arm, fold: Fold) -> str:
    """Eight hexadecimal digits that change with the settings of an arm, and with the defaults of this package."""
    shared = {
        key: getattr(protocol, key)
        for key in ("configuration", "epochs", "iterations", "val_iterations", "network", "fingerprint_from")
    }
    content = {**shared, "trainer": arm.trainer, "section": settled(arm)}
    if arm.needs:
        content["time"] = [digest(protocol, protocol.arm(name), fold) for name in arm.needs]
        content["draw"] = [fold.labels, fold.draw]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:8]


def settled(arm: Arm) -> Any:
    """What the section of an arm means today, defaults included: other defaults in another version, another digest.

    The section as it is for trainers from elsewhere; no term at all where all have weight 0.
    """
    from nnunet_semisam.config import in_effect
    from nnunet_semisam.methods import build_method
    from nnunet_semisam.ops.outputs import OutputSpace
    from nnunet_semisam.presets import find_trainer

    trainer = find_trainer(arm.trainer)
    if trainer is None:
        return arm.section
    config = trainer.preset.with_section(arm.section, uses_sam=trainer.uses_sam)
    if not config.active_terms():
        return {"terms": {}}
    method = build_method(config.method, config.method_args, OutputSpace(2))
    return in_effect(config.as_dict() | {"method_args": asdict(method)})


def write_json(file: Path, content: Any) -> None:
    """Writes in one move: after a kill the file is there as a whole or not at all."""
    write_text(file, json.dumps(content, indent=1))


def write_text(file: Path, content: str) -> None:
    """As `write_json`; who reads meanwhile sees the file of before."""
    import os

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("w") as text:
        text.write(content)
        text.flush()
        os.fsync(text.fileno())
    os.replace(temporary, file)
