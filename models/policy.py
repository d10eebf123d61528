"""The Stable-Baselines3 policy that learners warm-start and PPO goes on with: one object from start to end.

Legend: B states in a batch, T = history + 1 frames, F bytes of a frame, L mission tokens, A actions, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from headstart.envs.errors import Diverged, UsageError
from headstart.envs.spaces import GRID, Choices, Layout
from headstart.models.encoders import Memo, MissionEncoder, Tables, distinct_rows, frame_encoder
from headstart.models.history import HistoryAttention, Recall

RECENT = 4  # frames that a policy attends to in their order; of older ones it knows only that they were there

__all__ = ["FrameHistoryExtractor", "HeadstartPolicy", "as_tensors", "draw"]


def as_tensors(obs: dict[str, NDArray], device: torch.device | str) -> dict[str, Tensor]:
    """Observations as tensors of the same dtype on a device."""
    return {name: torch.as_tensor(value, device=device) for name, value in obs.items()}


def draw(p: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """An action (N,) from each row of probabilities (N, A). Raises Diverged if they are no numbers."""
    total = p.cumsum(axis=1)
    if not np.isfinite(total[:, -1]).all():
        raise Diverged(
            "probabilities of actions are no numbers, because weights of the policy are not. Train it with a lower "
            "learning rate."
        )
    above = total > rng.random((len(p), 1))
    above[:, -1] = True  # the sum may end a rounding error below one
    return above.argmax(axis=1)


class FrameHistoryExtractor(BaseFeaturesExtractor):
    """{"frames" (B, T, F), "actions" (B, T-1), "mission" (B, L)} -> (B, D).

    What encodes a frame depends on the layout in the space of the frames (`FrameSpace`; without one they are
    MiniGrid's). ``memory`` is how many of the T-1 earlier frames are used (default: all). The mission scales and
    shifts encoded views (FiLM, arXiv 1709.07871), after the encoder so that missions share them. The present then
    attends to the last RECENT frames and actions; a longer memory also recalls, without order, what was seen at all.
    Whatever depends on one view and mission only is computed once for each distinct pair in the batch: the gradient
    is the same, and most pairs occur many times. Where there is no gradient, a ``memo`` carries them from step to step.
    """

    memo: Memo | None = None

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_actions: int,
        memory: int | None = None,
        width: int = 128,
        channels: int = 32,
    ):
        super().__init__(observation_space, features_dim=width)
        self.n_actions = n_actions
        self.layout: Layout = getattr(observation_space["frames"], "layout", GRID)
        history = observation_space["frames"].shape[0] - 1  # type: ignore[index]
        self.memory = history if memory is None else memory
        if not 0 <= self.memory <= history:
            raise UsageError(
                f"memory={self.memory}, but observations hold {history} earlier frames. Give 0 to {history}, or None "
                "for all."
            )
        self.words: int = int(observation_space["mission"].high.max()) + 1  # type: ignore[attr-defined]
        self.view = frame_encoder(self.layout, width, channels)
        self.mission = MissionEncoder(self.words, width)
        self.film = nn.Linear(width, 2 * width)
        self.recent = min(self.memory, RECENT)
        if self.recent:
            self.past = HistoryAttention(width, self.recent, n_actions)
        if self.memory > self.recent:
            self.recall = Recall(width)
        parts = 1 + (self.recent > 0) + (self.memory > self.recent)
        self.mix = nn.Sequential(nn.Linear(parts * width, width), nn.ReLU())

    def read(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The parts that are looked at: views (B, T, 49 of 50 in a grid), past actions (B, T-1), mission (B, L)."""
        first = observations["actions"].shape[1] - self.memory
        view = observations["frames"][:, first:, : self.layout.seen]
        return view, observations["actions"][:, first:], observations["mission"]

    def once(self, what: str, rows: Tensor, compute: Callable[[Tensor], Tables]) -> tuple[Tables, Tensor]:
        """What is computed of rows (N, F), of each distinct one once; and the place (N,) of each row in it."""
        if self.memo is not None and not torch.is_grad_enabled():
            return self.memo(what, rows, compute)
        distinct, place = distinct_rows(rows)
        return compute(distinct), place

    def encode(self, seen: Tensor) -> Tables:
        """Views, each with its mission (U, view + L) -> features (U, D), and how the past will be read from them."""
        view, mission = seen[:, : self.layout.seen], seen[:, self.layout.seen :]
        (told,), which = self.once("missions", mission, lambda mission: (self.film(self.mission(mission)),))
        scale, shift = told[which].chunk(2, dim=1)
        feature = torch.relu(self.view(view) * (1 + scale) + shift)
        of_past = [self.past.key_value(feature)] if self.recent else []
        of_past += [self.recall.seen(feature).relu()] if self.memory > self.recent else []
        return feature, *of_past

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        view, action, mission = self.read(observations)
        b, t = view.shape[:2]
        seen = torch.cat([view, repeat(mission, "b l -> b t l", t=t).to(view.dtype)], dim=-1)
        (feature, *of_past), place = self.once("views", rearrange(seen, "b t f -> (b t) f"), self.encode)
        place = rearrange(place, "(b t) -> b t", b=b)
        now = feature[place[:, -1]]
        parts = [now]
        if self.recent:
            recently = of_past[0][place[:, -1 - self.recent : -1]]
            parts.append(self.past(now, recently, action[:, -self.recent :].long()))
        if self.memory > self.recent:
            parts.append(self.recall(now, of_past[-1][place[:, :-1]], action == self.n_actions))
        return self.mix(torch.cat(parts, dim=1))


class HeadstartPolicy(MultiInputActorCriticPolicy):
    """Actor and critic on one trunk.

    ``warm_start`` names the learner that has fitted it, if any, and `PPO` goes by it: who takes over weights that were
    fitted elsewhere, by load_state_dict or set_parameters, sets it too.
    """

    _warm_start: str | None = None
    fitted_anew = False
    """Whether `warm_start` was set since PPO last looked."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Callable[[float], float],
        **settings: Any,
    ):
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        if not {"frames", "actions", "mission"} <= set(parts) or not isinstance(action_space, spaces.Discrete):
            raise UsageError(
                f"HeadstartPolicy cannot act in an environment with observations {observation_space} and actions "
                f"{action_space}. Make one that it reads: make_vec_env(demos), or make_vec_env with an id of MiniGrid."
            )
        frames, remembered = parts["frames"].shape or (0, 0), (parts["actions"].shape or (0,))[0]
        width = getattr(parts["frames"], "layout", GRID).width
        if frames != (remembered + 1, width):
            raise UsageError(
                f"HeadstartPolicy reads {remembered + 1} frames of {width} bytes where {remembered} past actions are "
                f"shown, but these are {frames}. Use make_vec_env(..., history=N) instead of a wrapper that stacks or "
                "changes frames."
            )
        settings.setdefault("features_extractor_class", FrameHistoryExtractor)
        extractor = settings.get("features_extractor_kwargs") or {}
        settings["features_extractor_kwargs"] = {"n_actions": int(action_space.n), **extractor}
        settings.setdefault("net_arch", {"pi": [64], "vf": [64]})
        settings.setdefault("activation_fn", nn.ReLU)
        super().__init__(observation_space, action_space, lr_schedule, **settings)

    @property
    def warm_start(self) -> str | None:
        """The learner that has fitted it."""
        return self._warm_start

    @warm_start.setter
    def warm_start(self, learner: str | None) -> None:
        self._warm_start, self.fitted_anew = learner, learner is not None

    @property
    def n_actions(self) -> int:
        return int(self.action_space.n)  # type: ignore[attr-defined]

    @property
    def choices(self) -> Choices | None:
        """What its actions stand for in an environment that runs in Python; None for MiniGrid's own."""
        return getattr(self.observation_space["frames"], "choices", None)  # type: ignore[index]

    @property
    def has_mirror(self) -> bool:
        """Whether left is right in a mirror, as in MiniGrid: in a wrapper of one's own, actions may mean anything."""
        return self.layout.grid and self.choices is None

    @property
    def layout(self) -> Layout:
        """What the bytes of its frames mean."""
        return self.features_extractor.layout  # type: ignore[return-value]

    @property
    def memory(self) -> int:
        """Earlier frames that it looks at."""
        return self.features_extractor.memory  # type: ignore[return-value]

    @property
    def recent(self) -> int:
        """Earlier frames that it looks at in their order; older ones it recalls as a set."""
        return self.features_extractor.recent  # type: ignore[return-value]

    def read(self, obs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """The parts of an observation that the policy looks at: two states that agree in them are one to it."""
        return self.features_extractor.read(obs)  # type: ignore[operator]

    def new_extractor(self) -> BaseFeaturesExtractor:
        """Another network like the trunk, with fresh weights drawn in the same way, to read what the policy reads."""
        extractor = self.features_extractor_class(self.observation_space, **self.features_extractor_kwargs)
        return extractor.apply(partial(self.init_weights, gain=2**0.5))

    def features(self, obs: dict[str, Tensor]) -> Tensor:
        """(B, D): what the actor, the critic and the world model read."""
        return self.features_extractor(obs)

    def logits(self, obs: dict[str, Tensor]) -> Tensor:
        """(B, A) unnormalised log-probabilities of the actor."""
        return self.logits_of(self.features(obs))

    def logits_of(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, A): what the actor makes of features."""
        return self.action_net(self.mlp_extractor.forward_actor(features))

    def actor_parameters(self) -> Iterator[nn.Parameter]:
        """Trunk and actor: what learners fit. The critic stays fresh for PPO."""
        modules = (self.features_extractor, self.mlp_extractor.policy_net, self.action_net)
        return chain.from_iterable(module.parameters() for module in modules)

    def critic_parameters(self) -> Iterator[nn.Parameter]:
        """The critic's own layers, without the trunk."""
        return chain(self.mlp_extractor.value_net.parameters(), self.value_net.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Every parameter once. (Stable-Baselines3's state_dict has the shared trunk under three names.)"""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Take ``weights`` of a policy of the same shape. Raises ValueError when names differ."""
        if weights.keys() != self.weights().keys():
            raise ValueError(f"weights of another policy: {sorted(weights.keys() ^ self.weights().keys())} differ")
        self.load_state_dict(weights, strict=False)

    @contextmanager
    def remembering(self, memo: Memo) -> Iterator[None]:
        """Within it, what has no gradient encodes each view once; weights must not change until it is left.

        When it is entered with other weights of the trunk than before, ``memo`` starts over.
        """
        extractor: Any = self.features_extractor
        memo.computed_with(list(extractor.parameters()))
        outer, extractor.memo = extractor.memo, memo
        try:
            yield
        finally:
            extractor.memo = outer

    @torch.no_grad()
    def probabilities(self, obs: dict[str, NDArray], *, temperature: float = 1.0, chunk: int = 4096) -> NDArray:
        """(N, A) float64 action probabilities for observations in numpy, however many."""
        logits = [
            self.logits(as_tensors({name: value[i : i + chunk] for name, value in obs.items()}, self.device))
            for i in range(0, len(obs["frames"]), chunk)
        ]
        return torch.softmax(torch.cat(logits).double() / temperature, dim=1).cpu().numpy()

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> tuple[NDArray, Any]:
        """Stable-Baselines3's, of what `make_vec_env`'s environments show. Raises UsageError for anything else."""
        wanted = set(self.observation_space.spaces)  # type: ignore[attr-defined]
        if not isinstance(observation, dict) or set(observation) != wanted:
            raise UsageError(
                f"predict() reads what an environment of make_vec_env shows, with what it remembers "
                f"({', '.join(sorted(wanted))}), and not the observation of the environment itself."
            )
        changed = [name for name, value in observation.items() if np.asarray(value).dtype != np.uint8]
        if changed:
            raise UsageError(
                f"predict() reads bytes, but {', '.join(changed)} are not: something has changed what the environment "
                "shows. Of VecNormalize only rewards make sense here: VecNormalize(env, norm_obs=False)."
            )
        return super().predict(observation, *args, **kwargs)

    def actor(
        self, *, greedy: bool = False, temperature: float = 1.0
    ) -> Callable[[dict[str, NDArray], np.random.Generator], NDArray[np.int64]]:
        """How the policy acts in a simulator: the likeliest action, or one drawn at a temperature above 0."""
        if not temperature > 0:
            raise UsageError(f"temperature={temperature}. Choose more than 0; for the likeliest action, greedy=True.")
        memo = Memo()

        def act(obs: dict[str, NDArray], rng: np.random.Generator) -> NDArray[np.int64]:
            with self.remembering(memo):
                p = self.probabilities(obs, temperature=temperature)
            if greedy:
                return p.argmax(axis=1)
            return draw(p, rng)

        return act
