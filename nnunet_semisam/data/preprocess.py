"""Unlabeled images → `<data_identifier>_unlabeled/`: nnU-Net's own preprocessing, without labels.

The images are those of `imagesUn/`, and hidden cases of `imagesTr/` where they need it (see `hidden`). Only what is
missing or has changed is made (see `manifest`). Every case is written into a hidden folder and moved when it is whole,
so nothing half-written counts as done. Cases that were removed from `imagesUn` are not used any more; their
preprocessed files stay, and are taken up again if the same image comes back.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from nnunetv2.configuration import default_num_processes
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from tqdm import tqdm

from nnunet_semisam.data.manifest import Manifest, settings_hash
from nnunet_semisam.data.partial import partial_folder
from nnunet_semisam.data.raw_pool import FOLDER, list_unlabeled
from nnunet_semisam.data.splits import names
from nnunet_semisam.data.work import Work

Say = Callable[[str], object]
MOST_FOR_3D = 4  # nnUNetv2_preprocess's default for 3d_fullres: volumes take memory


_VANISHED = (
    "{folder} holds no image, but {count} unlabeled cases were preprocessed from there. Is it mounted, and the link in "
    "order? If they are to be left out for good: nnUNetv2_semisam_preprocess -d {name} --forget"
)
_OUTDATED = (
    "{count} unlabeled cases of {file} were preprocessed with other plans or another nnU-Net version, and there is no "
    "raw data set folder {name} to make them again from; preprocess where it is (nnUNetv2_semisam_preprocess), with "
    "the nnU-Net of this machine, or leave them out for good (the same command with --forget)"
)
_REMADE = (
    "semisam: {names} preprocessed again, because the plans (spacing, normalisation, intensities) or nnU-Net's version "
    "changed. Trainings that are running read the same files in {folder}"
)
_GONE = "semisam: {names} not in {folder} any more, and not used (the preprocessed image is kept)"
_LOST = (
    "{names} recorded in {file} as preprocessed, but not in {folder}. Copy the whole folder, or leave these cases out: "
    "delete their entries of that file"
)
_CURE_SKIP = (
    "correct or remove these files and start again (the others are done), or leave them out with skip_bad=true in the "
    "section of the configuration (nnUNetv2_semisam_preprocess, for itself: --skip-bad)"
)
_CURE_HIDDEN = (
    'correct these files and start again (the others are done), or take the cases out of "unlabeled" in '
    "splits_final.json"
)
_NO_RECORD = (
    "{folder} holds preprocessed images, but their record {file} is {what}, so that nobody knows which of them count. "
    "Copy it, too, whole and from the same machine, or preprocess where the raw images are"
)


def preprocess_unlabeled(
    dataset_name: str,
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
    dataset_json: dict,
    *,
    num_processes: int | None = None,
    show_progress: bool = True,
    skipped: list[str] | None = None,
    say: Say = print,
) -> dict[str, Path]:
    """Preprocesses the cases of `imagesUn` that are missing or have changed.

    Safe to call at every start and by several processes at once: without anything to do it only compares file sizes and
    times. Where the raw data set folder does not exist (a training machine that has preprocessed data only), the cases
    that were preprocessed with these plans are returned.

    Args:
        num_processes: 1 works in this process; None takes nnU-Net's default (`nnUNet_def_n_proc`), at most 4 in 3D.
        skipped: a list leaves out what cannot be used, and takes a sentence about each; None makes it an error.
        say: is told of cases that are gone, and of those that are made again.

    Returns:
        The preprocessed image (`.b2nd`) of every case that now lies in `imagesUn`; empty without such a folder.

    Raises:
        ValueError: wrong names in `imagesUn`, or cases that cannot be preprocessed (all are named; good ones are kept);
            cases are known of, but `imagesUn` is empty or gone, or there is no raw data set folder and they were
            preprocessed with other plans or another nnU-Net.
        RuntimeError: a worker process died.
        DiskTrouble: what was made could not be written.
    """
    manifest = open_manifest(dataset_name, plans_manager, configuration_manager, FOLDER)
    raw_folder = raw_folder_of(dataset_name)
    if not raw_folder:
        return preprocessed_elsewhere(manifest, dataset_name)
    cases = _listed(manifest, Path(raw_folder), dataset_json, skipped, say)
    managers = plans_manager, configuration_manager, dataset_json
    failed = make_missing(
        manifest, cases, managers,
        num_processes=num_processes, show_progress=show_progress, skipped=skipped, say=say,
    )  # fmt: skip
    return {case: manifest.image(case) for case in cases if case not in failed}


def preprocessed_elsewhere(manifest: Manifest, dataset_name: str) -> dict[str, Path]:
    """The unlabeled cases of a machine that does not have the raw folder.

    Raises:
        ValueError: some were preprocessed with other plans or another nnU-Net, or images or the record are missing.
    """
    if not manifest.cases and any(manifest.folder.glob("*.b2nd")):
        what = "damaged" if manifest.file.exists() else "missing"
        raise ValueError(_NO_RECORD.format(folder=manifest.folder, file=manifest.file, what=what))
    if old := manifest.outdated_cases():
        raise ValueError(_OUTDATED.format(count=len(old), file=manifest.file, name=dataset_name))
    finished = manifest.finished_cases()
    if lost := [case for case in manifest.present_cases() if case not in finished]:
        raise ValueError(_LOST.format(names=names(lost), file=manifest.file, folder=manifest.folder))
    return finished


def _listed(
    manifest: Manifest, raw_folder: Path, dataset_json: dict, skipped: list[str] | None, say: Say
) -> dict[str, list[str]]:
    """The files of the cases that lie in `imagesUn` now; others are marked as removed, but not all of them at once."""
    told = len(skipped or ())
    cases = list_unlabeled(raw_folder, dataset_json, skipped=skipped)
    if not cases and len(skipped or ()) == told:
        refuse_vanished(manifest, raw_folder)
    folder, ending = raw_folder / FOLDER, dataset_json["file_ending"]
    unused = manifest.note_present(cases)
    if gone := [case for case in unused if not (folder / f"{case}_0000{ending}").exists()]:  # others are bad: see above
        say(_GONE.format(names=names(gone), folder=folder))
    return cases


def refuse_vanished(manifest: Manifest, raw_folder: Path) -> None:
    """For an `imagesUn` in which nothing is found.

    Raises:
        ValueError: cases were preprocessed from there.
    """
    if had := manifest.present_cases():
        raise ValueError(_VANISHED.format(count=len(had), folder=raw_folder / FOLDER, name=raw_folder.name))


def open_manifest(
    dataset_name: str, plans_manager: PlansManager, configuration_manager: ConfigurationManager, source: str
) -> Manifest:
    """The record of the label-free cases of a configuration that come from the raw folder `source`."""
    folder = unlabeled_folder(dataset_name, configuration_manager)
    return Manifest.load(folder, settings_hash(plans_manager, configuration_manager), source)


def make_missing(
    manifest: Manifest, cases: dict[str, list[str]], managers: tuple[PlansManager, ConfigurationManager, dict], *,
    num_processes: int | None, show_progress: bool, skipped: list[str] | None = None, say: Say = print,
) -> set[str]:  # fmt: skip
    """Preprocesses those of the cases, given with their files, that are not done; returns those that were skipped."""
    jobs = [(case, files) for case, files in cases.items() if not manifest.is_done(case, files)]
    manifest.keep_times()
    if not jobs:
        return set()
    if old := [case for case, _ in jobs if manifest.is_outdated(case)]:
        say(_REMADE.format(names=names(old), folder=manifest.folder))
    title = f"Preprocessing unlabeled cases ({managers[1].data_identifier})"
    with (
        partial_folder(manifest.folder) as partial,
        tqdm(total=len(jobs), desc=title, disable=not show_progress) as bar,
    ):
        work = Work(partial, manifest.folder, manifest.settings, manifest.source, *managers)
        failures = _collect(_outcomes(work, shuffled(jobs), num_processes), manifest, cases, bar)
    if failures and skipped is None:
        cure = _CURE_SKIP if manifest.source == FOLDER else _CURE_HIDDEN
        raise ValueError(
            f"{len(failures)} of {len(cases)} unlabeled cases could not be preprocessed; {cure}:\n"
            + "\n".join(failures.values())
        )
    if skipped is not None:
        skipped += failures.values()
    return set(failures)


def shuffled(jobs: Sequence[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """In any order: folds that start together share the work so, for each leaves out what others have done."""
    return random.Random().sample(jobs, len(jobs))


def unlabeled_folder(dataset_name: str, configuration_manager: ConfigurationManager) -> Path:
    """Where images lie that were preprocessed without label; configurations that share a data identifier share it."""
    return Path(nnUNet_preprocessed) / dataset_name / f"{configuration_manager.data_identifier}_unlabeled"


def raw_folder_of(dataset_name: str) -> Path | None:
    """The raw data set folder, or None where this machine does not have it."""
    folder = Path(nnUNet_raw) / dataset_name if nnUNet_raw.is_set() else None
    return folder if folder and folder.is_dir() else None


def _outcomes(
    work: Work, jobs: Sequence[tuple[str, list[str]]], num_processes: int | None
) -> Iterator[tuple[str, str | None]]:
    default = default_num_processes if work.is_2d else min(default_num_processes, MOST_FOR_3D)
    workers = min(num_processes or default, os.cpu_count() or 1, len(jobs))
    if workers <= 1:
        yield from (work(*job) for job in jobs)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        for future in as_completed([pool.submit(work, *job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt need not wait for what has not begun


def _collect(
    outcomes: Iterable[tuple[str, str | None]], manifest: Manifest, cases: dict[str, list[str]], bar: tqdm
) -> dict[str, str]:
    """Notes what is done; returns why the others failed."""
    failures = {}
    try:
        for case, reason in outcomes:
            bar.update()
            if reason is None:
                manifest.add(case, cases[case])
            else:
                failures[case] = reason
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process died while preprocessing unlabeled images, most often because memory ran out. Finished cases "
            "are kept; run nnUNetv2_semisam_preprocess with fewer processes (-np) to make the others."
        ) from error
    finally:
        manifest.save()
    return failures
