"""The fast hash encoding is Nerfstudio's, value for value and gradient for gradient."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.fields.nerfacto_field import NerfactoField

from igae_nerfstudio.rendering.hash_encoding import FastHashEncoding, use_fast_hash_encoding


def encodings() -> tuple[HashEncoding, HashEncoding]:
    settings = {"num_levels": 5, "min_res": 4, "max_res": 64, "log2_hashmap_size": 9, "implementation": "torch"}
    stock, fast = HashEncoding(**settings), HashEncoding(**settings)
    fast.load_state_dict(stock.state_dict())
    use_fast_hash_encoding(torch.nn.ModuleList([fast]))
    assert type(fast) is FastHashEncoding and type(stock) is HashEncoding
    return stock, fast


@pytest.mark.parametrize("shape", [(700, 3), (11, 7, 3)])
def test_values_and_gradients_are_nerfstudios(shape: tuple[int, ...]) -> None:
    stock, fast = encodings()
    points = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    points.view(-1, 3)[:6] = torch.tensor([0.0, 0.25, 1.0])  # on corners, where floor is ceil
    results = []
    for encoding in (stock, fast):
        at = points.clone().requires_grad_(True)
        encoded = encoding(at)
        (encoded * torch.linspace(-1, 1, encoded.shape[-1])).square().sum().backward()
        results.append((encoded.detach(), encoding.hash_table.grad, at.grad))
    for mine, theirs in zip(*reversed(results)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-9)


def test_a_field_keeps_its_parameters() -> None:
    field = NerfactoField(
        torch.tensor([[-1.0] * 3, [1.0] * 3]), num_images=2, log2_hashmap_size=8, max_res=32, implementation="torch"
    )
    before = {name: value.clone() for name, value in field.state_dict().items()}
    use_fast_hash_encoding(field)
    assert any(type(part) is FastHashEncoding for part in field.modules())
    after = field.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
