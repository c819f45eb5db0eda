"""A worker of the unlabeled loader that dies is an error at once, never a hang."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from nnunet_semisam.data.loader import WatchedAugmenter, close_unlabeled_loader

# the stock thread that hands batches on may notice the dead worker, too, and raises to nobody
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


class Batches:
    """An endless loader; a batch is large enough to fill the pipe between the processes."""

    def __init__(self, seconds=0.0, fails=False):
        self.seconds, self.fails = seconds, fails

    def set_thread_id(self, number):
        pass

    def __next__(self):
        time.sleep(self.seconds)
        if self.fails:
            raise ValueError("a broken file")
        return {"data": np.zeros(300_000)}


@pytest.fixture
def start():
    opened = []

    def opening(loader, count=2):
        opened.append(WatchedAugmenter(loader, None, count, num_cached=2, wait_time=0.002))
        return opened[-1]

    yield opening
    for stream in opened:
        close_unlabeled_loader(stream)


def until_it_fails(stream, seconds=30):
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as told:
        while time.monotonic() - begin < seconds:
            next(stream)
    return str(told.value)


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03, 0.1])
def test_a_killed_worker_is_told(start, pause):
    stream = start(Batches())
    for _ in range(5):
        next(stream)
    others = list(stream._processes)
    time.sleep(pause)
    os.kill(others[0].pid, signal.SIGKILL)
    begin = time.monotonic()
    told = until_it_fails(stream)
    assert "1 of 2 processes" in told and "SIGKILL" in told and "nnUNet_n_proc_DA" in told and "--c" in told
    assert time.monotonic() - begin < 5
    for process in others:
        process.join(5)
        assert not process.is_alive()


def test_the_signal_is_told_when_another_thread_has_noticed_first(start, monkeypatch):
    """It sets the event between our look at the processes and at the event, and collects the exit code meanwhile."""
    stream = start(Batches())
    next(stream)
    os.kill(stream._processes[0].pid, signal.SIGKILL)
    stream._processes[0].join(5)
    stream.abort_event.set()
    alive = type(stream._processes[0]).is_alive
    looks = []
    monkeypatch.setattr(
        type(stream._processes[0]), "is_alive", lambda self: (looks.append(self) or len(looks) <= 2) or alive(self)
    )  # the first look at both finds them alive
    told = until_it_fails(stream)
    assert "1 of 2 processes" in told and "SIGKILL" in told


def test_a_kill_while_we_wait_for_a_batch_is_told(start):
    stream = start(Batches(seconds=1), count=1)
    next(stream)
    os.kill(stream._processes[0].pid, signal.SIGKILL)
    assert "SIGKILL" in until_it_fails(stream, 10)


def test_an_error_in_a_worker_is_told(start, capfd):
    assert "see the error above" in until_it_fails(start(Batches(fails=True)))
    assert "a broken file" in capfd.readouterr().out


def test_a_healthy_stream_goes_on_and_closes(start):
    stream = start(Batches())
    assert all(next(stream)["data"].shape == (300_000,) for _ in range(20))
    processes = list(stream._processes)
    close_unlabeled_loader(stream)
    assert not any(process.is_alive() for process in processes)
