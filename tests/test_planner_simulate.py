"""The simulation against critical paths by hand, and against a plain form of it."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pdadmm.planner.simulate import Conditions, Program, run

HAND = [Program(0.0, 0.0, 1.0, 2.0, 1.0, up=0.5), Program(3.0, 1.0, 1.0, 1.0, 0.0, down=0.25)]


def fast(computing: int) -> float:
    return 1.0


def plain(parts: list[Program], shards: int, iterations: int, conditions: Conditions) -> list[float]:
    """Each iteration's seconds, every rank on a host of its own: times follow from those of what is waited for."""
    ranks = [(g, s) for g in range(len(parts)) for s in range(shards)]
    slow = ranks[len(ranks) // 2]
    middle = (len(parts) - 1) // 2

    def arrival(sent: float, waits: float, flight: float, lower: int) -> float:
        flight *= conditions.slow_link if lower == middle else 1.0
        return max(waits, sent + flight) if conditions.overlap else max(waits, sent) + flight

    T, q_sent, found = 0.0, {}, []
    for k in range(iterations):
        now, p_sent = {}, {}
        for g, s in ranks:
            part, factor = parts[g], conditions.straggler if (g, s) == slow else 1.0
            t = T + factor * part.first
            if part.down is not None:
                if k:
                    t = arrival(q_sent[g - 1, s], t, parts[g - 1].up, g - 1)
                t += factor * part.p
                p_sent[g, s] = t
            now[g, s] = t + factor * part.moments
        for g, s in ranks:
            part, factor = parts[g], conditions.straggler if (g, s) == slow else 1.0
            t = now[g, s]
            if shards > 1:
                t = max(now[g, other] for other in range(shards)) + part.shards
            t += factor * part.middle
            if part.up is not None:
                t = arrival(p_sent[g + 1, s], t, parts[g + 1].down, g)
            q_sent[g, s] = t + factor * part.last
        found.append(max(q_sent.values()) - T)
        T = max(q_sent.values())
    return found


def test_two_ranks_by_hand():
    # p is sent at 3 + 1 (there is no q yet) and taken at 4.25, q leaves at 5.25; the upper rank ends at 6
    assert run(HAND, 1, fast, 1, 1).iterations == [6.0]
    # 6 -> its first 3 s end at 9, q was there at 5.75 before: 6 seconds again
    assert run(HAND, 1, fast, 1, 3).iterations == [6.0, 6.0, 6.0]


def test_waiting_is_what_is_not_work():
    told = run(HAND, 1, fast, 1, 1)
    assert told.work == [4.0, 6.0]
    assert told.waited == pytest.approx([1.25, 0.0])


def test_ranks_that_share_a_core_take_turns():
    parts = [Program(0.0, 0.0, 4.0, 0.0, 0.0)]
    assert run(parts, 2, lambda computing: float(computing), 2, 1).iterations == [8.0]
    assert run(parts, 2, fast, 2, 1).iterations == [4.0]


def test_a_message_within_a_host_is_its_receivers_work():
    parts = [dataclasses.replace(HAND[0], up=0.5), dataclasses.replace(HAND[1], down=2.0)]
    assert run(parts, 1, fast, 2, 1).iterations == [7.0]  # p leaves at 4, is copied until 6; q takes 1 more
    assert run(parts, 1, fast, 2, 1).work[0] == 6.0


seconds = st.floats(0.0, 3.0)


@st.composite
def chains(draw) -> tuple[list[Program], int]:
    count, shards = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    parts = []
    for g in range(count):
        work = [draw(seconds) for _ in range(5)]
        if g == 0:
            work[:2] = 0.0, 0.0
        down, up = (draw(seconds) if g else None), (draw(seconds) if g + 1 < count else None)
        parts.append(Program(*work, down, up, draw(seconds) if shards > 1 else 0.0))
    return parts, shards


@settings(deadline=None)
@given(chains(), st.integers(1, 4), st.booleans(), st.sampled_from([1.0, 2.5]), st.sampled_from([1.0, 3.0]))
def test_the_simulation_is_its_plain_form(chain, iterations, overlap, straggler, slow_link):
    conditions = Conditions(straggler=straggler, slow_link=slow_link, overlap=overlap)
    told = run(*chain, fast, 1, iterations, conditions)
    assert told.iterations == pytest.approx(plain(*chain, iterations, conditions), abs=1e-9)


@settings(deadline=None)
@given(chains(), st.integers(1, 3))
def test_trouble_never_helps_where_each_rank_has_a_host(chain, iterations):
    calm = sum(run(*chain, fast, 1, iterations).iterations)
    for trouble in (Conditions(straggler=2.0), Conditions(slow_link=2.0), Conditions(overlap=False)):
        assert sum(run(*chain, fast, 1, iterations, trouble).iterations) >= calm - 1e-9


@settings(deadline=None)
@given(chains(), st.integers(0, 5), st.integers(1, 3))
def test_every_rank_works_as_its_program_says(chain, seed, per_host):
    parts, shards = chain
    told = run(parts, shards, lambda computing: max(1.0, computing / 2), per_host, 2, Conditions(seed=seed))
    for rank, work in enumerate(told.work):
        part = parts[rank // shards]
        own = part.first + part.moments + part.middle + part.last + (0.0 if part.down is None else part.p)
        assert work >= 2 * own - 1e-9
        assert work + told.waited[rank] <= sum(told.iterations) + 1e-9
    again = run(parts, shards, lambda computing: max(1.0, computing / 2), per_host, 2, Conditions(seed=seed))
    assert again == told


def test_jitter_is_drawn_from_the_seed():
    jitter = [run(HAND, 1, fast, 1, 3, Conditions(jitter=0.3, seed=seed)).iterations for seed in (0, 0, 1)]
    assert jitter[0] == jitter[1] != jitter[2]


def test_4096_ranks_are_simulated():
    part = Program(0.1, 0.2, 0.3, 0.4, 0.1, 0.01, 0.01)
    parts = [dataclasses.replace(part, down=None, p=0.0), *[part] * 4094, dataclasses.replace(part, up=None)]
    told = run(parts, 1, fast, 1, 3)
    assert len(told.work) == 4096
    assert told.iterations == pytest.approx(plain(parts, 1, 3, Conditions()))
