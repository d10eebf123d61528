"""Playing by hand: keys that are fed in become the demonstrations that an expert with the same actions would give."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from headstart.envs.collect import collect_demos
from headstart.envs.errors import DataError
from headstart.envs.keyboard import KEYS, draw, play_by_hand
from headstart.envs.transitions import Demos

ENV_ID = "MiniGrid-DoorKey-5x5-v0"
NAMES = {action: key for key, action in KEYS.items()}


@pytest.fixture(scope="module")
def expert(cache: Path) -> Demos:
    return collect_demos(ENV_ID, 2, history=2, cache=cache)


def keys_of(demos: Demos, episode: int) -> list[str]:
    return [NAMES[action] for action in demos.action[demos.episode == episode].tolist()]


def played(keys: list[str], episodes: int, cache: Path, shown: list[str] | None = None) -> Demos:
    feed = iter(keys)
    texts = [] if shown is None else shown
    return play_by_hand(ENV_ID, episodes, lambda: next(feed), texts.append, history=2, cache=cache)


def test_the_keys_of_the_expert_give_the_experts_demonstrations(expert: Demos, cache: Path) -> None:
    shown: list[str] = []
    first, second = keys_of(expert, 0), keys_of(expert, 1)
    demos = played(["x", *first[:1], "?", *first[1:], *second], 2, cache, shown)  # keys without a meaning are ignored
    for name in ("seed", "length", "action", "state_hash"):
        np.testing.assert_array_equal(getattr(demos, name), getattr(expert, name))
    assert len(shown) == len(expert) + 2
    assert "0 of 2, step 0 of" in shown[0]
    assert "use the key to open the door" in shown[0]
    assert "1 of 2, step 0 of" in shown[len(first) + 2]


def test_levels_that_were_given_up_are_dropped_and_q_ends_it(expert: Demos, cache: Path) -> None:
    demos = played(["left", "n", *keys_of(expert, 1), "q"], 5, cache)
    assert demos.seed.tolist() == expert.seed[1:].tolist()
    assert demos.dropped == 1
    with pytest.raises(DataError, match="no level was solved"):
        played(["left", "q"], 2, cache)


def test_what_is_drawn_is_what_the_agent_sees() -> None:
    image = np.zeros((7, 7, 3), np.uint8)
    image[..., 0] = 1
    image[0, 0] = 0, 0, 0
    image[1, 0] = 2, 5, 0
    image[2, 1], image[3, 1], image[4, 1] = (4, 4, 2), (4, 0, 0), (4, 1, 1)
    image[5, 2], image[6, 2], image[0, 2] = (5, 4, 0), (6, 2, 0), (8, 1, 0)
    image[3, 6] = 5, 4, 0
    lines = draw({"image": image, "mission": "go"}).splitlines()
    assert lines[0] == "go"
    assert lines[2] == "  # . . . . ."
    assert lines[3] == ". . Ly/rDg. ."
    assert lines[4] == "G . . . . kyob"
    assert lines[8] == ". . . ^k. . ."


def test_every_kind_of_object_has_a_sign() -> None:
    for env_id in ("MiniGrid-LavaGapS5-v0", "BabyAI-GoToLocal-v0", "MiniGrid-Dynamic-Obstacles-5x5-v0"):
        obs, _ = gymnasium.make(env_id).reset(seed=1)
        assert draw(obs)


def test_in_a_real_terminal(expert: Demos, cache: Path) -> None:
    """curses draws, keys arrive, demonstrations come out."""
    arrows = {"left": b"\x1bOD", "right": b"\x1bOC", "up": b"\x1bOA"}
    code = (
        "from headstart.envs.keyboard import play_in_terminal; "
        f"demos = play_in_terminal({ENV_ID!r}, 1, history=2, cache={str(cache)!r}); "
        "print('hash', demos.state_hash.sum())"
    )
    keyboard, terminal = pty.openpty()
    environment: dict[str, Any] = {**os.environ, "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=terminal, stdout=terminal, env=environment)
    os.close(terminal)
    text = b""
    keys = iter([*keys_of(expert, 0), *["q"] * 3])
    while True:
        try:
            text += os.read(keyboard, 4096)
        except OSError:  # closed at the other end
            break
        if text.count(b"no more") + text.count(b"step ") > 0 and (key := next(keys, None)):
            os.write(keyboard, arrows.get(key, key.encode()))
    assert process.wait(30) == 0
    assert f"hash {expert.state_hash[expert.episode == 0].sum()}".encode() in text
