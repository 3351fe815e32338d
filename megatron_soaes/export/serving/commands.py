"""Start scripts of the servers that read the HF directories, and the YAML of trtllm-serve.

Each script changes to the pair's folder, so every path in it is one of ours and the folder may
lie anywhere. Arguments of a script are appended to the server's.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from megatron_soaes.export.serving.deployment import DTYPES, HF, Deployment

YAML_FILE = "serve/trtllm-serve.yaml"
VLLM_SOURCES = (
    "options read in vllm-project/vllm: docs/features/speculative_decoding/draft_model.md"
    " @04329df5, README.md @01ed47b4, not of a release; draft models need more than 0.10.0"
)
SGLANG_SOURCES = (
    "options read in sgl-project/sglang: docs/advanced_features/speculative_decoding.md @067ad4d3,"
    " server_arguments.md @004813e1, not of a release"
)


def serve_files(deployment: Deployment) -> dict[str, str]:
    """Paths to texts. None where the draft cannot be cut as the target is: servers do that."""
    if not deployment.draft_fits_ranks:
        return {}
    found = {
        "serve/vllm.sh": script(vllm_command(deployment), [VLLM_SOURCES]),
        "serve/sglang.sh": script(sglang_command(deployment), [SGLANG_SOURCES]),
    }
    if deployment.speculates_in_pytorch:
        found["serve/trtllm-serve.sh"] = script(
            trtllm_command(deployment), deployment.unverified("pytorch")
        )
        found[YAML_FILE] = trtllm_yaml(deployment)
    return found


def script(command: Sequence[str], notes: Sequence[str]) -> str:
    """A bash script that runs `command` in the folder above its own."""
    lines = [
        "#!/usr/bin/env bash",
        *(f"# {note}" for note in notes),
        "set -euo pipefail",
        'cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."',
        f'exec {shlex.join(command)} "$@"',
    ]
    return "\n".join(lines) + "\n"


def trtllm_command(deployment: Deployment) -> list[str]:
    """trtllm-serve with the PyTorch backend."""
    return [
        "trtllm-serve", HF["target"],
        "--backend", "pytorch",
        "--tp_size", str(deployment.tensor),
        "--max_batch_size", str(deployment.max_batch_size),
        "--max_seq_len", str(deployment.max_seq_len),
        deployment.release.config_option, YAML_FILE,
    ]  # fmt: skip


def trtllm_yaml(deployment: Deployment) -> str:
    """The file that trtllm-serve takes its speculation from."""
    notes = [f"# {note}\n" for note in deployment.unverified("pytorch")]
    return "".join(notes) + yaml.safe_dump(trtllm_options(deployment), sort_keys=False)


def trtllm_options(deployment: Deployment) -> dict[str, Any]:
    """Arguments of TensorRT-LLM's `LLM` that are about speculation."""
    return {
        "disable_overlap_scheduler": True,
        "speculative_config": {
            "decoding_type": deployment.release.decoding_type,
            "max_draft_len": deployment.draft_length.tokens,
            "speculative_model_dir": HF["draft"],
        },
    }


def vllm_command(deployment: Deployment) -> list[str]:
    """`vllm serve`, which refuses other ranks for a draft model than for the target."""
    speculation = {
        "method": "draft_model",
        "model": HF["draft"],
        "num_speculative_tokens": deployment.draft_length.tokens,
        "draft_tensor_parallel_size": deployment.tensor,
    }
    return [
        "vllm", "serve", HF["target"],
        "--dtype", DTYPES[deployment.dtype],
        "--tensor-parallel-size", str(deployment.tensor),
        "--max-model-len", str(deployment.max_seq_len),
        "--max-num-seqs", str(deployment.max_batch_size),
        "--speculative-config", json.dumps(speculation),
    ]  # fmt: skip


def sglang_command(deployment: Deployment) -> list[str]:
    """SGLang's server. A chain (top-k 1) of n drafted tokens is judged with n + 1."""
    tokens = deployment.draft_length.tokens
    return [
        "python3", "-m", "sglang.launch_server",
        "--model", HF["target"],
        "--dtype", DTYPES[deployment.dtype],
        "--tp", str(deployment.tensor),
        "--context-length", str(deployment.max_seq_len),
        "--max-running-requests", str(deployment.max_batch_size),
        "--speculative-algorithm", "STANDALONE",
        "--speculative-draft-model-path", HF["draft"],
        "--speculative-num-steps", str(tokens),
        "--speculative-eagle-topk", "1",
        "--speculative-num-draft-tokens", str(tokens + 1),
    ]  # fmt: skip
