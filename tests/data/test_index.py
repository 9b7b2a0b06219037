"""The index of a dataset: where it cannot be made, the disk is named and not the program."""

from __future__ import annotations

import pytest

from simpletuner.data.index import Index, Row
from simpletuner.errors import DiskError


def test_rows_are_kept(tmp_path):
    path = tmp_path / "new/folder/index.sqlite"
    index = Index(path)
    index.put([Row("a.png", "1", caption="a cat")])
    index.close()
    index = Index(path)
    assert index.rows() == {"a.png": Row("a.png", "1", caption="a cat")}
    index.close()


def test_a_damaged_file_is_made_anew(tmp_path):
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    index = Index(tmp_path / "index.sqlite")
    assert index.rows() == {}
    index.close()


@pytest.mark.parametrize("folder", ["/dev/null/x", "/proc/x", "file", "file/x"])
def test_a_folder_that_cannot_be_is_a_fault_of_the_disk(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError) as refused:
        Index(tmp_path / folder / "index.sqlite")
    (problem,) = refused.value.problems
    assert problem.exit_code == 7 and str(tmp_path / folder) in problem.message and "output_dir" in problem.fix


def test_a_folder_in_the_place_of_the_file_is_a_fault_of_the_disk(tmp_path):
    (tmp_path / "index.sqlite").mkdir()
    with pytest.raises(DiskError, match="index.sqlite|directory"):
        Index(tmp_path / "index.sqlite")
