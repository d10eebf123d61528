"""Rates are rates, and every job runs on the devices that there are."""

import pytest
import torch

from headstart.experiments import throughput


def test_a_rate_is_units_of_work_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [0.0], []
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    def work(n: int) -> None:
        done.append(n)
        now[0] += 0.01 * n

    assert throughput.rate(work, seconds=0.2) == pytest.approx(100)
    assert done[0] == 2  # for nothing
    assert done[-1] >= 20


def test_every_job_is_measured_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "available_cores", lambda: 1)
    threads = torch.get_num_threads()
    try:
        rows = list(throughput.measure([8], [2], seconds=0.01))
    finally:
        torch.set_num_threads(threads)
    devices = {("cpu", 1), ("cpu", 2)} | ({("cuda", 1)} if torch.cuda.is_available() else set())
    assert {(row["device"], row["threads"]) for row in rows} == devices
    assert [row["job"] for row in rows] == ["imitation", "stacked", "judging", "ppo"] * len(devices)
    assert all(row["per_second"] > 0 for row in rows)
