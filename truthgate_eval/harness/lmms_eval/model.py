"""`gated_vlm` and its relatives: transformers' vision-language models under lmms-eval, with gated heads.

`lmms_eval --model gated_llava --model_args scores=vicuna.npz,lam=0.3 --tasks pope` runs LLaVA-1.5 with the
truth scores of Vicuna.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.utils import simple_parse_args_string

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS, Contrast, with_contrast
from truthgate_eval.harness.lmms_eval import contrast, patches
from truthgate_eval.harness.lmms_eval.cache_identity import CacheIdentity
from truthgate_eval.harness.lmms_eval.requests import ImageRequest, log
from truthgate_eval.harness.lmms_eval.run_requests import wants_sum
from truthgate_eval.harness.model_args import read_batch_size
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.inference.next_token_divergence import Divergence, shared_divergence
from truthgate_eval.inference.prompt_sample import share_sample
from truthgate_eval.inference.self_check import parse_engine
from truthgate_eval.packaged.models import default_scores
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision.chat_template import PLACEHOLDER
from truthgate_eval.vision.loading import LOAD_ARGUMENTS, LoadOptions, load_vlm

_ARGUMENTS = (*LOAD_ARGUMENTS, "batch_size", "engine", *GATE_ARGUMENTS, *CONTRAST_ARGUMENTS)
_NO_PRETRAINED = (None, "None", "")


class GatedVLM(CacheIdentity):
    """A vision-language model whose text decoder's attention heads are gated.

    Attributes:
        is_simple: Chooses lmms-eval's simple interface, the one that has every type of task.
        model_id: Our name in lmms-eval's registry.
        default_pretrained: What is loaded where `pretrained` is left out.
    """

    is_simple = True
    model_id: ClassVar[str] = "gated_vlm"
    default_pretrained: ClassVar[str] = SCENES_LLAVA

    def __init__(self, pretrained: str | None = None, *, batch_size: int | str = 1, **arguments: Any) -> None:
        """Load the model and gate it.

        Args:
            pretrained: Hub id, folder or the name of a packaged model, which needs no scores;
                `smollm2-135m-scenes` is gated_vlm's default.
            batch_size: A batch has as many tokens as that many of the longest questions; `auto` finds a
                number.
            **arguments: Those of `LoadOptions`; engine, `off` to share no prefixes; and the gate's: scores,
                lam, norm, site, layers, mode, and those of its action (see `GateConfig.parse`); and the
                contrast's (see `Contrast.parse`).

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why. On
                lmms-eval's command line the program ends with that line and status 1.
        """
        super().__init__()
        quiet_harness_run("lmms_eval")
        with exit_on_error():
            self._load({"pretrained": pretrained, "batch_size": batch_size, **arguments})
        patches.install_evaluate_patch()

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str | Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> GatedVLM:
        """Make the model of `--model_args`.

        Args:
            arg_string: `--model_args`, as text or as a mapping.
            additional_config: lmms-eval's own flags, such as `--batch_size`; model_args win over them.
        """
        with exit_on_error():
            given = _parse_model_args(arg_string)
        flags = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**flags, **given})

    def _load(self, arguments: dict[str, Any]) -> None:
        """Check all arguments, then load the model: a mistake should not cost the minutes of a load."""
        unknown = sorted(set(arguments) - set(_ARGUMENTS))
        if unknown:
            raise ModelError(
                f"unknown argument {unknown[0]!r}: {self.model_id} takes {', '.join(_ARGUMENTS)}"
            )
        if arguments["pretrained"] in _NO_PRETRAINED:
            arguments = {**arguments, "pretrained": self.default_pretrained}
        self.gate_settings = self._gate_config(arguments)
        self.batch_size = read_batch_size(arguments["batch_size"])
        self.engine = parse_engine(arguments.get("engine", "auto"))
        self.contrast = Contrast.parse(arguments)
        if self.gate_settings.positions != "all":
            log.info("positions=%s: no prefixes are shared (engine=off)", self.gate_settings.positions)
            self.engine = "off"
        options = LoadOptions.parse({name: arguments[name] for name in LOAD_ARGUMENTS if name in arguments})
        self.options = self._on_own_device(options)
        self.vlm = load_vlm(self.options)
        self.apply_gate()

    def gated_parts(self) -> tuple[Any, Any, str]:
        """See `GatedModel.gated_parts`."""
        return self.vlm.model, self.vlm.processor.tokenizer, self.vlm.name

    def divergence(self, requests: Sequence[Instance], count: int) -> Divergence:
        """See `GatedModel.divergence`."""
        questions = [self.question_of(request) for request in requests]
        contents = [[question.text, *map(repr, self.image_keys(question))] for question in questions]
        chosen, places = share_sample(contents, count, self.processes)
        own = Divergence(self.next_token_log_probs([questions[i] for i in chosen])) if chosen else None
        return shared_divergence(own, places, self.processes)

    def _gate_config(self, arguments: Mapping[str, Any]) -> GateConfig:
        gate = {name: arguments[name] for name in GATE_ARGUMENTS if name in arguments}
        gate["scores"] = default_scores(arguments["pretrained"], gate.get("scores"))
        if gate["scores"] is None:
            raise GateError(
                f"{self.model_id} needs scores: scores=FILE.npz (made by `truthgate probe`), "
                "or scores=none for the model without a gate"
            )
        return GateConfig.parse(**gate, modality="image")

    def _on_own_device(self, options: LoadOptions) -> LoadOptions:
        """Options with this process's device.

        Under `accelerate launch` each process has a device of its own, and lmms-eval gives it its share of
        the documents.
        """
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
    def device(self) -> torch.device:
        """The device that takes the inputs, and on which lmms-eval gathers results."""
        return self.vlm.device

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model and its gate; see `patches.install_evaluate_patch`."""
        model = self.vlm.model
        info = {
            "pretrained": self.options.pretrained,
            "class": type(model).__name__,
            "revision": self.options.revision,
            "sha": getattr(model.config, "_commit_hash", None),
            "dtype": str(model.dtype),
            "peft": self.options.peft,
            "chat_template": self.options.chat_template,
            "system_instruction": self.options.system_instruction,
            "batch_size": self.batch_size,
            "engine": self.engine,
            # lmms-eval records only its own version, and in a git checkout that checkout's.
            "versions": {package: version(package) for package in ("lmms_eval", "transformers", "torch")},
        }
        described = contrast.describe(self.contrast)
        return {"model_info": info, "gate": with_contrast(self.gate_settings.describe(), described)}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to every request, in their order.

        Raises:
            TaskError: There is a contrast, which compares log-likelihoods.
        """
        with exit_on_error():
            self.check_contrast([(str(request.task_name), "generate_until") for request in requests[:1]])
            self.check_images(requests)
            self.see_requests(requests)
            arguments = [request.args for request in requests]
            questions = [self.question(context, *document) for context, _, *document in arguments]
            return self.answer(questions, [dict(settings) for _, settings, *_ in arguments])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Every request's answers, one per round; the task's `doc_to_text` makes the next or ends it.

        Raises:
            TaskError: There is a contrast, which compares log-likelihoods.
        """
        with exit_on_error(), self.progress(requests) as progress:
            self.check_contrast([(str(request.task_name), "generate_until") for request in requests[:1]])
            self.check_images(requests)
            self.see_requests(requests)
            return [self.answer_rounds(*request.args, progress=progress) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Every answer's mean loss per token, and whether it is the greedy answer.

        A loss and not a log-likelihood, since lmms-eval takes the choice with the *smallest* value
        (`docs/harnesses.md#requests`). The loss is the sum over tokens for tasks with `losses: sum` in their
        metadata, such as those that read log-odds.
        """
        with exit_on_error():
            self.check_images(requests)
            self.see_requests(requests)
            questions = [self.scoring_question(*request.args) for request in requests]
            losses = (
                self.score(questions)
                if self.contrast is None
                else contrast.contrasted_losses(self.contrast, questions, self.score)
            )
            return [
                (loss * self._count_tokens(question) if wants_sum(request) else loss, is_greedy)
                for request, question, (loss, is_greedy) in zip(requests, questions, losses, strict=True)
            ]

    def check_contrast(self, tasks: Iterable[tuple[str, str]]) -> None:
        """Refuse tasks that are not scored by log-likelihoods of answers, where there is a contrast.

        Args:
            tasks: Names and types.

        Raises:
            TaskError: A task generates text.
        """
        if self.contrast is not None:
            with exit_on_error():
                for name, output_type in tasks:
                    self.contrast.check_output_type(name, output_type, "lmms_eval")

    def scoring(self, after_first: list[int]) -> AbstractContextManager[None]:
        """See `SharedPrefixLmms.scoring`."""
        return nullcontext() if self.gate_handle is None else self.gate_handle.scoring(after_first)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """lmms-eval's `--apply_chat_template`, which would apply the template twice.

        Raises:
            ModelError: Always.
        """
        with exit_on_error():
            raise ModelError(
                f"{self.model_id} always uses the model's chat template: leave --apply_chat_template out"
            )

    @property
    def chat_template(self) -> str | None:
        """The Jinja template in use, which lmms-eval reads with `--apply_chat_template`."""
        return self.vlm.chat.template

    def _count_tokens(self, question: ImageRequest) -> int:
        """How many tokens the answer has; its images come long before it and do not matter."""
        prompt = self.vlm.prompt(question.text.replace(PLACEHOLDER, ""))
        return self.vlm.new_tokens(prompt, question.answer)


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


def _parse_model_args(arg_string: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(arg_string, Mapping):
        return dict(arg_string)
    try:
        return dict(simple_parse_args_string(arg_string or ""))
    except ValueError as error:
        raise ModelError(f"model_args {arg_string!r} are not NAME=VALUE,NAME=VALUE") from error
