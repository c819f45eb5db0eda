"""The whole benchmark: what there is to do, doing it, and the results."""

from __future__ import annotations

from pathlib import Path

from nnunet_semisam.benchmark.launch import Launcher, Slot
from nnunet_semisam.benchmark.measure import guesses
from nnunet_semisam.benchmark.metrics import require_monai
from nnunet_semisam.benchmark.planning import plan_steps
from nnunet_semisam.benchmark.progress import Estimator, Progress, clock, describe
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.results import write_results
from nnunet_semisam.benchmark.runs import Run, write_json
from nnunet_semisam.benchmark.schedule import Schedule, carry_out
from nnunet_semisam.benchmark.steps import LOG, Steps


def list_runs(steps: Steps, protocol: Protocol, workers: int) -> str:
    """What would be done and how long it would take."""
    guessed = guesses(steps.work, protocol, steps.runs)
    estimator = Estimator(steps.runs, steps.seconds, guessed, steps.underway)
    each, lines = estimator.each(), []
    for run in steps.runs:
        seconds = each[run.name]
        if steps.done(run):
            state = "done"
        elif steps.trained(run):
            state = "trained"
        elif epochs := steps.epochs_done(run):
            state = f"begun, {epochs} epochs"
        else:
            state = "to do"
        time = "time unknown" if seconds is None else f"about {clock(seconds)}"
        lines.append(f"{state:<18} {run.title}" + ("" if state == "done" else f"  ({time})"))
    unfinished = {run.name: 0.0 for run in steps.runs if not steps.done(run)}
    total = describe(estimator.left(unfinished, workers))
    lines.append(f"{len(unfinished)} of {len(steps.runs)} runs to do, {workers} at a time: {total}")
    cases = sorted({len(run.cases) for run in steps.runs})
    lines.append(f"Evaluated on {' or '.join(map(str, cases))} case(s) per draw.")
    lines.append(f"Length: {protocol.epochs} epochs of {protocol.iterations} iterations (arms of equal time: more).")
    if any(seconds is None for seconds in each.values()):
        lines.append("--measure times a few iterations of every arm first, to tell the time.")
    lines.append(
        f"Times are those of finished or begun runs of the same kind{', else timed iterations' if guessed else ''}."
    )
    return "\n".join(lines)


def run_benchmark(work: Path, protocol: Protocol, slots: list[Slot]) -> dict[str, str]:
    """Does what is not done yet and writes the results; returns the errors by title of the run.

    Raises:
        ValueError: see `plan_steps` and `State.require_same_cases`.
        ImportError: MONAI is not installed.
    """
    require_monai()
    launcher = Launcher()
    steps = plan_steps(work, protocol, launcher)
    steps.require_same_cases()
    write_json(work / "protocol.json", protocol.as_dict())
    schedule = Schedule(steps.runs, {run.name for run in steps.runs if steps.done(run)})
    estimator = Estimator(steps.runs, steps.seconds, guesses(work, protocol, steps.runs), steps.underway)
    progress, written = Progress(schedule, estimator, len(slots)), schedule.over

    def report(run: Run | None) -> None:
        """Tells, and writes what there is after every run: a benchmark may be killed after days."""
        nonlocal written
        progress(run)
        if run is None and (over := schedule.over) != written:  # in the main thread
            written = over
            try:
                write_results(work, protocol, steps)
            except Exception as error:  # noqa: BLE001 (a table that is open elsewhere must not end trainings)
                print(f"\nresults not written yet: {type(error).__name__}: {error}", flush=True)

    print(f"logs: {LOG} in the folder of each run, under {work / 'runs'}", flush=True)
    try:
        carry_out(schedule, slots, steps, report, stop=launcher.stop)
    finally:
        print(flush=True)
        write_results(work, protocol, steps)
    titles = {run.name: run.title for run in steps.runs}
    return {titles[name]: error for name, error in schedule.errors.items()}
