"""The parity gate: Megatron-Core and transformers give the same logits, or a conversion fails."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from megatron.core import parallel_state
from torch import Tensor

from megatron_soaes.accelerator.device import this_device
from megatron_soaes.accelerator.groups import Rendezvous, model_parallel, process_group
from megatron_soaes.checkpoint.hf_files import HFWeights
from megatron_soaes.checkpoint.model_weights import check_weights, read_weight
from megatron_soaes.checkpoint.torch_dist import TorchDistReader
from megatron_soaes.errors import UserError
from megatron_soaes.models.build import BuildOptions, build_model
from megatron_soaes.models.families import weight_table
from megatron_soaes.models.weights import checkpoint_key
from megatron_soaes.recipe.shapes import ModelShape, read_shape

SEED = 1234
SEQUENCES = 2
SEQUENCE_LENGTH = 256
MODEL_BYTES = 8 * 2**30
"""fp32 bytes of a compared model; bigger ones are compared on a sample of their layers."""
LEAST_LAYERS = 3
VOCABULARY_MULTIPLE = 128
ROUNDING = 256
"""Largest difference accepted, in units of fp32 rounding of the largest logit, for one layer.

Random models of 4 to 24 layers and hidden sizes of 64 to 1024 differ by 1 to 10 units; rows in a
wrong order, a missing bias or another rope scaling give 10^4 and more.
"""

_LAYER = re.compile(r"^model\.layers\.(\d+)\.")


@dataclass(frozen=True)
class ParityReport:
    """How the logits of the two implementations compare."""

    layers: list[int]
    """The layers compared; both models were built of these alone."""
    all_layers: int
    tokens: int
    max_difference: float
    tolerance: float
    largest_logit: float
    argmax_agreement: float
    """Share of positions at which both name the same next token."""

    @property
    def complete(self) -> bool:
        """Whether the whole model was compared."""
        return len(self.layers) == self.all_layers

    def __str__(self) -> str:
        which = "all" if self.complete else ", ".join(map(str, self.layers)) + " of"
        return (
            f"parity: {which} {self.all_layers} layers, {self.tokens} tokens: logits differ by at "
            f"most {self.max_difference:.1e} (tolerance {self.tolerance:.1e}, largest logit "
            f"{self.largest_logit:.1f}), same next token at {self.argmax_agreement:.1%}"
        )


def check_parity(hf_dir: Path, checkpoint: Path, *, model_bytes: int = MODEL_BYTES) -> ParityReport:
    """Compare the logits of an HF directory and of a checkpoint on seeded random tokens, in fp32.

    `checkpoint` is one iteration's folder. transformers reads the HF directory by its own names;
    Megatron-Core is built as for training, unsharded. One model is in memory at a time: at most
    `model_bytes`, except that the first, middle and last layer and the embeddings are always taken.
    Raises UserError when a logit differs by more than `tolerance`.
    """
    shape = read_shape(hf_dir / "config.json")
    layers = sample_layers(shape, model_bytes)
    generator = torch.Generator().manual_seed(SEED)
    length = min(shape.max_position, SEQUENCE_LENGTH)
    tokens = torch.randint(shape.vocab_size, (SEQUENCES, length), generator=generator)
    reference = transformers_logits(hf_dir, layers, tokens)
    with _unsharded():
        logits = megatron_logits(checkpoint, shape, layers, tokens)
    report = compare(reference, logits, layers, shape.layers)
    if not report.max_difference <= report.tolerance:
        raise UserError(
            f"{hf_dir} and {checkpoint}",
            f"parity failure: logits differ by {report.max_difference:.2e} "
            f"(layers {layers}, same next token at {report.argmax_agreement:.1%} of positions)",
            f"at most {report.tolerance:.2e}",
            "The two do not hold the same model; nothing was written.",
        )
    return report


def sample_layers(shape: ModelShape, model_bytes: int) -> list[int]:
    """Layers, evenly spread from the first to the last, whose fp32 model fits `model_bytes`."""
    rest = shape.parameters - shape.layers * shape.layer_parameters
    affordable = (model_bytes // 4 - rest) // shape.layer_parameters
    count = min(shape.layers, max(affordable, LEAST_LAYERS))
    if count == 1:
        return [0]
    return [round(i * (shape.layers - 1) / (count - 1)) for i in range(count)]


def compare(
    reference: Tensor, logits: Tensor, layers: Sequence[int], all_layers: int
) -> ParityReport:
    """Judge two [sequences, length, vocabulary] fp32 logits.

    Rounding errors of layers add up like a random walk, and are relative to what is computed, so
    the tolerance is ROUNDING * eps * sqrt(layers) * max(1, largest logit): 1e-4 for 10 layers and
    small logits.
    """
    largest = reference.abs().max().item()
    eps = torch.finfo(reference.dtype).eps
    return ParityReport(
        layers=list(layers),
        all_layers=all_layers,
        tokens=reference.shape[0] * reference.shape[1],
        max_difference=(reference - logits).abs().max().item(),
        tolerance=ROUNDING * eps * math.sqrt(len(layers)) * max(1.0, largest),
        largest_logit=largest,
        argmax_agreement=(reference.argmax(-1) == logits.argmax(-1)).float().mean().item(),
    )


@torch.no_grad()
def transformers_logits(hf_dir: Path, layers: Sequence[int], tokens: Tensor) -> Tensor:
    """fp32 logits [sequences, length, vocabulary] of `transformers` with these layers, on CPU."""
    config = transformers.AutoConfig.from_pretrained(hf_dir)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in layers]
    source = HFWeights(hf_dir)
    state = {}
    for name in source.tensors:
        match = _LAYER.match(name)
        if match is None:
            state[name] = source.read(name).float()
        elif int(match[1]) in layers:
            position = layers.index(int(match[1]))
            state[f"model.layers.{position}.{name[match.end() :]}"] = source.read(name).float()
    with _without_progress_bars():
        model, loading = getattr(transformers, config.architectures[0]).from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    if loading["missing_keys"]:
        raise UserError(
            hf_dir, "no tensor " + ", ".join(sorted(loading["missing_keys"])),
            "every tensor that transformers expects", "Download the model again.",
        )  # fmt: skip
    device = this_device().torch_device
    logits: Tensor = model.to(device)(tokens.to(device), use_cache=False).logits
    return logits.float().cpu()


@torch.no_grad()
def megatron_logits(
    checkpoint: Path, shape: ModelShape, layers: Sequence[int], tokens: Tensor
) -> Tensor:
    """fp32 logits [sequences, length, vocabulary] of a GPTModel with these layers, on CPU.

    A process group and groups of an unsharded model must be active.
    """
    source = TorchDistReader(checkpoint)
    check_weights(source, shape)
    table = {weight.key: weight for weight in weight_table(shape)}
    options = BuildOptions(
        torch.float32, shape.padded_vocab_size(VOCABULARY_MULTIPLE), local_layers=True
    )
    model = build_model(replace(shape, layers=len(layers)), options).eval()
    for name, parameter in model.named_parameters():
        key, position = checkpoint_key(name)
        layer = None if position is None else layers[position]
        tensor = read_weight(source, table[key], shape, layer)
        parameter.zero_()
        parameter[: tensor.shape[0]].copy_(tensor)
    tokens = tokens.to(this_device().torch_device)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    logits: Tensor = model(tokens, positions, None)
    return logits[..., : shape.vocab_size].float().cpu()


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """transformers would draw a bar for a load that the user did not ask for by name."""
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.utils.logging.enable_progress_bar()


@contextmanager
def _unsharded() -> Iterator[None]:
    """Groups in which a whole model fits one process: those that are active, or new ones."""
    with ExitStack() as stack:
        if not torch.distributed.is_initialized():
            stack.enter_context(process_group(Rendezvous(0, 1, "127.0.0.1", 0)))
        if not parallel_state.model_parallel_is_initialized():
            stack.enter_context(model_parallel())
        if parallel_state.get_model_parallel_group().size() != 1:
            raise RuntimeError("the parity gate runs in a process that holds the whole model")
        yield
