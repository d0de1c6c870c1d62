"""Nerfacto's field (hash grid and small MLPs) with a latent head, shared by Instant-NGP and nerfacto."""

from __future__ import annotations

from nerfstudio.field_components.mlp import MLP
from nerfstudio.fields.nerfacto_field import NerfactoField
from torch import nn


def give_latent_head(field: NerfactoField, latent_channels: int) -> None:
    """Replace the colour MLP (3 sigmoid outputs) by one of the same shape with c linear outputs."""
    colours = field.mlp_head
    field.mlp_head = MLP(
        in_dim=colours.in_dim,
        num_layers=colours.num_layers,
        layer_width=colours.layer_width,
        out_dim=latent_channels,
        activation=nn.ReLU(),
        out_activation=None,
        implementation="torch" if colours.tcnn_encoding is None else "tcnn",
    )
