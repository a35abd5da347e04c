"""Capture with images against a plain pass of each sequence alone: both sites, one and several images a prompt."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers.plain_model import PlainModel
from helpers.tiny_vision_models import LAYERS, random_image
from numpy.typing import NDArray
from PIL import Image

from truthgate_eval.gating.attention_layout import SITES, Site
from truthgate_eval.harness.lmms_eval.probing import load_for_probing
from truthgate_eval.inference.prefix_plan import PackedPrompt
from truthgate_eval.inference.shared_prefix import SharedPrefixModel
from truthgate_eval.probing import image_windows
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.question_engine import ImageQuestionEngine
from truthgate_eval.vision.self_check import load_question_engine

TOLERANCE = 1e-5  # of the largest activation of the sequence in the layer
# The images of each document, by their numbers; the same ones in another order are another document.
DOCUMENTS = {"one image": ((0,), (1,), (2,)), "several images": ((0, 1), (1, 0), (2, 0, 1))}
ONE, SEVERAL = DOCUMENTS
# The classes, and about which images their sequences share prefixes; the others take the model's own path.
SHARED = {
    "llava": (ONE, SEVERAL),
    "llava_next": (ONE, SEVERAL),
    "qwen2_5_vl": (ONE, SEVERAL),
    "qwen2_5_omni": (ONE, SEVERAL),
    "idefics3": (ONE, SEVERAL),
    "llava_onevision": (ONE,),
    "gemma3": (),
}
SIZES = ((30, 40), (90, 44), (50, 100))
# The first two share all but their last words; "no" is the beginning of another question's "no way".
QUESTIONS = (
    ("Is there a big cat?", ("yes", "no way")),
    ("Is there a big cat or dog?", ("yes", "no")),
    ("Which one is it?", ("the first", "no way", "the last")),
)
QUICK = (SEVERAL, "post", 8)
CASES = [
    pytest.param(name, kind, site, batch_size, marks=[] if is_quick else pytest.mark.slow)
    for name, kind, site, batch_size in itertools.product(SHARED, DOCUMENTS, SITES, (1, 8))
    for is_quick in [kind in SHARED[name] and (kind, site, batch_size) == QUICK]
]

Folder = Callable[[str], str]
Activations = dict[Site, NDArray[np.float32]]


def images_of(numbers: tuple[int, ...]) -> list[Image.Image]:
    """Decoded anew for every answer, as a harness's documents are."""
    return [random_image(number, SIZES[number]) for number in numbers]


def dataset(kind: str) -> ProbeDataset:
    """Three questions about the images of each document, their answers, and no document's in a row."""
    examples = [
        ProbeExample(
            question,
            f" {answer}",
            answer == answers[0],
            group,
            functools.partial(images_of, numbers),
            numbers,
        )
        for group, (answers, question, numbers) in enumerate(
            (answers, question, numbers) for question, answers in QUESTIONS for numbers in DOCUMENTS[kind]
        )
        for answer in answers
    ]
    return ProbeDataset(examples, {}, {"task": "made"}, bare_questions=True)


def plain_pass(plain: PlainModel, example: ProbeExample) -> Activations:
    """One sequence alone through the class's own forward: [layers, features] at its very last token."""
    kept: dict[Site, list[torch.Tensor]] = {"pre": [], "post": []}

    def keep(_module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        kept["pre"].append(args[0].reshape(-1, args[0].shape[-1])[-1])
        kept["post"].append(output.reshape(-1, output.shape[-1])[-1])

    assert example.load_images is not None
    images = list(example.load_images())
    prompt = plain.prompt(example.context, len(images))
    inputs = plain.inputs(prompt + plain.answer(prompt, example.answer.strip()), images)
    hooks = [projection.register_forward_hook(keep) for projection in plain.projections().values()]
    with torch.no_grad():
        plain.model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {site: torch.stack(own).numpy() for site, own in kept.items()}


@functools.cache
def expected(folder: str, kind: str) -> Activations:
    """What plain passes give for every sequence, [sequences, layers, features]; no two are alike."""
    plain = PlainModel.load(folder)
    passes = [plain_pass(plain, example) for example in dataset(kind).examples]
    found: Activations = {site: np.stack([own[site] for own in passes]) for site in SITES}
    for values in found.values():
        for one, other in itertools.combinations(values, 2):
            assert relative_error(one[None], other[None]).min() > 1000 * TOLERANCE
    return found


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float32]:
    """[sequences, layers]; the largest difference, as a share of the largest activation."""
    error: NDArray[np.float32] = np.abs(found - wanted).max(axis=-1) / np.abs(wanted).max(axis=-1)
    return error


@functools.cache
def load(folder: str) -> tuple[VisionLanguageModel, ImageQuestionEngine | None]:
    """The model, and its engine where the self check finds no fault with one."""
    vlm = load_for_probing("vlm", {"pretrained": folder, "dtype": "float32"}, device="cpu", chat=True)
    return vlm, load_question_engine(vlm)


def capture_errors(
    folder: str, kind: str, site: Site, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[NDArray[np.float32], int]:
    """`relative_error` of a capture, and how many of its sequences ran in packed prompts."""
    packed: list[int] = []
    last_tokens = image_windows.last_tokens

    def counted(model: Any, layout: Any, prompts: list[PackedPrompt], *rest: Any) -> Any:
        packed.extend(i for prompt in prompts for i in prompt.sequence_ids)
        return last_tokens(model, layout, prompts, *rest)

    monkeypatch.setattr(image_windows, "last_tokens", counted)
    vlm, engine = load(folder)
    found = capture_with_images(vlm, dataset(kind), site=site, batch_size=batch_size, engine=engine)
    return relative_error(found.reshape(len(found), LAYERS, -1), expected(folder, kind)[site]), len(packed)


@pytest.mark.parametrize(("name", "kind", "site", "batch_size"), CASES)
def test_activations_are_those_of_a_plain_pass_of_each_sequence_alone(
    name: str, kind: str, site: Site, batch_size: int, vlm_checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors, packed = capture_errors(vlm_checkpoint(name), kind, site, batch_size, monkeypatch)
    assert errors.max() <= TOLERANCE
    assert packed == (len(errors) if kind in SHARED[name] else 0)


@pytest.mark.slow
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in SHARED.items() for kind in kinds])
def test_they_are_the_same_after_prefixes_with_a_pass_of_their_own(
    name: str, kind: str, site: Site, vlm_checkpoint: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, image_tokens = vlm_checkpoint(name), list[int]()
    compute_prefix = SharedPrefixModel.compute_prefix

    def counted(self: Any, group: Any) -> Any:
        image_tokens.append(sum(token >= self.first_image_id for token in group.prefix))
        return compute_prefix(self, group)

    engine = load(folder)[1]
    assert engine is not None
    monkeypatch.setattr(SharedPrefixModel, "compute_prefix", counted)
    monkeypatch.setattr(engine.model, "prefix_pass_cost", -(10**6))  # however little a prefix saves
    errors, _ = capture_errors(folder, kind, site, 8, monkeypatch)
    assert errors.max() <= TOLERANCE and sum(count > 0 for count in image_tokens) >= 3
