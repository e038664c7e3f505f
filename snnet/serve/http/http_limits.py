"""What the HTTP service lets a client send."""

from __future__ import annotations

from dataclasses import dataclass

from ...config.sections import option


@dataclass(frozen=True)
class HttpLimits:
    """What a client may send, and how long it may take."""

    max_body_mb: float = option(16.0, 'largest body of a request, in megabytes', least=0.001)
    max_pixels: int = option(50_000_000, 'most pixels of an image', least=1)
    max_images: int = option(64, 'most images in a request', least=1)
    max_connections: int = option(1024, 'most open connections', least=1)
    header_seconds: float = option(5.0, 'longest time until the headers of a request are there', least=0.1)
    body_seconds: float = option(10.0, 'longest time until the body of a request is there', least=0.1)
    max_decoding: int = option(64, 'most requests that may wait to be decoded', least=1)

    @property
    def max_body(self) -> int:
        """Largest body in bytes."""
        return int(1e6 * self.max_body_mb)
