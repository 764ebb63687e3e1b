"""Strangers' rows: what a table of text and the Hub's copy give, and the line that refuses what they cannot be."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftbench.commands import screen
from peftbench.config import compose
from peftbench.data import sources
from peftbench.data.split import Split, make_split
from peftbench.data.tsv import MAX_BYTES, read_table
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.runner import apply
from peftbench.runner.run import Outcome

HEAD = b"index\tsentence1\tsentence2\tlabel\n"
ROW = b"0\ta\tb\tentailment\n"
TEXT = st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]))


def put(root: Path, name: str, content: bytes) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def folder(root: Path, task: str, *words: str, split: str = "dev") -> Split:
    cell = compose.cell_from([f"task={task}", "data=folder", f"data.path={root}", *words])
    return sources.load(cell.data, cell.task, [split])[split]


def refused(call: Callable[[], object]) -> str:
    """The one line with which it is refused."""
    with pytest.raises(DataError) as caught:
        call()
    (line,) = caught.value.problems
    assert len(line) <= 200
    assert line.isprintable()
    return line


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["", "\ufeff"]),
)
def test_every_text_comes_back(tmp_path: Path, rows: list[tuple[str, str]], end: str, mark: str) -> None:
    lines = ["first\tsecond", *("\t".join(row) for row in rows)]
    path = put(tmp_path, "rows.tsv", (mark + end.join(lines) + end).encode())
    table = read_table(path, ["second", "first"])
    assert list(zip(table.columns["first"], table.columns["second"], strict=True)) == rows
    assert table.lines == tuple(range(2, len(rows) + 2))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(TEXT.filter(bool), min_size=1, max_size=8), st.integers(0, 3))
def test_every_line_of_one_column_is_a_row(tmp_path: Path, rows: list[str], empty: int) -> None:
    path = put(tmp_path, "rows.tsv", ("\n".join(["text", *rows]) + "\n" * empty).encode())
    assert read_table(path, ["text"]).columns["text"] == tuple(rows)


def test_the_hash_of_equal_rows_stays_what_records_hold() -> None:
    split = make_split("dev", (("a", "é"), ("b", 'say "x"')), np.array([0, 1], dtype=np.int64))
    assert split.sha256 == "9138150d260ca7ddbbaf373533ac0af475c42a944500942848f751b817db38ca"
    scores = make_split("dev", (("a",),), np.array([2.5], dtype=np.float32))
    assert scores.sha256 == "b67bbb57222656a5228a2e096d7ec08c9414a76389dcbafd523fb88a37522431"
    assert (
        make_split("test", (("a",),), None).sha256 == "c627d6b8b978093b210110371dfce229bf398934563f633e4bd1aa88426a9872"
    )


REFUSED = [  # RTE's dev.tsv, what the line says
    (b"", "dev.tsv: has no rows"),
    (b"\r\n\r\n", "dev.tsv: has no rows"),
    (b"\n" + HEAD + ROW, "dev.tsv, line 1: is empty"),
    (HEAD + ROW + b"\n" + ROW, "dev.tsv, line 3: is empty, and every line is a row"),
    (HEAD + b"\r\n" + ROW, "dev.tsv, line 2: is empty"),
    ((HEAD + ROW).replace(b"\n", b"\r"), "dev.tsv, line 1: a CR (carriage return) that ends no line"),
    (HEAD + b"0\ta\rb\tc\tentailment\n", "dev.tsv, line 2: a CR"),
    ((HEAD + ROW).replace(b"\t", b","), "dev.tsv, line 1: the file is comma-separated"),
    (b'"index","sentence1","sentence2","label"\n0,a,b,entailment\n', "dev.tsv, line 1: the file is comma-separated"),
    (HEAD + b"0,a,b,entailment\n", "dev.tsv, line 2: 1 field where the file has 4 columns; it looks comma-separated"),
    (HEAD.replace(b"index", b"label") + ROW, "dev.tsv, line 1: 2 columns 'label'"),
    (HEAD.replace(b"sentence1", b"sentence2") + ROW, "dev.tsv, line 1: no column 'sentence1'"),
    (HEAD + ROW + b"1\ta\tb\tEntailment\n", "dev.tsv, line 3 (dev, row 1): unknown label 'Entailment'"),
    (HEAD + b"0\ta\tb\t" + b"x" * 3_000_000 + b"\n", "line 2 (dev, row 0): unknown label 'xxx"),
    (HEAD + b"0\ta\tb\t\x1b[31mred\n", r"unknown label '\x1b[31mred'"),
    (HEAD.replace(b"index", b"\x1b]0;title\x07" * 100_000).replace(b"label", b"gold"), "no column 'label'"),
]


@pytest.mark.parametrize(("content", "said"), REFUSED)
def test_what_is_no_table_of_rows_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = put(tmp_path, "RTE/dev.tsv", content)
    assert said in refused(lambda: folder(tmp_path, "rte"))
    if "label" not in said:  # the reader of `predict` says the same
        assert said in refused(lambda: read_table(path, ["sentence1", "sentence2"]))


@pytest.mark.parametrize(
    ("score", "said"),
    [
        *((score, "not a number") for score in ("nan", "-inf", "1e400", "1e39", "1_0", "\u0663", " 3", "")),
        *((score, "outside [0.0, 5.0]") for score in ("5.1", "-1")),
    ],
)
def test_a_score_is_a_finite_number_in_its_range(tmp_path: Path, score: str, said: str) -> None:
    put(tmp_path, "STS-B/dev.tsv", f"sentence1\tsentence2\tscore\na\tb\t5.000\na\tb\t{score}\n".encode())
    line = refused(lambda: folder(tmp_path, "stsb"))
    assert "dev.tsv, line 3 (dev, row 1): the score" in line
    assert said in line


def test_files_without_a_header_line_are_held_to_the_same_rules(tmp_path: Path) -> None:
    put(tmp_path, "CoLA/dev.tsv", b"gj04,1,,A sentence.\n")
    assert "dev.tsv, line 1: 1 field where the file has 4 columns; it looks comma-separated" in refused(
        lambda: folder(tmp_path, "cola")
    )
    put(tmp_path, "CoLA/dev.tsv", b"gj04\t1\t\tA.\rgj04\t0\t\tB.\r")
    assert "dev.tsv, line 1: a CR" in refused(lambda: folder(tmp_path, "cola"))
    absent = "task.folder.columns={dev:[source,label,mark,text]}"
    assert "no column 'sentence', only source, label, mark, text" in refused(lambda: folder(tmp_path, "cola", absent))


def test_incomplete_lines_are_left_out_where_the_task_says_so(tmp_path: Path) -> None:
    head = b"id\tquestion1\tquestion2\tis_duplicate\n"
    put(tmp_path, "QQP/dev.tsv", head + b"0\ta\tb\t1\n1\tcut\n\n2\tc\td\rd\t1\n3\te\tf\t0\n")
    split = folder(tmp_path, "qqp")
    assert split.texts == (("a", "e"), ("b", "f"))
    assert split.labels is not None
    assert split.labels.tolist() == [1, 0]


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_pipe, "dev.tsv: not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "dev.tsv: not a regular file"),
        (Path.mkdir, "dev.tsv: not a regular file"),
        (lambda path: path.symlink_to("/proc/self/mem"), "dev.tsv: cannot be read (Input/output error)"),
        (lambda path: path.symlink_to(path), "dev.tsv: cannot be read (Too many levels of symbolic links)"),
        (lambda path: None, "dev.tsv: no such file"),
        (_large, "dev.tsv: 1,073,741,825 bytes, more than"),
    ],
)
def test_only_a_regular_file_of_a_sane_size_is_read(tmp_path: Path, make: Callable[[Path], None], said: str) -> None:
    path = tmp_path / "RTE" / "dev.tsv"
    path.parent.mkdir()
    make(path)
    assert said in refused(lambda: folder(tmp_path, "rte"))
    assert said in refused(lambda: read_table(path, ["sentence1"]))


@pytest.mark.parametrize("path", ["x" * 5000, "/x" * 2000, "~nobody-of-that-name/glue"])
def test_a_path_that_cannot_be_is_one_line(path: str) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        folder(Path(path), "rte")
    assert "data.path=" in caught.value.problems[0]
    assert len(caught.value.problems[0]) < 200


@given(st.text(max_size=500), st.integers(20, 80))
def test_what_is_shown_is_short_and_printable(text: str, limit: int) -> None:
    said = shown(text, limit)
    assert len(said) <= limit
    assert said.isprintable()
    if text.isprintable() and len(text) <= limit:
        assert said == text


BOUNDS = [  # a task's lists, what the line says
    ("sst2", "task.hub.text=[a,b,c]", 'task.hub.text=["a", "b", "c"]: must have at most 2 entries'),
    ("rte", "task.folder.text=[a,b,c]", 'task.folder.text=["a", "b", "c"]: must have at most 2 entries'),
    ("rte", "task.folder.text=[]", "task.folder.text=[]: must have at least 1 entry"),
    ("rte", "task.folder.text=[a,a]", 'task.folder.text=["a", "a"]: must not name one thing twice'),
    ("rte", "task.folder.text=['']", "task.folder.text.0='': must have at least 1 character"),
    ("rte", "task.folder.label=sentence1", "task.folder: label=sentence1 is a text column, too"),
    ("rte", "task.hub.label=sentence1", "task.hub: label=sentence1 is a text column, too"),
    ("rte", "task.labels=[a,a]", 'task.labels=["a", "a"]: must not name one thing twice'),
    ("rte", "task.labels=[a]", 'task.labels=["a"]: must have at least 2 entries'),
    ("rte", f"task.labels=[{','.join(f'c{i}' for i in range(1001))}]", "must have at most 1,000 entries"),
    ("rte", f"task.labels=[a,{'b' * 5_000}]", "must have at most 200 characters"),
    ("rte", f"task.labels=[a,{'b' * 100_000}]", "longer than 10,000 characters"),
    ("sst2", 'task.folder.label_values=["0","1","2"]', "folder.label_values names 3 classes, labels names 2"),
    ("stsb", 'task.folder.label_values=["0","1"]', "folder.label_values names 2 classes, labels names 0"),
    ("rte", "task.metrics=[accuracy,accuracy]", "must not name one thing twice"),
    ("rte", "task.metrics=[pearson]", "metrics names pearson, which is for regressions"),
    ("stsb", "task.metrics=[accuracy]", "metrics names accuracy, which is for classes"),
    ("mnli", "task.metrics=[f1]", "metrics names f1, which is for two classes, and labels names 3"),
    ("stsb", "task.score_range=[5,0]", "score_range=[5.0, 0.0] must rise"),
    ("rte", "task.score_range=[0,5]", "is for regressions"),
    ("rte", "task.dev=[dev,dev]", "must not name one thing twice"),
    ("rte", "task.dev=[train]", "'train' cannot be a split of dev or test"),
    ("rte", "task.test=[dev]", "'dev' cannot be a split of dev or test"),
    ("rte", "task.dev=[held_out]", "'held_out' cannot be a split of dev or test"),
    ("rte", "task.dev=[../up]", "task.dev.0=../up: must be letters, digits and _"),
    ("rte", "task.train=dev", "task.train=dev: must be train"),
    ("cola", "task.folder.columns.dev=[a,a]", "must not name one thing twice"),
    ("cola", "task.folder.columns.dev=[]", "task.folder.columns.dev=[]: must have at least 1 entry"),
    ("rte", "data.path=null", "data: path must be given"),
]


@pytest.mark.parametrize(("task", "word", "said"), BOUNDS, ids=[word[:40] + said[-30:] for _, word, said in BOUNDS])
def test_a_tasks_lists_are_bounded(task: str, word: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.cell_from([f"task={task}", "data=hub", word])
    line = next(line for line in caught.value.problems if said in line)
    assert len(line) <= 200


@pytest.mark.parametrize(("source", "key"), [("hub", "hub.splits"), ("folder", "folder.files")])
def test_a_split_that_the_source_does_not_have_is_named(tmp_path: Path, source: str, key: str) -> None:
    cell = compose.cell_from(["task=rte", f"data={source}", f"data.path={tmp_path}", "task.dev=[other]"])
    for ask in (sources.load, sources.stamps):
        with pytest.raises(ConfigError, match=f"task.{key}: does not say where 'other' is"):
            ask(cell.data, cell.task, ["other"])


def hub(root: Path, task: str, columns: dict[str, Sequence[Any]], label: Any, split: str = "dev") -> Split:
    """One split of a copy on the Hub, which here lies in a folder; `label` is the type of its label column."""
    import datasets

    text = datasets.Value("string")
    features = {name: label if name == "label" else text for name in columns}
    features |= {name: datasets.Value("int64") for name in columns if name == "number"}
    rows = datasets.Dataset.from_dict(dict(columns), features=datasets.Features(features))
    named = {"train": "train", "dev": "validation", "test": "test"}[split]
    (root / "copy").mkdir()
    rows.to_parquet(root / "copy" / f"{named}.parquet")
    cell = compose.cell_from([f"task={task}", "data=hub", f"data.path={root / 'copy'}", "task.hub.config=default"])
    return sources.load(cell.data, cell.task, [split])[split]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the datasets library prepares stays."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


RTE = {"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"]}


def classes(*names: str) -> Any:
    import datasets

    return datasets.ClassLabel(names=list(names))


def plain(kind: str) -> Any:
    import datasets

    return datasets.Value(kind)


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (("entailment", "not_entailment"), [0, 1, 1]),
        (("not_entailment", "entailment"), [1, 0, 0]),
        (("0", "1"), [0, 1, 1]),  # what the library calls them where only their number is known
    ],
)
def test_the_hubs_classes_are_taken_by_name(tmp_path: Path, names: tuple[str, ...], ids: list[int]) -> None:
    split = hub(tmp_path, "rte", {**RTE, "label": [0, 1, 1]}, classes(*names))
    assert split.labels is not None
    assert split.labels.tolist() == ids
    assert split.texts == (("a", "b", "c"), ("d", "e", "f"))


def test_the_hubs_rows_have_the_hash_of_a_folders(tmp_path: Path) -> None:
    put(tmp_path, "RTE/dev.tsv", HEAD + b"0\ta\td\tentailment\n1\tb\te\tnot_entailment\n2\tc\tf\tnot_entailment\n")
    there = hub(tmp_path, "rte", {**RTE, "label": [1, 0, 0]}, classes("not_entailment", "entailment"))
    assert there.sha256 == folder(tmp_path, "rte").sha256


def test_the_hubs_plain_labels_are_ids_or_names(tmp_path: Path) -> None:
    for i, (kind, labels) in enumerate({"int64": [1, 0, 1], "string": ["not_entailment", "entailment"] * 2}.items()):
        root = tmp_path / str(i)
        root.mkdir()
        split = hub(root, "rte", {**RTE, "label": labels[:3]}, plain(kind))
        assert split.labels is not None
        assert split.labels.tolist() == [1, 0, 1]


def test_labels_of_a_test_split_are_not_public(tmp_path: Path) -> None:
    split = hub(tmp_path, "rte", {**RTE, "label": [-1, -1, -1]}, classes("entailment", "not_entailment"), "test")
    assert split.labels is None
    assert len(split) == 3


HUB_REFUSED: list[tuple[str, dict[str, Any], Callable[[], Any], str]] = [
    (
        "rte",
        {"label": [0, -1, 1]},
        lambda: classes("entailment", "not_entailment"),
        "validation), row 1: unknown label -1",
    ),
    ("rte", {"label": [-1, -1, -1]}, lambda: plain("int64"), "row 0: unknown label -1, allowed: 0 to 1; a split"),
    ("rte", {"label": [0, 1, 2]}, lambda: plain("int64"), "row 2: unknown label 2, allowed: 0 to 1"),
    ("rte", {"label": [0, None, 1]}, lambda: plain("int64"), "row 1: unknown label None"),
    ("rte", {"label": [0.0, 1.0, 1.0]}, lambda: plain("float32"), "row 0: unknown label 0.0"),
    ("rte", {"label": [True, False, True]}, lambda: plain("bool"), "row 0: unknown label True"),
    ("rte", {"label": ["maybe"] * 3}, lambda: plain("string"), "row 0: unknown label 'maybe'"),
    (
        "rte",
        {"label": [0, 1, 1]},
        lambda: classes("entails", "not_entailment"),
        "names a class 'entails', task.labels are",
    ),
    ("rte", {"label": [0, 1, 1]}, lambda: classes("yes", "no", "\x1b[31m" * 999), "names a class 'yes'"),
    ("rte", {"label": [0] * 3, "sentence2": ["a", None, "b"]}, lambda: plain("int64"), "row 1: 'sentence2' is None"),
    ("rte", {"target": ["x"] * 3}, lambda: None, "has no column 'label', only sentence1, sentence2, target"),
    ("stsb", {"label": [0.0, 5.0, 5.5]}, lambda: plain("float32"), "row 2: the score 5.5 is outside [0.0, 5.0]"),
    ("stsb", {"label": [0.0, float("nan"), 1.0]}, lambda: plain("float32"), "row 1: the score 'nan' is not a number"),
    ("stsb", {"label": [0, 1, 1]}, lambda: classes("a", "b"), "'label' holds classes, and the task is a regression"),
]


@pytest.mark.parametrize(("task", "columns", "label", "said"), HUB_REFUSED, ids=[said[:40] for *_, said in HUB_REFUSED])
def test_the_hubs_rows_are_refused_with_split_and_row(
    tmp_path: Path, task: str, columns: dict[str, Any], label: Callable[[], Any], said: str
) -> None:
    assert said in refused(lambda: hub(tmp_path, task, {**RTE, **columns}, label()))


def test_a_text_of_the_hub_is_no_number(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"sentence": [1, 2], "label": [0, 1]})
    (tmp_path / "copy").mkdir()
    rows.to_parquet(tmp_path / "copy" / "validation.parquet")
    cell = compose.cell_from(["task=sst2", "data=hub", f"data.path={tmp_path / 'copy'}", "task.hub.config=default"])
    assert "row 0: 'sentence' is 1, not a text" in refused(lambda: sources.load(cell.data, cell.task, ["dev"]))


def test_a_file_gets_one_prediction_for_each_of_its_rows(
    run_tiny: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_tiny("method=bitfit").path.parent
    texts = ["fine", '"quoted', "  ", "NA", "a\u2028b"]
    path = put(tmp_path, "new.tsv", "\r\n".join(["sentence", *texts, "", ""]).encode("utf-8-sig"))
    lines = apply.label(run, path, tmp_path / "cache")
    assert [line.split("\t")[0] for line in lines] == ["index", *map(str, range(len(texts)))]
    put(tmp_path, "new.tsv", b"sentence\nfine\n\nbad\n")
    assert "new.tsv, line 3: is empty" in refused(lambda: apply.label(run, path, tmp_path / "cache"))

    untrained = run_tiny("method=bitfit", "task.train=null", "task.test=[]", f"init_from={run}").record
    assert untrained.headline.value is not None
    assert untrained.throughput is None
    screen.summary(untrained)
    assert "tokens/s" not in capsys.readouterr().out
