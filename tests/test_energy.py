"""Energy: what a machine's own meters count, and nothing where there are none."""

from pathlib import Path

import pytest

from peftbench.record import Energy
from peftbench.runner.energy import POWERCAP, Meter

RANGE = 262_143_328_850  # microjoules, as kernels give it


def zone(powercap: Path, number: int, name: str, counted: int) -> Path:
    """A zone as the kernel lays it out; gives the file of its counter."""
    folder = powercap / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{counted}\n")
    return folder / "energy_uj"


def test_all_packages_are_added_up_and_a_counter_that_begins_anew_is_followed(tmp_path: Path) -> None:
    first, second = zone(tmp_path, 0, "package-0", 5_000_000), zone(tmp_path, 1, "package-1", RANGE - 1_000_000)
    whole = zone(tmp_path, 2, "psys", 0)  # holds both, and would count them twice
    with Meter(tmp_path) as meter:
        first.write_text("7000000\n")
        second.write_text("500000\n")
        whole.write_text("99000000\n")
        assert meter.energy() == Energy(cpu=3.5, gpu=None)
        second.write_text("400000\n")  # once round
        assert meter.energy() == Energy(cpu=round((3_400_000 + RANGE) / 1e6, 3), gpu=None)


@pytest.mark.parametrize("text", ["", "much", None])
def test_what_cannot_be_read_is_no_figure(text: str | None, tmp_path: Path) -> None:
    counter = zone(tmp_path, 0, "package-0", 0)
    with Meter(tmp_path) as meter:
        counter.unlink() if text is None else counter.write_text(text)
        assert meter.energy() is None
    with Meter(tmp_path) as meter:
        counter.write_text("1000000\n")
        assert meter.energy() is None, "it was not there from the beginning"
    assert Meter(tmp_path / "nowhere").energy() is None


def test_this_machines_meter_counts_on_where_it_may_be_read() -> None:
    with Meter() as meter:
        once, again = meter.energy(), meter.energy()
    if not list(POWERCAP.glob("intel-rapl*")):
        assert once is None
    if once is not None and again is not None and once.cpu is not None and again.cpu is not None:
        assert 0 <= once.cpu <= again.cpu
