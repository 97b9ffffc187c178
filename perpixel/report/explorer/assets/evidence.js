// What the numbers say: the answer to one question. No drawing here.

const AFFORDABLE = 6e7; // products for one answer: well under a second

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
    this.recent = [known, ...this.recent.filter((old) => old !== known)].slice(0, 6);
    return known;
  }

  // The effects of one patch on one class, on the grid.
  plane(p, c) {
    const { cells } = this.effectGrid;
    const steps = this.steps.subarray((this.slot[c] * this.count + p) * cells);
    return Float64Array.from({ length: cells }, (_, i) => this.scales[this.slot[c] * cells + i] * steps[i]);
  }

  // Labels of the pixels in `mask` (null: all), with patch `hidden` hidden (-1: none), and means for class `c`. The
  // margin is over the classes whose effects are stored.
  scan(hidden, mask, c) {
    const { height, width, logitGrid, effectGrid } = this;
    const labels = new Int16Array(height * width).fill(-1);
    const counts = new Float64Array(this.classes.length);
    const classes = hidden < 0 ? this.classes.map((_, k) => k) : this.kept;
    const planes = classes.map((k) => this.logits.subarray(k * logitGrid.cells, (k + 1) * logitGrid.cells));
    const effects = hidden < 0 ? [] : classes.map((k) => this.plane(hidden, k));
    const [values, best, own, other, sum] = Array.from({ length: 5 }, () => new Float64Array(width));
    const total = { logit: 0, margin: 0, probability: 0, pixels: 0 };
    const first = mask ? Math.floor(mask.indexOf(1) / width) : 0;
    const last = mask ? Math.floor(mask.lastIndexOf(1) / width) : height - 1;
    for (let y = first; y <= last; y++) {
      const row = y * width;
      best.fill(-Infinity);
      other.fill(-Infinity);
      sum.fill(0);
      for (let j = 0; j < classes.length; j++) {
        const k = classes[j];
        values.fill(0);
        logitGrid.line(y, planes[j], 1, values);
        if (hidden >= 0) effectGrid.line(y, effects[j], -1, values);
        for (let x = 0; x < width; x++) {
          if (mask && !mask[row + x]) continue;
          const value = values[x];
          if (value > best[x]) {
            sum[x] = 1 + sum[x] * Math.exp(best[x] - value);
            best[x] = value;
            labels[row + x] = k;
          } else sum[x] += Math.exp(value - best[x]);
          if (k === c) own[x] = value;
          else if (value > other[x] && this.slot[k] >= 0) other[x] = value;
        }
      }
      for (let x = 0; x < width; x++) {
        if (labels[row + x] < 0) continue;
        counts[labels[row + x]]++;
        total.logit += own[x];
        total.margin += own[x] - other[x];
        total.probability += Math.exp(own[x] - best[x]) / sum[x];
        total.pixels++;
      }
    }
    const { logit, margin, probability, pixels } = total;
    const means = { logit: logit / pixels, margin: margin / pixels, probability: probability / pixels };
    return { labels, counts, pixels, ...means };
  }

  // How far the mean margin of class c over the pixels in `mask` falls with each patch hidden; the best other class may
  // be another one then. Of very many pixels every so-manieth is taken.
  marginEffects(c, mask) {
    const { width, logitGrid, effectGrid, steps, scales, count, kept } = this;
    const inside = [];
    for (let i = mask.indexOf(1); i >= 0; i = mask.indexOf(1, i + 1)) inside.push(i);
    const taps = effectGrid.y.taps * effectGrid.x.taps;
    const every = Math.ceil((inside.length * taps * count * kept.length) / AFFORDABLE);
    const pixels = inside.filter((_, n) => n % every === 0);
    const [cells, weights] = [new Int32Array(pixels.length * taps), new Float64Array(pixels.length * taps)];
    const logits = kept.map(() => new Float64Array(pixels.length));
    pixels.forEach((i, n) => {
      const [y, x] = [Math.floor(i / width), i % width];
      effectGrid.taps(y, x, cells, weights, n * taps);
      const own = [[], []];
      logitGrid.taps(y, x, ...own, 0);
      kept.forEach((k, s) => {
        own[0].forEach((cell, j) => (logits[s][n] += own[1][j] * this.logits[k * logitGrid.cells + cell]));
      });
    });
    const best = new Float64Array(pixels.length);
    const mean = (p) => {
      let total = 0;
      best.fill(-Infinity);
      kept.forEach((k, s) => {
        const plane = steps.subarray((s * count + p) * effectGrid.cells);
        const scale = scales.subarray(s * effectGrid.cells);
        for (let n = 0, at = 0; n < pixels.length; n++) {
          let value = logits[s][n];
          if (p < 0) at += taps;
          else for (const end = at + taps; at < end; at++) value -= weights[at] * scale[cells[at]] * plane[cells[at]];
          if (k === c) total += value;
          else if (value > best[n]) best[n] = value;
        }
      });
      for (const value of best) total -= value;
      return total / pixels.length;
    };
    const before = mean(-1);
    return { effects: Float64Array.from({ length: count }, (_, p) => before - mean(p)), every };
  }

  // What every patch does for the question: to the margin, to the logit alone, or to the lead over one rival.
  effectsFor({ mask, pixels }, why, rival) {
    if (rival === "") return this.marginEffects(why, mask);
    const cells = new Float64Array(this.effectGrid.cells);
    for (let i = mask.indexOf(1); i >= 0; i = mask.indexOf(1, i + 1))
      this.effectGrid.add(cells, Math.floor(i / this.width), i % this.width, 1 / pixels);
    const effects = this.effectsOn(why, cells);
    if (rival !== "logit") this.effectsOn(rival, cells).forEach((v, p) => (effects[p] -= v));
    return { effects, every: 1 };
  }

  // question: {mask, pixels, at: [y, x] or null, why: class or null, rival: "" (the best other) | "logit" | class}
  answer(question, chosen) {
    const { mask, pixels } = question;
    const C = this.classes.length;
    const logitCells = new Float64Array(this.logitGrid.cells);
    for (let i = mask.indexOf(1); i >= 0; i = mask.indexOf(1, i + 1))
      this.logitGrid.add(logitCells, Math.floor(i / this.width), i % this.width, 1 / pixels);
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
    const named = question.rival !== "" && question.rival !== "logit";
    const rival = named && (question.rival === why || this.slot[question.rival] < 0) ? "" : question.rival;
    const same = this.last && this.last.mask === mask && this.last.why === why && this.last.rival === rival;
    this.last = same ? this.last : { mask, why, rival, ...this.effectsFor(question, why, rival) };
    const { effects, every } = this.last;
    const order = Array.from(effects.keys()).sort((a, b) => effects[b] - effects[a] || a - b);
    const supporters = order.filter((p) => effects[p] > 0).slice(0, 3);
    const opponents = order
      .filter((p) => effects[p] < 0)
      .reverse()
      .slice(0, 3);
    const best = largest(means, (c) => c !== why && this.slot[c] >= 0);
    const found = { question, label, why, rival, best, counts, now, effects, every, supporters, opponents };
    return this.without(found, chosen ?? supporters[0] ?? null);
  }

  // The answer with another patch hidden.
  without(answer, hidden) {
    const after = hidden === null ? null : this.label(hidden, answer.question.mask, answer.why);
    return { ...answer, hidden, after };
  }

  // The patch over a pixel: of several the one whose middle is nearest; null without any.
  patchAt(y, x) {
    if (!this.boxes) {
      const segment = this.segments[y * this.width + x];
      return segment < 0 ? null : segment;
    }
    let [found, nearest] = [null, Infinity];
    this.boxes.forEach(([top, left, bottom, right], p) => {
      if (y < top || y >= bottom || x < left || x >= right) return;
      const far = Math.hypot((top + bottom - 1) / 2 - y, (left + right - 1) / 2 - x);
      if (far < nearest) [found, nearest] = [p, far];
    });
    return found;
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
