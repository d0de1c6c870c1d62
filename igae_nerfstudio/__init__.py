"""NeRFs in the latent space of an image autoencoder, on Nerfstudio.

    load_autoencoder("bundled")     an autoencoder: encode, decode
    load_run(folder)                a finished run: render(camera), evaluate()
    latent_method(...)              a Nerfstudio method that trains a scene model in latent space
    train_igae(config, ...)         an inverse graphics autoencoder

They are imported when they are first used: Nerfstudio imports this package at the start of every command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from igae_nerfstudio.autoencoder.autoencoder import load_autoencoder as load_autoencoder
    from igae_nerfstudio.joint.compositions import train_igae as train_igae
    from igae_nerfstudio.method_configs import latent_method as latent_method
    from igae_nerfstudio.runs import load_run as load_run

__version__ = "0.2.0.dev0"

_MODULES = {
    "load_autoencoder": "autoencoder.autoencoder",
    "load_run": "runs",
    "latent_method": "method_configs",
    "train_igae": "joint.compositions",
}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
