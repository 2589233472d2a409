// The page: who is logged in, what is asked for and when, and which container is open.

import { Refused, get, getJson, lines, pause, persist, token } from "./api.js";
import * as details from "./details.js";
import { follow } from "./output.js";
import * as table from "./table.js";
import { byId, visibleLine } from "./text.js";
import * as timeline from "./timeline.js";

/** How often usage is asked for, and the least time between two lists of containers, in milliseconds. */
const USAGE = 3000;
const LIST = 1000;
/** How long what has changed waits to be drawn, in milliseconds. */
const DRAWN = 100;
/** How many samples of usage are kept, and how many events are asked for at first. */
const SAMPLES = 60;
const EVENTS = 5000;

const containers = new Map();
const uses = new Map();
/** Whoever waits for the next start of a container, by its id. */
const waiting = new Map();
/** What ends all requests of this log-in, and those of the open container. */
let session = null;
let opened = null;

/** Returns the id that the address names, or nothing. */
function openId() {
  const id = location.hash.slice(1);
  return /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(id) ? id : "";
}

function open(id) {
  location.hash = id;
}

let drawing = false;

/** Has all drawn again soon, once, however much happens until then. */
function draw() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => {
    drawing = false;
    table.show([...containers.values()], uses, openId());
    timeline.show(open);
    if (opened) details.show(opened.id, containers.get(opened.id), uses.get(opened.id));
  }, DRAWN);
}

function say(text, good) {
  byId("connection").textContent = text;
  byId("connection").dataset.kind = good ? "running" : "failed";
}

/** What to do after a failure: without a right token, log out; else try again. */
function failed(error) {
  const refused = error instanceof Refused && error.status === 401;
  if (refused) logOut("The daemon does not accept this token.");
  return refused;
}

let cursor = null;
let listWanted = () => {};

/** Follows the events. Each of them may change the list of containers. */
async function followEvents(signal) {
  await persist(async (connected) => {
    cursor ??= await recent(signal);
    const answer = await get(`v1/events?since=${cursor}`, signal);
    connected();
    const info = await getJson("v1/info", signal);
    byId("daemon").textContent = visibleLine(`${info.version} on Linux ${info.abilities.kernel}`);
    say("Live", true);
    listWanted();
    for await (const received of lines(answer.body)) {
      for (const line of received) take(line);
      listWanted();
      draw();
    }
    throw new Error("the daemon has ended the stream");
  }, (error) => {
    say(error instanceof Refused ? visibleLine(error.message) : "No connection; trying again", false);
    return failed(error);
  }, signal);
}

function take(line) {
  cursor = line.cursor;
  if (!line.event) return;
  timeline.add(line);
  if (line.event === "started" && line.process === "init") {
    waiting.get(line.container)?.();
    waiting.delete(line.container);
  }
}

/** Returns a cursor before the last events. */
async function recent(signal) {
  const answer = await get("v1/events?follow=false", signal);
  await answer.text();
  const [journal, number] = answer.headers.get("holdfast-cursor").split(":");
  return `${journal}:${Math.max(0, Number(number) - EVENTS)}`;
}

/** Lists the containers whenever something has happened, with one request. */
async function followList(signal) {
  let wanted = new Promise((resolve) => (listWanted = resolve));
  await persist(async (connected) => {
    await wanted;
    wanted = new Promise((resolve) => (listWanted = resolve));
    try {
      const all = await getJson("v1/containers", signal);
      connected();
      containers.clear();
      for (const it of all) containers.set(it.id, it);
    } catch (error) {
      listWanted();
      throw error;
    }
    draw();
    refreshRuns();
    await pause(LIST, signal);
  }, failed, signal);
}

/** Asks for the usage of all containers, with one request. */
async function followUsage(signal) {
  let before = null;
  await persist(async (connected) => {
    for (;;) {
      const all = await getJson("v1/stats", signal);
      connected();
      before = addUsage(all, before);
      draw();
      await pause(USAGE, signal);
    }
  }, failed, signal);
}

function addUsage(all, before) {
  const now = performance.now();
  const cpu = new Map();
  for (const { id, stats } of all) {
    cpu.set(id, stats.cpuNanos);
    const earlier = before?.cpu.get(id);
    // Less than before: it was started again.
    const share = earlier <= stats.cpuNanos ? (stats.cpuNanos - earlier) / 1e6 / (now - before.now) : undefined;
    const use = uses.get(id) ?? { history: [] };
    Object.assign(use, { cpu: share, memory: stats.memoryBytes, limit: stats.memoryLimitBytes });
    use.history.push({ cpu: share, memory: stats.memoryBytes });
    if (use.history.length > SAMPLES) use.history.shift();
    uses.set(id, use);
  }
  for (const id of uses.keys()) {
    if (!cpu.has(id)) uses.delete(id);
  }
  return { now, cpu };
}

/** Opens the container that the address names, or closes the open one. Without an event, the focus stays. */
function navigate(event) {
  opened?.stop.abort();
  opened = null;
  waiting.clear();
  const id = openId();
  byId("details").hidden = id === "" || !session;
  byId("page").classList.toggle("opened", !byId("details").hidden);
  if (id === "" || !session) return draw();
  opened = { id, stop: new AbortController(), run: null };
  const signal = AbortSignal.any([session.signal, opened.stop.signal]);
  const started = () => new Promise((resolve) => waiting.set(id, resolve));
  byId("runs").replaceChildren();
  details.show(id, containers.get(id), uses.get(id));
  if (event) byId("details-title").focus();
  follow(id, started, signal);
  refreshRuns();
  draw();
}

/** Loads the runs of the open container, if there are others than those that are shown. */
function refreshRuns() {
  const container = opened && containers.get(opened.id);
  const run = container && `${container.run} ${container.status}`;
  if (!container || opened.run === run) return;
  opened.run = run;
  details.showRuns(container, opened.stop.signal).catch(() => (opened && (opened.run = null)));
}

/** Begins all requests. */
function begin() {
  session = new AbortController();
  for (const task of [followEvents, followList, followUsage]) task(session.signal);
  navigate();
}

/** Ends all requests. */
function end() {
  session?.abort();
  session = null;
}

function logIn() {
  byId("login").hidden = true;
  byId("page").hidden = false;
  byId("log-out").hidden = false;
  begin();
}

function logOut(reason) {
  token.forget();
  end();
  navigate();
  cursor = null;
  containers.clear();
  uses.clear();
  timeline.clear();
  byId("page").hidden = true;
  byId("log-out").hidden = true;
  byId("login").hidden = false;
  byId("login-error").textContent = reason;
  byId("daemon").textContent = "";
  byId("connection").textContent = "";
  byId("token").focus();
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token.set(byId("token").value.trim());
  byId("token").value = "";
  logIn();
});
byId("log-out").addEventListener("click", () => logOut(""));
byId("close").addEventListener("click", () => open(""));
byId("range").addEventListener("change", draw);
window.addEventListener("hashchange", navigate);
window.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && opened && event.target !== byId("filter")) open("");
  if (event.key === "/" && !["INPUT", "SELECT"].includes(event.target.tagName)) {
    event.preventDefault();
    byId("filter").focus();
  }
});
table.prepare(draw, open);
// Nobody looks at a hidden page. A browser has six connections to a daemon for all pages together.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) end();
  else if (token.get() && !session) begin();
});

if (token.get()) logIn();
else logOut("");
