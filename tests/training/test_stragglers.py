"""Slow ranks: found by their own work in a step, warned of if they stay slow."""

from __future__ import annotations

import pytest
from faults.catalogue import assert_seen

from fusionseg.distributed.launch import Launch
from fusionseg.training.observers.stragglers import OWN_PARTS, Stragglers, find_straggler


def parts(**seconds: float) -> list[float]:
    return [seconds.get(name, 0.0) for name in OWN_PARTS]


USUAL = parts(data=0.01, forward=0.1, backward=0.2)


def test_the_slow_rank_and_what_it_is_slow_in() -> None:
    slow = parts(data=0.31, forward=0.12, backward=0.2)
    found = find_straggler([USUAL, USUAL, slow, USUAL], step_s=0.7)
    assert found is not None and (found.rank, found.phase) == (2, "data")
    assert found.behind_s == pytest.approx(0.32) and found.own_s == pytest.approx(0.63)
    assert find_straggler([slow, USUAL], 0.7) is not None


def test_ranks_of_nearly_the_same_speed_are_none() -> None:
    assert find_straggler([USUAL, parts(forward=0.1, backward=0.3)], step_s=0.5) is None  # 1.3 times
    assert find_straggler([parts(data=0.001), parts(data=0.003)], step_s=0.5) is None  # nothing of the step
    assert find_straggler([USUAL], 0.5) is None
    assert find_straggler([parts(), parts()], 0.5) is None


class TwoRanks:
    """Two ranks, of which the other one has the times that a test sets; the exchange itself runs in the real runs."""

    launch, size, is_rank_zero = Launch(world_size=2), 2, True
    other = USUAL

    def all_gather_object(self, value: object) -> list[object]:
        return [value, self.other]


@pytest.mark.fault("rank-slow")
def test_a_rank_that_stays_slow_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    world = TwoRanks()
    stragglers = Stragglers(world, ["node0", "node1"])  # type: ignore[arg-type]
    own = dict(zip(OWN_PARTS, USUAL, strict=True))
    with caplog.at_level("WARNING", logger="fusionseg"):
        world.other = parts(forward=0.4, backward=0.2)
        fields = stragglers.look(10, own, 10, 0.7)
        assert fields == {"straggler": {"rank": 1, "phase": "forward", "behind_s": pytest.approx(0.29)}}
        world.other = USUAL
        for step in range(20, 60, 10):
            assert stragglers.look(step, own, 10, 0.4) == {}
        assert not caplog.messages  # a single slow interval
        world.other = parts(forward=0.4, backward=0.2)
        for step in range(60, 200, 10):
            stragglers.look(step, own, 10, 0.7)
    (message,) = caplog.messages
    assert_seen("rank-slow", message)
    assert message.startswith("step 70: rank 1 (node1) is behind: its part of a step takes 0.6 s, 0.29 s more")
    assert "most of it in forward" in message
