// Requests to the server, and the bar that tells what it is busy with.

const store = {
  get: key => { try { return localStorage.getItem(key); } catch { return null; } },
  set: (key, value) => { try { localStorage.setItem(key, value); } catch { /* a browser that keeps nothing */ } },
};
export { store };

const secret = new URLSearchParams(location.hash.slice(1)).get("token");
if (secret) sessionStorage.setItem("token", secret);
const random = () => [...crypto.getRandomValues(new Uint8Array(12))].map(b => b.toString(16).padStart(2, "0")).join("");
const browser = store.get("browser") || random();
store.set("browser", browser);

const headers = () => ({
  "X-Sam-Gym-Browser": browser,
  "X-Sam-Gym-Person": encodeURIComponent(store.get("person") || "").slice(0, 64),
  "X-Sam-Gym-Token": sessionStorage.getItem("token") || "",
});

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

let open = 0;

async function fetched(path, options = {}) {
  open += 1;
  if (open === 1) setTimeout(watchProgress, 350);
  try {
    let answer;
    try {
      answer = await fetch(`/api${path}`, { ...options, headers: { ...headers(), ...options.headers } });
    } catch {
      throw new Refused(0, "The server does not answer. Is sam-gym play still running?");
    }
    if (!answer.ok) {
      const told = await answer.json().catch(() => ({}));
      throw new Refused(answer.status, told.error || `The server says ${answer.status}.`);
    }
    return answer;
  } finally {
    open -= 1;
  }
}

export const get = async path => (await fetched(path)).json();

export async function post(path, body, keepalive = false) {
  const options = { method: "POST", keepalive, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  return (await fetched(path, options)).json();
}

export async function pixels(path) {
  return createImageBitmap(await (await fetched(path)).blob());
}

const WORDS = { encode: "SAM reads the image", masks: "SAM makes the masks again", decode: "SAM makes a mask",
                others: "The others play" };

async function watchProgress() {
  const bar = document.getElementById("progress"), [meter, text] = bar.children;
  while (open > 0) {
    const status = await fetch("/api/status", { headers: headers() }).then(one => one.json()).catch(() => null);
    if (status && open > 0) {
      const { doing, seconds, took, waiting } = status;
      if (took > 0 && doing) { meter.max = Math.max(took, seconds); meter.value = seconds; } else meter.removeAttribute("value");
      const about = took > 1 ? ` of about ${took.toFixed(0)}` : "";
      const line = waiting > 1 ? `, ${waiting - 1} more in the queue` : "";
      text.textContent = `${WORDS[doing] || "Waiting"}: ${seconds.toFixed(1)}${about} s${line}`;
      bar.hidden = false;
    }
    await new Promise(done => setTimeout(done, 250));
  }
  bar.hidden = true;
}

let hiding;
export function tell(message) {
  const box = document.getElementById("message");
  box.textContent = message;
  box.hidden = !message;
  clearTimeout(hiding);
  hiding = setTimeout(() => { box.hidden = true; }, 6000);
}

export const say = text => { document.getElementById("live").textContent = text; };

// Runs one thing at a time; what it throws is shown.
export function inTurn() {
  let last = Promise.resolve();
  return work => {
    last = last.then(work).catch(error => { tell(error.message); if (!(error instanceof Refused)) throw error; });
    return last;
  };
}
