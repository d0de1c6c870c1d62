"""What latents buy: each method as it is in Nerfstudio, in RGB with this package's faster parts, and in latents."""
