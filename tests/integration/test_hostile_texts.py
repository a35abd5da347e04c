"""Texts of strangers in a real browser and in a real terminal: they are shown as text, and nothing obeys them."""

from __future__ import annotations

import html.parser
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.command_line import truthgate
from helpers.hostile import HOSTILE, MARKUP, TERMINAL, hostile_artifact, hostile_run

from truthgate_eval.escaping import visible

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
# What the report itself consists of; nothing else may be in the document that a browser makes of it.
OUTSIDE = {
    "base", "embed", "form", "frame", "iframe", "img", "object", "video", "audio", "source", "applet", "math",
}  # fmt: skip


class Document(html.parser.HTMLParser):
    """A document as a browser has written it out.

    Attributes:
        tags: How many elements of each name.
        attributes: All (name, value) pairs.
        text: What is outside of scripts and styles.
        title: The document's title.
    """

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text, self.title, self._inside = "", "", ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        self._inside = tag if tag in ("script", "style", "title") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "title":
            self.title += data
        elif not self._inside:
            self.text += data


@contextmanager
def recording_server() -> Iterator[tuple[str, list[str]]]:
    """The address of a web server on this machine, and the paths that it is asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def dump(page: Path, profile: Path) -> str:
    """The document that headless Chromium makes of a page, after its scripts have run."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--dump-dom", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        f"--user-data-dir={profile}", "--virtual-time-budget=3000", page.as_uri(),
    ]  # fmt: skip
    # A dialog, as `alert` opens it, would never end.
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def acting(address: str) -> list[str]:
    """Texts that would run a script, ask for an address or leave the page, each in its own way."""
    mark = "document.documentElement.dataset.owned=1;document.title=1;alert(1)"
    return [
        f"<script>{mark}</script>", f"</script><script>{mark}</script>", f'"><img src=x onerror="{mark}">',
        f"<img src={address}/image>", f"<iframe src={address}/frame></iframe>", f"<svg onload='{mark}'>",
        f"<link rel=stylesheet href={address}/style>", f"<meta http-equiv=refresh content='0;url={address}/go'>",
        f"<base href={address}/>", f"<a href='javascript:{mark}'>", f"</style><script src={address}/a.js></script>",
        f"<!--<script>{mark}//-->", "{{ 7*7 }}", "{% raw %}", "</title>", "\\u003cscript\\u003e",
    ]  # fmt: skip


def make_report(folder: Path, text: str) -> Path:
    """`truthgate report` of two runs and two artifacts in which all that a stranger names is a text."""
    runs = [
        hostile_run(folder / "a", text, [0, 1]),
        hostile_run(folder / "b", text, [2], gate=True),
    ]
    artifacts = [hostile_artifact(folder / f"{seed}.npz", text, seed) for seed in (0, 1)]
    page = folder / "report.html"
    done = truthgate(
        "report", f"{text.replace('=', '')}={runs[0]}", str(runs[1]), f"one={artifacts[0]}", f"F/two={artifacts[1]}",
        "--permutations", "9", "--resamples", "100", "-o", str(page),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return page


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium on the path, to open the report in it")
def test_a_browser_shows_hostile_texts_of_a_report_as_text(tmp_path: Path) -> None:
    with recording_server() as (address, asked):
        texts = [*acting(address), *HOSTILE, *TERMINAL, *MARKUP]
        page = make_report(tmp_path, " ".join(texts))
        found = Document(dump(page, tmp_path / "profile"))
        # A page that does obey them, so that the checks are known to see it.
        control = tmp_path / "control.html"
        script, image = acting(address)[0].replace("alert(1)", ""), acting(address)[3]
        control.write_text(f"<title>Truth gates: report</title><p>{script}{image}")
        obeyed = Document(dump(control, tmp_path / "profile"))
        assert ("data-owned", "1") in obeyed.attributes and obeyed.tags["img"] == 1 and asked == ["/image"]
    assert found.title == "Truth gates: report"
    assert found.tags["script"] == 2 and found.tags["style"] == 1 and found.tags["link"] == 1
    assert not OUTSIDE & set(found.tags)
    names = Counter(name for name, _ in found.attributes)
    assert "data-owned" not in names and not [name for name in names if name.startswith("on")]
    assert names["http-equiv"] == 1
    links = [value for name, value in found.attributes if name in ("href", "src", "action", "xlink:href")]
    assert links and all(link.startswith(("#", "data:")) for link in links)
    shown = " ".join(found.text.split())
    for text in texts:
        # The model's name, an artifact's and the answers of documents that the script lists.
        assert shown.count(" ".join(visible(text).split())) >= 3, text
    assert "opensesame" not in found.text and "hf_aaaa" not in found.text


# Runs several commands of the program in one process, whose terminal is the pseudo terminal.
COMMANDS = """
import sys
from truthgate_eval.cli import main as cli
for arguments in {commands!r}:
    sys.argv = ["truthgate", *arguments]
    try:
        cli.main()
    except SystemExit as stop:
        assert stop.code in (0, None, {failing}), (arguments, stop.code)
"""
# What rich writes of its own: styles, and of a progress bar the cursor hidden, shown and moved up, lines erased.
STYLE = re.compile(rb"\x1b\[(?:[0-9]{1,3}(?:;[0-9]{1,3})*)?m")
PROGRESS = re.compile(rb"\x1b\[\?25[lh]|\x1b\[1A|\x1b\[2K|\r")
BLINK = re.compile(rb"\x1b\[[0-9;]*\b5;41m")


def in_a_terminal(commands: list[list[str]], cwd: Path, failing: int = 0) -> bytes:
    """What the program writes to a terminal of 200 columns."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    code = COMMANDS.format(commands=commands, failing=failing)
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONUTF8": "1"}
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=environment
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not block:
            break
        written += block
    os.close(ours)
    assert process.wait(timeout=60) == 0, written[-2000:]
    return written


def left_of(written: bytes) -> str:
    """The output without what rich writes of its own; line ends are as a terminal takes them."""
    text = PROGRESS.sub(b"", STYLE.sub(b"", written.replace(b"\r\n", b"\n"))).decode()
    controls = {sign for sign in text if (sign < " " or "\x7f" <= sign <= "\x9f") and sign not in "\n\t"}
    assert not controls, sorted(map(ascii, controls))
    assert not BLINK.search(written)
    assert not set("\u202e\u2028\u2066\u2069") & set(text)
    return text


@pytest.mark.parametrize("name", [name for name in TERMINAL if "\x1b[1A" not in name])
def test_the_check_sees_what_a_terminal_would_obey(name: str) -> None:
    """All but a progress bar's own movement, of which the tests below look for the text in its place."""
    with pytest.raises(AssertionError):
        left_of(name.encode())
    assert left_of(f"\x1b[1;31m{visible(name)}\x1b[0m\r\n".encode()) == f"{visible(name)}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_terminal_is_not_obeyed_by_hostile_names(tmp_path: Path) -> None:
    text = " ".join([*TERMINAL, "\u202egnp.exe", "a\u2028b", "\u2066x\u2069", *MARKUP])
    plain, gated = (
        hostile_run(tmp_path / "a", text, [0, 1]),
        hostile_run(tmp_path / "b", text, [2], gate=True),
    )
    one, two = (hostile_artifact(tmp_path / f"{seed}.npz", text, seed) for seed in (0, 1))
    named = text.replace("=", "").replace("\x00", "").replace("/", "")
    quick = ["--permutations", "9", "--resamples", "100"]
    written = in_a_terminal(
        [
            ["show", str(one)],
            ["compare", f"{named}={plain}", str(gated), "--resamples", "100"],
            ["correlate", f"{named}={one}", str(two), "--permutations", "9"],
            ["report", f"{named}={plain}", str(gated), str(one), *quick, "-o", "report.html"],
        ],
        tmp_path,
    )
    assert STYLE.search(written)  # it is a terminal with colours
    shown = re.sub(r"[\s\u2500-\u259f]+", "", left_of(written))  # tables break their cells over lines
    for name in TERMINAL:
        assert "".join(visible(name).split()) in shown, ascii(name)
    assert "[/red]" in shown and "opensesame" not in shown


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_an_error_that_quotes_a_hostile_file_beside_a_progress_bar_moves_nothing_else(tmp_path: Path) -> None:
    text = "".join(name.replace("/", "") for name in TERMINAL if "\x00" not in name)
    (tmp_path / "images").mkdir()
    record = {"image": f"{text}.jpg", "objects": ["a", "b"]}
    (tmp_path / "objects.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / f"{text}.npz").write_bytes(b"no archive")
    written = in_a_terminal(
        [
            ["data", "poll", "--images", "images", "--annotations", "objects.jsonl", "--out", "out"],
            ["show", f"{text}.npz"],
        ],
        tmp_path,
        failing=1,
    )
    shown = re.sub(r"\s+", "", left_of(written))
    assert shown.count("error:") == 2 and r"\x1b]0;owned\x07" in shown
