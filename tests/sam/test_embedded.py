"""The embedded generalist: frame of reference, prompts, corruptions, training examples, training, backend contract."""

import pytest
import torch
import torch.nn.functional as F

from nnunet_semisam.sam.backends.embedded import EmbeddedSam
from nnunet_semisam.sam.embedded import SHIPPED, channels, corruption, load_generalists, train
from nnunet_semisam.sam.embedded.corruption import Corruption, corrupt_nearby, corrupt_to_dice, surroundings
from nnunet_semisam.sam.embedded.frame import OUTSIDE, Frame
from nnunet_semisam.sam.embedded.noise import coordinates, dice, mask_box
from nnunet_semisam.sam.embedded.sampling import KINDS, draw_example
from nnunet_semisam.sam.embedded.shapes import random_label_map
from nnunet_semisam.sam.embedded.synthesis import CLEAR, FAINT, draw_sample
from nnunet_semisam.types import Prompts

SHAPES = {2: (50, 71), 3: (30, 44, 57)}


def ball(shape, centre, radius):
    far = coordinates(shape) - torch.tensor(centre).view(-1, *[1] * len(shape))
    return far.square().sum(0).sqrt() < radius


def centre_of(mask):
    return mask.nonzero().float().mean(0)


def make_prompts(ndim, items=1, coords=None, labels=None, boxes=None, logits=None):
    coords = torch.zeros(items, 0, ndim) if coords is None else coords
    labels = torch.ones(coords.shape[:2], dtype=torch.long) if labels is None else labels
    image = torch.zeros(items, dtype=torch.long)
    return Prompts(image, image + 1, coords, labels, boxes, logits)


@pytest.fixture(scope="module")
def backend():
    return EmbeddedSam()


# --- the frame ---


@pytest.mark.parametrize("ndim", [2, 3])
def test_mask_comes_back_where_it_was(ndim):
    shape = SHAPES[ndim]
    mask = ball(shape, [side * 0.55 for side in shape], 9.3)
    frame = Frame.around(mask_box(mask)[None], 32, grow=0.3)
    back = frame.paste(frame.crop(mask[None, None].float())[:, 0] - 0.5, shape)[0] > 0
    assert dice(back, mask) > 0.97
    assert (centre_of(back) - centre_of(mask)).abs().max() < 0.25


@pytest.mark.parametrize("ndim", [2, 3])
def test_points_and_image_share_one_geometry(ndim):
    """A bright voxel, cropped, peaks at the cell where a point at that voxel is drawn."""
    shape = SHAPES[ndim]
    spot = torch.tensor([[side * 0.4 // 1 for side in shape]])
    image = torch.zeros(1, 1, *shape)
    image[(0, 0, *spot[0].long().tolist())] = 1
    box = torch.stack([spot - 7, spot + 12], 1)
    frame = Frame.around(box, 32)
    ball_ = frame.balls(spot[None], torch.ones(1, 1, dtype=torch.long), 1, 1.5)[0, 0]
    seen = frame.crop(image)[0, 0]
    weights = seen / seen.sum()
    mean = (coordinates(seen.shape) * weights).flatten(1).sum(1)
    assert (mean - frame.to_grid(spot[None])[0, 0]).abs().max() < 0.5
    peak = torch.tensor(torch.unravel_index(ball_.argmax(), ball_.shape)).float()
    assert (peak - mean).abs().max() < 1
    assert torch.allclose(frame.to_patch(frame.to_grid(spot[None])), spot[None], atol=1e-4)


def test_box_fills_the_cells_of_its_mask():
    mask = torch.zeros(SHAPES[3], dtype=torch.bool)
    mask[5:20, 10:31, 20:50] = True
    box = mask_box(mask)[None]
    frame = Frame.around(box, 32)
    assert (frame.filled(box) - frame.crop(mask[None, None].float())).abs().mean() < 0.02
    share = (box[0, 1] - box[0, 0]).prod() / frame.size.prod()
    assert frame.filled(box).sum() == pytest.approx(float(32**3 * share), rel=1e-3)


def test_beyond_the_patch_is_marked_and_outside_the_frame_is_background():
    box = torch.tensor([[[-4.0, 10, 10], [10, 30, 30]]])
    frame = Frame.around(box, 32)
    valid = frame.valid(SHAPES[3])[0, 0]
    first_inside = float(-frame.low[0, 0] / frame.size[0, 0] * 32)
    assert valid[: int(first_inside), 16, 16].sum() == 0 and valid[int(first_inside) + 1, 16, 16] == 1
    pasted = frame.paste(torch.ones(1, 32, 32, 32), SHAPES[3])[0]
    assert pasted[5, 20, 20] == pytest.approx(1) and pasted[29, 43, 56] == OUTSIDE


def test_fine_patches_are_averaged_not_skipped():
    stripes = torch.zeros(1, 1, 8, 128)
    stripes[..., ::3] = 1
    frame = Frame.around(torch.tensor([[[0.0, 0], [8, 128]]]), 16, grow=0.0, extra=0.0)
    assert (frame.crop(stripes)[..., 2:-2] - 1 / 3).abs().max() < 0.05


# --- prompts ---


def test_attention_goes_to_box_then_mask_then_points_then_patch():
    shape = SHAPES[3]
    mask = torch.stack([ball(shape, [12.0, 20, 30], 6), torch.zeros(shape, dtype=torch.bool)])
    logits = 8 * mask.float() - 4
    coords = torch.tensor([[[10.0, 20, 30]], [[10.0, 20, 30]]])
    by_mask = channels.attention_boxes(make_prompts(3, 2, coords, logits=logits), shape)
    assert torch.equal(by_mask[0], mask_box(mask[0]))
    assert torch.allclose((by_mask[1, 1] - by_mask[1, 0]), torch.tensor(shape) / 2)  # empty mask: around the point
    boxes = torch.tensor([[[1.0, 2, 3], [9, 9, 9]]] * 2)
    assert torch.equal(channels.attention_boxes(make_prompts(3, 2, coords, boxes=boxes, logits=logits), shape), boxes)
    nothing = channels.attention_boxes(make_prompts(3), shape)
    assert nothing.tolist() == [[[0, 0, 0], list(shape)]]


@pytest.mark.parametrize("prompt", ["mask", "box", "points"])
def test_evidence_is_high_on_the_object_whatever_the_contrast(prompt):
    """Grey values like those inside the prompt speak for the object, in the image and in its negative."""
    shape, centre = SHAPES[3], [14.0, 20, 30]
    mask = ball(shape, centre, 8)
    image = (mask.float() + 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0)))[None, None]
    given = {
        "mask": {"logits": 20 * ball(shape, [12.0, 21, 28], 7)[None].float() - 10},
        "box": {"boxes": mask_box(mask)[None]},
        "points": {"coords": torch.tensor([[centre]])},
    }[prompt]
    prompts = make_prompts(3, **given)
    frame = Frame.around(channels.attention_boxes(prompts, shape), 32)
    truth = frame.crop(mask[None, None].float())[0, 0] > 0.5
    valid = frame.valid(shape)[0, 0] > 0
    looks = [channels.network_input(picture, prompts, frame)[0, -1] for picture in (image, -image)]
    for look in looks:
        assert ((look > 0) == truth)[valid].float().mean() > 0.93
    assert (looks[0] - looks[1]).abs().mean() < 0.1


def test_mask_channel_is_the_mask_and_absent_prompts_are_zero():
    shape = SHAPES[2]
    mask = ball(shape, [20.0, 30], 9)
    prompts = make_prompts(2, logits=40 * mask[None].float() - 20)
    frame = Frame.around(channels.attention_boxes(prompts, shape), 32)
    given = channels.network_input(torch.zeros(1, 1, *shape), prompts, frame)[0]
    assert torch.allclose(given[5], 2 * frame.crop(mask[None, None].float())[0, 0] - 1, atol=1e-4)
    assert given[[2, 3, 4]].eq(0).all()


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_input_is_denormal(ndim):
    """A CPU takes twice the time for a convolution of such numbers; a Gaussian ball fades through them."""
    shape = SHAPES[ndim]
    mask = ball(shape, [side * 0.3 for side in shape], 6)
    corners = torch.tensor([[[2.0] * ndim, [side - 3.0 for side in shape]]])
    prompts = make_prompts(ndim, coords=corners, labels=torch.tensor([[1, 0]]), logits=40 * mask[None].float() - 20)
    frame = Frame.around(torch.tensor([[[0.0] * ndim, [float(side) for side in shape]]]), 64)
    given = channels.network_input(torch.randn(1, 1, *shape), prompts, frame).abs()
    assert given[:, 2:4].amax((0, *range(2, 2 + ndim))).min() > 0.8  # there are clicks of both kinds
    assert not ((given > 0) & (given < torch.finfo(given.dtype).tiny)).any()


# --- corruption and examples ---


@pytest.mark.parametrize("corrupt", [corrupt_to_dice, corrupt_nearby])
@pytest.mark.parametrize("wanted", [0.6, 0.75, 0.85])
def test_corruption_reaches_the_wanted_dice(wanted, corrupt):
    mask = ball((40, 40, 40), [20.0, 18, 22], 9)
    spoiled = [corrupt(mask, wanted, torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)]
    assert all(abs(dice(s, mask) - wanted) < 0.03 for s in spoiled)
    assert torch.equal(spoiled[0], spoiled[2]) and not torch.equal(spoiled[0], spoiled[1])


def test_a_corruption_nearby_is_that_of_the_surroundings_in_its_place():
    mask = ball((64, 64, 64), [20.0, 40, 22], 6)
    spoiled, near = corrupt_nearby(mask, 0.75, torch.Generator().manual_seed(0)), surroundings(mask)
    assert mask[near].sum() == mask.sum() and mask[near].numel() < 0.3 * mask.numel()
    assert torch.equal(spoiled[near], corrupt_to_dice(mask[near], 0.75, torch.Generator().manual_seed(0)))
    assert spoiled[near].sum() == spoiled.sum()


@pytest.mark.parametrize("shape", [(80, 90, 100), (600, 700)])
def test_large_masks_are_spoiled_on_a_coarse_grid(monkeypatch, shape):
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(side // 6, 2 * side // 3) for side in shape)] = True
    sizes, original = [], corruption.corrupt_to_dice

    def noted(mask, *given, **more):
        sizes.append(mask.numel())
        return original(mask, *given, **more)

    monkeypatch.setattr(corruption, "corrupt_to_dice", noted)
    for wanted in (0.6, 0.9):
        spoiled = corrupt_nearby(mask, wanted, torch.Generator().manual_seed(0))
        assert abs(dice(spoiled, mask) - wanted) < 0.05
    assert len(sizes) == 2 and all(2**16 < size < 1.2 * 2**17 for size in sizes)


def test_a_thin_mask_is_spoiled_as_it_is_however_large():
    mask = torch.zeros(80, 90, 100, dtype=torch.bool)
    mask[10:70, 40, 10:90] = True  # a sheet: nothing of it is left on a coarse grid
    for thin in (mask, mask | ball(mask.shape, [40.0, 60, 50], 10)):
        assert abs(dice(corrupt_nearby(thin, 0.9, torch.Generator().manual_seed(0)), thin) - 0.9) < 0.05


def test_no_corruption_at_strength_zero_and_a_clear_error_for_nothing():
    mask, rng = ball((40, 40), [20.0, 18], 9), torch.Generator().manual_seed(0)
    assert torch.equal(Corruption.draw(mask, rng).apply(mask, 0.0), mask)
    with pytest.raises(ValueError, match="empty mask"):
        Corruption.draw(torch.zeros(9, 9, dtype=torch.bool), rng)
    with pytest.raises(ValueError, match="empty mask"):
        corrupt_nearby(torch.zeros(9, 9, dtype=torch.bool), 0.75, rng)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_drawn_from_the_seed_alone(ndim, kind):
    maps = [random_label_map(28, ndim, torch.Generator().manual_seed(3))]
    one, same, other = (draw_example(maps, 16, torch.Generator().manual_seed(seed), kind) for seed in (5, 5, 6))
    assert torch.equal(one.channels, same.channels) and torch.equal(one.truth, same.truth)
    assert not torch.equal(one.channels, other.channels)
    assert one.channels.isfinite().all() and 0 < one.truth.mean() < 0.9
    given = {"mask": one.channels[5].any(), "box": one.channels[4].any(), "points": one.channels[2].any()}
    wanted = {"mask": ("mask",), "box": ("box",), "box and point": ("box", "points"), "points": ("points",)}[kind]
    assert all(given[name] for name in wanted) and (kind == "mask" or not given["mask"])


# --- training ---


def test_training_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tiny = {"grid": 16, "side": 24, "width": 8, "maps": 3, "batch": 2}
    phases = (train.Phase(2, 1.2, 4), train.Phase(4, 0.7, 4, contrast=FAINT))
    # 32 in 3D: the bfloat16 gradient of convolutions over 2^3 cells reads memory that nobody wrote (torch 2.14)
    monkeypatch.setattr(train, "SETTINGS", {2: tiny, 3: tiny | {"side": 20, "grid": 32}})
    monkeypatch.setattr(train, "PHASES", {2: phases, 3: phases})
    monkeypatch.setattr(train, "VALIDATION_EXAMPLES", 2)
    monkeypatch.setattr(train, "VALIDATION_MAPS", 1)
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    for ndim in ("2", "3"):
        train.main(["--out", str(straight), "--ndim", ndim])
    for _ in range(5):  # no time at all: one step per call
        train.main(["--out", str(halted), "--ndim", "2", "--minutes", "0"])
    ends = [torch.load(out / "checkpoint_2d.pt", weights_only=True) for out in (straight, halted)]
    assert ends[0]["step"] == ends[1]["step"] == 4
    for name, tensor in ends[0]["average"].items():
        assert torch.allclose(tensor, ends[1]["average"][name], atol=1e-5), name
    train.main(["--out", str(straight), "--pack", str(tmp_path / "w.pt")])
    packed = load_generalists(tmp_path / "w.pt")
    assert packed[3].grid == 32 and packed[2].network.width == 8
    monkeypatch.setattr(train, "PHASES", {2: phases, 3: (*phases, train.Phase(5, 1.0, 5))})
    more = ["--out", str(tmp_path / "more"), "--start", str(tmp_path / "w.pt")]  # 3D goes on, 2D stays as it is
    train.main([*more, "--ndim", "3"])
    train.main([*more, "--pack", str(tmp_path / "longer.pt")])
    longer, shorter = (torch.load(tmp_path / name, weights_only=True) for name in ("longer.pt", "w.pt"))
    assert (longer["2d"]["step"], longer["3d"]["step"]) == (4, 5)
    for name, tensor in shorter["3d"]["state"].items():
        assert torch.equal(longer["2d"]["state"][name], shorter["2d"]["state"][name])
        assert torch.allclose(longer["3d"]["state"][name], tensor, atol=0.02), name  # one step of 2e-5
    assert any(not torch.equal(longer["3d"]["state"][name], t) for name, t in shorter["3d"]["state"].items())


def test_faint_targets_have_borders_that_cannot_be_seen():
    """The mean step in grey value across a target's border, in standard deviations of either side, is smaller."""
    maps = [random_label_map(24, 3, torch.Generator().manual_seed(seed)) for seed in range(8)]
    gaps = []
    for contrast in (CLEAR, FAINT):
        rng, steps = torch.Generator().manual_seed(0), []
        for _ in range(60):
            image, truth = draw_sample(maps, rng, contrast)
            near = F.max_pool3d(truth[None, None].float(), 5, stride=1, padding=2)[0, 0].bool() & ~truth
            spread = ((image[truth].var() + image[near].var()) / 2).sqrt()
            steps.append(float((image[truth].mean() - image[near].mean()).abs() / spread))
        gaps.append(sum(steps) / len(steps))
    assert gaps[1] < 0.85 * gaps[0]


# --- the backend ---


def test_shipped_file_is_small_and_safe():
    assert SHIPPED.stat().st_size < 12e6
    content = torch.load(SHIPPED, weights_only=True)
    assert all(t.dtype == torch.float16 for ndim in ("2d", "3d") for t in content[ndim]["state"].values())


@pytest.mark.parametrize("ndim", [2, 3])
def test_answers_are_for_the_right_item_and_place(backend, ndim):
    """Two bright balls in two images, prompted by wrong masks: each answer covers its own ball, better than that."""
    shape = SHAPES[ndim]
    centres = [[side * 0.35 for side in shape], [side * 0.6 for side in shape]]
    balls = torch.stack([ball(shape, centre, 8.5) for centre in centres])
    noise = torch.randn((2, 1, *shape), generator=torch.Generator().manual_seed(0))
    image = 2 * balls[:, None].float() + 0.2 * noise
    wrong = torch.stack([ball(shape, [c + 2.5 for c in centre], 7.5) for centre in centres])
    prompts = Prompts(
        torch.tensor([1, 0, 1]),
        torch.tensor([1, 1, 2]),
        torch.zeros(3, 0, ndim),
        torch.zeros(3, 0, dtype=torch.long),
        None,
        10 * wrong[[1, 0, 1]].float() - 5,
    )
    answer = backend.decode(backend.embed(image), prompts)
    assert answer.mask_logits.shape == (3, *shape) and answer.mask_logits.dtype == torch.float32
    assert not answer.mask_logits.requires_grad
    assert ((answer.iou_predictions >= 0) & (answer.iou_predictions <= 1)).all()
    for item, which in enumerate((1, 0, 1)):
        before = dice(wrong[which], balls[which])
        assert dice(answer.mask_logits[item] > 0, balls[which]) > before + 0.03
    assert torch.allclose(answer.mask_logits[0], answer.mask_logits[2], atol=1e-4)


def test_keep_holds_on_to_the_mask_prompt_and_to_nothing_else():
    """The more is kept, the nearer the answer is to the mask prompt; without a mask there is nothing to keep."""
    shape = SHAPES[2]
    wrong, truth = ball(shape, [24.0, 30], 7), ball(shape, [27.0, 34], 9)
    image = truth[None, None].float() + 0.1 * torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(0))
    given = make_prompts(2, logits=20 * wrong[None].float() - 10), make_prompts(2, boxes=mask_box(truth)[None])
    backends = [EmbeddedSam(keep=keep) for keep in (0.0, 2.0, 30.0)]
    answers = [[one.decode(image, prompts).mask_logits for one in backends] for prompts in given]
    likeness = [dice(answer[0] > 0, wrong) for answer in answers[0]]
    assert likeness[0] < likeness[1] < likeness[2] and likeness[2] > 0.95
    assert torch.equal(answers[1][0], answers[1][2])


def test_many_items_in_portions_equal_single_items(backend):
    shape, items = SHAPES[2], 19
    image = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(1))
    boxes = torch.stack([torch.tensor([[i, i + 2.0], [i + 20, i + 30.0]]) for i in range(items)])
    together = backend.decode(backend.embed(image), make_prompts(2, items, boxes=boxes))
    alone = backend.decode(backend.embed(image), make_prompts(2, 1, boxes=boxes[17:18]))
    assert torch.allclose(together.mask_logits[17], alone.mask_logits[0], atol=1e-4)


def test_no_items_and_chosen_channels(backend):
    empty = backend.decode(backend.embed(torch.zeros(1, 2, *SHAPES[2])), make_prompts(2, 0))
    assert empty.mask_logits.shape == (0, *SHAPES[2]) and empty.iou_predictions.shape == (0,)
    second = EmbeddedSam(channels=(1,))
    image = torch.stack([torch.zeros(SHAPES[2]), torch.ones(SHAPES[2])])[None]
    assert second.embed(image).eq(1).all() and backend.embed(image).eq(0).all()
    with pytest.raises(ValueError, match="channels"):
        EmbeddedSam(channels=(4,)).embed(image)


def test_random_weights_follow_their_seed_and_nothing_of_the_file_is_left(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the devices have been seeded"))
    first, again, other = (EmbeddedSam(random_weights=seed).generalists[3].network for seed in (0, 0, 1))
    shipped = EmbeddedSam().generalists[3].network
    for name, known in shipped.named_parameters():
        drawn = dict(first.named_parameters())[name]
        assert torch.equal(drawn, dict(again.named_parameters())[name]) and not drawn.requires_grad
        assert drawn.ndim < 2 or not torch.equal(drawn, known)  # scales and shifts may begin and end at 1 and 0
    assert not torch.equal(first.stem.weight, other.stem.weight)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        EmbeddedSam(str(tmp_path / "gone.pt"))
    torch.save({"something": 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt"):
        EmbeddedSam(str(tmp_path / "other.pt"))
