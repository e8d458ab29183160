// The head of the market: figures, models, prices, machines with a cell for each card, and the queue with its reasons.

import { html } from "./vendor/htm-preact.js";
import { Prices } from "./chart.js";
import { SIGNS, ago, gigabytes, plural, short, span, usd, word } from "./words.js";

const QUEUE_SHOWN = 50;

export function Tile({ name, value, more }) {
  return html`<div class="tile"><dt>${name}</dt><dd>${value}${more && html` <small>${more}</small>`}</dd></div>`;
}

export const State = ({ state }) => html`<span class=${`state ${state}`}><span aria-hidden="true">${SIGNS[state] || "·"}</span> ${word(state)}</span>`;

export const JobLink = ({ id, name }) => html`<a href=${`#/jobs/${id}`}>${name || short(id)}</a>`;

export function Market({ state, nowMs, beat, asOf, scheme }) {
  const { stats } = state;
  return html`
    <section aria-labelledby="head-now"><h2 id="head-now">Now</h2>
      <dl class="tiles">
        <${Tile} name="Machines" value=${stats.nodes} />
        <${Tile} name="GPUs free" value=${stats.available_gpus} more=${`of ${stats.gpus}`} />
        <${Tile} name="In use" value=${`${stats.utilization_percent} %`} />
        <${Tile} name="Waiting" value=${stats.waiting.toLocaleString()} />
        <${Tile} name="Running" value=${stats.running.toLocaleString()} />
        <${Tile} name="Mean wait" value=${span(stats.mean_wait_s)} more="last hour" />
        <${Tile} name="Ended" value=${stats.jobs_per_hour.toLocaleString()} more="last hour" />
      </dl>
      ${state.market.paused && html`<p class="notice">The operator has paused the market: nothing new is matched.</p>`}
    </section>
    <section aria-labelledby="head-nodes"><h2 id="head-nodes">Machines</h2><${Nodes} state=${state} /></section>
    <section aria-labelledby="head-queue"><h2 id="head-queue">Queue</h2><${Queue} state=${state} nowMs=${nowMs} /></section>
    <div class="columns">
      <section aria-labelledby="head-models"><h2 id="head-models">On offer</h2><${Models} models=${state.models} /></section>
      <section aria-labelledby="head-prices"><h2 id="head-prices">Prices</h2><${Prices} beat=${beat} asOfMs=${asOf ? state.now_ms : null} scheme=${scheme} /></section>
    </div>`;
}

function Models({ models }) {
  if (!models.length) return html`<p class="soft">Nothing is on offer. <code>bazaar-seller run</code> offers this machine's cards.</p>`;
  return html`<table><thead><tr><th scope="col">Model</th><th scope="col" class="number">Free</th><th scope="col" class="number">USD per GPU-hour</th></tr></thead>
    <tbody>${models.map((model) => html`<tr key=${model.model}><th scope="row">${model.model}</th>
      <td class="number">${model.gpus_free} of ${model.gpus}</td>
      <td class="number">${model.low_uusd === model.high_uusd ? usd(model.low_uusd) : `${usd(model.low_uusd)} to ${usd(model.high_uusd)}`}</td></tr>`)}</tbody></table>`;
}

function Nodes({ state }) {
  if (!state.nodes.length) return html`<p class="soft">No machine is on the market.</p>`;
  return html`<ul class="nodes">${state.nodes.map((node) => html`<${Node} key=${node.id} node=${node} />`)}</ul>
    ${state.nodes_total > state.nodes.length && html`<p class="soft">${state.nodes_total - state.nodes.length} more machines are not shown.</p>`}`;
}

function Node({ node }) {
  const standing = node.suspect ? "silent" : node.state;
  return html`<li class=${`node ${standing}`}>
    <h3><a href=${`#/nodes/${node.id}`}>${node.name}</a></h3>
    <p class="soft">${usd(node.price_uusd_per_gpu_hour)} USD · ${node.isolation}${node.simulated ? " · simulated" : ""}${standing !== "offered" ? html` · <strong>${standing}</strong>` : ""}</p>
    ${node.cards.length ? html`<ol class="cards">${node.cards.map((card) => html`<${Card} key=${card.uuid} card=${card} />`)}</ol>`
      : html`<p class="soft">CPU only: ${node.cores_free} of ${node.cores} cores free</p>`}</li>`;
}

const CARD_WORDS = { free: "free", taken: "taken", unhealthy: "unhealthy" };

function Card({ card }) {
  const use = card.gpu_percent === null || card.gpu_percent === undefined ? null : card.gpu_percent;
  const memory = card.memory_used_mib === null || card.memory_used_mib === undefined ? null : Math.min(100, Math.round((100 * card.memory_used_mib) / Math.max(1, card.vram_mib)));
  return html`<li class=${`card ${card.state}`} title=${card.model}>
    <span class="card-head"><b>${card.index}</b> ${CARD_WORDS[card.state] || card.state}${card.job && html` <${JobLink} id=${card.job} />`}</span>
    <span class="soft">${card.model.replace(/^NVIDIA (GeForce )?/, "")} · ${gigabytes(card.vram_mib)}</span>
    ${use !== null && html`<${Meter} name="use" value=${use} text=${`${use} %`} />`}
    ${memory !== null && html`<${Meter} name="memory" value=${memory} text=${gigabytes(card.memory_used_mib)} />`}
    ${card.temperature_c !== null && card.temperature_c !== undefined && html`<span class="soft">${card.temperature_c} °C${card.power_w ? `, ${card.power_w} W` : ""}</span>`}
  </li>`;
}

function Meter({ name, value, text }) {
  return html`<span class="meter"><span>${name}</span><meter min="0" max="100" value=${value} aria-label=${`${name} ${text}`}></meter><span>${text}</span></span>`;
}

function Queue({ state, nowMs }) {
  if (!state.queued_total && !state.running_total) return html`<p class="soft">Nothing waits and nothing runs.</p>`;
  const rows = state.queued.slice(0, QUEUE_SHOWN);
  return html`<p class="soft">${plural(state.queued_total, "job")} waiting, ${state.running_total.toLocaleString()} running</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Jobs that wait and run"><table>
      <thead><tr><th scope="col" class="number">Place</th><th scope="col">Job</th><th scope="col">State</th><th scope="col" class="number">GPUs</th><th scope="col">Since</th><th scope="col">Why, or where</th></tr></thead>
      <tbody>${rows.map((job, place) => html`<tr key=${job.id}><td class="number">${place + 1}</td><td><${JobLink} id=${job.id} name=${job.name} /></td><td><${State} state=${job.state} /></td>
          <td class="number">${job.num_gpus}</td><td>${ago(job.submitted_ms, nowMs)}</td><td>${state.reasons[job.id] || ""}</td></tr>`)}
        ${state.running.slice(0, QUEUE_SHOWN).map((job) => html`<tr key=${job.id}><td class="number"></td><td><${JobLink} id=${job.id} name=${job.name} /></td><td><${State} state=${job.state} />${job.phase && html` <small>${job.phase}</small>`}</td>
          <td class="number">${job.num_gpus}</td><td>${ago(job.started_ms || job.matched_ms, nowMs)}</td><td>${job.node_name}${job.gpus.length ? ` [${job.gpus.map((gpu) => gpu.index).join(", ")}]` : ""}</td></tr>`)}</tbody>
    </table></div>
    ${state.queued_total > rows.length && html`<p class="soft">${(state.queued_total - rows.length).toLocaleString()} more wait.</p>`}`;
}
