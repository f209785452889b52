import sys
from pathlib import Path

import pytest
import torch

# Small tensors gain nothing from threads, and lose much where cores are shared.
torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(6, 12, generator=generator), torch.randint(0, 5, (6,), generator=generator)
