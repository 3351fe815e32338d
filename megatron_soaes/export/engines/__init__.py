"""Engines of TensorRT-LLM: what is asked of `trtllm-build`, and running it."""
