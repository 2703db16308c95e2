"""Trees of drafted tokens."""

from __future__ import annotations

from layerstream.speculation.tree import ROOT, DraftTree


def test_a_chain_is_a_tree_with_one_way() -> None:
    chain = DraftTree.chain([7, 8, 9])
    assert (len(chain), chain.depth, chain.parents) == (3, 3, [ROOT, 0, 1])
    assert chain.tokens_to(2) == [7, 8, 9]
    assert chain.tokens_to(ROOT) == []
    assert DraftTree().depth == 0


def test_ways_part_and_are_found_again() -> None:
    tree = DraftTree()
    left, right = tree.add(1), tree.add(2)
    below = tree.add(1, right)
    assert (tree.child(ROOT, 1), tree.child(ROOT, 2), tree.child(right, 1)) == (left, right, below)
    assert tree.child(left, 1) is None
    assert (tree.way_to(below), tree.tokens_to(below)) == ([right, below], [2, 1])
    assert tree.depth == 2
    assert [tree.judged(path) for path in ([], [left], [right], [right, below])] == [1, 1, 2, 2]
