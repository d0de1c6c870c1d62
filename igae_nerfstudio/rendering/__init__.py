"""Latent volume rendering, shared by latent NeRFs and by the training of the autoencoder."""
