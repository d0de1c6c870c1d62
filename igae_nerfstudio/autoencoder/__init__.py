"""Images <-> latents. Nothing in here knows of scenes, cameras or Nerfstudio."""
