"""`gated_hf`: lm-eval's own `hf` model with a gate on its attention heads.

`lm_eval --model gated_hf --tasks halueval` runs it on the packaged small model; model_args such as
`pretrained=lmsys/vicuna-7b-v1.5,scores=vicuna.npz,lam=4.5,norm=centered` on any other.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.utils_hf import get_dtype
from transformers import PreTrainedModel

from truthgate_eval.devices import find_device
from truthgate_eval.errors import GateError, ModelError, first_line
from truthgate_eval.gating.gate_arguments import ACTION_ARGUMENTS, GATE_ARGUMENTS
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.cache_keys import gate_state, model_fingerprint
from truthgate_eval.harness.contrast import Contrast, with_contrast
from truthgate_eval.harness.gated_model import GatedModel
from truthgate_eval.harness.lm_eval import patches
from truthgate_eval.harness.lm_eval.contrast import ContextContrast
from truthgate_eval.harness.lm_eval.gated_lm import GatedLM
from truthgate_eval.harness.lm_eval.prefix_sharing import SharedPrefixHF, TokenizedRequest
from truthgate_eval.harness.lm_eval.process_shares import merge_in_order
from truthgate_eval.harness.lm_eval.prompt_divergence import prompt_divergence
from truthgate_eval.harness.model_args import explain_load_errors
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.inference.next_token_divergence import Divergence
from truthgate_eval.inference.not_finite import check_answers
from truthgate_eval.inference.quantization import BITSANDBYTES_OPTIONS, bitsandbytes_config
from truthgate_eval.packaged.models import default_scores, resolve_packaged
from truthgate_eval.packaged.smollm2 import SMOLLM2
from truthgate_eval.processes import join

log = logging.getLogger(__name__)


class GatedHF(GatedLM, GatedModel, SharedPrefixHF):
    """A causal language model of lm-eval whose attention heads are gated.

    Takes every argument of `hf` (peft, quantization, parallelize, ...) and the gate's. Without
    arguments it is the packaged SmolLM2-135M-Instruct with its shipped scores.

    Attributes:
        contrast: The contrast with the context taken away, or None.
        model_name: What `pretrained` says, or a loaded model's class.
    """

    cache_hook: CacheHook

    def __init__(
        self,
        pretrained: str | PreTrainedModel = SMOLLM2,
        *,
        scores: str | TruthScores | None = None,
        lam: float | str | None = None,
        norm: str | None = None,
        site: str | None = None,
        layers: str | int | list[int] | None = None,
        mode: str | None = None,
        device: str | None = None,
        engine: Literal["auto", "off"] = "auto",
        **options: Any,
    ) -> None:
        """Load the model as `hf` does, then gate it.

        Args:
            pretrained: Hub id, folder, a packaged model's name, or a loaded model.
            scores: Truth scores, see `GateConfig.parse`; may be left out only for packaged models.
            lam: Strength of the gate; by default what the scores recommend.
            norm: `minmax`, `centered`, `zscore` or `none`.
            site: `post` or `pre`.
            layers: Layers to gate, such as `8-15`.
            mode: `live` or `folded`.
            device: As in `hf`; by default CUDA if there is one, else the CPU.
            engine: `auto` computes shared prefixes once, `off` computes as `hf` does.
            **options: Every other argument of `hf`; the gate's other ones, `ACTION_ARGUMENTS` (see
                `GateConfig.parse`); and contrast, see `Contrast.parse`.

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why.
        """
        quiet_harness_run("lm_eval")
        patches.install_evaluate_patch()
        scores = default_scores(pretrained, scores)
        if scores is None:
            raise GateError(
                f"pretrained={_name(pretrained)} needs scores: scores=FILE.npz (made by "
                "`truthgate probe`), or scores=none for the model without a gate"
            )
        # The gate is parsed before the model is loaded: a mistake should not cost the minutes of a load.
        action = {name: options.pop(name) for name in ACTION_ARGUMENTS if name in options}
        self.gate_settings = GateConfig.parse(
            scores, lam=lam, norm=norm, site=site, layers=layers, mode=mode, modality="text", **action
        )
        contrast = Contrast.parse({"contrast": options.pop("contrast", None)})
        self.contrast = None if contrast is None else ContextContrast(contrast)
        self.set_engine(engine)
        if self.gate_settings.positions != "all":
            log.info("positions=%s: no prefixes are shared (engine=off)", self.gate_settings.positions)
            self.set_engine("off")
        # What may decide an answer besides the weights, for the keys of lm-eval's answer cache.
        self._hf_options = {k: v for k, v in options.items() if k not in ("batch_size", "max_batch_size")}
        self.model_name = _name(pretrained)
        if isinstance(pretrained, str):
            # lm-eval's command line passes cuda:0 where the user names no device.
            chosen = find_device(device, harness_default="cuda:0")
            if not options.get("tp_plan"):
                join()  # accelerate alone, which `hf` asks, counts processes on CPUs as one
            self._load(resolve_packaged(pretrained, "text"), str(chosen), options)
        else:
            super().__init__(pretrained=pretrained, **options)
        # `hf` takes its rank and their number only with several CUDA devices, and the rank on one machine.
        accelerator = getattr(self, "accelerator", None)
        if accelerator is not None:
            self._rank, self._world_size = accelerator.process_index, accelerator.num_processes
        self.apply_gate()

    def gated_parts(self) -> tuple[Any, Any, str]:
        """See `GatedModel.gated_parts`."""
        return self.model, self.tokenizer, self.model_name

    def divergence(self, requests: Sequence[Instance], count: int) -> Divergence:
        """See `GatedModel.divergence`."""
        return prompt_divergence(self, requests, count, self.processes)

    def _load(self, pretrained: str, device: str, options: dict[str, Any]) -> None:
        """Run `hf`'s constructor, with users' mistakes as our own errors."""
        known = f"{', '.join(GATE_ARGUMENTS)}, contrast, engine and every option of lm-eval's hf"
        model, peft = f"model {self.model_name!r}", options.get("peft")
        with explain_load_errors("gated_hf", known, model):
            try:
                super().__init__(pretrained=pretrained, device=device, **options)
            except (OSError, ValueError) as error:
                if not peft or ("adapter" not in str(error).lower() and str(peft) not in str(error)):
                    raise
                raise ModelError(
                    f"adapter {peft!r} of {model} cannot be loaded: {first_line(error)}"
                ) from error

    def _create_model(
        self, *args: Any, dtype: Any = "auto", quantization_config: Any = None, **options: Any
    ) -> None:
        """Load the weights as `hf` does, with bitsandbytes' options as transformers 5 takes them.

        Raises:
            ModelError: An option is not usable.
        """
        chosen = {name: options.pop(name) for name in BITSANDBYTES_OPTIONS & options.keys()}
        bitsandbytes = bitsandbytes_config(chosen, get_dtype(dtype))
        if bitsandbytes is not None:
            other = next((name for name in ("autogptq", "gptqmodel") if options.get(name)), None)
            if other is not None:
                raise ModelError(f"{other} and bitsandbytes' load_in_4bit or load_in_8bit exclude each other")
            quantization_config = bitsandbytes
        super()._create_model(*args, dtype=dtype, quantization_config=quantization_config, **options)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """See `SharedPrefixHF.loglikelihood`; contrasted where `contrast` says so.

        Raises:
            TaskError: A document's context cannot be taken away.
            ModelError: An answer is NaN (`check_answers`).
        """
        self.see_requests(requests)
        if self.contrast is None:
            answer = super().loglikelihood
            found = answer(requests, disable_tqdm)
            check_answers(self.model, found, lambda i: answer([requests[i]], True))
            return found
        # Answers without the contrast must not enter lm-eval's answer cache under the requests' keys.
        hook, self.cache_hook = self.cache_hook, CacheHook(None)
        try:
            score = functools.partial(super().loglikelihood, disable_tqdm=disable_tqdm)
            return self.contrast.log_likelihoods(requests, score)
        finally:
            self.cache_hook = hook

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See `HFLM.generate_until`.

        Raises:
            TaskError: There is a contrast, which compares log-likelihoods.
        """
        if self.contrast is not None:
            self.contrast.check_requests(requests, "generate_until")
        self.see_requests(requests)
        return super().generate_until(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """See `HFLM.loglikelihood_rolling`.

        Raises:
            GateError: The gate acts on the tokens of an answer only, which a whole document does not have, or
                its strength is to be found on prompts, which it does not have either.
            TaskError: There is a contrast, which a whole document has not.
        """
        if self.contrast is not None:
            self.contrast.check_requests(requests, "loglikelihood_rolling")
        self.check_strength_is_known("whole documents have no prompts")
        if self.gate_settings.positions != "all":
            raise GateError(
                f"positions={self.gate_settings.positions} gates the tokens of an answer, and this task "
                "scores whole documents: use positions=all"
            )
        return super().loglikelihood_rolling(requests, disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: list[TokenizedRequest], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """See `HFLM._loglikelihood_tokens`; a gate of an answer's tokens is told where the answer begins."""
        handle = self.gate_handle
        if handle is None or handle.gate.positions == "all":
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        # Rows of one length have no padding: the answers of a group begin at the same token.
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (_, context, answer) in enumerate(requests):
            groups.setdefault((len(context), len(answer)), []).append(i)
        answers: dict[int, tuple[float, bool]] = {}
        with self._progress_bar(len(requests), disable_tqdm, "loglikelihood") as bar:
            for (_, length), indices in groups.items():
                with handle.scoring(length - 1):  # `hf` does not run an answer's last token
                    group = [requests[i] for i in indices]
                    found = super()._loglikelihood_tokens(group, True, override_bs)
                answers.update(zip(indices, found, strict=True))
                bar.update(len(indices))
        return [answers[i] for i in range(len(requests))]

    def model_key(self) -> str:
        """See `GatedLM.model_key`; the fingerprint of the model as it is now."""
        self.check_strength_is_known("--use_cache needs it before")
        settings = {"engine": self.engine, "versions": version("lm_eval"), **self._hf_options}
        return model_fingerprint(self.model, self.tokenizer, settings)

    def gate_key(self) -> dict[str, Any]:
        """See `GatedLM.gate_key`."""
        contrast = None if self.contrast is None else self.contrast.key()
        return gate_state(self.gate_settings, self.gate_handle, contrast)

    def template_key(self) -> list[Any]:
        """See `GatedLM.template_key`."""
        return [self.tokenizer.chat_template, self.chat_template_args]

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """See `HFLM.gather_object`; what several processes have is in the order of one process's run."""
        gathered = super().gather_object(obj, dst)
        return gathered if gathered is None or self.world_size == 1 else merge_in_order(gathered)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `config` of the results file, with the gate added."""
        contrast = None if self.contrast is None else self.contrast.describe()
        return {
            **super().get_model_info(),
            "model_name": self.model_name,
            "gate": with_contrast(self.gate_settings.describe(), contrast),
        }


def _name(pretrained: str | PreTrainedModel) -> str:
    return pretrained if isinstance(pretrained, str) else type(pretrained).__name__
