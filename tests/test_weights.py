# SPDX-License-Identifier: Apache-2.0
"Pretrained weights: what is refused, what is left alone, and the command."

import json

import pytest
import torch
from safetensors.torch import save_file

from cop_repro.cli import main
from cop_repro.core import AssetMismatch, BadInput, DatasetMissing
from cop_repro.model.codec import CodecConfig
from cop_repro.model.encoders import PretrainedSources, convert_openclip
from cop_repro.model.weights import (
    LOCK,
    WEIGHTS,
    fetch_weights,
    lock_weights,
    verify_weights,
    weights_state,
)

SHAPES = {"a": (3, 2)}


def put(folder, tensors=None):
    tensors = tensors or {"a": torch.arange(6.0).reshape(3, 2)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_pins_agree():
    assert (WEIGHTS["encodec"].repo, WEIGHTS["encodec"].revision) == (
        CodecConfig().encodec_source,
        CodecConfig().encodec_revision,
    )
    sources = PretrainedSources()
    assert (sources.text, sources.text_revision) == (
        WEIGHTS["flan_t5_large"].repo,
        WEIGHTS["flan_t5_large"].revision,
    )
    assert (sources.image, sources.image_revision) == (
        WEIGHTS["openclip_bigg"].repo,
        WEIGHTS["openclip_bigg"].revision,
    )


def test_a_lock_finds_every_change(tmp_path):
    file = put(tmp_path / "encodec")
    assert weights_state("encodec", tmp_path) == "present, no lock"
    lock_weights("encodec", tmp_path, SHAPES)
    assert weights_state("encodec", tmp_path) == "present" and list(
        verify_weights("encodec", tmp_path, SHAPES)
    ) == ["model.safetensors"]
    good, lock = file.read_bytes(), (tmp_path / "encodec" / LOCK).read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    for call in (verify_weights, lock_weights):
        with pytest.raises(
            AssetMismatch, match="model.safetensors is not the file that was locked"
        ):
            call("encodec", tmp_path, SHAPES)
    assert (tmp_path / "encodec" / LOCK).read_bytes() == lock, "a lock is never replaced"
    file.write_bytes(good)
    (tmp_path / "encodec" / LOCK).write_text(json.dumps({**json.loads(lock), "revision": "0" * 40}))
    with pytest.raises(AssetMismatch, match="the list pins c1dbe2a"):
        verify_weights("encodec", tmp_path, SHAPES)


def test_pickles_and_other_networks(tmp_path):
    for protocol in (True, False):
        (tmp_path / "encodec").mkdir(exist_ok=True)
        torch.save(
            {"a": torch.zeros(3, 2)},
            tmp_path / "encodec" / "model.safetensors",
            _use_new_zipfile_serialization=protocol,
        )
        with pytest.raises(BadInput, match="pickled"):
            verify_weights("encodec", tmp_path, SHAPES)
    put(tmp_path / "encodec", {"a": torch.zeros(2, 3)})
    with pytest.raises(AssetMismatch, match=r"\(2, 3\), \(3, 2\) is needed"):
        verify_weights("encodec", tmp_path, SHAPES)
    put(tmp_path / "encodec", {"b": torch.zeros(2, 3)})
    with pytest.raises(AssetMismatch, match="absent"):
        verify_weights("encodec", tmp_path, SHAPES)
    with pytest.raises(BadInput, match="known are"):
        verify_weights("clap", tmp_path)


def test_fetching_is_complete_or_absent(tmp_path):
    calls = []

    def download(repo, file, revision, folder):
        calls.append((file, revision))
        if file == "spiece.model":
            raise OSError("connection lost")
        (folder / file).write_text("{}")

    with pytest.raises(
        DatasetMissing, match="spiece.model of google/flan-t5-large at 0613663d0d could not be had"
    ):
        fetch_weights("flan_t5_large", tmp_path, download=download)
    assert not list(tmp_path.iterdir()) and {r for _, r in calls} == {
        WEIGHTS["flan_t5_large"].revision
    }

    def cut(repo, file, revision, folder):
        (folder / file).write_bytes(b"12345678abc")

    with pytest.raises(BadInput, match="cut short"):
        fetch_weights("encodec", tmp_path, download=cut, shapes=SHAPES)
    assert not list(tmp_path.iterdir())
    fetch_weights("encodec", tmp_path, download=lambda r, f, v, folder: put(folder), shapes=SHAPES)
    assert (
        json.loads((tmp_path / "encodec" / LOCK).read_text())["revision"]
        == WEIGHTS["encodec"].revision
    )
    # The folder exists: it is checked, and nothing is requested.
    fetch_weights("encodec", tmp_path, download=None, shapes=SHAPES)


def test_a_folder_of_ones_own(tmp_path, monkeypatch):
    put(tmp_path / "mine")
    monkeypatch.setenv("COP_WEIGHTS_ENCODEC", str(tmp_path / "mine"))
    lock_weights("encodec", tmp_path / "none", SHAPES)
    assert (tmp_path / "mine" / LOCK).is_file() and not (tmp_path / "none").exists()


def test_a_pickled_openclip_is_converted_first(tmp_path):
    folder = tmp_path / "openclip_bigg"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text("{}")
    torch.save(
        {"visual.proj": torch.ones(4, 2), "text": torch.zeros(1)},
        folder / "open_clip_pytorch_model.bin",
    )
    with pytest.raises(DatasetMissing, match="lacks open_clip_model.safetensors|convert_openclip"):
        verify_weights("openclip_bigg", tmp_path)
    convert_openclip(folder)
    assert len(verify_weights("openclip_bigg", tmp_path, {"visual.proj": (4, 2)})) == 2


def test_the_command(tmp_path, capsys):
    assert main(["weights", "list", "--folder", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {r["name"]: r["state"] for r in rows} == dict.fromkeys(WEIGHTS, "missing") and all(
        r["licence"] and r["gigabytes"] and r["revision"] for r in rows
    )
    assert (
        main(["weights", "list", "--folder", str(tmp_path)]) == 0
        and "13.4 GB" in capsys.readouterr().out
    )
    assert (
        main(["weights", "verify", "--folder", str(tmp_path)]) == 2
        and "cop weights fetch encodec" in capsys.readouterr().err
    )
