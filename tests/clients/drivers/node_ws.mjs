// ws, the package.
import WebSocket from "ws";
import { drive, echoes, letters } from "./lines.mjs";

drive((attempt, ready) => new Promise(done => {
  const found = {open: 0}, got = [], same = [];
  const socket = new WebSocket(attempt.url, attempt.protocols, {headers: attempt.headers, perMessageDeflate: true});
  let step = 0;
  const send = () => socket.send(echoes[step][1]);
  socket.on("unexpected-response", (_, answer) => { found.status = answer.statusCode; answer.resume(); socket.terminate(); done(found); });
  socket.on("error", error => { found.error = String(error); done(found); });
  socket.on("open", () => {
    found.open = 1;
    found.protocol = socket.protocol;
    if (attempt.action === "open") socket.close(1000);
    if (attempt.action === "echo") send();
    if (attempt.action === "receive" || attempt.action === "say") ready();
    if (attempt.action === "say" && attempt.argument) {
      socket.send(attempt.argument[0] === "@" ? letters(Number(attempt.argument.slice(1))) : attempt.argument);
    }
  });
  socket.on("pong", data => { found.pong = Number(String(data) === "p"); socket.close(1000); });
  socket.on("message", (data, binary) => {
    if (attempt.action === "receive") {
      got.push(`${binary ? "binary" : "text"}:${data.toString("hex")}`);
      if (got.length === Number(attempt.argument)) socket.close(1000);
    }
    if (attempt.action === "echo") {
      const [kind, sent] = echoes[step++];
      if (binary === (kind === "binary") && Buffer.from(sent).equals(data)) same.push(kind);
      if (step < echoes.length) send(); else socket.ping("p");
    }
  });
  socket.on("close", code => {
    done({...found, close: code, got: got.join(","), echo: same.join(",")});
  });
}));
