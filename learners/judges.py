"""Judges of futures: networks that tell what an expert would have come to from what else could have been done.

    J(h, s', signs)    scores a consequence: what is known so far, what is seen after an action, and signs of it, such
                       as whether that had been seen before. It is never told which button was pressed, so that
                       "nothing changed", "the key is carried now" and "I have been here before" generalise from a few
                       demonstrations.

    L_J = -log softmax_k J(h_i, s_i^k)[expert's]           find the expert's future s_i among those of all own actions
                                                           s_i^k, in each demonstrated state i
    L_C = -log sigmoid(J(h_i, s_i) - J(h_i^j, s_i))        of a demonstration's outcome, its last future: whose is it?
                                                           h_i^j is h_i in the context (mission, distant past) of
                                                           another demonstration j

L_C is needed because experts never do the wrong thing: a judge of their states alone hardly looks at the mission.
Several judges that differ in their first weights, and in what they see when, are read as one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from headstart.envs.simulator import Obs
from headstart.envs.transitions import Branches
from headstart.learners.bc import BCConfig, with_mirrored
from headstart.learners.learner import Log, check_settings, silent
from headstart.models.history import hide_past, swap_context
from headstart.models.judge import Judge
from headstart.models.losses import contrast_loss, same_future_credit
from headstart.models.policy import HeadstartPolicy, as_tensors
from headstart.models.training import Metrics, Stage, train

__all__ = ["JudgeConfig", "Judges", "Shown"]


@dataclass(frozen=True)
class JudgeConfig:
    members: int = 3
    """Judges whose preferences are averaged: one alone is confident where it has seen nothing."""
    dropout: float = 0.3
    """On the judges' last hidden layer."""
    updates: int = 1000
    """Gradient updates of each member."""
    weight: float = 0.8
    """Share of the judges in a label, in log space; the rest is what imitation alone would do."""
    context_weight: float = 0.3
    """Of L_C. Without effect where all contexts are the same."""
    temperature: float = 0.5
    """Of the label. Judges and imitation are both taught to keep a doubt (label smoothing); one half takes it back."""
    horizon: int = 1
    """Steps to the future that is judged: the action, then what the policy does by itself; at demonstrated states,
    before there is a policy, what `branch` was told to do there, by default anything."""
    sees_end: bool = False
    """Tell the judges whether the episode was over. Where only success ends it, that is the reward: results with this
    on are not results without reward."""

    def __post_init__(self) -> None:
        check_settings(self, members=(1, inf), horizon=(1, inf), dropout=(0, 1), weight=(0, 1), temperature=(1e-3, inf))

    @property
    def total_updates(self) -> int:
        """Gradient updates of all members."""
        return self.members * self.updates


class Shown(NamedTuple):
    """What a judge is shown: B states, and what comes of A actions in each."""

    obs: dict[str, Tensor]
    """(B, ...)"""
    future: Tensor
    """(B, A, F)"""
    signs: Tensor
    """(B, A, S) of the futures: see `Judges.consequences`."""
    action: Tensor
    """(B,) the expert's."""
    tried: Tensor
    """(B, A) which of the futures are real."""


class Judges:
    """`fit` to branches at expert states, then `preference` among the futures of any states.

    They read what ``policy`` reads, and look at demonstrations as ``bc`` says: batch size, learning rate, weight decay,
    label smoothing, mirror, hidden pasts.
    """

    def __init__(self, policy: HeadstartPolicy, config: JudgeConfig, bc: BCConfig, *, seed: int = 0, log: Log = silent):
        self.policy, self.config, self.bc = policy, config, bc
        self.seed, self.log = seed, log
        signs = 1 + 2 * policy.layout.grid + config.sees_end
        self.members = [
            Judge(policy.new_extractor(), signs=signs, dropout=config.dropout).to(policy.device).eval()
            for _ in range(config.members)
        ]

    def fit(self, branches: Branches, outcomes: Branches | None = None) -> dict[str, float]:
        """To branches at expert states; ``outcomes`` are those at the last states of the demonstrations."""
        c, bc = self.config, self.bc
        generator = torch.Generator().manual_seed(self.seed)
        shown, ends = self.shown(branches), None
        if c.context_weight and outcomes is not None and self._contexts_differ(outcomes.obs):
            ends = self.shown(outcomes)

        def draw() -> tuple[Shown, ...]:
            i = torch.randint(len(shown.action), (bc.batch_size,), generator=generator)
            batch = self.batch(shown, i, generator)
            if ends is None:
                return (batch,)
            j = torch.randperm(len(ends.action), generator=generator)[: bc.batch_size]  # the next one is another
            return batch, self.batch(ends, j, generator)

        metrics: dict[str, float] = {}
        for number, judge in enumerate(self.members):

            def loss(shown: Shown, ends: Shown | None = None, judge: Judge = judge) -> tuple[Tensor, Metrics]:
                loss, metrics = self.loss(judge, shown)
                if ends is None:
                    return loss, metrics
                context, found = self.context_loss(judge, ends)
                return loss + c.context_weight * context, metrics | found

            judge.train()
            metrics = train(
                Stage(
                    "reflect (judge)" if ends is None else "reflect (judge, contexts)",  # other batches: see stack.py
                    [judge],
                    [*judge.parameters()],
                    draw,
                    loss,
                    updates=c.updates,
                    learning_rate=bc.learning_rate,
                    weight_decay=bc.weight_decay,
                    seed=self.seed + number,
                    log=lambda update, metrics, before=number * c.updates: self.log(before + update, metrics),
                )
            )
            judge.eval()
        return metrics

    # ---- the two losses ----
    def loss(self, judge: Judge, shown: Shown) -> tuple[Tensor, Metrics]:
        """L_J: find the expert's future among those that are real."""
        credit = same_future_credit(shown.future, shown.action) & shown.tried  # (B, A)
        score = judge(shown.obs, shown.future, shown.signs).masked_fill(~shown.tried, -torch.inf)  # (B, A)
        loss = contrast_loss(score, credit, label_smoothing=self.bc.label_smoothing)
        accuracy = credit.gather(1, score.argmax(1, keepdim=True)).float().mean()
        return loss, {"reflect/judge_loss": loss.detach(), "reflect/judge_accuracy": accuracy}

    def context_loss(self, judge: Judge, shown: Shown) -> tuple[Tensor, Metrics]:
        """L_C, of last states: each also in the context of the next in the batch."""
        obs, policy, n = shown.obs, self.policy, len(shown.action)
        each = torch.arange(n, device=shown.action.device)
        swapped = swap_context(obs, each.roll(-1), policy.recent)

        def differ(read: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]) -> Tensor:
            """(B,) whether what is read is another in the other context."""
            parts = zip(read(obs), read(swapped), strict=True)
            return torch.stack([(mine != theirs).flatten(1).any(1) for mine, theirs in parts]).any(0)

        outcome = [x[each, shown.action].unsqueeze(1) for x in (shown.future, shown.signs)]
        both = {name: torch.cat([obs[name], swapped[name]]) for name in obs}
        own, others = judge(both, *(torch.cat([x, x]) for x in outcome)).flatten().chunk(2)
        # Pairs that networks cannot tell apart stay in the loss, where they add nothing but dropout's noise.
        loss = (F.softplus(others - own) * differ(policy.read)).mean()
        known = differ(self._context)
        accuracy = ((own > others) & known).sum() / known.sum().clamp(min=1)
        return loss, {"reflect/context_loss": loss.detach(), "reflect/context_accuracy": accuracy}

    def _context(self, obs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """What networks know of past and mission: they mask frames from before the episode, or of a hidden past."""
        view, action, mission = self.policy.read(obs)
        return view[:, :-1].masked_fill((action == self.policy.n_actions).unsqueeze(2), 0), action, mission

    def _contexts_differ(self, obs: Obs) -> bool:
        """Whether anything is known that cannot be seen."""
        return self.policy.memory > self.policy.recent or bool((obs["mission"] != obs["mission"][:1]).any())

    # ---- what they are shown ----
    def consequences(self, branches: Branches) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """What is judged: futures (N, A, F), and signs of them (N, A, S).

        Seen before, after the first step? In a grid: turned to the left? to the right? (Views alone do not tell where
        everything moves.) And, where that is shown: over?
        """
        last = self.config.horizon - 1
        future, signs = branches.future[:, :, last], [branches.revisit]
        if self.policy.layout.grid:
            turned = (future[:, :, -1].astype(int) - branches.frame[:, None, -1]) % 4
            signs += [turned == 3, turned == 1]
        if self.config.sees_end:
            signs.append(branches.ended[:, :, last])
        return future, np.stack(signs, axis=2)

    def shown(self, branches: Branches) -> Shown:
        """Branches, and their mirror image."""
        seen = Branches.join(with_mirrored(self.policy, branches, self.bc.mirror))
        parts = *self.consequences(seen), seen.expert_action, seen.tried
        tensors = (torch.as_tensor(part, device=self.policy.device) for part in parts)
        return Shown(as_tensors(seen.obs, self.policy.device), *tensors)

    def batch(self, shown: Shown, i: Tensor, generator: torch.Generator) -> Shown:
        """The rows at ``i``, pasts hidden as in imitation."""
        bc, i = self.bc, i.to(self.policy.device)
        obs = {name: value[i] for name, value in shown.obs.items()}
        obs = hide_past(obs, self.policy.n_actions, bc.hidden_past, bc.hidden_actions, generator)
        return Shown(obs, *(part[i] for part in shown[1:]))

    # ---- what they say ----
    @torch.no_grad()
    def preference(self, branches: Branches) -> NDArray[np.float32]:
        """Log preference (N, A) among the executed futures, the mean of the M judges'; -inf for actions not tried."""
        device, opinions = self.policy.device, []
        futures, all_signs = self.consequences(branches)
        for i in range(0, len(branches), 512):
            part = slice(i, i + 512)
            obs = as_tensors({name: value[part] for name, value in branches.obs.items()}, device)
            future, signs = (torch.as_tensor(x[part], device=device) for x in (futures, all_signs))
            untried = torch.as_tensor(~branches.tried[part], device=device)
            score = torch.stack([judge(obs, future, signs) for judge in self.members])  # (M, n, A)
            opinions.append(torch.log_softmax(score.masked_fill(untried, -torch.inf), dim=2))
        return torch.cat(opinions, dim=1).cpu().numpy().mean(0)
