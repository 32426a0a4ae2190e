"""What DeepSpeed would write now, kept to be written later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepspeed.runtime.checkpoint_engine import CheckpointCommitInfo
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine
from deepspeed.runtime.checkpoint_engine.fast_checkpoint_engine import FastCheckpointEngine
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from vla_core.errors import ConfigError

from vla_train.engine.base import Copy


def check_writer(writer: CheckpointEngine) -> None:
    """Refuse a writer of DeepSpeed's that is not done when it returns.

    Raises:
        ConfigError: a folder would get its name before its files are in it.
    """
    if not isinstance(writer, TorchCheckpointEngine | FastCheckpointEngine):
        raise ConfigError(
            f"DeepSpeed's file asks for {type(writer).__name__}, which writes after a save has got its name; "
            "leave checkpoint.writer and datastates_ckpt out of it, and set trainer.async_save: true"
        )


class Kept(CheckpointEngine):
    """In the place of DeepSpeed's own writer for one save: each file's content is kept, and nothing written.

    Ranks meet in DeepSpeed's ``save_checkpoint``: one that could not write would leave the others there.
    DeepSpeed's own asynchronous writers are not used: they hold the next step's update back until all is
    on disk.

    Args:
        copy: what training shall not change; None: it waits.
    """

    def __init__(self, copy: Copy | None) -> None:
        super().__init__()
        self.copy = copy
        self.files: list[tuple[Any, str]] = []

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Made when they are written to."""

    def save(self, state_dict: Any, path: str) -> None:
        """Keep it."""
        kept = state_dict if self.copy is None else self.copy(state_dict, Path(path).name)
        self.files.append((kept, path))

    def load(self, path: str, map_location: Any = None) -> Any:
        """It takes part in saves alone."""
        raise RuntimeError(f"{path}: read by a writer")

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """The folder has its name only when all ranks have written."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """A copy has no more storage than it shows."""
        return self.copy is None

    def write(self, writer: CheckpointEngine) -> None:
        """Hand all to ``writer``, DeepSpeed's own."""
        for state_dict, path in self.files:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            writer.save(state_dict, path)
