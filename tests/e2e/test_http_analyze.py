"""The tests of `/health` and `/analyze/*`, on containers."""

from test_api_analyze import *  # noqa: F403
