"""The examples of docs/extending.md, found through entry points of a distribution outside the repository.

Each of the six files in examples/extending adds one part. They are copied beside the metadata that
an installer would write, and then really run: trained together, saved, loaded, rolled out.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomllib
import torch
from vla_core import registry
from vla_core.assemble import build_policy
from vla_core.batch import Batch, Cameras, Known
from vla_core.complete import METHODS
from vla_core.config import build_config
from vla_core.errors import ConfigError
from vla_core.framework import FrameworkConfig
from vla_core.policy import VLAPolicy
from vla_core.sources import Source
from vla_core.specs import check_action, check_observation
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_train.cli import main

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "extending"
pytestmark = pytest.mark.usefixtures("my_parts")
PARTS = {
    "vla.vlms": "my_vlm",
    "vla.geometry": "my_encoder",
    "vla.heads": "my_head",
    "vla.fusions": "my_fusion",
    "vla.sources": "my_source",
    "vla.envs": "my_env",
}

ENCODERS: dict[str, dict[str, Any]] = {"tiny": {"patch_size": 8}, "my_encoder": {"patch": 8}}

DOT = re.findall(
    r"```yaml\n(framework:.*?)```", (EXAMPLES.parents[1] / "docs" / "extending.md").read_text(), re.S
)[0]


def make_source() -> Source:
    cls = registry.load("vla.sources", "my_source")
    source: Source = cls(build_config(cls.Config, {"episodes": 6}, "datasets.dot"), horizon=4)
    return source


def make_policy(with_geometry: bool, encoder: str = "tiny") -> VLAPolicy:
    config = FrameworkConfig(
        name="Outside",
        horizon=4,
        vlm={"name": "my_vlm", "patch": 8},
        head={"name": "my_head"},
        geometry={**ENCODERS[encoder], "name": encoder} if with_geometry else None,
        fusion={"name": "my_fusion"} if with_geometry else None,
        transforms=[{"name": "normalize"}],
    )
    torch.manual_seed(0)
    return build_policy(config, {"default": make_source().spec})


def make_batch(policy: VLAPolicy) -> Batch:
    source, pipeline = make_source(), policy.pipelines["default"]
    assert policy.collator is not None
    return policy.collator([pipeline(source[i]) for i in range(0, len(source), 3)])


def train(policy: VLAPolicy, steps: int) -> list[float]:
    batch = make_batch(policy)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = sum(policy.model.train()(batch).values(), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    policy.eval()
    return losses


@pytest.mark.parametrize(("group", "name"), PARTS.items())
def test_found_by_name(group: str, name: str, my_parts: Path) -> None:
    assert name in registry.names(group)
    cls = registry.load(group, name)
    assert cls.__module__ == name
    build_config(cls.Config, {}, name)  # every option has a default


def test_config_of_an_outside_part_is_checked() -> None:
    cls = registry.load("vla.vlms", "my_vlm")
    with pytest.raises(ConfigError, match="hidden_size"):
        build_config(cls.Config, {"hidden_siz": 8}, "framework.vlm")


def test_dataset_keeps_the_contract() -> None:
    source = make_source()
    assert len(source) == 6 * 20
    last = source[19]
    assert last.action_mask.tolist() == [[True, True]] + [[False, False]] * 3
    assert (last.actions[1:] == last.actions[0]).all()  # an absolute target is held
    assert last.observation.images["top"].shape == (32, 32, 3)


def test_head_ignores_masked_targets() -> None:
    policy = make_policy(with_geometry=False).eval()
    batch = make_batch(policy)
    assert batch.actions is not None
    assert batch.action_mask is not None
    before = policy.model(batch)["action"]
    batch.actions[~batch.action_mask] = 1e6
    assert torch.equal(policy.model(batch)["action"], before)


def test_collator_travels_to_workers() -> None:
    policy = make_policy(with_geometry=False)
    again = pickle.loads(pickle.dumps(policy.collator))
    batch = make_batch(policy)
    source, pipeline = make_source(), policy.pipelines["default"]
    tokens = again([pipeline(source[0])]).tokens
    assert torch.equal(tokens.input_ids[0], batch.tokens.input_ids[0])


def test_fusion_changes_what_the_head_sees() -> None:
    policy = make_policy(with_geometry=True).eval()
    batch = make_batch(policy)
    noise = torch.zeros(len(batch), 4, 2)
    fusion: Any = policy.model.fusion
    with torch.no_grad():
        untouched = policy.model.predict(batch, noise)
        torch.nn.init.normal_(fusion.gate.weight)
        assert not torch.equal(policy.model.predict(batch, noise), untouched)
    losses = train(policy, steps=2)
    assert np.isfinite(losses).all()
    assert fusion.gate.weight.grad.abs().sum() > 0


def test_encoder_reads_a_calibration_where_there_is_one() -> None:
    cls = registry.load("vla.geometry", "my_encoder")
    encoder = cls.build(cls.Config(patch=8), n_views=2, image_size=(16, 24))
    images = torch.randint(0, 256, (3, 2, 3, 16, 24), dtype=torch.uint8)
    pinhole = torch.tensor([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]]).repeat(3, 2, 1, 1)
    without = encoder(images, None).tokens
    assert without.shape == (3, 2, 2, 3, 64)

    pinhole[0, 1] = 0.0  # as the collator writes a view without one
    known = Known(intrinsics=pinhole[..., 2, 2] == 1)
    tokens = encoder(images, Cameras(intrinsics=pinhole, known=known)).tokens
    same = (tokens == without).flatten(2).all(dim=-1)
    assert same.tolist() == [[False, True], [False, False], [False, False]]
    tokens.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_encoder_and_fusion_learn() -> None:
    policy = make_policy(with_geometry=True, encoder="my_encoder")
    losses = train(policy, steps=3)  # before the gate's tanh is at its end
    assert losses[-1] < losses[0]
    encoder: Any = policy.model.geometry
    assert encoder.embed.weight.grad.abs().sum() > 0


def test_an_image_that_is_not_whole_patches_is_refused() -> None:
    cls = registry.load("vla.geometry", "my_encoder")
    with pytest.raises(ConfigError, match="not whole patches of 16"):
        cls.build(cls.Config(), n_views=1, image_size=(30, 32))


def test_the_package_installs_each_of_its_files() -> None:
    project = tomllib.loads((EXAMPLES / "pyproject.toml").read_text())
    modules = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert sorted(project["tool"]["setuptools"]["py-modules"]) == modules
    named = {value for points in project["project"]["entry-points"].values() for value in points.values()}
    assert sorted(value.partition(":")[0] for value in named) == modules


def test_vla_train_trains_a_framework_of_these_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dot.yaml").write_text(DOT)
    assert main(["--config", str(tmp_path / "dot.yaml"), f"run_root_dir={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "Dot on cpu" in out
    assert "better than always predicting the mean action in all 2 dims" in out
    checkpoint = tmp_path / "dot" / "checkpoints" / "steps_60"
    assert VLAPolicy.from_pretrained(checkpoint).framework == "Dot"
    assert (tmp_path / "dot" / "report.html").exists()


def test_parts_learn_together_and_solve_the_simulator(tmp_path: Path) -> None:
    policy = make_policy(with_geometry=False)
    losses = train(policy, steps=80)
    assert losses[-1] < losses[0] / 10

    directory = policy.save(tmp_path / "steps_80", step=80)
    loaded = VLAPolicy.from_pretrained(directory)
    observation = make_source()[0].observation
    (chunk,), (again,) = policy.act([observation], [0]), loaded.act([observation], [0])
    assert np.array_equal(chunk.actions, again.actions)

    settings: dict[str, Any] = {
        "env": "my_env",
        "tasks": ("middle",),
        "episodes": 3,
        "seed": 100,
        "workers": 1,
    }
    with PolicyServer(loaded) as server:
        served = RolloutSettings(address=server.address, videos="none", **settings)
        results = rollout(served, tmp_path / "rollout")
    assert results["complete"]
    assert results["total"]["success_rate"] == 1.0
    assert results["total"]["achieved"] == {"middle": 3}


def test_simulator_keeps_the_contract() -> None:
    cls = registry.load("vla.envs", "my_env")
    env = cls(build_config(cls.Config, {"task": "middle"}, "env"))
    source = make_source()
    who = ("the dataset", "the simulator")
    check_observation(source.spec.observation, env.observation_spec, who)
    check_action(source.spec.action, env.action_spec, who, horizon=False)
    first, again = env.reset(7), cls(env.config).reset(7)
    assert np.array_equal(first.images["top"], again.images["top"])
    with pytest.raises(ValueError, match="2 finite numbers"):
        env.step(np.array([np.nan, 0], np.float32))
    while not (result := env.step(env.expert_action())).success:
        assert not result.truncated
    env.close()


@pytest.mark.parametrize("group", METHODS)
def test_every_shipped_part_has_the_methods_of_its_protocol(group: str) -> None:
    shipped = [name for name in registry.names(group) if name not in PARTS.values()]
    assert shipped
    for name in shipped:
        registry.load(group, name)
