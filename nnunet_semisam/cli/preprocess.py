"""`nnUNetv2_semisam_preprocess`: preprocesses the unlabeled images of a data set (training does it by itself, too)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    from nnunet_semisam.data.dataset import PlannedDataset, forget_dataset, preprocess_dataset, switched_on

    try:
        if args.forget:
            for identifier, count in forget_dataset(args.d, configurations=args.c, plans_name=args.p).items():
                print(f"{identifier}_unlabeled: {count} case(s) forgotten, until they are in imagesUn again")
            return 0
        planned = PlannedDataset.open(args.d, args.p)
        section_skips = switched_on(planned, args.c, "skip_bad")
        skipped: list[str] | None = [] if args.skip_bad or section_skips else None
        counts = preprocess_dataset(
            args.d, configurations=args.c, plans_name=args.p, num_processes=args.np, skipped=skipped
        )
        predicted = _predict(args, skipped) if args.f else {}
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for identifier, count in counts.items():
        none = "none of the images can be used" if skipped else "nothing to preprocess"
        more = "" if count else f": {none}, hidden or labeled cases serve as nnU-Net has made them"
        print(f"{identifier}_unlabeled: {count} unlabeled case(s) ready{more}")
    if skipped:
        print("\n  - ".join(["skipped (--skip-bad, or the key skip_bad):", *dict.fromkeys(skipped)]))
        if not section_skips:
            print("training stops at these unless the section has skip_bad=true (nnUNetv2_semisam_plan --set)")
    for folder, count in predicted.items():
        print(f"{folder}: {count} prediction(s) of the previous stage ready")
    return 0


def _predict(args: argparse.Namespace, skipped: list[str] | None) -> dict[str, int]:
    """Predicts unlabeled cases for the cascades in `-c`; number of cases by folder."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from nnunet_semisam.cascade import find_stage, predict_unlabeled
    from nnunet_semisam.data.dataset import PlannedDataset

    planned = PlannedDataset.open(args.d, args.p)
    chosen = planned.configurations(args.c)
    cascades = [name for name, manager in chosen.items() if manager.previous_stage_name is not None]
    if not cascades:
        raise ValueError("-f is for cascades, but no configuration of -c has a previous stage, like 3d_cascade_fullres")
    trainer, device = recursive_find_trainer_class_by_name(args.tr), torch.device(args.device)
    counts = {}
    for name in cascades:
        allow = bool(chosen[name].configuration.get("semisam", {}).get("allow_unlabeled_val", False))
        for fold in args.f:
            stage = find_stage(trainer, planned.plans_manager, planned.dataset_json, name, fold)
            made = predict_unlabeled(stage, allow_val=allow, device=device, num_processes=args.np, skipped=skipped)
            counts[str(stage.folder)] = len(made)
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_semisam_preprocess",
        description="Preprocesses the images of the folder imagesUn of a raw data set with the plans of the data set. "
        "Only what is missing or has changed is made. Training does the same at its start. With -f, the previous stage "
        "of cascades in -c also predicts the unlabeled cases.",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="default: 2d, 3d_fullres, 3d_lowres if planned")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: %(default)s)")
    parser.add_argument("-np", type=_positive, metavar="N", help="number of processes (default: that of nnU-Net)")
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out images that cannot be used, and list them at the end (this command only: training looks at "
        "the key skip_bad of the section)",
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help="imagesUn is empty for good: train without the cases that were preprocessed from there (nothing else is "
        "done; files are kept)",
    )
    cascade = parser.add_argument_group("cascades, like 3d_cascade_fullres in -c, whose previous stage is trained")
    cascade.add_argument("-f", nargs="+", type=_fold, metavar="FOLD", help="folds of the cascade: numbers or all")
    cascade.add_argument("-tr", default="nnUNetTrainerSemiSAM", metavar="TRAINER", help="default: %(default)s")
    cascade.add_argument(
        "-device", default="cuda", choices=("cuda", "cpu", "mps"), help="that predicts (default: %(default)s)"
    )
    return parser


def _fold(text: str) -> int | str:
    return text if text == "all" else int(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
