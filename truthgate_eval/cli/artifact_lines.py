"""What `probe` and `show` say of an artifact in words: its format, its model's own answers, and warnings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from truthgate_eval.gating.scores import TruthScores

_FORMATS = {"task": "as the task asks", "authors": "the authors' plain one"}


def describe_format(metadata: dict[str, Any]) -> str | None:
    """How the model was asked; None where the artifact does not say it.

    Example:
        >>> describe_format({"format": "task", "chat_template": True, "answer_words": ["Yes", "No"]})
        'as the task asks, in the chat template; answers Yes, No'
        >>> describe_format({"format": "authors"})
        "the authors' plain one"
    """
    if "format" not in metadata:
        return None
    text = _FORMATS.get(metadata["format"], str(metadata["format"]))
    if metadata.get("chat_template"):
        text += ", in the chat template"
    words = metadata.get("answer_words")
    return f"{text}; answers {', '.join(words)}" if words else text


def describe_own_answers(metadata: dict[str, Any]) -> str | None:
    """How well the model itself does on the probed documents; None where the artifact does not say it.

    Example:
        >>> own = {"documents": 100, "accuracy": 0.83, "log_probability": -0.41, "words": -0.02}
        >>> describe_own_answers({"own_answers": own})
        '83 % right on 100 documents; mean log-probability of the right answer -0.41 (of a probed word: 98 %)'
    """
    from truthgate_eval.probing.own_answers import format_chance

    own = metadata.get("own_answers")
    if not own:
        return None
    parts = []
    if "accuracy" in own:
        parts.append(f"{100 * own['accuracy']:.0f} % right on {own['documents']} documents")
    if "log_probability" in own:
        parts.append(f"mean log-probability of the right answer {own['log_probability']:.2f}")
    text = "; ".join(parts)
    return f"{text} (of a probed word: {format_chance(own['words'])})" if "words" in own else text


def warnings_of(scores: TruthScores) -> list[str]:
    """One line for each reason not to read the scores as they stand."""
    from truthgate_eval.analysis.heads.chance import chance_warning
    from truthgate_eval.probing.own_answers import unlikely_answers

    found = chance_warning(scores), unlikely_answers(scores.metadata)
    return [f"warning: {text}" for text in found if text]
