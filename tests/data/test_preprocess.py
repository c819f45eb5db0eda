"""Preprocessing of imagesUn: like nnU-Net's, only what is missing or has changed, nothing half-done."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import blosc2
import numpy as np
import pytest
from toy_dataset import plans

from nnunet_semisam.cli.preprocess import main
from nnunet_semisam.data import fingerprint, preprocess
from nnunet_semisam.data.dataset import PlannedDataset, labeled_cases, preprocess_dataset
from nnunet_semisam.data.manifest import Manifest
from nnunet_semisam.data.partial import PARTIAL
from nnunet_semisam.data.pool import unlabeled_pool
from nnunet_semisam.data.preprocess import preprocess_unlabeled
from nnunet_semisam.data.unlabeled import UnlabeledDataset


def run(toy, configuration="3d_fullres", num_processes=1):
    manager, configuration_manager, dataset_json = toy.managers(configuration)
    return preprocess_unlabeled(
        toy.raw.name, manager, configuration_manager, dataset_json, num_processes=num_processes, show_progress=False
    )


@pytest.fixture
def made(monkeypatch):
    """Names of the cases that are really preprocessed."""
    cases = []
    monkeypatch.setattr(preprocess, "shuffled", list)
    call = preprocess.Work.__call__
    monkeypatch.setattr(
        preprocess.Work, "__call__", lambda work, case, files: cases.append(case) or call(work, case, files)
    )
    return cases


def test_the_result_is_that_of_nnunet(toy):
    file = toy.image("x", spacing=1.3)
    path = run(toy)["x"]
    assert path == toy.preprocessed / "nnUNetPlans_3d_fullres_unlabeled" / "x.b2nd"
    manager, configuration, dataset_json = toy.managers()
    stock = configuration.preprocessor_class(verbose=False)
    image, _, _ = stock.run_case([str(file)], None, manager, configuration, dataset_json)
    assert image.shape[1:] == (13, 18, 16)
    np.testing.assert_array_equal(blosc2.open(str(path))[:], image)
    properties = pickle.loads(path.with_suffix(".pkl").read_bytes())
    assert properties["shape_before_cropping"] == (10, 14, 12) and "class_locations" not in properties


def test_only_what_is_missing_or_has_changed_is_made(toy, made):
    for seed, case in enumerate("xyz"):
        toy.image(case, seed=seed)
    run(toy)
    run(toy)
    assert made == ["x", "y", "z"]
    toy.image("y", seed=7)
    toy.image("v")
    made.clear()
    assert list(run(toy)) == ["v", "x", "y", "z"]
    assert made == ["v", "y"]


def test_a_copy_without_the_times_is_known_by_its_content(toy, made, monkeypatch):
    file = toy.image("x")
    manifest = run(toy)["x"].parent.with_name("nnUNetPlans_3d_fullres_unlabeled.json")
    os.utime(file, ns=(1, 1))
    reads, original = [], fingerprint.sha256_of
    monkeypatch.setattr(fingerprint, "sha256_of", lambda path: reads.append(path) or original(path))
    run(toy)
    run(toy)
    assert made == ["x"] and len(reads) == 1  # the new time has been noted
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # the same size
    os.utime(file, ns=(1, 2))
    with pytest.raises(ValueError):  # it is damaged now, but looked at
        run(toy)
    assert made == ["x", "x"]
    file.write_bytes(content)
    run(toy)
    text = json.loads(manifest.read_text())
    text["x"]["files"] = {name: facts[:2] for name, facts in text["x"]["files"].items()}  # of an older version
    manifest.write_text(json.dumps(text))
    made.clear()
    run(toy)
    assert made == []
    os.utime(file, ns=(1, 3))
    run(toy)
    assert made == ["x"]
    reads.clear()
    os.utime(file, ns=(1, 4))
    toy.edit_plans(normalization_schemes=["CTNormalization"])
    run(toy)
    assert made == ["x", "x"] and len(reads) == 1  # for the record; nobody compares what other plans have made


def test_where_times_cannot_be_noted_the_content_is_read_again(toy, made, monkeypatch):
    file = toy.image("x")
    run(toy)
    os.utime(file, ns=(1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
        run(toy)
    assert made == ["x"]


@pytest.mark.parametrize("loss", ["image", "manifest", "damaged manifest"])
def test_what_got_lost_is_made_again(toy, made, loss):
    toy.image("x")
    path = run(toy)["x"]
    manifest = path.parent.with_name(f"{path.parent.name}.json")
    if loss == "image":
        path.unlink()
    elif loss == "manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:10])
    run(toy)
    assert made == ["x", "x"] and path.is_file()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"spacing": [2.0, 1.0, 1.0]}, True),
        ({"normalization_schemes": ["NoNormalization"]}, True),
        ({"use_mask_for_norm": [True]}, True),
        ({"batch_size": 7, "patch_size": [4, 4, 4], "semisam": {}}, False),
    ],
)
def test_plans_that_decide_another_result_make_all_again(toy, made, change, again):
    toy.image("x")
    run(toy)
    toy.edit_plans(**change)
    run(toy)
    assert len(made) == (2 if again else 1)


def test_a_removed_image_is_not_used(toy):
    toy.image("x")
    removed = toy.image("y")
    assert list(run(toy)) == ["x", "y"]
    removed.unlink()
    assert list(run(toy)) == ["x"]


def test_without_the_raw_folder_what_was_made_is_used(toy, monkeypatch):
    toy.image("x")
    made = run(toy)
    monkeypatch.delenv("nnUNet_raw")
    assert run(toy) == made
    toy.edit_plans(spacing=[2.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="1 unlabeled cases of .*preprocessed with other plans or another nnU-Net"):
        run(toy)  # not silently without them


def test_images_that_were_not_copied_are_missed(toy, monkeypatch):
    for seed, case in enumerate("xy"):
        toy.image(case, seed=seed)
    made = run(toy)
    monkeypatch.delenv("nnUNet_raw")
    made["y"].unlink()
    with pytest.raises(ValueError, match="'y' is recorded in .*_unlabeled.json as preprocessed, but not in .*Copy"):
        run(toy)


def test_what_is_used_no_more_and_what_is_made_again_is_said(toy, capsys):
    for seed, case in enumerate("xy"):
        removed = toy.image(case, seed=seed)
    run(toy)
    assert capsys.readouterr().out == ""
    bad = toy.image("x", channel=1)
    manager, configuration, dataset_json = toy.managers()
    skipped = []
    preprocess_unlabeled(toy.raw.name, manager, configuration, dataset_json, num_processes=1, skipped=skipped)
    assert skipped and capsys.readouterr().out == ""  # left out, but not gone
    bad.unlink()
    removed.unlink()
    run(toy)
    assert f"'y' is not in {toy.raw / 'imagesUn'} any more" in capsys.readouterr().out
    toy.edit_plans(spacing=[2.0, 1.0, 1.0])
    run(toy)
    assert "'x' is preprocessed again, because the plans" in capsys.readouterr().out
    run(toy)
    assert capsys.readouterr().out == ""


def test_a_record_that_may_not_be_read_is_not_an_empty_one(toy, monkeypatch):
    toy.image("x")
    folder = run(toy)["x"].parent

    def forbidden(file):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(Path, "read_text", forbidden)
    with pytest.raises(ValueError, match="_unlabeled.json cannot be read .*Permission denied.*has to be readable"):
        Manifest.load(folder, "any")


def test_who_comes_second_leaves_a_case_as_it_is(toy, monkeypatch):
    """A training that started with the first one may have it open."""
    toy.image("x")
    made, original = [], preprocess.Work._label_problems

    def slow(work, files):
        if not made:
            made.append(None)
            made[0] = run(toy)["x"].stat().st_ino
        return original(work, files)

    monkeypatch.setattr(preprocess.Work, "_label_problems", slow)
    assert run(toy)["x"].stat().st_ino == made[0]


@pytest.mark.parametrize("loss", ["not mounted", "dangling link", "no folder"])
def test_a_folder_that_was_full_and_is_empty_is_an_error_and_nothing_is_marked(toy, made, monkeypatch, loss):
    toy.image("x"), toy.image("y", seed=1)
    run(toy)
    folder, away = toy.raw / "imagesUn", toy.raw / "away"
    folder.rename(away)
    if loss == "not mounted":
        folder.mkdir()
    elif loss == "dangling link":
        folder.symlink_to(toy.raw / "nowhere")
    with pytest.raises(ValueError, match=f"imagesUn holds no image, but 2 unlabeled cases.*-d {toy.raw.name} --forget"):
        run(toy)
    with monkeypatch.context() as patch:
        patch.delenv("nnUNet_raw")
        assert list(run(toy)) == ["x", "y"]
    assert main(["-d", toy.raw.name, "-c", "3d_fullres", "--forget"]) == 0
    assert run(toy) == {} and made == ["x", "y"]


def test_a_removed_image_does_not_come_back_without_the_raw_folder(toy, made, monkeypatch):
    for seed, case in enumerate("bxy"):
        removed = toy.image(case, seed=seed)
    run(toy)
    content, times = removed.read_bytes(), removed.stat()
    removed.unlink()
    assert list(run(toy)) == ["b", "x"]
    with monkeypatch.context() as patch:
        patch.delenv("nnUNet_raw")
        assert list(run(toy)) == ["b", "x"]
    made.clear()
    removed.write_bytes(content)
    os.utime(removed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(run(toy)) == ["b", "x", "y"] and not made  # the same image again: what was made is taken up
    monkeypatch.delenv("nnUNet_raw")
    assert list(run(toy)) == ["b", "x", "y"]


def test_marks_of_removal_and_records_of_another_process_are_kept(toy):
    folder = toy.preprocessed / "some_unlabeled"
    scanning, working = (Manifest.load(folder, "settings") for _ in range(2))
    for case in "xy":
        working.add(case, [str(toy.image(case))])
    working.save()
    scanning.note_present(["x"])
    working.add("z", [str(toy.image("z"))])
    hidden = Manifest.load(folder, "settings", "imagesTr")
    hidden.note_present([])  # says nothing of imagesUn
    folder.mkdir()
    for case in "xyz":
        (folder / f"{case}.b2nd").touch()
    working.save()
    assert list(Manifest.load(folder, "settings").finished_cases()) == ["x", "z"]


def test_all_failures_are_told_and_the_good_ones_kept(toy, made):
    toy.image("good")
    toy.image("broken").write_bytes(b"no image")
    toy.image("short").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        run(toy)
    message = str(error.value)
    assert "2 of 3" in message and "broken_0000" in message and "short_0000" in message and "good_0000" not in message
    made.clear()
    toy.image("broken"), toy.image("short")
    assert list(run(toy)) == ["broken", "good", "short"]
    assert made == ["broken", "short"]


def test_an_image_with_nan_is_refused(toy):
    import nibabel

    toy.write(toy.preprocessed / "nnUNetPlans.json", plans(reader="NibabelIO"))  # SimpleITK reads NaN of NIfTI as 0
    file = toy.image("x")
    image = np.asarray(nibabel.load(file).dataobj).copy()
    image[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), file)
    with pytest.raises(ValueError, match="x_0000.nii.gz.*not finite"):
        run(toy)


def test_a_kill_leaves_nothing_that_counts_as_done(toy, monkeypatch):
    toy.image("x")
    replace = os.replace

    def killed(source, target):
        if str(source).endswith(".b2nd"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            run(toy)
    folder = toy.preprocessed / "nnUNetPlans_3d_fullres_unlabeled"
    assert not list(folder.glob("*.b2nd")) and not Manifest.load(folder, "any").cases
    assert run(toy)["x"].is_file()
    assert not list(folder.glob(f"{PARTIAL}*"))


def test_what_is_done_before_an_interrupt_stays_done(toy, made, monkeypatch):
    for seed, case in enumerate("xyz"):
        toy.image(case, seed=seed)
    save_case = preprocess.Work._preprocess

    def interrupted(work, case, files):
        if case == "z":
            raise KeyboardInterrupt
        save_case(work, case, files)

    with monkeypatch.context() as patch:
        patch.setattr(preprocess.Work, "_preprocess", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(toy)
    made.clear()
    run(toy)
    assert made == ["z"]


def test_two_processes_at_once_keep_each_others_records(toy):
    files = {case: [str(toy.image(case))] for case in "xy"}
    folder = toy.preprocessed / "some_unlabeled"
    one, other = (Manifest.load(folder, "settings") for _ in range(2))
    one.add("x", files["x"])
    other.add("y", files["y"])
    one.save()
    assert set(Manifest.load(folder, "settings").cases) == {"x", "y"}


def test_folds_that_start_together_share_the_work(toy, monkeypatch):
    """The first one makes a case, and meanwhile a second one comes and makes all the others."""
    for seed, case in enumerate("vwxyz"):
        toy.image(case, seed=seed)
    made, original = [], preprocess.Work._preprocess

    def slow(work, case, files):
        made.append(case)
        if len(made) == 1:
            assert list(run(toy)) == list("vwxyz")
        original(work, case, files)

    monkeypatch.setattr(preprocess.Work, "_preprocess", slow)
    assert list(run(toy)) == list("vwxyz")
    assert sorted(made[1:]) == list("vwxyz")  # the second one did not know of the case in the making
    jobs = [(case, [case]) for case in "vwxyz"]
    orders = [preprocess.shuffled(jobs) for _ in range(20)]
    assert len({str(order) for order in orders}) > 5 and all(sorted(order) == jobs for order in orders)


def test_a_dead_worker_is_an_error_with_a_cure(toy, monkeypatch):
    def dies(work, jobs, num_processes):
        yield "x", None
        raise BrokenProcessPool

    toy.image("x"), toy.image("y")
    monkeypatch.setattr(preprocess, "_outcomes", dies)
    with pytest.raises(RuntimeError, match="memory.*-np"):
        run(toy)


def test_several_processes_give_the_same_and_all_failures(toy):
    for seed, case in enumerate("xy"):
        toy.image(case, seed=seed)
    toy.image("bad").write_bytes(b"")
    with pytest.raises(ValueError, match="bad_0000"):
        run(toy, num_processes=2)
    spawned = {case: blosc2.open(str(path))[:] for case, path in run_without(toy, "bad").items()}
    for path in (toy.preprocessed / "nnUNetPlans_3d_fullres_unlabeled").glob("*.b2nd"):
        path.unlink()
    for case, path in run(toy).items():
        np.testing.assert_array_equal(blosc2.open(str(path))[:], spawned[case])


def run_without(toy, case):
    (toy.raw / "imagesUn" / f"{case}_0000.nii.gz").unlink()
    return run(toy)


def test_configurations_that_share_their_data_are_made_once(toy, made):
    toy.image("x")
    counts = preprocess_dataset("901", configurations=["3d_fullres", "3d_other", "2d"], num_processes=1)
    assert counts == {"nnUNetPlans_3d_fullres": 1, "nnUNetPlans_2d": 1}
    assert made == ["x", "x"]


def test_no_image_no_plans_no_configuration_are_told(toy):
    with pytest.raises(ValueError, match="imagesUn.*named like those of imagesTr"):
        preprocess_dataset(toy.raw.name)
    with pytest.raises(ValueError, match="nnUNetv2_plan_and_preprocess.*found: nnUNetPlans"):
        PlannedDataset.open(901, "other")
    with pytest.raises(ValueError, match="3d_nothing.*known: 2d, 3d_fullres"):
        preprocess_dataset(901, configurations=["3d_nothing"])
    with pytest.raises(ValueError, match="902"):
        PlannedDataset.open(902)


def test_the_older_npz_format_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", data=np.zeros(1))
    with pytest.raises(ValueError, match="image and label in one file"):
        labeled_cases(tmp_path)


def test_the_pool_adds_both_sources(toy):
    for seed, case in enumerate("abc"):
        toy.preprocessed_case(case, seed=seed)
    toy.splits({"train": ["a"], "unlabeled": ["b"], "val": ["c"]})
    toy.image("x")
    pool = unlabeled_pool(*toy.managers(), 0, num_processes=1)
    assert {case: path.parent.name for case, path in pool.items()} == {
        "b": "nnUNetPlans_3d_fullres",
        "x": "nnUNetPlans_3d_fullres_unlabeled",
    }
    assert UnlabeledDataset(pool).load_case("x")[0].shape == UnlabeledDataset(pool).load_case("b")[0].shape
    with pytest.raises(ValueError, match="fold all is not in this file"):
        unlabeled_pool(*toy.managers(), "all", num_processes=1)
    toy.splits({"train": ["a", "b"], "val": ["c"]})
    assert list(unlabeled_pool(*toy.managers(), "all", num_processes=1)) == ["x"]


def test_an_empty_pool_and_a_shared_name_are_told(toy, monkeypatch):
    for case in "abcde":
        toy.preprocessed_case(case)
    with pytest.raises(ValueError, match="no unlabeled case.*imagesUn.*splits_final.json"):
        unlabeled_pool(*toy.managers(), 0)
    file = toy.image("a")
    with pytest.raises(ValueError, match="'a' is among the preprocessed labeled cases, but not in .*imagesTr any more"):
        unlabeled_pool(*toy.managers(), 0, num_processes=1)
    shutil.copy(file, toy.raw / "imagesTr")
    with pytest.raises(ValueError, match="'a' is also the name"):
        unlabeled_pool(*toy.managers(), 0, num_processes=1)


def test_the_manifest_is_readable_json_beside_the_folder(toy):
    file = toy.image("x")
    folder = run(toy)["x"].parent
    record = json.loads(folder.with_name(f"{folder.name}.json").read_text())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["x"]["files"] == {"x_0000.nii.gz": [file.stat().st_size, file.stat().st_mtime_ns, digest]}


def test_the_longer_the_manifest_takes_to_write_the_less_often_it_is_written(tmp_path, monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr("nnunet_semisam.data.manifest.time.monotonic", lambda: now[0])

    def slow_write(path, text):
        now[0] += 10
        lines.append(len(json.loads(text)))
        path.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", slow_write)
    image = tmp_path / "image"
    image.write_bytes(b"")
    manifest = Manifest.load(tmp_path / "made", "settings")
    for number in range(1000):
        now[0] += 1
        manifest.add(str(number), [str(image)])
    manifest.save()
    assert len(lines) < 8 and lines[0] == 1 and lines[-1] == 1000  # every 200 seconds, not every 2


def test_the_spacing_file_beside_a_tiff_counts_as_one_of_its_files(tmp_path):
    for name in ("a_0000.tif", "a.json", "b_0000.nii.gz", "b.json"):
        (tmp_path / name).write_text(name)
    manifest = Manifest.load(tmp_path / "made", "settings")
    for image in ("a_0000.tif", "b_0000.nii.gz"):
        manifest.add(image[0], [str(tmp_path / image)])
    assert [list(record["files"]) for record in manifest.cases.values()] == [
        ["a_0000.tif", "a.json"],
        ["b_0000.nii.gz"],
    ]


@pytest.mark.parametrize("what", ["missing", "damaged"])
def test_without_the_record_nobody_knows_what_counts(toy, monkeypatch, what):
    toy.image("x")
    record = Manifest.load(run(toy)["x"].parent, "settings").file
    monkeypatch.delenv("nnUNet_raw")
    content = record.read_text()
    record.unlink()
    if what == "damaged":
        record.write_text(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"holds preprocessed images, but their record .*json is {what}.*Copy it"):
        run(toy)


def test_hidden_cases_are_unlabeled_cases_and_need_no_images(toy, capsys):
    for case in "abc":
        toy.preprocessed_case(case)
    toy.splits({"train": ["a"], "unlabeled": ["b"], "val": ["c"]})
    assert main(["-d", "901", "-c", "3d_fullres"]) == 0
    assert "0 unlabeled case(s) ready" in capsys.readouterr().out
