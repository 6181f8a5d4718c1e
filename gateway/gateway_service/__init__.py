"""The public API: keys, limits, the one fetch and the one decode of a picture, and the fan-out to the services."""
