"""The README.md of an exported model, from the manifests of the stages that made it. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from megatron_soaes.recipe.shapes import ModelShape

BASE = "import"
"""What recipes call the imported model."""
_DATASET = re.compile(r"^data/(\w+?)(_sources|_weights)?\.(bin|idx|npy|json)$")
_HASH_SHOWN = 12

Manifest = Mapping[str, Any]
"""Content of a stage's manifest.json."""


def model_card(name: str, shape: ModelShape, manifests: Sequence[Manifest], checkpoint: str) -> str:
    """The card of the model in `checkpoint`: data, stages, metrics, limits and provenance.

    `manifests` are those of a run's finished stages, in any order; `checkpoint` is the stage that
    made the exported weights, as recipes name it ("sft2", "sft2@best", "import"). Of files only
    names and hashes are shown, not where they lie. Raises ValueError when a stage that made the
    weights has no manifest.
    """
    by_stage = {str(manifest["stage"]): manifest for manifest in manifests}
    line = _line(by_stage, checkpoint)
    sections = [
        _front_matter(),
        f"# {name}\n\n{_summary(shape, by_stage, line)}",
        f"## How it was made\n\n{_stages(line)}",
        f"## Data\n\n{_data(by_stage, line)}",
        f"## Measured\n\n{_measured(by_stage, line, checkpoint)}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(by_stage, line, checkpoint)),
        f"## Use\n\n{_USE}",
        f"## Provenance\n\n{_provenance(line or list(by_stage.values()))}",
    ]
    return "\n\n".join(sections) + "\n"


_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
model = AutoModelForCausalLM.from_pretrained(".", torch_dtype="auto")
inputs = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0]))
```"""


def _line(by_stage: Mapping[str, Manifest], checkpoint: str) -> list[Manifest]:
    """The training stages that made the weights, in order."""
    line: list[Manifest] = []
    while (stage := checkpoint.partition("@")[0]) != BASE:
        if stage not in by_stage:
            raise ValueError(f"no manifest of the stage {stage}")
        line.insert(0, by_stage[stage])
        checkpoint = by_stage[stage]["config"]["after"]
    return line


def _front_matter() -> str:
    return "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---"


def _summary(shape: ModelShape, by_stage: Mapping[str, Manifest], line: Sequence[Manifest]) -> str:
    text = f"A {shape.family} model of {shape.parameters:,} parameters"
    model = line[-1]["config"]["model"] if line else "target"
    imported = by_stage.get(f"{BASE}-{model}")
    if imported is None:
        return f"{text}."
    source = next(iter(imported["inputs"].values()))
    base = f"`{PurePath(source['path']).name}` (sha256 {source['hash'][:_HASH_SHOWN]})"
    return f"{text}, trained from {base}." if line else f"{text}, converted from {base}."


def _stages(line: Sequence[Manifest]) -> str:
    if not line:
        return "It was converted, not trained."
    rows = []
    for manifest in line:
        config, metrics = manifest["config"], manifest["metrics"]
        used = metrics.get("consumed_samples", {})
        rows.append(
            [
                manifest["stage"],
                manifest["kind"],
                ", ".join(f"{name} {count:,}" for name, count in used.items()),
                f"{metrics['iteration']:,}",
                f"{metrics['trained_tokens']:,}",
                f"{config['global_batch_size']} x {config['sequence_length']}",
                f"{config['optimizer']['lr']:g}",
                config["precision"]["dtype"],
            ]
        )
    heads = ["stage", "kind", "samples", "steps", "trained tokens", "batch", "peak lr", "precision"]
    return _table(heads, rows)


def _data(by_stage: Mapping[str, Manifest], line: Sequence[Manifest]) -> str:
    names = sorted(
        {name for manifest in line for name in manifest["metrics"].get("consumed_samples", {})}
    )
    if not names:
        return "No training data."
    rows = []
    for name in names:
        prepared = by_stage.get(f"preprocess-{name}")
        rows.append([name, *_contents(prepared), _fingerprint(line, name)])
    return _table(["dataset", "contents", "tokens", "sha256 of the token file"], rows)


def _contents(prepared: Manifest | None) -> tuple[str, str]:
    if prepared is None:
        return "prepared outside of the run", "-"
    metrics = prepared["metrics"]
    unit = "conversations" if "conversations" in metrics else "documents"
    return f"{metrics[unit]:,} {unit}", f"{metrics['tokens']:,}"


def _fingerprint(line: Sequence[Manifest], name: str) -> str:
    for manifest in line:
        for key, record in manifest["inputs"].items():
            match = _DATASET.match(key)
            if match and match[1] == name and key.endswith(f"{name}.bin"):
                return str(record["hash"])[:_HASH_SHOWN]
    return "-"


def _measured(by_stage: Mapping[str, Manifest], line: Sequence[Manifest], checkpoint: str) -> str:
    """Every figure of the evaluations that measured this checkpoint, beside the base's."""
    rows = [
        [stage, *row]
        for stage, manifest in by_stage.items()
        if manifest["kind"] == "evaluate" and checkpoint in manifest["metrics"]
        for row in _figures(manifest["metrics"].get(BASE, {}), manifest["metrics"][checkpoint])
    ]
    if rows:
        return _table(["evaluation", "measure", "base", "this model"], rows)
    last = line[-1]["metrics"].get("validation", {}) if line else {}
    if last:
        rows = [[name, f"{figures['perplexity']:.4g}"] for name, figures in last.items()]
        return _table(["held-out set", "perplexity at the last step"], rows)
    return "Nothing was measured."


def _figures(base: Mapping[str, Any], this: Mapping[str, Any]) -> Iterable[list[str]]:
    for suite, figures in this.items():
        for name, value in figures.items():
            if name == "tokens":
                continue
            before = base.get(suite, {}).get(name)
            yield [f"{suite} {name}", "-" if before is None else f"{before:.4g}", f"{value:.4g}"]


def _limits(
    by_stage: Mapping[str, Manifest], line: Sequence[Manifest], checkpoint: str
) -> Iterable[str]:
    yield "The licence of the base model applies; so may terms of the data."
    if line:
        longest = max(manifest["config"]["sequence_length"] for manifest in line)
        yield f"Trained on sequences of at most {longest:,} tokens; longer ones are untested."
    for manifest in line:
        yield from _losses_of_data(manifest)
    measured = any(
        manifest["kind"] == "evaluate" and checkpoint in manifest["metrics"]
        for manifest in by_stage.values()
    )
    if not measured:
        yield "No evaluation stage has measured these weights."
    yield "Safety, bias and the truth of its answers were not examined beyond the measures above."


def _losses_of_data(manifest: Manifest) -> Iterable[str]:
    stage, metrics = manifest["stage"], manifest["metrics"]
    if metrics.get("skipped_steps"):
        yield f"{stage}: {metrics['skipped_steps']} steps were skipped for non-finite gradients."
    for name, packing in metrics.get("packing", {}).items():
        for what in ("dropped", "truncated"):
            if packing.get(what):
                yield f"{stage}: {packing[what]:,} conversations of {name} were {what} as too long."


def _provenance(manifests: Sequence[Manifest]) -> str:
    rows = [
        [
            manifest["stage"],
            manifest["finished"][:10],
            manifest["device"],
            f"{manifest['code']['version']} ({manifest['code']['sha256'][:_HASH_SHOWN]})",
            ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        ]
        for manifest in manifests
    ]
    return _table(["stage", "finished", "device", "megatron_soaes", "packages"], rows)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
