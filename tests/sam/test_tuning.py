"""Tuning of generalists: what changes and what must not, what counts, and that the loss goes down."""

import hashlib
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_semisam.config import SamConfig
from nnunet_semisam.sam import repair, tuning
from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.embedded import SHIPPED
from nnunet_semisam.sam.embedded import tuning as frames
from nnunet_semisam.sam.embedded.noise import dice
from nnunet_semisam.types import LabeledCase

CONFIG = SamConfig(min_voxels=5)
PATCH = {2: (24, 28), 3: (20, 24, 22)}


def case(ndim=3, *, seed=0, name="a"):
    """A bright ball beside a dark one in noise: heads 1 and 2."""
    shape = (26, 30, 28)[:ndim]
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(s)) for s in shape], indexing="ij"))
    centres = torch.tensor([[11.0, 10, 13], [15, 21, 14]])[:, :ndim]
    balls = torch.stack([((grid - c.view(-1, *[1] * ndim)) ** 2).sum(0) < 36 for c in centres])
    rng = torch.Generator().manual_seed(seed)
    image = balls[0].float() - balls[1].float() + 0.2 * torch.randn(shape, generator=rng)
    truth = torch.cat([~balls.any(0)[None], balls])
    return LabeledCase(name, image[None], truth, torch.ones(shape, dtype=torch.bool))


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(before, module):
    after = module.state_dict()
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.fixture
def small(monkeypatch):
    """Small batches and a small pool of synthetic maps."""
    monkeypatch.setattr(frames, "BATCH", {2: 4, 3: 4})
    monkeypatch.setattr(frames, "SYNTHETIC_MAPS", 1)


def embedded_task(ndim, cases=None, **settings):
    backend = EmbeddedSam(**settings)
    cases = [case(3 if ndim == 3 else 2)] if cases is None else cases
    return backend, backend.tuning_task(cases, heads=(1, 2), patch_size=PATCH[ndim], config=CONFIG)


# --- what is learned from ---


def test_spoiled_masks_are_spread_over_the_wanted_quality():
    truth, rng = case().truth[1], torch.Generator().manual_seed(0)
    reached = torch.tensor([dice(repair.spoil(truth, 0.5 + 0.47 * n / 59, rng), truth) for n in range(60)])
    assert reached.min() > 0.4 and reached[:20].mean() < 0.72 and reached[40:].mean() > 0.85
    assert ((reached > 0.55) & (reached < 0.95)).float().mean() > 0.5


def test_prompts_are_those_of_the_labeler_and_small_objects_cause_none():
    truth, rng = case().truth[1], torch.Generator().manual_seed(0)
    drawn = [repair.spoiled_prompts(truth, rng, CONFIG) for _ in range(12)]
    assert {prompts.boxes is None for prompts, _ in drawn} == {True, False}
    assert all(prompts.mask_logits is not None and prompts.mask_logits.abs().max() <= 7.01 for prompts, _ in drawn)
    boxed = replace(CONFIG, prompts=("box",))
    assert all(repair.spoiled_prompts(truth, rng, boxed)[0].mask_logits is None for _ in range(4))
    assert repair.spoiled_prompts(truth, rng, SamConfig(min_voxels=10**6)) is None


def test_ignored_voxels_do_not_count():
    rng = torch.Generator().manual_seed(0)
    logits, truth, guess = torch.randn(3, 2, 6, 8, generator=rng).unbind()
    truth, guess, valid = (truth > 0).float(), (guess > 0).float(), torch.ones(2, 6, 8)
    valid[:, :, 5:] = 0
    quality = torch.tensor([0.4, 0.7])
    loss = repair.mask_loss(logits, quality, truth=truth, guess=guess, valid=valid)
    noise = (1 - valid) * torch.randn(valid.shape, generator=rng)
    other = repair.mask_loss(logits + 9 * noise, quality, truth=(truth + noise), guess=guess + noise, valid=valid)
    assert torch.equal(loss, other)
    assert not torch.equal(loss, repair.mask_loss(logits, quality, truth=truth, guess=guess, valid=valid * 0 + 1))
    nothing = repair.mask_loss(logits, quality, truth=truth, guess=guess, valid=0 * valid)
    assert nothing.isfinite()


@pytest.mark.parametrize("ndim", [2, 3])
def test_ignored_voxels_of_a_case_are_marked_in_the_frames(small, ndim):
    whole = case(ndim)
    valid = whole.valid.clone()
    valid[..., 14:] = False
    half = LabeledCase("half", whole.image, whole.truth & valid, valid)
    _, task = embedded_task(ndim, [half])
    drawn = [task.real(torch.Generator().manual_seed(n)) for n in range(6)]
    assert all(0 < e.valid.mean() < 0.9 and not e.truth[e.valid == 0].any() for e in drawn)
    assert any((e.channels[1] > e.valid).any() for e in drawn)  # the network is not told


def scribbled(whole):
    """A case of which a few voxels in a hundred are labeled, with the ignore label elsewhere."""
    valid = torch.rand(whole.valid.shape, generator=torch.Generator().manual_seed(0)) < 0.2
    return LabeledCase("scribbled", whole.image, whole.truth & valid, valid)


@pytest.mark.parametrize("ndim", [2, 3])
def test_scribbles_are_no_masks_to_learn_from(small, kit, ndim):
    whole = case(ndim)
    _, with_both = embedded_task(ndim, [whole, scribbled(whole)])
    _, alone = embedded_task(ndim, [whole])
    assert len(with_both.scenes) == len(alone.scenes) > 0
    for backend in (EmbeddedSam(), SegmentAnything.from_network(kit.sam(), torch.device("cpu"), input_size=96)):
        with pytest.raises(ValueError, match="labeled as a whole"):
            backend.tuning_task([scribbled(whole)], heads=(1, 2), patch_size=PATCH[ndim], config=CONFIG)


# --- the embedded generalist ---


@pytest.mark.parametrize("ndim", [2, 3])
def test_tuning_depends_on_its_seed_alone_and_draws_no_global_number(small, ndim):
    results = []
    for seed, noise in ((3, 0), (3, 1), (4, 0)):
        torch.manual_seed(noise)
        backend, task = embedded_task(ndim)
        before, random = state(backend.generalists[ndim].network), torch.get_rng_state()
        tuning.tune([(task, 2)], seed=seed)
        assert torch.equal(random, torch.get_rng_state())
        results.append(state(backend.generalists[ndim].network))
        assert len(changed(before, backend.generalists[ndim].network)) > 20
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


@pytest.mark.parametrize("ndim", [2, 3])
def test_examples_are_the_same_with_any_number_of_threads(monkeypatch, ndim):
    monkeypatch.setattr(frames, "SYNTHETIC_MAPS", 1)
    _, task = embedded_task(ndim)
    alone, together = (task._drawn(torch.Generator().manual_seed(5), threads) for threads in (1, 4))
    assert len(alone) == frames.BATCH[ndim]
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    assert len({float(example.channels.sum()) for example in alone}) == len(alone)


def test_tuning_leaves_a_frozen_network_the_other_one_and_the_file_alone(small):
    before_file = hashlib.sha256(SHIPPED.read_bytes()).hexdigest()
    backend, task = embedded_task(2)
    other = state(backend.generalists[3].network)
    tuning.tune([(task, 1)], seed=0)
    parameters = list(backend.generalists[2].network.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in parameters)
    assert not backend.generalists[2].network.training
    assert changed(other, backend.generalists[3].network) == set()
    assert hashlib.sha256(SHIPPED.read_bytes()).hexdigest() == before_file


def test_the_loss_goes_down_on_one_case(small):
    _, task = embedded_task(2)

    def loss():
        with torch.no_grad():
            return sum(float(task.loss(torch.Generator().manual_seed(9**6 + n))) for n in range(6)) / 6

    before = loss()
    tuning.tune([(task, 30)], seed=0)
    assert loss() < 0.95 * before


def test_a_volume_serves_a_2d_network(small):
    _, task = embedded_task(2, [case(3)])
    assert {scene.truth.ndim for scene in task.scenes} == {2}
    assert task.loss(torch.Generator().manual_seed(0)).requires_grad is False  # frozen until it is tuned


def test_nothing_to_tune_on_is_said():
    empty = replace(case(2), truth=torch.zeros_like(case(2).truth))
    with pytest.raises(ValueError, match="no labeled case has an object.* set it to 0"):
        EmbeddedSam().tuning_task([empty], heads=(1, 2), patch_size=PATCH[2], config=CONFIG)


# --- Segment Anything ---


@pytest.fixture
def tiny(kit):
    return SegmentAnything.from_network(kit.sam(), torch.device("cpu"), input_size=96)


@pytest.mark.parametrize("ndim", [2, 3])
def test_only_the_mask_decoder_learns_and_it_learns(tiny, ndim):
    task = tiny.tuning_task([case(ndim)], heads=(1, 2), patch_size=PATCH[ndim], config=CONFIG)
    task.learning_rate = 3e-3
    before = state(tiny.sam)

    def loss():
        with torch.no_grad():
            return sum(float(task.loss(torch.Generator().manual_seed(9**6 + n))) for n in range(8)) / 8

    first = loss()
    tuning.tune([(task, 20)], seed=0)
    assert loss() < 0.95 * first
    names = changed(before, tiny.sam)
    assert names and all(name.startswith("mask_decoder.") for name in names)
    assert any("iou_prediction_head" in name for name in names)
    assert not any(p.requires_grad for p in tiny.sam.parameters())


def test_the_gradient_reaches_the_decoder_only_and_views_are_encoded_once(tiny, monkeypatch):
    task = tiny.tuning_task([case(2)], heads=(1,), patch_size=PATCH[2], config=CONFIG)
    assert len(task.views) == 6
    calls, forward = [], tiny.sam.image_encoder.forward
    monkeypatch.setattr(tiny.sam.image_encoder, "forward", lambda image: calls.append(1) or forward(image))
    task.module.requires_grad_(True)
    for seed in range(12):
        task.loss(torch.Generator().manual_seed(seed)).backward()
    grads = {name for name, p in tiny.sam.named_parameters() if p.grad is not None and p.grad.any()}
    assert grads and all(name.startswith("mask_decoder.") for name in grads)
    assert len(calls) <= 6


def test_the_tuned_decoder_can_be_saved_and_loaded(kit, tiny, tmp_path):
    task = tiny.tuning_task([case(2)], heads=(1,), patch_size=PATCH[2], config=CONFIG)
    tuning.tune([(task, 2)], seed=0)
    torch.save(task.module.state_dict(), tmp_path / "decoder.pt")
    other = SegmentAnything.from_network(kit.sam(), torch.device("cpu"), input_size=96)
    scene = kit.scene(2)
    fresh = other.decode(other.embed(scene.image), scene.prompts).mask_logits
    other.sam.mask_decoder.load_state_dict(torch.load(tmp_path / "decoder.pt", weights_only=True))
    loaded = other.decode(other.embed(scene.image), scene.prompts).mask_logits
    tuned = tiny.decode(tiny.embed(scene.image), scene.prompts).mask_logits
    assert torch.equal(loaded, tuned) and not torch.equal(fresh, tuned)


# --- the loop and the report ---


class Toward(nn.Module):
    """A number that shall become 1, on a task that counts its calls."""

    def __init__(self):
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()), requires_grad=False)


class NumberTask:
    learning_rate = 0.05

    def __init__(self):
        self.module, self.drawn, self.numbers = Toward(), [], []

    def loss(self, rng):
        self.numbers.append(self.module.number.item())
        self.drawn.append(torch.rand((), generator=rng).item())
        return (self.module.number - 1).square()


def test_the_loop_goes_downhill_with_fresh_numbers_in_every_step():
    task = NumberTask()
    with torch.no_grad():  # as when a caller forgot
        tuning.tune([(task, 150)], seed=0)
    assert task.module.number.item() == pytest.approx(1, abs=0.1)
    assert len(set(task.drawn)) == 150
    tuning.tune([(NumberTask(), 0)], seed=0)


def test_what_stays_is_the_running_average():
    task, seen = NumberTask(), []
    tuning.tune([(task, 30), (task, 1)], seed=0, between=lambda: seen.append(task.module.number.item()))
    average, last = 0.0, task.numbers[30]
    for step, number in enumerate(task.numbers[1:31]):
        keep = min(tuning.EMA_DECAY, (step + 1) / (step + 10))
        average = keep * average + (1 - keep) * number
    assert seen == [pytest.approx(average, abs=1e-5)]
    expected = 31 / 40 * average + 9 / 40 * last  # the last step is a small one
    assert task.module.number.item() == pytest.approx(expected, abs=2e-3) and abs(expected - last) > 0.01


def test_stages_share_a_module_and_the_average_is_seen_in_between():
    first, second, seen = NumberTask(), NumberTask(), []
    second.module = first.module
    steps: list[tuple[int, int]] = []
    between = lambda: seen.append(first.module.number.item())  # noqa: E731
    tuning.tune([(first, 100), (second, 50)], seed=0, between=between, told=lambda *step: steps.append(step))
    assert steps == [(number, 150) for number in range(1, 151)]
    assert len(first.drawn) == 100 and len(second.drawn) == 50 and len({*first.drawn, *second.drawn}) == 150
    alone = NumberTask()
    tuning.tune([(alone, 150)], seed=0)
    assert alone.module.number == first.module.number
    assert len(seen) == 1 and seen[0] != first.module.number.item() and 0.5 < seen[0] < 1.5


def test_the_report_is_about_a_case_that_had_no_part_yet(kit, monkeypatch):
    log = []

    class Backend(kit.stub):
        def tuning_task(self, cases, **asked):
            if not cases:
                raise ValueError("nothing")
            task = NumberTask()
            task.names = [c.name for c in cases]
            return task

    def tune(stages, *, seed, between=None, told=None):
        log.extend((task.names, steps) for task, steps in stages)
        if between:
            between()

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr(tuning, "repaired", lambda backend, case, **asked: log.append(case.name) or {})
    asked = {"heads": (1,), "patch_size": PATCH[3], "config": SamConfig(tune=9), "seed": 0}
    cases = [case(name=name) for name in "abc"]
    backend = Backend()
    assert tuning.tune_and_report(backend, cases, backend.tuning_task(cases), **asked).case == "c"
    assert log == ["c", (["a", "b"], 6), (["a", "b", "c"], 3), "c"]
    log.clear()
    assert tuning.tune_and_report(backend, cases[:1], backend.tuning_task(cases[:1]), **asked) is None
    assert log == [(["a"], 9)]


def test_the_report_measures_the_answers(kit):
    class Echo(kit.stub):
        def tuning_task(self, cases, **asked): ...

        def decode(self, embedding, prompts):
            return replace(super().decode(embedding, prompts), mask_logits=prompts.mask_logits)

    found = tuning.repaired(
        Echo(), case(), heads=(1, 2), patch_size=PATCH[3], config=CONFIG, device=torch.device("cpu")
    )
    assert set(found) == {(head, wanted) for head in (1, 2) for wanted in tuning.REPORTED}
    assert all(abs(value - wanted) < 0.06 for (_, wanted), value in found.items())


def test_a_disguise_moves_image_and_truth_alike(monkeypatch):
    monkeypatch.setattr(frames, "_shaded", lambda image, rng: image)
    truth = torch.zeros(20, 24, 28, dtype=torch.bool)
    truth[4:12, 6:10, 8:24] = True
    scene = frames.Scene(truth[None].float(), truth, torch.ones_like(truth))
    for seed in range(12):
        seen = frames.disguised(scene, torch.Generator().manual_seed(seed))
        assert torch.equal(seen.image[0] > 0.5, seen.truth) and seen.truth.any()


def test_the_loss_of_a_mask_by_hand():
    """Four voxels, one of them wrong in the prompt; 0.2 of the cross entropy of the predicted IoU comes on top."""
    truth, guess = torch.tensor([[1.0, 1, 0, 0]]), torch.tensor([[1.0, 0, 0, 0]])
    logits, quality = torch.tensor([[2.0, -1, -2, 1]]), torch.tensor([0.8])
    entropy = F.softplus(torch.tensor([-2.0, 1, -2, 1]))
    entropy = (entropy * torch.tensor([1.0, 2, 1, 1])).sum() / 5
    prob = logits.sigmoid()
    overlap = 1 - (2 * (prob * truth).sum() + 1) / (prob.sum() + 3)
    told = -(torch.log(quality) / 3 + torch.log(1 - quality) * 2 / 3).squeeze()  # IoU of the answer: 1 of 3
    found = repair.mask_loss(logits, quality, truth=truth, guess=guess, valid=torch.ones(1, 4))
    assert found == pytest.approx((overlap + 2 * entropy + 0.2 * told).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("device", "capability", "quick"),
    [("cuda", (7, 5), False), ("cuda", (8, 0), True), ("cpu", None, False), ("mps", None, False)],
)
def test_older_gpus_and_cpus_tune_in_single_precision(monkeypatch, device, capability, quick):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert frames._quick_in_bfloat16(torch.device(device)) is quick
