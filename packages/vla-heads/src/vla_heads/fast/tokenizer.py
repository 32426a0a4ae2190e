"""The FAST tokenizer (arXiv 2501.09747): cosine transform, rounding, byte-pair encoding.

A rounded coefficient c is the character ``chr(c - min_token)``; those of a chunk, step by step, are a text,
and a byte-level BPE turns it into ids. Files are those of the published ``physical-intelligence/fast``, so
that either side reads the other's.

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from vla_core.errors import ConfigError

from vla_heads.fast.alphabet import CODES, codes_of, known_codes, piece_bytes
from vla_heads.fast.transform import Floats, Ints, quantise, restore

TOKENIZER_FILE = "tokenizer.json"
PROCESSOR_FILE = "processor_config.json"


@dataclass(frozen=True)
class ActionTokenizer:
    """Chunks of one shape to ids and back. Picklable.

    Args:
        bpe: byte-level BPE.
        scale: rounding steps a unit.
        min_token: the coefficient of character 0; smaller ones are clipped to it.
        vocab_size: ids are below it; a BPE that found fewer words leaves the rest unused.
        horizon, action_dim: T and A.
    """

    bpe: Tokenizer
    scale: float
    min_token: int
    vocab_size: int
    horizon: int
    action_dim: int

    def __post_init__(self) -> None:
        if self.bpe.get_vocab_size() > self.vocab_size:
            raise ConfigError(
                f"action tokenizer: its BPE has {self.bpe.get_vocab_size()} ids, more than its "
                f"vocab_size {self.vocab_size}; {PROCESSOR_FILE} and {TOKENIZER_FILE} don't belong together"
            )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @cached_property
    def pieces(self) -> list[bytes]:
        """What each id stands for, in UTF-8; empty for an unused one."""
        pieces = [self.bpe.id_to_token(i) for i in range(self.vocab_size)]
        return [b"" if piece is None else piece_bytes(piece) for piece in pieces]

    @cached_property
    def _nearest(self) -> Ints:
        return known_codes(self.bpe)

    def coefficients(self, actions: Floats) -> Ints:
        """The rounded coefficients ``[T, A]`` that ids can express: clipped, if they must be."""
        codes = np.clip(quantise(actions, self.scale) - self.min_token, 0, CODES - 1)
        return self._nearest[codes] + self.min_token

    def encode(self, actions: Floats) -> list[int]:
        """Ids of a chunk ``[T, A]``; what :meth:`decode` gives is its :meth:`coefficients`, restored."""
        if actions.shape != (self.horizon, self.action_dim):
            raise ValueError(f"expected a chunk {(self.horizon, self.action_dim)}, got {actions.shape}")
        codes = (self.coefficients(actions) - self.min_token).ravel()
        return list(self.bpe.encode("".join(map(chr, codes)), add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The chunk ``[T, A]`` of ``ids``, however they cut it up.

        Raises:
            ValueError: they are not the words of exactly one chunk.
        """
        codes = codes_of(b"".join(self.pieces[i] for i in ids))
        if codes is None or len(codes) != self.horizon * self.action_dim:
            found = "no text" if codes is None else f"{len(codes)} coefficients"
            raise ValueError(f"ids give {found}, a chunk has {self.horizon} x {self.action_dim}")
        return restore(codes.reshape(self.horizon, self.action_dim) + self.min_token, self.scale)

    @classmethod
    def fit(
        cls, chunks: Iterable[Floats], horizon: int, action_dim: int, vocab_size: int, scale: float
    ) -> Self:
        """Byte pairs of ``chunks [T, A]``; with none of them, one id a byte.

        ``min_token`` leaves room for everything in ``chunks`` and for any action in [-1, 1].

        Raises:
            ConfigError: coefficients that don't fit into the characters there are.
        """
        found = [quantise(chunk, scale) for chunk in chunks]
        unit = math.ceil(scale * math.sqrt(horizon))
        low = min([-unit, *(int(c.min()) for c in found)])
        high = max([unit, *(int(c.max()) for c in found)])
        if high - low >= CODES:
            raise ConfigError(
                f"scale: {scale} makes coefficients from {low} to {high}, more than {CODES} values; "
                "lower it, or normalise actions so that outliers are smaller (transforms: normalize, clip)"
            )
        bpe = Tokenizer(models.BPE())
        # Without GPT-2's split into words, which means nothing here, merges may span the whole chunk.
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        bpe.train_from_iterator(("".join(map(chr, (c - low).ravel())) for c in found), trainer)
        return cls(bpe, scale, low, vocab_size, horizon, action_dim)

    def save(self, directory: Path) -> None:
        """Write the two files."""
        directory.mkdir(parents=True, exist_ok=True)
        self.bpe.save(str(directory / TOKENIZER_FILE))
        config = {
            "processor_class": "UniversalActionProcessor",
            "scale": self.scale,
            "vocab_size": self.vocab_size,
            "min_token": self.min_token,
            "time_horizon": self.horizon,
            "action_dim": self.action_dim,
        }
        (directory / PROCESSOR_FILE).write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path, horizon: int, action_dim: int) -> Self:
        """Read them, for chunks ``[horizon, action_dim]``; the published ones fit any shape.

        Raises:
            ConfigError: a file is missing or damaged, or made for chunks of another shape.
        """
        for name in (TOKENIZER_FILE, PROCESSOR_FILE):
            if not (directory / name).is_file():
                raise ConfigError(
                    f"{directory / name}: no such file; name a directory with {TOKENIZER_FILE} and "
                    f"{PROCESSOR_FILE}, as 'vla-train fit-fast' writes it"
                )
        config, text = _read(directory / PROCESSOR_FILE), _read(directory / TOKENIZER_FILE)
        for name in ("scale", "vocab_size", "min_token"):
            if not isinstance(config.get(name), int | float):
                raise ConfigError(f"{directory / PROCESSOR_FILE}: '{name}' must be a number")
        if not isinstance(text.get("model"), dict) or text["model"].get("type") != "BPE":
            raise ConfigError(
                f"{directory / TOKENIZER_FILE}: not a byte-pair encoding (model.type is not BPE)"
            )
        bpe = Tokenizer.from_str(json.dumps(text))
        for name, needed in (("time_horizon", horizon), ("action_dim", action_dim)):
            if config.get(name) not in (None, needed):
                raise ConfigError(
                    f"{directory / PROCESSOR_FILE}: {name} is {config[name]}, this policy has {needed}; "
                    "fit another ('vla-train fit-fast')"
                )
        return cls(
            bpe,
            float(config["scale"]),
            int(config["min_token"]),
            int(config["vocab_size"]),
            horizon,
            action_dim,
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must hold a JSON object")
    return config
