"""Write the recipe that goes on with the model of a Megatron-LM run."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_soaes import files, yaml_text
from megatron_soaes.checkpoint.import_megatron import describe_model
from megatron_soaes.checkpoint.megatron_directory import MegatronCheckpoint, open_megatron
from megatron_soaes.data.indexed import open_indexed
from megatron_soaes.errors import UserError
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.overrides import apply_overrides
from megatron_soaes.recipe.schema import CPTStage

BLEND = "mixture"
WARMUP_SHARE = 100
"""One step of this many warms up: the optimizer's moments are new."""
SHAPES = {"constant": "constant", "WSD": "wsd"}
"""Our names for Megatron-LM's `lr_decay_style`; what is left of any other becomes a cosine."""
RECOMPUTED = ("core_attn", "mlp", "layernorm")
UNEVEN = (
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
)


@dataclass(frozen=True)
class Adoption:
    """What was written."""

    recipe: Path
    iteration: int
    steps: int
    """Steps of the stage that goes on."""
    differences: list[str]
    """How the stage differs from the run, each in a sentence; they head the recipe too."""


def adopt(
    megatron_dir: Path,
    data: Sequence[Path],
    tokenizer_dir: Path,
    out: Path,
    overrides: Sequence[str] = (),
) -> Adoption:
    """Write the recipe `out`: import the newest iteration of `megatron_dir`, train what was left.

    `data` are prefixes of .bin/.idx pairs. Batch, precision, optimizer, schedule and layout are the
    run's; `overrides` change them as they do for `soaes run`, the layout above all. Where
    `tokenizer_dir` has no config.json, one is written beside the recipe. The recipe is checked.
    Raises UserError when a file to be written exists, for a checkpoint or data that cannot be used
    (`open_megatron`, `describe_model`), and for a recipe that breaks a rule; then nothing is left.
    """
    source = open_megatron(megatron_dir)
    model = describe_model(source, tokenizer_dir)
    for prefix in data:
        open_indexed(prefix)
    config = out.with_name(f"{out.stem}.config.json")
    written = [out] if (tokenizer_dir / "config.json").is_file() else [config, out]
    for file in written:
        _refuse_existing(file)
    target: dict[str, Any] = {
        "source": str(tokenizer_dir.resolve()),
        "weights": str(source.directory.resolve()),
        **({"config": config.name} if config in written else {}),
        "layout": _layout(source.arguments),
    }
    content = apply_overrides(_recipe(source, target, data, out), overrides)
    _complete_schedule(content["stages"][0], source)
    differences = _differences(source)
    header = [
        f"Goes on with the model of {source.directory.resolve()}, iteration {source.iteration}.",
        "What differs from that run:",
        *(f"- {difference}" for difference in differences),
    ]
    try:
        if config in written:
            files.write_json(config, model.config)
        files.write_text(out, "".join(f"# {line}\n" for line in header) + yaml_text.dump(content))
        recipe = load_recipe(out)
        check(recipe)
    except BaseException:
        for file in written:
            file.unlink(missing_ok=True)
        raise
    stage = next(stage for stage in recipe.stages if isinstance(stage, CPTStage))
    return Adoption(out, source.iteration, stage.steps, differences)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(
            path, "something already there", "a path that does not exist",
            "Choose another path, or remove what is there.",
        )  # fmt: skip


def _recipe(
    source: MegatronCheckpoint, target: dict[str, Any], data: Sequence[Path], out: Path
) -> dict[str, Any]:
    name = _name(out.stem, ())
    datasets: dict[str, dict[str, str]] = {}
    for prefix in data:
        datasets[_name(prefix.name, datasets)] = {"indexed": str(prefix.resolve())}
    return {
        "version": 1,
        "name": name,
        "workdir": f"runs/{name}",
        "seed": source.argument("seed"),
        "models": {"target": target},
        "data": {
            "datasets": datasets,
            "blends": {BLEND: {"weights": dict.fromkeys(datasets, 1.0)}},
        },
        "stages": [_stage(source)],
    }


def _name(text: str, taken: Container[str]) -> str:
    """A name as recipes have them, made of a file's name."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-") or "data"
    base = base if base[0].isalpha() else f"data-{base}"
    others = (f"{base}-{number}" for number in count(2))
    return base if base not in taken else next(name for name in others if name not in taken)


def _layout(args: Mapping[str, Any]) -> dict[str, Any]:
    layout = {
        "tensor_parallel": args.get("tensor_model_parallel_size", 1),
        "sequence_parallel": bool(args.get("sequence_parallel")),
        "pipeline_parallel": args.get("pipeline_model_parallel_size", 1),
        "virtual_pipeline": args.get("virtual_pipeline_model_parallel_size") or 1,
        "context_parallel": args.get("context_parallel_size", 1),
    }
    ranks = layout["tensor_parallel"] * layout["pipeline_parallel"] * layout["context_parallel"]
    return layout | {"data_parallel": max(1, args.get("world_size", ranks) // ranks)}


def _stage(source: MegatronCheckpoint) -> dict[str, Any]:
    args, given = source.arguments, source.argument
    steps = _steps_left(source)
    shape = SHAPES.get(given("lr_decay_style"), "cosine")
    return {
        "name": "continue",
        "kind": "cpt",
        "blend": BLEND,
        **({"steps": steps} if steps > 0 else {}),
        "sequence_length": given("seq_length"),
        "micro_batch_size": given("micro_batch_size"),
        "global_batch_size": given("global_batch_size"),
        "precision": {"dtype": "bf16" if args.get("bf16") or args.get("fp16") else "fp32"},
        "optimizer": {
            "lr": _learning_rate(source) or given("lr"),
            **({"min_lr": args.get("min_lr") or 0.0} if shape != "constant" else {}),
            "weight_decay": given("weight_decay"),
            "beta1": given("adam_beta1"),
            "beta2": given("adam_beta2"),
            "eps": given("adam_eps"),
            "clip_grad": given("clip_grad"),
        },
        "schedule": {"shape": shape}
        | ({"decay_shape": given("lr_wsd_decay_style")} if shape == "wsd" else {}),
        "recompute": _recompute(args),
        "checkpoints": {"every": args.get("save_interval") or 100},
        "log_every": args.get("log_interval") or 10,
    }


def _complete_schedule(stage: dict[str, Any], source: MegatronCheckpoint) -> None:
    """Lengths of warm-up and decay, which follow from the steps that overrides leave."""
    steps, schedule = stage.get("steps"), stage["schedule"]
    if not isinstance(steps, int):
        return
    warmup = schedule.setdefault("warmup_steps", steps // WARMUP_SHARE)
    if schedule["shape"] == "wsd":
        decay = _wsd_decay_samples(source) // source.argument("global_batch_size")
        schedule.setdefault("decay_steps", min(decay, steps - warmup))


def _steps_left(source: MegatronCheckpoint) -> int:
    args = source.arguments
    if args.get("train_iters"):
        return int(args["train_iters"]) - source.iteration
    left = (args.get("train_samples") or 0) - (args.get("consumed_train_samples") or 0)
    return int(left) // int(source.argument("global_batch_size"))


def _wsd_decay_samples(source: MegatronCheckpoint) -> int:
    iterations = source.arguments.get("lr_wsd_decay_iters")
    if iterations:
        return int(iterations) * int(source.argument("global_batch_size"))
    return int(source.argument("lr_wsd_decay_samples"))


def _learning_rate(source: MegatronCheckpoint) -> float:
    """The rate at which the run stood, by Megatron-Core's formula; its peak before it was there."""
    state = source.common.get("opt_param_scheduler")
    if not state or state["num_steps"] <= state["lr_warmup_steps"]:
        return float(source.argument("lr"))
    wsd = state["lr_decay_style"] == "WSD"
    scheduler = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[]),
        init_lr=0.0,
        **{name: value for name, value in state.items() if name != "num_steps"},
        wsd_decay_steps=_wsd_decay_samples(source) if wsd else None,
        lr_wsd_decay_style=source.argument("lr_wsd_decay_style") if wsd else None,
    )
    scheduler.num_steps = state["num_steps"]
    return float(scheduler.get_lr({}))


def _recompute(args: Mapping[str, Any]) -> dict[str, Any]:
    granularity = args.get("recompute_granularity")
    if granularity == "full":
        return {"granularity": "full"}
    modules = [m for m in args.get("recompute_modules") or ["core_attn"] if m in RECOMPUTED]
    if granularity == "selective" and modules:
        return {"granularity": "selective", "modules": modules}
    return {"granularity": "none"}


def _differences(source: MegatronCheckpoint) -> list[str]:
    """How the stage differs from going on with Megatron-LM itself."""
    args = source.arguments
    style, optimizer = args["lr_decay_style"], args.get("optimizer", "adam")
    kept = {m for m in args.get("recompute_modules") or () if m not in RECOMPUTED}
    facts = {
        "Adam's moments and step count start anew: a stage starts from weights.": (
            source.has_optimizer
        ),
        "The data start at the beginning of a new shuffled order, every dataset with weight 1; "
        "what the run has read is not left out.": True,
        "Documents of a window do not see each other; in Megatron-LM they do.": (
            not args.get("reset_attention_mask")
        ),
        "Rows of vocabulary padding take no part in the loss; in Megatron-LM they do.": True,
        f"The learning rate warms up again, over one step of {WARMUP_SHARE}.": True,
        "The learning rate goes from where the run stood to min_lr as a cosine of its own; the "
        f"run's style was {style}.": style not in SHAPES,
        "The run's learning rate had reached 0; this one starts from the run's peak.": (
            _learning_rate(source) == 0
        ),
        f"The optimizer was {optimizer}; here it is AdamW.": optimizer != "adam",
        "Weight decay was part of the gradient; here it is decoupled.": (
            args.get("decoupled_weight_decay") is False
        ),
        "Weight decay changed over the run; here it is constant.": (
            args.get("weight_decay_incr_style", "constant") != "constant"
        ),
        "The batch size was ramped up; here it is global_batch_size from the first step.": (
            args.get("rampup_batch_size")
        ),
        "The run was in fp16; here it is in bf16.": args.get("fp16"),
        f"Not recomputed, because it cannot be: {', '.join(sorted(kept))}.": (
            args.get("recompute_granularity") == "selective" and kept
        ),
        "Pipeline stages hold equal numbers of layers; the run's did not.": (
            any(args.get(name) for name in UNEVEN)
        ),
    }
    facts |= {
        f"{name} was {args.get(name)}; there is none here.": args.get(name)
        for name in ("hidden_dropout", "attention_dropout")
    }
    facts |= {
        f"The run used {name} products ({args.get(name)}); FP8 here is precision.fp8.": (
            args.get(name)
        )
        for name in ("fp8", "fp4")
    }
    return [text for text, holds in facts.items() if holds]
