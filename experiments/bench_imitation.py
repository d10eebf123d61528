"""The other side of bench.py's cloning rows: `imitation`'s behaviour cloning, in `imitation`'s own environment.

    python bench_imitation.py demonstrations.npz BATCH_SIZE

prints the versions in use and the number of parameters as a line of JSON; then, for every number of CPU-seconds that
it reads, it trains so long and prints samples per CPU-second. `imitation` needs an older Gymnasium and
Stable-Baselines3 than headstart, so nothing of headstart is imported here.
"""

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional as F

CELLS = 49
CELL_PARTS = (11, 6, 3)  # classes of type, colour and state of a packed cell


class MissionEncoder(nn.Module):
    """Missions (B, L) -> (B, D): three columns of a table of words, added up, and the maximum over the places."""

    def __init__(self, words: int, width: int):
        super().__init__()
        self.word = nn.Embedding(words, width, padding_idx=0)
        self.phrase = nn.Linear(width, 3 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, mission: Tensor) -> Tensor:
        mission = mission[:, : int((mission != 0).sum(1).max().clamp(min=1))]
        left, middle, right = (F.embedding(mission, part) for part in self.phrase(self.word.weight).chunk(3, dim=1))
        phrase = middle + F.pad(left[:, :-1], (0, 0, 1, 0)) + F.pad(right[:, 1:], (0, 0, 0, 1)) + self.bias
        return (phrase.relu() * (mission != 0).unsqueeze(2)).amax(dim=1)


class FlatViewExtractor(BaseFeaturesExtractor):
    """headstart's FrameHistoryExtractor without memory, for flat observations (B, 49 + L): view, then mission tokens.

    The same layers in the same order, but every view and mission of a batch is encoded, as in any ordinary network.
    """

    cell: Tensor

    def __init__(self, observation_space: spaces.Box, words: int, width: int = 128, channels: int = 32):
        super().__init__(observation_space, features_dim=width)
        packed = torch.arange(256)
        classes = (packed // 18).clamp(max=CELL_PARTS[0] - 1), packed % 18 // 3, packed % 3
        one_hot = [F.one_hot(part, n) for part, n in zip(classes, CELL_PARTS, strict=True)]
        self.register_buffer("cell", torch.cat(one_hot, dim=1).float(), persistent=False)
        self.view = nn.Sequential(
            nn.Conv2d(sum(CELL_PARTS), channels, 3),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 9, width),
        )
        self.mission = MissionEncoder(words, width)
        self.film = nn.Linear(width, 2 * width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        planes = self.cell[observations[:, :CELLS].long()].view(-1, 7, 7, sum(CELL_PARTS)).permute(0, 3, 1, 2)
        scale, shift = self.film(self.mission(observations[:, CELLS:].long())).chunk(2, dim=1)
        return self.mix(torch.relu(self.view(planes) * (1 + scale) + shift))


def flat_policy(observations: NDArray[np.uint8], words: int) -> ActorCriticPolicy:
    """Stable-Baselines3's policy with this extractor and the sizes of HeadstartPolicy."""
    return ActorCriticPolicy(
        spaces.Box(0, 255, observations.shape[1:], np.uint8),
        spaces.Discrete(7),
        lambda _: 1e-3,
        net_arch={"pi": [64], "vf": [64]},
        activation_fn=nn.ReLU,
        features_extractor_class=FlatViewExtractor,
        features_extractor_kwargs={"words": words},
    )


def main() -> None:
    from imitation.algorithms.bc import BC  # pyright: ignore[reportMissingImports]
    from imitation.data.types import Transitions  # pyright: ignore[reportMissingImports]
    from imitation.util import logger  # pyright: ignore[reportMissingImports]

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is not an answer
    torch.set_num_threads(1)
    with np.load(sys.argv[1]) as demos:
        obs, action, words = demos["obs"], demos["action"], int(demos["words"])
    batch_size = int(sys.argv[2])
    policy = flat_policy(obs, words)
    transitions = Transitions(  # cloning does not look at next_obs and dones, but imitation's loader wants them
        obs=obs,
        acts=action,
        infos=np.array([{} for _ in action]),
        next_obs=obs,
        dones=np.zeros(len(action), np.bool_),
    )
    learner = BC(
        observation_space=policy.observation_space,
        action_space=policy.action_space,
        rng=np.random.default_rng(0),
        policy=policy,
        demonstrations=transitions,
        batch_size=batch_size,
        custom_logger=logger.configure(Path(sys.argv[1]).parent / "log", format_strs=[]),  # no time for printing
        device="cpu",
    )
    packages = ("imitation", "torch", "stable-baselines3", "gymnasium", "numpy")
    versions = " ".join(f"{package} {version(package)}" for package in packages)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    print(json.dumps({"versions": versions, "parameters": parameters}), file=answers)
    n_batches = max(10, 20_000 // batch_size)
    for line in sys.stdin:
        samples, start = 0, time.process_time()
        while not samples or time.process_time() - start < float(line):
            learner.train(n_batches=n_batches, log_interval=10**9, progress_bar=False)
            samples += n_batches * batch_size
        print(samples / (time.process_time() - start), file=answers)


if __name__ == "__main__":
    main()
