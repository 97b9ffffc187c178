// What the numbers say: unpacking, upsampling as torch does it, and the answer to one question. No drawing here.

async function inflate(text, Kind) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// For every output position: the two input positions it lies between, and the share of the second.
function axis(inputs, outputs, mode) {
  const low = new Int32Array(outputs), high = new Int32Array(outputs), share = new Float64Array(outputs);
  for (let i = 0; i < outputs; i++) {
    let at;
    if (mode === "nearest") at = Math.floor((i * inputs) / outputs);
    else if (mode === "bilinear_aligned") at = outputs > 1 ? (i * (inputs - 1)) / (outputs - 1) : 0;
    else at = Math.max(0, ((i + 0.5) * inputs) / outputs - 0.5);
    low[i] = Math.min(Math.floor(at), inputs - 1);
    high[i] = Math.min(low[i] + 1, inputs - 1);
    share[i] = mode === "nearest" ? 0 : at - low[i];
  }
  return { low, high, share };
}

class Grid {
  constructor(rows, columns, height, width, mode) {
    Object.assign(this, { rows, columns, height, width, cells: rows * columns });
    this.y = axis(rows, height, mode);
    this.x = axis(columns, width, mode);
  }

  // Weight of every cell in the value at a pixel (y, x), added to `weights`.
  add(weights, y, x, amount) {
    const s = this.y.share[y], t = this.x.share[x], w = this.columns;
    const top = this.y.low[y] * w, bottom = this.y.high[y] * w, left = this.x.low[x], right = this.x.high[x];
    weights[top + left] += amount * (1 - s) * (1 - t);
    weights[top + right] += amount * (1 - s) * t;
    weights[bottom + left] += amount * s * (1 - t);
    weights[bottom + right] += amount * s * t;
  }
}

class Evidence {
  static async unpack(data) {
    const self = new Evidence();
    const [height, width] = data.size;
    const { logits, effects, patches } = data;
    Object.assign(self, { height, width, classes: data.classes, kept: effects.classes, count: effects.shape[1] });
    self.logitGrid = new Grid(logits.shape[1], logits.shape[2], height, width, data.upsampling);
    self.effectGrid = new Grid(effects.shape[2], effects.shape[3], height, width, data.upsampling);
    self.slot = new Int32Array(self.classes.length).fill(-1);
    self.kept.forEach((c, i) => (self.slot[c] = i));
    self.logits = await inflate(logits.values, Float32Array);
    self.scales = await inflate(effects.scales, Float32Array);
    self.steps = await inflate(effects.values, Int8Array);
    const columns = self.effectGrid.columns;
    for (let i = 0; i < self.steps.length; i++) if (i % columns) self.steps[i] += self.steps[i - 1];
    self.boxes = patches.boxes || null;
    self.segments = patches.segments ? await inflate(patches.segments, Int32Array) : null;
    self.truth = data.truth ? await inflate(data.truth, Int32Array) : null;
    self.cover();
    return self;
  }

  // How many patches lie over each pixel.
  cover() {
    this.covers = new Float32Array(this.height * this.width);
    for (let p = 0; p < this.count; p++) this.over(p, (i) => this.covers[i]++);
  }

  over(p, visit) {
    if (this.boxes) {
      const [top, left, bottom, right] = this.boxes[p];
      for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) visit(y * this.width + x);
    } else this.members(p).forEach(visit);
  }

  members(p) {
    if (!this.lists) {
      this.lists = Array.from({ length: this.count }, () => []);
      this.segments.forEach((s, i) => s >= 0 && this.lists[s].push(i));
    }
    return this.lists[p];
  }

  // Effect of every patch on class c, weighted over cells.
  effectsOn(c, weights) {
    const found = new Float64Array(this.count), cells = this.effectGrid.cells, slot = this.slot[c];
    const used = [];
    for (let i = 0; i < cells; i++) if (weights[i]) used.push(i, weights[i] * this.scales[slot * cells + i]);
    for (let p = 0; p < this.count; p++) {
      const start = (slot * this.count + p) * cells;
      for (let i = 0; i < used.length; i += 2) found[p] += used[i + 1] * this.steps[start + used[i]];
    }
    return found;
  }

  // Labels of the pixels in `mask` (null: all), with patch `hidden` hidden (-1: none), and means for class `c`.
  label(hidden, mask, c) {
    const { height, width, logitGrid: lg, effectGrid: eg } = this;
    const labels = new Int16Array(height * width).fill(-1), counts = new Float64Array(this.classes.length);
    const which = hidden < 0 ? this.classes.map((_, i) => i) : this.kept;
    const best = new Float64Array(width), own = new Float64Array(width), other = new Float64Array(width);
    let logit = 0, margin = 0, pixels = 0;
    const first = mask ? Math.floor(mask.indexOf(1) / width) : 0;
    const last = mask ? Math.floor(mask.lastIndexOf(1) / width) : height - 1;
    for (let y = first; y <= last; y++) {
      const row = y * width;
      best.fill(-Infinity);
      other.fill(-Infinity);
      const from = [lg.y.low[y] * lg.columns, lg.y.high[y] * lg.columns], s = lg.y.share[y];
      const efrom = [eg.y.low[y] * eg.columns, eg.y.high[y] * eg.columns], es = eg.y.share[y];
      for (const k of which) {
        const start = k * lg.cells, scale = this.slot[k] * eg.cells, start2 = (this.slot[k] * this.count + hidden) * eg.cells;
        for (let x = 0; x < width; x++) {
          if (mask && !mask[row + x]) continue;
          const l = lg.x.low[x], h = lg.x.high[x], t = lg.x.share[x], a = start + from[0], b = start + from[1];
          let v = (1 - s) * ((1 - t) * this.logits[a + l] + t * this.logits[a + h]);
          v += s * ((1 - t) * this.logits[b + l] + t * this.logits[b + h]);
          if (hidden >= 0) {
            const el = eg.x.low[x], eh = eg.x.high[x], et = eg.x.share[x];
            const e = (i) => this.scales[scale + i] * this.steps[start2 + i];
            v -= (1 - es) * ((1 - et) * e(efrom[0] + el) + et * e(efrom[0] + eh));
            v -= es * ((1 - et) * e(efrom[1] + el) + et * e(efrom[1] + eh));
          }
          if (v > best[x]) { best[x] = v; labels[row + x] = k; }
          if (k === c) own[x] = v;
          else if (v > other[x]) other[x] = v;
        }
      }
      for (let x = 0; x < width; x++) {
        if (labels[row + x] < 0) continue;
        counts[labels[row + x]]++;
        logit += own[x];
        margin += own[x] - other[x];
        pixels++;
      }
    }
    return { labels, counts, pixels, logit: logit / pixels, margin: margin / pixels };
  }

  // question: {mask, pixels, at: [y, x] or null, why: class or null, rival: "" | "runner-up" | class}
  answer(question, chosen) {
    const { mask, pixels } = question, C = this.classes.length;
    const cells = new Float64Array(this.effectGrid.cells), logitCells = new Float64Array(this.logitGrid.cells);
    for (let i = mask.indexOf(1); i >= 0; i = mask.indexOf(1, i + 1)) {
      const y = Math.floor(i / this.width), x = i % this.width;
      this.effectGrid.add(cells, y, x, 1 / pixels);
      this.logitGrid.add(logitCells, y, x, 1 / pixels);
    }
    const means = new Float64Array(C);
    for (let c = 0; c < C; c++) {
      for (let i = 0; i < logitCells.length; i++) means[c] += logitCells[i] * this.logits[c * logitCells.length + i];
    }
    const counts = this.label(-1, mask, 0).counts;
    const label = largest(counts);
    const why = question.why !== null && this.slot[question.why] >= 0 ? question.why : label;
    const now = this.label(-1, mask, why);
    const runner = largest(means, (c) => c !== why && this.slot[c] >= 0);
    const wanted = question.rival === "runner-up" ? runner : question.rival === "" ? null : Number(question.rival);
    const rival = wanted === null || wanted === why || wanted < 0 || this.slot[wanted] < 0 ? null : wanted;
    const effects = this.effectsOn(why, cells);
    if (rival !== null) this.effectsOn(rival, cells).forEach((v, p) => (effects[p] -= v));
    const order = Array.from(effects.keys()).sort((a, b) => effects[b] - effects[a] || a - b);
    const supporters = order.filter((p) => effects[p] > 0).slice(0, 3);
    const opponents = order.filter((p) => effects[p] < 0).reverse().slice(0, 3);
    const hidden = chosen ?? supporters[0] ?? null;
    const after = hidden === null ? null : this.label(hidden, mask, why);
    const best = largest(means, (c) => c !== why);
    return { question, label, why, rival, best, counts, now, effects, supporters, opponents, hidden, after };
  }

  // Mean effect of the patches over each pixel; NaN where there is none.
  spread(effects) {
    const field = new Float32Array(this.height * this.width);
    for (let p = 0; p < this.count; p++) this.over(p, (i) => (field[i] += effects[p]));
    for (let i = 0; i < field.length; i++) field[i] /= this.covers[i];
    return field;
  }

  // Where a patch lies as seen from a question.
  place(p, { mask, at }) {
    let inside = 0, area = 0, sy = 0, sx = 0;
    this.over(p, (i) => { inside += mask[i]; area++; sy += Math.floor(i / this.width); sx += i % this.width; });
    if (at) {
      if (inside) return "covers the pixel";
      return `${Math.round(Math.hypot(sy / area - at[0], sx / area - at[1]))} px away`;
    }
    if (!inside) return "outside the region";
    return inside === area ? "inside the region" : `${Math.max(1, Math.round((100 * inside) / area))} % inside`;
  }
}

function largest(values, allowed = () => true) {
  let best = -1;
  values.forEach((v, i) => { if (allowed(i) && (best < 0 || v > values[best])) best = i; });
  return best;
}

// Pixels whose centre lies in a polygon [[x, y], ...] (even-odd rule).
function rasterise(polygon, height, width) {
  const mask = new Uint8Array(height * width);
  for (let y = 0; y < height; y++) {
    const crossings = [];
    polygon.forEach(([x0, y0], i) => {
      const [x1, y1] = polygon[(i + 1) % polygon.length];
      if (y0 <= y + 0.5 !== y1 <= y + 0.5) crossings.push(x0 + ((y + 0.5 - y0) / (y1 - y0)) * (x1 - x0));
    });
    crossings.sort((a, b) => a - b);
    for (let i = 0; i + 1 < crossings.length; i += 2) {
      const start = Math.max(0, Math.ceil(crossings[i] - 0.5)), end = Math.min(width, Math.ceil(crossings[i + 1] - 0.5));
      if (end > start) mask.fill(1, y * width + start, y * width + end);
    }
  }
  return mask;
}

// The edges between pixels of different value, as an SVG path; `frame`: the picture's border counts as value 0.
function contours(values, height, width, frame = false) {
  const at = (y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : values[y * width + x]);
  const pad = frame ? 0 : 1, parts = [];
  for (let y = pad; y <= height - pad; y++) {
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && at(y, x) !== at(y - 1, x);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) { parts.push(`M${start} ${y}H${x}`); start = -1; }
    }
  }
  for (let x = pad; x <= width - pad; x++) {
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && at(y, x) !== at(y, x - 1);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) { parts.push(`M${x} ${start}V${y}`); start = -1; }
    }
  }
  return parts.join("");
}
