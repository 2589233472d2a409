// The live output of one container. It goes on where it was after the daemon was away.

import { Refused, frames, get, persist } from "./api.js";
import { byId, element, visible } from "./text.js";

/** How many lines are asked for at first, and how many characters are kept, and in a block. */
const TAIL = 500;
const KEPT = 200000;
const BLOCK = 8000;
/** How long output waits to be drawn, in milliseconds. */
const DRAWN = 50;

const NAMES = { 1: "stdout", 2: "stderr", 4: "notices" };

/** Shows the output of a container until `signal` is aborted. `started` returns a promise of its next start. */
export async function follow(id, started, signal) {
  const area = byId("output");
  area.replaceChildren();
  const screen = new Screen(area);
  let place = null;
  let had = { stdout: 0, stderr: 0, notices: 0 };
  const query = () => {
    const from = place === null ? { tail: TAIL } : { after: place, ...had };
    return new URLSearchParams({ follow: true, positions: true, ...from });
  };
  const attempt = async (connected) => {
    const next = started();
    const answer = await get(`v1/containers/${encodeURIComponent(id)}/logs?${query()}`, signal);
    connected();
    say("Live");
    for await (const { kind, content } of frames(answer.body)) {
      const name = NAMES[kind];
      if (name) {
        had[name] += content.length;
        await screen.write(name, content);
      } else if (kind === 5) {
        place = new TextDecoder().decode(content);
        had = { stdout: 0, stderr: 0, notices: 0 };
      } else if (kind === 3) {
        const message = JSON.parse(new TextDecoder().decode(content));
        if (message.failed) throw new Error(message.failed.message);
      }
    }
    say("Ended");
    await next;
  };
  const failed = (error) => {
    if (error instanceof Refused && error.status < 500) {
      say(visible(error.message));
      return true;
    }
    say("No connection; trying again");
    return false;
  };
  await persist(attempt, failed, signal);
}

function say(text) {
  byId("output-state").textContent = text;
}

/**
 * Output on its way to the page. It is drawn some times per second, however much comes; who writes more than that
 * waits. It is kept in blocks of whole lines, since a browser lays out a changed block anew.
 */
class Screen {
  constructor(area) {
    this.area = area;
    this.decoders = {};
    this.waiting = [];
    this.waits = 0;
    this.drawn = null;
    this.block = null;
    this.kept = 0;
  }

  /** Adds output. Resolves once there is room for more. */
  async write(name, content) {
    this.decoders[name] ??= new TextDecoder();
    const text = visible(this.decoders[name].decode(content, { stream: true }));
    const last = this.waiting.at(-1);
    if (last?.name === name) last.text += text;
    else this.waiting.push({ name, text });
    this.waits += text.length;
    this.drawn ??= new Promise((resolve) => {
      setTimeout(() => {
        this.drawn = null;
        this.draw();
        resolve();
      }, DRAWN);
    });
    if (this.waits > BLOCK) await this.drawn;
  }

  draw() {
    for (const { name, text } of this.waiting) {
      const end = text.lastIndexOf("\n") + 1;
      this.append(name, text.slice(0, end));
      const isFull = this.block?.textContent.length > BLOCK;
      // A line that never ends is cut, too.
      if (isFull && (end > 0 || this.block.textContent.length > 4 * BLOCK)) this.block = null;
      this.append(name, text.slice(end));
    }
    this.waiting = [];
    this.waits = 0;
    while (this.kept > KEPT && this.area.children.length > 1) {
      this.kept -= this.area.firstChild.textContent.length;
      this.area.firstChild.remove();
    }
    if (byId("follow").checked) this.area.scrollTop = this.area.scrollHeight;
  }

  append(name, text) {
    if (text === "") return;
    if (!this.block) {
      this.block = element("div");
      this.area.append(this.block);
    }
    this.block.append(element("span", { class: name }, text));
    this.kept += text.length;
  }
}
