"""The ordered lists behind matching, against a plain sorted list, through thousands of changes."""

from __future__ import annotations

from operator import ge
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.matcher.node_index import NodesByBacklog, NodesByPrice
from services.matcher.ordered import Block, Tally
from services.matcher.price_index import PriceIndex
from services.matcher.share_index import ShareIndex, Unit


class SmallPriceIndex(PriceIndex):
    """With blocks so short that the tree grows deep."""

    block_rows_max = 4


class SmallNodes(NodesByPrice):
    block_rows_max = 4


class SmallBusyNodes(NodesByBacklog):
    block_rows_max = 4


def check(block: Block[Any, Any], index: Any, root: bool = True) -> list[Any]:
    """Every rule that blocks keep; the keys in order."""
    assert len(block.keys) == len(block.amounts) == len(block.items) <= index.block_rows_max
    assert sorted(block.keys) == block.keys
    if block.leaf:
        return list(block.keys)
    assert block.keys or root
    keys: list[Any] = []
    for low, most, below in zip(block.keys, block.amounts, block.items, strict=True):
        of_child = check(below, index, root=False)
        assert of_child and low <= of_child[0] and (not keys or keys[-1] < low)
        assert most == index.most(below.amounts)
        keys += of_child
    return keys


@pytest.mark.parametrize(("kind", "size"), [(SmallPriceIndex, 60), (PriceIndex, 3000)])
def test_the_first_job_that_pays_is_the_one_a_walk_would_find(kind: type[PriceIndex], size: int) -> None:
    chance, index, rows = Random(3), kind(Tally()), {}
    for step in range(4 * size):
        if rows and (len(rows) > size or chance.random() < (0.7 if step // size % 2 else 0.3)):
            key = chance.choice(list(rows)[:20] if chance.random() < 0.5 else list(rows))
            del rows[key]
            index.remove(key)
        else:
            key, price = chance.randrange(10**9) - 10**8, chance.randrange(1000)
            if key not in rows:
                rows[key] = price
                index.add(key, price, str(key))
        price, before = chance.randrange(1100), chance.randrange(10**9)
        walked = min((key for key, pays in rows.items() if pays >= price), default=None)
        assert (None if walked is None else (walked, str(walked))) == index.first(price)
        assert (None if walked is None or walked >= before else (walked, str(walked))) == index.first(price, before)
        assert len(rows) == index.size
        if step % 37 == 0:
            assert sorted(rows) == check(index.root, index)


AMOUNT = st.integers(0, 5)
NODE_STEPS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), AMOUNT, AMOUNT, AMOUNT), max_size=150)


@given(NODE_STEPS)
def test_the_cheapest_node_with_room_is_the_one_a_walk_would_find(steps: list[tuple[bool, int, int, int, int]]) -> None:
    index, rows = SmallNodes(Tally()), {}
    for add, number, *room in steps:
        key = (number // 7, f"n{number}")
        if add and key not in rows:
            rows[key] = (room[0], room[1], room[2])
            index.add(key, rows[key], key[1])
        elif not add and rows.pop(key, None) is not None:
            index.remove(key)
        avoid = {f"n{room[0]}", f"n{room[1]}"}
        fitting = [key for key, has in rows.items() if all(map(ge, has, room)) and key[1] not in avoid]
        assert min(fitting, default=None) == index.first(room[0], room[1], avoid, room[2])
    assert sorted(rows) == check(index.root, index)


@given(NODE_STEPS)
def test_the_least_busy_node_is_the_one_a_walk_would_find(steps: list[tuple[bool, int, int, int, int]]) -> None:
    index, rows = SmallBusyNodes(Tally()), {}
    for add, number, *room in steps:
        price = number % 7
        key = (number // 7, price, f"n{number}")
        if add and key not in rows:
            rows[key] = (room[0], room[1], room[2], -price)
            index.add(key, rows[key], key[2])
        elif not add and rows.pop(key, None) is not None:
            index.remove(key)
        least, avoid = (room[0], room[1], room[2], -room[0]), {f"n{room[1]}"}
        fitting = [key for key, has in rows.items() if all(map(ge, has, least)) and key[2] not in avoid]
        assert min(fitting, default=None) == index.first(least, avoid)
    assert sorted(rows) == check(index.root, index)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 30), st.integers(0, 9)), max_size=150))
def test_jobs_of_parties_that_move_are_found_in_their_order(steps: list[tuple[int, int, int, int]]) -> None:
    index, ranks = ShareIndex(Tally()), list(range(6))
    units = [Unit((str(number), None), number) for number in range(6)]
    rows: dict[tuple[int, int], int] = {}
    for verb, who, seq, price in steps:
        unit, has = units[who], {one for one, _ in rows}
        if verb == 0 and (who, seq) in rows:
            del rows[who, seq]
            assert (who in {one for one, _ in rows}) == index.take(unit, seq)
        elif verb == 1:
            ranks.append(max(ranks) + 1 if price % 2 else min(ranks) - 1)
            unit.rank = ranks[-1]
            if who in has and price % 2 == 0:
                index.moved_ahead(unit)
        elif (who, seq) not in rows:
            rows[who, seq] = price
            index.put(unit, seq, price, f"{who}.{seq}")
        keys = {(units[one].low | at): f"{one}.{at}" for (one, at), pays in rows.items() if pays >= price}
        walked = min(keys.items(), default=None)
        assert walked == index.first(price)
        assert len(rows) == index.size


def test_an_index_that_was_emptied_is_as_good_as_new() -> None:
    index = SmallPriceIndex(Tally())
    for _ in range(2):
        for key in range(100):
            index.add(key, key, str(key))
        for key in range(100):
            index.remove(key)
        assert (0, True, None) == (index.size, index.root.leaf, index.first(0))
