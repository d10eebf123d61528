"""Episodes of a trained policy as a GIF: minigrid's own picture, and below it what was asked, what it did and why.

Episodes are played on the engine, on test levels, and then once more in minigrid, step by step, to be drawn. The
reason is the rationale, what the policy expects of its actions and prefers, where it has learned one; otherwise how
probable the action was.

Legend: T steps of an episode.
"""

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from headstart.envs import storage
from headstart.envs.banks import Levels, bank
from headstart.envs.effects import ACTIONS, EFFECTS, explain
from headstart.envs.errors import UsageError
from headstart.envs.levels import export_level
from headstart.envs.simulator import GridStates, Obs, Simulator
from headstart.experiments.finetune import load_policy, new_model
from headstart.experiments.pipeline import Run
from headstart.models import HeadstartPolicy
from headstart.models.policy import as_tensors
from headstart.models.rationale import RationaleHead

__all__ = ["Played", "play", "watch"]

WIDTH, CAPTION, LINE = 384, 100, 16  # pixels: of a picture, of the text below it, of a line of text
STEP, END = 250, 1500  # milliseconds that a picture stays, and the last of an episode


@dataclass(frozen=True)
class Played:
    """One episode: the level's place in its bank, actions and reasons of its T steps, and whether it succeeded."""

    level: int
    actions: list[int]
    reasons: list[str]
    success: bool


def watch(run: Run, path: Path, *, episodes: int, greedy: bool) -> list[Played]:
    """Play test levels with the policy that a run has left, after PPO if there was any, and write the GIF."""
    experiment, arm = run.experiment, run.experiment.arms[run.arm]
    weights = next((w for w in ("policy", "warm_start") if storage.exists(run.directory / f"{w}.safetensors")), None)
    if path.suffix != ".gif" or path.is_dir():
        raise UsageError(f"--to {path}: a GIF is written. Give the name of a file that ends in .gif.")
    if weights is None:
        name, _, demos = experiment.name.partition("-")
        asked = [name, "--demos", demos] if demos else [name]
        flags = ["--arms", run.arm, "--seed", str(run.seed), "--out", str(run.out)]
        command = shlex.join(["headstart", "run", *asked, *flags])
        raise UsageError(f"{run.directory}: has no trained policy. Type `{command}` first.")
    levels = bank(experiment.env_id, "test", experiment.test_levels)
    if not 1 <= episodes <= len(levels):
        raise UsageError(f"--episodes {episodes}: choose between 1 and {len(levels)}, the number of test levels.")
    model = new_model(
        levels,
        run.rl,
        memory=arm.memory,
        history=experiment.history,
        horizon=experiment.horizon,
        seed=run.seed,
    )
    load_policy(model, run.directory / f"{weights}.safetensors")
    head = _rationale(run, model.policy) if weights == "warm_start" else None
    chosen = np.random.default_rng(run.seed).choice(len(levels), episodes, replace=False)
    played = [
        play(levels, int(level), model.policy, head, run.seed, experiment.history, experiment.horizon, greedy)
        for level in chosen
    ]
    whole = path.with_name(f".{path.name}.part")  # a view, which nothing reads: no manifest, but never half a file
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write_bytes(_gif([_pictures(levels, one) for one in played]))
    whole.replace(path)
    return played


def play(
    levels: Levels,
    level: int,
    policy: HeadstartPolicy,
    head: RationaleHead | None,
    seed: int,
    history: int,
    horizon: int,
    greedy: bool,
) -> Played:
    """One episode of the policy, with a reason for every step."""
    states = GridStates.of(levels).take(np.array([level]))
    episode = Simulator(states, history=history, horizon=horizon)
    rng, act = np.random.default_rng([seed, level]), policy.actor(greedy=greedy)
    actions, reasons = [], []
    while not episode.done[0]:
        obs = episode.observe()
        action = int(act(obs, rng)[0])
        actions.append(action)
        reasons.append(_reason(policy, head, obs, action))
        episode.step(np.array([action]))
    return Played(level, actions, reasons, bool(episode.success()[0]))


@torch.no_grad()
def _reason(policy: HeadstartPolicy, head: RationaleHead | None, obs: Obs, action: int) -> str:
    if head is None:
        return f"{ACTIONS[action]}, with probability {policy.probabilities(obs)[0, action]:.2f}"
    effect, margin = head.predict(policy.features(as_tensors(obs, policy.device)))
    return f"{ACTIONS[action]}. {explain(obs['frames'][0, -1], effect[0], margin[0])}"


def _rationale(run: Run, policy: HeadstartPolicy) -> RationaleHead | None:
    """What the run has kept of its rationale, if it has learned one."""
    path = run.directory / "rationale.safetensors"
    if not storage.exists(path):
        return None
    head = RationaleHead(policy.features_dim, policy.n_actions, len(EFFECTS))
    head.load_state_dict(storage.load_weights(path, kind="rationale", schema=1)[0])
    return head


# ---- pictures ----
def _pictures(levels: Levels, played: Played) -> list[Image.Image]:
    """T + 1 pictures of an episode, played again in minigrid."""
    env = export_level(levels.rows[played.level], levels.env_id, int(levels.seed[played.level]))
    minigrid = cast(Any, env.unwrapped)
    asked, steps = str(levels.mission[played.level]), len(played.actions)
    pictures = []
    for t, (action, reason) in enumerate(zip(played.actions, played.reasons, strict=True)):
        text = [asked, f"step {t + 1} of {steps}", reason]
        pictures.append(_picture(minigrid.get_frame(highlight=True, tile_size=32), text))
        env.step(action)
    end = "solved" if played.success else "not solved"
    pictures.append(_picture(minigrid.get_frame(highlight=True, tile_size=32), [asked, f"{end} in {steps} steps"]))
    return pictures


def _picture(pixels: NDArray[np.uint8], text: list[str]) -> Image.Image:
    """Pixels on a page of fixed width, lines of text below, broken where they are too long."""
    image = Image.fromarray(pixels)
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)), Image.Resampling.LANCZOS)
    page = Image.new("RGB", (WIDTH, image.height + CAPTION), "white")
    page.paste(image)
    pen, font, y = ImageDraw.Draw(page), ImageFont.load_default(12), image.height + 2
    for line in text:
        part = ""
        for word in [*line.split(), None]:
            longer = f"{part} {word}".strip()
            if word is not None and pen.textlength(longer, font) <= WIDTH - 8:
                part = longer
                continue
            pen.text((4, y), part, "black", font)
            part, y = word or "", y + LINE
    return page


def _gif(episodes: list[list[Image.Image]]) -> bytes:
    pictures = [picture for episode in episodes for picture in episode]
    tall = max(picture.height for picture in pictures)
    pages = []
    for picture in pictures:
        page = Image.new("RGB", (WIDTH, tall), "white")
        page.paste(picture)
        pages.append(page.quantize(64))
    durations = [END if t == len(episode) - 1 else STEP for episode in episodes for t in range(len(episode))]
    file = io.BytesIO()
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=durations, loop=0)
    return file.getvalue()
