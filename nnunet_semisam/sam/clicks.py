"""Where to click: inside an object, outside where the teacher is sure that it is not, and where an answer went wrong.

A click inside lies at the maximum of depth (Euclidean distance to the border, in voxels) times probability, because the
centre of mass would fall outside curved objects; or where the teacher is most certain, as the text of SemiSAM has it
("low-uncertainty" points; its code draws them from the ground truth). Deterministic; on the CPU, on the surroundings of
one object at a time. Of large surroundings only every second (third, ...) voxel is looked at along long axes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_cdt, distance_transform_edt
from torch import Tensor

RING = (3, 8)  # negative clicks lie so many voxels outside the object, counted along the axis of the largest distance
SURE_OUTSIDE = 0.05  # a negative click needs a probability of the object below this
SURE_INSIDE = 0.95  # an error is clicked as missing where the probability of the object is above this
SURE_RIVAL = 0.8  # negative clicks are drawn to places where another object has more than this
CERTAIN = 0.05  # "certain" clicks are spread over places whose certainty is that close to the best, on a scale of 0..1
EXACT_VOXELS = 2**16  # larger surroundings are thinned out; in a larger mask depth is counted along the longest axis
FAIR_SHARE = 0.5  # of an object has to be seen where its surroundings are thinned out

Place = tuple[int, ...]


def find_clicks(
    mask: Bool[Tensor, "*S"],
    prob: Float[Tensor, "K *S"],
    box: Sequence[Sequence[int]],
    *,
    head: int,
    rivals: Sequence[int],
    counts: tuple[int, int],
    points_from: str = "center",
) -> list[tuple[int, Place]]:
    """Up to `counts` (positive, negative) clicks for one object as (label 1 or 0, voxel), best first.

    Args:
        mask: the object; not empty.
        prob: all probabilities of the image.
        box: the object's tight half-open box, low and high corner; nothing farther off than the ring leaves the device.
            With the ring it is thinned out to `EXACT_VOXELS` places, unless too little of the object or nothing of
            the ring would be left.
        head: the object's head.
        rivals: heads of the other objects.
        points_from: "center" = deep inside; "certain" = where the teacher's entropy is lowest (among places that hardly
            differ, deep inside), spread over places that are about as certain as the best.
    """
    reach = RING[1] if counts[1] else 0
    window = tuple(
        slice(max(0, low - reach), min(side, high + reach)) for low, high, side in zip(*box, mask.shape, strict=True)
    )
    start = np.array([w.start for w in window])
    for steps, (near, own, rival) in _views(mask, prob, window, head=head, rivals=rivals if counts[1] else ()):
        low, high = (-((start - np.array(corner)) // steps) for corner in box)  # of the box, in steps, rounded up
        inner = tuple(map(slice, low, high))
        inside = _inside(near[inner] > 0, own[inner], points_from, steps) if counts[0] else _NOWHERE
        outside = _outside(near > 0, own, rival, steps) if counts[1] else _NOWHERE
        if len(outside[0]) or not counts[1]:
            break
    (positive, negative) = (
        _spread(places, worth, n) for (places, worth), n in zip((inside, outside), counts, strict=True)
    )
    return [(1, tuple(int(v) for v in (place + low) * steps + start)) for place in positive] + [
        (0, tuple(int(v) for v in place * steps + start)) for place in negative
    ]


def deepest(mask: Bool[Tensor, "*S"]) -> Place | None:
    """The voxel farthest from the border of a mask; None where the mask is empty."""
    found = mask.nonzero()
    if not len(found):
        return None
    low, high = found.amin(0).tolist(), (found.amax(0) + 1).tolist()
    near = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].cpu().numpy()
    place = np.unravel_index(np.argmax(_depth(near, (1,) * near.ndim)), near.shape)
    return tuple(int(v) + a for v, a in zip(place, low, strict=True))


_NOWHERE = (np.empty((0, 1), dtype=np.int64), np.empty(0))


def _inside(
    mask: np.ndarray, prob: np.ndarray, points_from: str, steps: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Places where to click the object (M, D), and how much they are worth (M,)."""
    depth, prob, places = _depth(mask, steps)[mask], prob[mask], np.argwhere(mask)
    if points_from == "center":
        return places, depth * np.maximum(prob, 1e-6)
    worth = _certainty(prob) + 1e-3 * depth / depth.max()
    good = worth >= worth.max() - CERTAIN
    return places[good], worth[good]


def _certainty(prob: np.ndarray) -> np.ndarray:
    """1 where the object's probability is 1, 0 where it is one half or less: 1 - entropy of "object or not" in bits."""
    own = np.clip(prob.astype(np.float64), 0.5, 1 - 1e-12)
    return 1 + own * np.log2(own) + (1 - own) * np.log2(1 - own)


def _depth(mask: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    """Distance to the border in voxels; what lies beyond the array is border.

    Args:
        steps: voxels from place to place, along each axis.
    """
    padded = np.pad(mask, 1)
    if mask.size <= EXACT_VOXELS:
        depth = distance_transform_edt(padded, sampling=steps)
    else:
        depth = distance_transform_cdt(padded, "chessboard")
    return depth[(slice(1, -1),) * mask.ndim]


def _views(
    mask: Bool[Tensor, "*S"],
    prob: Float[Tensor, "K *S"],
    window: tuple[slice, ...],
    *,
    head: int,
    rivals: Sequence[int],
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """What is to be seen in a window, thinned out if it is large and a fair share of the object is left; then all.

    With the steps from place to place. One transfer from the device each.
    """
    every_voxel = (1,) * mask.ndim
    for steps in dict.fromkeys((_steps(window), every_voxel)):
        seen = _seen(mask, prob, window, steps, head=head, rivals=rivals)
        if steps == every_voxel or seen[0].sum() * math.prod(steps) >= FAIR_SHARE * mask.sum().item():
            yield steps, seen


def _steps(window: tuple[slice, ...]) -> tuple[int, ...]:
    """Every how many voxels a window is looked at, along each axis; of long axes more are left out."""
    sides = [w.stop - w.start for w in window]
    for most in range(max(sides), 0, -1):  # places along an axis
        steps = tuple(-(-side // most) for side in sides)
        if math.prod(-(-side // step) for side, step in zip(sides, steps, strict=True)) <= EXACT_VOXELS:
            return steps
    raise AssertionError("one place is always few enough")


def _seen(
    mask: Bool[Tensor, "*S"],
    prob: Float[Tensor, "K *S"],
    window: tuple[slice, ...],
    steps: tuple[int, ...],
    *,
    head: int,
    rivals: Sequence[int],
) -> np.ndarray:
    """The object, its probability and the highest one of a rival, at some places of a window."""
    places = tuple(slice(w.start, w.stop, step) for w, step in zip(window, steps, strict=True))
    near = prob[(slice(None), *places)]
    highest = near[list(rivals)].amax(0) if rivals else torch.zeros_like(near[0])
    return torch.stack([mask[places], near[head], highest]).cpu().numpy()


def _outside(
    mask: np.ndarray, prob: np.ndarray, rival: np.ndarray, steps: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the ring where the teacher is sure that the object is not (M, D), and how much they are worth (M,).

    `rival` is the highest probability of another object. Where voxels are left out, those of the object may be nearer
    than the places that are seen, so the ring begins farther off, and is a ring of Euclidean distances.
    Places of another object come first, the nearest of them before all: there the border between the two is drawn.
    """
    coarsest = max(steps)
    nearest = RING[0] + coarsest - 1
    farthest = max(RING[1], nearest + coarsest - 1)
    if coarsest == 1:
        away = distance_transform_cdt(~mask, "chessboard")
    else:
        away = distance_transform_edt(~mask, sampling=steps)
    places = np.argwhere((away >= nearest) & (away <= farthest) & (prob < SURE_OUTSIDE))
    index = tuple(places.T)
    taken = rival[index] > SURE_RIVAL
    nearness = 1 - (away[index] - nearest) / (farthest - nearest + 1)
    return places, 1.0 - prob[index].astype(np.float64) + taken * (1 + nearness)  # float32 would make most places equal


def _spread(places: np.ndarray, score: np.ndarray, count: int) -> list[np.ndarray]:
    """The best place, then places that are good and far from those taken; fewer where there are no more."""
    taken: list[np.ndarray] = []
    distance = np.ones(len(places))
    while len(taken) < min(count, len(places)):
        best = places[np.argmax(score * distance)]
        away = np.linalg.norm(places - best, axis=1)
        distance = away if not taken else np.minimum(distance, away)
        taken.append(best)
    return taken
