// Watch: an episode step by step, with what the policy thinks at each.

import { get, inTurn, pixels, post, say } from "./api.js";
import { COLOURS, Mask, View } from "./view.js";
import { framed } from "./play.js";

export function watch(root) {
  const $ = selector => root.querySelector(selector), turn = inTurn();
  let film = null, at = 0;
  const view = new View($("canvas"), { paint });

  const heat = () => $("[name=heat]:checked").value;

  function paint(view) {
    if (!film) return;
    const step = film.steps[at], [left, top, side] = step.view, size = side / step.grid, c = view.context;
    if (step.positive && heat() !== "none") {
      const most = Math.max(...step.positive, ...step.negative);
      for (const [chances, colour, name] of [[step.positive, COLOURS.positive, "positive"], [step.negative, COLOURS.negative, "negative"]]) {
        if (![name, "both"].includes(heat())) continue;
        c.fillStyle = colour;
        chances.forEach((chance, cell) => {
          const strength = Math.sqrt(chance / most);  // so that what is less likely can be seen as well
          if (strength < 0.06) return;
          c.globalAlpha = 0.85 * strength;
          c.fillRect(left + (cell % step.grid) * size, top + Math.floor(cell / step.grid) * size, size * 0.98, size * 0.98);
        });
      }
      c.globalAlpha = 1;
    }
    view.mask(film.masks[at], COLOURS.mask, { fill: step.positive && heat() !== "none" ? 0.1 : 0.34 });
    view.line(film.truth.outline, COLOURS.truth, 1.5, [5, 4]);
    if (step.cue) view.rectangle(step.cue, COLOURS.cue, 1.5, [6, 4]);
    if (step.kind === "box") view.rectangle(step.box, COLOURS.box, 2);
    step.clicks.forEach(([x, y, label], k) => view.dot(x, y, label, { number: String(k + 1) }));
  }

  const shown = value => (value === null || value === undefined ? "–" : value.toFixed(3));

  function update() {
    const step = film.steps[at];
    $(".at").textContent = at === 0 ? "before the first prompt" : `after ${step.prompts} of ${step.max_prompts} prompts`;
    $(".iou").textContent = shown(step.iou);
    $(".sam").textContent = shown(step.predicted);
    $(".judge").textContent = shown(step.judged);
    $(".value").textContent = shown(step.value);
    $(".heat").hidden = !film.steps[0].positive;
    $(".stopping").textContent = step.stop === null ? "The episode has ended." : `It would stop with probability ${step.stop.toFixed(3)}. The stronger the colour, the likelier the click.`;
    say(`Step ${at}, IoU ${shown(step.iou)}`);
    curve();
    view.redraw();
  }

  function curve() {
    const n = Math.max(1, film.steps.length - 1), x = k => 30 + (k / n) * 200, y = value => 108 - value * 98;
    const part = (name, values) => values.some(one => one !== null)
      ? `<path class="${name}" d="M${values.map((one, k) => (one === null ? null : `${x(k).toFixed(1)},${y(one).toFixed(1)}`)).filter(Boolean).join("L")}"/>` : "";
    const series = { iou: ["measured", "iou"], sam: ["SAM", "predicted"], judge: ["agent", "judged"] };
    const last = film.steps.length - 1;
    const labels = Object.entries(series).map(([name, [label, key]]) => [name, label, film.steps[last][key]]).filter(one => one[2] !== null).sort((a, b) => b[2] - a[2]);
    let low = -99;
    const texts = labels.map(([name, label, value]) => { low = Math.max(low + 11, y(value) + 3); return `<text class="${name}" x="236" y="${low.toFixed(1)}">${label}</text>`; });
    $(".curve").innerHTML = [0, 0.5, 1].map(v => `<line x1="30" x2="230" y1="${y(v)}" y2="${y(v)}"/><text x="24" y="${y(v) + 3}" text-anchor="end">${v}</text>`).join("")
      + `<line class="now" x1="${x(at)}" x2="${x(at)}" y1="10" y2="108"/>`
      + Object.entries(series).map(([name, [, key]]) => part(name, film.steps.map(step => step[key]))).join("") + texts.join("");
  }

  const go = to => { if (!film) return; at = Math.min(film.steps.length - 1, Math.max(0, to)); $(".step").value = at; update(); };

  const who = () => turn(async () => {
    const names = await get(`/watch/who?env_id=${encodeURIComponent($(".environment").value)}`);
    $(".who").replaceChildren(...names.map(name => new Option(name, name)));
  });

  // Another episode, or the same one with somebody else in it
  const begin = seed => turn(async () => {
    const answer = await post("/watch/film", { env_id: $(".environment").value, who: $(".who").value, seed });
    const image = await pixels(`/watch/pixels?film=${answer.film}`);
    film = { ...answer, truth: new Mask(answer.truth), masks: answer.steps.map(step => new Mask(step.mask)) };
    $(".step").max = film.steps.length - 1;
    const first = film.steps[0];
    view.show(image, first.width, first.height, framed(first.view, 1.1));
    go(0);
    root.dataset.film = answer.film;
  });

  $(".step").addEventListener("input", event => go(Number(event.target.value)));
  $("[data-do=film]").addEventListener("click", () => begin(null));
  $(".environment").addEventListener("change", () => { who(); begin(null); });
  $(".who").addEventListener("change", () => begin(film ? film.seed : null));
  for (const radio of root.querySelectorAll("[name=heat]")) radio.addEventListener("change", () => view.redraw());

  function keys(key) {
    const doing = {
      ArrowLeft: () => go(at - 1), ArrowRight: () => go(at + 1), Home: () => go(0), End: () => go(Infinity), n: () => begin(null),
      "0": () => view.fit(), "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8),
    }[key];
    doing?.();
    return Boolean(doing);
  }

  who();
  begin(null);
  return { keys, show: () => view.resize() };
}
