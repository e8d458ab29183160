// Reads the query API: JSON with a token when one is needed, and the stream of events by fetch, so that the token travels as a header.

const TOKEN = "gpubazaar-token";
const AGAIN_MS = 1000;
const AGAIN_MS_MAX = 8000;

export const token = {
  read: () => sessionStorage.getItem(TOKEN) || "",
  keep: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

export class Problem extends Error {
  constructor(status, body) {
    super(body.title || `The market answered ${status}.`);
    this.status = status;
    this.detail = body.detail || "";
    this.code = body.code || "";
  }
}

function headers(more) {
  const text = token.read();
  return text ? { ...more, Authorization: `Bearer ${text}` } : more;
}

export async function get(path, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined && value !== "");
  const asked = new URLSearchParams(given).toString();
  const answer = await fetch(asked ? `${path}?${asked}` : path, { headers: headers({ Accept: "application/json" }) });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, body);
  return body;
}

// Calls `onEvents` with lists of events in order and without a hole, whatever happens to the connection; `onState` with live or reconnecting;
// `onReset` when this page was away for so long that it should look at the whole anew; `onTelemetry` with the last readings of nodes.
export function follow(fromSeq, { onEvents, onState, onReset, onTelemetry }) {
  let stopped = false;
  let last = fromSeq;
  let controller = null;
  async function run() {
    let wait = AGAIN_MS;
    while (!stopped) {
      controller = new AbortController();
      try {
        const asked = headers({ Accept: "text/event-stream", "Last-Event-ID": String(last) });
        const answer = await fetch("/v1/events?telemetry=true", { headers: asked, signal: controller.signal, cache: "no-store" });
        if (!answer.ok) throw new Problem(answer.status, {});
        onState("live");
        wait = AGAIN_MS;
        await read(answer.body.getReader(), (name, told) => {
          if (name === "telemetry") {
            for (const data of told) onTelemetry(data.nodes);
          } else if (name === "reset") {
            last = told[told.length - 1].as_of_seq;
            onReset(last);
          } else {
            const fresh = told.filter((event) => event.seq > last);
            if (fresh.length) {
              last = fresh[fresh.length - 1].seq;
              onEvents(fresh);
            }
          }
        });
      } catch (error) {
        if (stopped) return;
        if (error.status === 401) { onState("token"); return; }
      }
      if (stopped) return;
      onState("reconnecting");
      await new Promise((resume) => setTimeout(resume, wait));
      wait = Math.min(wait * 2, AGAIN_MS_MAX);
    }
  }
  run();
  return () => { stopped = true; if (controller) controller.abort(); };
}

// Calls `onTold` with the name of the events (empty for those of the ledger) and their data, neighbours of one name together.
async function read(reader, onTold) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += decoder.decode(value, { stream: true });
    const end = rest.lastIndexOf("\n\n");
    if (end < 0) continue;
    const blocks = rest.slice(0, end).split("\n\n");
    rest = rest.slice(end + 2);
    let before = "";
    let told = [];
    for (const block of blocks) {
      let name = "";
      let data = null;
      for (const line of block.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data = JSON.parse(line.slice(6));
      }
      if (data === null) continue;
      if (name !== before && told.length) { onTold(before, told); told = []; }
      before = name;
      told.push(data);
    }
    if (told.length) onTold(before, told);
  }
}
