// The ledger as it grows, event by event, with its sequence numbers.

import { html, useState } from "./vendor/htm-preact.js";
import { clock, harmless } from "./words.js";

const ROWS = 200;

export function Tape({ events }) {
  const [kind, setKind] = useState("");
  const [open, setOpen] = useState(null);
  const kinds = [...new Set(events.map((event) => event.type))].sort();
  const shown = events.filter((event) => !kind || event.type === kind).slice(-ROWS).reverse();
  return html`<section aria-labelledby="head-tape"><h2 id="head-tape">Ledger</h2>
    <p><label>Kind <select value=${kind} onChange=${(event) => setKind(event.target.value)}><option value="">all</option>${kinds.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label></p>
    ${shown.length ? html`<table class="tape"><thead><tr><th scope="col" class="number">Seq</th><th scope="col">Time</th><th scope="col">Event</th><th scope="col">By</th><th scope="col">About</th></tr></thead>
      <tbody>${shown.map((event) => html`<${Row} key=${event.seq} event=${event} open=${open === event.seq} toggle=${() => setOpen(open === event.seq ? null : event.seq)} />`)}</tbody></table>`
    : html`<p class="soft">Nothing has happened since this page was opened.</p>`}</section>`;
}

function Row({ event, open, toggle }) {
  const about = event.event.job_id ? html`<a href=${`#/jobs/${event.event.job_id}`}>${event.event.job_id}</a>` : event.event.node_id ? html`<a href=${`#/nodes/${event.event.node_id}`}>${event.event.node_id}</a>` : "";
  return html`<tr data-seq=${event.seq}><td class="number"><button type="button" class="link" aria-expanded=${open} aria-label=${`Event ${event.seq} as JSON`} onClick=${toggle}>${event.seq}</button></td>
      <td>${clock(event.time_ms)}</td><td>${event.type}</td><td>${event.sender ? event.sender.slice(0, 10) : "the market"}</td><td>${about}</td></tr>
    ${open && html`<tr><td colspan="5"><pre>${harmless(JSON.stringify(event.event, null, 2))}</pre></td></tr>`}`;
}
