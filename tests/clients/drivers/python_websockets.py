"""websockets, its synchronous client."""

from lines import ECHOES, attempts
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def run(attempt):
    found = attempt.found
    origin = attempt.headers.pop("Origin", None)
    with connect(
        attempt.url,
        origin=origin,
        subprotocols=attempt.protocols or None,
        additional_headers=attempt.headers,
        proxy=None,
        open_timeout=20,
        close_timeout=20,
    ) as socket:
        found.update(open=1, protocol=socket.subprotocol or "")
        if attempt.action == "echo":
            same = []
            for kind, message in ECHOES:
                socket.send(message)
                if socket.recv() == message:
                    same.append(kind)
            found["echo"] = ",".join(same)
            found["pong"] = int(socket.ping().wait(20))
        if attempt.action == "receive":
            attempt.ready()
            attempt.got([socket.recv() for _ in range(int(attempt.argument))])
        if attempt.action == "say":
            attempt.ready()
            try:
                if attempt.argument:
                    socket.send(attempt.text_to_say())
                while True:
                    socket.recv()
            except ConnectionClosed:
                pass
    found["close"] = socket.close_code


for each in attempts():
    try:
        run(each)
    except InvalidStatus as rejected:
        each.found["status"] = rejected.response.status_code
    except Exception as error:
        each.found["error"] = f"{type(error).__name__}: {error}"
    each.result()
