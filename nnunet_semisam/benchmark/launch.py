"""Starts nnU-Net's commands: on a device, with a share of the cores, into a log, and stopped with the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import joblib

from nnunet_semisam._discovery import OPT_OUT, announce
from nnunet_semisam.demo.commands import CommandFailed, invocation

try:
    import fcntl
except ImportError:  # Windows: nobody notices that two benchmarks share a folder
    fcntl = None  # type: ignore[assignment]

KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
MOST_LOADERS = 12  # per run, on a GPU: what nnU-Net takes
MOST_PROCESSES, MOST_FOR_3D = 8, 4  # nnU-Net's own defaults; volumes take memory
ENOUGH_LOADERS = 4  # with fewer a GPU may wait for its patches


class Busy(Exception):
    """Another process is at it: a second benchmark in the same folder, or what a killed one has left running."""


@dataclass(frozen=True)
class Slot:
    """Where one run at a time takes place.

    Args:
        device: "cpu", "mps", "cuda" or "cuda:1".
        threads: of torch on the CPU.
        loaders: processes for data augmentation; 0 = in the training process, where two runs give the same weights.
    """

    device: str
    threads: int = 1
    loaders: int = 0

    @property
    def kind(self) -> str:
        """For `-device`: "cpu", "mps" or "cuda"."""
        return self.device.split(":")[0]

    def processes(self, most: int) -> int:
        """How many processes nnU-Net may start beside each other; it has a `most` for memory's sake."""
        return max(1, min(most, self.threads))

    def environment(self, processes: int = 1) -> dict[str, str]:
        """Variables of a command on this device, which starts so many processes. Threads that wait must not spin while
        other runs need the core."""
        threads = str(max(1, self.threads // processes))
        environment = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment |= {"nnUNet_def_n_proc": str(self.processes(MOST_PROCESSES))}
        if self.kind == "cuda" and ":" in self.device:
            number = int(self.device.split(":")[1])
            visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
            environment["CUDA_VISIBLE_DEVICES"] = visible[number] if number < len(visible) else str(number)
        return environment


class Launcher:
    """Runs commands, from any thread; `stop` ends all of them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, command: tuple[str, ...], *, log: Path, environment: Mapping[str, str], lock: int | None) -> None:
        """Runs a console script to its end; its output is appended to `log`.

        Args:
            lock: file descriptor of a lock that the command holds as long as it lives.

        Raises:
            CommandFailed: with the name of the log and its last lines.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as output:
            output.write(f"\n$ {' '.join(command)}\n")
            output.flush()
            process = self._start(command, output, environment, () if lock is None else (lock,))
            code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            _signal_group(process, KILL)  # loaders of a killed training live on, and would hold the lock for ever
            end = "".join(log.read_text(errors="replace").splitlines(keepends=True)[-15:])
            raise CommandFailed(f"{command[0]} ended with code {code}. The end of {log}:\n\n{end}")

    def _start(
        self, command: tuple[str, ...], output: IO, environment: Mapping[str, str], locks: tuple[int, ...]
    ) -> subprocess.Popen:
        with self._lock:
            if self.stopped:
                raise CommandFailed(f"{command[0]} was not started: the benchmark is being stopped")
            process = subprocess.Popen(
                invocation(command),
                env=_base_environment() | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=locks,  # empty on Windows, where `locked` gives no descriptor
            )
            self._running.add(process)
        return process

    def stop(self) -> None:
        """Ends what is running, with all its processes; nothing is started any more."""
        with self._lock:
            self.stopped = True
            running = list(self._running)
        for process in running:
            _signal_group(process, signal.SIGTERM)
        for process in running:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                _signal_group(process, KILL)


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, number)
        else:
            process.terminate()


def _base_environment() -> dict[str, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_wandb") and k != OPT_OUT}
    environment |= {"MPLBACKEND": "agg", "PYTHONUNBUFFERED": "1"}
    announce(environment)
    return environment


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Holds the file `lock` in a folder; gives its descriptor, which commands inherit.

    A command that outlives a killed benchmark keeps the lock, so that nothing is trained twice at once.

    Raises:
        Busy: another process holds it, and `wait` is not set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                raise Busy(f"{folder} is in use by another process") from error
        yield file.fileno() if fcntl is not None else None


def slots(devices: list[str], workers: int, cores: int, loaders: int | None = None) -> list[Slot]:
    """`workers` slots, handed out to the devices in turn, each with its share of the cores.

    Where nobody says how many `loaders` a run has: none on a CPU, elsewhere what `nnUNet_n_proc_DA` says, or as many as
    nnU-Net would take, out of its share. `OMP_NUM_THREADS` limits what computes on the CPU; it is often 1 for the sake
    of loaders, and says nothing about their number.
    """
    share = max(1, cores // workers)
    told = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = min(share, int(told)) if told.isdigit() and int(told) else share
    if loaders is None:
        loaders = int(os.environ.get("nnUNet_n_proc_DA") or min(MOST_LOADERS, share))  # noqa: SIM112
        on_cpu = 0
    else:
        on_cpu = loaders
    chosen = [devices[number % len(devices)] for number in range(workers)]
    return [Slot(name, threads, on_cpu) if name == "cpu" else Slot(name, share, loaders) for name in chosen]


def cores() -> int:
    """Cores that this process may use: those of the machine, of its affinity, and of its container."""
    return joblib.cpu_count()
