// A canvas that shows an image with masks and clicks over it; wheel, fingers and keys zoom and move it.

export const COLOURS = { mask: "#56b4e9", truth: "#f0e442", positive: "#009e73", negative: "#d55e00", cue: "#ffffff", box: "#e69f00" };
export const PALETTE = ["#e69f00", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00"];

// A mask as the server sends it: something to fill, and its outline as a path in pixels of the image.
export class Mask {
  constructor({ x, y, w, h, runs }) {
    Object.assign(this, { x, y, w, h });
    const inside = this.inside = new Uint8Array(w * h);
    let at = 0, value = 0;
    for (const run of runs) { if (value) inside.fill(1, at, at + run); at += run; value = 1 - value; }
    const is = (i, j) => i >= 0 && j >= 0 && i < h && j < w && inside[i * w + j];
    this.outline = new Path2D();
    for (let i = 0; i <= h; i++) this.edges(w, j => is(i, j) !== is(i - 1, j) && (is(i, j) || is(i - 1, j)), (a, b) => [[x + a, y + i], [x + b, y + i]]);
    for (let j = 0; j <= w; j++) this.edges(h, i => is(i, j) !== is(i, j - 1) && (is(i, j) || is(i, j - 1)), (a, b) => [[x + j, y + a], [x + j, y + b]]);
  }
  edges(length, differs, ends) {
    for (let start = 0, at = 0; at <= length; at++) {
      if (at < length && differs(at)) continue;
      if (at > start) { const [from, to] = ends(start, at); this.outline.moveTo(...from); this.outline.lineTo(...to); }
      start = at + 1;
    }
  }
  has(x, y) {
    const i = Math.floor(y) - this.y, j = Math.floor(x) - this.x;
    return i >= 0 && j >= 0 && i < this.h && j < this.w && this.inside[i * this.w + j] === 1;
  }
  filled(colour) {
    if (this.colour === colour || !this.w) return this.fill;
    this.colour = colour;
    this.fill = new OffscreenCanvas(this.w, this.h);
    const context = this.fill.getContext("2d"), data = context.createImageData(this.w, this.h);
    const rgb = [1, 3, 5].map(k => parseInt(colour.slice(k, k + 2), 16));
    this.inside.forEach((one, k) => { if (one) data.data.set([...rgb, 255], 4 * k); });
    context.putImageData(data, 0, 0);
    return this.fill;
  }
}

export class View {
  // hooks: tap(x, y, background), drag(x0, y0, x1, y1, done), hover(x, y), paint(view, context)
  constructor(canvas, hooks = {}) {
    Object.assign(this, { canvas, hooks, scale: 1, left: 0, top: 0, image: null, width: 1, height: 1, pan: false });
    this.context = canvas.getContext("2d");
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    if (!hooks.still) this.listen();
  }

  show(image, width, height, frame) {
    Object.assign(this, { image, width, height, frame: frame || [0, 0, width, height] });
    this.fit();
  }

  resize() {
    const { clientWidth: w, clientHeight: h } = this.canvas, ratio = devicePixelRatio || 1;
    if (!w || !h || (this.canvas.width === Math.round(w * ratio) && this.canvas.height === Math.round(h * ratio))) return;
    this.canvas.width = Math.round(w * ratio);
    this.canvas.height = Math.round(h * ratio);
    if (this.untouched !== false) this.fit(); else this.redraw();
  }

  fit() {
    const { clientWidth: w, clientHeight: h } = this.canvas;
    if (!this.image || !w) return;
    const [x, y, fw, fh] = this.frame, foot = this.hooks.still ? 0 : 62;  // the tools stand there
    this.scale = Math.min(w / fw, (h - foot) / fh) * (this.hooks.still ? 1 : 0.96);
    this.left = x + fw / 2 - w / 2 / this.scale;
    this.top = y + fh / 2 - (h - foot) / 2 / this.scale;
    this.untouched = true;
    this.redraw();
  }

  zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const [ix, iy] = this.toImage(x, y);
    this.scale = Math.min(80, Math.max(0.05, this.scale * factor));
    this.left = ix - x / this.scale;
    this.top = iy - y / this.scale;
    this.untouched = false;
    this.redraw();
  }

  move(dx, dy) { this.left -= dx / this.scale; this.top -= dy / this.scale; this.untouched = false; this.redraw(); }
  toImage(x, y) { return [this.left + x / this.scale, this.top + y / this.scale]; }
  toScreen(x, y) { return [(x - this.left) * this.scale, (y - this.top) * this.scale]; }

  // Brings a place of the image into sight.
  reveal(x, y) {
    const [sx, sy] = this.toScreen(x, y), w = this.canvas.clientWidth, h = this.canvas.clientHeight, edge = 40;
    const dx = Math.max(edge - sx, 0) + Math.min(w - edge - sx, 0), dy = Math.max(edge - sy, 0) + Math.min(h - edge - sy, 0);
    if (dx || dy) this.move(dx, dy);
  }

  redraw() {
    if (this.asked) return;
    this.asked = true;
    requestAnimationFrame(() => { this.asked = false; this.paint(); });
  }

  paint() {
    const { context: c, scale, left, top } = this, ratio = devicePixelRatio || 1;
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (!this.image) return;
    c.setTransform(ratio * scale, 0, 0, ratio * scale, -left * scale * ratio, -top * scale * ratio);
    c.imageSmoothingEnabled = scale < 4;
    c.drawImage(this.image, 0, 0, this.width, this.height);
    this.hooks.paint?.(this, c);
  }

  // ------------------------------------------------- what is drawn over the image, in its own coordinates

  mask(mask, colour, { fill = 0.32, width = 2, dash = [] } = {}) {
    const c = this.context;
    if (fill && mask.w) {
      c.globalAlpha = fill;
      c.imageSmoothingEnabled = false;
      c.drawImage(mask.filled(colour), mask.x, mask.y);
      c.globalAlpha = 1;
    }
    this.line(mask.outline, colour, width, dash);
  }

  line(path, colour, width = 2, dash = []) {
    const c = this.context;
    c.setLineDash([]);
    c.strokeStyle = "#0008"; c.lineWidth = (width + 1.5) / this.scale; c.stroke(path);
    c.setLineDash(dash.map(one => one / this.scale));
    c.strokeStyle = colour; c.lineWidth = width / this.scale; c.stroke(path);
    c.setLineDash([]);
  }

  rectangle([x0, y0, x1, y1], colour, width = 2, dash = []) {
    const path = new Path2D();
    path.rect(x0, y0, x1 - x0, y1 - y0);
    this.line(path, colour, width, dash);
  }

  dot(x, y, label, { number = "", ring = "#ffffff" } = {}) {
    const c = this.context, r = 7 / this.scale, line = 2 / this.scale;
    c.beginPath(); c.arc(x, y, r, 0, 7); c.fillStyle = label ? COLOURS.positive : COLOURS.negative; c.fill();
    c.strokeStyle = ring; c.lineWidth = line; c.stroke();
    c.beginPath(); c.moveTo(x - r / 2, y); c.lineTo(x + r / 2, y);
    if (label) { c.moveTo(x, y - r / 2); c.lineTo(x, y + r / 2); }
    c.strokeStyle = "#fff"; c.stroke();
    if (number) {
      c.font = `600 ${12 / this.scale}px system-ui`; c.fillStyle = "#fff"; c.strokeStyle = "#000"; c.lineWidth = 3 / this.scale;
      c.strokeText(number, x + r * 1.3, y - r * 0.6); c.fillText(number, x + r * 1.3, y - r * 0.6);
    }
  }

  cross(x, y) {
    const path = new Path2D(), r = 14 / this.scale, gap = 4 / this.scale;
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + dx * gap, y + dy * gap); path.lineTo(x + dx * r, y + dy * r);
    }
    this.line(path, "#ffffff", 2);
  }

  // ------------------------------------------------------------------------------------ mouse and fingers

  listen() {
    const { canvas, pointers } = this, at = event => [event.offsetX, event.offsetY];
    let start = null, panning = false, dragging = false;
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)), ...at(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", event => {
      canvas.focus({ preventScroll: true });
      try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone */ }
      pointers.set(event.pointerId, at(event));
      if (pointers.size > 1) { start = null; if (dragging) { dragging = false; this.hooks.drag?.(null); } return; }
      panning = event.button === 1 || this.pan;
      start = { at: at(event), background: event.button === 2 || event.shiftKey, button: event.button };
      dragging = false;
    });
    canvas.addEventListener("pointermove", event => {
      const now = at(event), before = pointers.get(event.pointerId);
      if (!before) { this.hooks.hover?.(...this.toImage(...now)); return; }
      if (pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const spread = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
        this.zoom(spread(now) / Math.max(1, spread(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
        this.move((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
      } else if (start) {
        if (Math.hypot(now[0] - start.at[0], now[1] - start.at[1]) > 5) dragging = true;
        if (dragging && (panning || !this.hooks.drag)) this.move(now[0] - before[0], now[1] - before[1]);
        else if (dragging) this.hooks.drag(...this.toImage(...start.at), ...this.toImage(...now), false);
      }
      if (!start || dragging) pointers.set(event.pointerId, now);  // a drag counts from where it began
    });
    const end = event => {
      const now = at(event);
      pointers.delete(event.pointerId);
      if (!start || pointers.size) return;
      const from = start;
      start = null;
      if (event.type === "pointercancel") { this.hooks.drag?.(null); return; }
      if (!dragging) { if (from.button !== 1) this.hooks.tap?.(...this.toImage(...now), from.background); }
      else if (!panning) this.hooks.drag?.(...this.toImage(...from.at), ...this.toImage(...now), true);
      dragging = false;
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("pointerleave", () => this.hooks.leave?.());
  }
}
