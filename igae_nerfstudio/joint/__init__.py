"""Scenes and autoencoder trained together (IG-AE), many scenes with shared planes, and fitting new scenes."""
