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
from headstart.learners.bc import BCConfig, imitation_targets
from headstart.learners.learner import Fitted, Log, Practice, accept, finite, silent
from headstart.models.history import hide_past
from headstart.models.judge import Judge
from headstart.models.losses import contrast_loss, same_future_credit, soft_cross_entropy
from headstart.models.optimizer import adamw
from headstart.models.policy import HeadstartPolicy, as_tensors

__all__ = ["JudgeConfig", "Reflection", "ReflectionConfig"]


@dataclass(frozen=True)
class JudgeConfig:
    members: int = 3
    """Judges whose preferences are averaged: one alone is confident where it has seen nothing."""
    dropout: float = 0.3
    """On the judges' last hidden layer."""
    updates: int = 1000
    """Gradient updates of each member."""
    temperature: float = 1.0
    """Of the judgement that becomes a label."""


@dataclass(frozen=True)
class ReflectionConfig:
    bc: BCConfig = field(default_factory=BCConfig)
    """How policy and judges look at demonstrations: batch size, learning rate, weight decay, label smoothing, mirror,
    hidden pasts. Its ``updates`` are not used."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judges are trained and read."""
    walks: int = 1
    """Random walks from every expert state before the first fit."""
    walk_steps: int = 2
    """Steps of each of these walks."""
    rounds: int = 2
    """Rounds of practice on fresh levels with the policy so far."""
    levels: int = 256
    """Fresh levels in a round."""
    level_steps: int = 60
    """Longest episode on a fresh level."""
    states: int = 2000
    """States of these episodes, drawn at random, in which every action is tried."""
    updates: int = 500
    """Gradient updates of the policy before the first round."""
    round_updates: int = 1500
    """Gradient updates of the policy after each round."""
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
        self.judges = [
            Judge(policy.new_extractor(), dropout=judge.dropout).to(policy.device) for _ in range(judge.members)
        ]
        self.updates = self.env_steps = 0

    # ---- losses ----
    def judge_loss(
        self, judge: Judge, obs: dict[str, Tensor], future: Tensor, revisit: Tensor, action: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Find the expert's future: observations (B, ...), futures (B, A, F), revisits (B, A), actions (B,)."""
        credit = same_future_credit(future, action)  # (B, A)
        score = judge(obs, future, revisit)  # (B, A)
        loss = contrast_loss(score, credit)
        accuracy = credit.gather(1, score.argmax(1, keepdim=True)).float().mean()
        return loss, {"reflect/judge_loss": float(loss.detach()), "reflect/judge_accuracy": float(accuracy)}

    def policy_loss(
        self, expert_obs: dict[str, Tensor], target: Tensor, weight: Tensor, own_obs: dict[str, Tensor], label: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Imitate the expert (target (B, A), weight (B,)) and one's own judgement (label (B', A))."""
        both = {name: torch.cat([expert_obs[name], own_obs[name]]) for name in expert_obs}
        expert, own = self.policy.logits(both).split([len(target), len(label)])
        imitation = soft_cross_entropy(expert, target, weight=weight, label_smoothing=self.config.bc.label_smoothing)
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
        c, bc, device = self.config.judge, self.config.bc, self.policy.device
        generator = torch.Generator().manual_seed(self.seed)
        seen = [branches, mirror_branches(branches)] if bc.mirror and self.policy.layout.grid else [branches]
        future, revisit, action = (
            torch.as_tensor(np.concatenate(parts), device=device)
            for parts in zip(*((b.future[:, :, 0], b.revisit, b.expert_action) for b in seen), strict=True)
        )
        obs = as_tensors({name: np.concatenate([b.obs[name] for b in seen]) for name in branches.obs}, device)
        metrics: dict[str, float] = {}
        for judge in self.judges:
            optimizer, schedule = adamw(
                judge.parameters(), learning_rate=bc.learning_rate, weight_decay=bc.weight_decay, updates=c.updates
            )
            judge.train()
            for update in trange(c.updates, desc="judge", unit="update", delay=2, leave=False, disable=None):
                i = torch.randint(len(action), (bc.batch_size,), generator=generator).to(device)
                batch = {name: value[i] for name, value in obs.items()}
                batch = hide_past(batch, self.policy.n_actions, bc.hidden_past, bc.hidden_actions, generator)
                loss, metrics = self.judge_loss(judge, batch, future[i], revisit[i], action[i])
                finite(loss, "reflect (judge)", update)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                self._count(metrics)
            judge.eval()
        return metrics

    @torch.no_grad()
    def label(self, branches: Branches, states: Simulator) -> NDArray[np.float32]:
        """Stage 3: preference (N, A) among the executed futures, the geometric mean of the judges'.

        ``states`` (N) are those that have been branched; a judge of futures needs them no more.
        """
        device, labels = self.policy.device, []
        for i in range(0, len(branches), 512):
            part = slice(i, i + 512)
            obs = as_tensors({name: value[part] for name, value in branches.obs.items()}, device)
            future = torch.as_tensor(branches.future[part, :, 0], device=device)
            revisit = torch.as_tensor(branches.revisit[part], device=device)
            log_p = torch.stack([torch.log_softmax(judge(obs, future, revisit), dim=1) for judge in self.judges])
            labels.append(torch.softmax(log_p.mean(0) / self.config.judge.temperature, dim=1))
        return torch.cat(labels).cpu().numpy()

    def fit_policy(self, demos: Demos, own: list[Branches], labels: list[NDArray], updates: int) -> dict[str, float]:
        """Stage 4, on the demonstrations and all own states so far."""
        bc, policy = self.config.bc, self.policy
        generator = torch.Generator().manual_seed(self.seed + self.updates)
        expert_obs, target, weight = imitation_targets(policy, demos, bc.mirror)
        own_obs = {name: np.concatenate([b.obs[name] for b in own]) for name in demos.obs}
        label = np.concatenate(labels)
        if bc.mirror and policy.layout.grid:
            mirrored = mirror_obs(own_obs)
            own_obs = {name: np.concatenate([value, mirrored[name]]) for name, value in own_obs.items()}
            label = np.concatenate([label, label[:, mirror_action(np.arange(policy.n_actions))]])
        expert_obs, own_obs = as_tensors(expert_obs, policy.device), as_tensors(own_obs, policy.device)
        target, weight, label = (torch.as_tensor(x, device=policy.device) for x in (target, weight, label))
        optimizer, schedule = adamw(
            policy.actor_parameters(),
            learning_rate=bc.learning_rate,
            weight_decay=bc.weight_decay,
            updates=updates,
        )
        metrics: dict[str, float] = {}
        for update in trange(updates, desc="learn", unit="update", delay=2, leave=False, disable=None):
            i = torch.randint(len(target), (bc.batch_size,), generator=generator).to(policy.device)
            j = torch.randint(len(label), (bc.batch_size,), generator=generator).to(policy.device)
            expert = {name: value[i] for name, value in expert_obs.items()}
            loss, metrics = self.policy_loss(
                hide_past(expert, policy.n_actions, bc.hidden_past, bc.hidden_actions, generator),
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
        accept(self.policy, demos, branches, practise)
        c, rng = self.config, np.random.default_rng([self.seed, 0x5E1F])
        judged = self.fit_judges(branches)

        expert_states = collect.replay(demos)
        own, labels = [branches], [self.label(branches, expert_states)]

        def practise_from(start: Simulator, actor: Actor, steps: int) -> None:
            """Stages 2 and 3: act, try every action in some of the states that were reached, judge the futures."""
            states, walked = collect.practise(start, actor, steps=steps, rng=rng)
            if len(states) > c.states:
                states = states.fork(rng.choice(len(states), c.states, replace=False))
            own.append(collect.branch(states))
            labels.append(self.label(own[-1], states))
            self.env_steps += walked + own[-1].env_steps

        if c.walks:
            around = expert_states.fork(np.repeat(np.arange(len(demos)), c.walks))
            wander = uniform_actor(around.n_actions)
            self.env_steps += around.step(wander(around.observe(), rng))  # away from there
            practise_from(around, wander, c.walk_steps - 1)
        metrics = self.fit_policy(demos, own, labels, c.updates)
        for _ in range(c.rounds):
            practise_from(practise.fresh(c.levels, rng), self.policy.actor(), c.level_steps)
            metrics = self.fit_policy(demos, own, labels, c.round_updates)
        self.policy.warm_start = "reflect"
        return Fitted(self.updates, self.env_steps, {**judged, **metrics})

    def _count(self, metrics: dict[str, float]) -> None:
        self.updates += 1
        if self.updates % 50 == 0:
            self.log(self.updates, metrics)
