"""Speed: each method in RGB and in latents, side by side on one machine."""
