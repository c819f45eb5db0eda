"""Judging a generalist: prompts of a wanted quality, the Dice of its answers where it was asked, and the verdict."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.base import SamBackend
from nnunet_semisam.sam.probe import Prober, Trial, corrupted_prob, patches_by_head, teacher_like, truth_prob
from nnunet_semisam.sam.verdict import markdown, sentence, summarize
from nnunet_semisam.types import LabeledCase, SamPrediction

CPU = torch.device("cpu")
LABELS, REGIONS = OutputSpace(3), OutputSpace(2, has_regions=True)


class Oracle(SamBackend):
    """Knows the truth, which it is shown as the image: answers with the image where it is near `value`."""

    ndims = (2, 3)

    def __init__(self, ndims=(2, 3), wrong=()):
        self.ndims, self.wrong, self.planes = ndims, wrong, 0

    def embed(self, image):
        self.planes += len(image)
        return image[:, 0]

    def decode(self, embedding, prompts):
        rows = zip(prompts.image.tolist(), prompts.head.tolist(), strict=True)
        masks = [embedding[i] * 0 - 1 if head in self.wrong else (embedding[i] == head) * 10.0 - 5 for i, head in rows]
        return SamPrediction(torch.stack(masks), torch.linspace(0.5, 0.9, len(masks)))

    def to(self, device):
        return self


def balls(shape=(20, 24, 28), name="a") -> LabeledCase:
    """Two balls that touch; the image is the label."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in shape], indexing="ij"), dim=-1)
    size = torch.tensor([float(s) for s in shape])
    label = torch.zeros(shape, dtype=torch.int64)
    for head, share in ((1, 0.35), (2, 0.65)):
        label[((grid - share * size) / (0.2 * size)).square().sum(-1) < 1] = head
    truth = torch.stack([label == head for head in range(3)])
    return LabeledCase(name, label[None].float(), truth, torch.ones(shape, dtype=torch.bool))


def dice(first, second):
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def ask(backend, prob, head, *, case=None, iteration=0, outputs=LABELS, **settings):
    return Prober(backend, SamConfig(**settings), outputs, CPU).ask(case or balls(), prob, head, iteration=iteration)


@pytest.mark.parametrize("outputs", [LABELS, REGIONS], ids=["labels", "regions"])
def test_the_hard_masks_of_a_made_up_teacher_are_the_given_ones(outputs):
    truth = balls().truth if outputs is LABELS else torch.stack([balls().truth[1:].any(0), balls().truth[2]])
    prob = teacher_like(truth, outputs.foreground_heads[0], outputs)
    assert torch.equal(outputs.harden(prob[None])[0] > 0, truth)
    assert prob.min() > 0 and prob.max() < 1 and len(prob.unique()) > 10
    if outputs is LABELS:
        assert torch.allclose(prob.sum(0), torch.ones(()))


def test_of_overlapping_labels_the_asked_one_is_on_top():
    masks = balls().truth.clone()
    masks[1] |= masks[2]
    hard = LABELS.harden(teacher_like(masks, 1, LABELS)[None])[0] > 0
    assert torch.equal(hard[1], masks[1]) and not hard[2].any()
    hard = LABELS.harden(teacher_like(masks, 2, LABELS)[None])[0] > 0
    assert torch.equal(hard[2], masks[2]) and torch.equal(hard[1], masks[1] & ~masks[2])


@pytest.mark.parametrize("head", [1, 2])
@pytest.mark.parametrize("wanted", [0.75, 0.9])
def test_corrupted_prompts_have_the_wanted_dice_and_touch_no_global_generator(head, wanted):
    case, state = balls(), torch.get_rng_state()
    probs = [corrupted_prob(case, head, LABELS, wanted=wanted, number=number) for number in (0, 0, 1)]
    reached = [dice(LABELS.harden(prob[None])[0, head] > 0, case.truth[head]) for prob in probs]
    assert reached == pytest.approx([wanted] * 3, abs=0.06)
    assert torch.equal(probs[0], probs[1]) and not torch.equal(probs[0], probs[2])
    assert torch.equal(state, torch.get_rng_state())


def test_objects_far_from_the_one_that_is_asked_about_are_not_corrupted():
    """With many classes, spoiling all of them for each would take most of the time."""
    truth = torch.zeros(4, 20, 20, 80, dtype=torch.bool)
    truth[1, 6:14, 6:14, 6:14] = truth[2, 6:14, 6:14, 15:22] = truth[3, 6:14, 6:14, 60:70] = True
    truth[0] = ~truth.any(0)
    case = LabeledCase("row", torch.zeros(1, 20, 20, 80), truth, torch.ones(20, 20, 80, dtype=torch.bool))
    outputs = OutputSpace(4)
    hard = outputs.harden(corrupted_prob(case, 1, outputs, wanted=0.7, number=0)[None])[0] > 0
    assert torch.equal(hard[3], truth[3])
    assert not torch.equal(hard[1], truth[1]) and not torch.equal(hard[2], truth[2])


@pytest.mark.parametrize("head", [1, 2])
def test_a_generalist_that_knows_the_truth_gets_1(head):
    asked = ask(Oracle(), corrupted_prob(balls(), head, LABELS, wanted=0.7, number=0), head)
    assert asked.trial.answer == 1 and asked.trial.prompt == pytest.approx(0.7, abs=0.06)
    assert torch.equal(asked.answer, balls().truth[head]) and asked.voxels.float().mean() > 0.99
    assert asked.trial.quality == pytest.approx(0.5) and asked.trial.objects == 1


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_oracle_gets_1_among_many_classes_even_if_it_is_barely_sure(count):
    """What other classes keep of the teacher's probability is not held against it."""

    class BarelySure(Oracle):
        def decode(self, embedding, prompts):
            found = super().decode(embedding, prompts)
            return replace(found, mask_logits=found.mask_logits * 0.05)

    truth = torch.zeros(count + 1, 12, 12, 12 * count, dtype=torch.bool)
    for head in range(1, count + 1):
        truth[head, 2:10, 2:10, 12 * head - 11 : 12 * head - 1] = True
    truth[0] = ~truth.any(0)
    label = (truth * torch.arange(count + 1)[:, None, None, None]).sum(0)
    case = LabeledCase("row", label[None].float(), truth, torch.ones_like(truth[0]))
    outputs = OutputSpace(count + 1)
    prob = corrupted_prob(case, count, outputs, wanted=0.7, number=0)
    assert ask(BarelySure(), prob, count, case=case, outputs=outputs).trial.answer == 1


def test_an_empty_answer_gets_0_and_is_not_taken_for_the_prompt():
    asked = ask(Oracle(wrong=(1,)), truth_prob(balls(), 1, LABELS), 1, min_agreement=0.9)
    assert asked.trial.answer == 0 and asked.trial.prompt == 1 and not asked.answer.any()


def test_only_the_class_in_question_is_prompted():
    seen = []
    backend = Oracle()
    decode = backend.decode
    backend.decode = lambda embedding, prompts: seen.extend(prompts.head.tolist()) or decode(embedding, prompts)
    ask(backend, truth_prob(balls(), 2, LABELS), 2)
    assert seen == [2]


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_a_2d_generalist_is_judged_on_the_planes_that_it_was_asked_about(iteration):
    backend, case = Oracle(ndims=(2,)), balls()
    asked = ask(backend, corrupted_prob(case, 1, LABELS, wanted=0.7, number=0), 1, iteration=iteration, planes=3)
    planes = asked.voxels.movedim(iteration, 0).flatten(1).float().mean(1)
    assert backend.planes == 3 == int((planes > 0.9).sum()) and int((planes > 0).sum()) == 3
    assert asked.trial.answer == 1 and asked.trial.objects == 3
    empty = ask(Oracle(ndims=(2,), wrong=(1,)), truth_prob(case, 1, LABELS), 1, iteration=iteration, planes=3)
    assert empty.trial.answer == 0 and empty.trial.prompt == 1


def test_ignored_voxels_do_not_count():
    case = balls()
    case.valid[:, :, :14] = False
    seen = replace(case, truth=case.truth & case.valid)
    right = seen.image.clone()
    right[~case.valid[None]] = 1.0  # the answer is wrong wherever nobody can know
    asked = ask(Oracle(), truth_prob(balls(), 1, LABELS), 1, case=replace(seen, image=right))
    assert asked.trial.answer == 1 and not asked.answer[~case.valid].any()


def test_too_small_a_mask_is_no_trial():
    case = balls()
    assert ask(Oracle(), truth_prob(case, 1, LABELS), 1, min_voxels=10**6) is None


def test_regions():
    case = balls()
    case = replace(case, truth=torch.stack([case.truth[1:].any(0), case.truth[2]]), image=case.image - 1)
    prob = corrupted_prob(case, 1, REGIONS, wanted=0.7, number=0)
    asked = ask(Oracle(), prob, 1, case=case, outputs=REGIONS)
    assert asked.trial.answer == 1 and asked.trial.prompt == pytest.approx(0.7, abs=0.06)


def test_patches_take_the_cases_in_turn_and_are_the_same_every_time():
    cases = [balls(name="a"), balls(name="b")]
    empty = replace(balls(name="c"), truth=torch.zeros_like(balls().truth))
    state = torch.get_rng_state()
    found = [patches_by_head([*cases, empty], (1, 2), patch_size=(8, 8, 8), count=5) for _ in range(2)]
    first, second = (patches[2] for patches in found)
    alone = patches_by_head([empty, cases[1]], (1, 2), patch_size=(8, 8, 8), count=2)
    assert [patch.name for patch in alone[1]] == ["b", "b"]
    assert [patch.name for patch in first] == ["a", "b", "a", "b", "a"]
    assert all(torch.equal(one.image, two.image) and one.truth[2].any() for one, two in zip(first, second, strict=True))
    assert patches_by_head([empty], [1, 2], patch_size=(8, 8, 8), count=5) == {1: [], 2: []}
    assert torch.equal(state, torch.get_rng_state())


def trial(prompt, answer, quality=0.5):
    return Trial("a", 1, 2, prompt, answer, quality, 0.25)


def test_a_row_says_what_the_trials_say():
    row = summarize(
        [trial(0.7, 0.8, 0.9), trial(0.8, 0.7, 0.1), trial(0.6, 0.9, 0.95)],
        name="x",
        source="corrupted",
        kinds=["mask"],
    )
    assert (row.prompt, row.answer, row.gain) == pytest.approx((0.7, 0.8, 0.1))
    assert row.better == pytest.approx(2 / 3) and row.helps
    assert math.isnan(row.rank)  # three ranks say nothing
    assert row.error == pytest.approx(torch.tensor([0.1, -0.1, 0.3]).std().item() / math.sqrt(3))
    assert (row.patches, row.objects, row.milliseconds) == (3, 6, 250)
    assert "| x | corrupted | mask | 3 | 6 | 0.700 | 0.800 | +0.100 | 67% | – | 250 |" in markdown([row])
    assert sentence(row).startswith("x: trust it (not certain: chance alone may")  # 0.1 +- 0.115
    row = summarize([trial(0.7, 0.8), trial(0.8, 0.9), trial(0.6, 0.7)], name="x", source="corrupted", kinds=["mask"])
    assert sentence(row).startswith("x: trust it. Prompts of Dice 0.700 (corrupted) get answers of 0.800 (+0.100 ±")


def test_predicted_ious_are_ranked_where_there_are_some_and_a_single_patch_has_no_spread():
    five = [trial(0.7, 0.6 + 0.05 * number, 0.2 * number) for number in range(5)]
    row = summarize(five, name="x", source="corrupted", kinds=["mask"])
    assert row.rank == pytest.approx(1.0) and "| 1.00 | 250 |" in markdown([row])
    single = summarize(five[:1], name="x", source="corrupted", kinds=["mask"])
    assert "not certain: a single patch" in sentence(single) and "(-0.100);" in sentence(single)


def test_answers_worse_than_their_prompts_are_not_trusted():
    row = summarize([trial(0.75, 0.74), trial(0.75, 0.75)], name="x", source="corrupted", kinds=["mask"])
    assert not row.helps and "do not trust it" in sentence(row) and math.isnan(row.rank)
    assert "| – |" in markdown([row])


class OnePiece(Oracle):
    """Answers for the piece in the box alone."""

    def decode(self, embedding, prompts):
        answer = super().decode(embedding, prompts)
        inside = torch.full_like(answer.mask_logits, -5)
        for row, (low, high) in enumerate(prompts.boxes.long().tolist()):
            part = (row, *(slice(a, b) for a, b in zip(low, high, strict=True)))
            inside[part] = answer.mask_logits[part]
        return SamPrediction(inside, answer.iou_predictions)


def test_a_class_of_many_pieces_is_judged_by_all_of_them():
    """Training asks about the largest pieces only and leaves out the others, which must not count as missed."""
    shape = (24, 24, 24)
    label = torch.zeros(shape, dtype=torch.int64)
    for corner in itertools.product((2, 14), repeat=3):
        label[tuple(slice(start, start + 7) for start in corner)] = 1
    truth = torch.stack([label == head for head in range(3)])
    case = LabeledCase("lesions", label[None].float(), truth, torch.ones(shape, dtype=torch.bool))
    prob = corrupted_prob(case, 1, LABELS, wanted=0.75, number=0)
    asked = ask(OnePiece(), prob, 1, case=case, components=2)
    assert asked.trial.prompt < 0.85 and asked.trial.answer > 0.97
