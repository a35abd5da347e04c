"""What the gated models of lm-eval have in common: reading `model_args`, and the keys of lm-eval's caches."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lm_eval.api.model import LM

from truthgate_eval.errors import ModelError
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.harness.model_args import parse_model_args


class GatedLM(LM):
    """To be inherited beside one of lm-eval's models, and before it."""

    @abstractmethod
    def model_key(self) -> str:
        """What answers depend on besides the gate: hashed once, before a run's first request.

        Raises:
            TruthGateError: There is none.
        """

    @abstractmethod
    def gate_key(self) -> dict[str, Any]:
        """The gate as it is now; asked at each request."""

    @abstractmethod
    def template_key(self) -> list[Any]:
        """The chat template, and what it is rendered with."""

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Any:
        """Make the model of `simple_evaluate(model_args=TEXT)`, in which `none` is a word.

        Args:
            arg_string: `name=value,name=value`.
            additional_config: lm-eval's batch size and device.
        """
        return cls.create_from_arg_obj(parse_model_args(arg_string), additional_config)

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Let lm-eval's answer cache (`--use_cache`), which keys on the request alone, see model and gate.

        See lm-eval's issue #4063 and `docs/harnesses.md#caches`.

        Raises:
            ModelError: The model has no key, or lm-eval's cache takes no other keys.
            GateError: The strength of the gate is not known yet.
        """
        answers = getattr(cache_hook, "dbdict", None)
        if answers is not None:
            if not callable(getattr(answers, "encode_key", None)):
                raise ModelError(
                    "--use_cache of this version of lm-eval cannot tell gates apart: leave --use_cache out"
                )
            model = self.model_key()
            answers.encode_key = lambda key: digest([model, self.gate_key(), key])
        super().set_cache_hook(cache_hook)

    @property
    def tokenizer_name(self) -> str:
        """The name of the chat template in lm-eval's cache of prompts (`--cache_requests`), with its hash."""
        return f"{super().tokenizer_name}-{digest(self.template_key())[:16]}"
