"""What an observation contributes to the action expert.

Shape legend: B rows, L own tokens, S prefix tokens, W width, m key-value heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vla_heads.pi0.expert import KeysValues, Rotation


@dataclass
class Prepared:
    """What an observation contributes, computed once and read by every step and repeat.

    Args:
        prefix: keys and values ``[B, m, S, d]`` of each of the backbone's layers.
        mask: bool ``[B, S]``; False is padding.
        rotation: rotary positions of the own tokens, ``[B, 1, L, d]`` each; they follow the prefix's.
        state: state token ``[B, 1, W]``, or None.
    """

    prefix: tuple[KeysValues, ...]
    mask: Tensor
    rotation: Rotation
    state: Tensor | None

    def repeat(self, times: int) -> Prepared:
        """Every row ``times`` times, adjacent."""
        if times == 1:
            return self
        again = lambda x: x.repeat_interleave(times, dim=0)  # noqa: E731
        return Prepared(
            tuple((again(k), again(v)) for k, v in self.prefix),
            again(self.mask),
            (again(self.rotation[0]), again(self.rotation[1])),
            None if self.state is None else again(self.state),
        )
