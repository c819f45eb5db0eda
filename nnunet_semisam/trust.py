"""Which classes SAM is trusted with: as configured, or as a short test on the labeled cases of the fold tells.

The test never opens a case of the fold's `val` or `unlabeled` list and draws nothing from the global random generators.
Its verdict is kept in the checkpoint, so that a resumed run goes on with the same one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semisam.config import SamConfig
from nnunet_semisam.data.labeled import LabeledCases, head_names
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.ranks import on_first_rank
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.sam.patches import mostly_labeled
from nnunet_semisam.sam.probe import Prober, corrupted_prob, patches_by_head
from nnunet_semisam.sam.verdict import Row, markdown, sentence, summarize

FILE = "semisam_trust.json"
DICE = 0.75  # of the test's prompts: about a teacher that SAM can still help
PATCHES = 24  # at most, or one per class where there are more classes
PATCHES_PER_CLASS = 12
KEPT = " (from the checkpoint)"
MOST_CASES = 12  # evenly spread over the fold's list


def settle_trust(
    trainer: nnUNetTrainer, labeler: SamLabeler, resumed: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Sets the labeler's trust and returns it by class; also printed and written beside `semisam.json`.

    Args:
        resumed: what the checkpoint has, taken instead of a test.

    Raises:
        ValueError: the configuration names a class that does not exist.
    """
    names, config = head_names(trainer.label_manager), labeler.config
    rows: list[Row] | None = None
    foreground = [names[head] for head in labeler.outputs.foreground_heads]
    origin = ""
    if config.trust != "auto":
        trust, origin = configured_trust(config, foreground), " (as configured, not tested)"
    elif resumed is not None:
        origin = KEPT
        trust = {name: float(resumed.get(name, 1.0)) for name in foreground}
    else:
        cases = sorted(trainer.do_split()[0])  # fold all comes as the file system lists it
        trainer.print_to_log_file(
            f"semisam: testing SAM on labeled training cases (at most {PATCHES} patches, or one per class; a while on "
            "a CPU; sam.trust = null skips it)"
        )
        test = partial(probe_classes, labeler, trainer, cases, names)
        rows = on_first_rank(trainer, test, "the test of SAM on the labeled cases")  # not to differ by a rounding error
        trust = {name: 1.0 for name in foreground} | {row.name: float(row.helps) for row in rows}
    labeler.trust = [trust.get(name, 1.0) for name in names]
    _tell(trainer, trust, rows, origin)
    return trust


def tested_trust(resumed: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    """The verdict in a checkpoint; None if it has none, or has what a configuration said."""
    sam = (resumed or {}).get("configuration", {}).get("sam") or {}
    return (resumed or {}).get("trust") if sam.get("trust") == "auto" else None


def configured_trust(config: SamConfig, names: Sequence[str]) -> dict[str, float]:
    """The trust that the configuration gives each foreground class; 1 for those that it does not name.

    Raises:
        ValueError: it names an unknown class; the message lists the known ones.
    """
    given = config.trust if isinstance(config.trust, Mapping) else {}
    for name in given:
        if name not in names:
            raise ValueError(f"semisam: unknown class {name!r} in sam.trust; known are {', '.join(names)}")
    return {name: float(given.get(name, 1.0)) for name in names}


def probe_classes(labeler: SamLabeler, trainer: nnUNetTrainer, cases: Sequence[str], names: Sequence[str]) -> list[Row]:
    """One row for each foreground class that the cases show, from prompts of Dice `DICE`."""
    folder = str(trainer.preprocessed_dataset_folder)
    few = list(dict.fromkeys(cases[number * len(cases) // MOST_CASES] for number in range(MOST_CASES)))
    labeled = LabeledCases(folder, few, trainer.label_manager)
    outputs: OutputSpace = labeler.outputs
    heads = outputs.foreground_heads
    count = min(PATCHES_PER_CLASS, max(1, PATCHES // len(heads)))
    prober = Prober(labeler.backend, labeler.config, outputs, trainer.device)
    rows, patch_size = [], trainer.configuration_manager.patch_size
    for head, shown in patches_by_head(labeled, heads, patch_size=patch_size, count=count).items():
        patches = [patch for patch in shown if mostly_labeled(patch, head)]
        asked = [
            prober.ask(patch, corrupted_prob(patch, head, outputs, wanted=DICE, number=number), head, iteration=number)
            for number, patch in enumerate(patches)
        ]
        if trials := [answer.trial for answer in asked if answer is not None]:
            rows.append(summarize(trials, name=names[head], source="corrupted", kinds=labeler.config.prompts))
    return rows


def _tell(trainer: nnUNetTrainer, trust: Mapping[str, float], rows: Sequence[Row] | None, origin: str) -> None:
    tested = rows is not None
    rows = rows or []

    def say(*lines: str) -> None:
        trainer.print_to_log_file("\n".join(lines), add_timestamp=False)

    if rows:
        say("semisam: SAM, tested on labeled training cases:", markdown(rows), *map(sentence, rows))
    if untested := [name for name in trust if tested and name not in {row.name for row in rows}]:
        say(f"semisam: no labeled training case shows enough of {', '.join(untested)}; SAM is trusted with it untested")
    say(f"semisam: trust in SAM by class{origin}: {dict(trust)}\n")
    if not any(trust.values()):
        say("WARNING: semisam: SAM is trusted with no class and will not be asked; sam.trust = null asks it anyway\n")
    if trainer.local_rank == 0:
        file = os.path.join(trainer.output_folder, FILE)
        content = {"trust": dict(trust), "test": [asdict(row) | {"gain": row.gain} for row in rows]}
        if origin != KEPT or not _says(file, trust):  # a resumed run has the verdict alone; the file has the reasons
            save_json(content, file, sort_keys=False)


def _says(file: str, trust: Mapping[str, float]) -> bool:
    """Does the file exist and hold the same trust?"""
    if not os.path.isfile(file):
        return False
    try:
        return load_json(file)["trust"] == dict(trust)
    except (ValueError, KeyError, TypeError):
        return False  # damaged: written again
