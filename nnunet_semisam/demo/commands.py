"""Runs nnU-Net's own commands in a place of their own, with a log file and a line of progress."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

from nnunet_semisam._discovery import OPT_OUT, announce

EPOCH = re.compile(r"(?:^|: )Epoch (\d+)\s*$")


class CommandFailed(RuntimeError):
    """A command ended with an error; the message holds the end of its log."""


class Place:
    """A folder with its own `nnUNet_raw`, `nnUNet_preprocessed`, `nnUNet_results` and logs.

    Args:
        folder: where everything goes. The environment of the calling process stays as it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.resolve()
        self.raw, self.preprocessed, self.results, self.logs = (
            folder / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "logs")
        )
        for path in (self.raw, self.preprocessed, self.results, self.logs):
            path.mkdir(parents=True, exist_ok=True)

    def run(self, *command: str, log: str, environment: Mapping[str, str] | None = None) -> None:
        """Runs a command such as `nnUNetv2_train 1 3d_fullres 0`; its output goes to `logs/<log>.txt`.

        Raises:
            CommandFailed: with the name of the log file and its last lines.
        """
        file, last = self.logs / f"{log}.txt", deque[str](maxlen=25)
        print("      $ " + " ".join(_short(word, self.folder) for word in command), flush=True)
        with file.open("w") as output, self._start(command, environment or {}) as process:
            try:
                for line in _show_progress(process.stdout):
                    output.write(line)
                    output.flush()
                    last.append(line)
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            end = "".join(last)
            raise CommandFailed(f"{command[0]} ended with code {process.returncode}. The end of {file}:\n\n{end}")

    def _start(self, command: tuple[str, ...], environment: Mapping[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            invocation(command),
            env={**self._environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _environment(self) -> dict[str, str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_wandb") and k != OPT_OUT}
        environment |= {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "MPLBACKEND": "agg",
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "passive",  # waiting threads leave the cores to others
        }
        environment.setdefault("OMP_NUM_THREADS", str(min(4, os.cpu_count() or 1)))
        announce(environment)
        return environment


def invocation(command: tuple[str, ...]) -> list[str]:
    """The command by its entry point and this interpreter, so that `PATH` does not matter."""
    name, *arguments = command
    found = list(entry_points(group="console_scripts", name=name))
    if not found:
        raise CommandFailed(f"{name} is not installed beside {sys.executable}")
    module, function = found[0].value.split(":")
    return [sys.executable, "-c", f"from {module} import {function} as main; main()", *arguments]


def _show_progress(lines: Iterable[str]) -> Iterator[str]:
    """Passes the lines on; shows the epoch that a training begins."""
    started, drawn = time.monotonic(), False
    for line in lines:
        yield line
        if epoch := EPOCH.search(line):
            text = f"      epoch {int(epoch[1]) + 1}  ({time.monotonic() - started:.0f} s)"
            print(f"\r{text:<60}" if sys.stdout.isatty() else text, end="" if sys.stdout.isatty() else "\n", flush=True)
            drawn = True
    if drawn and sys.stdout.isatty():
        print()


def _short(word: str, folder: Path) -> str:
    return word.replace(f"{folder}{os.sep}", "")
