"""The wheel carries its yaml files and sample rows: built, installed into a clean environment, run from there."""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from support import TINY

ROOT = Path(__file__).resolve().parents[1]


def test_the_wheel_runs_from_a_clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("peftbench-*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    # What peftbench depends on is taken from where it is installed already; peftbench itself is the wheel's:
    # a path in a .pth file is no site folder, so the editable install there is not followed.
    site = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    command = [str(python), "-c", "import peftbench, pathlib; print(pathlib.Path(peftbench.__file__).parent)"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.strip()
    assert printed == str(site / "peftbench")
    assert (site / "peftbench" / "conf" / "config.yaml").is_file()

    run = subprocess.run(
        [str(tmp_path / "env" / "bin" / "peftbench"), "run", *TINY], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (tmp_path / run.stdout.splitlines()[-1]).is_file()
