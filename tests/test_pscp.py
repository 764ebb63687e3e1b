"""PEFT-Bench's PSCP: the figures that its paper printed, and a ranking that says what it hangs on."""

import csv
import io
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studies import full_study, made_study
from support import call

from peftbench.ground.errors import ConfigError
from peftbench.report import pscp
from peftbench.report.pscp import Constants, Costed
from peftbench.report.table import apart

# arXiv:2511.21285, Table 3, and the costs that its authors' own script has: entries, memory in GB, FLOPs beyond the
# backbone's in units of 10^12.
PRINTED = {
    "IA3": (74.7, 196_608, 28.41, 0.31, 55.62),
    "Prompt Tuning": (50.0, 409_600, 42.47, 1.67, 29.49),
    "Prefix Tuning": (45.9, 34_177_536, 27.61, 0.01, 33.18),
    "P-Tuning": (51.7, 53_130_752, 34.53, 1.68, 29.26),
    "LoRA": (80.1, 14_680_064, 27.75, 0.0, 60.08),
    "LNTuning": (77.8, 266_240, 27.43, 0.0, 60.19),
}


def test_pscp_is_what_the_paper_printed() -> None:
    scores, entries, memory, flops, printed = np.array(list(PRINTED.values())).T
    found = Costed(list(PRINTED), scores, entries, memory, flops)
    whole = found.pscp(Constants())
    assert whole == pytest.approx(printed, abs=0.03)
    assert [list(PRINTED)[place] for place in pscp.ranks(whole).argsort()[:2]] == ["LNTuning", "LoRA"]
    without = found.pscp(replace(Constants(), beta_p=0.0, beta_f=0.0, beta_m=0.0))
    assert without == pytest.approx(scores)
    unknown = replace(found, flops=None)
    assert unknown.pscp(Constants()) * pscp.penalty(flops, 10, 1) == pytest.approx(whole)


methods = st.lists(st.tuples(st.floats(1, 99), st.floats(1, 1e9), st.floats(0.1, 100)), min_size=1, max_size=6)


@given(methods, st.sampled_from(list(pscp.GRID)), st.floats(0.1, 10))
def test_ranks_as_a_constant_varies_are_those_of_the_score_at_it(
    every: list[tuple[float, float, float]], key: str, value: float
) -> None:
    found = Costed([str(i) for i in range(len(every))], *np.array(every).T)
    at = replace(Constants(), **{key: value})
    values = found.pscp(at)
    assert ((values > 0) & (values <= found.scores)).all()
    varied = found.varied(at)
    for other, grid in pscp.GRID.items():
        assert varied[other].shape == (len(grid), len(every))
        for row, constant in zip(varied[other], grid, strict=True):
            there = found.pscp(replace(at, **{other: constant}))
            assert row.tolist() == [1 + int((there > one).sum()) for one in there]


def test_a_study_is_ranked_and_says_what_the_ranking_hangs_on(write_run: Callable[..., Path], tmp_path: Path) -> None:
    full_study(write_run)
    write_run("head", "mrpc", 0, 0.99)  # not on every task
    for seed, task in itertools.product(range(2), ("mrpc", "cola")):
        write_run("full", task, seed, 0.81, entries=10**7)
    found = pscp.costed(apart(made_study(tmp_path))[0])
    assert found.names == ["bitfit", "full", "id3", "lora"]
    assert found.entries.tolist() == [110, 10**7 + 10, 310, 910]
    words = ("--show", "pscp", "--constants", "c_p=1e6", "beta_m=0")
    done = call("table", "made", *words, "--format", "csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(done.stdout))}
    assert float(rows["full"]["PSCP"]) == pytest.approx(81 / (1 + 10.00001))
    assert float(rows["lora"]["PSCP"]) == pytest.approx(80.2 / (1 + 910e-6))
    assert (rows["full"]["rank"], rows["full"]["best rank by beta_p"], rows["full"]["worst rank by beta_p"]) == (
        "4", "1", "4"
    )  # fmt: skip
    shown = call("table", "made", *words, cwd=tmp_path).stdout
    assert "PSCP (arXiv:2511.21285), at c_p 1e+06, c_f 10, c_m 94, beta_p 1, beta_f 1, beta_m 0" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("beta_p over 0, 0.5, 1, 2, 4: "))
    assert line.endswith("first: full or lora or id3")


@pytest.mark.parametrize(
    ("word", "reason"),
    [("c_x=1", "there is no such constant"), ("c_p=much", "not a number"), ("c_p=0", "must be above 0"),
     ("beta_m=-1", "must be at least 0"), ("c_m=nan", "must be above 0"), ("c_m", "not a number")],
)  # fmt: skip
def test_a_constant_that_is_none_is_refused(word: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"^--constants {word}: {reason}"):
        pscp.constants([word])
    assert pscp.constants(["beta_m=0", "c_p=1e6"]) == Constants(c_p=1e6, beta_m=0)
