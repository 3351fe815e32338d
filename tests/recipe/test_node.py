"""What the node a job starts on can do, and what the recipe means there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_soaes.accelerator.machine import Machine, read_machine
from megatron_soaes.recipe.check_node import check_node, substitutions
from megatron_soaes.recipe.gpus import GPUS
from megatron_soaes.recipe.load import load_recipe

CPU = Machine(
    device="cpu",
    gpu_name=None,
    gpu_count=0,
    compute_capability=None,
    gpu_memory_bytes=0,
    cores=4,
    memory_bytes=16 * 2**30,
    versions={"torch": "2.13.0", "megatron-core": "0.16.1"},
    apex=None,
    commands={},
)
H100 = replace(
    CPU,
    device="cuda",
    gpu_name="NVIDIA H100",
    gpu_count=8,
    compute_capability=(9, 0),
    gpu_memory_bytes=80 * 2**30,
    versions={**CPU.versions, "transformer-engine": "2.11.0"},
)
A100 = replace(H100, gpu_name="NVIDIA A100", compute_capability=(8, 0))


def without_te(machine: Machine) -> Machine:
    return replace(machine, versions=CPU.versions)


def test_a_rehearsal_runs_on_a_cpu(recipe_file: Path) -> None:
    assert check_node(load_recipe(recipe_file), CPU) == []


def test_the_72b_recipe_runs_on_its_nodes_and_is_refused_elsewhere(recipe_72b_file: Path) -> None:
    recipe = load_recipe(recipe_72b_file)
    assert check_node(recipe, H100) == []

    refused = check_node(recipe, replace(read_machine(), device="cpu"))
    assert {problem.path for problem in refused} == {"cluster.gpu", "stages.cpt.precision.fp8"}
    assert "cluster=null" in refused[0].fix
    assert "never runs silently in another precision" in refused[1].fix


@pytest.mark.parametrize(
    ("machine", "override", "rule"),
    [
        (CPU, "tensorwise", "no FP8 on a node without a GPU"),
        (A100, "tensorwise", "no FP8 on NVIDIA A100"),
        (H100, "mxfp8", "one of delayed, tensorwise, blockwise on NVIDIA H100"),
        (without_te(H100), "tensorwise", "no FP8 without the package transformer-engine"),
        (
            replace(H100, versions={"transformer-engine": "1.13.0"}),
            "tensorwise",
            "what Transformer Engine 1.13.0 has",
        ),
    ],
)
def test_fp8_is_refused_rather_than_replaced(
    recipe_file: Path, machine: Machine, override: str, rule: str
) -> None:
    recipe = load_recipe(recipe_file, [f"cpt.fp8.recipe={override}"])

    assert rule in [problem.rule for problem in check_node(recipe, machine)]
    assert check_node(load_recipe(recipe_file), machine) == []


def test_a_stage_needs_a_gpu_for_each_process(recipe_file: Path) -> None:
    machine = replace(H100, gpu_count=2)
    (problem,) = check_node(load_recipe(recipe_file), machine)  # TP2 x PP2

    assert problem.path == "models.target.layout"
    assert problem.value == "4 processes on this node"
    two_nodes = "cluster={gpu: h100-80g, nodes: 2, gpus_per_node: 2}"
    assert check_node(load_recipe(recipe_file, [two_nodes]), machine) == []


def test_what_has_another_form_on_a_cpu_is_listed(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        [
            "models.target.layout={pipeline_parallel: 2, virtual_pipeline: 2, context_parallel: 2}",
            "cpt.overlap.pipeline=false",
        ],
    )
    assert [substitution.wanted for substitution in substitutions(recipe, CPU)] == [
        "NCCL collectives",
        "batched pipeline messages",
        "Transformer Engine layers",
        "ring attention",
        "fused AdamW kernels",
    ]
    assert "gloo" in str(substitutions(recipe, CPU)[0])


def test_only_what_is_used_is_listed(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["models.target.layout={}"])

    assert [s.wanted for s in substitutions(recipe, CPU)] == [
        "Transformer Engine layers",
        "fused AdamW kernels",
    ]
    assert substitutions(recipe, H100) == []
    bare = without_te(H100)
    assert [s.used for s in substitutions(recipe, bare)] == [
        "local layers with PyTorch SDPA",
        "PyTorch's fused AdamW",
    ]
    assert [s.used for s in substitutions(recipe, replace(bare, apex="nvidia"))] == [
        "local layers with PyTorch SDPA"
    ]


def test_gpu_kinds_and_nodes_agree_on_fp8() -> None:
    assert GPUS["h100-80g"].fp8_recipes == H100.fp8_recipes
    assert GPUS["a100-80g"].fp8_recipes == A100.fp8_recipes == ()
