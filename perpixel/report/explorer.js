// The page's state and what changes it: pointer, keys, buttons.

class Explorer {
  constructor(data, evidence, photo) {
    Object.assign(this, { data, evidence, view: new View(data, evidence, photo) });
    const { height, width } = evidence;
    this.all = evidence.label(-1, null, 0);
    this.borders = contours(this.all.labels, height, width);
    this.why = null;
    this.rival = "";
    this.preview = false;
    this.chosen = null;
    this.pinned = false;
    this.cursor = data.start;
    this.question = this.pixel(...this.cursor);
    this.buildClasses();
    this.buildSelects();
    this.listenToStage();
    this.listenToControls();
    this.refresh();
    new ResizeObserver(() => this.marks()).observe($("stage"));
  }

  pixel(y, x) {
    const mask = new Uint8Array(this.evidence.height * this.evidence.width);
    mask[y * this.evidence.width + x] = 1;
    return { mask, pixels: 1, at: [y, x], name: "pixel" };
  }

  region(mask, name, outline) {
    const { height, width } = this.evidence, pixels = mask.reduce((sum, m) => sum + m, 0);
    return { mask, pixels, at: null, name, outline: outline ?? contours(mask, height, width, true) };
  }

  // Asks; `keep`: stays until released. A class asked about becomes the "why".
  ask(question, { keep = false, why = null, speak = keep } = {}) {
    this.question = question;
    this.pinned = keep;
    this.why = why;
    this.rival = this.rival === "" || this.rival === "runner-up" ? this.rival : "";
    this.chosen = null;
    this.refresh(speak);
  }

  release() {
    if (document.activeElement === $("release")) $("stage").focus();
    this.preview = false;
    this.ask(this.pixel(...this.cursor), { speak: true });
  }

  refresh(speak = true) {
    this.answer = this.evidence.answer({ ...this.question, why: this.why, rival: this.rival }, this.chosen);
    const { answer, view } = this;
    view.writeQuestion(answer);
    view.writePatches(answer, this.preview ? this.chosen : null);
    view.writeVerdict(answer);
    view.drawContext(answer.effects);
    this.paint();
    $("why").value = String(answer.why);
    $("rival").value = answer.rival === null ? "" : this.rival === "runner-up" ? "runner-up" : String(answer.rival);
    for (const option of $("rival").options) option.disabled = option.value === String(answer.why) || option.dataset.stored === "no";
    const what = this.data.classes[answer.why], other = answer.rival === null ? "" : ` rather than ${this.data.classes[answer.rival]}`;
    $("context-caption").textContent = `Context: why ${what}${other}?`;
    $("release").disabled = !this.pinned;
    for (const button of $("classes").children) button.setAttribute("aria-pressed", String(this.pinned && this.question.of === Number(button.dataset.class)));
    document.body.dataset.pinned = String(this.pinned);
    if (speak) $("live").textContent = view.sentence(answer);
  }

  // Labels as they are, with the patch hidden, or as they should be.
  paint() {
    const { answer, evidence, view } = this;
    const shown = this.preview && answer.hidden !== null;
    let labels = this.all.labels, caption = "Labels", changed = "";
    this.shownBorders = this.borders;
    if ($("truth").checked) [labels, caption] = [evidence.truth, "Truth"];
    else if (shown) {
      labels = evidence.label(answer.hidden, null, 0).labels;
      caption = `Labels with ${view.badge(answer, answer.hidden)} hidden`;
      changed = `${percent(labels.reduce((n, c, i) => n + (c !== this.all.labels[i]), 0) / labels.length)} of the picture changes`;
    }
    if (labels !== this.all.labels) this.shownBorders = contours(labels, evidence.height, evidence.width);
    view.drawLabels(labels, Number($("opacity").value) / 100);
    $("labels-caption").textContent = caption;
    $("changed").textContent = changed;
    $("preview").setAttribute("aria-pressed", String(shown));
    $("preview").textContent = shown ? "Show the picture with it" : "Show the picture without it";
    this.marks();
  }

  marks(drawn) {
    const { question, pinned, preview } = this;
    this.view.drawMarks(this.answer, this.shownBorders, { cursor: question.at, pinned, preview, drawn });
  }

  buildClasses() {
    const counts = this.all.counts, total = this.all.pixels;
    const present = Array.from(counts.keys()).filter((c) => counts[c]).sort((a, b) => counts[b] - counts[a]);
    for (const c of present) {
      const button = element("button", { type: "button", "data-class": String(c), "aria-pressed": "false" },
        this.view.tagged(c), element("small", {}, percent(counts[c] / total)));
      button.addEventListener("click", () => (button.getAttribute("aria-pressed") === "true" ? this.release() : this.askClass(c)));
      $("classes").append(button);
    }
    const absent = this.data.classes.filter((_, c) => !counts[c]);
    if (absent.length) $("absent").append("Nothing here is labelled ", element("span", { class: "name" }, absent.join(", ")), ".");
  }

  askClass(c) {
    const mask = Uint8Array.from(this.all.labels, (l) => (l === c ? 1 : 0));
    this.ask({ ...this.region(mask, `all ${this.data.classes[c]}`), of: c }, { keep: true, why: c });
  }

  buildSelects() {
    $("rival").append(element("option", { value: "" }, "— (its logit alone)"), element("option", { value: "runner-up" }, "the runner-up"));
    this.data.classes.forEach((name, c) => {
      const stored = this.evidence.slot[c] >= 0;
      for (const id of ["why", "rival"]) {
        const option = element("option", { value: String(c), "data-stored": stored ? "yes" : "no" }, stored ? name : `${name} (left out)`);
        option.disabled = !stored;
        $(id).append(option);
      }
    });
  }

  at(event) {
    const box = event.currentTarget.getBoundingClientRect(), { height, width } = this.evidence;
    const x = ((event.clientX - box.left) / box.width) * width, y = ((event.clientY - box.top) / box.height) * height;
    return [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))];
  }

  inside([x, y]) {
    return [Math.min(this.evidence.height - 1, Math.floor(y)), Math.min(this.evidence.width - 1, Math.floor(x))];
  }

  tool() {
    return document.querySelector("input[name=tool]:checked").value;
  }

  listenToStage() {
    for (const stage of [$("stage"), $("context-stage")]) {
      stage.addEventListener("pointerdown", (event) => {
        this.dropped = false;
        if (event.button || (event.pointerType === "touch" && this.tool() === "pixel")) return;
        this.drag = { tool: this.tool() === "lasso" ? "lasso" : "rectangle", points: [this.at(event)], x: event.clientX, y: event.clientY, far: false };
        stage.setPointerCapture(event.pointerId);
      });
      stage.addEventListener("pointermove", (event) => this.move(event));
      stage.addEventListener("pointerup", (event) => this.drop(event));
      stage.addEventListener("pointercancel", () => { this.drag = null; this.marks(); });
      stage.addEventListener("click", (event) => this.click(event));
    }
    $("stage").addEventListener("keydown", (event) => this.key(event));
  }

  move(event) {
    if (this.drag) {
      this.drag.far ||= Math.hypot(event.clientX - this.drag.x, event.clientY - this.drag.y) > 4;
      this.drag.points.push(this.at(event));
      if (this.drag.far) this.marks(`M${this.polygon().map((p) => p.join(" ")).join("L")}Z`);
      return;
    }
    if (this.pinned || event.pointerType === "touch") return;
    this.next = this.inside(this.at(event));
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      const [y, x] = this.question.at ?? [-1, -1];
      if (this.pinned || (this.next[0] === y && this.next[1] === x)) return;
      this.cursor = this.next;
      this.ask(this.pixel(...this.cursor));
    });
  }

  polygon() {
    const { tool, points } = this.drag, first = points[0], last = points[points.length - 1];
    return tool === "lasso" ? points : this.rectangle(this.inside(first), this.inside(last));
  }

  rectangle([y0, x0], [y1, x1]) {
    const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1) + 1, Math.min(y0, y1), Math.max(y0, y1) + 1];
    return [[left, top], [right, top], [right, bottom], [left, bottom]];
  }

  askPolygon(polygon, name) {
    const mask = rasterise(polygon, this.evidence.height, this.evidence.width);
    if (mask.indexOf(1) >= 0) this.ask(this.region(mask, name, `M${polygon.map((p) => p.join(" ")).join("L")}Z`), { keep: true });
    else this.marks();
  }

  drop(event) {
    const drag = this.drag;
    if (drag && drag.far) {
      this.drag.points.push(this.at(event));
      this.dropped = true; // the click that follows belongs to the drag
      this.askPolygon(this.polygon(), drag.tool === "lasso" ? "drawn region" : "rectangle");
    }
    this.drag = null;
  }

  click(event) {
    if (this.dropped) return;
    const [y, x] = this.inside(this.at(event));
    const same = this.pinned && this.question.at && Math.hypot(this.question.at[0] - y, this.question.at[1] - x) < 0.02 * this.evidence.width;
    this.cursor = [y, x];
    this.ask(this.pixel(y, x), { keep: !same });
  }

  key(event) {
    const { height, width, effectGrid } = this.evidence;
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (event.ctrlKey || event.metaKey) return;
    if (move) {
      const step = event.altKey ? [1, 1] : [Math.max(1, Math.round(height / effectGrid.rows)), Math.max(1, Math.round(width / effectGrid.columns))];
      if (!event.shiftKey) this.anchor = null;
      else this.anchor ??= this.cursor;
      this.cursor = [0, 1].map((i) => Math.min([height, width][i] - 1, Math.max(0, this.cursor[i] + move[i] * step[i])));
      if (event.shiftKey) this.askPolygon(this.rectangle(this.anchor, this.cursor), "rectangle");
      else this.ask(this.pixel(...this.cursor), { speak: true });
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.question.at) this.ask(this.question, { keep: !this.pinned, speak: true });
    } else if (event.key === "h" || event.key === "H") this.togglePreview();
    else return;
    event.preventDefault();
  }

  togglePreview(patch = null) {
    const off = this.preview && (patch === null || patch === this.chosen);
    this.preview = !off;
    this.chosen = off ? null : patch;
    this.refresh();
  }

  listenToControls() {
    $("opacity").addEventListener("input", () => this.paint());
    $("truth").addEventListener("change", () => this.paint());
    $("truth-toggle").hidden = !this.evidence.truth;
    $("hold").addEventListener("change", () => {
      this.view.held = $("hold").checked ? this.view.peak : null;
      this.refresh(false);
    });
    $("why").addEventListener("change", () => {
      this.why = Number($("why").value);
      [this.pinned, this.chosen] = [true, null];
      this.refresh();
    });
    $("rival").addEventListener("change", () => {
      this.rival = $("rival").value;
      [this.pinned, this.chosen] = [true, null];
      this.refresh();
    });
    $("tools").addEventListener("change", () => {
      for (const id of ["stage", "context-stage"]) $(id).classList.toggle("drawing", this.tool() !== "pixel");
    });
    $("release").addEventListener("click", () => this.release());
    $("preview").addEventListener("click", () => this.togglePreview(this.chosen));
    for (const id of ["supporters", "opponents"]) {
      $(id).addEventListener("click", (event) => {
        const button = event.target.closest("button");
        if (!button) return;
        const patch = Number(button.dataset.patch);
        this.pinned = true;
        this.togglePreview(patch);
        $(id).querySelector(`[data-patch="${patch}"]`)?.focus();
      });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.release();
    });
  }
}

async function picture(source, height, width) {
  const image = new Image();
  image.src = source;
  await image.decode();
  const canvas = element("canvas", { width: String(width), height: String(height) });
  const context = canvas.getContext("2d", CPU);
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height).data;
}

async function open() {
  if (!("DecompressionStream" in window)) throw new Error("it needs Chrome or Edge 80, Firefox 113, Safari 16.4 or newer");
  const data = JSON.parse($("data").textContent);
  const [evidence, photo] = await Promise.all([Evidence.unpack(data), picture(data.image, ...data.size)]);
  $("stored").textContent = data.stored;
  $("note").textContent = data.note;
  $("main").hidden = false;
  $("status").hidden = true;
  new Explorer(data, evidence, photo);
  document.body.dataset.ready = "true";
}

open().catch((error) => {
  $("status").hidden = false;
  $("status").textContent = `The page could not be drawn: ${error.message}.`;
  throw error;
});
