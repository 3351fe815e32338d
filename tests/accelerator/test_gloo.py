"""Our collectives over gloo give what torch's give, through shared memory and through sockets."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import Tensor

from megatron_soaes.accelerator.launch import launch
from tests.accelerator.exchanging import ROWS, SIZES

Results = dict[tuple[str, torch.dtype], dict[str, Tensor]]


@pytest.fixture(scope="module", params=[2, 3])
def ranks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Results, str]]:
    folder = tmp_path_factory.mktemp("exchanging")
    code = launch("tests.accelerator.exchanging", [str(folder)], request.param, folder / "logs")
    assert code == 0
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", SIZES)
def test_reduce_scatter_and_all_gather(
    ranks: list[tuple[Results, str]], way: str, dtype: torch.dtype
) -> None:
    results = [rank[0][way, dtype] for rank in ranks]
    wholes = [one["whole"] for one in results]
    share = ROWS // len(ranks)
    for rank, one in enumerate(results):
        part = slice(share * rank, share * (rank + 1))
        assert torch.equal(one["ours"], reduce(torch.add, [whole[part] for whole in wholes]))
        assert torch.equal(one["ours"], one["late"])
        # torch adds around a ring, in an order of its own.
        rounding = 16 * torch.finfo(dtype).eps
        torch.testing.assert_close(one["ours"], one["theirs"], rtol=0, atol=rounding)
        assert torch.equal(one["largest"], torch.stack(wholes).amax(dim=0)[part])
        assert torch.equal(one["gathered"], torch.cat(wholes))
        assert torch.equal(one["gathered late"], torch.cat(wholes))


def test_a_rank_that_does_not_come_is_named(ranks: list[tuple[Results, str]]) -> None:
    for _, said in ranks[1:]:
        assert said == "ranks [0] of the group did not come to an exchange in 1.0 s"
