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
_MISTRAL = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
_QWEN3 = {
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN3_SEES = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096}
# The divergence from the vanilla model, in nats, where no lam is published.
EQUAL_STRENGTH = 0.02


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
        text: (lam, norm) of the paper's text; None where this project has no published one.
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


def _clip_llava(config: Any, text: Any = None) -> Any:
    text = text or hf.LlamaConfig(vocab_size=32064, **_LLAMA)
    return config(vision_config=hf.CLIPVisionConfig(**_CLIP), text_config=text)


def _models() -> list[Model]:
    qwen_text = {**_QWEN, "rope_parameters": _ROPE}
    vl = hf.Qwen2_5_VLConfig(text_config=qwen_text, vision_config=_QWEN_SEES)
    omni = hf.Qwen2_5OmniThinkerConfig(text_config=qwen_text, vision_config=_QWEN_SEES)
    llama = (hf.LlamaForCausalLM, hf.LlamaConfig(vocab_size=32000, **_LLAMA))
    mistral = (hf.MistralForCausalLM, hf.MistralConfig(vocab_size=32768, **_MISTRAL))
    mistral_2 = (hf.MistralForCausalLM, hf.MistralConfig(vocab_size=32000, **_MISTRAL))
    llava = (hf.LlavaForConditionalGeneration, _clip_llava(hf.LlavaConfig))
    llava_next = (hf.LlavaNextForConditionalGeneration, _clip_llava(hf.LlavaNextConfig))
    qwen_vl = (hf.Qwen2_5_VLForConditionalGeneration, vl)
    qwen_omni = (hf.Qwen2_5OmniThinkerForConditionalGeneration, omni)
    qwen = (hf.Qwen2ForCausalLM, hf.Qwen2Config(**_QWEN))
    next_text = hf.MistralConfig(vocab_size=32064, **_MISTRAL)
    next_mistral = (hf.LlavaNextForConditionalGeneration, _clip_llava(hf.LlavaNextConfig, next_text))
    qwen3 = (hf.Qwen3ForCausalLM, hf.Qwen3Config(**_QWEN3))
    vl3 = hf.Qwen3VLConfig(text_config=_QWEN3, vision_config=_QWEN3_SEES, tie_word_embeddings=False)
    qwen3_vl = (hf.Qwen3VLForConditionalGeneration, vl3)
    intern_text = hf.Qwen2Config(**{**_QWEN, "vocab_size": 151674})
    intern = (
        hf.InternVLForConditionalGeneration,
        hf.InternVLConfig(text_config=intern_text, tie_word_embeddings=False),
    )
    none = (None, None)
    return [
        Model("Llama-2-7B", "meta-llama/Llama-2-7b-hf", None, llama, 0, "llama2", None, None, none),
        Model("Vicuna-7B", "lmsys/vicuna-7b-v1.5", None, llama, 0, "vicuna", "llama2", (4.5, "centered"), (6.0, 4.5)),
        Model("LLaVA-1.5-7B", "llava-hf/llava-1.5-7b-hf", "gated_llava", llava, 576, "llava15", "vicuna",
              (0.1, "minmax"), (0.2, 0.1)),
        Model("LLaVA-NeXT-7B (Vicuna)", "llava-hf/llava-v1.6-vicuna-7b-hf", "gated_llava_next", llava_next, 2340,
              "llava-next", "vicuna", (0.3, "minmax"), (0.2, 0.1)),
        Model("Qwen2.5-7B", "Qwen/Qwen2.5-7B", None, qwen, 0, "qwen25", None, (7.5, "centered"), (None, 6.0)),
        Model("Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "gated_qwen2_5_vl", qwen_vl, 391, "qwen25-vl",
              "qwen25", (0.3, "minmax"), (0.3, 0.3)),
        Model("Qwen2.5-Omni-7B", "Qwen/Qwen2.5-Omni-7B", "gated_qwen2_5_omni", qwen_omni, 391, "qwen25-omni",
              "qwen25", (0.3, "minmax"), (0.3, 0.3)),
        Model("InternVL3-8B", "OpenGVLab/InternVL3-8B-hf", "gated_vlm", intern, 3328, "internvl3", "qwen25", None, none),
        Model("Qwen3-8B", "Qwen/Qwen3-8B", None, qwen3, 0, "qwen3", None, None, none),
        Model("Qwen3-VL-8B-Instruct", "Qwen/Qwen3-VL-8B-Instruct", "gated_vlm", qwen3_vl, 300, "qwen3-vl", "qwen3",
              None, none),
        Model("Mistral-7B", "mistralai/Mistral-7B-v0.3", None, mistral, 0, "mistral", None, None, none),
        Model("Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2", None, mistral_2, 0, "mistral-instruct",
              None, None, none),
        Model("LLaVA-NeXT-7B (Mistral)", "llava-hf/llava-v1.6-mistral-7b-hf", "gated_vlm", next_mistral, 2340,
              "llava-next-mistral", "mistral-instruct", None, none),
    ]  # fmt: skip


def cost(model: Model, parameters: int, sequences: int, tokens: int) -> str:
    """Weights and the keys and values of a batch of 8, and the time of one pass over all sequences."""
    text = model.build[1].get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
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
    of_code = {"code-base": (model.base, model.code[0]), "code": (model.file, model.code[1])}
    gates |= {
        name: f"scores={file}-pre.npz,lam={value:g},norm={norm},site=post"
        for name, (file, value) in of_code.items()
        if value is not None
    }
    yield (
        "HaluEval, vanilla, gated with the text's setting, and with the released code's, which probes the input of "
        "the output projection in five folds over sequences"
        + (f"; `code-base` has the scores of its base, {model.base}" if model.base else "")
        + ":\n"
    )
    as_the_code = "--tasks probe_halueval_qa --limit 292 --site pre --split sequence"
    base = next((own for own in _models() if own.file == model.base), None)
    of_base = (
        f"truthgate probe --model hf --model_args pretrained={base.hub},dtype=bfloat16" if base else None
    )
    yield block(
        *([f"{of_base} {as_the_code} --output {model.base}-pre.npz"] if of_base else []),
        f"{probe} {as_the_code} --output {model.file}-pre.npz",
        *(
            f"{evaluate} --model_args {loaded},{gate} --output_path runs/{model.file}/{name}"
            for name, gate in gates.items()
        ),
        "truthgate compare " + " ".join(f"runs/{model.file}/{name}" for name in gates),
    )
    yield f"{cost(model, parameters, HALUEVAL, HALUEVAL_TEXT)} a run.\n"


def multimodal_model(model: Model) -> Iterator[str]:
    """A multimodal model's commands."""
    parameters, loaded = model.parameters, "dtype=bfloat16"
    if model.harness_model == "gated_vlm":
        loaded = f"pretrained={model.hub},{loaded}"
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
    gates, which = pope_gates(model)
    evaluate = f"lmms_eval --model {model.harness_model} --tasks pope_all --batch_size 8 --log_samples"
    yield f"POPE: vanilla, gated by the base's scores, by its own, {which}:\n"
    yield block(
        *(
            f"{evaluate} --model_args {loaded},{gate} --output_path runs/{model.file}/{name}"
            for name, gate in gates.items()
        ),
        "truthgate compare " + " ".join(f"runs/{model.file}/{name}" for name in gates),
    )
    yield f"{cost(model, parameters, POPE, model.image_tokens + POPE_TEXT)} a run, without sharing of images or prefixes.\n"


def pope_gates(model: Model) -> tuple[dict[str, str], str]:
    """The gates of a multimodal model's runs by name, and what the page says of them."""
    files = {"llm": model.base, "mllm": model.file}
    if model.text is None:
        strength = f"lam=kl:{EQUAL_STRENGTH:g},norm=centered"
        gates = {name: f"scores={file}.npz,{strength}" for name, file in files.items()}
        gates["shuffled"] = f"scores=shuffled:{model.base}.npz:1,{strength}"
        gates["random-1"] = f"scores=random:1,{strength}"
        which = (
            "by the base's shuffled within layers, and by a random gate; no lam is published, so all are found at "
            f"[one divergence](method.md#equal-strength), {EQUAL_STRENGTH:g} nats"
        )
        return {"vanilla": "scores=none", **gates}, which
    lam, norm = model.text
    gates = {name: f"scores={file}.npz,lam={lam:g},norm={norm}" for name, file in files.items()}
    gates |= {f"random-{seed}": f"scores=random:{seed}" for seed in (1, 2, 3)}
    own = {"code-llm": (model.base, model.code[0]), "code-mllm": (model.file, model.code[1])}
    changed = {name: pair for name, pair in own.items() if pair[1] != lam}
    gates |= {name: f"scores={file}.npz,lam={value:g},norm={norm}" for name, (file, value) in changed.items()}
    which = "and by three random gates"
    if changed:
        which += "; `code-` runs have the released code's lam where it differs"
    return {"vanilla": "scores=none", **gates}, which


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
classes. `truthgate compare` shows the paper's figures beside measured ones, in rows marked *published*. The published
version adds the lineages of Llama-2, Mistral, Qwen3-VL and InternVL3; which checkpoints of the last three it means is our
reading.

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
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The page, with parameters counted anew."""
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
    return HEAD + "\n".join([*parts, *tail])


if __name__ == "__main__":
    main()
