"""The embedded generalist: a small promptable network, trained on synthetic images only, shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from nnunet_semisam.sam.embedded.network import PromptableUNet

SHIPPED = Path(__file__).with_name("weights.pt")


@dataclass(frozen=True)
class Generalist:
    """A frozen network and the side of the grid that it was trained in."""

    network: PromptableUNet
    grid: int


def load_generalists(checkpoint: str | Path | None = None) -> dict[int, Generalist]:
    """The networks in a weights file by number of axes, frozen and in evaluation mode; no file: the shipped one."""
    file = SHIPPED if checkpoint is None else Path(checkpoint).expanduser()
    if not file.is_file():
        cure = "reinstall the package" if checkpoint is None else "give another file, or none for the shipped weights"
        raise FileNotFoundError(f"no weights of the embedded generalist at {file}: {cure}")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        return {ndim: _rebuild(ndim, content[f"{ndim}d"]) for ndim in (2, 3)}
    except Exception as error:  # a damaged file makes the unpickler fail in any way
        raise ValueError(
            f"{file} does not hold the weights of the embedded generalist ({type(error).__name__}): "
            "give one written by `python -m nnunet_semisam.sam.embedded.train --pack`, or none for the shipped weights"
        ) from error


def forgotten(generalists: dict[int, Generalist], seed: int) -> dict[int, Generalist]:
    """Networks of the same shape with random weights, for controls: what they still bring is not knowledge."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone: torch.manual_seed would seed every device
        return {
            ndim: Generalist(PromptableUNet(ndim, known.network.width).requires_grad_(False).eval(), known.grid)
            for ndim, known in generalists.items()
        }


def _rebuild(ndim: int, part: dict) -> Generalist:
    network = PromptableUNet(ndim, part["width"])
    network.load_state_dict({name: tensor.float() for name, tensor in part["state"].items()})
    return Generalist(network.requires_grad_(False).eval(), part["grid"])
