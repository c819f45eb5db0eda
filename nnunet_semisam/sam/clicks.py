"""Where to click: inside an object, outside where the teacher is sure that it is not, and where an answer went wrong.

A click inside lies at the maximum of depth (Euclidean distance to the border, in voxels) times probability, because the
centre of mass would fall outside curved objects; or where the teacher is most certain, as the text of SemiSAM has it
("low-uncertainty" points; its code draws them from the ground truth). Deterministic; on the CPU, on the surroundings of
one object at a time.
"""

from __future__ import annotations

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
EXACT_VOXELS = 2**16  # depth in larger boxes is counted along the axis of the largest distance, five times as fast

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
        head: the object's head.
        rivals: heads of the other objects.
        points_from: "center" = deep inside; "certain" = where the teacher's entropy is lowest (among places that hardly
            differ, deep inside), spread over places that are about as certain as the best.
    """
    reach = RING[1] if counts[1] else 0
    window = tuple(
        slice(max(0, low - reach), min(side, high + reach)) for low, high, side in zip(*box, mask.shape, strict=True)
    )
    start = [w.start for w in window]
    inner = tuple(slice(low - s, high - s) for low, high, s in zip(*box, start, strict=True))
    highest = _highest(prob, rivals if counts[1] else (), window)
    seen = torch.stack([mask[window], prob[head][window], highest]).cpu().numpy()
    near, own, rival = seen[0] > 0, seen[1], seen[2]  # one transfer from the device for all three
    inside = _inside(near[inner], own[inner], points_from) if counts[0] else _NOWHERE
    outside = _outside(near, own, rival) if counts[1] else _NOWHERE
    (positive, negative) = (
        _spread(places, worth, n) for (places, worth), n in zip((inside, outside), counts, strict=True)
    )
    return [(1, tuple(int(v) for v in place + box[0])) for place in positive] + [
        (0, tuple(int(v) for v in place + start)) for place in negative
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


def _highest(prob: Float[Tensor, "K *S"], heads: Sequence[int], window: tuple[slice, ...]) -> Float[Tensor, "*W"]:
    """The highest probability of some heads in a window, found on the device: one picture leaves it, not all."""
    near = prob[(slice(None), *window)]
    return near[list(heads)].amax(0) if heads else torch.zeros_like(near[0])


def _outside(mask: np.ndarray, prob: np.ndarray, rival: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the ring where the teacher is sure that the object is not (M, D), and how much they are worth (M,).

    `rival` is the highest probability of another object.
    Places of another object come first, the nearest of them before all: there the border between the two is drawn.
    """
    steps = distance_transform_cdt(~mask, "chessboard")
    places = np.argwhere((steps >= RING[0]) & (steps <= RING[1]) & (prob < SURE_OUTSIDE))
    index = tuple(places.T)
    taken = rival[index] > SURE_RIVAL
    nearness = 1 - (steps[index] - RING[0]) / (RING[1] - RING[0] + 1)
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
