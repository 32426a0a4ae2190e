"""Command lines whose mistakes are one line."""

from __future__ import annotations

import pytest
from vla_core.options import Options, unreadable


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


def test_what_it_does_not_know_may_be_another_s():
    _, rest = parser(others=True).parse_known_args(["--episodes", "3", "--run_id", "x"])
    assert rest == ["--run_id", "x"]


def test_a_command_has_options_of_its_own(capsys):
    made = Options(prog="toy")
    made.add_argument("--quiet", action="store_true")
    command = made.add_subparsers(dest="command").add_parser("record", allow_abbrev=False)
    command.add_argument("--env")
    assert made.parse_args(["--quiet", "record", "--env", "x"]).env == "x"
    for words, said in (
        (
            ["record", "--evn", "x"],
            "toy record: unknown option --evn (did you mean --env?); see toy record --help",
        ),
        (["--quit", "record"], "toy: unknown option --quit (did you mean --quiet?); see toy --help"),
        (["recrod", "--env", "x"], "toy: no command 'recrod' (did you mean 'record'?); see toy --help"),
        (["x"], "toy: no command 'x' (known: record); see toy --help"),
    ):
        with pytest.raises(SystemExit):
            made.parse_args(words)
        assert capsys.readouterr().err.splitlines() == [said]


def test_a_misspelt_choice_is_told_the_nearest_one(capsys):
    made = Options(prog="toy")
    made.add_argument("--videos", choices=("failures", "all"))
    with pytest.raises(SystemExit):
        made.parse_args(["--videos", "failure"])
    said = "toy: argument --videos: no choice 'failure' (did you mean 'failures'?); see toy --help"
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize(
    ("words", "more", "said"),
    [
        (["--episods", "3"], {}, "toy: unknown option --episods (did you mean --episodes?)"),
        (["--epi", "3"], {"allow_abbrev": False}, "toy: unknown option --epi"),
        (["--xyz"], {}, "toy: unknown option --xyz;"),
        (["--out", "x"], {}, "toy: the following arguments are required: --episodes"),
        (["--episodes", "many"], {}, "toy: argument --episodes: invalid int value: 'many'"),
        (
            ["--episodes", "3", "--out", "L\udcc3\udca4ufe"],
            {},
            r"toy: 'L\udcc3\udca4ufe' is not utf-8, the encoding of this environment;",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(capsys, words, more, said):
    with pytest.raises(SystemExit) as caught:
        parser(**more).parse_args(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    assert line.endswith("see toy --help")


def test_another_encoding_is_told_how_to_be_utf_8(monkeypatch):
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    assert (unreadable(["a", "L\udcc3"]) or "").endswith(
        "is not iso8859-1, the encoding of this environment; set PYTHONUTF8=1"
    )
    assert unreadable(["a", "Läufe"]) is None
