"""TensorBoard shows what a run has logged: read as files, through its HTTP API, and in a real browser."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from headstart.experiments.runlog import RunLog, read_rows, write_rows

TAG = "eval/success_rate"
SPENT = {"bc": 0, "reflect": 61_000}  # environment steps before RL
CURVE = [0.70, 0.65, 0.80, 0.90]  # the warm start, then after every 1000 steps of RL
RUNS = {f"door_key/{arm}/seed0" for arm in SPENT}


def warm_start(directory: Path, updates: int = 5) -> None:
    log = RunLog(directory, "warm_start")
    for update in range(updates):
        log(update * 100, {"pretrain/loss": 1.0 / (1 + update)})
    log.close()


def fine_tune(directory: Path, arm: str, curve: list[float], *, finish: bool = True) -> RunLog:
    """What the pipeline's fine_tune logs: its own points, and what Stable-Baselines3 hands over."""
    log = RunLog(directory, "rl", offset=SPENT[arm])
    log.describe({"arm": arm, "seed": 0, "learner": {"updates": 1500}}, {TAG: curve[0]})
    logger = log.logger()
    for i, success in enumerate(curve):
        log(SPENT[arm] + 1000 * i, {TAG: success})
        logger.record("rollout/ep_rew_mean", success / 2)
        logger.record("time/fps", 1234)
        logger.dump(step=1000 * i)
    log.events.flush()
    if finish:
        log.close()
    return log


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of one environment, as runs/<env>/<arm>/seed<k>/."""
    root = tmp_path_factory.mktemp("runs")
    for arm in SPENT:
        directory = root / "door_key" / arm / "seed0"
        directory.mkdir(parents=True)
        warm_start(directory)
        fine_tune(directory, arm, CURVE)
    return root


def accumulated(directory: Path) -> EventAccumulator:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return events


def points(directory: Path, tag: str = TAG) -> list[tuple[int, float]]:
    return [(event.step, round(event.value, 6)) for event in accumulated(directory).Scalars(tag)]


def expected(arm: str, curve: list[float] = CURVE) -> list[tuple[int, float]]:
    return [(SPENT[arm] + 1000 * i, success) for i, success in enumerate(curve)]


# ---- 1. files ----
@pytest.mark.parametrize("arm", SPENT)
def test_the_curve_starts_at_the_steps_spent_before_rl(runs: Path, arm: str) -> None:
    assert points(runs / "door_key" / arm / "seed0") == expected(arm)


def test_sentences_are_a_list_of_text(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "warm_start")
    log.say("reflect/rationale", ["pick up: takes the key", "forward: moves on"], 1500)
    log.close()
    events = accumulated(tmp_path)
    (tag,) = events.Tags()["tensors"]
    (event,) = events.Tensors(tag)
    assert tag == "reflect/rationale/text_summary"
    assert event.step == 1500
    assert event.tensor_proto.string_val[0].decode() == "- pick up: takes the key\n- forward: moves on"


def test_a_stage_that_goes_on_leaves_the_others_alone(tmp_path: Path) -> None:
    """RL was interrupted before it had taken as many steps as the fit has had updates."""
    warm_start(tmp_path)
    fit = points(tmp_path, "pretrain/loss")
    log = RunLog(tmp_path, "rl")
    for step in (0, 100, 200):
        log(step, {TAG: step / 1000})
    kept = log.rows[:2]  # of the checkpoint; what came later is lost
    log.close()
    log = RunLog(tmp_path, "rl", rows=kept)
    log(150, {TAG: 0.9})
    log.close()
    assert points(tmp_path) == [(0, 0.0), (100, 0.1), (150, 0.9)]
    assert points(tmp_path, "pretrain/loss") == fit


def test_arms_share_their_tags(runs: Path) -> None:
    tags = [set(accumulated(runs / "door_key" / arm / "seed0").Tags()["scalars"]) for arm in SPENT]
    assert tags[0] == tags[1] == {TAG, "pretrain/loss", "rollout/ep_rew_mean", "time/fps"}


def test_numbers_of_stable_baselines_are_shifted_too(runs: Path) -> None:
    steps = [step for step, _ in points(runs / "door_key" / "reflect" / "seed0", "rollout/ep_rew_mean")]
    assert steps == [61_000, 62_000, 63_000, 64_000]


def test_hyperparameters_lie_in_the_runs_own_events(runs: Path) -> None:
    directories = {str(path.parent.relative_to(runs)) for path in runs.rglob("events.out.tfevents.*")}
    assert directories == RUNS
    tags = accumulated(runs / "door_key" / "bc" / "seed0").PluginTagToContent("hparams")
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(tags)


def test_a_repeated_stage_leaves_no_zigzag(tmp_path: Path) -> None:
    warm_start(tmp_path)
    killed = fine_tune(tmp_path, "reflect", [0.7, 0.1, 0.2], finish=False)
    fine_tune(tmp_path, "reflect", CURVE)
    assert points(tmp_path) == expected("reflect")
    assert len(points(tmp_path, "pretrain/loss")) == 5  # the other stage is left alone
    killed.close()


def test_the_csv_says_the_same_without_times(tmp_path: Path) -> None:
    log = fine_tune(tmp_path, "reflect", CURVE)
    write_rows(tmp_path / "rl.csv", log.rows, kind="metrics")
    rows = read_rows(tmp_path / "rl.csv", kind="metrics")
    assert [(int(r["step"]), float(r["value"])) for r in rows if r["tag"] == TAG] == expected("reflect")
    assert {r["tag"] for r in rows} == {TAG, "rollout/ep_rew_mean"}


# ---- 2. HTTP ----
@pytest.fixture(scope="module")
def server(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """TensorBoard on a free port of this machine; stopped at the end."""
    said = tmp_path_factory.mktemp("tensorboard") / "output.txt"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs)]
    command += ["--host", "127.0.0.1", "--port", "0", "--reload_interval", "1"]
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        yield until(lambda: (m := re.search(r"http://127\.0\.0\.1:\d+", said.read_text())) and m[0], what=said)
    finally:
        process.terminate()
        process.wait(20)


def until(found: Any, *, what: Any, seconds: float = 90) -> Any:
    """The first true value that ``found`` returns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.3)
    if isinstance(what, Path):
        what = what.read_text()
    raise AssertionError(f"waited {seconds} seconds for {what}")


def ask(server: str, path: str, post: Any = None, **query: str) -> Any:
    url = f"{server}/data/plugin/{path}" + (f"?{urlencode(query)}" if query else "")
    content = None if post is None else json.dumps(post).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
        return json.load(answer)


def served(server: str, run: str) -> list[tuple[int, float]]:
    answer = ask(server, "scalars/scalars", run=run, tag=TAG)
    return [(int(step), round(value, 6)) for _, step, value in answer]


def runs_with_curves(server: str) -> set[str]:
    return {run for run, tags in ask(server, "scalars/tags").items() if TAG in tags}


def test_two_arms_overlay_in_tensorboard(server: str) -> None:
    until(lambda: runs_with_curves(server) == RUNS, what="both runs")
    assert set(ask(server, "scalars/tags")) == RUNS  # nothing else is a run of its own
    for arm in SPENT:
        assert served(server, f"door_key/{arm}/seed0") == expected(arm)


def test_tensorboard_tells_runs_apart_by_hyperparameters(server: str) -> None:
    until(lambda: runs_with_curves(server) == RUNS, what="both runs")
    wanted = {"startIndex": 0, "sliceSize": 10, "colParams": [{"hparam": "arm", "includeInResult": True}]}
    wanted |= {"allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_FAILURE"]}
    groups = ask(server, "hparams/session_groups", post={"experimentName": "", **wanted})["sessionGroups"]
    assert {group["hparams"]["arm"]: group["name"] for group in groups} == {
        arm: f"door_key/{arm}/seed0" for arm in SPENT
    }


# TensorBoard's own reader in Python never drops points of a file that is gone; it needs a restart for that.
@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard_data_server") is None, reason="no fast TensorBoard reader for this platform"
)
def test_a_stage_repeated_under_a_running_tensorboard_leaves_no_zigzag(server: str, runs: Path) -> None:
    directory, run = runs / "again" / "bc" / "seed0", "again/bc/seed0"
    directory.mkdir(parents=True)
    killed = fine_tune(directory, "bc", [0.7, 0.1, 0.2], finish=False)
    until(lambda: run in runs_with_curves(server) and len(served(server, run)) == 3, what="the killed stage")
    fine_tune(directory, "bc", CURVE)
    try:
        until(lambda: served(server, run) == expected("bc"), what="the repeated stage")
    finally:
        killed.close()
        shutil.rmtree(runs / "again")


# ---- 3. a browser ----
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium")
def test_a_browser_shows_both_arms_in_one_chart(server: str, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    until(lambda: runs_with_curves(server) == RUNS, what="both runs")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(f"{server}/?tagFilter=success&smoothing=0#timeseries")
        card = page.locator("scalar-card", has_text=TAG).first
        card.wait_for(timeout=60_000)
        for run in RUNS:
            page.get_by_text(run, exact=True).first.wait_for(timeout=30_000)
        assert page.locator("scalar-card").count() == 1
        words = card.inner_text()
        for arm in SPENT:
            assert f"{expected(arm)[-1][0]:,}" in words, words  # the table under the chart: the last step of each run
        colours = [tuple(colour) for colour in card.evaluate(DOT_COLOURS)]
        assert len(set(colours)) == len(SPENT)
        chart, picture = card.locator("line-chart"), tmp_path / "chart.png"
        # a worker draws the chart, and nothing in the page says when it has finished
        until(
            lambda: chart.screenshot(path=picture) and all(pixels(picture, colour) > 40 for colour in colours),
            what="two lines",
            seconds=30,
        )
        page.screenshot(path=tmp_path / "page.png")
        browser.close()


# the red, green and blue of every coloured dot in the table under a chart
DOT_COLOURS = """card => [...card.querySelectorAll("*")]
    .filter(node => /rgb/.test(node.style.backgroundColor) && /circle/.test(node.parentNode.className))
    .map(node => node.style.backgroundColor.match(/[0-9]+/g).slice(0, 3).map(Number))"""


def pixels(path: Path, colour: tuple[int, ...]) -> int:
    """How many pixels of a picture have exactly this colour."""
    return int((np.asarray(Image.open(path).convert("RGB")) == colour).all(axis=-1).sum())
