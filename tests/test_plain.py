"""Cells as plain data: those that differ by their seed alone are composed once, and nothing that changed is missed."""

import re
import shutil
from pathlib import Path

import pytest
from support import TINY

from peftbench.config import build, compose, words
from peftbench.ground.errors import ConfigError

LIKE = [*TINY, "method=lora", "budget.like=bitfit"]


def anew(overrides: list[str]) -> build.Plain:
    """What is composed of these words, whatever was before."""
    return build.plain(compose.load(overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [*LIKE, "seed=3"],
        ["seed=3", *LIKE, "seed=0"],
        [*LIKE, "experiment=demo", "seed=12", 'outputs="a b"'],
        [*LIKE, "seed=3", "scope.layers=[${seed}]"],
        [*LIKE, "seed=1", r"data.path='rows/$\{seed\}'"],
        [*TINY, "method=dora", "method.config.x=1", "budget=500", "seed=2"],
        [*TINY, "method=peft", "method.type=vera", "++seed=9"],
        [*TINY, "task=joint", "task.tasks=[rte,sst2]", "seed=5"],
        [*TINY, "seed=007"],
        TINY,
    ],
    ids=lambda overrides: overrides[-1],
)
def test_what_was_composed_for_another_seed_is_what_is_composed_anew(overrides: list[str]) -> None:
    other = [re.sub(r"^seed=.*", "seed=8", override) for override in overrides]
    for line in (overrides, other, overrides):
        assert compose.plain(line) == anew(line)


def test_another_seed_is_not_composed_again_and_gets_values_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first = compose.plain([*LIKE, "seed=1"])
    first.raw["task"]["name"] = first.choices["task"] = "changed"
    assert first.like is not None
    first.like["arguments"]["kinds"] = "changed"
    with monkeypatch.context() as patch:
        patch.setattr(compose, "composed", None)
        second = compose.plain([*LIKE, "seed=2"])
    assert second == anew([*LIKE, "seed=2"])


def test_yaml_files_environment_and_folder_are_looked_at_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compose.conf_dir(), tmp_path / "conf")
    monkeypatch.setattr(words, "conf_dir", lambda: tmp_path / "conf")
    line = [*LIKE, "seed=1"]
    assert compose.plain(line).raw["method"]["rank"] == 8
    file = tmp_path / "conf" / "method" / "lora.yaml"
    file.write_text(re.sub(r"rank: 8", "rank: 16", file.read_text(encoding="utf-8")))
    assert compose.plain(line).raw["method"]["rank"] == 16
    monkeypatch.setenv("PEFTBENCH_CACHE", str(tmp_path / "kept"))
    assert compose.plain(line).raw["cache"] == str(tmp_path / "kept")


def test_what_cannot_be_composed_is_said_for_every_seed() -> None:
    for seed in (1, 2):
        with pytest.raises(ConfigError, match="there is no method called 'lara'"):
            compose.plain([*TINY, "method=lara", f"seed={seed}"])


@pytest.mark.parametrize("start", ["init_from=old", "init_from='${outputs}/old'"])
def test_another_folder_of_studies_is_taken_whatever_signs_it_has(start: str) -> None:
    for path in ("a b", "it's, \\[x]", "ä=(1)", "#{x}"):
        composed = compose.plain([*TINY, "outputs=there", "seed=0", start], Path(path))
        assert composed.raw["outputs"] == path
        assert composed.raw["init_from"] == ("old" if start == "init_from=old" else f"{path}/old")


def test_no_yaml_of_ours_takes_a_value_from_the_seed() -> None:
    files = list(compose.conf_dir().rglob("*.yaml"))
    assert files
    assert not [path for path in files if "${seed" in path.read_text(encoding="utf-8")]
