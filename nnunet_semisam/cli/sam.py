"""`nnUNetv2_semisam_sam`: checkpoints of generalists (what there is, bring one), and how good a generalist is here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nnunet_semisam.cli import probe

if TYPE_CHECKING:
    from nnunet_semisam.sam.registry import Checkpoint

UNKNOWN = "unknown"


def describe(checkpoint: Checkpoint) -> str:
    """Everything that is known about a checkpoint, and whether it is there."""
    from nnunet_semisam.paths import checkpoint_folder
    from nnunet_semisam.sam import list_backends

    place = checkpoint_folder() / checkpoint.file
    served = checkpoint.backend in list_backends()
    backend = f"sam.backend {checkpoint.backend}" if served else f"no backend of this version ({checkpoint.backend})"
    size = UNKNOWN if checkpoint.size is None else f"{checkpoint.size} bytes ({checkpoint.size / 1e6:.0f} MB)"
    there = place.is_file()
    if there and checkpoint.size not in (None, place.stat().st_size):
        state = f"ANOTHER SIZE, {place.stat().st_size} bytes: remove it and fetch again"
    else:
        state = "there" if there else "not there"
    rows = {
        "loaded by": backend,
        "for": checkpoint.task,
        "licence of the weights": checkpoint.licence,
        "size": size,
        "sha256": checkpoint.sha256 or UNKNOWN,
        "from": checkpoint.url or f"{checkpoint.page} (by hand: it has no direct address)",
        "belongs to": f"{place} ({state})",
    }
    if checkpoint.note:
        rows["note"] = checkpoint.note
    return "\n".join([checkpoint.name, *(f"  {key}: {value}" for key, value in rows.items())])


def list_checkpoints() -> int:
    """Prints all known checkpoints."""
    from nnunet_semisam.paths import VARIABLE, checkpoint_folder
    from nnunet_semisam.sam.registry import CHECKPOINTS

    print(f"folder of checkpoints: {checkpoint_folder()} (variable {VARIABLE})\n")
    print("\n\n".join(describe(checkpoint) for checkpoint in CHECKPOINTS))
    print("\nThe backend `embedded` needs no file: its weights ship with the package (Apache-2.0).")
    return 0


def fetch_checkpoint(name: str, url: str | None = None, sha256: str | None = None) -> int:
    """Brings a known checkpoint into the folder; prints its licence before, and what vouches for it after.

    Raises:
        ValueError: unknown name.
        FetchError: it could not be brought; the message says which file to bring by hand, and where to.
    """
    from nnunet_semisam.paths import checkpoint_folder, sha256_of
    from nnunet_semisam.sam import list_backends
    from nnunet_semisam.sam.fetch import Download, FetchError, fetch
    from nnunet_semisam.sam.registry import find_known

    known = find_known(name)
    target = checkpoint_folder() / known.file
    size = known.size if sha256 in (None, known.sha256) else None
    expected = sha256 or known.sha256
    print(f"{known.name}: licence of the weights {known.licence}, from {known.page}")
    if known.note:
        print(f"note: {known.note}")
    if target.is_file():
        found = sha256_of(target)
        if expected not in (None, found):
            raise FetchError(f"{target} is there, but its sha256 is {found}, expected {expected}: remove it first")
        print(f"{target} is there already; {_vouched(found, expected)}")
        return 0
    address = url or known.url
    try:
        if address is None:
            raise FetchError(f"{known.name} has no direct address; its authors offer it at {known.page}")
        found = fetch(Download(address, target, size, expected))
    except FetchError as error:
        raise FetchError(
            f"{error}\nTo bring it by hand, put this file\n  from: {known.url or address or known.page}\n"
            f"  size: {UNKNOWN if size is None else f'{size} bytes'}\n  sha256: {expected or UNKNOWN}\n  to: {target}"
        ) from error
    print(f"{target}: {_vouched(found, expected)}")
    if known.backend in list_backends():
        print(f"use it with: nnUNetv2_semisam_plan -d ID --sam {known.backend} --set sam.checkpoint={known.file}")
    else:
        print("no backend of this version loads it: a SAM of your own is one file (docs/extending.md)")
    return 0


def _vouched(found: str, expected: str | None) -> str:
    if expected is None:
        return f"its sha256 is {found}; no sum is known to compare with, so nothing vouches for this file"
    return f"sha256 {found}, as expected"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    args = _parser().parse_args(argv)
    try:
        if args.command == "list":
            return list_checkpoints()
        if args.command == "probe":
            return probe.probe(args)
        return fetch_checkpoint(args.name, args.url, args.sha256)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nnUNetv2_semisam_sam",
        description="Generalists (SAM and its relatives): known checkpoints, downloads with a check, and a test on the "
        "labeled cases of a data set.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="known checkpoints: who loads them, licence, size, sha256, where they belong")
    fetch = commands.add_parser("fetch", help="download one into the folder of checkpoints and check it")
    fetch.add_argument("name", metavar="NAME", help="as in the list")
    fetch.add_argument("--url", help="another address of the same file, e.g. a mirror of your own")
    fetch.add_argument("--sha256", type=_sum, help="what to check instead of the known sum")
    description = "Asks a generalist about the labeled training cases of a fold: how good are its answers, by class?"
    probe.add_arguments(
        commands.add_parser("probe", help="how good is it at the classes of a data set", description=description)
    )
    return parser


def _sum(text: str) -> str:
    if len(text) != 64 or set(text.lower()) - set("0123456789abcdef"):
        raise argparse.ArgumentTypeError(f"{text!r} is no sha256: 64 hexadecimal digits")
    return text.lower()


if __name__ == "__main__":
    sys.exit(main())
