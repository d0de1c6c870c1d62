"""Posed views of many objects, real images, and the store of their Tri-Planes."""
