"""The processes of a run find each other before jax connects them.

jax alone would end the program without an exception if a process is missing, would accept processes
of another run, which ends both runs, and would ignore signals while it waits.
"""

import contextlib
import select
import socket
import sys
import time
from collections.abc import Iterator

from jaxsplit.errors import ConfigError

NOTICE = 10  # seconds until a line says what the process waits for
_GREETING = b"jaxsplit"
_GO = b"go"
_PATIENCE = 5.0  # seconds for one message


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Returns when all `count` processes have connected to process 0, which listens at host:port.

    Raises:
      ConfigError: the port is in use, or belongs to another program or run; process 0 does not
        answer; a process is missing; two have the same `index`, or they differ in `count`.
    """
    host, _, port = coordinator.rpartition(":")
    if index == 0:
        _gather(coordinator, int(port), count, timeout)
    else:
        _join(coordinator, host.strip("[]"), int(port), count, index, timeout)


def _gather(coordinator: str, port: int, count: int, timeout: float) -> None:
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=max(128, count),
        )
    except OSError as error:
        raise ConfigError(
            f"coordinator={coordinator!r}: port {port} is in use on this machine ({error.strerror})"
        ) from None
    with contextlib.closing(server), _others() as here:
        try:
            _accept_all(server, here, coordinator, count, timeout)
        except ConfigError as error:
            _tell(here, b"error: " + str(error).encode())
            raise
        _tell(here, _GO)


def _accept_all(server, here: dict, coordinator: str, count: int, timeout: float) -> None:
    waiting = _Waiting(timeout)
    while True:
        for index in [index for index, other in here.items() if _gone(other)]:
            here.pop(index).close()  # it may connect again
        if len(here) == count - 1:
            return
        missing = ", ".join(str(i) for i in range(1, count) if i not in here)
        waiting.look(f"waiting for process {missing} of {count} at {coordinator}")
        if waiting.over:
            raise ConfigError(
                f"num_processes={count}: process {missing} did not connect to {coordinator} "
                f"within {timeout:.0f} s"
            )
        if not select.select([server], [], [], 0.2)[0]:
            continue
        other, _ = server.accept()
        words = _line(other).split()
        if len(words) != 3 or words[0] != _GREETING:
            other.close()  # not a process of jaxsplit
            continue
        index, theirs = int(words[1]), int(words[2])
        twice = index in here
        here[-1 if twice else index] = other
        if theirs != count:
            raise ConfigError(
                f"num_processes={count}: must be the same on all processes; is {theirs} on {index}"
            )
        if twice:
            raise ConfigError(f"process_id={index}: two processes have it")


def _join(coordinator: str, host: str, port: int, count: int, index: int, timeout: float) -> None:
    waiting = _Waiting(timeout + _PATIENCE)  # process 0 knows which one is missing
    answer = b""
    while not answer:
        waiting.look(f"waiting for process 0 at {coordinator}")
        try:
            with socket.create_connection((host, port), timeout=_PATIENCE) as server:
                server.sendall(b"%s %d %d\n" % (_GREETING, index, count))
                while not select.select([server], [], [], 0.2)[0] and not waiting.over:
                    waiting.look(f"process {index}: waiting for all {count} at {coordinator}")
                answer = b"" if waiting.over else _line(server)  # empty: it has closed
                problem = "it closed the connection"
        except OSError as error:
            problem = str(error)
        if waiting.over:
            raise ConfigError(
                f"coordinator={coordinator!r}: must be reachable; process 0 has not answered "
                f"for {timeout:.0f} s ({problem})"
            )
        if not answer:
            time.sleep(0.2)
    if answer.startswith(b"error: "):
        raise ConfigError(answer.removeprefix(b"error: ").decode())
    if answer != _GO:
        raise ConfigError(
            f"coordinator={coordinator!r}: another run or program has this port on {host}"
        )


class _Waiting:
    """Says once, after `NOTICE` seconds, what the process waits for."""

    def __init__(self, timeout: float):
        self._began, self._timeout, self._told = time.monotonic(), timeout, False

    @property
    def over(self) -> bool:
        return time.monotonic() - self._began > self._timeout

    def look(self, what: str) -> None:
        if not self._told and time.monotonic() - self._began > NOTICE:
            print(what, file=sys.stderr, flush=True)
            self._told = True


@contextlib.contextmanager
def _others() -> Iterator[dict[int, socket.socket]]:
    here: dict[int, socket.socket] = {}
    try:
        yield here
    finally:
        for other in here.values():
            other.close()


def _tell(here: dict[int, socket.socket], answer: bytes) -> None:
    for other in here.values():
        with contextlib.suppress(OSError):
            other.sendall(answer + b"\n")
    # The others close first, so that jax can use the port at once.
    for other in here.values():
        with contextlib.suppress(OSError):
            other.recv(1)


def _line(connection: socket.socket) -> bytes:
    """Reads one line without its end, or what came before the connection closed."""
    text = b""
    connection.settimeout(_PATIENCE)
    with contextlib.suppress(OSError):
        while not text.endswith(b"\n") and len(text) < 4096:
            if not (more := connection.recv(1)):
                break
            text += more
    return text.strip()


def _gone(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection."""
    if not select.select([connection], [], [], 0)[0]:
        return False
    with contextlib.suppress(OSError):
        return connection.recv(1, socket.MSG_PEEK) == b""
    return True
