"""What lmms-eval's response cache asks of a gated model: SHA-256 of the model, and of each request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lmms_eval.api.instance import Instance

from truthgate_eval.harness.cache_keys import digest, gate_state, model_fingerprint
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.contrast import Contrast
from truthgate_eval.harness.gated_model import GatedModel
from truthgate_eval.harness.lmms_eval import contrast
from truthgate_eval.harness.lmms_eval.run_requests import RunRequests, wants_sum


class CacheIdentity(GatedModel, RunRequests):
    """A gated model whose answers can be told apart from those of every other.

    Attributes:
        contrast: The contrast with the images taken away, or None.
    """

    contrast: Contrast | None = None

    def fingerprint(self) -> str:
        """SHA-256 of the model, its gate and its settings as they are now, for lmms-eval's response cache.

        Raises:
            ModelError: The weights or the processor have none.
            GateError: The strength of the gate is not known yet.
        """
        where = ("pretrained", "revision", "device", "device_map", "peft")
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in where}
        settings = {**options, "chat": self.vlm.chat.template, "engine": self.engine}
        with exit_on_error():
            self.check_strength_is_known("--use_cache needs it before")
            model = model_fingerprint(self.vlm.model, self.vlm.processor, settings)
        described = contrast.describe(self.contrast)
        return digest([model, gate_state(self.gate_settings, self.gate_handle, described)])

    def request_digest(self, reqtype: str, request: Instance, fingerprint: str) -> str:
        """SHA-256 of all that decides the answer to a request: the model, the text, the images, the settings.

        Args:
            reqtype: `loglikelihood`, or a type of generation.
            request: The request.
            fingerprint: This model's.

        Raises:
            DataError: An image cannot be read.
        """
        settings: Mapping[str, Any] = {}
        with exit_on_error():
            if reqtype == "loglikelihood":
                question = self.scoring_question(*request.args)
                settings = {"losses": "sum"} if wants_sum(request) else {}
            else:
                text, settings, *document = request.args
                question = self.question(text, *document)
            images = [repr(key) for key in self.image_keys(question)]
        return digest([fingerprint, reqtype, question.text, question.answer, images, settings])
