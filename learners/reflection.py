"""Reflection: judge the futures of one's own actions against the expert's, then learn from that judgement.

    1. Judge.    J(s, s', seen before?, mission) scores a consequence. At expert states it learns to find the expert's
                 future s_i among those of all own actions s_i^k:
                     L_J = -log softmax_k J(s_i, s_i^k)[expert's]
                 It sees what an action did, never which button was pressed, so that "nothing changed", "the key is
                 carried now" and "I have been here before" generalise from a few demonstrations.
    2. Practise. The agent acts by itself, first around the demonstrations, then (its policy by now) on fresh
                 levels. In every state it reaches it tries all its actions.
    3. Label.    q(a | s) = softmax_a J(s, s'_a), over futures that were really executed.
    4. Learn.    L = -log pi(a_i | s_i)  -  w sum_a q(a | s) log pi(a | s)   over expert's and own states.
                 Then practise again with the better policy.

No reward is used and the expert is not asked again. arXiv 2510.08558 (Eq. 4) lets a language model verbalise the
contrast between the expert's future and its own; a small policy has no such prior, so here the contrast itself is
learned. Steps 2 to 4 on fresh levels are ours: DAgger (arXiv 1011.0686) with the judge in the expert's place.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import trange

from headstart.envs import collect
from headstart.envs.errors import UsageError
from headstart.envs.mirror import mirror_action, mirror_branches, mirror_obs
from headstart.envs.simulator import Actor, Simulator, uniform_actor
from headstart.envs.transitions import Branches, Demos
from headstart.learners.bc import imitation_targets
from headstart.learners.learner import Fitted, Log, Practice, finite, silent
from headstart.models.history import hide_past
from headstart.models.judge import Judge
from headstart.models.losses import contrast_loss, same_future_credit, soft_cross_entropy
from headstart.models.optimizer import adamw
from headstart.models.policy import HeadstartPolicy, as_tensors

__all__ = ["JudgeConfig", "Reflection", "ReflectionConfig"]


@dataclass(frozen=True)
class JudgeConfig:
    members: int = 5
    """Judges whose preferences are averaged: one alone is confident where it has seen nothing."""
    dropout: float = 0.3
    """On the judges' last hidden layer."""
    updates: int = 900
    """Gradient updates of each member."""
    batch_size: int = 24
    """Expert states in an update, each with the futures of all actions."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    temperature: float = 1.0
    """Of the judgement that becomes a label."""


@dataclass(frozen=True)
class ReflectionConfig:
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judge is trained and read."""
    walks: int = 1
    """Random walks from every expert state before the first fit."""
    walk_steps: int = 2
    """Steps of each of these walks."""
    rounds: int = 2
    """Rounds of practice on fresh levels with the policy so far."""
    levels: int = 60
    """Fresh levels in a round."""
    level_steps: int = 60
    """Longest episode on a fresh level."""
    updates: int = 500
    """Gradient updates of the policy before the first round."""
    round_updates: int = 1500
    """Gradient updates of the policy after each round."""
    batch_size: int = 64
    """Expert states in an update, and as many of the agent's own."""
    learning_rate: float = 1e-3
    """Peak learning rate of each fit."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    label_smoothing: float = 0.1
    """On the expert's actions, as in bc."""
    mirror: bool = True
    """Learn from mirrored demonstrations, futures and own states too."""
    hidden_past: float = 0.5
    """Share of the expert's states whose past is hidden, as in bc."""
    hidden_actions: float = 0.0
    """Share of the expert's states whose past actions are hidden."""
    own_weight: float = 4.0
    """Weight of the self-labelled states beside the expert's."""

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, those of the judges included."""
        return self.judge.members * self.judge.updates + self.updates + self.rounds * self.round_updates


class Reflection:
    def __init__(
        self,
        policy: HeadstartPolicy,
        config: ReflectionConfig | None = None,
        *,
        seed: int = 0,
        log: Log = silent,
    ):
        self.policy, self.config, self.seed, self.log = policy, config or ReflectionConfig(), seed, log
        torch.manual_seed(seed)
        judge = self.config.judge
        self.judges = [Judge(policy.n_words, dropout=judge.dropout).to(policy.device) for _ in range(judge.members)]
        self.updates = self.env_steps = 0

    # ---- losses ----
    def judge_loss(
        self, judge: Judge, frame: Tensor, future: Tensor, revisit: Tensor, mission: Tensor, action: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Find the expert's future: frame (B, F), future (B, A, F), revisit (B, A), mission (B, L), action (B,)."""
        credit = same_future_credit(future, action)  # (B, A)
        score = judge(frame, future, revisit, mission)  # (B, A)
        loss = contrast_loss(score, credit)
        accuracy = credit.gather(1, score.argmax(1, keepdim=True)).float().mean()
        return loss, {"reflect/judge_loss": float(loss.detach()), "reflect/judge_accuracy": float(accuracy)}

    def policy_loss(
        self, expert_obs: dict[str, Tensor], target: Tensor, weight: Tensor, own_obs: dict[str, Tensor], label: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Imitate the expert (target (B, A), weight (B,)) and one's own judgement (label (B', A))."""
        both = {name: torch.cat([expert_obs[name], own_obs[name]]) for name in expert_obs}
        expert, own = self.policy.logits(both).split([len(target), len(label)])
        imitation = soft_cross_entropy(expert, target, weight=weight, label_smoothing=self.config.label_smoothing)
        judged = soft_cross_entropy(own, label)
        loss = imitation + self.config.own_weight * judged
        agreed = target.gather(1, expert.argmax(1, keepdim=True)).flatten()
        return loss, {
            "bc/loss": float(imitation.detach()),
            "bc/accuracy": float((agreed * weight).sum() / weight.sum()),
            "reflect/own_loss": float(judged.detach()),
            "reflect/own_agreement": float((own.argmax(1) == label.argmax(1)).float().mean()),
        }

    # ---- stages ----
    def fit_judges(self, branches: Branches) -> dict[str, float]:
        """Stage 1, on branches at expert states. Members differ in their first weights and in what they see when."""
        c, device = self.config.judge, self.policy.device
        generator = torch.Generator().manual_seed(self.seed)
        seen = [branches, mirror_branches(branches)] if self.config.mirror else [branches]
        frame, future, revisit, mission, action = (
            torch.as_tensor(np.concatenate(parts), device=device)
            for parts in zip(
                *((b.frame, b.future[:, :, 0], b.revisit, b.obs["mission"], b.expert_action) for b in seen), strict=True
            )
        )
        metrics: dict[str, float] = {}
        for judge in self.judges:
            optimizer, schedule = adamw(
                judge.parameters(), learning_rate=c.learning_rate, weight_decay=c.weight_decay, updates=c.updates
            )
            judge.train()
            for update in trange(c.updates, desc="judge", unit="update", delay=2, leave=False, disable=None):
                i = torch.randint(len(action), (c.batch_size,), generator=generator).to(device)
                loss, metrics = self.judge_loss(judge, frame[i], future[i], revisit[i], mission[i], action[i])
                finite(loss, "reflect (judge)", update)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                self._count(metrics)
            judge.eval()
        return metrics

    @torch.no_grad()
    def label(self, branches: Branches) -> NDArray[np.float32]:
        """Stage 3: preference (N, A) among the executed futures, the geometric mean of the judges'."""
        device, labels = self.policy.device, []
        for i in range(0, len(branches), 512):
            part = slice(i, i + 512)
            case = [
                torch.as_tensor(x[part], device=device)
                for x in (branches.frame, branches.future[:, :, 0], branches.revisit, branches.obs["mission"])
            ]
            log_p = torch.stack([torch.log_softmax(judge(*case), dim=1) for judge in self.judges])
            labels.append(torch.softmax(log_p.mean(0) / self.config.judge.temperature, dim=1))
        return torch.cat(labels).cpu().numpy()

    def fit_policy(self, demos: Demos, own: list[Branches], labels: list[NDArray], updates: int) -> dict[str, float]:
        """Stage 4, on the demonstrations and all own states so far."""
        c, policy = self.config, self.policy
        generator = torch.Generator().manual_seed(self.seed + self.updates)
        expert_obs, target, weight = imitation_targets(policy, demos, c.mirror)
        own_obs = {name: np.concatenate([b.obs[name] for b in own]) for name in demos.obs}
        label = np.concatenate(labels)
        if c.mirror:
            mirrored = mirror_obs(own_obs)
            own_obs = {name: np.concatenate([value, mirrored[name]]) for name, value in own_obs.items()}
            label = np.concatenate([label, label[:, mirror_action(np.arange(policy.n_actions))]])
        expert_obs, own_obs = as_tensors(expert_obs, policy.device), as_tensors(own_obs, policy.device)
        target, weight, label = (torch.as_tensor(x, device=policy.device) for x in (target, weight, label))
        optimizer, schedule = adamw(
            policy.actor_parameters(),
            learning_rate=c.learning_rate,
            weight_decay=c.weight_decay,
            updates=updates,
        )
        metrics: dict[str, float] = {}
        for update in trange(updates, desc="learn", unit="update", delay=2, leave=False, disable=None):
            i = torch.randint(len(target), (c.batch_size,), generator=generator).to(policy.device)
            j = torch.randint(len(label), (c.batch_size,), generator=generator).to(policy.device)
            expert = {name: value[i] for name, value in expert_obs.items()}
            loss, metrics = self.policy_loss(
                hide_past(expert, policy.n_actions, c.hidden_past, c.hidden_actions, generator),
                target[i],
                weight[i],
                {name: value[j] for name, value in own_obs.items()},
                label[j],
            )
            finite(loss, "reflect", update)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            self._count(metrics)
        return metrics

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """All stages. ``branches``: every action at the demonstrated states; ``practise``: where fresh levels are."""
        if branches is None or practise is None:
            raise UsageError("Reflection needs fit(demos, branches, practise): branch(demos), and an environment.")
        c, rng = self.config, np.random.default_rng([self.seed, 0x5E1F])
        judged = self.fit_judges(branches)

        own, labels = [branches], [self.label(branches)]  # the expert's states, which have been branched already
        if c.walks:
            around = collect.replay(demos).fork(np.repeat(np.arange(len(demos)), c.walks))
            wander = uniform_actor(around.n_actions)
            self.env_steps += around.step(wander(around.observe(), rng))  # away from there
            own.append(self._practise(around, wander, c.walk_steps - 1, rng))
            labels.append(self.label(own[-1]))
        metrics = self.fit_policy(demos, own, labels, c.updates)
        for _ in range(c.rounds):
            fresh = practise.fresh(c.levels, rng)
            own.append(self._practise(fresh, self.policy.actor(), c.level_steps, rng))
            labels.append(self.label(own[-1]))
            metrics = self.fit_policy(demos, own, labels, c.round_updates)
        self.policy.warm_start = "reflect"
        return Fitted(self.updates, self.env_steps, {**judged, **metrics})

    def _practise(self, start: Simulator, actor: Actor, steps: int, rng: np.random.Generator) -> Branches:
        """Stage 2: act, then try every action in every state that was reached."""
        states, walked = collect.practise(start, actor, steps=steps, rng=rng)
        branches = collect.branch(states)
        self.env_steps += walked + branches.env_steps
        return branches

    def _count(self, metrics: dict[str, float]) -> None:
        self.updates += 1
        if self.updates % 50 == 0:
            self.log(self.updates, metrics)
