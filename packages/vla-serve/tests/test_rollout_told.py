"""What a policy is told in a rollout: hidden images are black to it alone."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_spec
from vla_core.types import Observation
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_serve.engine.policy import fake_observation
from vla_serve.rollout_cli import main
from vla_serve.rollouts import expert
from vla_serve.rollouts.results import conditions
from vla_serve.rollouts.told import told
from vla_serve.testing import ToyPolicy


@pytest.fixture(scope="module")
def address():
    """Of a policy that stands still where it sees the square on the left, and walks where it sees none."""
    with PolicyServer(ToyPolicy(stuck_left=True)) as server:
        yield server.address


def settings(address: str, **changes) -> RolloutSettings:
    return RolloutSettings(
        address=address, env="toy", tasks=("left",), episodes=3, videos="none", seed=10_000, **changes
    )


def test_hidden_images_are_black_to_the_policy(address, toy, tmp_path) -> None:
    seen = rollout(settings(address), tmp_path / "seen")
    hidden = rollout(settings(address, hide="images"), tmp_path / "hidden")
    assert seen["total"]["successes"] < 3
    assert hidden["total"]["successes"] == 3
    assert hidden["settings"]["hide"] == "images"
    assert "the policy got black images" in conditions(hidden)
    assert "black" not in conditions(seen)
    # What people see is what was there.
    pictures = [(tmp_path / name / "thumbnails").glob("*") for name in ("seen", "hidden")]
    assert [file.stat().st_size > 0 for files in pictures for file in files] == [True] * 6


def test_both_ways_are_compared(call, toy, tmp_path, capsys) -> None:
    for name, more in (("seen", []), ("hidden", ["--hide", "images"])):
        assert main([*call, "--out", str(tmp_path / name), *more]) == 0
    assert main(["compare", str(tmp_path / "seen"), str(tmp_path / "hidden")]) == 0
    assert "hide: A None, B images" in capsys.readouterr().out


def test_results_of_another_way_are_not_gone_on_with(address, toy, tmp_path) -> None:
    rollout(settings(address), tmp_path)
    kept = json.loads((tmp_path / "results.json").read_text())
    del kept["settings"]["hide"]  # as before there was such a setting
    (tmp_path / "results.json").write_text(json.dumps(kept))
    rollout(settings(address), tmp_path)
    with pytest.raises(UserError, match="hide None, now 'images'"):
        rollout(settings(address, hide="images"), tmp_path)


def test_what_nobody_can_hide_is_refused(address) -> None:
    with pytest.raises(UserError, match=r"hide: unknown 'image' \(did you mean 'images'\?\)"):
        settings(address, hide="image")
    with pytest.raises(UserError, match="hide: an expert sees the simulator's state"):
        expert.check(
            type("Scripted", (), {"expert_action": None}),
            "toy",
            RolloutSettings("", "toy", ("left",), policy="expert", hide="images"),
        )
    with pytest.raises(UserError, match="hide: recorded actions follow nothing"):
        RolloutSettings("", "toy", ("left",), replay="recorded", hide="images")


def test_nothing_else_changes() -> None:
    observation: Observation = fake_observation(make_spec(), {})
    hidden = told(observation, "say this", "images")
    assert hidden.instruction == "say this"
    assert not any(image.any() for image in hidden.images.values())
    for name, image in observation.images.items():
        assert (hidden.images[name].shape, hidden.images[name].dtype) == (image.shape, np.uint8)
    assert observation.state is not None
    assert np.array_equal(hidden.state, observation.state)
    assert told(observation, None, None) is observation


def test_depth_does_not_show_what_hidden_images_would() -> None:
    observation: Observation = fake_observation(make_spec(), {})
    name, image = next(iter(observation.images.items()))
    depth = {name: np.ones(image.shape[:2], np.float32)}
    hidden = told(replace(observation, depth=depth), None, "images")
    assert hidden.depth is not None
    assert not hidden.depth[name].any()
    assert told(observation, None, "images").depth is None
