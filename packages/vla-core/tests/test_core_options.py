"""Command lines whose mistakes are one line."""

from __future__ import annotations

import pytest
from vla_core.options import Options


def parser(**more):
    made = Options(prog="toy", **more)
    made.add_argument("--episodes", type=int, required=True)
    made.add_argument("--out")
    return made


def test_what_is_right_is_parsed_as_ever():
    assert vars(parser().parse_args(["--epi", "3", "--out=x"])) == {"episodes": 3, "out": "x"}
    args, rest = parser().parse_known_args(["--episodes", "3", "--env.key", "4", "--", "--nothing"])
    assert args.episodes == 3
    assert "--env.key" in rest


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["--episods", "3"], {}, "toy: unknown option --episods (did you mean --episodes?)"),
        (["--epi", "3"], {"allow_abbrev": False}, "toy: unknown option --epi"),
        (["--xyz"], {}, "toy: unknown option --xyz;"),
        (["--out", "x"], {}, "toy: the following arguments are required: --episodes"),
        (["--episodes", "many"], {}, "toy: argument --episodes: invalid int value: 'many'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, words, more, said):
    with pytest.raises(SystemExit) as caught:
        parser(**more).parse_args(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert line.endswith("see toy --help")
