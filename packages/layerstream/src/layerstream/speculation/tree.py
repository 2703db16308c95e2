"""Drafted tokens: a chain, or a tree of several continuations. No model and no tensor."""

from __future__ import annotations

from dataclasses import dataclass, field

ROOT = -1
"""Stands for the last token of the text, which every first drafted token follows."""


@dataclass(slots=True)
class DraftTree:
    """Tokens that may follow a text. Tokens are numbered in the order in which they were added.

    Attributes:
        tokens: their ids.
        parents: for each, the number of the token that it follows; `ROOT` for the first.
        depths: for each, how many drafted tokens lead to it, itself included.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """The length of its longest path."""
        return max(self.depths, default=0)

    def add(self, token: int, parent: int = ROOT) -> int:
        """Add a token after `parent` and return its number."""
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(1 if parent == ROOT else self.depths[parent] + 1)
        return len(self.tokens) - 1

    def child(self, parent: int, token: int) -> int | None:
        """Return the number of `token` after `parent`; None if it was not drafted there."""
        for number, (each, own) in enumerate(zip(self.parents, self.tokens, strict=True)):
            if each == parent and own == token:
                return number
        return None

    def way_to(self, number: int) -> list[int]:
        """Return the numbers of the tokens that lead to a token, itself last; none for `ROOT`."""
        way = []
        while number != ROOT:
            way.append(number)
            number = self.parents[number]
        return way[::-1]

    def tokens_to(self, number: int) -> list[int]:
        """Return the tokens that lead to a token, itself last."""
        return [self.tokens[each] for each in self.way_to(number)]

    def judged(self, path: list[int]) -> int:
        """Return at how many places on an accepted path a token was drafted: one more if it goes on."""
        last = path[-1] if path else ROOT
        return len(path) + (last in self.parents)

    def first(self, count: int) -> DraftTree:
        """Return the tree of the first `count` tokens."""
        return DraftTree(self.tokens[:count], self.parents[:count], self.depths[:count])

    def below(self, number: int) -> tuple[DraftTree, dict[int, int]]:
        """Return the tree after a token, and the new numbers by the old ones; the token's own is `ROOT`."""
        tree, numbers = DraftTree(), {number: ROOT}
        for each, parent in enumerate(self.parents):
            if parent in numbers:
                numbers[each] = tree.add(self.tokens[each], numbers[parent])
        return tree, numbers

    @classmethod
    def chain(cls, tokens: list[int]) -> DraftTree:
        """Return a tree with a single path."""
        tree = cls()
        for token in tokens:
            tree.add(token, len(tree) - 1)
        return tree
