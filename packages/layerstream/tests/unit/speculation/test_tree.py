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


def test_what_follows_a_token_is_a_tree_of_its_own() -> None:
    tree = DraftTree.chain([5, 6, 7])
    other = tree.add(8, 0)
    tree.add(9, other)
    tree.add(4)
    below, numbers = tree.below(0)
    assert below.tokens == [6, 7, 8, 9]
    assert below.parents == [ROOT, 0, ROOT, 2]
    assert below.depths == [1, 2, 1, 2]
    assert numbers == {0: ROOT, 1: 0, 2: 1, 3: 2, 4: 3}
    whole, _ = tree.below(ROOT)
    assert whole == tree


def test_the_first_tokens_of_a_tree_are_a_tree() -> None:
    tree = DraftTree.chain([5, 6, 7])
    tree.add(8, 0)
    assert tree.first(2) == DraftTree.chain([5, 6])
    assert tree.first(9) == tree
