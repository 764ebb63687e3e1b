"""Published figures: in their own metric beside ours, counted again, run again."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support import call, start

from peftbench import papers
from peftbench.config import compose
from peftbench.ground.files import RECORD_FILE
from peftbench.record import Evaluation, Headline, Metrics, find_records, read_record
from peftbench.report import table
from peftbench.report.records import Study


def test_a_paper_stands_beside_ours_in_its_own_metric(finished: Path) -> None:
    template = read_record(finished / RECORD_FILE)
    paper = papers.load("lora_roberta_base")
    cell = dataclasses.replace(template.cell, method="lora", model="roberta_base", task="mnli", data="hub")
    config = compose.resolved(compose.load(["model=roberta_base", "method=lora", "task=mnli", "data=hub"]))
    metrics = {"accuracy_matched": 0.87, "accuracy_mismatched": 0.88}
    evaluation = Evaluation(1, 1.0, metrics, collapsed=False, chosen_by=0.87)
    record = dataclasses.replace(
        template, cell=cell, config=config, headline=Headline("accuracy_matched", 0.87, None),
        metrics=Metrics(evaluation, [evaluation], "best_dev", False),
    )  # fmt: skip
    line = table.build(Study("s", [record], [Path()]), paper).lines[0]
    entry = line.entries["mnli acc m"]
    assert entry.published == 87.5
    ours = 100 * (0.87 * 9815 + 0.88 * 9832) / (9815 + 9832)
    assert entry.difference == pytest.approx(ours - 87.5)
    assert line.average.published == 87.2
    labelled = dataclasses.replace(
        record, cell=dataclasses.replace(cell, method="lora_mine"), config={**config, "label": "mine"}
    )
    assert table.build(Study("s", [labelled], [Path()]), paper).lines[0].entries["mnli acc m"].published == 87.5
    rank4 = dataclasses.replace(record, config={**config, "method": {**config["method"], "rank": 4}})
    assert table.build(Study("s", [rank4], [Path()]), paper).lines[0].entries["mnli acc m"].published is None


def test_published_averages_are_those_of_the_published_columns() -> None:
    for name in papers.names():
        paper = papers.load(name)
        if paper.average.tasks is None:
            continue
        checked = 0
        for row in paper.rows:
            columns = [
                [row.scores.get(task, {}).get(metric) for metric in metrics]
                for task, metrics in paper.average.tasks.items()
            ]
            if row.average is None or any(figure is None for column in columns for figure in column):
                continue
            assert np.mean([np.mean(column) for column in columns]) == pytest.approx(row.average, abs=0.0625), row.name
            checked += 1
        assert checked, name


def test_papers_say_what_they_are_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    for words, line in (
        (
            ["table", "x", "--paper", "lora"],
            "paper lora: there is none; did you mean adalora_deberta_v3_base or lora_roberta_base",
        ),
        (["count", "--paper", "spafi"], "did you mean spafit"),
        (["reproduce", "id3", "--dry-run"], "its scores per task are not public"),
        (
            ["reproduce", "lora_roberta_base", "--only", "rta"],
            "--only rta: not in this paper's table; did you mean rte",
        ),
        (["reproduce", "lora_roberta_base", "--as", "code"], "--as code: allowed: paper, script"),
    ):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2, words
        assert line in done.stderr


def test_every_count_that_a_paper_states_is_checked(tmp_path: Path) -> None:
    from peftbench.study import counts

    expected = {
        "spafit": {"as printed": 3, "as the closed form": 8},
        "lora_roberta_base": {"as printed": 2, "not explained": 1, "not in this bench": 2},
        "lora_roberta_large": {"as printed": 4, "not explained": 3},
        "bert_miniatures": {"as the closed form": 4},
        "list": {"as printed": 1},
        "adalora_deberta_v3_base": {
            "as printed": 7,
            "rounds as printed": 1,
            "not explained": 2,
            "within the bounds": 2,
        },
    }
    for name, verdicts in expected.items():
        given = [item.verdict for item in counts.check(papers.load(name))]
        assert {verdict: given.count(verdict) for verdict in set(given)} == verdicts, name
    assert counts.rounds_to(294_912, 1, "0.3M")
    assert not counts.rounds_to(351_000, 1, "0.3M")
    assert counts.rounds_to(272_384, 333_579_264, "0.08%")
    shown = start("count", "--paper", "spafit", cwd=tmp_path)
    assert shown.returncode == 0
    assert "5,650,434" in shown.stdout
    pruned = [item for item in counts.check(papers.load("adalora_deberta_v3_base")) if item.bounds]
    assert [item.ours for item in pruned] == [1_991_520, 663_840]
    assert [item.bounds for item in pruned] == [(884_736 + 576, 1_548_288 + 576), (221_184 + 144, 442_368 + 144)]


def test_a_papers_sweep_is_run_mnli_first(tmp_path: Path) -> None:
    texts = {
        "MNLI": ("index\tsentence1\tsentence2\tgold_label\n", ["entailment", "neutral", "contradiction"],
                 ["train", "dev_matched", "dev_mismatched"]),
        "RTE": ("index\tsentence1\tsentence2\tlabel\n", ["entailment", "not_entailment"], ["train", "dev"]),
    }  # fmt: skip
    for folder, (head, labels, files) in texts.items():
        (tmp_path / folder).mkdir()
        for name in files:
            lines = [f"{i}\tone thing {i}\tother thing {i % 5}\t{labels[i % len(labels)]}\n" for i in range(24)]
            (tmp_path / folder / f"{name}.tsv").write_text(head + "".join(lines))
    words = ["reproduce", "lora_roberta_base", "--only", "rte", "seed=0", "data=folder", f"data.path={tmp_path}"]
    words += [
        "model=bert_tiny",
        "model.weights=random",
        "tracker=none",
        "protocol.epochs=1",
        "protocol.max_length=32",
        "study=mine",
    ]
    dry = start(*words, "--dry-run", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "lora_roberta_base: 4 cells, 1 of them from an MNLI run" in dry.stdout
    assert "missing: Adapter-Drop (Adpt-D)" in dry.stdout
    assert not (tmp_path / "outputs").exists()
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("; peftbench table mine --paper lora_roberta_base")
    records = [read_record(path) for path in find_records(tmp_path / "outputs" / "mine")]
    assert sorted(f"{record.cell.task} {record.cell.method}" for record in records) == [
        "mnli lora", "rte bitfit", "rte full", "rte lora"
    ]  # fmt: skip
    (rte,) = [record for record in records if record.cell.task == "rte" and record.cell.method == "lora"]
    assert "/mnli-lora-bert_tiny-" in rte.config["init_from"]
    assert (rte.lr, rte.config["method"]["alpha"]) == (5e-4, 8)
