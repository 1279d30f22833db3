"""How much captions count where images and captions are searched together and nothing better was measured."""

# Of captions, below 1; images have the rest. More would find a little more of what people ask in a caption's own words,
# and much less of what they ask in others: see docs/search.md.
CAPTION_WEIGHT = 0.75
