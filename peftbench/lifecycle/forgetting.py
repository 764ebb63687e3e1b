"""What a run's backbone lost: a probe of the weights as they were, and as the run left them.

Two probes. `similarity`: how well the cosine of two sentences' embeddings orders the pairs of STS-B's dev rows; an
embedding is the mean of the last layer's states over the tokens of a sentence, as Sentence-BERT takes it (Reimers and
Gurevych 2019, section 3). `masked_lm`: the cross entropy of hidden tokens of a text, by the head of the weights, which
no run trains. Both read the encoder with everything that the run's method added to it, in fp32 and without dropout.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from peftbench.backbone.model import Model, load_model
from peftbench.backbone.readout import WholeHead
from peftbench.backbone.weights import weights_folder
from peftbench.config import compose
from peftbench.config.spec import DataSpec, ModelSpec
from peftbench.data.batches import evaluation_order
from peftbench.data.rows import Rows
from peftbench.data.split import Split, make_split
from peftbench.data.tokens import PretrainedTokenizer, Tokens, tokenize, tokenizer_for
from peftbench.ground import forgotten
from peftbench.ground.errors import ConfigError, DataError, shown
from peftbench.ground.files import DELTA_FILE, RECORD_FILE, cache_folder, expanded, study_folder
from peftbench.ground.forgotten import Forgetting, ProbeKind
from peftbench.ground.machine import process_state
from peftbench.lifecycle.parents import Parent, parent
from peftbench.record import find_records, read_record, record_status
from peftbench.runner import texts
from peftbench.runner.deltas import reload
from peftbench.runner.masked import has_head
from peftbench.study import index
from peftbench.training.forward import Forward
from peftbench.training.masked import MaskedLoss, Vocabulary
from peftbench.training.metrics import score

MASKED = 0.15  # of the tokens are hidden, as BERT was trained (Devlin et al. 2019, section 3.1)
MOST_ROWS = 512  # of a text; its first ones
LENGTH = 128  # tokens of a row at most
SIZE = 64  # rows of a batch


@dataclass(frozen=True)
class Probe:
    """What is measured, and on which rows: of STS-B's dev split two texts and a score, else one text."""

    kind: ProbeKind
    rows: Split

    def check(self, spec: ModelSpec) -> None:
        """Refuse weights that the probe cannot read, before any are loaded.

        Raises:
            ConfigError: the probe needs a masked-LM head, and they have none.
            DataError: there are no such weights.
        """
        if self.kind == "similarity":
            return
        folder = weights_folder(spec)
        if folder is None:
            raise ConfigError("model.weights=random: there is no masked-LM head to probe with")
        if not spec.layout.masked_head or not has_head(folder, spec.layout.masked_head):
            raise ConfigError(
                f"model={spec.name}: no masked-LM head to probe with; peftbench backbone make=mlm trains one"
            )

    def measure(self, encoder: nn.Module, model: Model, spec: ModelSpec, cache: str) -> float:
        """The probe's figure: see `Forgetting`.

        Args:
            encoder: token ids, masks and types (batch, tokens) to states (batch, tokens, hidden).
            model: what holds the encoder.
            spec: of its weights.
            cache: the folder of tokenised rows.
        """
        encoder.eval()
        if self.kind == "similarity":
            return _similarity(encoder, model, spec, self.rows, cache)
        return _masked_loss(encoder, spec, self.rows, cache)


def similarity_probe(data: DataSpec) -> Probe:
    """The dev rows of STS-B, all of them, from where these data come.

    Raises:
        DataError: they cannot be read.
    """
    task = compose.cell_from(["task=stsb"]).task.parts[0]
    rows = Rows(replace(data, limit=None), replace(task, train=None, test=()), None, tested=False).read()
    return Probe("similarity", rows[task.dev[0]])


def masked_probe(text: str) -> Probe:
    """The first rows of a file of text, or of a folder of *.txt.

    Raises:
        DataError: it cannot be read, or holds nothing.
    """
    rows = texts.read_files(text, "--text ")
    if not len(rows):
        raise DataError(f"--text {shown(text, 100)}: holds no line of text")
    return Probe("masked_lm", rows.rows(np.arange(min(MOST_ROWS, len(rows))), "text"))


def runs_of(words: Sequence[str], outputs: Path) -> list[Parent]:
    """The finished runs in these folders and studies; of a study those that learned a delta.

    Raises:
        ConfigError: a word is neither, or a study has no such run.
        DataError: the run in a folder did not end well.
    """
    runs: list[Parent] = []
    for word in words:
        if (expanded(word) / RECORD_FILE).is_file():
            runs.append(parent(expanded(word)))
            continue
        paths = [path for path in find_records(study_folder(outputs, word)) if record_status(path) == "done"]
        own = [parent(path.parent) for path in paths if (path.parent / DELTA_FILE).is_file()]
        if not own:
            raise ConfigError(f"study {shown(word)}: no finished run of it has its {DELTA_FILE}")
        runs += own
    return runs


class Measuring:
    """One probe of many runs: weights that several of them started from are measured once."""

    def __init__(self, probe: Probe, cache: str, known: Collection[str] = ()) -> None:
        """Args:
        cache: the folder of tokenised rows.
        known: classes outside this package that deltas may name.
        """
        self.probe, self._cache, self._known = probe, cache, known
        self._before: dict[str, float] = {}

    def measured(self, run: Parent) -> tuple[Forgetting, bool]:
        """What a run forgot by this probe, and whether that was known; what is measured is kept beside its record.

        Raises:
            DataError: the run, its weights or what was kept cannot be read, or it was run again meanwhile.
        """
        for one in forgotten.read(run.folder):
            if (one.probe, one.rows, one.delta) == (self.probe.kind, self.probe.rows.sha256, run.delta):
                return one, True
        model, _, _ = reload(run.folder, self._known)
        after = self.probe.measure(_encoder(model), model, run.model, self._cache)
        result = Forgetting(self.probe.kind, self.probe.rows.sha256, run.delta, self._weights(run), after)
        _keep(run, result)
        return result, False

    def _weights(self, run: Parent) -> float:
        spec = run.model
        if (key := f"{spec.meaning} {run.record.hashes.weights}") not in self._before:
            model, _ = load_model(spec, 1, run.record.cell.seed)
            self._before[key] = self.probe.measure(_encoder(model), model, spec, self._cache)
        return self._before[key]


def _keep(run: Parent, result: Forgetting) -> None:
    """Keep a figure beside others of the same run, those included that were measured since this one was begun.

    Raises:
        DataError: the run has learned something else since.
    """
    with index.alone(run.folder):
        try:
            if read_record(run.folder / RECORD_FILE).hashes.delta != run.delta:
                raise DataError(f"{run.folder}: was run again while it was measured; the same command goes on")
            others = [one for one in forgotten.read(run.folder) if one.delta == run.delta and one.probe != result.probe]
            forgotten.keep(run.folder, [*others, result])
        finally:
            (run.folder / index.LOCK).unlink(missing_ok=True)  # who waits for it looks again


def _encoder(model: Model) -> nn.Module:
    """The part of transformers' model that turns token ids into states."""
    encoder = model.module.base_model
    assert isinstance(encoder, nn.Module)
    return encoder


@torch.no_grad()
def _similarity(encoder: nn.Module, model: Model, spec: ModelSpec, rows: Split, cache: str) -> float:
    assert rows.labels is not None
    tokenizer = tokenizer_for(spec, weights_folder(spec))
    forward = Forward(model, "fp32", process_state().device)
    sides = [make_split(f"{rows.name}_{number}", (column,), None) for number, column in enumerate(rows.texts)]
    one, other = (
        embeddings(encoder, forward, tokenize(side, tokenizer, LENGTH, cache_folder(cache))) for side in sides
    )
    cosines = functional.cosine_similarity(one, other).numpy()
    return score(["spearman"], cosines, rows.labels).values["spearman"]


@torch.no_grad()
def embeddings(encoder: nn.Module, forward: Forward, tokens: Tokens) -> torch.Tensor:
    """The mean of the last states over each row's tokens, (rows, hidden) fp32."""
    parts: dict[int, torch.Tensor] = {}
    for rows in evaluation_order(tokens.lengths, SIZE):
        inputs = forward.batch(tokens, rows).inputs
        states = encoder(**inputs).last_hidden_state.float()
        mask = inputs["attention_mask"][..., None].to(states)
        means = ((states * mask).sum(1) / mask.sum(1)).cpu()
        parts.update(zip(rows.tolist(), means, strict=True))
    return torch.stack([parts[row] for row in range(len(tokens))])


def _masked_loss(encoder: nn.Module, spec: ModelSpec, rows: Split, cache: str) -> float:
    """By the head of the weights, on an encoder of the same architecture that takes the place of its own."""
    folder = weights_folder(spec)
    assert folder is not None  # see `Probe.check`
    model, _ = load_model(spec, 1, 0, WholeHead(pretrained=True))
    setattr(model.module, str(model.module.base_model_prefix), encoder)
    tokenizer = PretrainedTokenizer(folder)
    special = tokenizer.special()
    ids = Vocabulary(special["mask"], {*special.values(), tokenizer.pad_id}, int(spec.config["vocab_size"]))
    loss = MaskedLoss(model, ids, MASKED, Forward(model, "fp32", process_state().device))
    return loss.held_out(tokenize(rows, tokenizer, LENGTH, cache_folder(cache)), SIZE)
