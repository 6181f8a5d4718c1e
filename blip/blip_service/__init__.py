"""The blip service: captions for pictures."""
