"""`benchmarks/published_semisam.py`, the yardstick of our steps, does what the published code does, and no more."""

from collections import Counter
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nnunet_semisam.sam.med3d import Med3D

TINY = {"grid": 2, "width": 24, "depth": 3, "heads": 2, "window": 3, "global_blocks": (2,), "embed": 48}


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))


def test_its_network_is_the_v_net_of_168_gflop(benchmarks):
    from published_vnet import VNet

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        assert VNet(1, 2).eval()(torch.zeros(1, 1, 128, 128, 128)).shape == (1, 2, 128, 128, 128)
    assert round(counter.get_total_flops() / 1e9) == 168


@pytest.mark.parametrize(("unused", "patches"), [(True, 4 + 32), (False, 4)])
def test_patches_that_each_network_sees_in_an_iteration(benchmarks, unused, patches):
    from published_semisam import Published

    torch.manual_seed(0)
    published, seen = Published(torch.device("cpu"), unused=unused, sam=Med3D(**TINY, hidden=(32, 32))), Counter()

    def counting(network, name):
        call = getattr(network, name)

        def counted(first, *others):
            seen[network, name] += len(first)
            return call(first, *others)

        return mock.patch.object(network, name, counted)

    student, teacher, sam = published.student, published.teacher, published.sam
    before = [parameter.clone() for parameter in student.parameters()]
    with counting(student, "forward"), counting(teacher, "forward"), counting(sam, "encode"), counting(sam, "decode"):
        published.step()
    assert seen == {
        (student, "forward"): 4, (teacher, "forward"): patches, (sam, "encode"): 4, (sam, "decode"): 4 * 10
    }  # fmt: skip
    assert all(not torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))
