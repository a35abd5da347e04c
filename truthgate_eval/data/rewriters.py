"""Vision-language models that give a rejected answer the sentence structure of the chosen one."""

from __future__ import annotations

import base64
import mimetypes
import os
from pathlib import Path
from typing import Any

from truthgate_eval.data.images import open_image
from truthgate_eval.data.minimal_pairs import AnswerPair, Rewriter
from truthgate_eval.errors import ModelError
from truthgate_eval.files import read_bounded

_MAX_IMAGE_BYTES = 64 << 20
_MAX_NEW_TOKENS = 256
_INSTRUCTION = """\
Below are a question about the image, a correct answer and a wrong answer. Rewrite the wrong answer so
that it copies the correct answer word for word, except for its last one or two words. Those must make
the same false claim as the wrong answer. Keep the final punctuation of the correct answer. Reply with
the rewritten answer only.

Question: {question}
Correct answer: {chosen}
Wrong answer: {rejected}
Rewritten answer:"""


def instruction(pair: AnswerPair) -> str:
    """The prompt for a pair."""
    return _INSTRUCTION.format(question=pair.question, chosen=pair.chosen, rejected=pair.rejected)


def endpoint_rewriter(model: str, *, base_url: str | None = None, api_key: str | None = None) -> Rewriter:
    """A rewriter behind an OpenAI-compatible endpoint.

    Args:
        model: The model's name at the endpoint.
        base_url: Such as http://localhost:8000/v1; by default `$OPENAI_BASE_URL`, or OpenAI's own.
        api_key: By default `$OPENAI_API_KEY`; with a base URL, any key if none is set.

    Raises:
        ModelError: There is neither a base URL nor a key.
    """
    import openai

    has_base_url = base_url or os.environ.get("OPENAI_BASE_URL")
    key = api_key or os.environ.get("OPENAI_API_KEY") or ("none" if has_base_url else None)
    if key is None:
        raise ModelError("no key for the endpoint: set OPENAI_API_KEY, or give --base-url of a local server")
    client = openai.OpenAI(base_url=base_url, api_key=key, max_retries=5, timeout=120)

    def rewrite(pair: AnswerPair) -> str:
        content: list[Any] = [{"type": "text", "text": instruction(pair)}]
        if pair.image_path:
            content.insert(0, {"type": "image_url", "image_url": {"url": _data_url(Path(pair.image_path))}})
        try:
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                max_tokens=_MAX_NEW_TOKENS,
            )
        except openai.OpenAIError as error:
            raise ModelError(f"the endpoint cannot rewrite row {pair.row} with {model}: {error}") from error
        return reply.choices[0].message.content or ""

    return rewrite


def local_rewriter(model: str, *, device: str | None = None) -> Rewriter:
    """A rewriter that runs an image-text-to-text model of transformers in this process.

    Raises:
        ModelError: The model cannot be loaded.
    """
    import transformers

    try:
        pipe: Any = transformers.pipeline(
            "image-text-to-text", model=model, device=device, dtype="auto", trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load {model} as an image-text-to-text model: {error}") from error

    def rewrite(pair: AnswerPair) -> str:
        content: list[Any] = [{"type": "text", "text": instruction(pair)}]
        if pair.image_path:
            content.insert(0, {"type": "image", "image": open_image(pair.image_path)})
        reply = pipe(
            text=[{"role": "user", "content": content}],
            max_new_tokens=_MAX_NEW_TOKENS,
            do_sample=False,
            return_full_text=False,
        )
        return str(reply[0]["generated_text"])

    return rewrite


def _data_url(path: Path) -> str:
    content = base64.b64encode(read_bounded(path, _MAX_IMAGE_BYTES)).decode()
    return f"data:{mimetypes.guess_type(path.name)[0] or 'image/jpeg'};base64,{content}"
