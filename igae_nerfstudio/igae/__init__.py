"""Inverse graphics autoencoders: many scenes in one latent space, and the autoencoder trained with them."""
