"""Does the generalist mend a network's own mistakes, not only corrupted truths?

    python benchmarks/answers_to_teacher.py DATA SPLITS MODEL [--fold 0] [--cases 6] [--patches 3] [--times 1]

MODEL is a trained 3D model's folder (TRAINER__PLANS__CONFIGURATION), of a data set without regions, ignore label and
cascade. Its teacher predicts patches of the training's size around the foreground of `val` cases, and whole cases in
overlapping windows, and the embedded generalist is asked about both as by default: with the weights that ship, and with
those tuned in the training; with `--times` also about its own answer, again and again, as a training that believes it
does. Prints Markdown: Dice (mean over patches and the classes that they show) and volume (median over patches, against
the truth's) of teacher and answer by voxels of the training's spacing, and the answers' mean confidence.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import embedded_on_real
import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace, full_resolution
from nnunet_semisam.sam import build_backend
from nnunet_semisam.sam.embedded.noise import dice
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.tuning import FILE

Answer = tuple[float, float, float, float, float]  # Dice before and after, volume before and after, mean confidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("data", "splits", "model"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--fold", default="0")
    parser.add_argument("--cases", type=int, default=6)
    parser.add_argument("--patches", type=int, default=3)
    parser.add_argument("--times", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(1)
    teacher, rows = opened(args), {}
    asked = labelers(args.model / f"fold_{args.fold}" / FILE, teacher)
    for image, truth, predictions in patches(teacher, args):
        for source, prob in predictions.items():
            for weights, labeler in asked.items():
                for time, row in enumerate(answers(labeler, image, prob, truth, args.times), 1):
                    rows.setdefault((source, weights, time), []).append(row)
    report(rows)


def report(rows: dict[tuple[str, str, int], list[Answer]]) -> None:
    """Prints the table."""
    print("| teacher | generalist | time | patches | Dice, teacher | answer | volume, teacher | answer | confidence |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (source, weights, time), found in rows.items():
        dice_before, dice_after, _, _, confidence = np.mean(found, 0)
        before, after = np.median(found, 0)[2:4]
        numbers = " | ".join(f"{value:.3f}" for value in (dice_before, dice_after, before, after, confidence))
        print(f"| {source} | {weights} | {time} | {len(found)} | {numbers} |")


def answers(labeler: SamLabeler, image: Tensor, prob: Tensor, truth: Tensor, times: int) -> Iterator[Answer]:
    """What can be said of each answer, asked one after the other about the one before."""
    before = quality(prob, truth)
    for _ in range(times):
        pseudo = labeler(image, prob, 0)
        prob = pseudo.prob
        (dice_before, volume_before), (dice_after, volume_after) = before, quality(prob, truth)
        yield dice_before, dice_after, volume_before, volume_after, float(pseudo.confidence.mean())


def quality(prob: Tensor, truth: Tensor) -> tuple[float, float]:
    """Mean Dice of the classes in the truth (*S), and the foreground's volume against the truth's."""
    labels = prob.argmax(1)[0]
    found = [dice(labels == label, truth == label) for label in truth.unique().tolist() if label > 0]
    return float(np.mean(found)), float((labels > 0).sum() / (truth > 0).sum())


def opened(args: argparse.Namespace) -> nnUNetPredictor:
    """The teacher's weights in nnU-Net's predictor."""
    teacher = nnUNetPredictor(
        device=torch.device("cpu"), use_mirroring=False, perform_everything_on_device=False, allow_tqdm=False
    )
    teacher.initialize_from_trained_model_folder(str(args.model), (args.fold,), "checkpoint_final_teacher.pth")
    teacher.network.load_state_dict(teacher.list_of_parameters[0])
    teacher.network.eval()
    return teacher


def labelers(tuned: Path, teacher: nnUNetPredictor) -> dict[str, SamLabeler]:
    """By the generalist's weights."""
    made, outputs = {}, OutputSpace(teacher.label_manager.num_segmentation_heads)
    for name in ("as shipped", "tuned")[: 1 + tuned.is_file()]:
        backend = build_backend(SamConfig(), torch.device("cpu"), teacher.configuration_manager.spacing)
        if name == "tuned":
            state = torch.load(tuned, weights_only=True)["state"]
            backend.generalists[3].network.load_state_dict(state)
        made[name] = SamLabeler(backend, SamConfig(), outputs)
    return made


def preprocessed(teacher: nnUNetPredictor, data: Path, case: str) -> tuple[Tensor, Tensor]:
    """Image (C, *S) and labels (*S) of a case as nnU-Net prepares them for this model, no smaller than a patch."""
    ending = teacher.dataset_json["file_ending"]
    files = sorted(str(file) for file in (data / "imagesTr").glob(f"{case}_????{ending}"))
    preprocessor = teacher.configuration_manager.preprocessor_class(verbose=False)
    image, labels, _ = preprocessor.run_case(
        files, str(data / "labelsTr" / f"{case}{ending}"), teacher.plans_manager, teacher.configuration_manager,
        teacher.dataset_json,
    )  # fmt: skip
    size = teacher.configuration_manager.patch_size
    return pad_nd_image(torch.from_numpy(image).float(), size), pad_nd_image(torch.from_numpy(labels[0]), size)


@torch.no_grad()
def patches(teacher: nnUNetPredictor, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
    """Image (1, C, *S), truth (*S), and what the teacher says by the way it is asked (1, K, *S)."""
    rng, size = np.random.default_rng(0), teacher.configuration_manager.patch_size
    for case in embedded_on_real.cases_of(args.data, args.splits)[: args.cases]:
        image, labels = preprocessed(teacher, args.data, case)
        whole = teacher.predict_sliding_window_return_logits(image).float().cpu().softmax(0)
        places = (labels > 0).nonzero()
        for _ in range(args.patches):
            center = places[rng.integers(len(places))].tolist()
            room = [max(0, limit - side) for limit, side in zip(labels.shape, size, strict=True)]
            middle = [place - side // 2 for place, side in zip(center, size, strict=True)]
            corner = [min(max(low, 0), most) for low, most in zip(middle, room, strict=True)]
            window = tuple(slice(low, low + side) for low, side in zip(corner, size, strict=True))
            patch, truth, around = image[(slice(None), *window)][None], labels[window], whole[(slice(None), *window)]
            alone = full_resolution(teacher.network(patch)).float().softmax(1)
            yield patch, truth, {"the patch": alone, "overlapping windows": around[None]}


if __name__ == "__main__":
    main()
