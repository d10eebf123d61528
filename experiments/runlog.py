"""Metrics of one stage of a run: rows of a CSV file, which reports read, and TensorBoard, which people watch."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.logger import KVWriter, Logger
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import SummaryWriter

from headstart.envs import storage

__all__ = ["RunLog", "flat", "read_rows", "write_rows"]


def write_rows(path: Path, rows: list[dict[str, Any]], *, kind: str, schema: int = 1) -> None:
    """Save rows with equal keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.save_text(path, text.getvalue(), kind=kind, schema=schema)


def read_rows(path: Path, *, kind: str, schema: int = 1) -> list[dict[str, str]]:
    """Rows as saved, every value as text."""
    return list(csv.DictReader(io.StringIO(storage.load_text(path, kind=kind, schema=schema))))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf for key, part in value.items() for name, leaf in flat(part, f"{prefix}.{key}".lstrip(".")).items()
    }


class RunLog(KVWriter):
    """Numbers of one stage. Written again from the start when the stage is repeated: its old events are deleted.

    ``offset`` is added to the steps that Stable-Baselines3 reports: what was spent before RL. A stage that goes on
    gives the ``rows`` so far, which its new events begin with. (TensorBoard's own way, a purge of what came after some
    step, would take the numbers of the fit along, whose steps are updates.)
    """

    def __init__(
        self,
        directory: Path,
        stage: str,
        *,
        offset: int = 0,
        rows: list[dict[str, Any]] | None = None,
    ):
        for old in directory.glob(f"events.out.tfevents.*.{stage}"):
            old.unlink()
        self.events = SummaryWriter(str(directory), filename_suffix=f".{stage}")
        self.rows: list[dict[str, Any]] = rows or []
        self.offset = offset
        for row in self.rows:
            self.events.add_scalar(row["tag"], float(row["value"]), row["step"])

    def __call__(self, step: int, metrics: dict[str, float]) -> None:
        """Record numbers at a step: updates while fitting, environment steps from RL on."""
        for tag, value in metrics.items():
            self.rows.append({"step": step, "tag": tag, "value": repr(float(value))})
            self.events.add_scalar(tag, value, step)

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """What Stable-Baselines3's logger hands over. Times are shown in TensorBoard and kept out of the CSV."""
        numbers = {k: float(v) for k, v in key_values.items() if isinstance(v, int | float | np.number)}
        for tag in [tag for tag in numbers if tag.startswith("time/")]:
            self.events.add_scalar(tag, numbers.pop(tag), step + self.offset)
        self(step + self.offset, numbers)

    def logger(self) -> Logger:
        """A Stable-Baselines3 logger that writes here."""
        return Logger(folder=None, output_formats=[self])

    def say(self, tag: str, lines: Sequence[str], step: int) -> None:
        """A list of sentences, for TensorBoard's text page."""
        self.events.add_text(tag, "\n".join(f"- {line}" for line in lines), step)

    def show(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Pixels (height, width, 3), for TensorBoard's page of images."""
        self.events.add_image(tag, picture, step, dataformats="HWC")

    def describe(self, config: dict[str, Any], results: dict[str, float]) -> None:
        """Configuration as text, and hyper-parameters in this run's own events: add_hparams would open another."""
        values = flat(config)
        lines = "\n".join(f"| {name} | {value} |" for name, value in values.items())
        self.events.add_text("config", f"| setting | value |\n|---|---|\n{lines}")
        plain = {k: v if isinstance(v, int | float | bool | str) else str(v) for k, v in values.items()}
        for summary in hparams(plain, results):
            self.events._get_file_writer().add_summary(summary)

    def close(self) -> None:
        self.events.close()
