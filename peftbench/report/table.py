"""A study as a table: methods in rows, tasks in columns, mean and spread over seeds."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from peftbench.errors import ConfigError, DataError, near
from peftbench.results import Record, find, read


def records_of(outputs: Path, study: str) -> list[Record]:
    """Every readable record of a study; the unreadable are named on the terminal and left out.

    Raises:
        ConfigError: there is no such study, or it has no record.
    """
    folder = outputs / study
    if not folder.is_dir():
        known = [path.name for path in outputs.iterdir() if path.is_dir()] if outputs.is_dir() else []
        hint = near(study, known) if known else f"{outputs} holds none"
        raise ConfigError(f"study {study}: not found in {outputs}; {hint}")
    found = []
    for path in find(folder):
        try:
            found.append(read(path))
        except DataError as error:
            Console(stderr=True).print(f"left out: {error}", style="yellow", highlight=False)
    if not found:
        raise ConfigError(f"study {study}: no record in {folder}")
    return found


def frame(records: list[Record]) -> pd.DataFrame:
    """One row per finished record: cell, fingerprint, score in percent, counts, seconds, memory."""
    rows = [
        {
            "task": record.cell.task,
            "data": record.cell.data,
            "model": record.cell.model,
            "method": record.cell.method,
            "budget": record.cell.budget,
            "seed": record.cell.seed,
            "fingerprint": record.fingerprint,
            "metric": record.headline.name,
            "score": None if record.headline.value is None else 100 * record.headline.value,
            "backbone": (record.counts or {}).get("backbone"),
            "head": (record.counts or {}).get("head"),
            "seconds": record.time["total_s"],
            "peak_mb": record.memory["peak_mb"],
        }
        for record in records
        if record.status == "done"
    ]
    return pd.DataFrame(rows)


def show(outputs: Path, study: str) -> None:
    """Print the study's table: one row per method, protocol and backbone; cells of other protocols stay apart."""
    records = records_of(outputs, study)
    done = frame(records)
    console = Console(highlight=False)
    if not done.empty:
        done = done.assign(column=_columns(done))
        columns = sorted(done["column"].unique())
        table = Table(title=f"{study}: dev scores in percent, mean ± sd over seeds", title_justify="left")
        table.add_column("method")
        table.add_column("backbone entries", justify="right")
        for column in columns:
            table.add_column(column, justify="right")
        table.add_column("s / run", justify="right")
        for (model, method, budget), rows in done.groupby(["model", "method", "budget"], sort=False):
            name = f"{method} ({model})" + ("" if budget == "none" else f" {budget}")
            scores = [_cell(rows[rows["column"] == column]) for column in columns]
            table.add_row(name, f"{rows['backbone'].iloc[0]:,.0f}", *scores, f"{rows['seconds'].median():.0f}")
        console.print(table)
        if (done["data"] == "sample").any():
            console.print("sample: a few hundred built-in rows; these are no GLUE scores")
    for record in records:
        if record.status != "done":
            reason = (record.error or "").strip().splitlines()[-1:]
            name = f"{record.cell.task} {record.cell.method} seed {record.cell.seed}"
            console.print(f"{record.status}: {name}: {' '.join(reason)}", style="red")


def _columns(done: pd.DataFrame) -> pd.Series:
    source = done["data"].where(done["data"] == "sample", "")
    return done["task"] + " " + done["metric"] + source.map(lambda word: f" ({word})" if word else "")


def _cell(rows: pd.DataFrame) -> str:
    """Mean ± sd (n); several protocols of one method are listed one under the other, never averaged."""
    shown = []
    for _, same in rows.groupby("fingerprint", sort=False):
        scores = same["score"].dropna()
        if scores.empty:
            continue
        spread = f" ± {scores.std(ddof=1):.1f}" if len(scores) > 1 else ""
        shown.append(f"{scores.mean():.1f}{spread} (n={len(scores)})")
    return "\n".join(shown) if len(shown) < 2 else "\n".join(f"{line} †" for line in shown)
