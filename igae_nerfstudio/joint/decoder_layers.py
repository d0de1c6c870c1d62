"""Which of a decoder's weights a scene fine-tunes.

A whole decoder of its own would outweigh a scene's planes many times. Its layers at the highest resolution have few
weights, and it is they that turn features into colours.
"""

from __future__ import annotations

from typing import Dict, List, Set

import torch
from torch import Tensor, nn

from igae_nerfstudio.autoencoder.trainable import TrainableAutoencoder


@torch.no_grad()
def outer_layers(autoencoder: TrainableAutoencoder) -> Set[str]:
    """Names, within `autoencoder.module`, of the weights of those layers that see the largest inputs in a decoding."""
    sides: Dict[str, int] = {}
    handles: List[torch.utils.hooks.RemovableHandle] = []

    def watch(name: str, layer: nn.Module) -> None:
        def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if inputs and inputs[0].dim() == 4:  # norms may see channels last: the second last side is one in both
                sides[name] = max(sides.get(name, 0), inputs[0].shape[-2])

        handles.append(layer.register_forward_pre_hook(note))

    for name, layer in autoencoder.module.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            watch(name, layer)
    device = next(autoencoder.module.parameters()).device
    autoencoder.decode(torch.zeros(1, autoencoder.latent_channels, 4, 4, device=device))
    for handle in handles:
        handle.remove()
    outermost = {name for name, side in sides.items() if side == max(sides.values())}
    return {name for name, _ in autoencoder.module.named_parameters() if name.rpartition(".")[0] in outermost}


def fine_tuned_weights(autoencoder: TrainableAutoencoder, which: str) -> Set[str]:
    """Names, within `autoencoder.module`, of the decoder's weights that learn.

    Args:
        autoencoder: with D.
        which: `all`, `outer` or `none`.
    """
    if which == "none":
        return set()
    if which == "outer":
        return outer_layers(autoencoder)
    decoder = {id(weight) for weight in autoencoder.parameters_of("decoder")}
    return {name for name, weight in autoencoder.module.named_parameters() if id(weight) in decoder}
