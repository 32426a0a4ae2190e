"""Conversations in LLaVA's format: real files, what they give, and one line for each that is not whole."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from vla_core.conversations import Turn, check_turns
from vla_core.errors import ConfigError, UserError
from vla_data import VLMConversations, VLMConversationsConfig
from vla_data.errors import BadDataError


def turn(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


def write(folder: Path, entries: Sequence[Any], name: str = "talks.json") -> str:
    path = folder / name
    lines = "\n\n".join(json.dumps(e, ensure_ascii=False) for e in entries)
    path.write_text(lines if name.endswith("l") else json.dumps(entries), "utf-8")
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three pictures of different sizes and kinds in ``images/``."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(rng.integers(0, 256, (8, 4), np.uint8)).save(folder / "deep" / "grey.jpg")
    Image.fromarray(rng.integers(0, 256, (5, 5, 4), np.uint8)).save(folder / "alpha.png")
    return folder


ENTRIES: list[dict[str, Any]] = [
    {
        "id": "x",
        "image": "a.png",
        "conversations": [
            turn("human", "<image>\nWhere is the cube? Answer as (x1, y1, x2, y2)."),
            turn("gpt", "(120, 40, 300, 210)"),
            turn("human", "Which colour?"),
            turn("gpt", "Red\u2028indeed"),
        ],
    },
    {
        "images": ["deep/grey.jpg", "alpha.png"],
        "conversations": [turn("human", "<image> or <image>?"), turn("whoever", "The second.")],
    },
    {"conversations": [turn("system", "Be brief."), turn("human", "2 + 2?"), turn("gpt", "4")]},
]


@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
def test_what_files_say(images: Path, tmp_path: Path, name: str) -> None:
    config = VLMConversationsConfig(write(tmp_path, ENTRIES, name), str(images))
    talks = pickle.loads(pickle.dumps(VLMConversations(config)))
    assert len(talks) == 3
    one, two, three = (talks[i] for i in range(3))
    assert one.turns[0] == Turn("user", "<image>\nWhere is the cube? Answer as (x1, y1, x2, y2).")
    assert [t.role for t in one.turns] == ["user", "assistant"] * 2
    assert np.array_equal(one.images[0], np.asarray(Image.open(images / "a.png")))
    assert [image.shape for image in two.images] == [(8, 4, 3), (5, 5, 3)]
    assert two.turns[1] == Turn("assistant", "The second.")
    assert three.images == ()
    assert three.turns[0].role == "system"
    assert all(image.dtype == np.uint8 for talk in (one, two) for image in talk.images)
    # Blank lines count: the number is what an editor shows.
    assert two.where.endswith("entry 1" if name == "talks.json" else "line 3")


def test_images_lie_beside_the_file_unless_said_otherwise(images: Path) -> None:
    talks = VLMConversations(VLMConversationsConfig(write(images, ENTRIES[:1])))
    assert talks[0].images[0].shape == (6, 9, 3)


def test_an_entry_that_is_a_list_holds_several(images: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [[ENTRIES[0], ENTRIES[2]], ENTRIES[1]])
    talks = VLMConversations(VLMConversationsConfig(path, str(images)))
    assert [talks[i].where.removeprefix(path) for i in range(3)] == [
        ": entry 0, part 0",
        ": entry 0, part 1",
        ": entry 1",
    ]


USER, GPT = turn("human", "<image>?"), turn("gpt", "yes")
BROKEN: list[tuple[Any, str]] = [
    ({"image": "a.png", "conversations": [turn("human", "?"), GPT]}, "no <image> .*, and 1 image$"),
    ({"images": ["a.png"], "conversations": [turn("human", "<image><image>"), GPT]}, "2 <image> .* 1 image$"),
    ({"images": ["a.png"] * 2, "conversations": [USER, GPT]}, "1 <image> .* 2 images$"),
    ({"conversations": [USER, GPT]}, "1 <image> .* no images$"),
    ({"image": "a.png", "conversations": [turn("human", "?"), turn("gpt", "<image>")]}, "no <image>"),
    ({"conversations": [GPT]}, "first turn must be the user's"),
    ({"conversations": [turn("human", "?")]}, "nothing to learn"),
    ({"conversations": []}, "first turn must be the user's"),
    ({"conversations": "hello"}, "'conversations' must be a list of turns, not text"),
    ({}, "'conversations' must be a list of turns, not null"),
    ({"conversations": [{"from": "human"}]}, "a turn must be"),
    ({"image": 3, "conversations": [USER, GPT]}, "'image' must be a file's name"),
    ({"image": "a.png", "images": ["a.png"], "conversations": [USER, GPT]}, "both 'image' and 'images'"),
    ({"video": "a.mp4", "conversations": [turn("human", "<video>"), GPT]}, "videos in conversations"),
    ("hello", "must be a mapping"),
]


@pytest.mark.parametrize(("entry", "said"), BROKEN)
@pytest.mark.parametrize("name", ["talks.json", "talks.jsonl"])
def test_an_entry_that_is_not_whole_is_one_line(
    images: Path, tmp_path: Path, entry: Any, said: str, name: str
) -> None:
    path = write(tmp_path, [ENTRIES[2], entry], name)
    place = "entry 1" if name == "talks.json" else "line 3"
    with pytest.raises(UserError, match=f"{place}: .*{said}") as caught:
        VLMConversations(VLMConversationsConfig(path, str(images)))
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_images_that_are_missing_or_broken(images: Path, tmp_path: Path) -> None:
    (images / "text.png").write_text("hello")
    whole = (images / "a.png").read_bytes()
    (images / "cut.png").write_bytes(whole[: len(whole) // 2])
    names = ["gone.png", "text.png", "cut.png", "deep"]
    entries = [{"image": name, "conversations": [USER, GPT]} for name in names]
    talks = VLMConversations(VLMConversationsConfig(write(tmp_path, entries), str(images)))
    said = ["there is no image .*gone.png; check data_path", "text.png is not an image", "cut.png is damaged"]
    for i, words in enumerate([*said, "deep is damaged"]):
        with pytest.raises(BadDataError, match=rf"talks\.json: entry {i}: .*{words}") as caught:
            talks[i]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("talks.json", "[{]", "not valid JSON"),
        ("talks.jsonl", '{"conversations": 1', "line 1: not valid JSON"),
        ("talks.json", "{}", "must be a list of conversations, not a mapping"),
        ("talks.json", "[]", "holds no conversation"),
        ("talks.txt", "[]", r"must end in \.json or \.jsonl"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        VLMConversations(VLMConversationsConfig(str(tmp_path / name)))
    with pytest.raises(ConfigError, match="cannot be read"):
        VLMConversations(VLMConversationsConfig(str(tmp_path / "gone.json")))


@pytest.fixture
def registry(images: Path, tmp_path: Path) -> str:
    many = [{"conversations": [turn("human", str(i)), GPT]} for i in range(40)]
    write(tmp_path, many, "many.jsonl")
    write(tmp_path, ENTRIES)
    path = tmp_path / "registry.yaml"
    known = {
        "shapes": {"annotation_path": "talks.json", "data_path": "images"},
        "many": {"annotation_path": "many.jsonl"},
        "wrong": {"annotation_path": "many.jsonl", "folder": "x"},
    }
    path.write_text(yaml.safe_dump(known))
    return str(path)


def opened(registry: str, use: str, seed: int = 0) -> list[str]:
    talks = VLMConversations(VLMConversationsConfig(registry=registry, use=use, seed=seed))
    return [talks[i].where for i in range(len(talks))]


def test_a_registry_names_files_and_shares(registry: str) -> None:
    assert len(opened(registry, "shapes, many")) == 43
    half = opened(registry, "many%50,shapes")
    assert len(half) == 23
    assert half == opened(registry, "many%50,shapes")
    assert half != opened(registry, "many%50,shapes", seed=1)
    assert half[:20] == sorted(set(half[:20]), key=lambda where: int(where.rpartition(" ")[2]))
    assert set(half[:20]) < set(opened(registry, "many"))
    assert len(opened(registry, "many%0.1")) == 1


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("shape", "no 'shape' in .*did you mean 'shapes'"),
        ("many%0", "must end in a share"),
        ("many%half", "must end in a share"),
        ("wrong", "'wrong' must be"),
        (" , ", "names no data set"),
        ("all", "'wrong' must be"),
    ],
)
def test_words_that_a_registry_lacks(registry: str, use: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(registry, use)


def test_one_of_file_and_registry() -> None:
    for options in ({}, {"annotation_path": "a.json", "registry": "b.yaml"}):
        with pytest.raises(ConfigError, match="set one of"):
            VLMConversationsConfig(**options)
    with pytest.raises(ConfigError, match="data_path goes with"):
        VLMConversationsConfig(registry="b.yaml", data_path="c")


@settings(max_examples=60, deadline=None)
@given(marks=st.lists(st.integers(0, 3), min_size=1, max_size=4), images=st.integers(0, 8))
def test_as_many_marks_as_images_and_no_others(marks: list[int], images: int) -> None:
    turns = [t for n in marks for t in (Turn("user", "<image> x " * n), Turn("assistant", "y"))]
    assert (check_turns(turns, images) is None) == (sum(marks) == images)
