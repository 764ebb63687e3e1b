"""How long a page of thousands of runs takes to make, and to open in Chromium.

    python scripts/scale_page.py [--methods 40] [--seeds 32] [--to page.html]

One real run's record is made again for every method, eight tasks and every seed, with scores of its own; there are no
predictions, searches or artefacts among them, whose views and figures a real study pays for, too. Prints seconds:
`make` until the file is there; `open` from the browser's start of loading until tables, filters and the first figure
are drawn (its own clock, the least of three); the file's MB.
"""

import argparse
import dataclasses
import json
import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from scale import real_record  # type: ignore[import-not-found]

from peftbench.record import Counts, Evaluation, Headline, Metrics, Record
from peftbench.report import page
from peftbench.report.records import Study
from peftbench.report.styles import METHODS

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
PROBE = """<script>
[...places.values()][0].draw();
document.body.append(element("pre", `opened after ${performance.now()} ms`));
</script>"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--to", type=Path, help="keep the page there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        study = made(real_record(work), asked.methods, asked.seeds)
        path = asked.to or work / "page.html"
        started = time.perf_counter()
        page.write(page.content(study), path)
        seconds = {"make": round(time.perf_counter() - started, 1), "open": round(opened(path, work), 2)}
        print(json.dumps({"runs": len(study.records), **seconds, "MB": round(path.stat().st_size / 1e6, 1)}))


def made(template: Record, methods: int, seeds: int) -> Study:
    """A study of so many methods and seeds on eight tasks, with scores drawn at random; nothing is written."""
    draw = random.Random(0)
    records, folders = [], []
    for method in METHODS[:methods]:
        entries, skill = draw.randint(100, 10**6), draw.gauss(0.8, 0.03)
        for task in TASKS:
            cell = dataclasses.replace(template.cell, method=method, task=task, data="folder", budget="none")
            for seed in range(seeds):
                record = one(template, skill + draw.gauss(0, 0.01), entries)
                records.append(dataclasses.replace(record, cell=dataclasses.replace(cell, seed=seed)))
                folders.append(Path("outputs", "scale", f"{task}-{method}", f"seed{seed}"))
    return Study("scale", records, folders)


def one(template: Record, score: float, entries: int) -> Record:
    """A run with this score, reached in five evaluations."""
    scores = [(step, score * (0.8 + 0.04 * step)) for step in range(1, 6)]
    evaluations = [
        Evaluation(100 * step, step, {"accuracy": value}, collapsed=False, chosen_by=value) for step, value in scores
    ]
    return dataclasses.replace(
        template,
        headline=Headline("accuracy", score, 0.02),
        metrics=Metrics(evaluations[-1], evaluations, "last", False),
        counts=Counts(entries, 10, entries + 10, 1_000_000, 4 * entries),
    )


def opened(path: Path, work: Path) -> float:
    """Seconds until the page is drawn: the best of three, as others use the machine, too."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium here")
    probed = work / "probed.html"
    probed.write_text(path.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,1000", "--dump-dom"]
    taken = []
    for _ in range(3):
        shown = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True).stdout
        said = re.search(r"opened after ([0-9.]+) ms", shown)
        if said is None:
            raise SystemExit("the page did not open")
        taken.append(float(said[1]) / 1000)
    return min(taken)


if __name__ == "__main__":
    main()
