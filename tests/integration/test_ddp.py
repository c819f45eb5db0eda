"""Two processes train together, as with `-num_gpus 2`, but on the CPU: gloo in NCCL's place.

A run on GPUs is not part of the tests.
"""

import pytest
import torch
import torch.multiprocessing as mp
from toy_ranks import RANKS, train
from toy_trainer import write_preprocessed

MORE = {
    "method_args": {"paste": 1.0, "cutmix": 1.0, "loss": "dice"},
    "distribution_alignment": 1.0,
    "terms": {
        "consistency": {"weight": 1.0, "schedule": "constant", "delay": 1},
        "sam": {"weight": 1.0, "schedule": "constant", "delay": 1, "every": 2},
    },
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("more", [{}, MORE], ids=["defaults", "more"])
def test_two_ranks_train_one_network(tmp_path, more):
    write_preprocessed(tmp_path / "nnUNet_preprocessed")
    mp.spawn(train, (str(tmp_path), more), nprocs=RANKS)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS))
    for name in ("student", "teacher"):
        assert all(torch.equal(one[name][key], two[name][key]) for key in one[name]), name
    assert one["trust"] == two["trust"]
    assert all(torch.equal(a, b) for a, b in zip(one["tuned"], two["tuned"], strict=True))
    assert len(one["seen"]) == 4 - bool(more)
    assert one["asked"] == two["asked"] == ([True, False, True] if more else [True] * 4)
    assert not torch.equal(one["seen"], two["seen"])  # each rank has its own patches
    assert all(torch.isfinite(torch.tensor(rank["losses"])).all() for rank in (one, two))
    assert {"checkpoint_final.pth", "checkpoint_final_teacher.pth", "semisam.json", "semisam_tuned.pt"} <= {
        *one["files"]
    }
    assert (one["seed"], two["seed"]) == (7, 8)
    if not more:
        they_go_on_with_random_numbers_of_their_own(tmp_path)


def they_go_on_with_random_numbers_of_their_own(root):
    """The checkpoint has the generators of the first rank alone."""
    (final,) = root.rglob("checkpoint_final.pth")
    (root / "meeting_point").unlink(missing_ok=True)
    mp.spawn(train, (str(root), {"num_epochs": 2}, str(final)), nprocs=RANKS)
    one, two = (torch.load(root / f"{rank}.pt", weights_only=False) for rank in range(RANKS))
    assert one["iteration"] == two["iteration"] == 8
    assert one["seed"] != two["seed"] and not torch.equal(one["seen"], two["seen"])
    assert all(torch.equal(one["student"][key], two["student"][key]) for key in one["student"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_wait_alike(tmp_path):
    """Each has its own labeled patches; what they can do is added up."""
    write_preprocessed(tmp_path / "nnUNet_preprocessed")
    mp.spawn(train, (str(tmp_path), {"min_labeled_dice": 0.999}), nprocs=RANKS)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS))
    assert one["readiness"] == two["readiness"] and not one["readiness"]["ready"]
    assert one["seen"] is two["seen"] is None and all(
        torch.equal(one["student"][k], two["student"][k]) for k in one["student"]
    )
