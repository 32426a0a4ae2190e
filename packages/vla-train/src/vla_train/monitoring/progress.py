"""Progress of a run: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0


class ProgressBar:
    """Shows loss, learning rate, samples/s, data-wait share, MFU where it is known, memory and ETA.

    Args:
        total: last step.
        start: first step (a resumed run).
        console: where to write; hidden on all ranks but the first.
        visible: whether this rank shows anything.
    """

    def __init__(self, total: int, start: int, console: Console, visible: bool = True) -> None:
        self.total, self.start, self.console, self.visible = total, start, console, visible
        self._began = self._last_line = time.monotonic()
        self._first = (self._began, start)
        self._bar: Progress | None = None
        if visible and console.is_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=console,
            )
            self._task = self._bar.add_task("train", total=total, completed=start, text="")

    def __enter__(self) -> ProgressBar:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the state after ``step``."""
        if not self.visible:
            return
        text = "  ".join(_said(metrics))
        now = time.monotonic()
        if self._bar:
            self._last_line = now
            self._bar.update(self._task, completed=step, text=text)
            return
        if step == self.total or now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            left = timedelta(seconds=round(self.left(step)))
            self.console.print(f"step {step}/{self.total}  {text}  {left} left", highlight=False)

    def left(self, step: int) -> float:
        """Seconds to the end at the pace so far, the first step aside, which compiles."""
        since, done = self._first if step > self._first[1] else (self._began, self.start)
        return (time.monotonic() - since) / max(1, step - done) * (self.total - step)

    def first(self, step: int) -> None:
        """Say that the first step is done, and how long it took with all that comes before it."""
        self._first = (time.monotonic(), step)
        self.note(
            f"step {step}: the first is done, {self._first[0] - self._began:.1f} s after the loop began"
        )

    def under_way(self, text: str) -> None:
        """What happens between two steps, said where nothing else was for a while."""
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self.note(text)

    def over(self, why: str) -> bool:
        """Say why a run ends before its last step; whether it does."""
        if why:
            self.note(why)
        return bool(why)

    def note(self, text: str) -> None:
        """A line of its own."""
        if self.visible:
            self.console.print(text, highlight=False)


def _said(metrics: Mapping[str, float]) -> Iterator[str]:
    """The parts of a line that are known."""
    yield f"loss {metrics['loss']:.4f}" if "loss" in metrics else "no step with a finite loss"
    yield f"lr {metrics['lr']:.2e}"
    yield f"{metrics['samples_per_s']:.0f} samples/s"
    yield f"data wait {100 * metrics['data_wait']:.0f} %"
    if "mfu" in metrics:
        yield f"MFU {100 * metrics['mfu']:.1f} %"
    yield f"memory {metrics.get('memory_gib', metrics['host_memory_gib']):.1f} GiB"
