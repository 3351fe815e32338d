"""What each of two ranks holds: `python -m tests.planner.two_ranks FOLDER`.

Leaves FOLDER/rankN.json: bytes by the name of a case.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_soaes import files
from megatron_soaes.accelerator.groups import (
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.training_settings import Layout, Recompute
from megatron_soaes.training.engine import layout_groups
from tests.planner.meter import live, measure, trained
from tests.planner.shapes import MODELS, UNPADDED, workload

RECOMPUTES = {
    "none": Recompute(),
    "core_attn": Recompute(granularity="selective"),
    "all-three": Recompute(granularity="selective", modules=["core_attn", "mlp", "layernorm"]),
    "full": Recompute(granularity="full"),
}
LAYOUTS = {
    "tp2": Layout(tensor_parallel=2),
    "tp2-sp": Layout(tensor_parallel=2, sequence_parallel=True),
    "pp2": Layout(pipeline_parallel=2),
    "pp2-vpp2": Layout(pipeline_parallel=2, virtual_pipeline=2),
    "cp2": Layout(context_parallel=2),
    "dp2": Layout(data_parallel=2),
}


def cases(layout: Layout) -> dict[str, Workload]:
    """Every policy for every model that the layout treats in a way of its own."""
    gathered = layout.tensor_parallel > 1 and layout.sequence_parallel
    models = MODELS if gathered or layout.processes == 1 else ("qwen2", "qwen3")
    return {
        f"{model} {policy}": workload(shape, layout, precision=precision, recompute=recompute)
        for model in models
        for shape, precision in [MODELS[model]]
        for policy, recompute in RECOMPUTES.items()
    }


def main(folder: Path) -> None:
    found: dict[str, Any] = {}
    with process_group(rendezvous_from_environment()):
        for name, layout in LAYOUTS.items():
            with layout_groups(layout):
                for case, asked in cases(layout).items():
                    meter = measure(asked)
                    found[f"{name} {case}"] = [meter.saved, meter.most]
                if layout.model_parallel == layout.context_parallel:
                    found[f"live {name}"] = live(trained(workload(UNPADDED, layout)))
        files.write_json(folder / f"rank{world_rank()}.json", found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
