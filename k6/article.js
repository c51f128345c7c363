// The article's load test: clients join over a ramp, listen to the server's tick, speak every
// 1 to 3 s, send LEAVE after 10 s and expect the server to close the session. Afterwards the script
// reads the server's own figures from its admin port.
//
//   k6 run k6/article.js                                    10,000 clients
//   k6 run -e VUS=200 -e RAMP=12s k6/article.js             smoke run
//
// Variables, thresholds and limits are explained in README.md beside this file.

import { check } from 'k6';
import http from 'k6/http';
import { Counter, Rate, Trend } from 'k6/metrics';
import ws from 'k6/ws';

const URL = __ENV.URL || 'ws://127.0.0.1:3000/ws'; // the clients' port
const ADMIN = __ENV.ADMIN === undefined ? 'http://127.0.0.1:3001' : __ENV.ADMIN; // '' reads no figures
const TOKEN = __ENV.TOKEN || ''; // bearer token of the admin port
const VUS = positiveInteger('VUS', 10000);
const RAMP = __ENV.RAMP || '30s';
const SESSION_MS = positiveInteger('SESSION_MS', 10000); // from open to LEAVE
const TICK_MS = positiveInteger('TICK_MS', 3000); // the server's --tick
const VERBOSE = __ENV.VERBOSE === '1';

const FORCED_CLOSE_MS = 3000; // longest wait for the close after LEAVE
const NORMAL_CLOSURE = 1000;

if (SESSION_MS < 2 * TICK_MS) {
  throw new Error(
    `SESSION_MS (${SESSION_MS}) must be at least twice TICK_MS (${TICK_MS}): every session has to see the tick`
  );
}

const errorEvents = new Counter('error_events');
const unreadableMessages = new Counter('unreadable_messages');
const unfinishedSessions = new Counter('unfinished_sessions');
const closedByServer = new Rate('closed_by_server_after_leave');
const receivedRatio = new Trend('received_per_promised');

export const options = {
  scenarios: {
    default: {
      executor: 'ramping-vus',
      startVUs: 1,
      stages: [{ duration: RAMP, target: VUS }],
      gracefulStop: `${SESSION_MS + 20000}ms`, // the last session may start when the ramp ends
    },
  },
  minIterationDuration: `${SESSION_MS + 5000}ms`, // longer than a session with a forced close
  thresholds: {
    checks: ['rate==1'],
    closed_by_server_after_leave: ['rate==1'],
    error_events: ['count==0'],
    received_per_promised: ['avg>=0.95', 'avg<=1.05'],
    unfinished_sessions: ['count==0'],
    unreadable_messages: ['count==0'],
  },
};

let reported = false; // one line per client is enough

// The server's figures before the first client.
export function setup() {
  return figures('before');
}

// The server's figures after the last client, beside the earlier ones.
export function teardown(before) {
  const after = figures('after');
  for (const name of Object.keys(after).filter((name) => after[name] > 0)) {
    const earlier = before[name] === undefined ? '' : ` (${before[name]} before)`;
    console.log(`server: ${name} ${after[name]}${earlier}`);
  }
}

// Memory of /debug/mem and the totals of /metrics; without the admin port, one line and no figures.
function figures(when) {
  if (!ADMIN) return {};
  const params = { headers: TOKEN ? { Authorization: `Bearer ${TOKEN}` } : {}, timeout: '5s', tags: { admin: 'yes' } };
  const found = {};
  const memory = http.get(`${ADMIN}/debug/mem`, params);
  const metrics = http.get(`${ADMIN}/metrics`, params);
  if (memory.status !== 200 || metrics.status !== 200) {
    console.warn(`no figures of the server ${when} the run: ${ADMIN} answered ${memory.status || memory.error}; set ADMIN`);
    return found;
  }
  const document = memory.json();
  for (const name of ['connections', 'allocated_bytes', 'rss_bytes']) {
    if (typeof document[name] === 'number') found[name] = document[name];
  }
  // Sums over all labels but the reason; the names end in _total.
  for (const line of metrics.body.split('\n')) {
    const match = /^(hydrant_[a-z_]+_total)(?:\{([^}]*)\})? ([0-9.e+]+)$/.exec(line);
    if (!match || /channel=/.test(match[2] || '')) continue;
    const reason = /(?:reason|code)="([^"]*)"/.exec(match[2] || '');
    const name = reason ? `${match[1]} ${reason[1]}` : match[1];
    found[name] = (found[name] || 0) + Number(match[3]);
  }
  return found;
}

export default function () {
  let opened = 0; // all times in ms, 0 = has not happened
  let left = 0;
  let closed = 0;
  let firstTick = 0;
  let received = 0;
  let closeCode = 0;
  let forced = false;
  let lastError = 'none';
  let res = null;

  unfinishedSessions.add(1); // taken back below, unless k6 has to interrupt this session

  try {
    res = ws.connect(URL, { tags: { my_tag: 'hello' } }, function (socket) {
      socket.on('open', function () {
        opened = Date.now();
        log('connected');
        socket.send(JSON.stringify({ event: 'SET_NAME', new_name: `Croc ${__VU}` }));

        socket.setInterval(function () {
          if (left) return;
          socket.send(JSON.stringify({ event: 'SAY', message: `I'm saying ${randomString(5)}` }));
        }, randomIntBetween(1000, 3000));
      });

      socket.on('message', function (text) {
        const now = Date.now();
        const message = parse(text);
        received += 1;

        if (message === null) {
          unreadableMessages.add(1);
          report(`unreadable message: ${text}`);
        } else if (message.event === 'ERROR') {
          errorEvents.add(1);
          report(`ERROR event: ${text}`);
        } else if (message.event === 'CHAT_MSG') {
          if (message.user === 'server' && !firstTick) firstTick = now;
          log(`${message.user} says: ${message.message}`);
        } else {
          log(`message: ${text}`);
        }
      });

      socket.on('binaryMessage', function () {
        received += 1;
        unreadableMessages.add(1);
        report('unreadable message: binary');
      });

      socket.on('error', function (e) {
        lastError = e.error();
        log(`error: ${lastError}`);
      });

      // k6 calls this for every kind of end: the server's close frame (its code), a lost
      // connection (1006, or 1001 after a reset) and its own socket.close() (1001).
      socket.on('close', function (code) {
        closed = Date.now();
        closeCode = code;
        log(`closed with code ${code}`);
      });

      socket.setTimeout(function () {
        log(`${SESSION_MS} ms passed, leaving the chat`);
        left = Date.now();
        socket.send(JSON.stringify({ event: 'LEAVE' }));

        socket.setTimeout(function () {
          log(`closing the socket forcefully ${FORCED_CLOSE_MS} ms after LEAVE`);
          forced = true;
          socket.close();
        }, FORCED_CLOSE_MS);
      }, SESSION_MS);
    });
  } catch (e) {
    lastError = String(e);
  }

  // The status alone is not enough: k6 also reports 101 when Sec-WebSocket-Accept is wrong.
  const connected = check(res, {
    'Connected successfully': (r) => r && r.status === 101 && opened > 0,
  });

  if (connected) {
    const clean = left > 0 && !forced && closeCode === NORMAL_CLOSURE;
    closedByServer.add(clean);
    if (!clean) {
      report(
        `session ended ${left ? `${closed - left} ms after` : 'before'} LEAVE, ` +
          `${forced ? 'forced by the client' : `close code ${closeCode}`}, last error: ${lastError}`
      );
    }

    // One sample per promised tick, so that the average is (all received) / (all promised). A
    // session that was cut short is still owed its full length.
    const promised = promisedTicks(opened, Math.max(closed, opened + SESSION_MS), firstTick);
    for (let i = 0; i < promised; i++) receivedRatio.add(received / promised);
  } else {
    report(`handshake failed: status ${res ? res.status : 'none'}, ${res && res.error ? res.error : lastError}`);
  }

  unfinishedSessions.add(-1);
}

// How many ticks the server owes a session that lasts from `opened` to `until`. Ticks come at fixed
// times, so one of them gives all the others: count those that lie in the session. A session that
// saw none is owed the mean. A constant delay cancels out, since the server's handshake answer, its
// ticks and its close all come the same way.
function promisedTicks(opened, until, firstTick) {
  if (!firstTick) return Math.round((until - opened) / TICK_MS);
  const upToFirst = Math.max(1, Math.ceil((firstTick - opened) / TICK_MS));
  const afterFirst = Math.floor((until - firstTick) / TICK_MS);
  return upToFirst + afterFirst;
}

// The message as an object with an event, or null.
function parse(text) {
  try {
    const message = JSON.parse(text);
    return message && typeof message.event === 'string' ? message : null;
  } catch (e) {
    return null;
  }
}

function log(line) {
  if (VERBOSE) console.log(`VU ${__VU}: ${line}`);
}

function report(line) {
  if (reported && !VERBOSE) return;
  reported = true;
  console.error(`VU ${__VU}: ${line}`);
}

function randomIntBetween(min, max) {
  return min + Math.floor(Math.random() * (max - min + 1));
}

function randomString(length) {
  const letters = 'abcdefghijklmnopqrstuvwxyz';
  let s = '';
  for (let i = 0; i < length; i++) s += letters[Math.floor(Math.random() * letters.length)];
  return s;
}

function positiveInteger(name, byDefault) {
  const text = __ENV[name] || String(byDefault);
  if (!/^[1-9][0-9]*$/.test(text)) throw new Error(`${name} must be a positive integer, not "${text}"`);
  return Number(text);
}
