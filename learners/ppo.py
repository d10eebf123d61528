"""PPO that is held to its warm start: Stable-Baselines3's, with five cures and four options.

A warm-started policy meets a critic that knows nothing; its noise alone undoes the policy within a few updates. So

    1. zero critic    its values begin at 0 everywhere: where reward is rare, the best guess of one who knows nothing
    2. critic first   the actor waits until the critic, learning three times as fast as later, explains half of the
                      variance of returns, or N updates
    3. KL anchor      L += c * KL(pi || pi_warm_start), c decaying to zero: the policy may leave, but not jump
    4. no scaling     of advantages while nothing is rewarded, or all are equal: that would turn noise into gradients
    5. no jump        an update ends early when it has led too far from the policy that acted

(PIRLNav, arXiv 2301.07302, for 2 and 6; kickstarting, arXiv 1803.03835, for 3.) Off unless their settings say so:

    6. warm-up        when the actor starts, the learning rate of trunk and actor grows from zero, over N updates
    7. slow trunk     a smaller learning rate for the layers that actor and critic share
    8. auxiliary      a world-model loss, of a head that may be fresh, on what the agent itself sees (arXiv 2605.24517)
    9. rehearsal      cross-entropy on what was to be done in some states, its weight decaying: on the demonstrations
                      (DAPG, arXiv 1709.10087), or on the labels that judges have given

A policy without a warm start is trained as Stable-Baselines3 would: cures and warm-up wait for ``policy.warm_start``,
which learners set. ``plain`` trains any policy like that, and without 7 to 9 too, for comparison.

Legend: S steps of a rollout, N episodes in lockstep, B states in a batch, F bytes of a frame.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO as StablePPO
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import explained_variance
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.envs.errors import Diverged, UsageError
from headstart.learners.learner import Lessons
from headstart.models.encoders import Memo
from headstart.models.losses import soft_cross_entropy
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Metrics, as_numbers

__all__ = ["PPO", "Auxiliary"]


class Auxiliary(Protocol):
    """A loss that goes on during RL, such as ``IWM(policy)``; ``head`` is trained beside the policy."""

    @property
    def head(self) -> nn.Module: ...

    def loss(self, obs: dict[str, Tensor], action: Tensor, future: Tensor) -> tuple[Tensor, Metrics]:
        """Of observations (B, ...), actions (B,) and the frames that followed (B, F)."""
        ...


class PPO(StablePPO):
    """``stable_baselines3.PPO`` with the arguments below; everything else is as there.

    n_steps, batch_size, n_epochs, ent_coef: Stable-Baselines3's, with defaults for dozens of environments.
    target_kl: Stable-Baselines3's too, but only after a warm start; None lets updates lead as far as they will.
    critic_updates: at most so many rollouts train the critic alone.
    critic_variance: the share of the variance of returns at which the actor starts earlier.
    actor_warm_up: rollouts over which the learning rate of trunk and actor grows to its full value; 1 is none.
    kl_coef: weight of the KL to the warm start when the actor starts.
    kl_decay: share of training, counted from there, after which that weight has reached zero.
    trunk_factor: learning rate of the shared layers, as a share of the others'.
    auxiliary_coef: weight of the loss that ``model.set_auxiliary`` is to be given before learning.
    rehearsal_coef: weight of ``model.lessons``, which are to be set before learning, when the actor starts: those of
        ``imitation_targets(model.policy, demos, mirror=False)``, or a ``Reflection``'s.
    rehearsal_decay: share of training after which that weight has reached zero.
    plain: none of the above, whatever they say.

    One update for the critic alone, no warm-up and a loose KL are what bc's warm start fared best with on MultiRoom and
    DoorKey, up to noise (experiments/results/NAME/cures.csv).

    A second call of `learn` goes on from the first: "training" is the first call's number of steps, and weights
    that have faded do not come back. If a learner has fitted the policy in between, all begins anew, from there. A
    saved model has its anchor with it: one that is loaded goes on where it was.
    ``auxiliary`` and ``lessons`` are not in the file and are to be set again. (Stable-Baselines3 unpickles what it
    loads: load only what you trust.)
    """

    policy: HeadstartPolicy  # type: ignore[assignment]  # always this one
    policy_aliases = {"HeadstartPolicy": HeadstartPolicy}  # noqa: RUF012 - as Stable-Baselines3 declares it

    COUNTERS = (
        "num_timesteps",
        "_n_updates",
        "_critic_only",
        "_actor_updates",
        "_actor_steps",
        "_fading",
        "actor_started_at",
        "anchored",
    )
    """Beside weights, optimizers, episodes and random numbers: all that the next update depends on."""

    def __init__(
        self,
        policy: type[HeadstartPolicy] | str = HeadstartPolicy,
        env: Any = None,
        *,
        critic_updates: int = 1,
        critic_variance: float = 0.5,
        actor_warm_up: int = 1,
        kl_coef: float = 0.1,
        kl_decay: float = 0.5,
        trunk_factor: float = 1.0,
        auxiliary_coef: float = 0.0,
        rehearsal_coef: float = 0.0,
        rehearsal_decay: float = 0.5,
        plain: bool = False,
        n_steps: int = 64,
        batch_size: int = 512,
        n_epochs: int = 4,
        target_kl: float | None = 0.06,
        ent_coef: float = 0.01,
        **settings: Any,
    ):
        self.critic_updates, self.critic_variance = critic_updates, critic_variance
        self.actor_warm_up, self.kl_coef, self.kl_decay = actor_warm_up, kl_coef, kl_decay
        if plain:
            trunk_factor, auxiliary_coef, rehearsal_coef = 1.0, 0.0, 0.0
        self.trunk_factor, self.auxiliary_coef = trunk_factor, auxiliary_coef
        self.rehearsal_coef, self.rehearsal_decay, self.plain = rehearsal_coef, rehearsal_decay, plain
        self.auxiliary: Auxiliary | None = None
        self.auxiliary_optimizer: torch.optim.Optimizer | None = None
        self.lessons: Lessons | None = None
        self.warm_start_policy: HeadstartPolicy | None = None
        self.anchored = False
        self._fitted: tuple[str | None, bool] = None, False  # policy.warm_start and .fitted_anew as they were saved
        self._start_over()
        self._rollout, self._rewarded = _Rollout(), False
        numbers = {"critic_updates": critic_updates, "kl_coef": kl_coef, "kl_decay": kl_decay}
        numbers |= {"trunk_factor": trunk_factor, "actor_warm_up": actor_warm_up, "auxiliary_coef": auxiliary_coef}
        numbers |= {"rehearsal_coef": rehearsal_coef, "rehearsal_decay": rehearsal_decay}
        for name, number in numbers.items():
            if not number >= 0:
                raise UsageError(f"PPO: {name}={number}. Choose 0 or more.")
        if not (policy in self.policy_aliases or (isinstance(policy, type) and issubclass(policy, HeadstartPolicy))):
            raise UsageError(f"PPO(policy={policy!r}, env): the policy is HeadstartPolicy, or a class made of it.")
        if settings.get("clip_range_vf") is not None:
            raise UsageError("PPO: clip_range_vf is not supported. Leave it out.")
        settings |= {"n_steps": n_steps, "batch_size": batch_size, "n_epochs": n_epochs}
        settings |= {"ent_coef": ent_coef, "target_kl": target_kl}
        super().__init__(policy, env, **settings)

    # ---- set up, save, load ----
    def _setup_model(self) -> None:
        super()._setup_model()
        policy = self.policy
        critic = list(policy.critic_parameters())
        trunk = list(policy.features_extractor.parameters())
        apart = {id(parameter) for parameter in [*critic, *trunk]}
        actor = [parameter for parameter in policy.parameters() if id(parameter) not in apart]
        groups = [{"params": parameters} for parameters in (trunk, actor, critic)]
        policy.optimizer = policy.optimizer_class(groups, lr=self.lr_schedule(1), **policy.optimizer_kwargs)  # type: ignore[call-arg]
        policy.warm_start, policy.fitted_anew = self._fitted
        if self.anchored:  # a saved model, whose weights come in a moment
            self.set_anchor()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        wrapped = StablePPO._wrap_env(env, verbose, monitor_wrapper)
        normalize = unwrap_vec_normalize(wrapped)
        if normalize is not None and normalize.norm_obs:
            raise UsageError(
                "PPO: VecNormalize would change observations, which are bytes that the policy scales by itself. Use "
                "VecNormalize(env, norm_obs=False)."
            )
        return wrapped

    def _start_over(self) -> None:
        self.actor_started_at: int | None = None  # environment steps
        self._actor_steps = 0  # since then, in this and in earlier calls of learn
        self._critic_only = self._actor_updates = 0
        self._fading: int | None = None  # environment steps that shares of training are of

    def set_anchor(self) -> None:
        """Remember the policy as it is now as the one not to be left too fast."""
        self.warm_start_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.anchored = True

    def set_auxiliary(self, auxiliary: Auxiliary) -> None:
        """Go on with this loss during RL; its head has an optimizer of its own."""
        self.auxiliary = auxiliary
        self.auxiliary_optimizer = torch.optim.Adam(auxiliary.head.parameters(), lr=1e-3)

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Any:
        if self.policy.fitted_anew and not self.plain:
            for parameter in self.policy.value_net.parameters():
                nn.init.zeros_(parameter)
            self.set_anchor()
            self._start_over()  # whatever it learned before it was fitted
            self.policy.optimizer.state.clear()
            self.policy.fitted_anew = False
        if self.auxiliary_coef and self.auxiliary is None:
            raise UsageError("PPO: auxiliary_coef is set, but no loss. Call model.set_auxiliary(IWM(model.policy)).")
        if self.rehearsal_coef:
            if self.lessons is None:
                raise UsageError(
                    "PPO: rehearsal_coef is set, but there is nothing to rehearse. Set model.lessons, such as "
                    "imitation_targets(model.policy, demos, mirror=False), or a fitted Reflection's."
                )
            obs, target, weight = self.lessons
            numbers = as_tensors({"target": target, "weight": weight}, self.device)
            self._lessons = as_tensors(obs, self.device), numbers["target"], numbers["weight"]
        ready = super()._setup_learn(*args, **kwargs)
        self._fading = self._fading or self._total_timesteps - self.num_timesteps  # steps before are in the total
        return ready

    def _excluded_save_params(self) -> list[str]:
        ours = ["warm_start_policy", "auxiliary", "auxiliary_optimizer", "lessons", "_lessons", "_rollout"]
        return [*super()._excluded_save_params(), *ours]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, *(["warm_start_policy"] if self.anchored else [])], tensors

    def save(self, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        self._fitted = self.policy.warm_start, self.policy.fitted_anew
        super().save(path, exclude, include)

    # ---- rollouts ----
    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        self._rollout = _Rollout()
        with self.policy.remembering(Memo()):
            return super().collect_rollouts(*args, **kwargs)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: NDArray | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        self._rollout.remember(infos)

    # ---- updates ----
    def train(self) -> None:
        """One update from the rollout buffer."""
        buffer, policy = self.rollout_buffer, self.policy
        variance = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", variance)
        self._rewarded = self._rollout.rewarded(buffer.rewards)
        seen = self._seen() if self.auxiliary_coef else None
        critic_only = self._critic_comes_first(variance)
        if critic_only:
            self._critic_only += 1
        else:
            self.actor_started_at = self.num_timesteps if self.actor_started_at is None else self.actor_started_at
            self._actor_updates += 1
        self._set_learning_rates(critic_only)
        kl_coef = self.kl_coef * self._left(self.kl_decay) if self.anchored else 0.0
        rehearsal_coef = self.rehearsal_coef * self._left(self.rehearsal_decay)
        jump = 1.5 * self.target_kl if self.anchored and self.target_kl is not None else np.inf
        policy.set_training_mode(True)
        found: dict[str, list[float]] = defaultdict(list)
        memo = Memo()  # of a trunk that is not trained; of this update alone, so that one who resumes has the same
        for batch in chain.from_iterable(buffer.get(self.batch_size) for _ in range(self.n_epochs)):
            loss, metrics = self._value_loss(batch, memo) if critic_only else self._loss(batch, kl_coef, memo)
            if seen is not None:
                extra, said = self._auxiliary_loss(seen)
                loss, metrics = loss + self.auxiliary_coef * extra, metrics | said
            if rehearsal_coef and not critic_only:
                lessons = self._rehearsal_loss()
                loss, metrics = loss + rehearsal_coef * lessons, metrics | {"rl/rehearsal_loss": lessons.detach()}
            numbers = as_numbers(metrics | {"train/loss": loss.detach()})
            if numbers.get("train/approx_kl", 0.0) > jump:
                break
            if not np.isfinite(numbers["train/loss"]):
                raise Diverged(
                    f"PPO: the loss is {numbers['train/loss']} at {self.num_timesteps} steps. Lower the learning rate."
                )
            self._step(loss, critic_only)
            for name, number in numbers.items():
                found[name].append(number)
        self._n_updates += self.n_epochs
        self._actor_steps += 0 if critic_only else self.n_steps * self.n_envs
        for name, numbers in found.items():
            self.logger.record(name, float(np.mean(numbers)))
        self.logger.record("rl/critic_only", int(critic_only))
        self.logger.record("rl/kl_coef", kl_coef)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _critic_comes_first(self, variance: float) -> bool:
        waiting = self.anchored and self.actor_started_at is None
        return waiting and self._critic_only < self.critic_updates and not variance > self.critic_variance

    def _left(self, share: float) -> float:
        """What is left of a weight that falls in a line to zero over a share of training, from the actor's start on."""
        assert self._fading is not None
        return max(0.0, 1 - self._actor_steps / (share * self._fading)) if share > 0 else 0.0

    def _set_learning_rates(self, critic_only: bool) -> None:
        rate = self.lr_schedule(self._current_progress_remaining)
        warm_up = min(1.0, self._actor_updates / max(1, self.actor_warm_up)) if self.anchored else 1.0
        trunk, actor, critic = self.policy.optimizer.param_groups
        trunk["lr"], actor["lr"] = rate * warm_up * self.trunk_factor, rate * warm_up
        critic["lr"] = 3 * rate if critic_only else rate
        self.logger.record("train/learning_rate", rate)

    def _step(self, loss: Tensor, critic_only: bool) -> None:
        optimizers = [self.policy.optimizer, *([self.auxiliary_optimizer] if self.auxiliary_optimizer else [])]
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if critic_only:  # what has no gradient is left alone
            for group in self.policy.optimizer.param_groups[:2]:
                for parameter in group["params"]:
                    parameter.grad = None
        nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()

    # ---- losses ----
    def _value_loss(self, batch: RolloutBufferSamples, memo: Memo) -> tuple[Tensor, Metrics]:
        """The critic's alone: trunk and actor stay as they are."""
        with torch.no_grad(), self.policy.remembering(memo):
            features = self.policy.features(batch.observations)  # type: ignore[arg-type]
        value = self.policy.value_net(self.policy.mlp_extractor.forward_critic(features)).flatten()
        loss = F.mse_loss(value, batch.returns)
        return self.vf_coef * loss, {"train/value_loss": loss.detach()}

    def _loss(self, batch: RolloutBufferSamples, kl_coef: float, memo: Memo) -> tuple[Tensor, Metrics]:
        """PPO's clipped objective (arXiv 1707.06347, Eq. 7 and 9), plus the KL to the warm start."""
        policy, obs, action = self.policy, batch.observations, batch.actions.long().flatten()
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        features = policy.features(obs)  # type: ignore[arg-type]
        log_p = torch.log_softmax(policy.logits_of(features), dim=1)
        value = policy.value_net(policy.mlp_extractor.forward_critic(features)).flatten()
        advantage = self._scaled(batch.advantages)
        ratio = torch.exp(log_p.gather(1, action[:, None]).flatten() - batch.old_log_prob)
        clipped = torch.clamp(ratio, 1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantage * ratio, advantage * clipped).mean()
        value_loss = F.mse_loss(batch.returns, value)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        loss = policy_loss + self.vf_coef * value_loss - self.ent_coef * entropy
        metrics = {
            "train/approx_kl": (ratio - 1 - ratio.log()).detach().mean(),
            "train/policy_gradient_loss": policy_loss.detach(),
            "train/value_loss": value_loss.detach(),
            "train/entropy_loss": -entropy.detach(),
            "train/clip_fraction": ((ratio - 1).abs() > clip_range).float().mean(),
        }
        if self.warm_start_policy is not None and kl_coef:
            with torch.no_grad(), self.warm_start_policy.remembering(memo):
                log_q = torch.log_softmax(self.warm_start_policy.logits(obs), dim=1)  # type: ignore[arg-type]
            kl = (log_p.exp() * (log_p - log_q)).sum(1).mean()
            loss, metrics["rl/kl_to_init"] = loss + kl_coef * kl, kl.detach()
        return loss, metrics

    def _scaled(self, advantage: Tensor) -> Tensor:
        """(B,) advantages with mean zero and standard deviation one, where there is something to be scaled."""
        if not self.normalize_advantage or len(advantage) < 2:
            return advantage
        if self.anchored and not (self._rewarded and advantage.std() > 1e-4):
            return advantage
        return (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    def _rehearsal_loss(self) -> Tensor:
        """Cross-entropy of a random batch of the lessons."""
        obs, target, weight = self._lessons
        i = torch.randint(len(target), (min(len(target), max(1, self.batch_size // 4)),), device=target.device)
        logits = self.policy.logits({name: value[i] for name, value in obs.items()})
        return soft_cross_entropy(logits, target[i], weight=weight[i])

    def _auxiliary_loss(self, seen: tuple[dict[str, Tensor], Tensor, Tensor]) -> tuple[Tensor, Metrics]:
        """Of a random batch of the rollout's own steps."""
        assert self.auxiliary is not None
        obs, action, future = seen
        i = torch.randint(len(action), (max(1, self.batch_size // 4),), device=action.device)
        return self.auxiliary.loss({name: value[i] for name, value in obs.items()}, action[i], future[i])

    def _seen(self) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Steps of the rollout in their order: observations (S * N, ...), actions (S * N,), frames that followed."""
        buffer = self.rollout_buffer
        assert isinstance(buffer.observations, dict)
        assert isinstance(self._last_obs, dict)
        future = self._rollout.followed(buffer.observations["frames"], self._last_obs["frames"])
        flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in buffer.observations.items()}
        action = torch.as_tensor(buffer.actions.reshape(-1), device=self.device).long()
        return as_tensors(flat, self.device), action, torch.as_tensor(future, device=self.device)


class _Rollout:
    """What Stable-Baselines3's buffer does not keep of a rollout.

    ``truncated`` (S, N): its reward there is not the environment's alone, but has the critic's guess of the rest in it.
    ``last``: the frame with which an episode ended, by step and episode.
    """

    def __init__(self) -> None:
        self.truncated: list[list[bool]] = []
        self.last: dict[tuple[int, int], NDArray] = {}

    def remember(self, infos: list[dict[str, Any]]) -> None:
        for n, info in enumerate(infos):
            if "terminal_observation" in info:
                self.last[len(self.truncated), n] = info["terminal_observation"]["frames"][-1]
        self.truncated.append([info.get("TimeLimit.truncated", False) for info in infos])

    def rewarded(self, reward: NDArray) -> bool:
        """Whether the environment has rewarded any step; reward is (S, N)."""
        return bool(reward[~np.array(self.truncated)].any())

    def followed(self, frames: NDArray, next_frames: NDArray) -> NDArray:
        """(S * N, F) the frame after each step, of observed frames (S, N, T, F) and those now (N, T, F)."""
        future = np.concatenate([frames[1:, :, -1], next_frames[None, :, -1]])
        for at, frame in self.last.items():
            future[at] = frame
        return future.reshape(-1, future.shape[-1])
