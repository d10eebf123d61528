"""Demonstrations by hand: play MiniGrid in a terminal, and see no more than an agent does.

    demos = play_in_terminal("MiniGrid-DoorKey-5x5-v0", episodes=4)

The view is drawn with the agent at the bottom, looking up, two characters a cell: what it is and its colour. Levels
come from the same split and in the same order as those of `collect_demos`, and only solved ones are kept.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from headstart.envs import collect, engine
from headstart.envs.banks import bank
from headstart.envs.errors import DataError, check_numbers
from headstart.envs.levels import export_level
from headstart.envs.transitions import Demos

__all__ = ["HELP", "KEYS", "draw", "play_by_hand", "play_in_terminal"]

KEYS = {"left": 0, "right": 1, "up": 2, "p": 3, "d": 4, "t": 5, "e": 6}
HELP = "arrows turn and go  p pick up  d drop  t toggle  e done  n another level  q no more"
KINDS = " .#.DkobG~@"  # of minigrid's types of objects, in their order; a door is drawn by its state
DOORS = "/DL"  # open, closed, locked
COLORS = "rgbpye"


def draw(obs: dict[str, Any]) -> str:
    """What is seen, as text: the 7 x 7 view, and what is to be done."""
    lines = []
    image = np.asarray(obs["image"])
    for y in range(engine.VIEW):
        cells = []
        for x in range(engine.VIEW):
            kind, color, state = image[x, y].tolist()
            if (x, y) == (engine.VIEW // 2, engine.VIEW - 1):
                cells.append("^" + (KINDS[kind] if kind in (5, 6, 7) else " "))  # what is carried lies there
            elif kind == 4:
                cells.append(DOORS[state] + COLORS[color])
            else:
                cells.append(KINDS[kind] + (COLORS[color] if kind in (5, 6, 7) else " "))
        lines.append("".join(cells).rstrip())
    return "\n".join([obs["mission"], "", *lines])


def play_by_hand(
    env_id: str,
    episodes: int,
    read_key: Callable[[], str],
    show: Callable[[str], Any],
    *,
    seed: int = 0,
    history: int = 4,
    horizon: int | None = None,
    split: str = "train",
    cache: str | Path | None = None,
) -> Demos:
    """Levels of MiniGrid or BabyAI, played with the keys that ``read_key`` returns: those of KEYS, "n" and "q".

    ``show`` is given a text before every key. Other keys are ignored. Levels that are not solved are dropped and
    counted. Raises DataError if nothing was solved before "q".
    """
    episodes, seed, history, horizon = check_numbers(
        env_id, episodes=episodes, seed=seed, history=history, horizon=horizon
    )
    candidates = bank(env_id, split, max(1024, 4 * episodes), cache=cache)
    limit = horizon or candidates.horizon
    seeds: list[int] = []
    actions: list[np.ndarray] = []
    dropped, key = 0, ""
    for i in np.random.default_rng([seed, 0xDE]).permutation(len(candidates)):
        env: Any = export_level(candidates.rows[i], env_id, int(candidates.seed[i])).unwrapped
        obs, taken, solved, over, key = env.gen_obs(), [], False, False, ""
        while not over and key not in ("n", "q"):
            show(f"{env_id}: {len(seeds)} of {episodes}, step {len(taken)} of {limit}\n\n{draw(obs)}\n\n{HELP}")
            key = read_key()
            if KEYS.get(key, env.action_space.n) < env.action_space.n:
                obs, reward, terminated, truncated, _ = env.step(KEYS[key])
                taken.append(KEYS[key])
                solved = bool(terminated and reward > 0)
                over = terminated or truncated or len(taken) == limit
        if solved:
            seeds.append(int(candidates.seed[i]))
            actions.append(np.array(taken, np.int64))
        elif taken:
            dropped += 1
        if len(seeds) == episodes or key == "q":
            break
    if not seeds:
        raise DataError(f"{env_id}: no level was solved, so there is no demonstration.")
    return collect.play(env_id, np.array(seeds), actions, history, limit, dropped)


def play_in_terminal(env_id: str, episodes: int, **settings: Any) -> Demos:
    """`play_by_hand` with the keyboard and screen of this terminal."""
    import curses  # not on every system

    names = {curses.KEY_LEFT: "left", curses.KEY_RIGHT: "right", curses.KEY_UP: "up"}

    def run(screen: Any) -> Demos:
        def show(text: str) -> None:
            screen.erase()
            for y, line in enumerate(text.splitlines()[: screen.getmaxyx()[0]]):
                screen.addnstr(y, 0, line, screen.getmaxyx()[1] - 1)
            screen.refresh()

        def read_key() -> str:
            code = screen.getch()
            return names.get(code, chr(code) if 0 <= code < 256 else "")

        return play_by_hand(env_id, episodes, read_key, show, **settings)

    return curses.wrapper(run)
