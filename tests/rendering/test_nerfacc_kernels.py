"""nerfacc's kernels where they can be compiled, and one line where they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from igae_nerfstudio.rendering import nerfacc_kernels as module

BACKEND = "nerfacc.cuda._backend"
SOURCE = """
#include <cub/cub.cuh>
#include <math.h>
inline __host__ __device__ float lerp(float a, float b, float t) { return a + t * (b - a); }
__global__ void kernel(float *x) { x[0] = cub::Equality()(1, 1) ? lerp(x[1], x[2], 0.5f) : 0.0f; }
"""
"""What stops nerfacc 0.5.2 from being compiled with CUDA 13 and as C++20."""


def test_a_failure_is_said_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, BACKEND, None)  # its import fails
    assert not module.kernels_work()
    assert "nerfacc's CUDA kernels cannot be compiled with nerfacc 0." in _said(capsys)
    monkeypatch.setitem(sys.modules, BACKEND, SimpleNamespace(_C=object()))
    assert not module.kernels_work()  # not tried
    assert f"remove {tmp_path / 'user-cache' / 'igae-nerfstudio' / 'nerfacc.json'} to try again" in _said(capsys)
    monkeypatch.setattr("torch.version.cuda", "99.0")
    assert module.kernels_work()  # another CUDA
    monkeypatch.setitem(sys.modules, BACKEND, SimpleNamespace(_C=None))
    assert not module.kernels_work()  # no nvcc


def test_options_of_the_compiler_are_added_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC_APPEND_FLAGS", "-O2")
    with module._compatible_sources():
        assert os.environ["NVCC_APPEND_FLAGS"] == f'-O2 -include "{module.COMPATIBLE}"'
    assert os.environ["NVCC_APPEND_FLAGS"] == "-O2"
    monkeypatch.delenv("NVCC_APPEND_FLAGS")
    with module._compatible_sources():
        assert module.COMPATIBLE.is_file()
    assert "NVCC_APPEND_FLAGS" not in os.environ


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_nvcc_compiles_such_sources(tmp_path: Path) -> None:
    (tmp_path / "source.cu").write_text(SOURCE)
    with module._compatible_sources():
        words = ["nvcc", "-std=c++20", "-c", "source.cu", "-o", "source.o"]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())
