"""The costs of all methods are kept as they are measured, taken up again, and become a table and a picture."""

import json
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench_methods

    return bench_methods


def test_a_stopped_round_goes_on_and_methods_take_turns(
    bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[str] = []

    def measured(method: str, options: Any) -> dict[str, Any]:
        made.append(method)
        if len(made) == 3:
            raise KeyboardInterrupt
        if method == "vera":
            return {"refused": "no linear map"}
        cost = {"lora": 100.0, "bitfit": 50.0}[method] + 10 * len(made)
        entries = {"at_most": 20, "kept": 10, "stored_bytes": 4000, "merges": True}
        return {**entries, "step_ms": cost, "peak_mb": 2 * cost, "loss": cost / 1000}

    monkeypatch.setattr(bench, "in_process", measured)
    (tmp_path / "page.md").write_text(f"Before.\n{bench.BEGIN}\nold\n{bench.END}\nAfter.\n")
    words = ["--methods", "lora,bitfit,vera", "--rounds", "2", "--figures", str(tmp_path / "found.json")]
    words += ["--page", str(tmp_path / "page.md"), "--png", str(tmp_path / "all.png")]
    with pytest.raises(KeyboardInterrupt):
        bench.main(words)
    bench.main(words)
    assert made == ["lora", "bitfit", "vera", "vera", "lora", "bitfit"], "in turns, and nothing twice"
    found = json.loads((tmp_path / "found.json").read_text())
    assert [run["step_ms"] for run in found["runs"]["lora"]] == [110.0, 150.0]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("Before.\n")
    assert page.endswith("After.\n")
    assert "old" not in page
    assert (
        "| `bitfit` | 20 | 10 | 4 | 90 (70 to 110) | 0.69 | 180 (140 to 220) | 0.69 | yes | 0.09 (0.07 to 0.11) |"
        in page
    )
    assert page.index("`bitfit`") < page.index("`lora`") < page.index("- `vera`: no linear map")
    assert (tmp_path / "all.png").stat().st_size > 5_000
    with pytest.raises(SystemExit, match="measured with"):
        bench.main([*words, "--steps", "7"])


def test_what_took_too_long_is_tried_again(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good = {
        "at_most": 20,
        "kept": 10,
        "stored_bytes": 4000,
        "merges": True,
        "step_ms": 100.0,
        "peak_mb": 200.0,
        "loss": 0.5,
    }
    ends = iter([good, {"error": "takes more than 5 s"}, good])
    monkeypatch.setattr(bench, "in_process", lambda method, options: next(ends))
    (tmp_path / "page.md").write_text(f"{bench.BEGIN}\n{bench.END}\n")
    words = ["--methods", "lora", "--figures", str(tmp_path / "found.json"), "--page", str(tmp_path / "page.md")]
    words += ["--png", str(tmp_path / "all.png"), "--rounds", "2"]
    bench.main(words)
    assert "medians of 1 rounds" in (tmp_path / "page.md").read_text(), "a round that failed is in no median"
    bench.main(words)
    assert "medians of 2 rounds" in (tmp_path / "page.md").read_text()


def test_one_run_counts_and_measures(bench: Any) -> None:
    run = bench.measure("fish", "bert_tiny", steps=2)
    assert run["at_most"] == run["kept"] == 3_072, "BitFit's number"
    assert run["stored_bytes"] == 8 * 3_072
    assert run["merges"]
    assert run["step_ms"] > 0
    assert 0 < run["loss"] < 3
    assert bench.measure("prompt_tuning", "bert_tiny", steps=1)["merges"] is False
    assert {"lora", "spafit", "prefix_tuning"} <= set(bench.methods())
    assert not {"peft", "spafit_4_9_i"} & set(bench.methods())
