"""The files of results: `scores.csv`, `summary.csv`, `runs.csv`, plots, `results.md` and `results.html`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_semisam.benchmark.caption import caption
from nnunet_semisam.benchmark.page import Page
from nnunet_semisam.benchmark.plot import draw_plot
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.scores import write_csv
from nnunet_semisam.benchmark.steps import FAILED, Steps
from nnunet_semisam.benchmark.summary import MEAN, Line, summarise

RUN_COLUMNS = ("dataset", "labels", "draw", "seed", "arm", "device", "epochs", "iterations", "seconds", "folder")


def write_results(work: Path, protocol: Protocol, steps: Steps) -> Page:
    """Writes everything from the runs that are done so far; returns the page."""
    rows = steps.rows()
    lines = summarise(protocol, steps.runs, rows)
    write_csv(work / "scores.csv", rows)
    table = [line.as_row() for line in lines]
    write_csv(work / "summary.csv", table, table[0] if table else ["dataset"])
    write_csv(work / "runs.csv", run_rows(steps), RUN_COLUMNS)
    page = build_page(work, protocol, steps, lines)
    (work / "results.md").write_text(page.markdown(), encoding="utf-8")
    (work / "results.html").write_text(page.html(), encoding="utf-8")
    return page


def run_rows(steps: Steps) -> list[dict]:
    """What every finished training really was."""
    rows = []
    for run in steps.runs:
        if facts := steps.trained(run):
            where: dict[str, Any] = {"dataset": run.dataset.name, "labels": run.fold.labels, "draw": run.fold.draw}
            where |= {"seed": run.seed, "arm": run.arm.name, "folder": f"runs/{run.name}"}
            rows.append(where | {key: facts[key] for key in ("device", "epochs", "iterations", "seconds")})
    return rows


def build_page(work: Path, protocol: Protocol, steps: Steps, lines: list[Line]) -> Page:
    """Tables and plots of every data set, what they rest on, and the command to make them again."""
    page = Page("Few labels: results")
    done = sum(steps.done(run) for run in steps.runs)
    if done < len(steps.runs):
        page.text(f"NOT COMPLETE: {done} of {len(steps.runs)} runs are done; the numbers below are of those.")
    full = [arm.name for arm in protocol.arms if arm.labels == "all"]
    for dataset in dict.fromkeys(line.dataset for line in lines):
        page.heading(dataset)
        own = [line for line in lines if line.dataset == dataset]
        first = own[0].label
        picture = work / f"dice_{dataset}.png"
        draw_plot([line for line in own if line.label == first], picture, full=full)
        page.picture(picture)
        for labels in dict.fromkeys(line.labels for line in own):
            for label in dict.fromkeys(line.label for line in own):
                page.heading(f"{_labels(labels)}, {label if label == MEAN else f'class {label}'}", 3)
                these = [line for line in own if (line.labels, line.label) == (labels, label)]
                page.table(HEAD, [table_row(line, _cost(line, steps, full), protocol) for line in these])
    page.heading("What the numbers are")
    page.items(caption(protocol, steps, comparisons=sum(len(line.differences) > 0 for line in lines)))
    if failed := {run.title: reason for run in steps.runs if (reason := _failure(steps.folder(run) / FAILED))}:
        page.heading("Runs that failed")
        page.items([f"{title}: {reason}" for title, reason in failed.items()])
    page.heading("Make them again")
    page.code("nnUNetv2_semisam_benchmark WORK --protocol protocol.json")
    page.text("protocol.json:")
    page.code("{" + ",\n ".join(f'"{key}": {json.dumps(value)}' for key, value in protocol.as_dict().items()) + "}")
    return page


def _failure(file: Path) -> str:
    """The first line of a file; nothing if there is none, or none any more."""
    try:
        return (file.read_text().splitlines() or [""])[0]
    except OSError:
        return ""


HEAD = ["arm", "Dice", "spread", "Dice - baseline [95 %]", "other draws [95 %]", "p", "HD95", "ASSD", "NSD"]
HEAD += ["NSD - baseline [95 %]", "empty", "cases x draws", "iterations", "seconds"]


def table_row(line: Line, cost: tuple[str, str], protocol: Protocol) -> list[str]:
    """One row of a table; Dice and NSD in percent."""
    dice, nsd = line.differences.get("dice"), line.differences.get("nsd")
    unit = "voxels" if protocol.voxel_units else "mm"
    return [
        line.column,
        _percent(line.means["dice"]),
        _percent(line.spread) if not math.isnan(line.spread) else "-",
        _difference(dice),
        "" if dice is None else _interval(dice.draws_low, dice.draws_high),
        "" if dice is None else _p(dice.p),
        f"{line.means['hd95']:.2f} {unit}",
        f"{line.means['assd']:.2f} {unit}",
        _percent(line.means["nsd"]),
        _difference(nsd),
        str(line.empty),
        f"{line.cases} x {line.replicates}",
        *cost,
    ]


def _cost(line: Line, steps: Steps, full: list[str]) -> tuple[str, str]:
    """Iterations and seconds of the trainings of a line (medians)."""
    name = line.column.removesuffix(" (teacher)")
    labels = None if name in full else line.labels
    runs = [r for r in steps.runs if r.dataset.name == line.dataset and r.arm.name == name]
    facts = [steps.trained(r) for r in runs if labels in (None, r.fold.labels) and steps.trained(r)]

    def median(value: Callable[[dict], float]) -> str:
        return f"{statistics.median(map(value, facts)):.0f}" if facts else "-"

    return median(lambda f: f["epochs"] * f["iterations"]), median(lambda f: f["seconds"])


def _labels(labels: str) -> str:
    return f"{labels} labeled case{'' if labels == '1' else 's'}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _difference(difference) -> str:
    if difference is None:
        return "baseline"
    return f"{100 * difference.mean:+.1f} {_interval(difference.low, difference.high)}"


def _interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else "< 0.001"
