// Requests to the daemon: all are GET, with the token in a header, never in a URL.

const KEY = "holdfast-token";

/** The daemon refused a request. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Asks the daemon. A failure of the daemon is `Refused`, one of the connection a `TypeError`. */
export async function get(path, signal) {
  const answer = await fetch(path, {
    headers: { authorization: `Bearer ${token.get()}` },
    cache: "no-store",
    credentials: "omit",
    redirect: "error",
    signal,
  });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.message ?? `the daemon answered ${answer.status}`);
}

export async function getJson(path, signal) {
  return (await get(path, signal)).json();
}

async function* chunks(body) {
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Yields the values of a stream of JSON lines, as an array for each piece that arrives. */
export async function* lines(body) {
  const decoder = new TextDecoder();
  let rest = "";
  for await (const chunk of chunks(body)) {
    const all = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = all.pop();
    yield all.filter((line) => line !== "").map((line) => JSON.parse(line));
  }
}

/** Yields the frames of a stream: one byte kind, four bytes length, content. */
export async function* frames(body) {
  let held = new Uint8Array();
  for await (const chunk of chunks(body)) {
    const all = new Uint8Array(held.length + chunk.length);
    all.set(held);
    all.set(chunk, held.length);
    let at = 0;
    while (all.length - at >= 5) {
      const end = at + 5 + new DataView(all.buffer).getUint32(at + 1);
      if (all.length < end) break;
      yield { kind: all[at], content: all.subarray(at + 5, end) };
      at = end;
    }
    held = all.slice(at);
  }
}

/** Waits, or throws once `signal` is aborted. */
export function pause(millis, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, millis);
    signal.addEventListener("abort", stop, { once: true });
  });
}

/**
 * Does a task again and again, until `signal` is aborted or `failed` returns true. It waits between two attempts:
 * longer each time, from the beginning once the task has called its argument.
 */
export async function persist(task, failed, signal) {
  let wait = 250;
  for (;;) {
    try {
      await task(() => (wait = 250));
    } catch (error) {
      if (signal.aborted || failed(error)) return;
    }
    try {
      await pause(wait, signal);
    } catch {
      return;
    }
    wait = Math.min(2 * wait, 5000);
  }
}
