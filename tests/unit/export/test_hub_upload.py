"""Pushing an artifact or an adapter to the stand-in of a hub, and resolving it from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub import TOKEN, Hub, running_hub, use_hub
from helpers.tiny_models import tiny_model

from truthgate_eval.errors import HubError, TruthGateError
from truthgate_eval.export.adapter import export_adapter
from truthgate_eval.export.hub_upload import prepare_upload, push
from truthgate_eval.export.output import provenance
from truthgate_eval.gating.attention_layout import find_attention_layout
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.gating.gate_config import GateConfig
from truthgate_eval.gating.scores import TruthScores

VALUES = np.random.default_rng(0).uniform(0.4, 0.9, (3, 4)).astype(np.float32)


def artifact(folder: Path, values: Any = VALUES, **metadata: Any) -> Path:
    metadata = {"model": "owner/base", "task": "t", "site": "post", **metadata}
    return TruthScores(values, metadata=metadata).save(folder / "base.npz")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch, token=TOKEN)
        yield hub


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An exported gate of lam=2."""
    return export(tmp_path / "gate", "owner/base")


def export(folder: Path, base_model: str, modality: Modality = "text") -> Path:
    model = tiny_model("llama")
    config = GateConfig("a.npz", TruthScores(VALUES, metadata={"model": "owner/base"}), lam=2.0)
    record = provenance("owner/base", None, config.describe(), "t")
    gate = config.gate(find_attention_layout(model), "m")
    return export_adapter(model, gate, folder, record=record, base_model=base_model, modality=modality)


def card(hub: Hub, repo: str = "me/scores") -> str:
    repository = hub.repositories[repo]
    return repository.files(repository.refs["main"])["README.md"].decode()


def test_a_pushed_artifact_resolves_to_the_same_arrays_for_ever(hub: Hub, tmp_path: Path) -> None:
    first = push(prepare_upload(artifact(tmp_path)), "me/scores")
    second = push(prepare_upload(artifact(tmp_path, VALUES + 1)), "me/scores")
    assert first.address.revision != second.address.revision and first.has_card
    for pushed, values in ((first, VALUES), (second, VALUES + 1)):
        found = TruthScores.resolve(str(pushed.address))
        np.testing.assert_array_equal(found.scores, values)
        assert found.metadata["hub"]["commit"] == pushed.address.revision
    np.testing.assert_array_equal(TruthScores.resolve("hf://me/scores/base.npz").scores, VALUES + 1)


def test_the_file_is_uploaded_as_it_is_in_one_commit_and_the_card_names_that_commit(
    hub: Hub, tmp_path: Path
) -> None:
    path = artifact(tmp_path)
    pushed = push(prepare_upload(path), "me/scores", message="My scores")
    [_, (commit, message, files), (_, of_card, _)] = hub.repositories["me/scores"].commits
    assert (commit, message) == (pushed.address.revision, "My scores") and "README.md" not in files
    assert files["base.npz"] == path.read_bytes() and "Describe base.npz" in of_card
    text = card(hub)
    assert f"scores=hf://me/scores@{commit}/base.npz" in text
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text and 'base_model: "owner/base"' in text


def test_several_artifacts_share_a_repository(hub: Hub, tmp_path: Path) -> None:
    push(prepare_upload(artifact(tmp_path), "pre/a.npz"), "me/scores")
    pushed = push(prepare_upload(artifact(tmp_path, VALUES + 1), "post/a.npz"), "me/scores")
    assert str(pushed.address).endswith("/post/a.npz")
    assert "## pre/a.npz" in card(hub) and "## post/a.npz" in card(hub)


def test_a_pushed_adapter_gates_as_the_exported_one(hub: Hub, adapter: Path) -> None:
    (adapter / "private_notes.txt").write_text("not to be uploaded")
    pushed = push(prepare_upload(adapter), "me/gate")
    commit = pushed.address.revision
    assert str(pushed.address) == f"hf://me/gate@{commit}"
    repository = hub.repositories["me/gate"]
    assert repository.files(repository.refs["main"]).keys() == {
        ".gitattributes", "README.md", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    layout = find_attention_layout(tiny_model("llama"))
    found = GateConfig.parse(str(pushed.address))
    np.testing.assert_array_equal(
        found.gate(layout, "m").values, GateConfig.parse(str(adapter)).gate(layout, "m").values
    )
    assert found.describe()["hub"]["commit"] == commit
    text = card(hub, "me/gate")
    assert f'PeftModel.from_pretrained(model, "me/gate", revision="{commit}")' in text
    assert 'library_name: "peft"' in text and "AutoModelForCausalLM" in text
    inside = push(prepare_upload(adapter, "gates/one"), "me/more")
    np.testing.assert_array_equal(TruthScores.resolve(str(inside.address)).scores, found.scores.scores)
    assert 'subfolder="gates/one"' in card(hub, "me/more")


def test_the_card_of_an_image_adapter_names_the_harness_of_images(hub: Hub, tmp_path: Path) -> None:
    upload = prepare_upload(export(tmp_path / "gate", "owner/base", "image"))
    pushed = push(upload, "me/gate")
    assert f"lmms_eval --model gated_vlm --model_args pretrained=owner/base,scores={pushed.address}" in card(
        hub, "me/gate"
    )


def test_a_base_model_without_an_owner_stays_and_a_folder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gates").mkdir()
    for number, (name, expected) in enumerate([("gpt2", "gpt2"), ("mine", None), ("/gone/base", None)]):
        upload = prepare_upload(export(tmp_path / "gates" / str(number), name))
        config = json.loads(upload.files["adapter_config.json"])
        assert config["base_model_name_or_path"] == upload.base_model == expected


def test_peft_reads_a_pushed_adapter_as_the_card_says(hub: Hub, adapter: Path) -> None:
    from peft import PeftModel

    pushed = push(prepare_upload(adapter, "gates/one"), "me/gate")
    model = PeftModel.from_pretrained(
        tiny_model("llama"), "me/gate", revision=pushed.address.revision, subfolder="gates/one"
    )
    expected = PeftModel.from_pretrained(tiny_model("llama"), str(adapter))
    names = [name for name, _ in expected.named_parameters() if "ia3" in name]
    assert len(names) == 3
    for name in names:
        np.testing.assert_array_equal(
            model.get_parameter(name).detach().numpy(), expected.get_parameter(name).detach().numpy()
        )


def test_nothing_of_this_machine_is_uploaded(hub: Hub, tmp_path: Path, adapter: Path) -> None:
    local = tmp_path / "models" / "vicuna"
    path = artifact(tmp_path, model=str(local), note=f"from {tmp_path}/notes.txt with token={TOKEN}")
    upload = prepare_upload(path)
    assert upload.is_shortened and upload.base_model is None
    push(upload, "me/scores")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(local)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    push(prepare_upload(adapter), "me/gate")
    for repository in hub.repositories.values():
        for _, message, files in repository.commits:
            for name, content in {**files, "message": message.encode()}.items():
                assert str(tmp_path).encode() not in content, name
                assert TOKEN.encode() not in content, name
    found = TruthScores.resolve("hf://me/scores/base.npz")
    assert found.metadata["model"] == "vicuna" and found.metadata["note"] == "from notes.txt with token=***"
    np.testing.assert_array_equal(found.scores, VALUES)
    assert not prepare_upload(artifact(tmp_path)).is_shortened


def test_the_card_of_somebody_else_stays(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/scores", {"README.md": b"# Mine\n"})
    upload = prepare_upload(artifact(tmp_path))
    assert not push(upload, "me/scores").has_card and card(hub) == "# Mine\n"
    assert push(upload, "me/scores", overwrite_card=True).has_card and "# Mine" not in card(hub)
    hub.add("me/binary", {"README.md": b"\xff\xfe"})
    assert not push(upload, "me/binary").has_card


def test_another_revision_is_made_and_main_stays(hub: Hub, tmp_path: Path) -> None:
    repository = hub.add("me/scores")
    before = repository.refs["main"]
    pushed = push(prepare_upload(artifact(tmp_path)), "me/scores", revision="try")
    again = push(prepare_upload(artifact(tmp_path, VALUES + 1)), "me/scores", revision="try")
    assert repository.refs["main"] == before
    np.testing.assert_array_equal(TruthScores.resolve("hf://me/scores@try/base.npz").scores, VALUES + 1)
    np.testing.assert_array_equal(TruthScores.resolve(str(pushed.address)).scores, VALUES)
    assert again.has_card


def test_private_makes_a_private_repository_and_never_uses_a_public_one(hub: Hub, tmp_path: Path) -> None:
    upload = prepare_upload(artifact(tmp_path))
    push(upload, "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    repository = hub.add("me/public")
    with pytest.raises(HubError, match="me/public exists and is public"):
        push(upload, "me/public", private=True)
    assert len(repository.commits) == 1


def failed(hub: Hub, tmp_path: Path, **options: Any) -> str:
    with pytest.raises(HubError) as caught:
        push(prepare_upload(artifact(tmp_path)), "me/scores", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_token_nothing_is_asked_of_the_hub(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with `hf auth login`, or set HF_TOKEN" in failed(hub, tmp_path)
    assert hub.requests == []


def test_a_token_without_the_right_to_write_is_one_line(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_OnlyForReading")
    for exists in (False, True):
        if exists:
            hub.add("me/scores")
        message = failed(hub, tmp_path)
        assert "the token has no right to do this" in message and "OnlyForReading" not in message


def test_a_push_in_between_is_noticed(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from truthgate_eval.export import hub_upload

    build = hub_upload._section

    def meanwhile(*arguments: Any) -> Any:
        hub.repositories["me/scores"].commit({"other.txt": b"of somebody else"})
        return build(*arguments)

    monkeypatch.setattr(hub_upload, "_section", meanwhile)
    message = failed(hub, tmp_path)
    assert "but without its card: somebody else pushed at the same time" in message
    assert message.startswith("pushed as hf://me/scores@")


@pytest.mark.parametrize(
    ("repo", "options", "reason"),
    [
        ("scores", {}, "expected OWNER/REPO"),
        ("a/b/c", {}, "expected OWNER/REPO"),
        ("datasets/scores", {}, "no model repository"),
        ("me/scores", {"revision": "a b"}, "no branch, tag or commit"),
        ("me/scores", {"revision": "../x"}, "no branch, tag or commit"),
    ],
)
def test_a_wrong_name_is_refused_before_the_hub_is_asked(
    repo: str, options: dict[str, Any], reason: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match=reason):
        push(prepare_upload(artifact(tmp_path)), repo, **options)
    assert hub.requests == []


def test_what_is_no_artifact_is_refused(tmp_path: Path, adapter: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    for source, place, reason in (
        (tmp_path / "a.npy", None, "push takes an .npz artifact"),
        (tmp_path / "bad.npz", None, "cannot be read as a score file"),
        (tmp_path / "none.npz", None, "no score file at"),
        (tmp_path / "empty", None, "holds no adapter"),
        (artifact(tmp_path), "a.bin", "expected a name that ends in .npz"),
        (artifact(tmp_path), "../a.npz", "no path in a repository"),
        (artifact(tmp_path), "a,b.npz", "without commas"),
        (adapter, "gate.npz", "expected a folder for an adapter"),
    ):
        with pytest.raises(TruthGateError, match=reason):
            prepare_upload(source, place)
