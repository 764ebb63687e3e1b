"""trackio as the tracker: its database is read back and compared with the records."""

import json
import sqlite3
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import trackio
from support import TINY, call, losses

from peftbench.config import compose, spec
from peftbench.ground.errors import ConfigError
from peftbench.ground.files import RECORD_FILE
from peftbench.record import read_record
from peftbench.runner.trackio_run import trackio_run

WORDS = ["tracker=trackio" if word == "tracker=none" else word for word in TINY]


def points(database: Path) -> dict[str, dict[str, list[float]]]:
    """The values of every run by its name, each in the order of steps."""
    runs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with sqlite3.connect(database) as connection:
        for name, values in connection.execute("select run_name, metrics from metrics order by step, id"):
            for key, value in json.loads(values).items():
                runs[name][key].append(value)
    return runs


def configs(database: Path) -> dict[str, dict[str, Any]]:
    """The configuration of every run by its name."""
    with sqlite3.connect(database) as connection:
        return {name: json.loads(text) for name, text in connection.execute("select run_name, config from configs")}


def test_its_database_holds_what_the_records_hold(tmp_path: Path) -> None:
    own = {"TRACKIO_DIR": str(tmp_path / "kept"), "TRACKIO_PROJECT": "mine"}
    done = call("run", "-m", *WORDS, "seed=0,1", "study=trial", "tracker.tags=[first]", cwd=tmp_path, **own)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rackio" not in done.stdout
    logged, told = points(tmp_path / "kept" / "mine.db"), configs(tmp_path / "kept" / "mine.db")
    files = sorted((tmp_path / "outputs" / "trial").rglob(RECORD_FILE))
    assert len(logged) == len(files) == 2
    for path in files:
        record = read_record(path)
        name = f"sst2-lora-bert_tiny-s{record.cell.seed}"
        assert logged[name]["train/loss"] == pytest.approx(losses(path.parent))
        assert logged[name]["dev/accuracy"] == [scores.metrics["accuracy"] for scores in record.metrics.evaluations]
        assert logged[name]["summary/accuracy"] == [record.headline.value]
        assert record.counts is not None
        assert logged[name]["summary/backbone"] == [record.counts.backbone]
        assert told[name]["fingerprint"] == record.fingerprint
        assert {"sst2", "lora", "bert_tiny", "data:sample", "first"} == set(told[name]["tags"])
        assert told[name]["_Group"] == "trial"


def test_a_folder_that_cannot_be_written_does_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    done = call("run", *WORDS, cwd=tmp_path, TRACKIO_DIR=str(tmp_path / "file" / "within"))
    assert done.returncode == 0
    assert done.stderr.startswith("tracker=trackio: trackio failed to flush metric logs")
    assert done.stderr.count("\n") == 1
    assert [read_record(path).status for path in (tmp_path / "outputs").rglob(RECORD_FILE)] == ["done"]


def test_a_warning_of_somebody_else_is_not_called_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(trackio, "init", refuse)
    described = {"group": "trial", "name": "first", "tags": [], "config": {}}
    follow = trackio_run(spec.TrackerSpec(kind="trackio"), tmp_path, described)
    with pytest.warns(UserWarning, match="of another"), follow as watchers:
        warnings.warn("of another", stacklevel=1)
    assert watchers == []
    assert capsys.readouterr().err == "tracker=trackio: no room; this run is not followed\n"


def test_without_trackio_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"trackio is not installed; pip install 'peftbench\[trackio\]'") as caught:
        compose.cell_from(WORDS)
    assert len(caught.value.every) == 1


def test_what_is_of_wandb_alone_is_no_key_of_it() -> None:
    with pytest.raises(ConfigError, match=r"tracker\.entity"):
        compose.cell_from([*WORDS, "tracker.entity=team"])
