// The WebSocket that the web standard describes: Bun's own, Node's own, or that of undici (argument
// `undici`).
import { drive, echoes, letters } from "./lines.mjs";

const WebSocket = process.argv[2] === "undici" ? (await import("undici")).WebSocket : globalThis.WebSocket;

drive((attempt, ready) => new Promise(done => {
  const found = {open: 0}, got = [], same = [];
  const headers = Object.keys(attempt.headers).length;
  const options = {protocols: attempt.protocols, headers: attempt.headers};
  let socket, step = 0;
  try {
    socket = new WebSocket(attempt.url, headers ? options : attempt.protocols);
  } catch (error) {
    return done({...found, error: String(error)});
  }
  socket.binaryType = "arraybuffer";
  // Node 20 tells of a rejected handshake with an error, and of no close.
  socket.onerror = event => {
    found.error = event.message ?? String(event.error);
    if (!found.open) done(found);
  };
  socket.onopen = () => {
    found.open = 1;
    found.protocol = socket.protocol;
    if (attempt.action === "open") socket.close(1000);
    if (attempt.action === "echo") socket.send(echoes[0][1]);
    if (attempt.action === "receive" || attempt.action === "say") ready();
    if (attempt.action === "say" && attempt.argument) {
      socket.send(attempt.argument[0] === "@" ? letters(Number(attempt.argument.slice(1))) : attempt.argument);
    }
  };
  socket.onmessage = ({data}) => {
    const text = typeof data === "string";
    const bytes = Buffer.from(data);
    if (attempt.action === "receive") {
      got.push(`${text ? "text" : "binary"}:${bytes.toString("hex")}`);
      if (got.length === Number(attempt.argument)) socket.close(1000);
    }
    if (attempt.action === "echo") {
      const [kind, sent] = echoes[step++];
      if (text !== (kind === "binary") && Buffer.from(sent).equals(bytes)) same.push(kind);
      if (step < echoes.length) socket.send(echoes[step][1]); else socket.close(1000);
    }
  };
  socket.onclose = event => {
    done({...found, close: event.code, got: got.join(","), echo: same.join(",")});
  };
}));
