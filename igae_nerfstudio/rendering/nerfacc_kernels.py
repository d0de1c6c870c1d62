"""nerfacc's CUDA kernels: compiled by nvcc when they are first used, where that is possible."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Iterator

import torch

from igae_nerfstudio.console import log, warn
from igae_nerfstudio.files import user_cache, write_atomically

COMPATIBLE = Path(__file__).with_name("nerfacc_with_cuda13.cuh")
"""What nerfacc lacks with newer compilers."""


def kernels_work() -> bool:
    """Whether nerfacc's CUDA extension can be loaded.

    Where it cannot be compiled, minutes have gone by: that is said, and remembered in the user's cache until nerfacc,
    torch or CUDA is another one.
    """
    failures = user_cache("nerfacc.json")
    setup = {"nerfacc": version("nerfacc"), "torch": torch.__version__, "CUDA": torch.version.cuda}
    if _read(failures) == setup:
        warn(f"nerfacc's CUDA kernels could not be compiled before ({_named(setup)}); remove {failures} to try again.")
        return False
    try:
        from torch.utils.cpp_extension import _get_build_directory

        lock = Path(_get_build_directory("nerfacc_cuda", False), "lock")
        if lock.exists():  # torch waits until it is gone
            log(f"Another process compiles nerfacc's CUDA kernels; if none does, stop this one and remove {lock}.")
        with _compatible_sources():
            from nerfacc.cuda._backend import _C
    except Exception as error:  # of ninja, the compiler, the linker or the loader
        reason = next((line for line in str(error).splitlines() if "error" in line.lower()), type(error).__name__)
        warn(f"nerfacc's CUDA kernels cannot be compiled with {_named(setup)} ({reason.strip()[:200]}).")
        _remember(failures, setup)
        return False
    return _C is not None


@contextmanager
def _compatible_sources() -> Iterator[None]:
    """nvcc takes options from the environment too; with others than before, what is compiled stays."""
    name = "NVCC_APPEND_FLAGS"
    before = os.environ.get(name)
    os.environ[name] = " ".join(filter(None, [before, f'-include "{COMPATIBLE}"']))
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _named(setup: dict) -> str:
    return ", ".join(f"{name} {number}" for name, number in setup.items())


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _remember(path: Path, setup: dict) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(json.dumps(setup).encode()))
    except OSError:
        pass  # it will be tried again
