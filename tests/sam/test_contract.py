"""What every generalist must keep to, checked over all backends; each check must catch planted faults."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_semisam.config import SamConfig
from nnunet_semisam.ops.outputs import OutputSpace
from nnunet_semisam.sam import build_backend, find_backend, list_backends
from nnunet_semisam.sam.backends.ensemble import Ensemble
from nnunet_semisam.sam.backends.medsam import MedSam
from nnunet_semisam.sam.backends.sam_med3d import SamMed3D
from nnunet_semisam.sam.backends.segment_anything import SegmentAnything
from nnunet_semisam.sam.prompts import prompts_from_prob, select

CPU = torch.device("cpu")


def ask(backend, scene, prompts=None):
    return backend.decode(backend.embed(scene.image), scene.prompts if prompts is None else prompts).mask_logits


def check_order(backend, scene, kit):
    """The order of the items does not matter."""
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(ask(backend, scene)[order], ask(backend, scene, select(scene.prompts, order)), atol=1e-3)


def check_batch_equals_loop(backend, scene, kit):
    """Images and items answer for themselves, whoever came along or before."""
    together = ask(backend, scene)
    for item in reversed(range(len(scene.prompts))):
        image = scene.prompts.image[item]
        alone = replace(select(scene.prompts, torch.tensor([item])), image=torch.tensor([0]))
        answer = backend.decode(backend.embed(scene.image[image : image + 1]), alone).mask_logits
        assert torch.allclose(answer[0], together[item], atol=1e-3)
    assert torch.allclose(ask(backend, scene), together, atol=1e-3)


def check_frozen(backend, scene, kit):
    """Nothing to train, in the backend or behind its answer."""
    answer = ask(backend, replace(scene, image=scene.image.clone().requires_grad_()))
    modules = kit.modules_of(backend)
    assert not answer.requires_grad and not any(p.requires_grad for m in modules for p in m.parameters())
    assert not answer.is_inference()
    assert not any(m.training for m in modules)


def check_deterministic(backend, scene, kit):
    """No random numbers are drawn."""
    state = torch.get_rng_state()
    first = ask(backend, scene)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, ask(backend, scene))


def check_shape(backend, scene, kit):
    """One float mask of the patch's shape per item, and an IoU in 0..1."""
    answer = backend.decode(backend.embed(scene.image), scene.prompts)
    assert answer.mask_logits.shape == (len(scene.prompts), *scene.image.shape[2:])
    assert answer.iou_predictions.shape == (len(scene.prompts),)
    assert answer.iou_predictions.min() >= 0 and answer.iou_predictions.max() <= 1
    assert answer.mask_logits.isfinite().all()


def check_logits(backend, scene, kit):
    """Far from every object the answer is below 0: it is no probability."""
    assert (ask(backend, scene)[:, scene.prob[:, 0].amin(0) > 0.99] < 0).float().mean() > 0.5


def check_log_odds(backend, scene, kit):
    """Mask prompts are log-odds: how far below 0 they are is heard."""
    cut = replace(scene.prompts, mask_logits=scene.prompts.mask_logits.clamp(min=0))
    assert (ask(backend, scene) - ask(backend, scene, cut)).abs().max() > 1e-3


def check_axes(backend, scene, kit):
    """Image and prompts turned together turn the answer, on a patch whose sides all differ."""
    answer = ask(backend, scene) > 0
    ndim = answer.ndim - 1
    assert 0 < answer.float().mean() < 0.5
    for axis in range(ndim):
        other = (axis + 1) % ndim
        flipped = ask(backend, replace(scene, image=scene.image.flip(axis + 2)), kit.flip(scene.prompts, axis))
        assert kit.dice(flipped > 0, answer.flip(axis + 1)) > 0.85
        swapped = replace(scene, image=scene.image.transpose(axis + 2, other + 2))
        turned = ask(backend, swapped, kit.transpose(scene.prompts, axis, other))
        assert kit.dice(turned > 0, answer.transpose(axis + 1, other + 1)) > 0.85


def check_background(prompts, outputs):
    """Prompts are for objects only."""
    assert set(prompts.head.tolist()) <= set(range(0 if outputs.has_regions else 1, outputs.num_heads))


WITHOUT_WEIGHTS = [
    check_order, check_batch_equals_loop, check_frozen, check_deterministic, check_shape, check_log_odds
]  # fmt: skip
CHECKS = [*WITHOUT_WEIGHTS, check_logits, check_axes]
CASES = [(name, ndim) for name in list_backends() for ndim in find_backend(name).ndims]
SPACING = (3.0, 1.5, 1.2)
MEMBERS = [{"backend": "embedded"}, {"backend": "embedded", "backend_args": {"keep": 0.0}}]


def build(name, kit):
    """A backend, and whether its weights mean something. Published models get random weights."""
    if name == "segment_anything":
        return SegmentAnything.from_network(kit.sam(), CPU, input_size=96), False
    if name == "medsam":
        return MedSam.from_network(kit.sam(), CPU, input_size=96), False
    if name == "sam_med3d":
        return SamMed3D(kit.med3d(), CPU, spacing=SPACING), False
    arguments = {"members": MEMBERS} if name == "ensemble" else {}
    try:
        return build_backend(SamConfig(backend=name, backend_args=arguments), CPU, SPACING), True
    except (FileNotFoundError, ImportError) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("check", CHECKS)
def test_the_stub_keeps_the_contract(check, ndim, kit):
    check(kit.stub(), kit.scene(ndim), kit)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name, ndim", CASES)
def test_backends_keep_the_contract(name, ndim, check, kit):
    backend, meaningful = build(name, kit)
    if check not in WITHOUT_WEIGHTS and not meaningful:
        pytest.skip("says nothing about random weights")
    if name == "medsam" and check is check_log_odds:
        pytest.skip("hears no masks")
    check(backend, kit.scene(ndim), kit)


ECHOES = {
    "segment_anything": (2, lambda kit: kit.echo_sam.from_network(kit.sam(), CPU, input_size=96)),
    "medsam": (2, lambda kit: kit.echo_medsam.from_network(kit.sam(), CPU, input_size=96)),
    "sam_med3d": (3, lambda kit: SamMed3D(kit.echo_med3d(4), CPU, spacing=(1.5, 1.5, 1.5))),
    "sam_med3d, whole patch": (3, lambda kit: SamMed3D(kit.echo_med3d(4), CPU, spacing=(2, 1.5, 1.5), window="patch")),
    "ensemble": (2, lambda kit: Ensemble.of([kit.stub(), ECHOES["segment_anything"][1](kit)])),
}


@pytest.mark.parametrize("check", [check_order, check_batch_equals_loop, check_logits, check_axes])
@pytest.mark.parametrize("name", ECHOES)
def test_published_models_keep_the_contract_around_a_network_that_answers_with_the_mask(name, check, kit):
    ndim, make = ECHOES[name]
    backend, scene = make(kit), kit.scene(ndim)
    assert kit.dice(ask(backend, scene) > 0, scene.prompts.mask_logits > 0) > 0.85
    check(backend, scene, kit)


FAULTS = [
    ("leaking_images", check_batch_equals_loop),
    ("leaking_items", check_order),
    ("leaking_items", check_batch_equals_loop),
    ("leaking_calls", check_batch_equals_loop),
    ("leaking_calls", check_deterministic),
    ("first_image", check_batch_equals_loop),
    ("trainable", check_frozen),
    ("random", check_deterministic),
    ("cropped", check_shape),
    ("probabilities", check_logits),
    ("background", check_logits),
    ("mask_as_probability", check_log_odds),
    ("swapped_axes", check_axes),
]


@pytest.mark.parametrize("fault, check", FAULTS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_planted_faults_are_caught(fault, check, ndim, kit):
    scene = kit.scene(ndim)
    check(kit.stub(), scene, kit)
    with pytest.raises((AssertionError, RuntimeError)):
        check(kit.stub(fault), scene, kit)


def test_the_background_is_never_prompted_and_a_planted_background_is_caught(kit):
    class Careless(OutputSpace):
        foreground_heads = property(lambda self: tuple(range(self.num_heads)))

    prob, outputs = kit.scene(2).prob, OutputSpace(3)
    check_background(prompts_from_prob(prob, outputs=outputs, config=SamConfig()), outputs)
    with pytest.raises(AssertionError):
        check_background(prompts_from_prob(prob, outputs=Careless(3), config=SamConfig()), outputs)


def test_every_backend_shows_its_networks_and_answers_with_the_mask_somewhere(kit):
    answers = {name.split(",")[0] for name in ECHOES}
    assert set(list_backends()) - answers == {"embedded"}  # whose weights mean something
    for name in list_backends():
        assert kit.modules_of(build(name, kit)[0]), name


def test_a_network_that_lies_deeper_is_seen(kit):
    backend = build("ensemble", kit)[0]
    check_frozen(backend, kit.scene(2), kit)
    kit.modules_of(backend)[-1].train()
    with pytest.raises(AssertionError):
        check_frozen(backend, kit.scene(2), kit)
