// k6, driven over HTTP by the lines of Driver in ../harness.py, as a page is.
import encoding from "k6/encoding";
import http from "k6/http";
import ws from "k6/ws";

export const options = {vus: 1, iterations: 1, noUsageReport: true};

const base = __ENV.BASE, id = __ENV.ID;
const letters = number => "x".repeat(number);
const said = line => http.post(`${base}/said?id=${id}`, line);
const hex = bytes => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
const sent = {
  text: "grüße ☃",
  large: letters(65536),
  binary: Uint8Array.from({length: 256}, (_, i) => i).buffer,
};
const kinds = ["text", "large", "binary"];

function attempt(name, url, action, argument, protocols, headers) {
  const found = {open: 0}, got = [], same = [];
  const all = {};
  for (const header of headers ? headers.split("|") : []) {
    const at = header.indexOf(": ");
    all[header.slice(0, at)] = header.slice(at + 2);
  }
  if (protocols) all["Sec-WebSocket-Protocol"] = protocols.split(",").join(", ");
  let step = 0;
  try {
    const answer = ws.connect(url, {headers: all}, socket => {
      const send = () => (kinds[step] === "binary" ? socket.sendBinary(sent.binary) : socket.send(sent[kinds[step]]));
      const came = (kind, data) => {
        if (action === "receive") {
          got.push(`${kind}:${kind === "text" ? hex(new Uint8Array(encoding.b64decode(encoding.b64encode(data)))) : hex(new Uint8Array(data))}`);
          if (got.length === Number(argument)) socket.close(1000);
        }
        if (action === "echo") {
          const wanted = kinds[step++];
          const right = wanted === "binary"
            ? kind === "binary" && hex(new Uint8Array(data)) === hex(new Uint8Array(sent.binary))
            : kind === "text" && data === sent[wanted];
          if (right) same.push(wanted);
          if (step < kinds.length) send(); else socket.ping();
        }
      };
      socket.on("open", () => {
        found.open = 1;
        if (action === "open") socket.close(1000);
        if (action === "echo") send();
        if (action === "receive" || action === "say") said(`ready\t${name}`);
        if (action === "say" && argument) socket.send(argument[0] === "@" ? letters(Number(argument.slice(1))) : argument);
      });
      socket.on("message", data => came("text", data));
      socket.on("binaryMessage", data => came("binary", data));
      socket.on("pong", () => { found.pong = 1; socket.close(1000); });
      socket.on("error", error => { found.error = error.error(); });
      // The code of the server's close frame; of a close of its own, k6 tells nothing else.
      socket.on("close", code => { found.close = code; });
    });
    if (answer.status !== 101) found.status = answer.status;
    else found.protocol = answer.headers["Sec-Websocket-Protocol"] || "";
  } catch (error) {
    found.error = String(error);
    const status = /status code:? (\d+)/i.exec(found.error);
    if (status) found.status = status[1];
  }
  found.got = got.join(",");
  found.echo = same.join(",");
  const told = Object.keys(found).map(key => `${key}=${String(found[key]).replace(/\s/g, " ").slice(0, 2000)}`);
  said([`result\t${name}`].concat(told).join("\t"));
}

export default function () {
  for (;;) {
    const line = http.get(`${base}/next?id=${id}`).body;
    if (line === "end") return;
    if (line) attempt(...line.split("\t"));
  }
}
