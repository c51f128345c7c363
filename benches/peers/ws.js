// The peer `ws`: the most used WebSocket library for Node, with the broadcast loop of its README.
// `node ws.js PORT`, with ws installed where Node finds it.
//
// Compression is off, which is the default. The public interface of ws offers nothing faster for
// a fan-out: each `send` encodes the frame again.

const http = require("node:http");
const { WebSocket, WebSocketServer } = require("ws");

const rooms = new Map();
const sockets = new WebSocketServer({ noServer: true, perMessageDeflate: false });

function roomOf(url, prefix) {
  return url.startsWith(prefix) ? url.slice(prefix.length) : "";
}

const server = http.createServer((request, response) => {
  const room = roomOf(request.url, "/publish/");
  if (request.method !== "POST" || room === "") {
    response.writeHead(404).end();
    return;
  }
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const message = Buffer.concat(pieces);
    rooms.get(room)?.forEach((client) => {
      if (client.readyState === WebSocket.OPEN) {
        client.send(message, { binary: false });
      }
    });
    response.writeHead(202).end();
  });
});

server.on("upgrade", (request, socket, head) => {
  const room = roomOf(request.url, "/ws/");
  if (room === "") {
    socket.end("HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n");
    return;
  }
  sockets.handleUpgrade(request, socket, head, (client) => {
    if (!rooms.has(room)) {
      rooms.set(room, new Set());
    }
    const clients = rooms.get(room).add(client);
    client.on("close", () => clients.delete(client));
    client.on("error", () => client.terminate());
  });
});

server.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
