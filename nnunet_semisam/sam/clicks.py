"""Where to click: inside an object, outside where the teacher is sure that it is not, and where an answer went wrong.

A click inside lies at the maximum of depth (Euclidean distance to the border, in voxels) times probability, because the
centre of mass would fall outside curved objects; or where the teacher is most certain, as the text of SemiSAM has it
("low-uncertainty" points; its code draws them from the ground truth). Deterministic; on the CPU, on the surroundings of
one object at a time. Of large surroundings only every second (third, ...) voxel along each axis is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
EXACT_VOXELS = 2**16  # larger surroundings are thinned out; depth is counted along the axis of the largest distance

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
            With the ring it is thinned out to `EXACT_VOXELS` places, unless the object would be missed.
        head: the object's head.
        rivals: heads of the other objects.
        points_from: "center" = deep inside; "certain" = where the teacher's entropy is lowest (among places that hardly
            differ, deep inside), spread over places that are about as certain as the best.
    """
    reach = RING[1] if counts[1] else 0
    window = tuple(
        slice(max(0, low - reach), min(side, high + reach)) for low, high, side in zip(*box, mask.shape, strict=True)
    )
    (near, own, rival), step = _seen(mask, prob, window, head=head, rivals=rivals if counts[1] else ())
    start = np.array([w.start for w in window])
    low, high = (-((start - np.array(corner)) // step) for corner in box)  # of the box, in steps, rounded up
    inner = tuple(map(slice, low, high))
    inside = _inside(near[inner] > 0, own[inner], points_from) if counts[0] else _NOWHERE
    outside = _outside(near > 0, own, rival, step) if counts[1] else _NOWHERE
    (positive, negative) = (
        _spread(places, worth, n) for (places, worth), n in zip((inside, outside), counts, strict=True)
    )
    return [(1, tuple(int(v) for v in (place + low) * step + start)) for place in positive] + [
        (0, tuple(int(v) for v in place * step + start)) for place in negative
    ]


def deepest(mask: Bool[Tensor, "*S"]) -> Place | None:
    """The voxel farthest from the border of a mask; None where the mask is empty."""
    found = mask.nonzero()
    if not len(found):
        return None
    low, high = found.amin(0).tolist(), (found.amax(0) + 1).tolist()
    near = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].cpu().numpy()
    place = np.unravel_index(np.argmax(_depth(near)), near.shape)
    return tuple(int(v) + a for v, a in zip(place, low, strict=True))


_NOWHERE = (np.empty((0, 1), dtype=np.int64), np.empty(0))


def _inside(mask: np.ndarray, prob: np.ndarray, points_from: str) -> tuple[np.ndarray, np.ndarray]:
    """Voxels where to click the object (M, D), and how much they are worth (M,)."""
    depth, prob, places = _depth(mask)[mask], prob[mask], np.argwhere(mask)
    if points_from == "center":
        return places, depth * np.maximum(prob, 1e-6)
    worth = _certainty(prob) + 1e-3 * depth / depth.max()
    good = worth >= worth.max() - CERTAIN
    return places[good], worth[good]


def _certainty(prob: np.ndarray) -> np.ndarray:
    """1 where the object's probability is 1, 0 where it is one half or less: 1 - entropy of "object or not" in bits."""
    own = np.clip(prob.astype(np.float64), 0.5, 1 - 1e-12)
    return 1 + own * np.log2(own) + (1 - own) * np.log2(1 - own)


def _depth(mask: np.ndarray) -> np.ndarray:
    """Distance to the border, 1 for the outermost voxels; what lies beyond the array is border."""
    padded = np.pad(mask, 1)
    exact = mask.size <= EXACT_VOXELS
    depth = distance_transform_edt(padded) if exact else distance_transform_cdt(padded, "chessboard")
    return depth[(slice(1, -1),) * mask.ndim]


def _seen(
    mask: Bool[Tensor, "*S"],
    prob: Float[Tensor, "K *S"],
    window: tuple[slice, ...],
    *,
    head: int,
    rivals: Sequence[int],
) -> tuple[np.ndarray, int]:
    """Of every `step`-th place of a window: the object, its probability, the highest one of a rival; and `step`.

    One transfer from the device for all three.
    """
    sides = np.array([w.stop - w.start for w in window])
    thinned = next(n for n in itertools.count(1) if (-(-sides // n)).prod() <= EXACT_VOXELS)
    for step in (thinned, 1):
        places = tuple(slice(w.start, w.stop, step) for w in window)
        near = prob[(slice(None), *places)]
        highest = near[list(rivals)].amax(0) if rivals else torch.zeros_like(near[0])
        seen = torch.stack([mask[places], near[head], highest]).cpu().numpy()
        if seen[0].any():
            break
    return seen, step


def _outside(mask: np.ndarray, prob: np.ndarray, rival: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the ring where the teacher is sure that the object is not (M, D), and how much they are worth (M,).

    `rival` is the highest probability of another object, `step` the number of voxels from place to place.
    Places of another object come first, the nearest of them before all: there the border between the two is drawn.
    """
    nearest = RING[0] + step - 1  # between two places may lie voxels of the object
    farthest = max(RING[1], nearest + step - 1)
    away = step * distance_transform_cdt(~mask, "chessboard")
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
