"""The unlabeled stream of a trainer: its pool of cases, its loader, and the trainer's own augmentation as two views."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchgenerators.utilities.file_and_folder_operations import load_json, save_json
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_semisam import cascade
from nnunet_semisam.collapse import alignment_trouble
from nnunet_semisam.config import SemiSAMConfig
from nnunet_semisam.data.disk import writing
from nnunet_semisam.data.loader import build_unlabeled_loader
from nnunet_semisam.data.pool import unlabeled_pool
from nnunet_semisam.data.transforms import TwoViewTransform, WeakViewTransform, geometry_of
from nnunet_semisam.data.unlabeled import UnlabeledDataset
from nnunet_semisam.ranks import on_first_rank
from nnunet_semisam.types import UnlabeledBatch

if TYPE_CHECKING:
    from nnunet_semisam.trainer import SemiSAM


def prepare_pool(trainer: nnUNetTrainer, config: SemiSAMConfig) -> dict[str, Path]:
    """The unlabeled cases of the trainer's fold; what is missing is preprocessed (under DDP, by rank 0).

    For a cascade also what the previous stage predicts for them.

    Raises:
        ValueError: no unlabeled case, or something is wrong with one; the message has the cure.
    """
    config.refuse_late_terms(trainer.num_epochs * trainer.num_iterations_per_epoch)

    def pool() -> dict[str, Path]:
        skipped: list[str] | None = [] if config.skip_bad else None
        cases = unlabeled_pool(
            trainer.plans_manager,
            trainer.configuration_manager,
            trainer.dataset_json,
            trainer.fold,
            allow_unlabeled_val=config.allow_unlabeled_val,
            skipped=skipped,
            required=not config.labeled_as_unlabeled,
            say=trainer.print_to_log_file,
        )
        if trainer.is_cascaded:
            ready = cascade.prepare_previous_stage(trainer, allow_val=config.allow_unlabeled_val, skipped=skipped)
            cases = {case: file for case, file in cases.items() if case in ready}
        if skipped:
            lines = dict.fromkeys(skipped)  # a cascade looks at the images of both stages
            trainer.print_to_log_file("\n  - ".join(["WARNING: semisam: skipped (skip_bad):", *lines]))
        return cases

    return on_first_rank(trainer, pool, "preparing the unlabeled cases")


def note_labels(trainer: SemiSAM, pool: Mapping[str, Path]) -> None:
    """Adds the fold's labeled cases to those whose labels the weights have learned from; not where nobody knows these.

    Raises:
        ValueError: a resumed training has learned from the label of a case that is hidden now.
    """
    if trainer.labels_seen is None:
        return
    seen = sorted(trainer.labels_seen & set(pool))
    trainer.labels_seen |= set(trainer.do_split()[0])
    if not seen:
        return
    text = f"these weights have learned from the labels of {', '.join(seen)}, which are unlabeled now"
    if not trainer.semisam.resume_changed:
        raise ValueError(
            f"semisam: {text}. Train anew (without --c), or undo the change in splits_final.json. resume_changed = "
            "true in the semisam section continues all the same; what comes out has seen these labels"
        )
    trainer.print_to_log_file(f"WARNING: semisam: {text}")


def labeled_images(trainer: nnUNetTrainer) -> dict[str, Path]:
    """The preprocessed images of the fold's labeled cases, for those who want them among the unlabeled ones."""
    return {case: Path(trainer.preprocessed_dataset_folder) / f"{case}.b2nd" for case in trainer.do_split()[0]}


def open_stream(trainer: SemiSAM, pool: dict[str, Path], geometry: tuple, *, batch_size: int | None) -> Any:
    """An endless iterator of batches with two views, or the weak one alone where that is all that is looked at.

    Args:
        geometry: what `configure_rotation_dummyDA_mirroring_and_inital_patch_size` returned.
        batch_size: None = that of the labeled batches.
    """
    rotation, dummy_2d, initial_patch_size, mirror_axes = geometry
    configuration, labels = trainer.configuration_manager, trainer.label_manager
    transforms = trainer.get_training_transforms(
        configuration.patch_size, rotation, None, mirror_axes, dummy_2d,
        use_mask_for_norm=configuration.use_mask_for_norm, is_cascaded=trainer.is_cascaded,
        foreground_labels=labels.foreground_labels, regions=None, ignore_label=labels.ignore_label,
    )  # fmt: skip
    return build_unlabeled_loader(
        UnlabeledDataset(pool, cascade.previous_stage_files(trainer, pool)),
        _views(trainer, transforms),
        batch_size=batch_size or trainer.batch_size,
        initial_patch_size=[int(side) for side in initial_patch_size],
        patch_size=configuration.patch_size,
        label_manager=labels,
        pin_memory=trainer.device.type == "cuda",
    )


def _views(trainer: SemiSAM, transforms: Any) -> TwoViewTransform | WeakViewTransform:
    masked = trainer.configuration_manager.use_mask_for_norm
    if trainer.is_cascaded:  # its labels are roughened in the strong view
        labels = [int(label) for label in trainer.label_manager.foreground_labels]
        return TwoViewTransform(transforms, masked, previous_labels=labels)
    geometry = None if trainer.method.wants_strong else geometry_of(transforms)
    return TwoViewTransform(transforms, masked) if geometry is None else WeakViewTransform(geometry, masked)


def write_configuration(trainer: SemiSAM, pool: Mapping[str, Path] | None) -> None:
    """Prints and writes the resolved configuration (`semisam.json`) and the unlabeled cases with their folders.

    Without a pool there is no record of them: it would say that this training has seen every label.
    """
    trainer.print_to_log_file("semisam configuration:", trainer.semisam.as_dict(), add_timestamp=False)
    meant, length = trainer.preset.num_epochs, trainer.semisam.num_epochs
    if meant not in (None, length):
        trainer.print_to_log_file(
            f"WARNING: semisam: {type(trainer).__name__} is a training of {meant} epochs, but num_epochs of the "
            f"semisam section makes it {length}; results are filed under the name of the trainer"
        )
    if trainer.semisam.distribution_alignment and (trouble := alignment_trouble(trainer)):
        trainer.print_to_log_file(f"WARNING: semisam: distribution_alignment has no effect: {trouble}")
    more = " and the images of labeled ones" if trainer.semisam.labeled_as_unlabeled else ""
    trainer.print_to_log_file(f"semisam: {len(pool or {})} unlabeled cases{more}\n", add_timestamp=False)
    if trainer.local_rank != 0:
        return
    record, seen = Path(trainer.output_folder) / "semisam_unlabeled.json", trainer.labels_seen or ()
    with writing(trainer.output_folder):
        save_json(trainer.semisam.as_dict(), os.path.join(trainer.output_folder, "semisam.json"), sort_keys=False)
        if pool is None:
            record.unlink(missing_ok=True)
            return
        unseen = {case: file for case, file in pool.items() if case not in seen}
        if trainer.iteration and (line := _pool_changes(record, unseen)):
            trainer.print_to_log_file(line)
        save_json({case: file.parent.name for case, file in unseen.items()}, str(record), sort_keys=False)


def _pool_changes(record: Path, pool: Mapping[str, Path]) -> str | None:
    """In words, how the unlabeled cases of a resumed training differ from those that it had."""
    try:
        before = load_json(str(record))
    except (OSError, ValueError):  # missing, or damaged when the disk was full: written anew
        return None
    gone, new = (", ".join(sorted(set(one) - set(other))) for one, other in ((before, pool), (pool, before)))
    if not gone and not new:
        return None
    return (
        f"WARNING: semisam: the unlabeled cases are not those of before: gone are {gone or 'none'}; new {new or 'none'}"
    )


def next_batch(trainer: SemiSAM) -> UnlabeledBatch:
    """The next unlabeled batch, on the trainer's device."""
    batch = next(trainer.dataloader_unlabeled)
    channels, previous = trainer.num_input_channels, trainer.previous_channels
    return UnlabeledBatch.from_nnunet(batch, trainer.device, trainer.iteration, previous=previous, channels=channels)


def choose_no_kernels_by_timing(loader: Any) -> None:
    """Makes a single-threaded loader repeatable.

    Gaussian blur else picks the faster of two convolutions by a stop-watch; they differ in the last bits.
    """
    for transform in _nested(getattr(getattr(loader, "data_loader", None), "transforms", None)):
        if isinstance(transform, GaussianBlurTransform):
            transform.benchmark = False


def _nested(transform: Any) -> Iterator[Any]:
    if transform is None:
        return
    yield transform
    inner = getattr(transform, "transforms", None) or [getattr(transform, "transform", None)]
    for child in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from _nested(child)
