"""Small captures, and those on four processes: `python -m tests.training.capturing FOLDER`.

FOLDER holds the material; each capture leaves its store below FOLDER/captures.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from megatron_soaes import files
from megatron_soaes.accelerator.groups import (
    model_parallel,
    process_group,
    rendezvous_from_environment,
    world_rank,
)
from megatron_soaes.data.sample import Sample
from megatron_soaes.data.teacher_store import Layout as StoreLayout
from megatron_soaes.data.teacher_store import Origin
from megatron_soaes.recipe.training_settings import Layout, Precision
from megatron_soaes.training.capture import AskedModel, Samples, WantedStore, capture
from megatron_soaes.training.engine import build_options, load_model
from megatron_soaes.training.stopping import StopSignal
from tests.training.material import ONE_PROCESS, SEQUENCE, VOCABULARY, make_sft_job

COUNT = 11
"""Samples: two shards of four and one of three."""
ORIGIN = Origin("0" * 64, "weights", "samples", temperature=1.5)
STORES = {
    "top_k": StoreLayout("top_k", 8, COUNT, SEQUENCE, samples_per_shard=4),
    "sampled": StoreLayout("sampled", 6, COUNT, SEQUENCE, samples_per_shard=4, exponent=0.8),
}
SEED = 9
LAYOUTS = {
    "tp2-pp2": Layout(tensor_parallel=2, pipeline_parallel=2, sequence_parallel=True),
    "cp2-dp2": Layout(context_parallel=2, data_parallel=2),
    "pp2-cp2": Layout(pipeline_parallel=2, context_parallel=2),
}


@dataclass
class WatchedSamples:
    """Remembers which samples were read; asks this process to stop at some of them."""

    samples: Samples
    stop_at: tuple[int, ...] = ()
    read: list[int] = field(default_factory=list)

    def __getitem__(self, number: int, /) -> Sample:
        self.read.append(number)
        if number in self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.samples[number]


def wanted_store(
    folder: Path, name: str, layout: StoreLayout, samples: Samples | None = None
) -> WantedStore:
    """`folder`/captures/NAME, by default of packed conversations and documents (collective)."""
    samples = samples or make_sft_job(folder, folder / "unused").mixture
    return WantedStore(name, folder / "captures" / name, samples, ORIGIN, layout)


def asked_model(
    folder: Path, model: str = "deep", layout: Layout = ONE_PROCESS, micro_batch_size: int = 2
) -> AskedModel:
    """An imported model of the material in fp32, in the layout that is active (collective)."""
    job = make_sft_job(folder, folder / "unused", model, layout)
    options = build_options(job.shape, job.source, layout, Precision(dtype="fp32"))
    chunks = load_model(job.shape, options, job.start)
    return AskedModel(chunks, layout, micro_batch_size, VOCABULARY, SEED)


def main(folder: Path) -> None:
    with process_group(rendezvous_from_environment()):
        for name, layout in LAYOUTS.items():
            with model_parallel(
                layout.tensor_parallel, layout.pipeline_parallel, context=layout.context_parallel
            ):
                teacher = asked_model(folder, layout=layout)
                for kind, store in STORES.items():
                    wanted = wanted_store(folder, f"{name}-{kind}", store)
                    assert capture(teacher, wanted, StopSignal())
                if layout.data_parallel > 1:
                    _stop_and_go_on(folder, teacher)


def _stop_and_go_on(folder: Path, teacher: AskedModel) -> None:
    """Only the last rank is asked to stop, while it reads its first shard."""
    store, name = STORES["top_k"], "stopped"
    samples = make_sft_job(folder, folder / "unused").mixture
    last = WatchedSamples(samples, stop_at=(4,) if world_rank() == 3 else ())
    assert not capture(teacher, wanted_store(folder, name, store, last), StopSignal())
    rest = WatchedSamples(samples)
    assert capture(teacher, wanted_store(folder, name, store, rest), StopSignal())
    files.write_json(
        folder / "captures" / f"{name}-rank{world_rank()}.json", [last.read, rest.read]
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
