"""Quantise a model with NVIDIA ModelOpt; a process of its own, because ModelOpt patches libraries.

    python -m tests.export.modelopt_fp8 HF_DIR TOKENS OUT TP PP

TOKENS is a JSON file with lists of token ids. Writes OUT/trtllm and OUT/hf.
"""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint, export_tensorrt_llm_checkpoint

from tests.export.modelopt_export import DECODERS


def main() -> None:
    hf_dir, tokens, out, ways, stages = sys.argv[1:]
    texts = json.loads(Path(tokens).read_text(encoding="utf-8"))

    def run(model: torch.nn.Module) -> None:
        for text in texts:
            model(torch.tensor([text]))

    recipe = copy.deepcopy(mtq.FP8_DEFAULT_CFG)
    recipe = mtq.utils.update_quant_cfg_with_kv_cache_quant(recipe, mtq.FP8_KV_CFG["quant_cfg"])
    model = transformers.AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.float32)
    mtq.quantize(model, recipe, run)
    decoder = DECODERS[model.config.model_type]
    with torch.inference_mode():
        export_tensorrt_llm_checkpoint(
            copy.deepcopy(model), decoder, torch.bfloat16, f"{out}/trtllm", int(ways), int(stages)
        )
        export_hf_checkpoint(model, torch.bfloat16, f"{out}/hf")


if __name__ == "__main__":
    main()
