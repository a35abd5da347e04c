"""`gated_hf`: lm-eval's own `hf` model with a gate on its attention heads.

`lm_eval --model gated_hf --tasks halueval` runs it on the packaged small model; model_args such as
`pretrained=lmsys/vicuna-7b-v1.5,scores=vicuna.npz,lam=4.5,norm=centered` on any other.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

from transformers import PreTrainedModel

from truthgate_eval.devices import find_device
from truthgate_eval.errors import GateError, ModelError, first_line
from truthgate_eval.gating.gate_config import GATE_ARGUMENTS, GateConfig
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.harness.lm_eval.prefix_sharing import SharedPrefixHF
from truthgate_eval.harness.quiet import quiet_harness_run
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

log = logging.getLogger(__name__)

SMOLLM2_SCORES = "smollm2-135m-instruct__halueval-qa"


class GatedHF(SharedPrefixHF):
    """A causal language model of lm-eval whose attention heads are gated.

    Takes every argument of `hf` (peft, quantization, parallelize, ...) and the gate's. Without
    arguments it is the packaged SmolLM2-135M-Instruct with its shipped scores.

    Attributes:
        gate_settings: The gate's configuration.
        gate_handle: The live gate, or None where it is folded or there is none.
        model_name: What `pretrained` says, or a loaded model's class.
    """

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
            pretrained: Hub id, folder or a loaded model.
            scores: Truth scores, see `GateConfig.parse`; may be left out only for the packaged model.
            lam: Strength of the gate; by default what the scores recommend.
            norm: `minmax`, `centered`, `zscore` or `none`.
            site: `post` or `pre`.
            layers: Layers to gate, such as `8-15`.
            mode: `live` or `folded`.
            device: As in `hf`; by default CUDA if there is one, else the CPU.
            engine: `auto` computes shared prefixes once, `off` computes as `hf` does.
            **options: Every other argument of `hf`.

        Raises:
            TruthGateError: An argument, the scores or the model is not usable; one line says why.
        """
        quiet_harness_run("lm_eval")
        if scores is None:
            if pretrained != SMOLLM2:
                raise GateError(
                    f"pretrained={_name(pretrained)} needs scores: scores=FILE.npz (made by "
                    "`truthgate probe`), or scores=none for the model without a gate"
                )
            scores = SMOLLM2_SCORES
        # The gate is parsed before the model is loaded: a mistake should not cost the minutes of a load.
        self.gate_settings = GateConfig.parse(
            scores, lam=lam, norm=norm, site=site, layers=layers, mode=mode, modality="text"
        )
        self.set_engine(engine)
        self.model_name = _name(pretrained)
        if isinstance(pretrained, str):
            # lm-eval's command line passes cuda:0 where the user names no device.
            chosen = find_device(device, harness_default="cuda:0")
            self._load(resolve_smollm2(pretrained), str(chosen), options)
        else:
            super().__init__(pretrained=pretrained, **options)
        self.gate_handle = self.gate_settings.apply(self.model, self.model_name)

    def _load(self, pretrained: str, device: str, options: dict[str, Any]) -> None:
        """Run `hf`'s constructor, with users' mistakes as our own errors."""
        try:
            super().__init__(pretrained=pretrained, device=device, **options)
        except TypeError as error:
            unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if unknown is None:
                raise
            raise GateError(
                f"unknown option {unknown[1]!r}: gated_hf takes {', '.join((*GATE_ARGUMENTS, 'engine'))} "
                "and every option of lm-eval's hf"
            ) from error
        except (OSError, ValueError) as error:
            peft = options.get("peft")
            names_adapter = "adapter" in str(error).lower() or str(peft) in str(error)
            model = f"model {self.model_name!r}"
            what = f"adapter {peft!r} of {model}" if peft and names_adapter else model
            raise ModelError(f"{what} cannot be loaded: {first_line(error)}") from error

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Warn where lm-eval's answer cache is used: it does not tell gates apart.

        See lm-eval's issue #4063 and `docs/harnesses.md#caches`.
        """
        super().set_cache_hook(cache_hook)
        if getattr(cache_hook, "dbdict", None) is not None:
            log.warning("--use_cache does not tell gates apart: give every setting a cache file of its own")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `config` of the results file, with the gate added."""
        return {
            **super().get_model_info(),
            "model_name": self.model_name,
            "gate": self.gate_settings.describe(),
        }


def _name(pretrained: str | PreTrainedModel) -> str:
    return pretrained if isinstance(pretrained, str) else type(pretrained).__name__
