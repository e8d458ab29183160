// One machine: its cards with their last readings, and the jobs that it has or had.

import { html } from "./vendor/htm-preact.js";
import { JobTable, Trouble, useRead } from "./jobs.js";
import { JobLink } from "./market.js";
import { ago, gigabytes, usd, word } from "./words.js";

const known = (value, unit) => (value === null || value === undefined ? "-" : `${value}${unit}`);

export function NodePage({ id, beat, asOf, nowMs }) {
  const { body: node, problem } = useRead(`/v1/nodes/${id}`, { as_of: asOf }, beat);
  const jobs = useRead("/v1/jobs", { node: id, limit: 50, as_of: asOf }, beat);
  if (problem) return html`<${Trouble} problem=${problem} />`;
  if (!node) return html`<p class="plain">Reading ...</p>`;
  return html`<section aria-labelledby="head-node"><h2 id="head-node">${node.name}</h2>
      <p>${node.suspect ? "silent" : word(node.state)} · ${usd(node.price_uusd_per_gpu_hour)} USD per GPU-hour · ${node.isolation} · ${node.cores_free} of ${node.cores} cores, ${gigabytes(node.memory_free_mib)} of ${gigabytes(node.memory_mib)} memory free · on the market since ${ago(node.first_ms, nowMs)}</p>
      ${node.drain_reason && html`<p class="notice">${node.drain_reason}</p>`}
      ${node.cards.length > 0 && html`<div class="scroll" tabindex="0" role="region" aria-label="List of cards"><table>
        <thead><tr><th scope="col" class="number">Card</th><th scope="col">Model</th><th scope="col">State</th><th scope="col">Job</th><th scope="col" class="number">Use</th><th scope="col" class="number">Memory</th><th scope="col" class="number">Temperature</th><th scope="col" class="number">Power</th></tr></thead>
        <tbody>${node.cards.map((card) => html`<tr key=${card.uuid}><th scope="row" class="number">${card.index}</th><td>${card.model} ${gigabytes(card.vram_mib)}</td><td>${card.state}</td><td>${card.job ? html`<${JobLink} id=${card.job} />` : "-"}</td>
          <td class="number">${known(card.gpu_percent, " %")}</td><td class="number">${card.memory_used_mib === null ? "-" : gigabytes(card.memory_used_mib)}</td><td class="number">${known(card.temperature_c, " °C")}</td><td class="number">${known(card.power_w, " W")}</td></tr>`)}</tbody></table></div>`}
    </section>
    <section aria-labelledby="head-node-jobs"><h2 id="head-node-jobs">Jobs here</h2>
      ${jobs.body && (jobs.body.items.length ? html`<${JobTable} jobs=${jobs.body.items} nowMs=${nowMs} />` : html`<p class="soft">There is none.</p>`)}</section>`;
}
