"""A few timed iterations of every arm, so that a dry run can guess how long the benchmark takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.launch import Launcher, Slot
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.progress import Estimator, Progress, kind
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.runs import Run, write_json
from nnunet_semisam.benchmark.schedule import Schedule, carry_out
from nnunet_semisam.benchmark.steps import Steps

CASES, ITERATIONS, EPOCHS = 3, 5, 2  # the second epoch is timed: the first one warms up
AT_ONCE = {"delay": 0, "schedule": "constant"}  # every term, at the weight that it has
FILE = "measured.json"


def measure_arms(work: Path, protocol: Protocol, slots: list[Slot]) -> dict[str, str]:
    """Trains every arm of every data set for a moment, on the first labeled set; what is measured is kept.

    Returns:
        what went wrong, by title of the run.

    Raises:
        ValueError: see `plan_steps`.
    """
    launcher = Launcher()
    plan_steps(work, protocol, launcher)  # mistakes are told by what was asked for
    steps = plan_steps(work, shortened(protocol), launcher)
    schedule = Schedule(steps.runs, {run.name for run in steps.runs if steps.done(run)})
    print("timing a few iterations of every arm", flush=True)
    progress = Progress(schedule, Estimator(steps.runs, steps.seconds, underway=steps.underway), len(slots))
    carry_out(schedule, slots, steps, progress, stop=launcher.stop)
    print(flush=True)
    for error in schedule.errors.values():
        print(f"not timed: {error}")
    write_json(work / FILE, {f"{run.dataset.name}/{run.arm.name}": facts(run, steps) for run in _done(steps)})
    return {run.title: schedule.errors[run.name] for run in steps.runs if run.name in schedule.errors}


def shortened(protocol: Protocol) -> Protocol:
    """The protocol at a length of a few iterations, all terms on, with one labeled set and few evaluation cases."""
    arms = tuple(replace(arm, section=_at_once(arm.section)) for arm in protocol.arms if not arm.needs)
    return replace(
        protocol, arms=arms, budgets=protocol.budgets[:1], draws=protocol.draws[:1], seeds=protocol.seeds[:1],
        epochs=EPOCHS, iterations=ITERATIONS, val_iterations=1, max_cases=CASES,
    )  # fmt: skip


def _at_once(section: Mapping[str, Any]) -> dict[str, Any]:
    terms = {name: {**term, **AT_ONCE} for name, term in section.get("terms", {}).items()}
    return {**section, "terms": terms, "min_labeled_dice": 0.0}


def facts(run: Run, steps: Steps) -> dict[str, float]:
    """Seconds of an iteration (with its share of the validation), of predicting a case, and of everything else, such
    as the test and the tuning of a generalist."""
    trained, whole = steps.trained(run), steps.seconds(run)
    iteration, case = trained["last_epoch"] / ITERATIONS, 0.0
    for folder in steps.folder(run).glob("predicted_*"):
        written = sorted(file.stat().st_mtime for file in folder.glob(f"*{run.dataset.ending}"))
        case += (written[-1] - written[0]) / max(1, len(written) - 1)
    return {
        "iteration": iteration,
        "case": case,
        "rest": whole - EPOCHS * trained["last_epoch"] - case * len(run.cases),
    }


def guesses(work: Path, protocol: Protocol, runs: list[Run]) -> dict[tuple[str, str], float]:
    """Seconds by kind of run, as measured; of an arm of equal time those of the arm whose time it gets."""
    file = work / FILE
    measured = json.loads(file.read_text()) if file.is_file() else {}
    found = {}
    for run in runs:
        if seconds := measured.get(f"{run.dataset.name}/{run.arm.time_of or run.arm.name}"):
            training = seconds["iteration"] * protocol.epochs * protocol.iterations
            found[kind(run)] = training + seconds["rest"] + seconds["case"] * len(run.cases)
    return found


def _done(steps: Steps) -> list[Run]:
    return [run for run in steps.runs if steps.done(run)]
