// The table of containers: filtered, sorted, and limited in length.

import { byId, bytes, element, kind, percent, since, state, visibleLine } from "./text.js";

/** How many rows are shown at first, and how many more each time. */
const ROWS = 100;

const changed = (container) =>
  (container.status === "stopped" ? container.exit?.time : container.started) ?? container.created ?? "";

const COLUMNS = [
  { name: "Container", of: (it) => it.id },
  { name: "State", of: (it) => state(it) },
  { name: "Since", of: changed, down: true, class: "less" },
  { name: "Restarts", of: (it) => it.restart?.count ?? 0, down: true, class: "less" },
  { name: "CPU", of: (it, use) => use?.cpu ?? -1, down: true, class: "least" },
  { name: "Memory", of: (it, use) => use?.memory ?? -1, down: true },
];

let sorted = { column: 0, down: false };
let most = ROWS;
const rows = new Map();
let draw = () => {};
let open = () => {};

/** Prepares the table. `redraw` has it drawn again, `opened` is called with the id of a container. */
export function prepare(redraw, opened) {
  draw = redraw;
  open = opened;
  COLUMNS.forEach((column, index) => {
    const button = element("button", { type: "button" }, column.name);
    button.addEventListener("click", () => {
      const again = sorted.column === index;
      sorted = { column: index, down: again ? !sorted.down : Boolean(column.down) };
      draw();
    });
    byId("columns").append(element("th", { class: column.class, scope: "col" }, button));
  });
  for (const id of ["filter", "state"]) {
    byId(id).addEventListener("input", () => {
      most = ROWS;
      draw();
    });
  }
  byId("more").addEventListener("click", () => {
    most += ROWS;
    draw();
  });
}

function isInState(container, wanted) {
  switch (wanted) {
    case "":
      return true;
    case "failed":
      return kind(container) === "failed";
    case "restarted":
      return container.restart?.count > 0;
    default:
      return container.status === wanted;
  }
}

function isWanted(container, words, wanted) {
  if (!isInState(container, wanted)) return false;
  if (words.length === 0) return true;
  const labels = Object.entries(container.labels).map((label) => label.join("="));
  const text = [container.id, ...container.args, ...labels].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** Shows these containers. `uses` has what each uses, by its id. */
export function show(containers, uses, openId) {
  const words = byId("filter").value.toLowerCase().split(" ").filter((word) => word !== "");
  const found = containers.filter((it) => isWanted(it, words, byId("state").value));
  const { of } = COLUMNS[sorted.column];
  const keys = new Map(found.map((it) => [it, of(it, uses.get(it.id))]));
  const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const way = sorted.down ? -1 : 1;
  found.sort((a, b) => way * order(keys.get(a), keys.get(b)) || order(a.id, b.id));

  [...byId("columns").children].forEach((head, index) => {
    const direction = sorted.down ? "descending" : "ascending";
    head.setAttribute("aria-sort", index === sorted.column ? direction : "none");
  });
  const shown = found.slice(0, most);
  place(shown.map((container) => row(container, uses.get(container.id), openId)));
  const present = new Set(containers.map((it) => it.id));
  for (const id of rows.keys()) {
    if (!present.has(id)) rows.delete(id);
  }
  byId("more").hidden = shown.length === found.length;
  byId("counts").textContent = counts(containers, found.length, shown.length);
}

function counts(containers, found, shown) {
  const of = (wanted) => containers.filter((it) => isInState(it, wanted)).length;
  const states = ["running", "paused", "created", "stopped"].map((state) => `${of(state)} ${state}`);
  const all = `${containers.length} containers: ${states.join(", ")} (${of("failed")} failed)`;
  if (found === containers.length && shown === found) return all;
  return `${all}. Shown: ${shown} of ${found}`;
}

/** Puts rows in their order. One that has the focus keeps it. */
function place(wanted) {
  const body = byId("rows");
  if (wanted.length === body.children.length && wanted.every((row, index) => row === body.children[index])) return;
  const focused = body.contains(document.activeElement) ? document.activeElement : null;
  body.replaceChildren(...wanted);
  focused?.focus();
}

/** Makes the row of a container, or brings it up to date. */
function row(container, use, openId) {
  let made = rows.get(container.id);
  if (!made) {
    const button = element("button", { type: "button", class: "link" }, container.id);
    button.addEventListener("click", () => open(container.id));
    const command = element("span", { class: "command" });
    const cells = COLUMNS.map((column) => element("td", { class: column.class }));
    cells[0].append(button, command);
    made = { row: element("tr", {}, ...cells), cells, command };
    rows.set(container.id, made);
  }
  const { cells, command } = made;
  made.row.classList.toggle("open", container.id === openId);
  write(command, visibleLine(container.args.join(" ")));
  write(cells[1], state(container));
  cells[1].dataset.kind = kind(container);
  write(cells[2], since(changed(container)));
  write(cells[3], container.restart ? String(container.restart.count) : "");
  write(cells[4], percent(use?.cpu));
  write(cells[5], bytes(use?.memory));
  return made.row;
}

function write(cell, text) {
  if (cell.textContent !== text) cell.textContent = text;
}
