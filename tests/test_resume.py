"""Continuing with a changed configuration or changed plans: told, refused where the run would be another one."""

import json
import os

import pytest
import torch
import toy_trainer
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import NAME, build, short

from nnunet_semisam.checkpoint import KEY
from nnunet_semisam.resume import OF_DATASET, OF_PLANS
from nnunet_semisam.trainer import SemiSAM, nnUNetTrainerSemiSAM


@pytest.fixture
def file(toy):  # noqa: F811
    return f"{trained().output_folder}/checkpoint_final.pth"


def resumed(file, monkeypatch, plans=lambda configuration: None, **section):
    """A trainer that has loaded the checkpoint, and the warnings that it logs, then and later."""
    original, lines = toy_trainer.plans, []

    def changed(patch_size):
        content = original(patch_size)
        plans(content["configurations"]["toy"])
        return content

    monkeypatch.setattr(toy_trainer, "plans", changed)

    def note(self, *words, **_):
        lines.extend(word for word in words[:1] if "WARNING" in str(word))

    monkeypatch.setattr(nnUNetTrainerSemiSAM, "print_to_log_file", note)
    built = build(nnUNetTrainerSemiSAM, short(**section), continue_training=True)
    built.load_checkpoint(file)
    return built, lines


def goes_on(built):
    """The training that wrote the checkpoint was finished."""
    built.num_epochs += 3
    built.disable_checkpointing = True  # the file stays where it is
    built.on_train_start()
    assert built.dataloader_unlabeled is not None


def test_nothing_changed_is_nothing_told(file, monkeypatch):
    built, lines = resumed(file, monkeypatch)
    goes_on(built)
    assert lines == []


def test_other_unlabeled_cases_than_before_are_told(file, monkeypatch):
    with open(record := f"{os.path.dirname(file)}/semisam_unlabeled.json") as text:
        before = json.load(text)
    with open(record, "w") as text:
        json.dump({**dict(list(before.items())[1:]), "z": "elsewhere"}, text)
    trust = torch.load(file, weights_only=False)[KEY]["trust"]
    finished, told = resumed(file, monkeypatch)
    finished.on_train_start()  # killed in the last validation: nothing is learned any more, the record stays
    finished.on_train_end()
    with open(record) as text:
        assert "z" in json.load(text) and finished.dataloader_unlabeled is None
    assert finished.sam_assisted is None and trust == torch.load(file, weights_only=False)[KEY]["trust"] != {}
    built, told = resumed(file, monkeypatch)
    built.num_epochs = 4
    monkeypatch.setattr(built, "print_to_log_file", lambda *words, **_: told.append(str(words[0])))
    built.on_train_start()
    (line,) = [line for line in told if "WARNING" in line]
    assert line.endswith(f"gone are z; new {next(iter(before))}")
    with open(record, "w"):
        pass  # a full disk when it was written
    built, _ = resumed(file.replace("final", "latest"), monkeypatch)
    built.num_epochs = 4
    built.on_train_start()
    with open(record) as text:
        assert json.load(text) == before


def test_a_case_whose_label_was_learned_from_is_not_unlabeled_afterwards(file, monkeypatch, tmp_path):
    splits = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    (split,) = json.loads(splits.read_text())
    split = {"train": ["l0"], "unlabeled": [*split["unlabeled"], "l1"], "val": split["val"]}
    splits.write_text(json.dumps([split]))
    built, _ = resumed(file, monkeypatch)
    built.num_epochs = 4
    with pytest.raises(ValueError, match="have learned from the labels of l1.*splits_final.json"):
        built.on_train_start()
    assert os.path.isfile(file)  # the finished model stays where a start is refused
    built, told = resumed(file, monkeypatch, resume_changed=True, num_epochs=2)
    monkeypatch.setattr(built, "print_to_log_file", lambda *words, **_: told.append(str(words[0])))
    built.on_train_start()
    assert any("learned from the labels of l1" in line for line in told)
    with open(f"{os.path.dirname(file)}/semisam_unlabeled.json") as text:
        assert sorted(json.load(text)) == split["unlabeled"][:-1]  # whose labels the weights have not seen
    built.run_training()
    assert torch.load(file, weights_only=False)[KEY]["labels_seen"] == ["l0", "l1"]
    built, told = resumed(file, monkeypatch, resume_changed=True, num_epochs=3)
    monkeypatch.setattr(built, "print_to_log_file", lambda *words, **_: told.append(str(words[0])))
    built.on_train_start()
    assert not any("not those of before" in line for line in told)


@pytest.mark.parametrize("without", ["semisam", "labels_seen"])
def test_who_does_not_know_what_was_learned_from_does_not_claim_it_later(file, monkeypatch, without):
    """Checkpoints of nnU-Net and of older versions, continued."""
    content = torch.load(file, weights_only=False)
    del (content if without == "semisam" else content["semisam"])[without]
    torch.save(content, file)
    built, _ = resumed(file, monkeypatch, num_epochs=2)
    built.run_training()
    assert torch.load(file, weights_only=False)[KEY]["labels_seen"] is None


def test_a_finished_training_that_became_longer_goes_on_where_it_was_killed(file, monkeypatch):
    """nnU-Net prefers a final checkpoint to a later one."""
    built, _ = resumed(file, monkeypatch, num_epochs=4)
    built.on_train_start()
    assert not os.path.exists(file) and os.path.isfile(latest := file.replace("final", "latest"))
    assert torch.load(latest, weights_only=False)["current_epoch"] == 1
    built, _ = resumed(latest, monkeypatch, num_epochs=1)
    built.on_train_start()
    built.on_train_end()
    assert os.path.isfile(file) and not os.path.exists(latest)
    resumed(file, monkeypatch, num_epochs=1)[0].on_train_start()
    assert os.path.isfile(file)  # nothing is left to do
    built, _ = resumed(file, monkeypatch, num_epochs=2)
    built.disable_checkpointing = True  # nothing would be written in the place of what nnU-Net removes at the end
    built.run_training()
    assert os.path.isfile(file)


def test_a_trainer_that_changes_its_network_is_no_other_network(toy, monkeypatch):  # noqa: F811
    """nnU-Net's batch norm trainer writes into the plans that it holds, when it builds the network."""

    class BatchNorm(SemiSAM, nnUNetTrainerBN):
        pass

    built = build(BatchNorm, short())
    built.run_training()
    file = f"{built.output_folder}/checkpoint_final.pth"
    built.load_checkpoint(file)  # as --val --val_best
    build(BatchNorm, short(), continue_training=True).load_checkpoint(file)


@pytest.mark.parametrize("section", [{"num_epochs": 2}, {"seed": 8}, {"max_bad_steps": 5}, {"skip_bad": True}], ids=str)
def test_harmless_changes_are_told_and_go_on(file, monkeypatch, section):
    built, (line,) = resumed(file, monkeypatch, **section)
    assert next(iter(section)) in line
    goes_on(built)


@pytest.mark.parametrize(
    "section",
    [
        {"ema_decay": 0.5},
        {"terms": {"sam": {"weight": 0.3}}},
        {"method": "fixmatch"},
        {"sam": None},
        {"unlabeled_batch_size": 1},
        {"allow_unlabeled_val": True},
    ],
    ids=str,
)
def test_changes_that_make_another_run_are_refused_when_training_starts(file, monkeypatch, section):
    built, (line,) = resumed(file, monkeypatch, **section)
    (key,) = section
    assert f"{key} was" in line or f"{key}.sam.weight was" in line
    with pytest.raises(ValueError, match=f"{key}.*resume_changed"):
        built.on_train_start()


@pytest.mark.parametrize("section", [{"loss": "mse"}, {"view": "nnunet"}], ids=str)
def test_arguments_of_the_method_are_compared_with_their_defaults(file, monkeypatch, section):
    built, _ = resumed(file, monkeypatch, method_args=section)
    (key,) = section
    with pytest.raises(ValueError, match=f"method_args.{key} was '(dice|device)', is '{section[key]}'"):
        built.on_train_start()


def test_keys_that_an_older_version_did_not_write_had_their_defaults(file, monkeypatch):
    checkpoint = torch.load(file, weights_only=False)
    for key in ("labeled_as_unlabeled", "collapse_guard"):
        del checkpoint[KEY]["configuration"][key]
    del checkpoint[KEY]["configuration"]["sam"]["tune"]
    for term in checkpoint[KEY]["configuration"]["terms"].values():
        del term["delay"], term["every"]
    torch.save(checkpoint, file)
    built, lines = resumed(file, monkeypatch)
    goes_on(built)
    assert lines == []
    built, _ = resumed(file, monkeypatch, labeled_as_unlabeled=True)
    with pytest.raises(ValueError, match="labeled_as_unlabeled was False, is True"):
        built.on_train_start()


def test_a_run_from_before_remap_goes_on_without_it_only(file, monkeypatch):
    """Its checkpoint says what the section said, not all that it meant."""
    checkpoint = torch.load(file, weights_only=False)
    assert checkpoint[KEY]["configuration"]["method_args"]["perturbation"]["cutout"] == 0.25  # written today
    checkpoint[KEY]["configuration"]["method_args"] = {}
    torch.save(checkpoint, file)
    built, _ = resumed(file, monkeypatch)
    with pytest.raises(ValueError, match="perturbation.remap was 0.0, is 1.0"):
        built.on_train_start()
    built, lines = resumed(file, monkeypatch, method_args={"perturbation": {"remap": 0}})
    goes_on(built)
    assert lines == []


def test_a_default_that_is_spelled_out_is_no_change(file, monkeypatch):
    built, lines = resumed(file, monkeypatch, method_args={"perturbation": {"remap": 1, "cutout": 0.25}})
    goes_on(built)
    assert lines == []


def test_a_term_that_counts_nowhere_is_not_compared(file, monkeypatch):
    checkpoint = torch.load(file, weights_only=False)
    checkpoint[KEY]["configuration"]["sam"] = None
    checkpoint[KEY]["configuration"]["terms"]["consistency"] |= {"weight": 2.0}  # its default without SAM
    checkpoint[KEY]["configuration"]["terms"]["sam"] |= {"weight": 0.5, "schedule": "sigmoid_rise_and_fall"}
    torch.save(checkpoint, file)
    built, lines = resumed(file, monkeypatch, sam=None)
    goes_on(built)
    assert lines == []
    built, _ = resumed(file, monkeypatch)
    with pytest.raises(ValueError, match="terms.sam was not set, is"):
        built.on_train_start()


def edit(**values):
    return lambda configuration: configuration.update(values)


@pytest.mark.parametrize(
    "plans, word",
    [
        (edit(patch_size=[16, 16, 24]), "patch_size was [16, 16, 16], is [16, 16, 24]"),
        (edit(batch_size=3), "batch_size was 2, is 3"),
        (edit(spacing=[1.0, 1.0, 2.0]), "spacing was [1.0, 1.0, 1.0], is [1.0, 1.0, 2.0]"),
        (edit(normalization_schemes=["NoNormalization"]), "normalization_schemes"),
        (edit(batch_dice=True), "batch_dice was False, is True"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_changed_plans_are_told_and_refused(file, monkeypatch, plans, word):
    built, (line,) = resumed(file, monkeypatch, plans)
    assert line.startswith("WARNING: plans changed") and word in line
    with pytest.raises(ValueError, match="another one.*configuration name"):
        built.on_train_start()


def test_changed_plans_go_on_when_told_so(file, monkeypatch):
    built, lines = resumed(file, monkeypatch, edit(batch_size=3), resume_changed=True, ema_decay=0.5)
    assert len(lines) == 2
    goes_on(built)
    assert built.batch_size == 3


def test_another_architecture_is_refused_before_the_weights_are_loaded(file, monkeypatch):
    def wider(configuration):
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 12]

    with pytest.raises(
        ValueError, match=r"another network: architecture.arch_kwargs.features_per_stage was \[4, 8, 8\]"
    ):
        resumed(file, monkeypatch, wider)


def test_other_labels_are_refused(file):
    labels = {"background": 0, "shell": 1, "ball": 2}
    built = build(nnUNetTrainerSemiSAM, short(), labels=labels, continue_training=True)
    with pytest.raises(ValueError, match="labels.ball was 1, is 2"):
        built.load_checkpoint(file)


def test_validation_does_not_mind_another_section(file, monkeypatch):
    built, _ = resumed(file, monkeypatch, ema_decay=0.5)
    assert built.iteration == 3


def test_keys_that_older_versions_did_not_write_are_no_change(file, monkeypatch, tmp_path):
    checkpoint = torch.load(file, weights_only=False)
    for key in ("max_bad_steps", "collapse_guard"):
        checkpoint[KEY]["configuration"].pop(key)
    checkpoint[KEY].pop("guard"), checkpoint[KEY].pop("collapse")
    torch.save(checkpoint, tmp_path / "old.pth")
    built, _ = resumed(str(tmp_path / "old.pth"), monkeypatch)
    goes_on(built)


OTHER = {
    "transpose_forward": [2, 1, 0], "image_reader_writer": "NibabelIO", "modality": {"0": "CT"},
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}}, "labels": {"background": 0, "a": 1, "b": 2},
    "regions_class_order": [1], "channel_names": {"0": "CT"},
}  # fmt: skip


def test_whatever_else_decides_what_the_network_saw_is_compared(file, monkeypatch):
    for name in (*OF_PLANS, *OF_DATASET):
        checkpoint = torch.load(file, weights_only=False)
        checkpoint["init_args"]["plans" if name in OF_PLANS else "dataset_json"][name] = OTHER[name]
        torch.save(checkpoint, f"{file}.other")
        with pytest.raises(ValueError, match=name):  # those that make another network, at once
            resumed(f"{file}.other", monkeypatch)[0].on_train_start()
