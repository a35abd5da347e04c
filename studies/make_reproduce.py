"""Write docs/reproduce.md: the commands for every model of the paper, with computed memory and time.

    python studies/make_reproduce.py

Parameters are counted on the models' real configurations, without weights. Nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reproduce.md"
FLOPS = 0.4 * 312e12  # 40 % of an A100's peak in bfloat16
# Tokens of a sequence or prompt without its image, and how many sequences are run. HaluEval's means are those of
# SmolLM2's tokenizer on its first 2,000 questions; an answer of up to 8 tokens is counted with its prompt.
PROBE_TEXT, HALUEVAL_TEXT, POPE_TEXT, IMAGE_TEXT = 137, 190, 50, 40
HALUEVAL, POPE, PHD, RLHF_V = 9_708, 27_000, 10_000, 2_726

_LLAMA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
_CLIP = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 336, "patch_size": 14,
}  # fmt: skip
_QWEN = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN_SEES = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584}
_ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


@dataclass(frozen=True)
class Model:
    """A model of the paper: its names, its configuration, and the settings published for it.

    Attributes:
        title: The page's heading for it.
        hub: Its hub id.
        harness_model: Our lmms-eval model, or None for a language model.
        build: Its class and configuration.
        image_tokens: Of a COCO photograph (640 x 480).
        file: Name of its artifacts.
        base: Artifact of the base model, or None.
        text: (lam, norm) of the paper's text.
        code: (lam with the base's scores, lam with its own) of the released code, None where it has none.
    """

    title: str
    hub: str
    harness_model: str | None
    build: tuple[Any, Any]
    image_tokens: int
    file: str
    base: str | None
    text: tuple[float, str] | None
    code: tuple[float | None, float | None]

    @property
    def parameters(self) -> int:
        """Counted on a model without weights."""
        cls, config = self.build
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in cls(config).parameters())


def _clip_llava(config: Any) -> Any:
    return config(
        vision_config=hf.CLIPVisionConfig(**_CLIP), text_config=hf.LlamaConfig(vocab_size=32064, **_LLAMA)
    )


def _models() -> list[Model]:
    qwen_text = {**_QWEN, "rope_parameters": _ROPE}
    vl = hf.Qwen2_5_VLConfig(text_config=qwen_text, vision_config=_QWEN_SEES)
    omni = hf.Qwen2_5OmniThinkerConfig(text_config=qwen_text, vision_config=_QWEN_SEES)
    llama = (hf.LlamaForCausalLM, hf.LlamaConfig(vocab_size=32000, **_LLAMA))
    mistral = (hf.MistralForCausalLM, hf.MistralConfig(vocab_size=32768))
    llava = (hf.LlavaForConditionalGeneration, _clip_llava(hf.LlavaConfig))
    llava_next = (hf.LlavaNextForConditionalGeneration, _clip_llava(hf.LlavaNextConfig))
    qwen_vl = (hf.Qwen2_5_VLForConditionalGeneration, vl)
    qwen_omni = (hf.Qwen2_5OmniThinkerForConditionalGeneration, omni)
    qwen = (hf.Qwen2ForCausalLM, hf.Qwen2Config(**_QWEN))
    return [
        Model("Vicuna-7B", "lmsys/vicuna-7b-v1.5", None, llama, 0, "vicuna", None, (4.5, "centered"), (4.5, None)),
        Model("LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", "gated_llava", llava, 576, "llava15", "vicuna",
              (0.1, "minmax"), (0.2, 0.1)),
        Model("LLaVA-NeXT-7B (Vicuna)", "llava-hf/llava-v1.6-vicuna-7b-hf", "gated_llava_next", llava_next, 2340,
              "llava-next", "vicuna", (0.3, "minmax"), (0.2, 0.1)),
        Model("Qwen2.5-7B", "Qwen/Qwen2.5-7B", None, qwen, 0, "qwen25", None, (7.5, "centered"), (6.0, None)),
        Model("Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "gated_qwen2_5_vl", qwen_vl, 391, "qwen25-vl",
              "qwen25", (0.3, "minmax"), (0.3, 0.3)),
        Model("Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-7B", "gated_qwen2_5_omni", qwen_omni, 391, "qwen25-omni",
              "qwen25", (0.3, "minmax"), (0.3, 0.3)),
        Model("Mistral-7B", "mistralai/Mistral-7B-v0.3", None, mistral, 0, "mistral", None, None, (None, None)),
    ]  # fmt: skip


def cost(model: Model, parameters: int, sequences: int, tokens: int) -> str:
    """Weights and the keys and values of a batch of 8, and the time of one pass over all sequences."""
    text = model.build[1].get_text_config()
    width = text.hidden_size // text.num_attention_heads
    cache = 8 * tokens * 2 * text.num_hidden_layers * text.num_key_value_heads * width * 2
    memory = (2 * parameters + cache) / 1e9
    minutes = 2 * parameters * tokens * sequences / FLOPS / 60
    return f"{memory:.0f} GB, {minutes:.0f} min" if minutes >= 1 else f"{memory:.0f} GB, under a minute"


def language_model(model: Model) -> Iterator[str]:
    """A language model's commands."""
    parameters, loaded = model.parameters, f"pretrained={model.hub},dtype=bfloat16"
    probe = f"truthgate probe --model hf --model_args {loaded}"
    yield f"## {model.title}\n\n`{model.hub}`, {parameters / 1e9:.2f} billion parameters. *Not run here.*\n"
    yield "Scores for gating, from 292 questions (heat maps: figures 1a and 2):\n"
    yield block(
        f"{probe} --tasks probe_halueval_qa --limit 292 --output {model.file}.npz",
        f"truthgate show {model.file}.npz --plot {model.file}.png",
    )
    yield f"{cost(model, parameters, 584, PROBE_TEXT)}. Scores for the analysis (figures 1b, 1c and 3):\n"
    yield block(
        f"{probe} --tasks probe_halueval_qa --limit 5000 --output {model.file}-halueval.npz",
        f"{probe} --tasks probe_phd_text --limit 5000 --output {model.file}-phd.npz",
    )
    yield f"{cost(model, parameters, 10_000, PROBE_TEXT)} each.\n"
    if model.text is None:
        return
    metadata = f'--metadata \'{{"exclude_rows_of": "{model.file}.npz"}}\''
    evaluate = f"lm_eval --model gated_hf --tasks halueval_qa --batch_size 8 --log_samples {metadata}"
    lam, norm = model.text
    gates = {"vanilla": "scores=none", "text": f"scores={model.file}.npz,lam={lam:g},norm={norm}"}
    if model.code[0] is not None:
        gates["code"] = f"scores={model.file}-pre.npz,lam={model.code[0]:g},norm={norm},site=post"
    yield (
        "HaluEval, vanilla, gated with the text's setting, and with the released code's, which probes the input of "
        "the output projection in five folds over sequences:\n"
    )
    yield block(
        f"{probe} --tasks probe_halueval_qa --limit 292 --site pre --split sequence --output {model.file}-pre.npz",
        *(
            f"{evaluate} --model_args {loaded},{gate} --output_path runs/{model.file}/{name}"
            for name, gate in gates.items()
        ),
        f"truthgate compare runs/{model.file}/vanilla runs/{model.file}/text runs/{model.file}/code",
    )
    yield f"{cost(model, parameters, HALUEVAL, HALUEVAL_TEXT)} a run.\n"


def multimodal_model(model: Model) -> Iterator[str]:
    """A multimodal model's commands."""
    parameters, loaded = model.parameters, "dtype=bfloat16"
    probe = f"truthgate probe --model {model.harness_model} --model_args {loaded}"
    tokens = model.image_tokens + IMAGE_TEXT
    yield (
        f"## {model.title}\n\n`{model.hub}`, {parameters / 1e9:.2f} billion parameters, about {model.image_tokens} "
        "tokens a photograph. *Not run here.*\n"
    )
    yield "Its own scores for gating, and scores for the analysis: text alone, a black image, and images.\n"
    yield block(
        f"{probe} --tasks probe_rlhf_v --format authors --output {model.file}.npz",
        f"{probe} --tasks probe_minimal_pairs --format authors --output {model.file}-minimal.npz",
        f"{probe} --tasks probe_halueval_qa --limit 5000 --image none --output {model.file}-text.npz",
        f"{probe} --tasks probe_halueval_qa --limit 5000 --image black --output {model.file}-black.npz",
        f"{probe} --tasks probe_phd_image --format authors --limit 5000 --output {model.file}-phd.npz",
        f"truthgate show {model.file}.npz --plot {model.file}.png",
    )
    yield (
        f"RLHF-V: {cost(model, parameters, 2 * RLHF_V, tokens)}; PhD: {cost(model, parameters, PHD, tokens)}; text alone: "
        f"{cost(model, parameters, 10_000, PROBE_TEXT)}.\n"
    )
    assert model.text is not None
    lam, norm = model.text
    gates = {
        "vanilla": "scores=none",
        "llm": f"scores={model.base}.npz,lam={lam:g},norm={norm}",
        "mllm": f"scores={model.file}.npz,lam={lam:g},norm={norm}",
        **{f"random-{seed}": f"scores=random:{seed}" for seed in (1, 2, 3)},
    }
    own = {"code-llm": (model.base, model.code[0]), "code-mllm": (model.file, model.code[1])}
    changed = {name: pair for name, pair in own.items() if pair[1] != lam}
    gates |= {name: f"scores={file}.npz,lam={value:g},norm={norm}" for name, (file, value) in changed.items()}
    evaluate = f"lmms_eval --model {model.harness_model} --tasks pope_all --batch_size 8 --log_samples"
    yield (
        "POPE: vanilla, gated by the base's scores, by its own, and by three random gates"
        + ("; `code-` runs have the released code's lam where it differs" if changed else "")
        + ":\n"
    )
    yield block(
        *(
            f"{evaluate} --model_args {loaded},{gate} --output_path runs/{model.file}/{name}"
            for name, gate in gates.items()
        ),
        "truthgate compare " + " ".join(f"runs/{model.file}/{name}" for name in gates),
    )
    yield f"{cost(model, parameters, POPE, model.image_tokens + POPE_TEXT)} a run, without sharing of images or prefixes.\n"


def block(*commands: str) -> str:
    """A console block; long commands are broken into lines."""
    return "```console\n" + "".join(f"$ {wrapped(command)}\n" for command in commands) + "```\n"


def wrapped(command: str) -> str:
    """Broken between words, never between an option and its value."""
    lines, line = [], ""
    for unit in re.findall(r"--\S+(?: (?!--)(?:'[^']*'|\S+))?|\S+", command):
        if line and len(line) + len(unit) > 96:
            lines.append(line)
            line = "    "
        line += unit if not line.strip() else f" {unit}"
    return " \\\n".join([*lines, line])


HEAD = """# Reproduce the paper

The commands for every model of the paper, by `studies/make_reproduce.py`. **None of them was run here**: this project was
built on a machine without a GPU and without the hub. The test suite runs the same code on small models of the same
classes. `truthgate compare` shows the paper's figures beside measured ones, in rows marked *published*.

Memory is the weights in bfloat16 and the keys and values of a batch of 8; leave a few gigabytes for activations. Time
is 2 x parameters x tokens at 40 % of an A100's bfloat16 peak, for one pass over every sequence without shared prefixes: an
upper bound with shared prefixes, a lower bound for small batches. The paper reports 10 to 20 minutes to probe a
language model on about 10,000 sequences, and 30 to 40 minutes for a multimodal one, on one A6000.

## Data

```console
$ truthgate data phd --json data.json --images COCO
$ truthgate data rlhf-v
$ truthgate data minimal-pairs --rewriter local --model Qwen/Qwen2.5-VL-7B-Instruct
$ truthgate data pope --questions POPE --images COCO/val2014 --images GQA/images
```

HaluEval comes with the installation. The authors' own sequences (JSON lines) can be given to `truthgate data phd`, to
`truthgate data rlhf-v --parquet`, or to `truthgate probe --sequences FILE --images DIR`.

"""
CORRELATE = (
    "truthgate correlate Vicuna/base=vicuna-halueval.npz Vicuna/llava=llava15-text.npz Vicuna/next=llava-next-text.npz "
    "Mistral/base=mistral-halueval.npz --plot text.png --csv text.csv",
    "truthgate correlate Vicuna/base=vicuna-halueval.npz Vicuna/llava=llava15-black.npz Vicuna/next=llava-next-black.npz "
    "--plot black.png",
    "truthgate correlate Vicuna/base=vicuna-phd.npz Vicuna/llava=llava15-phd.npz Vicuna/own=llava15.npz --plot datasets.png",
    "truthgate correlate Qwen/base=qwen25-halueval.npz Qwen/vl=qwen25-vl-text.npz Qwen/omni=qwen25-omni-text.npz "
    "--plot qwen.png",
    "truthgate correlate vicuna.npz llava15.npz --scatter pair.png --heat-maps maps.png",
)
SWEEP = (
    "truthgate sweep vicuna.npz --model_args pretrained=lmsys/vicuna-7b-v1.5,dtype=bfloat16 --lam 0.5,1,2,4.5,7.5 "
    "--norm centered,minmax --random 3",
    "truthgate sweep llava15.npz --model gated_llava --model_args dtype=bfloat16 --tasks pope_coco "
    "--lam 0.05,0.1,0.2,0.3 --norm minmax --random 3",
)


def main() -> None:
    """Write the page."""
    parts = [
        part
        for model in _models()
        for part in (multimodal_model if model.harness_model else language_model)(model)
    ]
    tail = [
        "## Correlations\n\nFigures 1b, 1c and 3: text alone, a black image, other data, the other family, two models head by "
        f"head.\n\n{block(*CORRELATE)}",
        f"## Choosing lam and norm\n\nThe grid search on a held-out fifth, with the choice evaluated on the other documents:\n\n{block(*SWEEP)}",
    ]
    PAGE.write_text(HEAD + "\n".join([*parts, *tail]), encoding="utf-8")


if __name__ == "__main__":
    main()
