"""The kernels' code is kept in a folder that nobody but us may write, and compiled again where that cannot be used.

On a CPU without bf16 instructions bf16 is multiplied in fp32.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peftbench.ground.files import private_folder
from peftbench.kernels.products import multiplies_bf16

CODE = """
import torch
from peftbench.kernels.sampled import sampled_bf16
x = torch.eye(4, dtype=torch.bfloat16)
print(sampled_bf16(x, x, torch.arange(16, dtype=torch.int32)).sum().item())
"""

# as on a CPU without bf16 instructions; in a process of its own, for torch keeps what replaces its kernels
PRODUCTS = """
import torch
torch.cpu._is_avx512_bf16_supported = torch.cpu._is_amx_tile_supported = lambda: False
torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: False
from peftbench.kernels.products import widen_products

torch.manual_seed(0)
x, w, b, y = (torch.randn(size).bfloat16() for size in ((3, 70, 40), (50, 40), (50,), (3, 70, 50)))

def products(dtype):
    inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, w, b)]
    out = torch.nn.functional.linear(*inputs)
    out.backward(y.to(dtype))
    ys = y.to(dtype)
    sums = torch.baddbmm(inputs[0].detach(), ys, inputs[1].detach().expand(3, -1, -1), beta=0.5, alpha=2)
    return [out, ys @ ys.transpose(1, 2), sums, inputs[0].grad, inputs[1].grad]

want = products(torch.float32)
widen_products()
assert all(torch.equal(one.bfloat16(), other) for one, other in zip(want, products(torch.bfloat16), strict=True))
assert all(torch.equal(one, other) for one, other in zip(want, products(torch.float32), strict=True))
try:
    x[0] @ w.t().float()
except RuntimeError:
    print("equal")
"""


def run(cache: Path) -> subprocess.CompletedProcess[str]:
    """Use a kernel in a process of its own."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)


def kept(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*.nb?"))


def test_code_is_kept_where_only_we_may_write_and_damage_means_compiling_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert first.stdout == "4.0\n", first.stderr
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    good = kept(tmp_path)
    assert good
    for damage in (b"", b"\x80\x04cnot\nhere\n."):
        for path in good:
            path.write_bytes(damage or path.read_bytes()[:-50])
        again = run(tmp_path)
        assert (again.stdout, again.stderr) == ("4.0\n", "")
        assert [path.name for path in kept(tmp_path)] == [path.name for path in good]


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / f"kernels-{os.geteuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    done = run(tmp_path)
    assert (done.stdout, done.stderr) == ("4.0\n", "")
    assert kept(tmp_path) == []


def test_no_link_and_no_file_is_a_folder_of_ours(tmp_path: Path) -> None:
    assert private_folder(tmp_path / "new").stat().st_mode & 0o077 == 0
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(PermissionError):
            private_folder(tmp_path / name)


@pytest.mark.parametrize(
    ("machine", "avx512_bf16", "amx", "onednn", "own"),
    [
        ("x86_64", False, False, True, False),  # plain AVX-512: oneDNN's answer is yes, and its products are slow
        ("x86_64", False, False, False, False),
        ("x86_64", True, False, True, True),
        ("AMD64", False, True, True, True),
        ("aarch64", False, False, True, True),
        ("aarch64", False, False, False, False),
    ],
)
def test_bf16_is_left_to_torch_where_the_cpu_has_instructions_for_it(
    machine: str, avx512_bf16: bool, amx: bool, onednn: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    assert multiplies_bf16() is own


def test_bf16_is_multiplied_in_fp32_where_a_cpu_has_no_instructions_for_it_and_fp32_stays_as_it_was() -> None:
    done = subprocess.run([sys.executable, "-c", PRODUCTS], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("equal\n", "")
