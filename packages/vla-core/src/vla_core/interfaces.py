"""The torch-side interfaces between backbone, geometry, fusion and head.

Shape legend: B rows, V views, T action steps, A action dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from vla_core.answers import AnswerIds
from vla_core.batch import Batch, Cameras, ConversationBatch, TokenFields
from vla_core.conversations import Conversation
from vla_core.dims import FusionDims as FusionDims
from vla_core.dims import HeadDims as HeadDims
from vla_core.dims import KVDims as KVDims
from vla_core.dims import VLMDims as VLMDims
from vla_core.features import Constraint as Constraint
from vla_core.features import Context as Context
from vla_core.features import Fused as Fused
from vla_core.features import GeometryFeatures as GeometryFeatures
from vla_core.features import HeadInputs as HeadInputs
from vla_core.features import Terms as Terms
from vla_core.features import TextTokens as TextTokens
from vla_core.features import VisualTokens as VisualTokens
from vla_core.features import VLMOutput as VLMOutput
from vla_core.prompts import PromptSpec as PromptSpec
from vla_core.prompts import VLMRequest as VLMRequest
from vla_core.traits import FusionTraits as FusionTraits
from vla_core.traits import GeometryTraits as GeometryTraits
from vla_core.traits import HeadTraits as HeadTraits
from vla_core.types import Sample


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

    @property
    def answer_modules(self) -> list[str]:
        """Names of the modules that hold the rows of an answer's tokens; none without an answer."""
        ...


class ConversationCollator(Protocol):
    """Writes conversations in a backbone's chat format. Picklable and weightless."""

    def __call__(self, conversations: Sequence[Conversation]) -> ConversationBatch: ...


@runtime_checkable
class ConversingModel(Protocol):
    """A backbone that can be trained on conversations, once its Config's ``language_head`` is true."""

    dims: VLMDims

    def conversation_collator(self, max_tokens: int, pack: bool) -> ConversationCollator:
        """Rows of at most ``max_tokens``; ``pack``: several conversations in a row."""
        ...

    def converse(self, batch: ConversationBatch) -> VLMOutput:
        """``logits [n, n_tokens]`` and ``labels [n]`` of all that the assistants say."""
        ...


@runtime_checkable
class GeometryEncoder(Protocol):
    """A geometry encoder (an ``nn.Module``). Entry points ``vla.geometry``.

    ``needs`` is a subset of ``{"depth", "points"}``: dense heads run only when asked for, and only those of
    ``traits.provides`` may be. Where ``cameras.known`` says that a view lacks something, the encoder does
    without it as if nothing of that kind had been given for the view.
    """

    Config: ClassVar[type]
    dim: int
    traits: GeometryTraits

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

    ``traits`` say when it takes part, see :class:`~vla_core.traits.FusionTraits`.
    """

    Config: ClassVar[type]
    needs: frozenset[str]
    request: VLMRequest
    prompt: PromptSpec
    traits: FusionTraits
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

    ``traits`` say what it can do besides, see :class:`~vla_core.traits.HeadTraits`; :meth:`sample` of one
    that takes a constraint has a further argument ``constraint: Constraint | None = None``.
    """

    Config: ClassVar[type]
    prompt: PromptSpec
    traits: HeadTraits

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
