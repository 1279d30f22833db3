"""What the queries of a recall are about, in the words of cards, audits, payloads and options."""

from typing import Final

# Items that a fit was not given, searched for among themselves.
HELD_OUT: Final = "held-out"
# Items of one collection of all: those that the fit saw, all others, and the harmonic mean of both.
SEEN: Final = "seen"
UNSEEN: Final = "unseen"
HARMONIC: Final = "harmonic"
