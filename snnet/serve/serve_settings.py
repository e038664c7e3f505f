"""Settings of `snnet serve`."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.sections import option, section
from .http.http_limits import HttpLimits


@dataclass
class ServeSettings:
    """Settings of `snnet serve`."""

    nets: list[str] = option([], 'folders of saved nets, or ids on the Hub; NAME=FOLDER gives a net another name')
    host: str = option('127.0.0.1', 'address to listen on; 0.0.0.0 is reached from other machines')
    port: int = option(8000, 'port to listen on')
    deadline_ms: float = option(50.0, 'milliseconds from arrival to answer, for requests that name no deadline')
    max_deadline_ms: float = option(60_000.0, 'longest deadline that a request may name')
    device: str = option('', 'cpu, cuda or cuda:1 (default: a GPU if there is one)')
    dtype: str = option('float32', 'type of the weights', choices=('float32', 'bfloat16', 'float16'))
    threads: int | None = option(None, 'CPU threads per operation (default: what torch uses)', least=1)
    worker: str = option(
        'process', "on a CPU, where the net computes: in a process, or in a thread, which needs half the memory",
        choices=('process', 'thread'),
    )  # fmt: skip
    compile: bool = option(False, 'compile the blocks with torch.compile before the start')
    max_batch: int = option(16, 'most images in a batch, where no latency table says how many', least=1)
    warmup_seconds: float = option(
        30.0, 'longest time to measure latencies at the start, if no table holds here', least=0
    )
    drain_seconds: float = option(20.0, 'longest time from SIGTERM to the end', least=0)
    hang_seconds: float = option(
        2.0, 'a batch that takes this long, and 20 times longer than expected, hangs', least=0.1
    )
    decoders: int = option(2, 'threads that decode images', least=1)
    api_key_file: str = option('', 'file with a key that clients have to send (default: everybody may ask)')
    reload_token_file: str = option('', 'file with a token that lets a client reload a net (default: no client may)')
    access_log: bool = option(True, 'write a line of JSON per request to standard output')
    plugin: list[str] = option([], 'Python files that register networks and adapters')
    limits: HttpLimits = section(HttpLimits)
