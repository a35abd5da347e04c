"""Minimal pairs: the filter, the rewriters, and the journal of an interrupted run."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from helpers.tiny_models import tiny_tokenizer, tiny_vision_model
from PIL import Image

from truthgate_eval.data.minimal_pairs import (
    AnswerPair,
    align_ending,
    check_pair,
    prepare_minimal_pairs,
    rewrite_pairs,
)
from truthgate_eval.data.rewriters import endpoint_rewriter, instruction, local_rewriter
from truthgate_eval.data.store import read_rows, write_dataset
from truthgate_eval.errors import DataError, ModelError


@pytest.mark.parametrize(
    ("chosen", "rejected", "verdict"),
    [
        ("The cat is black.", "The cat is white.", "kept"),
        ("The cat is on the red mat.", "The cat is on the blue rug.", "kept"),
        ("It is on the left side.", "It is on the table.", "kept"),
        ("Red.", "Blue.", "kept"),
        ("The cat, it seems, is black.", "The cat it seems is white.", "kept"),
        ("The red cat is black.", "The blue cat is black.", "earlier"),
        ("There are two dogs on it.", "There are three big cats there.", "earlier"),
        ("The cat is black.", "the cat is black", "identical"),
        ("A cat.", "A cat on a mat.", "added"),
        ("", "A cat.", "empty"),
        ("A cat.", "...", "empty"),
        ("The cat is black.", "The cat is white", "ending"),
        ("The cat is black.", "The cat is white!", "ending"),
    ],
)
def test_a_pair_is_kept_only_if_nothing_but_its_last_words_differs(
    chosen: str, rejected: str, verdict: str
) -> None:
    assert check_pair(chosen, rejected) == verdict


def test_the_number_of_last_words_can_be_chosen() -> None:
    assert check_pair("A big red cat.", "A big blue dog.", last_words=1) == "earlier"
    assert check_pair("A big red cat.", "A small blue dog.", last_words=3) == "kept"


@pytest.mark.parametrize(
    ("rejected", "expected"), [("A dog", "A dog."), ("A dog!", "A dog."), ("A dog. ", "A dog.")]
)
def test_the_rejected_answer_gets_the_ending_of_the_chosen_one(rejected: str, expected: str) -> None:
    assert align_ending(rejected, "A cat.") == expected


def test_an_interrupted_run_continues_from_its_journal(tmp_path: Path) -> None:
    pairs = [AnswerPair(n, f"What is {n}?", f"It is {n}.", "No idea!") for n in range(4)]
    rewritten_rows: list[int] = []

    def rewriter(pair: AnswerPair) -> str:
        if len(rewritten_rows) == 2:
            raise ModelError("connection lost")
        rewritten_rows.append(pair.row)
        return "It is blue"

    with pytest.raises(ModelError):
        rewrite_pairs(pairs, rewriter, journal=tmp_path / "journal.jsonl")
    rewritten_rows.clear()
    rewritten = rewrite_pairs(pairs, rewriter, journal=tmp_path / "journal.jsonl")
    assert rewritten_rows == [2, 3]
    assert [pair.rejected for pair in rewritten] == ["It is blue."] * 4


def test_a_journal_entry_is_not_used_for_another_question(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    rewrite_pairs([AnswerPair(0, "What?", "A cat.", "A dog.")], lambda _: "A cow", journal=journal)
    other = rewrite_pairs([AnswerPair(0, "Who?", "A cat.", "A dog.")], lambda _: "A hen", journal=journal)
    assert other[0].rejected == "A hen."


def source(folder: Path, pairs: list[tuple[str, str]]) -> Path:
    rows = [
        {"row": n, "question": "What?", "choices": list(pair), "target": 0} for n, pair in enumerate(pairs)
    ]
    write_dataset(folder / "rlhf_v", {"qa": rows}, source={})
    return folder / "rlhf_v" / "qa.parquet"


def test_the_filter_reports_what_it_drops_and_why(tmp_path: Path) -> None:
    pairs = [("A cat.", "A dog."), ("A cat.", "A cat."), ("One cat on it.", "Two cats on it.")]
    prepared = prepare_minimal_pairs(source(tmp_path, pairs), tmp_path)
    assert prepared.files == {"pairs": 1, "verdicts": 3}
    assert prepared.notes == [
        "1 of 3: differs in the last words only",
        "1 of 3: both answers have the same words",
        "1 of 3: differs before the last words",
    ]
    verdicts = read_rows(prepared.folder / "verdicts.parquet")
    assert [row["verdict"] for row in verdicts] == ["kept", "identical", "earlier"]


def test_rewritten_pairs_keep_their_other_columns(tmp_path: Path) -> None:
    path = source(tmp_path, [("The cat is black.", "I think it could be a dog of white colour!")])
    prepared = prepare_minimal_pairs(
        path, tmp_path, rewriter=lambda _: "The cat is white", rewriter_name="a/model"
    )
    assert read_rows(prepared.folder / "pairs.parquet") == [
        {"row": 0, "question": "What?", "choices": ["The cat is black.", "The cat is white."], "target": 0}
    ]
    assert (prepared.folder / "rewrites_a-model.jsonl").is_file()


def test_the_source_can_be_json_lines(tmp_path: Path) -> None:
    line = {"question": "What?", "chosen": "A cat.", "rejected": "A dog."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    assert prepare_minimal_pairs(tmp_path / "pairs.jsonl", tmp_path).files["pairs"] == 1


def test_no_minimal_pair_at_all_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1: both answers have the same words"):
        prepare_minimal_pairs(source(tmp_path, [("A cat.", "a cat")]), tmp_path)


class Endpoint(BaseHTTPRequestHandler):
    """Answers every chat completion with the same text, and records the requests."""

    received: list[dict[str, object]] = []  # noqa: RUF012 - emptied by the test

    def do_POST(self) -> None:
        self.received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        message = {"role": "assistant", "content": "The cat is white."}
        reply = {
            "id": "1", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }  # fmt: skip
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, format: str, *args: object) -> None: ...


def test_an_endpoint_gets_the_image_and_both_answers(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "cat.png")
    Endpoint.received.clear()
    with HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        rewrite = endpoint_rewriter("m", base_url=f"http://127.0.0.1:{server.server_port}/v1")
        answer = rewrite(AnswerPair(0, "Which?", "The cat is black.", "White.", str(tmp_path / "cat.png")))
        server.shutdown()
    assert answer == "The cat is white."
    image, text = Endpoint.received[0]["messages"][0]["content"]  # type: ignore[index]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert "The cat is black." in text["text"]
    assert "White." in text["text"]


def test_an_endpoint_without_a_key_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        endpoint_rewriter("m")


def save_tiny_llava(folder: Path) -> tuple[Any, Any]:
    """A random LLaVA with a processor and a chat template, saved as a folder."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    template = (
        "{% for m in messages %}[{{ m['role'] }}] {% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(**sizes), tokenizer=tokenizer, patch_size=14,
        vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip
    config = tiny_vision_model().config
    config.text_config.vocab_size, config.text_config.max_position_embeddings = len(tokenizer), 4096
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    model = hf.LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


def test_a_local_model_gets_the_image_and_decodes_greedily(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cat.png")
    model, processor = save_tiny_llava(tmp_path / "model")
    pair = AnswerPair(0, "Which?", "The cat is black.", "White.", str(tmp_path / "cat.png"))
    # Jinja leaves out the line break after a block.
    prompt = f"[user] <image>{instruction(pair)}[assistant] "
    inputs = processor(text=prompt, images=Image.open(tmp_path / "cat.png"), return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=256, do_sample=False)
    expected = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert expected.strip()
    assert local_rewriter(str(tmp_path / "model"), device="cpu")(pair) == expected


def test_the_error_for_a_missing_local_model_has_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load .*nowhere"):
        local_rewriter(str(tmp_path / "nowhere"))


PAIR = {"row": 3, "question": "What?", "chosen": "A cat.", "rejected": "A dog."}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "one"}, "row 'one', expected a whole number$"),
        ({"row": [1]}, r"row is \[1\], expected a text$"),
        ({"chosen": None}, "no chosen$"),
        ({"rejected": ["A dog."]}, r"rejected is \['A dog.'\], expected a text$"),
        ({"question": {}}, r"question is \{\}, expected a text$"),
        ({"image_path": 1 == 1}, "image_path is True, expected a text$"),
    ],
)
def test_the_error_for_a_bad_line_names_file_and_line(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(PAIR) + "\n" + json.dumps({**PAIR, **change}))
    with pytest.raises(DataError, match=rf"pairs\.jsonl, line 2: {message}"):
        prepare_minimal_pairs(tmp_path / "pairs.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": None}, "row 0: no row$"),
        ({"choices": ["A cat.", None]}, "row 0: one of its choices is None, expected a text$"),
        ({"choices": ["A cat."]}, "row 0: expected choices of two answers"),
        ({"target": [0]}, "row 0: expected choices of two answers"),
        ({"question": ["What?"]}, r"row 0: question is \['What\?'\], expected a text$"),
    ],
)
def test_the_error_for_a_bad_row_names_file_and_row(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    row = {"row": 0, "question": "What?", "choices": ["A cat.", "A dog."], "target": 0}
    write_dataset(tmp_path / "rlhf_v", {"qa": [{**row, **change}]}, source={})
    with pytest.raises(DataError, match=rf"qa\.parquet, {message}"):
        prepare_minimal_pairs(tmp_path / "rlhf_v" / "qa.parquet", tmp_path)


def test_pairs_without_an_image_do_not_cost_the_others_theirs(tmp_path: Path) -> None:
    lines = [PAIR, {**PAIR, "row": "4", "image_path": "/a.jpg"}]
    (tmp_path / "PAIRS.JSONL").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prepared = prepare_minimal_pairs(tmp_path / "PAIRS.JSONL", tmp_path)
    rows = read_rows(prepared.folder / "pairs.parquet")
    assert [(row["row"], row["image_path"]) for row in rows] == [(3, None), (4, "/a.jpg")]


@pytest.mark.parametrize("change", [{"row": []}, {"chosen": {}}, {"rewritten": None}, {"rewritten": [1]}])
def test_a_journal_with_a_wrong_type_is_an_error_with_its_line(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({**PAIR, "rewritten": "A dog.", **change}) + "\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, line 1: (no )?{next(iter(change))}"):
        rewrite_pairs(
            [AnswerPair(3, "What?", "A cat.", "A dog.")], lambda _: "", journal=tmp_path / "a.jsonl"
        )
