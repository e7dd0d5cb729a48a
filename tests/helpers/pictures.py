"""Runs without their pictures, which take most of the time of small ones and are tested apart."""

import pytest

from steph_jax.evaluation import drawing


class _Nothing:
    def __getattr__(self, name: str):
        return lambda *given: None


def leave_out(patch: pytest.MonkeyPatch) -> None:
    """No fold and no run draws anything while `patch` lasts."""
    patch.setattr(drawing, "pictures", _Nothing)
