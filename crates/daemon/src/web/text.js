// Turns data into text and elements. Whatever comes from a container becomes text, never markup.

// Control characters, marks of direction, and characters that nobody sees.
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

/** Returns the text with all characters visible: the picture of a control character, or its number. */
export function visible(text) {
  return text.replaceAll("\r\n", "\n").replace(HIDDEN, (character) => {
    const code = character.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `<U+${code.toString(16).toUpperCase().padStart(4, "0")}>`;
  });
}

/** As `visible`, in one line. */
export function visibleLine(text) {
  return visible(text).replaceAll("\n", "\u240a").replaceAll("\t", "\u2409");
}

/** Makes an element. Children are elements or text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Makes an element of a drawing. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

export function bytes(count) {
  if (count === undefined || count === null) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export function percent(share) {
  if (share === undefined) return "";
  return `${share < 0.1 ? (share * 100).toFixed(1) : Math.round(share * 100)} %`;
}

/** Returns a duration in words, from milliseconds. */
export function duration(millis) {
  const seconds = Math.max(0, Math.round(millis / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86400)} d`;
}

export function since(time) {
  return time ? duration(Date.now() - Date.parse(time)) : "";
}

/** Returns an element with the time of the day, and the whole time as its title. */
export function clock(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  const text = today ? date.toLocaleTimeString([], { hour12: false }) : date.toLocaleString([], { hour12: false });
  return element("time", { datetime: time, title: time }, text);
}

/** Returns an exit status in words. */
export function status(exit) {
  if ("code" in exit) return `exited ${exit.code}`;
  if ("signal" in exit) return `killed by signal ${exit.signal}`;
  return `exit unknown: ${exit.unknown.replaceAll("-", " ")}`;
}

/** Whether an exit status is a success. */
export function succeeded(exit) {
  return exit.code === 0;
}

/** Returns the state of a container in words. */
export function state(container) {
  if (container.status !== "stopped" || !container.exit) return container.status;
  return status(container.exit.status) + (container.oomKilled ? ", out of memory" : "");
}

/** Returns the kind of the state of a container, which colours it. */
export function kind(container) {
  if (container.status !== "stopped") return container.status;
  return container.exit && succeeded(container.exit.status) ? "stopped" : "failed";
}
