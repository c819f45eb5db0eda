"""What one process of several does while the others wait, for longer than their process group would."""

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from toy_ranks import wait_for_the_first

from nnunet_semisam.ranks import on_first_rank


@pytest.mark.parametrize(
    ("fails", "first", "second"),
    [
        (False, "made by 0", "made by 0"),
        (True, "OSError: disk full", "RuntimeError: semisam: the work failed on rank 0: OSError: disk full"),
    ],
)
def test_the_others_wait_as_long_as_it_takes_and_hear_how_it_ended(tmp_path, fails, first, second):
    context = torch.multiprocessing.get_context("spawn")
    results, meeting = context.Queue(), context.Barrier(2)
    processes = [
        context.Process(target=wait_for_the_first, args=(rank, tmp_path, fails, meeting, results)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    assert found == [(0, first), (1, second)]


def test_without_ddp_the_work_is_just_done():
    trainer = object.__new__(nnUNetTrainer)
    trainer.is_ddp = False
    assert on_first_rank(trainer, lambda: 7, "the work") == 7
