"""Fixtures of the data tests."""

from __future__ import annotations

from toy_dataset import toy  # noqa: F401
