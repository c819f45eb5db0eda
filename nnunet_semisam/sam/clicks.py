"""Where to click: inside an object far from its border, and outside where the teacher is sure that the object is not.

A click inside lies at the maximum of depth (Euclidean distance to the border, in voxels) times probability: the centre
of mass would fall outside curved objects. Deterministic; on the CPU, on the surroundings of one object at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt, maximum_filter1d
from torch import Tensor

RING = (3, 8)  # negative clicks lie so many voxels outside the object, counted along the axis of the largest distance
SURE_OUTSIDE = 0.05  # a negative click needs a probability of the object below this
SURE_RIVAL = 0.8  # and is drawn to places where another object has more than this
DEPTH_GRID = 48  # depth is looked up at so many places per side: of larger objects at every second, third ... voxel

Place = tuple[int, ...]


def find_clicks(
    mask: Bool[Tensor, "*S"],
    prob: Float[Tensor, "K *S"],
    box: Sequence[Sequence[int]],
    *,
    head: int,
    rivals: Sequence[int],
    counts: tuple[int, int],
) -> list[tuple[int, Place]]:
    """Up to `counts` (positive, negative) clicks for one object as (label 1 or 0, voxel), best first.

    Args:
        mask: the object; not empty.
        prob: all probabilities of the image.
        box: the object's tight half-open box, low and high corner; nothing farther off than the ring leaves the device.
        head: the object's head.
        rivals: heads of the other objects.
    """
    reach = RING[1] if counts[1] else 0
    window = tuple(
        slice(max(0, low - reach), min(side, high + reach)) for low, high, side in zip(*box, mask.shape, strict=True)
    )
    start = [w.start for w in window]
    inner = tuple(slice(low - s, high - s) for low, high, s in zip(*box, start, strict=True))
    near = mask[window].cpu().numpy()
    near_prob = prob[(slice(None), *window)].cpu().numpy()
    inside = _spread(*_inside(near[inner], near_prob[head][inner]), counts[0])
    outside = _spread(*_outside(near, near_prob[head], near_prob[list(rivals)]), counts[1]) if counts[1] else []
    return [(1, tuple(int(v) for v in place + box[0])) for place in inside] + [
        (0, tuple(int(v) for v in place + start)) for place in outside
    ]


def _inside(mask: np.ndarray, prob: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the object (M, D), and depth times probability there (M,)."""
    step = -(-max(mask.shape) // DEPTH_GRID)
    coarse = (slice(None, None, step),) * mask.ndim
    if not mask[coarse].any():  # too thin for the step
        step, coarse = 1, (slice(None),) * mask.ndim
    depth = distance_transform_edt(np.pad(mask[coarse], 1))[(slice(1, -1),) * mask.ndim]
    places = np.argwhere(mask[coarse])
    score = (depth * np.maximum(prob[coarse], 1e-6))[tuple(places.T)]
    return places * step, score


def _outside(mask: np.ndarray, prob: np.ndarray, rivals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the ring where the teacher is sure that the object is not (M, D), and how much they are worth (M,)."""
    near, far = (_dilated(mask, radius) for radius in (RING[0] - 1, RING[1]))
    places = np.argwhere(far & ~near & (prob < SURE_OUTSIDE))
    index = tuple(places.T)
    rival = rivals.max(axis=0, initial=0)[index] > SURE_RIVAL
    return places, 1.0 + rival - prob[index]


def _dilated(mask: np.ndarray, radius: int) -> np.ndarray:
    grown = mask.astype(np.uint8)
    for axis in range(mask.ndim):
        grown = maximum_filter1d(grown, 2 * radius + 1, axis=axis, mode="constant")
    return grown > 0


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
