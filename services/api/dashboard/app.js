// The dashboard: one state of the market, now or as it was, and the pages that show it. What it knows it reads from the query API alone.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { Problem, follow, get, token } from "./api.js";
import { Job, Jobs } from "./jobs.js";
import { Market } from "./market.js";
import { NodePage } from "./nodes.js";
import { Tape } from "./tape.js";
import { moment, span } from "./words.js";

const LOOK_MS = 5000;
const GATHER_MS = 400;
const EVENTS_KEPT = 1000;
const PAGES = [["", "Market"], ["jobs", "Jobs"], ["tape", "Ledger"]];

function useHash() {
  const read = () => location.hash.replace(/^#\/?/, "").split("/");
  const [place, setPlace] = useState(read);
  useEffect(() => {
    const changed = () => setPlace(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return place;
}

function useClock() {
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return now;
}

function useScheme() {
  const [scheme, setScheme] = useState(localStorage.getItem("gpubazaar-scheme") || "");
  useEffect(() => {
    document.documentElement.dataset.scheme = scheme;
    if (scheme) localStorage.setItem("gpubazaar-scheme", scheme); else localStorage.removeItem("gpubazaar-scheme");
  }, [scheme]);
  return [scheme, setScheme];
}

// The state with the last readings of cards, as nodes tell them between two looks.
function withReadings(state, readings) {
  const byNode = new Map(readings.map((node) => [node.id, node]));
  const nodes = state.nodes.map((node) => {
    const read = byNode.get(node.id);
    if (!read) return node;
    const byCard = new Map(read.cards.map((card) => [card.uuid, card]));
    return { ...node, heard_ms: read.heard_ms, cards: node.cards.map((card) => ({ ...card, ...byCard.get(card.uuid) })) };
  });
  return { ...state, nodes };
}

function App() {
  const [state, setState] = useState(null);
  const [problem, setProblem] = useState(null);
  const [link, setLink] = useState("connecting");
  const [readMs, setReadMs] = useState(0);
  const [beat, setBeat] = useState(0);
  const [asOf, setAsOf] = useState(null);
  const [events, setEvents] = useState([]);
  const [needsToken, setNeedsToken] = useState(false);
  const [scheme, setScheme] = useScheme();
  const [page, id] = useHash();
  const wall = useClock();
  const last = useRef({ seq: 0, timer: null });

  last.current.asOf = asOf;

  function failed(error) {
    if (error instanceof Problem && error.status === 401) setNeedsToken(true);
    else setProblem(error);
  }

  function look() {
    return get("/v1/state", { as_of: asOf }).then((body) => {
      setState(body);
      setProblem(null);
      setReadMs(Date.now());
      if (!asOf) last.current.seq = body.as_of_seq;
      return body;
    }).catch(failed);
  }

  useEffect(() => { look(); }, [asOf, beat, needsToken]);
  useEffect(() => {
    const timer = setInterval(() => { if (!asOf && !document.hidden) look(); }, LOOK_MS);
    return () => clearInterval(timer);
  }, [asOf]);
  const known = Boolean(state);
  useEffect(() => {
    if (!known || needsToken) return undefined;
    const timers = last.current;
    return follow(Math.max(0, timers.seq - 50), {
      onEvents: (fresh) => {
        setEvents((before) => [...before, ...fresh].slice(-EVENTS_KEPT));
        if (!timers.timer) timers.timer = setTimeout(() => { timers.timer = null; setBeat((count) => count + 1); }, GATHER_MS);
      },
      onReset: () => { setEvents([]); setBeat((count) => count + 1); },
      onTelemetry: (nodes) => setState((before) => (before && !timers.asOf ? withReadings(before, nodes) : before)),
      onState: (how) => (how === "token" ? setNeedsToken(true) : setLink(how)),
    });
  }, [known, needsToken]);

  if (needsToken) return html`<${AskToken} give=${(text) => { token.keep(text); setNeedsToken(false); }} />`;
  if (!state) return html`<p class="plain" role="status">${problem ? `${problem.message} Trying again ...` : "Reading the market ..."}</p>`;
  const nowMs = asOf ? state.now_ms : wall;
  const newest = events.length ? events[events.length - 1].seq : state.as_of_seq;
  const common = { beat, asOf, nowMs, scheme };
  return html`<a class="skip" href="#content" onClick=${(event) => { event.preventDefault(); document.getElementById("content").focus(); }}>To the content</a>
    <header>
      <h1>${state.market.name} <small>GPU Bazaar</small></h1>
      <nav aria-label="Pages">${PAGES.map(([name, title]) => html`<a key=${name} href=${`#/${name}`} aria-current=${(page || "") === name ? "page" : null}>${title}</a>`)}</nav>
      <${Age} link=${link} readMs=${readMs} wall=${wall} seq=${state.as_of_seq} asOf=${asOf} problem=${problem} />
      <label class="scheme">Colours <select value=${scheme} onChange=${(event) => setScheme(event.target.value)}><option value="">as the system</option><option value="light">light</option><option value="dark">dark</option></select></label>
    </header>
    <${Slider} asOf=${asOf} setAsOf=${setAsOf} newest=${Math.max(newest, state.as_of_seq, asOf || 0)} state=${state} />
    <main id="content" tabindex="-1">${
      page === "jobs" && id ? html`<${Job} key=${id} id=${id} ...${common} />`
      : page === "jobs" ? html`<${Jobs} ...${common} />`
      : page === "nodes" && id ? html`<${NodePage} key=${id} id=${id} ...${common} />`
      : page === "tape" ? html`<${Tape} events=${asOf ? events.filter((event) => event.seq <= asOf) : events} />`
      : html`<${Market} state=${state} ...${common} />`}</main>
    <footer><a href="/docs">Query API</a> · everything here can be read there; writes are signed events.</footer>`;
}

function Age({ link, readMs, wall, seq, asOf, problem }) {
  const seconds = Math.max(0, Math.round((wall - readMs) / 1000));
  const standing = asOf ? "past" : problem || link === "reconnecting" ? "reconnecting" : link;
  const text = { live: "live", connecting: "connecting", reconnecting: "reconnecting", past: "as it was" }[standing];
  return html`<p class=${`age ${standing}`}><span role="status">${text}</span> · event ${seq.toLocaleString()}${asOf ? "" : ` · ${seconds < 2 ? "now" : `${span(seconds)} old`}`}</p>`;
}

function Slider({ asOf, setAsOf, newest, state }) {
  const [value, setValue] = useState(null);
  const timer = useRef(null);
  function move(event) {
    const seq = Number(event.target.value);
    setValue(seq);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => setAsOf(seq), 250);
  }
  function back() {
    clearTimeout(timer.current);
    setValue(null);
    setAsOf(null);
  }
  const input = useRef(null);
  const shown = asOf === null && value === null ? newest : value === null ? asOf : value;
  useEffect(() => { input.current.value = shown; }); // after the new maximum is there
  return html`<section class="slider" aria-label="Time">
    <label for="moment">Moment</label>
    <input id="moment" type="range" min="1" max=${newest} ref=${input} onInput=${move} aria-valuetext=${`event ${shown} of ${newest}`} />
    <span class="moment">${asOf ? `event ${asOf}, ${moment(state.market.time_ms)}` : "now"}</span>
    ${asOf !== null && html`<button type="button" onClick=${back}>Back to now</button>`}
  </section>`;
}

function AskToken({ give }) {
  const [text, setText] = useState("");
  return html`<main class="ask"><h1>GPU Bazaar</h1>
    <form onSubmit=${(event) => { event.preventDefault(); if (text.trim()) give(text.trim()); }}>
      <p>This market shows itself to holders of a read token. <code>bazaar token create NAME</code> makes one.</p>
      <label for="token">Read token</label>
      <input id="token" type="password" autocomplete="off" spellcheck="false" value=${text} onInput=${(event) => setText(event.target.value)} />
      <button type="submit">Look</button>
      <p class="soft">It is kept in this tab only.</p>
    </form></main>`;
}

render(html`<${App} />`, document.getElementById("app"));
