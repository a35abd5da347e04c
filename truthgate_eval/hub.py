"""Files on a model hub: their addresses, fetching one of them, and what went wrong in one line.

An address is `hf://OWNER/REPO[@REVISION][/PATH][#sha256=HEX]`. It has no comma, and only what follows the
first equals sign of `scores=hf://...` belongs to it, so that both harnesses' `--model_args` keep it whole.
Everything is fetched by huggingface_hub: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and its cache apply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from truthgate_eval import __version__
from truthgate_eval.credentials import mask_credentials
from truthgate_eval.errors import HubError, reason_of
from truthgate_eval.files import sha256

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf://"
_ADDRESS = re.compile(
    r"hf://(?P<repo>[^/@#]+/[^/@#]+)(?:@(?P<revision>[^/@#,]+))?(?:/(?P<path>[^#]*))?(?:#(?P<pin>.*))?"
)
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
# What git allows in the name of a branch or tag, roughly: the name becomes a file's in the cache.
_REVISION = re.compile(r"(?![/.-])(?!.*(\.\.|//|/\.))[^\x00-\x20\x7f~^:?*\[\\]+(?<![/.])")
_PATH_PART = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f\\,]+")
_PIN = re.compile(r"sha256=([0-9a-fA-F]{64})")
# The first parts of addresses of other things than models, as huggingface_hub's file system has them.
_OTHER_KINDS = ("buckets", "datasets", "kernels", "spaces")
_FORM = "hf://OWNER/REPO[@REVISION]/FILE[#sha256=HEX]"
_STATUS = {
    401: "the hub does not accept the token: log in again with `hf auth login`, or check HF_TOKEN",
    403: "the token has no right to do this: use one with that right, or ask the repository's owner",
    412: "somebody else pushed at the same time: give the same command again",
    429: "the hub got too many requests: try again in some minutes",
}


@dataclass(frozen=True)
class HubAddress:
    """A file or folder of a model repository.

    Attributes:
        repo: `OWNER/REPO`.
        path: Path in the repository; "" is the repository itself.
        revision: Branch, tag or commit; None is the main branch. In the text, a slash in it is `%2F`.
        sha256: What the file's SHA-256 must be, in lower-case hexadecimal; None accepts any.

    Example:
        >>> HubAddress.parse("hf://owner/repo@v1/scores/a.npz")
        HubAddress(repo='owner/repo', path='scores/a.npz', revision='v1', sha256=None)
        >>> str(HubAddress("owner/repo", "a.npz", "refs/pr/2"))
        'hf://owner/repo@refs%2Fpr%2F2/a.npz'
    """

    repo: str
    path: str = ""
    revision: str | None = None
    sha256: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubAddress:
        """Read an address.

        Raises:
            HubError: It is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise _no_address(text, f"expected {_FORM}, such as hf://owner/repo/file.npz")
        revision = None if found["revision"] is None else unquote(found["revision"])
        pin = None if found["pin"] is None else _PIN.fullmatch(found["pin"])
        if found["pin"] is not None and pin is None:
            raise _no_address(text, "expected #sha256= and 64 hexadecimal digits behind the file")
        if revision is not None and not _REVISION.fullmatch(revision):
            raise _no_address(text, f"{revision!r} is no branch, tag or commit")
        check_repo(found["repo"])
        path = (found["path"] or "").rstrip("/")
        return cls(found["repo"], check_path(path), revision, None if pin is None else pin[1].lower())

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        path = f"/{self.path}" if self.path else ""
        pin = "" if self.sha256 is None else f"#sha256={self.sha256}"
        return f"{PREFIX}{self.repo}{revision}{path}{pin}"

    def at(self, commit: str) -> HubAddress:
        """The address of the same file at a commit, which cannot change."""
        return replace(self, revision=commit)


@dataclass(frozen=True)
class HubFile:
    """A fetched file.

    Attributes:
        path: Where it is in huggingface_hub's cache.
        commit: The commit that the address's revision meant.
        sha256: SHA-256 of its content, in hexadecimal.
    """

    path: Path
    commit: str
    sha256: str


def is_hub_address(name: str) -> bool:
    """Whether a name means something on the hub, right or wrong."""
    return name.startswith(PREFIX)


def check_repo(repo: str) -> str:
    """A repository's name, if it is one of a model.

    Raises:
        HubError: It is not `OWNER/REPO`.
    """
    if not _REPO.fullmatch(repo) or len(repo) > 200:
        raise HubError(f"{redact(repo)!r} is no repository of the hub: expected OWNER/REPO")
    if repo.split("/")[0] in _OTHER_KINDS:
        raise HubError(f"{repo!r} is no model repository: expected OWNER/REPO of a model")
    return repo


def check_path(path: str) -> str:
    """A path in a repository, if it stays in it; "" is the repository itself.

    Raises:
        HubError: It leaves the repository, or has an empty part or a comma.
    """
    if path and not all(_PATH_PART.fullmatch(part) for part in path.split("/")):
        raise HubError(f"{path!r} is no path in a repository: expected FILE or FOLDER/FILE, without commas")
    return path


def fetch(address: HubAddress) -> HubFile:
    """Fetch the one file that an address names, or find it in the cache.

    The hub is not asked for a commit that is in the cache. Without a connection a branch is the commit that
    it was when it was fetched last.

    Raises:
        HubError: It cannot be fetched, or its SHA-256 is another than the address's.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(
            address.repo,
            address.path,
            revision=address.revision,
            library_name="truthgate_eval",
            library_version=__version__,
        )
        found = sha256(Path(path))
    except Exception as error:  # no network, no repository, no file, no access, a full disk: all different
        raise HubError(f"{address} cannot be fetched: {explain(error, address)}") from error
    if address.sha256 not in (None, found):
        raise HubError(
            f"{address} is another file, with SHA-256 {found}: name the commit that has the one you mean, or "
            "leave #sha256= out"
        )
    # The cache has a folder for each commit, with the repository's files under their own paths.
    return HubFile(Path(path), Path(path).parents[address.path.count("/")].name, found)


def hub_api() -> HfApi:
    """The hub's API as the user who is logged in.

    Raises:
        HubError: Nobody is.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise HubError("HF_HUB_OFFLINE is set, and an upload needs the hub: unset it")
    try:
        token = get_token()
    except Exception as error:  # the file cannot be read, or a login of a CI job failed
        raise HubError(f"the hub's token cannot be read: {redact(reason_of(error))}") from error
    if not token:
        raise HubError(
            "an upload needs a token of the hub with the right to write: log in with `hf auth login`, or set "
            "HF_TOKEN"
        )
    return HfApi(library_name="truthgate_eval", library_version=__version__)


def explain(error: BaseException, address: HubAddress) -> str:
    """Why the hub did not do something, and what to do about it, in one line without credentials.

    Args:
        error: What huggingface_hub raised.
        address: What was asked for.
    """
    causes = tuple(_causes(error))
    for kind, reason in _reasons(address).items():
        if any(isinstance(cause, kind) for cause in causes):
            return reason
    status = next((code for code in map(_status, causes) if code is not None), None)
    if status is not None:
        other = f"the hub answered with status {status}: try again later, and check HF_ENDPOINT if it is set"
        return _STATUS.get(status, other)
    # huggingface_hub 1 raises httpx's errors and 2 those of its successor; the classes' names are the same.
    names = {base.__name__ for cause in causes for base in type(cause).__mro__}
    if names & {"TimeoutException", "TimeoutError"}:
        return (
            "the hub did not answer in time: try again, or set HF_HUB_ETAG_TIMEOUT and "
            "HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
        )
    if names & {"NetworkError", "ConnectionError"}:
        return "the hub cannot be reached: check the connection, and HF_ENDPOINT if it is set"
    return redact(reason_of(error))


def _reasons(address: HubAddress) -> dict[type[Exception], str]:
    """What huggingface_hub's own errors mean; a gated repository's is also one of a missing repository."""
    from huggingface_hub import errors

    repo, revision = address.repo, repr(address.revision or "main")
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    return {
        errors.OfflineModeIsEnabled: (
            "HF_HUB_OFFLINE is set and the file is not in the cache: fetch it once with a connection"
        ),
        errors.GatedRepoError: f"{repo} is gated: ask for access on its page on the hub, then {log_in}",
        errors.RepositoryNotFoundError: (
            f"there is no repository {repo}, or it is private: check the name, or {log_in}"
        ),
        errors.RevisionNotFoundError: (
            f"{repo} has no revision {revision}: expected a branch, a tag or a commit"
        ),
        errors.RemoteEntryNotFoundError: (
            f"{repo} has no file {address.path!r} at revision {revision}: check the path"
        ),
    }


def redact(text: str) -> str:
    """A text on one line without tokens, and without the user and password of an address."""
    return str(mask_credentials(" ".join(text.split())))


def _no_address(text: str, reason: str) -> HubError:
    return HubError(f"{redact(text)!r} is no address of a file on the hub: {reason}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised for: huggingface_hub wraps a lost connection in a missing file."""
    for _ in range(10):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error carries."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None
