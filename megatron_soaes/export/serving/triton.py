"""A sketch of a Triton model repository for the pair: the templates of TensorRT-LLM, filled in."""

from __future__ import annotations

import shlex

import yaml

from megatron_soaes.export.serving.commands import trtllm_options
from megatron_soaes.export.serving.deployment import ENGINES, HF, Deployment

FILL_SCRIPT = "triton/fill_templates.sh"
MODEL_YAML = "triton/models/tensorrt_llm/1/model.yaml"
_COMMON = {
    "triton_backend": "tensorrtllm",
    "decoupled_mode": "False",
    "max_beam_width": "1",
    "kv_cache_free_gpu_mem_fraction": "0.5",
    "exclude_input_in_output": "True",
    "enable_kv_cache_reuse": "True",
    "batching_strategy": "inflight_fused_batching",
    "max_queue_delay_microseconds": "0",
    "encoder_input_features_data_type": "TYPE_FP16",
    "logits_datatype": "TYPE_FP32",
}


def triton_files(deployment: Deployment) -> dict[str, str]:
    """Paths to texts: for engines a script, else `model.yaml` of the LLM API."""
    if deployment.release.engines:
        return {FILL_SCRIPT: fill_script(deployment)}
    return {MODEL_YAML: model_yaml(deployment)}


def model_yaml(deployment: Deployment) -> str:
    """Settings of the LLM API model; paths count from where tritonserver is started."""
    fields = {
        "model": HF["target"],
        "backend": "pytorch",
        "tensor_parallel_size": deployment.tensor,
        "pipeline_parallel_size": 1,
        "max_batch_size": deployment.max_batch_size,
        "max_seq_len": deployment.max_seq_len,
        **trtllm_options(deployment),
        "triton_config": {"max_batch_size": 0, "decoupled": False},
    }
    notes = "".join(f"# {note}\n" for note in deployment.unverified("triton", "pytorch"))
    return notes + yaml.safe_dump(fields, sort_keys=False)


def fill_script(deployment: Deployment) -> str:
    """Copies the inflight_batcher_llm templates and fills in two engines and the BLS model.

    The filler separates its settings with commas and colons, so a folder with one is refused, and
    the devices of an engine on several are left for the user to write.
    """
    batch = f"triton_max_batch_size:{deployment.max_batch_size}"
    ranks = {"target": deployment.tensor * deployment.pipeline, "draft": deployment.draft_tensor}
    text = f'tokenizer_dir:"$pair"/{HF["target"]}'
    bls = (
        f"{batch},decoupled_mode:False,bls_instance_count:1,accumulate_tokens:False,"
        "tensorrt_llm_model_name:tensorrt_llm,tensorrt_llm_draft_model_name:tensorrt_llm_draft,"
        "logits_datatype:TYPE_FP32"
    )
    lines = [
        "#!/usr/bin/env bash",
        "# Usage: fill_templates.sh TENSORRTLLM_BACKEND, a checkout of tensorrtllm_backend",
        f"# of the release for TensorRT-LLM {deployment.version}. A sketch: read what it wrote.",
        *(f"# {note}" for note in deployment.unverified("triton")),
        "set -euo pipefail",
        'backend="$(cd -- "${1:?name the tensorrtllm_backend checkout}" && pwd)"',
        'cd -- "$(dirname -- "${BASH_SOURCE[0]}")"',
        'pair="$(cd .. && pwd)"',
        'case "$pair" in *[,:]*)',
        '    echo "$pair: the filler takes no path with a comma or colon; move the folder" >&2',
        "    exit 2",
        "esac",
        "if [ -e models ]; then",
        '    echo "$pair/triton/models is already there; remove it first" >&2',
        "    exit 2",
        "fi",
        'cp -r "$backend/all_models/inflight_batcher_llm" models',
        "cp -r models/tensorrt_llm models/tensorrt_llm_draft",
        'sed -i \'s/name: "tensorrt_llm"/name: "tensorrt_llm_draft"/\''
        " models/tensorrt_llm_draft/config.pbtxt",
        "fill() {",
        '    python3 "$backend/tools/fill_template.py" -i "models/$1/config.pbtxt" "$2"',
        "}",
        f"fill ensemble {batch},logits_datatype:TYPE_FP32",
        f"fill preprocessing {batch},{text},preprocessing_instance_count:1",
        f"fill postprocessing {batch},{text},postprocessing_instance_count:1",
        f"fill tensorrt_llm_bls {bls}",
        f"fill tensorrt_llm {_engine_settings(batch, ENGINES['target'], ranks['target'])}",
        f"fill tensorrt_llm_draft {_engine_settings(batch, ENGINES['draft'], ranks['draft'])}",
        *_device_notes(ranks),
    ]
    return "\n".join(lines) + "\n"


def _engine_settings(batch: str, engine: str, ranks: int) -> str:
    settings = _COMMON | ({"gpu_device_ids": "0"} if ranks == 1 else {})
    listed = ",".join(f"{key}:{value}" for key, value in settings.items())
    return f'{batch},engine_dir:"$pair"/{shlex.quote(engine)},{listed}'


def _device_notes(ranks: dict[str, int]) -> list[str]:
    models = {"target": "tensorrt_llm", "draft": "tensorrt_llm_draft"}
    return [
        f"echo 'Write gpu_device_ids {','.join(map(str, range(count)))} into "
        f"models/{models[role]}/config.pbtxt by hand'"
        for role, count in ranks.items()
        if count > 1
    ]
