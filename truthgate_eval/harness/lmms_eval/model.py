"""`gated_vlm` and its like: vision-language models of transformers under lmms-eval, with gated heads.

`lmms_eval --model gated_llava --model_args scores=vicuna.npz,lam=0.3 --tasks pope`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar

from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.utils import simple_parse_args_string

from truthgate_eval.errors import GateError, ModelError, TruthGateError
from truthgate_eval.gating.gate_config import GATE_ARGUMENTS, GateConfig
from truthgate_eval.harness.command_line import exit_with_error
from truthgate_eval.harness.lmms_eval import patches
from truthgate_eval.harness.lmms_eval.prefix_sharing import SharedPrefixLmms, read_batch_size
from truthgate_eval.harness.lmms_eval.requests import (
    ImageRequest,
    bisect_on_failure,
    cut_at_stop,
    generation_options,
    log,
)
from truthgate_eval.inference.shared_prefix import check_engine
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision.loading import LOAD_ARGUMENTS, LoadOptions, load_vlm

_ARGUMENTS = (*LOAD_ARGUMENTS, "batch_size", "engine", *GATE_ARGUMENTS)


@contextmanager
def _one_line() -> Iterator[None]:
    """Hand a user's mistake to `refuse`, which knows whether this is a command line."""
    try:
        yield
    except TruthGateError as error:
        exit_with_error(error)


class GatedVLM(SharedPrefixLmms):
    """A vision-language model whose text decoder's attention heads are gated.

    Attributes:
        is_simple: lmms-eval's simple interface, the one that has every kind of task.
        model_id: Our name in lmms-eval's registry.
        default_pretrained: What is loaded where `pretrained` is left out.
        gate_settings: What it is gated with.
        gate_handle: The live gate, or None where it is folded or there is none.
    """

    is_simple = True
    model_id: ClassVar[str] = "gated_vlm"
    default_pretrained: ClassVar[str] = SCENES_LLAVA

    def __init__(self, pretrained: Any = None, *, batch_size: Any = 1, **arguments: Any) -> None:
        """Load the model and gate it.

        Args:
            pretrained: Hub id or folder, or `smollm2-135m-scenes`, which is gated_vlm's default and needs no
                scores.
            batch_size: A batch has as many tokens as so many of the longest questions; `auto` finds a number.
            **arguments: Those of `LoadOptions`; engine, `off` to share no prefixes; and the gate's: scores,
                lam, norm, site, layers, mode (see `GateConfig.read`).

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why. On
                lmms-eval's command line the program ends with that line and status 1.
        """
        super().__init__()
        with _one_line():
            self._build({"pretrained": pretrained, "batch_size": batch_size, **arguments})
        patches.install_evaluate_patch()

    @classmethod
    def create_from_arg_string(cls, arg_string: Any, additional_config: Any = None) -> GatedVLM:
        """Build from `--model_args`, as text or as a mapping; what it says wins over the host's flags."""
        with _one_line():
            given = _parse(arg_string)
        flags = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**flags, **given})

    def _build(self, arguments: dict[str, Any]) -> None:
        unknown = sorted(set(arguments) - set(_ARGUMENTS))
        if unknown:
            raise ModelError(
                f"unknown argument {unknown[0]!r}: {self.model_id} takes {', '.join(_ARGUMENTS)}"
            )
        if arguments["pretrained"] in (None, "None", ""):
            arguments["pretrained"] = self.default_pretrained
        gate = {name: arguments[name] for name in GATE_ARGUMENTS if name in arguments}
        if gate.get("scores") is None and arguments["pretrained"] == SCENES_LLAVA:
            log.info("no scores are given: %s runs without a gate", SCENES_LLAVA)
            gate["scores"] = "none"
        if gate.get("scores") is None:
            raise GateError(
                f"{self.model_id} needs scores: scores=FILE.npz (made by `truthgate probe`), "
                "or scores=none for the model without a gate"
            )
        self.batch_size = read_batch_size(arguments["batch_size"])
        self.engine = check_engine(arguments.get("engine", "auto"))
        # The gate is read before the model is loaded: a mistake should not cost the minutes that takes.
        self.gate_settings = GateConfig.parse(**gate, modality="image")
        options = LoadOptions.parse({name: arguments[name] for name in LOAD_ARGUMENTS if name in arguments})
        self.options = self._spread(options)
        self.vlm = load_vlm(self.options)
        self.gate_handle = self.gate_settings.apply(self.vlm.model, self.vlm.name)

    def _spread(self, options: LoadOptions) -> LoadOptions:
        """Under `accelerate launch` every process takes a device of its own, and a part of the documents."""
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size == 1:
            return options
        if options.device_map:
            raise ModelError("device_map spreads one model over the devices: start one process only")
        if options.device == "cpu":
            return options
        return dataclasses.replace(options, device=str(self.accelerator.device))

    @property
    def device(self) -> Any:
        """The device that takes the inputs, and on which the host gathers."""
        return self.vlm.device

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model: see `lmms_eval_evaluate`."""
        model = self.vlm.model
        info = {
            "pretrained": self.options.pretrained,
            "class": type(model).__name__,
            "revision": self.options.revision,
            "sha": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype),
            "peft": self.options.peft,
            "chat_template": self.options.chat_template,
            "batch_size": self.batch_size,
            "engine": self.engine,
            # The host records only its own.
            "versions": {package: version(package) for package in ("lmms_eval", "transformers", "torch")},
        }
        return {"model_info": info, "gate": self.gate_settings.describe()}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to every request, in their order."""
        with _one_line():
            rows = [request.args for request in requests]
            questions = [self._question(ctx, *place) for ctx, _, *place in rows]
            return self.answer(questions, [dict(settings) for _, settings, *_ in rows])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Every request's answers, round by round: the task's `doc_to_text` asks the next or ends."""
        with _one_line(), self.progress(requests) as progress:
            return [self._rounds(request.args, progress) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Every answer's mean loss per token, and whether it is the greedy one.

        A loss and not a log-likelihood, since lmms-eval takes the choice with the *smallest* value.
        """
        with _one_line():
            return self.score([self._rated(*request.args) for request in requests])

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """lmms-eval's --apply_chat_template: would apply the template twice."""
        with _one_line():
            raise ModelError(
                f"{self.model_id} always uses the model's chat template: leave --apply_chat_template out"
            )

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in use, which lmms-eval asks for with --apply_chat_template."""
        return self.vlm.chat.template

    def _rounds(self, arguments: Any, progress: Any) -> list[str]:
        text, settings, visual, ask, *place = arguments
        question, answers, info = self._question(text, visual, *place), [], None
        options, until = generation_options(settings)
        while True:
            answer = bisect_on_failure([question], functools.partial(self._answers, options=options))[0]
            answers.append(cut_at_stop(answer, until))
            reply = ask(
                question.document(), previous_output=answers, round_idx=len(answers), previous_round_info=info
            )
            visuals, text, ended, answers, info = reply
            answers = list(answers)
            if ended:
                progress.update(1)
                return answers
            question = self._question(text, lambda _doc, visuals=visuals: visuals, *place)

    def _question(self, text: str, visual: Any, doc_id: int, task: str, split: str) -> ImageRequest:
        return ImageRequest(text, visual, lambda: self.task_dict[task][split][doc_id], task, doc_id)

    def _rated(self, text: str, target: Any, *place: Any) -> ImageRequest:
        """A question with its answer; without a document where the host asks for the answer alone."""
        if not place:
            return ImageRequest(text, None, dict, "without a document", 0, target)
        question = self._question(text, *place)
        answer = target if isinstance(target, str) else str(target(question.document()))
        return dataclasses.replace(question, answer=answer)


class GatedLlava(GatedVLM):
    """LLaVA-1.5, a child of Vicuna."""

    model_id, default_pretrained = "gated_llava", "llava-hf/llava-1.5-7b-hf"


class GatedLlavaNext(GatedVLM):
    """LLaVA-NeXT, a child of Vicuna."""

    model_id, default_pretrained = "gated_llava_next", "llava-hf/llava-v1.6-vicuna-7b-hf"


class GatedQwen25VL(GatedVLM):
    """Qwen2.5-VL, a child of Qwen2.5."""

    model_id, default_pretrained = "gated_qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct"


class GatedQwen25Omni(GatedVLM):
    """Qwen2.5-Omni's thinker, a child of Qwen2.5."""

    model_id, default_pretrained = "gated_qwen2_5_omni", "Qwen/Qwen2.5-Omni-7B"


DEFAULTS = {
    cls.model_id: cls.default_pretrained
    for cls in (GatedVLM, GatedLlava, GatedLlavaNext, GatedQwen25VL, GatedQwen25Omni)
}


def _parse(arg_string: Any) -> dict[str, Any]:
    if isinstance(arg_string, Mapping):
        return dict(arg_string)
    try:
        return simple_parse_args_string(arg_string or "")
    except ValueError as error:
        raise ModelError(f"model_args {arg_string!r} are not NAME=VALUE,NAME=VALUE") from error
