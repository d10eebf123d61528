"""Effects: what the frames say is what minigrid has really done, in the mirror too; and its English."""

import copy
import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX
from minigrid.core.world_object import Box, Door

from headstart.envs import engine, variants  # noqa: F401  registers our own ids
from headstart.envs.collect import branch, collect_demos
from headstart.envs.effects import ACTIONS, EFFECTS, effects, explain
from headstart.envs.errors import UsageError
from headstart.envs.experts import expert_for
from headstart.envs.mirror import mirror_frame
from headstart.envs.spaces import Choices, Layout

IDS = [
    "MiniGrid-DoorKey-8x8-v0",
    "MiniGrid-KeyCorridorS3R3-v0",
    "MiniGrid-BlockedUnlockPickup-v0",
    "MiniGrid-MultiRoom-N6-v0",
    "MiniGrid-LavaCrossingS9N3-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-MiniBossLevel-v0",
    "Headstart-SynthS5R2-v0",
]


def frame_of(obs: Any) -> np.ndarray:
    return np.append(obs["image"].reshape(-1, 3) @ np.array([18, 3, 1]), obs["direction"]).astype(np.uint8)


def what_happened(before: Any, after: Any) -> str:
    """From minigrid's own state."""
    if before.carrying is not after.carrying and (before.carrying is None or after.carrying is None):
        return "picked up" if before.carrying is None else "dropped"
    if before.agent_dir != after.agent_dir:
        return "turned"
    if tuple(before.agent_pos) != tuple(after.agent_pos):
        return "moved"
    thing, now = (env.grid.get(*before.front_pos) for env in (before, after))
    if isinstance(thing, Door) and isinstance(now, Door) and thing.is_open != now.is_open:
        return "opened" if now.is_open else "closed"
    if isinstance(thing, Box) and not isinstance(now, Box):
        return "opened"
    return "nothing"


def along_the_way(env_id: str, seed: int, steps: int) -> Any:
    """Frames before (N, 50) and after every action (N, 7, 50), with the truth, where an expert and chance lead."""
    env = gymnasium.make(env_id, disable_env_checker=True)
    obs, _ = env.reset(seed=seed)
    rng, solution = np.random.default_rng(seed), list(expert_for(env_id).solve(copy.deepcopy(env)).actions)
    before, after, truth, ended = [], [], [], []
    for _ in range(steps):
        before.append(frame_of(obs))
        tried = [copy.deepcopy(env) for _ in range(7)]
        seen = [one.step(action) for action, one in enumerate(tried)]
        after.append([frame_of(step[0]) for step in seen])
        ended.append([step[2] for step in seen])
        # identity of what is carried is lost in a copy: only whether something is carried counts above
        truth.append([what_happened(env.unwrapped, one.unwrapped) for one in tried])
        action = solution.pop(0) if solution and rng.random() < 0.9 else int(rng.integers(7))
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    return np.array(before), np.array(after), np.array(truth), np.array(ended)


@pytest.mark.parametrize("env_id", IDS)
def test_frames_say_what_minigrid_did(env_id: str) -> None:
    parts = [along_the_way(env_id, seed, 40) for seed in range(3)]
    before, after, truth, _ = (np.concatenate(part) for part in zip(*parts, strict=True))
    found = np.array(EFFECTS)[effects(before, after)]
    unseen = (before[:, None] == after).all(2)
    np.testing.assert_equal(found[~unseen], truth[~unseen])
    assert (found[unseen] == "nothing").all()
    assert (truth[unseen] == "nothing").mean() > 0.97  # a step through a room without landmarks is seen by nobody
    assert {"nothing", "moved", "turned"} <= set(found.flatten())


def test_every_effect_occurs_in_what_is_tested() -> None:
    parts = [
        along_the_way(env_id, seed, 40) for env_id in ("MiniGrid-BlockedUnlockPickup-v0", IDS[-1]) for seed in (0, 1)
    ]
    assert {truth for part in parts for truth in part[2].flatten()} == set(EFFECTS) - {"ended", "unknown"}


def test_the_end_is_hidden_unless_it_is_given_and_never_how_it_ended() -> None:
    """Goal and lava, which both end an episode, are a step like any other, or an end like any other."""
    parts = [along_the_way("MiniGrid-LavaCrossingS9N3-v0", seed, 60) for seed in range(6)]
    before, after, _, ended = (np.concatenate(part) for part in zip(*parts, strict=True))
    into = engine.TYPE[before[:, 26]]
    for kind in (engine.GOAL_TYPE, engine.LAVA_TYPE):
        last = (into == kind).nonzero()[0]
        assert len(last)
        assert ended[last, engine.FORWARD].all()
        assert set(effects(before, after)[last, engine.FORWARD]) == {EFFECTS.index("moved")}
        assert set(effects(before, after, ended)[last, engine.FORWARD]) == {EFFECTS.index("ended")}
    np.testing.assert_equal(effects(before, after, ended)[~ended], effects(before, after)[~ended])


def test_moves_of_others_are_no_effect_of_ones_own() -> None:
    """Among sixteen moving obstacles: turns are turns, and steps are steps. Walking into one explains nothing."""
    env = gymnasium.make("Headstart-Dynamic-Obstacles-10x10-N16-v0", disable_env_checker=True)
    expert = expert_for("Headstart-Dynamic-Obstacles-10x10-N16-v0")
    found: dict[str, list[str]] = {"moved": [], "turned": [], "nothing": [], "blocked": []}
    for seed in range(3):
        obs, _ = env.reset(seed=seed)
        for wanted in expert.solve(copy.deepcopy(env)).actions[:-1]:
            for action in range(3):
                tried = copy.deepcopy(env)
                after, *_ = tried.step(action)
                kind = EFFECTS[effects(frame_of(obs)[None], frame_of(after)[None, None])[0, 0]]
                blocked = action == engine.FORWARD and engine.TYPE[frame_of(obs)[26]] == engine.BALL_TYPE
                found["blocked" if blocked else what_happened(env.unwrapped, tried.unwrapped)].append(kind)
            obs, *_ = env.step(wanted)
    assert set(found["turned"]) == {"turned"}
    assert set(found["moved"]) == {"moved"}
    # where an obstacle came first and no wall is in view, standing still looks like a step
    assert found["nothing"].count("moved") < 0.1 * len(found["moved"])
    assert set(found["blocked"]) == {"unknown"}
    assert len(found["moved"]) > 50


@pytest.mark.parametrize("env_id", ["MiniGrid-BlockedUnlockPickup-v0", "BabyAI-GoToLocal-v0"])
def test_effects_are_the_same_in_the_mirror(env_id: str, tmp_path: Any) -> None:
    """Of mirrored branches too, so that one set of targets serves both."""
    tried = branch(collect_demos(env_id, 2, history=1, cache=tmp_path))
    plain = effects(tried.frame, tried.future[:, :, 0])
    mirrored = effects(mirror_frame(tried.frame), mirror_frame(tried.future[:, :, 0]))
    np.testing.assert_equal(mirrored, plain)
    assert plain.dtype == np.uint8
    assert plain.shape == (len(tried), 7)


def test_other_frames_have_changed_or_not() -> None:
    """Two numbers whose usual change is 1: one that moves by more than a tenth of that has changed."""
    layout = Layout.of(gymnasium.spaces.Box(-9, 9, (2,), np.float32))
    layout = dataclasses.replace(layout, mean=(0.0, 0.0), scale=(1.0, 1.0), change=(1.0, 1.0))
    before = np.zeros((1, 2), np.float32).view(np.uint8)
    after = np.array([[[0, 0], [0.05, 0], [0.5, 0], [0, -2]]], np.float32).view(np.uint8)
    names = np.array(EFFECTS)
    assert names[effects(before, after, layout=layout)].tolist() == [["nothing", "nothing", "unknown", "unknown"]]
    ended = np.array([[True, False, False, True]])
    assert names[effects(before, after, ended, layout)].tolist() == [["ended", "nothing", "unknown", "ended"]]
    text = explain(before[0], np.array([0, 8]), np.array([0.0, 1.0]), ("wait", "push"))
    assert text == "push: changes something else; preferred over wait, which changes nothing, by 1.0"


def test_outside_grids_actions_have_numbers() -> None:
    layout = Layout.of(gymnasium.spaces.Box(-1, 1, (2,)))
    frame = np.zeros(layout.width, np.uint8)
    picked_up, nothing = EFFECTS.index("picked up"), EFFECTS.index("nothing")
    said = explain(frame, np.array([nothing, picked_up]), np.array([0.0, 1.5]), layout=layout)
    assert said == "action 1: changes something else; preferred over action 0, which changes nothing, by 1.5"


def test_frames_of_another_width_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(2, 8\).*50 bytes.*layout=demos\.layout"):
        effects(np.zeros((2, 8), np.uint8), np.zeros((2, 7, 8), np.uint8))


# ---- in English ----
def packed(kind: str, color: str, state: int = 0) -> int:
    return OBJECT_TO_IDX[kind] * 18 + COLOR_TO_IDX[color] * 3 + state


def situation(front: int, hand: int = engine.EMPTY) -> np.ndarray:
    frame = np.full(50, engine.EMPTY, np.uint8)
    frame[3 * 7 + 5], frame[3 * 7 + 6] = front, hand
    return frame


def said(front: int, hand: int, action: str, effect: str, margin: float = 1.0) -> str:
    """What is said of one action that is preferred to all others, which change nothing."""
    effect_of, margin_of = np.zeros(7, np.int64), np.full(7, 0.25)
    effect_of[ACTIONS.index(action)], margin_of[ACTIONS.index(action)] = EFFECTS.index(effect), 0.25 + margin
    return explain(situation(front, hand), effect_of, margin_of)


def test_an_explanation_names_what_is_there() -> None:
    key, door = packed("key", "yellow"), packed("door", "red", 2)
    nothing = "; preferred over turn left, which changes nothing, by "
    assert said(key, engine.EMPTY, "pick up", "picked up", 2.3) == f"pick up: takes the yellow key{nothing}2.3"
    assert said(door, key, "toggle", "opened") == f"toggle: opens the red door{nothing}1.0"
    assert said(packed("door", "red"), key, "toggle", "closed") == f"toggle: closes the red door{nothing}1.0"
    assert said(packed("box", "blue"), key, "toggle", "opened") == f"toggle: opens the blue box{nothing}1.0"
    assert said(engine.EMPTY, key, "drop", "dropped") == f"drop: puts down the yellow key{nothing}1.0"
    assert said(engine.EMPTY, key, "forward", "moved") == f"forward: moves on{nothing}1.0"
    assert said(engine.WALL, key, "turn right", "turned") == f"turn right: looks another way{nothing}1.0"
    assert said(engine.EMPTY, key, "forward", "ended") == f"forward: ends the episode{nothing}1.0"


def test_a_wrong_prediction_does_not_name_what_is_not_there() -> None:
    for effect in ("picked up", "opened", "closed", "dropped"):
        assert " something;" in said(engine.WALL, engine.EMPTY, "toggle", effect)


def test_it_is_compared_with_the_best_that_does_something_else() -> None:
    effect = np.array([EFFECTS.index(name) for name in ("turned", "turned", "moved", *["nothing"] * 4)])
    margin = np.array([2.0, 1.9, 0.5, 1.0, -1, -1, -1])
    text = explain(situation(engine.EMPTY), effect, margin)
    assert text == "turn left: looks another way; preferred over pick up, which changes nothing, by 1.0"
    assert explain(situation(engine.EMPTY), np.zeros(3, np.int64), np.arange(3.0)) == "forward: changes nothing"
    assert explain(situation(18), np.array([0, 1]), np.array([0.0, 1.5]), ("wait", "go")) == (
        "go: moves on; preferred over wait, which changes nothing, by 1.5"
    )


def test_actions_of_a_python_environment_have_numbers_even_in_a_grid() -> None:
    """A wrapper may have numbered them anew."""
    choices = Choices.of(gymnasium.spaces.Discrete(3))
    said = explain(situation(engine.EMPTY), np.array([1, 0, 0]), np.array([1.0, 0.0, -1.0]), choices=choices)
    assert said == "action 0: moves on; preferred over action 1, which changes nothing, by 1.0"
