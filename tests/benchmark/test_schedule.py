"""Many runs side by side with a stub in place of nnU-Net: order, errors, interrupts, and going on afterwards."""

import sys
import threading
import time

import pytest
from made_up import protocol, raw_dataset

from nnunet_semisam.benchmark import run as run_module
from nnunet_semisam.benchmark.launch import Busy, Slot, slots
from nnunet_semisam.benchmark.progress import Estimator, Progress, clock
from nnunet_semisam.benchmark.runs import expand, needs
from nnunet_semisam.benchmark.schedule import Schedule, carry_out

ARMS = ["supervised", "supervised_time", "full", "semisam"]
SLOTS = [Slot("cpu"), Slot("cpu")]


@pytest.fixture
def runs(tmp_path):
    dataset = raw_dataset(tmp_path)
    return expand(protocol(dataset, arms=ARMS), [dataset])


def carry(runs, work, done=frozenset(), **more):
    schedule = Schedule(runs, set(done), retry=0.05)
    carry_out(schedule, SLOTS, work, lambda run: None, **more)
    return schedule


def test_everything_is_done_once_and_after_what_it_needs(runs):
    order, over, early = [], [], []

    def work(run, slot):
        order.append(run)
        early.extend(other.title for other in needs(run, runs) if other not in over)
        if run.arm.name == "semisam":
            time.sleep(0.2)  # the other slot would have time to begin what needs it
        over.append(run)

    schedule = carry(runs, work)
    assert sorted(run.name for run in order) == sorted(run.name for run in runs)
    assert schedule.finished == {run.name for run in runs} and not schedule.errors
    assert not early and any(needs(run, runs) for run in runs)


def test_as_many_runs_at_a_time_as_there_are_slots(runs):
    at_once, most, lock = set(), [], threading.Lock()

    def work(run, slot):
        with lock:
            at_once.add(run.name)
            most.append(len(at_once))
        time.sleep(0.03)
        with lock:
            at_once.discard(run.name)

    carry(runs, work)
    assert max(most) == 2


def test_an_error_stops_only_what_depends_on_it(runs):
    def work(run, slot):
        if run.arm.name == "semisam" and run.fold.draw == "0":
            raise RuntimeError("out of memory")

    schedule = carry(runs, work)
    failed = {run.title: schedule.errors[run.name] for run in runs if run.name in schedule.errors}
    assert len(failed) == 2 and len(schedule.finished) == len(runs) - 2
    assert any("out of memory" in error for error in failed.values())
    assert any("it needs" in error and "semisam" in error for error in failed.values())


def test_what_is_done_is_not_done_again(runs):
    order = []
    done = {run.name for run in runs[:4]}
    schedule = carry(runs, lambda run, slot: order.append(run.name), done)
    assert order and not done & set(order) and len(order) == len(runs) - 4
    assert len(schedule.finished) == len(runs)


def test_a_run_that_another_process_is_at_is_tried_again_later(runs):
    tries = {}

    def work(run, slot):
        tries[run.name] = tries.get(run.name, 0) + 1
        if run is runs[0] and tries[run.name] < 3:
            raise Busy("in use")

    schedule, told = Schedule(runs, set(), retry=0.3), []
    progress = Progress(schedule, Estimator(runs, lambda run: None), 2)
    carry_out(schedule, SLOTS, work, lambda run: told.append(progress.line()))
    assert any(f"was in use by another process: {runs[0].title}" in line for line in told)
    assert "another process" not in progress.line()
    assert tries[runs[0].name] == 3 and not schedule.errors and len(schedule.finished) == len(runs)


class Steps:
    """The second run waits until `wait` tells of something, for ten seconds at most."""

    def __init__(self, runs):
        self.runs, self.ended = runs, set()

    def __call__(self, run, slot):
        for _ in range(500 if run is self.runs[1] else 0):
            time.sleep(0.0 if self.wait() else 0.02)
        self.ended.add(run.name)

    def done(self, run):
        return run.name in self.ended

    def seconds(self, run):
        return None

    underway = seconds

    def require_same_cases(self):
        pass


def test_results_are_written_whenever_a_run_has_ended(runs, monkeypatch, tmp_path):
    """A benchmark may be killed after days."""
    written, steps = [], Steps(runs[:2])
    steps.wait = lambda: written
    monkeypatch.setattr(run_module, "require_monai", lambda: None)
    monkeypatch.setattr(run_module, "plan_steps", lambda *given: steps)
    monkeypatch.setattr(run_module, "write_results", lambda *given: written.append(len(steps.ended)))
    assert not run_module.run_benchmark(tmp_path, runs[0].protocol, [Slot("cpu")])
    assert written[0] == 1 and written[-1] == 2


def test_a_report_that_fails_ends_neither_a_slot_nor_the_benchmark(runs, monkeypatch, tmp_path, capsys):
    def report(run):
        if run is not None:
            raise OSError("the pipe is gone")

    schedule = Schedule(runs, set())
    carry_out(schedule, SLOTS, lambda run, slot: None, report)
    assert len(schedule.finished) == len(runs)

    steps, tries = Steps(runs[:2]), []
    monkeypatch.setattr(run_module, "require_monai", lambda: None)
    monkeypatch.setattr(run_module, "plan_steps", lambda *given: steps)

    def write(*given):
        tries.append(steps.ended)
        if len(tries) == 1:
            raise PermissionError("summary.csv is open")

    monkeypatch.setattr(run_module, "write_results", write)
    steps.wait = lambda: tries
    assert not run_module.run_benchmark(tmp_path, runs[0].protocol, [Slot("cpu")])
    assert "results not written yet: PermissionError: summary.csv is open" in capsys.readouterr().out
    assert len(steps.ended) == 2 and len(tries) > 1


def test_an_interrupt_stops_what_runs_and_starts_nothing(runs, capsys):
    released, begun = threading.Event(), []

    def work(run, slot):
        begun.append(run.name)
        released.wait(10)
        raise RuntimeError("its command was ended")

    schedule = Schedule(runs, set())
    progress = Progress(schedule, Estimator(runs, lambda run: None), 2)

    def report(run):
        progress(run)
        if run is None and len(begun) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(schedule, SLOTS, work, report, stop=released.set)
    assert len(begun) == 2 and released.is_set()
    assert not schedule.errors and not schedule.finished  # interrupted is not failed
    told = capsys.readouterr().out
    assert "interrupted: " in told and "FAILED" not in told and "failed" not in told


def test_time_left_comes_from_finished_runs_of_the_same_kind(runs):
    supervised = [run.name for run in runs if run.arm.name == "supervised"]
    taken = {supervised[0]: 100.0}
    estimator = Estimator(runs, lambda run: taken.get(run.name))
    each = estimator.each()
    assert each[supervised[1]] == 100.0
    assert each[next(run.name for run in runs if run.arm.name == "semisam")] is None
    assert estimator.left({supervised[1]: 30.0}, 1) == (70.0, False)
    unknown = {run.name: 0.0 for run in runs if run.name != supervised[0]}
    assert estimator.left(unknown, 2) == (100.0 * len(unknown) / 2, True)
    assert estimator.left({runs[-1].name: 0.0}, 1) == (100.0, True)
    assert Estimator(runs, lambda run: None).left(unknown, 2) is None
    assert estimator.left({}, 1) == (0.0, False)


def test_time_left_of_a_begun_training_comes_from_its_epochs(runs):
    begun = {runs[0].name: (40.0, 60.0)}
    estimator = Estimator(runs, lambda run: None, underway=lambda run: begun.get(run.name))
    each = estimator.each()
    same = [run.name for run in runs if run.arm.name == runs[0].arm.name]
    assert [each[name] for name in same] == [100.0] * len(same) and len(same) > 1
    assert estimator.left({runs[0].name: 0.0}, 1) == (60.0, False)  # however long ago the benchmark was started
    assert estimator.left({same[0]: 5.0, same[1]: 0.0}, 1) == (160.0, False)
    finished = {same[1]: 150.0}
    estimator = Estimator(runs, lambda run: finished.get(run.name), underway=lambda run: begun.get(run.name))
    assert estimator.left({same[0]: 0.0}, 1) == (110.0, False)  # with its predictions, as finished ones tell
    finished.clear()
    begun.clear()
    assert estimator.left({runs[0].name: 0.0}, 1) is None


def test_the_line_of_progress_counts_and_estimates(runs, capsys):
    schedule = Schedule(runs, {runs[0].name})
    progress = Progress(schedule, Estimator(runs, lambda run: 60.0 if run is runs[0] else None), 1)
    schedule.take()
    schedule.end(runs[1], RuntimeError("no"))
    progress(runs[1])
    line = capsys.readouterr().out
    assert line.startswith(f"[1/{len(runs)}] 0 running, 1 failed; 0:00:00 elapsed, about 0:0")
    assert f"FAILED: {runs[1].title}" in line
    assert clock(3725) == "1:02:05"
    assert runs[2].title not in line
    assert schedule.take() is runs[2]
    assert f"left; {runs[2].title}" in progress.line()  # what is at work


def test_the_line_is_no_longer_than_the_terminal(runs, capsys, monkeypatch):
    progress = Progress(Schedule(runs, set()), Estimator(runs, lambda run: None), 1)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "30")
    progress(runs[0])
    assert len(capsys.readouterr().out.removeprefix("\r")) == 29


def test_slots_share_the_cores_and_take_devices_in_turn():
    found = slots(["cuda:0", "cuda:1"], 4, 16)
    assert [slot.device for slot in found] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert {(slot.threads, slot.loaders) for slot in found} == {(4, 4)}
    assert slots(["cpu"], 3, 2) == [Slot("cpu", 1, 0)] * 3


def test_one_thread_for_computing_is_no_limit_on_loaders(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert slots(["cuda:0"], 1, 16) == [Slot("cuda:0", 16, 12)]
    assert slots(["cpu"], 1, 16) == [Slot("cpu", 1, 0)]
    monkeypatch.setenv("nnUNet_n_proc_DA", "3")
    assert slots(["cuda:0"], 1, 16) == [Slot("cuda:0", 16, 3)]
    assert slots(["cuda:0"], 1, 16, loaders=5) == [Slot("cuda:0", 16, 5)]


def test_processes_share_the_threads_and_are_no_more_than_nnunet_takes():
    slot = Slot("cuda:0", 64)
    assert (slot.processes(4), Slot("cpu").processes(4)) == (4, 1)
    assert slot.environment()["nnUNet_def_n_proc"] == "8"
    assert slot.environment(4)["OMP_NUM_THREADS"] == "16"


def test_waiting_threads_do_not_spin_and_a_gpu_is_chosen_by_its_number(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    environment = Slot("cuda:1", 3).environment()
    assert environment["CUDA_VISIBLE_DEVICES"] == "7"
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("passive", "3")
    assert "CUDA_VISIBLE_DEVICES" not in Slot("cpu").environment()
