"""Sources with their quirks, tokens with their cache, batches with their order."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbench.config import compose
from peftbench.config.spec import Cell
from peftbench.data import sources, tokens
from peftbench.data.batches import collate, cut, epoch_order, evaluation_order
from peftbench.data.split import Split, make_split
from peftbench.ground.errors import DataError

OFFICIAL = {  # rows of train, dev and test in the official download (QNLI's train is a part of it here)
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
    "qnli": (21351, 5463, 5463),
}


def cell_on(folder: Path, task: str) -> Cell:
    return compose.cell_from([f"task={task}", "data=folder", f"data.path={folder}"])


def read(folder: Path, task: str, *splits: str) -> dict[str, Split]:
    cell = cell_on(folder, task)
    return sources.load(cell.data, cell.task, splits)


def put(root: Path, name: str, content: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


@pytest.mark.parametrize("task", OFFICIAL)
def test_real_glue_is_read_whole(glue: Path, task: str) -> None:
    splits = read(glue, task, "train", "dev", "test")
    assert tuple(len(splits[split]) for split in ("train", "dev", "test")) == OFFICIAL[task]
    assert splits["test"].labels is None
    labels = splits["dev"].labels
    assert labels is not None
    if task == "stsb":
        assert labels.min() == 0
        assert labels.max() == 5
    else:
        assert set(labels) == {0, 1}


def test_label_ids_are_the_hubs(glue: Path) -> None:
    # MRPC dev: 279 of 408 are equivalent; RTE dev: 146 of 277 entail, which the Hub calls 0
    mrpc, rte = read(glue, "mrpc", "dev")["dev"], read(glue, "rte", "dev")["dev"]
    assert mrpc.labels is not None
    assert rte.labels is not None
    assert int(mrpc.labels.sum()) == 279
    assert int((rte.labels == 0).sum()) == 146
    assert mrpc.texts[0][0].startswith("He said the foodservice pie business")


def test_quirks_of_the_official_files(tmp_path: Path) -> None:
    put(tmp_path, "MRPC/dev.tsv", '﻿Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t1\t2\tsays "no\tNone\r\n')
    put(tmp_path, "CoLA/dev.tsv", 'gj04\t1\t\tAn "odd" quote\'s fine.\ngj04\t0\t*\tNA\n')
    put(tmp_path, "SST-2/test.tsv", "index\tsentence\n0\tfine\n")
    mrpc = read(tmp_path, "mrpc", "dev")["dev"]
    assert mrpc.texts == (('says "no',), ("None",))
    cola = read(tmp_path, "cola", "dev")["dev"]
    assert cola.texts == (('An "odd" quote\'s fine.', "NA"),)
    assert cola.labels is not None
    assert cola.labels.tolist() == [1, 0]
    assert read(tmp_path, "sst2", "test")["test"].labels is None


def test_mnli_has_two_dev_sets(tmp_path: Path) -> None:
    head = "index\tsentence1\tsentence2\tgold_label\n"
    put(tmp_path, "MNLI/train.tsv", head + "0\ta\tb\tneutral\n")
    put(tmp_path, "MNLI/dev_matched.tsv", head + "0\ta\tb\tcontradiction\n")
    put(tmp_path, "MNLI/dev_mismatched.tsv", head + "0\ta\tb\tentailment\n")
    splits = read(tmp_path, "mnli", "train", "dev_matched", "dev_mismatched")
    assert [int(split.labels[0]) for split in splits.values() if split.labels is not None] == [1, 2, 0]


def test_qqp_leaves_broken_rows_out_and_others_do_not(tmp_path: Path) -> None:
    put(tmp_path, "QQP/dev.tsv", "id\tquestion1\tquestion2\tis_duplicate\n0\ta\tb\t1\n1\tbroken\n")
    assert len(read(tmp_path, "qqp", "dev")["dev"]) == 1


GOOD = "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n"
BROKEN = [
    ("", r"dev.tsv: has no rows"),
    ("index\tsentence1\tsentence2\tlabel\n", r"dev.tsv: has no rows"),
    (GOOD.replace("sentence2", "hypothesis"), r"dev.tsv, line 1: no column 'sentence2'"),
    (GOOD.replace("label", "gold"), r"line 1: no column 'label'"),
    (
        GOOD + "1\tc\td\tmaybe\n",
        r"dev.tsv, line 3 \(dev, row 1\): unknown label 'maybe', allowed: entailment, not",
    ),
    (GOOD + "1\tc\tentailment\n", r"dev.tsv, line 3: 3 fields where the file has 4 columns"),
    (GOOD + "1\tc\td\te\tentailment\n", r"line 3: 5 fields"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    put(tmp_path, "RTE/dev.tsv", content)
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, "rte", "dev")
    assert caught.value.exit_code == 3
    assert len(caught.value.problems) == 1


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere", "rte", "dev")
    with pytest.raises(DataError, match="has no folder RTE"):
        read(tmp_path, "rte", "dev")
    (tmp_path / "RTE").mkdir()
    with pytest.raises(DataError, match=r"dev.tsv: no such file"):
        read(tmp_path, "rte", "dev")
    put(tmp_path, "STS-B/dev.tsv", "sentence1\tsentence2\tscore\na\tb\thigh\n")
    with pytest.raises(DataError, match=r"line 2 .*: the score 'high' is not a number"):
        read(tmp_path, "stsb", "dev")
    (tmp_path / "STS-B" / "dev.tsv").write_bytes(b"sentence1\tsentence2\tscore\n\xff\tb\t1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path, "stsb", "dev")


def test_without_the_hub_the_line_says_what_works() -> None:
    cell = compose.cell_from(["task=rte", "data=hub"])
    with pytest.raises(DataError, match=r"cannot read nyu-mll/glue.*data=folder.*data=sample need no network"):
        sources.load(cell.data, cell.task, ["dev"])


def test_the_sample_is_large_enough_varied_and_balanced() -> None:
    for task in ("sst2", "rte", "stsb"):
        cell = compose.cell_from([f"task={task}", "data=sample"])
        splits = sources.load(cell.data, cell.task, ["train", "dev"])
        assert len(splits["train"]) >= 200
        assert len(splits["dev"]) >= 100
        pairs = [set(zip(*split.texts, strict=True)) for split in splits.values()]
        assert len(pairs[0]) == len(splits["train"]), "no row twice"
        assert not pairs[0] & pairs[1], "no row of dev in train"
        for split in splits.values():
            assert split.labels is not None
            if task == "stsb":
                assert split.labels.min() >= 0
                assert split.labels.max() <= 5
            else:
                assert abs(split.labels.mean() - 0.5) < 0.02
    cola = compose.cell_from(["task=cola", "data=sample"])
    with pytest.raises(DataError, match="has no cola, only RTE, SST-2, STS-B"):
        sources.load(cola.data, cola.task, ["dev"])


class CountingTokenizer(tokens.HashTokenizer):
    """Counts how often it is asked."""

    asked = 0

    def encode(self, texts, max_length):  # type: ignore[no-untyped-def]
        """As the hashing tokenizer."""
        self.asked += 1
        return super().encode(texts, max_length)


def test_text_is_tokenised_once(tmp_path: Path) -> None:
    split = make_split("dev", (("a b c", "d"), ("e", "f g")), np.array([0, 1]))
    tokenizer = CountingTokenizer(1000, 0)
    first = tokens.tokenize(split, tokenizer, 16, tmp_path)
    again = tokens.tokenize(split, tokenizer, 16, tmp_path)
    assert tokenizer.asked == 1
    np.testing.assert_array_equal(first.ids, again.ids)
    assert first.lengths.tolist() == [1 + 3 + 1 + 1 + 1, 1 + 1 + 1 + 2 + 1]
    assert first.first.tolist() == [5, 3]

    tokens.tokenize(split, tokenizer, 8, tmp_path)  # another length
    other = make_split("dev", (("a b C", "d"), ("e", "f g")), np.array([0, 1]))
    tokens.tokenize(other, tokenizer, 16, tmp_path)  # another text
    assert tokenizer.asked == 3


def test_a_damaged_cache_is_not_trusted(tmp_path: Path) -> None:
    split = make_split("dev", (("a b c", "d"),), None)
    tokenizer = CountingTokenizer(1000, 0)
    good = tokens.tokenize(split, tokenizer, 16, tmp_path)
    (file,) = (tmp_path / "tokens").iterdir()
    content = file.read_bytes()
    flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
    for damaged in (b"", content[: len(content) // 2], b"\0" * len(content), flipped):
        file.write_bytes(damaged)
        again = tokens.tokenize(split, tokenizer, 16, tmp_path)
        np.testing.assert_array_equal(again.ids, good.ids)
    assert tokenizer.asked == 5
    assert len(list((tmp_path / "tokens").glob("*.bad*"))) == 4


def test_the_backbones_own_tokenizer(tmp_path: Path) -> None:
    from peftbench.backbone.weights import weights_folder

    spec = compose.cell_from([]).model
    tokenizer = tokens.tokenizer_for(spec, weights_folder(spec))
    split = make_split("dev", (("A man sleeps.", "x " * 50), ("Nobody's awake!", "y")), None)
    tokenized = tokens.tokenize(split, tokenizer, 12, tmp_path)
    row = tokenized.ids[tokenized.starts[0] : tokenized.starts[1]].tolist()
    assert row[0] == 101  # [CLS]
    assert row.count(102) == 2  # [SEP]
    assert row[tokenized.first[0] - 1] == 102
    assert tokenized.lengths.max() == 12


lengths = st.lists(st.integers(1, 40), min_size=1, max_size=300).map(np.array)


@given(lengths, st.integers(1, 17), st.booleans(), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(
    lengths: np.ndarray, batch_size: int, bucketing: bool, seed: int, epoch: int
) -> None:
    batches = epoch_order(lengths, batch_size, bucketing, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    assert max(map(len, batches)) <= batch_size
    again = epoch_order(lengths, batch_size, bucketing, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_bucketing_saves_padding_and_epochs_differ() -> None:
    sizes = np.random.default_rng(0).integers(1, 100, 2000)

    def padded(bucketing: bool) -> int:
        return sum(len(rows) * sizes[rows].max() for rows in epoch_order(sizes, 16, bucketing, 0, 0))

    assert padded(True) < 0.65 * padded(False)
    orders = [np.concatenate(epoch_order(sizes, 16, True, 0, epoch)).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]


@given(lengths, st.integers(1, 9), st.integers(1, 7))
def test_batches_are_padded_and_cut_exactly(lengths: np.ndarray, batch_size: int, parts: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(1, starts[-1] + 1, dtype=np.int32)
    split = tokens.Tokens("x", ids, starts, np.maximum(1, lengths // 2).astype(np.int32), None, 0)
    for rows in evaluation_order(lengths, batch_size):
        batch = collate(split, rows, type_ids=True).inputs
        for i, row in enumerate(rows):
            size = lengths[row]
            assert batch["input_ids"][i, :size].tolist() == ids[starts[row] : starts[row + 1]].tolist()
            assert batch["attention_mask"][i].sum() == size
            assert batch["token_type_ids"][i].sum() == size - split.first[row]
            assert not batch["input_ids"][i, size:].any()
        pieces = list(cut(rows, parts))
        assert np.concatenate(pieces).tolist() == rows.tolist()
        assert all(len(piece) for piece in pieces)
