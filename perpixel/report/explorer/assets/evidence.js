// What the numbers say: unpacking, upsampling as torch does it, and the answer to one question. No drawing here.

async function inflate(text, Kind) {
  const raw = atob(text);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Kind(await new Response(stream).arrayBuffer());
}

// How values on a grid become full size: for every row and column of the picture the first cell and the weights from there.
class Grid {
  static async unpack({ shape, rows, columns }) {
    const self = new Grid();
    [self.rows, self.columns] = shape.slice(-2);
    self.cells = self.rows * self.columns;
    self.buffer = new Float64Array(self.columns);
    const part = async ({ first, weights, taps }) => ({
      taps,
      first: await inflate(first, Int32Array),
      weights: await inflate(weights, Float64Array),
    });
    [self.y, self.x] = [await part(rows), await part(columns)];
    return self;
  }

  // Row y at full size of the values `plane` on the grid, times `sign`, added to `out`.
  line(y, plane, sign, out) {
    this.buffer.fill(0);
    for (let j = 0; j < this.y.taps; j++) {
      const share = sign * this.y.weights[y * this.y.taps + j];
      const start = (this.y.first[y] + j) * this.columns;
      for (let i = 0; i < this.columns; i++) this.buffer[i] += share * plane[start + i];
    }
    const { first, weights, taps } = this.x;
    for (let x = 0, at = 0; x < out.length; x++) {
      for (let i = first[x]; i < first[x] + taps; i++) out[x] += weights[at++] * this.buffer[i];
    }
  }

  // Weight of every cell in the value at a pixel (y, x), added to `weights`.
  add(weights, y, x, amount) {
    for (let j = 0; j < this.y.taps; j++) {
      const share = amount * this.y.weights[y * this.y.taps + j];
      const start = (this.y.first[y] + j) * this.columns + this.x.first[x];
      for (let i = 0; i < this.x.taps; i++) weights[start + i] += share * this.x.weights[x * this.x.taps + i];
    }
  }
}

class Evidence {
  static async unpack(data) {
    const self = new Evidence();
    const [height, width] = data.size;
    const { logits, effects, patches } = data;
    Object.assign(self, {
      height,
      width,
      classes: data.classes,
      kept: effects.classes,
      count: effects.shape[1],
    });
    self.logitGrid = await Grid.unpack(logits);
    self.effectGrid = await Grid.unpack(effects);
    self.slot = new Int32Array(self.classes.length).fill(-1);
    self.kept.forEach((c, i) => (self.slot[c] = i));
    self.logits = Float64Array.from(await inflate(logits.values, Float32Array));
    self.recent = [];
    self.scales = await inflate(effects.scales, Float32Array);
    self.steps = await inflate(effects.values, Int8Array);
    const columns = self.effectGrid.columns;
    for (let i = 0; i < self.steps.length; i++) if (i % columns) self.steps[i] += self.steps[i - 1];
    self.boxes = patches.boxes || null;
    self.segments = patches.segments ? await inflate(patches.segments, Int32Array) : null;
    self.truth = data.truth ? await inflate(data.truth, Int32Array) : null;
    self.cover();
    self.plain = self.label(-1, null, 0);
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
    const found = new Float64Array(this.count);
    const cells = this.effectGrid.cells;
    const slot = this.slot[c];
    const used = [];
    for (let i = 0; i < cells; i++) if (weights[i]) used.push(i, weights[i] * this.scales[slot * cells + i]);
    for (let p = 0; p < this.count; p++) {
      const start = (slot * this.count + p) * cells;
      for (let i = 0; i < used.length; i += 2) found[p] += used[i + 1] * this.steps[start + used[i]];
    }
    return found;
  }

  // What `scan` finds, kept for the questions that come again at once.
  label(hidden, mask, c) {
    const same = (old) => old.hidden === hidden && old.mask === mask && old.c === c;
    const known = this.recent.find(same) ?? { hidden, mask, c, ...this.scan(hidden, mask, c) };
    this.recent = [known, ...this.recent.filter((old) => old !== known)].slice(0, 4);
    return known;
  }

  // The effects of one patch on one class, on the grid.
  plane(p, c) {
    const { cells } = this.effectGrid;
    const steps = this.steps.subarray((this.slot[c] * this.count + p) * cells);
    return Float64Array.from({ length: cells }, (_, i) => this.scales[this.slot[c] * cells + i] * steps[i]);
  }

  // Labels of the pixels in `mask` (null: all), with patch `hidden` hidden (-1: none), and means for class `c`.
  scan(hidden, mask, c) {
    const { height, width, logitGrid, effectGrid } = this;
    const labels = new Int16Array(height * width).fill(-1);
    const counts = new Float64Array(this.classes.length);
    const classes = hidden < 0 ? this.classes.map((_, k) => k) : this.kept;
    const planes = classes.map((k) => this.logits.subarray(k * logitGrid.cells, (k + 1) * logitGrid.cells));
    const effects = hidden < 0 ? [] : classes.map((k) => this.plane(hidden, k));
    const [values, best, own, other] = Array.from({ length: 4 }, () => new Float64Array(width));
    const total = { logit: 0, margin: 0, pixels: 0 };
    const first = mask ? Math.floor(mask.indexOf(1) / width) : 0;
    const last = mask ? Math.floor(mask.lastIndexOf(1) / width) : height - 1;
    for (let y = first; y <= last; y++) {
      const row = y * width;
      best.fill(-Infinity);
      other.fill(-Infinity);
      for (let j = 0; j < classes.length; j++) {
        const k = classes[j];
        values.fill(0);
        logitGrid.line(y, planes[j], 1, values);
        if (hidden >= 0) effectGrid.line(y, effects[j], -1, values);
        for (let x = 0; x < width; x++) {
          if (mask && !mask[row + x]) continue;
          const value = values[x];
          if (value > best[x]) {
            best[x] = value;
            labels[row + x] = k;
          }
          if (k === c) own[x] = value;
          else if (value > other[x]) other[x] = value;
        }
      }
      for (let x = 0; x < width; x++) {
        if (labels[row + x] < 0) continue;
        counts[labels[row + x]]++;
        total.logit += own[x];
        total.margin += own[x] - other[x];
        total.pixels++;
      }
    }
    const { logit, margin, pixels } = total;
    return { labels, counts, pixels, logit: logit / pixels, margin: margin / pixels };
  }

  // question: {mask, pixels, at: [y, x] or null, why: class or null, rival: "" | "runner-up" | class}
  answer(question, chosen) {
    const { mask, pixels } = question;
    const C = this.classes.length;
    const cells = new Float64Array(this.effectGrid.cells);
    const logitCells = new Float64Array(this.logitGrid.cells);
    for (let i = mask.indexOf(1); i >= 0; i = mask.indexOf(1, i + 1)) {
      const y = Math.floor(i / this.width);
      const x = i % this.width;
      this.effectGrid.add(cells, y, x, 1 / pixels);
      this.logitGrid.add(logitCells, y, x, 1 / pixels);
    }
    const means = new Float64Array(C);
    for (let c = 0; c < C; c++) {
      for (let i = 0; i < logitCells.length; i++)
        means[c] += logitCells[i] * this.logits[c * logitCells.length + i];
    }
    const counts = new Float64Array(C);
    mask.forEach((inside, i) => (counts[this.plain.labels[i]] += inside));
    const label = largest(counts);
    const why = question.why !== null && this.slot[question.why] >= 0 ? question.why : label;
    const now = this.label(-1, mask, why);
    const runner = largest(means, (c) => c !== why && this.slot[c] >= 0);
    const wanted =
      question.rival === "runner-up" ? runner : question.rival === "" ? null : Number(question.rival);
    const rival = wanted === null || wanted === why || wanted < 0 || this.slot[wanted] < 0 ? null : wanted;
    const effects = this.effectsOn(why, cells);
    if (rival !== null) this.effectsOn(rival, cells).forEach((v, p) => (effects[p] -= v));
    const order = Array.from(effects.keys()).sort((a, b) => effects[b] - effects[a] || a - b);
    const supporters = order.filter((p) => effects[p] > 0).slice(0, 3);
    const opponents = order
      .filter((p) => effects[p] < 0)
      .reverse()
      .slice(0, 3);
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
    let inside = 0;
    let area = 0;
    let sy = 0;
    let sx = 0;
    this.over(p, (i) => {
      inside += mask[i];
      area++;
      sy += Math.floor(i / this.width);
      sx += i % this.width;
    });
    if (!area) return "without a pixel";
    if (at) {
      if (inside) return "covers the pixel";
      return `${Math.round(Math.hypot(sy / area - at[0], sx / area - at[1]))} px away`;
    }
    if (!inside) return "outside the region";
    return inside === area
      ? "inside the region"
      : `${Math.max(1, Math.round((100 * inside) / area))} % inside`;
  }
}

function largest(values, allowed = () => true) {
  let best = -1;
  values.forEach((v, i) => {
    if (allowed(i) && (best < 0 || v > values[best])) best = i;
  });
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
      const start = Math.max(0, Math.ceil(crossings[i] - 0.5));
      const end = Math.min(width, Math.ceil(crossings[i + 1] - 0.5));
      if (end > start) mask.fill(1, y * width + start, y * width + end);
    }
  }
  return mask;
}

// The edges between pixels of different value, as an SVG path; `frame`: the picture's border counts as value 0.
function contours(values, height, width, frame = false) {
  const at = (y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : values[y * width + x]);
  const pad = frame ? 0 : 1;
  const parts = [];
  for (let y = pad; y <= height - pad; y++) {
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && at(y, x) !== at(y - 1, x);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) {
        parts.push(`M${start} ${y}H${x}`);
        start = -1;
      }
    }
  }
  for (let x = pad; x <= width - pad; x++) {
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && at(y, x) !== at(y, x - 1);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) {
        parts.push(`M${x} ${start}V${y}`);
        start = -1;
      }
    }
  }
  return parts.join("");
}
