"""Golden losses are recorded where there are none, and changed only where that is asked for by name."""

import importlib.util
import json
from pathlib import Path

import pytest
from matrix import GOLDEN

SCRIPT = Path(__file__).parents[1] / "scripts" / "golden.py"
spec = importlib.util.spec_from_file_location("golden", SCRIPT)
assert spec is not None
assert spec.loader is not None
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)


def test_only_what_is_missing_or_named_is_recorded(tmp_path: Path) -> None:
    kept = json.loads(GOLDEN.read_text())
    file = tmp_path / "losses.json"
    file.write_text(json.dumps({**{k: v for k, v in kept.items() if k != "bitfit"}, "head": [1.0], "gone": [2.0]}))
    golden.main(["--file", str(file)])
    recorded = json.loads(file.read_text())
    assert recorded["bitfit"] == pytest.approx(kept["bitfit"], rel=2e-4)
    assert recorded["head"] == [1.0]
    assert recorded["gone"] == [2.0], "a row of somebody else's is kept"
    assert {name: recorded[name] for name in kept if name not in ("bitfit", "head")} == {
        name: series for name, series in kept.items() if name not in ("bitfit", "head")
    }
    golden.main(["--file", str(file), "head"])
    assert json.loads(file.read_text())["head"] == pytest.approx(kept["head"], rel=2e-4)
    with pytest.raises(SystemExit):
        golden.main(["--file", str(file), "hed"])
