"""What every semi-supervised method is: something that makes pseudo-labels, and terms that pull the student to them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from nnunet_semisam.ops.losses import LOSSES
from nnunet_semisam.ops.mix import Mix, cutmix, random_boxes
from nnunet_semisam.ops.outputs import OutputSpace, full_resolution
from nnunet_semisam.ops.perturb import Perturbation
from nnunet_semisam.ops.window import center_weights
from nnunet_semisam.types import LabeledBatch, PseudoLabel, UnlabeledBatch
from nnunet_semisam.values import require_number

LOSS = "dice"
Teacher = Callable[[Tensor], Tensor]  # image (U, C, *S) -> prob (U, K, *S)
Student = Callable[[Tensor], "Tensor | list[Tensor]"]  # image (U, C, *S) -> logits, a list under deep supervision

Targets = dict[str, tuple[Tensor, Tensor]]  # by term: probabilities (U, K, *S) and weights (U, 1, *S)

VIEWS = ("device", "nnunet")


@dataclass(kw_only=True)
class SemiMethod(abc.ABC):
    """A semi-supervised method. Its fields are its `method_args` in the configuration.

    Args:
        outputs: what the heads of the network mean.
        view: what the student sees: "device" = the weak view perturbed on the device, "nnunet" = nnU-Net's full
            augmentation of the same patch.
        perturbation: fields of `Perturbation`, for the view "device".
        loss: "mse" or "dice" (see `nnunet_semisam.ops.losses`), or a dictionary from names of terms to these; terms
            that are not in it have "dice".
        cutmix: probability that the patches of a batch are mixed with each other before they are perturbed, and
            their pseudo-labels alike (see `nnunet_semisam.ops.mix`).
        paste: probability that a box of each of these patches is replaced by one of a labeled patch, whose labels are
            then the target there: one direction of bidirectional copy-paste (Bai et al., CVPR 2023, arXiv 2305.00673).
            Not in the first 250 iterations of a training, or its first eighth, when classes that look alike are told
            from each other.
        center_sigma: width of the Gaussian by which the unlabeled losses count the middle of a patch more than its
            border, where a network lacks context, as a share of the patch's sides (nnU-Net's sliding window takes
            0.125); None: all voxels alike.
    """

    term_names: ClassVar[tuple[str, ...]] = ("consistency",)
    pastes = True  # may it, where chance wants it? The step says no at the start of a training

    outputs: OutputSpace
    view: str = "device"
    perturbation: dict = field(default_factory=dict)
    loss: str | dict[str, str] = LOSS
    cutmix: float = 0.0
    paste: float = 0.0
    center_sigma: float | None = None

    def __post_init__(self) -> None:
        if self.view not in VIEWS:
            raise ValueError(f"semisam: method_args.view is {self.view!r}; known are {', '.join(VIEWS)}")
        self._perturb = build_perturbation(self.perturbation)
        self.perturbation = asdict(self._perturb)  # with its defaults
        self._check_losses()
        require_number("method_args.cutmix", self.cutmix, 0, 1)
        require_number("method_args.paste", self.paste, 0, 1)
        # below, the middle would count hundreds of times as much as the mean
        require_number("method_args.center_sigma", self.center_sigma, 0.05, or_null=True)

    @abc.abstractmethod
    def pseudo_labels(self, teacher: Teacher, unlabeled: UnlabeledBatch) -> dict[str, PseudoLabel]:
        """What is believed about the unlabeled patches, by name of the loss term. Called without gradient."""

    @property
    def wants_strong(self) -> bool:
        """Does it look at the strong view? Else nnU-Net's augmentation of intensities is not computed."""
        return self.view == "nnunet"

    def student_view(self, unlabeled: UnlabeledBatch, mixes: Sequence[Mix] = ()) -> Float[Tensor, "U C *S"]:
        """The image that the student gets to see; in a cascade with the previous stage's labels as nnU-Net's
        augmentation leaves them.

        Args:
            mixes: put parts of other patches into it, one after the other, before it is perturbed.
        """
        from_device, channels = self.view == "device", unlabeled.picture.shape[1]
        image = torch.cat([unlabeled.picture, unlabeled.roughened], 1) if from_device else unlabeled.full_view
        for mix in mixes:
            image = mix(image)
        if not from_device:
            return image
        return torch.cat([self._perturb(image[:, :channels]), image[:, channels:]], 1)

    def terms(
        self,
        student: Student,
        unlabeled: UnlabeledBatch,
        pseudo: dict[str, PseudoLabel],
        labeled: LabeledBatch | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """One unweighted loss per pseudo-label, under the same names. One pass of the student serves them all.

        Args:
            labeled: the labeled patches of the same iteration, for `paste`; None: nothing is pasted.
        """
        targets = {name: (p.prob, p.confidence * p.scale) for name, p in pseudo.items()}
        view, targets = self._mixed(unlabeled, targets, labeled)
        if self.center_sigma is not None:
            window = center_weights(view.shape[2:], self.center_sigma, view.device)
            targets = {name: (prob, weight * window) for name, (prob, weight) in targets.items()}
        prob = self.outputs.prob(full_resolution(student(view)))
        return {name: self._loss(name)(prob, *target) for name, target in targets.items()}

    def _mixed(
        self, unlabeled: UnlabeledBatch, targets: Targets, labeled: LabeledBatch | None
    ) -> tuple[Tensor, Targets]:
        """View and targets, mixed with each other and with labeled patches where chance wants it."""
        mixes: list[Mix] = []
        if self.cutmix and torch.rand(()).item() < self.cutmix:
            mix = cutmix(unlabeled.image.shape, unlabeled.image.device)
            mixes.append(mix)
            targets = {name: (mix(prob), mix(weight)) for name, (prob, weight) in targets.items()}
        if self.paste and self.pastes and labeled is not None and torch.rand(()).item() < self.paste:
            mix, targets = self._pasted(unlabeled.image, targets, labeled)
            mixes.append(mix)
        return self.student_view(unlabeled, mixes), targets

    def _pasted(self, image: Tensor, targets: Targets, labeled: LabeledBatch) -> tuple[Mix, Targets]:
        """A box of each patch replaced by that of a labeled one; where the label is to be ignored nothing is asked."""
        inside = random_boxes(image.shape, image.device)
        donors = torch.arange(len(image), device=image.device) % len(labeled.image)
        truth, valid = (part[donors] for part in self.outputs.truth(full_resolution(labeled.target)))
        pasted = {
            name: (torch.where(inside, truth, prob), torch.where(inside, valid, weight))
            for name, (prob, weight) in targets.items()
        }
        return lambda view: torch.where(inside, labeled.image[donors], view), pasted

    def _loss(self, term: str) -> Callable[..., Tensor]:
        return LOSSES[self.loss if isinstance(self.loss, str) else self.loss.get(term, LOSS)]

    def _check_losses(self) -> None:
        terms = (*self.term_names, "sam")
        chosen = self.loss if isinstance(self.loss, dict) else {"": self.loss}
        for term, loss in chosen.items():
            if isinstance(self.loss, dict) and term not in terms:
                raise ValueError(f"semisam: method_args.loss has no term named {term!r}; known are {', '.join(terms)}")
            if loss not in list(LOSSES):  # it may be of any type
                where = f"method_args.loss.{term}".rstrip(".")
                raise ValueError(f"semisam: {where} is {loss!r}; known are {', '.join(LOSSES)}")


def build_perturbation(args: Any) -> Perturbation:
    """The `method_args.perturbation` of a configuration.

    Raises:
        ValueError: unknown key, or a value out of range; the message lists the known keys.
    """
    known = [f.name for f in fields(Perturbation)]
    if not isinstance(args, dict):
        raise ValueError(
            f"semisam: method_args.perturbation is {args!r}; it must be a dictionary with keys out of "
            f"{', '.join(known)}"
        )
    for key, value in args.items():
        if key not in known:
            raise ValueError(f"semisam: unknown method_args.perturbation {key!r}; known are {', '.join(known)}")
        require_number(f"method_args.perturbation.{key}", value, 0, 1 if key in ("cutout", "remap") else math.inf)
    return Perturbation(**args)
