"""docs/peft.md: what every type of peft does here, as scripts/bridge.py finds it, and how many entries it trains."""

import importlib.util
import re
from pathlib import Path

import pytest
from support import bridged

from peftbench.config import compose
from peftbench.methods import peft_types
from peftbench.runner.counts import count_cell

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'peftbench[peft]'")

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
spec = importlib.util.spec_from_file_location("bridge", ROOT / "scripts" / "bridge.py")
assert spec is not None
assert spec.loader is not None
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

D, F, L = 128, 512, 2  # bert_tiny
MAPS = L * 2  # query and value, D x D
COUNTS = {  # by the word, as its yaml has it
    "adamss": MAPS * (5 * 100 + D),
    "beft": L * D,
    "boft": MAPS * (D * 4 + D),
    "c3a": MAPS * 128,
    "deft": MAPS * 8 * 2 * D,
    "delora": MAPS * (8 * 2 * D + 1),
    "dora": MAPS * (8 * 2 * D + D),
    "eva": MAPS * 8 * 2 * D,
    "fourierft": MAPS * 1000,
    "frod": MAPS * (D + D * D // 100),
    "glora": MAPS * (2 * 8 * 2 * D + 8 * (D + 1) + 2),
    "gralora": MAPS * 32 * 2 * D,
    "hira": MAPS * 32 * 2 * D,
    "hra": MAPS * 8 * D,
    "ia3": L * (2 * D + F),
    "lily": MAPS * 32 * D + 2 * 2 * 32 * D + MAPS * 32 * 2,
    "ln_tuning": L * 4 * D,
    "loha": MAPS * 2 * 8 * 2 * D,
    "lokr": MAPS * (8 * 8 + 16 * 16),
    "miss": MAPS * 64 * D,
    "oft": MAPS * D // 32 * (32 * 31 // 2),
    "olora": MAPS * 8 * 2 * D,
    "osf": MAPS * (D // 2 * 2 * D + D // 2),
    "p_tuning": 20 * D + 3 * (D * D + D),
    "peanut": MAPS * 32 * 2 * D,
    "pissa": MAPS * 8 * 2 * D,
    "prefix_tuning": 20 * L * 2 * D,
    "prompt_tuning": 20 * D,
    "psoft": MAPS * (32 * 31 // 2 + 2 * 32),
    "pvera": MAPS * (D + 2 * 256),
    "randlora": MAPS * D // 32 * (D + 32),
    "road": MAPS * D,
    "rslora": MAPS * 8 * 2 * D,
    "shira": MAPS * 32 * 2 * D,
    "supertuning": MAPS * (D * D // 100),
    "tinylora": MAPS * 64,
    "unilora": 256,
    "vblora": 64 * 64 + MAPS * 2 * 4 * D,
    "vera": MAPS * (D + 256),
    "waveft": MAPS * 2592,
}
TYPES = {"lora": MAPS * 8 * 2 * D, "adalora": MAPS * 12 * (2 * D + 1)}  # whose words are this bench's own methods


def test_every_word_counts_without_weights() -> None:
    words = {word: [f"method={word}"] for word in bridged() if word != "peft"}
    words |= {kind: ["method=peft", f"method.type={kind}"] for kind in TYPES}
    counts = {name: count_cell(compose.cell_from(["model=bert_tiny", *more])).backbone for name, more in words.items()}
    assert counts == COUNTS | TYPES
    assert set(peft_types.TYPES) <= set(counts)


def test_all_of_pefts_types_are_on_the_page_so_that_a_new_one_cannot_be_missed() -> None:
    named = re.findall(r"^(?:\| |- )`(\w+)`(?! *,)", PAGE, re.MULTILINE)
    every = [*peft_types.TYPES, *script.WORDS]
    assert named == [*every, *peft_types.REFUSED]
    assert {kind.value.lower() for kind in peft.PeftType} == {*peft_types.TYPES, *peft_types.REFUSED}
    assert PAGE.startswith(script.HEAD)
    inside = [kind for kind, facts in peft_types.TYPES.items() if not facts.is_prompt]
    assert f"Of the {len(inside) + 1} types that peft puts into a model's layers, {len(inside)} run here" in PAGE


@pytest.mark.parametrize("kind", [*peft_types.TYPES, *script.WORDS])
def test_a_type_does_on_bert_what_its_row_says(kind: str, tmp_path: Path) -> None:
    """It trains, counts, is restored, merges and is exported: `bridge.attempt` looks; all but the other architectures'
    columns is compared."""
    tried = {"BERT": script.attempt(kind, "bert_base_cased", tmp_path)}
    (row,) = (line.split(" | ") for line in PAGE.splitlines() if line.startswith(f"| `{kind}` | "))
    others = len(script.ARCHITECTURES) - 1
    assert [*row[:2], *row[2 + others :]] == script.line(kind, tried).split(" | ")
    remarks = [line.partition(": ") for line in PAGE.splitlines() if line.startswith(f"- `{kind}`, ")]
    own = [text for where, _, text in remarks if "BERT" in where.split(", ")]
    assert own == [text.partition(": ")[2] for text in script.problems(kind, tried)]


def test_rows_of_the_page_are_made_again_on_every_architecture(tmp_path: Path) -> None:
    """Of one type that all of them have, and one that one of them has not."""
    for kind, tried in script.rows(("beft", "vera"), tmp_path):
        for text in (script.line(kind, tried), *script.problems(kind, tried)):
            assert text in PAGE.splitlines()
