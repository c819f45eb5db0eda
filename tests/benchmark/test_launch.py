"""Commands in processes of their own: logs, errors, stopping, and the lock that outlives a killed benchmark."""

import os
import subprocess
import sys
import threading
import time

import pytest

from nnunet_semisam.benchmark import launch
from nnunet_semisam.benchmark.launch import Busy, CommandFailed, Launcher, locked

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks and groups of processes as on Linux")


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """A "command" is Python code."""
    monkeypatch.setattr(launch, "invocation", lambda command: [sys.executable, "-c", *command])


def run(tmp_path, code, launcher=None, lock=None):
    (launcher or Launcher()).run((code,), log=tmp_path / "log.txt", environment={"MARK": "here"}, lock=lock)
    return (tmp_path / "log.txt").read_text()


def test_output_is_appended_to_the_log_and_the_environment_passed_on(tmp_path):
    run(tmp_path, "print('first')")
    log = run(tmp_path, "import os; print(os.environ['MARK'])")
    assert "first" in log and log.endswith("here\n")


def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(CommandFailed, match=r"(?s)code 3.*log.txt.*the reason"):
        run(tmp_path, "import sys; print('the reason'); sys.exit(3)")


def test_what_a_killed_command_has_left_running_ends_with_it(tmp_path):
    """Loaders of a training that was killed wait for ever, and would keep its lock."""
    orphan = f"import time, pathlib; pathlib.Path({str(tmp_path / 'up')!r}).touch(); time.sleep(60)"
    code = f"""
import os, pathlib, signal, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {orphan!r}], close_fds=False)
while not pathlib.Path({str(tmp_path / "up")!r}).exists():
    time.sleep(0.02)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with pytest.raises(CommandFailed, match="code -9"), locked(tmp_path / "run") as lock:
        run(tmp_path, code, lock=lock)

    def free():
        try:
            with locked(tmp_path / "run"):
                return True
        except Busy:
            return False

    wait_until(free)


def test_stop_ends_running_commands_and_starts_no_more(tmp_path):
    launcher, errors = Launcher(), []

    def wait():
        try:
            run(tmp_path, "print('up', flush=True); import time; time.sleep(60)", launcher)
        except CommandFailed as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    log = tmp_path / "log.txt"
    wait_until(lambda: log.exists() and "\nup" in log.read_text())
    began = time.monotonic()
    launcher.stop()
    thread.join(20)
    assert errors and time.monotonic() - began < 15
    with pytest.raises(CommandFailed, match="being stopped"):
        run(tmp_path, "print(1)", launcher)


def test_a_lock_is_held_once(tmp_path):
    with locked(tmp_path), pytest.raises(Busy), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


BENCHMARK = """
import sys, time
from pathlib import Path
from nnunet_semisam.benchmark import launch
folder = Path(sys.argv[1])
launch.invocation = lambda command: [sys.executable, "-c", *command]
up = f"pathlib.Path({str(folder / 'up')!r})"
code = f"import time, pathlib; {up}.touch()\\nwhile {up}.exists(): time.sleep(0.02)"
with launch.locked(folder) as lock:
    launch.Launcher().run((code,), log=folder / "log.txt", environment={}, lock=lock)
"""


def test_a_command_that_outlives_a_killed_benchmark_keeps_the_lock(tmp_path):
    benchmark = subprocess.Popen([sys.executable, "-c", BENCHMARK, str(tmp_path)])
    wait_until(lambda: (tmp_path / "up").exists())
    benchmark.kill()
    benchmark.wait()
    with pytest.raises(Busy), locked(tmp_path):
        pass
    (tmp_path / "up").unlink()  # lets the command end
    wait_until(lambda: free(tmp_path))


def free(folder):
    try:
        with locked(folder):
            return True
    except Busy:
        return False


def wait_until(condition):
    for _ in range(1500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited for half a minute")
