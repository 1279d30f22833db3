"""What the queries of a recall are about, in the words of cards, audits, payloads and options."""

from typing import Final

# Items that a fit was not given, searched for among themselves.
HELD_OUT: Final = "held-out"
# Items of one collection of all: those that the fit saw, all others, and the harmonic mean of both.
SEEN: Final = "seen"
UNSEEN: Final = "unseen"
HARMONIC: Final = "harmonic"

# Said where paraphrases, which ask about seen items, find these less often than unseen ones are found.
TOO_FAR = (
    "paraphrases find known items less often than new ones are found, so they lie too far from these items to stand "
    "for what people ask; an audit asks with other captions where enough known items have some"
)
