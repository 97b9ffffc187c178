// Drawing: two canvases (labels, context), marks above them, and the words of an answer.

const SVG = "http://www.w3.org/2000/svg";
const FOR = [0, 98, 204], AGAINST = [230, 97, 0], STRONGEST = 0.92;
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

// A number with three significant digits and a true minus sign; the full value stays in the element.
function figures(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  const text = size >= 99.5 ? size.toFixed(0) : size >= 0.995 ? size.toFixed(2)
    : size >= 0.001 ? size.toPrecision(2) : size.toExponential(1);
  return (value < 0 ? "−" : "") + text;
}
const signed = (value) => (value > 0 ? "+" : "") + figures(value);

function number(value, id, text = figures(value)) {
  return element("data", id ? { id, value: String(value) } : { value: String(value) }, text);
}

const percent = (share) => (share > 0 && share < 0.01 ? "<1" : share < 1 && share > 0.99 ? ">99" : String(Math.round(100 * share))) + " %";

class View {
  constructor(data, evidence, photo) {
    Object.assign(this, { data, evidence, photo, held: null });
    const { height, width } = evidence;
    for (const id of ["labels", "context"]) {
      Object.assign($(id), { width, height });
      $(id).classList.toggle("coarse", width < 320);
      $(`${id}-marks`).setAttribute("viewBox", `0 0 ${width} ${height}`);
    }
    this.grey = new Uint8ClampedArray(height * width);
    for (let i = 0; i < this.grey.length; i++) {
      this.grey[i] = 62 + 0.6 * (0.299 * photo[4 * i] + 0.587 * photo[4 * i + 1] + 0.114 * photo[4 * i + 2]);
    }
    const bar = $("gradient").getContext("2d", CPU), strip = bar.createImageData(241, 1);
    for (let x = 0; x < 241; x++) this.tint(strip.data, 4 * x, 140, (x - 120) / 120);
    bar.putImageData(strip, 0, 0);
  }

  // One pixel: grey, tinted by value (-1..1); the colour bar is drawn by the same rule.
  tint(target, at, grey, value) {
    const colour = value < 0 ? AGAINST : FOR, share = STRONGEST * Math.min(1, Math.abs(value) || 0);
    for (let j = 0; j < 3; j++) target[at + j] = grey + (colour[j] - grey) * share;
    target[at + 3] = 255;
  }

  colour(c) {
    return this.data.palette[c];
  }

  css(c) {
    return `rgb(${this.colour(c).join(" ")})`;
  }

  name(c) {
    return element("span", { class: "name" }, this.data.classes[c]);
  }

  tagged(c) {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = this.css(c);
    return element("span", {}, swatch, this.name(c));
  }

  drawLabels(labels, opacity) {
    const { height, width } = this.evidence;
    const context = $("labels").getContext("2d", CPU), picture = context.createImageData(width, height);
    for (let i = 0; i < labels.length; i++) {
      const share = labels[i] < 0 ? 0 : opacity, colour = labels[i] < 0 ? [0, 0, 0] : this.colour(labels[i]);
      for (let j = 0; j < 3; j++) picture.data[4 * i + j] = this.photo[4 * i + j] * (1 - share) + colour[j] * share;
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  }

  // Where patches overlap, the mean is smaller than the strongest: the scale follows what is drawn.
  drawContext(effects) {
    const { height, width } = this.evidence, field = this.evidence.spread(effects);
    let peak = 0;
    for (const v of field) if (Math.abs(v) > peak) peak = Math.abs(v);
    const top = this.held ?? peak;
    this.peak = peak;
    const context = $("context").getContext("2d", CPU), picture = context.createImageData(width, height);
    for (let i = 0; i < field.length; i++) this.tint(picture.data, 4 * i, this.grey[i], top ? field[i] / top : 0);
    context.putImageData(picture, 0, 0);
    for (const [id, value] of [["low", -top], ["high", top]]) {
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

  centre(p) {
    if (this.evidence.boxes) {
      const [top, left, bottom, right] = this.evidence.boxes[p];
      return [(left + right) / 2, (top + bottom) / 2];
    }
    const members = this.evidence.members(p), i = members[members.length >> 1] ?? 0;
    return [(i % this.evidence.width) + 0.5, Math.floor(i / this.evidence.width) + 0.5];
  }

  // Lines above both pictures. `drawn` is a region being drawn.
  drawMarks(answer, borders, { cursor, pinned, preview, drawn }) {
    const { width, height } = this.evidence;
    const unit = width / Math.max(1, $("stage").clientWidth);
    const line = (d, colour, thick, more = {}) =>
      shape("path", { d, fill: "none", stroke: colour, "stroke-width": thick, "vector-effect": "non-scaling-stroke", ...more });
    const cased = (d, colour, thick, more = {}) => [line(d, "#000", thick + 2, { "stroke-opacity": 0.55, ...more }), line(d, colour, thick, more)];
    const left = [line(borders, "#fff", 0.8, { "stroke-opacity": 0.75 })];
    const right = [line(borders, "#fff", 0.7, { "stroke-opacity": 0.5 })];
    const region = drawn ?? (answer.question.at ? null : answer.question.outline);
    if (region) for (const marks of [left, right]) marks.push(...cased(region, "#fff", 2));
    if (preview && answer.hidden !== null) {
      const d = this.outline(answer.hidden);
      left.push(shape("path", { d, fill: "#777", "fill-opacity": 0.92, "fill-rule": "evenodd" }), ...cased(d, "#fff", 1.5, { "stroke-dasharray": "5 3" }));
    }
    for (const [list, colour, first, dash] of [[answer.opponents, "#ffb27a", 65, { "stroke-dasharray": "4 3" }], [answer.supporters, "#9fcbff", 49, {}]]) {
      list.forEach((p, i) => right.push(...cased(this.outline(p), colour, i ? 1.2 : 2, dash)));
      list.forEach((p, i) => {
        const [x, middle] = this.centre(p);
        const clash = cursor && Math.hypot(cursor[1] + 0.5 - x, cursor[0] + 0.5 - middle) < 13 * unit;
        const y = middle + (clash ? (cursor[0] < middle ? 14 : -14) * unit : 0);
        right.push(shape("text", { x, y: y + 4 * unit, "font-size": 12 * unit, "font-weight": 700, "font-family": "system-ui, sans-serif",
          "text-anchor": "middle", fill: "#fff", stroke: "#000", "stroke-width": 2.5 * unit, "paint-order": "stroke" }, String.fromCharCode(first + i)));
      });
    }
    if (cursor) {
      const [y, x] = [cursor[0] + 0.5, cursor[1] + 0.5];
      for (const marks of [left, right]) {
        marks.push(shape("circle", { cx: x, cy: y, r: 6.5 * unit, fill: "none", stroke: "#000", "stroke-width": 3.5 * unit, "stroke-opacity": 0.6 }));
        marks.push(shape("circle", { cx: x, cy: y, r: 6.5 * unit, fill: "none", stroke: "#fff", "stroke-width": 1.7 * unit }));
        if (pinned) marks.push(shape("circle", { cx: x, cy: y, r: 2.2 * unit, fill: "#fff", stroke: "#000", "stroke-width": 0.8 * unit }));
      }
    }
    $("labels-marks").replaceChildren(...left);
    $("context-marks").replaceChildren(...right);
  }

  writePatches(answer, chosen) {
    const strongest = Math.max(...answer.effects.map(Math.abs), 0) || 1;
    for (const [id, list, first, kind, none] of [
      ["supporters", answer.supporters, 49, "pro", "No patch supports it."],
      ["opponents", answer.opponents, 65, "con", "No patch speaks against it."],
    ]) {
      const items = list.map((p, i) => {
        const effect = answer.effects[p], bar = element("i");
        bar.style.width = `${Math.max(1, (100 * Math.abs(effect)) / strongest)}%`;
        const badge = String.fromCharCode(first + i);
        const button = element("button", { type: "button", class: `patch ${kind}`, "data-patch": String(p), "aria-pressed": String(chosen === p),
          title: `Hide patch ${badge}` },
        element("span", { class: "badge" }, badge), element("span", { class: "where" }, this.evidence.place(p, answer.question)),
        number(effect, "", signed(effect)), bar);
        return element("li", {}, button);
      });
      $(id).replaceChildren(...(items.length ? items : [element("li", {}, element("p", {}, none))]));
    }
    $("towards").replaceChildren(this.name(answer.why));
  }

  badge(answer, p) {
    const pro = answer.supporters.indexOf(p), con = answer.opponents.indexOf(p);
    return pro >= 0 ? `patch ${pro + 1}` : con >= 0 ? `patch ${String.fromCharCode(65 + con)}` : "the patch";
  }

  writeQuestion(answer) {
    const { question, label, why, best, now } = answer, truth = this.evidence.truth;
    const subject = question.at ? `column ${question.at[1]}, row ${question.at[0]}` : `${question.name}, ${question.pixels} px`;
    $("headline").replaceChildren(this.tagged(label), element("small", {}, element("span", { class: "name" }, subject)));
    const mean = question.at ? "" : "mean ";
    $("score").replaceChildren(`${mean}logit `, number(now.logit, "logit"), `, ${mean}margin `, number(now.margin, "margin", signed(now.margin)));
    if (why !== label) $("score").prepend("as ", this.name(why), ": ");
    if (question.at) $("score").append(now.margin >= 0 ? " ahead of " : " behind ", this.name(best));
    $("was").textContent = "";
    if (truth && question.at) {
      const true_ = truth[question.at[0] * this.evidence.width + question.at[1]];
      $("was").append("truth: ", true_ < 0 ? "void" : this.name(true_), true_ < 0 ? "" : true_ === label ? " ✓ right" : " ✗ wrong");
    } else if (truth) {
      let right = 0, valid = 0;
      question.mask.forEach((m, i) => { if (m && truth[i] >= 0) { valid++; right += truth[i] === now.labels[i]; } });
      $("was").textContent = valid ? `${percent(right / valid)} of its pixels are labelled right` : "truth: void";
    } else if (!question.at) $("was").append(`${percent(answer.counts[label] / question.pixels)} of it is labelled `, this.name(label));
  }

  writeVerdict(answer) {
    const { question, hidden, after, label, why, now } = answer;
    $("preview").disabled = hidden === null;
    $("stack").replaceChildren();
    $("after").replaceChildren();
    if (hidden === null) {
      $("hidden-title").textContent = "Nothing to hide";
      $("verdict").textContent = "No patch supports this label: hiding any one would not weaken it.";
      return;
    }
    $("hidden-title").textContent = `If ${this.badge(answer, hidden)} is hidden`;
    $("verdict").replaceChildren();
    const shares = Array.from(after.counts.keys()).filter((c) => after.counts[c]).sort((a, b) => after.counts[b] - after.counts[a]);
    if (question.at) {
      $("verdict").append(shares[0] === label ? "it stays " : "it becomes ", this.tagged(shares[0]));
    } else {
      shares.slice(0, 3).forEach((c, i) => $("verdict").append(i ? ", " : "", number(after.counts[c] / question.pixels, "", percent(after.counts[c] / question.pixels)), " ", this.tagged(c)));
      for (const c of shares) {
        const part = element("span");
        part.style.background = this.css(c);
        part.style.flexGrow = String(after.counts[c]);
        $("stack").append(part);
      }
    }
    $("verdict").dataset.classes = JSON.stringify(shares);
    const mean = question.at ? "" : "mean ";
    $("after").append(`${mean}logit of `, this.name(why), " ", number(now.logit), " → ", number(after.logit, "logit-after"));
    if (this.evidence.kept.length === this.data.classes.length) {
      $("after").append(`, ${mean}margin `, number(now.margin, "", signed(now.margin)), " → ", number(after.margin, "margin-after", signed(after.margin)));
    }
  }

  // The answer as one plain sentence or two, for the screen reader.
  sentence(answer) {
    const { question, effects, supporters, opponents } = answer, names = this.data.classes;
    const subject = question.at ? `Column ${question.at[1]}, row ${question.at[0]}` : `${question.name}, ${question.pixels} pixels`;
    const against = answer.rival === null ? "" : ` rather than ${names[answer.rival]}`;
    const part = (list, badge, word) => list.length ? `${word}: patch ${badge}, ${this.evidence.place(list[0], question)}, ${signed(effects[list[0]])}. ` : "";
    const words = [`${subject}: ${names[answer.label]}. `];
    words.push(`Why ${names[answer.why]}${against}: logit ${figures(answer.now.logit)}, margin ${signed(answer.now.margin)}. `);
    words.push(part(supporters, "1", "Strongest towards it"), part(opponents, "A", "Strongest against it"));
    words.push(`${$("hidden-title").textContent}: ${$("verdict").textContent}.`);
    return words.join("");
  }
}
