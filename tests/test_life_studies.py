"""scripts/life_studies.sh: every command that it gives is one that the project has, with words that are possible."""

from pathlib import Path

import pytest
from noted import commands_of

from peftbench.config import compose, recipes
from peftbench.lifecycle import edit_words, merge_words, port_words
from peftbench.lifecycle.sequence import words as sequence_words


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The commands that all studies give, in their order, where everything is there already."""
    here = tmp_path_factory.mktemp("life")
    for row in ("mrpc-bitfit", "mrpc-lora", "sst2-bitfit", "sst2-lora", "stsb-full"):
        for seed in range(3):
            (here / "outputs" / "life" / f"{row}-minilm_l6-0a1b2c3d" / f"seed{seed}").mkdir(parents=True)
    return commands_of("life_studies.sh", here)


def test_every_study_gives_its_commands_and_all_use_the_same_runs(said: list[list[str]]) -> None:
    given = [words[0] for words in said]
    assert {"plan", "work", "merge", "port", "flips", "sequence", "edit", "backbone", "table"} == set(given)
    runs = {tuple(words) for words in said if words[0] == "plan" and "study=life" in words}
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for words in runs:
        cell = tuple(word for word in words if word.startswith(("method=", "task=")))
        how = tuple(word for word in words if word.startswith("protocol."))
        assert first.setdefault(cell, how) == how, "a cell is the same, whichever study asks for it"
    assert len(runs) >= 6


def test_cells_are_possible(said: list[list[str]]) -> None:
    lists = [words[1:-1] for words in said if words[0] == "plan"]
    assert all(words[-1] == "--save" for words in said if words[0] == "plan")
    distinct = {
        tuple(word for word in words if word.startswith(("study=", "task=", "method="))): words for words in lists
    }
    for words in distinct.values():
        own = [word for word in words if not word.startswith(("init_from", "objective"))]
        cell = compose.cell_from(recipes.swept(own)[0])
        assert cell.protocol.max_steps is not None
    assert any("objective=muscle" in words for words in lists)


def test_artefacts_are_possible(said: list[list[str]]) -> None:
    kept = 0
    for command, *words in said:
        own = ["seed=0" if word == "seed=0,1,2" else word for word in words if word != "--save"]
        if command == "merge":
            kept += len(merge_words.lines(own))
        if command == "port":
            kept += len(port_words.lines(own))
        if command == "sequence":
            kept += len(sequence_words.lines(own))
        if command == "edit":
            runs = [Path(word) for word in own if "=" not in word]
            assert len(runs) == 3
            kept += len(edit_words.lines(runs[0], [word for word in own if "=" in word]))
    assert kept > 60
