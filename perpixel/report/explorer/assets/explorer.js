// The page's state: what is asked, what is kept, and the buttons that change it.

class Explorer {
  constructor(data, evidence, photo) {
    Object.assign(this, { data, evidence, view: new View(data, evidence, photo) });
    this.text = new AnswerText(data, evidence);
    const { height, width } = evidence;
    this.all = evidence.plain;
    this.borders = contours(this.all.labels, height, width);
    this.why = null;
    this.rival = "";
    this.preview = false;
    this.chosen = null;
    this.under = null; // the patch under the pointer, while an answer is kept
    this.pinned = false;
    document.body.dataset.view = "context";
    this.cursor = data.start;
    this.question = this.pixel(...this.cursor);
    this.buildClasses();
    this.buildSelects();
    this.input = new PictureInput(this);
    this.listenToControls();
    this.refresh();
    const resized = new ResizeObserver(() => this.marks());
    for (const id of ["stage", "context-stage"]) resized.observe($(id));
  }

  pixel(y, x) {
    const mask = new Uint8Array(this.evidence.height * this.evidence.width);
    mask[y * this.evidence.width + x] = 1;
    return { mask, pixels: 1, at: [y, x], name: "pixel" };
  }

  region(mask, name, outline) {
    const { height, width } = this.evidence;
    const pixels = mask.reduce((sum, m) => sum + m, 0);
    return { mask, pixels, at: null, name, outline: outline ?? contours(mask, height, width, true) };
  }

  // Asks; `keep`: stays until released. A class asked about becomes the "why".
  ask(question, { keep = false, why = null, speak = keep } = {}) {
    this.question = question;
    this.pinned = keep;
    this.why = why;
    this.rival = this.rival === "logit" ? "logit" : "";
    [this.chosen, this.under] = [null, null];
    this.refresh(speak);
  }

  release() {
    if (document.activeElement === $("release")) this.stage().focus();
    this.preview = false;
    this.ask(this.pixel(...this.cursor), { speak: true });
  }

  // The picture that is shown: on a narrow screen only one is.
  stage() {
    return $("stage").offsetParent ? $("stage") : $("context-stage");
  }

  // While an answer is kept: what would be with the patch under the pointer hidden; null: the pointer has left.
  peek(p) {
    if (!this.pinned || p === this.under) return;
    this.under = p;
    const { supporters } = this.answer;
    this.answer = this.evidence.without(this.answer, p ?? this.chosen ?? supporters[0] ?? null);
    this.text.writeVerdict(this.answer);
    this.paint();
  }

  refresh(speak = true) {
    this.under = null;
    this.answer = this.evidence.answer({ ...this.question, why: this.why, rival: this.rival }, this.chosen);
    const { answer, view, text } = this;
    text.writeQuestion(answer);
    text.writePatches(answer, this.preview ? this.chosen : null);
    text.writeVerdict(answer);
    view.drawContext(answer.effects);
    this.paint();
    $("why").value = String(answer.why);
    $("rival").value = String(answer.rival);
    for (const option of $("rival").options) {
      option.disabled = option.value === String(answer.why) || option.dataset.stored === "no";
    }
    $("context-caption").textContent = `Why ${text.asked(answer)}?`;
    $("measure").textContent = text.measure(answer);
    $("release").disabled = !this.pinned;
    for (const button of $("classes").children) {
      const asked = this.pinned && this.question.of === Number(button.dataset.class);
      button.setAttribute("aria-pressed", String(asked));
    }
    document.body.dataset.pinned = String(this.pinned);
    if (speak) $("live").textContent = text.sentence(answer);
  }

  // Labels as they are, with the patch hidden, or as they should be.
  paint() {
    const { answer, evidence, view, text } = this;
    const shown = this.preview && answer.hidden !== null;
    let labels = this.all.labels;
    let caption = "Labels";
    let changed = "";
    this.shownBorders = this.borders;
    if ($("truth").checked) [labels, caption] = [evidence.truth, "Truth"];
    else if (shown) {
      labels = evidence.label(answer.hidden, null, 0).labels;
      caption = `Labels with ${text.badge(answer, answer.hidden)} hidden`;
      const different = labels.reduce((count, c, i) => count + (c !== this.all.labels[i]), 0);
      changed = `${percent(different / labels.length)} of the picture changes`;
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
    const { question, pinned, preview, under } = this;
    this.view.drawMarks(this.answer, this.shownBorders, { cursor: question.at, pinned, preview, under, drawn });
  }

  buildClasses() {
    const counts = this.all.counts;
    const total = this.all.pixels;
    const present = Array.from(counts.keys())
      .filter((c) => counts[c])
      .sort((a, b) => counts[b] - counts[a]);
    for (const c of present) {
      const button = element(
        "button",
        { type: "button", "data-class": String(c), "aria-pressed": "false" },
        this.text.tagged(c),
        element("small", {}, percent(counts[c] / total)),
      );
      button.addEventListener("click", () =>
        button.getAttribute("aria-pressed") === "true" ? this.release() : this.askClass(c),
      );
      $("classes").append(button);
    }
    const absent = this.data.classes.filter((_, c) => !counts[c]);
    if (absent.length)
      $("absent").append(
        "Nothing here is labelled ",
        element("span", { class: "name" }, absent.join(", ")),
        ".",
      );
  }

  askClass(c) {
    const mask = Uint8Array.from(this.all.labels, (l) => (l === c ? 1 : 0));
    this.ask({ ...this.region(mask, `all ${this.data.classes[c]}`), of: c }, { keep: true, why: c });
  }

  buildSelects() {
    $("rival").append(
      element("option", { value: "" }, "the best other class"),
      element("option", { value: "logit" }, "nothing: its logit alone"),
    );
    $("rival").parentElement.hidden = this.data.classes.length === 2; // the other class is the rival
    this.data.classes.forEach((name, c) => {
      const stored = this.evidence.slot[c] >= 0;
      for (const id of ["why", "rival"]) {
        const option = element(
          "option",
          { value: String(c), "data-stored": stored ? "yes" : "no" },
          stored ? name : `${name} (left out)`,
        );
        option.disabled = !stored;
        $(id).append(option);
      }
    });
  }

  togglePreview(patch = null) {
    const off = this.preview && (patch === null || patch === this.chosen);
    this.preview = !off;
    this.chosen = off ? null : patch;
    if (this.preview) this.show("labels"); // the labels change, so they are what is to be seen
    this.refresh();
  }

  show(view) {
    document.body.dataset.view = view;
    for (const radio of document.querySelectorAll("input[name=view]")) radio.checked = radio.value === view;
  }

  listenToControls() {
    $("view").addEventListener("change", (event) => this.show(event.target.value));
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
      const { value } = $("rival");
      this.rival = value === "" || value === "logit" ? value : Number(value);
      [this.pinned, this.chosen] = [true, null];
      this.refresh();
    });
    $("tools").addEventListener("change", () => {
      for (const id of ["stage", "context-stage"])
        $(id).classList.toggle("drawing", this.input.tool() !== "pixel");
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
      if (event.key !== "Escape") return;
      this.input.drag = null;
      this.release();
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
  if (!("DecompressionStream" in window))
    throw new Error("it needs Chrome or Edge 80, Firefox 113, Safari 16.4 or newer");
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
