"""Latent NeRFs and inverse graphics autoencoders on stock Nerfstudio; start reading at `method_configs.py`."""

__version__ = "0.1.0"
