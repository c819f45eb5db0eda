"""What a reader has to know about the numbers, in sentences made from the protocol and from what the runs were."""

from __future__ import annotations

from nnunet_semisam.benchmark.comparison import RESAMPLES
from nnunet_semisam.benchmark.metrics import EMPTY_RULE
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.provenance import told
from nnunet_semisam.benchmark.steps import Steps


def caption(protocol: Protocol, steps: Steps, *, comparisons: int) -> list[str]:
    """One entry per subject; `comparisons` is the number of lines with a p-value."""
    return [
        *_evaluation(protocol, steps),
        *_trainings(protocol, steps),
        _fingerprint(protocol),
        *_statistics(protocol, comparisons),
        told(facts.get("versions") for run in steps.runs if (facts := steps.trained(run))),
    ]


def _evaluation(protocol: Protocol, steps: Steps) -> list[str]:
    cases = {r.dataset.name: len(set(r.cases)) for r in steps.runs}
    counts = ", ".join(f"{count} of {name}" for name, count in cases.items())
    unit = "voxels (spacing 1)" if protocol.voxel_units else "mm, with the spacing of each image"
    mirroring = "with" if protocol.mirroring else "without"
    return [
        f"Evaluation cases: {counts} (per draw); the val list of the splits, so for development, not a final test.",
        f"Predicted by nnUNetv2_predict {mirroring} mirroring from checkpoint_final.pth, the last one, never a "
        "chosen one; rows (teacher) from checkpoint_final_teacher.pth.",
        f"Dice, spread and NSD in percent; HD95, ASSD and the tolerance of the NSD ({protocol.tolerance:g}) in {unit}. "
        "All by MONAI: HD95 (the larger of both directions) and ASSD between boundary voxels, NSD between surface "
        "elements weighted by area.",
        f"Empty masks: {EMPTY_RULE} The column empty counts missed and invented ones.",
    ]


def _trainings(protocol: Protocol, steps: Steps) -> list[str]:
    facts = [(run, steps.trained(run)) for run in steps.runs if steps.trained(run)]
    planned = protocol.epochs * protocol.iterations
    other = {r.arm.name for r, f in facts if not r.arm.needs and f["epochs"] * f["iterations"] != planned}
    network = (
        "as nnU-Net planned it" if protocol.network is None else f"{dict(protocol.network)}, the same for all arms"
    )
    devices = sorted({fact["device"] for _, fact in facts}) or ["none yet"]
    sentences = [
        f"Every arm: {protocol.epochs} epochs of {protocol.iterations} iterations ({planned}), patch, network and "
        f"batch {network}; configuration {protocol.configuration}; training seeds "
        f"{', '.join(map(str, protocol.seeds))}; devices: {', '.join(devices)}.",
        "supervised is nnUNetTrainerSemiSAM with every term at weight 0: the stock training step on stock batches.",
        "seconds: start-up and epochs of a training (median of the runs); runs side by side slow each other down.",
    ]
    for arm in protocol.arms:
        if arm.needs:
            sentences.append(
                f"{arm.name}: {arm.like}, but with as many epochs as take at least as long as {arm.time_of}."
            )
    if other:
        sentences.append(f"NOT THE SAME LENGTH as the others: {', '.join(sorted(other))}; see the column iterations.")
    if len({device.split(":")[0] for device in devices}) > 1:
        sentences.append("Different kinds of devices took part, so seconds are not comparable between all runs.")
    return sentences


def _fingerprint(protocol: Protocol) -> str:
    if protocol.fingerprint_from == "labeled":
        return (
            "Plans and intensity fingerprint were made from the labeled cases of each draw only (for the ceiling from "
            "all its training cases)."
        )
    return (
        "Plans and intensity fingerprint were made once from all cases, also those whose labels are hidden and those "
        "of the evaluation: patch, network, spacing and, for CT, normalisation know them a little. All arms share "
        "this. Training itself reads no label of an unlabeled or evaluation case: the validation case "
        "of nnU-Net's fold is the first labeled one."
    )


def _statistics(protocol: Protocol, comparisons: int) -> list[str]:
    one = len(protocol.draws) * len(protocol.seeds) == 1
    return [
        f"Draws of labeled cases: {', '.join(protocol.draws)} ({protocol.splits or 'at random'}); spread is the "
        "standard deviation of the mean Dice over draws and seeds" + (" (one run only: none)." if one else "."),
        f"Dice - baseline [95 %]: percentile bootstrap of the paired difference to {protocol.baseline}, {RESAMPLES} "
        "resamples; cases and draws are resampled independently of each other (pigeonhole bootstrap), seeds "
        "are averaged within a draw; with a single draw its seeds take the place of draws. It knows only the draws "
        "that were made: of two to five it is too narrow for others. With one draw and one seed only cases are "
        "resampled.",
        "other draws [95 %]: of the same difference for draws and cases that were not seen, by analysis of variance "
        "and Student's t (Hillis 2007, with draws for readers). Few draws make it wide: three have to agree well for "
        "it to leave out 0. From cases that all draws have; - for a single draw.",
        "p: Wilcoxon's signed-rank test of the Dice, two-sided, on cases, each the mean over its draws and seeds: for "
        f"these draws, whatever others would give. Not corrected for the number of comparisons ({comparisons} here).",
    ]
