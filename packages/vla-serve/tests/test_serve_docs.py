"""The page on serving: its programs run, its options exist, its repack file is one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from vla_core.config import build_config
from vla_serve import PolicyServer, access_args
from vla_serve.testing import ToyPolicy

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
if not PAGE.exists():
    pytest.skip("the page lies in the repository, not in the wheel", allow_module_level=True)
TEXT = PAGE.read_text()


def test_the_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 2
    with PolicyServer(ToyPolicy()) as server:
        for example in examples:
            tree = ast.parse(example.replace("127.0.0.1:10093", server.address))
            exec(compile(tree, str(PAGE), "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["(4, 1)", "[-1.]"]


def test_options_exist():
    from vla_serve import bridge_cli, doctor_cli, probe_cli
    from vla_serve.rollouts.options import make_parser
    from vla_serve.server_options import parser

    parsers = (bridge_cli._parser, doctor_cli._parser, probe_cli._parser, make_parser, parser)
    known = {o for make in parsers for a in make()._actions for o in a.option_strings}
    for option in re.findall(r"--[a-z][a-z0-9_]+", TEXT):
        assert option in known or option == "--data", option


def test_every_client_can_show_what_a_server_asks_for():
    """Each by itself: that one of them has an option says nothing of the others."""
    from vla_serve import bridge_cli, doctor_cli, probe_cli
    from vla_serve.robot import options
    from vla_serve.rollouts import options as _rollout_options

    parsers = (
        *(bridge_cli._parser, doctor_cli._parser, probe_cli._parser),
        *(_rollout_options.make_parser, options.make_parser),
    )
    for make in parsers:
        known = {option for action in make()._actions for option in action.option_strings}
        assert {f"--{name}" for name in access_args.SHOWN} <= known


def test_the_repack_file_is_one():
    pytest.importorskip("aiohttp", reason="needs the extra vla-serve[bridge]")
    from vla_serve.bridges.repack import RepackConfig

    (text,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    config = build_config(RepackConfig, yaml.safe_load(text), "repack")
    assert config.openpi.state["observation/gripper_position"] == ("gripper",)
    assert config.vla_eval.execute_steps == 8
