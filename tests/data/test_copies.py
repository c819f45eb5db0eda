"""Copies of labeled images among the unlabeled ones, whatever they are called and wherever they lie."""

from nnunet_semisam.data import copies
from nnunet_semisam.data.copies import copied_images


def test_only_files_of_cases_are_compared_and_each_is_read_once(tmp_path, monkeypatch):
    files = {}
    for name, content in {"a": b"same", "b": b"other!", "x": b"same", "y": b"diff", "z": b"longer than all"}.items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    (tmp_path / "x.json").write_bytes(b"same")  # of no case
    read = []
    monkeypatch.setattr(copies, "sha256_of", lambda file, of=copies.sha256_of: read.append(file[-1]) or of(file))
    labeled = {name: [str(files[name])] for name in "ab"}  # as dataset.json may list them
    unlabeled = {name: [str(files[name])] for name in "xyz"}
    assert list(copied_images(unlabeled, labeled)) == [("x", "a")]
    assert read == ["a", "x", "y"]
