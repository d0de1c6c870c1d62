"""The one place where the scene model, the decoder and the losses meet."""
