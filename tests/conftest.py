"""Test-wide settings: one thread (two can be far slower for small double-precision work), repeatable properties."""

import gc

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """What importing left is not walked through again by every `gc.collect()`."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
