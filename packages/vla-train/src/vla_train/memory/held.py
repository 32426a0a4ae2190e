"""What a training step keeps until its backward pass, and what it would keep under other settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

HALVED, CAST = 0.55, 0.9
"""Of activations in fp32, and of those under autocast, what is left of them in bf16: norms and losses stay in
fp32. Six presets are at 0.9 to 1.1 of it."""


@dataclass
class Block:
    """Bytes that one block keeps for its backward pass.

    Args:
        kept: eagerly.
        made: what products made, but for the last, which is the next block's.
        read: what products read and did not make.
        given: its inputs.
        fixed: of ``kept``, weights in a lower precision: as large whatever the batch.
        before: what was kept outside of blocks when it ran.
        then: finished gradients when its backward pass begins.
        alone: the model does not repeat it, and so it is not compiled.
        may_run_again: gradient checkpointing would run it again, and does not yet.
        runs_again: it does: beside what is fixed its inputs alone are kept.
    """

    kept: int = 0
    made: int = 0
    read: int = 0
    given: int = 0
    fixed: int = 0
    before: int = 0
    then: int = 0
    alone: bool = False
    may_run_again: bool = False
    runs_again: bool = False

    def compiled(self, budget: float) -> int:
        """What the compiler keeps: outputs of products, for the rest is cheap to compute again.

        With a budget of 1 it also keeps what products read.
        """
        full = min(self.kept, self.given + self.made + self.read)
        if budget == 1:
            return full
        least = min(self.given, full)
        return int(min(full, self.given + self.made, least + budget * (full - least)))

    def once(self, budget: float | None) -> int:
        """Between its forward and its backward pass, when it runs but once; a budget: it is compiled."""
        return self.kept if budget is None or self.alone else self.compiled(budget)

    def held(self, budget: float | None) -> int:
        """Until its backward pass."""
        return self.given + self.fixed if self.runs_again else self.once(budget)

    def scaled(self, share: float, keeps_casts: bool = True) -> Block:
        """With ``share`` of the numbers; ``keeps_casts``: what is fixed stays, or else it goes."""
        fixed = self.fixed if keeps_casts else 0
        return replace(
            self,
            kept=int(share * (self.kept - self.fixed)) + fixed,
            made=int(share * self.made),
            read=int(share * max(0, self.read - self.fixed)) + fixed,
            given=int(share * self.given),
            fixed=fixed,
            before=int(share * self.before),
        )


@dataclass(frozen=True)
class Activations:
    """Bytes of one process, of one micro-batch.

    Args:
        outside: what autograd keeps between forward and backward pass beside the blocks, no parameters.
        blocks: what it keeps of each block.
        rest: the most that lives at one moment beyond what is kept: temporaries, and finished gradients.
        then: those gradients.
        bare: the most without gradients.
        late: the most from the backward pass of the first block on, which is there however blocks run.
        late_then: of that, finished gradients.
        gradients: all of them, of this process.
        budget: the share that compiled blocks keep; None: they are not compiled.
        accumulates: the gradients are there from micro-batch to micro-batch.
        terms: names of the loss's terms, found on the way.
        unreached: names of the trainable parameters that no term depends on, found on the way.
        why_not: where nothing was found, the reason.
    """

    outside: Block = field(default_factory=Block)
    blocks: tuple[Block, ...] = ()
    rest: int = 0
    then: int = 0
    bare: int = 0
    late: int = 0
    late_then: int = 0
    gradients: int = 0
    budget: float | None = None
    accumulates: bool = False
    terms: tuple[str, ...] = ()
    unreached: tuple[str, ...] = ()
    why_not: str = ""

    @property
    def saved(self) -> int:
        """What is kept between forward and backward pass."""
        return self.outside.kept + sum(block.held(self.budget) for block in self.blocks)

    @property
    def peak(self) -> int:
        """The most that lives at one moment: that, temporaries, and the gradients that are there by then."""
        forward = self.saved + (self.bare + self.gradients if self.accumulates else self.rest)
        return max(forward, self._again())

    def _again(self) -> int:
        """The most while a block runs again: what later ones kept is gone, and gradients are in its place."""
        most, earlier = self.late + self.accumulates * self.gradients, 0
        if not any(block.runs_again for block in self.blocks):
            return 0
        for block in self.blocks:
            once = block.once(self.budget)
            if block.runs_again:
                then = self.gradients if self.accumulates else block.then
                most = max(most, block.before + earlier + once + then + self.bare)
            # Autocast's casts went with the forward pass.
            earlier += block.given if block.runs_again else once
        return most

    def smaller_batch(self, parts: int) -> Activations:
        """Of a micro-batch of a ``parts``-th of the rows; the gradients wait for the others."""
        return replace(
            self,
            outside=self.outside.scaled(1 / parts),
            blocks=tuple(block.scaled(1 / parts) for block in self.blocks),
            bare=self.bare // parts,
            late=(self.late - self.late_then) // parts,
            late_then=0,
            accumulates=True,
        )

    def compiled(self, budget: float) -> Activations:
        """With compiled blocks that keep ``budget``."""
        return replace(self, budget=budget)

    def run_again(self) -> Activations:
        """With gradient checkpointing."""
        return replace(
            self, blocks=tuple(replace(block, runs_again=block.may_run_again) for block in self.blocks)
        )

    def in_bf16(self, from_autocast: bool) -> Activations:
        """With weights of 16 bits instead of 32; ``from_autocast``: products have 16 bits already."""
        share = CAST if from_autocast else HALVED
        one = replace(
            self,
            outside=self.outside.scaled(share, keeps_casts=False),
            blocks=tuple(block.scaled(share, keeps_casts=False) for block in self.blocks),
            bare=int(share * self.bare),
            rest=int(share * (self.rest - self.then)) + self.then,
            late=int(share * (self.late - self.late_then)) + self.late_then,
        )
        return one.with_gradients(0.5)

    def with_gradients(self, share: float) -> Activations:
        """With ``share`` of the gradients."""
        then, late_then = int(share * self.then), int(share * self.late_then)
        return replace(
            self,
            blocks=tuple(replace(block, then=int(share * block.then)) for block in self.blocks),
            gradients=int(share * self.gradients),
            then=then,
            rest=self.rest - self.then + then,
            late_then=late_then,
            late=self.late - self.late_then + late_then,
        )
