"""Rendering posed views of textured meshes with Blender."""
