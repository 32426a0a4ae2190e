"""The torch-side interfaces between backbone, geometry, fusion and head.

Shape legend: B rows, V views, N visual tokens, S tokens, H hidden size, C geometry channels,
h, w patch grid, T action steps, A action dims, D state dims, K context tokens, L answer ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from vla_core.answers import AnswerIds, Decoder
from vla_core.batch import Batch, Cameras, TokenFields
from vla_core.dims import FusionDims as FusionDims
from vla_core.dims import HeadDims as HeadDims
from vla_core.dims import KVDims as KVDims
from vla_core.dims import VLMDims as VLMDims
from vla_core.types import Sample

Terms: TypeAlias = dict[str, Tensor]
"""Named scalar loss terms; the trainer weights and adds them."""


@dataclass(frozen=True)
class PromptSpec:
    """What head and fusion want in the prompt; two specs unite with ``|``.

    Args:
        suffix: text after the instruction.
        n_query: number of reserved query ids (after the suffix), overwritten by learned embeddings.
        n_prefix: number of reserved ids before the images, overwritten by a fusion's tokens.
        answer_ids: the answer after the prompt: written at collate in training, spoken at inference.
        closing: text after an answer, special tokens by name; written at collate in training, for a head
            that learns it too (``VLMRequest.logits``: ``vocabulary``). Never spoken.
    """

    suffix: str = ""
    n_query: int = 0
    n_prefix: int = 0
    answer_ids: AnswerIds | None = None
    closing: str = ""

    def __or__(self, other: PromptSpec) -> PromptSpec:
        if self.answer_ids is not None and other.answer_ids is not None:
            raise ValueError("head and fusion both bring answer ids; only one may")
        return PromptSpec(
            suffix=self.suffix + other.suffix,
            n_query=self.n_query + other.n_query,
            n_prefix=self.n_prefix + other.n_prefix,
            answer_ids=self.answer_ids if self.answer_ids is not None else other.answer_ids,
            closing=self.closing + other.closing,
        )


@dataclass(frozen=True)
class VLMRequest:
    """What the backbone must compute; it computes nothing more. Requests unite with ``|``.

    Args:
        layers: indices into the hidden states: 0 is the embeddings, i the output of decoder layer
            i, ``n_layers`` the last layer's output after the final norm (as in transformers).
            Layers above the highest requested one are not run.
        queries: embedding of the query tokens, ``weight [n_query, H]``, or None.
        logits: ``labels`` asks for the logits of the answer ids where the labels are, and nowhere else;
            ``vocabulary`` for those of all tokens, where an answer or its closing is predicted.
        decoder: how many answer ids the head will speak at most; 0: it needs no decoder.
        kv: decoder layers (1 is the first) whose keys and values are wanted, for a head whose own
            tokens join the backbone's attention. A backbone that serves them says so in ``VLMDims.kv``.
    """

    layers: tuple[int, ...] = ()
    queries: nn.Embedding | None = None
    logits: Literal["none", "labels", "vocabulary"] = "none"
    decoder: int = 0
    kv: tuple[int, ...] = ()

    def __or__(self, other: VLMRequest) -> VLMRequest:
        if None not in (self.queries, other.queries) and self.queries is not other.queries:
            raise ValueError("head and fusion both bring query embeddings; only one may")
        return VLMRequest(
            layers=tuple(sorted({*self.layers, *other.layers})),
            queries=self.queries if self.queries is not None else other.queries,
            logits=self.logits if self.logits != "none" else other.logits,
            decoder=max(self.decoder, other.decoder),
            kv=tuple(sorted({*self.kv, *other.kv})),
        )


@dataclass
class TextTokens:
    """Embedded prompt: ``embeds [B, S, H]``, ``mask [B, S]``, ``instruction_mask [B, S]``, and its fields."""

    embeds: Tensor
    mask: Tensor
    instruction_mask: Tensor
    fields: TokenFields


@dataclass
class VisualTokens:
    """Image tokens in view order.

    Args:
        tokens: ``[B, N, H]`` with N = V * h * w.
        mask: bool ``[B, N]``; False for missing views.
        grid: (V, h, w) of the tokens.
        deepstack: further features ``[B, N, H]`` that the backbone adds to the image tokens after
            its first, second, ... layer (Qwen3-VL), or None. A fusion that changes the tokens
            returns ``dataclasses.replace(visual, tokens=...)``, so that they survive.
    """

    tokens: Tensor
    mask: Tensor
    grid: tuple[int, int, int]
    deepstack: tuple[Tensor, ...] | None = None


@dataclass
class GeometryFeatures:
    """Per-view geometry, never pooled: pooling is a fusion's choice.

    Args:
        tokens: ``[B, V, h, w, C]``.
        registers: ``[B, R, C]`` global tokens, or None.
        depth: ``[B, V, H, W]`` metres, or None.
        points: ``[B, V, H, W, 3]`` metres in the first camera's frame, or None.
        view_mask: bool ``[B, V]``; False for missing views. The policy writes it; None: all are there.
    """

    tokens: Tensor
    registers: Tensor | None = None
    depth: Tensor | None = None
    points: Tensor | None = None
    view_mask: Tensor | None = None


@dataclass
class Context:
    """Extra tokens for the head: ``tokens [B, K, C]`` (or one tensor per layer), ``mask [B, K]``."""

    tokens: Tensor | Sequence[Tensor]
    mask: Tensor


@dataclass
class Fused:
    """What a fusion returns: visual tokens, optional prefix ``[B, n_prefix, H]``, optional head context."""

    visual: VisualTokens
    prefix: Tensor | None = None
    context: Context | None = None


@dataclass
class VLMOutput:
    """What was requested.

    Args:
        hidden: layer index -> ``[B, S, H]``.
        mask: bool ``[B, S]``; False is padding.
        spans: role name (``image``, ``instruction``, ``query``, ``prefix``, ``answer``) -> bool ``[B, S]``.
        logits: ``[B, L, n_ids]``, the prediction of each label from all tokens before it; None unless asked.
            Over the vocabulary: ``[n, n_tokens]``, of the n answer and closing tokens of all rows.
        labels: long ``[B, L]`` answer ids, or :data:`NO_LABEL`; there when logits are. Over the vocabulary:
            ``[n]`` token ids.
        decoder: at the end of the prompt, where asked.
        position_ids: long ``[P, B, S]``; the backbone's rotary positions, where it tells them.
        kv: decoder layer -> keys and values, each ``[B, n, S, d]`` with n key-value heads; keys after
            their rotary positions. Gradients flow through them. Empty unless requested.
    """

    hidden: Mapping[int, Tensor]
    mask: Tensor
    spans: Mapping[str, Tensor]
    logits: Tensor | None = None
    labels: Tensor | None = None
    decoder: Decoder | None = None
    position_ids: Tensor | None = None
    kv: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def gather(self, span: str, layer: int, count: int) -> Tensor:
        """Hidden states ``[B, count, H]`` at a span that has ``count`` tokens in every row."""
        hidden = self.hidden[layer]
        # topk on the mask keeps shapes static (no host sync); stable order is restored by sorting.
        index = self.spans[span].to(torch.int8).topk(count, dim=1).indices.sort(dim=1).values
        return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))


@dataclass
class HeadInputs:
    """What a head reads: backbone output, optional extra context, normalised state ``[B, D]`` and masks.

    ``action_dims``: bool ``[B, A]``, the dims that the row's embodiment has (None: all). The rest is
    padding: zero in training, and so in what an iterative head sees while it samples.
    """

    vlm: VLMOutput
    context: Context | None = None
    state: Tensor | None = None
    state_mask: Tensor | None = None
    embodiment: Tensor | None = None
    action_dims: Tensor | None = None


@dataclass
class Constraint:
    """What an earlier chunk has settled already (real-time chunking, arXiv 2506.07339).

    Args:
        actions: float32 ``[B, T, A]``: the earlier chunk's actions, normalised, from the present step on.
        weights: float32 ``[B, T]`` in [0, 1]. 1 is a frozen step: executed before the answer arrives, and
            kept. Below 1 the answer is drawn towards the earlier action, at 0 it is free (and
            ``actions`` are not read). A row of zeros has no constraint.
        n_frozen: most frozen steps of a row, as a plain number, so that a limit is checked without
            reading the device; None: not known.
    """

    actions: Tensor
    weights: Tensor
    n_frozen: int | None = None

    @property
    def frozen(self) -> Tensor:
        """Bool ``[B, T]``: the steps to keep."""
        return self.weights >= 1

    def to(self, device: torch.device | str) -> Constraint:
        """A copy on ``device``."""
        return Constraint(self.actions.to(device), self.weights.to(device), self.n_frozen)


class TextCollator(Protocol):
    """Tokenises samples into :class:`TokenFields`. Picklable and weightless.

    That of an :class:`AnsweringModel` also takes ``answers: bool = False``: write the samples' answers
    after their prompts, with labels.
    """

    def __call__(self, samples: Sequence[Sample]) -> TokenFields: ...


@runtime_checkable
class VisionLanguageModel(Protocol):
    """A backbone (an ``nn.Module``). Entry points ``vla.vlms``.

    ``Config`` is its YAML node. ``build(config, n_views, image_size, assets)`` makes the module:
    with ``assets`` None, weights come from where the config says (a hub id, a local directory, or
    from scratch); with a directory written by ``save_assets``, architecture, tokenizer and
    processor come from there and weights are left for the checkpoint to fill.
    """

    Config: ClassVar[type]
    dims: VLMDims

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], assets: Path | None = None
    ) -> VisionLanguageModel: ...

    def save_assets(self, directory: Path) -> None: ...

    def collator(self, prompt: PromptSpec) -> TextCollator: ...

    def embed_text(self, batch: Batch) -> TextTokens: ...

    def embed_images(self, images: Tensor, view_mask: Tensor) -> VisualTokens:
        """Images uint8 ``[B, V, 3, H, W]`` -> tokens; normalisation is the encoder's own."""
        ...

    def __call__(
        self, text: TextTokens, visual: VisualTokens, prefix: Tensor | None, request: VLMRequest
    ) -> VLMOutput: ...


class AnsweringModel(VisionLanguageModel, Protocol):
    """A backbone that serves ``PromptSpec.answer_ids``, ``VLMRequest.logits`` and ``VLMRequest.decoder``."""

    def add_answers(self, answer_ids: AnswerIds) -> None:
        """Know the tokens of an answer, in order; those it lacks are appended to the vocabulary.

        Called once, before weights of a checkpoint are loaded.
        """
        ...


@runtime_checkable
class GeometryEncoder(Protocol):
    """A geometry encoder (an ``nn.Module``). Entry points ``vla.geometry``.

    ``needs`` is a subset of ``{"depth", "points"}``: dense heads run only when asked for. An encoder
    may state in ``provides: frozenset[str]`` which of them it can give; a fusion that needs another is
    then refused when the policy is built. One that honours ``cameras.view_keys`` has its ``cache`` as an
    attribute (None: switched off).
    """

    Config: ClassVar[type]
    dim: int

    @classmethod
    def build(
        cls, config: Any, n_views: int, image_size: tuple[int, int], weights: bool = True
    ) -> GeometryEncoder: ...

    def __call__(
        self, images: Tensor, cameras: Cameras | None, needs: frozenset[str] = frozenset()
    ) -> GeometryFeatures: ...


@runtime_checkable
class Fusion(Protocol):
    """Joins geometry with vision, language or the head. Entry points ``vla.fusions``.

    ``train_only`` fusions add nothing at inference: geometry is not even computed there. A fusion may state
    ``bypasses_backbone: bool = True`` when it returns the visual tokens as they are and no prefix: then
    geometry is computed beside the whole backbone; and ``reads_geometry: bool = False`` when the cameras
    alone are enough: then at inference it gets features without tokens (h = w = 0) and nothing is encoded.
    """

    Config: ClassVar[type]
    needs: frozenset[str]
    request: VLMRequest
    prompt: PromptSpec
    train_only: bool
    context_dim: int | None

    @classmethod
    def build(cls, config: Any, dims: FusionDims) -> Fusion: ...

    def __call__(
        self,
        visual: VisualTokens,
        geometry: GeometryFeatures,
        text: TextTokens,
        cameras: Cameras | None,
    ) -> Fused: ...

    def loss(self, out: VLMOutput, geometry: GeometryFeatures) -> Terms: ...


@runtime_checkable
class ActionHead(Protocol):
    """Turns backbone output into actions. Entry points ``vla.heads``.

    A head that can keep the start of an earlier chunk states ``takes_constraint = True``, and its
    :meth:`sample` has a further argument ``constraint: Constraint | None = None``. If it keeps a limited
    number of frozen steps, ``longest_delay`` says it (None or absent: any number below the horizon).

    A head that wants more dims of noise than the actions have states ``noise_dim``: ``[B, T, noise_dim]``.
    """

    Config: ClassVar[type]
    prompt: PromptSpec

    @classmethod
    def build(cls, config: Any, dims: HeadDims) -> ActionHead: ...

    def request(self, mode: Literal["train", "sample"]) -> VLMRequest: ...

    def __call__(
        self,
        inputs: HeadInputs,
        actions: Tensor,
        mask: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> Terms:
        """Loss terms for normalised targets ``actions [B, T, A]`` with bool ``mask [B, T, A]``."""
        ...

    def sample(self, inputs: HeadInputs, noise: Tensor, steps: int | None = None) -> Tensor:
        """Normalised actions ``[B, T, A]`` from per-row ``noise [B, T, A]``; ``steps`` None: config."""
        ...
