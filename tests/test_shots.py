"""Few labels: which rows have theirs, that nobody reads the others', and that nothing with all labels changes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from forgery import Said
from support import TINY, what_is_left

from peftbench.config import compose
from peftbench.config.few_labels import Shots
from peftbench.config.spec import Cell
from peftbench.data.rows import rows_of
from peftbench.data.shots import draw
from peftbench.data.split import Split, make_split
from peftbench.ground.errors import ConfigError
from peftbench.record import read_record
from peftbench.report.figures.every import figures
from peftbench.report.figures.parts import Material
from peftbench.report.records import read_study
from peftbench.runner.run import Outcome, read_rows

Run = Callable[..., Outcome]
CLASSES = ("a", "b", "c")


def rows(*sizes: int) -> Split:
    """So many rows of each class, mixed."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return make_split("train", (tuple(f"row {i}" for i in range(len(labels))),), labels)


def counts(split: Split) -> list[int]:
    assert split.labels is not None
    return np.bincount(split.labels, minlength=3).tolist()


def test_as_many_of_each_class_or_so_many_in_all_and_the_rest_has_no_labels() -> None:
    train = rows(30, 20, 10)
    for shots, expected in (
        (Shots(per_class=4, dev="same"), [[4, 4, 4], [4, 4, 4]]),
        (Shots(total=12, stratified=True, dev="same"), [[6, 4, 2], [6, 4, 2]]),
        (Shots(total=4, stratified=True), [[2, 1, 1]]),
        (Shots(total=3, stratified=True), [[1, 1, 1]]),
    ):
        drawn = draw(train, CLASSES, shots)
        assert [counts(drawn[name]) for name in drawn if name != "unlabelled"] == expected
        assert drawn["unlabelled"].labels is None
        texts = [text for split in drawn.values() for text in split.texts[0]]
        assert sorted(texts) == sorted(train.texts[0]), "every row once"
    assert len(draw(train, CLASSES, Shots(total=25))["train"]) == 25


def test_a_split_is_the_same_everywhere_and_grows_with_the_shots() -> None:
    train = rows(30, 20, 10)
    four, five = (set(draw(train, CLASSES, Shots(per_class=k))["train"].texts[0]) for k in (4, 5))
    assert four < five
    with_dev = draw(train, CLASSES, Shots(per_class=4, dev="same"))
    assert set(with_dev["train"].texts[0]) == four
    other = draw(train, CLASSES, Shots(per_class=4, split=2))["train"]
    assert set(other.texts[0]) != four
    assert draw(train, CLASSES, Shots(per_class=1))["train"].texts[0] == ("row 31", "row 36", "row 38")


@pytest.mark.parametrize(
    ("sizes", "shots", "line"),
    [
        ((3, 3, 3), Shots(total=10), "shots.total=10: more than the 9 rows of train"),
        ((3, 3, 3), Shots(total=6, dev="same"), r"total=6: twice \(shots.dev=same\) more than the 9 rows"),
        ((9, 9, 3), Shots(per_class=4), "shots.per_class=4: 4 rows of class c, and train has 3"),
        ((50, 50, 0), Shots(total=9), "shots.total=9: split 1 has no row of class c; give shots.stratified=true"),
    ],
)
def test_too_few_rows_are_one_line(sizes: tuple[int, ...], shots: Shots, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        draw(rows(*sizes), CLASSES, shots)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["shots.per_class=1", "shots.total=2"], "shots: per_class=1 and total=2 cannot both be given"),
        (["shots.per_class=0"], "shots.per_class=0: must be greater than 0"),
        (["shots.split=0"], "shots.split=0: must be at least 1"),
        (["shots.total=1"], "shots.total=1: fewer than the 2 classes of task=sst2"),
        (["shots.per_class=4", "shots.stratified=true"], "shots: stratified=true is for total"),
        (["shots.dev=same"], "shots: dev=same: there are no shots"),
        (["task=stsb", "shots.per_class=4"], "shots: task=stsb is a regression"),
        (["shots.total=9", "protocol.selection=held_out"], "protocol.selection=held_out: of few labelled rows none"),
        (["shots.total=9", "select=lr"], "select.rows=held_out: of few labelled rows none"),
    ],
)
def test_what_is_not_possible_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.cell_from(words)
    assert [problem for problem in caught.value.every if line in problem], caught.value.every


def test_more_shots_than_rows_end_the_command_with_one_line(command: Callable[..., Said], tmp_path: Path) -> None:
    code, out, err = command(
        "run", "shots.per_class=900", "model.weights=random", f"outputs={tmp_path}", "tracker=none"
    )
    assert (code, out) == (2, "")
    assert err.startswith("shots.per_class=900: more than")
    assert err.count("\n") == 1


def test_shots_are_in_the_fingerprint_and_their_split_is_not_and_full_data_knows_of_neither() -> None:
    def cell(*words: str) -> Cell:
        return compose.cell_from(list(words))

    full = cell().fingerprint
    assert cell("shots.split=3").fingerprint == full
    few = [cell(*words).fingerprint for words in (["shots.total=16"], ["shots.per_class=16"], ["shots=lmbff"])]
    assert len({full, *few}) == 4
    assert cell("shots.total=16", "shots.split=3").fingerprint == few[0]
    assert cell("shots.total=16", "shots.split=3").folder.endswith(f"{few[0][:8]}/split3-seed0")


def test_labels_of_the_other_rows_may_be_noise(tmp_path: Path, tiny: Callable[..., Cell], run_tiny: Run) -> None:
    """Not one bit of a run changes, its record's hashes included."""
    folder = tmp_path / "glue" / "SST-2"
    folder.mkdir(parents=True)
    sample = read_rows(rows_of(tiny()))

    def write(flipped: set[str]) -> None:
        for name in ("train", "dev"):
            split = sample[name]
            assert split.labels is not None
            pairs = zip(split.texts[0], split.labels, strict=True)
            lines = [f"{text}\t{1 - label if name == 'train' and text in flipped else label}" for text, label in pairs]
            (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]))

    words = ["data=folder", f"data.path={tmp_path / 'glue'}", "method=lora", "shots.total=12", "shots.dev=same"]
    words += ["protocol.selection=held_out", "protocol.max_steps=3", "checkpoint_every=null"]
    words += ["selftrain=list", "selftrain.sessions=1", "selftrain.steps=2", "selftrain.epochs=1"]
    words += ["selftrain.batch_size=4", "selftrain.meta_after=0"]
    write(set())
    first = what_is_left(run_tiny(*words))
    labelled = read_rows(rows_of(tiny(*words)))
    kept = {*labelled["train"].texts[0], *labelled["held_out"].texts[0]}
    write(set(sample["train"].texts[0]) - kept)
    (tmp_path / "outputs").rename(tmp_path / "before")
    assert what_is_left(run_tiny(*words)) == first
    write(kept)
    assert what_is_left(run_tiny(*words)) != first


def test_tables_and_verdicts_have_splits_for_seeds_and_never_mix_shots(
    run_tiny: Run, command: Callable[..., Said], tmp_path: Path
) -> None:
    short = ["protocol.max_steps=1", "study=k"]
    folders = [run_tiny(*short, "method=head", *words).path for words in (["seed=0"], ["seed=1"])]
    for split in ("1", "2", "3"):
        words = [*short, "shots.per_class=4", f"shots.split={split}"]
        folders += [run_tiny(*words, f"method={method}").path for method in ("head", "bitfit")]
    run_tiny(*short, "method=head", "shots.total=8")
    assert len(set(folders)) == len(folders)
    outputs = ["--outputs", str(tmp_path / "outputs")]
    for view in (["table", "k"], ["table", "k", "--show", "shots"], ["report", "k"]):
        code, out, err = command(*view, *outputs)
        assert (code, out) == (2, "")
        assert err.startswith("study k: counts labelled rows of each class and in all, which no table mixes")
        assert err.count("\n") == 1
    seeds = {
        "per_class": {"head": ("2", ""), "head 4/class": ("3", ""), "bitfit 4/class": ("3", "")},
        "total": {"head": ("2", ""), "head 8 rows": ("1", "")},
    }
    for convention, expected in seeds.items():
        code, out, _ = command("table", "k", *outputs, "--format", "csv", "--shots", convention)
        assert code == 0
        lines = list(csv.DictReader(out.splitlines()))
        assert {line["method"]: (line["seeds"], line["published"]) for line in lines} == expected, out
    code, out, _ = command("table", "k", *outputs, "--format", "md", "--shots", "per_class")
    assert "n=" not in out, "seeds of all labels are not splits that few lack"
    code, out, _ = command("table", "k", "--show", "shots", *outputs, "--format", "csv", "--shots", "per_class")
    assert code == 0
    won = {(line["shots"], line["method"]): line for line in csv.DictReader(out.splitlines())}
    assert won.keys() == {("4/class", "head"), ("4/class", "bitfit"), ("all rows", "head")}
    best = [line for line in won.values() if line["best"] == "1"]
    assert [line["shots"] for line in best] == ["4/class"], "one method alone wins nothing"
    assert float(best[0]["mean"]) == max(float(won["4/class", method]["mean"]) for method in ("head", "bitfit"))
    assert all(float(won["4/class", method]["shows_from"]) > 0 for method in ("head", "bitfit"))
    code, out, _ = command("compare", "k", "head 4/class", "bitfit 4/class", *outputs)
    assert code == 0
    assert "of 3 splits" in out
    assert json.loads(folders[-1].read_text())["config"]["shots"]["split"] == 3
    assert read_record(folders[0]).few is None
    drawn = {figure.word: figure for figure in figures(Material(read_study(tmp_path / "outputs", "k")))}
    (panel,) = drawn["shots_per_class"].panels
    assert {one.name: one.x for one in panel.series} == {"head": [4.0, 8.0], "bitfit": [4.0]}
    assert panel.ticks == [(4.0, "4"), (8.0, "all")]
    assert next(one for one in panel.series if one.name == "head").notes[1].startswith("all rows: ")
    assert [one.x for one in drawn["shots_total"].panels[0].series] == [[8.0, 16.0]]


def test_where_all_rows_have_labels_a_split_is_no_cell_of_its_own(command: Callable[..., Said], tmp_path: Path) -> None:
    words = [*TINY, f"outputs={tmp_path}", "shots.per_class=4,null", "shots.split=1,2,3"]
    code, out, _ = command("plan", *words)
    assert code == 0
    *cells, last = out.splitlines()
    assert len(set(cells)) == len(cells) == 4
    assert last.startswith("4 cells: ")
