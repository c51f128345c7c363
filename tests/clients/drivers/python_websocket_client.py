"""websocket-client."""

import struct

import websocket
from lines import ECHOES, attempts
from websocket import ABNF


def message(socket):
    """The next text, binary, pong or close frame as (opcode, data); the library answers pings."""
    while True:
        code, frame = socket.recv_data_frame(True)
        if code == ABNF.OPCODE_TEXT:
            return code, frame.data.decode()
        if code != ABNF.OPCODE_PING:
            return code, frame.data


def run(attempt):
    found = attempt.found
    origin = attempt.headers.pop("Origin", None)
    socket = websocket.create_connection(
        attempt.url, timeout=25, subprotocols=attempt.protocols or None, origin=origin, header=attempt.headers
    )
    found.update(open=1, protocol=socket.getsubprotocol() or "")
    code = data = None
    if attempt.action == "echo":
        same = []
        for kind, sent in ECHOES:
            socket.send(sent, ABNF.OPCODE_TEXT if isinstance(sent, str) else ABNF.OPCODE_BINARY)
            if message(socket)[1] == sent:
                same.append(kind)
        found["echo"] = ",".join(same)
        socket.ping("p")
        found["pong"] = int(message(socket) == (ABNF.OPCODE_PONG, b"p"))
    if attempt.action == "receive":
        attempt.ready()
        attempt.got([message(socket)[1] for _ in range(int(attempt.argument))])
    if attempt.action == "say":
        attempt.ready()
        if attempt.argument:
            socket.send(attempt.text_to_say())
        while code != ABNF.OPCODE_CLOSE:
            code, data = message(socket)
    else:
        socket.send_close(1000)
        while code != ABNF.OPCODE_CLOSE:
            code, data = message(socket)
    found["close"] = struct.unpack("!H", data[:2])[0]
    socket.shutdown()


for each in attempts():
    try:
        run(each)
    except websocket.WebSocketBadStatusException as rejected:
        each.found["status"] = rejected.status_code
    except Exception as error:
        each.found["error"] = f"{type(error).__name__}: {error}"
    each.result()
