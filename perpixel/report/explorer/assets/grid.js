// Cells, pixels and outlines: unpacking, upsampling as torch does it, areas and borders.

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

  // The cells that make the value at a pixel (y, x), with their weights, from place `at` on.
  taps(y, x, cells, weights, at) {
    for (let j = 0; j < this.y.taps; j++) {
      for (let i = 0; i < this.x.taps; i++, at++) {
        cells[at] = (this.y.first[y] + j) * this.columns + this.x.first[x] + i;
        weights[at] = this.y.weights[y * this.y.taps + j] * this.x.weights[x * this.x.taps + i];
      }
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
