"""Fine-tuning from forked states: what one of several attempts from the same state did better than the others.

    A_i = (R_i - mean(R)) / std(R)                                   over the G attempts from one state
    L   = -min(r A, clip(r, 1 - e, 1 + e) A) + c KL(pi || pi_start)  r = pi(a | s) / pi_old(a | s), over their steps

GRPO (arXiv 2402.03300, Eq. 3) does without a critic, for which an environment that can be forked is made: a group
starts in one and the same state, its mean return is the baseline, and a group whose attempts all ended alike says
nothing and is left out. States are starts of levels, and states that the policy itself came to from there.

Departures: the KL is exact, because all actions can be counted, and every step weighs the same, whatever the length
of its attempt (division by the length makes long failures cheap, arXiv 2503.20783).

Legend: K states, G attempts from each, S steps of all attempts, B of them in a batch.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.envs.errors import Diverged, UsageError
from headstart.envs.simulator import Obs, Simulator
from headstart.learners.learner import Log, Practice, check_settings, given, silent
from headstart.models.encoders import Memo
from headstart.models.policy import HeadstartPolicy, as_tensors, draw
from headstart.models.training import Metrics, as_numbers

__all__ = ["GRPO", "GRPOConfig", "group_advantage"]


@dataclass(frozen=True)
class GRPOConfig:
    states: int = 8
    """States in an update."""
    group: int = 8
    """Attempts from each."""
    walk: int = 20
    """At most so many steps of the policy lead from the start of a level to such a state; 0 stays at the start."""
    learning_rate: float = 3e-4
    """Adam's."""
    epochs: int = 4
    """Passes over the steps of an update."""
    batch_size: int = 512
    """Steps in a batch."""
    clip_range: float = 0.2
    """How far the probability of an action may be pushed in an update, as a share of it."""
    kl_coef: float = 0.02
    """Weight of the KL to the policy as it was at the start."""
    ent_coef: float = 0.0
    """Weight of the entropy."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        check_settings(self, group=(2, inf), **dict.fromkeys(("states", "epochs", "batch_size"), (1, inf)))


def group_advantage(returns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (K, G) relative to their group, in its standard deviations; 0 where a group's are all equal."""
    spread = returns.std(axis=1, keepdims=True)  # of equal ones not quite 0, but a rounding error
    above = returns - returns.mean(axis=1, keepdims=True)
    return np.divide(above, spread, out=np.zeros_like(returns), where=spread > 1e-9)


@dataclass(frozen=True)
class Attempts:
    """The steps that say something: observations (S, ...), actions (S,), log-probabilities and advantages (S,)."""

    obs: Obs
    action: NDArray[np.int64]
    log_p: NDArray[np.float32]
    advantage: NDArray[np.float32]
    returns: NDArray[np.float64]
    """(K, G) of all attempts."""
    env_steps: int

    def __len__(self) -> int:
        return len(self.action)


class GRPO:
    """``GRPO(policy, env).learn(100_000)``; ``env`` is anything that starts fresh episodes, such as HeadstartVecEnv.

    ``num_timesteps``: environment steps so far, walks included.
    """

    COUNTERS = ("num_timesteps",)
    """Beside weights, the optimizer and random numbers: all that the next update depends on."""

    def __init__(
        self,
        policy: HeadstartPolicy,
        env: Practice,
        config: GRPOConfig | None = None,
        *,
        seed: int = 0,
        log: Log = silent,
    ):
        self.policy, self.config = given(policy, config, GRPOConfig)
        self.env, self.log = env, log
        if getattr(env, "observation_space", policy.observation_space) != policy.observation_space:
            raise UsageError("GRPO: the environment shows something else than what the policy reads. Use one for both.")
        self.rng, self.generator = np.random.default_rng([seed, 0x62]), torch.Generator().manual_seed(seed)
        self.anchor = copy.deepcopy(policy).requires_grad_(False)
        self.optimizer = torch.optim.Adam(policy.actor_parameters(), lr=self.config.learning_rate, eps=1e-5)
        self.num_timesteps = 0

    def learn(self, total_steps: int, callback: Callable[[], None] = lambda: None) -> "GRPO":
        """Update until ``total_steps`` more environment steps are taken; ``callback`` is called before each update."""
        until = self.num_timesteps + total_steps
        while self.num_timesteps < until:
            callback()
            attempts = self.attempt(*self.states())
            self.num_timesteps += attempts.env_steps
            returns = attempts.returns
            with self.anchor.remembering(Memo()):  # of this update alone, so that one who resumes has the same
                metrics = self.update(attempts) if len(attempts) else {}
            metrics["grpo/return"] = float(returns.mean())
            metrics["grpo/groups_that_differ"] = float((group_advantage(returns) != 0).any(axis=1).mean())
            self.log(self.num_timesteps, metrics)
        return self

    # ---- attempts ----
    def states(self) -> tuple[Simulator, int]:
        """K states, and the steps that it took to get there. Where the walk has ended the episode, its start."""
        c, actor, env_steps = self.config, self.policy.actor(), 0
        start = self.env.fresh(c.states, self.rng)
        states = start.fork()
        steps = self.rng.integers(c.walk + 1, size=c.states)
        for t in range(int(steps.max(initial=0))):
            walking = np.flatnonzero((steps > t) & ~states.done)
            if not len(walking):
                break
            moving = states.fork(walking)
            env_steps += moving.step(actor(moving.observe(), self.rng))
            states.put(walking, moving)
        over = np.flatnonzero(states.done)
        states.put(over, start.fork(over))
        return states, env_steps

    def attempt(self, states: Simulator, env_steps: int = 0) -> Attempts:
        """Play G copies of every state to its end."""
        group = self.config.group
        playing = states.fork(np.repeat(np.arange(len(states)), group))
        returns, who = np.zeros(len(playing)), np.arange(len(playing))  # who is still playing
        steps: list[tuple[NDArray[np.int64], Obs, NDArray[np.int64], NDArray[np.float64]]] = []
        memo = Memo()
        while len(who):
            obs = playing.observe()
            with self.policy.remembering(memo):
                p = self.policy.probabilities(obs)
            action = draw(p, self.rng)
            steps.append((who, obs, action, np.log(p[np.arange(len(p)), action])))
            env_steps += playing.step(action)
            returns[who] += playing.reward()
            going_on = np.flatnonzero(~playing.done)
            if len(going_on) < len(who):
                playing, who = playing.fork(going_on), who[going_on]
        returns = returns.reshape(-1, group)
        differs = np.repeat((group_advantage(returns) != 0).any(axis=1), group)
        advantage = group_advantage(returns).reshape(-1)
        said = [differs[who] for who, *_ in steps]
        return Attempts(
            obs={
                name: np.concatenate([obs[name][k] for k, (_, obs, _, _) in zip(said, steps, strict=True)])
                for name in states.observe()
            },
            action=np.concatenate([action[k] for k, (_, _, action, _) in zip(said, steps, strict=True)]),
            log_p=np.concatenate([log_p[k] for k, (*_, log_p) in zip(said, steps, strict=True)]).astype(np.float32),
            advantage=np.concatenate([advantage[who[k]] for k, (who, *_) in zip(said, steps, strict=True)]).astype(
                np.float32
            ),
            returns=returns,
            env_steps=env_steps,
        )

    # ---- updates ----
    def loss(
        self, obs: dict[str, Tensor], action: Tensor, log_p_then: Tensor, advantage: Tensor
    ) -> tuple[Tensor, Metrics]:
        """Of a batch of steps: observations (B, ...), actions, their log-probability when taken, advantages (B,)."""
        c = self.config
        log_p = torch.log_softmax(self.policy.logits(obs), dim=1)
        with torch.no_grad():
            log_q = torch.log_softmax(self.anchor.logits(obs), dim=1)
        ratio = torch.exp(log_p.gather(1, action[:, None]).flatten() - log_p_then)
        clipped = torch.clamp(ratio, 1 - c.clip_range, 1 + c.clip_range)
        policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
        kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        loss = policy_loss + c.kl_coef * kl - c.ent_coef * entropy
        return loss, {
            "grpo/loss": loss.detach(),
            "grpo/policy_loss": policy_loss.detach(),
            "grpo/kl_to_init": kl.detach(),
            "grpo/entropy": entropy.detach(),
            "grpo/clip_fraction": ((ratio - 1).abs() > c.clip_range).float().mean(),
        }

    def update(self, attempts: Attempts) -> dict[str, float]:
        """Passes over the steps in random batches; metrics are their means."""
        c, device = self.config, self.policy.device
        obs = as_tensors(attempts.obs, device)
        action, log_p, advantage = (
            torch.as_tensor(x, device=device) for x in (attempts.action, attempts.log_p, attempts.advantage)
        )
        found: list[dict[str, float]] = []
        for _ in range(c.epochs):
            for i in torch.randperm(len(attempts), generator=self.generator).to(device).split(c.batch_size):
                loss, said = self.loss({n: value[i] for n, value in obs.items()}, action[i], log_p[i], advantage[i])
                metrics = as_numbers(said)
                if not np.isfinite(metrics["grpo/loss"]):
                    raise Diverged(
                        f"GRPO: the loss is {metrics['grpo/loss']} at {self.num_timesteps} steps. Lower the learning "
                        "rate."
                    )
                self.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.actor_parameters(), c.max_grad_norm)
                self.optimizer.step()
                found.append(metrics)
        return {name: float(np.mean([metrics[name] for metrics in found])) for name in found[0]}
