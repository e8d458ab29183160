"""The ordered lists behind matching, against a plain sorted list, through thousands of changes."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.matcher.node_index import NodesByPrice
from services.matcher.ordered import Block, Tally
from services.matcher.price_index import PriceIndex


class SmallPriceIndex(PriceIndex):
    """With blocks so short that the tree grows deep."""

    block_rows_max = 4


class SmallNodes(NodesByPrice):
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


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 5), st.integers(0, 5)), max_size=150))
def test_the_cheapest_node_with_room_is_the_one_a_walk_would_find(steps: list[tuple[bool, int, int, int]]) -> None:
    index, rows = SmallNodes(Tally()), {}
    for add, number, cores, memory_mib in steps:
        key = (number // 7, f"n{number}")
        if add and key not in rows:
            rows[key] = (cores, memory_mib)
            index.add(key, rows[key], key[1])
        elif not add and rows.pop(key, None) is not None:
            index.remove(key)
        avoid = {f"n{cores}", f"n{memory_mib}"}
        fitting = [key for key, room in rows.items() if room[0] >= cores and room[1] >= memory_mib and key[1] not in avoid]
        assert min(fitting, default=None) == index.first(cores, memory_mib, avoid)
    assert sorted(rows) == check(index.root, index)


def test_an_index_that_was_emptied_is_as_good_as_new() -> None:
    index = SmallPriceIndex(Tally())
    for _ in range(2):
        for key in range(100):
            index.add(key, key, str(key))
        for key in range(100):
            index.remove(key)
        assert (0, True, None) == (index.size, index.root.leaf, index.first(0))
