"""PPO that does not forget its warm start: Stable-Baselines3's, with four cures.

A warm-started policy meets a critic that knows nothing; its noise alone undoes the policy within a few updates. So

    1. critic first   the actor waits until the critic explains half of the variance of returns, or N updates
    2. warm-up        then the actor's learning rate grows from zero
    3. KL anchor      L += c * KL(pi || pi_warm_start), c decaying to zero: the policy may leave, but not jump
    4. no scaling of constant advantages, which would turn rounding noise into gradients

(PIRLNav, arXiv 2301.07302, for 1 and 2; kickstarting, arXiv 1803.03835, for 3.) A policy without a warm start
is trained as Stable-Baselines3 would: the cures wait for ``policy.warm_start``, which learners set.
"""

import copy
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.utils import explained_variance
from torch.nn import functional as F

from headstart.envs.errors import Diverged
from headstart.models.policy import HeadstartPolicy

__all__ = ["PPO"]


class PPO(StablePPO):
    """``stable_baselines3.PPO`` with the arguments below; everything else is as there.

    n_steps, batch_size, n_epochs, ent_coef: Stable-Baselines3's, with defaults for dozens of environments.
    critic_updates: at most so many rollouts train the critic alone.
    critic_variance: the share of the variance of returns at which the actor starts earlier.
    actor_warm_up: rollouts over which the actor's learning rate grows to its full value.
    kl_coef: weight of the KL to the warm start at the first step; it decays from there, the critic-only phase included.
    kl_decay: share of training after which that weight has reached zero.

    The anchor is not saved: a model that is loaded goes on as plain PPO.
    """

    policy: HeadstartPolicy  # type: ignore[assignment]  # always this one

    def __init__(
        self,
        policy: type[HeadstartPolicy] = HeadstartPolicy,
        env: Any = None,
        *,
        critic_updates: int = 4,
        critic_variance: float = 0.5,
        actor_warm_up: int = 4,
        kl_coef: float = 0.3,
        kl_decay: float = 0.5,
        n_steps: int = 64,
        batch_size: int = 512,
        n_epochs: int = 4,
        ent_coef: float = 0.01,
        **settings: Any,
    ):
        self.critic_updates, self.critic_variance = critic_updates, critic_variance
        self.actor_warm_up, self.kl_coef, self.kl_decay = actor_warm_up, kl_coef, kl_decay
        self.warm_start_policy: HeadstartPolicy | None = None
        self.actor_started_at: int | None = None  # environment steps
        self._critic_only = self._actor_updates = 0
        settings |= {"n_steps": n_steps, "batch_size": batch_size, "n_epochs": n_epochs, "ent_coef": ent_coef}
        super().__init__(policy, env, **settings)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "warm_start_policy"]

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.policy.warm_start and self.warm_start_policy is None:
            self.warm_start_policy = copy.deepcopy(self.policy).requires_grad_(False)
        return super()._setup_learn(*args, **kwargs)

    def train(self) -> None:
        """One update from the rollout buffer."""
        variance = explained_variance(self.rollout_buffer.values.flatten(), self.rollout_buffer.returns.flatten())
        self.logger.record("train/explained_variance", variance)
        if self._critic_comes_first(variance):
            self._critic_only += 1
            self._train_critic()
            return
        if self.actor_started_at is None:
            self.actor_started_at = self.num_timesteps
        self._actor_updates += 1
        self._train_both()

    def _critic_comes_first(self, variance: float) -> bool:
        waiting = self.warm_start_policy is not None and self.actor_started_at is None
        return waiting and self._critic_only < self.critic_updates and not variance > self.critic_variance

    def _train_critic(self) -> None:
        """Fit the critic's own layers to the returns; trunk and actor stay as they are."""
        optimizer = torch.optim.Adam(
            self.policy.critic_parameters(), lr=self.lr_schedule(self._current_progress_remaining) * 3
        )
        loss = torch.zeros(())
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                with torch.no_grad():
                    features = self.policy.features(batch.observations)  # type: ignore[arg-type]
                value = self.policy.value_net(self.policy.mlp_extractor.forward_critic(features)).flatten()
                loss = F.mse_loss(value, batch.returns)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.logger.record("train/value_loss", loss.item())
        self.logger.record("rl/critic_only", 1)

    def _train_both(self) -> None:
        """PPO's clipped objective (arXiv 1707.06347, Eq. 7 and 9), plus the KL to the warm start."""
        policy = self.policy
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        anchor = self.warm_start_policy
        if anchor is not None:
            for group in policy.optimizer.param_groups:
                group["lr"] *= min(1.0, self._actor_updates / max(1, self.actor_warm_up))
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        progress = 1 - self._current_progress_remaining
        kl_coef = self.kl_coef * max(0.0, 1 - progress / self.kl_decay) if anchor is not None else 0.0
        metrics: dict[str, list[float]] = {}
        for _ in range(self.n_epochs):
            for batch in self.rollout_buffer.get(self.batch_size):
                features = policy.features(batch.observations)  # type: ignore[arg-type]
                log_p = torch.log_softmax(policy.action_net(policy.mlp_extractor.forward_actor(features)), dim=1)
                value = policy.value_net(policy.mlp_extractor.forward_critic(features)).flatten()
                action = batch.actions.long().flatten()
                advantage = batch.advantages
                if self.normalize_advantage and len(advantage) > 1 and advantage.std() > 1e-4:
                    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                ratio = torch.exp(log_p.gather(1, action[:, None]).flatten() - batch.old_log_prob)
                clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
                policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
                value_loss = F.mse_loss(batch.returns, value)
                entropy = -(log_p.exp() * log_p).sum(1).mean()
                loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy
                if anchor is not None:
                    with torch.no_grad():
                        log_q = torch.log_softmax(anchor.logits(batch.observations), dim=1)  # type: ignore[arg-type]
                    kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
                    loss = loss + kl_coef * kl
                    metrics.setdefault("rl/kl_to_init", []).append(kl.item())
                if not torch.isfinite(loss):
                    raise Diverged(
                        f"PPO: the loss is {loss.item()} at {self.num_timesteps} steps. Lower the learning rate."
                    )
                policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), self.max_grad_norm)
                policy.optimizer.step()
                for name, number in (
                    ("train/policy_gradient_loss", policy_loss),
                    ("train/value_loss", value_loss),
                    ("train/entropy_loss", -entropy),
                    ("train/loss", loss),
                    ("train/clip_fraction", ((ratio - 1).abs() > clip_range).float().mean()),
                ):
                    metrics.setdefault(name, []).append(number.item())
        self._n_updates += self.n_epochs
        for name, numbers in metrics.items():
            self.logger.record(name, float(np.mean(numbers)))
        self.logger.record("rl/kl_coef", kl_coef)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
