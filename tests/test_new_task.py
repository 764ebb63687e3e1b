"""A task that this package does not know is one yaml of a user's own, and nothing else."""

from collections.abc import Callable
from pathlib import Path

from uses import done

from peftbench.record import read_record
from peftbench.report import records, render, table
from peftbench.runner import apply
from peftbench.runner.run import Outcome

SNIPPETS = """
# Three classes of two texts, in files that name columns and classes in their own way
defaults:
  - _base
  - _self_

labels: [follows, open, contradicts]
metrics: [matthews_correlation, accuracy]
headline: matthews_correlation
test: [test]
hub: {config: snippets, text: [first, second]}
folder:
  name: Snippets
  files: {train: learn.tsv, dev: held.tsv, test: blind.tsv}
  text: [first, second]
  label: answer
  label_values: [y, "?", n]
"""
TEXTS = [
    ("a man plays the guitar", "somebody makes music", "y"),
    ("a dog runs over the beach", "the dog is old", "?"),
    ("two children sleep", "nobody is asleep", "n"),
    ("she reads a long book", "she cannot read", "n"),
    ("the train left at noon", "the train is gone", "y"),
    ("he bought some bread", "he is hungry", "?"),
]


def rows(many: int, labels: bool) -> str:
    """A file of so many rows, of all classes alike."""
    lines = ["\t".join(["number", "first", "second", *(["answer"] if labels else [])])]
    for i in range(many):
        first, second, answer = TEXTS[i % len(TEXTS)]
        lines.append("\t".join([str(i), f"{first} {i}", second, *([answer] if labels else [])]))
    return "\n".join(lines) + "\n"


def logits(lines: list[str]) -> list[list[str]]:
    """The logits in the last three columns of a table of predictions, as texts."""
    return [line.split("\t")[-3:] for line in lines[1:]]


def test_a_task_is_one_yaml(tmp_path: Path, run_tiny: Callable[..., Outcome]) -> None:
    """It is run, scored, predicted on its test rows and on new ones, and has its column in the table."""
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "snippets.yaml").write_text(SNIPPETS)
    (tmp_path / "glue" / "Snippets").mkdir(parents=True)
    for name, many in (("learn", 48), ("held", 18), ("blind", 12)):
        (tmp_path / "glue" / "Snippets" / f"{name}.tsv").write_text(rows(many, labels=name != "blind"))
    words = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "task=snippets", "data=folder"]
    words += [f"data.path={tmp_path / 'glue'}", "study=own", "predict_test=true"]
    run = done(run_tiny(*words, "method=full", "protocol.lr=1e-3", "protocol.precision=fp32"))
    record = read_record(run / "result.json")
    assert record.cell.task == "snippets"
    assert record.metrics is not None
    assert set(record.metrics.chosen) == {"matthews_correlation", "accuracy"}

    classes = {"follows", "open", "contradicts"}
    for split, many in (("dev", 18), ("test", 12)):
        lines = (run / "predictions" / f"{split}.tsv").read_text().splitlines()
        assert len(lines) == 1 + many
        assert {line.split("\t")[1] for line in lines[1:]} <= classes

    new = tmp_path / "new.tsv"
    new.write_text(rows(18, labels=False))
    written = (run / "predictions" / "dev.tsv").read_text().splitlines()
    assert logits(apply.label(run, new, tmp_path / "cache")) == logits(written)

    shown = render.sheet(table.build(records.read_study(tmp_path / "outputs", "own")))
    assert "snippets MCC" in shown.head
