"""`soaes init`: the folder of a team's own project."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from data_prep.sft.chat_template import load_chat_template
from data_prep.tokenizer import load_tokenizer
from megatron_soaes import files
from megatron_soaes.errors import UserError
from megatron_soaes.pipeline.init import amounts, placement
from megatron_soaes.pipeline.init.amounts import Amounts, amounts_for
from megatron_soaes.pipeline.init.corpus import Corpus, look_into
from megatron_soaes.pipeline.init.placement import Placement, place
from megatron_soaes.pipeline.slurm.submission import ENVIRONMENT_FILE, SCRIPTS
from megatron_soaes.recipe.check import check
from megatron_soaes.recipe.load import load_recipe
from megatron_soaes.recipe.shapes import ModelShape, read_shape
from megatron_soaes.recipe.training_settings import Layout

RECIPE_FILE, README_FILE = "recipe.yaml", "README.md"
REHEARSAL_LENGTH = 256
LEARNING_RATES = {"cpt": ("1.0e-5", "1.0e-6"), "sft": ("7.0e-6", "7.0e-7")}


def init_project(
    directory: Path,
    base: Path,
    corpus: Sequence[str] | str,
    gpus: int | None = None,
    gpu: str | None = None,
) -> list[Path]:
    """Write a recipe, an environment file for Slurm and a README into `directory`; their paths.

    `base` is the HF directory to start from, `corpus` paths or globs of documents (continual
    pre-training) or of conversations (SFT). With `gpus` of kind `gpu` the layout is one that has
    room for the model, without them a single process. All files appear, or none.

    Raises UserError for a folder that holds something, for a base without config.json, weights or
    a usable tokenizer, and as `look_into` and `place` do; RecipeErrors for a recipe that would
    break a rule.
    """
    directory = directory.expanduser().resolve()
    _require_free(directory)
    base = base.expanduser().resolve()
    shape = _read_base(base)
    found = look_into([corpus] if isinstance(corpus, str) else corpus)
    if found.is_chat:
        load_chat_template(load_tokenizer(base, add_special_tokens=False)[0], None)
    texts = _render(directory, base, shape, found, _placement(shape, gpus, gpu))
    environment = _environment_file()
    if directory.exists():
        directory.rmdir()
    with files.atomic_directory(directory) as temporary:
        for name, text in texts.items():
            files.write_text(temporary / name, text)
        shutil.copyfile(environment, temporary / ENVIRONMENT_FILE)
        check(load_recipe(temporary / RECIPE_FILE))
    return [directory / name for name in (RECIPE_FILE, ENVIRONMENT_FILE, README_FILE)]


def _require_free(directory: Path) -> None:
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        found = "files in it" if directory.is_dir() else "a file"
        raise UserError(
            directory, found, "a new or an empty folder", "Choose another folder for the project."
        )


def _read_base(base: Path) -> ModelShape:
    """The shape of a base model that has all that a run reads."""
    shape = read_shape(base / "config.json")
    for pattern, what in (("*.safetensors", "weights"), ("tokenizer.json", "a tokenizer")):
        if not any(base.glob(pattern)):
            raise UserError(
                base, f"no {pattern}", f"an HF directory with {what}",
                "Download all files of the model into one folder, and name it as --base.",
            )  # fmt: skip
    info, _ = load_tokenizer(base, add_special_tokens=False)
    if info.eod_id is None:
        raise UserError(
            base / "tokenizer_config.json", "no eos_token", "the token that ends documents",
            "Add eos_token to that file.",
        )  # fmt: skip
    return shape


def _placement(shape: ModelShape, gpus: int | None, gpu: str | None) -> Placement | None:
    if gpus is None and gpu is None:
        return None
    if gpus is None or gpu is None:
        given, missing = ("--gpu", "--gpus") if gpus is None else ("--gpus", "--gpu")
        raise UserError(
            missing, f"nothing beside {given}", "both: how many GPUs, and which",
            "Write them like --gpus 8 --gpu h100-80g, or leave both out.",
        )  # fmt: skip
    return place(shape, gpus, gpu)


def _environment_file() -> Path:
    file = SCRIPTS / ENVIRONMENT_FILE
    if not file.is_file():
        raise UserError(
            file, "no such file", "the environment file that comes with the Slurm scripts",
            "Install megatron_soaes from its checkout: pip install -e .",
        )  # fmt: skip
    return file


def _render(
    directory: Path, base: Path, shape: ModelShape, corpus: Corpus, placement_: Placement | None
) -> dict[str, str]:
    """The text of each file by its name."""
    environment = Environment(
        loader=PackageLoader("megatron_soaes.pipeline.init", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["quoted"] = _quoted
    layout = placement_.layout if placement_ else Layout()
    stage = "sft" if corpus.is_chat else "cpt"
    chosen = amounts_for(corpus, shape, layout, on_gpus=placement_ is not None)
    lr, min_lr = LEARNING_RATES[stage]
    known: dict[str, Any] = {
        "name": recipe_name(directory),
        "directory": directory,
        "base": base,
        "corpus": corpus,
        "files": "1 file" if corpus.files == 1 else f"{corpus.files:,} files",
        "stage": stage,
        "dataset": "dialogue" if corpus.is_chat else "domain",
        "placement": placement_,
        "layout": layout,
        "amounts": chosen,
        "lr": lr,
        "min_lr": min_lr,
        "billions": f"{shape.parameters / 1e9:.3g}",
        "room": placement.ROOM,
        "epochs": amounts.EPOCHS,
        "fewest_steps": amounts.FEWEST_STEPS,
        "rehearsal": list(map(shlex.quote, _rehearsal(stage, chosen, placement_))),
        "rehearsal_gib": max(1, round(placement.state_gib(shape, Layout()))),
    }
    names = (RECIPE_FILE, README_FILE)
    return {name: environment.get_template(f"{name}.j2").render(known) for name in names}


def _rehearsal(stage: str, chosen: Amounts, placement_: Placement | None) -> list[str]:
    """Overrides for two short steps in one process, with or without a GPU."""
    found = [
        "workdir=rehearsal", "models.target.layout={}",
        f"{stage}.steps=2", f"{stage}.warmup_steps=1", f"{stage}.global_batch_size=2",
    ]  # fmt: skip
    if placement_:
        found += ["cluster=null", f"stages.{stage}.overlap={{}}"]
    if stage == "sft":
        return [*found, "sft.epochs=null"]
    # Conversations are not cut, so theirs stays.
    length = min(REHEARSAL_LENGTH, chosen.sequence_length)
    return [*found, f"cpt.sequence_length={length}", f"evaluation.sequence_length={length}"]


def _quoted(value: object) -> str:
    """A path, or a list of texts, as YAML."""
    return json.dumps(list(value) if isinstance(value, tuple) else str(value), ensure_ascii=False)


def recipe_name(directory: Path) -> str:
    """The folder's name as a recipe may be called: a letter, then letters, digits, '-' or '_'."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", directory.name).strip("-_")
    return name if re.match(r"[A-Za-z]", name) else f"run-{name}".rstrip("-")
