"""`gated_vlm` and its relatives: transformers' vision-language models under lmms-eval, with gated heads.

`lmms_eval --model gated_llava --model_args scores=vicuna.npz,lam=0.3 --tasks pope` runs LLaVA-1.5 with the
truth scores of Vicuna.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from truthgate_eval.errors import GateError, ModelError, TaskError
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.yes_offset import add_yes_offset
from truthgate_eval.harness.cache_keys import digest, gate_state, model_fingerprint
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.lmms_eval import patches
from truthgate_eval.harness.lmms_eval.image_check import check_images
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
# Requests whose third argument is `doc_to_visual` and whose last three say which document.
_TYPES = ("generate_until", "generate_until_multi_round", "loglikelihood")


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
    # Tasks of the run whose images have not been looked at yet; None outside of lmms-eval's `evaluate`.
    _tasks_to_check: list[Any] | None = None

    def __init__(self, pretrained: str | None = None, *, batch_size: int | str = 1, **arguments: Any) -> None:
        """Load the model and gate it.

        Args:
            pretrained: Hub id or folder, or `smollm2-135m-scenes`, which is gated_vlm's default and needs no
                scores.
            batch_size: A batch has as many tokens as that many of the longest questions; `auto` finds a
                number.
            **arguments: Those of `LoadOptions`; engine, `off` to share no prefixes; and the gate's: scores,
                lam, norm, site, layers, mode, and those of its action (see `GateConfig.parse`).

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
        if self.gate_settings.positions != "all":
            log.info("positions=%s: no prefixes are shared (engine=off)", self.gate_settings.positions)
            self.engine = "off"
        options = LoadOptions.parse({name: arguments[name] for name in LOAD_ARGUMENTS if name in arguments})
        self.options = self._on_own_device(options)
        self.vlm = load_vlm(self.options)
        self.gate_handle = self.gate_settings.apply(self.vlm.model, self.vlm.name)
        add_yes_offset(self.vlm.model, self.vlm.processor.tokenizer, self.gate_settings.yes_offset)

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

    def fingerprint(self) -> str:
        """SHA-256 of the model, its gate and its settings as they are now, for lmms-eval's response cache.

        Raises:
            ModelError: The weights or the processor have none.
        """
        where = ("pretrained", "revision", "device", "device_map", "peft")
        options = {k: v for k, v in dataclasses.asdict(self.options).items() if k not in where}
        settings = {**options, "chat": self.vlm.chat.template, "engine": self.engine}
        with exit_on_error():
            model = model_fingerprint(self.vlm.model, self.vlm.processor, settings)
        return digest([model, gate_state(self.gate_settings, self.gate_handle)])

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
                question = self._scoring_question(*request.args)
                settings = {"losses": "sum"} if _wants_sum(request) else {}
            else:
                text, settings, *document = request.args
                question = self._question(text, *document)
            images = [repr(key) for key in question.image_keys()]
        return digest([fingerprint, reqtype, question.text, question.answer, images, settings])

    @contextmanager
    def check_images_of_run(self, tasks: Iterable[Any]) -> Iterator[None]:
        """In this block, the first request lets the images of all these tasks' requests be looked at.

        Args:
            tasks: lmms-eval's task objects, which have their requests by then.
        """
        self._tasks_to_check = list(tasks)
        try:
            yield
        finally:
            self._tasks_to_check = None

    def check_images(self, requests: Sequence[Instance]) -> None:
        """Look at the images of these requests, or once at those of the whole run if its tasks are known.

        Raises:
            DataError: Some cannot be used; the message names a document of each.
        """
        if self._tasks_to_check is not None:
            requests = [request for task in self._tasks_to_check for request in task.instances]
            self._tasks_to_check = []
        with_images = [
            request.args for request in requests if request.request_type in _TYPES and len(request.args) >= 6
        ]
        with exit_on_error():
            check_images(
                (self._question("", args[2], *args[-3:]) for args in with_images if args[2] is not None),
                self.vlm.processor,
            )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to every request, in their order."""
        with exit_on_error():
            self.check_images(requests)
            arguments = [request.args for request in requests]
            questions = [self._question(context, *document) for context, _, *document in arguments]
            return self.answer(questions, [dict(settings) for _, settings, *_ in arguments])

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Every request's answers, one per round; the task's `doc_to_text` makes the next or ends it."""
        with exit_on_error(), self.progress(requests) as progress:
            self.check_images(requests)
            return [self._answer_rounds(*request.args, progress=progress) for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Every answer's mean loss per token, and whether it is the greedy answer.

        A loss and not a log-likelihood, since lmms-eval takes the choice with the *smallest* value
        (`docs/harnesses.md#requests`). The loss is the sum over tokens for tasks with `losses: sum` in their
        metadata, such as those that read log-odds.
        """
        with exit_on_error():
            self.check_images(requests)
            questions = [self._scoring_question(*request.args) for request in requests]
            return [
                (loss * self._count_tokens(question) if _wants_sum(request) else loss, is_greedy)
                for request, question, (loss, is_greedy) in zip(
                    requests, questions, self.score(questions), strict=True
                )
            ]

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
        self, text: str, doc_to_visual: Callable[[Any], Any] | None, doc_id: int, task: str, split: str
    ) -> ImageRequest:
        if doc_to_visual is None:  # what lmms-eval's `--cache_requests` leaves of a function
            raise TaskError(f"task {task!r}, document {doc_id}: the request has lost its images")
        documents = self.task_dict[task][split]
        return ImageRequest(text, doc_to_visual, lambda: documents[doc_id], task, doc_id, documents=documents)

    def _scoring_question(
        self, text: str, target: str | Callable[[Any], Any], *document: Any
    ) -> ImageRequest:
        """A question with its answer; without a document where lmms-eval scores the answer alone."""
        if not document:
            return ImageRequest(text, None, dict, "without a document", 0, str(target))
        question = self._question(text, *document)
        answer = target if isinstance(target, str) else str(target(question.document()))
        return dataclasses.replace(question, answer=answer)

    def _count_tokens(self, question: ImageRequest) -> int:
        """How many tokens the answer has; its images come long before it and do not matter."""
        return self.vlm.new_tokens(self.vlm.prompt(question.text), question.answer)


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


def _wants_sum(request: Instance) -> bool:
    """Whether the request's task asks for losses that are sums; lmms-eval copies a task's metadata there."""
    return (request.metadata or {}).get("losses") == "sum"


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
