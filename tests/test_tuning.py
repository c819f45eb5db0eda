"""The generalist is tuned on the fold's labeled cases alone, once, and its file brings the same generalist back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from stub_sam import StubSam
from test_checkpoint import killed_in_second_epoch
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import (
    LABELED,
    LABELS,
    NAME,
    REGIONS,
    SAM_SECTION,
    UNLABELED,
    VAL,
    build,
    locations,
    save_case,
    short,
    weights,
)

from nnunet_semisam import tuning
from nnunet_semisam.sam.decoder_tuning import DecoderTask
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM
from nnunet_semisam.tuning import tune_generalist
from nnunet_semisam.types import SamPrediction

SECTION = short(sam=SAM_SECTION | {"tune": 3})


class TunableStub(StubSam):
    """Mixes image and mask prompt; what is tuned are the two shares."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(2, 1)
        for parameter, value in zip(self.mix.parameters(), (0.5, -0.2), strict=True):
            torch.nn.init.constant_(parameter, value)
        self.mix.requires_grad_(False)

    def answer(self, embedding, prompts):
        both = torch.stack([embedding[prompts.image, 0], prompts.mask_logits], -1)
        return SamPrediction(self.mix(both)[..., 0], torch.full((len(prompts),), 0.9))

    @torch.no_grad()
    def decode(self, embedding, prompts):
        self.calls += 1
        return self.answer(embedding, prompts)

    def tuning_task(self, cases, **asked):
        task = DecoderTask(self, self.mix, cases, **asked)
        task.learning_rate = 0.01
        return task


@pytest.fixture
def tunable(toy, monkeypatch):  # noqa: F811
    """A fresh stub for every training; returns those that were made."""
    made = []
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", lambda *_: made.append(TunableStub()) or made[-1])
    return made


def built(trainer):
    """SAM as a training has it when it starts."""
    assisted = trainer.build_sam()
    tune_generalist(trainer, assisted.labeler.backend)
    return assisted


def tuned(section=SECTION, **settings):
    """The shares after a tuning, without a training."""
    trainer = build(nnUNetTrainerSemiSAM, section, **settings)
    trainer.initialize()
    shares = torch.cat([p.flatten() for p in built(trainer).labeler.backend.mix.parameters()])
    return shares, trainer, Path(trainer.output_folder) / tuning.FILE


def test_a_long_tuning_says_how_far_it_is(tunable, monkeypatch):
    said, seconds = [], iter(range(0, 4000, 25))
    with monkeypatch.context() as patch:
        patch.setattr(tuning.time, "monotonic", lambda: float(next(seconds)))
        clock = tuning._Clock(said.append)
        for step in range(6):
            clock(step + 1, 6)
    assert said == ["semisam: tuning: step 3 of 6", "semisam: tuning: step 6 of 6"]
    monkeypatch.setattr(tuning, "EVERY", 0.0)
    monkeypatch.setattr(nnUNetTrainerSemiSAM, "print_to_log_file", lambda self, *words, **_: said.append(str(words[0])))
    _, trainer, _ = tuned()
    steps = trainer.semisam.sam.tune
    assert any(f": {steps} steps, and its answers" in line for line in said)
    assert f"semisam: tuning: step {steps} of {steps}" in said


def test_without_a_number_it_is_the_backends(tunable, monkeypatch):
    with_number, *_ = tuned()
    for steps, same in ((3, True), (2, False), (0, False)):
        monkeypatch.setattr(TunableStub, "tuning_steps", lambda self, cases, steps=steps: steps * cases // len(LABELED))
        shares, _, file = tuned(short(sam={key: value for key, value in SAM_SECTION.items() if key != "tune"}))
        assert torch.equal(shares, with_number) == same
        assert file.exists() == bool(steps)
        file.unlink(missing_ok=True)


def sparse(tmp_path, planes):
    """The labels of all labeled cases but those in so many planes become the ignore label."""
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"
    for name in LABELED:
        image, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        image, seg = image[:], seg[:]
        seg[:, planes:] = 3
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        save_case(image, seg, {"class_locations": locations(seg)}, str(folder / name))


@pytest.mark.parametrize("planes, tuned_at_all", [(20, True), (0, False)])
def test_by_default_nothing_to_tune_on_is_no_error(tunable, tmp_path, monkeypatch, planes, tuned_at_all):
    monkeypatch.setattr(TunableStub, "tuning_steps", lambda self, cases: 2 * cases)
    sparse(tmp_path, planes)
    section = short(sam={key: value for key, value in SAM_SECTION.items() if key != "tune"})
    _, trainer, file = tuned(section, labels={**LABELS, "ignore": 3})
    assert file.exists() == tuned_at_all
    with open(trainer.log_file) as log:
        assert ("the generalist is used as it is (semisam: sam.tune: no labeled case has" in log.read()) != tuned_at_all
    if not tuned_at_all:
        with pytest.raises(ValueError, match="no labeled case has an object"):
            tuned(labels={**LABELS, "ignore": 3})


def poison(tmp_path, names):
    """Every label of the named cases becomes noise."""
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"
    random = np.random.RandomState(0)
    for name in names:
        image, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
        image, noise = image[:], random.randint(0, 3, seg.shape).astype(np.int8)
        for ending in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}{ending}").unlink()
        save_case(image, noise, {"class_locations": locations(noise)}, str(folder / name))


def test_labels_of_unlabeled_and_validation_cases_do_not_matter_those_of_labeled_cases_do(tunable, tmp_path):
    clean, _, file = tuned()
    assert not torch.equal(clean, torch.tensor([0.5, 0.5, -0.2]))
    file.unlink()
    poison(tmp_path, [*UNLABELED, *VAL])
    same, _, file = tuned()
    assert torch.equal(clean, same)
    file.unlink()
    poison(tmp_path, LABELED[:1])
    assert not torch.equal(clean, tuned()[0])


def test_labels_of_other_cases_are_not_even_opened(tunable, monkeypatch):
    opened, load = [], nnUNetDatasetBlosc2.load_case
    monkeypatch.setattr(nnUNetDatasetBlosc2, "load_case", lambda self, name: opened.append(name) or load(self, name))
    tuned()
    assert set(opened) == set(LABELED)


def test_a_case_that_is_hidden_as_well_is_refused_before_it_is_read(tunable, tmp_path):
    splits = tmp_path / "nnUNet_preprocessed" / NAME / "splits_final.json"
    splits.write_text('[{"train": ["l0", "u0"], "unlabeled": ["u0"], "val": ["v0"]}]')
    with pytest.raises(ValueError, match='\'u0\' is in "train" and in "unlabeled"'):
        tuned()


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("patch_size", [(16, 16), (16, 16, 16)], ids=str)
def test_the_file_is_used_again_when_nothing_has_changed(tunable, monkeypatch, patch_size, labels):
    settings = {"patch_size": patch_size, "labels": labels}
    first, _, file = tuned(**settings)
    written = file.read_bytes()
    monkeypatch.setattr(tuning, "tune_and_report", None)
    assert torch.equal(first, tuned(**settings)[0])
    assert file.read_bytes() == written


CHANGES = {
    "steps": SECTION | {"sam": SAM_SECTION | {"tune": 4}},
    "prompts": SECTION | {"sam": SAM_SECTION | {"tune": 3, "prompts": ["mask"]}},
    "seed": SECTION | {"seed": 8},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_tunes_again(tunable, change):
    first, _, file = tuned()
    written = file.read_bytes()
    other = tuned(CHANGES[change])[0]
    assert file.read_bytes() != written
    assert change == "prompts" or not torch.equal(first, other)  # the stub looks at masks only
    assert torch.equal(first, tuned()[0])


def test_changed_weights_labels_and_damaged_files_tune_again(tunable, tmp_path, monkeypatch):
    runs, run = [], tuning.tune_and_report
    monkeypatch.setattr(tuning, "tune_and_report", lambda *a, **k: runs.append(1) or run(*a, **k))
    first, _, file = tuned()
    file.write_bytes(b"half a file")
    assert torch.equal(first, tuned()[0]) and len(runs) == 2
    original = TunableStub.__init__

    def other(self):
        original(self)
        self.mix.bias.fill_(0.1)

    with monkeypatch.context() as patch:
        patch.setattr(TunableStub, "__init__", other)
        tuned()
        assert len(runs) == 3
    assert torch.equal(first, tuned()[0]) and len(runs) == 4
    poison(tmp_path, LABELED)
    tuned()
    assert len(runs) == 5


def test_no_global_random_number_is_drawn(tunable, monkeypatch):
    trainer, stub = build(nnUNetTrainerSemiSAM, SECTION), TunableStub()
    trainer.initialize()
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", lambda *_: stub)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    built(trainer)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == np.random.get_state()[2]


def test_resumed_equals_uninterrupted_and_does_not_tune_again(tunable, monkeypatch):
    section = SECTION | {"num_epochs": 2, "terms": {"sam": {"weight": 1.0, "schedule": "constant"}}}
    whole = trained(section=section)
    untuned = trained(section=section | {"sam": SAM_SECTION})
    assert not torch.equal(weights(whole), weights(untuned))
    (Path(whole.output_folder) / tuning.FILE).unlink()
    killed = killed_in_second_epoch(monkeypatch, section)
    monkeypatch.setattr(tuning, "tune_and_report", None)
    resumed = build(nnUNetTrainerSemiSAM, section, continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert torch.equal(weights(whole), weights(resumed))


def test_a_resumed_training_that_has_lost_its_generalist_says_that_it_tunes_again(tunable, monkeypatch, capsys):
    section = SECTION | {"num_epochs": 2, "terms": {"sam": {"weight": 1.0, "schedule": "constant"}}}
    killed = killed_in_second_epoch(monkeypatch, section)
    assert "tunes its generalist anew" not in capsys.readouterr().out
    (Path(killed.output_folder) / tuning.FILE).unlink()
    resumed = build(nnUNetTrainerSemiSAM, section, continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    resumed.on_train_start()
    assert "tunes its generalist anew" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [None, 0])
def test_tuning_can_be_off(tunable, steps):
    shares, _, file = tuned(short(sam=SAM_SECTION | {"tune": steps}))
    assert torch.equal(shares, torch.tensor([0.5, 0.5, -0.2])) and not file.exists()


def test_a_backend_that_cannot_be_tuned_is_used_as_it_is(toy, monkeypatch, capsys):  # noqa: F811
    trainer = build(nnUNetTrainerSemiSAM, SECTION)
    trainer.initialize()
    built(trainer)
    assert "cannot be tuned" in capsys.readouterr().out


def test_the_log_names_classes_and_the_case_that_was_kept_out(tunable, capsys):
    tuned()
    told = capsys.readouterr().out
    assert "without l1" in told and "ball: prompt 0.6 -> " in told and "shell: prompt 0.6 -> " in told
    capsys.readouterr()
    tuned(labels=REGIONS)
    assert "whole: prompt 0.6 -> " in capsys.readouterr().out


def test_nothing_is_written_without_checkpoints(tunable):
    trainer = build(nnUNetTrainerSemiSAM, SECTION)
    trainer.disable_checkpointing = True
    trainer.initialize()
    built(trainer)
    assert not (Path(trainer.output_folder) / tuning.FILE).exists()


def test_at_most_some_cases_are_held_in_memory(tunable, monkeypatch):
    monkeypatch.setattr(tuning, "MOST_CASES", 2)
    trainer = build(nnUNetTrainerSemiSAM, SECTION)
    trainer.dataset_class = nnUNetDatasetBlosc2
    monkeypatch.setattr(tuning, "read_split", lambda *_, **__: None)
    for listed in (["l0", "l1", "u0", "u1"], ["u1", "l0", "u0", "l1"]):  # fold all: as the file system has them
        monkeypatch.setattr(trainer, "do_split", lambda listed=listed: (listed, []))
        assert [case.name for case in tuning.labeled_cases(trainer)] == ["l0", "u0"]


def test_a_flipped_bit_in_the_file_is_noticed(tmp_path):
    file, state = str(tmp_path / "tuned.pt"), {"weight": torch.ones(4)}
    content = {"key": "k", "cases": ["a"], "sum": tuning.checksum(state), "state": state}
    torch.save(content, file)
    assert torch.equal(tuning._read(file, "k")["weight"], torch.ones(4))
    assert tuning._read(file, "another") is None
    torch.save(content | {"state": {"weight": torch.tensor([1, 1, 1, 1.5])}}, file)
    assert tuning._read(file, "k") is None
    torch.save({"key": "k"}, file)
    assert tuning._read(file, "k") is None
