"""How likely an lm-eval model finds the answers that it is probed on, by the requests of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from truthgate_eval.inference.loglikelihood import check_request
from truthgate_eval.probing.dataset import ProbeExample
from truthgate_eval.probing.own_answers import AnswerText


class TextAnswerReader:
    """A text model that answers as under lm-eval; see `probing.own_answers.AnswerReader`."""

    def __init__(self, lm: HFLM) -> None:
        """Use a loaded model.

        Args:
            lm: From `probing.load_lm`.
        """
        self.lm = lm

    def write(self, example: ProbeExample) -> AnswerText:
        """See `AnswerReader`."""
        return AnswerText(example.context, example.answer, example)

    def log_probabilities(self, texts: Sequence[AnswerText]) -> list[float]:
        """See `AnswerReader`."""
        pairs = [(text.prompt, text.answer) for text in texts]
        for pair in pairs:
            if pair[0]:  # else all tokens are the answer's; only our own models check this themselves
                context, answer = self.lm._encode_pair(*pair)
                check_request(context, answer, max_length=self.lm.max_length, texts=pair)
        requests = [_request("loglikelihood", pair) for pair in pairs]
        return [value for value, _ in self.lm.loglikelihood(requests, disable_tqdm=True)]

    def generate(self, texts: Sequence[AnswerText], max_new_tokens: int) -> list[str]:
        """See `AnswerReader`."""
        settings = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
        requests = [_request("generate_until", (text.prompt, dict(settings))) for text in texts]
        return self.lm.generate_until(requests, disable_tqdm=True)


def _request(kind: Any, arguments: tuple[Any, ...]) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
