"""How a stage trains: layout, arithmetic, optimizer, schedule, saving and validating."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from megatron_soaes.recipe.section import Name, Section


class Layout(Section):
    """How one stage is spread over processes; one process drives one GPU (or one CPU share)."""

    tensor_parallel: PositiveInt = Field(
        1, description="Processes that share each layer's matrices."
    )
    sequence_parallel: bool = Field(
        False, description="Split activations along the sequence between tensor-parallel processes."
    )
    pipeline_parallel: PositiveInt = Field(
        1, description="Pipeline stages the layers are cut into."
    )
    virtual_pipeline: PositiveInt = Field(
        1, description="Model chunks per pipeline stage; more than 1 is the interleaved schedule."
    )
    first_stage_layers: PositiveInt | None = Field(
        None,
        description="Layers of the first pipeline stage, which also holds the embedding; by "
        "default the layers are cut evenly.",
    )
    last_stage_layers: PositiveInt | None = Field(
        None, description="Layers of the last pipeline stage, which also holds the output layer."
    )
    context_parallel: PositiveInt = Field(1, description="Processes that share each sequence.")
    data_parallel: PositiveInt = Field(1, description="Replicas that share each global batch.")

    @property
    def model_parallel(self) -> int:
        """Processes that hold one replica of the model."""
        return self.tensor_parallel * self.pipeline_parallel * self.context_parallel

    @property
    def processes(self) -> int:
        """All processes of the stage."""
        return self.model_parallel * self.data_parallel

    @property
    def sequence_parts(self) -> int:
        """Processes that share the tokens of a sequence."""
        return self.context_parallel * (self.tensor_parallel if self.sequence_parallel else 1)


class FP8(Section):
    """FP8 matrix products through Transformer Engine; needs an Ada GPU or a later one."""

    recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = Field(
        "tensorwise", description="How scaling factors are found."
    )
    format: Literal["hybrid", "e4m3"] = Field(
        "hybrid", description="hybrid: E4M3 forward and E5M2 backward; e4m3: E4M3 in both."
    )
    first_last_layers_bf16: bool = Field(
        False, description="Keep the first and the last layer in bf16 (not with 'delayed')."
    )
    param_gather: bool = Field(
        False,
        description="Keep the weights themselves in FP8 and gather them so: half the memory and "
        "traffic (not with 'mxfp8').",
    )
    attention: Literal["none", "dot_product", "multi_head"] = Field(
        "none",
        description="delayed: the attention's own products in FP8, too; multi_head: what lies "
        "between the linear layers and the attention as well.",
    )
    amax_history: PositiveInt = Field(
        1024, description="delayed: steps whose largest values decide a scaling factor."
    )
    amax_compute: Literal["most_recent", "max"] = Field(
        "max", description="delayed: how these steps decide it."
    )
    margin: Annotated[int, Field(ge=0)] = Field(
        0, description="delayed: powers of two that a scaling factor stays below the largest."
    )


class Precision(Section):
    """The arithmetic of a stage; what the optimizer keeps is `optimizer.precision_aware`'s."""

    dtype: Literal["fp32", "bf16"] = Field("bf16", description="Weights and activations.")
    fp8: FP8 | None = Field(None, description="FP8 products on top of bf16; none by default.")


class PrecisionAware(Section):
    """AdamW's state in fewer bits: Transformer Engine's FusedAdam, on a GPU only."""

    main_weights: Literal["fp32", "fp16"] = Field(
        "fp32", description="The copy of bf16 weights that updates are added to."
    )
    main_gradients: Literal["fp32", "bf16"] = Field(
        "fp32", description="Gradients as the optimizer reads them, and their buffers."
    )
    first_moment: Literal["fp32", "bf16", "fp16", "fp8"] = Field(
        "fp32", description="Running mean of the gradient."
    )
    second_moment: Literal["fp32", "bf16", "fp16", "fp8"] = Field(
        "fp32", description="Running mean of its square."
    )


class Optimizer(Section):
    """AdamW with decoupled weight decay; state is split over data-parallel processes (ZeRO-1)."""

    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the decay.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled; biases and norms are exempt.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 is no limit.")
    precision_aware: PrecisionAware | None = Field(
        None, description="State in fewer bits; by default all of it is fp32."
    )


class Overlap(Section):
    """Communication beside computation; changes speed, not results."""

    grad_reduce: bool = Field(False, description="Reduce gradients during the backward pass.")
    param_gather: bool = Field(
        False,
        description="Gather updated weights during the next forward pass; needs grad_reduce.",
    )
    tensor_parallel: bool = Field(
        False,
        description="Exchange parts of activations during the products they belong to, in "
        "Transformer Engine's user buffers; needs sequence_parallel and GPUs linked by NVLink.",
    )
    pipeline: bool = Field(
        True, description="Interleaved schedule: pass messages on during the next chunk's work."
    )


class Schedule(Section):
    """Learning rate over the steps of a stage: warm-up, then one of three shapes."""

    shape: Literal["cosine", "wsd", "constant"] = Field(
        "cosine",
        description="wsd: a plateau at the peak, then a short decay (warm-up-stable-decay).",
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Linear (re-)warming from `warmup_from_lr` to the peak."
    )
    warmup_from_lr: float = Field(0.0, ge=0, description="Learning rate of the first step's ramp.")
    decay_steps: PositiveInt | None = Field(
        None, description="wsd: length of the final decay; one tenth of the steps by default."
    )
    decay_shape: Literal["exponential", "linear", "cosine", "minus_sqrt"] = Field(
        "minus_sqrt", description="wsd: shape of the final decay."
    )


class Kernels(Section):
    """Fused kernels of a GPU with Transformer Engine; change speed and memory, not meaning."""

    swiglu: bool = Field(False, description="The MLP's activation as one kernel, forward and back.")
    rope: bool = Field(False, description="Rotation of queries and keys by Transformer Engine.")
    gradient_accumulation: bool = Field(
        False,
        description="Matrix products add weight gradients to their buffers themselves (apex).",
    )
    cross_entropy: bool = Field(
        False, description="The loss of a chunk of logits in one kernel each way (torch.compile)."
    )
    mlp_graphs: bool = Field(
        False,
        description="Launch each layer's MLP as one CUDA graph: for small models, whose kernels "
        "end before the host has launched the next.",
    )


class Recompute(Section):
    """Activations computed again in the backward pass instead of being kept."""

    granularity: Literal["none", "selective", "full"] = Field(
        "none", description="selective: the named modules; full: whole layers."
    )
    modules: list[Literal["core_attn", "mlp", "layernorm"]] = Field(
        ["core_attn"], description="selective: what is recomputed."
    )


class Checkpointing(Section):
    """When and how a training stage saves its state, and which checkpoints it keeps."""

    every: PositiveInt = Field(
        100, description="Steps between checkpoints; the last step always saves."
    )
    asynchronous: bool = Field(
        False,
        description="Write in the background while training goes on; each process then holds a "
        "second copy of its part of weights and optimizer state in main memory meanwhile.",
    )
    keep_last: PositiveInt | None = Field(
        None, description="How many of the newest checkpoints are kept; by default all."
    )
    keep_every: PositiveInt | None = Field(
        None, description="Checkpoints whose step is a multiple of this are kept as well."
    )
    deadline_s: float = Field(
        1800.0,
        gt=0,
        description="Seconds the processes wait for each other in a save or a load; then the run "
        "ends and names those that did not arrive.",
    )


class Validation(Section):
    """Held-out loss during a training stage, each set on its own."""

    sets: list[Name] = Field([], description="Dataset names; each must be held out from training.")
    every: PositiveInt = Field(100, description="Steps between validations; the last step too.")
    batches: PositiveInt = Field(
        16, description="Global batches of each set; fewer if it is shorter."
    )
    best: Name | None = Field(
        None,
        description="The set whose lowest loss marks the best checkpoint. That one is saved, kept "
        "whatever `checkpoints` says, and other stages name it `STAGE@best`.",
    )


class Profile(Section):
    """torch-profiler traces."""

    steps: tuple[PositiveInt, PositiveInt] = Field(description="First and last step traced.")
    ranks: list[Annotated[int, Field(ge=0)]] = Field([0], description="Ranks that write a trace.")


class NonFinite(Section):
    """What happens when the loss or the gradient is NaN or infinite: all ranks skip the step."""

    stop_after: PositiveInt = Field(3, description="Skipped steps in a row that end the run.")
