"""Energy, as the machine's own meters count it while a run goes on: RAPL of the CPUs (powercap), NVML of the GPU.

RAPL counts whole packages, so whatever else runs on them is counted, too. Where a meter is not there or may not be
read (the kernel leaves RAPL to root), nothing is said: no figure is derived from times.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from peftbench.ground.machine import process_state
from peftbench.record import Energy

POWERCAP = Path("/sys/class/powercap")  # https://docs.kernel.org/power/powercap/powercap.html
PAUSE = 20.0  # seconds between two looks: a counter of 65 kJ begins anew once a minute at 1 kW
MICRO, MILLI = 1e-6, 1e-3  # joules in which RAPL and NVML count


class Package:
    """One CPU package's counter of microjoules, which begins anew above its range.

    Args:
        zone: its folder under powercap.

    Raises:
        OSError, ValueError: it cannot be read.
    """

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last, self.counted = self._now(), 0

    def look(self) -> None:
        """Add what came since the last look to `counted`, in microjoules.

        Raises:
            OSError, ValueError: it cannot be read.
        """
        now = self._now()
        self.counted += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now

    def _now(self) -> int:
        return int(self._counter.read_text())


def packages(powercap: Path) -> list[Package]:
    """The counters of all CPU packages; none where one of them cannot be read."""
    try:
        zones = [zone for zone in sorted(powercap.glob("*")) if _name(zone).startswith("package")]
        return [Package(zone) for zone in zones]
    except (OSError, ValueError):
        return []


def _name(zone: Path) -> str:
    path = zone / "name"
    return path.read_text() if path.exists() else ""


class Meter:
    """Counts from when it is entered until it is left; use it as a context manager."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages, self._gpu = packages(powercap), _Gpu.here()
        self._lock, self._left = threading.Lock(), threading.Event()
        self._lost = not self._packages

    def __enter__(self) -> "Meter":
        if self._packages:
            threading.Thread(target=self._follow, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()

    def look(self) -> None:
        """See what was counted since the last look."""
        with self._lock:
            try:
                for package in self._packages:
                    package.look()
            except (OSError, ValueError):
                self._lost = True

    def energy(self) -> Energy | None:
        """What was counted until now; None where there is no meter."""
        self.look()
        cpu = None if self._lost else round(sum(package.counted for package in self._packages) * MICRO, 3)
        gpu = None if self._gpu is None else self._gpu.joules()
        return None if cpu is None and gpu is None else Energy(cpu, gpu)

    def _follow(self) -> None:
        while not self._left.wait(PAUSE):
            self.look()


class _Gpu:
    """This process's GPU, which counts since its driver was loaded (Volta and later)."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self._first: int = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    @classmethod
    def here(cls) -> "_Gpu | None":
        """The GPU; None where there is none, it does not count, several processes train, or pynvml is not there."""
        state = process_state()
        if state.device.type != "cuda" or state.num_processes > 1:
            return None
        try:
            import pynvml  # nvidia-ml-py
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            uuid = torch.cuda.get_device_properties(state.device).uuid
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        except pynvml.NVMLError:
            return None

    def joules(self) -> float | None:
        """What it counted since this was made."""
        try:
            now: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError:
            return None
        return round((now - self._first) * MILLI, 3)
