"""The recipe: everything one run wants, as typed fields. Meaning only; the rules are in `check_*`.

Field descriptions are the recipe reference (`soaes recipe schema`, docs/recipe-reference.md).
Every relative path in a recipe file is resolved against that file's folder when it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
ModelName = Literal["target", "draft"]
FamilyName = Literal["qwen2", "qwen3", "llama"]


class Section(BaseModel):
    """Base of every part of the recipe: unknown fields are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    def document_multiple(self) -> int:
        """What the length of every packed document must be a multiple of."""
        if self.context_parallel == 1:
            return 1
        sharded = self.tensor_parallel if self.sequence_parallel else 1
        return 2 * self.context_parallel * sharded


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


class Precision(Section):
    """The arithmetic of a stage; gradients and optimizer state are always fp32."""

    dtype: Literal["fp32", "bf16"] = Field("bf16", description="Weights and activations.")
    fp8: FP8 | None = Field(None, description="FP8 products on top of bf16; none by default.")


class Optimizer(Section):
    """AdamW with decoupled weight decay; state is split over data-parallel processes (ZeRO-1)."""

    lr: float = Field(1e-5, gt=0, description="Peak learning rate.")
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the decay.")
    weight_decay: float = Field(0.1, ge=0, description="Decoupled; biases and norms are exempt.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    clip_grad: float = Field(1.0, ge=0, description="Largest global gradient norm; 0 is no limit.")


class Overlap(Section):
    """Communication between replicas beside computation; changes speed, not results."""

    grad_reduce: bool = Field(False, description="Reduce gradients during the backward pass.")
    param_gather: bool = Field(
        False,
        description="Gather updated weights during the next forward pass; needs grad_reduce.",
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


class Profile(Section):
    """torch-profiler traces."""

    steps: tuple[PositiveInt, PositiveInt] = Field(description="First and last step traced.")
    ranks: list[Annotated[int, Field(ge=0)]] = Field([0], description="Ranks that write a trace.")


class NonFinite(Section):
    """What happens when the loss or the gradient is NaN or infinite: all ranks skip the step."""

    stop_after: PositiveInt = Field(3, description="Skipped steps in a row that end the run.")


class ModelSource(Section):
    """One of the two models a recipe trains."""

    source: Path = Field(description="HF directory: config.json, safetensors, tokenizer.")
    weights: Path | None = Field(
        None,
        description="A Megatron-LM `torch_dist` checkpoint to take the weights from instead of "
        "`source`, which then gives the tokenizer: a run's folder, or better one iteration of it.",
    )
    config: Path | None = Field(
        None,
        description="An HF config.json to read the shape from; by default the one in `source`. "
        "Lets a recipe be checked where the weights are not.",
    )
    family: FamilyName | None = Field(
        None,
        description="Refuse the source unless it is of this family; by default whatever it is.",
    )
    layout: Layout = Field(Layout(), description="Default layout of this model's stages.")
    vocab_size_multiple: PositiveInt = Field(
        128,
        description="The vocabulary is padded to a multiple of this, whatever the layout; padding "
        "takes no part in the loss and never reaches an export.",
    )


class Dataset(Section):
    """One named source of documents: text to be tokenized, or an indexed dataset that exists."""

    text: list[str] = Field(
        [], description="JSONL(.gz/.zst) or Parquet files or globs to tokenize."
    )
    key: str = Field("text", description="The JSON key or column that holds the text.")
    indexed: Path | None = Field(None, description="Prefix of an existing .bin/.idx pair instead.")
    holdout: Share = Field(
        0.0, description="Share of the documents (the last ones) kept for validation only."
    )


class Replay(Section):
    """General data mixed in against forgetting."""

    weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        description="Dataset name to weight."
    )
    share: Share = Field(description="Share of all training samples that are replay.")


class Blend(Section):
    """A weighted mixture of datasets; weights need not sum to 1."""

    weights: dict[Name, Annotated[float, Field(gt=0)]] = Field(
        description="Dataset name to weight."
    )
    replay: Replay | None = Field(None, description="General data mixed in against forgetting.")

    def shares(self) -> dict[str, float]:
        """Share of the training samples by dataset name; the shares sum to 1."""
        parts = [(self.weights, 1.0)]
        if self.replay:
            parts = [
                (self.weights, 1 - self.replay.share),
                (self.replay.weights, self.replay.share),
            ]
        shares: dict[str, float] = {}
        for weights, part in parts:
            total = sum(weights.values())
            for name, weight in weights.items():
                shares[name] = shares.get(name, 0.0) + part * weight / total
        return shares


class Data(Section):
    """All data of a recipe, by name."""

    datasets: dict[Name, Dataset] = Field({}, description="Named sources of documents.")
    blends: dict[Name, Blend] = Field({}, description="Named mixtures of datasets.")


class Stage(Section):
    """What every stage has: a name, a kind, the model it works on, and gates on its metrics."""

    name: Name = Field(description="Unique; also the folder of its results under `workdir`.")
    model: ModelName = Field("target", description="Which of `models` it works on.")
    after: Name | None = Field(
        None,
        description="The stage whose checkpoint it starts from; by default the last training stage "
        "of the same model above it, or the imported model. `import` names the imported model.",
    )
    layout: Layout | None = Field(
        None,
        description="By default the model's layout. A layout given here replaces all of it: what "
        "it leaves out is 1.",
    )
    gates: list[str] = Field(
        [],
        description="Conditions on the stage's metrics that must hold for the run to go on, such "
        "as 'validation.domain.loss <= 2.5'.",
    )


class TrainingStage(Stage):
    """Fields shared by every stage that updates weights."""

    blend: Name = Field(description="Which of `data.blends` it trains on.")
    steps: PositiveInt = Field(description="Optimizer steps.")
    sequence_length: PositiveInt = Field(description="Tokens of each training sample.")
    micro_batch_size: PositiveInt = Field(
        1, description="Samples of one forward pass of a replica."
    )
    global_batch_size: PositiveInt = Field(description="Samples of one optimizer step.")
    precision: Precision = Field(Precision(), description="Arithmetic.")
    optimizer: Optimizer = Field(Optimizer(), description="AdamW.")
    schedule: Schedule = Field(Schedule(), description="Learning rate over the steps.")
    overlap: Overlap = Field(Overlap(), description="Communication beside computation.")
    recompute: Recompute = Field(Recompute(), description="Activation recomputation.")
    validation: Validation = Field(Validation(), description="Held-out losses.")
    checkpoints: Checkpointing = Field(Checkpointing(), description="When the state is saved.")
    non_finite: NonFinite = Field(NonFinite(), description="NaN and infinity.")
    profile: Profile | None = Field(None, description="Traces; none by default.")
    hang_timeout_s: PositiveInt = Field(
        1800,
        description="Seconds without progress after which every rank writes its stacks and ends.",
    )
    log_every: PositiveInt = Field(10, description="Steps between lines on the console.")
    allow_changes: list[
        Literal[
            "blend",
            "tokenizer",
            "global_batch_size",
            "sequence_length",
            "steps",
            "optimizer",
            "schedule",
        ]
    ] = Field([], description="What may differ from the checkpoint this stage resumes from.")


class CPTStage(TrainingStage):
    """Continual pre-training on whole documents."""

    kind: Literal["cpt"]


class EvaluateStage(Stage):
    """Loss and perplexity of several checkpoints of one model on held-out sets, side by side."""

    kind: Literal["evaluate"]
    checkpoints: list[Name] = Field(
        min_length=1,
        description="Stages to compare, the base first; `import` is the imported model.",
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the evaluation.")


class ExportStage(Stage):
    """Write a checkpoint as an HF directory that `transformers` loads, verified by equal logits."""

    kind: Literal["export"]
    format: Literal["hf"] = Field("hf", description="What is written.")


AnyStage = Annotated[CPTStage | EvaluateStage | ExportStage, Field(discriminator="kind")]


class Evaluation(Section):
    """What every `evaluate` stage measures."""

    perplexity: list[Name] = Field([], description="Held-out datasets.")
    sequence_length: PositiveInt = Field(2048, description="Tokens of one evaluated window.")
    micro_batch_size: PositiveInt = Field(1, description="Windows of one forward pass.")


class Export(Section):
    """Settings shared by every `export` stage."""

    shard_bytes: PositiveInt = Field(
        5_000_000_000, description="Largest safetensors file; a bigger tensor gets its own."
    )


class Cluster(Section):
    """The machine the recipe is meant for, so that it can be checked anywhere."""

    gpu: str = Field(description="GPU kind, such as h100-80g; `soaes recipe schema` lists them.")
    nodes: PositiveInt = Field(1, description="Nodes of one job.")
    gpus_per_node: PositiveInt = Field(8, description="GPUs in each node.")
    transformer_engine: str | None = Field(
        None, description="Version of Transformer Engine installed there, such as 2.11.0."
    )

    @property
    def gpus(self) -> int:
        """All GPUs of one job."""
        return self.nodes * self.gpus_per_node


class Models(Section):
    """The two models of a pair."""

    target: ModelSource = Field(description="The model that will serve.")
    draft: ModelSource | None = Field(None, description="The small model that drafts for it.")

    def get(self, name: ModelName) -> ModelSource | None:
        """The model of that name, None when the recipe has no draft."""
        return self.target if name == "target" else self.draft


class Recipe(Section):
    """One run, from sources to exports."""

    version: Literal[1] = Field(description="Version of this format.")
    name: Name = Field(description="Name of the run.")
    workdir: Path = Field(description="Folder of all results.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(1234, description="Of every random choice.")
    models: Models = Field(description="Target and draft.")
    data: Data = Field(Data(), description="Datasets and blends.")
    stages: list[AnyStage] = Field([], description="In the order in which they run.")
    evaluation: Evaluation = Field(Evaluation(), description="What `evaluate` measures.")
    export: Export = Field(Export(), description="Settings of exports.")
    cluster: Cluster | None = Field(None, description="The machine the recipe is meant for.")
