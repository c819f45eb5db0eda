"""From a protocol to the runs and steps that carry it out, with every mistake found before anything starts."""

from __future__ import annotations

from pathlib import Path

from nnunet_semisam.benchmark.dataset import find_dataset
from nnunet_semisam.benchmark.launch import Launcher
from nnunet_semisam.benchmark.protocol import Protocol
from nnunet_semisam.benchmark.runs import expand
from nnunet_semisam.benchmark.steps import Steps
from nnunet_semisam.cli.plan import check_section


def plan_steps(work: Path, protocol: Protocol, launcher: Launcher) -> Steps:
    """All runs of a protocol in a work folder; starts and writes nothing.

    Raises:
        ValueError: a data set, a splits file or the section of an arm is not right.
    """
    datasets = [find_dataset(given) for given in protocol.datasets]
    numbers = [dataset.number for dataset in datasets]
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"datasets: two have the same number ({', '.join(d.name for d in datasets)}); rename one")
    for arm in protocol.arms:
        try:
            length = {"num_epochs": protocol.epochs, "num_iterations_per_epoch": protocol.iterations}
            check_section({**arm.section, **length})
        except (ValueError, ImportError) as error:
            raise ValueError(f"arm {arm.name}: {error}") from error
    return Steps(work, expand(protocol, datasets), launcher)
