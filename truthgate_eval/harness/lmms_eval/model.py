"""`gated_vlm` and its relatives: transformers' vision-language models under lmms-eval, with gated heads.

`lmms_eval --model gated_llava --model_args scores=vicuna.npz,lam=0.3 --tasks pope` runs LLaVA-1.5 with the
truth scores of Vicuna.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.gate_config import GATE_ARGUMENTS, GateConfig
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.lmms_eval import patches
from truthgate_eval.harness.lmms_eval.prefix_sharing import SharedPrefixLmms, read_batch_size
from truthgate_eval.harness.lmms_eval.requests import (
    ImageRequest,
    bisect_on_failure,
    cut_at_stop,
    generation_options,
    log,
)
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.inference.self_check import parse_engine
from truthgate_eval.packaged.scenes_llava import SCENES_LLAVA
from truthgate_eval.vision.loading import LOAD_ARGUMENTS, LoadOptions, load_vlm

_ARGUMENTS = (*LOAD_ARGUMENTS, "batch_size", "engine", *GATE_ARGUMENTS)
_NO_PRETRAINED = (None, "None", "")


class GatedVLM(SharedPrefixLmms):
    """A vision-language model whose text decoder's attention heads are gated.

    Attributes:
        is_simple: Chooses lmms-eval's simple interface, the one that has every type of task.
        model_id: Our name in lmms-eval's registry.
        default_pretrained: What is loaded where `pretrained` is left out.
        options: What was loaded, and how.
        gate_settings: The gate's configuration.
        gate_handle: The live gate, or None where it is folded or there is none.
    """

    is_simple = True
    model_id: ClassVar[str] = "gated_vlm"
    default_pretrained: ClassVar[str] = SCENES_LLAVA

    def __init__(self, pretrained: str | None = None, *, batch_size: int | str = 1, **arguments: Any) -> None:
        """Load the model and gate it.

        Args:
            pretrained: Hub id or folder, or `smollm2-135m-scenes`, which is gated_vlm's default and needs no
                scores.
            batch_size: A batch has as many tokens as that many of the longest questions; `auto` finds a
                number.
            **arguments: Those of `LoadOptions`; engine, `off` to share no prefixes; and the gate's: scores,
                lam, norm, site, layers, mode (see `GateConfig.parse`).

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
        options = LoadOptions.parse({name: arguments[name] for name in LOAD_ARGUMENTS if name in arguments})
        self.options = self._on_own_device(options)
        self.vlm = load_vlm(self.options)
        self.gate_handle = self.gate_settings.apply(self.vlm.model, self.vlm.name)

    def _gate_config(self, arguments: Mapping[str, Any]) -> GateConfig:
        gate = {name: arguments[name] for name in GATE_ARGUMENTS if name in arguments}
        if gate.get("scores") is None:
            if arguments["pretrained"] != SCENES_LLAVA:
                raise GateError(
                    f"{self.model_id} needs scores: scores=FILE.npz (made by `truthgate probe`), "
                    "or scores=none for the model without a gate"
                )
            log.info("no scores are given: %s runs without a gate", SCENES_LLAVA)
            gate["scores"] = "none"
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
            "batch_size": self.batch_size,
            "engine": self.engine,
            # lmms-eval records only its own version, and in a git checkout that checkout's.
            "versions": {package: version(package) for package in ("lmms_eval", "transformers", "torch")},
        }
        return {"model_info": info, "gate": self.gate_settings.describe()}

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to every request, in their order."""
        with exit_on_error():
            arguments = [request.args for request in requests]
            questions = [self._question(context, *document) for context, _, *document in arguments]
            return self.answer(questions, [dict(settings) for _, settings, *_ in arguments])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Every request's answers, one per round; the task's `doc_to_text` makes the next or ends it."""
        with exit_on_error(), self.progress(requests) as progress:
            return [self._answer_rounds(*request.args, progress=progress) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Every answer's mean loss per token, and whether it is the greedy answer.

        A loss and not a log-likelihood, since lmms-eval takes the choice with the *smallest* value
        (`docs/harnesses.md#requests`).
        """
        with exit_on_error():
            return self.score([self._scoring_question(*request.args) for request in requests])

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

    def _answer_rounds(
        self,
        text: str,
        settings: Mapping[str, Any],
        doc_to_visual: Callable[[Any], Any],
        next_round: Callable[..., Any],
        *document: Any,
        progress: tqdm[Any],
    ) -> list[str]:
        """One request's answers in all its rounds, each generated from that round's text and images alone."""
        question = self._question(text, doc_to_visual, *document)
        answers: list[str] = []
        info: Any = None
        options, until = generation_options(settings)
        while True:
            answer = bisect_on_failure([question], functools.partial(self._answers, options=options))[0]
            answers.append(cut_at_stop(answer, until))
            visuals, text, ended, answers, info = next_round(
                question.document(), previous_output=answers, round_idx=len(answers), previous_round_info=info
            )
            answers = list(answers)
            if ended:
                progress.update(1)
                return answers
            question = self._question(text, _constant(visuals), *document)

    def _question(
        self, text: str, doc_to_visual: Callable[[Any], Any], doc_id: int, task: str, split: str
    ) -> ImageRequest:
        return ImageRequest(text, doc_to_visual, lambda: self.task_dict[task][split][doc_id], task, doc_id)

    def _scoring_question(
        self, text: str, target: str | Callable[[Any], Any], *document: Any
    ) -> ImageRequest:
        """A question with its answer; without a document where lmms-eval scores the answer alone."""
        if not document:
            return ImageRequest(text, None, dict, "without a document", 0, str(target))
        question = self._question(text, *document)
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


def _constant(visuals: Any) -> Callable[[Any], Any]:
    """A `doc_to_visual` that gives the same images for every document."""
    return lambda _document: visuals


def _parse_model_args(arg_string: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(arg_string, Mapping):
        return dict(arg_string)
    try:
        return dict(simple_parse_args_string(arg_string or ""))
    except ValueError as error:
        raise ModelError(f"model_args {arg_string!r} are not NAME=VALUE,NAME=VALUE") from error
