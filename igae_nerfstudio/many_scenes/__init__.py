"""Numerous scenes: hundreds of objects in the latent space, which share what is common (3Da-AE). No Nerfstudio here."""
