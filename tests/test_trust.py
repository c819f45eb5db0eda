"""Trust in SAM by class: tested on the labeled training cases, kept over a resume, blind to all other labels."""

import json
import types

import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from stub_sam import StubSam
from test_checkpoint import killed_in_second_epoch
from test_train_step import toy, trained  # noqa: F401 (a fixture)
from toy_trainer import LABELED, NAME, REGIONS, UNLABELED, VAL, build, locations, save_case, short, weights

from nnunet_semisam import trust as module
from nnunet_semisam.checkpoint import KEY
from nnunet_semisam.config import SamConfig
from nnunet_semisam.data.labeled import head_names
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.trainer import nnUNetTrainerSemiSAM
from nnunet_semisam.types import LabeledCase, SamPrediction


@pytest.fixture(autouse=True)
def few_patches(monkeypatch):
    monkeypatch.setattr(module, "PATCHES_PER_CLASS", 2)


class OneClassSam(StubSam):
    """Gives back the mask prompt of class 2; says nothing about class 1."""

    def decode(self, embedding, prompts):
        self.calls += 1
        known = (prompts.head == 2).float().view(-1, *[1] * (embedding.ndim - 2))
        return SamPrediction(prompts.mask_logits * known - 3 * (1 - known), torch.full((len(prompts),), 0.9))


def section(trust="auto", **more):
    return short(sam={"min_voxels": 1, "min_agreement": 0.0, "trust": trust}, **more)


def use(monkeypatch, sam):
    monkeypatch.setattr("nnunet_semisam.trainer.build_backend", lambda config, device, spacing: sam)
    return sam


def log_of(trainer):
    with open(trainer.log_file) as file:
        return file.read()


def saved(trainer):
    with open(f"{trainer.output_folder}/semisam_trust.json") as file:
        return json.load(file)


def test_what_gets_worse_by_sam_is_not_trusted_and_not_prompted(toy, monkeypatch):  # noqa: F811
    sam, heads = use(monkeypatch, OneClassSam()), []
    decode = sam.decode
    trainer = build(nnUNetTrainerSemiSAM, section())
    settle = module.settle_trust

    def settled(*args):
        found = settle(*args)
        sam.decode = lambda embedding, prompts: heads.extend(prompts.head.tolist()) or decode(embedding, prompts)
        return found

    monkeypatch.setattr("nnunet_semisam.trainer.settle_trust", settled)
    trainer.run_training()
    assert trainer.trust == {"ball": 0.0, "shell": 1.0} == saved(trainer)["trust"]
    assert set(heads) <= {2}
    test = saved(trainer)["test"]
    assert [row["name"] for row in test] == ["ball", "shell"] and test[0]["answer"] == 0 and test[1]["gain"] >= 0
    assert "| ball | corrupted |" in log_of(trainer) and "ball: do not trust it" in log_of(trainer)


def test_without_any_trust_sam_is_not_asked_and_a_warning_says_so(toy, monkeypatch):  # noqa: F811
    for trust in ("auto", {"ball": 0, "shell": 0}):
        sam = use(monkeypatch, OneClassSam())
        sam.decode = lambda embedding, prompts: SamPrediction(-prompts.mask_logits, torch.ones(len(prompts)))
        trainer = build(nnUNetTrainerSemiSAM, section(trust))
        asked = []
        settle = module.settle_trust

        def settled(*args, settle=settle, sam=sam, asked=asked):
            found = settle(*args)
            sam.embed = sam.decode = lambda *given: asked.append(given)
            return found

        monkeypatch.setattr("nnunet_semisam.trainer.settle_trust", settled)
        trainer.run_training()
        monkeypatch.setattr("nnunet_semisam.trainer.settle_trust", settle)
        assert trainer.trust == {"ball": 0, "shell": 0} and asked == []
        assert "WARNING: semisam: SAM is trusted with no class" in log_of(trainer)
        assert "loss/sam" not in trainer.curves.epochs and "loss/consistency" in trainer.curves.epochs
        assert "weight/sam" not in trainer.curves.epochs


def test_without_trust_and_other_terms_the_stock_step_runs(toy, monkeypatch):  # noqa: F811
    use(monkeypatch, OneClassSam())
    settings = section({"ball": 0, "shell": 0})
    trainer = build(nnUNetTrainerSemiSAM, settings | {"terms": {"consistency": {"weight": 0}}})
    monkeypatch.setattr(trainer, "semi_supervised_step", lambda *given: pytest.fail("the unlabeled pass is wasted"))
    trainer.run_training()


def test_the_work_is_bounded(toy, monkeypatch):  # noqa: F811
    monkeypatch.setattr(module, "PATCHES_PER_CLASS", 100)
    monkeypatch.setattr(module, "PATCHES", 6)
    trainer = build(nnUNetTrainerSemiSAM, section())
    trainer.initialize()
    trainer.on_train_start()
    assert sum(row["patches"] for row in saved(trainer)["test"]) == toy.calls == 6


def test_a_test_draws_nothing_from_the_global_generators(toy, monkeypatch):  # noqa: F811
    """The same trust, given or found, makes the same student."""
    use(monkeypatch, OneClassSam())
    found = trained(section=section())
    given = trained(section=section({"ball": 0}))
    assert found.trust == given.trust == {"ball": 0.0, "shell": 1.0}
    assert torch.equal(weights(found), weights(given))
    assert not torch.equal(weights(found), weights(trained(section=section(None))))


def test_a_training_begun_anew_does_not_keep_the_test_of_another_one(toy, monkeypatch):  # noqa: F811
    use(monkeypatch, OneClassSam())
    assert saved(trained(section=section()))["test"]
    given = trained(section=section({"ball": 0}))
    assert saved(given) == {"trust": {"ball": 0.0, "shell": 1.0}, "test": []}
    with open(given.log_file) as log:
        assert "trust in SAM by class (as configured, not tested)" in log.read()


def test_a_resumed_run_keeps_the_verdict_without_another_test(toy, monkeypatch):  # noqa: F811
    use(monkeypatch, OneClassSam())
    whole = trained(section=section(num_epochs=2))
    killed = killed_in_second_epoch(monkeypatch, section(num_epochs=2))
    monkeypatch.setattr(module, "probe_classes", None)  # must not be called
    resumed = build(nnUNetTrainerSemiSAM, section(num_epochs=2), continue_training=True)
    resumed.load_checkpoint(f"{killed.output_folder}/checkpoint_latest.pth")
    resumed.run_training()
    assert resumed.trust == whole.trust == {"ball": 0.0, "shell": 1.0}
    assert torch.equal(weights(whole), weights(resumed))
    state = torch.load(f"{resumed.output_folder}/checkpoint_final.pth", weights_only=False)[KEY]
    assert state["trust"] == resumed.trust
    assert [row["name"] for row in saved(resumed)["test"]] == ["ball", "shell"]  # the reasons of the first start


def test_only_labels_of_training_cases_matter(toy, monkeypatch, tmp_path):  # noqa: F811
    sam = use(monkeypatch, StubSam())
    folder = tmp_path / "nnUNet_preprocessed" / NAME / "nnUNetPlans_toy"

    def tested():
        trainer = build(nnUNetTrainerSemiSAM, section())
        trainer.initialize()
        trainer.on_train_start()
        rows = [{k: v for k, v in row.items() if k != "milliseconds"} for row in saved(trainer)["test"]]
        return trainer.trust, rows

    def poison(names):
        random = np.random.RandomState(0)
        for name in names:
            image, seg, _, _ = nnUNetDatasetBlosc2(str(folder), [name]).load_case(name)
            image, noise = image[:], random.randint(0, 3, seg.shape).astype(np.int8)
            for ending in (".b2nd", "_seg.b2nd", ".pkl"):
                (folder / f"{name}{ending}").unlink()
            save_case(image, noise, {"class_locations": locations(noise)}, str(folder / name))

    clean = tested()
    poison((*UNLABELED, *VAL))
    assert tested() == clean and sam.calls
    poison(LABELED)
    assert tested() != clean


def test_no_label_file_of_another_case_is_opened(toy, monkeypatch):  # noqa: F811
    opened = []
    load = module.LabeledCases
    monkeypatch.setattr(module, "LabeledCases", lambda f, cases, m: opened.extend(cases) or load(f, cases, m))
    trainer = build(nnUNetTrainerSemiSAM, section())
    trainer.initialize()
    trainer.on_train_start()
    assert tuple(opened) == LABELED


@pytest.mark.parametrize("labels", [None, REGIONS], ids=["labels", "regions"])
def test_trust_may_be_given_by_class(toy, labels, monkeypatch):  # noqa: F811
    asked = []
    ask = SamLabeler.__call__
    monkeypatch.setattr(SamLabeler, "__call__", lambda self, *args: asked.append(self.trust) or ask(self, *args))
    trainer = trained(section=section({"ball": 0.5}), labels=labels)
    other = "shell" if labels is None else "whole"
    assert trainer.trust == {"ball": 0.5, other: 1.0}
    heads = {None: (1.0, 0.5, 1.0)}.get(labels if labels is None else 0, (1.0, 0.5))
    assert set(asked) == {heads} and saved(trainer)["test"] == []
    assert trainer.sam_assisted is None  # given back for the last validation


def test_an_unknown_class_is_told_the_known_ones(toy):  # noqa: F811
    with pytest.raises(ValueError, match="unknown class 'heart' in sam.trust; known are ball, shell"):
        trained(section=section({"heart": 1}))


@pytest.mark.parametrize("value", ["none", 1, [1, 0], {"ball": 2}, {"ball": None}, True])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="trust"):
        SamConfig(trust=value)


def test_heads_have_the_names_of_dataset_json():
    labels = {"background": 0, "b": 2, "a": 1, "ignore": 3}
    assert head_names(LabelManager(labels, None)) == ["background", "a", "b"]
    regions = {"whole": [1, 2], "background": 0, "core": 1, "ignore": 3}
    assert head_names(LabelManager(regions, [2, 1])) == ["whole", "core"]


def test_trust_is_settled_before_tuning_which_is_left_out_where_nobody_is_trusted(toy, monkeypatch):  # noqa: F811
    """Asked about cases that it has learned, a tuned generalist would pass any test."""
    order = []
    settle = module.settle_trust
    monkeypatch.setattr("nnunet_semisam.trainer.settle_trust", lambda *a: order.append("trust") or settle(*a))
    monkeypatch.setattr("nnunet_semisam.tuning.on_first_rank", lambda *a: order.append("tune"))

    class TunableStub(StubSam):  # of its own: Python 3.12 remembers that a class can be tuned
        def tuning_task(self, cases, **asked):
            return types.SimpleNamespace(module=None)

    for trust in (None, {"ball": 0, "shell": 0}):
        use(monkeypatch, TunableStub())
        configuration = section(trust)
        configuration["sam"]["tune"] = 3
        build(nnUNetTrainerSemiSAM, configuration).on_train_start()
    assert order == ["trust", "tune", "trust"]


def test_a_resumed_run_takes_over_what_was_tested_not_what_was_configured():
    resumed = {"trust": {"ball": 1.0}, "configuration": {"sam": {"trust": "auto"}}}
    assert module.tested_trust(resumed) == {"ball": 1.0}
    assert module.tested_trust(resumed | {"configuration": {"sam": {"trust": None}}}) is None
    assert module.tested_trust(resumed | {"configuration": {"sam": None}}) is None
    assert module.tested_trust(None) is None


def test_an_object_with_labels_in_a_few_planes_is_no_test_of_sam(toy, monkeypatch):  # noqa: F811
    truth = torch.zeros(3, 12, 12, 12, dtype=torch.bool)
    truth[1, 3:9, 3:9, 3:9] = True
    whole = LabeledCase("whole", torch.zeros(1, 12, 12, 12), truth, torch.ones(12, 12, 12, dtype=torch.bool))
    valid = torch.zeros_like(whole.valid)
    valid[4], valid[:, 6] = True, True
    torn = LabeledCase("torn", whole.image, truth & valid, valid)
    assert module.mostly_labeled(whole, 1) and not module.mostly_labeled(torn, 1)
    padded = torch.zeros_like(valid)  # a patch that is larger than its case
    padded[2:10, 2:10, 2:10] = True
    assert module.mostly_labeled(LabeledCase("padded", whole.image, truth & padded, padded), 1)

    sam = use(monkeypatch, OneClassSam())
    monkeypatch.setattr(module, "LabeledCases", lambda *args: [torn])
    trainer = build(nnUNetTrainerSemiSAM, section())
    trainer.on_train_start()
    assert trainer.trust == {"ball": 1.0, "shell": 1.0} and sam.calls == 0
    assert "shows enough of ball, shell; SAM is trusted with it untested" in log_of(trainer)


def test_few_cases_are_asked_about_with_prompts_of_the_promised_dice(toy, monkeypatch):  # noqa: F811
    names, made, asked = [], [], []
    load, spoil, ask = module.LabeledCases, module.corrupted_prob, module.Prober.ask

    def spoiled(*args, wanted, number):
        made.append((args[1], wanted, number))
        return spoil(*args, wanted=wanted, number=number)

    def answered(self, *args, iteration):
        asked.append(iteration)
        return ask(self, *args, iteration=iteration)

    monkeypatch.setattr(module, "LabeledCases", lambda where, few, m: names.extend(few) or load(where, LABELED, m))
    monkeypatch.setattr(module, "corrupted_prob", spoiled)
    monkeypatch.setattr(module.Prober, "ask", answered)
    trainer = build(nnUNetTrainerSemiSAM, section())
    trainer.initialize()
    many = [f"case{number:02d}" for number in range(36)]
    module.probe_classes(trainer.build_sam().labeler, trainer, many, head_names(trainer.label_manager))
    assert names == many[::3]
    assert {wanted for _, wanted, _ in made} == {0.75}
    for head in (1, 2):
        numbers = [number for of, _, number in made if of == head]
        assert numbers == list(range(len(numbers))) and len(numbers) > 1
    assert asked == [number for _, _, number in made]
