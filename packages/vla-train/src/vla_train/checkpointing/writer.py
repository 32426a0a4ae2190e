"""Who writes to disk: the training process between two steps, or a thread of it beside them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import timedelta
from types import TracebackType

from torch.distributed import ProcessGroup, all_gather_object, destroy_process_group, new_group
from vla_core.weights import writing

from vla_train.engine import Engine
from vla_train.engine.sum_later import Flag

EVERY = 8
"""Several ranks ask each other every so many steps whether a job failed; they hear of it a step later."""
SLOWEST = timedelta(days=1)
"""One rank may write for so long while others are done; a rank that is gone is noticed otherwise."""


class Writer:
    """Does jobs one after the other, now or beside the training.

    As a block it ends when all jobs are done, whatever else went wrong.

    Args:
        engine: for the agreement of all ranks.
        beside: in a thread of each rank; what fails there is raised by :meth:`check` and :meth:`wait`.
    """

    def __init__(self, engine: Engine, beside: bool) -> None:
        self.engine, self.beside = engine, beside
        self.channel: ProcessGroup | None = None
        """Between the threads of the ranks; that of the training is in use meanwhile."""
        if beside and engine.world > 1:
            self.channel = new_group(backend="gloo", timeout=SLOWEST)
        self._flag = Flag(engine.device, engine.world)
        self._answer: Callable[[], bool] | None = None
        self._pool = ThreadPoolExecutor(1, "save") if beside else None
        self._jobs: list[Future[None]] = []
        self._failed = False

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        if self.channel is not None:
            # Its threads end with it, see `vla_train.engine.leaving`.
            destroy_process_group(self.channel)
            self.channel = None

    def run(self, job: Callable[[], None]) -> None:
        """Have ``job`` done by the first rank. Called by all ranks.

        Raises:
            UserError: what ``job`` raised, where it is done now.
        """
        if self._pool is None:
            self.engine.agree(job)
        elif self.engine.is_main:
            self._jobs.append(self._pool.submit(self._do, job))

    def run_together(self, part: Callable[[], None], finish: Callable[[OSError | None], None]) -> None:
        """Beside the training, have every rank do its ``part``, then the first ``finish``.

        Called by all ranks.

        Args:
            part: writes.
            finish: hears what kept a rank from writing, or None; it raises a UserError then.
        """
        assert self._pool is not None
        self._jobs.append(self._pool.submit(self._do_together, part, finish))

    def _do(self, job: Callable[[], None]) -> None:
        # A state without its checkpoint would be worse than neither.
        if self._failed:
            return
        self._failed = True
        job()
        self._failed = False

    def _do_together(self, part: Callable[[], None], finish: Callable[[OSError | None], None]) -> None:
        # Without parts of all ranks none could be finished, whatever failed before.
        failure = self._all(part)
        if self.engine.is_main:
            if self._failed:
                failure = failure or OSError("what was to be written before it failed")
            self._failed = True
            finish(failure)
            self._failed = False

    def _all(self, part: Callable[[], None]) -> OSError | None:
        """``part`` on every rank; returns what kept one of them from writing, on all."""
        said = "failed"
        try:
            with writing():
                part()
            said = ""
        except OSError as error:
            said = str(error.strerror or error)
        finally:
            # Nobody waits for a rank that could not write.
            all_said = self._exchanged(said)
        for rank, words in enumerate(all_said):
            if words:
                # What all say is known to be of one of them.
                return OSError(words if len(set(all_said)) == 1 else f"{words}, on rank {rank}")
        return None

    def _exchanged(self, words: str) -> list[str]:
        if self.channel is None:
            return [words]
        out = [""] * self.engine.world
        all_gather_object(out, words, group=self.channel)
        return out

    def busy(self) -> bool:
        """Whether a job is under way on this rank; asked by any thread."""
        return not all(job.done() for job in self._jobs)

    def check(self, step: int) -> None:
        """Between two steps: raise what a job raised (on several ranks up to nine steps later).

        Raises:
            UserError: the same on the first rank, the others end.
        """
        if not self.beside:
            return
        failed = any(job.done() and job.exception() is not None for job in self._jobs)
        if self.engine.world > 1:
            answer, self._answer = self._answer, None
            if answer is None:
                self._answer = self._flag.ask(float(failed)) if step % EVERY == 0 else None
                return
            failed = answer()
        if failed:
            self.wait()

    def wait(self) -> None:
        """Until all jobs are done. Called by all ranks.

        Raises:
            UserError: what a job raised.
        """
        if not self.beside:
            return
        wait(self._jobs)
        done, self._jobs = self._jobs, []

        def tell() -> None:
            for job in done:
                job.result()

        self.engine.agree(tell)
