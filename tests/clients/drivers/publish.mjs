// The same as publish.py: publish.mjs LIBRARY URL, with `http` or `fetch`.
import http from "node:http";
import fs from "node:fs";

const [library, url] = process.argv.slice(2);
const headers = {"Content-Type": "text/plain"};
const plan = fs.readFileSync(0, "utf8").split("\n").filter(Boolean).map(line => line.trim().split(" ").map(Number));
const sleep = milliseconds => new Promise(done => setTimeout(done, milliseconds));

function withHttp() {
  const agent = new http.Agent({keepAlive: true, maxSockets: 1});
  return body => new Promise((done, broken) => {
    const request = http.request(url, {method: "POST", agent, headers: {...headers, "Content-Length": Buffer.byteLength(body)}}, answer => {
      answer.on("data", () => {});
      answer.on("end", () => done(answer.statusCode));
      answer.on("error", broken);
    });
    request.on("error", broken);
    request.end(body);
  });
}

// All sessions share fetch's own pool, as they do in a program.
function withFetch() {
  return async body => {
    const answer = await fetch(url, {method: "POST", headers, body});
    await answer.text();
    return answer.status;
  };
}

await Promise.all(plan.map(async (pauses, number) => {
  const post = library === "http" ? withHttp() : withFetch();
  for (const [step, pause] of pauses.entries()) {
    await sleep(pause);
    const body = `${number}-${step}`;
    try {
      const status = await post(body);
      if (status !== 202) console.log(`failed\t${body}\tstatus ${status}`);
    } catch (error) {
      console.log(`failed\t${body}\t${error} ${error.cause ?? ""} after ${pause} ms`);
    }
  }
}));
console.log(`done\t${plan.flat().length}\t0`);
process.exit(0);
