"""`nnUNetv2_semisam_preprocess`: preprocesses the unlabeled images of a data set (training does it by itself, too)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    from nnunet_semisam.data.dataset import preprocess_dataset

    skipped: list[str] | None = [] if args.skip_bad else None
    try:
        counts = preprocess_dataset(
            args.d, configurations=args.c, plans_name=args.p, num_processes=args.np, skipped=skipped
        )
    except (ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for identifier, count in counts.items():
        print(f"{identifier}_unlabeled: {count} unlabeled case(s) ready")
    if skipped:
        print("\n  - ".join(["skipped (--skip-bad):", *dict.fromkeys(skipped)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_semisam_preprocess",
        description="Preprocesses the images of the folder imagesUn of a raw data set with the plans of the data set. "
        "Only what is missing or has changed is made. Training does the same at its start.",
    )
    parser.add_argument("-d", required=True, metavar="ID", help="number or name of the data set")
    parser.add_argument("-c", nargs="+", metavar="CONFIGURATION", help="default: 2d, 3d_fullres, 3d_lowres if planned")
    parser.add_argument("-p", default="nnUNetPlans", metavar="PLANS", help="name of the plans (default: %(default)s)")
    parser.add_argument("-np", type=_positive, metavar="N", help="number of processes (default: that of nnU-Net)")
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out images that cannot be used, and list them at the end"
    )
    return parser


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
