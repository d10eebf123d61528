"""Reflection: judge the futures of one's own actions against the expert's, then learn from that judgement.

    1. Imitate.  bc.py: the policy that everything starts from, and a first opinion pi_0 of what to do.
    2. Judge.    judges.py: J(h, s') scores a consequence, by what is known so far and what is seen after an action. At
                 expert states it learns to find the expert's future s_i among those of all own actions s_i^k:
                     L_J = -log softmax_k J(h_i, s_i^k)[expert's]
    3. Practise. The agent acts by itself on fresh levels, and in the states it reaches it tries all its actions: all
                 but those whose futures it knows already, because it has seen them, or is sure that nothing changes
                 (affordance.py). These are judged like the others.
    4. Label.    q(a | h) = softmax_a (w log J + (1 - w) log pi_0), by futures that were really executed and by
                 imitation: what comes of an action, and what an expert would have done.
    5. Learn.    L = -log pi(a_i | h_i)  -  w' sum_a q(a | h) log pi(a | h)   over expert's and own states.
                 Then practise again with the better policy.

No reward is used and the expert is not asked again. arXiv 2510.08558 (Eq. 4) lets a language model verbalise the
contrast between the expert's future and its own; a small policy has no such prior, so here the contrast itself is
learned. Steps 3 to 5 on fresh levels are ours: DAgger (arXiv 1011.0686) with the judge in the expert's place.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import inf
from numbers import Integral
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.envs import collect
from headstart.envs.collect import Alternatives
from headstart.envs.effects import EFFECTS, effects, explain
from headstart.envs.errors import DataError, UsageError
from headstart.envs.mirror import mirror_action, with_mirror_image
from headstart.envs.simulator import Obs, Simulator
from headstart.envs.transitions import Branches, Demos, Walk
from headstart.learners.affordance import Affordances
from headstart.learners.bc import BC, BCConfig, imitation_targets
from headstart.learners.judges import JudgeConfig, Judges
from headstart.learners.learner import Fitted, Lessons, Log, Practice, accept, check_settings, given, silent
from headstart.models.history import hide_past
from headstart.models.losses import soft_cross_entropy
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.rationale import RationaleHead, margins, shuffled
from headstart.models.training import Metrics, Stage, seeded, train

__all__ = ["Reflection", "ReflectionConfig"]


@dataclass(frozen=True)
class ReflectionConfig:
    bc: BCConfig = field(default_factory=BCConfig)
    """Imitation, with which it begins; and how policy and judges look at demonstrations in all that follows: batch
    size, learning rate, weight decay, label smoothing, mirror, hidden pasts. (Demonstrations that imitation holds out
    are learned from in what follows.)"""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judges are trained and read."""
    rounds: int = 2
    """Rounds of practice on fresh levels, with the policy so far."""
    levels: int = 64
    """Fresh levels that are played at a time, until ``states`` have been reached."""
    level_steps: int = 60
    """Longest episode on a fresh level."""
    states: int = 2000
    """States in which every action is tried, of a round's episodes."""
    draws: int = 4
    """Where luck decides what an action leads to: how often all actions are tried in a state, each time with other
    luck. A judge that saw one future of each would learn the luck by heart."""
    sparing: bool = True
    """Whether to execute only what is not known already: not the action that the expert or the agent has taken in a
    state, nor what is sure to change nothing."""
    k: int | None = None
    """How many actions are tried in an own state; None for all. Judges speak of those that were tried, and the others
    are left what imitation gives them. At demonstrated states `branch(demos, k=...)` decides."""
    alternatives: Alternatives = "uniform"
    """How these are drawn: uniformly, by the policy, or half by each."""
    round_updates: int = 1500
    """Gradient updates of the policy after each round."""
    own_weight: float = 4.0
    """Weight of the self-labelled states beside the expert's."""
    rationale_weight: float = 0.0
    """Weight of predicting, before acting, what every action does and by how much the judges prefer it."""
    shuffled_rationale: bool = False
    """The control: learn the rationales of other states."""

    def __post_init__(self) -> None:
        check_settings(self, **dict.fromkeys(("rounds", "levels", "states", "draws"), (1, inf)))
        if self.alternatives not in get_args(Alternatives):
            raise UsageError(f"alternatives={self.alternatives!r}: choose from {', '.join(get_args(Alternatives))}.")
        if self.sparing and (self.judge.horizon > 1 or self.k is not None):
            raise UsageError("sparing=True knows one step ahead, of every action: with judge.horizon or k it is False.")
        if self.k is not None and (not isinstance(self.k, Integral) or self.k < 1):
            raise UsageError(f"k={self.k!r}: choose how many actions are tried, at least one. None tries all of them.")

    @property
    def horizon(self) -> int:
        """Steps of the branches that a fit wants; 0 where it makes its own, for fewer steps."""
        return 0 if self.sparing else self.judge.horizon

    @property
    def total_updates(self) -> int:
        """Gradient updates that a fit makes, those of the judges included, but not those of affordance.py, whose
        networks are small."""
        return self.judge.total_updates + self.policy_updates

    @property
    def policy_updates(self) -> int:
        """Those of the policy alone."""
        return self.bc.total_updates + self.rounds * self.round_updates


class Reflection:
    """The five steps above are `fit`, and the sections below. A policy is fitted in place."""

    def __init__(
        self,
        policy: HeadstartPolicy,
        config: ReflectionConfig | None = None,
        *,
        seed: int = 0,
        log: Log = silent,
    ):
        self.policy, self.config = policy, c = given(policy, config, ReflectionConfig)
        self.seed, self.log = seed, log
        with seeded(seed):
            self.judges = Judges(policy, c.judge, c.bc, seed=seed, log=lambda u, m: self.log(self.updates + u, m))
            self.rationale = RationaleHead(policy.features_dim, policy.n_actions, len(EFFECTS)).to(policy.device)
        self.affordances = Affordances(policy, seed=seed) if c.sparing else None
        self.imitator: HeadstartPolicy | None = None
        self.lessons: Lessons | None = None  # of the last round: all own states and their labels
        self.updates = self.env_steps = 0

    def fit(self, demos: Demos, branches: Branches | None = None, practise: Practice | None = None) -> Fitted:
        """All stages, once. ``practise`` is where fresh levels are, ``branches`` have every action at the demonstrated
        states: a sparing learner that is given none makes them, for fewer steps."""
        c, rng = self.config, np.random.default_rng([self.seed, 0x5E1F])
        practise, expert_states = self.accepted(demos, branches, practise), collect.replay(demos)
        # 1. imitate
        metrics = BC(self.policy, c.bc, seed=self.seed, log=self.log).fit(demos).metrics
        self.updates = c.bc.total_updates
        self.imitator = copy.deepcopy(self.policy)
        # 2. judge
        branches = self.at_demonstrations(demos, branches)
        drawn = Branches.join([*self.drawn(branches, expert_states)])
        metrics |= self.fit_judges(drawn, outcomes=branches.take(demos.last))
        # 3. practise, 4. label, 5. learn
        own: list[Branches] = []
        labels: list[NDArray] = []
        for _ in range(c.rounds):
            states, walk = self.reach(practise, rng)
            if len(states):
                own.append(self._try(states, rng, walk=walk))
                labels.append(self.label(own[-1], states))
                self.env_steps += own[-1].env_steps
            metrics |= self.fit_policy(demos, own, labels, c.round_updates)
        self.policy.warm_start = "reflect"
        return Fitted(self.updates, self.env_steps, metrics)

    def accepted(self, demos: Demos, branches: Branches | None, practise: Practice | None) -> Practice:
        """Where to practise, when all that `fit` is given has been checked. Nothing is learned or executed here."""
        name, c = type(self).__name__, self.config
        if self.imitator is not None:
            raise UsageError(f"This {name} has been fitted: make another one, with a policy to be fitted.")
        if practise is None or (branches is None and not c.sparing):
            wanted = "demos, practise=env" if c.sparing else "demos, branches, practise=env"
            raise UsageError(f"{name} needs fit({wanted}). An environment to practise in is made by make_vec_env.")
        accept(self.policy, demos, branches, practise)
        if c.k is not None and c.k > self.policy.n_actions:
            raise UsageError(f"k={c.k}: there are {self.policy.n_actions} actions to try. None tries all of them.")
        if c.rationale_weight and not (c.k is None and (branches is None or branches.tried.all())):
            raise UsageError("A rationale says what every action does: try all of them, without k.")
        if branches is None:
            return practise
        same_states = np.array_equal(branches.frame, demos.obs["frames"][:, -1])
        if not (same_states and np.array_equal(branches.expert_action, demos.action)):
            raise DataError(
                f"{demos.env_id}: these branches, of {len(branches)} states, are not those of the {len(demos)} "
                "demonstrated states, in their order. Pass branch(demos)."
            )
        if not branches.tried[np.arange(len(demos)), demos.action].all():
            raise DataError(
                f"{demos.env_id}: in these branches the expert's own action was not tried. Pass branch(demos)."
            )
        if branches.action.shape[2] < c.judge.horizon:
            raise UsageError(
                f"The judges look {c.judge.horizon} steps ahead, but the branches at the demonstrations have "
                f"{branches.action.shape[2]}. Pass branch(demos, horizon={c.judge.horizon})."
            )
        return practise

    def at_demonstrations(self, demos: Demos, branches: Branches | None) -> Branches:
        """The branches of the demonstrated states, as long as judges look ahead; of them is learned what changes
        nothing."""
        if branches is None:
            assert self.affordances is not None, "`accepted` has seen to it"
            branches = self.affordances.branch_demos(demos)
            self.env_steps += branches.env_steps
            return branches
        steps = self.config.judge.horizon
        parts = {part: getattr(branches, part)[:, :, :steps] for part in ("action", "future", "ended")}
        branches = replace(branches, **parts)
        if self.affordances:
            self.affordances.fit(branches)
        return branches

    # ---- 2. judge ----
    def fit_judges(self, branches: Branches, outcomes: Branches | None = None) -> dict[str, float]:
        """On branches at expert states; ``outcomes`` are those at the last states of the demonstrations."""
        metrics = self.judges.fit(branches, outcomes)
        self.updates += self.config.judge.total_updates
        return metrics

    # ---- 3. practise ----
    def reach(self, practise: Practice, rng: np.random.Generator) -> tuple[Simulator, Walk]:
        """Act on as many fresh levels as it takes: some of the states on the way, in which episodes go on, and what was
        done there."""
        c, played, walks, reached = self.config, [], [], 0
        while reached < c.states:
            fresh = practise.fresh(c.levels, rng)
            states, walk = collect.practise(fresh, self.policy.actor(), steps=c.level_steps, rng=rng)
            played.append(states)
            walks.append(walk)
            reached += len(states)
            if not len(states):
                break
        states, walk = collect.join(played), Walk.join(walks)
        self.env_steps += walk.env_steps
        some = np.sort(rng.choice(reached, min(reached, c.states), replace=False))
        return states.fork(some), walk.take(some)

    def _try(
        self,
        states: Simulator,
        rng: np.random.Generator,
        tried: NDArray[np.bool_] | None = None,
        walk: Walk | None = None,
    ) -> Branches:
        """All actions or k of them, or those that were ``tried`` (N, A) before; ``walk`` has led through the states."""
        if self.affordances:
            return self.affordances.branch(states, walk)
        c = self.config
        which: dict[str, Any] = {"k": c.k, "alternatives": c.alternatives} if tried is None else {"tried": tried}
        return collect.branch(states, horizon=c.horizon, actor=self.policy.actor(), rng=rng, **which)

    def drawn(self, branches: Branches, states: Simulator | None) -> Iterator[Branches]:
        """The branches of the states; where luck decides, the same also ``config.draws`` - 1 times with other luck."""
        yield branches
        for draw in range(1, self.config.draws):
            luck = int(np.random.default_rng([self.seed, self.env_steps, draw]).integers(2**63))
            again = None if states is None else states.luck(luck)
            if again is None:
                return
            tried = self._try(again, np.random.default_rng(luck), branches.tried)
            self.env_steps += tried.env_steps
            yield replace(tried, expert_action=branches.expert_action)

    # ---- 4. label ----
    def label(self, branches: Branches, states: Simulator) -> NDArray[np.float32]:
        """What to do (N, A), by judgement and by imitation; by imitation alone for actions that were not tried.

        ``states`` (N) are those that have been branched, so that they can be branched with other luck.
        """
        c = self.config.judge
        assert self.imitator is not None, "imitation comes first"
        imitated = np.log(np.maximum(self.imitator.probabilities(branches.obs), 1e-9))
        judged = np.mean([self.judgement(one) for one in self.drawn(branches, states)], axis=0)  # (N, A)
        score = np.where(branches.tried, c.weight * judged + (1 - c.weight) * imitated, -np.inf)
        unknown = np.where(branches.tried, 0.0, _softmax(imitated / c.temperature))
        known = 1 - unknown.sum(1, keepdims=True)
        return (known * _softmax(score / c.temperature) + unknown).astype(np.float32)

    def judgement(self, branches: Branches) -> NDArray[np.float32]:
        """Log preference (N, A) among the executed futures; -inf for actions not tried."""
        return self.judges.preference(branches)

    # ---- 5. learn ----
    def fit_policy(self, demos: Demos, own: list[Branches], labels: list[NDArray], updates: int) -> dict[str, float]:
        """On the demonstrations and all own states so far."""
        if not sum(map(len, own)):
            raise DataError(
                f"{demos.env_id}: practice came to no state in which an episode goes on: nothing to learn from."
            )
        bc, policy = self.config.bc, self.policy
        generator = torch.Generator().manual_seed(self.seed + self.updates)
        expert_obs, target, weight = imitation_targets(policy, demos, bc.mirror)
        own_obs = {name: np.concatenate([b.obs[name] for b in own]) for name in demos.obs}
        label = np.concatenate(labels)
        self.lessons = Lessons(own_obs, label, np.ones(len(label), np.float32))
        if bc.mirror and policy.has_mirror:
            own_obs = with_mirror_image(own_obs)
            label = np.concatenate([label, label[:, mirror_action(np.arange(policy.n_actions))]])
        reasons = self._rationales(own, labels) if self.config.rationale_weight else None
        expert_obs, own_obs = as_tensors(expert_obs, policy.device), as_tensors(own_obs, policy.device)
        target, weight, label = (torch.as_tensor(x, device=policy.device) for x in (target, weight, label))

        def draw() -> tuple[Any, ...]:
            i = torch.randint(len(target), (bc.batch_size,), generator=generator).to(policy.device)
            j = torch.randint(len(label), (bc.batch_size,), generator=generator).to(policy.device)
            expert = {name: value[i] for name, value in expert_obs.items()}
            reached = {name: value[j] for name, value in own_obs.items()}
            expert = hide_past(expert, policy.n_actions, bc.hidden_past, bc.hidden_actions, generator)
            reached = hide_past(reached, policy.n_actions, 0.0, bc.hidden_actions, generator)
            why = [(reasons[0][j], reasons[1][j])] if reasons else []
            return expert, target[i], weight[i], reached, label[j], *why

        networks = [policy, self.rationale]
        trained = [*policy.actor_parameters(), *self.rationale.parameters()]
        before, self.updates = self.updates, self.updates + updates
        return train(
            Stage(
                "reflect",
                networks,
                trained,
                draw,
                self.policy_loss,
                updates=updates,
                learning_rate=bc.learning_rate,
                weight_decay=bc.weight_decay,
                seed=self.seed,
                log=lambda update, metrics: self.log(before + update, metrics),
            )
        )

    def policy_loss(
        self,
        expert_obs: dict[str, Tensor],
        target: Tensor,
        weight: Tensor,
        own_obs: dict[str, Tensor],
        label: Tensor,
        why: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Metrics]:
        """Imitate the expert (target (B, A), weight (B,)) and one's own judgement (label (B', A)).

        ``why``: effects (B', A) and margins (B', A), if they are to be predicted too.
        """
        both = {name: torch.cat([expert_obs[name], own_obs[name]]) for name in expert_obs}
        features = self.policy.features(both)
        expert, own = self.policy.logits_of(features).split([len(target), len(label)])
        imitation = soft_cross_entropy(expert, target, weight=weight, label_smoothing=self.config.bc.label_smoothing)
        judged = soft_cross_entropy(own, label)
        loss = imitation + self.config.own_weight * judged
        agreed = target.gather(1, expert.argmax(1, keepdim=True)).flatten()
        metrics = {
            "bc/loss": imitation.detach(),
            "bc/accuracy": (agreed * weight).sum() / weight.sum(),
            "reflect/own_loss": judged.detach(),
            "reflect/own_agreement": (own.argmax(1) == label.argmax(1)).float().mean(),
        }
        if why is not None:
            explained, found = self.rationale.loss(features[len(target) :], *why)
            loss = loss + self.config.rationale_weight * explained
            metrics |= found
        return loss, metrics

    # ---- the rationale ----
    def _rationales(self, own: list[Branches], labels: list[NDArray]) -> tuple[Tensor, Tensor]:
        """What the actions did (N, A) and how they were judged (N, A) in all own states, then in the mirror."""
        effect = np.concatenate([effects(b.frame, b.future[:, :, 0], layout=self.policy.layout) for b in own])
        margin = margins(np.concatenate(labels))
        if self.config.shuffled_rationale:
            effect, margin = shuffled(effect, margin, np.random.default_rng([self.seed, self.updates]))
        if self.config.bc.mirror and self.policy.has_mirror:
            there = mirror_action(np.arange(self.policy.n_actions))
            effect, margin = np.concatenate([effect, effect[:, there]]), np.concatenate([margin, margin[:, there]])
        device = self.policy.device
        return torch.as_tensor(effect, device=device), torch.as_tensor(margin, device=device)

    @torch.no_grad()
    def explain(self, obs: Obs) -> list[str]:
        """In N states, before acting: what the preferred action will do, and what it is preferred over."""
        if not self.config.rationale_weight:
            raise UsageError("This policy has not learned to explain itself: fit it with rationale_weight above 0.")
        effect, margin = self.rationale.predict(self.policy.features(as_tensors(obs, self.policy.device)))
        rationales = zip(obs["frames"][:, -1], effect, margin, strict=True)
        return [explain(*one, layout=self.policy.layout, choices=self.policy.choices) for one in rationales]


def _softmax(score: NDArray) -> NDArray:
    """(N, A) probabilities, of scores that may be -inf."""
    p = np.exp(score - score.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)
