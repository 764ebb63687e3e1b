"""When a finished cell counts: while its rows, weights and task are those at hand."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from checkpoints import checkpoint
from support import TINY, call

from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.data.sources import SAMPLE
from peftbench.ground.errors import DataError
from peftbench.notebook import run
from peftbench.record import find_records
from peftbench.report import records, table
from peftbench.runner.deltas import reload
from peftbench.study import cell_state, index, status, sweep

WORDS = [*(word for word in TINY if word != "data=sample"), "study=s", "method=head", "data=folder"]


def rows(folder: Path, name: str, flip: bool) -> Path:
    shutil.copytree(SAMPLE, folder / name)
    if flip:
        path = folder / name / "SST-2" / "dev.tsv"
        head, *lines = path.read_text().splitlines()
        path.write_text("\n".join([head, *lines[::-1]]) + "\n")
    return folder / name


def result_folders(folder: Path) -> list[Path]:
    return list(find_records(folder / "outputs" / "s"))


def test_other_rows_run_anew_and_the_first_are_found_again(tmp_path: Path) -> None:
    rows(tmp_path, "one", False)
    rows(tmp_path, "two", True)
    first = call("run", *WORDS, "data.path=one", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    was = json.loads((tmp_path / first.stdout.splitlines()[-1]).read_bytes())
    second = call("run", *WORDS, "data.path=two", cwd=tmp_path)
    assert "already done" not in second.stdout, second.stderr
    now = json.loads((tmp_path / second.stdout.splitlines()[-1]).read_bytes())
    assert now["hashes"]["data"]["dev"] != was["hashes"]["data"]["dev"]
    back = call("run", *WORDS, "data.path=one", cwd=tmp_path)
    assert "already done" in back.stdout, back.stderr
    assert json.loads((tmp_path / back.stdout.splitlines()[-1]).read_bytes()) == was
    assert len(result_folders(tmp_path)) == 2
    table = call("table", "s", cwd=tmp_path)
    assert "other rows of dev" in table.stdout, table.stderr
    (tmp_path / "one" / "SST-2" / "dev.tsv").touch()
    plan = call("plan", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert "2 cells: 2 need no run" in plan.stdout, plan.stderr


def test_a_sweep_over_two_folders_of_rows_ends_with_both_results(tmp_path: Path) -> None:
    rows(tmp_path, "one", False)
    rows(tmp_path, "two", True)
    sweep = call("run", "-m", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stderr
    assert sweep.stdout.splitlines()[-1] == "2 cells: 2 done, 0 failed"
    assert len(result_folders(tmp_path)) == 2
    assert call("status", "s", cwd=tmp_path).stdout.startswith("s: 1 cell: 1 done")
    again = call("run", "-m", *WORDS, "data.path=one,two", cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == "2 cells: 2 done (2 of them before), 0 failed"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the test works in, with rows in `one` and the same in another order in `two`."""
    monkeypatch.chdir(tmp_path)
    rows(tmp_path, "one", False)
    rows(tmp_path, "two", True)
    return tmp_path


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes; its size and time stay."""
    before, content = path.stat(), path.read_bytes()
    after = change(content)
    assert len(after) == len(content)
    assert after != content
    path.write_bytes(after)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def other_label(content: bytes) -> bytes:
    assert content[-2:] in (b"0\n", b"1\n")
    return content[:-2] + bytes([content[-2] ^ 1]) + b"\n"


def test_a_file_edited_in_place_is_noticed_also_with_its_size_and_time_as_before(here: Path) -> None:
    words = [*WORDS, "data.path=one", "data.limit=null"]
    first = run(*words)
    for split in ("dev", "train"):
        edit(here / "one" / "SST-2" / f"{split}.tsv", other_label)
        (planned,) = sweep.survey(sweep.cells_of(words)).left
        assert planned.folder == str(first.folder.relative_to("outputs"))
        later = run(*words)
        assert later.record.hashes.data[split] != first.record.hashes.data[split]
    assert len(result_folders(here)) == 3
    assert sweep.survey(sweep.cells_of(words)).before == 1


def test_weights_exchanged_inside_a_folder_are_noticed(here: Path) -> None:
    source = weights_folder(compose.cell_from(["model=minilm_l6"]).model)
    assert source is not None
    shutil.copytree(source, here / "weights")
    words = [
        *WORDS[3:],
        "task=sst2",
        "model=minilm_l6",
        "model.weights=weights",
        "model.sha256=null",
        "data.path=one",
        "data.limit=16",
    ]
    first = run(*words)
    assert run(*words).record == first.record

    def last_bit(content: bytes) -> bytes:
        return content[:-4] + bytes([content[-4] ^ 1]) + content[-3:]

    edit(here / "weights" / "model.safetensors", last_bit)
    assert len(sweep.survey(sweep.cells_of(words)).left) == 1
    later = run(*words)
    assert later.record.hashes.weights != first.record.hashes.weights
    assert len(result_folders(here)) == 2
    kept = records.read_study(here / "outputs", "s", "all")
    assert any("other weights" in note for note in table.build(kept).notes)


SWAPPED = "task.folder.text=[label] task.folder.label=sentence"


@pytest.mark.parametrize(
    "word",
    ["task.labels=[b,a]", SWAPPED, "task.folder.text=[review]", 'task.folder.label_values=["1","0"]',
     "task.version=2", "data.limit=40"],
)  # fmt: skip
def test_another_task_is_another_cell(here: Path, word: str) -> None:
    words = [*WORDS, "data.path=one"]
    first = compose.cell_from(words)
    assert compose.cell_from([*words, *word.split()]).folder != first.folder


def test_texts_in_the_other_order_are_another_cell(here: Path) -> None:
    words = [*WORDS, "data.path=one", "task=rte"]
    turned = compose.cell_from([*words, "task.folder.text=[sentence2,sentence1]"])
    assert turned.folder != compose.cell_from(words).folder


def other_dropout(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "hidden_dropout_prob": 0.25}))


def other_words(folder: Path) -> None:
    raw = json.loads((folder / "tokenizer.json").read_text())
    words = raw["model"]["vocab"]
    words["film"], words["movie"] = words["movie"], words["film"]
    (folder / "tokenizer.json").write_text(json.dumps(raw))


@pytest.mark.parametrize("change", [other_dropout, other_words])
def test_what_lies_beside_the_weights_counts_as_they_do(here: Path, change: Callable[[Path], None]) -> None:
    words = [*WORDS, "data.path=one", *checkpoint("bert_base_uncased", here / "weights")]
    first = run(*words)
    assert run(*words).record == first.record
    run(*words, "seed=1")
    change(here / "weights")
    with pytest.raises(DataError, match=r"config\.json or the tokenizer's files are not those that"):
        reload(first.folder)  # as predict, apply and score do
    assert len(sweep.survey(sweep.cells_of(words)).left) == 1
    later = run(*words)
    assert later.record.hashes.weights == first.record.hashes.weights
    assert (later.record.hashes.tokenizer == first.record.hashes.tokenizer) == (change is other_dropout)
    assert run(*words).record == later.record
    built = table.build(records.read_study(here / "outputs", "s"))
    assert [next(iter(line.entries.values())).seeds for line in built.lines] == [1, 2]  # seed 1 is as the first
    assert [note for note in built.notes if "another tokenizer or config.json" in note]


def test_rows_of_the_hub_that_no_commit_holds_are_compared(tmp_path: Path) -> None:
    def rows_are(*labels: int) -> None:
        features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.Value("int64")})
        content = {"sentence": [f"film {number}" for number in range(len(labels))], "label": list(labels)}
        for split in ("train", "validation"):
            datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "copy" / f"{split}.parquet")

    def said() -> str:
        words = [*(word for word in WORDS if word != "data=folder"), "data=hub", "data.path=copy", "task.test=[]"]
        done = call("run", *words, "task.hub.config=default", cwd=tmp_path, HF_DATASETS_CACHE=str(tmp_path / "hf"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "copy").mkdir()
    rows_are(0, 1, 0, 1)
    said()
    assert "already done" in said()
    rows_are(0, 1, 1, 1)
    assert "already done" not in said()
    assert len(result_folders(tmp_path)) == 2


def test_a_mean_is_never_taken_over_other_rows(here: Path) -> None:
    for seed, folder in ((0, "one"), (1, "one"), (2, "two")):
        run(*WORDS, f"data.path={folder}", f"seed={seed}")
    built = table.build(records.read_study(here / "outputs", "s"))
    assert [next(iter(line.entries.values())).seeds for line in built.lines] == [2, 1]
    assert [note for note in built.notes if "other rows of dev" in note]


BROKEN = {
    "cut": b'{"a": {"dev": "00',
    "no hashes": b'{"a": {"dev": 3}}',
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
    "no text": b"\xff\xfe\x00",
    "another's": b'{"made_of": [], "records": {"x": [[1, 2, 3, 4], "done", 1.0, 1.0, 7]}}',
}


@pytest.mark.parametrize("content", [*BROKEN.values(), None], ids=[*BROKEN, "fifo"])
def test_damaged_files_of_hashes_are_as_good_as_none(here: Path, content: bytes | None) -> None:
    words = [*WORDS, "data.path=one"]
    first = run(*words)
    for path in (here / "cache" / "hashes.json", here / "outputs" / "s" / cell_state.FILE):
        path.unlink(missing_ok=True)
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
    assert sweep.prepare(sweep.cells_of(words)).before == 1
    assert run(*words).record == first.record
    assert sweep.survey(sweep.cells_of([*words, "method=bitfit"])).before == 0


def test_a_record_is_read_again_only_where_its_file_changed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*WORDS, "data.path=one"]
    path = run(*words).folder / "result.json"
    monkeypatch.setattr(cell_state, "YOUNG", -1.0)  # as if it had been left alone for long
    assert sweep.prepare(sweep.cells_of(words)).before == 1

    def unread(path: Path) -> None:
        raise AssertionError(f"{path} was read before")

    with monkeypatch.context() as patch:
        patch.setattr(cell_state, "glance", unread)
        assert sweep.prepare(sweep.cells_of(words)).before == 1
    at = path.read_bytes().index(b'"value": 0.') + 11
    edit(path, lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert sweep.prepare(sweep.cells_of(words)).before == 0, "its bytes are not those that were written"


def test_status_calls_done_what_a_sweep_calls_done(here: Path) -> None:
    words = [*WORDS, "data.path=one"]
    sweep.prepare(sweep.cells_of(words))
    run(*words)
    assert [cell.state for cell in status.cells_of(here / "outputs", "s")] == ["done"]
    edit(here / "one" / "SST-2" / "dev.tsv", other_label)
    assert [cell.state for cell in status.cells_of(here / "outputs", "s")] == ["done"], "the limit leaves that row out"
    edit(here / "one" / "SST-2" / "dev.tsv", lambda content: content.replace(b" a ", b" b "))
    assert [cell.state for cell in status.cells_of(here / "outputs", "s")] == ["missing"]
    shutil.rmtree(here / "one")
    (cell,) = status.cells_of(here / "outputs", "s")
    assert (cell.state, cell.unknown) == ("done", True)


def test_words_of_one_key_count_in_their_order(here: Path) -> None:
    assert index.key(["seed=1", "study=s"]) == index.key(["study=s", "seed=1"])
    assert index.key(["seed=1", "seed=2"]) != index.key(["seed=2", "seed=1"])


def test_rows_left_out_are_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = here / "one" / "SST-2" / "dev.tsv"
    path.write_bytes(path.read_bytes() + b"no label\n" * 2)
    words = [*WORDS, "data.path=one", "data.limit=null", "task.folder.skip_incomplete=true"]
    run(*words)
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert set(lines) == {"one/SST-2/dev.tsv: 2 lines of other than 2 fields left out"}
