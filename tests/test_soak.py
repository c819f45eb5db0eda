"""A long training keeps memory, open files and processes flat.

The short form makes a few hundred iterations. In full:

    NNUNET_SEMISAM_SOAK=5000 python -m pytest tests/test_soak.py -m "" -s
"""

import os
import statistics
import sys
from pathlib import Path

import pytest
from test_train_step import toy  # noqa: F401 (a fixture)
from toy_trainer import build, short

from nnunet_semisam.trainer import nnUNetTrainerSemiSAM

ITERATIONS = int(os.environ.get("NNUNET_SEMISAM_SOAK", "240"))
EPOCHS = 12 if ITERATIONS < 5000 else 50
ALLOWED = 24  # MB between the middle and the end: what an allocator may keep


def family():
    """This process and its children, but for Python's resource tracker, which stays to the end once it was started."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
    return [own, *(int(child) for child in children if b"resource_tracker" not in command_line(child))]


def command_line(number):
    return Path(f"/proc/{number}/cmdline").read_bytes()


def used():
    """Megabytes in memory and open files, of this process and its children together, and how many these are."""
    numbers = family()
    pages = [int(Path(f"/proc/{number}/statm").read_text().split()[1]) for number in numbers]
    files = [len(os.listdir(f"/proc/{number}/fd")) for number in numbers]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20, sum(files), len(numbers)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # nnU-Net's Dice of a class that no patch shows
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_long_training_stays_flat(toy, monkeypatch):  # noqa: F811
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")
    length = {"num_epochs": EPOCHS, "num_iterations_per_epoch": ITERATIONS // EPOCHS}
    trainer = build(nnUNetTrainerSemiSAM, short(**length), patch_size=(16, 16))
    trainer.save_every = 1
    seen, end = [], nnUNetTrainerSemiSAM.on_epoch_end

    def looking(self):
        end(self)
        seen.append(used())

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "on_epoch_end", looking)
    trainer.run_training()
    third = EPOCHS // 3
    memory, files, processes = zip(*seen, strict=True)
    middle, last = (statistics.median(part) for part in (memory[third : 2 * third], memory[-third:]))
    print(f"\n{trainer.iteration} iterations; MB: {', '.join(f'{value:.0f}' for value in memory)}")
    print(f"open files: {min(files)} to {max(files)}; processes: {min(processes)} to {max(processes)}")
    assert trainer.iteration == EPOCHS * (ITERATIONS // EPOCHS)
    assert last - middle < ALLOWED
    # batches on their way hold files, so single numbers vary; one left open per epoch would add `third` to the median
    assert statistics.median(files[-third:]) <= statistics.median(files[third : 2 * third]) + 2
    assert len(set(processes)) == 1
    assert len(family()) == 1  # all are gone
