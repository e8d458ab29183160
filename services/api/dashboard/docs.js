// What the query API answers, read from its own description: no outside scripts, nothing to build.

import { html, render, useEffect, useState } from "./vendor/htm-preact.js";

function Shape({ schema, schemas, depth = 0 }) {
  if (!schema) return null;
  const name = (schema.$ref || "").split("/").pop();
  const whole = name ? schemas[name] : schema;
  if (!whole || !whole.properties) return html`<code>${name || JSON.stringify(schema)}</code>`;
  return html`<details open=${depth === 0}><summary><code>${name || "object"}</code></summary>
    <dl class="facts">${Object.entries(whole.properties).map(([field, of]) => html`<div key=${field}><dt><code>${field}</code></dt><dd>${brief(of)}</dd></div>`)}</dl></details>`;
}

function brief(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(brief).join(" or ");
  if (schema.type === "array") return `list of ${brief(schema.items || {})}`;
  return schema.enum ? schema.enum.join(", ") : schema.type || "any";
}

function Docs() {
  const [doc, setDoc] = useState(null);
  useEffect(() => { fetch("/openapi.json").then((answer) => answer.json()).then(setDoc); }, []);
  if (!doc) return html`<p class="plain" role="status">Reading the description of the API ...</p>`;
  const schemas = (doc.components || {}).schemas || {};
  return html`<header><h1>${doc.info.title} <small>${doc.info.version}</small></h1><nav aria-label="Pages"><a href="/">Market</a><a href="/openapi.json">openapi.json</a></nav></header>
    <main><p>Every path is read with GET; every body under /v1 carries as_of_seq, the last event that it takes into account. Writes are signed events: use the bazaar command.</p>
    ${Object.entries(doc.paths).map(([path, methods]) => html`<section key=${path} aria-label=${path}><h2><code>${path}</code></h2><p>${methods.get.summary}</p>
      ${(methods.get.parameters || []).length > 0 && html`<table><thead><tr><th scope="col">Name</th><th scope="col">Meaning</th></tr></thead>
        <tbody>${methods.get.parameters.map((one) => html`<tr key=${one.name}><th scope="row"><code>${one.name}</code></th><td>${one.description}</td></tr>`)}</tbody></table>`}
      <${Shape} schema=${((methods.get.responses["200"] || {}).content || {})["application/json"]?.schema} schemas=${schemas} /></section>`)}</main>`;
}

render(html`<${Docs} />`, document.getElementById("app"));
