"""The models of the paper (arXiv 2606.15821): their names, and which of them take images."""

from __future__ import annotations

# The paper's name of each model, in the order of its tables, and the hub ids of its checkpoints.
PAPER_MODELS = {
    "vicuna-7b": ("lmsys/vicuna-7b-v1.5",),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B",),
    "llava-1.5-7b": ("llava-hf/llava-1.5-7b-hf", "liuhaotian/llava-v1.5-7b"),
    "llava-next-7b": ("llava-hf/llava-v1.6-vicuna-7b-hf", "liuhaotian/llava-v1.6-vicuna-7b"),
    "qwen2.5-vl-7b-instruct": ("Qwen/Qwen2.5-VL-7B-Instruct",),
    "qwen2.5-omni-7b": ("Qwen/Qwen2.5-Omni-7B",),
}
_MULTIMODAL = ("llava-1.5-7b", "llava-next-7b", "qwen2.5-vl-7b-instruct", "qwen2.5-omni-7b")


def model_name(model: str) -> str:
    """The last part of a hub id or of a folder.

    Example:
        >>> model_name("lmsys/vicuna-7b-v1.5"), model_name("/models/vicuna/")
        ('vicuna-7b-v1.5', 'vicuna')
    """
    return model.rstrip("/").rsplit("/", 1)[-1]


def paper_name(model: str) -> str | None:
    """The paper's name of a model, or None for a model that is not in the paper.

    Args:
        model: A hub id, a folder, or the paper's name.

    Example:
        >>> paper_name("/models/llava-v1.5-7b"), paper_name("gpt2")
        ('llava-1.5-7b', None)
    """
    wanted = model_name(model).lower()
    for name, ids in PAPER_MODELS.items():
        if wanted in {name, *(model_name(known).lower() for known in ids)}:
            return name
    return None


def is_multimodal(name: str) -> bool:
    """Whether the model with this name in the paper takes images."""
    return name in _MULTIMODAL


def is_same_model(first: str, second: str) -> bool:
    """Whether two hub ids or folders mean one model.

    Example:
        >>> is_same_model("llava-hf/llava-1.5-7b-hf", "/models/llava-v1.5-7b")
        True
    """
    one, two = model_name(first).lower(), model_name(second).lower()
    return one == two or (paper_name(one) is not None and paper_name(one) == paper_name(two))
