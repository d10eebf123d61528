"""The judge: scores what an action led to, never which button was pressed.

Legend: N states, A actions, F bytes of a frame, D width, E distinct effects.
"""

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from headstart.models.encoders import distinct_rows, effect_encoder

__all__ = ["Judge"]


class Judge(nn.Module):
    """(what the agent knows, what it sees after an action, signs) -> a score.

    ``situation`` reads what the policy reads: the present view, the past, the mission. An effect is the pair of
    views before and after, with what differs marked, and of ``signs``, yes or no each: whether the second view had been
    seen before, and what else a learner shows. Effects go through an encoder that fits the layout, for grids two
    convolutions; the situation scales and shifts what comes out (FiLM, arXiv 1709.07871), so that the same effect is
    good here and bad there. Equal effects, such as all actions that change nothing, are encoded once.
    """

    def __init__(
        self, situation: nn.Module, signs: int = 1, width: int = 128, channels: int = 32, dropout: float = 0.0
    ):
        super().__init__()
        self.situation = situation
        self.views = effect_encoder(situation.layout, channels)  # type: ignore[arg-type]
        self.effect = nn.Linear(self.views.width + signs, width)
        self.film = nn.Linear(int(situation.features_dim), 2 * width)  # type: ignore[arg-type]
        self.score = nn.Sequential(nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, 1))

    def forward(self, obs: dict[str, Tensor], future: Tensor, signs: Tensor) -> Tensor:
        """Observations (N, ...), frames after each action (N, A, F), their signs (N, A, S) bool -> scores (N, A).

        Scores are comparable within a state only.
        """
        a, s = signs.shape[1:]
        looked_at: int = self.situation.layout.seen  # type: ignore[union-attr, assignment]
        before = repeat(obs["frames"][:, -1, :looked_at], "n c -> (n a) c", a=a)
        after = rearrange(future[:, :, :looked_at], "n a c -> (n a) c")
        sign = rearrange(signs, "n a s -> (n a) s").to(before.dtype)
        distinct, place = distinct_rows(torch.cat([before, after, sign], dim=1))
        before, after, sign = distinct.split([looked_at, looked_at, s], dim=1)
        effect = self.effect(torch.cat([self.views(before, after), sign.float()], dim=1))  # (E, D)
        scale, shift = self.film(self.situation(obs)).unsqueeze(1).chunk(2, dim=2)  # (N, 1, D)
        return self.score(rearrange(effect[place], "(n a) d -> n a d", a=a) * (1 + scale) + shift).squeeze(2)
