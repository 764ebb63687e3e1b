"""Budgets: nobody exceeds one, selective methods take it exactly, and an impossible one is a single line."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from peftbench.backbone.model import build
from peftbench.config.fingerprint import digest
from peftbench.config.spec import Cell, Scope
from peftbench.ground.errors import ConfigError
from peftbench.methods.dial import trained_entries, within
from peftbench.methods.hut import HUT
from peftbench.methods.strata import Strata, Stratum
from peftbench.runner.counts import count_cell, kept_bounds

BUDGETS = [
    (["method=id3"], "needs a budget"),
    (["method=full", "budget=1000"], "Full takes no budget"),
    (["method=id3", "budget=999999999"], "999,999,999 entries asked, the candidates have"),
    (["method=id3", "budget=10", "scope.kinds=[layer_norm]"], "no candidate entry"),
    (["method=lora", "budget=10"], "LoRA here needs at least 1,024"),
    (["method=houlsby", "budget=10"], "Adapter here needs at least"),
    (["method=bitfit", "budget=10"], "the smallest bias here has 128"),
    (["method=gradual_unfreeze", "budget=10"], "the topmost group alone has"),
    (["method=spafit", "budget=10"], "Strata here needs at least"),
    (["method=adalora", "budget=10000", "method.target_rank=3"], "method.target_rank=3: above the initial rank, .* 2"),
    (["method=id3", "budget.like=id3"], "budget.like=id3: .*needs a budget"),
    (["method=id3", "budget.like=head"], "trains no backbone entry"),
    (["method=id3", "budget.like=bitfitt"], "there is no such method; did you mean bitfit"),
    (["method=id3", "budget.fraction=0.1", "budget.entries=5"], "only one can hold"),
    (["method=id3", "budget.fraction=1e-12"], "less than one of"),
    (["method=spafit_4_9_i"], "boundaries 4, 9, None: the backbone has layers 0 to 1"),
    (["method=spafit_4_9_i", "method.strata.frozen.last=1", "method.strata.biases.last=0"], "are out of order"),
]


@pytest.mark.parametrize(("overrides", "message"), BUDGETS, ids=lambda words: " ".join(words)[:50])
def test_impossible_budgets_are_one_line(tiny: Callable[..., Cell], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        count_cell(tiny(*overrides))
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    "override",
    ["budget.entries=0", "budget.entries=-5", "budget.fraction=1.5", "budget.fraction=0", "budget.entries=x"],
)
def test_impossible_numbers_are_refused_before_anything(tiny: Callable[..., Cell], override: str) -> None:
    with pytest.raises(ConfigError, match=override.replace(".", r"\.")):
        tiny("method=id3", override)


GROWING = ["lora", "adalora", "bitfit", "houlsby", "pfeiffer", "linear_adapter", "hut", "lst", "spafit"]
TWO_LAYERS = {"spafit": ["method.strata.frozen.last=-1", "method.strata.biases.last=0"]}


@pytest.mark.parametrize("budget", [1100, 2300, 5000, 20_000])
@pytest.mark.parametrize("method", [*GROWING, "id3", "random_masking", "id3_lora"])
def test_nobody_exceeds_a_budget(tiny: Callable[..., Cell], method: str, budget: int) -> None:
    needs = {"spafit": 3072, "houlsby": 1540, "adalora": 4620, "hut": 2048}.get(method, 0)  # rank 1, width 1
    cell = tiny(f"method={method}", f"budget={budget}", *TWO_LAYERS.get(method, []))
    if budget < needs:
        with pytest.raises(ConfigError, match="needs at least"):
            count_cell(cell)
        return
    used = count_cell(cell).backbone
    assert 0 < used <= budget
    if method in ("id3", "random_masking", "id3_lora"):
        assert used == budget


@pytest.mark.parametrize("method", [*GROWING, "gradual_unfreeze", "light_peft"])
def test_a_budget_above_all_that_a_method_can_train_is_no_error(tiny: Callable[..., Cell], method: str) -> None:
    """A budget is a maximum: more of it never trains less, and what a user has not typed is never refused."""
    used = []
    for budget in (400_000, 3_000_000):
        cell = tiny(f"method={method}", f"budget={budget}", *TWO_LAYERS.get(method, []))
        used.append(kept_bounds(cell)[1] if method == "light_peft" else count_cell(cell).backbone)
        assert 0 < used[-1] <= budget
    assert used[0] <= used[1]


def test_ranks_that_maps_cannot_have_are_not_chosen(tiny: Callable[..., Cell]) -> None:
    """HUT has at most as many as the shortest side of a map has places, alone and as the part of another method."""
    model, most = build(tiny().model, 2, "meta"), 2 * 2 * (2 * 128 * 128 + 2 * 128)
    alone, part = HUT(), Strata({"all": Stratum(None, {"hut": {"_target_": "peftbench.methods.hut.HUT"}})})
    for method in (alone, part):
        fitted = within(method, model, Scope(), 3_000_000)
        assert (fitted.rank, trained_entries(fitted, model, Scope())) == (128, most)  # type: ignore[attr-defined]


def test_a_budget_like_another_method(tiny: Callable[..., Cell]) -> None:
    bitfit = count_cell(tiny("method=bitfit")).backbone
    assert count_cell(tiny("method=id3", "budget.like=bitfit")).backbone == bitfit
    assert tiny("method=id3", "budget.like=bitfit").fingerprint != tiny("method=id3", "budget=5").fingerprint
    assert tiny("method=id3", "budget=500").budget.name == "500"


def test_as_many_as_light_peft_is_what_its_budget_means(tiny: Callable[..., Cell]) -> None:
    """Its budget is of what is left after pruning, under its own and under another method's name."""
    most = kept_bounds(tiny("method=light_peft"))[1]
    assert most < count_cell(tiny("method=light_peft")).backbone
    assert kept_bounds(tiny("method=light_peft", "budget.like=light_peft"))[1] == most
    assert count_cell(tiny("method=id3", "budget.like=light_peft")).backbone == most


def test_what_another_method_means_is_hashed_and_not_its_word(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    own = tmp_path / "conf" / "method" / "mine.yaml"
    own.parent.mkdir(parents=True)
    words = ["method=id3", f"hydra.searchpath=[file://{own.parents[1]}]", "budget.like=mine"]
    cells = []
    for rank in (1, 2):
        own.write_text(f"defaults: [lora, _self_]\nrank: {rank}\n")
        cells.append(tiny(*words))
    first, second = cells
    assert [cell.budget.name for cell in cells] == ["like-mine"] * 2
    assert first.fingerprint != second.fingerprint
    assert count_cell(first).backbone == count_cell(tiny("method=lora", "method.rank=1")).backbone
    assert count_cell(second).backbone == 2 * count_cell(first).backbone


def test_strata_in_a_list_are_those_under_names(tiny: Callable[..., Cell]) -> None:
    """As records of earlier versions have them."""
    named = tiny("method=spafit", "method.strata.frozen.last=-1", "method.strata.biases.last=0")
    strata = [
        {**stratum, "methods": list(stratum["methods"].values())}
        for stratum in named.method.arguments["strata"].values()
    ]
    listed = replace(named.method, arguments={**named.method.arguments, "strata": strata})
    assert count_cell(replace(named, method=listed)) == count_cell(named)


def test_another_method_takes_what_it_names_from_the_cell(tiny: Callable[..., Cell], tmp_path: Path) -> None:
    own = tmp_path / "conf" / "method" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("defaults: [lora, _self_]\nrank: ${protocol.batch_size}\n")
    words = ["method=id3", f"hydra.searchpath=[file://{own.parents[1]}]", "budget.like=mine"]
    first, second = (tiny(*words, f"protocol.batch_size={size}") for size in (2, 4))
    assert first.budget.like is not None
    assert first.budget.like.arguments["rank"] == 2
    assert count_cell(first).backbone == count_cell(tiny("method=lora", "method.rank=2")).backbone
    assert count_cell(second).backbone == 2 * count_cell(first).backbone
    assert digest(asdict(first.budget)) != digest(asdict(second.budget))
    assert first.fingerprint != second.fingerprint
