"""The stub card: a CUDA device that computes nothing under torch's own host code and allocator, where it is at hand.

It is not part of this repository. It is looked for in the folder that CUDASTUB names, else beside the checkout, and
built for the torch that runs the tests; without it the tests that need it are skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.memory.prediction import ALLOCATOR
from tests.support.paths import ROOT

SOURCE = Path(os.environ.get("CUDASTUB", ROOT.parent / "shared" / "cudastub"))
PROGRAMS = ROOT / "tests" / "cudastub" / "programs"


def why_not() -> str | None:
    """Why it cannot be had here; None if it can."""
    if not (SOURCE / "build.sh").is_file():
        return f"no stub card: there is no {SOURCE.name}/build.sh beside the checkout, nor in the folder CUDASTUB"
    if shutil.which("gcc") is None:
        return "no stub card: it is built with gcc"
    if torch.version.cuda is None:
        return "no stub card: this torch was built without CUDA"
    return None


def build(folder: Path) -> Path:
    """Build it into `folder`; skips the test if it cannot be had."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    subprocess.run(["bash", SOURCE / "build.sh", sys.executable, folder], check=True, capture_output=True)
    return folder


def run(stub: Path, program: str, *arguments: str, gib: float, **environment: str) -> Any:
    """What a program of tests/stub_programs prints last, as JSON, on a card of `gib` GiB.

    Compute capability 8.0 and expandable segments, unless `environment` says otherwise.
    """
    env = {
        **os.environ,
        "FAKE_MEM_GB": str(gib),
        "FAKE_CC": "80",
        "PYTORCH_ALLOC_CONF": ALLOCATOR,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",  # a tokenizer that is not here is missed at once
        **environment,
    }
    command = ["bash", str(SOURCE / "run.sh"), str(stub), sys.executable, str(PROGRAMS / program), *arguments]
    ran = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=600)
    said = [line for line in ran.stderr.splitlines() if "memory mapping failed" not in line]
    assert ran.returncode == 0, "\n".join(said[-30:])
    return json.loads(ran.stdout.splitlines()[-1])


def _built(factory: pytest.TempPathFactory) -> Path:
    """Built once a session."""
    folder = factory.getbasetemp() / "cudastub"
    return folder if folder.exists() else build(folder)


def on_stub_card(
    factory: pytest.TempPathFactory, program: str, *arguments: str, memory_gb: float, **environment: str
) -> Any:
    """As `run`, of `program`.py, on a stub that is built once a session, in a folder of pytest's."""
    return run(_built(factory), f"{program}.py", *arguments, gib=memory_gb, **environment)
