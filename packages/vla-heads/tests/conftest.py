from collections.abc import Callable

import pytest
import torch
from vla_core.interfaces import Context, HeadDims, HeadInputs, VLMOutput

torch.set_num_threads(1)

B, S, H, N, T, A, D, K, C = 3, 11, 32, 4, 6, 5, 7, 3, 12


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def dims() -> HeadDims:
    return HeadDims(hidden_size=H, n_layers=N, action_dim=A, horizon=T, state_dim=D)


@pytest.fixture
def make_inputs() -> Callable[..., HeadInputs]:
    """Random backbone output: the first row has 4 padding tokens, the queries are the last valid ones, the
    image is the first two."""

    def make(
        rows: int = B, context: bool = False, dtype: torch.dtype = torch.float32, n_queries: int = T
    ) -> HeadInputs:
        mask = torch.ones(rows, S, dtype=torch.bool)
        mask[0, S - 4 :] = False
        query = torch.zeros_like(mask)
        for row in range(rows):
            end = int(mask[row].sum())
            query[row, end - n_queries : end] = True
        image = torch.zeros_like(mask)
        image[:, :2] = True
        hidden = {i: torch.randn(rows, S, H, dtype=dtype) for i in range(N + 1)}
        extra = Context(torch.randn(rows, K, C, dtype=dtype), torch.ones(rows, K, dtype=torch.bool))
        return HeadInputs(
            vlm=VLMOutput(hidden=hidden, mask=mask, spans={"query": query, "image": image}),
            context=extra if context else None,
            state=torch.randn(rows, D),
        )

    return make


@pytest.fixture
def targets() -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(B, T, A, dtype=torch.bool)
    mask[0, 4:] = False
    mask[1, :, 3:] = False
    return torch.randn(B, T, A), mask


@pytest.fixture
def wake() -> Callable[[torch.nn.Module], torch.nn.Module]:
    """Replace every parameter that starts at zero by noise, so that outputs depend on everything."""

    def perturb(module: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return module

    return perturb
