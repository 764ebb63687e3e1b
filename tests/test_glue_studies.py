"""scripts/glue_studies.sh: its cells are possible, its claims can be tested on them, and all share one protocol."""

from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
from noted import commands_of

from peftbench.config import compose, recipes
from peftbench.config.spec import Cell
from peftbench.report import planned
from peftbench.report.records import name_of_cell
from peftbench.runner import budgets
from peftbench.runner.counts import count_cell

TASKS = {"small": ("mrpc", "rte", "stsb", "cola"), "contradictions": ("mrpc", "stsb", "cola")}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    return commands_of("glue_studies.sh", tmp_path_factory.mktemp("glue"))


def cells_of(lines: list[list[str]], task: str, seeds: tuple[int, ...] = (0, 1)) -> list[Cell]:
    """The cells of some seeds on a task."""
    own = [[word for word in words if not word.startswith("seed=")] for words in lines if f"task={task}" in words]
    swept = [words for line in own for words in recipes.swept(line)]
    return [compose.cell_from([*words, f"seed={seed}"]) for words, seed in product(swept, seeds)]


def listed(said: list[list[str]], end: str) -> list[list[str]]:
    """The words of what is kept for the outputs that end so, of the first seed where each is kept by itself."""
    return [
        words[2:-1]
        for words in said
        if words[:2] == ["plan", "-m"]
        and any(word.startswith("outputs=") and word.endswith(end) for word in words)
        and ("seed=0" in words or not end.endswith("/outputs"))
    ]


@pytest.mark.parametrize("study", TASKS)
def test_what_is_registered_can_be_tested_on_every_task(said: list[list[str]], study: str) -> None:
    [registered] = [words for words in said if f"{study}.plan.yaml" in " ".join(words) and words[0] == "plan"]
    claims = [claim for before, claim in pairwise(registered) if before == "--claim"]
    [kept_in] = [place for before, place in pairwise(registered) if before == "--saved-in"]
    assert kept_in.endswith(f"/outputs/{study}.list")
    assert any(word.endswith("/outputs") and word.startswith("outputs=") for word in registered), "they will lie there"
    for task in TASKS[study]:
        cells = cells_of(listed(said, f"/{study}.list"), task)
        kinds = {cell.folder.rpartition("/")[0]: cell for cell in cells}
        tests = planned.tests(claims, [cell.folder for cell in cells], kinds, "glue_small")
        assert len(tests) == len(claims) >= 9, task


def test_all_cells_share_one_protocol_but_for_the_rates(said: list[list[str]]) -> None:
    lines = listed(said, "/outputs")
    assert {word for words in lines for word in words if word.startswith("study=")} == {"study=glue_small"}
    for task in ("mrpc", "stsb", "cola", "rte"):
        cells = cells_of(lines, task, seeds=(0,))
        protocols = {(replace(cell.protocol, lr=1.0, head_lr=None), cell.select.factors) for cell in cells}
        assert len(protocols) == 1, task
        assert len({cell.folder for cell in cells}) >= 9


def test_all_cells_get_one_seed_before_any_gets_the_next(said: list[list[str]]) -> None:
    seeds: list[set[str]] = [set()]
    for words in said:
        if words[0] == "work":
            seeds.append(set())
        elif any(word.startswith("outputs=") and word.endswith("/outputs") for word in words) and "-m" in words:
            seeds[-1] |= {word for word in words if word.startswith("seed=")}
    orders = [range(8), range(10), range(3)]
    assert seeds == [*({f"seed={seed}"} for order in orders for seed in order), set()]


def test_what_is_compared_has_as_many_entries(said: list[list[str]]) -> None:
    cells = {
        name_of_cell(cell): cell
        for words in listed(said, "/outputs")
        if any(word.startswith(("label=r", "budget=", "method.strata", "method=spafit")) for word in words)
        for cell in cells_of([words], "mrpc", seeds=(0,))
    }
    entries = {name: count_cell(budgets.resolve(cell)).backbone for name, cell in cells.items()}
    for rank in (1, 2, 32):
        lora = cells[f"lora_r{rank}"].method.arguments
        assert (lora["alpha"] / lora["rank"], entries[f"lora_r{rank}"]) == (2, 9216 * rank)
        assert entries[f"random_masking {9216 * rank}"] == 9216 * rank
    # as many of LoRA; of biases a tenth less, a third of a percent of all
    assert 0 <= entries["spafit"] - entries["spafit_even"] < 0.005 * entries["spafit"]


def test_a_registered_plan_is_never_written_again(said: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    for study in TASKS:
        (tmp_path / "outputs" / f"{study}.plan.yaml").touch()
    again = commands_of("glue_studies.sh", tmp_path)
    assert not any("--register" in words for words in again)
    assert len(again) < len(said)
