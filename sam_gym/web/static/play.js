// Play: a person acts as an agent would, and sees what others got on the same object.

import { inTurn, pixels, post, say, tell } from "./api.js";
import { COLOURS, Mask, View } from "./view.js";

const ROUNDS = 10;
const TASKS = {
  clicks: "Click where the mask is wrong: left includes a cell, right (or shift) excludes it. Done when you would stop.",
  box: "SAM makes a mask of the box. Drag a better box around the object.",
  choice: "Pick the mask that fits the object best. SAM makes new ones around it.",
  none: "This environment cannot be played in the page.",
};

// Four pictures to choose from, for Play and Rate; `chosen(k)` is called with the one that was picked.
export function four(box, chosen) {
  const views = [0, 1, 2, 3].map(k => {
    const button = document.createElement("button"), canvas = document.createElement("canvas"), number = document.createElement("b");
    number.textContent = k + 1;
    button.append(canvas, number);
    button.setAttribute("aria-label", `Mask ${k + 1}`);
    button.addEventListener("click", () => chosen(k));
    box.append(button);
    const view = new View(canvas, { still: true, paint: one => one.offer && one.mask(one.offer, COLOURS.mask, { fill: 0.28 }) });
    return view;
  });
  return (image, game) => views.forEach((view, k) => {
    view.offer = game.offers ? new Mask(game.offers[k]) : null;
    view.show(image, game.width, game.height, framed(game.view, 1));
    view.resize();
  });
}

// left, top, width, height of what is shown of an image: the view and some of what lies around it.
export const framed = ([left, top, side], margin = 1.25) => {
  const more = (side * (margin - 1)) / 2;
  return [left - more, top - more, side + 2 * more, side + 2 * more];
};

export function play(root) {
  const $ = selector => root.querySelector(selector), turn = inTurn();
  let game = null, image = null, mask = null, truth = null, cell = null, drawn = null, corner = null, cursor = null, tool = "plus";
  let total = 0, played = 0;
  const view = new View($("canvas"), { tap, drag, hover, paint, leave: () => { cell = null; view.redraw(); } });
  const showFour = four($(".four"), k => act({ candidate: k }));

  function paint(view) {
    if (!game) return;
    const [left, top, side] = game.view, size = side / game.grid, c = view.context;
    if (game.kind === "clicks" && !game.ended) {
      const grid = new Path2D();
      for (let k = 0; k <= game.grid; k++) {
        grid.moveTo(left + k * size, top); grid.lineTo(left + k * size, top + side);
        grid.moveTo(left, top + k * size); grid.lineTo(left + side, top + k * size);
      }
      c.strokeStyle = "#ffffff2e"; c.lineWidth = 1 / view.scale; c.stroke(grid);
    }
    if (mask) view.mask(mask, COLOURS.mask, { fill: 0.34 });
    if (truth) view.line(truth.outline, COLOURS.truth, 2.5);
    if (game.cue) view.rectangle(game.cue, COLOURS.cue, 1.5, [6, 4]);
    if (game.kind === "box") view.rectangle(game.box, COLOURS.box, 2);
    if (drawn) view.rectangle(drawn, COLOURS.box, 2, [4, 3]);
    if (corner && cursor) view.rectangle([...corner, ...cursor], COLOURS.box, 2, [4, 3]);
    game.clicks.forEach(([x, y, label], k) => view.dot(x, y, label, { number: String(k + 1) }));
    if (cell !== null && game.kind === "clicks" && !game.ended) {
      const x = left + (cell % game.grid) * size, y = top + Math.floor(cell / game.grid) * size;
      const colour = !game.free[cell] ? "#888888" : tool === "minus" ? COLOURS.negative : COLOURS.positive;
      c.globalAlpha = 0.55; c.fillStyle = colour; c.fillRect(x, y, size, size); c.globalAlpha = 1;
      view.rectangle([x, y, x + size, y + size], "#ffffff", 1.5);
    }
    if (cursor && game.kind === "box") view.cross(...cursor);
  }

  const cellAt = (x, y) => {
    const [left, top, side] = game.view, j = Math.floor(((x - left) / side) * game.grid), i = Math.floor(((y - top) / side) * game.grid);
    return i >= 0 && j >= 0 && i < game.grid && j < game.grid ? i * game.grid + j : null;
  };

  function update() {
    $(".task").textContent = game.ended ? "Your mask is blue, the truth is outlined in yellow." : (game.target ? `Find: ${game.target}. ` : "") + TASKS[game.kind];
    $(".iou").textContent = game.iou === null ? "–" : game.iou.toFixed(3);
    $(".left").textContent = game.max_prompts - game.prompts;
    $(".score").textContent = total.toFixed(2);
    $(".played").textContent = played;
    $("[data-do=stop]").disabled = game.ended || game.kind === "choice";
    $("[data-do=new]").lastChild.textContent = played >= ROUNDS ? " Ten more" : game.ended ? " Next object" : " Another one";
    view.pan = game.kind === "clicks";
    const picking = game.kind === "choice" && !game.ended;
    $(".four").hidden = !picking;
    $("canvas").hidden = picking;
    $(".tools").hidden = picking || game.kind === "box";
    if (picking) showFour(image, game);
    view.redraw();
  }

  function took(answer) {
    game = { ...game, ...answer };
    mask = new Mask(game.mask);
    truth = game.truth ? new Mask(game.truth) : null;
    update();
  }

  const begin = () => turn(async () => {
    if (played >= ROUNDS) total = played = 0;
    const answer = await post("/play/new", { env_id: $(".environment").value });
    image = await pixels(`/play/pixels?game=${answer.game}`);
    game = null; cell = cursor = corner = drawn = null;
    $(".others").hidden = true;
    took(answer);
    view.show(image, game.width, game.height, framed(game.view));
    root.dataset.game = game.game;
  });

  const act = move => turn(async () => {
    if (!game || game.ended) return;
    took(await post("/play/act", { game: game.game, ...move }));
    root.dataset.prompts = game.prompts;
    say(`IoU ${game.iou}, ${game.max_prompts - game.prompts} prompts left`);
    if (!game.ended) return;
    played += 1;
    total += game.iou || 0;
    update();
    const { others } = await post("/play/others", { game: game.game });
    const rows = [["you", game.iou], ...Object.entries(others)].sort((a, b) => b[1] - a[1]);
    $(".others tbody").replaceChildren(...rows.map(([name, iou]) => {
      const row = document.createElement("tr"), cells = [0, 1, 2].map(() => document.createElement("td"));
      if (name === "you") row.className = "mine";
      const bar = document.createElement("span"), length = document.createElement("i");
      bar.className = "bar"; bar.append(length); length.style.width = `${100 * iou}%`;
      cells[0].textContent = name; cells[1].append(bar); cells[2].textContent = iou.toFixed(3);
      row.append(...cells);
      return row;
    }));
    $(".others").hidden = false;
    root.dataset.done = game.game;
    if (played === ROUNDS) tell(`Ten objects: your mean IoU is ${(total / ROUNDS).toFixed(3)}.`);
  });

  function tap(x, y, background) {
    if (!game || game.kind !== "clicks" || game.ended) return;
    const at = cellAt(x, y);
    if (at === null) tell("The agent can click inside of the grid only, and so can you here.");
    else act({ cell: at, label: background || tool === "minus" ? 0 : 1 });
  }

  function hover(x, y) { if (game?.kind === "clicks") { cell = cellAt(x, y); view.redraw(); } }

  function drag(x0, y0, x1, y1, done) {
    if (!game || x0 === null) { drawn = null; return; }
    if (game.kind !== "box" || game.ended) return;
    drawn = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
    if (done) { act({ box: drawn }); drawn = null; }
    view.redraw();
  }

  const doing = { stop: () => act({ stop: true }), new: begin };
  for (const button of root.querySelectorAll("[data-do]")) button.addEventListener("click", doing[button.dataset.do]);
  for (const button of root.querySelectorAll("[data-tool]")) button.addEventListener("click", () => choose(button.dataset.tool));
  function choose(name) {
    tool = name;
    for (const button of root.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", button.dataset.tool === name);
  }
  $(".environment").addEventListener("change", () => { total = played = 0; begin(); });

  function keys(key) {
    if (!game) return false;
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key], grid = game.grid;
    if (move && game.kind === "clicks") {
      const at = cell ?? Math.floor(grid / 2) * grid + Math.floor(grid / 2);
      const j = Math.min(grid - 1, Math.max(0, (at % grid) + move[0])), i = Math.min(grid - 1, Math.max(0, Math.floor(at / grid) + move[1]));
      cell = i * grid + j;
    } else if (move && game.kind === "box") {
      const [left, top, side] = game.view, [x, y] = cursor || [left + side / 2, top + side / 2];
      cursor = [x + (move[0] * side) / 48, y + (move[1] * side) / 48];
    } else if ((key === " " || key === "x") && cell !== null && game.kind === "clicks") act({ cell, label: key === " " ? 1 : 0 });
    else if (key === "b" && cursor) {
      if (corner) { act({ box: [Math.min(corner[0], cursor[0]), Math.min(corner[1], cursor[1]), Math.max(corner[0], cursor[0]), Math.max(corner[1], cursor[1])] }); corner = null; } else corner = cursor;
    } else if (/^[1-4]$/.test(key) && game.kind === "choice") act({ candidate: Number(key) - 1 });
    else if (key === "Enter") { if (game.ended) begin(); else if (game.kind !== "choice") doing.stop(); }
    else if (key === "n") begin();
    else if (key === "0") view.fit();
    else if (key === "+" || key === "=") view.zoom(1.25);
    else if (key === "-") view.zoom(0.8);
    else return false;
    view.redraw();
    return true;
  }

  choose("plus");
  begin();
  return { keys, show: () => view.resize() };
}
