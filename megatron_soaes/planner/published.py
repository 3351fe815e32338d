"""Step times that others published of Megatron-Core runs, with where each figure stands.

Runs of NVIDIA's NeMo and Megatron Bridge recipes that this house could run too: dense models of the
Llama family, no FSDP. Figures are as printed; a throughput is turned into seconds of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_soaes.planner.time import StepTime, step_time
from megatron_soaes.planner.workload import Workload
from megatron_soaes.recipe.shapes import ModelShape
from megatron_soaes.recipe.training_settings import (
    FP8,
    Kernels,
    Layout,
    Optimizer,
    Overlap,
    Precision,
)

DGX_CLOUD = (
    "https://github.com/NVIDIA/dgxc-benchmarking/blob/143b90dd91f9be958fed4773ae95d941a3356a82/"
    "llama3.1/"
)
NEMO_24_07 = (
    "https://github.com/NVIDIA/NeMo/blob/070a0bb168d405d653b9734c0017cf5078e77c0d/"
    "docs/source/performance/performance_summary.md"
)
BRIDGE = (
    "https://github.com/NVIDIA-NeMo/Megatron-Bridge/blob/0a25f911b2ed6c6905a539504fdb8e5b40e3438b/"
    "docs/performance-summary-archive.md"
)

LLAMA3_8B = ModelShape(
    family="llama",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab_size=128256,
    max_position=131072,
    tied_embeddings=False,
    qkv_bias=False,
    qk_norm=False,
    norm_eps=1e-5,
    rope_theta=5e5,
    rope_scaling=None,
)
LLAMA3_70B = replace(LLAMA3_8B, layers=80, hidden=8192, heads=64, ffn=28672)
LLAMA3_405B = replace(LLAMA3_70B, layers=126, hidden=16384, heads=128, ffn=53248)
LLAMA2_7B = replace(LLAMA3_8B, kv_heads=32, ffn=11008, vocab_size=32000)
LLAMA2_13B = replace(LLAMA2_7B, layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824)
LLAMA2_70B = replace(LLAMA3_70B, vocab_size=32000)

DELAYED = FP8(recipe="delayed")
TENSORWISE = FP8(recipe="tensorwise")


@dataclass(frozen=True)
class Published:
    """One run that somebody measured."""

    name: str
    shape: ModelShape
    gpu: str
    layout: Layout
    fp8: FP8 | None
    sequence_length: int
    global_batch_size: int
    seconds: float
    """Of one step."""
    source: str
    """Address of the page with the figure."""
    micro_batch_size: int = 1

    @property
    def workload(self) -> Workload:
        """What ran, with the fusions and the overlaps that those recipes switch on."""
        return Workload(
            shape=self.shape,
            vocab_size=self.shape.padded_vocab_size(128 * self.layout.tensor_parallel),
            layout=self.layout,
            sequence_length=self.sequence_length,
            micro_batch_size=self.micro_batch_size,
            global_batch_size=self.global_batch_size,
            precision=Precision(dtype="bf16", fp8=self.fp8),
            overlap=Overlap(
                grad_reduce=True, param_gather=True, tensor_parallel=self.layout.tensor_parallel > 1
            ),
            kernels=Kernels(swiglu=True, gradient_accumulation=True),
            optimizer=Optimizer(),
        )

    @property
    def modelled(self) -> StepTime:
        """What the model says of it, in nodes of eight GPUs."""
        return step_time(self.workload, self.gpu, 8)

    @property
    def residual(self) -> float:
        """Modelled over published seconds, less one."""
        return self.modelled.total / self.seconds - 1


def _layout(tensor: int, pipeline: int, context: int, virtual: int, replicas: int) -> Layout:
    return Layout(
        tensor_parallel=tensor,
        sequence_parallel=tensor > 1,
        pipeline_parallel=pipeline,
        context_parallel=context,
        virtual_pipeline=virtual,
        data_parallel=replicas,
    )


def _dgx_cloud() -> Iterator[Published]:
    """NeMo 24.09 on DGX H100: printed as seconds of a step."""
    small = [(8, 128, 12.91, 9.67), (128, 2048, 13.10, 9.82)]
    for gpus, batch, bf16, fp8 in small:
        layout = _layout(1, 1, 2, 1, gpus // 2)
        for arithmetic, seconds in ((None, bf16), (DELAYED, fp8)):
            yield Published(
                "Llama 3.1 8B", LLAMA3_8B, "h100-80g", layout, arithmetic, 8192, batch, seconds,
                DGX_CLOUD + "README_8b.md",
            )  # fmt: skip
    middle = [(64, 128, 14.72, 11.01), (1024, 2048, 14.92, 11.28)]
    for gpus, batch, bf16, fp8 in middle:
        layout = _layout(4, 4, 2, 5, gpus // 32)
        for arithmetic, seconds in ((None, bf16), (DELAYED, fp8)):
            yield Published(
                "Llama 3.1 70B", LLAMA3_70B, "h100-80g", layout, arithmetic, 8192, batch, seconds,
                DGX_CLOUD + "README_70b.md",
            )  # fmt: skip
    layout = _layout(8, 9, 2, 7, 4)
    for arithmetic, seconds in ((None, 17.20), (DELAYED, 11.24)):
        yield Published(
            "Llama 3.1 405B", LLAMA3_405B, "h100-80g", layout, arithmetic, 8192, 252, seconds,
            DGX_CLOUD + "README_405b.md",
        )  # fmt: skip


NEMO_FP8 = (
    ("Llama 2 7B", LLAMA2_7B, _layout(1, 1, 1, 1, 8), 4096, 16847),
    ("Llama 2 13B", LLAMA2_13B, _layout(1, 4, 1, 10, 4), 4096, 8646),
    ("Llama 2 70B", LLAMA2_70B, _layout(4, 4, 1, 20, 4), 4096, 1707),
    ("Llama 3 8B", LLAMA3_8B, _layout(1, 1, 2, 1, 4), 8192, 12036),
    ("Llama 3 70B", LLAMA3_70B, _layout(4, 4, 2, 5, 2), 8192, 1533),
)
"""NeMo 24.07 on DGX H100, batches of 128: the last figure is tokens a second for each GPU."""


def _nemo() -> Iterator[Published]:
    for name, shape, layout, length, throughput in NEMO_FP8:
        seconds = _seconds(128, length, throughput, layout)
        yield Published(
            name, shape, "h100-80g", layout, DELAYED, length, 128, seconds, NEMO_24_07
        )  # fmt: skip


def _bridge() -> Iterator[Published]:
    """Megatron Bridge, printed as tokens a second for each GPU; FP8 with current scaling."""
    layout = _layout(4, 8, 1, 5, 2)
    for batch, throughput in ((128, 1602), (256, 1621)):
        seconds = _seconds(batch, 8192, throughput, layout)
        yield Published(
            "Llama 3 70B", LLAMA3_70B, "h100-80g", layout, TENSORWISE, 8192, batch, seconds, BRIDGE
        )
    layout = _layout(1, 1, 1, 1, 8)
    seconds = _seconds(128, 8192, 30624, layout)
    yield Published(
        "Llama 3 8B", LLAMA3_8B, "b200-180g", layout, TENSORWISE, 8192, 128, seconds, BRIDGE,
        micro_batch_size=2,
    )  # fmt: skip


def _seconds(batch: int, length: int, throughput: float, layout: Layout) -> float:
    return batch * length / (throughput * layout.processes)


FITTED: tuple[Published, ...] = tuple(_dgx_cloud())
"""The runs that the two constants of `stage_time.PRODUCT_REACHED` are fitted to."""
HELD_OUT: tuple[Published, ...] = (*_nemo(), *_bridge())
"""Those that took no part in the fit."""


def residual_table() -> str:
    """All published runs beside the model, as the table of docs/planner.md."""
    lines = [
        "| model | GPUs | arithmetic | TP, PP, VP, CP, DP | sequence | micro, global batch "
        "| published | modelled | residual | |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    sources = list(dict.fromkeys(one.source for one in (*FITTED, *HELD_OUT)))
    for use, runs in (("fitted", FITTED), ("held out", HELD_OUT)):
        lines += [_row(one, use, sources.index(one.source) + 1) for one in runs]
    links = [f"{number}. {source}" for number, source in enumerate(sources, start=1)]
    return "\n".join([*lines, "", *links])


def _row(run: Published, use: str, source: int) -> str:
    cut = run.layout
    sizes = (
        cut.tensor_parallel, cut.pipeline_parallel, cut.virtual_pipeline, cut.context_parallel,
        cut.data_parallel,
    )  # fmt: skip
    cells = (
        run.name,
        f"{cut.processes} {run.gpu}",
        f"FP8, {run.fp8.recipe}" if run.fp8 else "bf16",
        ", ".join(map(str, sizes)),
        f"{run.sequence_length:,}",
        f"{run.micro_batch_size}, {run.global_batch_size:,}",
        f"{run.seconds:.2f} s [{source}]",
        f"{run.modelled.total:.2f} s",
        f"{run.residual:+.1%}",
        use,
    )
    return f"| {' | '.join(cells)} |"
