"""Layers with weights of their own for each embodiment (GR00T N1, arXiv 2503.14734).

Shape legend: B rows, E categories (embodiments), I input and O output features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vla_core.errors import UserError


class CategoryLinear(nn.Module):
    """A Linear per category: row b goes through the weights of ``category[b]``.

    All rows are one batched product whatever their categories; nothing waits for the device. With
    one category it is a plain Linear.
    """

    def __init__(self, d_in: int, d_out: int, n_categories: int, bias: bool = True) -> None:
        super().__init__()
        self.d_out, self.n_categories = d_out, n_categories
        self.weight = nn.Parameter(torch.empty(n_categories, d_out, d_in))
        # Flat: a vector, like every other bias, to whoever tells biases from matrices by their rank.
        self.bias = nn.Parameter(torch.empty(n_categories * d_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform matrices, zero biases."""
        for weight in self.weight:
            nn.init.xavier_uniform_(weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, category: Tensor | None = None) -> Tensor:
        """``x [B, ..., I]`` and ``category`` long ``[B]`` -> ``[B, ..., O]``.

        ``x`` with a leading 1 is the same for all rows.

        Raises:
            UserError: there are several categories and none is given.
        """
        bias = None if self.bias is None else self.bias.view(self.n_categories, self.d_out)
        if self.n_categories == 1:
            return F.linear(x, self.weight[0], None if bias is None else bias[0])
        if category is None:
            raise UserError(
                f"embodiment: missing, the head has weights for {self.n_categories} embodiments; "
                "provide HeadInputs.embodiment"
            )
        x = x.expand(category.shape[0], *x.shape[1:])
        weight = self.weight.index_select(0, category)
        y = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), weight.transpose(1, 2))
        if bias is not None:
            y = y + bias.index_select(0, category)[:, None]
        return y.view(*x.shape[:-1], self.d_out)


def linear(
    d_in: int, d_out: int, n_categories: int | None = None, bias: bool = True
) -> nn.Linear | CategoryLinear:
    """A Linear, or one per category where ``n_categories`` is given."""
    if n_categories is None:
        return nn.Linear(d_in, d_out, bias=bias)
    return CategoryLinear(d_in, d_out, n_categories, bias)


def apply(layer: nn.Linear | CategoryLinear, x: Tensor, category: Tensor | None) -> Tensor:
    """``layer`` on ``x``; a plain Linear ignores the category."""
    return layer(x, category) if isinstance(layer, CategoryLinear) else layer(x)
