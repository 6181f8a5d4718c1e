"""The tests of `/vectors/*`, on containers."""

from test_api_vectors import *  # noqa: F403
