"""What a study says beside its scores, from what is stored: calibration, agreement of seeds, parts of rows, costs."""

import csv
import importlib
import io
import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import softmax
from sklearn.metrics import brier_score_loss
from studies import full_study
from support import call

from peftbench.commands import table_views
from peftbench.data import sources
from peftbench.record import read_record
from peftbench.report import calibration, consistency, page, records, sheet, subsets

STUDY = Path(__file__).parents[1] / "docs" / "study"
PARTS = (*subsets.LENGTHS, *subsets.OVERLAPS, *subsets.NEGATED)


def rows_of(*words: str, cwd: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """A view's numbers by task, method and measure."""
    done = call("table", *words, "--format", "csv", cwd=cwd)
    assert done.returncode == 0, done.stderr
    every = csv.DictReader(io.StringIO(done.stdout))
    return {(row["task"], row["method"], row["measure"]): row for row in every}


@st.composite
def answered(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (rows, classes) and labels (rows,)."""
    rows, classes = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    logits = draw(arrays.arrays(float, (rows, classes), elements=st.floats(-6, 6)))
    return softmax(logits, axis=1), draw(arrays.arrays(int, rows, elements=st.integers(0, classes - 1)))


@given(answered(), st.integers(1, 20))
def test_the_calibration_error_is_that_of_its_definition(answers: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    probabilities, labels = answers
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    error = 0.0
    for low, high in itertools.pairwise(np.arange(bins + 1) / bins):
        inside = (low < confidence) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration.expected_calibration_error(probabilities, labels, bins) == pytest.approx(error)
    if probabilities.shape[1] == 2:
        half = brier_score_loss(labels == 1, probabilities[:, 1], pos_label=True)
        assert calibration.brier_score(probabilities, labels) == pytest.approx(2 * half)


def test_certain_answers_are_calibrated_where_they_are_right() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]]
    right, wrong = np.array([0, 1, 2, 0]), np.array([1, 2, 0, 1])
    assert (calibration.expected_calibration_error(sure, right), calibration.brier_score(sure, right)) == (0, 0)
    assert (calibration.expected_calibration_error(sure, wrong), calibration.brier_score(sure, wrong)) == (1, 2)


@given(arrays.arrays(int, st.tuples(st.integers(2, 5), st.integers(1, 12)), elements=st.integers(0, 2)))
def test_agreement_is_counted_over_pairs_and_over_all(answers: np.ndarray) -> None:
    pairs = [(one == other).mean() for one, other in itertools.combinations(answers, 2)]
    assert consistency.pairwise(answers) == pytest.approx(np.mean(pairs))
    assert consistency.unanimous(answers) == pytest.approx(np.mean([len(set(row)) == 1 for row in answers.T]))
    assert consistency.unanimous(answers) <= consistency.pairwise(answers) + 1e-9


def test_the_committed_study_has_calibration_and_agreement_of_its_classes(tmp_path: Path) -> None:
    measures = rows_of("glue_small", "--outputs", str(STUDY), "--show", "calibration", cwd=tmp_path)
    one, errors = measures["mrpc acc", "lora", "ECE"], []
    predictions = []
    for path in sorted(STUDY.glob("glue_small/mrpc-lora-*/seed*/predictions/dev.tsv")):
        rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
        labels = np.array([row[2] == "equivalent" for row in rows], dtype=int)
        probabilities = softmax(np.array([[float(value) for value in row[3:]] for row in rows]), axis=1)
        errors.append(calibration.expected_calibration_error(probabilities, labels))
        predictions.append([row[1] for row in rows])
    assert one["runs"] == "4"
    assert float(one["mean"]) == pytest.approx(np.mean(errors))
    assert float(one["sd"]) == pytest.approx(np.std(errors, ddof=1))
    assert {task for task, *_ in measures} == {"cola MCC", "mrpc acc"}
    measures = rows_of("glue_small", "--outputs", str(STUDY), "--show", "consistency", cwd=tmp_path)
    pairs = [np.mean(np.array(a) == np.array(b)) for a, b in itertools.combinations(predictions, 2)]
    assert float(measures["mrpc acc", "lora", "two runs agree"]["mean"]) == pytest.approx(np.mean(pairs))
    text = sheet.text(calibration.sheet(records.read_study(STUDY, "glue_small")), "md")
    assert "left out, a task without classes: stsb pearson" in text


def test_the_page_has_every_view_of_the_terminal_that_a_study_has_the_records_for() -> None:
    shown = {importlib.import_module(f"peftbench.report.{name}").sheet for name in table_views.MODULES.values()}
    assert shown <= set(page.VIEWS.values())
    whole = records.read_study(STUDY, "glue_small")
    kept = [i for i, one in enumerate(whole.records) if (one.cell.task, one.cell.method) == ("mrpc", "lora")]
    study = records.Study("one", [whole.records[i] for i in kept], [whole.folders[i] for i in kept])
    pairs = (("a dog did not run",) * 408, ("a cat",) * 408)
    views = {one["word"]: one for one in page.content(study, texts_of=lambda *_: pairs)["views"]}
    assert views["calibration"]["rows"] == calibration.sheet(study).rows
    assert views["consistency"]["rows"] == consistency.sheet(study).rows
    assert "negation" in views["parts of the rows"]["head"]
    assert not {"edits", "sequences of tasks", "distances of changes", "forgetting", "few labels"} & views.keys()


@pytest.mark.parametrize(("logit", "reason"), [("x", "a logit is no number"), ("inf", "a logit is not finite")])
def test_predictions_whose_logits_cannot_be_used_are_named(logit: str, reason: str, tmp_path: Path) -> None:
    (cell,) = STUDY.glob("glue_small/mrpc-lora-*")
    shutil.copytree(cell, tmp_path / "outputs" / "bad" / cell.name)
    path = tmp_path / "outputs" / "bad" / cell.name / "seed2" / "predictions" / "dev.tsv"
    lines = path.read_text().split("\n")
    lines[5] = "\t".join([*lines[5].split("\t")[:-1], logit])
    path.write_text("\n".join(lines))
    done = call("table", "bad", "--show", "calibration", "--format", "csv", cwd=tmp_path)
    assert done.stderr.strip().endswith(reason)
    assert done.stderr.startswith("left out: ")
    (row,) = (row for row in csv.DictReader(io.StringIO(done.stdout)) if row["measure"] == "ECE")
    assert row["runs"] == "3"


WORDS = ("a", "dog", "did", "not", "see", "no", "cat", "and", "didn't", "run", "far", "away")
texts = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=20), st.booleans())
def test_every_row_is_in_one_part_of_each_kind(pairs: list[tuple[str, str]], two: bool) -> None:
    columns = tuple(zip(*pairs, strict=True))
    parts = subsets.split(columns if two else columns[:1])
    lengths = np.array([sum(len(text.split()) for text in pair[: 1 + two]) for pair in pairs])
    for kind in (subsets.LENGTHS, subsets.NEGATED, *([subsets.OVERLAPS] if two else [])):
        assert sum(parts.masks[name].astype(int) for name in kind).tolist() == [1] * len(pairs)
    assert (subsets.OVERLAPS[0] in parts.masks) == two
    for shorter, longer in itertools.pairwise(subsets.LENGTHS):
        below, above = lengths[parts.masks[shorter]], lengths[parts.masks[longer]]
        assert not len(below) or not len(above) or below.max() < above.min()
    negated = [bool({"not", "no", "didn't"} & set(" ".join(pair[: 1 + two]).split())) for pair in pairs]
    assert parts.masks["negation"].tolist() == negated


def test_words_are_those_of_the_text_and_not_parts_of_them() -> None:
    rows = ("He did n't go.", "He didn’t go.", "A knot, noted: northern Nora.", "NOTHING helps", "can't")
    assert subsets.split((rows,)).masks["negation"].tolist() == [True, True, False, True, True]
    one, other = ("A cat sat.", "A cat sat.", "A cat"), ("a CAT sat", "dogs ran", "a dog")
    assert subsets.split((one, other)).masks["many shared words"].tolist() == [True, False, False]


def test_scores_on_parts_need_the_rows_that_were_scored(finished: Path, tmp_path: Path) -> None:
    words = ("s", "--outputs", str(finished.parents[2]), "--show", "subsets")
    scores = rows_of(*words, cwd=tmp_path)
    total = read_record(finished / "result.json").headline.value
    assert total is not None
    task, method = "sst2 acc (sample)", "lora"
    assert float(scores[task, method, "all"]["mean"]) == pytest.approx(100 * total)
    shutil.copytree(sources.SAMPLE, tmp_path / "rows")
    assert rows_of(*words, "--data", "rows", cwd=tmp_path) == scores
    dev = tmp_path / "rows" / "SST-2" / "dev.tsv"
    dev.write_text(dev.read_text().replace("grinning", "smiling"))
    refused = call("table", *words, "--data", "rows", cwd=tmp_path)
    assert refused.returncode == 3
    assert refused.stderr == "rows: its rows of sst2/dev are not those that the study was scored on\n"
    absent = call("table", *words, "--data", "nowhere", cwd=tmp_path)
    assert (absent.returncode, absent.stderr) == (3, "data.path=nowhere: no such folder\n")


def test_parts_of_a_score_make_up_the_whole(glue: Path, tmp_path: Path) -> None:
    (cell,) = STUDY.glob("glue_small/mrpc-lora-*")
    shutil.copytree(cell, tmp_path / "outputs" / "one" / cell.name)
    scores = rows_of("one", "--show", "subsets", "--data", str(glue), cwd=tmp_path)
    output = call("table", "one", "--show", "subsets", "--data", str(glue), cwd=tmp_path).stdout
    (note,) = (line for line in output.splitlines() if line.startswith("mrpc acc: 408 rows: "))
    sizes = {name: int(re.findall(rf"[:,] {name} (\d+)", note)[0]) for name in PARTS}
    for kind in (subsets.LENGTHS, subsets.OVERLAPS, subsets.NEGATED):
        assert sum(sizes[name] for name in kind) == 408
        parts = sum(sizes[name] * float(scores["mrpc acc", "lora", name]["mean"]) for name in kind)
        assert parts / 408 == pytest.approx(float(scores["mrpc acc", "lora", "all"]["mean"]))
    missing = call("table", "one", "--show", "subsets", cwd=tmp_path)
    assert missing.returncode == 3
    assert missing.stderr == "data.path=GLUE: no such folder; --data DIR says where the rows lie\n"


def test_costs_are_those_of_the_records(finished: Path, tmp_path: Path) -> None:
    costs = rows_of("s", "--outputs", str(finished.parents[2]), "--show", "cost", cwd=tmp_path)
    record = read_record(finished / "result.json")
    assert record.counts is not None
    assert record.throughput is not None
    row = {measure: float(one["mean"]) for (_, _, measure), one in costs.items()}
    assert row["backbone"] == record.counts.backbone
    assert row["stored bytes"] == record.counts.stored_bytes
    assert row["ms per step"] == pytest.approx(1000 / record.throughput.steps_per_s)
    assert row["peak MiB"] == record.memory.peak_mb
    output = call("table", "s", "--outputs", str(finished.parents[2]), "--show", "cost", cwd=tmp_path).stdout
    assert "FLOPs: of matrix products and attention" in output
    assert record.flops is not None
    assert record.flops.training is not None
    assert row["TFLOPs of training"] == record.flops.training
    assert row["MFLOPs more a row"] == record.flops.more > 0
    assert ("kJ of CPUs" in row) == (record.energy is not None)
    assert ("energy: all that" in output) == (record.energy is not None)


def test_a_study_without_stored_predictions_says_so(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    for path in tmp_path.glob("outputs/made/*/*/predictions/dev.tsv"):
        path.unlink()
    output = call("table", "made", "--show", "consistency", cwd=tmp_path)
    assert output.returncode == 0, output.stderr
    assert "no predictions are stored of: " in output.stdout


def test_an_option_of_another_view_is_refused(tmp_path: Path) -> None:
    refused = call("table", "any", "--show", "cost", "--data", "GLUE", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "--data: is for --show subsets, not for cost\n")
