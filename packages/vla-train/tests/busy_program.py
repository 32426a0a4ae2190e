"""Ctrl-C at all ranks while the first still writes beside its training: ``busy_program.py FILE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from vla_train.checkpointing.writer import Writer
from vla_train.config import TrainerConfig
from vla_train.engine import make_engine
from vla_train.guards import last_words, peers
from vla_train.guards.exits import INTERRUPTED
from vla_train.monitoring.meter import Meter


def slowly() -> None:
    """Write for longer than a peer that has left is waited for."""
    time.sleep(5)
    Path(sys.argv[1]).write_text("whole", "utf-8")


if __name__ == "__main__":
    last_words.WAIT_S = peers.BEAT_S = 0.5
    engine = make_engine(TrainerConfig(device="cpu"))
    writer = Writer(engine, True)
    try:
        with peers.Peers(engine, Meter(1), 200.0, lambda: "", writer.busy), writer:
            writer.run(slowly)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        last_words.say("interrupted")
        sys.exit(INTERRUPTED)
