"""How far the benchmark is and how long it will take, from what finished runs of the same kind took."""

from __future__ import annotations

import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping

from nnunet_semisam.benchmark.runs import Run
from nnunet_semisam.benchmark.schedule import Schedule

EVERY = 60.0  # seconds between lines where the output is no terminal


def kind(run: Run) -> tuple[str, str]:
    """Runs of one kind take about as long: same data set, same settings."""
    settings = run.fold.labels if run.arm.needs else run.digest  # equal time: another digest for every draw
    return run.dataset.name, f"{run.arm.name} {settings}"


class Estimator:
    """Seconds of runs that are not finished.

    Args:
        seconds: what a finished run took, None for others.
        guesses: seconds by kind, for kinds of which no run is finished or begun.
        underway: seconds that a begun training has taken and those that it will still take; None for others.
    """

    def __init__(
        self,
        runs: list[Run],
        seconds: Callable[[Run], float | None],
        guesses: Mapping[tuple[str, str], float] | None = None,
        underway: Callable[[Run], tuple[float, float] | None] = lambda run: None,
    ) -> None:
        self.runs, self.seconds, self.guesses, self.underway = runs, seconds, guesses or {}, underway

    def each(self) -> dict[str, float | None]:
        """By name of run: median of finished runs of its kind, else of begun ones, else the guess, else None."""
        return self._each(self._begun())

    def left(self, unfinished: Mapping[str, float], workers: int) -> tuple[float, bool] | None:
        """Seconds until all are finished, and whether some of them are only guessed at (by the mean of the others).

        Args:
            unfinished: name -> seconds that have been spent on it already.
        """
        if not unfinished:
            return 0.0, False
        begun = self._begun()
        every = self._each(begun)
        known = [value for value in every.values() if value is not None]
        if not known:
            return None
        mean = statistics.mean(known)
        rest = []
        for name, spent in unfinished.items():
            whole = every[name]
            spent, at_least = begun.get(name, (spent, 0.0))
            rest.append(max(at_least, (mean if whole is None else whole) - spent))
        return max(sum(rest) / workers, max(rest)), None in [every[name] for name in unfinished]

    def _begun(self) -> dict[str, tuple[float, float]]:
        now = {run.name: self.underway(run) for run in self.runs}
        return {name: seconds for name, seconds in now.items() if seconds is not None}

    def _each(self, begun: Mapping[str, tuple[float, float]]) -> dict[str, float | None]:
        finished = {run.name: seconds for run in self.runs if (seconds := self.seconds(run)) is not None}
        typical = {**self.guesses, **self._medians({name: sum(both) for name, both in begun.items()})}
        typical |= self._medians(finished)
        return {run.name: typical.get(kind(run)) for run in self.runs}

    def _medians(self, seconds: Mapping[str, float]) -> dict[tuple[str, str], float]:
        known: dict[tuple[str, str], list[float]] = {}
        for run in self.runs:
            if run.name in seconds:
                known.setdefault(kind(run), []).append(seconds[run.name])
        return {name: statistics.median(values) for name, values in known.items()}


class Progress:
    """Prints one line that is renewed on a terminal, and elsewhere a line after every run and every minute."""

    def __init__(self, schedule: Schedule, estimator: Estimator, workers: int) -> None:
        self.schedule, self.estimator, self.workers = schedule, estimator, workers
        self.begun = self._last = time.monotonic()
        self._lock, self._width, self.newest = threading.Lock(), 0, ""

    def __call__(self, run: Run | None) -> None:
        """Reports; `run` is the one that has just ended, None if nothing has happened."""
        with self._lock:
            terminal = sys.stdout.isatty()
            if run is not None:
                over = {"done": self.schedule.finished, "FAILED": self.schedule.errors}
                verb = next((verb for verb, names in over.items() if run.name in names), "interrupted")
                self.newest = f"{verb}: {run.title}"
            elif time.monotonic() - self._last < (1.0 if terminal else EVERY):
                return
            self._last, text = time.monotonic(), self.line()
            text = text[: shutil.get_terminal_size().columns - 1] if terminal else text  # a wrapped one is not renewed
            print(f"\r{text:<{self._width}}" if terminal else text, end="" if terminal else "\n", flush=True)
            self._width = len(text)

    def line(self) -> str:
        """The line."""
        schedule, now = self.schedule, time.monotonic()
        running = dict(schedule.running)
        over = schedule.finished | schedule.errors.keys()
        unfinished = {r.name: now - running.get(r.name, now) for r in schedule.runs if r.name not in over}
        left = self.estimator.left(unfinished, self.workers)
        text = f"[{len(schedule.finished)}/{len(schedule.runs)}] {len(running)} running"
        if schedule.errors:
            text += f", {len(schedule.errors)} failed"
        text += f"; {clock(now - self.begun)} elapsed, {describe(left)} left"
        text += "".join(f"; {run.title}" for run in schedule.runs if run.name in running)
        text += "".join(f"; was in use by another process: {run.title}" for run in schedule.held())
        return text + (f"; {self.newest}" if self.newest else "")


def describe(left: tuple[float, bool] | None) -> str:
    """An estimate in words."""
    if left is None:
        return "unknown time"
    return f"about {clock(left[0])}{' (some kinds of runs unknown)' if left[1] else ''}"


def clock(seconds: float) -> str:
    """h:mm:ss"""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
