// Exits and restarts over time: a strip with their numbers, and the latest ones as a list.

import { byId, clock, drawn, element, status, succeeded, visibleLine } from "./text.js";

/** How many are kept, and how many of them are listed. */
const KEPT = 10000;
const LISTED = 50;

const BARS = 60;
const WIDTH = 600;
const HEIGHT = 48;

/** What can be in the strip, from the bottom to the top of a bar. */
const KINDS = { ok: "Exits with 0", failed: "Failures", restarted: "Restarts" };

let happened = [];

/** Takes an event; those that have no place here are passed over. */
export function add(event) {
  const made = entry(event);
  if (!made) return;
  happened.push({ id: event.container, time: event.time, at: Date.parse(event.time), ...made });
  if (happened.length > KEPT + 1000) happened = happened.slice(-KEPT);
}

/** Forgets all. */
export function clear() {
  happened = [];
}

function entry(event) {
  if (event.process !== "init") return null;
  switch (event.event) {
    case "exited": {
      const text = status(event.status) + (event.oomKilled ? ", out of memory" : "");
      return { kind: succeeded(event.status) ? "ok" : "failed", text };
    }
    case "started":
      return event.run > 1 ? { kind: "restarted", text: `started again, run ${event.run}` } : null;
    case "start-failed":
      return { kind: "failed", text: `start failed: ${visibleLine(event.reason)}` };
    default:
      return null;
  }
}

/** Shows what has happened. `open` is called with the id of a container. */
export function show(open) {
  const range = Number(byId("range").value) * 1000;
  const begin = Date.now() - range;
  const bars = Array.from({ length: BARS }, () => ({ ok: 0, failed: 0, restarted: 0 }));
  const sums = { ok: 0, failed: 0, restarted: 0 };
  for (const { at, kind } of happened) {
    const bar = Math.floor(((at - begin) / range) * BARS);
    if (bar < 0) continue;
    bars[Math.min(bar, BARS - 1)][kind] += 1;
    sums[kind] += 1;
  }
  const tallest = Math.max(4, ...bars.map((bar) => bar.ok + bar.failed + bar.restarted));
  const pieces = bars.flatMap((bar, index) => {
    let top = HEIGHT;
    return Object.keys(KINDS).filter((kind) => bar[kind] > 0).map((kind) => {
      const height = Math.max(2, (bar[kind] / tallest) * HEIGHT);
      top -= height;
      const width = WIDTH / BARS;
      return drawn("rect", { class: kind, x: index * width + 1, y: top, width: width - 2, height });
    });
  });
  const base = drawn("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
  const words = Object.entries(KINDS).map(([kind, name]) => `${name}: ${sums[kind]}`);
  const picture = { viewBox: `0 0 ${WIDTH} ${HEIGHT + 1}`, preserveAspectRatio: "none", role: "img" };
  byId("strip").replaceChildren(drawn("svg", { ...picture, "aria-label": words.join(", ") }, ...pieces, base));
  const legend = Object.keys(KINDS).map((kind, index) => element("span", { class: kind }, words[index]));
  byId("legend").replaceChildren(...legend);
  list(open);
}

/** Lists the latest, the last one first. It is made anew only if there are others. */
function list(open) {
  const latest = happened.slice(-LISTED).reverse();
  const whole = byId("latest");
  if (whole.first === latest[0] && whole.children.length > 0) return;
  whole.first = latest[0];
  const items = latest.map(({ id, time, kind, text }) => {
    const button = element("button", { type: "button", class: "link" }, id);
    button.addEventListener("click", () => open(id));
    return element("li", { class: kind }, clock(time), " ", button, ` ${text}`);
  });
  if (items.length === 0) items.push(element("li", {}, "None yet"));
  whole.replaceChildren(...items);
}
