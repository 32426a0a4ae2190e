"""A decoder on whole conversations: what it would say next, wherever an assistant speaks.

M images of h * w tokens, R rows, S tokens, K image tokens of all rows, n answer tokens, H hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from vla_core.batch import ConversationBatch, Role
from vla_core.interfaces import VLMOutput

from vla_vlm.common.answers import every_answer
from vla_vlm.common.kernels import check_runs
from vla_vlm.common.reserved import overwrite, where
from vla_vlm.common.text import Deepstack

if TYPE_CHECKING:
    from vla_vlm.common.model import DecoderVLM


class _FlatDeepstack(Deepstack):
    """Features of rows that have different numbers of images; ``index`` counts over all rows, ``[1, K]``."""

    def add(self, x_RSH: Tensor, layer: int) -> Tensor:
        return super().add(x_RSH.flatten(0, 1)[None], layer).view_as(x_RSH)


def converse(vlm: DecoderVLM, batch: ConversationBatch) -> VLMOutput:
    """``logits [n, n_tokens]`` and ``labels [n]`` of all answer tokens of all rows.

    Each is predicted from what stands before it in its own conversation.

    Raises:
        ValueError: images of another size than the model was built for.
        UserError: a kernel that does not run here.
    """
    if tuple(batch.images.shape[1:]) != (3, *vlm.image_size):
        raise ValueError(f"images are {list(batch.images.shape)}, the model was built for {vlm.image_size}")
    check_runs(vlm.config.attn_implementation, vlm.language_model.embed_tokens.weight)
    fields, last = batch.tokens, vlm.dims.n_layers
    assert fields.position_ids is not None
    embeds_RSH = vlm.language_model.embed_tokens(fields.input_ids)
    tokens, features = vlm.encode(batch.images)
    deepstack = None
    if batch.n_images:
        index = where(fields.roles.view(1, -1), Role.IMAGE, batch.n_images * tokens.shape[1])
        flat = overwrite(embeds_RSH.flatten(0, 1)[None], index, tokens.flatten(0, 1)[None])
        embeds_RSH = flat.view_as(embeds_RSH)
        if features:
            deepstack = _FlatDeepstack(index, [x.flatten(0, 1)[None] for x in features])
    else:
        # The black picture: engines expect a gradient, here zero, of the same parameters in every step.
        for unread in (tokens, *features):
            embeds_RSH = embeds_RSH + 0 * unread.sum()
    hidden, _ = vlm.run(
        embeds_RSH,
        fields.attention_mask,
        fields.position_ids,
        (last,),
        only_tail_invalid=fields.right_padded,
        deepstack=deepstack,
        segments_BS=batch.segment_ids if batch.packed else None,
    )
    state = vlm.language_model.norm(hidden[last]) if vlm.raw_states else hidden[last]
    before, labels = every_answer(state, fields.input_ids, fields.roles, fields.n_answer)
    logits = vlm.logits_of(before, slice(None))
    return VLMOutput({}, fields.attention_mask, {}, logits=logits, labels=labels)
