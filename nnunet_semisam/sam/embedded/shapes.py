"""Random label maps: what the synthetic "anatomy" looks like before it is given grey values.

Two families: soft partitions (arg-max of smooth noise) and objects on a partition (warped super-ellipsoids with
branches, a wall, parts split by a plane). Ideas: SynthSeg (Billot et al., Med Image Anal 2023,
https://arxiv.org/abs/2107.09559) and SynthMorph (Hoffmann et al., IEEE TMI 2022, https://arxiv.org/abs/2004.10282) for
label maps made of noise, AnyStar (Dey et al., WACV 2024, https://arxiv.org/abs/2307.07044) for blobs. Here objects also
have "relatives": labels that differ by convention only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

from nnunet_semisam.sam.embedded.noise import chance, coordinates, log_uniform, mask_box, smooth_noise, uniform, whole


@dataclass
class LabelMap:
    """A partition of the grid, who looks like whom, and what may be asked for."""

    labels: UInt8[Tensor, "*S"]
    relatives: dict[int, int]  # label -> label whose grey value it may share
    targets: UInt8[Tensor, "*S"]  # bit t set: the voxel belongs to candidate target t
    target_labels: list[int]  # the label that each candidate is (mainly) made of


def random_label_map(side: int, ndim: int, rng: torch.Generator, *, most: int = 6) -> LabelMap:
    """One label map with at least one candidate target."""
    while True:
        shape = (side,) * ndim
        with_objects = chance(rng, 0.7)
        labels = _partition(shape, rng, whole(rng, 2, 7) if with_objects else whole(rng, 3, 10))
        first = int(labels.max()) + 1
        relatives: dict = {}
        if with_objects:
            for _ in range(whole(rng, 1, 5)):
                _add_object(labels, relatives, rng)
        candidates = _candidates(labels, relatives, first if with_objects else 0, rng)[:most]
        if candidates:
            targets = torch.zeros(shape, dtype=torch.uint8)
            for bit, (mask, _) in enumerate(candidates):
                targets |= mask.to(torch.uint8) << bit
            return LabelMap(labels, relatives, targets, [label for _, label in candidates])


def _partition(shape: tuple[int, ...], rng: torch.Generator, count: int) -> UInt8[Tensor, "*S"]:
    """The arg-max of smooth noise fields; each has its own bump size."""
    base = log_uniform(rng, 0.15, 0.6) * shape[0]
    fields = []
    for _ in range(count):
        cells = [base * log_uniform(rng, 0.6, 1.7) for _ in shape]
        field = smooth_noise(shape, cells, rng) + uniform(rng, -0.5, 0.5)
        if chance(rng, 0.4):
            field = field + 0.4 * smooth_noise(shape, [cell / 3 for cell in cells], rng)
        fields.append(field)
    return torch.cat(fields).argmax(0).to(torch.uint8)


def _add_object(labels: UInt8[Tensor, "*S"], relatives: dict[int, int], rng: torch.Generator) -> None:
    """Draws one object into the label map: a body, perhaps with branches, a wall, a split or a cut."""
    shape, ndim, new = labels.shape, labels.ndim, int(labels.max()) + 1
    grid = coordinates(shape)
    cells = [side * log_uniform(rng, 0.12, 0.5) for side in shape]
    grid = grid + smooth_noise(shape, cells, rng, ndim) * uniform(rng, 0.0, 0.06) * shape[0]
    centre = torch.tensor([uniform(rng, 0.2, 0.8) * side for side in shape])
    size = log_uniform(rng, 0.1, 0.34) * shape[0]
    radii = torch.tensor([size * log_uniform(rng, 0.55, 1.7) for _ in shape])
    level = _ellipsoid(grid, centre, radii, rng) if chance(rng, 0.75) else _tube(grid, centre, 2.2 * radii, rng)
    if chance(rng, 0.6):
        cell = max(3.0, size * uniform(rng, 0.3, 0.9))
        level = level + smooth_noise(shape, [cell] * ndim, rng)[0] * uniform(rng, 0, 0.2)
    body = level < 1
    if chance(rng, 0.25):  # a wall around the body
        labels[level < 1 + uniform(rng, 0.1, 0.4)] = new
        new += 1
    branches = torch.zeros_like(body)
    for _ in range(whole(rng, 1, 4) if chance(rng, 0.4) else 0):
        branches |= _tube(grid, centre, 2.5 * radii, rng, thick=uniform(rng, 0.1, 0.25) * size) < 1
    cut_off = uniform(rng, 1.1, 1.8)  # branches belong to the body up to here, beyond they are a relative
    labels[branches & (level >= cut_off)] = new + 1
    labels[body | (branches & (level < cut_off))] = new
    relatives[new + 1] = new
    if chance(rng, 0.4):  # a part split off by a plane
        normal = torch.randn(ndim, generator=rng)
        plane = ((grid - centre.view(-1, *[1] * ndim)) * (normal / normal.norm()).view(-1, *[1] * ndim)).sum(0)
        labels[(labels == new) & (plane > uniform(rng, -0.4, 0.4) * size)] = new + 2
        relatives[new + 2] = new


def _ellipsoid(grid: Tensor, centre: Tensor, radii: Tensor, rng: torch.Generator) -> Float[Tensor, "*S"]:
    """A turned, bent super-ellipsoid; below 1 inside."""
    ndim = len(centre)
    turn, _ = torch.linalg.qr(torch.randn((ndim, ndim), generator=rng))
    local = torch.einsum("ij,j...->i...", turn, grid - centre.view(-1, *[1] * ndim)) / radii.view(-1, *[1] * ndim)
    if chance(rng, 0.4):
        local[0] = local[0] + uniform(rng, -0.7, 0.7) * (local[1].square() - 0.5)
    power = log_uniform(rng, 1.4, 4.5)
    return local.abs().clamp(max=20).pow(power).sum(0).pow(1 / power)


def _tube(grid: Tensor, start: Tensor, reach: Tensor, rng: torch.Generator, thick: float | None = None) -> Tensor:
    """A tube along a bent line that starts at `start` (a thick one is a sausage); below 1 inside."""
    ndim = len(start)
    ahead = torch.randn(ndim, generator=rng)
    bend = torch.randn(ndim, generator=rng)
    thick = thick or float(reach.min()) * uniform(rng, 0.15, 0.35)
    nearest = None
    for step in torch.linspace(0, 1, 10 if ndim == 3 else 14):
        place = start + reach * (step * ahead / ahead.norm() + 0.5 * step**2 * bend / bend.norm())
        far = (grid - place.view(-1, *[1] * ndim)).square().sum(0)
        nearest = far if nearest is None else torch.minimum(nearest, far)
    return nearest.sqrt() / max(thick, 1.3)


def _candidates(
    labels: UInt8[Tensor, "*S"], relatives: dict[int, int], first: int, rng: torch.Generator
) -> list[tuple[Bool[Tensor, "*S"], int]]:
    """Masks worth asking for: labels, their largest pieces, and labels joined with a relative; objects come first."""
    names = list(range(int(labels.max()), -1, -1))
    objects = [name for name in names if name >= first]
    order = [objects[place] for place in torch.randperm(len(objects), generator=rng).tolist()]
    order += [name for name in names if name < first][:1]
    found = []
    for name in order:
        mask = labels == name
        if name in relatives and chance(rng, 0.4):
            mask = mask | (labels == relatives[name])
        if chance(rng, 0.8):
            mask = _largest_piece(mask)
        box = mask_box(mask)
        if box is None:
            continue
        extent, share = (box[1] - box[0]) / labels.shape[0], float(mask.float().mean())
        fills = share / float(extent.prod())
        if extent.min() > 0.12 and extent.max() > 0.28 and extent.mean() < 0.8 and share < 0.4 and fills > 0.15:
            found.append((mask, name))
    return found


def _largest_piece(mask: Bool[Tensor, "*S"]) -> Bool[Tensor, "*S"]:
    pieces, count = ndimage.label(mask.numpy())
    if count < 2:
        return mask
    return torch.from_numpy(pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:])))
