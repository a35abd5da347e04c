"""`gated_hf`: lm-eval's own `hf` model with a gate on its attention heads.

`lm_eval --model gated_hf --tasks halueval` runs it on the packaged small model; model_args such as
`pretrained=lmsys/vicuna-7b-v1.5,scores=vicuna.npz,lam=4.5,norm=centered` on any other.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch

from truthgate_eval.errors import GateError, ModelError
from truthgate_eval.gating.gate_config import GATE_ARGUMENTS, GateConfig
from truthgate_eval.harness.lm_eval.prefix_sharing import SharedPrefixHF
from truthgate_eval.packaged.smollm2 import SMOLLM2, resolve_smollm2

log = logging.getLogger(__name__)

SMALL_MODEL_SCORES = "smollm2-135m-instruct__halueval-qa"


class GatedHF(SharedPrefixHF):
    """A causal language model of lm-eval whose attention heads are gated.

    Takes every argument of `hf` (peft, quantisation, parallelize, ...) and the gate's. Without
    arguments it is the packaged SmolLM2-135M-Instruct with its shipped scores.

    Attributes:
        gate_settings: What the model is gated with.
        gate_handle: The live gate, or None where it is folded or there is none.
    """

    def __init__(
        self,
        pretrained: Any = SMOLLM2,
        *,
        scores: Any = None,
        lam: Any = None,
        norm: Any = None,
        site: Any = None,
        layers: Any = None,
        mode: Any = None,
        device: str | None = None,
        engine: Any = "auto",
        **options: Any,
    ) -> None:
        """Load the model as `hf` does, then gate it.

        Args:
            pretrained: Hub id, folder or a loaded model.
            scores: Truth scores, see `GateConfig.read`; may be left out only for the packaged model.
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
        if scores is None:
            if pretrained != SMOLLM2:
                raise GateError(
                    f"pretrained={_name(pretrained)} needs scores: scores=FILE.npz (made by "
                    "`truthgate probe`), or scores=none for the model without a gate"
                )
            scores = SMALL_MODEL_SCORES
        # Read before the model is loaded: a mistake should not cost the minutes that a load takes.
        self.gate_settings = GateConfig.parse(
            scores, lam=lam, norm=norm, site=site, layers=layers, mode=mode, modality="text"
        )
        self.set_engine(engine)
        self.model_name = _name(pretrained)
        if isinstance(pretrained, str):
            self._load(resolve_smollm2(pretrained), _device(device), options)
        else:
            super().__init__(pretrained=pretrained, **options)
        self.gate_handle = self.gate_settings.apply(self.model, self.model_name)

    def _load(self, pretrained: str, device: str, options: dict[str, Any]) -> None:
        """Run `hf`'s constructor; what a user can get wrong becomes one line."""
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
            adapter = peft and ("adapter" in str(error).lower() or str(peft) in str(error))
            what = (
                f"adapter {peft!r} of model {self.model_name!r}" if adapter else f"model {self.model_name!r}"
            )
            raise ModelError(f"{what} cannot be loaded: {_first_line(error)}") from error

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Warn where lm-eval's answer cache is used: it does not know the gate (lm-eval #4063)."""
        super().set_cache_hook(cache_hook)
        if getattr(cache_hook, "dbdict", None) is not None:
            log.warning("--use_cache does not tell gates apart: give every setting a cache file of its own")

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into `config` of the results file, with the gate beside it."""
        return {
            **super().get_model_info(),
            "model_name": self.model_name,
            "gate": self.gate_settings.describe(),
        }


def _name(pretrained: Any) -> str:
    return pretrained if isinstance(pretrained, str) else type(pretrained).__name__


def _device(device: str | None) -> str:
    """`hf` takes device=cuda on faith, and lm-eval's command line always says cuda:0."""
    if torch.cuda.is_available():
        return device or "cuda"
    if device == "cuda":
        raise ModelError("device=cuda, but torch finds no CUDA device here; use device=cpu")
    return device or "cpu"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
