"""Reports: the collected content, the text and escaping of the page, and the page in a real browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import result_files
from helpers.command_line import Done
from helpers.command_line import truthgate as run_truthgate
from helpers.leaderboards import BAD, GOLDS
from PIL import Image

from truthgate_eval.analysis.report.charts import Axis, sweep_chart
from truthgate_eval.analysis.report.collect import ReportConfig, ReportError, collect, group_runs, read_inputs
from truthgate_eval.analysis.report.page import render
from truthgate_eval.analysis.report.provenance import command_of, date_of
from truthgate_eval.analysis.runs.results_files import RunError
from truthgate_eval.errors import ScoresError, TruthGateError
from truthgate_eval.gating.scores import TruthScores

GOOD = result_files.answers(GOLDS, [0, *range(15, 20)])
QUICK: dict[str, Any] = {"permutations": 99, "resamples": 200}
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
POINTS = [
    {"lam": 0.0, "norm": "centered", "site": "post", "value": 0.42, "documents": 100},
    {"lam": 2.0, "norm": "minmax", "site": "post", "value": 0.40, "stderr": 0.05, "documents": 100},
    {"lam": 1.0, "norm": "minmax", "site": "post", "value": 0.50, "stderr": 0.05, "documents": 100},
    {"lam": 1.0, "norm": "centered", "site": "post", "value": 0.44, "stderr": None, "documents": 100},
]
RECOMMENDED = {
    "lam": 1.0, "norm": "minmax", "site": "post", "task": "halueval_qa", "metric": "acc", "subset": "selection",
    "points": POINTS,
}  # fmt: skip


def save(path: Path, seed: int = 0, shape: tuple[int, int] = (4, 6), **metadata: Any) -> str:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.5, 1, size=shape)
    return str(TruthScores(scores, stderr=np.full(shape, 0.02), metadata=metadata).save(path))


def report_on(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    entries, members = read_inputs([str(argument) for argument in arguments])
    return collect(entries, members, ReportConfig(**{**QUICK, **options}))


def truthgate(*arguments: str | Path) -> Done:
    """`truthgate report` with few permutations and resamples."""
    return run_truthgate("report", "--permutations", "99", "--resamples", "200", *map(str, arguments))


def put_answer(text: str, run: Path, document: int) -> None:
    """Replace the text of a run's answer to one document; the verdict stays."""
    file = result_files.only_file(run, "samples_*")
    samples = result_files.read_lines(file)
    samples[document]["resps"] = [[text]]
    result_files.write_lines(file, samples)


def data_of(page: str) -> dict[str, Any]:
    """The data that the page's script reads."""
    [block] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(block)


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


@pytest.fixture
def vanilla(tmp_path: Path) -> Path:
    return result_files.lm_eval_run(tmp_path / "vanilla", {"halueval_qa": BAD})


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    return result_files.lm_eval_run(tmp_path / "gated", {"halueval_qa": GOOD}, gate=result_files.LLM)


@pytest.fixture
def with_images(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two runs on 40 questions about 10 images, and the folder of the images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for n in range(10):
        Image.new("RGB", (640, 480), (25 * n, 80, 120)).save(folder / f"{n:03}.jpg")
    worse = result_files.answers(GOLDS, range(30, 34))  # images 7 and 8
    one = result_files.lmms_eval_run(tmp_path / "vlm", {"poll_random": GOLDS})
    two = result_files.lmms_eval_run(tmp_path / "vlm-gated", {"poll_random": worse}, gate=result_files.LLM)
    return one, two, folder


def test_a_page_of_runs_and_artifacts_is_one_file_with_everything_on_it(
    vanilla: Path, gated: Path, tmp_path: Path
) -> None:
    artifact = save(tmp_path / "vicuna.npz", task="probe_halueval_qa", recommended=RECOMMENDED)
    page = tmp_path / "report.html"
    arguments = (vanilla, gated, artifact, f"Llama/llama={save(tmp_path / 'b.npz', 1)}")
    done = truthgate(*arguments, "--output", page)
    assert (done.returncode, done.stderr) == (0, "") and "2 runs, 2 artifacts, 40 documents" in done.stdout
    written = page.read_text()
    words = " ".join(text_of(written).split())
    for expected in (
        "TruthProbe_LLM",
        "85.0",
        "better",
        "+60.0",
        "lam=4.5, centered, post",
        "4 layers x 6 heads",
    ):
        assert expected in words
    assert words.count("published") >= 2 and "44.6" in words  # the paper's F1 of gated Vicuna
    assert "src=" not in re.sub(r"<script.*?</script>", "", written, flags=re.DOTALL)
    assert not re.findall(r"https?://(?!www\.w3\.org)", written)
    first = written.encode()
    truthgate(*arguments, "--output", page)
    assert page.read_bytes() == first


def test_published_rows_are_marked_and_measured_rows_are_not(vanilla: Path, gated: Path) -> None:
    page = render(report_on(vanilla, gated))
    rows = re.findall(r'<tr class="(measured|published)">(.*?)</tr>', page, re.DOTALL)
    assert [origin for origin, _ in rows] == ["measured", "measured", "published", "published"]
    assert [("badge" in row, "vicuna-7b" in row) for _, row in rows] == [(False, False)] * 2 + [
        (True, True)
    ] * 2


def test_text_of_runs_and_artifacts_is_escaped(vanilla: Path, gated: Path, tmp_path: Path) -> None:
    put_answer(EVIL, gated, document=3)
    sweep = {**RECOMMENDED, "metric": EVIL, "task": EVIL}
    artifact = save(tmp_path / "a.npz", model=EVIL, task=EVIL, site=EVIL, recommended=sweep, note=EVIL)
    page = render(report_on(f"<script>x</script>={vanilla}", gated, f"<img src>={artifact}"))
    assert "<img" not in page and page.count("<script") == page.count("</script") == 2
    assert data_of(page)["samples"]["documents"][3]["answers"][1]["text"] == EVIL


def test_a_lone_surrogate_in_an_answer_does_not_stop_the_page(vanilla: Path, tmp_path: Path) -> None:
    file = result_files.only_file(vanilla, "samples_*")
    file.write_text(file.read_text().replace("how much is 3?", "how much is \\ud83d?"))
    artifact = save(tmp_path / "a.npz", note="\ud83d")
    page = tmp_path / "report.html"
    assert truthgate(vanilla, artifact, "-o", page).returncode == 0
    assert "\\ud83d" in data_of(page.read_text())["samples"]["documents"][3]["question"]


def test_one_run_alone_has_a_leaderboard_without_a_comparison(gated: Path) -> None:
    made = report_on(gated)
    [board] = made["leaderboards"][0]["boards"]
    assert [row["label"] for row in board["rows"] if row["origin"] == "measured"] == ["TruthProbe_LLM"]
    assert board["rows"][0]["cells"]["halueval_qa"]["acc"]["mean"] == 34 / 40
    assert board["comparisons"] == [] and made["artifacts"] == []
    assert "Against" not in render(made) and 'id="heads"' not in render(made)


def test_artifacts_alone_make_a_page(tmp_path: Path) -> None:
    made = report_on(save(tmp_path / "a.npz"))
    assert made["leaderboards"] == [] and made["families"] == [] and made["family_notes"] == []
    page = render(made)
    assert 'id="heads"' in page and 'id="leaderboard"' not in page and 'id="samples"' not in page


def test_runs_without_a_task_in_common_have_leaderboards_of_their_own(
    vanilla: Path, gated: Path, with_images: tuple[Path, Path, Path]
) -> None:
    arguments = (gated, f"pictures={with_images[0]}", vanilla, f"gated pictures={with_images[1]}")
    made = report_on(*arguments, published="none")
    names = [[run["name"] for run in board["runs"]] for board in made["leaderboards"]]
    assert names == [["vanilla", "TruthProbe_LLM"], ["pictures", "gated pictures"]]
    assert made["samples"]["runs"] == ["vanilla", "TruthProbe_LLM", "pictures", "gated pictures"]
    assert [len(document["answers"]) for document in made["samples"]["documents"]] == [4] * 80
    assert [one is None for one in made["samples"]["documents"][-1]["answers"]] == [True, True, False, False]
    entries, _ = read_inputs([str(argument) for argument in arguments])
    assert [len(group) for group in group_runs(entries)] == [2, 2]
    other = report_on(*arguments, baseline="gated pictures")
    assert [board["baseline"] for board in other["leaderboards"]] == ["vanilla", "gated pictures"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is neither a run nor an artifact"),
        (["nowhere.npz"], "no score file at nowhere.npz|no scores 'nowhere.npz'"),
        ([], "nothing to report on"),
    ],
)
def test_an_argument_that_is_neither_run_nor_artifact_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(TruthGateError, match=message) as caught:
        read_inputs(arguments)
    assert "\n" not in str(caught.value)


def test_a_mistake_leaves_no_page(gated: Path, vanilla: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    short = result_files.lm_eval_run(tmp_path / "short", {"halueval_qa": GOOD[:-1]}, gate=result_files.LLM)
    done = truthgate(vanilla, short, "-o", page)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "document 39" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = truthgate(vanilla, "-o", tmp_path / "report.txt")
    assert done.returncode == 1 and "ends in .html" in done.stderr
    assert not page.exists() and not list(tmp_path.glob("*.html*"))
    with pytest.raises(RunError, match="no vanilla run"):
        report_on(gated, f"again={gated}")
    with pytest.raises(ReportError, match="2 artifacts are called 'a'"):
        read_inputs([save(tmp_path / "a.npz"), f"a={save(tmp_path / 'b.npz')}"])


def test_heads_have_their_score_and_interval(tmp_path: Path) -> None:
    scores = np.array([[0.9, 0.5], [0.995, 0.7]])
    path = TruthScores(
        scores,
        stderr=np.full((2, 2), 0.01),
        auroc=np.array([[0.8, np.nan], [1, 1]]),
        controls={"surface": np.array([[0.97]]), "no-context": scores - 0.2},
        control_stderr={"surface": np.full((2, 2), 0.01), "no-context": np.full((2, 2), 0.01)},
    ).save(tmp_path / "a.npz")
    [artifact] = report_on(path)["artifacts"]
    assert artifact["arrays"]["score"] == [[0.9, 0.5], [0.995, 0.7]]
    assert artifact["arrays"]["AUROC"][0] == [0.8, None]
    assert artifact["arrays"]["control surface"] == [[0.97, 0.97], [0.97, 0.97]]
    assert artifact["interval"]["low"][0] == [0.8804, 0.4804]
    assert artifact["interval"]["high"] == [[0.9196, 0.5196], [1.0, 0.7196]]  # no accuracy is above 1
    assert [line.split(":")[0] for line in artifact["warnings"]] == ["surface explains the scores"]
    assert "surface explains the scores" in render(report_on(path))
    gain = TruthScores(np.zeros((2, 2)), stderr=np.full((2, 2), 0.01), metadata={"score": "context-gain"})
    [artifact] = report_on(gain.save(tmp_path / "gain.npz"))["artifacts"]
    assert artifact["interval"]["low"][0][0] == -0.0196
    bare = tmp_path / "bare.npy"
    np.save(bare, scores)
    assert report_on(bare)["artifacts"][0]["interval"] is None


def test_only_artifacts_of_one_geometry_share_a_matrix(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.npz", n) for n in range(3)]
    flat = TruthScores(np.full((4, 6), 0.5)).save(tmp_path / "flat.npz")
    made = report_on(*paths, save(tmp_path / "wide.npz", shape=(4, 8)), flat)
    [family] = made["families"]
    assert (family["geometry"], len(family["members"])) == ("4 layers x 6 heads", 3)
    matrix = family["matrices"]["pearson"]
    stack = [TruthScores.load(path).scores.ravel() for path in paths]
    assert matrix[0][2]["r"] == pytest.approx(np.corrcoef(stack[0], stack[2])[0, 1], abs=1e-5)
    assert (matrix[0][2]["scope"], matrix[2][0]["scope"], matrix[1][1]) == (
        "all heads",
        "within layers",
        None,
    )
    notes = " ".join(made["family_notes"])
    assert "flat do not differ" in notes and "4 layers x 8 heads to pair wide with" in notes
    assert all(note in text_of(render(made)) for note in made["family_notes"])


def test_the_authors_arrays_give_the_known_correlation_on_the_page(shared_data: Path) -> None:
    folder = shared_data / "truthprobe" / "scores"
    names = {"Vicuna": "vicuna_halueval_292", "LLaVA-1.5": "llava1.5_rlhfv_2726"}
    page = render(report_on(
        *(f"Vicuna/{label}={folder}/converted_score_cv5_head_metrics_{name}.npy" for label, name in names.items())
    ))  # fmt: skip
    assert ">0.621</td>" in page and ">0.549</td>" in page


def test_the_positions_in_a_sweeps_chart_are_those_of_its_candidates(tmp_path: Path) -> None:
    made = report_on(save(tmp_path / "a.npz", recommended=RECOMMENDED))
    sweep = made["artifacts"][0]["sweep"]
    assert [point["chosen"] for point in sweep["points"]] == [False, False, True, False]
    chart = sweep_chart(sweep)
    assert [line["name"] for line in chart["lines"]] == ["minmax, post", "centered, post"]
    marks = chart["lines"][0]["points"]
    assert [mark["text"].split(",")[0] for mark in marks] == ["lam 1", "lam 2"]
    # lam 1 is in the middle between 0 and 2; a higher value is higher on the page, so its y is smaller.
    assert marks[0]["x"] - chart["vanilla"][0]["x"] == pytest.approx(marks[1]["x"] - marks[0]["x"], abs=0.2)
    assert marks[0]["high"] < marks[0]["y"] < chart["lines"][1]["points"][0]["y"] < marks[1]["y"]
    assert chart["plot"]["top"] < marks[0]["high"] and marks[1]["low"] < chart["plot"]["bottom"]
    page = render(made)
    assert (
        page.count('class="mark"') == 3
        and page.count('class="chosen"') == 1
        and "acc 0.5000 ± 0.0500" in page
    )
    assert 'id="sweeps"' not in render(report_on(save(tmp_path / "b.npz")))
    for points in (
        [{"lam": 1}],
        [{**POINTS[0], "value": None}],
        [{**POINTS[0], "value": float("nan")}],
        ["x"],
    ):
        with pytest.raises(ScoresError, match=r"a\.npz.*sweep"):
            report_on(save(tmp_path / "a.npz", recommended={**RECOMMENDED, "points": points}))


def test_an_axis_is_linear_and_its_ticks_are_on_it() -> None:
    axis = Axis(0, 10, 100, 300)
    assert (axis(0), axis(5), axis(10)) == (100, 200, 300)
    assert [(tick["text"], tick["at"]) for tick in axis.ticks(5)] == [
        ("0", 100), ("2", 140), ("4", 180), ("6", 220), ("8", 260), ("10", 300),
    ]  # fmt: skip


def test_documents_that_changed_come_first_where_not_all_fit(vanilla: Path, gated: Path) -> None:
    samples = report_on(vanilla, gated)["samples"]
    assert len(samples["documents"]) == 40 and samples["notes"] == []
    changed = [n for n in range(40) if (BAD[n] == GOLDS[n]) != (GOOD[n] == GOLDS[n])]
    few = report_on(vanilla, gated, documents=len(changed))["samples"]
    assert [document["id"] for document in few["documents"]] == changed
    assert few["notes"][0].startswith(f"{len(changed)} of 40 documents are on this page")
    document = samples["documents"][5]
    assert (document["question"], document["label"]) == ("halueval_qa: how much is 5?", "no")
    assert document["about"] == {"answer": "3"}
    assert document["answers"] == [{"text": "Yes", "right": False}, {"text": "No", "right": True}]


def test_long_texts_are_cut_with_their_length(vanilla: Path) -> None:
    file = result_files.only_file(vanilla, "samples_*")
    file.write_text(file.read_text().replace('"answer": "3"', f'"answer": "{"x" * 5000}"'))
    about = report_on(vanilla)["samples"]["documents"][0]["about"]["answer"]
    assert len(about) < 700 and about.endswith("[cut: 5,000 characters]")


def test_thumbnails_are_small_and_of_changed_documents_first(with_images: tuple[Path, Path, Path]) -> None:
    one, two, folder = with_images
    options = {"images": [folder], "published": "none"}
    samples = report_on(one, two, **options)["samples"]
    assert len(samples["pictures"]) == 10 and samples["notes"] == []
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in samples["pictures"])
    assert max(map(len, samples["pictures"])) < 4_000
    assert {document["picture"] for document in samples["documents"][28:32]} == {0}
    few = report_on(one, two, thumbnails=2, **options)["samples"]
    shown = [n for n, document in enumerate(few["documents"]) if "picture" in document]
    assert shown == list(range(28, 36)) and len(few["pictures"]) == 2
    assert (
        few["notes"][0].startswith("2 of 10 images are on this page") and "8 are left out" in few["notes"][0]
    )


def test_missing_images_are_noted(with_images: tuple[Path, Path, Path]) -> None:
    one, two, folder = with_images
    (folder / "003.jpg").write_bytes(b"no picture")
    samples = report_on(one, two, images=[folder])["samples"]
    assert len(samples["pictures"]) == 9 and "picture" not in samples["documents"][12]
    assert samples["notes"] == [
        "1 images are not where the run had them, such as /pictures/003.jpg (--images FOLDER says where they are)."
    ]
    assert len(report_on(one, two)["samples"]["pictures"]) == 0


def test_provenance_has_the_command_the_date_and_the_gate(gated: Path) -> None:
    entries, _ = read_inputs([str(gated)])
    results = json.loads(result_files.only_file(gated, "results_*").read_text())
    results["config"] |= {"model_args": {"scores": "a b.npz", "lam": 4.5}, "limit": 20.0}
    assert command_of(entries[0], results) == (
        "lm_eval --model gated_hf --model_args 'scores=a b.npz,lam=4.5' --tasks halueval_qa --limit 20 --batch_size 1"
    )
    assert date_of({"date": 1795479564.158}) == "2026-11-24 00:19:24 UTC"
    assert date_of({"date": "20261124_081836"}) == "2026-11-24 08:18:36"
    assert (date_of({"date": "yesterday"}), date_of({})) == ("yesterday", None)
    text = text_of(render(report_on(gated)))
    assert "torch.float32" in text and '"norm": "centered"' in text and "2.15.0+cu132" in text


def test_long_lists_in_the_metadata_become_their_ends_and_length(tmp_path: Path) -> None:
    [artifact] = report_on(save(tmp_path / "a.npz", rows={"qa": list(range(292))}, task="t"))["artifacts"]
    assert artifact["metadata"]["rows"] == {"qa": "0 ... 291 (292 values)"}


# The page in a browser.


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"needs a Chromium on the path: {', '.join(names)}")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive the browser")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(
    chromium: Any, vanilla: Path, gated: Path, with_images: tuple[Path, Path, Path], tmp_path: Path
) -> Iterator[Any]:
    """The page of all inputs, opened from its file. A console message or a network request fails the test."""
    put_answer(EVIL, gated, document=1)
    one, two, folder = with_images
    artifacts = [save(tmp_path / f"{n}.npz", n, recommended=RECOMMENDED) for n in range(2)]
    made = report_on(
        vanilla, gated, f"pictures={one}", f"gated pictures={two}", *artifacts,
        save(tmp_path / "wide.npz", shape=(32, 32)), images=[folder],
    )  # fmt: skip
    path = tmp_path / "report.html"
    path.write_text(render(made))
    page = chromium.new_page(viewport={"width": 1200, "height": 900})
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on(
        "request",
        lambda request: messages.append(request.url) if request.url[:5] not in ("file:", "data:") else None,
    )
    page.goto(path.as_uri())
    yield page
    page.close()
    assert messages == []


def num_listed(page: Any) -> int:
    return page.locator(".sample").count()


def test_the_tooltip_of_a_cell_names_its_head(opened: Any) -> None:
    scores = np.random.default_rng(0).uniform(0.5, 1, size=(4, 6))
    opened.hover('.map[data-artifact="0"] [data-layer="2"][data-head="5"]')
    tip = opened.inner_text("#tip")
    assert "layer 2, head 5" in tip and f"score {scores[2, 5]:.3f}" in tip and "95 % interval" in tip
    # The same head is framed in the other map of its size, not in the one of another.
    assert [opened.locator(f'.map[data-artifact="{n}"] .frame').count() for n in range(3)] == [1, 1, 0]
    opened.keyboard.press("Escape")
    opened.hover("h1")
    assert not opened.is_visible("#tip") and opened.locator(".frame").count() == 0
    opened.focus('.map[data-artifact="0"] svg')
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        opened.keyboard.press(key)
    assert "layer 1, head 1" in opened.inner_text("#tip")


def test_another_quantity_or_scale_redraws_the_maps(opened: Any) -> None:
    first = '.map[data-artifact="0"] '
    own = opened.inner_text(first + ".legend")
    opened.select_option("#scale", "common")
    assert opened.inner_text(first + ".legend") != own
    assert len({opened.inner_text(f'.map[data-artifact="{n}"] .legend') for n in range(3)}) == 1
    opened.select_option("#quantity", "stderr")
    assert opened.inner_text(first + ".low") == "0.020"


def test_filters_change_which_documents_are_listed(opened: Any) -> None:
    changed = [n for n in range(40) if (BAD[n] == GOLDS[n]) != (GOOD[n] == GOLDS[n])]
    fixed = [n for n in changed if GOOD[n] == GOLDS[n]]
    # Document 1 has another wording, and the same verdict.
    assert num_listed(opened) == len(changed) + 1
    for name, count in (("fixed", len(fixed)), ("broken", len(changed) - len(fixed)), ("all", 40)):
        opened.select_option("#filter", name)
        assert num_listed(opened) == count
        assert opened.inner_text("#count").startswith(f"{count} of 40 documents")
    opened.fill("#search", "MUCH IS 17")
    assert num_listed(opened) == 1 and "how much is 17?" in opened.inner_text("#list")
    opened.fill("#search", "")
    opened.select_option("#before", "2")
    assert num_listed(opened) == 0 and "no document of this page" in opened.inner_text("#count")
    opened.select_option("#after", "3")
    opened.select_option("#filter", "broken")
    assert num_listed(opened) == 4
    assert opened.locator(".sample img").evaluate_all(
        "images => images.every((one) => one.naturalWidth === 160)"
    )


def test_an_answer_that_is_a_script_is_text_and_is_not_run(opened: Any) -> None:
    opened.select_option("#filter", "all")
    opened.fill("#search", "onerror")
    assert num_listed(opened) == 1 and EVIL in opened.inner_text("#list")
    assert opened.title() == "Truth gates: report"


def test_candidates_of_a_sweep_and_cells_of_the_matrix_have_tooltips(opened: Any) -> None:
    opened.hover("#sweeps figure:first-of-type .mark >> nth=0")
    assert "lam 1, minmax, post" in opened.inner_text("#tip")
    opened.hover("#family .matrix td[data-tip] >> nth=1")
    assert "within layers" in opened.inner_text("#tip") and "Holm" in opened.inner_text("#tip")


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_can_be_read(opened: Any, width: int, scheme: str) -> None:
    opened.set_viewport_size({"width": width, "height": 800})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    style = "(e) => [getComputedStyle(document.body).backgroundColor, getComputedStyle(e).color]"
    for place in ("h2", ".dim", ".answer.wrong b", ".published th"):
        paper, ink = opened.locator(place).first.evaluate(style)
        assert contrast(paper, ink) >= 4.5, place


def contrast(one: str, other: str) -> float:
    """Of two CSS colours, by WCAG 2."""
    channels = np.array([[int(x) / 255 for x in re.findall(r"\d+", colour)[:3]] for colour in (one, other)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)
