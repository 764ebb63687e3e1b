"""scripts/base_study.sh: its claims can be tested on its cells, and every method has a seed before any has two."""

from dataclasses import replace
from itertools import pairwise

import pytest
from noted import commands_of

from peftbench.config import compose, recipes
from peftbench.config.spec import Cell
from peftbench.report import planned

METHODS = {"full", "bitfit", "lora", "spafit", "id3", "random_masking"}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return commands_of("base_study.sh", tmp_path_factory.mktemp("base"), "/mpnet")


def cells_of(said: list[list[str]], end: str) -> list[Cell]:
    """The cells that are kept in the outputs that end so, in their order."""
    kept = [words[2:-1] for words in said if words[:2] == ["plan", "-m"] and any(word.endswith(end) for word in words)]
    return [compose.cell_from(words) for line in kept for words in recipes.swept(line)]


def test_what_is_registered_can_be_tested_on_every_task(said: list[list[str]]) -> None:
    [registered] = [words for words in said if "--register" in words]
    assert said.index(registered) < min(index for index, words in enumerate(said) if words[0] == "work")
    claims = [claim for before, claim in pairwise(registered) if before == "--claim"]
    for task in ("rte", "mrpc", "stsb"):
        cells = [cell for cell in cells_of(said, "/base.list") if cell.task.name == task]
        kinds = {cell.folder.rpartition("/")[0]: cell for cell in cells}
        tests = planned.tests(claims, [cell.folder for cell in cells], kinds, "glue_base")
        assert len(tests) == len(claims) == 6, task


def test_all_cells_share_one_protocol_but_for_the_rate(said: list[list[str]]) -> None:
    cells = cells_of(said, "/outputs")
    assert len({replace(cell.protocol, lr=1.0) for cell in cells}) == 1
    assert {cell.model.weights for cell in cells} == {"/mpnet"}
    assert {cell.folder for cell in cells} == {cell.folder for cell in cells_of(said, "/base.list")}


def test_every_method_has_a_seed_before_any_has_two(said: list[list[str]]) -> None:
    cells = cells_of(said, "/outputs")
    assert [cell.seed for cell in cells] == [0] * 18 + [1] * 18
    assert {cell.method.name for cell in cells[:18]} == {cell.method.name for cell in cells[18:]} == METHODS
