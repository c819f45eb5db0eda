"""`nnUNetv2_semisam_plan`: writes a configuration with a `semisam` section into an nnU-Net plans file."""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_semisam.cli.plan_network import add_arguments, network_keys, refuse_keys_of_the_network, wanted

if TYPE_CHECKING:
    from nnunet_semisam.config import SemiSAMConfig

EPOCHS, ITERATIONS = 1000, 250  # nnU-Net's, where the section does not say
WORDS = {"true": True, "false": False, "none": None, "null": None}


def set_key(section: dict[str, Any], assignment: str) -> None:
    """Lays "terms.sam.weight=1.0" into the nested `section`.

    The value is read as JSON, else as a string; True, False and None mean what they mean in Python.
    """
    path, sign, text = assignment.partition("=")
    if not sign or not path:
        raise ValueError(f"--set {assignment!r}: write key=value, for instance terms.sam.weight=1.0")
    try:
        value = WORDS[text.lower()] if text.lower() in WORDS else json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, last = path.split(".")
    for key in parents:
        refuse_keys_of_nothing(section, key)
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[last] = value


def refuse_keys_of_nothing(section: Mapping[str, Any], key: str) -> None:
    """Raises ValueError where keys are to be set under `sam`, but SAM is off."""
    if key == "sam" and section.get(key, {}) is None:
        raise ValueError(
            "sam is off (none), so its keys mean nothing; leave them out, or name the generalist with --sam to switch "
            "it on"
        )


def write_configuration(
    plans_file: Path,
    *,
    base: str,
    name: str,
    section: Mapping[str, Any],
    network: Mapping[str, Any] | None = None,
    replace: bool = False,
) -> dict[str, Any]:
    """Writes or edits configuration `name`, which inherits from `base`, with a validated `semisam` section.

    An existing section, or that of the base, is kept and edited key by key, unless `replace`: nnU-Net inherits sections
    whole, so what is not written here would be lost. The file is replaced in one move.

    Args:
        network: `patch_size`, `features` and `batch_size` where they shall differ from those of `base`.

    Raises:
        ValueError: unknown configuration, key, method or backend, or a network that does not fit; nothing is written.
    """
    from nnunet_semisam.config import section_of

    plans = json.loads(plans_file.read_text())
    configurations = plans["configurations"]
    entry = _entry(configurations, base, name, plans_file)
    try:
        for part in (configurations[base], entry):
            section_of(part)
        merged = {} if replace else _section_before(configurations, entry)
        _forget_arguments_of_another_method(merged, section)
        _lay_over(merged, section)
        check_section(merged)
        check_classes(merged, plans, plans_file.with_name("dataset.json"))
        changed = network_keys(plans, base, name, network or {})
    except ValueError as error:
        raise ValueError(f"{error} (configuration {name} of {plans_file})") from error
    _write(plans_file, name, entry, {**changed, "semisam": merged})
    return merged


def _entry(configurations: Mapping[str, Any], base: str, name: str, plans_file: Path) -> dict[str, Any]:
    """The configuration as it is, or as it begins."""
    if base not in configurations:
        raise ValueError(f"{plans_file} has no configuration {base!r}; it has {', '.join(configurations)}")
    entry: dict[str, Any] = configurations.get(name, {} if name == base else {"inherits_from": base})
    if name != base and entry.get("inherits_from") != base:
        raise ValueError(f"{plans_file}: configuration {name!r} exists and does not inherit from {base!r}; use --name")
    return entry


def _section_before(configurations: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """The section that a configuration has, or inherits."""
    from nnunet_semisam.config import section_of

    for _ in configurations:  # a circle would have no end; nnU-Net tells of it
        if "semisam" in entry or entry.get("inherits_from") not in configurations:
            break
        entry = configurations[entry["inherits_from"]]
    section = section_of(entry)
    if not isinstance(section, Mapping):
        raise ValueError(f"semisam: the section is {section!r}; it must be a dictionary")
    return dict(copy.deepcopy(section))


def _forget_arguments_of_another_method(target: dict[str, Any], section: Mapping[str, Any]) -> None:
    from nnunet_semisam.config import SemiSAMConfig

    if section.get("method", was := target.get("method", SemiSAMConfig.method)) != was:
        target.pop("method_args", None)


def _write(plans_file: Path, name: str, entry: dict[str, Any], changed: Mapping[str, Any]) -> None:
    """Keys of one configuration into the file as it is now: since it was read, another command may have written.

    Args:
        entry: the configuration, if the file does not have it.
    """
    plans = json.loads(plans_file.read_text())
    plans["configurations"].setdefault(name, entry).update(changed)
    temporary = plans_file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(plans, indent=4))
    os.replace(temporary, plans_file)


def check_section(section: Mapping[str, Any]) -> None:
    """Raises ValueError for whatever `nnUNetTrainerSemiSAM` would refuse in a section."""
    from nnunet_semisam.config import SemiSAMConfig

    check_configuration(SemiSAMConfig().with_section(section))


def check_configuration(config: SemiSAMConfig) -> None:
    """Raises ValueError for an unknown method or backend, terms that it does not make, and wrong arguments."""
    from nnunet_semisam.methods import build_method
    from nnunet_semisam.ops.outputs import OutputSpace
    from nnunet_semisam.sam import check_backend

    method = build_method(config.method, config.method_args, OutputSpace(2))
    config.require_terms((*method.term_names, "sam"))
    config.refuse_late_terms((config.num_epochs or EPOCHS) * (config.num_iterations_per_epoch or ITERATIONS))
    if config.sam is not None:
        check_backend(config.sam)


def check_classes(section: Mapping[str, Any], plans: dict[str, Any], dataset_json: Path) -> None:
    """Raises ValueError for names in `sam.trust` that are no class of the data set."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.data.labeled import class_names
    from nnunet_semisam.trust import configured_trust

    config = SemiSAMConfig().with_section(section).sam
    if config is not None and isinstance(config.trust, Mapping) and dataset_json.is_file():
        labels = PlansManager(plans).get_label_manager(json.loads(dataset_json.read_text()))
        configured_trust(config, class_names(labels))


def missing_files(section: Mapping[str, Any]) -> list[str]:
    """Checkpoints of generalists that training will need and that this machine does not have, in words."""
    from nnunet_semisam.config import SemiSAMConfig
    from nnunet_semisam.sam import missing_checkpoints

    config = SemiSAMConfig().with_section(section)
    return missing_checkpoints(config.sam) if "sam" in config.active_terms() else []


def _lay_over(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Merges dictionaries key by key; `sam.trust` is replaced, or a misspelt class could never be taken out again.

    Raises:
        ValueError: SAM is off, and not named.
    """
    for key, value in values.items():
        if isinstance(value, Mapping) and "backend" not in value:
            refuse_keys_of_nothing(target, key)
        if key != "trust" and isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _lay_over(target[key], value)
        else:
            target[key] = value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-d", required=True, metavar="DATASET", help="data set id or name")
    parser.add_argument("-c", default="3d_fullres", help="configuration to inherit from (default: %(default)s)")
    parser.add_argument("-p", default="nnUNetPlans", help="plans identifier (default: %(default)s)")
    parser.add_argument("--name", help="name of the written configuration (default: <-c>_semisam)")
    parser.add_argument("--method", help="semi-supervised method: mean_teacher, fixmatch, ua_mt, or a dotted module")
    parser.add_argument(
        "--sam",
        help="embedded, segment_anything, medsam, sam_med3d, ensemble, or a dotted module; 'none' switches it off",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="any key of the section, e.g. num_epochs=100 sam.planes=4 seed=1",
    )
    parser.add_argument("--replace", action="store_true", help="forget what the section held before")
    add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = _parser().parse_args(argv)
    section: dict[str, Any] = {} if args.method is None else {"method": args.method}
    if args.sam is not None:
        section["sam"] = None if args.sam == "none" else {"backend": args.sam}
    name = args.name or f"{args.c}_semisam"
    try:
        plans_file = find_plans(args.d, args.p)
        refuse_keys_of_the_network(args.set)
        for assignment in args.set:
            set_key(section, assignment)
        network = wanted(args)
        written = write_configuration(
            plans_file, base=args.c, name=name, section=section, network=network, replace=args.replace
        )
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"nnUNetv2_semisam_plan: {error}") from error
    print(f"{plans_file}: configuration {name}\n{json.dumps(written, indent=2)}")
    if network:
        print(f"with {', '.join(f'{key} {value}' for key, value in network.items())}")
    if folds := trained_folds(plans_file, name):
        print(
            f"WARNING: trained already: {', '.join(folds)}. Another training with the same trainer and fold "
            "overwrites it; take another --name to keep both",
            file=sys.stderr,
        )
    for missing in missing_files(written):
        print(f"WARNING: on this machine training would stop: {missing}", file=sys.stderr)
    print(f"check it: nnUNetv2_semisam_check -d {args.d} -c {name} -p {args.p}")
    before, device = ("", "") if _has_cuda() else ("nnUNet_n_proc_DA=0 nnUNet_def_n_proc=1 ", " -device cpu")
    print(f"train with: {before}nnUNetv2_train {args.d} {name} FOLD -tr nnUNetTrainerSemiSAM -p {args.p}{device}")


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def trained_folds(plans_file: Path, name: str) -> list[str]:
    """Folders of folds that hold a checkpoint of the configuration, whatever the trainer."""
    from nnunetv2.paths import nnUNet_results

    if not nnUNet_results.is_set():
        return []
    results = Path(str(nnUNet_results)) / plans_file.parent.name
    found = {file.parent for file in results.glob(f"*__{plans_file.stem}__{name}/fold_*/checkpoint_*.pth")}
    return [f"{folder.parent.name}/{folder.name}" for folder in sorted(found)]


def find_plans(dataset: str, plans_name: str) -> Path:
    """The plans file of a data set.

    Args:
        dataset: number or name.

    Raises:
        ValueError: no such data set, or it was not planned under this plans name.
    """
    from nnunetv2.paths import nnUNet_preprocessed
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        name = str(maybe_convert_to_dataset_name(dataset))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    file = Path(str(nnUNet_preprocessed)) / name / f"{plans_name}.json"
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist; plan the data set first with nnUNetv2_plan_and_preprocess, or name "
            "another with -d, or other plans with -p"
        )
    return file


if __name__ == "__main__":
    main()
