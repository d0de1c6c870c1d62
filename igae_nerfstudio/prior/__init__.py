"""A prior over scenes: a posterior over a new scene from a few photos, and new scenes (after NeRF-VAE)."""
