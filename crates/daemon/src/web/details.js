// One container: what it uses, what it is, its runs.

import { getJson } from "./api.js";
import { byId, bytes, clock, drawn, duration, element, percent, state, status, visibleLine } from "./text.js";

const WIDTH = 300;
const HEIGHT = 48;

/** Shows what is known of a container; nothing but its id if it is not there. */
export function show(id, container, use) {
  byId("details-title").textContent = id;
  charts(use);
  const facts = container ? factsOf(container) : { State: "not there" };
  const made = element("dl");
  for (const [name, value] of Object.entries(facts)) {
    if (value) made.append(element("dt", {}, name), element("dd", {}, value));
  }
  // What is the same stays, so that it can be selected.
  if (made.textContent !== byId("facts").textContent) byId("facts").replaceChildren(...made.children);
}

function factsOf(it) {
  const stopped = it.restart?.stopped ? ", stopped by a user" : "";
  const policy = it.restart && `${it.restart.policy}, ${it.restart.count} restarts${stopped}`;
  return {
    State: state(it),
    Command: visibleLine(it.args.join(" ")),
    Created: it.created && clock(it.created),
    Started: it.started && clock(it.started),
    Exited: it.exit && clock(it.exit.time),
    "Exit known from": it.exit?.evidence,
    "Restart policy": policy,
    Run: String(it.run),
    PID: it.pid && String(it.pid),
    Labels: Object.entries(it.labels).map((label) => visibleLine(label.join("="))).join(", "),
    "Further processes": it.execs.map((exec) => `${exec.id} (${exec.status})`).join(", "),
    Runtime: visibleLine(it.runtime),
    Log: visibleLine([it.log].flat().join(", ")),
  };
}

function charts(use) {
  const history = use?.history ?? [];
  const memory = use ? bytes(use.memory) + (use.limit ? ` of ${bytes(use.limit)}` : "") : "";
  const values = (name) => history.map((it) => it[name]).filter((value) => value >= 0);
  byId("charts").hidden = history.length === 0;
  byId("charts").replaceChildren(
    chart("CPU", percent(use?.cpu), values("cpu"), 0.01),
    chart("Memory", memory, values("memory"), 1),
  );
}

function chart(name, value, values, least) {
  const most = Math.max(least, ...values) * 1.1;
  const step = WIDTH / 59;
  const points = values.map((it, index) => {
    const x = WIDTH - (values.length - 1 - index) * step;
    return `${x.toFixed(1)},${(HEIGHT - (it / most) * HEIGHT).toFixed(1)}`;
  });
  const base = drawn("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
  const line = drawn("polyline", { points: points.join(" ") });
  const picture = { viewBox: `0 0 ${WIDTH} ${HEIGHT + 1}`, preserveAspectRatio: "none" };
  return element(
    "figure",
    {},
    element("figcaption", {}, `${name} `, element("strong", {}, value)),
    drawn("svg", { ...picture, role: "img", "aria-label": `${name}: ${value}` }, base, line),
  );
}

/** Loads the earlier runs of a container, and shows them with the current one. */
export async function showRuns(container, signal) {
  const past = await getJson(`v1/containers/${encodeURIComponent(container.id)}/runs`, signal);
  const { run, started, exit } = container;
  const runs = [...past, { run, started, exit }].reverse();
  byId("runs").replaceChildren(...runs.map(rowOf));
}

function rowOf({ run, started, exit, error }) {
  const ran = started && exit ? duration(Date.parse(exit.time) - Date.parse(started)) : "";
  const end = exit ? status(exit.status) : error ? visibleLine(error) : "";
  const cells = [String(run), started ? clock(started) : "", ran, end];
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}
