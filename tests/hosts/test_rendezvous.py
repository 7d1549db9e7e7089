"""jaxsplit.hosts.rendezvous: all processes connect, or each gets an error that says why not."""

import socket
import threading
import time

import pytest

from jaxsplit.errors import ConfigError
from jaxsplit.hosts import rendezvous
from tests.support.processes import free_port


def together(*calls, timeout=5.0) -> list[str]:
    """The error of each process (count, index) at one port; "" if it connected."""
    address, told = f"localhost:{free_port()}", [None] * len(calls)

    def come(k, count, index):
        try:
            rendezvous.meet(address, count, index, timeout)
            told[k] = ""
        except ConfigError as error:
            told[k] = str(error).replace(address, "there")

    threads = [threading.Thread(target=come, args=(k, *call)) for k, call in enumerate(calls)]
    for thread in threads:
        thread.start()
        time.sleep(0.3)  # one after the other
    for thread in threads:
        thread.join(30)
    return told


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_come(order):
    assert together(*((3, index) for index in order)) == ["", "", ""]
    assert together((1, 0)) == [""]


def test_the_port_is_free_again():
    address = f"localhost:{free_port()}"
    for _ in range(2):
        other = threading.Thread(target=rendezvous.meet, args=(address, 2, 1, 10))
        other.start()
        rendezvous.meet(address, 2, 0, 10)
        other.join()
        with socket.create_server(("", int(address.rpartition(":")[2]))):
            pass


def test_one_does_not_come():
    text = "num_processes=3: process 2 did not connect to there within 1 s"
    assert together((3, 0), (3, 1), timeout=1.0) == [text] * 2


def test_two_of_one_number():
    text = "process_id=1: two processes have it"
    assert together((3, 0), (3, 1), (3, 1)) == [text] * 3


def test_other_counts():
    text = "num_processes=2: must be the same on all processes; is 3 on 2"
    assert together((2, 0), (3, 2)) == [text] * 2


def test_one_that_starts_anew_is_let_in():
    port = free_port()
    first = threading.Thread(target=rendezvous.meet, args=(f"localhost:{port}", 3, 0, 20))
    first.start()
    while True:
        try:
            with socket.create_connection(("localhost", port)) as gone:
                gone.sendall(b"jaxsplit 1 3\n")
                time.sleep(0.5)
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    others = [
        threading.Thread(target=rendezvous.meet, args=(f"localhost:{port}", 3, i, 20))
        for i in (1, 2)
    ]
    for other in others:
        other.start()
    for thread in (first, *others):
        thread.join(20)
        assert not thread.is_alive()


def test_the_port_of_another_run():
    """Such as a coordinator of jax, which sends bytes at once."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]

        def speak():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"\x00\x00\x24\x04\x00\n")
                connection.recv(100)

        other = threading.Thread(target=speak)
        other.start()
        with pytest.raises(ConfigError, match="another run or program has this port on localhost"):
            rendezvous.meet(f"localhost:{port}", 2, 1, 5)
        other.join()
