// The peer `bun`: Bun's own server, with its topics, as Bun's documentation shows them. `bun bun.js PORT`
//
// `server.publish` encodes a message once and, like all of Bun's WebSockets, is built on uWebSockets' topics: what is
// published to a topic in one turn of the event loop leaves as one write a subscriber. Everything is Bun's default;
// compression is off by default too and named here because the comparison relies on it.

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  routes: {
    "/ws/:room": (request, server) =>
      server.upgrade(request, { data: { room: request.params.room } })
        ? undefined
        : new Response("this is a WebSocket", { status: 426 }),
    "/publish/:room": {
      POST: async (request, server) => {
        server.publish(request.params.room, await request.text());
        return new Response(null, { status: 202 });
      },
    },
  },
  fetch: () => new Response("there is /ws/{room} and /publish/{room}", { status: 404 }),
  websocket: {
    perMessageDeflate: false,
    open: (socket) => socket.subscribe(socket.data.room),
    message: () => {},
  },
});

console.log(`listening on 127.0.0.1:${server.port}`);
