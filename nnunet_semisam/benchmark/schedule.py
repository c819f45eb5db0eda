"""Many runs side by side: each waits for those it needs, and an error stops nothing but what depends on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from nnunet_semisam.benchmark.launch import Busy, Slot
from nnunet_semisam.benchmark.runs import Run, needs


class Schedule:
    """Which runs wait, run, are finished or have failed. Safe to use from several threads.

    Args:
        done: names of runs that were finished before.
        retry: seconds until a run that another process is at is looked at again.
    """

    def __init__(self, runs: Sequence[Run], done: set[str], retry: float = 5.0) -> None:
        self.runs, self.retry = list(runs), retry
        self.finished = set(done)
        self.running: dict[str, float] = {}  # name -> when it began
        self.errors: dict[str, str] = {}
        self.stopped = False
        self._not_before: dict[str, float] = {}
        self._change = threading.Condition()

    def take(self) -> Run | None:
        """The next run that can start, as soon as there is one; None if there will be none any more."""
        with self._change:
            while not self.stopped:
                waiting = self._waiting()
                if not waiting:
                    return None
                if ready := [run for run in waiting if self._ready(run)]:
                    self.running[ready[0].name] = time.monotonic()
                    self._not_before.pop(ready[0].name, None)
                    return ready[0]
                self._change.wait(min(self.retry, 1.0))
            return None

    def end(self, run: Run, error: BaseException | None = None) -> None:
        """Notes how a run ended. `Busy` sends it back."""
        with self._change:
            del self.running[run.name]
            if isinstance(error, Busy):
                self._not_before[run.name] = time.monotonic() + self.retry
            elif error is not None and not self.stopped:  # an interrupted run has not failed
                self.errors[run.name] = f"{type(error).__name__}: {error}"
            elif error is None:
                self.finished.add(run.name)
            self._change.notify_all()

    @property
    def over(self) -> int:
        """How many runs have ended, well or not."""
        return len(self.finished) + len(self.errors)

    def held(self) -> list[Run]:
        """Runs that another process was at when they were last looked at."""
        with self._change:
            return [run for run in self._waiting() if run.name in self._not_before]

    def stop(self) -> None:
        """No run starts any more."""
        with self._change:
            self.stopped = True
            self._change.notify_all()

    def _waiting(self) -> list[Run]:
        """Runs that have not begun; those whose needs have failed fail here."""
        for run in self.runs:
            failed = [other for other in needs(run, self.runs) if other.name in self.errors]
            if failed and run.name not in self.errors and run.name not in self.finished:
                self.errors[run.name] = f"not started: it needs {failed[0].title}, which has failed"
        over = self.finished | self.errors.keys() | self.running.keys()
        return [run for run in self.runs if run.name not in over]

    def _ready(self, run: Run) -> bool:
        met = all(other.name in self.finished for other in needs(run, self.runs))
        return met and time.monotonic() >= self._not_before.get(run.name, 0)


def carry_out(
    schedule: Schedule,
    slots: Sequence[Slot],
    work: Callable[[Run, Slot], None],
    report: Callable[[Run | None], None],
    *,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Runs everything, one thread per slot.

    Args:
        report: called after every run, and with None now and then.
        stop: called on an interrupt, to end what the threads are waiting for.

    Raises:
        KeyboardInterrupt: passed on, after everything has ended.
    """

    def loop(slot: Slot) -> None:
        while (run := schedule.take()) is not None:
            error: Exception | None = None
            try:
                work(run, slot)
            except Exception as caught:  # noqa: BLE001 (one run must not stop the others)
                error = caught
            schedule.end(run, error)
            if not isinstance(error, Busy):
                with contextlib.suppress(Exception):  # a line that cannot be printed must not end the slot
                    report(run)

    threads = [threading.Thread(target=loop, args=(slot,), name=f"slot {n}") for n, slot in enumerate(slots)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.2)
            report(None)
    except BaseException:
        schedule.stop()
        stop()
        raise
    finally:
        for thread in threads:
            thread.join()
