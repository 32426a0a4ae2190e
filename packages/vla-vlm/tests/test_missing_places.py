"""A directory that is not there is one line at once; a hub id goes to the hub."""

from __future__ import annotations

import pytest
import transformers
from transformers.utils import hub
from vla_core.errors import ConfigError
from vla_vlm import Florence2, Llava3D, PaliGemma, Qwen3VL, Qwen25VL

BACKBONES = [Florence2, Llava3D, PaliGemma, Qwen3VL, Qwen25VL]


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the hub is asked for, in a directory that holds ``runs`` alone."""
    names: list[str] = []

    def ask(name, *args, **options):
        names.append(name)
        raise OSError("the hub is asked")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", ask)
    monkeypatch.setattr(hub, "cached_file", ask)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return names


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(backbone, asked, tmp_path):
    for name in ("./no", "../no", str(tmp_path / "no"), "~/no", "some/where/else", "runs/x/y"):
        with pytest.raises(
            ConfigError, match=rf"base_vlm '{name}' can't be loaded \(no such directory: /"
        ) as said:
            backbone.build(backbone.Config(base_vlm=name), 1, (64, 64))
        assert "\n" not in str(said.value)
    assert not asked


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_hub_id_is_asked_of_the_hub(backbone, asked):
    for name in ("org/name", "name", "runs/x"):
        with pytest.raises(ConfigError, match=r"can't be loaded \(the hub is asked\)"):
            backbone.build(backbone.Config(base_vlm=name), 1, (64, 64))
    assert asked == ["org/name", "name", "runs/x"]


def test_a_vision_tower_that_is_not_there(asked, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_llama"}')
    config = Llava3D.Config(base_vlm=".", vision_weights="./runs/tower")
    with pytest.raises(
        ConfigError, match=r"vision_weights './runs/tower' can't be loaded \(no such directory: /"
    ):
        Llava3D.build(config, 1, (64, 64))
    assert not asked
