"""The byte ledger: what a rank sent and received, by kind of message."""

from __future__ import annotations

from collections import Counter

__all__ = ["PAYLOAD_KINDS", "Ledger", "ring_bytes"]

# The kinds an iteration of the algorithm sends; everything else counts as "other".
PAYLOAD_KINDS = ("p", "q", "moments", "features", "adjoints", "gradients", "blocks")


class Ledger:
    """Counts bytes and messages by kind ("p", "q", "moments", "features", "adjoints", "gradients", "blocks",
    "init", "evaluation", "migration", "columns", "fit", "rows", "control").

    >>> ledger = Ledger()
    >>> ledger.record_sent("p", 400)
    >>> ledger.bytes_sent, ledger.bytes_other
    (400, 0)
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()

    def record_sent(self, kind: str, nbytes: int) -> None:
        """Count one message of ``nbytes`` bytes that left this rank."""
        self.sent[kind] += nbytes
        self.messages[kind] += 1

    def record_received(self, kind: str, nbytes: int) -> None:
        """Count one message of ``nbytes`` bytes that reached this rank."""
        self.received[kind] += nbytes

    def state(self) -> dict[str, dict[str, int]]:
        """Return all counts as plain dicts."""
        return {name: dict(counts) for name, counts in vars(self).items()}

    def add(self, state: dict[str, dict[str, int]]) -> None:
        """Add the counts of another ledger's ``state``."""
        for name, counts in state.items():
            getattr(self, name).update(counts)

    @property
    def bytes_sent(self) -> int:
        """Bytes of p, q and moments, features and adjoints, gradients, and GIST's blocks, that this rank sent."""
        return sum(self.sent[kind] for kind in PAYLOAD_KINDS)

    @property
    def bytes_other(self) -> int:
        """Bytes that this rank sent for anything else: start-up, evaluation, migration, control."""
        return sum(n for kind, n in self.sent.items() if kind not in PAYLOAD_KINDS)


def ring_bytes(nbytes: int, ranks: int) -> int:
    """Return what one rank sends when ``nbytes`` bytes are summed over ``ranks`` ranks in a ring.

    2 n (R - 1) / R: n (R - 1) / R while sums travel round the ring, as much while they are handed out.

    >>> ring_bytes(1000, 1), ring_bytes(1000, 2), ring_bytes(1000, 4)
    (0, 1000, 1500)
    """
    return 2 * nbytes * (ranks - 1) // ranks
