"""The viewer's port."""

from __future__ import annotations

import socket

from igae_nerfstudio.errors import InputError


def check_port(port: int) -> None:
    """Raises InputError where a port of the viewer is taken: viser would take the next one and not say which."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"port {port} cannot be had for the viewer ({error.strerror}); choose another with "
                "--viewer.websocket-port, or leave it out for a free one"
            ) from error
