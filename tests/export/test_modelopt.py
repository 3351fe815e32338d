"""NVIDIA ModelOpt writes the same numbers into the same tensors.

It is the one independent writer of this format that runs without TensorRT-LLM. Where it differs:
- It cuts the embedding by tokens and pads it with zeros (`use_parallel_embedding`); we give every
  rank all of it, which is the format's default and needs no all-reduce before the first layer.
- Without TensorRT-LLM beside it, it leaves fields out of config.json that building needs or whose
  defaults are wrong, and it adds a quant_cfg.json; our checker finds both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from megatron_soaes.export.trtllm.check import check
from megatron_soaes.export.trtllm.writer import export_trtllm
from tests.checkpoint.tiny import ARCHITECTURES, Case, tensors_of
from tests.export.conftest import ModelOf
from tests.export.ranks import read_config, read_ranks

EMBEDDING = "transformer.vocab_embedding.weight"


@dataclass(frozen=True)
class Run:
    """One model in one layout."""

    case: Case
    ways: int
    stages: int


RUNS = [
    *(Run(Case(family, tied=True), 4, 2) for family in ARCHITECTURES),
    *(Run(Case(family), 2, 1) for family in ARCHITECTURES),
    Run(Case("llama", tied=True), 1, 1),
]
EVERY_RUN = pytest.mark.parametrize(
    "run", RUNS, ids=lambda run: f"{run.case.name}-tp{run.ways}-pp{run.stages}"
)
ByRun = dict[Run, Path]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, model_of: ModelOf) -> ByRun:
    """What ModelOpt writes."""
    root = tmp_path_factory.mktemp("modelopt")
    made = {run: root / str(number) for number, run in enumerate(RUNS)}
    jobs = [[str(model_of(run.case)), str(out), run.ways, run.stages] for run, out in made.items()]
    command = [sys.executable, "-W", "ignore", "-m", "tests.export.modelopt_export"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, json.dumps(jobs)], check=True, env=environment)
    return made


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory, model_of: ModelOf) -> ByRun:
    """What we write."""
    root = tmp_path_factory.mktemp("ours")
    made = {run: root / str(number) for number, run in enumerate(RUNS)}
    for run, out in made.items():
        export_trtllm(
            model_of(run.case), out, tensor_parallel=run.ways, pipeline_parallel=run.stages
        )
    return made


@EVERY_RUN
def test_tensors_are_equal_bit_for_bit(
    model_of: ModelOf, ours: ByRun, theirs: ByRun, run: Run
) -> None:
    left, right = read_ranks(ours[run]), read_ranks(theirs[run])
    assert len(left) == len(right)
    for rank, (here, there) in enumerate(zip(left, right, strict=True)):
        assert here.keys() == there.keys()
        for name, tensor in there.items():
            assert tensor.dtype == torch.bfloat16
            if name != EMBEDDING:
                assert torch.equal(here[name], tensor), (rank, name)
    cut = torch.cat([rank[EMBEDDING] for rank in right if EMBEDDING in rank])
    assert torch.equal(cut[:250], tensors_of(model_of(run.case))["model.embed_tokens.weight"])
    assert torch.equal(left[0][EMBEDDING], cut[:250])
    assert not cut[250:].any()


@EVERY_RUN
def test_what_both_configurations_say_is_the_same(ours: ByRun, theirs: ByRun, run: Run) -> None:
    here, there = read_config(ours[run]), read_config(theirs[run])
    shared = here.keys() & there.keys()
    # ModelOpt gives bf16 models fp16 logits; fp32 is TensorRT-LLM's own default. Its quantization
    # has no exclude_modules, or an empty list of them: both mean what null means.
    assert {name for name in shared if here[name] != there[name]} == {
        "producer", "logits_dtype", "use_parallel_embedding", "quantization",
    }  # fmt: skip
    assert not any(there["quantization"].values())
    assert len(shared) >= 18


@EVERY_RUN
def test_the_checker_finds_what_keeps_theirs_from_being_built(
    model_of: ModelOf, theirs: ByRun, run: Run
) -> None:
    directory = theirs[run]
    missing = {
        "llama": {"rotary_base"},
        "qwen2": {"rotary_base", "qwen_type", "seq_length"},
        "qwen3": {"rotary_base", "qwen_type", "seq_length", "attn_bias"},
    }[run.case.family]
    report = check(directory, model_of(run.case))
    assert {problem.where for problem in report.problems} == {
        *(f"{directory / 'config.json'}: {field}" for field in missing),
        str(directory / "quant_cfg.json"),
    }
    assert report.compared == len(tensors_of(model_of(run.case)))
