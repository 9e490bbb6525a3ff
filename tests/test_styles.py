# SPDX-License-Identifier: Apache-2.0
"Level 4 in a style: rows, refusals, and what the command keeps."

import numpy as np
import pytest
import torch

from cop_repro.benchmark import own_systems
from cop_repro.benchmark.styles import style_clips, style_system
from cop_repro.cli import main
from cop_repro.core import BadInput
from cop_repro.systems.cop import CopSystem, load_performer
from cop_repro.systems.styles import (
    StyledPiano,
    StyledSystem,
    StyleLibrary,
    Styles,
    load_styles,
    save_styles,
    style_moments,
)


class FakeStore:
    "An index of clips without columns."

    def __init__(self, works: dict[str, int]):
        self.index = [
            {"work_id": work, "split": "test", "rendering": "nuisance"}
            for work, count in works.items()
            for _ in range(count)
        ]

    def select(self, **want):
        rows = [i for i, e in enumerate(self.index) if all(e[k] == v for k, v in want.items())]
        return np.array(rows, int)


def test_clips_are_of_different_works():
    rows = style_clips(FakeStore({"a": 3, "b": 3, "c": 1, "d": 2}), "test", 3)
    assert rows == [0, 6, 8]  # the first, the third and the fourth work, another clip of each
    with pytest.raises(BadInput, match="1 works of split test"):
        style_clips(FakeStore({"a": 3}), "test", 3)


@pytest.fixture(scope="module")
def trained(root):
    "The shipped model with untrained parts for references, and a library of two clips."
    performer = load_performer(root / "data" / "assets")
    moments = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    texture = torch.rand(2, 8).double().numpy()
    about = ("a-lyrical", "b-crisp"), ("a", "b"), ("lyrical", "crisp")
    library = StyleLibrary(*about, texture, moments, performer.codec.latent_id)
    model = StyledPiano(performer.piano).eval()
    scale = torch.stack([torch.zeros(256), torch.ones(256)])
    return performer, Styles(model, library, scale, 1)


def test_every_style_has_its_system(trained):
    performer, made = trained
    plain = style_system("none", performer, made)
    assert type(plain) is CopSystem and plain.performer is performer
    for row, pianist in (("reference", "lyrical"), ("other", "crisp")):
        system = style_system(row, performer, made)
        assert isinstance(system, StyledSystem) and system.pianist == pianist
    both = style_system("both", performer, made, performer.piano)
    assert both.performer.piano is both.styles.model is not made.model
    with pytest.raises(BadInput, match="did you mean 'both'"):
        style_system("boht", performer, made)
    with pytest.raises(BadInput, match="needs a model after DPO"):
        style_system("dpo", performer, made)
    with pytest.raises(BadInput, match="must be the model"):
        StyledSystem(performer, styles=made)


def test_a_style_joins_the_levels_as_sound_alone(trained):
    performer, made = trained
    styled = {"style reference": style_system("reference", performer, made)}
    systems = own_systems.own_systems(performer, styled=styled)
    one = systems["CoP, style reference"]
    assert one.levels == ("L4",) and not one.cells
    added = sum(p.numel() for p in made.model.added().values())
    assert one.parameters == systems[own_systems.COP].parameters + added


def test_a_reference_comes_back_from_its_file(trained, tmp_path):
    performer, made = trained
    save_styles(tmp_path / "styles.safetensors", made, {"split_hash": "x"})
    latents = performer.codec.latent_id
    again = load_styles(tmp_path / "styles.safetensors", performer.piano, latents)[0]
    found = again.library.nearest(again.library.textures[0], {"pianist": "lyrical"})
    assert torch.equal(again.library.reference(found), made.library.moments[0])
    with pytest.raises(BadInput, match="pianist=nobody: 0; together 0 of 2"):
        again.library.nearest(again.library.textures[0], {"pianist": "nobody"})
    z = torch.randn(100, 128)
    assert torch.equal(again.standardised(z), style_moments(z))


def test_the_command_names_what_is_missing(tmp_path, monkeypatch, capsys, root):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cop_repro.cli.bench.project_root", lambda: tmp_path)
    assert main(["bench", "style", "-o", str(tmp_path / "out")]) == 2
    assert "dvc repro prepare" in capsys.readouterr().err
    assert main(["bench", "style", "--clips", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
