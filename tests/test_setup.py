# SPDX-License-Identifier: Apache-2.0
"`make setup`: what it would install, with and without what only a GPU needs."

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ("Makefile", "requirements.lock", "settings.ini", "setup.py", "pyproject.toml")
TORCH = {"torch", "torchaudio", "torchvision"}


@pytest.fixture
def clone(tmp_path):
    "The files that an installation reads."
    for name in FILES:
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder, *args):
    done = subprocess.run(["make", *args], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries(path):
    "Name -> requirement with its hashes."
    parts = re.split(r"^(?=[A-Za-z0-9])", path.read_text(), flags=re.MULTILINE)
    return {re.match(r"[\w.-]+", part)[0]: part for part in parts if part[:1].isalnum()}


def test_without_a_gpu_only_its_libraries_and_pytorch_are_left_out(clone):
    make(clone, "--silent", ".venv/cpu.lock")
    whole, kept = entries(clone / "requirements.lock"), entries(clone / ".venv" / "cpu.lock")
    left_out = whole.keys() - kept.keys()
    assert TORCH <= left_out and "triton" in left_out
    assert {"nvidia-cudnn-cu13", "nvidia-cublas", "cuda-toolkit"} <= left_out
    others = left_out - TORCH - {"triton"}
    assert all(name.startswith(("nvidia-", "cuda-")) for name in others), others
    assert all(whole[name] == kept[name] for name in kept)  # the hashes too
    assert all("--hash=sha256:" in part for part in kept.values())


def test_pytorch_comes_as_the_cpu_build_of_the_locked_version(clone):
    script = make(clone, "--dry-run", ".venv/ready", "CPU=1")
    (line,) = (line for line in script.splitlines() if "--torch-backend cpu" in line)
    (asked,) = re.findall(r"\$\((awk .+)\)", line)
    named = subprocess.run(asked, shell=True, cwd=clone, capture_output=True, text=True)
    locked = entries(clone / "requirements.lock")
    assert {word.split("==")[0] for word in named.stdout.split()} == TORCH
    assert all(locked[word.split("==")[0]].startswith(word) for word in named.stdout.split())
    assert "-r requirements.lock" not in script


def test_later_calls_keep_the_choice(clone):
    "Another target must not install the libraries of a GPU into a student's environment."
    assert "-r requirements.lock" in make(clone, "--dry-run", ".venv/ready")
    make(clone, "--silent", ".venv/cpu.lock")
    assert "-r requirements.lock" not in make(clone, "--dry-run", ".venv/ready")
