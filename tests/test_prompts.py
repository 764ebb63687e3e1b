"""Prompts: rows rendered as LM-BFF renders them, and a masked-LM head that is read, trained and stored as a head is."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from matrix import EVERY
from prompted import KINDS, byte_level, masked_checkpoint, wordpiece
from safetensors.torch import load_file
from support import assemble, values
from transformers import AutoModelForMaskedLM
from uses import done, labelled, written

from peftbench.backbone.model import load_model
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.config.few_labels import PromptSpec
from peftbench.config.spec import Cell, TaskSpec
from peftbench.data.prompts import PromptTokenizer
from peftbench.data.rows import rows_of
from peftbench.data.tokens import PretrainedTokenizer
from peftbench.ground.errors import ConfigError, DataError
from peftbench.ground.files import DELTA_FILE
from peftbench.runner import apply, deltas, readouts
from peftbench.runner.counts import count_cell
from peftbench.runner.delta import HEAD
from peftbench.runner.run import Outcome, read_rows, tokenize_rows, tokenizing
from peftbench.training.objective import ScoreShare

Run = Callable[..., Outcome]
TASKS = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "ax", "qnli", "rte", "wnli")
ROWS = [
    ("The film is great.", "A dog was the film"),
    ("Is it?", "It is, maybe; no."),
    ("a", "Zebra [MASK] <mask> </s>"),
    ("  Two  spaces , here ", "x"),
    ("", "Empty first"),
]
FAST = ["task=sst2", "data=sample", "data.limit=48", "readout=prompt", "protocol.precision=fp32", "protocol.lr=0.01"]
FAST += ["protocol.max_steps=3"]


def lm_bff(tokenizer: Any, template: str, texts: tuple[str, ...]) -> list[int]:
    """What LM-BFF's tokenize_multipart_input makes of a row."""
    special = {"cls": tokenizer.cls_token_id, "mask": tokenizer.mask_token_id}
    special |= {"sep": tokenizer.sep_token_id, "sep+": tokenizer.sep_token_id}

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    ids: list[int] = []
    for part in template.split("*"):
        if part in special:
            ids.append(special[part])
        elif part[:5] == "sent_":
            ids += encode(texts[int(part[5:])])
        elif part[:6] == "sent-_":
            ids += encode(texts[int(part[6:])][:-1])
        elif part[:7] == "+sentl_":
            text = texts[int(part[7:])]
            ids += encode(" " + text[:1].lower() + text[1:])
        elif len(part) == 1:
            ids.append(tokenizer.convert_tokens_to_ids(part))
        else:
            ids += encode(part.replace("_", " "))
    return ids


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The words of a small masked LM of BERT's and of RoBERTa's kind."""
    return {name: masked_checkpoint(name, tmp_path_factory.mktemp(name)) for name in KINDS}


def own(words: list[str]) -> PretrainedTokenizer:
    folder = weights_folder(compose.cell_from(words).model)
    assert folder is not None
    return PretrainedTokenizer(folder)


@functools.cache
def spec_of(task: str) -> TaskSpec:
    return compose.cell_from([f"task={task}", *(["task.train=train"] if task == "ax" else [])]).task


@pytest.mark.parametrize("name", KINDS)
def test_rows_are_rendered_as_lm_bff_does(name: str, folders: dict[str, list[str]]) -> None:
    inner, reference = own(folders[name]), KINDS[name]()
    for task in TASKS:
        spec = spec_of(task)
        assert spec.prompt
        texts = [row[: len(spec.folder.text)] for row in ROWS]
        tokens = PromptTokenizer(inner, spec.prompt)
        ids, first = tokens.encode(tuple(zip(*texts, strict=True)), 128)
        assert ids == [lm_bff(reference, spec.prompt.template, row) for row in texts]
        assert [row.count(tokens.mask_id) for row in ids] == [1] * len(ROWS)
        assert first == [len(row) for row in ids]
        spelled = reference.convert_ids_to_tokens(tokens.words)
        assert [word.removeprefix("Ġ").lower() for word in spelled] == [word.lower() for word in spec.prompt.words]
        assert all(word.startswith("Ġ") == (name == "roberta_base") for word in spelled)


def test_a_rendered_row_as_tokens() -> None:
    template = compose.cell_from(["task=mnli"]).task.prompt
    assert template
    texts = ("It was a film.", "The dog")
    assert byte_level().convert_ids_to_tokens(lm_bff(byte_level(), template.template, texts)) == [
        "<s>", *byte_level().tokenize("It was a film"), "?", "<mask>", ",", *byte_level().tokenize(" the dog"), "</s>",
    ]  # fmt: skip
    assert wordpiece().convert_ids_to_tokens(lm_bff(wordpiece(), template.template, texts)) == [
        "[CLS]", "it", "was", "a", "film", "?", "[MASK]", ",", "the", "dog", "[SEP]",
    ]  # fmt: skip


def test_the_mask_and_the_template_outlive_truncation(folders: dict[str, list[str]]) -> None:
    inner = own(folders["bert_base_uncased"])
    prompt = PromptSpec("*cls**sent-_0*?*mask*,*+sentl_1**sep+*", ("Yes", "No"))
    tokens, texts = PromptTokenizer(inner, prompt), (("the dog is a film x",), ("It was the dog",))
    for length, expected in (
        (14, "[CLS] the dog is a film ? [MASK] , it was the dog [SEP]"),
        (11, "[CLS] the dog ? [MASK] , it was the dog [SEP]"),
        (8, "[CLS] ? [MASK] , it was the [SEP]"),
        (5, "[CLS] ? [MASK] , [SEP]"),
    ):
        (row,), _ = tokens.encode(texts, length)
        assert wordpiece().convert_ids_to_tokens(row) == expected.split()
    with pytest.raises(ConfigError, match="max_length=4: the template alone has 5 tokens"):
        tokens.encode(texts, 4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task.prompt.words=[terrible,mediocre]"], r"task.prompt.words: mediocre is \d+ tokens of this backbone's"),
        (["task.prompt.words=[terrible,Terrible]"], "task.prompt.words: terrible and Terrible are one token"),
        (['task.prompt.words=[terrible,"☃"]'], "task.prompt.words: ☃ is unknown to this backbone's"),
        (["task.prompt.words=[no,maybe,yes]"], "task: prompt.words names 3 words, and there are 2 labels"),
        (["task.prompt.template='*cls**sent_0*.*sep+*'"], "task.prompt: template has 0 masks"),
        (
            ["task.prompt.template='*cls**mask**sent_1*'"],
            "template names sent_1, and a row has the texts 0",
        ),
        (["task.prompt.template='*cls**mask**sent_x*'"], "task.prompt: template: sent_x is no text"),
        (["task.prompt=null"], "readout=prompt: task=sst2 has no template"),
        (["readout=classifier", "readout.head=frozen"], "readout: head=frozen is for kind=prompt"),
        (["readout.head=frozen", "method=head"], "readout.head=frozen: nothing would train"),
    ],
)
def test_what_is_not_possible_is_one_line(words: list[str], line: str, folders: dict[str, list[str]]) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        planned([*folders["bert_base_uncased"], *FAST, *words])
    assert len(caught.value.problems) == 1, caught.value.problems


def planned(words: list[str]) -> readouts.Readout:
    """The readout of a cell, which is counted first."""
    cell = compose.cell_from(words)
    count_cell(cell)
    return readout(cell)


def readout(cell: Cell) -> readouts.Readout:
    return readouts.made(cell.readout, cell.task, cell.model, weights_folder(cell.model))


def loaded(cell: Cell) -> Any:
    return load_model(cell.model, cell.task.num_labels, cell.seed, readout(cell))[0]


ALL = [
    "bert_base_uncased",
    "roberta_base",
    "distilbert",
    "modernbert_base",
    "deberta_v3_base",
    "electra_small",
    "mpnet_base",
]


@pytest.mark.parametrize("name", ALL)
def test_logits_are_the_whole_heads_at_the_mask_for_the_label_words(name: str, tmp_path: Path) -> None:
    """Of every architecture; its last map is tied to the embeddings, and counted with them, with weights or without."""
    words = [*masked_checkpoint(name, tmp_path / "masked"), *FAST, f"cache={tmp_path}"]
    cell = compose.cell_from(words)
    model = loaded(cell)
    weights = weights_folder(cell.model)
    tokens = tokenize_rows({"dev": read_rows(rows_of(cell))["dev"]}, tokenizing(cell, weights))["dev"]
    row = torch.from_numpy(tokens.ids[: tokens.starts[1]].astype(np.int64))[None]
    plain = AutoModelForMaskedLM.from_pretrained(tmp_path / "masked").eval()
    model.module.eval()
    place = int((row == model.readout.mask).nonzero()[0, 1])
    with torch.no_grad():
        expected = plain(input_ids=row).logits[:, place, list(model.readout.words)]
        given = model.forward({"input_ids": row, "attention_mask": torch.ones_like(row)})
    assert torch.allclose(given, expected, atol=1e-5)
    assert torch.equal(dict(model.backbone())[embedding_of(model)], plain.get_input_embeddings().weight)
    assert not [key for key, _ in model.head() if key.endswith("decoder.weight")], "tied, not drawn"
    counts = count_cell(cell)
    assert counts.head == sum(p.numel() for _, p in model.head())
    assert counts.model == sum(p.numel() for p in plain.parameters())


def embedding_of(model: Any) -> str:
    weight = model.module.get_input_embeddings().weight
    return next(key for key, p in model.module.named_parameters() if p is weight)


HEADS = {  # what of a head of width 16 trains, with two label words and a vocabulary of 160
    "trains": lambda d, v: d * d + d + 2 * d + v,
    "rows": lambda d, v: 2 * (d + 1),
    "all": lambda d, v: d * d + d + 2 * d + v + 2 * d,
    "frozen": lambda d, v: 0,
}


@pytest.mark.parametrize("head", HEADS)
def test_a_run_trains_of_the_head_what_it_is_asked_to_and_its_delta_gives_the_same_logits(
    head: str, folders: dict[str, list[str]], tmp_path: Path, run_tiny: Run
) -> None:
    words = [*folders["bert_base_uncased"], *FAST, f"readout.head={head}", "method=bitfit"]
    cell = compose.cell_from(words)
    before = values(loaded(cell))
    run = done(run_tiny(*words))
    vocabulary = int(cell.model.config["vocab_size"])
    record = apply.read_record(run / "result.json")
    assert record.counts
    assert record.counts.head == HEADS[head](16, vocabulary)
    after = values(deltas.reload(run)[0])
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    rows = {key for key in after if key.endswith((".rows", ".row_bias"))}
    own = {key for key in after if key.startswith("cls")} - rows
    expected = {"trains": own, "rows": rows, "all": own | rows, "frozen": set()}[head]
    assert {key for key in moved if key.startswith("cls")} == expected
    assert "bert.embeddings.word_embeddings.weight" not in moved
    np.testing.assert_allclose(labelled(run, tmp_path), written(run), atol=2e-5)
    stored = [key for key in load_file(run / DELTA_FILE) if key.startswith(HEAD)]
    assert bool(stored) == (head != "frozen")
    with pytest.raises(ConfigError, match="its readout is a prompt"):
        apply.write_model(run, tmp_path / "applied")


def test_full_fine_tuning_trains_the_rows_with_the_embeddings(folders: dict[str, list[str]], run_tiny: Run) -> None:
    run = done(run_tiny(*folders["roberta_base"], *FAST, "method=full"))
    model = deltas.reload(run)[0]
    decoder = model.module.get_submodule("lm_head.decoder")
    assert decoder.weight is model.module.get_input_embeddings().weight  # type: ignore[operator, union-attr]


SHIFTING = ("prompt_tuning", "prefix_tuning")  # peft's own prompts, which put tokens before the row's


@pytest.mark.parametrize("name", [name for name in EVERY if name not in SHIFTING])
def test_every_method_trains_what_it_does_under_a_classifier(name: str, tiny: Callable[..., Cell]) -> None:
    """Its own entries and the head, on a masked LM, which may lack a part of the backbone (BERT's pooler)."""
    words = [*EVERY[name].overrides, "readout=prompt", "readout.head=all", "protocol.precision=fp32"]
    model, tuner, trainer = assemble(tiny(*words, "protocol.lr=0.01"))
    before, own = values(model), {key: p.detach().clone() for key, p in tuner.trainables().items()}
    trainer.run()
    after = values(model)
    changed = {key for key in before.keys() & after.keys() if not torch.equal(before[key], after[key])}
    head = {key for key, _ in model.head()}
    assert head <= changed
    backbone = {key for key, _ in readouts.without_weights(*asked_of(words, tiny)).backbone()}
    assert not [key for key in (changed & backbone) - head if not EVERY[name].trains(key)]
    moved = [key for key, p in tuner.trainables().items() if key not in own or not torch.equal(own[key], p)]
    assert bool(moved) == bool(EVERY[name].entries)


def asked_of(words: list[str], tiny: Callable[..., Cell]) -> tuple[Any, Any, Any]:
    cell = tiny(*words)
    return cell.model, cell.task, cell.readout


@pytest.mark.parametrize("name", [name for name in EVERY if name in SHIFTING])
def test_what_shifts_a_rows_tokens_is_one_line(name: str, tiny: Callable[..., Cell]) -> None:
    with pytest.raises(ConfigError, match=f"method.type={name}: its tokens shift the row's") as caught:
        count_cell(tiny(*EVERY[name].overrides, "readout=prompt"))
    assert len(caught.value.problems) == 1


def test_strata_train_nothing_elsewhere_where_there_is_nothing() -> None:
    """RoBERTa has no pooler, BERT none below a masked-LM head; the layers train as they did."""
    counts = {
        (model, readout): count_cell(
            compose.cell_from([f"model={model}", "method=spafit", f"readout={readout}", "task=rte"])
        ).backbone
        for model in ("bert_base_uncased", "roberta_base")
        for readout in ("classifier", "prompt")
    }
    assert counts.pop(("bert_base_uncased", "classifier")) - 768 == counts.pop(("roberta_base", "prompt"))
    assert len(set(counts.values())) == 1


def test_a_regression_is_read_between_two_words(folders: dict[str, list[str]], run_tiny: Run) -> None:
    words = [*folders["roberta_base"], *FAST, "task=stsb", "task.headline=pearson", "method=bitfit"]
    run = done(run_tiny(*words))
    lines = (run / "predictions" / "dev.tsv").read_text().splitlines()[1:]
    scores = [float(line.split("\t")[1]) for line in lines]
    assert 0 <= min(scores) < max(scores) <= 5
    objective = ScoreShare((0.0, 5.0))
    logits = torch.tensor([[1.0], [4.0]])
    loss = objective.loss(logits, torch.tensor([0.0, 5.0]), np.arange(2))
    assert float(loss) == pytest.approx(-np.log(0.8) * 2, rel=1e-6)


def test_a_backbone_without_a_masked_head_or_a_mask_is_one_line(tmp_path: Path) -> None:
    plain = [*checkpoint("bert_base_uncased", tmp_path / "plain"), *FAST]
    with pytest.raises(DataError, match="has no mask token"):
        planned(plain)
    words = [*masked_checkpoint("bert_base_uncased", tmp_path / "masked"), *FAST]
    AutoModelForMaskedLM.from_pretrained(tmp_path / "masked").bert.save_pretrained(tmp_path / "masked")
    with pytest.raises(
        ConfigError, match=r"lacks \d tensors of the head that the readout reads, .* make=mlm trains one"
    ):
        loaded(compose.cell_from(words))


def test_a_prompt_is_in_the_fingerprint_and_a_classifiers_knows_of_none() -> None:
    plain = compose.cell_from([]).fingerprint
    assert compose.cell_from(["task.prompt.words=[bad,good]"]).fingerprint == plain
    assert compose.cell_from(["task.prompt=null"]).fingerprint == plain
    prompts = [
        ["readout=prompt"],
        ["readout=prompt", "readout.head=all"],
        ["readout=prompt", "task.prompt.words=[a,b]"],
    ]
    assert len({plain, *(compose.cell_from(words).fingerprint for words in prompts)}) == 4
