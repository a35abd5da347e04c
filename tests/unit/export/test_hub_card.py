"""The card of a repository: what it says of scores, and whose text a push replaces."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
import yaml

from truthgate_eval.export.hub_card import Section, merge_card, scores_section
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.hub import HubAddress

COMMIT, SHA256 = "c" * 40, "d" * 64
ADDRESS = HubAddress("owner/repo", "a.npz", COMMIT)
METADATA = {
    "model": "owner/base",
    "task": "probe_halueval_qa",
    "site": "post",
    "score": "accuracy",
    "kind": "accuracy",
    "probe": {"solver": "adamw", "folds": 5, "split": "question"},
    "sequences": 584,
    "documents": 292,
    "rows": {"halueval/qa": list(range(292))},
    "recommended": {"lam": 2.0, "norm": "centered", "site": "post", "task": "halueval_qa", "points": [1, 2]},
}


def scores(metadata: Any = METADATA, **arrays: Any) -> TruthScores:
    return TruthScores(np.full((3, 4), 0.75), metadata=metadata, **arrays)


def section(metadata: Any = METADATA, address: HubAddress = ADDRESS, **arrays: Any) -> str:
    found = scores_section(
        scores(metadata, **arrays), address, SHA256, base_model="owner/base", modality=None
    )
    return found.text


def front(card: str) -> Any:
    match = re.match(r"---\n(.*?)\n---\n", card, re.S)
    assert match is not None
    return yaml.safe_load(match[1])


def test_a_section_says_what_was_measured_how_and_on_how_much() -> None:
    controls = {"surface": np.array([[0.9]]), "no-context": np.full((3, 4), 0.6)}
    errors = {"surface": np.full((3, 4), 0.01), "no-context": np.full((3, 4), 0.01)}
    text = section(stderr=np.full((3, 4), 0.02), controls=controls, control_stderr=errors)
    for row in (
        "| model | owner/base |",
        "| heads | 3 layers x 4 heads |",
        "| kind of score | validation accuracy of a linear probe on each head's output |",
        "| measured on | probe\\_halueval\\_qa |",
        "| n | 584 sequences of 292 documents |",
        "| probe | adamw, 5 folds by question |",
        "| site | post |",
        "| mean score | 0.75 |",
        "| mean standard error of a score | 0.02 |",
        "| controls | mean accuracy no-context 0.600, surface 0.900; the probes' 0.750 |",
        "| recommended | lam=2.0, norm=centered, site=post |",
        "| recommended by | halueval\\_qa |",
        f"| SHA-256 of the file | `{SHA256}` |",
        f"| SHA-256 of the scores | `{scores().fingerprint}` |",
    ):
        assert row in text.splitlines(), row
    address = f"hf://owner/repo@{COMMIT}/a.npz"
    assert f"--model gated_hf --model_args pretrained=owner/base,scores={address} --tasks" in text
    assert '"points"' not in text and '"rows"' not in text and '"solver": "adamw"' in text


def test_scores_without_controls_or_a_recommendation_say_so() -> None:
    text = section({"model": "owner/base", "architecture": "LlavaForConditionalGeneration"})
    assert "| controls | none were measured |" in text
    assert (
        f"lmms_eval --model gated_vlm --model_args pretrained=owner/base,scores={ADDRESS},lam=NUMBER" in text
    )


def test_a_name_with_a_space_is_quoted_for_the_shell() -> None:
    text = section(address=HubAddress("owner/repo", "my scores.npz", COMMIT))
    address = f"hf://owner/repo@{COMMIT}/my scores.npz"
    assert f"$ truthgate show '{address}'\n" in text
    assert f"--model_args 'pretrained=owner/base,scores={address}' --tasks" in text


def test_metadata_of_strangers_stay_text() -> None:
    text = section(
        {
            "model": "<script>alert(1)</script>",
            "task": "a | b `c` [d](e)\n\n# title",
            "note": "<!-- truthgate push end -->",
            "sequences": {"a": 1},
            "probe": "no object",
            "recommended": {"lam": "\x1b[31m"},
        }
    )
    assert re.search(r"(?<!\\)<(script|!--)", text) is None
    assert "\x1b" not in text and "\n# title" not in text and "| n |" not in text
    assert "<!-- truthgate push end -->" not in text
    assert "a \\| b \\`c\\` \\[d\\](e) \\# title" in text
    card = merge_card(None, Section("a.npz", None, "truthgate_eval", text))
    assert card is not None and card.count("<!-- truthgate push end -->") == 1


def one(
    path: str, text: str, base_model: str | None = "owner/base", library: str = "truthgate_eval"
) -> Section:
    return Section(path, base_model, library, text)


def test_a_new_card_has_metadata_that_a_hub_reads() -> None:
    card = merge_card(None, one("a.npz", "first"))
    assert card is not None and "first" in card
    assert front(card) == {
        "base_model": "owner/base", "library_name": "truthgate_eval", "tags": ["truthgate", "attention-heads"],
    }  # fmt: skip
    adapter = merge_card(None, one("", "first", None, "peft"))
    assert (
        adapter is not None
        and front(adapter)["library_name"] == "peft"
        and "base_model" not in front(adapter)
    )


def test_a_push_replaces_its_own_section_and_adds_to_others() -> None:
    card = merge_card(None, one("a.npz", "of a, first"))
    card = merge_card(card, one("b.npz", "of b", "owner/other"))
    assert card is not None and front(card)["base_model"] == ["owner/base", "owner/other"]
    card = card.replace("Made with", "Edited by hand. Made with")
    card = merge_card(card, one("a.npz", "of a, second"))
    assert card is not None
    assert "of a, second" in card and "of a, first" not in card and card.count("of b") == 1
    assert "Edited by hand." in card and front(card)["base_model"] == ["owner/base", "owner/other"]


def test_front_matter_that_somebody_changed_stays() -> None:
    card = merge_card(None, one("a.npz", "first"))
    assert card is not None
    edited = card.replace("library_name:", "license: mit\nlibrary_name:")
    merged = merge_card(edited, one("b.npz", "second", "owner/other"))
    assert merged is not None and front(merged)["license"] == "mit" and "second" in merged


@pytest.mark.parametrize(
    "card",
    [
        "",
        "# My model\n",
        "---\nlicense: mit\n---\n",
        "text <!-- truthgate push {} -->\n",
        "<!-- truthgate push {} -->\nno end",
    ],
)
def test_a_card_of_somebody_else_stays_unless_it_is_to_be_replaced(card: str) -> None:
    assert merge_card(card, one("a.npz", "first")) is None
    replaced = merge_card(card, one("a.npz", "first"), overwrite=True)
    assert replaced is not None and "first" in replaced and "My model" not in replaced


def test_beginnings_without_an_end_take_no_time() -> None:
    card = "<!-- truthgate push {} -->\n" * 30_000
    started = time.perf_counter()
    assert merge_card(card, one("a.npz", "first")) is None
    assert time.perf_counter() - started < 5  # 0.1 s; looking for an end in all that follows takes an hour


@pytest.mark.parametrize(
    "head", ["{not json", "[1]", "{}", '{"path": 3, "base_model": {"a": 1}}', "[" * 5000]
)
def test_a_damaged_mark_does_not_stop_a_push(head: str) -> None:
    card = f"<!-- truthgate push {{{head}}} -->\nx\n<!-- truthgate push end -->\n"
    merged = merge_card(card, one("a.npz", "first"))
    assert merged is not None and "first" in merged
