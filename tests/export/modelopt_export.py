"""Export models with NVIDIA ModelOpt; a process of its own, because ModelOpt patches libraries.

    python -m tests.export.modelopt_export JSON

JSON is a list of [HF directory, folder to write, tensor parallel, pipeline parallel].
"""

from __future__ import annotations

import json
import sys

import torch
import transformers
from modelopt.torch.export import export_tensorrt_llm_checkpoint

DECODERS = {"llama": "llama", "qwen2": "qwen", "qwen3": "qwen"}


def main() -> None:
    for hf_dir, out, ways, stages in json.loads(sys.argv[1]):
        model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.bfloat16)
        decoder = DECODERS[model.config.model_type]
        export_tensorrt_llm_checkpoint(model, decoder, torch.bfloat16, out, ways, stages)


if __name__ == "__main__":
    main()
