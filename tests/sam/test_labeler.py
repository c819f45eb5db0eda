"""From teacher to pseudo-label: what is believed, how much, and where nothing may be learned."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from toy_fusion import fuse

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam.fuse import Answers
from nnunet_semisam.sam.labeler import SamLabeler
from nnunet_semisam.sam.objects import Objects
from nnunet_semisam.types import Prompts, SamPrediction


def labeler(kit, *, ndims=(2, 3), outputs=None, max_items=32, trust=None, **settings) -> SamLabeler:
    backend = kit.stub(ndims=ndims)
    return SamLabeler(backend, SamConfig(**settings), outputs or OutputSpace(3), max_items=max_items, trust=trust)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_pseudo_label_has_the_teachers_shape_sums_to_one_and_carries_no_gradient(kit, ndim):
    scene = kit.scene(ndim)
    label = labeler(kit)
    pseudo = label(scene.image, scene.prob.requires_grad_(), 0)
    assert pseudo.prob.shape == scene.prob.shape and pseudo.confidence.shape == scene.image.shape
    assert torch.allclose(pseudo.prob.sum(1), torch.ones(()), atol=1e-5)
    assert not pseudo.prob.requires_grad and not pseudo.prob.is_inference()
    assert pseudo.confidence.min() >= 0 and pseudo.confidence.max() <= 1 and pseudo.confidence.mean() > 0.1
    assert kit.dice(pseudo.prob.argmax(1) == 1, scene.prob.argmax(1) == 1) > 0.6
    assert label.stats["items"] == 4 and label.stats["dropped"] == 0 and label.stats["agreement"] > 0.6
    assert (pseudo.confidence > 0).all() and label.stats["seconds"] > 0


class OnCuda(torch.Tensor):
    """A tensor that says that it is on a CUDA device."""

    is_cuda = True


def test_the_seconds_begin_when_the_teachers_work_on_the_device_is_done(kit, monkeypatch):
    scene, order = kit.scene(2), []
    clock = time.perf_counter
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: order.append(device))
    monkeypatch.setattr(time, "perf_counter", lambda: order.append("clock") or clock())
    labeler(kit)(scene.image, scene.prob, 0)
    assert order == ["clock", "clock"]  # nothing to wait for on the CPU
    labeler(kit)(scene.image.as_subclass(OnCuda), scene.prob, 0)
    assert order[2:] == [scene.image.device, "clock", "clock"]


@pytest.mark.gpu
def test_pending_work_of_the_device_does_not_count(kit):
    scene = kit.scene(2)
    image, prob = scene.image.cuda(), torch.full_like(scene.prob, 1 / 3).cuda()  # no objects: SAM is not asked
    label = labeler(kit)
    label(image, prob, 0)
    big = torch.rand(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(20):
        big @ big
    stop.record()
    label(image, prob, 0)
    assert label.stats["seconds"] < start.elapsed_time(stop) / 1000 / 2


def test_half_precision_and_endless_logits_stay_finite(kit):
    scene = kit.scene(2)
    label = labeler(kit)
    decode = label.backend.decode
    label.backend.decode = lambda *given: SamPrediction(
        (decode(*given).mask_logits * 1e6).half(), torch.full((4,), 1.5).half()
    )
    pseudo = label(scene.image.half(), scene.prob.half(), 0)
    assert pseudo.prob.dtype == pseudo.confidence.dtype == torch.float32
    assert pseudo.prob.isfinite().all() and pseudo.confidence.isfinite().all() and pseudo.confidence.max() <= 1


def test_not_a_number_is_not_believed(kit):
    scene = kit.scene(2)
    label = labeler(kit, min_agreement=0)
    label.backend.decode = lambda *_: SamPrediction(torch.full((4, 40, 56), torch.nan), torch.full((4,), torch.nan))
    pseudo = label(scene.image, scene.prob, 0)
    assert pseudo.prob.isfinite().all() and pseudo.confidence.sum() == 0


def test_images_without_objects_are_not_encoded_and_not_learned_from(kit):
    scene = kit.scene(2)
    prob = scene.prob.clone()
    prob[0] = torch.tensor([0.8, 0.1, 0.1])[:, None, None]
    label = labeler(kit)
    pseudo = label(scene.image, prob, 0)
    assert torch.equal(pseudo.prob[0], prob[0]) and pseudo.confidence[0].sum() == 0
    assert pseudo.confidence[1].mean() > 0.1 and label.backend.embedded == 1
    alone = labeler(kit)(scene.image[1:], prob[1:], 0)  # the right image was encoded
    assert torch.allclose(alone.prob[0], pseudo.prob[1], atol=1e-5)
    nothing = labeler(kit)
    assert nothing(scene.image[:1], prob[:1], 0).confidence.sum() == 0
    assert nothing.backend.embedded == 0 and nothing.stats["items"] == 0 and nothing.stats["agreement"] == 0


def test_items_are_decoded_together_and_in_chunks_alike(kit):
    scene = kit.scene(3)
    whole, chunked = labeler(kit), labeler(kit, max_items=3)
    first, second = whole(scene.image, scene.prob, 0), chunked(scene.image, scene.prob, 0)
    assert (whole.backend.calls, chunked.backend.calls) == (1, 2) and chunked.backend.embedded == 2
    assert torch.allclose(first.prob, second.prob) and torch.allclose(first.confidence, second.confidence)


def test_objects_too_small_to_prompt_are_not_unlearned(kit):
    scene = kit.scene(2)
    prob = scene.prob.clone()
    prob[:, :, :3, :3] = torch.tensor([0.05, 0.05, 0.9])[:, None, None]
    second = prob.argmax(1) == 2
    second[:, :3, :3] = False
    prob = torch.where(second[:, None], torch.tensor([0.98, 0.01, 0.01])[:, None, None], prob)
    label = labeler(kit)
    pseudo = label(scene.image, prob, 0)
    assert label.stats["items"] == 2  # the first class of both images
    assert pseudo.confidence[:, :, :3, :3].sum() == 0 and pseudo.confidence.mean() > 0.1


def test_answers_that_lost_the_prompt_are_dropped(kit):
    scene = kit.scene(2)
    label = labeler(kit, min_agreement=0.3)
    decode = label.backend.decode

    def lost(embedding, prompts: Prompts) -> SamPrediction:
        answer = decode(embedding, prompts)
        flooded = torch.where((prompts.head == 2)[:, None, None], 5.0, answer.mask_logits)
        return SamPrediction(flooded, answer.iou_predictions)

    label.backend.decode = lost
    pseudo = label(scene.image, scene.prob, 0)
    assert label.stats["dropped"] == 2 and label.stats["items"] == 4
    assert torch.allclose(pseudo.prob[:, 2], scene.prob[:, 2])  # as the teacher sees it
    assert pseudo.confidence[:, 0][scene.prob.argmax(1) == 2].max() == 0
    assert pseudo.confidence[:, 0][scene.prob.argmax(1) == 1].mean() > 0.1


def answers(logits, mask, iou=1.0, head=1, **settings) -> Answers:
    logits, mask = torch.as_tensor(logits)[None], torch.as_tensor(mask)[None]
    index = torch.zeros(1, dtype=torch.int64)
    return Answers.judged(Objects(index, index + head, mask), SamPrediction(logits, torch.tensor([iou])), **settings)


def test_the_weight_is_predicted_iou_times_stability_times_agreement():
    found = answers([3.0, 0.5, -0.5, -3.0], [True, False, False, False], iou=0.9)
    assert found.agreement.item() == pytest.approx(2 / 3)  # one voxel of the mask, two of the answer
    assert found.weight.item() == pytest.approx(0.9 * (1 / 3) * (2 / 3))  # one voxel above 1, three above -1


@pytest.mark.parametrize(
    ("names", "weight"), [((), 1.0), (("iou",), 0.9), (("stability", "agreement"), 2 / 9)], ids=str
)
def test_only_what_is_asked_for_goes_into_the_weight(names, weight):
    found = answers([3.0, 0.5, -0.5, -3.0], [True, False, False, False], iou=0.9, weigh_by=names)
    assert found.weight.item() == pytest.approx(weight)


def test_confidence_is_the_expectation_of_the_weights():
    hard = torch.tensor([[[0, 0], [1, 0], [0, 1]]]).bool()
    prob = torch.tensor([[[0.0, 0.0], [0.9, 0.2], [0.1, 0.8]]])
    both = [answers([2.0, -4.0], [True, False], 0.8, 1), answers([-4.0, 3.0], [False, True], 0.4, 2)]
    pseudo = fuse(prob, hard, both, OutputSpace(3))
    scores = torch.tensor([[[0.0, 0.0], [2.0, -4.0], [-4.0, 3.0]]]).softmax(1)
    assert torch.allclose(pseudo.prob, scores)
    assert torch.allclose(pseudo.confidence[0, 0], (scores[0] * torch.tensor([[0.6], [0.8], [0.4]])).sum(0))


def test_confidence_falls_with_the_teachers_belief_in_a_class_that_was_not_asked_for():
    hard = torch.tensor([[[0, 1, 1], [1, 0, 0], [0, 0, 0]]]).bool()
    prob = torch.tensor([[[0.1, 0.9, 0.6], [0.9, 0.1, 0.0], [0.0, 0.0, 0.4]]])
    pseudo = fuse(prob, hard, answers([3.0, -8.0, -8.0], [True, False, False]), OutputSpace(3))
    assert pseudo.confidence[0, 0, 2].item() == pytest.approx(0.6 * pseudo.confidence[0, 0, 1].item(), rel=1e-3)


def test_several_answers_for_one_head_are_joined_by_their_maximum():
    two = [answers([5.0, -5.0], [True, False]), answers([-5.0, 4.0], [False, True])]
    hard = torch.tensor([[[0, 0], [1, 1]]]).bool()
    pseudo = fuse(torch.full((1, 2, 2), 0.5), hard, two, OutputSpace(2))
    assert torch.allclose(pseudo.prob[0, 1], torch.tensor([5.0, 4.0]).sigmoid())


def test_regions_take_sigmoids_and_keep_the_teacher_where_nothing_was_asked():
    prob = torch.tensor([[[0.9, 0.3], [0.2, 0.1]]])
    pseudo = fuse(prob, prob > 0.5, answers([2.0, -2.0], [True, False], 0.7, head=0), OutputSpace(2, True))
    assert torch.allclose(pseudo.prob[0, 0], torch.tensor([2.0, -2.0]).sigmoid())
    assert torch.equal(pseudo.prob[0, 1], prob[0, 1])
    assert torch.allclose(pseudo.confidence, torch.tensor(0.7))


def test_regions_run_from_end_to_end(kit):
    scene = kit.scene(2)
    prob = torch.stack([scene.prob[:, 1:].sum(1), scene.prob[:, 2]], dim=1)
    label = labeler(kit, outputs=OutputSpace(2, has_regions=True), prompts=["mask"])
    pseudo = label(scene.image, prob, 0)
    assert label.stats["items"] == 6 and label.stats["agreement"] > 0.7 and (pseudo.prob[:, 0] > 0.5).any()
    assert kit.dice(pseudo.prob[:, 1] > 0.5, prob[:, 1] > 0.5) > 0.7


@pytest.mark.parametrize("iteration", [0, 1, 2])
def test_a_2d_generalist_is_asked_plane_by_plane(kit, iteration):
    scene = kit.scene(3)
    label = labeler(kit, ndims=(2,), planes=3)
    pseudo = label(scene.image, scene.prob, iteration)
    axis = [0, 1, 2][iteration]
    asked = pseudo.confidence.movedim(axis + 2, 1).flatten(2).amax(2) > 0  # (U, side)
    assert asked.sum(1).tolist() == [3, 3] and label.backend.embedded == 6
    assert torch.equal(pseudo.prob.movedim(axis + 2, 1)[~asked], scene.prob.movedim(axis + 2, 1)[~asked])
    planes = pseudo.prob.movedim(axis + 2, 1)[asked].argmax(1)
    assert kit.dice(planes > 0, scene.prob.movedim(axis + 2, 1)[asked].argmax(1) > 0) > 0.6


def test_a_3d_generalist_cannot_serve_planes(kit):
    scene = kit.scene(2)
    with pytest.raises(ValueError, match="serves 3D images, but the configuration's patches are 2D"):
        labeler(kit, ndims=(3,))(scene.image, scene.prob, 0)


def test_labels_of_the_same_input_are_the_same(kit):
    scene = kit.scene(3)
    label, state = labeler(kit, ndims=(2,)), torch.get_rng_state()
    first, second = (label(scene.image, scene.prob, 5) for _ in range(2))
    assert torch.equal(first.prob, second.prob) and torch.equal(state, torch.get_rng_state())


def test_trust_is_a_factor_of_the_weight_of_each_head(kit):
    scene = kit.scene(2)
    full, half = labeler(kit)(scene.image, scene.prob, 0), labeler(kit, trust=[1, 0.5, 1])(scene.image, scene.prob, 0)
    assert torch.equal(full.prob, half.prob)
    first, second = ((full.prob[:, head] > 0.95)[:, None] for head in (1, 2))
    ratio = half.confidence / full.confidence
    assert first.any() and torch.allclose(ratio[first], torch.tensor(0.5), atol=0.05)
    assert second.any() and torch.allclose(ratio[second], torch.tensor(1.0), atol=0.05)


@pytest.mark.parametrize("ndims", [(2, 3), (2,)])
def test_heads_without_trust_are_not_prompted_and_cost_nothing(kit, ndims):
    scene = kit.scene(3)
    none = labeler(kit, ndims=ndims, trust=[1, 0, 0])
    assert none(scene.image, scene.prob, 0).confidence.sum() == 0
    assert none.backend.calls == none.backend.embedded == 0 and none.stats["items"] == 0
    one = labeler(kit, ndims=ndims, trust=[0, 0, 1])
    pseudo = one(scene.image, scene.prob, 0)
    assert one.stats["items"] == one.backend.embedded > 0 and pseudo.confidence.max() > 0.1  # one item per image
    assert pseudo.confidence[:, 0][scene.prob.argmax(1) == 1].max() == 0  # nothing said about the other class


@pytest.mark.parametrize("trust", [[1, 1], [1, 1, 1, 1], [1, -0.1, 1], [1, 1.5, 1], [1, float("nan"), 1]])
def test_trust_out_of_order_is_refused(kit, trust):
    with pytest.raises(ValueError, match="trust is .* give 3 numbers from 0 to 1"):
        labeler(kit, trust=trust)


def test_a_speckled_teacher_is_prompted_by_its_largest_piece(kit):
    scene = kit.scene(2)
    prob = scene.prob.clone()
    specks = torch.zeros(40, 56, dtype=torch.bool)
    specks[::3, ::3] = True
    prob[:, :, specks & (prob[:, 0] > 0.9).all(0)] = torch.tensor([0.1, 0.8, 0.1])[:, None]
    whole, pieces = (labeler(kit, components=count, prompts=["box"], min_agreement=0) for count in (None, 2))
    first, second = whole(scene.image, prob, 0), pieces(scene.image, prob, 0)
    assert whole.stats["items"] == pieces.stats["items"] == 4
    assert pieces.stats["agreement"] > whole.stats["agreement"] + 0.1
    away = specks & (scene.prob[:, 0] > 0.9).all(0) & (second.prob[:, 0] > 0.8).all(0)
    assert away.any() and second.confidence[:, 0, away].max() == 0  # too small to ask about: not unlearned
    clean = scene.prob.argmax(1) == 1
    assert second.confidence[:, 0][clean].mean() > first.confidence[:, 0][clean].mean()


@pytest.mark.parametrize("ndims", [(2, 3), (2,)])
def test_shaken_prompts_lower_the_confidence_of_unsteady_answers(kit, ndims):
    scene = kit.scene(3)
    plain, shaky = labeler(kit, ndims=ndims), labeler(kit, ndims=ndims, jitters=2, max_items=3)
    once, more = plain(scene.image, scene.prob, 4), shaky(scene.image, scene.prob, 4)
    assert shaky.backend.embedded == plain.backend.embedded  # encoded once, decoded three times as often
    assert shaky.stats["items"] == plain.stats["items"] and "stability" not in plain.stats
    assert 0.5 < shaky.stats["stability"] < 1 and torch.equal(once.prob, more.prob)
    asked = once.confidence > 0
    ratio = (more.confidence[asked] / once.confidence[asked]).unique()
    assert ratio.max() < 1 and ratio.min() > 0.6


def test_unsteady_answers_are_dropped(kit):
    scene = kit.scene(2)
    label = labeler(kit, jitters=2, min_stability=0.999)
    pseudo = label(scene.image, scene.prob, 0)
    assert label.stats["dropped"] == label.stats["items"] == 4 and pseudo.confidence.sum() == 0


def test_the_same_iteration_is_shaken_alike_and_draws_nothing_from_the_global_state(kit):
    scene = kit.scene(3)
    label, state = labeler(kit, jitters=2, rounds=2), torch.get_rng_state()
    first, second, other = (label(scene.image, scene.prob, iteration) for iteration in (5, 5, 6))
    assert torch.equal(first.confidence, second.confidence) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first.confidence, other.confidence)
    chunked = labeler(kit, jitters=2, rounds=2, max_items=3)(scene.image, scene.prob, 5)
    assert torch.allclose(chunked.confidence, first.confidence)


def test_the_teacher_is_hardened_once(kit, monkeypatch):
    scene, calls = kit.scene(3), []
    harden = OutputSpace.harden
    monkeypatch.setattr(OutputSpace, "harden", lambda self, prob: calls.append(1) or harden(self, prob))
    labeler(kit, ndims=(2,))(scene.image, scene.prob, 0)
    assert len(calls) == 1


def test_sampled_planes_stand_for_all_that_show_something(kit):
    scene = kit.scene(3)
    few, many, native = labeler(kit, ndims=(2,), planes=2), labeler(kit, ndims=(2,), planes=50), labeler(kit)
    scales = [label(scene.image, scene.prob, 0).scale for label in (few, many, native)]
    planes = many.backend.embedded
    scales = [torch.as_tensor(scale).unique().tolist() for scale in scales]
    assert scales == [[planes / 4], [1.0], [1.0]] and planes > 8
    assert (few(scene.image, 0 * scene.prob + 1 / 3, 0).scale == 1).all()  # nothing to ask about


class Small:
    """A backend whose device holds so many images and objects at once."""

    def __init__(self, backend, *, images=99, items=99, error=None):
        self.backend, self.images, self.items = backend, images, items
        self.error = error or torch.cuda.OutOfMemoryError("CUDA out of memory")
        self.ndims, self.tried = backend.ndims, []

    def embed(self, image):
        self.tried.append(("images", len(image)))
        if len(image) > self.images:
            raise self.error
        return self.backend.embed(image)

    def decode(self, embedding, prompts):
        self.tried.append(("items", len(prompts)))
        if len(prompts) > self.items:
            raise self.error
        return self.backend.decode(embedding, prompts)


CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
CUDNN = RuntimeError("FIND was unable to find an engine to execute this computation")


@pytest.mark.parametrize(
    "limits",
    [
        *({"items": 1}, {"items": 3}, {"images": 1}, {"images": 1, "items": 1}),
        *({"items": 2, "error": CUBLAS}, {"items": 2, "error": CUDNN}),
    ],
    ids=str,
)
def test_out_of_memory_asks_for_less_with_the_same_answer(kit, limits):
    scene, lines = kit.scene(2), []
    whole = labeler(kit)(scene.image, scene.prob, 0)
    label = labeler(kit)
    label.portions.say = lines.append
    small = label.backend = Small(label.backend, **limits)
    pseudo = label(scene.image, scene.prob, 0)
    assert torch.allclose(pseudo.prob, whole.prob) and torch.allclose(pseudo.confidence, whole.confidence)
    (line,) = lines
    assert "WARNING" in line and "ran out of memory" in line and f"at most {label.portions.items} object" in line
    small.tried.clear()
    label(scene.image, scene.prob, 0)  # remembered: nothing fails again, nothing is said again
    assert len(lines) == 1 and all(count <= getattr(small, what) for what, count in small.tried)


def test_an_attempt_that_fails_half_way_leaves_nothing_behind(kit):
    """Three of four objects are fused, then the last one does not fit beside two images."""
    scene, calls = kit.scene(2), []

    def asked(fails):
        label = labeler(kit, max_items=3)
        decode = label.backend.decode

        def unequal(embedding, prompts):
            calls.append(fails)
            if calls == [False, False, True, True]:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            answer = decode(embedding, prompts)
            return SamPrediction(answer.mask_logits, answer.iou_predictions * prompts.head / 2)

        label.backend.decode = unequal
        return label(scene.image, scene.prob, 0)

    whole, again = asked(False), asked(True)
    assert calls == [False] * 2 + [True] * 4
    assert torch.allclose(again.prob, whole.prob) and torch.allclose(again.confidence, whole.confidence)


def test_answers_are_not_kept_while_others_are_made(kit, monkeypatch):
    """Memory grows with classes, not with objects."""
    label, made = labeler(kit, max_items=1), []
    ask = label._portion

    def noted(*given):
        gc.collect()
        assert all(before() is None for before in made)
        answers = ask(*given)
        made.append(weakref.ref(answers.logits))
        return answers

    monkeypatch.setattr(label, "_portion", noted)
    scene = kit.scene(2)
    label(scene.image, scene.prob, 0)
    assert len(made) == label.stats["items"] > 3


def test_what_does_not_fit_alone_is_an_error_with_a_cure(kit):
    scene = kit.scene(2)
    for limits, what in (({"images": 0}, "image"), ({"items": 0}, "object")):
        label = labeler(kit)
        label.backend = Small(label.backend, **limits)
        with pytest.raises(RuntimeError, match=f"out of memory with a single {what}.*sam.backend.*MeanTeacher"):
            label(scene.image, scene.prob, 0)
    label.backend = Small(label.backend.backend, items=0, error=RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="^sizes do not match$"):
        label(scene.image, scene.prob, 0)
    label.backend = Small(label.backend, images=0)
    with pytest.raises(RuntimeError, match="single image"):
        label.probe(scene.image)
