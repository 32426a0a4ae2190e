from __future__ import annotations

import ast
import re
from pathlib import Path

import vla_serve
from vla_serve import PolicyServer
from vla_serve.testing import ToyPolicy

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 3
    with PolicyServer(ToyPolicy()) as server:
        for example in examples:
            tree = ast.parse(example.replace("127.0.0.1:10093", server.address))
            exec(compile(tree, str(README), "exec"), {})
    assert capsys.readouterr().out.split() == ["[-1.]", "[-1.]", "[-1.]", "4"]


def test_options_in_the_readme_exist():
    from vla_serve.compare_cli import make_parser as compare_parser
    from vla_serve.rollouts.options import make_parser as rollout_parser
    from vla_serve.server_cli import _parser as server_parser

    known = {
        o
        for p in (rollout_parser(), compare_parser(), server_parser())
        for a in p._actions
        for o in a.option_strings
    }
    for option in re.findall(r"--[a-z0-9_]+(?:\.[a-z_]+)?", README.read_text()):
        assert option in known or option.startswith("--env."), option


def test_public_names():
    for name in vla_serve.__all__:
        assert getattr(vla_serve, name) is not None
    assert callable(vla_serve.rollout)  # and not the module of that name
