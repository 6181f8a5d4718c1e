"""The CLIP service: zero-shot tags for pictures, and vectors for pictures and text in one space."""
