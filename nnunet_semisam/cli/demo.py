"""`nnUNetv2_semisam_demo`: SemiSAM against plain nnU-Net on small synthetic images, in minutes and offline."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=f"{__doc__} It makes phantoms, plans, preprocesses, trains a supervised baseline and SemiSAM for "
        "the same short time, predicts held-out phantoms with nnUNetv2_predict, prints a table and writes demo.png. "
        "Your own nnU-Net folders are not touched."
    )
    parser.add_argument("folder", nargs="?", type=Path, help="an empty or new folder (default: a temporary one, kept)")
    parser.add_argument("--seed", type=int, default=0, help="of phantoms and training (default: %(default)s)")
    parser.add_argument("--epochs", type=int, help="length of both trainings (default: what takes a few minutes)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = _parser().parse_args(argv)
    if args.seed < 0 or (args.epochs is not None and args.epochs < 1):
        raise SystemExit("nnUNetv2_semisam_demo: --seed must be at least 0 and --epochs at least 1")
    folder = args.folder or Path(tempfile.mkdtemp(prefix="semisam_demo_"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SystemExit(f"nnUNetv2_semisam_demo: {folder} is not an empty folder; give a new one")
    from nnunet_semisam.demo.commands import CommandFailed
    from nnunet_semisam.demo.dataset import QUICK, Settings
    from nnunet_semisam.demo.run import run_demo

    settings = replace(QUICK if args.quick else Settings(), seed=args.seed)
    if args.epochs is not None:
        settings = replace(settings, epochs=args.epochs)
    print(f"folder: {folder.resolve()}", flush=True)
    try:
        run_demo(folder.resolve(), settings, device=args.device)
    except (CommandFailed, ImportError) as error:
        raise SystemExit(f"nnUNetv2_semisam_demo: {error}") from error


if __name__ == "__main__":
    main()
