"""Flips between versions: counted one by one, joined row by row, beside the floor; other rows refuse."""

import csv
import dataclasses
import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from forgery import Said
from hypothesis import given
from hypothesis import strategies as st
from studies import TASKS

from peftbench.record import Headline, read_record, write_record
from peftbench.report import fewer_flips, flips, page, records, versions
from peftbench.report.figures.flips import updates
from peftbench.report.flips import Answers

Write = Callable[..., Path]
Command = Callable[..., Said]
LABEL, OTHER = TASKS["mrpc"]

answered = st.integers(2, 4).flatmap(
    lambda classes: st.lists(st.tuples(*[st.integers(0, classes - 1)] * 3), min_size=1, max_size=30)
)


def predict(run: Path, right: Sequence[int], labels: Sequence[str] = (LABEL, OTHER)) -> Path:
    """Give a run predictions that are right where `right` says so; rows have the two labels in turn."""
    lines = [f"{i}\t{labels[(i + 1 - good) % 2]}\t{labels[i % 2]}" for i, good in enumerate(right)]
    (run / "predictions" / "dev.tsv").write_text("\n".join(["index\tprediction\tlabel", *lines]) + "\n")
    return run


def moved(run: Path, study: str) -> Path:
    """The run's cell in a study of another name."""
    there = run.parents[2] / study / run.parent.name / run.name
    there.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(run, there)
    return there


def rewritten(run: Path, **changes: object) -> None:
    write_record(dataclasses.replace(read_record(run / "result.json"), **changes), run)  # type: ignore[arg-type]


@given(answered)
def test_rates_are_what_a_count_row_by_row_gives(rows: list[tuple[int, int, int]]) -> None:
    old, new, truth = np.array(rows).T.astype(str)
    rates = flips.measures(flips.per_row(Answers(old, truth), Answers(new, truth)).mean(axis=1, dtype=np.float64))
    negative = sum(a == t != b for a, b, t in rows)
    positive = sum(a != t == b for a, b, t in rows)
    inconsistent = sum(b not in (t, a) for a, b, t in rows)
    errors, right = sum(b != t for _, b, t in rows), sum(a == t for a, _, t in rows)
    assert rates["NFR"] == pytest.approx(negative / len(rows))
    assert rates["PFR"] == pytest.approx(positive / len(rows))
    assert rates["NFR_mc"] == pytest.approx(inconsistent / len(rows))
    assert rates["NFI"] == pytest.approx(negative / errors if errors else 0)
    assert rates["trust"] == pytest.approx(1 - negative / right if right else 1)
    assert rates["change"] == pytest.approx(rates["PFR"] - rates["NFR"])
    accuracy = rates["accuracy"] - rates["change"]
    assert max(0, accuracy - rates["accuracy"]) - 1e-9 <= rates["NFR"] <= min(accuracy, 1 - rates["accuracy"]) + 1e-9
    assert rates["NFR"] <= rates["NFR_mc"] + 1e-12
    if len({value for row in rows for value in row}) == 2:
        assert rates["NFR"] == pytest.approx(rates["NFR_mc"])
    still = sum(a == b == t for a, b, t in rows) / len(rows), sum(a != t != b for a, b, t in rows) / len(rows)
    assert still == pytest.approx((accuracy - rates["NFR"], 1 - rates["accuracy"] - rates["NFR"]))
    for after in (old, truth):  # nothing flips to itself, and to a perfect model nothing flips back
        one = flips.per_row(Answers(old, truth), Answers(after, truth)).mean(axis=1, dtype=np.float64)
        assert float(flips.measures(one)["NFR"]) == float(flips.measures(one)["NFI"]) == 0


@given(st.lists(st.tuples(*[st.floats(0, 5, width=16)] * 3), min_size=1, max_size=20))
def test_a_regression_loses_and_gains_in_units_of_its_label(rows: list[tuple[float, float, float]]) -> None:
    old, new, truth = np.array(rows, dtype=float).T
    rates = flips.measures(flips.per_row(Answers(old, truth), Answers(new, truth)).mean(axis=1, dtype=np.float64))
    changes = [abs(a - t) - abs(b - t) for a, b, t in rows]
    lost, gained = [-c for c in changes if c < 0], [c for c in changes if c > 0]
    assert rates["NFR"] == pytest.approx(len(lost) / len(rows))
    assert rates["PFR"] == pytest.approx(len(gained) / len(rows))
    assert rates["loss"] == pytest.approx(np.mean(lost) if lost else 0, rel=1e-5)
    assert rates["gain"] == pytest.approx(np.mean(gained) if gained else 0, rel=1e-5)


def test_studies_are_joined_by_row_and_seed_beside_the_floor(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        for task, labels in TASKS.items():
            old = predict(write_run("lora", task, seed, 0.5), [1] * (9 - seed) + [0] * (3 + seed), labels)
            moved(old, "before")
            predict(write_run("lora", task, seed, 0.5), [0] * 2 + [1] * 10, labels)
    code, out, err = command("flips", "before", "made", "--csv")
    assert (code, err) == (0, "")
    figures = {(row["column"], row["measure"]): row for row in csv.DictReader(io.StringIO(out))}
    for column in ("mrpc acc", "cola acc", "mean of 2"):
        assert float(figures[column, "NFR"]["value"]) == pytest.approx(2 / 12)
        assert float(figures[column, "PFR"]["value"]) == pytest.approx((3 + 4 + 5) / 36)
        # between seeds of "before" the later one has one or two more rows wrong; those of "made" are equal
        assert float(figures[column, "NFR"]["old_floor"]) == pytest.approx((1 + 2 + 1) / 6 / 12)
        assert float(figures[column, "NFR"]["new_floor"]) == 0
        for measure in ("NFR", "PFR", "NFI", "trust"):
            low, value, high = (float(figures[column, measure][key]) for key in ("low", "value", "high"))
            assert 0 <= low <= value <= high <= 1 + 1e-9
            assert low < high
    code, out, err = command("flips", "before", "made")
    assert "seed to seed of lora" in out
    above = [line for line in out.splitlines() if "above seed to seed" in line]
    floor = (1 + 2 + 1) / 6 / 12  # of the older version, the larger one
    assert [f"{100 * (2 / 12 - floor):.1f} [" in line for line in above] == [True] * 3, "both tasks and their mean"
    assert "16.7 [" in out
    assert command("flips", "before", "made")[1] == out, "intervals are the same each time"

    assert command("flips", "before", "made", "--to", "drawn")[0] == 0
    assert {path.name for path in Path("drawn").iterdir()} == {"flips.png", "flips.svg", "flips.pdf"}
    figure = updates(flips.between(versions.paired("before", "made", tmp_path / "outputs")[0]))
    assert [panel.title for panel in figure.panels] == ["lora → lora"] * 2, "one update: its tasks are lines"
    lines = figure.panels[0].series
    assert [line.name for line in lines] == ["cola acc", "mrpc acc", "mean of 2"]
    assert lines[0].x[0] == pytest.approx(100 * 2 / 12)
    one = flips.between(versions.paired("before", "made", tmp_path / "outputs")[0])
    several = updates([*one, *(dataclasses.replace(again, new="full") for again in one)])
    assert [panel.title for panel in several.panels[::2]] == ["cola acc", "mrpc acc", "mean of 2"]
    assert [line.name for line in several.panels[0].series] == ["lora → lora", "lora → full"]

    code, out, err = command("report", "made", "--old", "before", "--to", "page.html")
    assert code == 0, err
    pairs = versions.paired("before", "made", tmp_path / "outputs")[0]
    content = page.content(records.read_study(tmp_path / "outputs", "made"), None, flips.between(pairs))
    (drawn,) = [one for one in content["figures"] if one["word"] == "flips"]
    assert [(panel["title"], panel["column"]) for panel in drawn["panels"]] == [("lora → lora", None)] * 2
    assert drawn["panels"][0]["series"][0]["rows"] == ["lora"], "it is hidden with its row"
    section = content["flips"]
    assert any(note.startswith("NFR, PFR: rows that went from right to wrong") for note in section["notes"])
    assert [task["title"] for task in section["rows"]] == ["cola acc: lora → lora", "mrpc acc: lora → lora"]
    assert section["rows"][1]["rows"][:2] == [["0", LABEL, "3/3", "0/3"], ["1", OTHER, "3/3", "0/3"]]
    assert section["rows"][1]["rows"][-1] == ["7", OTHER, "0/3", "1/3"]
    assert page.embedded(section)[1:-1] in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_an_update_saves_is_counted_on_the_same_rows_and_seeds(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        moved(predict(write_run("bitfit", "mrpc", seed, 0.5), [1] * 10 + [0] * 10), "before")
        moved(predict(write_run("lora", "mrpc", seed, 0.5), [0] * (3 + seed) + [1] * (17 - seed)), "new")
        # the same flips less the first one, of every seed
        predict(write_run("lora", "mrpc", seed, 0.5), [1] + [0] * (2 + seed) + [1] * (17 - seed))
    update = ("flips", "before", "made", "--old-row", "bitfit")
    code, out, err = command(*update, "--without", "new")
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if "instead of" in line)
    assert line.startswith("mrpc acc, bitfit → lora instead of lora (3 pairs): NFR -5.0 [-15.0, +0.0], -25% of 20.0; ")
    pairs = [versions.paired("before", study, tmp_path / "outputs", "bitfit")[0] for study in ("made", "new")]
    [saving], notes = fewer_flips.between(*pairs)
    assert (saving.pairs, notes) == (3, [])
    alone = flips.between(pairs[0])[0].figures["NFR"]
    assert saving.by["NFR"].high - saving.by["NFR"].low < alone.high - alone.low, "what both share cancels"
    [nothing], _ = fewer_flips.between(pairs[0], pairs[0])
    assert {(figure.value, figure.low, figure.high) for figure in nothing.by.values()} == {(0, 0, 0)}

    # two runs stand for their seeds: the older one's is the same in both
    each = (("before", 0), ("made", 1), ("new", 2))
    [old, new, other] = (next((tmp_path / "outputs" / study).glob(f"*/seed{seed}")) for study, seed in each)
    code, out, err = command("flips", str(old), str(new), "--without", str(other))
    assert (code, err) == (0, "")
    assert "instead of lora (1 pair): NFR -10.0" in out, "3 flips, not 5, of 20 rows"

    for words, line in (
        ((*update, "--without-row", "lora"), "--without-row lora: of which study?"),
        ((*update, "--without", "new", "--csv"), "--without new: is for people"),
        ((*update, "--to", "drawn", "--csv"), "--to drawn: is for people"),
        ((*update, "--without", "absent"), "study absent"),
    ):
        code, out, err = command(*words)
        assert (code, out) == (2, ""), words
        assert line in err


def test_a_version_that_gives_one_answer_is_named(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        moved(predict(write_run("lora", "mrpc", seed, 0.5), [1, 0] * 10 if seed else [1] * 20), "before")
        predict(write_run("lora", "mrpc", seed, 0.5), [1] * 20)
    code, out, err = command("flips", "before", "made")
    assert (code, err) == (0, "")
    assert "mrpc acc, lora: 1 of 2 runs give every row one answer" in out


def test_two_runs_have_the_floor_of_their_siblings(write_run: Write, command: Command) -> None:
    old = predict(write_run("lora", "mrpc", 0, 0.5), [1] * 10 + [0, 0])
    predict(write_run("lora", "mrpc", 1, 0.5), [0] * 3 + [1] * 9)
    new = predict(write_run("bitfit", "mrpc", 5, 0.5), [1] * 12)
    code, out, err = command("flips", str(old), str(new), "--csv")
    assert (code, err) == (0, "")
    figures = {row["measure"]: row for row in csv.DictReader(io.StringIO(out))}
    assert float(figures["NFR"]["value"]) == 0
    assert float(figures["NFI"]["value"]) == 0
    assert float(figures["trust"]["value"]) == 1
    assert float(figures["PFR"]["value"]) == pytest.approx(2 / 12)
    assert float(figures["PFR"]["old_floor"]) == pytest.approx((3 + 2) / 2 / 12)
    assert figures["PFR"]["new_floor"] == ""
    code, out, err = command("flips", str(old), f"{old}/../seed0")
    assert (code, out) == (2, "")
    assert err.endswith("are one run; name two\n")


def test_rows_of_one_study_are_chosen_by_name(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for method in ("lora", "bitfit", "id3"):
        write_run(method, "mrpc", 0, 0.5)
    for words, pairs in (
        (("--old-row", "lora"), {("lora", "bitfit"), ("lora", "id3")}),
        (("--old-row", "lora", "--new-row", "id3"), {("lora", "id3")}),
    ):
        code, out, err = command("flips", "made", "made", "--csv", *words)
        assert (code, err) == (0, "")
        assert {(row["old"], row["new"]) for row in csv.DictReader(io.StringIO(out))} == pairs


def test_stsb_is_counted_by_distance(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for method, prediction in (("lora", "1.0"), ("bitfit", "1.5")):
        run = write_run(method, "mrpc", 0, 0.5)
        rewritten(run, headline=Headline("pearson", 0.5, 0.1))
        lines = [f"{i}\t{prediction}\t{label}" for i, label in enumerate(("0.000", "2.000", "4.000"))]
        (run / "predictions" / "dev.tsv").write_text("\n".join(["index\tprediction\tlabel", *lines]))
    code, out, _ = command("flips", "made", "made", "--old-row", "lora", "--new-row", "bitfit", "--csv")
    figures = {row["measure"]: float(row["value"]) for row in csv.DictReader(io.StringIO(out))}
    assert figures == pytest.approx({"NFR": 1 / 3, "PFR": 2 / 3, "loss": 0.5, "gain": 0.5})
    code, _, err = command("flips", "made", "made", "--old-row", "lora", "--new-row", "bitfit")
    assert (code, err) == (0, "")


def line_of(result: Said, code: int) -> str:
    assert (result[0], result[1]) == (code, ""), result
    assert result[2].count("\n") == 1
    return result[2]


def test_other_rows_labels_and_damage_are_one_line(write_run: Write, command: Command) -> None:
    old, new = write_run("lora", "mrpc", 0, 0.5), write_run("bitfit", "mrpc", 0, 0.5)
    record = read_record(new / "result.json")
    file = new / "predictions" / "dev.tsv"
    text = file.read_text()

    def refused(code: int = 3) -> str:
        return line_of(command("flips", str(old), str(new)), code)

    rewritten(new, hashes=dataclasses.replace(record.hashes, data={**record.hashes.data, "dev": "0" * 64}))
    assert "other rows of dev" in refused()
    rewritten(new, config={**record.config, "task": {**record.config["task"], "labels": ["no", "yes"]}})
    assert "the labels have other names" in refused()
    rewritten(new, cell=dataclasses.replace(record.cell, task="rte"))
    assert "flips are of one task" in refused(2)
    rewritten(new, status="failed")
    assert "that run failed" in refused()
    write_record(record, new)
    file.write_text("\n".join(text.splitlines()[:-1]))
    assert "12 and 11 predictions" in refused()
    lines = text.splitlines()
    file.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    assert "row 0 has the index 11" in refused()
    file.write_text(text.replace(f"4\t{LABEL}\t{LABEL}", f"4\t{LABEL}\t{OTHER}"))
    assert "row 4 of dev has two labels" in refused()
    file.write_text(text.replace(f"\t{LABEL}\t", "\t\t").replace(f"{LABEL}\t0\t0", "\t0\t0"))
    assert "a row has no label" in refused()
    file.write_text("index\tprediction\tlabel\n")
    assert "no row" in refused()
    rewritten(new, headline=Headline("pearson", 0.5, 0.1))
    rewritten(old, headline=Headline("pearson", 0.5, 0.1))
    assert "not of a regression" in refused()
    (old / "predictions" / "dev.tsv").unlink()
    assert "cannot be read" in refused()


def test_what_cannot_be_paired_is_one_line(
    write_run: Write, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run("lora", "mrpc", 0, 0.5)
    moved(write_run("bitfit", "cola", 0, 0.5), "tasks")
    moved(write_run("lora", "mrpc", 1, 0.5), "seeds")
    assert "are one study" in line_of(command("flips", "made", "made"), 2)
    assert "name two runs, or two studies" in line_of(command("flips", "made", str(run)), 2)
    assert "no seed in common" in line_of(command("flips", "made", "seeds"), 2)
    assert "study mdae: there is none under outputs" in line_of(command("flips", "mdae", "made"), 2)
    assert "ldoa: no row of study made" in line_of(command("flips", "made", "seeds", "--old-row", "ldoa"), 2)
    assert "these are two runs" in line_of(command("flips", str(run), str(run), "--old-row", "lora"), 2)
    assert "no row of made has a counterpart" in command("flips", "made", "tasks")[2]
