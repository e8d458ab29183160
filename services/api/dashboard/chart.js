// Prices and matches over time: a canvas for the eye, and the same figures as a table for everybody else.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { get } from "./api.js";
import { clock, usd } from "./words.js";

const COLOURS = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3], [10, 4]];
const HEIGHT = 190;
const HOUR_S = 3600;
const MODELS_MAX = COLOURS.length;

// One column of times for all series; null where a model had no match.
export function columns(items, stepMs) {
  const times = [...new Set(items.flatMap((item) => item.points.map((point) => point[0])))].sort((a, b) => a - b);
  const place = new Map(times.map((time, index) => [time, index]));
  const prices = items.map((item) => {
    const column = new Array(times.length).fill(null);
    for (const point of item.points) column[place.get(point[0])] = point[2] / 1e6;
    return column;
  });
  const matches = new Array(times.length).fill(0);
  for (const item of items) for (const point of item.points) matches[place.get(point[0])] += point[4] / (stepMs / 60000);
  return { times: times.map((time) => time / 1000), prices, matches };
}

// A canvas does not understand variables or light-dark(): let an element resolve them.
function colour(element, name) {
  element.style.color = `var(${name})`;
  const resolved = getComputedStyle(element).color;
  element.style.color = "";
  return resolved;
}

function draw(element, title, names, told, times, values, unit) {
  const [edge, soft] = [colour(element, "--edge"), colour(element, "--soft")];
  const axis = { stroke: soft, grid: { stroke: edge, width: 1 }, ticks: { stroke: edge, width: 1 }, font: "12px system-ui" };
  const series = names.map((name, index) => ({
    label: name, stroke: colour(element, COLOURS[index % COLOURS.length]), dash: DASHES[index % DASHES.length], width: 2, spanGaps: true,
    points: { show: times.length < 60 },
  }));
  const options = {
    width: Math.max(260, element.clientWidth), height: HEIGHT, series: [{}, ...series], legend: { show: names.length > 1 },
    axes: [axis, { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (unit === "USD" ? tick.toFixed(2) : String(tick))) }],
    scales: { x: { range: () => [Math.min(times[0], told.until_ms / 1000 - HOUR_S), told.until_ms / 1000] }, y: { range: (_, low, high) => [0, Math.max(high * 1.1, unit === "USD" ? 0.01 : 1)] } },
  };
  const plot = new window.uPlot(options, [times, ...values], element);
  plot.root.setAttribute("role", "img");
  plot.root.setAttribute("aria-label", title);
  return plot;
}

export function Prices({ beat, asOfMs, scheme }) {
  const [told, setTold] = useState(null);
  const [shown, setShown] = useState(false);
  const [priceBox, matchBox] = [useRef(null), useRef(null)];
  useEffect(() => {
    let current = true;
    get("/v1/prices", { until_ms: asOfMs || null }).then((body) => current && setTold(body)).catch(() => {});
    return () => { current = false; };
  }, [beat, asOfMs]);
  const items = told ? [...told.items].sort((a, b) => b.points.length - a.points.length).slice(0, MODELS_MAX) : [];
  useEffect(() => {
    if (!items.length || !window.uPlot) return undefined;
    const { times, prices, matches } = columns(items, told.step_ms);
    const plots = [
      draw(priceBox.current, "Mean price of a GPU-hour that was paid, by model", items.map((item) => item.model), told, times, prices, "USD"),
      draw(matchBox.current, "Matches a minute", ["matches a minute"], told, times, [matches], "matches"),
    ];
    return () => plots.forEach((plot) => plot.destroy());
  }, [told, scheme]);
  if (told && !items.length) return html`<p class="soft">Nothing was matched in the last day.</p>`;
  return html`
    <div class="charts">
      <figure><figcaption>Price paid, USD per GPU-hour</figcaption><div ref=${priceBox}></div></figure>
      <figure><figcaption>Matches a minute</figcaption><div ref=${matchBox}></div></figure>
    </div>
    <button type="button" class="link" aria-expanded=${shown} onClick=${() => setShown(!shown)}>${shown ? "Hide" : "Show"} the figures</button>
    ${shown && html`<div class="scroll" tabindex="0" role="region" aria-label="Figures of the charts"><table>
      <thead><tr><th scope="col">From</th><th scope="col">Model</th><th scope="col">Low</th><th scope="col">Mean</th><th scope="col">High</th><th scope="col">Matches</th></tr></thead>
      <tbody>${items.flatMap((item) => item.points.slice(-200).reverse().map((point) => html`<tr key=${item.model + point[0]}>
        <td>${clock(point[0])}</td><td>${item.model}</td><td>${usd(point[1])}</td><td>${usd(point[2])}</td><td>${usd(point[3])}</td><td>${point[4]}</td></tr>`))}</tbody>
    </table></div>`}`;
}
