// How values are written: money, times, sizes, names of states. Everything ends as text, never as markup.

export function usd(uusd) {
  if (uusd === null || uusd === undefined) return "-";
  const text = (uusd / 1e6).toFixed(6).replace(/0+$/, "");
  const [whole, rest = ""] = text.split(".");
  return `${whole}.${rest.padEnd(2, "0")}`;
}

export function span(seconds) {
  if (seconds === null || seconds === undefined) return "-";
  let left = Math.max(0, Math.floor(seconds));
  if (left === 0) return seconds > 0 ? `${Math.round(seconds * 1000)} ms` : "0 s";
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) parts.push(`${count} ${unit}`);
  }
  return parts.slice(0, 2).join(" ");
}

export function ago(thenMs, nowMs) {
  if (!thenMs) return "-";
  const seconds = (nowMs - thenMs) / 1000;
  return seconds < 1 ? "now" : `${span(seconds).split(" ").slice(0, 2).join(" ")} ago`;
}

export const clock = (ms) => (ms ? new Date(ms).toLocaleTimeString() : "-");
export const moment = (ms) => (ms ? new Date(ms).toLocaleString() : "-");
export const gigabytes = (mib) => (mib >= 973 ? `${Math.floor((mib * 20 + 1024) / (1024 * 20))} GB` : `${mib} MiB`);
export const plural = (count, noun) => `${count.toLocaleString()} ${noun}${count === 1 ? "" : "s"}`;
export const short = (id) => (id ? id.slice(0, 8) : "-");

export const SIGNS = {
  queued: "…", matched: "→", claimed: "→", starting: "▷", running: "▶", stopping: "■",
  succeeded: "✓", failed: "✗", timed_out: "⧗", cancelled: "⊘", expired: "⌛",
};
export const ENDED = new Set(["succeeded", "failed", "timed_out", "cancelled", "expired"]);
export const word = (state) => String(state || "-").replaceAll("_", " ");

// Control bytes are shown as pictures: a page is no terminal, and a copied line must not become one.
export const harmless = (text) => text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, (sign) => (sign < "\u0020" ? String.fromCharCode(0x2400 + sign.charCodeAt(0)) : "\u2421")).replace(/[\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\u25a1");
