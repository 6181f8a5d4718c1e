"""Batch sizes and fallbacks on any machine, with a tower that accepts one shape in a graph's place; graphs on CUDA."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import visionstack.cuda_graphs
from visionstack.cuda_graphs import BucketedTower, Tower, replayed

with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make_tower() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 4), nn.GELU(), nn.Flatten(), nn.Linear(8 * 5 * 5, 16)).eval()


EXAMPLE = torch.zeros(1, 3, 8, 8)


class Recorder:
    """Records as CUDA does: what it gives takes inputs of the recorded shape alone."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self.recorded: list[int] = []
        self.ran: list[int] = []

    def __call__(self, inputs: Tensor) -> Tower:
        self.recorded.append(len(inputs))

        def replay(batch: Tensor) -> Tensor:
            self.ran.append(len(batch))
            inputs.copy_(batch)
            return self._tower(inputs)

        return replay


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (32, [1, 2, 4, 8, 16, 32])])
def test_the_sizes_double_up_to_the_largest_batch(most: int, sizes: list[int]) -> None:
    recorder = Recorder(make_tower())
    assert BucketedTower(recorder, EXAMPLE, most).sizes == sizes
    assert recorder.recorded == sizes[::-1]


@pytest.mark.parametrize(
    ("count", "runs"), [(1, [1]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])]
)
def test_a_batch_is_padded_or_split_and_each_input_keeps_its_answer(count: int, runs: list[int]) -> None:
    tower = make_tower()
    recorder = Recorder(tower)
    inputs = torch.randn(count, 3, 8, 8)
    torch.testing.assert_close(BucketedTower(recorder, EXAMPLE, 8)(inputs), tower(inputs))
    assert recorder.ran == runs


def replace_recorder(monkeypatch: pytest.MonkeyPatch, recorder: Callable[[Tower], Callable[[Tensor], Tower]]) -> None:
    monkeypatch.setattr(visionstack.cuda_graphs, "_recorder", recorder)


def test_graphs_that_give_the_same_take_the_towers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_recorder(monkeypatch, Recorder)
    assert isinstance(replayed(make_tower(), EXAMPLE, 4), BucketedTower)


def test_what_cannot_be_recorded_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Tower) -> Callable[[Tensor], Tower]:
        raise RuntimeError("operation not permitted when stream is capturing")

    replace_recorder(monkeypatch, refuse)
    tower = make_tower()
    assert replayed(tower, EXAMPLE, 4) is tower
    assert "no CUDA graphs, which costs speed alone: operation not permitted" in caplog.text


@pytest.mark.parametrize("wrong", [torch.neg, lambda outputs: outputs * torch.nan, lambda outputs: outputs.roll(1, 0)])
def test_graphs_that_give_something_else_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: Tower
) -> None:
    tower = make_tower()
    replace_recorder(monkeypatch, lambda _: Recorder(lambda inputs: wrong(tower(inputs))))
    assert replayed(tower, EXAMPLE, 4) is tower
    assert "they give other vectors" in caplog.text


@with_cuda
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_a_tower_on_cuda_graphs_gives_what_it_gives_without(precision: torch.dtype) -> None:
    tower = make_tower().to("cuda", precision)
    graphs = replayed(tower, EXAMPLE.to("cuda", precision), 8)
    assert isinstance(graphs, BucketedTower)
    for count in (1, 3, 8, 13):
        inputs = torch.randn(count, 3, 8, 8, device="cuda", dtype=precision)
        kept = graphs(inputs)
        graphs(torch.randn_like(inputs))  # must not change what was given before
        torch.testing.assert_close(kept, tower(inputs), rtol=2e-3, atol=2e-3)
