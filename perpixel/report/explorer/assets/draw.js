// Drawing: two canvases (labels, context), the colour bar, and the marks above them.

const SVG = "http://www.w3.org/2000/svg";
const [FOR, AGAINST] = ["--for-fill", "--against-fill"].map((name) => {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name);
  return hex.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
});
const NONE = [0, 0, 0];
const STRONGEST = 0.92; // share of the colour where the effect is largest
const CPU = { willReadFrequently: true }; // pixels are only ever put: no need of the graphics card
const $ = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

class View {
  constructor(data, evidence, photo) {
    Object.assign(this, { data, evidence, photo, held: null });
    const { height, width } = evidence;
    for (const id of ["labels", "context"]) {
      Object.assign($(id), { width, height });
      $(id).classList.toggle("coarse", width < 320);
      $(`${id}-marks`).setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
    document.body.style.setProperty("--aspect", String(width / height));
    this.grey = new Uint8ClampedArray(height * width);
    for (let i = 0; i < this.grey.length; i++) {
      this.grey[i] = 62 + 0.6 * (0.299 * photo[4 * i] + 0.587 * photo[4 * i + 1] + 0.114 * photo[4 * i + 2]);
    }
    const bar = $("gradient").getContext("2d", CPU);
    const strip = bar.createImageData(241, 1);
    for (let x = 0; x < 241; x++) this.tint(strip.data, 4 * x, 140, (x - 120) / 120);
    bar.putImageData(strip, 0, 0);
  }

  // One pixel: grey, tinted by value (-1..1); the colour bar is drawn by the same rule.
  tint(target, at, grey, value) {
    const colour = value < 0 ? AGAINST : FOR;
    const share = STRONGEST * Math.min(1, Math.abs(value) || 0);
    target[at] = grey + (colour[0] - grey) * share;
    target[at + 1] = grey + (colour[1] - grey) * share;
    target[at + 2] = grey + (colour[2] - grey) * share;
    target[at + 3] = 255;
  }

  drawLabels(labels, opacity) {
    if (this.painted && this.painted[0] === labels && this.painted[1] === opacity) return;
    this.painted = [labels, opacity];
    const { height, width } = this.evidence;
    const context = $("labels").getContext("2d", CPU);
    const picture = context.createImageData(width, height);
    const target = picture.data;
    for (let i = 0, at = 0; i < labels.length; i++, at += 4) {
      const colour = labels[i] < 0 ? NONE : this.data.palette[labels[i]];
      const share = labels[i] < 0 ? 0 : opacity;
      for (let j = 0; j < 3; j++) target[at + j] = this.photo[at + j] * (1 - share) + colour[j] * share;
      target[at + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }

  // Where patches overlap, the mean is smaller than the strongest: the scale follows what is drawn.
  drawContext(effects) {
    const { height, width } = this.evidence;
    const field = this.evidence.spread(effects);
    let peak = 0;
    for (const v of field) if (Math.abs(v) > peak) peak = Math.abs(v);
    const top = this.held ?? peak;
    this.peak = peak;
    const context = $("context").getContext("2d", CPU);
    const picture = context.createImageData(width, height);
    const { data } = picture;
    for (let i = 0; i < field.length; i++) this.tint(data, 4 * i, this.grey[i], top ? field[i] / top : 0);
    context.putImageData(picture, 0, 0);
    for (const [id, value] of [
      ["low", -top],
      ["high", top],
    ]) {
      $(id).value = String(value);
      $(id).textContent = signed(value);
    }
  }

  outline(p) {
    const { boxes, height, width } = this.evidence;
    if (boxes) {
      const [top, left, bottom, right] = boxes[p];
      return `M${left} ${top}H${right}V${bottom}H${left}Z`;
    }
    const mask = new Uint8Array(height * width);
    this.evidence.over(p, (i) => (mask[i] = 1));
    return contours(mask, height, width, true);
  }

  // The patch as an area to fill.
  area(p) {
    if (this.evidence.boxes) return this.outline(p);
    const { width } = this.evidence;
    return this.evidence
      .members(p)
      .map((i) => `M${i % width} ${Math.floor(i / width)}h1v1h-1z`)
      .join("");
  }

  centre(p) {
    if (this.evidence.boxes) {
      const [top, left, bottom, right] = this.evidence.boxes[p];
      return [(left + right) / 2, (top + bottom) / 2];
    }
    const members = this.evidence.members(p);
    const i = members[members.length >> 1] ?? 0;
    return [(i % this.evidence.width) + 0.5, Math.floor(i / this.evidence.width) + 0.5];
  }

  // Lines above both pictures. `drawn` is a region being drawn.
  drawMarks(answer, borders, { cursor, pinned, preview, drawn, under }) {
    const { width } = this.evidence;
    const unit = width / Math.max(1, $("stage").clientWidth, $("context-stage").clientWidth);
    const line = (d, colour, thick, more = {}) =>
      shape("path", {
        d,
        fill: "none",
        stroke: colour,
        "stroke-width": thick,
        "vector-effect": "non-scaling-stroke",
        ...more,
      });
    const cased = (d, colour, thick, more = {}) => [
      line(d, "#000", thick + 2, { "stroke-opacity": 0.55, ...more }),
      line(d, colour, thick, more),
    ];
    if (this.borders !== borders) {
      this.borders = borders; // a long path, set only when it changes
      for (const id of ["labels-marks", "context-marks"]) {
        $(id).replaceChildren(line(borders, "#fff", 0.8, { "stroke-opacity": 0.65 }), shape("g", {}));
      }
    }
    const [left, right] = [[], []];
    const region = drawn ?? (answer.question.at ? null : answer.question.outline);
    if (region) for (const marks of [left, right]) marks.push(...cased(region, "#fff", 2));
    if (preview && answer.hidden !== null) {
      const grey = { fill: "#777", "fill-opacity": 0.92, "shape-rendering": "crispEdges" };
      left.push(shape("path", { d: this.area(answer.hidden), ...grey }));
    }
    if (answer.hidden !== null && (preview || under !== null)) {
      for (const marks of [left, right])
        marks.push(...cased(this.outline(answer.hidden), "#fff", 1.5, { "stroke-dasharray": "5 3" }));
    }
    for (const [list, colour, first, dash] of [
      [answer.opponents, "#9fcbff", 65, { "stroke-dasharray": "4 3" }],
      [answer.supporters, "#ffb27a", 49, {}],
    ]) {
      list.forEach((p, i) => right.push(...cased(this.outline(p), colour, i ? 1.2 : 2, dash)));
      list.forEach((p, i) => {
        const [x, middle] = this.centre(p);
        const clash = cursor && Math.hypot(cursor[1] + 0.5 - x, cursor[0] + 0.5 - middle) < 13 * unit;
        const y = middle + (clash ? (cursor[0] < middle ? 14 : -14) * unit : 0);
        right.push(
          shape(
            "text",
            {
              x,
              y: y + 4 * unit,
              "font-size": 12 * unit,
              "font-weight": 700,
              "font-family": "system-ui, sans-serif",
              "text-anchor": "middle",
              fill: "#fff",
              stroke: "#000",
              "stroke-width": 2.5 * unit,
              "paint-order": "stroke",
            },
            String.fromCharCode(first + i),
          ),
        );
      });
    }
    if (cursor) {
      const place = { cx: cursor[1] + 0.5, cy: cursor[0] + 0.5, fill: "none" };
      const ring = (radius, stroke, thick, more) =>
        shape("circle", { ...place, r: radius * unit, stroke, "stroke-width": thick * unit, ...more });
      for (const marks of [left, right]) {
        marks.push(ring(6.5, "#000", 3.5, { "stroke-opacity": 0.6 }), ring(6.5, "#fff", 1.7));
        if (pinned) marks.push(ring(2.2, "#000", 0.8, { fill: "#fff" }));
      }
    }
    $("labels-marks").lastChild.replaceChildren(...left);
    $("context-marks").lastChild.replaceChildren(...right);
  }
}
