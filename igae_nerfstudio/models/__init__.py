"""Rays -> c-channel renders. A scene model knows how many channels it renders and of no autoencoder."""
