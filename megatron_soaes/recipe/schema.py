"""The recipe: everything one run wants, as typed fields. Meaning only; the rules are in `check_*`.

Field descriptions are the recipe reference (`soaes recipe schema`, docs/recipe-reference.md).
Every relative path in a recipe file is resolved against that file's folder when it is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from megatron_soaes.recipe.data_settings import Data, Packing
from megatron_soaes.recipe.distillation_settings import (
    DistillationObjective,
    DraftWindow,
    Sampling,
    Store,
)
from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.section import Checkpoint, Name, Section, Weight
from megatron_soaes.recipe.training_settings import (
    Checkpointing,
    Kernels,
    Layout,
    NonFinite,
    Optimizer,
    Overlap,
    Precision,
    Profile,
    Recompute,
    Schedule,
    Validation,
)

ModelName = Literal["target", "draft"]
FamilyName = Literal["qwen2", "qwen3", "llama"]


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


class Stage(Section):
    """What every stage has: a name, a kind, the model it works on, and gates on its metrics."""

    name: Name = Field(description="Unique; also the folder of its results under `workdir`.")
    model: ModelName = Field("target", description="Which of `models` it works on.")
    after: Checkpoint | None = Field(
        None,
        description="The stage whose checkpoint it starts from; by default the last training stage "
        "of the same model above it, or the imported model. `import` names the imported model, "
        "`NAME@best` the best checkpoint of a stage by its `validation.best`.",
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
    kernels: Kernels = Field(Kernels(), description="Fused kernels; none by default.")
    validation: Validation = Field(Validation(), description="Held-out losses.")
    checkpoints: Checkpointing = Field(Checkpointing(), description="When the state is saved.")
    non_finite: NonFinite = Field(NonFinite(), description="NaN and infinity.")
    profile: Profile | None = Field(None, description="Traces; none by default.")
    hang_timeout_s: PositiveInt = Field(
        1800,
        description="Seconds without progress after which every rank writes its stacks and ends.",
    )
    log_every: PositiveInt = Field(10, description="Steps between lines on the console.")
    continue_optimizer: bool = Field(
        False,
        description="Take over the optimizer's moments from the checkpoint it starts from, too; by "
        "default the optimizer starts anew.",
    )
    allow_changes: list[
        Literal[
            "blend",
            "tokenizer",
            "global_batch_size",
            "sequence_length",
            "steps",
            "optimizer",
            "schedule",
            "objective",
        ]
    ] = Field([], description="What may differ from the checkpoint this stage resumes from.")


class CPTStage(TrainingStage):
    """Continual pre-training on whole documents."""

    kind: Literal["cpt"]
    blend: Name = Field(description="Which of `data.blends` it trains on.")
    steps: PositiveInt = Field(description="Optimizer steps.")


class SFTStage(TrainingStage):
    """Supervised fine-tuning on packed conversations; documents may be replayed among them."""

    kind: Literal["sft"]
    blend: Name = Field(description="Which of `data.blends` it trains on.")
    steps: PositiveInt | None = Field(None, description="Optimizer steps; give this or epochs.")
    epochs: Weight | None = Field(
        None,
        description="Passes over each conversation dataset of the blend, times its weight; the "
        "last batch is filled up from the next pass, and replay comes on top. Give this or steps.",
    )
    packing: Packing = Field(Packing(), description="How conversations share a sequence.")


class SingleStage(TrainingStage):
    """SFT on exactly the samples of several stages, shuffled into one: the curriculum's control.

    Its steps are the sum of theirs; it starts where the first of them starts.
    """

    kind: Literal["sft_single_stage"]
    of: list[Name] = Field(
        min_length=2, description="The sft stages, replay included, whose samples it takes."
    )


class RespondStage(Stage):
    """The model's own answers to prompts, as a dataset that others name by `responses`.

    A conversation's prompt is all before its last answer, a document's its first tokens. Answers
    are kept as the tokens that were written; every one of them is trained on. What a model writes
    itself is what a draft for it learns most from.
    """

    kind: Literal["respond"]
    prompts: list[Name] = Field(min_length=1, description="Datasets that give the prompts.")
    prompts_per_dataset: PositiveInt | None = Field(
        None, description="So many of each, evenly spread over it; by default all."
    )
    document_prefix: PositiveInt = Field(32, description="Tokens of a document that are a prompt.")
    sampling: Sampling = Field(Sampling(), description="How answers are written.")
    backend: Literal["megatron", "lean", "endpoint"] = Field(
        "megatron",
        description="megatron: the checkpoint in the stage's layout; lean: one process on one "
        "device, from an HF copy in the stage's folder; endpoint: a server of the exported model.",
    )
    url: str | None = Field(None, description="endpoint: address of an OpenAI-compatible server.")
    served_model: str | None = Field(None, description="endpoint: name of the model there.")
    dtype: Literal["fp32", "bf16"] = Field("bf16", description="Arithmetic of the answers.")
    batch_size: PositiveInt = Field(32, description="Prompts answered together.")


class CaptureStage(Stage):
    """What the model holds likely at every position of stored text, for distillation to read."""

    kind: Literal["capture"]
    blend: Name = Field(description="Which of `data.blends` is read.")
    sequence_length: PositiveInt = Field(description="Tokens of each sample.")
    samples: PositiveInt | None = Field(None, description="Samples; give this or epochs.")
    epochs: Weight | None = Field(
        None, description="Passes over each conversation dataset of the blend, times its weight."
    )
    packing: Packing = Field(Packing(), description="How conversations share a sequence.")
    validation: list[Name] = Field(
        [], description="Held-out datasets that are captured too, for the student's validation."
    )
    validation_samples: PositiveInt = Field(64, description="Most samples of each of them.")
    micro_batch_size: PositiveInt = Field(1, description="Samples of one forward pass.")
    precision: Precision = Field(Precision(), description="Arithmetic.")
    store: Store = Field(Store(), description="What is kept of each position.")
    hang_timeout_s: PositiveInt = Field(
        1800,
        description="Seconds for one file of each replica; after them every rank writes its stacks "
        "and ends.",
    )


class DistillStage(TrainingStage):
    """Training on a target's probabilities: captured before, or computed beside the student."""

    kind: Literal["distill"]
    model: ModelName = Field("draft", description="The student; the teacher is the target.")
    captured: Name | None = Field(
        None, description="The capture stage whose samples and probabilities it trains on."
    )
    teacher: Checkpoint | None = Field(
        None,
        description="Instead: the target's checkpoint that runs beside the student, in the "
        "student's layout and arithmetic.",
    )
    blend: Name | None = Field(None, description="With `teacher`: what it trains on.")
    packing: Packing = Field(Packing(), description="With `teacher`: as in sft.")
    steps: PositiveInt | None = Field(None, description="Optimizer steps; give this or epochs.")
    epochs: Weight | None = Field(
        None,
        description="Passes over the captured samples, or, with `teacher`, as in sft. Give this or "
        "steps.",
    )
    objective: DistillationObjective = Field(
        DistillationObjective(), description="What is minimised."
    )
    draft_window: DraftWindow = Field(
        DraftWindow(), description="What validation says about drafting."
    )


class SpeculateStage(Stage):
    """Plain against speculative decoding of an exported pair: speed, acceptance, the same text."""

    kind: Literal["speculate"]
    target: Name = Field(description="The export stage of the target.")
    draft: Name = Field(description="The export stage of the draft.")
    prompts: Path = Field(description="A .jsonl with prompt or messages, or lines of text.")
    most_prompts: PositiveInt | None = Field(None, description="By default all of the file.")
    modes: list[Literal["fast", "exact"]] = Field(
        ["fast", "exact"],
        min_length=1,
        description="exact: logits bitwise those of plain decoding.",
    )
    draft_lengths: list[PositiveInt] = Field(
        [1, 2, 3, 4, 5, 6, 7], min_length=1, description="Tokens drafted for each pass."
    )
    adaptive: bool = Field(False, description="Also a length that follows the acceptance.")
    repeats: Annotated[int, Field(ge=2)] = Field(3, description="Times each prompt is decoded.")
    max_new_tokens: PositiveInt = Field(64, description="Most tokens written after a prompt.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of the target; auto: what is faster on this machine."
    )
    draft_dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="Of the draft.")


class EvaluateStage(Stage):
    """All that `evaluation` names, measured on several checkpoints of one model, side by side.

    Results are NAME.json for each checkpoint, comparison.json, report.txt and the short summary.txt
    in the stage's folder.
    Text is generated and judged without sequence parallelism; context parallelism and virtual
    pipelines are for perplexity only.
    """

    kind: Literal["evaluate"]
    checkpoints: list[Checkpoint] = Field(
        min_length=1,
        description="Stages to compare, the base first; `import` is the imported model, "
        "`NAME@best` a stage's best checkpoint.",
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="Arithmetic of the evaluation.")


class ExportStage(Stage):
    """Write a checkpoint as an HF directory that `transformers` loads, verified by equal logits."""

    kind: Literal["export"]
    format: Literal["hf"] = Field("hf", description="What is written.")


PreciseStage = TrainingStage | CaptureStage
"""The stages whose arithmetic the recipe says in full, FP8 included."""
AnyTrainingStage = CPTStage | SFTStage | SingleStage | DistillStage
AnyStage = Annotated[
    AnyTrainingStage | RespondStage | CaptureStage | EvaluateStage | ExportStage | SpeculateStage,
    Field(discriminator="kind"),
]


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
