// The line protocol of Driver in ../harness.py, for the clients in JavaScript.
import readline from "node:readline";

export const letters = number => "x".repeat(number);
export const echoes = [
  ["text", "grüße ☃"],
  ["large", letters(65536)],
  ["binary", Uint8Array.from({length: 256}, (_, i) => i)],
];

export async function drive(run) {
  for await (const line of readline.createInterface({input: process.stdin})) {
    if (line === "") continue;
    const [name, url, action, argument, protocols, headers] = line.split("\t");
    const attempt = {
      url, action, argument,
      protocols: protocols ? protocols.split(",") : [],
      headers: Object.fromEntries((headers ? headers.split("|") : []).map(h => h.split(/: (.*)/s).slice(0, 2))),
    };
    const found = await run(attempt, () => process.stdout.write(`ready\t${name}\n`));
    const told = Object.entries(found).map(([key, value]) => `${key}=${String(value).slice(0, 2000).replace(/\s/g, " ")}`);
    process.stdout.write([`result\t${name}`, ...told].join("\t") + "\n");
  }
  process.exit(0);
}
