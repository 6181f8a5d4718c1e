"""The vector service: pictures and vectors in, similar ones out, over a Qdrant server or the embedded engine."""
