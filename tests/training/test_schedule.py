"""Learning rates by step, computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from megatron_soaes.training.engine import build_engine, build_options, load_model
from megatron_soaes.training.job import TrainingJob
from tests.training.material import BATCH, make_job

PEAK, FLOOR = 1e-3, 1e-4


def rates(job: TrainingJob) -> list[float]:
    """The rate of each step of the stage; that of step 1 first."""
    stage = job.stage
    options = build_options(job.shape, job.source, job.layout, stage.precision)
    engine = build_engine(job.shape, load_model(job.shape, options, job.start), stage, stage.steps)
    found = []
    for _ in range(stage.steps):
        (rate,) = {group["lr"] for group in engine.optimizer.param_groups}
        found.append(rate)
        engine.schedule.step(increment=BATCH)
    return found


CASES: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "warm-up is a line from its start to the peak": (
        {"shape": "constant", "warmup_steps": 4, "warmup_from_lr": 2e-4},
        {1: 2e-4, 2: 4e-4, 3: 6e-4, 4: 8e-4, 5: PEAK, 20: PEAK},
    ),
    "constant": ({"shape": "constant"}, {1: PEAK, 10: PEAK, 20: PEAK}),
    "cosine is half way down at half time": (
        {"shape": "cosine"},
        {1: PEAK, 11: (PEAK + FLOOR) / 2, 6: FLOOR + (PEAK - FLOOR) * (1 + math.sqrt(0.5)) / 2},
    ),
    "cosine counts from the end of the warm-up": (
        {"shape": "cosine", "warmup_steps": 4},
        {1: 0.0, 3: PEAK / 2, 5: PEAK, 13: (PEAK + FLOOR) / 2},
    ),
    "wsd stays at the peak until the decay": (
        {"shape": "wsd", "warmup_steps": 2, "decay_steps": 8, "decay_shape": "linear"},
        {2: PEAK / 2, 3: PEAK, 13: PEAK, 17: (PEAK + FLOOR) / 2, 19: FLOOR + (PEAK - FLOOR) / 4},
    ),
    "wsd by the root": (
        {"shape": "wsd", "decay_steps": 16, "decay_shape": "minus_sqrt"},
        {5: PEAK, 9: (PEAK + FLOOR) / 2, 14: FLOOR + (PEAK - FLOOR) / 4},
    ),
    "wsd decays over a tenth of the steps by default": (
        {"shape": "wsd", "decay_shape": "linear"},
        {19: PEAK, 20: (PEAK + FLOOR) / 2},
    ),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("case", CASES)
def test_the_rate_of_a_step(material: Path, tmp_path: Path, case: str) -> None:
    schedule, expected = CASES[case]
    optimizer = {"lr": PEAK, "min_lr": FLOOR}
    found = rates(make_job(material, tmp_path, schedule=schedule, optimizer=optimizer))
    for step, rate in expected.items():
        assert found[step - 1] == pytest.approx(rate, rel=1e-3), f"step {step}"
