"""Trainable counts against the closed forms and exact values of tests/data/counts.yaml, without weights."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import yaml
from forgery import Said

from peftbench.cli import main
from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.runner.counts import Counts, count_cell, kept_bounds

FACTS = yaml.safe_load((Path(__file__).parent / "data" / "counts.yaml").read_text(encoding="utf-8"))
BACKBONES = {
    "bert_tiny": "bert-tiny",
    "bert_mini": "bert-mini",
    "bert_small": "bert-small",
    "bert_medium": "bert-medium",
    "bert_base_cased": "bert-base-cased",
    "bert_base_uncased": "bert-base-uncased",
    "bert_large_cased": "bert-large-cased",
    "roberta_base": "roberta-base",
    "roberta_large": "roberta-large",
    "deberta_v3_base": "deberta-v3-base",
    "electra_small": "electra-small-discriminator",
    "distilbert": "distilbert-base-uncased",
    "minilm_l6": "minilm-l6-h384-uncased",
}
# our overrides -> the entry of counts.yaml that they must reproduce for every backbone that it lists
FORMS = {
    "bitfit": ["method=bitfit"],
    "bitfit_b_q_b_m2": ["method=bitfit", "method.kinds=[query,intermediate]"],
    "bitfit_b_m2": ["method=bitfit", "method.kinds=[intermediate]"],
    "bitfit_b_q": ["method=bitfit", "method.kinds=[query]"],
    "lora_qv_r8": ["method=lora"],
    "lora_qv_r1": ["method=lora", "method.rank=1"],
    "lora_qv_r16": ["method=lora", "method.rank=16"],
    "lora_six_r8": ["method=lora", "method.kinds=[query,key,value,attention_output,intermediate,output]"],
    "lora_six_r2": [
        "method=lora",
        "method.kinds=[query,key,value,attention_output,intermediate,output]",
        "method.rank=2",
    ],
    "adalora_start_r12": ["method=adalora"],
    "houlsby_m8": ["method=houlsby", "method.width=8"],
    "houlsby_m64": ["method=houlsby"],
    "houlsby_m64_with_layernorm": ["method=houlsby", "method.layer_norm=true"],
    "pfeiffer_m16": ["method=pfeiffer", "method.width=16"],
    "pfeiffer_m64": ["method=pfeiffer"],
}


@cache
def composed(*overrides: str) -> Cell:
    return compose.cell_from(list(overrides))


def counted(model: str, *method: str, task: str = "sst2") -> Counts:
    """Counts of a method on a model; each is composed once, and put together here."""
    parts = composed(f"model={model}"), composed(*method), composed(f"task={task}")
    return count_cell(replace(parts[1], model=parts[0].model, task=parts[2].task))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", BACKBONES)
def test_backbone_entries(model: str, form: str) -> None:
    values = FACTS["methods"][form]["values"]
    if BACKBONES[model] not in values:
        assert BACKBONES[model] == "distilbert-base-uncased"  # counts.yaml has no value there: the closed form
        numbers = FACTS["backbones"]["distilbert-base-uncased"]["numbers"]
        form_text = FACTS["methods"][form]["closed_form"]
        expected = eval(form_text, {}, {**numbers, **FACTS["methods"][form].get("with", {})})
    else:
        expected = values[BACKBONES[model]]
    assert counted(model, *FORMS[form]).backbone == expected


@pytest.mark.parametrize("task", ["stsb", "sst2", "mnli"])
@pytest.mark.parametrize("model", BACKBONES)
def test_full_and_head(model: str, task: str) -> None:
    facts = FACTS["backbones"][BACKBONES[model]]
    labels = {"stsb": 1, "sst2": 2, "mnli": 3}[task]
    full = counted(model, "method=full", task=task)
    assert full.model == full.total == facts["parameters"][f"labels_{labels}"]
    assert full.backbone == facts["parameters"]["without_head"]
    assert full.head == facts["head"][f"labels_{labels}"]
    assert counted(model, "method=head", task=task).backbone == 0


def test_bitfit_without_the_deberta_pooler_is_the_published_103k() -> None:
    kinds = "[query,key,value,attention_output,intermediate,output,layer_norm,embeddings]"
    counts = counted("deberta_v3_base", "method=bitfit", f"method.kinds={kinds}")
    assert counts.backbone == FACTS["methods"]["bitfit_prefix_only"]["values"]["deberta-v3-base"] == 102_912


@pytest.mark.parametrize("model", ["mpnet_base", "all_mpnet_base"])
def test_mpnet_counts_are_the_closed_forms(model: str) -> None:
    d, f, layers = 768, 3072, 12
    embeddings = (30527 + 514 + 2) * d + 32 * 12  # words, positions, LayerNorm, relative positions by head
    full = counted(model, "method=full")
    assert full.backbone == embeddings + layers * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d)
    assert full.head == d * d + d + 2 * d + 2
    assert counted(model, "method=bitfit").backbone == layers * (7 * d + f) + d
    assert counted(model, "method=lora").backbone == layers * 4 * d * 8


ADALORA = [  # model, rank, mean rank at the end (None: two thirds), trained, least and most that is left without the E
    ("minilm_l6", 12, None, 498_096, 221_184, 387_072),
    ("minilm_l6", 6, None, 249_048, 110_592, 193_536),
    ("minilm_l6", 4, 2, 166_032, 55_296, 110_592),
    ("deberta_v3_base", 12, None, 1_991_520, 884_736, 1_548_288),
    ("deberta_v3_base", 6, None, 995_760, 442_368, 774_144),
    ("deberta_v3_base", 4, 2, 663_840, 221_184, 442_368),
    ("bert_large_cased", 12, None, 5_310_144, None, None),
    ("bert_large_cased", 6, None, 2_655_072, None, None),
    ("bert_large_cased", 4, None, 1_770_048, None, None),
]


@pytest.mark.parametrize(("model", "rank", "target", "trained", "least", "most"), ADALORA)
def test_adalora_trains_all_its_triplets_and_keeps_the_targets(
    model: str, rank: int, target: int | None, trained: int, least: int | None, most: int | None
) -> None:
    words = [f"method.rank={rank}", *([f"method.target_rank={target}"] if target else [])]
    cell = composed(f"model={model}", "method=adalora", *words)
    counts = count_cell(cell)
    left = trained * 2 // 3 if target is None else trained * target // rank
    assert (counts.backbone, counts.kept) == (trained, left)
    if least is not None and most is not None:
        maps = 6 * cell.model.depth
        triplets = maps * rank * 2 // 3 if target is None else maps * target  # each has an entry of E, too
        assert kept_bounds(cell) == (least + triplets, most + triplets)


def test_scope_limits_every_method() -> None:
    layer = 4 * (384 * 384 + 384) + 2 * 384 * 1536 + 1536 + 384 + 4 * 384
    assert counted("minilm_l6", "method=full", "scope.layers=4-5").backbone == 2 * layer
    assert counted("minilm_l6", "method=lora", "scope.layers=[0]").backbone == 4 * 384 * 8
    assert counted("minilm_l6", "method=bitfit", "scope.layers=0-1", "scope.kinds=[query]").backbone == 2 * 384
    on_value = ("scope.layers=[1,4]", "scope.kinds=[value]")
    assert counted("minilm_l6", "method=adalora", *on_value).backbone == 2 * 12 * (2 * 384 + 1)
    assert counted("minilm_l6", "method=hut", *on_value).backbone == 2 * (2 * 384 + 2 * 384)
    on_output = ("scope.layers=[5]", "scope.kinds=[output]")
    assert counted("minilm_l6", "method=linear_adapter", *on_output).backbone == 2 * 384 * 128


SPAFIT = FACTS["spafit"]["values"]


@pytest.mark.parametrize("variant", SPAFIT)
def test_spafit_is_the_published_count(variant: str) -> None:
    """Head and pooler bias included, as the paper counts: 4-9-I is printed as 5.65M, 4-9-II as 7.49M."""
    word = "spafit_" + variant.lower().replace("-", "_")
    deep = "model=bert_large_cased"  # the boundaries are checked against the depth when the method is attached
    assert count_cell(composed(deep, f"method={word}")).total == SPAFIT[variant]


def test_spafit_scales_to_any_depth() -> None:
    assert counted("bert_large_cased", "method=spafit").total == SPAFIT["4-9-I"]
    d, f = 384, 1536  # MiniLM: layer 0 frozen, layers 1 and 2 BitFit, layers 3 to 5 LoRA and BitFit, pooler bias
    assert counted("minilm_l6", "method=spafit").backbone == 2 * (7 * d + f) + 3 * (f + 2 * d + 2 * d * 64 * 3) + d


def test_count_command_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["peftbench", "count", "model=bert_large_cased", "method=bitfit", "task=rte", "--json"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == {
        "backbone": 272_384,
        "head": 2_050,
        "total": 274_434,
        "model": 333_581_314,
        "kept": 272_384,
    }


def test_count_of_methods_by_a_pattern_says_what_trains_at_most_and_what_is_kept(command: Callable[..., Said]) -> None:
    """As budgets.md has it; what is not in the table has its reason below."""
    code, out, err = command("count", "method=glob([ad*,f*,id3,li*])", "model=bert_tiny", "budget.like=light_peft")
    assert code == 0, err
    head, rows = (
        [[cell.strip() for cell in line.split(bar)[1:-1]] for line in out.splitlines() if bar in line] for bar in "┃│"
    )
    assert [" ".join(cells).strip() for cells in zip(*head, strict=True)][:3] == ["", "at most", "kept"]
    counts = {row[0].removeprefix("method="): [int(cell.replace(",", "")) for cell in row[1:3]] for row in rows}
    assert counts["light_peft"][0] > counts["light_peft"][1], "it prunes"
    assert counts["adalora"][0] > counts["adalora"][1]
    assert counts["id3"][0] == counts["id3"][1]
    reasons = set(re.findall(r"^method=(\w+): ", out + err, re.MULTILINE))
    assert "full" in reasons
    assert {*counts, *reasons} == {w for w in compose.words("method") if re.match("ad|f|id3$|li", w)}


def test_count_of_several_cells_is_a_table_with_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=bert_large_cased", "task=rte", "method=bitfit,spafit_4_9_ii,adalora,id3"]
    for more, code in (([], 0), (["--json"], 0), (["method=id3,d3"], 2)):
        monkeypatch.setattr("sys.argv", ["peftbench", "count", *words[: 2 if code else 3], *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        shown = "".join(capsys.readouterr())
        if more == ["--json"]:
            counts = json.loads(shown)
            assert counts["method=bitfit"]["total"] == 274_434
            assert counts["method=spafit_4_9_ii"]["total"] == 7_485_442
            assert counts["method=adalora"]["kept"] == 3_540_096
            assert "needs a budget" in counts["method=id3"]["error"]
        else:
            assert "method=id3: method: a selective method needs a budget" in shown
            cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
            pruned = ["method=adalora", "5,310,144", "3,540,096", "2,050", "5,312,194", "1.5925%"]
            assert ("7,485,442" in shown) == (pruned in cells) == (code == 0), "backbone, kept, head, total"
