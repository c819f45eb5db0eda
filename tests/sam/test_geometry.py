"""Where a generalist sees things: image, click, box and mask of an object meet in its frame, and the answer comes home.

Every backend, on patches without equal sides, isotropic and not, and mirrored; places agree within a tenth of a voxel.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from nnunet_semisam.sam import list_backends
from nnunet_semisam.sam.backends import embedded as embedded_module
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.backends.sam_med3d import SamMed3D
from nnunet_semisam.types import Prompts

CPU = torch.device("cpu")
CLOSE = 0.1  # voxels; what is left comes from resampling


@dataclass
class Seen:
    """Positions in the backend's frame, array order of the patch: the centres of what arrived."""

    image: Tensor
    point: Tensor
    mask: Tensor
    box: Tensor
    cells: Tensor  # cells of the frame per voxel of the patch, along each axis


@dataclass
class Ball:
    """A bright ball in a patch and the prompts for it."""

    image: Tensor
    prompts: Prompts
    place: Tensor


def make_ball(kit, shape, spacing, flips) -> Ball:
    place = torch.tensor([0.37, 0.58, 0.44][-len(shape) :]) * torch.tensor(shape)
    for axis in flips:
        place[axis] = shape[axis] - 1 - place[axis]
    length = torch.tensor(spacing)
    radius = min((side * mm for side, mm in zip(shape, spacing, strict=True))) * 0.28
    away = ((kit.voxels(shape) - place) * length).square().sum(-1).sqrt() / radius
    index = torch.zeros(1, dtype=torch.int64)
    prompts = Prompts(
        index,
        index + 1,
        place.view(1, 1, -1),
        torch.ones(1, 1, dtype=torch.int64),
        torch.stack([place + 0.5 - radius / length, place + 0.5 + radius / length])[None],
        (7 * (1 - away)).clamp(-7, 7)[None],
    )
    return Ball((1 - away).clamp(min=0)[None, None] - 1.0, prompts, place)


def centre(field: Tensor) -> Tensor:
    """Centre of mass of what is above 0."""
    weight = field.clamp(min=0)
    axes = [torch.arange(float(side)) for side in field.shape]
    return (torch.stack(torch.meshgrid(*axes, indexing="ij"), -1) * weight[..., None]).flatten(0, -2).sum(0) / (
        weight.sum()
    )


def in_sam(kit, ball, spacing, monkeypatch, kind="echo_sam") -> tuple[Seen, Tensor]:
    backend, seen = getattr(kit, kind).from_network(kit.sam(), CPU, input_size=112), []
    monkeypatch.setattr(backend.sam.prompt_encoder, "forward", lambda *given: seen.append(given) or (None, None))
    embedding = backend.embed(ball.image)
    with pytest.raises(AttributeError):
        backend._encode_prompts(embedding, ball.prompts, 1)
    [(points, boxes, masks)] = seen
    inner = torch.tensor(embedding.inner)
    pixels = backend._prepare(ball.image, embedding.inner)[0, 0, : inner[0], : inner[1]]
    black = pixels.min() if kind != "echo_sam" else (0 - backend.sam.pixel_mean / backend.sam.pixel_std).flatten()[0]
    arrived = Seen(
        image=centre(pixels - black),
        point=points[0][0, 0].flip(-1),
        mask=(centre(masks[0, 0]) + 0.5) * 4 - 0.5,
        box=boxes.view(2, 2).flip(-1).mean(0),
        cells=inner / torch.tensor(embedding.size),
    )
    return arrived, backend.decode(embedding, ball.prompts).mask_logits[0]


def in_medsam(kit, ball, spacing, monkeypatch):
    return in_sam(kit, ball, spacing, monkeypatch, "echo_medsam")


def in_embedded(kit, ball, spacing, monkeypatch) -> tuple[Seen, Tensor]:
    ndim, seen = ball.place.numel(), []
    backend = EmbeddedSam()
    generalist, original = backend.generalists[ndim], embedded_module.network_input

    def spy(image, prompts, frame):
        seen.append((original(image, prompts, frame), frame))
        return seen[-1][0]

    monkeypatch.setattr(embedded_module, "network_input", spy)
    monkeypatch.setattr(
        generalist.network, "forward", lambda given, keep: (7 * given[:, 5], given.new_ones(len(given)))
    )
    answer = backend.decode(backend.embed(ball.image), ball.prompts).mask_logits[0]
    [(channels, frame)] = seen
    grey, _, point, _, box, mask = channels[0, :6]
    arrived = Seen(centre(grey - grey.min()), centre(point), centre(mask), centre(box), generalist.grid / frame.size[0])
    return arrived, answer


def in_med3d(kit, ball, spacing, monkeypatch, **settings) -> tuple[Seen, Tensor]:
    network, seen = kit.echo_med3d(), {}
    encode, decode = network.encode, network.decode
    monkeypatch.setattr(network, "encode", lambda image: seen.update(image=image) or encode(image))
    monkeypatch.setattr(network, "decode", lambda *given: seen.update(given=given) or decode(*given))
    backend = SamMed3D(network, CPU, spacing=spacing, **settings)
    answer = backend.decode(backend.embed(ball.image), ball.prompts).mask_logits[0]
    _, points, _, masks = seen["given"]
    grey = seen["image"][0, 0].permute(2, 1, 0)
    box = torch.full((3,), 63.5) if not settings else points[0, 0].flip(-1)
    longest = max(side * mm for side, mm in zip(ball.image.shape[2:], spacing, strict=True))
    voxel = max(1.5, longest / 128) if settings else 1.5
    arrived = Seen(
        image=centre(grey - grey.min()),
        point=points[0, 0].flip(-1),
        mask=(centre(masks[0, 0].permute(2, 1, 0)) + 0.5) * 4 - 0.5,
        box=box,
        cells=torch.tensor(spacing) / voxel,
    )
    return arrived, answer


def in_med3d_patch(kit, ball, spacing, monkeypatch):
    return in_med3d(kit, ball, spacing, monkeypatch, window="patch")


PLANES = [((41, 56), (1.0, 1.0)), ((96, 33), (1.0, 1.0)), ((30, 70), (3.0, 1.0))]
VOLUMES = [((40, 56, 48), (1.5, 1.5, 1.5)), ((24, 70, 56), (3.0, 1.0, 1.0)), ((50, 36, 44), (1.0, 4.0, 2.0))]
LARGE = [((24, 130, 90), (10.0, 2.0, 2.0))]
ROUTES = {
    "segment_anything": (in_sam, PLANES),
    "medsam": (in_medsam, PLANES),
    "embedded": (in_embedded, [*PLANES, *VOLUMES]),
    "sam_med3d": (in_med3d, VOLUMES),
    "sam_med3d, whole patch": (in_med3d_patch, [*VOLUMES, *LARGE]),
}
FLIPS = [(), (0,), (1,), (0, 1), (0, 2), (0, 1, 2)]
CASES = [
    (name, shape, spacing, flips)
    for name, (_, cases) in ROUTES.items()
    for shape, spacing in cases
    for flips in FLIPS
    if max(flips, default=0) < len(shape)
]


def test_every_backend_with_a_frame_of_its_own_is_here():
    assert set(list_backends()) - set(ROUTES) == {"ensemble"}


@pytest.mark.parametrize("name, shape, spacing, flips", CASES)
def test_everything_meets_in_the_frame_and_comes_home(name, shape, spacing, flips, kit, monkeypatch):
    ball = make_ball(kit, shape, spacing, flips)
    seen, answer = ROUTES[name][0](kit, ball, spacing, monkeypatch)
    for what in ("image", "mask", "box"):
        apart = (getattr(seen, what) - seen.point) / seen.cells
        assert apart.abs().max() < CLOSE, f"{what} is {apart.tolist()} voxels away from the click"
    assert (centre(answer) - ball.place).abs().max() < CLOSE
    assert kit.dice(answer > 0, ball.prompts.mask_logits[0] > 0) > 0.75
