"""Files that are whole or not there: also after a power loss."""

import os
from pathlib import Path

import pytest

from peftbench.ground.files import make_folder, write_atomically

Step = tuple[str, Path]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What is synced and put in place, in its order; it is done, too."""
    taken: list[Step] = []
    replace, fsync = os.replace, os.fsync

    def put(source: str, target: Path) -> None:
        replace(source, target)
        taken.append(("put in place", Path(target)))

    def sync(handle: int) -> None:
        fsync(handle)
        taken.append(("synced", Path(os.readlink(f"/proc/self/fd/{handle}"))))

    monkeypatch.setattr(os, "replace", put)
    monkeypatch.setattr(os, "fsync", sync)
    return taken


def test_a_file_survives_a_power_loss_once_it_is_written(tmp_path: Path, steps: list[Step]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    content, placed, name = steps
    assert content[0] == "synced"
    assert content[1].parent == tmp_path
    assert content[1].name.startswith(".file."), "the draft, before it has the name"
    assert [placed, name] == [("put in place", path), ("synced", tmp_path)]


def test_folders_made_for_a_file_survive_too(tmp_path: Path, steps: list[Step]) -> None:
    assert make_folder(tmp_path / "a" / "b") == [tmp_path / "a" / "b", tmp_path / "a"]
    assert set(steps) == {("synced", tmp_path), ("synced", tmp_path / "a")}
