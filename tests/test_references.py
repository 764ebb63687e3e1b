"""Against the authors' own code: what it gave is in data/references.safetensors, and scripts/references.py made it."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from peftbench.config import recipes
from peftbench.config.words import conf_dir
from peftbench.lifecycle.merging import METHODS, Changes, Merge
from peftbench.lifecycle.sequence.adapter_steps import ensemble, orthogonality, refined
from peftbench.lifecycle.sequence.prototypes import cosines
from peftbench.report import flips
from peftbench.report.flips import Answers

REFERENCES = load_file(Path(__file__).parent / "data" / "references.safetensors")


def cases(name: str, last: str) -> Iterator[tuple[list[float], dict[str, torch.Tensor]]]:
    """The numbers in a case's name, and its tensors."""
    for key in [key for key in REFERENCES if key.startswith(f"{name}.") and key.endswith(f".{last}")]:
        case = key.removeprefix(f"{name}.").removesuffix(f".{last}")
        start = f"{name}.{case}."
        own = {other.removeprefix(start): one for other, one in REFERENCES.items() if other.startswith(start)}
        yield [float(number) for number in case.split("_")], own


def method(word: str, **keys: float) -> Merge:
    """A way of merging as its word makes it; other values of keys come on top."""
    words = [f"merge={word}", *(f"merge.{key}={value!r}" for key, value in keys.items())]
    return recipes.recipe("merge", words, METHODS.__getitem__)[0]


def changes(rows: torch.Tensor) -> Changes:
    return Changes(rows, (slice(0, rows.shape[1]),), [f"task{i}" for i in range(len(rows))])


@pytest.mark.parametrize("variant", ["pcb", "pcb_nlp", "pcb_vision", "pcb_search"])
def test_pcb_is_the_authors_in_each_of_its_variants(variant: str) -> None:
    every = [*cases(variant, "merged")]
    assert len(every) == (1 if variant == "pcb_vision" else 4)
    for (_, keep), own in every:
        merged = method(variant, keep=keep).merged(changes(own["rows"]))
        torch.testing.assert_close(merged, own["merged"], rtol=0, atol=1e-6)
        assert merged.any()


def test_ties_over_the_whole_vector_is_the_authors_who_keep_one_entry_more() -> None:
    every = [*cases("ties", "merged")]
    assert len(every) == 3
    for (_, share), own in every:
        entries = own["rows"].shape[1]
        merged = method("ties", keep=(int(entries * share) + 1) / entries).merged(changes(own["rows"]))
        torch.testing.assert_close(merged, own["merged"], rtol=0, atol=1e-6)


def test_regmean_is_the_authors() -> None:
    own = {key.removeprefix("regmean."): one for key, one in REFERENCES.items() if key.startswith("regmean.")}
    weights, inputs = own["weights"], own["inputs"]
    tasks, out, inside = weights.shape
    grams = {0: (torch.Size((out, inside)), inputs.transpose(1, 2) @ inputs)}
    before, rows = torch.randn(out * inside + out), torch.cat([weights.flatten(1), own["biases"]], 1)
    parts = (slice(0, out * inside), slice(out * inside, rows.shape[1]))
    for share in (1.0, 0.6, 0.0):
        way = method("regmean", offdiagonal=share)
        merged = before + way.merged(Changes(rows - before, parts, ["task"] * tasks, inputs=grams))
        expected = torch.cat([own[f"{share}.weight"].flatten(), own[f"{share}.bias"]])
        torch.testing.assert_close(merged, expected, rtol=0, atol=2e-5)


def test_negative_flips_are_counted_as_by_others() -> None:
    every = [*cases("flips", "percent")]
    assert len(every) == 4
    for _, own in every:
        old, new, truth = own["answers"].numpy()
        parts = flips.per_row(Answers(old, truth), Answers(new, truth))
        rates = flips.measures(parts.mean(axis=1, dtype=np.float64))
        found = [100 * float(rates[name]) for name in ("NFR", "NFI", "accuracy")]
        assert found == pytest.approx(own["percent"].tolist())


def test_means_of_classes_are_kept_apart_as_by_the_authors_of_mos() -> None:
    own = {key.removeprefix("orthogonality."): one for key, one in REFERENCES.items() if "orthogonality." in key}
    for known in (0, 5):
        loss = 0.1 * orthogonality(own["means"][:known], own["features"], 0.8)
        torch.testing.assert_close(loss, own[f"loss_{known}"])


def test_tasks_are_found_and_rows_answered_as_by_the_authors_of_mos() -> None:
    own = {key.removeprefix("retrieval."): one for key, one in REFERENCES.items() if "retrieval." in key}
    logits = own["features"] @ own["head"].T
    to_prototypes, stage_of = cosines(own["features"][0], own["prototypes"]), np.arange(8) // 2
    first, rows = stage_of[to_prototypes.argmax(1).numpy()], np.arange(300)
    rounds = int(re.findall(r"^rounds: (\d+)", (conf_dir() / "learner" / "mos.yaml").read_text(), re.MULTILINE)[0])
    at = refined(first, logits.numpy(), stage_of, rounds)
    alone = logits[torch.from_numpy(at), torch.from_numpy(rows)]
    assert torch.equal(alone.argmax(1), own["head_alone"])
    assert torch.equal(ensemble(alone, to_prototypes, 4).argmax(1), own["both"])
    assert (refined(first, logits.numpy(), stage_of, rounds + 1) != at).any(), "some rows go on for ever"
