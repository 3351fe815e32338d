"""Find the FP8 scales of a model on real text, and what they cost, before anything is written.

One pass over the layers does both. The texts that calibrate run through the original layer, where
the maxima are taken; the held-out texts run through it and through its FP8 form. In memory are one
layer, or one vocabulary matrix of each model, and the hidden states of all texts, in fp32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data_prep.tokenizer import read_tokenizer
from megatron_soaes.checkpoint.progress import Progress
from megatron_soaes.errors import UserError
from megatron_soaes.export.fp8.forward import Decoder, Exact, Observed, Rounded
from megatron_soaes.export.fp8.report import Limits, Outlook, Quality, measure
from megatron_soaes.export.fp8.scales import (
    GROUPS,
    LayerScales,
    Scales,
    layer_scales,
    rounded_layer,
)
from megatron_soaes.export.fp8.texts import CalibrationTexts, read_texts
from megatron_soaes.export.source import Source, open_source


@dataclass(frozen=True)
class Fp8:
    """How a model is to be quantised."""

    calibration: Path
    """Prompts (`data_prep.prompt_file`): every eighth is held out and judges."""
    draft: Path | None = None
    """HF directory or Megatron checkpoints of a draft whose acceptance is to be measured."""
    cache: bool = True
    """Whether keys and values are cached as FP8 too."""
    exclude: tuple[str, ...] = ()
    """Groups of matrices (`scales.GROUPS`) that are left in the model's dtype, in all layers."""
    limits: Limits = field(default_factory=Limits)


def quantise(
    source: Source, fp8: Fp8, dtype: torch.dtype, progress: Progress | None = None
) -> tuple[Scales, Quality]:
    """The scales for a model that is exported in `dtype`, and what they cost.

    Uses a GPU if there is one. `progress` is told layers. Raises UserError when the texts or the
    draft do not fit the model, when a group is unknown, when the model computes what is not finite,
    and when FP8 costs more than `fp8.limits`.
    """
    _require_groups(fp8.exclude)
    texts = read_texts(fp8.calibration, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draft_source = None if fp8.draft is None else open_source(fp8.draft)
    if draft_source is not None:
        _require_one_vocabulary(source, draft_source)
    with torch.inference_mode():
        decoder = Decoder(source, dtype, device)
        scales, before, after = _walk(decoder, texts, fp8, progress)
        draft = None
        if draft_source is not None:
            other = Decoder(draft_source, dtype, device)
            draft = Outlook(other.exact_states(texts.held_out), other.output())
        measured = measure(texts.held_out, before, after, draft)
    quality = Quality(
        **measured,
        calibration_texts=len(texts.calibrating),
        calibration_tokens=sum(map(len, texts.calibrating)),
        held_out_texts=len(texts.held_out),
        held_out_tokens=sum(map(len, texts.held_out)),
        cut_texts=texts.cut,
    )
    quality.require(fp8.limits)
    return scales, quality


def _walk(
    decoder: Decoder, texts: CalibrationTexts, fp8: Fp8, progress: Progress | None
) -> tuple[Scales, Outlook, Outlook]:
    """The scales, and the held-out texts as the original and as the FP8 model see them."""
    calibrating = decoder.embed(texts.calibrating)
    exact = decoder.embed(texts.held_out)
    quantised = exact
    layers: list[LayerScales] = []
    for index in range(decoder.shape.layers):
        layer = decoder.layer(index)
        observed = Observed()
        calibrating = [decoder.run(x, layer, observed) for x in calibrating]
        exact = [decoder.run(x, layer, Exact()) for x in exact]
        _require_finite(observed.largest, index)
        scales = layer_scales(layer, observed.largest, fp8.exclude, fp8.cache)
        layer = rounded_layer(layer, scales)
        quantised = [decoder.run(x, layer, Rounded(scales)) for x in quantised]
        layers.append(scales.cpu())
        if progress is not None:
            progress(index + 1, decoder.shape.layers)
    output = decoder.output()
    before, after = (
        Outlook([decoder.final(x) for x in states], output) for states in (exact, quantised)
    )
    return Scales(tuple(layers), tuple(fp8.exclude)), before, after


def _require_groups(exclude: Collection[str]) -> None:
    unknown = [group for group in exclude if group not in GROUPS]
    if unknown:
        raise UserError(
            "--exclude", repr(unknown[0]), "one of " + ", ".join(GROUPS),
            "Matrices that are multiplied with the same input are excluded together.",
        )  # fmt: skip
    if set(exclude) == set(GROUPS):
        raise UserError(
            "--exclude", "every group of matrices", "one at least that becomes FP8",
            "Export without --fp8.",
        )  # fmt: skip


def _require_finite(largest: dict[str, Tensor], index: int) -> None:
    for group, value in largest.items():
        if not torch.isfinite(value):
            raise UserError(
                f"model.layers.{index}, {group}", "values NaN or infinite", "finite values",
                "The model itself is broken; check it with `soaes evaluate`.",
            )  # fmt: skip


def _require_one_vocabulary(target: Source, draft: Source) -> None:
    """Equal tokens, and an embedding of the draft that has them all."""
    files = [source.hf_files / "tokenizer.json" for source in (target, draft)]
    first, second = (read_tokenizer(f).get_vocab(with_added_tokens=True) for f in files)
    if first != second:
        raise UserError(
            files[1], "another vocabulary", f"that of {files[0]}", "Choose a draft of this target."
        )
