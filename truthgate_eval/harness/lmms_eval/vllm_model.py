"""`gated_vllm`: lmms-eval's own `vllm` models with a gate in their weights.

`lmms_eval --model gated_vllm --model_args model=Qwen/Qwen2.5-VL-7B-Instruct,scores=qwen.npz,lam=0.3 --tasks
pope` runs Qwen2.5-VL with the truth scores of Qwen2.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from lmms_eval.models.chat.vllm import VLLM as ChatVLLM
from lmms_eval.models.simple.vllm import VLLM as SimpleVLLM
from lmms_eval.utils import simple_parse_args_string

from truthgate_eval.errors import ModelError
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS, is_missing
from truthgate_eval.harness.command_line import exit_on_error
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS
from truthgate_eval.harness.lmms_eval import patches
from truthgate_eval.harness.model_args import explain_load_errors
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.harness.vllm import (
    ENGINE_ERRORS,
    check_vllm_is_installed,
    engine_options,
    make_engine_gate,
)


class _GatedVLLM:
    """What is gated in lmms-eval's two vLLM classes: everything but how they ask.

    Attributes:
        gate_settings: The gate's configuration.
    """

    client: Any

    def __init__(self, model: str | None = None, *, pretrained: str | None = None, **arguments: Any) -> None:
        """Check the gate, load the model as lmms-eval does, then fold the gate.

        Args:
            model: Hub id or folder, as lmms-eval's `vllm` calls it.
            pretrained: The same under the name that the other models have.
            **arguments: The gate's, `GATE_ARGUMENTS` (see `GateConfig.parse`), and every argument of
                lmms-eval's `vllm`.

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why. On
                lmms-eval's command line the program ends with that line and status 1.
        """
        quiet_harness_run("lmms_eval")
        with exit_on_error():
            check_vllm_is_installed("lmms_eval")
            self._load(_model_name(model, pretrained), arguments)
        patches.install_evaluate_patch()

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str | Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Any:
        """Make the model of `--model_args`.

        Args:
            arg_string: `--model_args`, as text or as a mapping.
            additional_config: lmms-eval's own flags, such as `--batch_size`; model_args win over them.
        """
        given = simple_parse_args_string(arg_string) if isinstance(arg_string, str) else dict(arg_string)
        flags = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**flags, **given})

    def _load(self, name: str, arguments: dict[str, Any]) -> None:
        own = {key: arguments.pop(key) for key in (*GATE_ARGUMENTS, *CONTRAST_ARGUMENTS) if key in arguments}
        revision = arguments.get("revision")
        arguments.setdefault("trust_remote_code", False)  # lmms-eval's default is True
        self._gate = make_engine_gate(
            name,
            own,
            modality="image",
            revision=None if is_missing(revision) else str(revision),
            trust_remote_code=str(arguments["trust_remote_code"]) in ("True", "true", "1"),
        )
        self.gate_settings = self._gate.settings
        options = engine_options(arguments, self._gate)
        load: Any = super().__init__  # of one of lmms-eval's classes
        known = f"{', '.join(GATE_ARGUMENTS)} and every option of lmms-eval's vllm"
        with explain_load_errors("gated_vllm", known, f"model {name!r}", ENGINE_ERRORS):
            load(model=self._gate.source.location, **options)
        self._gate.fold(self.client)

    def get_model_info(self) -> dict[str, Any]:
        """What the results file says of the model and its gate; see `patches.install_evaluate_patch`."""
        import vllm

        source = self._gate.source
        packages = ("lmms_eval", "transformers", "torch")
        info = {
            "pretrained": source.name,
            "class": type(self).__name__,
            "revision": source.revision,
            "sha": source.commit,
            "dtype": str(self.client.llm_engine.model_config.dtype),
            "versions": {"vllm": str(vllm.__version__), **{name: version(name) for name in packages}},
        }
        return {"model_info": info, "gate": self._gate.describe()}

    # What `patches` asks a gated model in a run.

    def start_run(self) -> None:
        """A run begins; there is no strength to be found."""

    def check_contrast(self, tasks: Iterable[tuple[str, str]]) -> None:
        """There is no contrast.

        Args:
            tasks: Not read.
        """

    def check_images_of_run(self, _tasks: Iterable[Any]) -> Any:
        """No image is looked at beforehand: vLLM prepares them itself.

        Args:
            _tasks: Not read.
        """
        return nullcontext()

    @contextmanager
    def system_instruction_of_run(self, text: str | None) -> Iterator[None]:
        """lmms-eval's `--system_instruction`, which its `vllm` would put into the question.

        Args:
            text: None, or the instruction.

        Raises:
            ModelError: There is one.
        """
        with exit_on_error():
            if text:
                raise ModelError(
                    "gated_vllm takes no --system_instruction: put it into a file with the chat template, "
                    "chat_template=FILE"
                )
        yield

    def fingerprint(self) -> str:
        """lmms-eval's response cache, `--use_cache`, whose keys would not see the images.

        Raises:
            ModelError: Always.
        """
        with exit_on_error():
            raise ModelError("gated_vllm keeps no answers: leave --use_cache out")


class GatedChatVLLM(_GatedVLLM, ChatVLLM):
    """lmms-eval's `vllm` of the chat interface, gated."""

    is_simple = False


class GatedSimpleVLLM(_GatedVLLM, SimpleVLLM):
    """lmms-eval's `vllm` of the simple interface (`--force_simple`), gated."""

    is_simple = True


def _model_name(model: str | None, pretrained: str | None) -> str:
    names = [name for name in (model, pretrained) if not is_missing(name)]
    if len(set(names)) != 1:
        given = "none is given" if not names else "two are given"
        raise ModelError(f"gated_vllm needs one model, and {given}: add model=HUB_ID_OR_FOLDER")
    return str(names[0])
