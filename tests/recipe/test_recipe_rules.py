"""Every rule that needs neither a cluster nor a GPU: one row breaks one rule and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.problems import RecipeErrors

from .recipe_files import TARGET_LAYOUT, problems_of


def test_the_recipe_that_the_rows_break_is_sound(recipe_file: Path) -> None:
    assert set(check(load_recipe(recipe_file))) == {"target", "draft"}


FP8 = "cpt.fp8={recipe: tensorwise}"
INTERLEAVED = "models.target.layout={pipeline_parallel: 2, virtual_pipeline: 2}"
BOTH_ENDS = "first_stage_layers: 2, last_stage_layers: 2"
UNEVEN = "models.target.layout={pipeline_parallel: 2, first_stage_layers: 3}"
CONTEXT = "models.target.layout={context_parallel: 2}"
SEQUENCE = "models.target.layout={tensor_parallel: 2, sequence_parallel: true}"
CLUSTER = "cluster={gpu: h100-80g, nodes: 2, gpus_per_node: 4}"
WITH_TE = "cluster={gpu: h100-80g, transformer_engine: 2.11.0}"


@pytest.mark.parametrize(
    ("overrides", "path", "fix"),
    [
        # Names and references.
        (["compare.name=to-hf"], "stages.to-hf.name", "Rename one stage"),
        (["to-hf.name=import"], "stages.import.name", "Rename the stage"),
        (["to-hf.name=preprocess-domain"], "stages.preprocess-domain.name", "Rename"),
        (["to-hf.name=import-target"], "stages.import-target.name", "Rename"),
        (["models.draft=null"], "stages.draft-cpt.model", "Declare `models.draft`"),
        (["data.blends.mix.weights={domian: 1}"], "data.blends.mix.weights", "'domain'"),
        (["data.blends.mix.weights={}"], "data.blends.mix.weights", "Add `dataset: weight`"),
        (["replay.weights={generla: 1}"], "data.blends.mix.replay.weights", "'general'"),
        (["replay.weights={}"], "data.blends.mix.replay.weights", "Add `dataset: weight`"),
        (["cpt.blend=max"], "stages.cpt.blend", "'mix'"),
        (["domain.holdout=1.0"], "data.datasets.domain.holdout", "Lower the holdout"),
        (["cpt.sets=[domain, unsene]"], "stages.cpt.validation.sets", "'unseen'"),
        (["cpt.sets=[domain, general]"], "stages.cpt.validation.sets", "general.holdout above 0"),
        (["cpt.sets=[domain, unseen, unseen]"], "stages.cpt.validation.sets", "Remove the others"),
        (["evaluation.perplexity=[general]"], "evaluation.perplexity", "general.holdout above 0"),
        (["evaluation.perplexity=[domian]"], "evaluation.perplexity", "'domain'"),
        (["evaluation.perplexity=[domain, domain]"], "evaluation.perplexity", "Remove the others"),
        (["evaluation.perplexity=[]"], "evaluation", "Give perplexity, questions"),
        (["unseen.text=[]"], "data.datasets.unseen", "Give one of text"),
        (["unseen.indexed=x"], "data.datasets.unseen", "Give one of text"),
        (["general.key=body"], "data.datasets.general.key", "only `text` is read with it"),
        (["to-hf.after=cpt-1"], "stages.to-hf.after", "'cpt'"),
        (["to-hf.after=compare"], "stages.to-hf.after", "Known: cpt, import"),
        (["to-hf.after=draft-cpt"], "stages.to-hf.after", "Known: cpt, import"),
        (["cpt.after=cpt"], "stages.cpt.after", "Known: import"),
        (["compare.after=cpt"], "stages.compare.after", "list what to compare"),
        (["compare.checkpoints=[import, to-hf]"], "stages.compare.checkpoints", "Known: cpt"),
        (["compare.checkpoints=[cpt, cpt]"], "stages.compare.checkpoints", "Remove the others"),
        (["cpt.allow_changes=[steps, steps]"], "stages.cpt.allow_changes", "Remove the others"),
        (["cpt.gates=[loss is low]"], "stages.cpt.gates", "Write it like"),
        (["cpt.gates=[validation.domian.loss < 2]"], "stages.cpt.gates", "'domain'"),
        (["to-hf.gates=[logit_eror <= 1]"], "stages.to-hf.gates", "'logit_error'"),
        # Models.
        (["models.target.family=llama"], "models.target.family", "correct the family"),
        # Layouts against the model's shape: 8 heads, 2 KV heads, FFN 128, 4 layers.
        (
            [f"{TARGET_LAYOUT}.pipeline_parallel=3"],
            f"{TARGET_LAYOUT}.pipeline_parallel",
            "1, 2 or 4",
        ),
        (
            [f"{TARGET_LAYOUT}={{tensor_parallel: 16}}"],
            f"{TARGET_LAYOUT}.tensor_parallel",
            "1, 2, 4 or 8",
        ),
        (
            ["cpt.layout={pipeline_parallel: 2, virtual_pipeline: 3}"],
            "stages.cpt.layout.virtual_pipeline",
            "1 or 2",
        ),
        (
            ["models.target.vocab_size_multiple=129"],
            f"{TARGET_LAYOUT}.tensor_parallel",
            "vocab_size_multiple to 258",
        ),
        (
            ["cpt.layout={sequence_parallel: true}"],
            "stages.cpt.layout.sequence_parallel",
            "tensor_parallel to 2 or more",
        ),
        (
            ["cpt.layout={virtual_pipeline: 2}"],
            "stages.cpt.layout.virtual_pipeline",
            "pipeline_parallel to 2 or more",
        ),
        # Lengths and batches.
        (["cpt.sequence_length=512"], "stages.cpt.sequence_length", "256 or less"),
        (["evaluation.sequence_length=512"], "evaluation.sequence_length", "256 or less"),
        ([CONTEXT, "cpt.sequence_length=126"], "stages.cpt.sequence_length", "124 or 128"),
        ([SEQUENCE, "cpt.sequence_length=127"], "stages.cpt.sequence_length", "126 or 128"),
        ([SEQUENCE, "evaluation.sequence_length=1"], "evaluation.sequence_length", "Use 2."),
        (["cpt.layout={data_parallel: 3}"], "stages.cpt.global_batch_size", "6 or 9"),
        (["cpt.micro_batch_size=3"], "stages.cpt.global_batch_size", "6 or 9"),
        ([INTERLEAVED, "cpt.global_batch_size=7"], "stages.cpt.global_batch_size", "6 or 8"),
        # Pipeline stages of different sizes.
        (
            [f"{TARGET_LAYOUT}={{pipeline_parallel: 3, first_stage_layers: 1}}"],
            f"{TARGET_LAYOUT}.first_stage_layers",
            "Change first_stage_layers",
        ),
        (
            [f"{TARGET_LAYOUT}={{pipeline_parallel: 2, virtual_pipeline: 2, {BOTH_ENDS}}}"],
            f"{TARGET_LAYOUT}.virtual_pipeline",
            "one end only",
        ),
        (
            [f"{TARGET_LAYOUT}={{first_stage_layers: 3}}"],
            f"{TARGET_LAYOUT}.first_stage_layers",
            "Remove it",
        ),
        # Overlap.
        (["cpt.overlap.param_gather=true"], "stages.cpt.overlap.param_gather", "Set both"),
        # Schedule.
        (["cpt.warmup_steps=21"], "stages.cpt.schedule.warmup_steps", "Shorten the warm-up"),
        (["cpt.min_lr=0.1"], "stages.cpt.optimizer.min_lr", "Lower min_lr"),
        (["cpt.shape=constant"], "stages.cpt.optimizer.min_lr", "choose cosine or wsd"),
        (["cpt.warmup_from_lr=1"], "stages.cpt.schedule.warmup_from_lr", "below the peak"),
        (
            ["cpt.warmup_from_lr=1e-6", "cpt.warmup_steps=0"],
            "stages.cpt.schedule.warmup_from_lr",
            "Set warmup_steps",
        ),
        (["cpt.decay_steps=5"], "stages.cpt.schedule.decay_steps", "choose shape: wsd"),
        (["cpt.decay_shape=linear"], "stages.cpt.schedule.decay_shape", "choose shape: wsd"),
        (
            ["cpt.shape=wsd", "cpt.decay_steps=19"],
            "stages.cpt.schedule.decay_steps",
            "Shorten the decay",
        ),
        (
            ["cpt.shape=wsd", "cpt.warmup_steps=19"],
            "stages.cpt.schedule.decay_steps",
            "Shorten the decay",
        ),
        # Recomputation and traces.
        (["cpt.modules=[mlp]"], "stages.cpt.recompute.modules", "granularity to selective"),
        (
            ["cpt.recompute={granularity: selective, modules: []}"],
            "stages.cpt.recompute.modules",
            "List what to recompute",
        ),
        (
            ["cpt.recompute={granularity: selective, modules: [mlp, mlp]}"],
            "stages.cpt.recompute.modules",
            "each once",
        ),
        (["cpt.profile={steps: [5, 4]}"], "stages.cpt.profile.steps", "up to 20"),
        (["cpt.profile={steps: [20, 21]}"], "stages.cpt.profile.steps", "up to 20"),
        (
            ["cpt.profile={steps: [1, 2], ranks: [4]}"],
            "stages.cpt.profile.ranks",
            "a rank that exists",
        ),
        # FP8.
        ([FP8, "cpt.dtype=fp32"], "stages.cpt.precision.dtype", "Set dtype to bf16"),
        (
            ["cpt.fp8={recipe: delayed, first_last_layers_bf16: true}"],
            "stages.cpt.precision.fp8.first_last_layers_bf16",
            "another FP8 recipe",
        ),
        (
            [
                "cpt.fp8={recipe: delayed}",
                "cpt.recompute={granularity: selective, modules: [layernorm]}",
            ],
            "stages.cpt.recompute.modules",
            "Take layernorm out",
        ),
        ([FP8, "cpt.sequence_length=120"], "stages.cpt.precision.fp8", "train this stage in bf16"),
        (["cpt.fp8={recipe: mxfp8}"], "stages.cpt.precision.fp8", "Choose a layout"),
        # The declared cluster.
        (["cluster.gpu=h100"], "cluster.gpu", "'h100-80g'"),
        (
            [CLUSTER, "cpt.layout={data_parallel: 16}", "cpt.global_batch_size=16"],
            "stages.cpt.layout",
            "more nodes",
        ),
        (
            ["cluster={gpu: h100-80g, nodes: 2, gpus_per_node: 3}"],
            f"{TARGET_LAYOUT}.tensor_parallel",
            "Use one of 1, 3",
        ),
        (
            ["cluster={gpu: h100-80g, transformer_engine: new}"],
            "cluster.transformer_engine",
            "2.11.0",
        ),
        ([FP8, "cluster.gpu=h100-80g"], "cluster.transformer_engine", "Give the version"),
        (
            [FP8, WITH_TE, "cluster.gpu=a100-80g"],
            "stages.cpt.precision.fp8.recipe",
            "train in bf16",
        ),
        (
            ["cpt.fp8={recipe: blockwise}", WITH_TE, "cluster.gpu=b200-180g"],
            "stages.cpt.precision.fp8.recipe",
            "Use delayed, tensorwise, mxfp8",
        ),
        (
            [FP8, WITH_TE, "cluster.transformer_engine=2.1.0"],
            "stages.cpt.precision.fp8.recipe",
            "Install 2.2.0 or later",
        ),
        (
            ["cpt.fp8={recipe: blockwise}", WITH_TE, "cluster.transformer_engine=2.2.0"],
            "stages.cpt.precision.fp8.recipe",
            "Install 2.3.0 or later",
        ),
        (
            [
                FP8,
                "cluster={gpu: h100-80g, transformer_engine: 2.5.0}",
                "cpt.recompute={granularity: selective, modules: [layernorm]}",
            ],
            "stages.cpt.recompute.modules",
            "Install 2.6.0 or later",
        ),
    ],
    ids=str,
)
def test_each_rule_names_its_field_and_the_remedy(
    recipe_file: Path, overrides: list[str], path: str, fix: str
) -> None:
    (problem,) = problems_of(recipe_file, *overrides)

    assert problem.path == path
    assert fix in problem.fix


@pytest.mark.parametrize(
    "overrides",
    [
        [CONTEXT],
        [SEQUENCE],
        [INTERLEAVED],
        [UNEVEN],
        [UNEVEN.replace("3}", "3, last_stage_layers: 1}")],
        ["cpt.overlap={grad_reduce: true, param_gather: true}"],
        [FP8],
        # Fewer KV heads than processes: Megatron-Core repeats them.
        [f"{TARGET_LAYOUT}={{tensor_parallel: 8}}"],
        ["cpt.shape=wsd"],
        ["cpt.shape=wsd", "cpt.decay_steps=18"],
        ["cpt.shape=constant", "cpt.min_lr=0"],
        ["cpt.recompute={granularity: selective, modules: [layernorm, mlp]}"],
        ["cpt.profile={steps: [1, 20], ranks: [0, 3]}"],
        ["cpt.validation.every=1000"],
        ["replay.share=1.0"],
        [CLUSTER],
        ["cluster={gpu: h100-80g, nodes: 1, gpus_per_node: 4}"],
        [FP8, WITH_TE],
        ["to-hf.after=import"],
    ],
    ids=str,
)
def test_what_is_allowed_is_not_refused(recipe_file: Path, overrides: list[str]) -> None:
    assert problems_of(recipe_file, *overrides) == []


def test_problems_of_all_checks_come_in_one_error(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file, ["cpt.min_lr=1", "cluster.gpu=h100", f"{TARGET_LAYOUT}.pipeline_parallel=3"]
    )
    with pytest.raises(RecipeErrors) as caught:
        check(recipe)

    assert {problem.path for problem in caught.value.problems} == {
        "stages.cpt.optimizer.min_lr",
        "cluster.gpu",
        f"{TARGET_LAYOUT}.pipeline_parallel",
    }
    assert str(caught.value).startswith("recipe 'rehearsal': 3 problems\n")
    assert (
        "stages.cpt.optimizer.min_lr: found 1; expected at most lr, 0.001. "
        "Lower min_lr or raise lr." in str(caught.value)
    )
