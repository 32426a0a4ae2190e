"""Which of a run's resume states is whole: the files of each are listed with size and checksum."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_train.engine import Engine

FACTS = "run.json"
"""What a state depends on beside the config, what the loop remembers, and its list of files."""
FILES = "files"
"""The list's key: name -> [bytes, CRC-32]."""
SEAL = "checksum"
"""The CRC-32 of the rest of :data:`FACTS`."""
PIECE = 1 << 24


def step_of(path: Path) -> int:
    """N of ``steps_N``."""
    return int(path.name.rpartition("_")[2])


def states(run_dir: Path) -> list[Path]:
    """The states of a run, newest first."""
    found = [p for p in (run_dir / "resume").glob("steps_*") if re.fullmatch(r"steps_\d+", p.name)]
    return sorted(found, key=step_of, reverse=True)


def listed(folder: Path) -> dict[str, list[int]]:
    """The list of a state's files."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, _checksum(p)] for p in files}


def sealed(facts: Mapping[str, Any]) -> str:
    """The text of :data:`FACTS`."""
    return json.dumps({**facts, SEAL: _crc(facts)})


def _crc(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts).encode())


@dataclass(frozen=True)
class Choice:
    """What a run goes on from.

    Args:
        state: the newest whole one; None: there is none.
        damaged: newer ones, newest first, and what is wrong with each.
    """

    state: Path | None
    damaged: tuple[tuple[Path, str], ...]

    @property
    def step(self) -> int:
        """How many steps are done."""
        return 0 if self.state is None else step_of(self.state)

    def lines(self, run_dir: Path) -> Iterator[str]:
        """What to say about the damaged ones, and about checkpoints without a state."""
        if self.state is None and not self.damaged and (run_dir / "checkpoints").exists():
            yield (
                f"trainer.resume: auto: {run_dir} has checkpoints and no state to go on from, so the run "
                f"starts anew, and the folder is kept beside it as {run_dir.name}.without_state"
            )
        for path, why in self.damaged:
            if self.state is None:
                then = "no older state is whole, so the run starts anew, and its folder is kept beside it"
            else:
                lost = step_of(path) - step_of(self.state)
                then = f"going on from {self.state.name}, {lost} step{'s' if lost > 1 else ''} earlier"
            yield f"trainer.resume: auto: {path} is damaged ({why}); {then}"


def choose(engine: Engine, run_dir: Path, most: int | None = None) -> Choice:
    """The newest whole state, the same on all ranks: each looks at a share of the files.

    ``most``: how many states are looked at; None: until one is whole.
    """
    names = engine.agree(lambda: [path.name for path in states(run_dir)])
    damaged: list[tuple[Path, str]] = []
    for name in names[:most]:
        path = run_dir / "resume" / name
        wrong = engine.gather(list(_problems(path, engine.rank, engine.world)))
        if not wrong:
            return Choice(path, tuple(damaged))
        damaged.append((path, wrong[0]))
    return Choice(None, tuple(damaged))


def set_aside(choice: Choice) -> None:
    """Damaged states keep their files under a name that no later save takes. On the first rank."""
    for path, _ in choice.damaged:
        path.rename(_free(path.with_name(f"damaged_{path.name}")))


def set_run_aside(run_dir: Path, why: str) -> None:
    """The same for a whole run, which has no state that can be read; ``why`` is the end of its new name."""
    run_dir.rename(_free(run_dir.with_name(f"{run_dir.name}.{why}")))


def _free(path: Path) -> Path:
    tried, n = path, 1
    while tried.exists():
        n += 1
        tried = path.with_name(f"{path.name}-{n}")
    return tried


def _problems(state: Path, rank: int, world: int) -> Iterator[str]:
    """What is wrong with every ``world``-th file from the one of this rank on."""
    try:
        facts: dict[str, Any] = json.loads((state / FACTS).read_text("utf-8"))
        # States of before these checksums are believed.
        seal = facts.pop(SEAL, None)
        if seal is not None and seal != _crc(facts):
            raise ValueError("another checksum than when it was written")
        wanted = facts.get(FILES, {}).items()
    except (OSError, ValueError, AttributeError) as error:
        if rank == 0:
            yield f"{FACTS}: {error}"
        return
    for name, (size, checksum) in list(wanted)[rank::world]:
        file = state / name
        try:
            if (found := file.stat().st_size) != size:
                yield f"{name} has {found} bytes of {size}"
            elif _checksum(file) != checksum:
                yield f"{name} has another checksum than when it was written"
        except FileNotFoundError:
            yield f"{name} is missing"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror or error}"


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            value = zlib.crc32(piece, value)
    return value
