"""Made-up inputs of fusions.

B rows, V views, GRID tokens of a view, H hidden size, C geometry channels; SIZE pixels of a view.
The prompt of a row: 2 prefix tokens, 12 image tokens, 6 of text (some of them the instruction), padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from vla_core.batch import Cameras, Role, TokenFields
from vla_core.interfaces import Fused, FusionDims, GeometryFeatures, TextTokens, VisualTokens, VLMOutput

torch.set_num_threads(1)

B, V, GRID, H, C, LAYERS = 3, 2, (2, 3), 16, 12, 4
SIZE = (8, 12)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@dataclass
class Inputs:
    """What a fusion reads, with methods that change one thing."""

    visual: VisualTokens
    geometry: GeometryFeatures
    text: TextTokens
    cameras: Cameras
    hidden: Tensor = field(default_factory=lambda: torch.randn(B, 20, H))

    def run(self, fusion) -> Fused:
        return fusion(self.visual, self.geometry, self.text, self.cameras)

    def out(self, layer: int) -> VLMOutput:
        """As a backbone that leaves missing views out of its image span."""
        roles = self.text.fields.roles
        image = torch.zeros_like(roles, dtype=torch.bool)
        image[roles == Role.IMAGE] = self.visual.mask.flatten()
        mask = self.text.mask & ((roles != Role.IMAGE) | image)
        return VLMOutput({layer: self.hidden}, mask, {"image": image})

    def outputs(self, fusion) -> list[Tensor]:
        """Everything the fusion gives to others: tokens of valid views, prefix, context, loss terms."""
        fused = self.run(fusion)
        found = [fused.visual.tokens.where(self.visual.mask[..., None], 0.0)]
        if fused.prefix is not None:
            found.append(fused.prefix)
        if fused.context is not None:
            tokens = fused.context.tokens
            found += [tokens] if isinstance(tokens, Tensor) else list(tokens)
            found[1:] = [x.where(fused.context.mask[..., None], 0.0) for x in found[1:]]
        layer = fusion.request.layers[0] if fusion.request.layers else 0
        return found + list(fusion.loss(self.out(layer), self.geometry).values())

    def shuffle_rows(self) -> None:
        """Every sample gets the geometry of another."""
        self.geometry.tokens = self.geometry.tokens.roll(1, dims=0)
        self.geometry.depth = self.geometry.depth.roll(1, dims=0)
        self.geometry.points = self.geometry.points.roll(1, dims=0)
        self.cameras.depth = self.cameras.depth.roll(1, dims=0)

    def permute_positions(self) -> None:
        """The same geometry at other places of its view."""
        self.geometry.tokens = self.geometry.tokens.flip(2).roll(1, dims=3)
        self.geometry.depth = self.geometry.depth.flip(2).roll(4, dims=3)
        self.geometry.points = self.geometry.points.flip(2).roll(4, dims=3)
        self.cameras.depth = self.cameras.depth.flip(2).roll(4, dims=3)

    def hide_view(self, row: int, view: int) -> None:
        """A view goes missing."""
        n = GRID[0] * GRID[1]
        self.visual.mask[row, view * n : (view + 1) * n] = False
        self.geometry.view_mask = self.geometry.view_mask.clone()
        self.geometry.view_mask[row, view] = False

    def spoil_view(self, row: int, view: int, value: float) -> None:
        """All geometry of a view becomes ``value``."""
        self.geometry.tokens[row, view] = value
        self.geometry.depth[row, view] = value
        self.geometry.points[row, view] = value
        for name in ("intrinsics", "extrinsics", "depth"):
            getattr(self.cameras, name)[row, view] = value

    def to(self, target) -> Inputs:
        """Floating-point tensors of another dtype, or everything on another device."""

        def cast(x):
            is_device = isinstance(target, str)
            return x.to(target) if is_device or x.is_floating_point() else x

        text, fields = self.text, self.text.fields
        moved = TokenFields(
            *(cast(x) for x in (fields.input_ids, fields.attention_mask, fields.roles)), counts=fields.counts
        )
        return Inputs(
            VisualTokens(cast(self.visual.tokens), cast(self.visual.mask), self.visual.grid),
            GeometryFeatures(
                cast(self.geometry.tokens),
                None,
                cast(self.geometry.depth),
                cast(self.geometry.points),
                cast(self.geometry.view_mask),
            ),
            TextTokens(cast(text.embeds), cast(text.mask), cast(text.instruction_mask), moved),
            Cameras(cast(self.cameras.intrinsics), cast(self.cameras.extrinsics), cast(self.cameras.depth)),
            cast(self.hidden),
        )


def make_inputs(grid: tuple[int, int] = GRID) -> Inputs:
    """Random inputs with all views present; ``grid`` is the geometry's."""
    n, size = V * GRID[0] * GRID[1], (B, V, *SIZE)
    row = [Role.PREFIX] * 2 + [Role.IMAGE] * n + [Role.TEXT] * 1 + [Role.INSTRUCTION] * 4 + [Role.PAD]
    roles = torch.tensor([[int(role) for role in row]] * B, dtype=torch.uint8)
    ids, mask = torch.zeros(B, len(row), dtype=torch.long), roles != int(Role.PAD)
    fields = TokenFields(ids, mask, roles, counts={"prefix": 2, "image": n, "query": 0})
    text = TextTokens(torch.randn(B, len(row), H), mask, roles == int(Role.INSTRUCTION), fields)
    matrix = torch.tensor([[10.0, 0.0, 6.0], [0.0, 10.0, 4.0], [0.0, 0.0, 1.0]])
    pose = torch.eye(4).repeat(B, V, 1, 1)
    pose[:, 1, :3, 3] = torch.tensor([0.5, 0.0, -0.2])
    return Inputs(
        VisualTokens(torch.randn(B, n, H), torch.ones(B, n, dtype=torch.bool), (V, *GRID)),
        GeometryFeatures(
            torch.randn(B, V, *grid, C),
            depth=0.5 + torch.rand(size),
            points=torch.randn(*size, 3),
            view_mask=torch.ones(B, V, dtype=torch.bool),
        ),
        text,
        Cameras(matrix.repeat(B, V, 1, 1), pose, 0.5 + torch.rand(size)),
    )


@pytest.fixture
def inputs() -> Inputs:
    """Random inputs with all views present."""
    return make_inputs()


@pytest.fixture
def inputs_of():
    """Makes inputs whose geometry has a given grid."""
    return make_inputs


@pytest.fixture
def dims() -> FusionDims:
    """Sizes of the inputs."""
    return FusionDims(hidden_size=H, geometry_dim=C, n_layers=LAYERS, grid=GRID)
