"""Kill -9 at random moments, also while a checkpoint is written: a resumed run ends with the same weights bit for bit.

The short form kills three times. In full:

    NNUNET_SEMISAM_KILLS=30 python -m pytest tests/test_kill.py -m ""
"""

import io
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import build, short

from nnunet_semisam import checkpoint as checkpoint_module
from nnunet_semisam.checkpoint import KEY
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

KILLS = int(os.environ.get("NNUNET_SEMISAM_KILLS", "3"))
EPOCHS = 6
PLACES = ("a part is written", "all is written", "before the rename", "after the rename")


def train(place, write):
    """Trains to the end, from the last checkpoint if there is one; kills itself at a `place` of checkpoint `write`."""
    if place is not None:
        kill_while_writing(place, write)
    trainer = build(nnUNetTrainerSemiSAM, short(num_epochs=EPOCHS), continue_training=True)
    trainer.save_every = 1
    for name in ("final", "latest", "best"):  # as nnU-Net's --c chooses
        if os.path.isfile(f"{trainer.output_folder}/checkpoint_{name}.pth"):
            trainer.load_checkpoint(f"{trainer.output_folder}/checkpoint_{name}.pth")
            break
    trainer.run_training()


def kill_while_writing(place, write):
    save, replace, written = torch.save, os.replace, []

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(content, file):
        if isinstance(file, io.BytesIO):  # nnU-Net's part, on its way to ours
            save(content, file)
            return
        written.append(file)
        buffer = io.BytesIO()
        save(content, buffer)
        whole = buffer.getvalue()
        if len(written) == write and place in PLACES[:2]:
            file.write(whole[: len(whole) // 2] if place == PLACES[0] else whole)
            file.flush()
            die()
        file.write(whole)

    def replacing(source, target):
        if str(source).endswith(".pth.tmp") and len(written) == write:
            if place == PLACES[3]:
                replace(source, target)
            die()
        replace(source, target)

    checkpoint_module.torch.save, checkpoint_module.os.replace = saving, replacing


def child(log, place=None, write=0):
    """`train` in a process of its own, which has nothing to import; returns its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        with open(log, "a") as file:
            os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            train(place, write)
            status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(number, seconds=None):
    """Waits for the end of a child, or kills it after so many seconds; returns whether it was killed."""
    begin = time.monotonic()
    while seconds is not None and time.monotonic() - begin < seconds:
        if os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        time.sleep(0.002)
    else:
        if seconds is not None:
            os.kill(number, signal.SIGKILL)
    _, status = os.waitpid(number, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the training failed"
    return os.WIFSIGNALED(status)


def final_state(results):
    (file,) = results.rglob("checkpoint_final.pth")
    content = torch.load(file, weights_only=False)
    state = content[KEY]
    curves = {name: values for name, values in state["curves"].items() if not name.endswith("seconds")}
    rest = {name: state[name] for name in ("iteration", "teacher", "trust", "guard", "collapse", "random_state")}
    rest["random_state"].pop("python")  # the type checks of the tests draw from it, training does not
    kept = {name: content[name] for name in ("network_weights", "optimizer_state")}
    return {**kept, "losses": content["logging"]["train_losses"], "curves": curves, **rest}


def differences(one, two, where=""):
    """Where two states differ; NaN equals NaN."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, two) else [where]
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [found for key in one for found in differences(one[key], two[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [found for number, pair in pairs for found in differences(*pair, f"{where}/{number}")]
    return [] if one == two or (one != one and two != two) else [f"{where}: {one}, {two}"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_and_resumed_equals_uninterrupted(toy, tmp_path, monkeypatch):  # noqa: F811
    random.seed(time.time_ns())
    log, dice = tmp_path / "log.txt", random.Random(random.random())
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "whole"))
    begin = time.monotonic()
    assert not ended(child(log))
    length = time.monotonic() - begin
    expected = final_state(tmp_path / "whole")
    kills, runs, moments = 0, 0, []
    while kills < KILLS:
        runs += 1
        monkeypatch.setenv("nnUNet_results", str(tmp_path / f"killed{runs}"))
        killed = True
        while killed:
            while_writing = kills < KILLS and dice.random() < 0.4
            place, write = (dice.choice(PLACES), dice.randint(1, EPOCHS)) if while_writing else (None, 0)
            seconds = None if while_writing or kills >= KILLS else dice.uniform(0, length)
            killed = ended(child(log, place, write), seconds)
            kills += killed
            moments += [place or f"after {seconds:.2f} s"] if killed else []
        assert differences(expected, final_state(tmp_path / f"killed{runs}")) == [], f"run {runs}, killed {moments}"
        assert not list(Path(tmp_path / f"killed{runs}").rglob("*.tmp"))
    print(f"\n{kills} kills in {runs} trainings of {length:.1f} s, every one ended alike: {'; '.join(moments)}")
