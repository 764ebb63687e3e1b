"""scripts/glue_studies.sh: its cells are possible, its claims can be tested on them, and all share one protocol."""

from itertools import pairwise, product
from pathlib import Path

import pytest
from noted import commands_of

from peftbench.config import compose, recipes
from peftbench.config.spec import Cell
from peftbench.report import planned

PLANS = ("small", "contradictions")


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return commands_of("glue_studies.sh", tmp_path_factory.mktemp("glue"))


def cells_of(lines: list[list[str]], task: str) -> list[Cell]:
    """The cells of seeds 0 and 1 on a task."""
    own = [[word for word in words if not word.startswith("seed=")] for words in lines if f"task={task}" in words]
    swept = [words for line in own for words in recipes.swept(line)]
    return [compose.cell_from([*words, f"seed={seed}"]) for words, seed in product(swept, (0, 1))]


def listed(said: list[list[str]], end: str) -> list[list[str]]:
    """The words of what is kept for the outputs that end so."""
    return [
        words[2:-1]
        for words in said
        if words[:2] == ["plan", "-m"] and any(word.startswith("outputs=") and word.endswith(end) for word in words)
    ]


@pytest.mark.parametrize("study", PLANS)
def test_what_is_registered_can_be_tested_on_every_task(said: list[list[str]], study: str) -> None:
    [registered] = [words for words in said if f"{study}.plan.yaml" in " ".join(words) and words[0] == "plan"]
    claims = [claim for before, claim in pairwise(registered) if before == "--claim"]
    assert "--saved" in registered
    cells = cells_of(listed(said, f"/{study}.list"), "mrpc")
    kinds = {cell.folder.rpartition("/")[0]: cell for cell in cells}
    tests = planned.tests(claims, [cell.folder for cell in cells], kinds, "glue_small")
    assert len(tests) == len(claims) >= 9


def test_all_cells_share_one_protocol_but_for_the_rates(said: list[list[str]]) -> None:
    lines = listed(said, "/outputs")
    assert {word for words in lines for word in words if word.startswith("study=")} == {"study=glue_small"}
    for task in ("mrpc", "stsb", "cola", "rte"):
        cells = cells_of(lines, task)
        protocols = {
            (cell.protocol.precision, cell.protocol.batch_size, cell.protocol.max_steps, cell.select.factors)
            for cell in cells
        }
        assert len(protocols) == 1, task
        assert len({cell.folder for cell in cells}) > 15


def test_lora_spread_evenly_has_as_many_entries_as_spafits(said: list[list[str]]) -> None:
    even = [words for words in listed(said, "/outputs") if "label=even" in words and "task=mrpc" in words]
    [cell] = {cell.method.name: cell for cell in cells_of(even, "mrpc")}.values()
    ranks = cell.method.arguments["strata"]["lora"]["methods"]["lora"]
    assert (cell.method.name, ranks["rank"] * cell.model.depth) == ("spafit_even", 64 * cell.model.depth // 2)


def test_a_registered_plan_is_never_written_again(said: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    for study in PLANS:
        (tmp_path / "outputs" / f"{study}.plan.yaml").touch()
    again = commands_of("glue_studies.sh", tmp_path)
    assert not any("--register" in words for words in again)
    assert len(again) < len(said)
