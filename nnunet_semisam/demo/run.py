"""The demonstration from phantoms to a table and a picture, with nnU-Net's own commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from nnunet_semisam.cli.lookup import require_torchvision
from nnunet_semisam.demo.commands import Place
from nnunet_semisam.demo.dataset import (
    NAME,
    SEMISAM,
    SUPERVISED,
    Settings,
    read_nifti,
    write_data_set,
    write_fold,
    write_plan,
)
from nnunet_semisam.demo.phantom import ORGANS

TRAINER = "nnUNetTrainerSemiSAM"
TEACHER = "SemiSAM teacher"
RUNS = {  # row of the table: configuration, checkpoint
    "supervised": (SUPERVISED, "checkpoint_final.pth"),
    "SemiSAM student": (SEMISAM, "checkpoint_final.pth"),
    TEACHER: (SEMISAM, "checkpoint_final_teacher.pth"),
}
CAPTION = """One short training on a few phantoms with one seed: it shows that the parts work together, not what
SemiSAM does for your data. For that, compare several seeds and label draws."""
Scores = dict[str, dict[str, dict[str, float]]]  # row -> case -> organ -> Dice


def run_demo(folder: Path, settings: Settings, *, device: str = "cpu") -> Scores:
    """Runs all steps in `folder`; returns the Dice of every held-out case.

    The folder then also holds `demo.png` and `scores.json`.

    Raises:
        CommandFailed: a command of nnU-Net ended with an error.
        ImportError: torchvision cannot be imported.
    """
    require_torchvision()
    place, steps = Place(folder), _Steps(6)
    steps.begin(f"{settings.labeled} labeled, {settings.unlabeled} unlabeled, {settings.held_out} held-out phantoms")
    kinds = write_data_set(place.raw, settings)
    steps.begin("plan and preprocess")
    place.run("nnUNetv2_plan_and_preprocess", "-d", "1", "-c", "3d_fullres", "-np", "1", "-npfp", "1", log="plan")
    write_fold(place.preprocessed, settings)
    write_plan(place.preprocessed, settings)
    length = f"{settings.epochs} epochs of {settings.iterations} iterations"
    steps.begin(f"train on the labeled phantoms only ({length})")
    train(place, SUPERVISED, device)
    steps.begin(f"train SemiSAM, with the unlabeled phantoms ({length})")
    train(place, SEMISAM, device)
    steps.begin("predict the held-out phantoms")
    for row in RUNS:
        predict(place, row, device)
    steps.begin("compare")
    scores = score(place, settings)
    (folder / "scores.json").write_text(json.dumps({"dice": scores, "degradations": kinds}, indent=2))
    print(f"\n{table(scores)}\n\n{CAPTION}\n{waited(place)}")
    draw(place, settings, scores)
    steps.end()
    return scores


def train(place: Place, configuration: str, device: str) -> None:
    """`nnUNetv2_train` with the data augmentation in the same process: quick to start, and the same at every run."""
    command = ("nnUNetv2_train", "1", configuration, "0", "-tr", TRAINER, "-device", device)
    place.run(*command, log=f"train_{configuration}", environment={"nnUNet_n_proc_DA": "0"})


def predict(place: Place, row: str, device: str) -> None:
    """`nnUNetv2_predict` on the held-out phantoms."""
    configuration, checkpoint = RUNS[row]
    images, out = place.raw / NAME / "imagesTs", predictions(place, row)
    place.run(
        *("nnUNetv2_predict", "-i", str(images), "-o", str(out), "-d", "1", "-c", configuration, "-f", "0"),
        *("-tr", TRAINER, "-chk", checkpoint, "-device", device, "-npp", "0", "-nps", "0"),
        "--disable_tta",
        *(("--save_probabilities",) if row == TEACHER else ()),
        log=f"predict_{out.name}",
    )


def predictions(place: Place, row: str) -> Path:
    """Folder of the predictions that a row of the table comes from."""
    return place.folder / "predictions" / row.replace(" ", "_").lower()


def score(place: Place, settings: Settings) -> Scores:
    """Dice per row, held-out case and organ."""
    truth = {case: read_nifti(place.raw / NAME / "labelsTs" / f"{case}.nii.gz") for case in settings.cases("held_out")}
    return {
        row: {
            case: {
                organ: dice(read_nifti(predictions(place, row) / f"{case}.nii.gz") == label, labels == label)
                for organ, label in ORGANS.items()
            }
            for case, labels in truth.items()
        }
        for row in RUNS
    }


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two masks of which at least one is not empty."""
    return 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())


def table(scores: Scores) -> str:
    """Mean Dice per row and organ, and on how many cases a row beats the first one."""
    head = "".join(f"{name:>10}" for name in (*ORGANS, "mean"))
    lines = [f"{'Dice on held-out phantoms':<28}{head}   better on"]
    first = next(iter(scores))
    for row, cases in scores.items():
        values = np.array([[organs[organ] for organ in ORGANS] for organs in cases.values()])
        numbers = (*values.mean(0), values.mean())
        better = sum(_mean(organs) > _mean(scores[first][case]) for case, organs in cases.items())
        note = "" if row == first else f"{better:>6} of {len(cases)}"
        lines.append(f"{row:<28}" + "".join(f"{number:>10.3f}" for number in numbers) + note)
    return "\n".join(lines)


def waited(place: Place) -> str:
    """What the training says if the unlabeled phantoms did not count at its end."""
    from nnunet_semisam.readiness import NOT_COUNTED  # with torch, which nothing before needs in this process

    lines = (place.logs / f"train_{SEMISAM}.txt").read_text(errors="replace").splitlines()
    return "".join(f"\n{line}\n" for line in lines if NOT_COUNTED in line)


def draw(place: Place, settings: Settings, scores: Scores) -> None:
    """Writes `demo.png` with the first two held-out cases."""
    from nnunet_semisam.demo.picture import Sources, draw_picture

    runs = [place.results / NAME / f"{TRAINER}__nnUNetPlans__{name}" / "fold_0" for name in (SUPERVISED, SEMISAM)]
    sources = Sources(place.raw / NAME, tuple(predictions(place, row) for row in RUNS), tuple(runs))
    file = place.folder / "demo.png"
    draw_picture(sources, scores, file, cases=settings.cases("held_out")[:2])
    print(f"      {file}", flush=True)


class _Steps:
    """Headlines with a number and the time that a step took."""

    def __init__(self, count: int) -> None:
        self.count, self.number, self.started = count, 0, time.monotonic()
        self.step_started = self.started

    def begin(self, title: str) -> None:
        self._close()
        self.number, self.step_started = self.number + 1, time.monotonic()
        print(f"[{self.number}/{self.count}] {title}", flush=True)

    def end(self) -> None:
        self._close()
        print(f"finished in {_duration(time.monotonic() - self.started)}", flush=True)

    def _close(self) -> None:
        if self.number:
            print(f"      {_duration(time.monotonic() - self.step_started)}", flush=True)


def _duration(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s" if seconds >= 60 else f"{seconds:.0f} s"


def _mean(organs: dict[str, float]) -> float:
    return sum(organs.values()) / len(organs)
