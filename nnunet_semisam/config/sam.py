"""What a user may set of the generalist."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nnunet_semisam.values import (
    Refused,
    require_instance,
    require_integer,
    require_no_twice,
    require_number,
    require_one_of,
)

PROMPT_KINDS = ("points", "negative_points", "box", "mask")
POINT_SOURCES = ("center", "certain")
WEIGHTS = ("iou", "stability", "agreement")


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Which generalist is asked, and how."""

    backend: str = "embedded"
    checkpoint: str | None = None  # path, or name in the folder nnUNet_sam_checkpoints; None = what ships
    backend_args: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = ("mask", "box", "points", "negative_points")
    num_points: int = 1  # positive clicks per object
    num_negative_points: int = 1
    points_from: str = "center"  # RITM: the deepest place; "certain" = SemiSAM's text: where the entropy is lowest
    box_margin: float = 0.05  # share of a box's side added on each side, at least 2 voxels; 0 = the tight box
    components: int | None = 2  # paired organs; decoding costs at most twice as much. null = a class is one object
    rounds: int = 1  # answers per object; from the second on its errors are clicked (RITM, Segment Anything)
    jitters: int = 0  # further answers to shaken prompts, whose spread lowers the weight (SemiSAM+)
    min_stability: float = 0.0  # Dice among the answers to shaken prompts below which none is used (SAM-CLNet)
    axis: int | str = "alternate"  # planes of a 3D patch for 2D generalists: 0, 1, 2, or a new axis each question
    planes: int = 8  # budget of planes per patch
    min_voxels: int = 20  # smaller objects are not prompted and cause no loss
    min_agreement: float = 0.3  # Dice between prompt and answer below which the answer is not used
    weigh_by: tuple[str, ...] = WEIGHTS  # what is multiplied into the confidence of an answer; none: all count 1
    hard: bool = False  # SemiSAM: masks of 0 and 1 instead of probabilities
    trust: str | dict[str, float] | None = "auto"  # factor per class; "auto" = tested at the start; None = all
    tune: int | str | None = "auto"  # steps of tuning on the labeled cases before training; "auto" = the backend's own

    def __post_init__(self) -> None:
        require_instance("backend", self.backend, str, "a string")
        if self.checkpoint is not None:
            require_instance("checkpoint", self.checkpoint, str, "a string, or null for the weights that ship")
        require_instance("backend_args", self.backend_args, Mapping, "a dictionary")
        require_instance("prompts", self.prompts, (list, tuple), f"a list out of {', '.join(PROMPT_KINDS)}")
        require_instance("weigh_by", self.weigh_by, (list, tuple), f"a list out of {', '.join(WEIGHTS)}, or []")
        for name in ("prompts", "weigh_by"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for number, name in enumerate(self.weigh_by):
            require_one_of(f"weigh_by[{number}]", name, WEIGHTS)
        require_no_twice("weigh_by", self.weigh_by)
        require_instance("hard", self.hard, bool, "true or false")
        self._check_prompts()
        require_one_of("axis", self.axis, (0, 1, 2, "alternate"))
        for name in ("num_points", "planes", "min_voxels"):
            require_integer(name, getattr(self, name), 1)
        require_integer("num_negative_points", self.num_negative_points, 0)
        require_number("min_agreement", self.min_agreement, 0, 1)
        require_one_of("points_from", self.points_from, POINT_SOURCES)
        require_number("box_margin", self.box_margin, 0)
        require_integer("components", self.components, 0, or_null=True)
        require_integer("rounds", self.rounds, 1)
        require_integer("jitters", self.jitters, 0)
        require_number("min_stability", self.min_stability, 0, 1)
        if self.min_stability and not self.jitters:
            raise Refused(
                "min_stability", f"is {self.min_stability!r}, but sam.jitters is 0; set sam.jitters to 2 or more"
            )
        if self.tune is not None and self.tune != "auto" and (type(self.tune) is not int or self.tune < 0):
            raise Refused("tune", f'is {self.tune!r}; it must be an integer of at least 0, null, or "auto"')
        self._check_trust()

    def _check_trust(self) -> None:
        if self.trust is None or self.trust == "auto":
            return
        if not isinstance(self.trust, Mapping):
            raise Refused("trust", f'is {self.trust!r}; it must be "auto", null, or like {{"liver": 1, "tumor": 0}}')
        for name, value in self.trust.items():
            require_number(f"trust.{name}", value, 0, 1)

    def _check_prompts(self) -> None:
        for number, kind in enumerate(self.prompts):
            require_one_of(f"prompts[{number}]", kind, PROMPT_KINDS)
        require_no_twice("prompts", self.prompts)
        if not self.prompts:
            raise Refused("prompts", f"is empty; choose from {', '.join(PROMPT_KINDS)}")
        if set(self.prompts) == {"negative_points"}:
            raise Refused("prompts", "is negative_points alone, which finds no object; add others")
