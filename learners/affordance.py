"""Affordances: branches for fewer steps. What surely changes nothing is not executed, nor what has been seen already.

    L = -sum_a [ c_a log p_a(s) + (1 - c_a) log(1 - p_a(s)) ]     c_a: whether action a has changed what is seen in s

More than half of all futures are the present once more: hands that hold nothing drop nothing, and walls give no way.
Some dozens of states, with every action tried in each, teach small networks which ones: where all of them are sure, an
action need not be executed to know what comes of it. Its future is the present, which has been seen before. And what
the expert or the agent itself has done in a state, its own episode has shown.

Action elimination (arXiv 1809.02121) learns which actions to leave out, from a signal of the environment. Here they are
not left out, but judged like the others, only without a step of the environment.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from headstart.envs.collect import branch, replay
from headstart.envs.simulator import Simulator
from headstart.envs.transitions import Branches, Demos, Walk
from headstart.models.encoders import frame_encoder
from headstart.models.policy import HeadstartPolicy
from headstart.models.training import Metrics, Stage, seeded, train

__all__ = ["Affordances"]

MEMBERS, UPDATES, BATCH = 3, 300, 256  # networks, and gradient updates of each
SURE = 0.05  # an action changes nothing where no member gives it more than this to change anything


class Affordances:
    """Learns by ``branch_demos``, or by ``fit`` from branches that there are; then knows by ``branch``.

    Its branches are those of `envs.branch`, up to what the networks were wrong about; their ``env_steps`` are what was
    executed."""

    def __init__(self, policy: HeadstartPolicy, *, seed: int = 0):
        self.device, self.seed = policy.device, seed

        def member() -> nn.Module:
            return nn.Sequential(frame_encoder(policy.layout, 64, 16), nn.ReLU(), nn.Linear(64, policy.n_actions))

        with seeded(seed):
            self.members = [member().to(policy.device) for _ in range(MEMBERS)]

    def branch_demos(self, demos: Demos) -> Branches:
        """Every action at the demonstrated states. A quarter of the demonstrations teaches what changes nothing in the
        others, and all of them together what changes nothing elsewhere."""
        states, last = replay(demos), demos.last
        action, after = demos.action.copy(), np.arange(1, len(demos) + 1)
        action[last], after[last] = -1, last  # what these lead to is not among the demonstrated states
        if demos.exact is not None:
            action[:] = -1  # the choice nearest to the expert's action leads elsewhere
        walk = Walk(action, states.frame()[after], states.revisit[after], np.zeros(len(demos), np.bool_), 0)
        real: list[Branches] = []
        for some in np.split(np.arange(len(demos)), [last[(len(last) - 1) // 4] + 1]):
            real.append(self._execute(states.fork(some), walk.take(some)))
            self.fit(Branches.join(real))
        return replace(_foreseen(Branches.join(real)), expert_action=demos.action, env_id=demos.env_id)

    def branch(self, states: Simulator, walk: Walk | None = None) -> Branches:
        """Every action in N states; ``walk`` (N) says what has been done in them before."""
        return _foreseen(self._execute(states, walk))

    def _execute(self, states: Simulator, walk: Walk | None) -> Branches:
        """Every action but those that are sure to change nothing."""
        known = self.nothing(states.frame())
        walked = np.zeros_like(known) if walk is None else walk.action[:, None] == np.arange(states.n_actions)
        found = branch(states, tried=~(known | walked))
        if walk is None:
            return found
        future, revisit, ended = found.future.copy(), found.revisit.copy(), found.ended.copy()
        i, a = np.nonzero(walked)
        future[i, a, 0], revisit[i, a], ended[i, a, 0] = walk.future[i], walk.revisit[i], walk.ended[i]
        return replace(found, future=future, revisit=revisit, ended=ended, tried=found.tried | walked)

    def fit(self, branches: Branches) -> dict[str, float]:
        """On every action that was tried."""
        generator = torch.Generator().manual_seed(self.seed)
        changes = (branches.future[:, :, 0] != branches.frame[:, None]).any(2)
        seen, target, tried = (
            torch.as_tensor(x, device=self.device) for x in (branches.frame, changes.astype(np.float32), branches.tried)
        )

        def draw() -> tuple[Tensor, ...]:
            i = torch.randint(len(seen), (BATCH,), generator=generator).to(self.device)
            return seen[i], target[i], tried[i]

        metrics: dict[str, float] = {}
        for number, member in enumerate(self.members):

            def loss(seen: Tensor, target: Tensor, tried: Tensor, member: nn.Module = member) -> tuple[Tensor, Metrics]:
                nats = F.binary_cross_entropy_with_logits(member(seen), target, weight=tried.float(), reduction="sum")
                loss = nats / tried.sum()
                return loss, {"reflect/affordance_loss": loss.detach()}

            metrics = train(
                Stage(
                    "reflect (affordances)",
                    [member],
                    [*member.parameters()],
                    draw,
                    loss,
                    updates=UPDATES,
                    learning_rate=3e-3,
                    weight_decay=0.01,
                    seed=self.seed + number,
                )
            )
        return metrics

    @torch.no_grad()
    def nothing(self, frame: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """(N, A) of frames (N, F): the actions that are sure to change nothing."""
        seen = torch.as_tensor(frame, device=self.device)
        logits = torch.stack([member(seen) for member in self.members])
        return (logits.sigmoid().amax(0) < SURE).cpu().numpy()


def _foreseen(real: Branches) -> Branches:
    """What was left out changes nothing: its future is the present, as it is already, and has been seen before."""
    return replace(real, revisit=real.revisit | ~real.tried, tried=np.ones_like(real.tried))
