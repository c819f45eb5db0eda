"""Continuing a run: what a checkpoint keeps beside nnU-Net's own, and what may have changed since it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_semisam.checkpoint import KEY, random_state
from nnunet_semisam.config import SemiSAMConfig, TermConfig, in_effect
from nnunet_semisam.methods import find_method
from nnunet_semisam.methods._base import build_perturbation

if TYPE_CHECKING:
    from nnunet_semisam.trainer import SemiSAM

HARMLESS = (  # of the semisam section: lengths, guards, and what does not decide which weights come out
    "num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "seed", "max_bad_steps", "collapse_guard",
    "min_labeled_dice", "skip_bad", "resume_changed", "sam.backend_args.max_planes",
)  # fmt: skip
OF_PLANS = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
OF_DATASET = ("labels", "regions_class_order", "channel_names", "modality")
NOT_COMPARED = ("semisam", "inherits_from", "median_image_size_in_voxels", "next_stage")
CURE = (
    "Undo that, or train under another configuration name (nnUNetv2_semisam_plan --name); resume_changed = true in the "
    "semisam section continues all the same"
)


def state_of(trainer: SemiSAM) -> dict[str, Any]:
    """What is saved under `KEY`: plain types and tensors only."""
    return {
        "trainer_name": type(trainer).__name__,
        "iteration": trainer.iteration,
        "teacher": None if trainer.teacher is None else trainer.teacher.state_dict(),
        "configuration": _complete(trainer.semisam.as_dict()),
        "trust": trainer.trust,
        "curves": trainer.curves.state_dict(),
        "guard": trainer.guard.state_dict(),
        "collapse": trainer.collapse.state_dict(),
        "readiness": trainer.readiness.state_dict(),
        "labels_seen": None if trainer.labels_seen is None else sorted(trainer.labels_seen),
        "random_state": random_state(),
    }


def take_up(trainer: SemiSAM, checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `state_of` kept; the start of training takes teacher, trust and random numbers from it. None: stock's."""
    known = checkpoint.get(KEY, {}).get("labels_seen")  # older checkpoints do not know, nor do nnU-Net's
    trainer.labels_seen = None if known is None else set(known)
    if KEY not in checkpoint:
        trainer.iteration = trainer.current_epoch * trainer.num_iterations_per_epoch
        trainer.print_to_log_file("semisam: checkpoint of another trainer; the teacher starts as a copy of the student")
        return None
    state = checkpoint[KEY]
    trainer.iteration = state["iteration"]
    trainer.curves.load_state_dict(state["curves"])
    for name in ("guard", "collapse", "readiness"):
        if name in state:  # older checkpoints have none
            getattr(trainer, name).load_state_dict(state[name])
    return state


def compare(trainer: SemiSAM, checkpoint: Mapping[str, Any]) -> list[str]:
    """Prints what has changed since the checkpoint was written; returns what the run must not be continued with.

    Raises:
        ValueError: another architecture, into which the weights do not fit.
    """
    plans = _plan_changes(trainer, checkpoint["init_args"])
    now = _complete(trainer.semisam.as_dict())
    section = changes(_as_written(checkpoint[KEY]["configuration"]), now) if KEY in checkpoint else []
    for what, changed in (("plans", plans), ("semisam configuration", section)):
        if changed:
            trainer.print_to_log_file(f"WARNING: {what} changed since the checkpoint was written: {'; '.join(changed)}")
    if trainer.semisam.resume_changed:
        return []
    if unfit := [change for change in plans if change.startswith(("architecture", "labels", "channel_names"))]:
        raise ValueError(f"semisam: the checkpoint belongs to another network: {'; '.join(unfit)}. {CURE}.")
    return plans + [change for change in section if not _is_harmless(change)]


def refuse(changed: list[str]) -> None:
    """Keeps a run from going on as another one.

    Raises:
        ValueError: something has changed.
    """
    if changed:
        raise ValueError(
            f"semisam: the run would not be continued but become another one: {'; '.join(changed)}. {CURE}."
        )


def changes(was: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """What differs between two dictionaries of `as_dict`, like "terms.sam.weight was 0.1, is 0.5"."""
    found = []
    for key in [*was, *(key for key in now if key not in was)]:
        path = f"{where}.{key}" if where else str(key)
        if key not in was or key not in now:
            old, new = (repr(side[key]) if key in side else "not set" for side in (was, now))
            found.append(f"{path} was {old}, is {new}")
        elif isinstance(was[key], Mapping) and isinstance(now[key], Mapping):
            found += changes(was[key], now[key], path)
        elif was[key] != now[key]:
            found.append(f"{path} was {was[key]!r}, is {now[key]!r}")
    return found


def _is_harmless(change: str) -> bool:
    return change.split(" ")[0] in HARMLESS


def _as_written(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section meant to the version that wrote it: once there was no `remap`, and no `min_labeled_dice`."""
    arguments = section["method_args"]
    perturbation = {"remap": 0.0} | dict(arguments.get("perturbation", {}))
    section = {"min_labeled_dice": 0.0} | dict(section)
    return _complete(section | {"method_args": {**arguments, "perturbation": perturbation}})


def _complete(section: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of what it does not set: keys that older versions did not know, and arguments of the method."""
    defaults, section = SemiSAMConfig().as_dict(), dict(section)
    for key in ("sam", "terms"):
        if isinstance(section.get(key), Mapping):
            section[key] = defaults[key] | section[key]
    section["terms"] = {name: asdict(TermConfig(**term)) for name, term in section["terms"].items()}
    own = [f for f in fields(find_method(section["method"])) if f.name != "outputs"]
    made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in own}
    arguments = made | section["method_args"]
    arguments["perturbation"] = asdict(build_perturbation(arguments["perturbation"]))
    return in_effect(defaults | section | {"method_args": arguments})


def _plan_changes(trainer: SemiSAM, init_args: Mapping[str, Any]) -> list[str]:
    old, now = PlansManager(init_args["plans"]), PlansManager(trainer.plans_manager.plans)  # as read: BN changes it
    was, is_now = _plain(old, init_args["configuration"]), _plain(now, trainer.configuration_name)
    was |= _of_dataset(init_args["dataset_json"])
    return changes(was, is_now | _of_dataset(trainer.dataset_json))


def _of_dataset(dataset_json: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({key: dataset_json.get(key) for key in OF_DATASET}))


def _plain(plans: PlansManager, configuration: str) -> dict[str, Any]:
    content = dict(plans.get_configuration(configuration).configuration)
    content |= {key: plans.plans.get(key) for key in OF_PLANS}
    kept = {key: value for key, value in content.items() if key not in NOT_COMPARED}
    return json.loads(json.dumps(kept, default=str))
