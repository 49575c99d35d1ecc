"""The stand-in for the hub, for tests of this folder."""

from tests.hub import stand_in  # noqa: F401
