// The list of jobs, and everything about one of them: what happened to it, why it waits or waited, what it costs, what it prints.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { JobLink, State } from "./market.js";
import { ENDED, ago, clock, gigabytes, harmless, moment, plural, span, usd, word } from "./words.js";

const STATES = ["queued", "matched", "claimed", "starting", "running", "stopping", "succeeded", "failed", "timed_out", "cancelled", "expired"];
const OUTPUT_SHOWN = 200_000;

export function useRead(path, query, beat) {
  const [told, setTold] = useState({ body: null, problem: null });
  const key = JSON.stringify([path, query]);
  useEffect(() => {
    let current = true;
    get(path, query).then((body) => current && setTold({ body, problem: null, key })).catch((problem) => current && setTold({ body: null, problem, key }));
    return () => { current = false; };
  }, [key, beat]);
  return told.key === key ? told : { body: null, problem: null };
}

export function Trouble({ problem }) {
  return html`<p class="notice" role="alert">${problem.message} ${problem.detail}</p>`;
}

export function Jobs({ beat, asOf, nowMs }) {
  const [state, setState] = useState("");
  const { body, problem } = useRead("/v1/jobs", { limit: 100, state, as_of: asOf }, beat);
  return html`<section aria-labelledby="head-jobs"><h2 id="head-jobs">Jobs</h2>
    <p><label>State <select value=${state} onChange=${(event) => setState(event.target.value)}>
      <option value="">all</option>${STATES.map((name) => html`<option key=${name} value=${name}>${word(name)}</option>`)}</select></label></p>
    ${problem && html`<${Trouble} problem=${problem} />`}
    ${body && (body.items.length ? html`<${JobTable} jobs=${body.items} nowMs=${nowMs} />` : html`<p class="soft">There is none.</p>`)}</section>`;
}

export function JobTable({ jobs, nowMs }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label="List of jobs"><table>
    <thead><tr><th scope="col">Id</th><th scope="col">Name</th><th scope="col">State</th><th scope="col">Machine and cards</th><th scope="col">Updated</th><th scope="col" class="number">USD</th></tr></thead>
    <tbody>${jobs.map((job) => html`<tr key=${job.id}><td><${JobLink} id=${job.id} name=${job.id} /></td><td>${job.name || "-"}</td><td><${State} state=${job.state} /></td>
      <td>${job.state === "queued" ? "N/A" : `${job.node_name || "-"}${job.gpus.length ? ` [${job.gpus.map((gpu) => gpu.index).join(", ")}]` : ""}`}</td>
      <td><time datetime=${new Date(job.updated_ms).toISOString()}>${ago(job.updated_ms, nowMs)}</time></td><td class="number">${usd(job.charged_uusd)}</td></tr>`)}</tbody></table></div>`;
}

export function Job({ id, beat, asOf, nowMs }) {
  const { body: job, problem } = useRead(`/v1/jobs/${id}`, { as_of: asOf }, beat);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  if (!job) return html`<p class="plain">Reading ...</p>`;
  return html`<section aria-labelledby="head-job"><h2 id="head-job">${job.name || job.id}</h2>
      <p><${State} state=${job.state} />${job.phase && html` <small>${job.phase}</small>`} <code>${job.id}</code></p>
      ${job.detail && html`<p>${harmless(job.detail)}</p>`}
      <${Cost} job=${job} nowMs=${nowMs} />
      <${Facts} job=${job} />
    </section>
    <${Why} job=${job} beat=${beat} asOf=${asOf} />
    <${Output} key=${id} job=${job} asOf=${asOf} />
    <${Timeline} id=${id} beat=${beat} asOf=${asOf} asOfSeq=${job.as_of_seq} />`;
}

function Cost({ job, nowMs }) {
  if (!job.started_ms) return html`<p>It has cost nothing so far.</p>`;
  const price = job.price_uusd_per_gpu_hour;
  const cap = Math.floor((job.timeout_s * Math.max(1, job.num_gpus) * price) / 3600);
  const ranMs = job.ran_ms !== null ? job.ran_ms : Math.max(0, nowMs - job.started_ms);
  const now = job.charged_uusd !== null ? job.charged_uusd : Math.min(cap, Math.floor((ranMs * Math.max(1, job.num_gpus) * price) / 3_600_000));
  const share = cap ? Math.min(100, (100 * now) / cap) : 0;
  return html`<p class="cost"><span><b>${usd(now)}</b> USD ${ENDED.has(job.state) ? "in all" : "so far"}, at most ${usd(cap)} (${span(job.timeout_s)} at ${usd(price)} per GPU-hour)</span>
    <meter min="0" max="100" value=${share} aria-label=${`cost ${usd(now)} of at most ${usd(cap)} USD`}></meter></p>`;
}

function Facts({ job }) {
  const rows = [
    ["Kind", job.kind], ["Machine", job.node && html`<a href=${`#/nodes/${job.node}`}>${job.node_name || job.node}</a>`],
    ["Cards", job.gpus.length ? job.gpus.map((gpu) => `${gpu.index}: ${gpu.model || "?"} ${gpu.vram_mib ? gigabytes(gpu.vram_mib) : ""}`).join("; ") : job.num_gpus ? `${plural(job.num_gpus, "GPU")} asked` : "none"],
    ["Image", job.image], ["Priority", job.priority], ["Attempt", job.attempt || null], ["Exit code", job.exit_code], ["Buyer", job.buyer_alias || job.buyer],
    ["Submitted", moment(job.submitted_ms)], ["Started", job.started_ms && moment(job.started_ms)], ["Ended", job.ended_ms && moment(job.ended_ms)],
    ["Labels", Object.entries(job.labels).map(([key, value]) => `${key}=${value}`).join(", ")],
  ].filter(([, value]) => value !== null && value !== undefined && value !== "");
  return html`<dl class="facts">${rows.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

function Why({ job, beat, asOf }) {
  const [waits, setWaits] = useState(false);
  const { body: why, problem } = useRead(`/v1/jobs/${job.id}/why`, { as_of: asOf, waits: waits ? "true" : null }, beat);
  if (problem) return html`<section><h2>Why</h2><${Trouble} problem=${problem} /></section>`;
  if (!why) return html`<section><h2>Why</h2><p class="soft">Asking the matcher's conditions ...</p></section>`;
  return html`<section aria-labelledby="head-why"><h2 id="head-why">Why</h2><p>${why.summary}</p>
    ${why.steps.length > 0 && html`<${Funnel} steps=${why.steps} />`}
    ${why.change && html`<p class="notice">Smallest change: <code>${why.change.flag}</code>, then ${why.change.name} at ${usd(why.change.price_uusd_per_gpu_hour)} USD per GPU-hour${why.change.at_once ? ", at once." : ", once it has room."}</p>`}
    ${why.nodes.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="What each machine says"><table>
      <thead><tr><th scope="col">Machine</th><th scope="col" class="number">USD</th><th scope="col">Why not</th><th scope="col">Free in at most</th></tr></thead>
      <tbody>${why.nodes.map((node) => html`<tr key=${node.node}><th scope="row"><a href=${`#/nodes/${node.node}`}>${node.name}</a></th><td class="number">${usd(node.price_uusd_per_gpu_hour)}</td><td>${node.why}</td><td>${span(node.free_in_s)}</td></tr>`)}</tbody></table></div>`}
    ${!waits ? html`<button type="button" onClick=${() => setWaits(true)}>Show the whole wait</button>` : html`<${Waits} why=${why} />`}</section>`;
}

function Funnel({ steps }) {
  const most = Math.max(1, steps[0].nodes);
  const shown = steps.filter((step, index) => index === 0 || step.nodes !== steps[index - 1].nodes);
  return html`<ol class="funnel">${shown.map((step) => html`<li key=${step.condition}><span class="number">${step.nodes}</span> <meter min="0" max=${most} value=${step.nodes} aria-label=${`${step.nodes} machines left: ${step.asked}`}></meter> <span>${step.asked}</span></li>`)}</ol>`;
}

function Waits({ why }) {
  if (!why.waits.length) return html`<p class="soft">It has not waited.</p>`;
  return html`<p>It waited ${span(why.wait_ms / 1000)} in all.</p><table><thead><tr><th scope="col">From</th><th scope="col">To</th><th scope="col">For</th><th scope="col">Cause</th><th scope="col">Why</th></tr></thead>
    <tbody>${why.waits.map((wait) => html`<tr key=${wait.from_ms + wait.cause}><td>${clock(wait.from_ms)}</td><td>${clock(wait.until_ms)}</td><td>${span((wait.until_ms - wait.from_ms) / 1000)}</td><td>${word(wait.cause)}</td>
      <td>${wait.why}${wait.placed_meanwhile ? `; ${plural(wait.placed_meanwhile, "other job")} placed there meanwhile` : ""}</td></tr>`)}</tbody></table>`;
}

function Output({ job, asOf }) {
  const [text, setText] = useState("");
  const [problem, setProblem] = useState(null);
  const cursor = useRef(0);
  const box = useRef(null);
  const ended = ENDED.has(job.state);
  useEffect(() => {
    if (asOf || !job.started_ms) return undefined;
    let current = true;
    let timer = null;
    async function more() {
      try {
        const body = await get(`/v1/jobs/${job.id}/logs`, { cursor: cursor.current });
        if (!current) return;
        cursor.current = body.cursor;
        const fresh = body.items.map((piece) => piece.text).join("");
        if (fresh) setText((before) => (before + harmless(fresh)).slice(-OUTPUT_SHOWN));
        if (!ended || fresh) timer = setTimeout(more, fresh ? 300 : 1500);
      } catch (error) {
        if (current) setProblem(error);
      }
    }
    more();
    return () => { current = false; clearTimeout(timer); };
  }, [job.id, Boolean(job.started_ms), ended, asOf]);
  useEffect(() => { if (box.current) box.current.scrollTop = box.current.scrollHeight; }, [text]);
  if (asOf) return null;
  return html`<section aria-labelledby="head-output"><h2 id="head-output">Output</h2>
    ${problem && html`<${Trouble} problem=${problem} />`}
    ${text ? html`<pre class="output" ref=${box} tabindex="0" aria-label="Output of the job">${text}</pre>` : html`<p class="soft">${job.started_ms ? "It has printed nothing." : "It has not started."}</p>`}</section>`;
}

function Timeline({ id, beat, asOf, asOfSeq }) {
  const { body } = useRead(`/v1/jobs/${id}/events`, { limit: 200 }, beat);
  if (!body) return null;
  const shown = asOf ? body.items.filter((event) => event.seq <= asOfSeq) : body.items;
  return html`<section aria-labelledby="head-timeline"><h2 id="head-timeline">What happened</h2><table>
    <thead><tr><th scope="col" class="number">Seq</th><th scope="col">Time</th><th scope="col">Event</th><th scope="col">By</th></tr></thead>
    <tbody>${shown.map((event) => html`<tr key=${event.seq}><td class="number">${event.seq}</td><td>${clock(event.time_ms)}</td><td>${event.type}${event.event.reason ? ` (${word(event.event.reason)})` : ""}</td><td>${event.sender ? event.sender.slice(0, 10) : "the market"}</td></tr>`)}</tbody></table></section>`;
}
