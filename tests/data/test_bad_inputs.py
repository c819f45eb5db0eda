"""Everything that can lie in imagesUn and must not: each is named with its file, what is wrong, and what to do."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import struct

import imageio.v3 as imageio
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from toy_dataset import ENDING, SHAPE, ToyDataset, dataset_json

from nnunet_semisam.cli import check as check_command
from nnunet_semisam.data.image_checks import file_problems, open_problems
from nnunet_semisam.data.preprocess import preprocess_unlabeled

VALUES = np.random.default_rng(0).normal(5, 1, SHAPE[::-1]).astype(np.float32)


def nifti(values=VALUES, affine=None, *edits):
    """Bytes of a NIfTI file; an edit is (struct format, offset, values...) in its header."""
    content = bytearray(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine).to_bytes())
    for form, offset, *numbers in edits:
        struct.pack_into(f"<{form}", content, offset, *numbers)
    return bytes(content)


def packed(*given):
    return gzip.compress(nifti(*given))


def cut(share):
    content = packed()
    return content[: int(share * len(content))]


def flipped():
    content = bytearray(packed())
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def png(shape=(9, 9)):
    stream = io.BytesIO()
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) if len(shape) > 2 else np.zeros(shape, np.uint8)
    imageio.imwrite(stream, values, extension=".png")
    return stream.getvalue()


def with_value(value):
    values = VALUES.copy()
    values[3, 3, 3] = value
    return values


SKEWED = np.array([[1, 0.7, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
COLOR = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
DIM, PIXDIM, DATATYPE, START = 42, 80, 70, 108  # offsets in the header

# the content of bad_0000.nii.gz; words of the problem
CONTENTS = {
    "empty file": (b"", "cannot open", "replace"),
    "text": (b"not an image\n" * 99, "cannot open", "replace"),
    "random bytes": (np.random.default_rng(1).bytes(5000), "cannot open", "replace"),
    "packed text": (gzip.compress(b"not an image\n" * 99), "cannot open", "replace"),
    "packed random bytes": (gzip.compress(np.random.default_rng(1).bytes(5000)), "cannot open", "replace"),
    "packed nothing": (gzip.compress(b""), "cannot open", "replace"),
    "a png": (png(), "is a 2D image", "give the whole volume"),
    "a packed png": (gzip.compress(png()), "cannot open", "replace"),
    "cut after 10 bytes": (packed()[:10], "cut off", "copy"),
    "cut at a twentieth": (cut(0.05), "cut off", "copy"),
    "cut in the middle": (cut(0.5), "cut off", "copy"),
    "cut before the end": (packed()[:-4], "cut off", "copy"),
    "a flipped byte": (flipped(), "damaged", "copy"),
    "half an image, packed well": (gzip.compress(nifti()[:4000]), "its header promises", "copy"),
    "header only": (gzip.compress(nifti()[:352]), "its header promises", "copy"),
    "half a header": (gzip.compress(nifti()[:200]), "cannot open", "replace"),
    "a huge header": (packed(VALUES, None, ("3h", DIM, 32000, 32000, 32000)), "its header promises", "copy"),
    "voxels that begin beyond the end": (packed(VALUES, None, ("f", START, 1e9)), "promises", "copy"),
    "no dimensions": (packed(VALUES, None, ("h", DIM - 2, 0)), "cannot open", "replace"),
    "99 dimensions": (packed(VALUES, None, ("h", DIM - 2, 99)), "cannot open", "replace"),
    "a side of length 0": (packed(VALUES, None, ("h", DIM, 0)), "cannot open", "replace"),
    "a side of negative length": (packed(VALUES, None, ("h", DIM, -5)), "cannot open", "replace"),
    "an unknown type of voxel": (packed(VALUES, None, ("h", DATATYPE, 7777)), "cannot open", "replace"),
    "spacing 0": (packed(VALUES, None, ("f", PIXDIM, 0)), "spacing is [0.0, 1.0, 1.0]", "Correct the header"),
    "spacing NaN": (packed(VALUES, None, ("f", PIXDIM + 4, np.nan)), "spacing is [1.0, nan", "Correct the header"),
    "infinite spacing": (packed(VALUES, None, ("f", PIXDIM + 8, np.inf)), "inf]", "Correct the header"),
    "skewed axes": (packed(VALUES, SKEWED), "orthonormal", "replace"),
    "1D": (packed(VALUES[:, 0, 0]), "cannot open", "replace"),
    "2D among volumes": (packed(VALUES[:, :, 0]), "is a 2D image", "give the whole volume"),
    "4D": (packed(np.stack([VALUES] * 3, -1)), "3 channels, but dataset.json names 1", "give exactly those"),
    "5D": (packed(np.stack([np.stack([VALUES] * 3, -1)] * 2, -1)), "5", "replace"),
    "color": (packed(COLOR), "channels", "give exactly those"),
    "all zero": (packed(VALUES * 0), "all its values are 0", "replace or remove"),
    "constant": (packed(VALUES * 0 + 7), "all its values are", "replace or remove"),
    "too large": (packed(VALUES * 1e37), "too large to normalise", "rescale"),
    "a label of this data set": (packed((VALUES > 5).astype(np.uint8)), "nothing but 0, 1", "remove it"),
    "infinite in float32": (packed(VALUES.astype(np.float64) * 1e300), "not finite", "replace them"),
}

# other things in the folder: how to make them; words of the problem
NAMES = {
    "another ending": ("touch", "bad_0000.nrrd", "does not end in '.nii.gz'", "convert or remove"),
    "capital letters": ("touch", "bad_0000.NII.GZ", "does not end in '.nii.gz'", "convert or remove"),
    "not packed": ("touch", "bad_0000.nii", "does not end in '.nii.gz'", "convert or remove"),
    "a text file": ("touch", "notes.txt", "does not end in '.nii.gz'", "convert or remove"),
    "a dicom file": ("touch", "bad_0000.dcm", "does not end in '.nii.gz'", "convert or remove"),
    "a half download": ("touch", "bad_0000.nii.gz.part", "does not end in '.nii.gz'", "convert or remove"),
    "a label": ("touch", "bad.nii.gz", "no channel number", "remove it, or rename it"),
    "three digits": ("touch", "bad_000.nii.gz", "no channel number", "rename"),
    "five digits": ("touch", "bad_00000.nii.gz", "no channel number", "rename"),
    "other digits": ("touch", "bad_\u0660\u0660\u0660\u0660.nii.gz", "no channel number", "rename"),
    "a copy": ("touch", "bad_0000 (1).nii.gz", "no channel number", "rename"),
    "a hyphen": ("touch", "bad-0000.nii.gz", "no channel number", "rename"),
    "no case": ("touch", "_0000.nii.gz", "no channel number", "rename"),
    "a line break": ("touch", "ba\nd_0000.nii.gz", "no channel number", "rename"),
    "ending twice": ("touch", "bad_0000.nii.gz.nii.gz", "no channel number", "rename"),
    "not a text": ("touch", b"bad\xff_0000.nii.gz", "bad\\udcff_0000.nii.gz: the name is not valid", "rename"),
    "a channel too many": ("touch", "bad_0001.nii.gz", "case 'bad' has the channel(s) 0001", "add or remove"),
    "the name of a label file": ("touch", "bad_seg_0000.nii.gz", "'bad_seg' ends in '_seg'", "rename"),
    "a labeled case": ("touch", "a_0000.nii.gz", "'a' is also the name of a case of imagesTr", "rename"),
    "the same but for case": ("touch", "GOOD_0000.nii.gz", "upper and lower case", "rename one"),
    "a folder": ("mkdir", "more", "is a folder", "move its images"),
    "a folder like an image": ("mkdir", "bad_0000.nii.gz", "is a folder", "move its images"),
    "a link to a folder": ("link to .", "bad_0000.nii.gz", "is a folder", "move its images"),
    "a dangling link": (
        "link to gone.nii.gz",
        "bad_0000.nii.gz",
        "a link to gone.nii.gz, which",
        "put the image itself",
    ),
    "a link to itself": ("link to bad_0000.nii.gz", "bad_0000.nii.gz", "which is not there", "put the image itself"),
    "a pipe": ("pipe", "bad_0000.nii.gz", "no ordinary file", "remove it"),
    "a socket": ("socket", "bad_0000.nii.gz", "no ordinary file", "remove it"),
}

# the second channel of a case with two: its image; words of the problem
SECOND = {
    "another shape": (VALUES[1:], np.eye(4), "its shape is", "Resample"),
    "another spacing": (VALUES, np.diag([1, 1, 1.3, 1]), "its spacing is", "Resample"),
    "a little off": (VALUES, np.diag([1, 1, 1.00003, 1]), "its spacing is [1.0, 1.0, 1.00003]", "Resample"),
    "another origin": (
        VALUES,
        np.array([[1, 0, 0, 9], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
        "its origin is",
        "",
    ),
    "another orientation": (VALUES, np.diag([-1, 1, 1, 1.0]), "its orientation is", "correct the header"),
    "2D beside 3D": (VALUES[:, :, 0], np.eye(4), "its shape is", "Resample"),
    "4D": (np.stack([VALUES] * 2, -1), np.eye(4), "its shape is", "Resample"),
}


@pytest.fixture
def planned(toy):
    """One labeled case, a good unlabeled image, and plans that know volumes."""
    plans_file = toy.preprocessed / "nnUNetPlans.json"
    content = json.loads(plans_file.read_text())
    toy.write(plans_file, content | {"original_median_shape_after_transp": list(SHAPE)})
    toy.preprocessed_case("a")
    toy.image("a", "imagesTr")
    toy.image("good", seed=1)
    return toy


def preprocess(toy, skipped=None):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(str(toy.preprocessed / "nnUNetPlans.json"))
    where = toy.raw.name, manager, manager.get_configuration("3d_fullres"), toy.managers()[2]
    return preprocess_unlabeled(*where, num_processes=1, show_progress=False, skipped=skipped)


def refused(toy, name, *words):
    """The check names it, preprocessing refuses it in the same words, and skips it when told to."""
    checked = [p for p in check_command.check_setup(901, configurations=["3d_fullres"]).problems if name in p]
    assert checked
    with pytest.raises(ValueError) as error:
        preprocess(toy)
    for told in ("\n".join(checked), str(error.value)):
        for word in (name, *words):
            assert word in told
        assert "BadImage" not in told  # sentences for users, no names of ours
    skipped = []
    kept = preprocess(toy, skipped)
    return kept, skipped


@pytest.mark.parametrize("what", CONTENTS)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_file_with_bad_content_is_named(planned, what):
    content, *words = CONTENTS[what]
    (planned.raw / "imagesUn" / f"bad_0000{ENDING}").write_bytes(content)
    kept, skipped = refused(planned, f"bad_0000{ENDING}", *words)
    assert list(kept) == ["good"] and len(skipped) == 1 and f"bad_0000{ENDING}" in skipped[0]


@pytest.mark.parametrize("what", NAMES)
def test_a_thing_with_a_bad_name_is_named(planned, monkeypatch, what):
    how, name, *words = NAMES[what]
    folder = planned.raw / "imagesUn"
    path = os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else name.encode())
    if how == "touch":
        with open(path, "wb") as file:
            file.write(packed())
    elif how == "mkdir":
        os.mkdir(path)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "socket":
        monkeypatch.chdir(folder)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(name)
    else:
        os.symlink(how.removeprefix("link to "), path)
    kept, skipped = refused(planned, str(folder), *words)
    assert list(kept) == ([] if what == "the same but for case" else ["good"])
    assert len(skipped) == 1 and words[0] in skipped[0]


@pytest.mark.parametrize("what", SECOND)
def test_channels_that_do_not_lie_on_each_other_are_named(tmp_path, monkeypatch, what):
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(tmp_path / variable))
    toy = ToyDataset(tmp_path, channels=2)
    for folder, case in (("imagesTr", "a"), ("imagesUn", "good"), ("imagesUn", "bad")):
        for channel in range(2):
            toy.image(case, folder, channel=channel, seed=channel)
    toy.preprocessed_case("a")
    values, affine, *words = SECOND[what]
    for channel, image in enumerate([nibabel.Nifti1Image(VALUES, np.eye(4)), nibabel.Nifti1Image(values, affine)]):
        nibabel.save(image, toy.raw / "imagesUn" / f"bad_{channel:04d}{ENDING}")
    kept, skipped = refused(toy, f"bad_0001{ENDING}", "bad_0000", *words)
    assert list(kept) == ["good"] and len(skipped) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_values_that_are_not_finite_are_named_where_the_reader_lets_them_through(planned, value):
    plans_file = planned.preprocessed / "nnUNetPlans.json"
    planned.write(plans_file, json.loads(plans_file.read_text()) | {"image_reader_writer": "NibabelIO"})
    (planned.raw / "imagesUn" / f"bad_0000{ENDING}").write_bytes(packed(with_value(value)))
    kept, skipped = refused(planned, f"bad_0000{ENDING}", "not finite", "replace them")
    assert list(kept) == ["good"] and len(skipped) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_that_the_reader_hides_are_warned_of(planned, value, kind):
    (planned.raw / "imagesUn" / f"odd_0000{ENDING}").write_bytes(packed(with_value(value).astype(kind)))
    report = check_command.check_setup(901, configurations=["3d_fullres"])
    (warning,) = [warning for warning in report.warnings if "odd_0000" in warning]
    assert f"'odd_0000{ENDING}' is not finite" in warning and "reads 0" in warning
    assert not [problem for problem in report.problems if "odd_0000" in problem]
    assert list(preprocess(planned)) == ["good", "odd"]


MHA = b"ObjectType = Image\nNDims = 3\nDimSize = 20 20 20\nElementType = MET_FLOAT\nElementDataFile = "
OTHER_FORMATS = {
    "a cut mha": ("SimpleITKIO", "bad_0000.mha", MHA + b"LOCAL\n" + bytes(100), "cannot open"),
    "an mha without its data": ("SimpleITKIO", "bad_0000.mha", MHA + b"gone.raw\n", "cannot open"),
    "a cut nrrd": ("SimpleITKIO", "bad_0000.nrrd", b"NRRD0004\ntype: float\ndimension: 3\nsizes: 9 9", "cannot open"),
    "a text as png": ("NaturalImage2DIO", "bad_0000.png", b"not an image", "cannot open"),
    "a cut png": ("NaturalImage2DIO", "bad_0000.png", png()[:40], "cannot open"),
    "an empty png": ("NaturalImage2DIO", "bad_0000.png", b"", "cannot open"),
    "colors for grey": ("NaturalImage2DIO", "bad_0000.png", png((9, 9, 3)), "3 channels"),
    "a black png": ("NaturalImage2DIO", "bad_0000.png", png(), "all its values are 0"),
    "a text as tif": ("Tiff3DIO", "bad_0000.tif", b"not an image", "cannot open"),
}


@pytest.mark.parametrize("what", OTHER_FORMATS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_bad_files_of_other_formats_are_named(tmp_path, what):
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader, name, content, word = OTHER_FORMATS[what]
    file = tmp_path / name
    file.write_bytes(content)
    reader = recursive_find_reader_writer_by_name(reader)()
    problems = open_problems({"bad": [str(file)]}, reader, dataset_json())
    assert len(problems) == 1 and str(file) in problems[0] and word in problems[0]


def test_rounding_of_the_geometry_is_forgiven(tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    toy = ToyDataset(tmp_path, channels=2)
    for channel, origin in enumerate([(0.0, 0.0, 0.0), (1e-5, 0.2, 0.0)]):
        file = toy.image("good", channel=channel, seed=channel)
        image = sitk.ReadImage(str(file))
        image.SetOrigin(origin)
        sitk.WriteImage(image, str(file))
    assert list(preprocess(toy)) == ["good"]


def test_there_are_many():
    assert len(CONTENTS) + len(NAMES) + len(SECOND) >= 40


def test_the_command_skips_only_when_asked_to_and_lists_at_the_end(planned, capsys):
    from nnunet_semisam.cli.preprocess import main

    folder = planned.raw / "imagesUn"
    (folder / f"bad_0000{ENDING}").write_bytes(b"")
    (folder / "label.nii.gz").write_bytes(b"")
    arguments = ["-d", "901", "-c", "3d_fullres", "2d", "-np", "1"]
    assert main(arguments) == 1
    capsys.readouterr()
    assert main([*arguments, "--skip-bad"]) == 0
    told = capsys.readouterr().out.strip().splitlines()
    place = told.index("skipped (--skip-bad, or the key skip_bad):")
    assert place > told.index("nnUNetPlans_2d_unlabeled: 1 unlabeled case(s) ready")
    assert len(told) == place + 4 and "label.nii.gz" in told[-3] and f"bad_0000{ENDING}" in told[-2]
    assert "unless the section has skip_bad=true" in told[-1]


def test_nothing_left_is_an_error_all_the_same(planned, capsys):
    from nnunet_semisam.cli.preprocess import main

    (planned.raw / "imagesUn" / f"good_0000{ENDING}").write_bytes(b"")
    assert main(["-d", "901", "-c", "3d_fullres", "-np", "1", "--skip-bad"]) == 1
    assert "no image found" in capsys.readouterr().err


@pytest.mark.parametrize("angle", [0, 0.1, 0.3], ids="{} radians".format)
@pytest.mark.parametrize("shift, told", [(0.0, 0), (0.4, 0), (2.0, 1)])
def test_channels_stored_otherwise_lie_on_each_other_for_a_reader_that_reorients(tmp_path, shift, told, angle):
    turned, flip = np.eye(4), np.diag([-1.0, 1, 1, 1])
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    flip[0, 3] = VALUES.shape[0] - 1 + shift
    files = [str(tmp_path / f"x_{channel:04d}{ENDING}") for channel in range(2)]
    nibabel.save(nibabel.Nifti1Image(VALUES, turned), files[0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(VALUES[::-1]), turned @ flip), files[1])
    if shift == 0:
        first, second = (NibabelIOWithReorient().read_images([file])[0] for file in files)
        assert np.array_equal(first, second)
    problems = file_problems(files, NibabelIOWithReorient)
    assert len([text for text in problems if files[1] in text and "lie on each other" in text]) >= told
    assert bool(problems) == bool(told)
    assert file_problems(files, NibabelIO) and not file_problems(files, NibabelIO, channels=False)
