"""What every method costs on one backbone: entries, stored bytes, step time, peak memory; for docs/methods.md.

    python scripts/bench_methods.py [--methods lora,bitfit] [--rounds 3] [--steps 20] [--rows 32] [--quick]
    python scripts/bench_methods.py --write     only the table and the picture, from what is measured already

Random weights of a model's shape, rows of 64 random tokens, bf16, each method as its yaml has it (selective ones
with BitFit's entries). Methods take turns, every run is a process of its own, and medians over the rounds are shown.
What is measured is kept in docs/methods.json at once: the same command goes on where it was stopped. `--limit_gib`
bounds the memory that a run may ask for, `--limit_s` its time; what it then lacks is its row.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftbench.config import compose
from peftbench.ground.errors import ConfigError

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURES, PICTURE = DOCS / "methods.md", DOCS / "methods.json", DOCS / "methods.png"
BEGIN, END = "<!-- what scripts/bench_methods.py measured -->", "<!-- end -->"
WARM = 3  # steps at the start that are not counted
QUICK = {"rounds": 1, "steps": 2}
REFERENCE = "lora"  # whose step and peak are 1
MEASURED = ("step_ms", "peak_mb", "loss")  # anew in every round
OTHERS = ("peft", "spafit_")  # beginnings of words that need a type, or are one yaml's variants for 24 layers

Run = dict[str, Any]


def methods() -> list[str]:
    """Every method that runs by its word alone."""
    return [word for word in compose.words("method") if not word.startswith(OTHERS)]


def measure(method: str, model: str, steps: int, rows: int = 32) -> Run:
    """One method in this process: counts, milliseconds of a step (median, the first ones apart), MiB, bytes, a loss.

    Returns:
        That, or {"refused": a line} where the backbone cannot have the method.
    """
    import prepared  # type: ignore[import-not-found]  # noqa: F401  # before torch
    import torch
    from bench_selective import trainer_of  # type: ignore[import-not-found]

    from peftbench.runner import deltas
    from peftbench.runner.provenance import peak_memory_mb, reset_peak_memory
    from peftbench.runner.recording import delta_facts

    total, numbers = WARM + steps, torch.arange(rows).numpy()
    words = [f"method={method}", f"model={model}"]
    try:
        try:
            trainer = trainer_of(*words, total=total)
        except ConfigError as error:
            if "needs a budget" not in str(error):
                raise
            words.append("budget.like=bitfit")
            trainer = trainer_of(*words, total=total)
    except ConfigError as error:
        return {"refused": error.every[0]}
    times, at_most = [], 0
    reset_peak_memory()  # of loading the model; the first step's own counts
    for step in range(total):
        at_most = max(at_most, sum(p.numel() for p in trainer.tuner.trainables().values()))
        started = time.perf_counter()
        trainer.step(step, numbers)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - started))
    peak, kept = peak_memory_mb(), trainer.tuner.kept()
    trainer.model.module.eval()
    loss = float(trainer.loss(numbers).detach()) / rows
    head = sum(p.numel() for _, p in trainer.model.head())
    cell = compose.cell_from([*words, "task=sst2", "tracker=none"])
    stored = deltas.learned(delta_facts(cell, trainer.model), trainer.model, trainer.tuner).stored_bytes - 4 * head
    return {
        "at_most": at_most,
        "kept": kept,
        "stored_bytes": stored,
        "step_ms": round(statistics.median(times[WARM:]), 1),
        "peak_mb": round(peak, 1),
        "loss": round(loss, 3),
        "merges": _merges(trainer),
        "device": str(trainer.state.device),
    }


def _merges(trainer: Any) -> bool:
    """Whether the method can be folded into the backbone, so that inference costs what it did before."""
    try:
        trainer.tuner.merge()
    except ConfigError:
        return False
    return True


def bound(gib: float | None) -> None:
    """Let this process have so much memory and no more, of a GPU or of its own: to ask for more is then an error."""
    if gib is None:
        return
    import prepared  # noqa: F401  # before torch
    import torch

    if torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * 2**30 / whole))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gib * 2**30),) * 2)


def in_process(method: str, options: argparse.Namespace) -> Run:
    """The same in a process of its own, within the limits."""
    command = [sys.executable, __file__, "--one", method]
    for key in ("model", "steps", "rows", "limit_gib"):
        if (value := getattr(options, key)) is not None:
            command += [f"--{key}", str(value)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit_s)
    except subprocess.TimeoutExpired:
        return {"error": f"takes more than {options.limit_s} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["killed"])[-1][:200]}
    run: Run = json.loads(done.stdout.splitlines()[-1])
    return run


def go_on(options: argparse.Namespace, chosen: Sequence[str]) -> Iterator[tuple[str, Run]]:
    """Every run that is not there yet, method by method and then round by round; each is kept as soon as it is made.

    Raises:
        SystemExit: what is there was measured with other settings.
    """
    settings = {"model": options.model, "steps": options.steps, "rows": options.rows, "tokens": 64, "precision": "bf16"}
    settings |= {} if options.limit_gib is None else {"limit_gib": options.limit_gib}
    measurements = read(options.figures) if options.figures.exists() else {"settings": settings, "runs": {}}
    if measurements["settings"] != settings:
        raise SystemExit(f"{options.figures}: measured with {measurements['settings']}; give --figures another file")
    for runs in measurements["runs"].values():
        runs[:] = [run for run in runs if "error" not in run]  # a timeout or too little memory: tried again
    for round_ in range(options.rounds):
        for method in chosen:
            runs = measurements["runs"].setdefault(method, [])
            if len(runs) > round_ or any({"refused", "error"} & run.keys() for run in runs):
                continue
            runs.append(in_process(method, options))
            measurements["runs"] = dict(sorted(measurements["runs"].items()))
            options.figures.write_text(json.dumps(measurements, indent=1) + "\n", encoding="utf-8")
            yield method, runs[-1]


def read(path: Path) -> dict[str, Any]:
    """What was measured so far."""
    measurements: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return measurements


def medians(measurements: Mapping[str, Any]) -> dict[str, Run]:
    """One row for every method that ran, fastest first: what does not change, medians and spreads, ratios to LoRA's."""
    rows: dict[str, Run] = {}
    for method, runs in measurements["runs"].items():
        if runs := [run for run in runs if not {"refused", "error"} & run.keys()]:
            found = {key: [run[key] for run in runs] for key in MEASURED}
            middle = {key: statistics.median(values) for key, values in found.items()}
            spreads = {f"{key}_spread": (min(values), max(values)) for key, values in found.items()}
            rows[method] = {**runs[0], **middle, **spreads, "rounds": len(runs)}
    if REFERENCE in rows:
        base = {key: rows[REFERENCE][key] for key in ("step_ms", "peak_mb")}
        for row in rows.values():
            row |= {"step": row["step_ms"] / base["step_ms"], "peak": row["peak_mb"] / base["peak_mb"]}
    return dict(sorted(rows.items(), key=lambda item: float(item[1]["step_ms"])))


def table(measurements: Mapping[str, Any]) -> str:
    """Markdown, and below it a line for every method that this backbone cannot have."""
    rows, settings = medians(measurements), measurements["settings"]
    rounds = min((row["rounds"] for row in rows.values()), default=0)
    lines = [
        f"{settings['model']}'s shape, {settings['rows']} x {settings['tokens']} tokens, {settings['precision']}, "
        f"{settings['steps']} steps a run, medians of {rounds} rounds (least to greatest); step and peak as shares "
        f"of LoRA's, too; the loss of a run's own rows after its {WARM + settings['steps']} steps (0.69 is guessed).",
        "",
        "| method | entries at most | kept | stored kB | step ms | of LoRA's | peak MiB | of LoRA's | merges | loss |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|",
    ]
    for method, row in rows.items():
        shares = [f"{row[key]:.2f}" if key in row else "" for key in ("step", "peak")]
        lines.append(
            f"| `{method}` | {row['at_most']:,} | {row['kept']:,} | {row['stored_bytes'] / 1000:,.0f} "
            f"| {_shown(row, 'step_ms', 0)} | {shares[0]} | {_shown(row, 'peak_mb', 0)} | {shares[1]} "
            f"| {'yes' if row['merges'] else 'no'} | {_shown(row, 'loss', 2)} |"
        )
    without = {method: runs[-1] for method, runs in measurements["runs"].items() if runs and method not in rows}
    errors = [f"- `{method}`: {run.get('refused') or run['error']}" for method, run in without.items()]
    return "\n".join([*lines, *(["", "Not on this backbone:", "", *errors] if errors else [])])


def _shown(row: Run, key: str, digits: int) -> str:
    middle, least, greatest = (f"{value:,.{digits}f}" for value in (row[key], *row[f"{key}_spread"]))
    return f"{middle} ({least} to {greatest})"


def draw(measurements: Mapping[str, Any], png: Path) -> None:
    """Four panels of points, a line for every method, fastest at the top."""
    import matplotlib.pyplot as plt

    rows = medians(measurements)
    panels = {
        "entries kept": ("kept", 1, True),
        "stored kB": ("stored_bytes", 1e-3, True),
        "step, ms": ("step_ms", 1, False),
        "peak memory, MiB": ("peak_mb", 1, False),
    }
    figure, axes = plt.subplots(1, 4, figsize=(11, 0.19 * len(rows) + 1), sharey=True, layout="constrained")
    colours = ["#0072b2" if row["merges"] else "#d55e00" for row in rows.values()]
    for axis, (title, (key, scale, log)) in zip(axes, panels.items(), strict=True):
        values = [max(scale * row[key], 0.5 * scale) for row in rows.values()]
        axis.scatter(values, list(rows), c=colours, s=18, zorder=2)
        axis.set(xscale="log" if log else "linear", xlabel=title)
        axis.grid(alpha=0.3)
        axis.tick_params(axis="y", labelsize=7)
    axes[0].invert_yaxis()
    axes[0].margins(y=0.01)
    figure.suptitle("blue: can be merged, same inference cost; orange: remains a separate module", fontsize=9)
    figure.savefig(png, dpi=110)
    plt.close(figure)


def write(measurements: Mapping[str, Any], page: Path, png: Path) -> None:
    """Put the table between the page's two marks, and the picture beside it."""
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    picture = f"![entries, stored bytes, step time and peak memory of every method]({png.name})"
    page.write_text(f"{before}{BEGIN}\n\n{table(measurements)}\n\n{picture}\n\n{END}{after}", encoding="utf-8")
    draw(measurements, png)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", help="which, separated by commas; all unless given")
    parser.add_argument("--model", default="minilm_l6", help="whose shape")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="that are measured in every run")
    parser.add_argument("--rows", type=int, default=32, help="of a step")
    parser.add_argument("--limit_gib", type=float, help="of memory that a run may ask for")
    parser.add_argument("--limit_s", type=float, help="that a run may take")
    parser.add_argument("--quick", action="store_true", help="one round of few steps: does everything run?")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where what was measured is kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table goes")
    parser.add_argument("--png", type=Path, default=PICTURE)
    parser.add_argument("--write", action="store_true", help="measure nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    if options.one:
        bound(options.limit_gib)
        print(json.dumps(measure(options.one, options.model, options.steps, options.rows)))
        return
    chosen = options.methods.split(",") if options.methods else methods()
    if unknown := sorted(set(chosen) - set(methods())):
        parser.error(f"no such method: {', '.join(unknown)}")
    for method, run in go_on(options, [] if options.write else chosen):
        print(method, json.dumps(run), flush=True)
    write(read(options.figures), options.page, options.png)


if __name__ == "__main__":
    main()
