"""Reinforcement learning after the warm start: the model of an arm, its fine-tuning, and what the curve says.

A stage of pipeline.py that knows nothing of arms: it is handed a model, levels and a directory.
"""

import copy
import dataclasses
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.callbacks import BaseCallback

from headstart.envs import storage
from headstart.envs.banks import Levels
from headstart.envs.errors import UsageError
from headstart.envs.evaluation import evaluate
from headstart.envs.simulator import Obs
from headstart.envs.vector import HeadstartVecEnv
from headstart.experiments import checkpoint
from headstart.experiments.curves import curve_facts
from headstart.experiments.runlog import RunLog, write_rows
from headstart.learners import GRPO, IWM, PPO, GRPOConfig, Lessons
from headstart.models import HeadstartPolicy
from headstart.models.encoders import Memo
from headstart.models.policy import draw

__all__ = ["RL", "fine_tune", "load_policy", "new_model", "save_policy"]

SCHEMA = 1
CHECKPOINT_EVERY = 8
"""Rollouts between two checkpoints."""
PASSED_ON = ("learning_rate", "gamma", "gae_lambda", "clip_range", "normalize_advantage", "vf_coef", "max_grad_norm")
"""Settings of Stable-Baselines3's PPO that ours leaves as they are there."""


@dataclass(frozen=True)
class RL:
    """Fine-tuning. ``settings`` go to learners.PPO, or to GRPOConfig, as they are."""

    steps: int = 150_000
    """Environment steps."""
    n_envs: int = 64
    """Episodes in lockstep."""
    eval_every: int = 10_000
    """Steps between two points of the curve."""
    settings: dict[str, Any] = field(default_factory=dict)
    algorithm: str = "ppo"
    """"ppo" or "grpo"."""

    def __post_init__(self) -> None:
        if self.algorithm not in ("ppo", "grpo"):
            raise UsageError(f"RL: the algorithm is {self.algorithm!r}. Choose 'ppo' or 'grpo'.")

    @property
    def decided(self) -> dict[str, Any]:
        """All that it depends on, by name: defaults too, ours and Stable-Baselines3's, which may be others one day."""
        if self.algorithm == "grpo":
            return dataclasses.asdict(self) | {"settings": dataclasses.asdict(GRPOConfig(**self.settings))}
        ours, theirs = inspect.signature(PPO).parameters, inspect.signature(StablePPO).parameters
        defaults = {p.name: p.default for p in ours.values() if p.kind is p.KEYWORD_ONLY}
        defaults |= {name: theirs[name].default for name in PASSED_ON}
        return dataclasses.asdict(self) | {"settings": defaults | self.settings}


def new_model(
    levels: Levels, rl: RL, *, memory: int, history: int, horizon: int, seed: int, device: str = "cpu"
) -> PPO:
    """A policy that nobody has trained, in the environment that it is going to be fine-tuned in.

    It is a PPO whatever the algorithm: the one object that has a policy and its environment, and can be exported.
    """
    env = HeadstartVecEnv(levels, rl.n_envs, seed=seed, history=history, horizon=horizon)
    extractor = {"memory": memory}
    return PPO(
        HeadstartPolicy,
        env,
        seed=seed,
        device=device,
        policy_kwargs={"features_extractor_kwargs": extractor},
        **(rl.settings if rl.algorithm == "ppo" else {}),
    )


def save_policy(model: PPO, path: Path) -> None:
    """The weights, and the name of the learner that has fitted them."""
    meta = {"warm_start": model.policy.warm_start}
    storage.save_weights(path, model.policy.weights(), kind="policy", schema=SCHEMA, meta=meta)


def load_policy(model: PPO, path: Path) -> None:
    """Into the model's policy. Raises DataError, naming the file, if it is damaged."""
    weights, meta = storage.load_weights(path, kind="policy", schema=SCHEMA)
    model.policy.load_weights(weights)
    model.policy.warm_start = meta["warm_start"]


def export(model: PPO, path: Path) -> None:
    """What ``headstart.learners.PPO.load`` opens: weights, moments and anchor, but not the episodes."""
    content = io.BytesIO()
    model.save(content, exclude=["_last_obs", "_last_episode_starts", "ep_info_buffer", "ep_success_buffer"])
    storage.save_bytes(path, content.getvalue(), kind="model of stable-baselines3", schema=SCHEMA)


class Compared:
    """Acts as ``policy`` does; ``kl`` is KL(policy || start) in nats, the mean over every tenth step that it takes.

    At every step, ``start`` would make a point of the curve twice as dear.
    """

    def __init__(self, policy: HeadstartPolicy, start: HeadstartPolicy):
        self.now, self.start = policy, start  # not self.policy: `evaluate` would let that act, and compare nothing
        self.memo, self.memo_of_start = Memo(), Memo()
        self.calls, self.nats, self.states = 0, 0.0, 0

    def __call__(self, obs: Obs, rng: np.random.Generator) -> NDArray[np.int64]:
        with self.now.remembering(self.memo):
            p = self.now.probabilities(obs)
        if self.calls % 10 == 0:
            with self.start.remembering(self.memo_of_start):
                q = self.start.probabilities(obs)
            self.nats += float((p * (np.log(p) - np.log(q))).sum())
            self.states += len(p)
        self.calls += 1
        return draw(p, rng)

    @property
    def kl(self) -> float:
        """In nats, of all that was compared."""
        return self.nats / self.states


def fine_tune(
    model: PPO,
    rl: RL,
    directory: Path,
    *,
    validation: Levels,
    horizon: int,
    history: int,
    seed: int,
    spent: int,
    progress: Callable[[float], None],
    lessons: Callable[[], Lessons],
) -> dict[str, Any]:
    """RL from the policy as it is; the curve, on ``validation`` levels, starts at the steps ``spent`` before RL.

    ``lessons`` are asked for if the settings want them rehearsed.
    """
    weights, curve_path = directory / "policy.safetensors", directory / "curve.json"
    if all(storage.exists(path) for path in (weights, curve_path, directory / "rl.csv", directory / "policy.zip")):
        load_policy(model, weights)
        checkpoint.discard(directory)
        return curve_facts(storage.load_json(curve_path, kind="curve", schema=SCHEMA))
    if model.auxiliary_coef:
        model.set_auxiliary(IWM(model.policy, seed=seed))
    if model.rehearsal_coef:
        model.lessons = lessons()
    begun = checkpoint.load(directory)
    kept = {"points": [], "due": 0, "rows": []} if begun is None else begun[1]["kept"]
    points: list[dict[str, Any]] = kept["points"]
    log = RunLog(directory, "rl", offset=spent, rows=kept["rows"])
    start = copy.deepcopy(model.policy)

    def measure(rl_steps: int) -> None:
        rng = np.random.default_rng([seed, 0xE7A1])
        actor = Compared(model.policy, start)
        success, _ = evaluate(validation, actor, history=history, horizon=horizon, rng=rng)
        rate, kl = float(success.mean()), actor.kl
        started = rl_steps == 0 or model.warm_start_policy is None or model.actor_started_at is not None
        points.append(
            {
                "env_steps": spent + rl_steps,
                "rl_steps": rl_steps,
                "success": rate,
                "actor_has_moved": started,
                "kl": kl,
            }
        )
        log(spent + rl_steps, {"eval/success_rate": rate, "eval/kl_to_start": kl})
        progress(min(1.0, rl_steps / rl.steps))

    def between_updates() -> None:
        """A point of the curve every ``eval_every`` steps, and checkpoints."""
        nonlocal updates
        if signals.asked:  # whoever goes on measures the point that may be due
            save()
            signals.let_through()
        if trained.num_timesteps >= kept["due"]:
            measure(trained.num_timesteps)
            kept["due"] += rl.eval_every
        if updates and updates % CHECKPOINT_EVERY == 0:
            save()
        updates += 1

    def save() -> None:
        log.events.flush()
        checkpoint.save(directory, trained, {**kept, "rows": log.rows})

    class Between(BaseCallback):
        """Stable-Baselines3's way of saying it."""

        def _on_rollout_start(self) -> None:
            between_updates()

        def _on_step(self) -> bool:
            return True

    model.set_logger(log.logger())
    trained: PPO | GRPO = model
    if rl.algorithm == "grpo":
        assert isinstance(model.env, HeadstartVecEnv)
        said = lambda step, metrics: log(spent + step, metrics)  # noqa: E731
        trained = GRPO(model.policy, model.env, GRPOConfig(**rl.settings), seed=seed, log=said)
    if begun is None:
        model.set_random_seed(seed)  # the fit has drawn random numbers too, unless it was done by an earlier run
    else:
        checkpoint.restore(trained, begun)
    updates = 0
    with checkpoint.HeldBack() as signals:
        if isinstance(trained, GRPO):
            trained.learn(rl.steps - trained.num_timesteps, between_updates)
            model.num_timesteps = trained.num_timesteps
        else:
            trained.learn(rl.steps - model.num_timesteps, callback=Between(), reset_num_timesteps=begun is None)
    measure(model.num_timesteps)
    facts = curve_facts(points)
    log(spent + model.num_timesteps, {f"rl_curve/{name}": value for name, value in facts.items() if value is not None})
    log.close()
    write_rows(directory / "rl.csv", log.rows, kind="metrics")
    storage.save_json(curve_path, points, kind="curve", schema=SCHEMA)
    export(model, directory / "policy.zip")
    save_policy(model, weights)
    checkpoint.discard(directory)
    return facts
