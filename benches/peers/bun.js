// The peer `bun`: Bun's own server with its topics, as in Bun's documentation. `bun bun.js PORT`
//
// `server.publish` encodes a message once. Bun's WebSockets are built on uWebSockets' topics:
// messages that are published to a topic in one turn of the event loop leave in one write per
// subscriber. All settings are Bun's defaults. Compression is off by default; it is named because
// the comparison relies on it.

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  routes: {
    "/ws/:room": (request, server) =>
      server.upgrade(request, { data: { room: request.params.room } })
        ? undefined
        : new Response("this is a WebSocket route", { status: 426 }),
    "/publish/:room": {
      POST: async (request, server) => {
        server.publish(request.params.room, await request.text());
        return new Response(null, { status: 202 });
      },
    },
  },
  fetch: () => new Response("the routes are /ws/{room} and /publish/{room}", { status: 404 }),
  websocket: {
    perMessageDeflate: false,
    open: (socket) => socket.subscribe(socket.data.room),
    message: () => {},
  },
});

console.log(`listening on 127.0.0.1:${server.port}`);
