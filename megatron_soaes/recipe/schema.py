"""The recipe: everything one run wants, as typed fields. Meaning only; the rules are in `check_*`.

Field descriptions are the recipe reference (`soaes recipe schema`, docs/recipe-reference.md).
Every relative path in a recipe file is resolved against that file's folder when it is loaded.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from megatron_soaes.recipe.evaluation_settings import Evaluation
from megatron_soaes.recipe.section import Name, Section, Share, Weight
from megatron_soaes.recipe.training_settings import (
    Checkpointing,
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
Checkpoint = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*(@best)?$")]


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


class Chat(Section):
    """How conversations become tokens and loss weights; the chat template is the target's."""

    format: Literal["auto", "messages", "sharegpt", "alpaca"] = Field(
        "auto", description="How a record is laid out; auto: by its fields, record by record."
    )
    train_on: Literal["all", "last"] = Field(
        "all", description="Which of the assistant's turns are trained."
    )
    system: str | None = Field(
        None, description="System prompt of every conversation, in place of its own."
    )
    weight_key: str | None = Field(
        None, description="Key of a record's loss weight, above 0; by default all weigh 1."
    )
    date: datetime.date | None = Field(
        None, description="The date that a chat template writes which asks for today's."
    )
    source_key: str | None = Field(
        None,
        description="Key of a record's source, such as its topic: validation is told by source. "
        "By default all records have one source, the dataset.",
    )


class Dataset(Section):
    """One named source of documents or conversations: files to tokenize, or an indexed dataset."""

    text: list[str] = Field(
        [], description="JSONL(.gz/.zst) or Parquet files or globs of documents to tokenize."
    )
    key: str = Field("text", description="The JSON key or column that holds a document's text.")
    conversations: list[str] = Field(
        [], description="JSONL(.gz/.zst) or Parquet files or globs of conversations, for SFT."
    )
    chat: Chat = Field(Chat(), description="How `conversations` are read.")
    indexed: Path | None = Field(
        None, description="Prefix of an existing .bin/.idx pair of documents instead."
    )
    indexed_conversations: Path | None = Field(
        None, description="Prefix of a dataset that `soaes prep sft` made, instead."
    )
    holdout: Share = Field(
        0.0,
        description="Share of the documents or conversations (the last ones) kept for validation "
        "only.",
    )

    @property
    def is_chat(self) -> bool:
        """Whether it holds conversations, not documents."""
        return bool(self.conversations) or self.indexed_conversations is not None

    @property
    def files(self) -> list[str]:
        """The files or globs to tokenize; none for an indexed dataset."""
        return self.conversations or self.text


class Replay(Section):
    """Data of earlier stages or of general kind, mixed in against forgetting."""

    weights: dict[Name, Weight] = Field(description="Dataset name to weight.")
    share: Share = Field(description="Share of all training samples that are replay.")


class Blend(Section):
    """A weighted mixture of datasets; weights need not sum to 1."""

    weights: dict[Name, Weight] = Field(description="Dataset name to weight.")
    replay: Replay | None = Field(None, description="General data mixed in against forgetting.")

    def names(self) -> list[str]:
        """All datasets of the mixture."""
        return list(dict.fromkeys([*self.weights, *(self.replay.weights if self.replay else ())]))

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
        ]
    ] = Field([], description="What may differ from the checkpoint this stage resumes from.")


class CPTStage(TrainingStage):
    """Continual pre-training on whole documents."""

    kind: Literal["cpt"]
    blend: Name = Field(description="Which of `data.blends` it trains on.")
    steps: PositiveInt = Field(description="Optimizer steps.")


class Packing(Section):
    """How conversations share a sequence; none is split and none sees another."""

    order: Literal["shuffled", "as_given"] = Field(
        "shuffled",
        description="shuffled: packed as tightly as they fit, packs in a new random order each "
        "pass; as_given: packed and trained in the dataset's order, for a curriculum within it.",
    )
    too_long: Literal["refuse", "truncate", "drop"] = Field(
        "refuse",
        description="What happens to a conversation with more than sequence_length + 1 tokens. "
        "What was truncated or dropped is counted in the stage's metrics.",
    )


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


AnyTrainingStage = CPTStage | SFTStage | SingleStage
AnyStage = Annotated[AnyTrainingStage | EvaluateStage | ExportStage, Field(discriminator="kind")]


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
