"""What decides the bits is pinned, or refused; and told, so that a run goes on in the same arithmetic only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedsim
from fedsim.core.errors import InputError
from fedsim.parallel import arithmetic as place
from fedsim.parallel.arithmetic import UNKNOWN, arithmetic, hold_pinned, kernels, settle

ROOT = Path(__file__).parents[2]
MKL = pytest.mark.skipif(kernels() == UNKNOWN, reason="PyTorch has no MKL here, or one that does not say")


def said(code: str, **environment: str) -> str:
    """What a process prints that executes this code."""
    inherited = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    paths = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


ASK = "from fedsim.parallel.arithmetic import arithmetic, kernels; print(kernels(), arithmetic()['probe'])"
FIRST = "import torch; torch.ones(64, 64) @ torch.ones(64, 64); "


@MKL
def test_kernels_are_pinned_by_the_import_unless_something_multiplied_before():
    pinned, other = said(ASK), said(ASK, MKL_CBWR="COMPATIBLE")
    assert pinned.split()[0].endswith(",STRICT")
    assert said(FIRST + ASK).split()[0] == "OFF"
    assert other.split()[0] == "COMPATIBLE"
    assert pinned.split()[1] != other.split()[1]  # in other bits, which is why they are told


@pytest.mark.parametrize("found", ["OFF", "AUTO", "AVX2", "SSE4_2"])
def test_kernels_that_follow_the_alignment_are_refused(monkeypatch, tmp_path, found):
    monkeypatch.setattr(place, "kernels", lambda: found)
    with pytest.raises(InputError, match=rf"^MKL_CBWR = {found}: .*AUTO,STRICT"):
        fedsim.run(fedsim.experiment(rounds=1), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("found", [UNKNOWN, "COMPATIBLE", "AVX2,STRICT", "AUTO,STRICT"])
def test_kernels_that_do_not_are_taken(monkeypatch, found):
    monkeypatch.setattr(place, "kernels", lambda: found)
    hold_pinned()


def test_settings_of_the_process_are_told(monkeypatch):
    before = arithmetic()
    assert arithmetic() == before
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert arithmetic() == before | {"matmul": "medium"}
    try:
        if torch.set_flush_denormal(True):
            assert arithmetic()["probe"] != before["probe"]
    finally:
        torch.set_flush_denormal(False)
    assert arithmetic()["probe"] == before["probe"]


@pytest.fixture
def as_before():
    """What is set for GPUs is as PyTorch has it at first, and again afterwards."""
    homes = (torch.backends.cuda.matmul, torch.backends.cudnn)
    yield homes
    torch.set_float32_matmul_precision("highest")
    homes[1].allow_tf32, homes[1].benchmark = True, False
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("asked", [False, True])
def test_a_gpu_rounds_to_tf32_only_if_asked_and_repeats_itself(as_before, asked):
    products, filters = as_before
    products.allow_tf32 = filters.allow_tf32 = not asked
    filters.benchmark = True
    settle(torch.device("cuda"), asked)
    assert (products.allow_tf32, filters.allow_tf32) == (asked, asked)
    assert not filters.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_on_a_cpu_nothing_is_set_and_there_is_no_tf32(as_before, tmp_path):
    _, filters = as_before
    fedsim.run(fedsim.experiment(rounds=1, engine={"device": "cpu"}), out=tmp_path / "run")
    assert filters.allow_tf32
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(InputError, match=r"^engine\.tf32 = True: there is no such rounding on cpu"):
        fedsim.run(fedsim.experiment(rounds=1, engine={"device": "cpu", "tf32": True}), out=tmp_path / "other")
    with pytest.raises(InputError, match=r"^engine\.tf32 = True: float64 is not rounded so"):
        fedsim.experiment(rounds=1, engine={"precision": "float64", "tf32": True})


def test_products_of_a_gpu_have_a_workspace_of_a_fixed_size():
    assert said("import fedsim, os; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])") == ":4096:8"
