"""Numerous scenes: hundreds of objects in the latent space, which share what is common (3Da-AE).

Nerfstudio is imported by `export.py` alone, and Ray when it is asked for.
"""
