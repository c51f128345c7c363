"""A load for a server that is being profiled: load.py ADDRESS CLIENTS. Connects that many WebSockets to /ws, says so on
standard output, then publishes one message after the other until it is killed."""

import selectors
import socket
import sys
import threading

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
PUBLISH = "POST /publish?receipt=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + 100 * "x"


def connect(address):
    stream = socket.create_connection(address, timeout=30)
    stream.sendall(HANDSHAKE.encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        received = stream.recv(4096)
        if not received:
            sys.exit("load.py: the server closed a handshake")
        answer += received
    if not answer.startswith(b"HTTP/1.1 101 "):
        sys.exit(f"load.py: {answer!r}")
    return stream


def throw_away(streams):
    ready = selectors.DefaultSelector()
    for stream in streams:
        ready.register(stream, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            key.fileobj.recv(1 << 16)


host, port = sys.argv[1].rsplit(":", 1)
clients = [connect((host, int(port))) for _ in range(int(sys.argv[2]))]
threading.Thread(target=throw_away, args=(clients,), daemon=True).start()
publisher = socket.create_connection((host, int(port)), timeout=30)
print("connected", flush=True)
while True:
    publisher.sendall(PUBLISH.encode())
    if b" 202 " not in publisher.recv(4096):
        sys.exit("load.py: a message was not accepted")
