"""Finds out whether a vision-language model is right with shared prefixes; see `inference.self_check`."""

from __future__ import annotations

import logging

from torch import nn

from truthgate_eval.errors import reason_of
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.inference.adapters import find_outer_adapter
from truthgate_eval.inference.not_finite import NotFiniteError
from truthgate_eval.inference.self_check import find_mismatch, mismatch, run_safely
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.shared_prefix import SharedPrefixVLM

log = logging.getLogger(__name__)


def load(vlm: VisionLanguageModel, decoder: nn.Module) -> SharedPrefixVLM:
    """Wrap a model, check on two small images what it is right with, and log one line about what it is not.

    Args:
        vlm: The model; it may carry a gate.
        decoder: Its text decoder.

    Returns:
        The model; its `supports_sharing` and `supports_multi_image` say what was found.
    """
    shared, name = SharedPrefixVLM(vlm, decoder), type(vlm.model).__name__
    reason = run_safely(lambda: find_sharing_mismatch(shared))
    shared.supports_sharing = reason is None
    if reason is not None:
        shared.supports_multi_image = False
        log.warning("%s shares no prefixes, every sequence runs by itself: %s", name, reason)
        return shared
    reason = run_safely(lambda: find_multi_image_mismatch(shared.for_self_check()))
    shared.supports_multi_image = reason is None
    if reason is not None:
        log.warning("%s: questions about several images share no prefixes: %s", name, reason)
    return shared


def load_question_engine(vlm: VisionLanguageModel) -> ImageQuestionEngine | None:
    """What answers with shared prefixes, checked; None, and one line in the log, where the model cannot."""
    try:
        shared = load(vlm, find_attention_layout(vlm.model).decoder)
    except NotFiniteError:
        raise
    except Exception as error:  # processors and models fail in many ways: the own path says where
        log.warning("%s shares no prefixes: %s", vlm.name, reason_of(error))
        return None
    return ImageQuestionEngine(vlm, shared) if shared.supports_sharing else None


def find_multi_image_mismatch(model: SharedPrefixVLM) -> str | None:
    """How logits about two images, in either order, differ from the model's own; None if they agree.

    Args:
        model: A copy from `for_self_check`.
    """
    prompts, reference = model.make_multi_image_reference()
    batch = model.pack(prompts)
    return mismatch(model.logits(batch, *batch.last_tokens(prompts)), reference, model.dtype)


def find_sharing_mismatch(model: SharedPrefixVLM) -> str | None:
    """How logits about one image differ from the model's own where prefixes are shared; None if they agree.

    Args:
        model: The model; it learns how many axes its position ids have.
    """
    added = find_outer_adapter(model.model)
    if added is not None:  # before an image is encoded, since a pass that ends early leaves PEFT's own hooks
        return added
    checked = model.for_self_check()
    # Questions without images need to know it, too.
    model.num_position_axes = checked.num_position_axes
    return find_mismatch(checked)
