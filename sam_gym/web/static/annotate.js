// Annotate: a folder of images. The server keeps the session; the page draws it and says what the person does.

import { get, inTurn, pixels, post, say, store, tell } from "./api.js";
import { COLOURS, Mask, PALETTE, View } from "./view.js";

export function annotate(root, config) {
  const $ = selector => root.querySelector(selector), turn = inTurn();
  const masks = new Map();
  let state = null, cursor = null, corner = null, drawn = null, grabbed = null, kind = 1, tool = "box", busy = 0;

  const view = new View($("canvas"), { tap, drag, paint });

  // ------------------------------------------------------------------------------------------------ drawing

  const colourOf = one => PALETTE[(one.id - 1) % PALETTE.length];
  const active = () => state?.objects.find(one => one.id === state.active);

  function paint(view) {
    if (!state) return;
    if ($("#show").checked) {
      for (const one of state.objects) {
        const mask = masks.get(one.key);
        if (mask && one.id !== state.active) view.mask(mask, colourOf(one), { fill: one.accepted ? 0.3 : 0.12, dash: one.accepted ? [] : [5, 4] });
      }
    }
    const one = active();
    if (one) {
      const mask = masks.get(one.key);
      if (mask && $("#show").checked) view.mask(mask, COLOURS.mask, { fill: 0.38, width: 2.5 });
      const box = grabbed?.box || one.box;
      view.rectangle(box, COLOURS.cue, 1.5, [6, 4]);
      for (const [x, y] of corners(box)) { view.context.fillStyle = "#fff"; const r = 4 / view.scale; view.context.fillRect(x - r, y - r, 2 * r, 2 * r); }
      one.clicks.forEach(click => view.dot(click.x, click.y, click.label, { ring: click.by === "agent" ? COLOURS.box : "#ffffff" }));
    }
    if (drawn) view.rectangle(drawn, COLOURS.box, 2);
    if (corner && cursor) view.rectangle([...corner, ...cursor], COLOURS.box, 2);
    if (cursor) view.cross(...cursor);
  }

  const corners = ([x0, y0, x1, y1]) => [[x0, y0], [x1, y0], [x0, y1], [x1, y1]];

  function update() {
    const one = active(), done = state ? state.objects.filter(other => other.accepted).length : 0;
    $("#task").textContent = !state ? "" : one
      ? `Object ${one.id}: ${one.clicks.length} click${one.clicks.length === 1 ? "" : "s"}, SAM expects an IoU of ${(state.predicted ?? 0).toFixed(2)}. Click where the mask is wrong, then accept.`
      : "Drag a box around an object, or click on one.";
    for (const name of ["accept", "remove"]) $(`[data-do=${name}]`).disabled = !one;
    $("[data-do=agent]").disabled = !one || !config.agent;
    $("[data-do=agent]").title = config.agent ? "" : "There is no agent: start sam-gym play with --agent";
    $("[data-do=undo]").disabled = !state?.undoable;
    $("[data-do=redo]").disabled = !state?.redoable;
    $("#count").textContent = state ? `${done} of ${state.objects.length} accepted` : "";
    $("#objects").replaceChildren(...(state?.objects || []).map(object => {
      const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("i");
      swatch.style.background = object.id === state.active ? COLOURS.mask : colourOf(object);
      const name = document.createElement("span"), how = document.createElement("em");
      name.textContent = `${object.id} ${config.kinds[object.kind - 1] || `class ${object.kind}`}`;
      how.textContent = object.accepted ? "✓ accepted" : object.id === state.active ? "in work" : "open";
      button.append(swatch, name, how);
      button.setAttribute("aria-current", object.id === state.active);
      button.addEventListener("click", () => act("select", { object: object.id }));
      item.append(button);
      return item;
    }));
    for (const button of $("#kinds").querySelectorAll("button")) button.setAttribute("aria-pressed", Number(button.dataset.kind) === (one?.kind || kind));
    view.redraw();
  }

  // ------------------------------------------------------------------------------------------------ the server

  async function took(answer) {
    for (const [key, mask] of Object.entries(answer.masks)) masks.set(key, new Mask(mask));
    state = answer;
    for (const one of answer.objects) {  // undoing may bring back an object whose mask never came here
      if (!masks.has(one.key)) masks.set(one.key, new Mask(await get(`/annotate/mask?image=${encodeURIComponent(answer.image)}&object=${one.id}`)));
    }
    update();
  }

  const send = async (act, more = {}) => {
    const body = { image: state.image, act, ...more };
    try {
      return await post("/annotate/act", body);
    } catch (error) {
      if (error.status !== 404) throw error;
      await took(await post("/annotate/open", { image: state.image }));  // the server was started anew: go on
      return post("/annotate/act", body);
    }
  };

  function act(name, more) {
    return turn(async () => {
      if (!state) return;
      busy += 1;
      try {
        await took(await send(name, more));
        if (name.startsWith("begin") && $("#auto").checked && config.agent) await took(await send("agent_run"));
        if (name === "accept") await overview();
      } finally { busy -= 1; root.dataset.busy = busy; }
      const one = active();
      say(one ? `Object ${one.id}, ${one.clicks.length} clicks, expected IoU ${(state.predicted ?? 0).toFixed(2)}` : `${name}: done`);
    });
  }

  async function overview() {
    const images = await get("/annotate/images");
    $("#images").replaceChildren(...images.map(one => {
      const done = one.accepted ? ` · ${one.accepted}` : "", taken = one.taken === null ? "" : ` · ${one.taken || "somebody"} is on it`;
      const option = new Option(one.name + done + taken, one.name);
      option.disabled = one.taken !== null;
      return option;
    }));
    if (state) $("#images").value = state.image;
    return images;
  }

  const contrast = () => `low=${$("#low").value}&high=${$("#high").value}`;
  const picture = name => pixels(`/annotate/pixels?image=${encodeURIComponent(name)}&${contrast()}`);

  function open(name) {
    return turn(async () => {
      if (state && state.image !== name) await post("/annotate/close", { image: state.image });
      const image = await picture(name);
      view.show(image, image.width, image.height);  // it can be looked at while SAM reads it
      state = cursor = corner = null;
      masks.clear();
      update();
      $("#task").textContent = "SAM reads the image. The first time takes some seconds.";
      await took(await post("/annotate/open", { image: name }));
      root.dataset.open = name;
      await overview();
      store.set("image", name);
    });
  }

  function step(by) {
    const free = [...$("#images").options].filter(one => !one.disabled || one.selected);
    const next = free[free.findIndex(one => one.selected) + by];
    if (next) open(next.value);
    else tell(by > 0 ? "This is the last image." : "This is the first image.");
  }

  // ------------------------------------------------------------------------------------------- what one does

  function click(x, y, background) {
    if (!state || x < 0 || y < 0 || x > state.width || y > state.height) return;
    if (active()) { act("click", { x, y, label: background ? 0 : 1 }); return; }
    const there = state.objects.find(one => masks.get(one.key)?.has(x, y));
    if (there) act("select", { object: there.id });
    else if (!background) act("begin_click", { x, y, kind });
  }

  function tap(x, y, background) { cursor = corner = null; click(x, y, background || tool === "minus"); view.redraw(); }

  function drag(x0, y0, x1, y1, done) {
    if (!state) return;
    if (x0 === null) { drawn = grabbed = null; view.redraw(); return; }
    const one = active(), near = 9 / view.scale;
    if (!drawn && !grabbed && one) {
      const at = corners(one.box).findIndex(([x, y]) => Math.abs(x - x0) < near && Math.abs(y - y0) < near);
      if (at >= 0) grabbed = { at, box: one.box };
    }
    if (grabbed) {
      const fixed = corners(one.box)[3 - grabbed.at];
      grabbed.box = sorted(fixed[0], fixed[1], x1, y1);
      if (done) { act("move_box", { box: grabbed.box }).then(() => { grabbed = null; view.redraw(); }); }
    } else {
      drawn = sorted(x0, y0, x1, y1);
      if (done) { const box = drawn; drawn = null; begin(box); }
    }
    view.redraw();
  }

  const sorted = (a, b, c, d) => [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  const begin = box => { if (box[2] - box[0] >= 2 && box[3] - box[1] >= 2) act("begin_box", { box, kind }); };

  function setKind(number) {
    kind = number;
    if (active()) act("kind", { kind }); else update();
  }

  const doing = {
    agent: () => act("agent_run"), step: () => act("agent_step"), accept: () => act("accept"), undo: () => act("undo"),
    redo: () => act("redo"), remove: () => act("remove"), next: () => step(1), previous: () => step(-1), fit: () => view.fit(),
  };
  for (const button of root.querySelectorAll("[data-do]")) button.addEventListener("click", doing[button.dataset.do]);
  for (const button of root.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool));
  function choose(name) {
    tool = name;
    view.pan = name !== "box";
    for (const button of root.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
  }
  $("#images").addEventListener("change", event => open(event.target.value));
  $("#show").addEventListener("change", () => view.redraw());
  for (const name of ["low", "high"]) $(`#${name}`).addEventListener("change", () => turn(async () => { if (state) { view.image = await picture(state.image); view.redraw(); } }));
  $("#person").value = store.get("person") || "";
  $("#person").addEventListener("change", event => store.set("person", event.target.value));
  $("#kinds").append(...config.kinds.map((name, k) => {
    const button = document.createElement("button");
    button.dataset.kind = k + 1;
    button.innerHTML = `<kbd>${k + 1}</kbd> `;
    button.append(name);
    button.addEventListener("click", () => setKind(k + 1));
    return button;
  }));
  addEventListener("pagehide", () => { if (state) post("/annotate/close", { image: state.image }, true).catch(() => {}); });

  function point(dx, dy, far) {
    if (!state) return;
    const pixel = (far ? 40 : 8) / view.scale;
    const [x, y] = cursor || view.toImage(view.canvas.clientWidth / 2, view.canvas.clientHeight / 2);
    cursor = [Math.min(state.width, Math.max(0, x + dx * pixel)), Math.min(state.height, Math.max(0, y + dy * pixel))];
    view.reveal(...cursor);
    view.redraw();
  }

  function keys(key, shift) {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (arrows[key]) { point(...arrows[key], shift); return true; }
    if (/^[1-9]$/.test(key) && Number(key) <= config.kinds.length) { setKind(Number(key)); return true; }
    const more = {
      a: doing.agent, s: doing.step, z: doing.undo, Z: doing.redo, y: doing.redo, Enter: doing.accept, Delete: doing.remove,
      Backspace: doing.remove, n: doing.next, p: doing.previous, "0": doing.fit, "+": () => view.zoom(1.25), "=": () => view.zoom(1.25), "-": () => view.zoom(0.8),
      " ": () => cursor && click(...cursor, false), x: () => cursor && click(...cursor, true),
      m: () => { $("#show").checked = !$("#show").checked; view.redraw(); },
      Escape: () => { cursor = corner = drawn = null; view.redraw(); },
      b: () => { if (!cursor) return; if (corner) { begin(sorted(...corner, ...cursor)); corner = null; } else corner = cursor; view.redraw(); },
    }[key];
    more?.();
    return Boolean(more);
  }

  choose("box");
  overview().then(images => {
    const free = images.filter(one => one.taken === null), last = free.find(one => one.name === store.get("image"));
    const first = last || free.find(one => !one.accepted) || free[0];
    if (first) open(first.name); else tell("Somebody works on each of the images. Come back later.");
  }).catch(error => tell(error.message));
  return { keys, show: () => view.resize() };
}
