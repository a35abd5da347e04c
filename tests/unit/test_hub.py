"""Addresses of files on a hub, fetching them, and every reason why not in one line."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub import TOKEN, Hub, running_hub, use_hub
from huggingface_hub import constants
from huggingface_hub.utils import _http

from truthgate_eval.errors import HubError
from truthgate_eval.hub import HubAddress, check_path, fetch, hub_api, redact

CONTENT = b"some bytes"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        use_hub(hub.url, tmp_path / "cache", monkeypatch)
        hub.add("owner/repo", {"a.npz": CONTENT, "more/b.npz": b"others"})
        yield hub


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf://owner/repo/a.npz", HubAddress("owner/repo", "a.npz")),
        ("hf://owner/repo@main/a.npz", HubAddress("owner/repo", "a.npz", "main")),
        ("hf://o-1/r_2.x@v1.0/x/y z.npz", HubAddress("o-1/r_2.x", "x/y z.npz", "v1.0")),
        ("hf://owner/repo@refs%2Fpr%2F2/a@b.npz", HubAddress("owner/repo", "a@b.npz", "refs/pr/2")),
        ("hf://owner/repo", HubAddress("owner/repo")),
        ("hf://owner/repo@v1", HubAddress("owner/repo", "", "v1")),
        ("hf://owner/repo/folder/", HubAddress("owner/repo", "folder")),
        (f"hf://owner/repo/a.npz#sha256={SHA256.upper()}", HubAddress("owner/repo", "a.npz", None, SHA256)),
    ],
)
def test_an_address_is_read_and_written_again(text: str, expected: HubAddress) -> None:
    found = HubAddress.parse(text)
    assert found == expected and HubAddress.parse(str(found)) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hf://owner", "expected hf://OWNER/REPO"),
        ("hf:owner/repo/a.npz", "expected hf://OWNER/REPO"),
        ("hf://owner/repo@/a.npz", "expected hf://OWNER/REPO"),
        ("hf://owner/repo@a@b/a.npz", "expected hf://OWNER/REPO"),
        ("hf://owner/repo/../x.npz", "is no path in a repository"),
        ("hf://owner/repo//x.npz", "is no path in a repository"),
        ("hf://owner/repo/a\\b.npz", "is no path in a repository"),
        ("hf://owner/repo/a,b.npz", "is no path in a repository"),
        ("hf://owner/repo@v1,2/a.npz", "expected hf://OWNER/REPO"),
        ("hf://owner/../x.npz", "is no repository"),
        ("hf://owner/re po/x.npz", "is no repository"),
        ("hf://datasets/owner/repo/a.npz", "is no model repository"),
        ("hf://owner/repo@..%2F..%2Fx/a.npz", "is no branch, tag or commit"),
        ("hf://owner/repo@%2Fetc/a.npz", "is no branch, tag or commit"),
        ("hf://owner/repo@a%20b/a.npz", "is no branch, tag or commit"),
        ("hf://owner/repo@a%2F..%2F..%2Fb/a.npz", "is no branch, tag or commit"),
        ("hf://owner/repo@a%2F%2Fb/a.npz", "is no branch, tag or commit"),
        ("hf://owner/repo/a.npz#main", "expected #sha256="),
        ("hf://owner/repo/a.npz#sha256=12", "expected #sha256="),
        ("hf://owner/repo/a.npz#sha256=" + "g" * 64, "expected #sha256="),
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str, reason: str) -> None:
    with pytest.raises(HubError, match=reason) as caught:
        HubAddress.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/a", "a/./b", "a/../b", "..", "a\nb", "a//b"])
def test_a_path_that_leaves_its_repository_is_refused(path: str) -> None:
    with pytest.raises(HubError, match="no path in a repository"):
        check_path(path)


def test_a_file_is_fetched_alone_with_its_commit_and_checksum(hub: Hub) -> None:
    file = fetch(HubAddress("owner/repo", "a.npz"))
    assert file.path.read_bytes() == CONTENT and file.sha256 == SHA256
    assert file.commit == hub.repositories["owner/repo"].refs["main"]
    nested = fetch(HubAddress("owner/repo", "more/b.npz"))
    assert nested.commit == file.commit and nested.path.read_bytes() == b"others"
    assert hub.fetched() == ["owner/repo/a.npz", "owner/repo/more/b.npz"]
    assert all("/resolve/" in line for line in hub.requests)
    assert set(hub.authorizations) == {None}


def test_a_pinned_file_stays_what_it_was_when_main_goes_on(hub: Hub) -> None:
    repository = hub.repositories["owner/repo"]
    first = repository.refs["main"]
    repository.refs["v1"] = first
    second = repository.commit({"a.npz": b"the next version"})
    for revision, content, commit in (
        (first, CONTENT, first),
        ("v1", CONTENT, first),
        ("main", b"the next version", second),
        (None, b"the next version", second),
        (second, b"the next version", second),
    ):
        file = fetch(HubAddress("owner/repo", "a.npz", revision))
        assert (file.path.read_bytes(), file.commit) == (content, commit)


def test_a_commit_in_the_cache_needs_no_request(hub: Hub) -> None:
    address = HubAddress("owner/repo", "a.npz", hub.repositories["owner/repo"].refs["main"])
    fetch(address)
    asked = len(hub.requests)
    assert fetch(address).sha256 == SHA256 and len(hub.requests) == asked


def test_a_checksum_in_the_address_is_checked(hub: Hub) -> None:
    assert fetch(HubAddress("owner/repo", "a.npz", sha256=SHA256)).sha256 == SHA256
    with pytest.raises(HubError, match=f"is another file, with SHA-256 {SHA256}"):
        fetch(HubAddress("owner/repo", "a.npz", sha256="0" * 64))


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (HubAddress("owner/none", "a.npz"), "no repository owner/none, or it is private"),
        (HubAddress("owner/private", "a.npz"), "no repository owner/private, or it is private"),
        (HubAddress("owner/gated", "a.npz"), "owner/gated is gated"),
        (HubAddress("owner/repo", "none.npz"), "has no file 'none.npz' at revision 'main'"),
        (HubAddress("owner/repo", "a.npz", "v9"), "has no revision 'v9'"),
        (HubAddress("owner/repo", "a.npz", "0" * 40), f"has no revision '{'0' * 40}'"),
        (HubAddress("owner/re..po", "a.npz"), "Cannot have -- or .. in repo_id"),
    ],
)
@pytest.mark.parametrize("token", [None, "hf_SomeOtherToken"])
def test_what_cannot_be_fetched_is_one_line(
    address: HubAddress, reason: str, token: str | None, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/private", {"a.npz": CONTENT}, private=True)
    hub.add("owner/gated", {"a.npz": CONTENT}, gated=True)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=reason) as caught:
        fetch(address)
    message = str(caught.value)
    assert message.startswith(f"{address} cannot be fetched: ") and "\n" not in message
    assert token is None or token not in message


def test_the_token_opens_private_and_gated_repositories_and_is_not_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("owner/private", {"a.npz": CONTENT}, private=True)
    hub.add("owner/gated", {"a.npz": CONTENT}, gated=True)
    with caplog.at_level(logging.DEBUG):
        for name in ("owner/private", "owner/gated"):
            assert fetch(HubAddress(name, "a.npz")).sha256 == SHA256
    assert set(hub.authorizations) == {f"Bearer {TOKEN}"}
    assert TOKEN not in caplog.text


def test_offline_takes_the_cache_and_else_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    online = fetch(HubAddress("owner/repo", "a.npz"))
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(HubAddress("owner/repo", "a.npz")) == online
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set and the file is not in the cache"):
        fetch(HubAddress("owner/repo", "more/b.npz"))
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and an upload needs the hub"):
        hub_api()
    assert len(hub.requests) == asked


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub tries five times, with pauses of up to 8 seconds: the test does not wait for them."""
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)


def test_a_hub_that_answers_too_late_is_named(
    hub: Hub, no_waiting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    hub.delay = 0.3
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.02)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.02, raising=False)
    with pytest.raises(HubError, match="the hub did not answer in time"):
        fetch(HubAddress("owner/repo", "a.npz"))


def test_a_hub_that_is_not_there_is_named(
    hub: Hub, no_waiting: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with running_hub() as gone:
        pass
    use_hub(gone.url, tmp_path / "empty", monkeypatch)
    with pytest.raises(HubError, match="the hub cannot be reached"):
        fetch(HubAddress("owner/repo", "a.npz"))


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "the token has no right"), (503, "the hub answered with status 503"), (429, "too many requests")],
)
def test_a_hub_that_refuses_is_named(status: int, reason: str, hub: Hub, no_waiting: None) -> None:
    hub.failure = status
    with pytest.raises(HubError, match=reason):
        fetch(HubAddress("owner/repo", "a.npz"))


def test_an_error_without_a_message_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ArithmeticError

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(HubError, match="cannot be fetched: ArithmeticError"):
        fetch(HubAddress("owner/repo", "file.npz"))


def test_no_credentials_are_printed() -> None:
    assert redact(f"GET https://me:pass@mirror/x\nwith {TOKEN}") == "GET https://***@mirror/x with ***"
    with pytest.raises(HubError) as caught:
        HubAddress.parse(f"hf://{TOKEN}@owner/repo/a.npz")
    assert TOKEN not in str(caught.value)
    with pytest.raises(HubError) as caught:
        HubAddress.parse("hf://me:secret@owner/repo/a.npz")
    assert "secret" not in str(caught.value)


def test_an_upload_needs_a_token(hub: Hub) -> None:
    with pytest.raises(HubError, match="log in with `hf auth login`, or set HF_TOKEN"):
        hub_api()
