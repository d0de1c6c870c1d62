"""Images and cameras -> latent cache -> batches of full latent images."""
