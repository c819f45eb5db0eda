"""Tiny raw data sets for every mode of nnU-Net, and nnU-Net's commands, called in this process.

Importing nnU-Net takes 10 to 17 s on two cores, and its commands do that once per worker process. Here the functions
behind the console scripts are called, and its pools of processes are pools of threads. With NNUNET_SEMISAM_LONG=1 the
scripts are run instead, one process per command, with nnU-Net's worker processes.
"""

import importlib.metadata
import json
import multiprocessing
import multiprocessing.pool
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LONG = bool(os.environ.get("NNUNET_SEMISAM_LONG"))
NUMBER, NAME = "997", "Dataset997_Modes"
TRAINER = "nnUNetTrainerSemiSAM"
LABELED, HIDDEN, UNLABELED, NEW = ("a", "b", "c"), ("d",), ("x", "y"), ("n",)
LENGTH = ("num_epochs=1", "num_iterations_per_epoch=2", "num_val_iterations_per_epoch=1", "min_labeled_dice=0")


@dataclass
class Mode:
    """One row of the table: what the raw data look like, and what is trained.

    Args:
        spacing: of the axes z, y, x.
        labels: of `dataset.json`; the images show labels 1 (a ball) and 2 (a shell around it).
        border: voxels of exact zero around the image, which make nnU-Net normalise within the mask.
        patch: None = what nnU-Net plans.
        asked: whether SAM must have been asked within the few iterations.
    """

    configuration: str = "3d_fullres"
    channels: tuple = ("MRI",)
    shape: tuple = (20, 22, 18)
    spacing: tuple = (1.0, 1.0, 1.0)
    labels: dict = field(default_factory=lambda: {"background": 0, "ball": 1, "shell": 2})
    regions: list | None = None
    border: int = 0
    png: bool = False
    planner: str = "ExperimentPlanner"
    plans: str = "nnUNetPlans"
    patch: list | None = None
    fold: str = "0"
    trainer: str = TRAINER

    @property
    def ending(self):
        return ".png" if self.png else ".nii.gz"


class _Pools:
    """What `multiprocessing.get_context("spawn")` shall return: its pools are threads, all else is as it was."""

    Pool = staticmethod(multiprocessing.pool.ThreadPool)

    def __init__(self, context):
        self._context = context

    def __getattr__(self, name):
        return getattr(self._context, name)


def in_threads(monkeypatch):
    """Lets nnU-Net's worker pools be threads of this process."""
    original = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: _Pools(original(method)))


def command(name, *arguments):
    """Calls a console script of this environment in this process; in the long form, runs it."""
    if LONG:
        subprocess.run([Path(sys.executable).with_name(name), *map(str, arguments)], check=True)
        return
    (script,) = importlib.metadata.entry_points(group="console_scripts", name=name)
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        assert script.load()() in (None, 0), f"{name} failed"
    finally:
        sys.argv = before


def truth(mode, seed):
    """Labels (z, y, x): a ball with radius 1/6 and a shell around it up to 1/3 of the smallest extent."""
    random = np.random.RandomState(seed)
    size = np.array(mode.shape) * mode.spacing
    grid = np.stack(np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(mode.shape, mode.spacing, strict=True)],
                                indexing="ij"))  # fmt: skip
    centre = size / 2 + random.uniform(-0.1, 0.1, 3) * size
    if mode.shape[0] == 1:
        centre[0], size = 0.5 * mode.spacing[0], size[1:]
    radius = np.sqrt(((grid - centre.reshape(3, 1, 1, 1)) ** 2).sum(0))
    inner, outer = size.min() / 6, size.min() / 3
    return np.where(radius < inner, 1, np.where(radius < outer, 2, 0)).astype(np.uint8)


def channel(mode, seg, number, seed):
    """One channel (z, y, x) of the image of `seg`, float32."""
    random = np.random.RandomState(100 * number + seed)
    image = 100 + 40 * np.choose(seg, [0.0, 2.0, 1.0]) + 10 * random.randn(*seg.shape)
    if mode.border:
        body = np.zeros(seg.shape, bool)
        body[tuple(slice(mode.border, -mode.border) for _ in seg.shape)] = True
        image = np.where(body | (seg > 0), image, 0)
    return image.astype(np.float32)


def write_raw(mode, raw):
    """Labeled cases, hidden ones (labeled, too), unlabeled ones in imagesUn, new ones in imagesTs."""
    for folder in ("imagesTr", "labelsTr", "imagesUn", "imagesTs"):
        (raw / folder).mkdir(parents=True)
    for seed, name in enumerate((*LABELED, *HIDDEN, *UNLABELED, *NEW)):
        folder = "imagesUn" if name in UNLABELED else "imagesTs" if name in NEW else "imagesTr"
        seg = truth(mode, seed)
        if mode.png:
            _write_png(raw / folder / f"{name}_0000.png", np.stack([channel(mode, seg, n, seed) for n in range(3)]))
        else:
            for number in range(len(mode.channels)):
                _write(raw / folder / f"{name}_{number:04d}.nii.gz", channel(mode, seg, number, seed), mode.spacing)
        if folder == "imagesTr":
            shown = sparse(mode, seg, seed)
            (_write_png if mode.png else _write)(
                raw / "labelsTr" / f"{name}{mode.ending}", shown, *([] if mode.png else [mode.spacing])
            )
    content = {"channel_names": dict(enumerate(mode.channels)), "labels": mode.labels, "file_ending": mode.ending}
    content |= {"regions_class_order": mode.regions} if mode.regions else {}
    (raw / "dataset.json").write_text(json.dumps({**content, "numTraining": len(LABELED) + len(HIDDEN)}))


def sparse(mode, seg, seed):
    """The label as an annotator of three planes gives it, where there is an ignore label; else all of it."""
    if "ignore" not in mode.labels:
        return seg
    shown = np.full_like(seg, mode.labels["ignore"])
    for axis, size in enumerate(seg.shape):
        for place in (size // 2, size // 3):
            plane = (slice(None),) * axis + (place,)
            shown[plane] = seg[plane]
    return shown


def prepare(mode, root, *, folds=None):
    """Plans, shrinks and preprocesses; returns the folder in `nnUNet_preprocessed`."""
    write_raw(mode, root / "nnUNet_raw" / NAME)
    command("nnUNetv2_plan_and_preprocess", "-d", NUMBER, "--no_pp", "-npfp", 1, "-pl", mode.planner)
    folder = root / "nnUNet_preprocessed" / NAME
    file = folder / f"{mode.plans}.json"
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            shrink(configuration, mode.patch if configuration is plans["configurations"][mode.configuration] else None)
    file.write_text(json.dumps(plans))
    folds = folds or [{"train": ["a", "b"], "unlabeled": list(HIDDEN), "val": ["c"]}]
    if mode.fold != "all":
        (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder


def shrink(configuration, patch):
    """Four features per stage, batches of two."""
    arguments = configuration["architecture"]["arch_kwargs"]
    arguments["features_per_stage"] = [4] * arguments["n_stages"]
    if "n_blocks_per_stage" in arguments:
        arguments["n_blocks_per_stage"] = [1] * arguments["n_stages"]
    configuration["batch_size"] = 2
    if patch:
        configuration["patch_size"] = patch


def preprocess(mode, *configurations):
    command("nnUNetv2_preprocess", "-d", NUMBER, "-plans_name", mode.plans, "-c", *configurations, "-np", 1)


def add_section(mode, configuration, *more):
    """Writes the section into the configuration itself: few iterations, SAM believed without a test."""
    keys = (*LENGTH, "sam.min_voxels=4", "sam.min_agreement=0", "sam.trust=null", "sam.tune=0", *more)
    where = ("-d", NUMBER, "-p", mode.plans, "-c", configuration, "--name", configuration)
    command("nnUNetv2_semisam_plan", *where, "--set", *keys)


def train(mode, configuration=None, *arguments, fold=None):
    """`nnUNetv2_train` with validation; returns the fold's folder."""
    configuration, fold = configuration or mode.configuration, fold or mode.fold
    named = ("-tr", mode.trainer, "-p", mode.plans, "-device", "cpu")
    command("nnUNetv2_train", NUMBER, configuration, fold, *named, *arguments)
    return results(mode, configuration) / f"fold_{fold}"


def predict(mode, root, out, configuration=None, *arguments, fold=None):
    """`nnUNetv2_predict` of the new case; returns its labels."""
    configuration, fold = configuration or mode.configuration, fold or mode.fold
    named = ("-d", NUMBER, "-c", configuration, "-f", fold, "-tr", mode.trainer, "-p", mode.plans, "-device", "cpu")
    folders = ("-i", root / "nnUNet_raw" / NAME / "imagesTs", "-o", out)
    command("nnUNetv2_predict", *folders, *named, "-npp", 0, "-nps", 0, *arguments)
    return read(out / f"n{mode.ending}")


def read(file):
    """Labels (z, y, x), or (y, x) of a PNG file."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def results(mode, configuration):
    from nnunetv2.paths import nnUNet_results

    return Path(str(nnUNet_results)) / NAME / f"{mode.trainer}__{mode.plans}__{configuration}"


def log(fold_folder):
    """Everything that was printed to the log files of a fold."""
    return "".join(file.read_text() for file in sorted(fold_folder.glob("training_log_*.txt")))


def _write(file, values, spacing):
    image = sitk.GetImageFromArray(values)
    image.SetSpacing(tuple(map(float, reversed(spacing))))
    sitk.WriteImage(image, str(file))


def _write_png(file, values):
    from skimage.io import imsave

    picture = values[0] if values.ndim == 3 else values.transpose(1, 2, 3, 0)[0]
    imsave(file, picture.clip(0, 255).astype(np.uint8), check_contrast=False)
