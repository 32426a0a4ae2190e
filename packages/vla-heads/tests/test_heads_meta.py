"""On the meta device tensors have no values: whatever would make a GPU wait for the host fails here."""

import dataclasses

import pytest
import torch
from vla_heads import (
    AdapterHead,
    Context,
    GR00TFlow,
    HeadDims,
    HeadInputs,
    LayerwiseFM,
    MLPRegression,
    VLMOutput,
)

DIMS = HeadDims(
    hidden_size=32, n_layers=2, action_dim=5, horizon=6, state_dim=7, n_embodiments=3, context_dim=12
)
HEADS = {
    "layerwise": (LayerwiseFM, {}),
    "concat": (LayerwiseFM, {"use_concat_cross_context": True}),
    "projected": (LayerwiseFM, {"project_context": "per_layer", "use_concat_cross_context": True}),
    "groot": (GR00TFlow, {"size": "custom", "width": 32, "n_blocks": 3}),
    "adapter": (AdapterHead, {"n_queries": 6, "n_blocks": 2, "width": 64}),
    "regression": (MLPRegression, {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_reads_no_value(name):
    cls, options = HEADS[name]
    reads_context = cls is not MLPRegression
    dims = DIMS if reads_context else dataclasses.replace(DIMS, context_dim=None)
    with torch.device("meta"):
        head = cls.build(cls.Config(**options), dims)
        mask = torch.ones(3, 11, dtype=torch.bool)
        hidden = {i: torch.randn(3, 11, 32) for i in range(3)}
        inputs = HeadInputs(
            VLMOutput(hidden, mask, {"image": mask, "query": mask}),
            Context(torch.randn(3, 4, 12), torch.ones(3, 4, dtype=torch.bool)) if reads_context else None,
            torch.randn(3, 7),
            torch.ones(3, 7, dtype=torch.bool),
            torch.zeros(3, dtype=torch.long),
        )
        actions, valid = torch.randn(3, 6, 5), torch.ones(3, 6, 5, dtype=torch.bool)
        head(inputs, actions, valid)["action_loss"].backward()
        assert head.sample(inputs, actions).shape == (3, 6, 5)
