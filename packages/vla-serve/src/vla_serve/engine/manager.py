"""Policies come and go while others answer: loaded and warmed up aside, promoted, drained, unloaded."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from vla_core.errors import UserError

from vla_serve.engine.boundary import Boundary, let_go
from vla_serve.engine.engine import Engine
from vla_serve.engine.errors import WrongState
from vla_serve.engine.policy import ActingPolicy, Policy
from vla_serve.engine.shelf import Digests, Served, Shelf, State
from vla_serve.engine.warm_up import OnWarm

log = logging.getLogger("vla_serve.engine")

T = TypeVar("T")

UNLOAD_S = 60.0
"""A revision that was replaced is given so long to answer what it has."""


@dataclass(frozen=True)
class Loaded:
    """A policy, what it is made of, and how it is run.

    Args:
        policy: what answers.
        digests: of its files.
        steps: its own number of denoise steps, where it is known.
        on_thread, on_warm: see :class:`~vla_serve.engine.engine.Engine`; None: the server's.
        on_ready: called when it is warmed up.
        on_gone: called when it is unloaded, or could not be started, and nothing refers to it any more.
    """

    policy: Policy | ActingPolicy
    digests: Digests = field(default_factory=Digests)
    steps: int | None = None
    on_thread: Callable[[str], None] | None = None
    on_warm: OnWarm | None = None
    on_ready: Callable[[], None] = lambda: None
    on_gone: Callable[[], None] = lambda: None


Servable: TypeAlias = Policy | ActingPolicy | Loaded
Loader: TypeAlias = Callable[[Path], Loaded]


class PolicyManager:
    """Changes a shelf. Coroutines run in the front's event loop; what takes long runs in threads.

    Args:
        shelf: of the front.
        steps: denoise steps to warm up with.
        loader: makes a policy of a checkpoint; None: nothing can be loaded.
        check: raises :class:`UserError` for a policy that this server can't carry.
        options: of every engine.
    """

    def __init__(
        self,
        shelf: Shelf,
        steps: int | None,
        loader: Loader | None,
        check: Callable[[Policy], None],
        options: Mapping[str, Any],
    ) -> None:
        self.shelf, self._steps, self._loader, self._check = shelf, steps, loader, check
        self._options = dict(options)
        self._loaded: dict[Served, Loaded] = {}
        # One at a time: a load fills memory, and a GPU's warm-up leaves no room for another.
        self._loading = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    # At the start and the end, outside the event loop

    def put(self, name: str, servable: Servable) -> Served:
        """A policy that answers once :meth:`start_all` has warmed it up."""
        loaded = servable if isinstance(servable, Loaded) else Loaded(servable)
        served = self.shelf.add(name, self._engine(loaded), loaded.digests)
        self._loaded[served] = loaded
        self.shelf.promote(served)
        return served

    def start_all(self) -> None:
        """Warm up what was put; raises whatever a policy raised."""
        for served in self.shelf:
            self._start(served.engine, self._loaded[served])

    def close_all(self) -> None:
        """End all engines; what is still open fails."""
        for served in self.shelf:
            served.engine.close()
        while self._loaded:
            self._loaded.popitem()[1].on_gone()

    def _engine(self, loaded: Loaded) -> Engine:
        on_thread = loaded.on_thread or self._options.get("on_thread")
        return Engine(loaded.policy, own_steps=loaded.steps, **{**self._options, "on_thread": on_thread})

    def _start(self, engine: Engine, loaded: Loaded) -> None:
        engine.start(self._steps, loaded.on_warm)
        loaded.on_ready()

    # While others answer

    async def load(self, name: str, path: Path, promote: bool) -> Served:
        """Read a checkpoint as a new revision of ``name`` and warm it up.

        Where the caller is gone before it is done, nothing is changed: what was loaded goes again.

        Raises:
            UserError: it cannot be read, or served by this server.
            WrongState: its contract is not that of the name.
        """
        if self._loader is None:
            raise WrongState("this server was started without a way to load checkpoints")
        # A thread that loads can't be stopped: the next load waits for it, whoever asked for this one.
        loading = asyncio.create_task(self._load(self._loader, name, path))
        try:
            served = await asyncio.shield(loading)
        except asyncio.CancelledError:
            self._later(self._abandon(loading))
            raise
        if promote:
            self.promote(name, served.revision, unload_previous=True)
        return served

    async def _load(self, loader: Loader, name: str, path: Path) -> Served:
        async with self._loading:
            log.info("loading policy=%s from %s", name, path)
            thread = _Thread()
            loaded = await thread(loader, path)
            with Boundary() as starting:
                return await self._shelve(name, loaded, thread)
            assert starting.error is not None
            on_gone = loaded.on_gone
            del loaded
            let_go(starting.error)
            await thread(on_gone)
            raise starting.error

    async def _shelve(self, name: str, loaded: Loaded, thread: _Thread) -> Served:
        """Warmed up and standing by; whatever goes wrong, no thread of it is left."""
        async with AsyncExitStack() as undo:
            engine = self._engine(loaded)
            undo.push_async_callback(thread, engine.close)
            self._check(engine.policy)
            self.shelf.check_contract(name, engine.policy)
            await thread(self._start, engine, loaded)
            served = self.shelf.add(name, engine, loaded.digests)
            self._loaded[served] = loaded
            undo.pop_all()
        weights = loaded.digests.weights[:12]
        log.info("loaded policy=%s revision=%s weights=%s", name, served.revision, weights)
        return served

    async def _abandon(self, loading: asyncio.Task[Served]) -> None:
        """Undo a load that nobody waits for."""
        await asyncio.wait([loading])
        if not loading.cancelled() and loading.exception() is None:
            if loading.result().state is not State.STANDBY:
                return  # somebody else has promoted it meanwhile
            log.info("nobody waits for policy=%s revision=%s", *_names(loading.result()))
            self.shelf.remove(loading.result())
            ending = self._end(loading.result(), 0.0)
            del loading
            await ending

    def _later(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def promote(self, name: str, revision: str, unload_previous: bool) -> Served:
        """Let a revision answer; what did before finishes what it has."""
        served = self.shelf.find(name, revision)
        if served.engine.ended is not None:
            raise WrongState(f"revision {served.revision} of policy '{name}': {served.engine.ended}")
        before = self.shelf.promote(served)
        log.info("promoted policy=%s revision=%s", name, served.revision)
        if before is not None and unload_previous:
            self.shelf.remove(before)
            self._later(self._end(before, UNLOAD_S))
        return served

    async def drain(self, name: str, timeout_s: float) -> tuple[Served, bool]:
        """Take no more requests for ``name``; whether all that it had is answered."""
        served = self.shelf.drain(name)
        log.info("drained policy=%s revision=%s", name, served.revision)
        return served, await asyncio.to_thread(served.engine.wait_empty, timeout_s)

    async def unload(self, name: str, revision: str, timeout_s: float) -> None:
        """Forget a revision that does not answer, when what it has is answered."""
        await self._end(self._removed(name, revision), timeout_s)

    def _removed(self, name: str, revision: str) -> Served:
        revisions = [served for served in self.shelf if served.name == name]
        if not revision and len(revisions) > 1:
            known = ", ".join(served.revision for served in revisions)
            raise UserError(f"revision: there are several of policy '{name}', name one of {known}")
        served = self.shelf.find(name, revision)
        self.shelf.remove(served)
        return served

    async def _end(self, served: Served, timeout_s: float) -> None:
        thread = _Thread()
        await thread(served.engine.drain, timeout_s)
        await thread(served.engine.close)
        on_gone = self._loaded.pop(served).on_gone
        log.info("unloaded policy=%s revision=%s", *_names(served))
        del served  # nothing else refers to it: its memory can go
        await thread(on_gone)


class _Thread:
    """One thread for all steps with a policy: when the last one runs, it has let go of what the others held.

    A pool's thread keeps its function for a moment after the result is known.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "vla-policies")

    async def __call__(self, function: Callable[..., T], *args: Any) -> T:
        run = partial(contextvars.copy_context().run, function, *args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, run)


def _names(served: Served) -> tuple[str, str]:
    return served.name, served.revision


def engines_alive(shelf: Shelf) -> bool:
    """Whether all engines still answer."""
    return all(served.engine.ended is None for served in shelf)
