"""What cannot be true together is refused by run -m, plan -m and count -m alike, before anything is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import TINY

from peftbench.commands import count, run, studies
from peftbench.ground.errors import BadInput

COMMANDS: dict[str, Callable[[list[str]], int]] = {"run": run.run, "plan": studies.plan, "count": count.count}
IMPOSSIBLE = [
    (["task=rte", "task.labels=[a,a]"], "task.labels"),
    (["task=stsb", "task.metrics=[accuracy]"], "accuracy, which is for classes"),
    (["task=rte", "task.metrics=[pearson]", "task.headline=pearson"], "pearson, which is for regressions"),
    (["task.train=dev"], "task.train=dev"),
    (["task.dev=[train]"], "'train' cannot be a split"),
    (["method=head", "budget=100"], "budget.entries=100: Head takes no budget"),
    (["method=full", "budget.fraction=0.1"], "budget.fraction=0.1: Full takes no budget"),
    (["hydra.searchpath=[file:///nowhere/conf]"], "hydra.searchpath=[file:///nowhere/conf]: no such folder"),
    (["method=lora,lara"], "no method called 'lara'"),
    (["task=rte,rtx"], "no task called 'rtx'"),
]


@pytest.mark.parametrize(("words", "line"), IMPOSSIBLE, ids=[" ".join(words) for words, _ in IMPOSSIBLE])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_not_possible_is_refused_before_anything_is_written(
    command: str,
    words: list[str],
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = COMMANDS[command](["-m", *TINY, *words])
        printed = capsys.readouterr().out
    except BadInput as error:
        code, printed = error.exit_code, "\n".join(error.problems)
    assert code == 2
    assert line in printed
    assert not list(tmp_path.iterdir())
