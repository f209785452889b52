import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode

# Small tensors gain nothing from threads, and lose much where cores are shared.
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    yield
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo and dynamo.counters:
        torch.compiler.reset()  # it counts how often one and the same function is compiled
        dynamo.counters.clear()  # and these are how we know that something was


@pytest.fixture(autouse=True)
def no_mode_is_left():
    yield
    left = _get_current_function_mode_stack()
    for _ in left:
        _pop_mode()
    assert not left, f"a guard was not detached, and would watch the tests that follow: {left}"


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(6, 12, generator=generator), torch.randint(0, 5, (6,), generator=generator)
